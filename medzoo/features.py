"""An encoder behind an input check: the base of every model, and the feature extractor.

Axes: b batch, c channels, s the spatial axes (h w or d h w).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import torch
from torch import Tensor, nn

from medzoo.contract import Preprocessing
from medzoo.errors import ConfigError, InputError
from medzoo.input_spec import InputSpec
from medzoo.nn.encoder import take_maps
from medzoo.provenance import UNSTATED, IntendedUse

if TYPE_CHECKING:
    from medzoo.classifier import Classifier
    from medzoo.weights.load import LoadReport

__all__ = ["CheckedModel", "FeatureExtractor", "FeatureInfo", "annotate_oom", "is_out_of_memory"]

F = TypeVar("F", bound=Callable[..., Any])


def annotate_oom(forward: F) -> F:
    """Turn an out-of-memory error of a forward pass, on a GPU or a CPU, into an InputError with advice."""

    @functools.wraps(forward)
    def wrapped(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        try:
            return forward(self, x, *args, **kwargs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"{self.name}: {tuple(x.shape)} needs more memory than {x.device} has. Use a smaller batch, or cut the "
                "image into tiles; in training, model.set_grad_checkpointing() helps. The model is still usable."
            ) from error

    return cast(F, wrapped)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error is that the memory of a GPU or of the CPU does not suffice."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


class FeatureInfo(list[dict[str, Any]]):
    """The maps of an encoder, in order: ``num_chs``, ``reduction`` (stride to the input) and ``module`` of each.

    The module's own output is the map, but for ``swin_encoder_mlp``, which normalises the outputs of its modules.
    """

    def channels(self) -> list[int]:
        """Return the channels of each map."""
        return [info["num_chs"] for info in self]

    def reduction(self) -> list[int]:
        """Return the stride of each map to the input."""
        return [info["reduction"] for info in self]

    def module_name(self) -> list[str]:
        """Return the name of the module behind each map, within the encoder."""
        return [info["module"] for info in self]


class CheckedModel(nn.Module):
    """An encoder behind an input check: what :class:`Classifier` and :class:`FeatureExtractor` share.

    Args:
        encoder: returns the last map from ``forward`` and others from ``forward_intermediates``, as a timm model built
            with ``num_classes=0, global_pool=""`` does.
        input_spec: what :meth:`check_input` checks inputs against.
        name: the registered name, for messages.
        options: the builder options it was made with.
        preprocessing: how a file becomes an input.

    Attributes:
        load_report: what was loaded from which weights; ``None`` for a model that starts from random numbers.
        default_use: the images that the builder is for, where the weights state none.
    """

    # What medzoo.inference.optimize derived from the encoder. It is outside of the modules, goes when the model goes,
    # and is no part of copies and files: packed kernels can be neither copied nor stored.
    _fast: Any = None

    def __init__(
        self,
        encoder: nn.Module,
        *,
        input_spec: InputSpec,
        name: str = "",
        options: Mapping[str, Any] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        # Any: an nn.Module with timm's verbs, for which timm has no type.
        self.encoder: Any = encoder
        self.input_spec = input_spec
        self.name = name or type(self).__name__
        self.options = dict(options or {})
        self.preprocessing = preprocessing
        self.load_report: LoadReport | None = None
        self.default_use: IntendedUse = UNSTATED
        self._own_use: IntendedUse | None = None
        self._encoder_frozen = False
        self.register_load_state_dict_post_hook(_rebuild_after_load)  # type: ignore[no-untyped-call]  # torch's

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what can be made again."""
        return {key: value for key, value in self.__dict__.items() if key != "_fast"}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or cast the model as PyTorch does, and free the memory of what was derived from it elsewhere."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        if self._fast is not None:
            self._fast.verify()
        return self

    @property
    def intended_use(self) -> IntendedUse:
        """The images the model is for: as set by the user, else as the loaded weights state, else the builder's.

        What weights state holds for the outputs they were trained with. An encoder without outputs, or with a new head,
        is for the images that its head is trained on: abdominal CT teaches an encoder that finds nodules of the chest.

        :func:`medzoo.predict` and :func:`medzoo.transform` refuse an image that contradicts it. Set it after your own
        training; ``medzoo.IntendedUse()`` accepts every image until the model is saved and loaded again.
        """
        if self._own_use is not None:
            return self._own_use
        report = self.load_report
        if report is None or report.new or not self._names_outputs() or report.intended_use == UNSTATED:
            return self.default_use
        return report.intended_use

    @intended_use.setter
    def intended_use(self, use: IntendedUse | None) -> None:
        if use is not None and not isinstance(use, IntendedUse):
            raise ConfigError(
                f"{self.name}: expected intended_use to be medzoo.IntendedUse(...), got {type(use).__name__}. "
                "None restores what the weights state."
            )
        self._own_use = use

    def _names_outputs(self) -> bool:
        """Return whether the model has outputs with a meaning, unlike an encoder."""
        return False

    def check_input(self, x: Tensor) -> None:
        """Raise unless ``x`` is what the model takes; see :meth:`medzoo.input_spec.InputSpec.check`."""
        # A replica of nn.DataParallel has no parameters.
        self.input_spec.check(x, who=self.name, like=next(self.encoder.parameters(), None))
        if self.encoder.training and self.input_spec.lone_minimum and _trains_batchnorm(self.encoder):
            self.input_spec.check_lone(x, who=self.name)

    def encoder_for(self, x: Tensor) -> Any:  # noqa: ARG002  # for subclasses
        """Return the encoder to run on ``x``."""
        return self.encoder

    def _maps(self, x: Tensor, indices: list[int], norm: bool = False) -> list[Tensor]:
        """Return the chosen maps of a checked input."""
        self.check_input(x)
        wanted = sorted(set(indices))  # timm returns each once and in order, whatever the indices
        options = {"norm": True} if norm else {}  # so that an encoder of one's own need not have it
        maps = self.encoder_for(x).forward_intermediates(
            x, indices=wanted, stop_early=True, intermediates_only=True, **options
        )
        return [maps[wanted.index(i)] for i in indices]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute the encoder's inner results in the backward pass.

        BatchNorm then updates its running statistics twice a step, as it does in timm.
        """
        self.encoder.set_grad_checkpointing(enable)

    def freeze_encoder(self, frozen: bool = True) -> Self:
        """Stop (or, with ``False``, resume) training the encoder.

        Its BatchNorm stays in eval through ``model.train()``; only ``model.encoder.train()`` overrides that.
        """
        self._encoder_frozen = frozen
        self.encoder.requires_grad_(not frozen)
        self.encoder.train(self.training and not frozen)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set training mode; a frozen encoder stays in eval."""
        super().train(mode)
        if self._encoder_frozen:
            self.encoder.eval()
        return self

    def rebuild_buffers(self, device: torch.device | str) -> None:
        """Compute again, on ``device``, every buffer that is not stored with the weights.

        ``load_state_dict`` does so by itself; only ``to_empty`` needs it called.
        """
        for module in self.modules():
            rebuild = getattr(module, "rebuild_buffers", None)
            if module is not self and callable(rebuild):
                rebuild(torch.device(device))


