"""Inputs like those that preprocessing makes, and the comparison of an exported model with the one in PyTorch.

Axes: b batch, c channels, s spatial axes, n outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from medzoo.contract import Preprocessing
from medzoo.errors import ExportError

__all__ = ["BATCHES", "OutputDifference", "compare", "golden_inputs", "reference"]

BATCHES = (1, 2, 5)
# Cells along each axis of the coarse structure of an image, and its share of the values.
CELLS, COARSE = 4, 0.8


@dataclass(frozen=True)
class OutputDifference:
    """How far the outputs of an exported model are from those in PyTorch, at one batch size.

    Attributes:
        absolute: the largest difference.
        relative: the largest difference as a multiple of the largest output of its image, where that is above 1. This
            is what the tolerance is for: the rounding of float32 grows with the outputs.
    """

    absolute: float
    relative: float


def golden_inputs(channels: int, size: tuple[int, ...], how: Preprocessing | None, seed: int = 0) -> Tensor:
    """Return five inputs with values as ``how`` gives them, ``5 c *s``, the same for each call.

    Two are coarse structure with fine noise, as an image is; then come the lowest and the highest value everywhere, and
    normally distributed noise.
    """
    random = torch.Generator("cpu").manual_seed(seed)
    shape = (2, channels, *size)
    # Whatever the caller's defaults are.
    plain: Any = {"generator": random, "device": "cpu", "dtype": torch.float32}
    coarse = torch.rand((2, channels, *[CELLS] * len(size)), **plain)
    coarse = F.interpolate(coarse, size, mode="bilinear" if len(size) == 2 else "trilinear")
    images = COARSE * coarse + (1 - COARSE) * torch.rand(shape, **plain)
    noise = torch.randn((1, *shape[1:]), **plain)
    if how is None:
        return _with_extremes(images, noise)
    if how.intensity in ("zscore", "zscore_nonzero"):
        body = images > (images.mean() if how.intensity == "zscore_nonzero" else -1)
        values = images[body]
        images = torch.where(body, (images - values.mean()) / values.std(), 0.0)
    mean, std = (images.new_tensor(values).reshape(-1, *[1] * len(size)) for values in (how.mean, how.std))
    return _with_extremes((images - mean) / std, noise)


def _with_extremes(images: Tensor, noise: Tensor) -> Tensor:
    low, high = torch.full_like(noise, float(images.min())), torch.full_like(noise, float(images.max()))
    return torch.cat([images, low, high, noise])


def reference(model: Callable[[Tensor], Tensor], inputs: Tensor, who: str) -> dict[int, Tensor]:
    """Return the outputs ``b n`` of the first inputs, for each batch size.

    Raises:
        ExportError: the model returns NaN or infinity, with which nothing can be compared.
    """
    expected = {batch: model(inputs[:batch]) for batch in BATCHES}
    if not all(bool(torch.isfinite(outputs).all()) for outputs in expected.values()):
        raise ExportError(
            f"{who}: expected finite outputs to compare an export with, got NaN or infinity for inputs as the "
            "preprocessing makes them. Check its weights, and use float32 for weights that float16 cannot hold."
        )
    return expected


def compare(
    run: Callable[[Tensor], Tensor], inputs: Tensor, expected: Mapping[int, Tensor], tolerance: float, what: str
) -> dict[int, OutputDifference]:
    """Return how far outputs are from the expected ones, for each batch size.

    Args:
        run: the exported model.
        inputs: of :func:`golden_inputs`.
        expected: of :func:`reference`.
        tolerance: the largest difference allowed, see :attr:`OutputDifference.relative`.
        what: names the exported model in messages.

    Raises:
        ExportError: the outputs have another shape, are not finite, or differ by more.
    """
    found: dict[int, OutputDifference] = {}
    for batch, outputs in expected.items():
        got = run(inputs[:batch])
        if got.shape != outputs.shape:
            raise ExportError(
                f"{what}: expected outputs of shape {tuple(outputs.shape)} for a batch of {batch}, as in PyTorch, got "
                f"{tuple(got.shape)}. No file was kept."
            )
        apart = (got.double() - outputs.double()).abs()
        largest = outputs.double().abs().amax(1, keepdim=True).clamp(min=1.0)
        found[batch] = OutputDifference(apart.max().item(), (apart / largest).max().item())
    if not all(one.relative <= tolerance for one in found.values()):  # NaN is not
        figures = ", ".join(f"{one.relative:.2g} at batch {batch}" for batch, one in found.items())
        raise ExportError(
            f"{what}: expected outputs within {tolerance:g} of PyTorch's, relative to the largest of an image above 1, "
            f"got differences of {figures}. No file was kept. A model whose forward depends on the values of its input "
            "cannot be exported; where the differences are rounding, give a larger tolerance=."
        )
    return found
