"""What a run and its model state about the training, in the words of a reporting guideline.

The recipe is read as plain values and not checked: whoever evaluates a run may have another version of medzoo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medzoo.classifier import Classifier
from medzoo.contract import Preprocessing
from medzoo.evaluation.run_record import RunRecord

__all__ = ["facts_of_model", "facts_of_run"]

_INTENSITY = {
    "unit": "the stored range is mapped to 0 to 1",
    "window": "values from {0:g} to {1:g} are mapped to 0 to 1 and clipped",
    "zscore": "the mean of the image is subtracted and the rest divided by its standard deviation",
    "zscore_nonzero": "the values above and below 0 are z-scored by channel, and zeros are kept",
}
_FIT = {"resize": "each axis is scaled", "crop": "cropped or padded around the centre",
        "square": "cropped to the central square and scaled"}  # fmt: skip
_FILTER = {"reference": "MONAI's filters", "triangle": "an antialiased triangle filter"}
_NOTHING: tuple[Any, ...] = (0, False, None, [], [1, 1])
_LOSSES = {"bce": "binary cross-entropy", "cross_entropy": "cross-entropy"}


def facts_of_model(model: Classifier) -> dict[str, str]:
    """Return the preprocessing and the intended use."""
    found = {"intended use": f"stated by the model: {model.intended_use}" if str(model.intended_use) else ""}
    if model.preprocessing is not None:
        found["preprocessing"] = _preprocessing(model.preprocessing)
    return {name: text for name, text in found.items() if text}


def _preprocessing(how: Preprocessing) -> str:
    """Return the steps in a sentence, in the order in which they run."""
    steps = []
    if how.orientation:
        steps.append(f"volumes are turned to {how.orientation}")
    if how.spacing:
        steps.append(f"resampled to {' x '.join(f'{mm:g}' for mm in how.spacing)} mm")
    steps.append(_INTENSITY[how.intensity].format(*(how.window or ())))
    if how.foreground:
        steps.append("cropped to the values above 0")
    if how.patch:
        steps.append(f"a box of {' x '.join(f'{mm:g}' for mm in how.patch)} mm around a point is taken")
    size = " x ".join(map(str, how.size))
    steps.append(f"scaled to {size}" if how.patch else f"brought to {size} ({_FIT[how.fit]})")
    if (how.spacing or how.fit == "resize") and not how.patch and len(how.size) == 3:  # other filters are not chosen
        steps.append(f"voxels are resampled by {_FILTER[how.resample]}")
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (how.mean, how.std))
    if (mean, std) != ("0", "1"):
        steps.append(f"{mean} is subtracted and the rest divided by {std}, for each channel")
    text = "; ".join(steps)
    return f"{text[:1].upper()}{text[1:]}."


def facts_of_run(record: RunRecord) -> dict[str, str]:
    """Return how the run trained, as far as its files state it."""
    import yaml

    found = _level(record)
    path = record.path / "recipe.yaml"
    if not path.is_file():
        return found
    try:
        recipe = yaml.safe_load(path.read_text("utf-8"))
        return found | _of_recipe(recipe, str(record.facts().get("task", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return found  # of another version, or changed by hand: a report is no place to refuse it


def _level(record: RunRecord) -> dict[str, str]:
    """Return what the parts of the run were drawn by."""
    parts = record.fingerprint().get("parts", {})
    if not parts:
        return {}
    known = all(part.get("patients") is not None for part in parts.values())
    return {"split level": "patients" if known else "images: the patients are not known"}


def _of_recipe(recipe: Mapping[str, Any], task: str) -> dict[str, str]:
    train, loss, optimizer = recipe["train"], recipe["loss"], recipe["optimizer"]
    pretrained, ema = recipe["model"]["pretrained"], float(train["ema"])
    initial = f"random, seed {train['seed']}"
    if pretrained:
        initial = "pretrained weights" + ("" if pretrained is True else f" {pretrained}")
        initial += ", with a new last layer where the labels differ"
    kind = loss["kind"] if loss["kind"] != "auto" else "cross_entropy" if task == "multiclass" else "bce"
    changes = [name for name, value in recipe["augment"].items() if value not in _NOTHING]
    balance = _balance(loss)
    frozen = "" if train["freeze"] == "none" else f"{train['freeze']} frozen"
    then = f", then {train['then_epochs'] or train['epochs']} of {train['then']}" if train["then"] else ""
    steps = [
        f"{train['epochs']} epoch{'s' * (train['epochs'] != 1)}{then}", frozen, f"batches of {train['batch']} images",
        f"{optimizer['kind']} with a learning rate of {optimizer['lr']:g} ({recipe['schedule']['kind']} schedule)",
        f"loss {_LOSSES[kind]}, {balance}",
        f"augmentation {', '.join(changes)}" if changes else "no augmentation",
        f"seed {train['seed']}",
    ]  # fmt: skip
    weights = "weights after the last epoch"
    if ema:
        weights = f"moving average of the weights (decay {ema:g}) after the last epoch"
    stop = f"; training stops after {train['stop_after']} epochs without a better {train['monitor']}"
    return {
        "initial parameters": initial,
        "training": f"{'; '.join(filter(None, steps))}.",
        "selection": f"{weights}, not those of the best validation{stop if train['stop_after'] else ''}.",
        "imbalance": f"Loss {balance}.",
    }


def _balance(loss: Mapping[str, Any]) -> str:
    if loss["weights"] is not None:
        return "weighted by given numbers"
    return "not weighted" if loss["balance"] == "none" else f"weighted by the balance of classes ({loss['balance']})"
