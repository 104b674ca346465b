"""What the zoo's own encoders have in common: a chain of stages, each giving a map.

The verbs and their meanings are timm's, so that a timm model is an encoder as it is.

Axes: b batch, c channels, s any number of spatial axes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["Encoder"]


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
        indices: Sequence[int],
        *,
        stop_early: bool = False,
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps of the stages ``indices``, after the last map unless ``intermediates_only``.

        Stages beyond the largest index run only when the last map is asked for, so ``stop_early`` changes nothing.
        """
        del stop_early
        last = len(self.feature_info) - 1
        maps = self._run(x, {*indices} if intermediates_only else {*indices, last})
        chosen = [maps[i] for i in indices]
        return chosen if intermediates_only else (maps[last], chosen)

    def _run(self, x: Tensor, wanted: Collection[int]) -> dict[int, Tensor]:
        """Run as far as the last wanted stage; keep no other map alive."""
        maps = {}
        for i in range(max(wanted) + 1):
            x = self.stage(i, x)
            if i in wanted:
                maps[i] = self.publish(x)
        return maps
