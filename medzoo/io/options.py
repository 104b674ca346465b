"""What a caller asks of the readers: which part of a file, and how much of it to accept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from medzoo.errors import ConfigError, DataError, check_int
from medzoo.io.files import MAX_VOXELS

__all__ = ["ReadOptions"]

_NOT_APPLICABLE = {
    "frame": ("frames", "Leave frame out."),
    "stack": ("stacks", "Leave stack out."),
    "channel_axis": ("axis of channels", "Leave channel_axis out."),
}


@dataclass(frozen=True)
class ReadOptions:
    """The options of :func:`medzoo.read`, which every reader gets.

    Attributes:
        frame: which frame, slice, page or volume; ``None`` for all, or for the only one.
        stack: which of several stacks of a DICOM file or folder.
        channel_axis: the axis of the file that holds channels, such as 3 in a NIfTI of x, y, z and channels.
        channels: how many channels the model takes. A file with as many volumes is then read as channels, unless
            ``frame``, ``stack`` or ``channel_axis`` is given.
        nan: what to do about NaN and infinity.
        max_voxels: the most values of the image.
    """

    frame: int | None = None
    stack: int | None = None
    channel_axis: int | None = None
    channels: int = 1
    nan: Literal["raise", "zero"] = "raise"
    max_voxels: int = MAX_VOXELS

    def __post_init__(self) -> None:
        if self.nan not in ("raise", "zero"):
            raise ConfigError(f"read: expected nan='raise' or nan='zero', got {self.nan!r}.")
        for name in ("frame", "stack"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_int("read", name, getattr(self, name), 0))
        if self.channel_axis is not None and (
            isinstance(self.channel_axis, bool) or self.channel_axis not in (-1, 3, 4)
        ):
            raise ConfigError(
                f"read: expected channel_axis to be 3, 4 or -1, an axis after the three of space, got "
                f"{self.channel_axis!r}. Move the channels there, or give the array with its channels first."
            )
        if self.channel_axis is not None and (self.frame is not None or self.stack is not None):
            raise ConfigError("read: expected channel_axis, frame or stack, got two of them. Give one.")
        object.__setattr__(self, "max_voxels", check_int("read", "max_voxels", self.max_voxels, 1))

    def refuse(self, path: Path | str, kind: str, *names: str) -> None:
        """Raise DataError if an option was given that a format has no meaning for.

        Args:
            path: the file.
            kind: the format with its article, such as ``"a MetaImage"``.
            names: the options that do not apply.
        """
        for name in names:
            if getattr(self, name) is not None:
                what, advice = _NOT_APPLICABLE[name]
                raise DataError(f"{path}: {kind} has no {what}, got {name}={getattr(self, name)}. {advice}")
