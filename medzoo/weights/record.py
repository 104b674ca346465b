"""Records of weights: where a file comes from, its digest, its licence, and what its outputs mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medzoo.contract import Outputs, Preprocessing, Task
from medzoo.errors import ConfigError
from medzoo.input_spec import InputSpec
from medzoo.provenance import UNSTATED, Calibration, IntendedUse, ThresholdPolicy

__all__ = ["FileSource", "HubFile", "LocalFile", "PackagedFile", "UrlFile", "Weights", "ZipMember"]


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository.

    Attributes:
        repo: ``"owner/name"``.
        file: its path in the repository.
        revision: the commit it is pinned to; ``None`` if no commit is known and the digest alone pins the file.
        listed: whether the file belongs to a record of medzoo; a user's own model is never read from a mirror.
    """

    repo: str
    file: str
    revision: str | None = None
    listed: bool = True

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision or 'main'}:{self.file}"


@dataclass(frozen=True)
class UrlFile:
    """A file behind a URL."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class ZipMember:
    """A file inside a zip archive behind a URL.

    Attributes:
        url: URL of the archive.
        member: path of the file in the archive.
        digest: digest of the archive.
        size: bytes of the archive.
    """

    url: str
    member: str
    digest: str
    size: int

    def __str__(self) -> str:
        return f"{self.url}:{self.member}"


@dataclass(frozen=True)
class PackagedFile:
    """A file in ``medzoo/assets``, which is installed with the library."""

    name: str

    def __str__(self) -> str:
        return f"medzoo/assets/{self.name}"


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


FileSource = HubFile | UrlFile | ZipMember | PackagedFile | LocalFile


@dataclass(frozen=True)
class Weights:
    """A frozen record of one weight file, kept beside the builder of its model.

    Attributes:
        tag: its name among the weights of its model.
        source: where the file comes from.
        digest: ``"sha256:..."`` of the file, or ``"md5:..."`` if its publisher gives no other; checked at every load.
        license: SPDX identifier, or ``"not stated"``.
        citation: how to cite the weights.
        trained_on: the training data, in a sentence.
        size: bytes of the file, or ``None`` if not known.
        layout: naming scheme of the tensors, a key of :data:`medzoo.weights.layouts.LAYOUTS`.
        part: ``"model"``, or ``"encoder"`` if the head stays randomly initialized.
        in_chans: channels of the input; ``None`` for as many as the first kernel has.
        channels: meaning of each input channel, in order; empty if there is nothing to state.
        labels: one name per output, in order; empty for an encoder.
        task: what the outputs mean; ``None`` for an encoder.
        thresholds: operating points, one per label, ``None`` for one that makes no yes/no call; empty for 0.5.
        normalised: whether probabilities get the piecewise-linear rescaling that maps each operating point to 0.5.
        trained: which outputs were trained; empty for all.
        preprocessing: how images were preprocessed in training, or ``None`` if not known.
        metrics: published figures and where they were measured.
        options: builder options that the weights need, such as ``{"patch_merging": "monai1.4"}``.
        policy: how the thresholds were chosen, or ``None`` if that is not stated.
        calibration: the calibration that is part of the weights, or ``None`` for none.
        prevalence: share of positives in the training data, one per label; empty if not stated.
        loss_weights: of positives or classes in the training loss, see :class:`medzoo.Outputs`; empty if not stated.
        caution: why the outputs say nothing about new patients, see :class:`medzoo.Outputs`; empty for none.
        intended_use: the images and patients they were made for.
        num_classes: outputs of the model unless the user asks for another number; ``None`` for as many as the file has,
            or those of the builder.
        dtype: what the parameters are, such as ``"bfloat16"``; empty for the default dtype.
        input_spec: the input that the builder made with these weights has; ``None`` if not stated.
        golden: the first outputs for :func:`medzoo.weights.verify.golden_input`; empty for none.
        default: whether ``pretrained=True`` selects these weights.
        is_listed: whether the fields above are known. Not those of a user's own file, of which only the path is.
    """

    tag: str
    source: FileSource
    digest: str
    license: str
    citation: str
    trained_on: str
    size: int | None = None
    layout: str = "medzoo"
    part: Literal["model", "encoder"] = "model"
    in_chans: int | None = 1
    channels: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    task: Task | None = None
    thresholds: tuple[float | None, ...] = ()
    normalised: bool = False
    trained: tuple[bool, ...] = ()
    preprocessing: Preprocessing | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    policy: ThresholdPolicy | None = None
    calibration: Calibration | None = None
    prevalence: tuple[float, ...] = ()
    loss_weights: tuple[float, ...] = ()
    caution: str = ""
    intended_use: IntendedUse = UNSTATED
    num_classes: int | None = None
    dtype: str = ""
    input_spec: InputSpec | None = None
    golden: tuple[float, ...] = ()
    default: bool = False
    is_listed: bool = True

    def __post_init__(self) -> None:
        if not self.is_listed:
            return
        if (self.part == "model") != bool(self.labels and self.task):
            raise ConfigError(
                f"weights {self.tag!r}: expected labels and a task for part='model' and neither for part='encoder', "
                f"got labels={self.labels!r} and task={self.task!r} for part={self.part!r}."
            )
        if not re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", self.digest):
            raise ConfigError(
                f"weights {self.tag!r}: expected digest 'sha256:' and 64 hex digits, or 'md5:' and 32, "
                f"got {self.digest!r}."
            )

    @classmethod
    def of_file(cls, path: Path) -> Weights:
        """Return the record of a user's own file, of which only the path is known."""
        unstated = "not stated"
        return cls(
            str(path), LocalFile(path), "", unstated, citation="", trained_on=unstated, in_chans=None, is_listed=False
        )

    def title(self, model: str) -> str:
        """Return the weights' name in messages: the path of a user's own file, else ``"MODEL:TAG"``."""
        return f"{model}:{self.tag}" if self.is_listed else self.tag

    @property
    def outputs(self) -> Outputs | None:
        """The meaning of the outputs, all of them trained unless ``trained`` states otherwise; ``None`` if unknown."""
        if self.task is None:
            return None
        return Outputs(
            self.labels,
            self.task,
            self.thresholds,
            self.trained or (True,) * len(self.labels),
            self.normalised,
            self.policy,
            self.calibration,
            self.prevalence,
            self.loss_weights,
            self.caution,
        )

    @property
    def weak(self) -> bool:
        """Whether the digest is MD5, which detects damage but not forgery."""
        return self.digest.startswith("md5:")

    @property
    def non_commercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return "-nc" in self.license.lower()
