"""The part of a classifier that turns the last map into logits.

Axes: b batch, c channels, s any number of spatial axes, n classes.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

__all__ = ["AveragePool", "Head"]


class AveragePool(nn.Module):
    """Average over the spatial axes, whatever their number: ``b c *s -> b c``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean of every channel."""
        return x.flatten(2).mean(-1)


class Head(nn.Sequential):
    """Pool or flatten, a hidden layer where there is one, then ``classifier``: ``b c *s -> b n``.

    With ``num_classes=0`` it averages the map and has no layer, also where it would flatten: ``b c *s -> b c``.

    Args:
        channels: channels of the last map.
        num_classes: number of logits, or 0.
        order: what runs between the pooled map and ``classifier``; ``"fc"`` is the hidden linear layer.
        hidden: width of ``fc``.
        dropout: rate of ``"dropout"``.
        flatten: spatial size of the map that the first linear layer takes flattened; empty to average instead.
    """

    classifier: nn.Linear | nn.Identity

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        order: tuple[Literal["fc", "relu", "gelu", "dropout"], ...] = (),
        hidden: int = 0,
        dropout: float = 0.0,
        flatten: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.channels = channels
        self.order, self.hidden, self.dropout_rate, self.flatten_size = order, hidden, dropout, flatten
        if num_classes == 0:
            self.pool: nn.Module = AveragePool()
            self.classifier = nn.Identity()
            return
        self.pool = nn.Flatten() if flatten else AveragePool()
        width = channels * math.prod(flatten)
        parts: dict[str, nn.Module] = {
            "fc": nn.Linear(width, hidden) if "fc" in order else nn.Identity(),
            "relu": nn.ReLU(),
            "gelu": nn.GELU(),
            "dropout": nn.Dropout(dropout),
        }
        for part in order:
            self.add_module(part, parts[part])
        self.classifier = nn.Linear(hidden if "fc" in order else width, num_classes)

    @property
    def num_classes(self) -> int:
        """Number of logits; 0 without a classifier."""
        return self.classifier.out_features if isinstance(self.classifier, nn.Linear) else 0

    @property
    def flattens(self) -> bool:
        """Whether the head takes maps of one size only."""
        return isinstance(self.pool, nn.Flatten)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits ``b n``, or with ``pre_logits`` what ``classifier`` is given."""
        for name, part in self.named_children():
            if not (pre_logits and name == "classifier"):
                x = part(x)
        return x

    def rebuilt(self, num_classes: int) -> Head:
        """Return a new head of the same design with fresh weights."""
        return Head(
            self.channels,
            num_classes,
            order=self.order,
            hidden=self.hidden,
            dropout=self.dropout_rate,
            flatten=self.flatten_size,
        )
