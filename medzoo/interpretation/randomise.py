"""``medzoo.check_explanation``: whether a map of influence depends on what a model has learned.

Source: Adebayo et al. 2018, Sanity Checks for Saliency Maps, https://arxiv.org/abs/1810.03292: a method that shows what
a model learned gives another map once the weights are random. Weights are randomised in cascade from the head to the
input, or each stage alone. A map that stays the same after the head alone is no fault yet: the activations below are
those of the trained model (Binder et al. 2023, https://arxiv.org/abs/2211.12486).

Axes: b images, c channels, s spatial axes, s' cells of the map, k stages, r random models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medzoo.classifier import Classifier
from medzoo.errors import ConfigError, check_int
from medzoo.inference.engine import EngineModel, refuse_engine
from medzoo.inference.naming import provenance
from medzoo.inference.plan import Points, plan
from medzoo.inference.reading import ImageReader
from medzoo.inference.run import check_device, check_outputs
from medzoo.inference.view import float32_view
from medzoo.interpretation.choose import choose_layer, choose_targets
from medzoo.interpretation.layer_maps import LAYER_METHODS, LayerMethod, layer_maps
from medzoo.interpretation.map_check import MapCheck, MapSimilarity, Rows, similarity
from medzoo.transforms.transform import ImageSource, transform
from medzoo.warn import warn

__all__ = ["MapsOf", "Stage", "check_explanation", "compare_with_random", "randomise", "weight_stages"]

MapsOf = Callable[[Classifier, Tensor, Tensor], Tensor]
"""From a model, inputs ``b c *s`` and the index of an output for each, ``b``, to maps ``b *s'``."""
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_LEAST = 4  # random models, below which an interval over them says nothing


@dataclass(frozen=True)
class Stage:
    """A part of a model whose weights are randomised together.

    Attributes:
        name: ``"head"``, or the module of ``feature_info`` at which the stage ends.
        modules: dotted names of the modules that hold its weights.
    """

    name: str
    modules: tuple[str, ...]


