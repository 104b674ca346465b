"""A model as a folder: ``model.safetensors``, ``config.json`` and a model card in ``README.md``.

The config is data with a closed schema: it can name a registered builder and its options, and nothing that runs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medzoo.atomic import write_atomically
from medzoo.contract import InputSpec, Outputs, Preprocessing
from medzoo.errors import ConfigError, MedzooError, WeightsUnavailable, did_you_mean
from medzoo.version import __version__
from medzoo.weights.cache import digest_of
from medzoo.weights.record import LocalFile, Weights
from medzoo.weights.safetensors import parse_json

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "ModelConfig", "SavedModel", "read_folder", "save_pretrained"]

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
FORMAT = 1
NOT_STATED = "not stated"
MAX_CONFIG = 2**20
CONFIG_KEYS = {
    "format", "medzoo", "torch", "model", "options", "dtype", "input", "preprocessing", "outputs", "weights",
    "channels", "license", "trained_on", "metrics",
}  # fmt: skip
SAVED_DTYPES = {name: getattr(torch, name) for name in ("float32", "float16", "bfloat16", "float64")}
# The front matter is what the Hub reads.
CARD = """\
---
library_name: medzoo
license: {front_matter_license}
tags: [medical-imaging, image-classification]
---

# {model.name}

```python
import medzoo

model = {create}
prediction = medzoo.predict(model, "image.dcm")
```

- input: {model.input_spec}
- outputs: {model.outputs.task}
- trained on: {config[trained_on]}
- licence: {config[license]}
- weights: {config[weights][digest]}
- written by medzoo {config[medzoo]}, torch {config[torch]}

| output | trained |
|---|---|
{outputs}
| metric | value |
|---|---|
{metrics}

## Intended use and limits

For research. Not a medical device, and no output is a diagnosis. Valid only for images like its training
data, preprocessed as `config.json` states.
"""


@dataclass(frozen=True)
class ModelConfig:
    """What a model states about itself when it is saved.

    Attributes:
        name: the registered builder.
        options: all options of the builder; empty if the model was not made by :func:`medzoo.create`.
        input_spec: the input of the model.
        outputs: the meaning of its outputs.
        preprocessing: how a file becomes an input.
        channels: meaning of each input channel, in order; empty if there is nothing to state.
        license: licence of the weights that were loaded.
        trained_on: their training data, in a sentence.
    """

    name: str
    options: Mapping[str, Any]
    input_spec: InputSpec
    outputs: Outputs
    preprocessing: Preprocessing | None
    channels: tuple[str, ...] = ()
    license: str = NOT_STATED
    trained_on: str = NOT_STATED


class SavedModel:
    """What a folder states about its model.

    Attributes:
        name: the registered builder.
        record: the weights, with the options they need and the meaning of their outputs.
        num_classes: number of outputs; 0 for a backbone.
        dtype: the dtype the model was saved in.
        input_spec: the input it was saved with.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        options = {key: _tuples(value) for key, value in config["options"].items()}
        outputs = Outputs(**_fields(config["outputs"], Outputs))
        self.name: str = config["model"]
        self.num_classes: int = options.pop("num_classes")
        self.input_spec = InputSpec(**_fields(config["input"], InputSpec))
        self.dtype = SAVED_DTYPES[config["dtype"]]
        has_head = self.num_classes > 0
        self.record = Weights(
            tag=str(folder),
            source=LocalFile((folder / WEIGHTS_FILE).absolute()),
            digest=str(config["weights"]["digest"]),
            size=int(config["weights"]["size"]),
            license=str(config["license"]),
            citation="",
            trained_on=str(config["trained_on"]),
            part="model" if has_head else "encoder",
            in_chans=options.pop("in_chans"),
            channels=tuple(map(str, config["channels"])),
            labels=outputs.labels,
            task=outputs.task if has_head else None,
            thresholds=outputs.thresholds,
            normalised=outputs.normalised,
            trained=outputs.trained,
            preprocessing=Preprocessing(**_fields(config["preprocessing"], Preprocessing)),
            metrics=dict(config["metrics"]),
            options=options,
        )


