"""A model as a folder: ``model.safetensors``, ``config.json`` and a model card in ``README.md``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from medzoo.atomic import write_atomically
from medzoo.contract import Outputs
from medzoo.errors import ConfigError, WeightsUnavailable
from medzoo.provenance import IntendedUse
from medzoo.weights.cache import digest_of
from medzoo.weights.config import CONFIG_FILE, ModelConfig, read_folder
from medzoo.weights.formats import NOT_STATED, WEIGHTS_FILE

__all__ = ["add_metrics", "config_file", "save_pretrained", "weight_file"]

CARD_FILE = "README.md"
METRICS_TABLE = re.compile(r"(^\| metric \| value \|\n\|---\|---\|\n)(?:\|.*\n)*", re.MULTILINE)
# The front matter is what the Hub reads.
CARD = """\
---
library_name: medzoo
license: {front_matter_license}
tags: [medical-imaging, image-classification]
---

# {model.name}

{caution}```python
import medzoo

model = {create}
prediction = medzoo.predict(model, "image.dcm")
```

- input: {model.input_spec}
- outputs: {model.outputs.task}
- made for: {made_for}
- trained on: {config[trained_on]}
- licence: {config[license]}
- weights: {config[weights][digest]}
{statements}- written by medzoo {config[medzoo]}, torch {config[torch]}

{outputs}

| metric | value |
|---|---|
{metrics}

## Intended use and limits

