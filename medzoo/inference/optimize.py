"""``optimize``: a copy of a model that computes the same outputs faster, for inference alone.

Axes: b batch, c channels, s the spatial axes (h w or d h w), n classes.
"""

from __future__ import annotations

import copy
from typing import Any, NoReturn, Self, TypeVar

import torch
from torch import Tensor, nn

from medzoo.classifier import Classifier
from medzoo.errors import ConfigError
from medzoo.features import CheckedModel, FeatureExtractor, annotate_oom
from medzoo.inference.engine import EngineModel, refuse_engine
from medzoo.inference.fold import FoldedConvEncoder, FoldedEncoder, is_launch_bound
from medzoo.kernels.cpu.conv import on_cpu, private
from medzoo.kernels.cpu.linear import linear
from medzoo.kernels.cuda.graphs import GraphCache, keep_alive
from medzoo.nn.conv import ConvEncoder
from medzoo.nn.encoder import Encoder
from medzoo.nn.guards import Watch, eager, hooked, wants_gradients

__all__ = ["OptimizedClassifier", "OptimizedExtractor", "fast_form", "optimize", "optimized_copy", "optimized_view"]

# Folding a timm encoder takes about as long as it saves on this many images.
FEW = 8

M = TypeVar("M", Classifier, FeatureExtractor)


def optimize(model: M, *, cuda_graph: bool = False) -> M:
    """Return an inference-only copy of a model that computes the same outputs faster.

    On a CPU in float32 or bfloat16, the convolution stages of ``cnn3d_small``, ``cnn3d_base`` and ``xray_cnn`` fold
    their BatchNorm, pool before ReLU, run in slabs that stay in the cache, and use oneDNN where PyTorch alone would
    not; timm's encoders fold BatchNorm and ReLU and use channels-last memory, and a block of its DenseNets writes into
    one map instead of joining maps in each layer. On a GPU, BatchNorm is folded and memory is channels last; where
    Triton is installed, its kernels pool and do what follows in a single pass. A few images run the plain stages there,
    which are launched faster. What cannot be changed safely, such as a stage that was replaced, is left unchanged;
    printing the model shows what was done.
    ``swin_encoder_mlp`` is copied unchanged: its layers are fast by themselves.

    The modules and tensors of the copy are those of the original: ``state_dict`` and ``save_pretrained`` return its
    weights, and hooks and input gradients see its layers, at their plain speed. So does anything that is traced,
    exported, of another dtype, or under autocast, and everything under ``medzoo.set_fast_paths(False)``. In float32
    outputs agree to 1e-5 absolute, or relative to the largest one above 1; in bfloat16 they are about as close to those
    of float32 as the plain model's. Some sums are taken in another order, so that an infinite input may give NaN where
    the plain model gives infinity.

    The original is not changed, and later changes to it do not reach the copy. The copy is in eval mode and refuses
    to be trained. Writes into its tensors take effect, with one exception: writes through ``.data``, which PyTorch does
    not count, are missed by timm's encoders, and on a GPU by folded convolution stages too, until the next call of
    :func:`medzoo.predict`, which looks for them. That optimizes by itself, and keeps with a model what it derived.

    With ``cuda_graph``, ``forward`` on a GPU replays a CUDA graph, which takes the time of its kernels alone:

    - One graph is captured at the first call with each shape, dtype, device and memory format, after a few passes to
      warm up. The eight most recently used are kept.
    - Each call returns tensors of its own. Threads take turns, and streams wait for each other.
    - A module or tensor that is replaced, moved, hooked, written to or set otherwise drops the graphs. Switches of
      PyTorch, such as ``torch.backends.cuda.matmul.allow_tf32``, count when a graph is captured.
    - Other methods than ``forward`` run without a graph, and so does ``forward`` with a hook, an input that requires a
      gradient, autocast, a compiler or a tracer, or, after a warning, if the capture fails.
    - Beside the weights, the graphs of a model keep the temporaries of its largest forward pass, and an input and a
      result each. After the model was moved, they keep its old weights until the next call.
    - Copies and saved files contain no graphs.

    Args:
        model: from :func:`medzoo.create`, in any mode.
        cuda_graph: replay CUDA graphs in inference on a GPU. On a CPU it changes nothing.

    Raises:
        ConfigError: not a model of medzoo.

    >>> import medzoo
    >>> model = medzoo.create("cnn3d_small", size=32).eval()
    >>> fast, x = medzoo.optimize(model), torch.rand(2, 1, 32, 32, 32)
    >>> with torch.inference_mode():
    ...     print(torch.allclose(fast(x), model(x), atol=1e-5))
    True
    """
    kind = _kind(model)
    # Made in inference mode, the copy's tensors would not count how often they are written to.
    with torch.inference_mode(False):
        fast = _copy(model, kind).eval()
    object.__setattr__(fast, "_graphs", GraphCache() if cuda_graph else None)
    return fast