def check_explanation(
    model: Classifier,
    source: ImageSource | list[Any] | tuple[Any, ...],
    target: str | None = None,
    method: LayerMethod = "gradcam",
    *,
    layer: str | None = None,
    seeds: int | Sequence[int] = 8,
    alone: bool = False,
    batch_size: int = 4,
    device: torch.device | str | None = None,
    points: Points | None = None,
    points_frame: Literal["LPS", "RAS"] = "LPS",
    allow_untrained: bool = False,
    allow_mismatch: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> MapCheck:
    """Compare the maps of a model with those of the same model with random weights.

    A map that stays nearly the same without the learned weights shows the image or the architecture, not what the model
    learned. Passing is necessary, not sufficient: it says nothing about whether a map points at the right place.

    Convolutions, linear layers and all else get normal numbers of mean 0 with the root mean square of the tensor that
    they replace, so that activations keep their scale; normalisations are reset. That is nearer to an untrained model
    than a permutation of the weights, which keeps their mean and with it a part of the map; and unlike the modules'
    own ``reset_parameters``, it draws from a generator of its own. Neither the model nor the random numbers of the
    process are touched.

    Args:
        model: from :func:`medzoo.create`.
        source: images as :func:`medzoo.predict` takes them. With four or more the interval is over images too.
        target: the output; ``None`` is for each image the trained output that the model finds most probable.
        method: ``"gradcam"`` or ``"gradcam++"``. Occlusion hides regions and compares outputs, hundreds of passes for
            each random model: it is not checked.
        layer: dotted name of the module; ``None`` for the one that :func:`medzoo.explain` takes.
        seeds: of the random models, or how many, at least 4. About half of the random models may give no map at all,
            as Grad-CAM shows only what speaks for an output.
        alone: also randomise each stage alone, the others as trained, which takes twice the time.
        batch_size: images per forward pass.
        device: where to run; ``None`` is the device of the model.
        points: for a patch model, see :func:`medzoo.predict`.
        points_frame: of the points.
        allow_untrained: check the map of an output that was not trained.
        allow_mismatch: use images of another kind than the model is for.
        progress: called after each comparison with the number done and the total.

    Returns:
        The similarities, a verdict with its interval, and a table when printed. The images are run r k + 2
        times for r random models and k stages, r (2 k - 1) + 2 times with ``alone``.

    Raises:
        ConfigError: an unknown method, layer or target; fewer than 4 seeds; maps that are the same everywhere.
        DataError: an image that cannot be used.
    """
    if isinstance(model, EngineModel):
        raise refuse_engine(model, "check_explanation")
    check_outputs(model, allow_untrained, "check_explanation")
    if method not in LAYER_METHODS:
        raise ConfigError(
            f"check_explanation: expected method {' or '.join(map(repr, LAYER_METHODS))}, got {method!r}."
        )
    if target is not None and not isinstance(target, str):
        raise ConfigError(f"check_explanation: expected one target, got {target!r}. Check them one after another.")
    check_int(model.name, "batch_size", batch_size, 1)
    chosen_seeds = _seeds(seeds)
    choose = choose_targets(model, target, allow_untrained)
    where = next(model.parameters()).device if device is None else check_device(device, model.name)
    x = _read(model, source, points, points_frame, allow_mismatch).to(where)
    view = float32_view(model, where)
    chosen = choose_layer(view, x, layer)

    def maps_of(of: Classifier, images: Tensor, targets: Tensor) -> Tensor:
        return layer_maps(of, chosen.name, images, lambda _: targets[:, None], method)[1][:, 0]

    with torch.no_grad():
        logits = torch.cat([view(part) for part in torch.split(x, batch_size)])
    targets = choose(logits)[:, 0]
    found = compare_with_random(view, x, targets, maps_of, chosen_seeds, alone, batch_size, progress)
    return MapCheck(
        model.name, method, chosen.name, chosen.size,
        tuple(model.outputs.labels[int(i)] for i in targets), chosen_seeds, *found,
        warning=f"the map has {' x '.join(map(str, chosen.size))} cells, too few to point" if chosen.is_coarse else "",
    )  # fmt: skip


def compare_with_random(
    view: Classifier,
    x: Tensor,
    targets: Tensor,
    maps_of: MapsOf,
    seeds: Sequence[int],
    alone: bool = False,
    batch_size: int = 4,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[tuple[MapSimilarity, ...], tuple[MapSimilarity, ...], MapSimilarity, MapSimilarity | None]:
    """Return how similar the maps stay in cascade, and with each stage alone, and two comparisons to judge them by.

    Args:
        view: the trained model; it is not changed.
        x: inputs ``b c *s``.
        targets: the output that is explained of each, ``b``.
        maps_of: the method.
        seeds: of the random models.
        alone: whether each stage is randomised alone too.
        batch_size: rows per call of ``maps_of``.
        progress: called after each comparison.

    Returns:
        For each stage the similarities in cascade, and with it alone random; those of pairs of random models; and
        those of the trained model's maps of different images, ``None`` of one image.

    Raises:
        ConfigError: the maps of the trained model are the same everywhere on every image.
    """

    def all_maps(of: Classifier) -> NDArray[np.float32]:
        parts = zip(torch.split(x, batch_size), torch.split(targets, batch_size), strict=True)
        return np.concatenate([maps_of(of, *part).float().cpu().numpy() for part in parts])

    stages, own = weight_stages(view, x), all_maps(view)
    if all(np.ptp(one) == 0 for one in own):
        raise ConfigError(
            f"{view.name}: expected maps that differ between places, got maps that are the same everywhere: there is "
            "nothing to compare. Choose another target or layer."
        )
    plans = [[stages[: k + 1] for k in range(len(stages))], [[stage] for stage in stages[1:]] if alone else []]
    total = len(seeds) * sum(map(len, plans))
    model = float32_view(view, x.device)
    with torch.inference_mode(False):
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.detach().clone()  # the view's are those of the user's model
    trained = {name: value.clone() for name, value in view.state_dict().items()}
    found: dict[str, list[Rows]] = {}
    ends, done = [], 0
    for seed in seeds:
        for plan_ in plans:
            for some in plan_:
                model.load_state_dict(trained)
                for stage in some:
                    randomise(model, stage, _generator(seed, stages.index(stage)))
                maps = all_maps(model)
                found.setdefault(_name(some), []).append(similarity(own, maps))
                if len(some) == len(stages):
                    ends.append(maps)
                done += 1
                if progress is not None:
                    progress(done, total)
    cascade, single = (tuple(MapSimilarity.of(_name(some), found[_name(some)]) for some in plan_) for plan_ in plans)
    untrained = [similarity(a, b) for i, a in enumerate(ends) for b in ends[:i]]
    others = [similarity(own[i:], own[: len(own) - i]) for i in range(1, len(own))]
    between = MapSimilarity.of("two images, trained", [np.concatenate(others)]) if others else None
    return cascade, single, MapSimilarity.of("two random models", untrained), between


def _name(stages: Sequence[Stage]) -> str:
    """Return what is random: stages from the head on, or one of them alone."""
    first, last = stages[0].name, stages[-1].name
    return last if last == "head" else f"{first} to {last}" if first == "head" else f"{last} alone"


def weight_stages(view: Classifier, x: Tensor) -> list[Stage]:
    """Return the stages of a model from the head to the input: each weight belongs to exactly one.

    A stage is what runs after the stage before it in ``feature_info`` and until its own module has run.

    Args:
        view: from :func:`medzoo.inference.view.float32_view`; it is hooked for the time of the call.
        x: inputs ``b c *s``, of which one is run.
    """
    order: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            order.setdefault(name, len(order))

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in view.named_modules()]
    try:
        with torch.no_grad():
            view(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    names = [f"encoder.{info['module']}" for info in view.feature_info]
    ends = [(order[name], name) for name in names if name in order]
    members: dict[str, list[str]] = {"head": [], **{name: [] for _, name in reversed(ends)}}
    for name, module in view.named_modules():
        if any(p is not None for p in module._parameters.values()) or isinstance(module, _NORMS):
            caller = name
            while caller not in order:  # its parent used the weights itself
                caller = caller.rpartition(".")[0]
            members[next((stage for end, stage in ends if order[caller] <= end), "head")].append(name)
    return [Stage(name, tuple(modules)) for name, modules in members.items() if modules]


@torch.no_grad()
def randomise(model: Classifier, stage: Stage, generator: torch.Generator) -> None:
    """Replace the weights of a stage in place, by numbers of the generator, which is of the CPU."""
    for name in stage.modules:
        module = model.get_submodule(name)
        if isinstance(module, _NORMS):
            module.reset_parameters()  # scale 1, shift 0, mean 0, variance 1: nothing is drawn
            continue
        for parameter in module._parameters.values():
            if parameter is not None:
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.copy_(noise * parameter.square().mean().sqrt())


def _generator(seed: int, stage: int) -> torch.Generator:
    """Return a generator of its own for each stage, so that a stage is as random alone as in cascade."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, stage]).generate_state(1, np.uint32)[0]))


def _seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    given = range(check_int("check_explanation", "seeds", seeds, _LEAST)) if isinstance(seeds, int) else seeds
    found = tuple(check_int("check_explanation", "each seed", seed, 0) for seed in given)
    if len(set(found)) < max(_LEAST, len(found)):
        raise ConfigError(f"check_explanation: expected at least {_LEAST} different seeds, got {list(found)}.")
    return found


def _read(
    model: Classifier, source: Any, points: Points | None, frame: Literal["LPS", "RAS"], allow_mismatch: bool
) -> Tensor:
    """Return the inputs ``b c *s``, and warn of what is known against the images.

    Raises:
        DataError: an image cannot be used, or there is none.
    """
    work = plan(model, source, points, frame)
    reader = ImageReader(transform(model), work.images, provenance(model), allow_mismatch)
    items = [reader[i] for i in range(len(reader))]
    for item in items:
        if item.tensor is None:
            raise item.kind(item.prediction.error)
    if not items:
        raise ConfigError(f"{model.name}: expected an image or more, got none. Give files, folders or arrays.")
    reported = [item.warning for item in items if item.warning]
    if reported:
        warn(reported[0] + (f" (and {len(reported) - 1} more)" if len(reported) > 1 else ""))
    return torch.stack([item.tensor for item in items if item.tensor is not None])