def save_pretrained(
    tensors: Mapping[str, Tensor],
    model: ModelConfig,
    folder: str | os.PathLike[str],
    *,
    license: str | None = None,
    trained_on: str | None = None,
    metrics: Mapping[str, float] | None = None,
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
        name: what the example in the model card passes to :func:`medzoo.create`.

    Returns:
        The folder.

    Raises:
        ConfigError: the model is not registered, has no preprocessing, or has parameters or buffers of
            several dtypes.
        WeightsUnavailable: the folder cannot be written.
    """
    from safetensors.torch import save

    if not model.options or model.preprocessing is None:
        raise ConfigError(
            f"{model.name}: expected a model from medzoo.create, with a registered name and preprocessing. Register "
            "its builder, or save model.state_dict() with safetensors."
        )
    found = {t.dtype for t in tensors.values() if t.is_floating_point() or t.is_complex()}
    dtypes = sorted(str(dtype).removeprefix("torch.") for dtype in found)
    if len(dtypes) > 1:
        raise ConfigError(
            f"{model.name}: expected parameters and buffers of one dtype, got {', '.join(dtypes)}, which would not be "
            "restored bit for bit. Cast the model to one with model.to(...)."
        )
    data = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
    config = {
        "format": FORMAT,
        "medzoo": __version__,
        "torch": str(torch.__version__),
        "model": model.name,
        "options": model.options,
        "dtype": dtypes[0],
        "input": asdict(model.input_spec),
        "preprocessing": asdict(model.preprocessing),
        "outputs": asdict(model.outputs),
        "weights": {"file": WEIGHTS_FILE, "digest": digest_of(data), "size": len(data)},
        "channels": model.channels,
        "license": license or model.license,
        "trained_on": trained_on or model.trained_on,
        "metrics": dict(metrics or {}),
    }
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / WEIGHTS_FILE, data)
        write_atomically(target / CONFIG_FILE, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
        write_atomically(target / CARD_FILE, _card(model, config, name).encode())
    except OSError as error:
        raise WeightsUnavailable(
            f"{target}: the model cannot be written ({error.strerror or error}). Check the path, its permissions and "
            "the free space."
        ) from error
    return target


def read_folder(folder: str | os.PathLike[str]) -> SavedModel:
    """Return what a folder of :func:`save_pretrained` states; its weights are not read yet.

    Raises:
        WeightsUnavailable: there is no such folder or no config in it.
        ConfigError: the config is not medzoo's, or of a newer medzoo.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG + 1)
    except OSError as error:
        raise WeightsUnavailable(
            f"{path}: the config cannot be read ({error.strerror or error}). Give a folder that save_pretrained wrote."
        ) from error
    config = _parse_config(path, data)
    try:
        return SavedModel(config, Path(folder))
    except MedzooError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not as medzoo writes it ({error}). Save the model again.") from error


def _parse_config(path: Path, data: bytes) -> dict[str, Any]:
    """Parse the config, and check its format and keys."""
    if len(data) > MAX_CONFIG:
        raise ConfigError(f"{path}: expected at most {MAX_CONFIG:,} bytes, got more. This is not a config of medzoo.")
    try:
        config = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected JSON, got other text ({error}). Save the model again.") from error
    if not isinstance(config, dict) or "format" not in config:
        raise ConfigError(f"{path}: expected a config that medzoo wrote, got another. Only its own can be loaded.")
    if config["format"] != FORMAT:
        raise ConfigError(
            f"{path}: it was written by medzoo {config.get('medzoo')}, in format {config['format']!r}; this is medzoo "
            f"{__version__}, which reads format {FORMAT}. Upgrade medzoo."
        )
    # Older folders lack these.
    config.setdefault("channels", [])
    if isinstance(config.get("outputs"), dict):
        config["outputs"].setdefault("normalised", False)
    unknown, missing = config.keys() - CONFIG_KEYS, CONFIG_KEYS - config.keys()
    if unknown or missing:
        key = sorted(unknown or missing)[0]
        problem = f"no key {key!r} is known.{did_you_mean(key, CONFIG_KEYS)}" if unknown else f"{key!r} is missing."
        raise ConfigError(f"{path}: {problem} Save the model again.")
    return config


def _tuples(value: Any) -> Any:
    """Turn JSON's lists back into tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _fields(values: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Return the arguments of a dataclass after checking that they are exactly its fields."""
    names = {field.name for field in fields(kind)}
    if values.keys() != names:
        odd = sorted(values.keys() ^ names)[0]
        raise ValueError(f"{kind.__name__} and its field {odd!r}")
    return {name: _tuples(value) for name, value in values.items()}


def _card(model: ModelConfig, config: Mapping[str, Any], name: str) -> str:
    """Return the model card."""
    trained = zip(model.outputs.labels, model.outputs.trained, strict=True)
    licence = config["license"] if config["license"] != NOT_STATED else "other"
    return CARD.format(
        config=config,
        model=model,
        front_matter_license=json.dumps(licence.lower()),
        create=f'medzoo.create("{name}")' + ("  # the folder of this file" if "FOLDER" in name else ""),
        outputs="".join(f"| {label} | {'yes' if ok else '**no**'} |\n" for label, ok in trained),
        metrics="\n".join(f"| {metric} | {value} |" for metric, value in config["metrics"].items())
        or "| none given | |",
    )
