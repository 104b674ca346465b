"""What the zoo knows of one set of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from medzoo.contract import Preprocessing
from medzoo.errors import ConfigError

__all__ = ["Weights"]


@dataclass(frozen=True)
class Weights:
    """A frozen record of one weight file, kept beside its builder.

    Attributes:
        tag: its name among the weights of its model.
        file: the file's name in ``medzoo/assets``, which is packaged with the library; or an absolute path.
        digest: ``"sha256:..."`` of the file; its bytes are held to it at every load.
        size: bytes of the file.
        license: SPDX identifier, or ``"not stated"``.
        citation: how to cite the weights.
        trained_on: the data, in a sentence.
        part: ``"model"``, or ``"encoder"`` where the head stays new.
        in_chans: channels of the input.
        labels: one name for each output, in order; empty for an encoder.
        task: what the outputs mean; ``None`` for an encoder.
        thresholds: operating points, one for each label; empty for 0.5.
        trained: which outputs were trained; empty for all.
        preprocessing: how their input was prepared, or ``None`` for the builder's default.
        metrics: published figures and where they were measured.
        options: builder options that the weights need, such as ``{"patch_merging": "monai1.4"}``.
        default: whether ``pretrained=True`` means these.
    """

    tag: str
    file: str
    digest: str
    size: int
    license: str
    citation: str
    trained_on: str
    part: Literal["model", "encoder"] = "model"
    in_chans: int = 1
    labels: tuple[str, ...] = ()
    task: Literal["binary", "multilabel", "multiclass"] | None = None
    thresholds: tuple[float, ...] = ()
    trained: tuple[bool, ...] = ()
    preprocessing: Preprocessing | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    default: bool = False

    def __post_init__(self) -> None:
        if (self.part == "model") != bool(self.labels and self.task):
            raise ConfigError(f"weights {self.tag!r}: labels and task belong to a whole model, and only to one.")
