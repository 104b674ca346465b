"""What the zoo's own encoders have in common: a chain of stages, each giving a map.

The verbs and their meanings are timm's, so that a timm model is an encoder as it is.

Axes: b batch, c channels, s any number of spatial axes.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from medzoo.errors import ConfigError

__all__ = ["Encoder", "is_channels_last", "take_maps"]


class Encoder(nn.Module, ABC):
    """A chain of stages, ``b c *s -> b num_features *s'``.

    Subclasses fill ``feature_info``, one ``{"num_chs", "reduction", "module"}`` for each stage, and define
    :meth:`stage`. Modules are registered in the order in which they run.
    """

    def __init__(self) -> None:
        super().__init__()
        self.feature_info: list[dict[str, Any]] = []
        self.grad_checkpointing = False

    @property
    def num_features(self) -> int:
        """Channels of the last map."""
        return int(self.feature_info[-1]["num_chs"])

    @abstractmethod
    def stage(self, i: int, x: Tensor) -> Tensor:
        """Run stage ``i``, given what stage ``i - 1`` returned."""

    def publish(self, x: Tensor) -> Tensor:
        """Return a stage's result as the outside sees it."""
        return x

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute the inner results of a stage in the backward pass.

        BatchNorm then updates its running statistics twice a step, as it does in timm.
        """
        self.grad_checkpointing = enable

    def forward(self, x: Tensor) -> Tensor:
        """Return the last map."""
        last = len(self.feature_info) - 1
        return self._run(x, {last})[last]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last map and a list of the chosen ones, in the order they were asked for.

        Args:
            x: the input.
            indices: indices of stages, negative ones from the end; a single int n means the last n; ``None`` all.
            norm: accepted as in timm, without effect: the maps are what :meth:`publish` returns.
            stop_early: run no stage beyond the largest index; the last map is then the one of that index.
            output_fmt: ``"NCHW"``, channels first, so ``b c d h w`` in 3D, or ``"NHWC"``, channels last. It applies to
                the list; the last map always has its channels first.
            intermediates_only: return the list alone, without running the stages beyond the largest index.

        Raises:
            ConfigError: there is no such map, or no such format.
        """
        del norm
        who = type(self).__name__
        chosen = take_maps(len(self.feature_info), indices, who)
        channels_last = is_channels_last(output_fmt, who)
        last = max(chosen) if stop_early or intermediates_only else len(self.feature_info) - 1
        maps = self._run(x, {*chosen, last})
        found = [maps[i].movedim(1, -1) if channels_last else maps[i] for i in chosen]
        return found if intermediates_only else (maps[last], found)

    def _run(self, x: Tensor, wanted: Collection[int]) -> dict[int, Tensor]:
        """Run as far as the last wanted stage; keep no other map alive."""
        maps = {}
        for i in range(max(wanted) + 1):
            x = self.stage(i, x)
            if i in wanted:
                maps[i] = self.publish(x)
        return maps


def take_maps(count: int, indices: int | Sequence[int] | None, who: str) -> list[int]:
    """Resolve indices of ``count`` maps: ``None`` is all, an int n the last n, negative ones count from the end.

    >>> take_maps(5, 2, "model"), take_maps(5, [-1, 0], "model")
    ([3, 4], [4, 0])
    """
    if isinstance(indices, int):
        chosen = list(range(count))[-indices:] if 0 < indices <= count else []
    else:
        chosen = list(range(count)) if indices is None else [operator.index(i) for i in indices]
    if not chosen or any(not -count <= i < count for i in chosen):
        raise ConfigError(
            f"{who}: expected indices of its {count} maps, {-count} to {count - 1}, or how many of the last, got "
            f"{indices}. See feature_info."
        )
    return [i % count for i in chosen]


def is_channels_last(output_fmt: str, who: str) -> bool:
    """Whether timm's name of a layout puts the channels last; the names are those of 2D maps in 3D too."""
    if output_fmt not in ("NCHW", "NHWC"):
        raise ConfigError(
            f"{who}: expected output_fmt to be 'NCHW' (channels first: b c h w, or b c d h w) or 'NHWC' (channels "
            f"last), got {output_fmt!r}."
        )
    return output_fmt == "NHWC"
