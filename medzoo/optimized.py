"""``optimize``: a model that gives the same outputs sooner, for inference alone."""

from __future__ import annotations

import copy
from typing import Any, NoReturn, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from medzoo.classifier import CheckedModel, Classifier, FeatureExtractor
from medzoo.errors import ConfigError
from medzoo.nn.conv import ConvEncoder
from medzoo.nn.fast_conv import FastConvEncoder

__all__ = ["OptimizedClassifier", "OptimizedExtractor", "optimize", "shared"]

M = TypeVar("M", Classifier, FeatureExtractor)


class _InferenceOnly(CheckedModel):
    """Refuses to be trained."""

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode; training is refused."""
        if mode:
            self._refuse("it cannot be trained")
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Leave the parameters without gradients; anything else is refused."""
        if requires_grad:
            self._refuse("its parameters have no gradients")
        return super().requires_grad_(False)

    def check_input(self, x: Tensor) -> None:
        """Raise unless ``x`` is what the model takes, and no parameter waits for a gradient."""
        super().check_input(x)
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()):
            self._refuse("its parameters have no gradients")

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigError(
            f"{self.name}: this is what medzoo.optimize(model) returned, for inference alone: {what}. "
            "Use the original model, and optimize it again afterwards."
        )


class OptimizedClassifier(_InferenceOnly, Classifier):
    """A classifier from :func:`optimize`."""


class OptimizedExtractor(_InferenceOnly, FeatureExtractor):
    """A feature extractor from :func:`optimize`."""


def optimize(model: M) -> M:
    return _optimized(model, share=False)


def shared(model: M) -> M:
    return _optimized(model, share=True)


def _optimized(model: M, share: bool) -> M:
    memo: dict[int, Any] = {}
    for p in model.parameters():
        data = p.detach() if share else p.detach().clone()
        memo[id(p)] = nn.Parameter(data, requires_grad=False)
    if share:
        memo |= {id(b): b for b in model.buffers()}
    fast = copy.deepcopy(model, memo)
    fast.eval()
    fast.__class__ = OptimizedClassifier if isinstance(model, Classifier) else OptimizedExtractor
    if type(fast.encoder) is ConvEncoder:
        fast.encoder = FastConvEncoder(fast.encoder)
    return cast(M, fast)