For research. Not a medical device, and no output is a diagnosis. Valid only for images like its training
data, preprocessed as `config.json` states.
"""


def save_pretrained(
    tensors: Mapping[str, Tensor],
    model: ModelConfig,
    folder: str | os.PathLike[str],
    *,
    license: str | None = None,
    trained_on: str | None = None,
    metrics: Mapping[str, float] | None = None,
    intended_use: IntendedUse | None = None,
    name: str = "local-dir:FOLDER",
) -> Path:
    """Write a model into a folder that ``medzoo.create("local-dir:FOLDER")`` restores bit for bit.

    Each file is written completely or not at all.

    Args:
        tensors: the state dict of the model.
        model: what the model states about itself.
        folder: created if it does not exist.
        license: SPDX identifier of the licence of the weights; ``None`` is that of the weights that were loaded.
        trained_on: the training data, in a sentence; ``None`` likewise.
        metrics: figures to publish with the weights.
        intended_use: the images and patients they are for; ``None`` is that of the weights that were loaded.
        name: what the example in the model card passes to :func:`medzoo.create`.

    Returns:
        The folder.

    Raises:
        ConfigError: the model is not registered, has no preprocessing, or has parameters or buffers of
            several dtypes.
        WeightsUnavailable: the folder cannot be written.
    """
    if not model.options or model.preprocessing is None:
        raise ConfigError(
            f"{model.name}: expected a model from medzoo.create, with a registered name and preprocessing. Register "
            "its builder, or save model.state_dict() with safetensors."
        )
    data, dtype = weight_file(tensors, model.name)
    stated = replace(
        model,
        license=license or model.license,
        trained_on=trained_on or model.trained_on,
        intended_use=intended_use or model.intended_use,
    )
    config = stated.to_json(dtype=dtype, digest=digest_of(data), size=len(data), metrics=metrics or {})
    # All of it before the first write: a folder that exists stays valid if something cannot be written down.
    try:
        written = config_file(config)
        card = _card(stated, config, name).encode()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"{model.name}: expected options, statements and metrics of plain numbers and texts, got one that JSON "
            f"cannot hold ({error}). Convert it, such as with float(...)."
        ) from error
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name_of_file, content in ((WEIGHTS_FILE, data), (CONFIG_FILE, written), (CARD_FILE, card)):
            write_atomically(target / name_of_file, content)
    except OSError as error:
        raise WeightsUnavailable(
            f"{target}: the model cannot be written ({error.strerror or error}). Check the path, its permissions and "
            "the free space."
        ) from error
    return target


def weight_file(tensors: Mapping[str, Tensor], who: str) -> tuple[bytes, str]:
    """Return the bytes of the weight file of a state dict, and its dtype, such as ``"float32"``.

    Raises:
        ConfigError: parameters or buffers of several dtypes.
    """
    from safetensors.torch import save

    found = {t.dtype for t in tensors.values() if t.is_floating_point() or t.is_complex()}
    dtypes = sorted(str(dtype).removeprefix("torch.") for dtype in found)
    if len(dtypes) > 1:
        raise ConfigError(
            f"{who}: expected parameters and buffers of one dtype, got {', '.join(dtypes)}, which would not be "
            "restored bit for bit. Cast the model to one with model.to(...)."
        )
    return save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}), dtypes[0]


def config_file(config: Mapping[str, Any]) -> bytes:
    """Return the bytes of ``config.json``.

    Raises:
        TypeError, ValueError: something that JSON cannot hold.
    """
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def add_metrics(folder: str | os.PathLike[str], metrics: Mapping[str, float]) -> None:
    """Add figures to a saved model: to its config, and to the table of its card, of which nothing else changes.

    Args:
        folder: of :func:`save_pretrained`.
        metrics: figures by name; those that are there already are replaced.

    Raises:
        ConfigError: the config is not medzoo's.
        WeightsUnavailable: there is none, or it cannot be written.
    """
    target = Path(folder)
    read_folder(target)  # raises for another config
    config = json.loads((target / CONFIG_FILE).read_text("utf-8"))
    config["metrics"] = {**config["metrics"], **{n: v if isinstance(v, int) else float(v) for n, v in metrics.items()}}
    files = {CONFIG_FILE: config_file(config)}
    card = target / CARD_FILE
    try:
        if card.is_file():
            text = card.read_text("utf-8")
            rows = _metric_rows(config["metrics"])
            files[CARD_FILE] = METRICS_TABLE.sub(lambda found: found[1] + rows + "\n", text, count=1).encode()
        for name, content in files.items():
            write_atomically(target / name, content)
    except OSError as error:
        raise WeightsUnavailable(
            f"{target}: the figures cannot be written ({error.strerror or error}). Check its permissions and the free "
            "space."
        ) from error


def _metric_rows(metrics: Mapping[str, float]) -> str:
    return "\n".join(f"| {_plain(metric)} | {value} |" for metric, value in metrics.items()) or "| none given | |"


def _card(model: ModelConfig, config: Mapping[str, Any], name: str) -> str:
    """Return the model card."""
    outputs, shown = model.outputs, [_plain(label) for label in model.outputs.labels]
    columns = [("output", shown), ("trained", ["yes" if ok else "**no**" for ok in outputs.trained])]
    policy, stated = outputs.policy, [("threshold", outputs.thresholds)]
    if policy is not None:
        stated += [("sensitivity there", policy.sensitivity), ("specificity there", policy.specificity)]
    weighted = "loss weighted by" if outputs.task == "multiclass" else "loss weighted positives by"
    stated += [("prevalence in training", outputs.prevalence), (weighted, outputs.loss_weights)]
    columns += [
        (title, ["none" if value is None else f"{value:.4g}" for value in values]) for title, values in stated if values
    ]
    table = [
        [title for title, _ in columns],
        ["---"] * len(columns),
        *zip(*(values for _, values in columns), strict=True),
    ]
    licence = config["license"] if config["license"] != NOT_STATED else "other"
    return CARD.format(
        config=config,
        caution=f"> **{_plain(outputs.caution)}**\n\n" if outputs.caution else "",
        made_for=_plain(str(model.intended_use)) or NOT_STATED,
        model=model,
        front_matter_license=json.dumps(licence.lower()),
        create=f'medzoo.create("{name}")' + ("  # the folder of this file" if "FOLDER" in name else ""),
        outputs="\n".join(f"| {' | '.join(row)} |" for row in table if shown),
        statements="".join(f"- {line}\n" for line in _statements(outputs)),
        metrics=_metric_rows(config["metrics"]),
    )


def _statements(outputs: Outputs) -> Iterator[str]:
    """Yield how thresholds and probabilities came to be, as far as that is stated."""
    policy, calibration = outputs.policy, outputs.calibration
    if policy is not None and any(outputs.decided):
        split = f", chosen on {_plain(policy.split)}" if policy.split else ""
        yield f"thresholds: {_plain(policy.rule)}{split}"
        if policy.sensitivity or policy.specificity:
            yield "sensitivity and specificity there are of the data that the thresholds were chosen on: optimistic"
    if not all(outputs.decided):
        yield "threshold none: none was chosen, and the output is called neither positive nor negative"
    if calibration is not None:
        split = f", fitted on {_plain(calibration.split)}" if calibration.split else ""
        yield f"calibration, part of the weights: {_plain(calibration.method)}{split}"
    elif any(weight != 1 for weight in outputs.loss_weights):
        yield "the loss was weighted, and no calibration undoes it: probabilities are not those of the training data"


def _plain(text: str) -> str:
    """Return a text in one line, without what Markdown takes for a cell or a heading."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
