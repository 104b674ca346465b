"""Where the cells of a layer's map lie in the input of the model.

"The borders of the map and of the input coincide", as maps are mostly drawn, holds for patches and for even kernels
without padding. Elsewhere it does not: the odd kernels of a ResNet, padded on both sides, put the centre of cell i of
its last map at pixel 32 i, not 32 i + 15.5; without padding, the first cell of ``cnn3d_base`` is centred on voxel 18.5.
The centre of a receptive field follows from kernels, strides and padding: Araujo et al., Computing Receptive Fields of
Convolutional Neural Networks, https://doi.org/10.23915/distill.00021.

Axes: b batch, c channels, s spatial axes of the input, s' those of the map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from medzoo.classifier import Classifier
from medzoo.inference.view import without_values
from medzoo.interpretation.choose import ChosenLayer
from medzoo.transforms.geometry import resize_affine

__all__ = ["cell_frame", "layer_frame"]

# For each spatial axis, the centre of cell 0 in the input, and the distance between two cells.
Centres = tuple[tuple[float, float], ...]

# Operations, beside pointwise ones, after which an index means the same place, where the spatial size is the same too.
KEEPS_PLACES = frozenset({
    "native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "miopen_batch_norm",
    "native_group_norm", "cat", "slice", "split", "split_with_sizes", "view", "_unsafe_view",
    "detach", "alias", "_to_copy", "hardswish", "hardswish_", "_prelu_kernel",
})  # fmt: skip


def layer_frame(view: Classifier, chosen: ChosenLayer, x: Tensor) -> NDArray[np.float64]:
    """Return :func:`cell_frame` of a chosen layer for inputs of the size of ``x``, where possible without a pass."""
    return without_values(view, x[:1], lambda view, x: cell_frame(view, chosen.name, x, chosen.size))


def cell_frame(view: Classifier, layer: str, x: Tensor, size: Sequence[int]) -> NDArray[np.float64]:
    """Return the 4 x 4 matrix from an index of the layer's map ``*s'`` to an index of the input ``*s``.

    An index of the map goes to the centre of the cell's receptive field. It is followed from the input to the map
    through convolutions, pooling, padding, and what leaves each value in its place: activations, norms, sums and
    concatenations of branches; as layers of a model or as functions. Where branches differ by less than a cell, as in
    ResNet-D, it is their mean. It is not followed through what mixes places in another way, such as attention, patch
    merging, interpolation and transposed convolutions. Behind these the cells of a stage are taken to be patches of
    its ``reduction`` from index 0 on, where as many fit in the input; else the borders of map and input to coincide.
    Both are exact for the patches of ``swin_encoder_mlp``.

    Beyond the centres of the outermost cells a map has their values, see
    :meth:`medzoo.transforms.geometry.Geometry.invert`: they are the cells that see what is there. So a map is constant
    there, and its maximum may be a plateau up to the border. The centre of an outermost cell may even be outside of the
    input, where a network pads much.

    Args:
        view: from :func:`medzoo.inference.view.float32_view`; it is run once on ``x``, and hooked meanwhile. The
            frame depends on the size of ``x`` alone.
        layer: dotted name of the module.
        x: an input ``b c *s``, one row of it.
        size: of the map.
    """
    found: list[Centres | None] = []
    tracker = _CentreTracker(x)
    handle = view.get_submodule(layer).register_forward_hook(lambda _, __, out: found.append(tracker.get(out)))
    try:
        with torch.inference_mode(False), torch.no_grad(), tracker:
            view(x)
    finally:
        handle.remove()
    centres = found[-1] if found else None
    if centres is None:
        stride = next((info["reduction"] for info in view.feature_info if f"encoder.{info['module']}" == layer), 1)
        fit = [side // stride for side in x.shape[2:]] == list(size)
        return resize_affine(tuple(n * stride for n in size) if fit else tuple(x.shape[2:]), tuple(size))
    frame = np.eye(4)
    for axis, (first, distance) in enumerate(centres):
        frame[axis, axis], frame[axis, 3] = distance, first
    return frame


class _CentreTracker(TorchDispatchMode):
    """Follows where the cells of each tensor lie in the input ``x``, operation by operation."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.dims = x.ndim - 2
        self.known = WeakTensorKeyDictionary()
        self.known[x] = ((0.0, 1.0),) * self.dims

    def get(self, x: Any) -> Centres | None:
        """Return where the cells of a tensor lie; ``None`` if that is not known."""
        return self.known.get(x) if isinstance(x, Tensor) else None  # type: ignore[no-untyped-call]  # torch's

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        for result in out if isinstance(out, (tuple, list)) else [out]:
            if not isinstance(result, Tensor):
                continue
            if torch.Tag.pointwise in func.tags or name in KEEPS_PLACES:
                centres = self._shared(args, result)
            else:
                before = self.get(args[0]) if name in _MOVES else None
                centres = _MOVES[name](before, args) if before else None
            if centres is not None:
                self.known[result] = centres
            elif result in self.known:  # changed in place
                del self.known[result]
        return out

    def _shared(self, args: Sequence[Any], result: Tensor) -> Centres | None:
        """Return where the cells of the inputs of the spatial size of the result lie, on average."""
        given = [one for many in args for one in (many if isinstance(many, (tuple, list)) else [many])]
        size = result.shape[-self.dims :]
        maps = [x for x in given if isinstance(x, Tensor) and x.ndim >= self.dims and x.shape[-self.dims :] == size]
        known = [centres for x in maps if (centres := self.get(x)) is not None]
        if not maps or len(known) < len(maps):
            return None
        first, distance = np.array(known).transpose(2, 0, 1)
        if (np.ptp(distance, 0) > 0).any() or (np.ptp(first, 0) >= distance[0]).any():
            return None
        return tuple(zip(first.mean(0).tolist(), distance[0].tolist(), strict=True))


def _after_window(
    before: Centres,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] = (1,),
) -> Centres:
    """Return where the windows of a convolution or pooling are centred."""
    lists = (list(given) * (len(before) if len(given) == 1 else 1) for given in (kernel, stride, padding, dilation))
    return tuple(
        (first + distance * (d * (k - 1) / 2 - p), distance * s)
        for (first, distance), k, s, p, d in zip(before, *lists, strict=True)
    )


def _convolution(before: Centres, args: Sequence[Any]) -> Centres | None:
    _, weight, _, stride, padding, dilation, transposed, *_ = args
    return None if transposed else _after_window(before, weight.shape[2:], stride, padding, dilation)


def _max_pool(before: Centres, args: Sequence[Any]) -> Centres:
    kernel, stride, padding, dilation, *_ = (*args[1:], None, None, None)
    return _after_window(before, kernel, stride or kernel, padding or [0], dilation or [1])


def _avg_pool(before: Centres, args: Sequence[Any]) -> Centres:
    return _max_pool(before, args[:4])


def _pad(before: Centres, args: Sequence[Any]) -> Centres | None:
    """Return the places after padding, which is given from the last axis on, as before and after."""
    added = [*args[1][::2], *[0] * len(before)][len(before) - 1 :: -1]
    return tuple((first - distance * n, distance) for (first, distance), n in zip(before, added, strict=True))


_MOVES: dict[str, Callable[[Centres, Sequence[Any]], Centres | None]] = {
    "convolution": _convolution,
    **{f"max_pool{dims}d_with_indices": _max_pool for dims in (2, 3)},
    **{f"avg_pool{dims}d": _avg_pool for dims in (2, 3)},
    **{f"{kind}_pad{dims}d": _pad for kind in ("reflection", "replication") for dims in (2, 3)},
    "constant_pad_nd": _pad,
}
