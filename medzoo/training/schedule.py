"""The learning rate as a function of the step, so that a resumed training has the same one without any state."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from medzoo.errors import ConfigError
from medzoo.training.recipe import ScheduleSection

__all__ = ["per_step", "rate_factor"]


def rate_factor(schedule: ScheduleSection, step: int, total: float, warmup: int) -> float:
    """Return the learning rate of a step as a share of the one in the recipe.

    The warm-up is linear; the first step after it has the full rate. ``cosine`` then decreases to 0 at ``total``,
    ``exponential`` by a factor of ``gamma`` per step.

    >>> cosine = ScheduleSection(kind="cosine")
    >>> [round(rate_factor(cosine, step, total=6, warmup=2), 3) for step in range(7)]
    [0.333, 0.667, 1.0, 0.854, 0.5, 0.146, 0.0]

    Args:
        schedule: section of a recipe.
        step: of the optimiser, from 0.
        total: steps of the training; only ``cosine`` needs it.
        warmup: steps of the warm-up.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.kind == "exponential":
        return schedule.gamma ** (step - warmup)
    if schedule.kind == "cosine":
        share = (step - warmup) / max(1, total - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
    return 1.0


def per_step(optimizer: Optimizer, schedule: ScheduleSection, *, total: float) -> LambdaLR:
    """Return a scheduler to step after each step of the optimiser.

    Args:
        optimizer: its groups keep their ratios.
        schedule: section of a recipe.
        total: steps of the training, or infinity if it has no end.

    Raises:
        ConfigError: a cosine schedule or a warm-up, which is a share of all steps, of a training without an end.
    """
    if math.isinf(total) and (schedule.kind == "cosine" or schedule.warmup):
        raise ConfigError(
            "schedule: cosine and a warm-up need to know the number of steps, but the Trainer has no end. Give it "
            "max_epochs or max_steps, and a loader of known length."
        )
    warmup = round(schedule.warmup * total) if schedule.warmup else 0
    # A function: LambdaLR keeps the attributes of any other callable in its state, and so in every checkpoint.
    factor: Callable[[int], float] = lambda step: rate_factor(schedule, step, total, warmup)  # noqa: E731
    return LambdaLR(optimizer, factor)
