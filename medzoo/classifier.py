"""The classifier, which every model of the zoo is: an encoder and a head, a checked forward, and timm's methods.

Axes: b batch, c channels, s the spatial axes (h w or d h w), n classes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

from torch import Tensor, nn

from medzoo.contract import Outputs, Preprocessing, Task
from medzoo.errors import ConfigError, check_int
from medzoo.features import CheckedModel, FeatureInfo, annotate_oom
from medzoo.input_spec import InputSpec
from medzoo.nn.encoder import is_channels_last, take_maps
from medzoo.nn.head import Head
from medzoo.nn.rescale import rescale, undo_rescale
from medzoo.provenance import Calibration, IntendedUse, ThresholdPolicy
from medzoo.weights.config import ModelConfig
from medzoo.weights.hub import push_to_hub
from medzoo.weights.load import CLASSIFIER
from medzoo.weights.save import save_pretrained

__all__ = ["Classifier", "FeatureInfo", "calibrate_head"]


class Classifier(CheckedModel):
    """A model that turns images into logits, ``b c *s -> b n``.

    The state dict has two roots, ``encoder.`` and ``head.``; the last linear layer is always ``head.classifier``.

    Args:
        encoder: see :class:`CheckedModel`; also gives ``feature_info``.
        head: turns the last map into logits.
        input_spec: what ``forward`` checks its input against.
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

    @annotate_oom
    def forward(self, x: Tensor) -> Tensor:
        """Check the input and return logits ``b n``, or averaged features ``b num_features`` without a head.

        Raises:
            ShapeError: wrong axes, channels or sizes.
            InputError: wrong type, dtype or device, or more than the memory holds.
        """
        return self.forward_head(self.forward_features(x))

    @annotate_oom
    def forward_features(self, x: Tensor) -> Tensor:
        """Check the input and return the last map, ``b num_features *s'``."""
        self.check_input(x)
        return self.encoder_for(x)(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn the last map into logits, or with ``pre_logits`` into what ``head.classifier`` is given."""
        return self.head(x, pre_logits=pre_logits)

    @annotate_oom
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
        """Return the last map and a list of the chosen ones, as timm does, but in the order they were asked for.

        Args:
            x: the input.
            indices: indices of maps as in ``feature_info``, negative ones from the end; a single int n means the
                last n; ``None`` all.
            norm: passed to an encoder of timm's. No model of the zoo has a final norm to apply: ``swin_encoder_mlp``
                normalises each of its maps, whatever ``norm`` is.
            stop_early: run no stage beyond the largest index; the last map is then the one of that index.
            output_fmt: ``"NCHW"``, channels first, which is ``b c d h w`` in 3D, or ``"NHWC"``, channels last. It
                applies to the list; the last map always has its channels first.
            intermediates_only: return the list alone. Stages beyond the last one asked for then do not run.

        Raises:
            ConfigError: there is no such map, or no such format.
            ShapeError: wrong axes, channels or sizes.
            InputError: wrong type, dtype or device, or more than the memory holds.
        """
        count = len(self.feature_info)
        chosen, channels_last = take_maps(count, indices, self.name), is_channels_last(output_fmt, self.name)
        last = [] if intermediates_only else [max(chosen) if stop_early else count - 1]
        maps = self._maps(x, [*chosen, *last], norm)
        found = [m.movedim(1, -1) if channels_last else m for m in maps[: len(chosen)]]
        return found if intermediates_only else (maps[-1], found)

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

    def _names_outputs(self) -> bool:
        return self.num_classes > 0

    def reset_classifier(self, num_classes: int, global_pool: None = None, *, whole_head: bool = False) -> None:
        """Replace the last linear layer by a new one; its outputs are unnamed and untrained.

        Args:
            num_classes: number of logits; 0 drops the head, and the model gives averaged features.
            global_pool: where timm takes another pooling. Only ``None``, which keeps the pooling, is accepted.
            whole_head: replace the head's hidden layer too, which also happens after the head was dropped.

        Raises:
            ConfigError: ``num_classes`` is negative, ``global_pool`` is given, or the preprocessing does not fit a
                head that flattens.
        """
        num_classes = check_int(self.name, "num_classes", num_classes, 0)
        if global_pool is not None:
            raise ConfigError(
                f"{self.name}: expected no global_pool, the second argument in timm, got {global_pool!r}. The pooling "
                "belongs to the head and is kept. model.forward_features returns the map before it; whole_head=True "
                "is given by name."
            )
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
            self.load_report = self.load_report.with_new(gone=before, new=before & after or after)
        self.intended_use = None

    def set_outputs(
        self,
        *,
        labels: Sequence[str] | None = None,
        task: Task | None = None,
        thresholds: Sequence[float | None] | None = None,
        trained: bool | Sequence[bool] = True,
        policy: ThresholdPolicy | None = None,
        calibration: Calibration | None = None,
        prevalence: Sequence[float] | None = None,
        loss_weights: Sequence[float] | None = None,
    ) -> Self:
        """Set what the logits mean, after one's own training.

        ``outputs.caution`` stays: it goes with the head, see :meth:`reset_classifier`.

        Args:
            labels: one name for each output; ``None`` keeps the present ones.
            task: ``"binary"``, ``"multilabel"`` or ``"multiclass"``; ``None`` keeps the present one.
            thresholds: probability at and above which an output is positive, one for each label, and ``None`` for a
                label that is not to be called; ``None`` keeps the present ones, or means 0.5 for another task.
            trained: whether the outputs mean something, for all or for each. To rename only, give
                ``model.outputs.trained``.
            policy: how ``thresholds`` were chosen. ``None`` states nothing, unless only names change, with
                ``trained=model.outputs.trained``; so for the next three.
            calibration: the calibration that is part of ``head.classifier`` now.
            prevalence: share of positives in the training data, one for each label.
            loss_weights: weight of the positives in the training loss as a multiple of that of the negatives, one for
                each label, or of each class.

        Raises:
            ConfigError: the labels are not as many as the logits, or the parts do not go together.
        """
        now = self.outputs
        task = now.task if task is None else task
        if thresholds is None:
            thresholds = now.thresholds if task == now.task else ()
        flags = (trained,) * self.num_classes if isinstance(trained, bool) else trained
        parts: dict[str, Any] = {"thresholds": thresholds, "trained": flags}
        # The rescaling of probabilities belongs to the thresholds.
        parts["normalised"] = now.normalised and tuple(thresholds) == now.thresholds
        renamed = not isinstance(trained, bool) and tuple(trained) == now.trained
        kept = renamed and (task, tuple(thresholds)) == (now.task, now.thresholds)
        parts["caution"] = now.caution
        parts["policy"] = policy or (now.policy if kept else None)
        parts["calibration"] = calibration or (now.calibration if kept else None)
        for name, given in (("prevalence", prevalence), ("loss_weights", loss_weights)):
            parts[name] = (getattr(now, name) if kept else ()) if given is None else given
        if labels is not None and len(labels) != self.num_classes:
            raise ConfigError(
                f"{self.name}: expected {self.num_classes} labels, one for each logit, got {len(labels)}. "
                f"model.reset_classifier({len(labels)}) makes a layer of that size."
            )
        self.outputs = Outputs(labels=cast(Any, now.labels if labels is None else labels), task=task, **parts)
        return self

    def uncalibrated(self) -> Self:
        """Return a copy without the calibration in ``head.classifier``; this model is not changed.

        The logits are those before the calibration, to rounding: the calibrated weights were rounded to the dtype of
        the model, so each weight is at most one unit in its last place away, see
        :func:`medzoo.nn.rescale.undo_rescale`. Outputs whose slope is 1 and intercept 0 come back bit for bit.
        Thresholds move back, so that the calls stay as they are.

        Raises:
            ConfigError: the model has no calibration.
        """
        if self.outputs.calibration is None:
            raise ConfigError(
                f"{self.name}: expected a model with a calibration to undo, got one without. Use the model as it is."
            )
        plain = copy.deepcopy(self)
        calibrate_head(plain, self.outputs.calibration, undo=True)
        return plain

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        license: str | None = None,
        trained_on: str | None = None,
        metrics: Mapping[str, float] | None = None,
        intended_use: IntendedUse | None = None,
    ) -> Path:
        """Write a folder that ``medzoo.create("local-dir:FOLDER")`` loads, bit for bit.

        See :func:`medzoo.weights.save.save_pretrained`.
        """
        return save_pretrained(
            self.state_dict(),
            self._saved_config(),
            folder,
            license=license,
            trained_on=trained_on,
            metrics=metrics,
            intended_use=intended_use,
        )

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Write such a folder to a repository of the Hub; returns the ``"hf-hub:..."`` that gives it back.

        See :func:`medzoo.weights.hub.push_to_hub` for the options: private, revision, token, license, trained_on,
        metrics, intended_use.
        """
        return push_to_hub(self.state_dict(), self._saved_config(), repo_id, **options)

    def _saved_config(self) -> ModelConfig:
        """Return what a saved folder states about the model."""
        report, parts = self.load_report, (self.name, self.options, self.input_spec, self.outputs, self.preprocessing)
        if report is None:
            return ModelConfig(*parts, intended_use=self.intended_use)
        return ModelConfig(*parts, report.channels, report.license, report.trained_on, self.intended_use)

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
        return _param_groups(self, self.feature_info.module_name(), lr, weight_decay, layer_decay)


def calibrate_head(model: Classifier, calibration: Calibration, undo: bool = False) -> None:
    """Change ``head.classifier`` of a model in place by a calibration, and state it; or undo it.

    Raises:
        ConfigError: the model has no layer to change, or its outputs do not go with it; the model is unchanged.
    """
    layer = model.head.classifier
    # A subclass, such as of a parametrised or quantised layer, computes its weight from something else.
    if type(layer) is not nn.Linear:
        raise ConfigError(
            f"{model.name}: expected head.classifier to be a torch.nn.Linear, got {type(layer).__name__}. A model "
            "without a head has no logits to calibrate; remove what was put on the layer."
        )
    # So does an older weight norm, spectral norm or pruning, which leaves the class and computes the weight in a hook.
    if layer._forward_hooks or layer._forward_pre_hooks or "weight" not in layer._parameters:
        raise ConfigError(
            f"{model.name}: expected head.classifier to be a plain layer, got one with forward hooks, such as those of "
            "torch.nn.utils.weight_norm or prune. Remove them, with remove_weight_norm or prune.remove for these."
        )
    own = {id(parameter) for parameter in layer.parameters()}
    users = [
        name for name, module in model.named_modules(remove_duplicate=False)
        if any(id(parameter) in own for parameter in module._parameters.values())
    ]  # fmt: skip
    if len(users) > 1:
        raise ConfigError(
            f"{model.name}: expected only head.classifier to have its weight and bias, got {', '.join(users)}, which "
            "would be changed too. Give each a copy of its own."
        )
    try:
        outputs = model.outputs.with_calibration(None if undo else calibration)
    except ConfigError as error:
        raise ConfigError(f"{model.name}: {str(error).removeprefix('Outputs: ')}") from None
    (undo_rescale if undo else rescale)(layer, calibration.slope, calibration.intercept, model.name)
    model.outputs = outputs
    if model.load_report is not None:
        how = f"calibration undone ({calibration.method})" if undo else f"calibration ({calibration.method})"
        model.load_report = model.load_report.with_changed(CLASSIFIER, how)


def _param_groups(
    model: nn.Module, ends: Sequence[str], lr: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Implement :meth:`Classifier.param_groups`; ``ends`` is the last module of each stage, in the order they run."""
    depth = _depths(model, ends)
    top = len(ends)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and not name.endswith("relative_position_bias_table")
        level = depth[name] if layer_decay < 1.0 else top
        group = groups.setdefault(
            (level, decayed),
            {
                "params": [],
                "lr": lr * layer_decay ** (top - level),
                "weight_decay": weight_decay if decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _depths(model: nn.Module, ends: Sequence[str]) -> dict[str, int]:
    """Return the stage of each parameter, from 0 at the input; the head is one above the last.

    Modules are registered in the order they run, so a module belongs to the first stage that ends at or after it.
    """
    encoder, head = model.get_submodule("encoder"), model.get_submodule("head")
    order = [name for name, _ in encoder.named_modules()]
    last = [max(i for i, name in enumerate(order) if name == end or name.startswith(end + ".")) for end in ends]
    place = {name: i for i, name in enumerate(order)}
    depths = {f"head.{name}": len(ends) for name, _ in head.named_parameters()}
    for name, _ in encoder.named_parameters():
        at = place[name.rpartition(".")[0]]
        depths[f"encoder.{name}"] = next((i for i, end in enumerate(last) if at <= end), len(ends) - 1)
    return depths
