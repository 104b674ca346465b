"""What the zoo knows of one set of weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medzoo.contract import Preprocessing
from medzoo.errors import ConfigError

__all__ = ["HubFile", "LocalFile", "PackagedFile", "Source", "UrlFile", "Weights", "ZipMember"]

DIGEST_LENGTHS = {"sha256": 64, "md5": 32}


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository.

    Attributes:
        repo: ``"owner/name"``.
        file: its path in the repository.
        revision: the commit it is pinned to; ``None`` where no commit is known, and the digest alone pins the file.
        listed: whether it is of a record of the zoo; a model of the user's own comes from the Hub and no mirror.
    """

    repo: str
    file: str
    revision: str | None = None
    listed: bool = True

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision or 'main'}:{self.file}"

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.file


@dataclass(frozen=True)
class UrlFile:
    """A file behind a URL."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class ZipMember:
    """A file inside of a zip archive behind a URL.

    Attributes:
        url: of the archive.
        member: path of the file in the archive.
        digest: of the archive.
        size: bytes of the archive.
    """

    url: str
    member: str
    digest: str
    size: int

    def __str__(self) -> str:
        return f"{self.url}:{self.member}"

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.member


@dataclass(frozen=True)
class PackagedFile:
    """A file in ``medzoo/assets``, which comes with the library."""

    name: str

    def __str__(self) -> str:
        return f"medzoo/assets/{self.name}"


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name


Source = HubFile | UrlFile | ZipMember | PackagedFile | LocalFile


@dataclass(frozen=True)
class Weights:
    """A frozen record of one weight file, kept beside its builder.

    Attributes:
        tag: its name among the weights of its model.
        source: where the file comes from.
        digest: ``"sha256:..."`` of the file, or ``"md5:..."`` where its publisher gives no other; its bytes are held to
            it when they arrive and at every load.
        license: SPDX identifier, or ``"not stated"``.
        citation: how to cite the weights.
        trained_on: the data, in a sentence.
        size: bytes of the file, or ``None`` where it is not known.
        layout: whose names the tensors have, a key of :data:`medzoo.weights.layouts.LAYOUTS`.
        part: ``"model"``, or ``"encoder"`` where the head stays new.
        in_chans: channels of the input.
        channels: what each channel of the input is, in order; empty where there is nothing to say.
        labels: one name for each output, in order; empty for an encoder.
        task: what the outputs mean; ``None`` for an encoder.
        thresholds: operating points, one for each label; empty for 0.5.
        normalised: whether probabilities are bent so that each operating point lies at 0.5.
        trained: which outputs were trained; empty for all.
        preprocessing: how their input was prepared, or ``None`` where that is not known.
        metrics: published figures and where they were measured.
        options: builder options that the weights need, such as ``{"patch_merging": "monai1.4"}``.
        golden: the first outputs for the input of :func:`medzoo.weights.stock.golden_input`; empty for none.
        default: whether ``pretrained=True`` means these.
    """

    tag: str
    source: Source
    digest: str
    license: str
    citation: str
    trained_on: str
    size: int | None = None
    layout: str = "medzoo"
    part: Literal["model", "encoder"] = "model"
    in_chans: int = 1
    channels: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    task: Literal["binary", "multilabel", "multiclass"] | None = None
    thresholds: tuple[float, ...] = ()
    normalised: bool = False
    trained: tuple[bool, ...] = ()
    preprocessing: Preprocessing | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    golden: tuple[float, ...] = ()
    default: bool = False

    def __post_init__(self) -> None:
        if (self.part == "model") != bool(self.labels and self.task):
            raise ConfigError(f"weights {self.tag!r}: labels and task belong to a whole model, and only to one.")
        algorithm, _, digits = self.digest.partition(":")
        if not re.fullmatch(r"[0-9a-f]+", digits) or DIGEST_LENGTHS.get(algorithm) != len(digits):
            raise ConfigError(
                f"weights {self.tag!r}: expected digest 'sha256:' and 64 hex digits, or 'md5:' and 32, "
                f"got {self.digest!r}."
            )

    @property
    def weak(self) -> bool:
        """Whether the digest is MD5, which finds damage but no forgery."""
        return self.digest.startswith("md5:")

    @property
    def non_commercial(self) -> bool:
        """Whether the licence forbids commercial use."""
        return "-nc" in self.license.lower()
