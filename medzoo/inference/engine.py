"""What :func:`medzoo.predict` needs of a model that another engine than PyTorch runs.

Axes: b batch, c channels, s spatial axes, n classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from medzoo.contract import Outputs, Preprocessing
from medzoo.input_spec import InputSpec
from medzoo.provenance import IntendedUse

__all__ = ["EngineModel"]


class EngineModel(ABC):
    """A model whose forward pass runs outside of PyTorch, on the CPU in float32.

    Attributes:
        name: of the model, for messages and results.
        input_spec: what a batch is checked against.
        outputs: what the logits mean.
        preprocessing: how a file becomes an input.
        intended_use: what an image must not contradict.
        provenance: the model, its weights, their digest and the version, as :attr:`medzoo.Prediction.provenance`.
    """

    name: str
    input_spec: InputSpec
    outputs: Outputs
    preprocessing: Preprocessing
    intended_use: IntendedUse
    provenance: Mapping[str, str]

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Check the input and return logits, ``b c *s -> b n``."""

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return len(self.outputs.labels)
