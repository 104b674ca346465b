"""What is said when the memory ends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from medzoo.errors import InputError

__all__ = ["told_when_memory_ends"]

F = TypeVar("F", bound=Callable[..., Any])


def told_when_memory_ends(forward: F) -> F:
    """Turn running out of memory, on a GPU or in the CPU's allocator, into an InputError that says what to do."""

    @functools.wraps(forward)
    def wrapped(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        try:
            return forward(self, x, *args, **kwargs)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
                raise
            raise InputError(
                f"{self.name}: {tuple(x.shape)} needs more memory than {x.device} has. Use a smaller batch, or cut the "
                "image into tiles; in training, model.set_grad_checkpointing() helps. The model is still usable."
            ) from error

    return cast(F, wrapped)
