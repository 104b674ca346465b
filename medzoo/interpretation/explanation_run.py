"""Explain planned images one after the other, in batches that share a forward pass.

Axes: b batch, c channels, s spatial axes, s' cells of the map, n classes, t targets.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medzoo.classifier import Classifier
from medzoo.errors import ConfigError, DataError, InputError, check_int, did_you_mean
from medzoo.features import annotate_oom
from medzoo.inference.engine import EngineModel, refuse_engine
from medzoo.inference.naming import name_outputs, provenance, settle
from medzoo.inference.optimize import optimized_view
from medzoo.inference.plan import PlannedImage, Points, plan
from medzoo.inference.reading import ImageReader, PreparedItem, read_planned
from medzoo.inference.result import Prediction
from medzoo.inference.run import check_caution, check_device, check_outputs
from medzoo.inference.view import float32_view
from medzoo.interpretation.cell_frame import layer_frame
from medzoo.interpretation.choose import ChosenLayer, choose_layer, choose_targets
from medzoo.interpretation.explanation import Explanation
from medzoo.interpretation.layer_maps import LAYER_METHODS, LayerMethod, layer_maps
from medzoo.interpretation.occlusion import box_frame, check_box, occlusion_maps, positions
from medzoo.io.image import Image
from medzoo.transforms.suitability import ExcludedView
from medzoo.transforms.transform import ImageSource, Prepared, transform

__all__ = ["METHODS", "ExplanationRun", "Method"]

Method = Literal["gradcam", "gradcam++", "occlusion"]
METHODS: tuple[Method, ...] = (*LAYER_METHODS, "occlusion")


class RowMaps(NamedTuple):
    """What the model gave for one image.

    Attributes:
        logits: ``n``.
        cells: the map of each target, ``*s'``.
    """

    logits: Tensor
    cells: dict[str, NDArray[np.float32]]


class ExplanationRun:
    """The explanations of images, made as they are iterated over: an explanation, or a prediction with its error.

    Args:
        model: as the others, of :func:`medzoo.explain`.
        keep_images: whether an explanation keeps its image, or reads it again from its file.

    Attributes:
        single: whether the caller asked for one image.
        skipped: path to the reason why it is skipped; complete at the end.
        categories: path to what the reason is counted as, for :class:`medzoo.Predictions`.
    """

    def __init__(
        self,
        model: Classifier,
        source: ImageSource | list[Any] | tuple[Any, ...],
        target: str | Sequence[str] | None = None,
        method: Method = "gradcam",
        *,
        layer: str | None = None,
        mask_size: int | Sequence[int] | None = None,
        points: Points | None = None,
        points_frame: Literal["LPS", "RAS"] = "LPS",
        batch_size: int = 1,
        device: torch.device | str | None = None,
        allow_untrained: bool = False,
        strict: bool = False,
        allow_mismatch: bool = False,
        progress: Callable[[int, int], object] | None = None,
        keep_images: bool = True,
    ) -> None:
        _check(model, method, layer, mask_size, allow_untrained, strict)
        check_int(model.name, "batch_size", batch_size, 1)
        self._choose = choose_targets(model, target, allow_untrained)
        work = plan(model, source, points, points_frame)
        self._images, self.skipped, self.single = work.images, dict(work.skipped), work.single
        self.categories: dict[str, str] = {}
        self._reader = ImageReader(transform(model), work.images, provenance(model), allow_mismatch, keep=True)
        size = self._reader.transform.preprocessing.size
        self._box = check_box(model.name, mask_size, size) if method == "occlusion" else ()
        # Progress is counted in forward passes of one image.
        self._passes = positions(size, self._box) if self._box else 1
        self._progress, self._finished, self._done = progress, 0, 0
        here = next(model.parameters()).device
        self._device = here if device is None else check_device(device, model.name)
        self._view = float32_view(model, self._device)
        self._method, self._batch_size, self._strict, self._keep_images = method, batch_size, strict, keep_images
        self._layer_name = layer
        self._layer: ChosenLayer | None = None
        self._frame = box_frame(self._box)
        self._runner = optimized_view(self._view, len(work.images) * self._passes)
        self.name, self._outputs = model.name, model.outputs

    def __len__(self) -> int:
        return len(self._images)

    def __iter__(self) -> Iterator[Explanation | Prediction]:
        self._finished = self._done = 0
        batch: list[tuple[PlannedImage, PreparedItem]] = []
        for index, planned in enumerate(self._images):
            item = self._reader[index]
            if planned.in_memory and item.prediction.error and item.kind is not ExcludedView:
                raise item.kind(item.prediction.error)
            batch.append((planned, item))
            # The copies of one image fill the batches of occlusion.
            full = self._box or sum(item.tensor is not None for _, item in batch) == self._batch_size
            if full or index == len(self._images) - 1:
                yield from self._finish(batch)
                batch = []

    def _finish(self, batch: list[tuple[PlannedImage, PreparedItem]]) -> Iterator[Explanation | Prediction]:
        """Yield the results of a batch without the images that are skipped; raise the error of the only image."""
        for result, kind in self._run(batch):
            self._finished += 1
            self._report(self._finished * self._passes)
            prediction, kind = settle(
                result.prediction if isinstance(result, Explanation) else result, kind, self._strict
            )
            if self.single and prediction.error:
                raise kind(prediction.error)
            if kind is ExcludedView:
                self.skipped[prediction.source] = prediction.error.removeprefix(f"{prediction.source}: ")
                self.categories[prediction.source] = kind.reason
            elif isinstance(result, Explanation) and not prediction.error:
                yield replace(result, prediction=prediction)
            else:
                yield prediction

    def _report(self, done: int) -> None:
        if self._progress is not None and done > self._done:
            self._progress(done, len(self._images) * self._passes)
        self._done = done

    def _run(
        self, batch: list[tuple[PlannedImage, PreparedItem]]
    ) -> Iterator[tuple[Explanation | Prediction, type[DataError]]]:
        """Run the tensors of a batch, and yield all results in order, each with the type of its error if it has one."""
        tensors = [item.tensor for _, item in batch if item.tensor is not None]
        rows: Iterator[RowMaps] = iter(())
        failure = ""
        if tensors:
            try:
                rows = iter(self._maps(torch.stack(tensors).to(self._device, torch.float32)))
            except InputError as error:  # out of memory: the next batch may be smaller
                failure = str(error)
        for planned, item in batch:
            name = item.prediction.source
            if item.tensor is None:
                yield item.prediction, item.kind
            elif failure:
                yield replace(item.prediction, error=f"{name}: {failure}", reason="out of memory"), DataError
            else:
                yield self._named(planned, item, next(rows)), DataError

    @annotate_oom
    def _maps(self, x: Tensor) -> list[RowMaps]:
        """Run a batch ``b c *s``, and return its rows."""
        if self._box:
            run = partial(occlusion_maps, self._runner, box=self._box, batch_size=self._batch_size, ran=self._ran)
            with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
                logits = self._runner(x)
                targets = self._choose(logits)
                maps = torch.stack([run(*row) for row in zip(x[:, None], logits[:, None], targets, strict=True)])
        else:
            if self._layer is None:
                self._layer = choose_layer(self._view, x, self._layer_name)
                self._frame = layer_frame(self._view, self._layer, x)
            method = cast(LayerMethod, self._method)
            logits, maps = layer_maps(self._view, self._layer.name, x, self._choose, method)
            targets = self._choose(logits)
        labels = [[self._outputs.labels[int(i)] for i in row] for row in targets]
        # Each map has its own memory, not a part of the batch's.
        cells = [[map_.numpy().copy() for map_ in row] for row in maps.cpu()]
        return [
            RowMaps(row, dict(zip(names, own, strict=True)))
            for row, names, own in zip(logits.cpu(), labels, cells, strict=True)
        ]

    def _ran(self, copies: int) -> None:
        self._report(self._done + copies)

    def _named(self, planned: PlannedImage, item: PreparedItem, row: RowMaps) -> Explanation | Prediction:
        """Return the explanation of an image, or its prediction with an error."""
        prediction, prepared = name_outputs(item, row.logits, self._outputs), cast(Prepared, item.prepared)
        if prediction.error:
            return prediction
        if not all(np.isfinite(cells).all() for cells in row.cells.values()):
            error = f"{prediction.source}: its map has NaN or infinity. Check the weights of the model."
            return replace(item.prediction, error=error, reason="maps that are not finite")
        keep = self.single or self._keep_images
        return Explanation(
            prediction,
            prepared.image
            if keep
            else partial(_read_again, planned, self._reader.transform.channels, prediction, _checksum(prepared.image)),
            row.cells,
            prepared.geometry,
            self._frame,
            self._method,
            "" if self._layer is None else self._layer.name,
            _warning(prediction.name, row.cells, self._layer),
        )


def _read_again(planned: PlannedImage, channels: int, prediction: Prediction, checksum: int) -> Image:
    """Read the image that was explained; DataError if it is another one by now."""
    image = read_planned(planned, channels)
    if image.identity != prediction.identity or _checksum(image) != checksum:
        raise DataError(
            f"{prediction.name}: expected the image that was explained, got another one: it was changed since. Explain "
            "it again."
        )
    return image


def _checksum(image: Image) -> int:
    """Return a number that another image or position has by chance once in 2^32; it takes 25 ms for 100 MB."""
    shape = f"{image.array.shape} {image.array.dtype}".encode()
    place = b"" if image.affine is None else image.affine.tobytes()
    return zlib.crc32(np.ascontiguousarray(image.array).data, zlib.crc32(shape + place))


def _check(
    model: Classifier,
    method: str,
    layer: str | None,
    mask_size: int | Sequence[int] | None,
    allow_untrained: bool,
    strict: bool,
) -> None:
    """Raise ConfigError for a model that cannot be explained, and for options that do not go together."""
    if isinstance(model, EngineModel):
        raise refuse_engine(model, "explain")
    check_outputs(model, allow_untrained, "explain")
    check_caution(model, strict)
    if method not in METHODS:
        raise ConfigError(
            f"{model.name}: expected method to be {', '.join(map(repr, METHODS[:-1]))} or {METHODS[-1]!r}, "
            f"got {method!r}.{did_you_mean(str(method), METHODS)}"
        )
    if method == "occlusion" and layer is not None:
        raise ConfigError(f"{model.name}: occlusion looks at no layer, got layer={layer!r}. Leave it out.")
    if method != "occlusion" and mask_size is not None:
        raise ConfigError(f"{model.name}: mask_size is for method='occlusion', got method={method!r}. Leave it out.")


def _warning(who: str, cells: dict[str, NDArray[np.float32]], layer: ChosenLayer | None) -> str:
    """Return why the maps say little; empty if nothing is known against them."""
    faults = []
    if layer is not None and layer.is_coarse:
        size = " x ".join(map(str, layer.size))
        faults.append(
            f"The map of {layer.name} has {size} cells, too few to point within the image. Choose an earlier layer, or "
            "use method='occlusion'."
        )
    nothing = ", ".join(repr(label) for label, map_ in cells.items() if not (map_ > 0).any())
    if nothing:
        faults.append(f"No region raised {nothing}: its map has no positive value.")
    return f"{who}: {' '.join(faults)}" if faults else ""