def optimized_copy(model: Classifier) -> Classifier:
    """Return an optimized copy of a classifier in eval mode; a plain one of a class that is not known here."""
    if type(model) in (Classifier, OptimizedClassifier):
        return optimize(model, cuda_graph=getattr(model, "_graphs", None) is not None)
    with torch.inference_mode(False):
        return _copy(model, type(model)).eval()


def _copy(model: M, kind: type[M]) -> M:
    """Copy a model without its gradients, as one of another class."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().clone(), requires_grad=False) for p in model.parameters()}
    fast = copy_model(model, memo)
    fast.__class__ = kind
    return fast


def copy_model(model: M, memo: dict[int, Any]) -> M:
    """Return a deep copy of a model, with the tensors that ``memo`` has for those of the model, and its own hooks.

    Raises:
        ConfigError: the model cannot be copied.
    """
    # A hook is the user's, and often a method: copying it would copy the object it is bound to.
    memo |= {id(hook): hook for module in model.modules() for hook in _hooks(module)}
    try:
        return copy.deepcopy(model, memo)
    except RuntimeError as error:
        reason = str(error).partition(".")[0]
        raise ConfigError(
            f"{model.name}: expected a model that can be copied, got one that cannot ({reason}). Remove what was put "
            "on it, such as torch.nn.utils.weight_norm, before."
        ) from error


def optimized_view(model: Classifier, images: int | None) -> Classifier:
    """Return a view of a model in eval mode that runs the fast path without a copy, or the model where that is slower.

    The fast form is kept with the model for later calls. What was derived from other values is dropped here: in the
    view's passes, writes through ``.data`` are missed as by :func:`optimize`.

    Args:
        model: the model; it is not changed, and later changes to it reach the view.
        images: how many it is to run on; ``None`` for a model that will be called again. It does not depend on how
            often that was, so that each call gives the same numbers.
    """
    if isinstance(model, OptimizedClassifier):
        if model._fast is not None and not model._fast.verify() and model._graphs is not None:
            model._graphs.clear()  # they read what was dropped
        return model
    folds_soon = type(model.encoder) is ConvEncoder or images is None or images >= FEW
    if type(model) is not Classifier or not folds_soon:
        return model
    fast = fast_form(model)
    if fast is not None:
        fast.verify()
    view = object.__new__(OptimizedClassifier)
    view.__dict__.update(model.__dict__)
    return view


def fast_form(model: CheckedModel) -> FoldedConvEncoder | FoldedEncoder | None:
    """Return the fast form of the present encoder of a model, which is made once and kept with it.

    There is no lock, which a fork could copy while it is held: threads that come at once make one each, and the last
    stays. It holds the encoder and not the model, so that both go as soon as the model goes.
    """
    found: FoldedConvEncoder | FoldedEncoder | None = model._fast
    if found is None or found.plain is not model.encoder:
        found = None
        if type(model.encoder) is ConvEncoder:
            found = FoldedConvEncoder(model.encoder)
        elif not isinstance(model.encoder, Encoder):
            found = FoldedEncoder(model.encoder)
        object.__setattr__(model, "_fast", found)  # not as a submodule: its tensors are the encoder's
    return found


def served(x: Tensor) -> bool:
    """Whether there is a fast path for the device and type of ``x``: float32 and bfloat16 on a CPU, all on a GPU."""
    return on_cpu(x) or x.is_cuda


def _kind(model: object) -> type[Any]:
    """Return the class of the optimized model."""
    for plain, kind in ((Classifier, OptimizedClassifier), (FeatureExtractor, OptimizedExtractor)):
        if type(model) in (plain, kind):
            return kind
    if isinstance(model, EngineModel):
        raise refuse_engine(model, "optimize")
    raise ConfigError(
        f"optimize: expected a Classifier or a FeatureExtractor from medzoo.create, got {type(model).__name__}."
    )


class _InferenceOnly(CheckedModel):
    """Runs the folded form of its encoder where there is one and it is safe, and refuses to be trained."""

    _graphs: GraphCache | None = None

    @annotate_oom
    def forward(self, x: Tensor) -> Any:
        """Check the input and return what the plain model does, by a CUDA graph where one was asked for and is safe."""
        plain, graphs = super().forward, self._graphs
        if graphs is None:
            return plain(x)
        if not isinstance(x, Tensor) or not x.is_cuda:
            graphs.clear()  # the model has left the GPU
            return plain(x)
        if not eager(x) or torch.cuda.is_current_stream_capturing():
            return plain(x)
        self.check_input(x)

        def run(x: Tensor) -> Any:
            out = plain(x)
            # The cached form of the encoder, which another thread may replace.
            keep_alive(*getattr(self._fast, "_folded", {}).values(), getattr(self._fast, "_found", None))
            return out

        return graphs(x, run, lambda: _Guard(self), self.name)

    def encoder_for(self, x: Tensor) -> Any:
        """Return the encoder to run on ``x``: the fast form, or the plain one."""
        if type(self.encoder) is ConvEncoder and is_launch_bound(self.encoder, x):
            return self.encoder
        if not (eager(x) and served(x)) or hooked(self.encoder):
            return self.encoder
        return fast_form(self) or self.encoder

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

    def freeze_encoder(self, frozen: bool = True) -> Self:
        """Do nothing: all of it is frozen. Unfreezing is refused."""
        if not frozen:
            self._refuse("it cannot be trained")
        return self

    def check_input(self, x: Tensor) -> None:
        """Raise unless ``x`` is what the model takes, and no parameter requires a gradient."""
        super().check_input(x)
        if torch.is_grad_enabled() and wants_gradients(self):
            self._refuse("its parameters have no gradients")

    def extra_repr(self) -> str:
        """Describe what was done."""
        return "\n".join(f"(optimized) {line}" for line in self.summary())

    def summary(self) -> list[str]:
        """Describe what was done, line by line."""
        encoder, like = fast_form(self), next(self.encoder.parameters())
        plain = encoder is None or not served(like) or hooked(self.encoder)
        lines = ["unchanged"] if encoder is None or plain else encoder.summary()
        lines = [f"encoder: {line}" for line in lines]
        if self._graphs is not None:
            lines.append("CUDA graphs: " + ("one for each kind of input" if like.is_cuda else "none on a CPU"))
        return lines

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigError(
            f"{self.name}: this model is from medzoo.optimize, for inference alone: {what}. "
            "Use the model it was made from, and optimize that again afterwards."
        )


class _Guard:
    """Records what the graphs of a model depend on."""

    def __init__(self, model: _InferenceOnly) -> None:
        self._model = model
        self._before = self._now()
        self._watch = Watch(*self._before[0].values(), exact=False)
        self.capturable = not (self._watch.hooked or self._watch.training)

    def holds(self) -> bool:
        """Whether nothing changed that the graphs depend on."""
        return self._now() == self._before and self._watch.holds()

    def _now(self) -> tuple[dict[str, Any], Any]:
        return dict(self._model._modules), getattr(self._model, "out_indices", None)


class OptimizedClassifier(_InferenceOnly, Classifier):
    """A classifier from :func:`optimize`."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Turn the last map into logits, or with ``pre_logits`` into what ``head.classifier`` is given."""
        if not (on_cpu(x) and eager(x)) or hooked(*self.head.modules()):
            return super().forward_head(x, pre_logits)
        for name, part in self.head.named_children():
            if not (pre_logits and name == "classifier"):
                x = linear(x, part.weight, part.bias) if type(part) is nn.Linear else part(x)
        return x

    def reset_classifier(self, num_classes: int, global_pool: None = None, *, whole_head: bool = False) -> NoReturn:  # noqa: ARG002
        """Refuse: a new layer is there to be trained."""
        self._refuse("it cannot have a new classifier")

    def summary(self) -> list[str]:
        """Describe what was done, line by line."""
        last = self.get_classifier()
        done = isinstance(last, nn.Linear) and last.weight.dtype == torch.float32 and private(last.weight)
        return super().summary() + ["head: linear layers by oneDNN"] * done


class OptimizedExtractor(_InferenceOnly, FeatureExtractor):
    """A feature extractor from :func:`optimize`."""


def _hooks(module: nn.Module) -> list[Any]:
    """List what a module calls besides its forward."""
    forward = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return [*forward, *module._backward_hooks.values(), *module._backward_pre_hooks.values()]
