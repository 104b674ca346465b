"""Where the cells of a layer's map lie in the input of the model.

Axes: s spatial axes of the input, s' those of the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medzoo.classifier import Classifier
from medzoo.transforms.geometry import resize_affine

__all__ = ["cell_frame"]


def cell_frame(view: Classifier, layer: str, x: Tensor, size: Sequence[int]) -> NDArray[np.float64]:  # noqa: ARG001
    """Return the 4 x 4 matrix from an index of the layer's map ``*s'`` to an index of the input ``*s``.

    Args:
        view: from :func:`medzoo.inference.view.float32_view`.
        layer: dotted name of the module.
        x: an input ``b c *s``, one row of it.
        size: of the map.
    """
    return resize_affine(tuple(x.shape[2:]), tuple(size))