class FeatureExtractor(CheckedModel):
    """The chosen maps of an encoder as a list, ``b c *s -> [b c' *s', ...]``; what ``features_only=True`` gives.

    Args:
        model: the classifier whose encoder is used; its head is left out.
        out_indices: indices of the maps as in ``model.feature_info``, negative ones from the end; a single
            int n means the last n; ``None`` all.
    """

    def __init__(self, model: Classifier, out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__(
            model.encoder,
            input_spec=replace(model.input_spec, exact=False),
            name=model.name,
            options=model.options,
            preprocessing=model.preprocessing,
        )
        self.load_report, self.default_use, self._own_use = model.load_report, model.default_use, model._own_use
        self._encoder_frozen = model._encoder_frozen
        self.out_indices = take_maps(len(model.feature_info), out_indices, model.name)
        self.feature_info = FeatureInfo(model.feature_info[i] for i in self.out_indices)

    @annotate_oom
    def forward(self, x: Tensor) -> list[Tensor]:
        """Check the input and return the maps."""
        return self._maps(x, self.out_indices)


def _trains_batchnorm(encoder: nn.Module) -> bool:
    """Whether any BatchNorm takes its statistics from the batch."""
    return any(m.training for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def _rebuild_after_load(model: nn.Module, _: object) -> None:
    """Compute what is not stored, once the tensors are loaded."""
    like = next(model.parameters(), None)
    if like is not None and isinstance(model, CheckedModel):
        model.rebuild_buffers(like.device)
