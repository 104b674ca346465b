"""What :func:`medzoo.predict` needs of a model that another engine than PyTorch runs.

Axes: b batch, c channels, s spatial axes, n classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from medzoo.classifier import Classifier
from medzoo.contract import Outputs, Preprocessing
from medzoo.errors import ConfigError
from medzoo.input_spec import InputSpec
from medzoo.provenance import IntendedUse

__all__ = ["AnyModel", "EngineModel", "refuse_engine"]


class EngineModel(ABC):
    """A model whose forward pass runs outside of PyTorch, on the CPU in float32.

    Attributes:
        name: of the model, for messages and results.
        input_spec: what a batch is checked against.
        outputs: what the logits mean.
        preprocessing: how a file becomes an input.
        intended_use: what an image must not contradict.
        provenance: the model, its weights, their digest and the version, as :attr:`medzoo.Prediction.provenance`, and
            ``"engine"``.
        engine: what runs it, with its version.
    """

    name: str
    input_spec: InputSpec
    outputs: Outputs
    preprocessing: Preprocessing
    intended_use: IntendedUse
    provenance: Mapping[str, str]
    engine: str

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Check the input and return logits, ``b c *s -> b n``."""

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return len(self.outputs.labels)


AnyModel = Classifier | EngineModel


def refuse_engine(model: EngineModel, who: str) -> ConfigError:
    """Return the error of a function that needs the layers or the weights of a model."""
    return ConfigError(
        f"{who}: expected a model from medzoo.create, got {model.name} as {type(model).__name__}, which {model.engine} "
        "runs and medzoo.predict takes alone. Use the model that it was exported from."
    )
