"""What every model of the zoo is: an encoder and a head, a checked forward, and timm's backbone verbs.

Axes: b batch, c channels, s the spatial axes (h w or d h w), n classes.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from medzoo.checks import whole
from medzoo.contract import InputSpec, Outputs, Preprocessing, Task
from medzoo.errors import ConfigError
from medzoo.nn.groups import param_groups
from medzoo.nn.head import Head
from medzoo.nn.memory import told_when_memory_ends

if TYPE_CHECKING:
    from medzoo.weights.load import LoadReport

__all__ = ["Classifier", "FeatureExtractor", "FeatureInfo"]


class FeatureInfo(list[dict[str, Any]]):
    """The maps an encoder gives, in order: ``num_chs``, ``reduction`` (stride to the input) and ``module`` of each.

    The module's own output is the map, but for ``swin_encoder_mlp``, which normalises what its modules give.
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
        encoder: gives the last map from ``forward`` and others from ``forward_intermediates``, as a timm model built
            with ``num_classes=0, global_pool=""`` does.
        input_spec: what :meth:`check_input` holds inputs to.
        name: the registered name, for messages.
        options: the builder options it was made with.
        preprocessing: how a file becomes an input.
    """

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
        self._encoder_frozen = False
        self.register_load_state_dict_post_hook(_rebuild_after_load)  # type: ignore[no-untyped-call]  # torch's

    def check_input(self, x: Tensor) -> None:
        """Raise unless ``x`` is what the model takes; see :meth:`medzoo.contract.InputSpec.check`."""
        # A replica of nn.DataParallel has no parameters.
        self.input_spec.check(x, who=self.name, like=next(self.encoder.parameters(), None))
        if self.encoder.training and self.input_spec.lone_minimum and _trains_batchnorm(self.encoder):
            self.input_spec.check_lone(x, who=self.name)

    def _maps(self, x: Tensor, indices: list[int]) -> list[Tensor]:
        """Return the chosen maps of a checked input."""
        self.check_input(x)
        wanted = sorted(set(indices))  # timm returns each once and in order, whatever it was asked for
        maps = self.encoder.forward_intermediates(x, indices=wanted, stop_early=True, intermediates_only=True)
        return [maps[wanted.index(i)] for i in indices]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute the encoder's inner results in the backward pass.

        BatchNorm then updates its running statistics twice a step, as it does in timm.
        """
        self.encoder.set_grad_checkpointing(enable)

    def freeze_encoder(self, frozen: bool = True) -> Self:
        """Stop (or, with ``False``, resume) training the encoder.

        Its BatchNorm stays in eval through ``model.train()``; only ``model.encoder.train()`` would wake it.
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
        """Derive again, on ``device``, every buffer that is not stored with the weights.

        ``load_state_dict`` does so by itself; only ``to_empty`` needs it called.
        """
        for module in self.modules():
            rebuild = getattr(module, "rebuild_buffers", None)
            if module is not self and callable(rebuild):
                rebuild(torch.device(device))


class FeatureExtractor(CheckedModel):
    """The chosen maps of an encoder as a list, ``b c *s -> [b c' *s', ...]``; what ``features_only=True`` gives.

    Args:
        model: the classifier whose encoder is used; its head is left behind.
        out_indices: numbers of the maps, counted as in ``model.feature_info``, negative ones from the end; a single
            number n means the last n; ``None`` all.
    """

    def __init__(self, model: Classifier, out_indices: int | Sequence[int] | None = None) -> None:
        super().__init__(
            model.encoder,
            input_spec=replace(model.input_spec, exact=False),
            name=model.name,
            options=model.options,
            preprocessing=model.preprocessing,
        )
        self.load_report = model.load_report
        self._encoder_frozen = model._encoder_frozen
        self.out_indices = _take(model.feature_info, out_indices, model.name)
        self.feature_info = FeatureInfo(model.feature_info[i] for i in self.out_indices)

    @told_when_memory_ends
    def forward(self, x: Tensor) -> list[Tensor]:
        """Check the input and return the maps."""
        return self._maps(x, self.out_indices)


class Classifier(CheckedModel):
    """A model that turns images into logits, ``b c *s -> b n``.

    The state dict has two roots, ``encoder.`` and ``head.``; the last linear layer is always ``head.classifier``.

    Args:
        encoder: see :class:`CheckedModel`; also gives ``feature_info``.
        head: turns the last map into logits.
        input_spec: what ``forward`` holds its input to.
        outputs: what the logits mean; by default unnamed and untrained, and without labels where there is no head.
        name: the registered name, for messages.
        options: the builder options it was made with.
        preprocessing: how a file becomes an input.

    Attributes:
        load_report: what was loaded from which weights; ``None`` for a model that starts from random numbers.
    """

    head: Head

    def __init__(
        self,
        encoder: nn.Module,
        head: Head,
        *,
        input_spec: InputSpec,
        outputs: Outputs | None = None,
        name: str = "",
        options: Mapping[str, Any] | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__(
            encoder,
            input_spec=replace(input_spec, exact=head.flattens),
            name=name,
            options=options,
            preprocessing=preprocessing,
        )
        self.head = head
        self.outputs = outputs or Outputs.unnamed(head.num_classes, "multilabel")

    @told_when_memory_ends
    def forward(self, x: Tensor) -> Tensor:
        """Check the input and return logits ``b n``, or averaged features ``b num_features`` without a head.

        Raises:
            ShapeError: wrong axes, channels or sizes.
            InputError: wrong type, dtype or device, or more than the memory holds.
        """
        return self.forward_head(self.forward_features(x))

    @told_when_memory_ends
    def forward_features(self, x: Tensor) -> Tensor:
        """Check the input and return the last map, ``b num_features *s'``."""
        self.check_input(x)
        return self.encoder(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn the last map into logits, or with ``pre_logits`` into what ``head.classifier`` is given."""
        return self.head(x, pre_logits=pre_logits)

    @told_when_memory_ends
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the last map and a list of the chosen ones, as timm does, but in the order they were asked for.

        Args:
            x: the input.
            indices: numbers of maps as in ``feature_info``, negative ones from the end; a single number n means the
                last n; ``None`` all.
            intermediates_only: return the list alone. Stages beyond the last one asked for then do not run.
        """
        chosen = _take(self.feature_info, indices, self.name)
        if intermediates_only:
            return self._maps(x, chosen)
        *maps, last = self._maps(x, [*chosen, len(self.feature_info) - 1])
        return last, maps

    @property
    def feature_info(self) -> FeatureInfo:
        """Channels, stride and module of every map that ``forward_intermediates`` can give."""
        return FeatureInfo(self.encoder.feature_info)

    @property
    def num_features(self) -> int:
        """Channels of the last map."""
        return int(self.feature_info[-1]["num_chs"])

    @property
    def head_hidden_size(self) -> int:
        """Width of what ``head.classifier`` is given."""
        classifier = self.head.classifier
        return classifier.in_features if isinstance(classifier, nn.Linear) else self.num_features

    @property
    def num_classes(self) -> int:
        """Number of logits; 0 without a head."""
        return self.head.num_classes

    def get_classifier(self) -> nn.Module:
        """Return the last linear layer, or an identity without a head."""
        return self.head.classifier

    def reset_classifier(self, num_classes: int, whole_head: bool = False) -> None:
        """Replace the last linear layer by a new one; its outputs are unnamed and untrained.

        Args:
            num_classes: number of logits; 0 drops the head, and the model gives averaged features.
            whole_head: renew the head's hidden layer too. Always so after the head was dropped.

        Raises:
            ConfigError: ``num_classes`` is negative, or the preparation does not fit a head that flattens.
        """
        num_classes = whole(self.name, "num_classes", num_classes, 0)
        if not isinstance(whole_head, bool):
            raise ConfigError(f"{self.name}: expected whole_head to be True or False, got {whole_head!r}.")
        spec = replace(self.input_spec, exact=num_classes > 0 and bool(self.head.flatten_size))
        if self.preprocessing is not None and not spec.fits(self.preprocessing.size):
            raise ConfigError(
                f"{self.name}: preprocessing gives size {self.preprocessing.size}, but the new head takes {spec}. "
                "Set model.preprocessing first."
            )
        before = {f"head.{name}" for name, _ in self.head.named_parameters()}
        like = next(self.encoder.parameters())
        if whole_head or num_classes == 0 or self.num_classes == 0:
            self.head = self.head.rebuilt(num_classes).to(like.device, like.dtype)
        elif isinstance(self.head.classifier, nn.Linear):
            width = self.head.classifier.in_features
            self.head.classifier = nn.Linear(width, num_classes, device=like.device, dtype=like.dtype)
            before = {"head.classifier.weight", "head.classifier.bias"}
        self.head.train(self.training)
        self.input_spec = spec
        self.outputs = Outputs.unnamed(num_classes, self.outputs.task)
        self.options["num_classes"] = num_classes
        if self.load_report is not None:
            after = {f"head.{name}" for name, _ in self.head.named_parameters()}
            self.load_report = self.load_report.renewed(gone=before, new=before & after or after)

    def set_outputs(
        self,
        *,
        labels: Sequence[str] | None = None,
        task: Task | None = None,
        thresholds: Sequence[float] | None = None,
        trained: bool | Sequence[bool] = True,
    ) -> Self:
        """Say what the logits mean, after one's own training.

        Args:
            labels: one name for each output; ``None`` keeps the present ones.
            task: ``"binary"``, ``"multilabel"`` or ``"multiclass"``; ``None`` keeps the present one.
            thresholds: probability at and above which an output is positive, one for each label; ``None`` keeps the
                present ones, or means 0.5 for another task.
            trained: whether the outputs mean something, for all or for each. To rename only, give
                ``model.outputs.trained``.

        Raises:
            ConfigError: the labels are not as many as the logits, or the parts do not go together.
        """
        now = self.outputs
        task = now.task if task is None else task
        if thresholds is None:
            thresholds = now.thresholds if task == now.task else ()
        flags = (trained,) * self.num_classes if isinstance(trained, bool) else trained
        parts: dict[str, Any] = {"thresholds": thresholds, "trained": flags}
        if labels is not None and len(labels) != self.num_classes:
            raise ConfigError(
                f"{self.name}: expected {self.num_classes} labels, one for each logit, got {len(labels)}. "
                f"model.reset_classifier({len(labels)}) makes room for them."
            )
        self.outputs = Outputs(labels=cast(Any, now.labels if labels is None else labels), task=task, **parts)
        return self

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        license: str = "not stated",
        trained_on: str = "not stated",
        metrics: Mapping[str, float] | None = None,
    ) -> Path:
        """Write a folder that ``medzoo.create("local-dir:FOLDER")`` gives back, bit for bit.

        See :func:`medzoo.weights.save.save_pretrained`.
        """
        from medzoo.weights.save import save_pretrained

        return save_pretrained(self, folder, license=license, trained_on=trained_on, metrics=metrics)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Write such a folder to a repository of the Hub; returns the ``"hf-hub:..."`` that gives it back.

        See :func:`medzoo.weights.share.push_to_hub` for the options: private, revision, token, license, trained_on,
        metrics.
        """
        from medzoo.weights.share import push_to_hub

        return push_to_hub(self, repo_id, **options)

    def param_groups(
        self,
        lr: float,
        weight_decay: float = 0.0,
        layer_decay: float = 1.0,
    ) -> list[dict[str, Any]]:
        """Return the trainable parameters in groups for an optimiser.

        Biases, norms and position bias tables are not decayed. With ``layer_decay`` below 1 the learning rate shrinks
        by that factor with each stage from the head down to the input.

        Args:
            lr: learning rate of the head.
            weight_decay: weight decay of matrices and kernels.
            layer_decay: factor for each stage, in (0, 1].
        """
        if not 0.0 < layer_decay <= 1.0:
            raise ConfigError(f"{self.name}: expected layer_decay in (0, 1], got {layer_decay}.")
        return param_groups(self, self.feature_info.module_name(), lr, weight_decay, layer_decay)


def _take(info: FeatureInfo, indices: int | Sequence[int] | None, who: str) -> list[int]:
    """Resolve indices of maps: ``None`` is all, a number n the last n, negative ones count from the end."""
    count = len(info)
    if isinstance(indices, int):
        chosen = list(range(count))[-indices:] if 0 < indices <= count else []
    else:
        chosen = list(range(count)) if indices is None else [operator.index(i) for i in indices]
    if not chosen or any(not -count <= i < count for i in chosen):
        raise ConfigError(
            f"{who}: expected numbers of its {count} maps, {-count} to {count - 1}, or how many of the last, got "
            f"{indices}. See feature_info."
        )
    return [i % count for i in chosen]


def _trains_batchnorm(encoder: nn.Module) -> bool:
    """Whether any BatchNorm takes its statistics from the batch."""
    return any(m.training for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def _rebuild_after_load(model: nn.Module, _: object) -> None:
    """Derive what is not stored, once the tensors have come."""
    like = next(model.parameters(), None)
    if like is not None and isinstance(model, CheckedModel):
        model.rebuild_buffers(like.device)
