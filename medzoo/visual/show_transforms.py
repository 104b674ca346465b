"""``show_transforms``: an image after each step of preprocessing and augmentation, and a batch as the network sees it."""

from __future__ import annotations

__all__ = ["show_transforms"]


def show_transforms() -> None:
    """Draw the steps."""
    raise NotImplementedError
