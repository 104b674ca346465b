"""A model as a folder: ``model.safetensors``, ``config.json`` and a model card in ``README.md``.

The config is data with a closed schema. One from elsewhere can name a registered builder and its options, and nothing
that runs.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medzoo.atomic import write_atomically
from medzoo.contract import InputSpec, Outputs, Preprocessing
from medzoo.errors import ConfigError, MedzooError, WeightsUnavailable, did_you_mean
from medzoo.version import __version__
from medzoo.weights.record import LocalFile, Weights
from medzoo.weights.strict_json import parse

if TYPE_CHECKING:
    from medzoo.classifier import Classifier

__all__ = ["Saved", "read_folder", "save_pretrained"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FORMAT = 1
NOT_STATED = "not stated"
MOST_BYTES = 2**20
KEYS = {
    "format", "medzoo", "torch", "model", "options", "dtype", "input", "preprocessing", "outputs", "weights",
    "channels", "license", "trained_on", "metrics",
}  # fmt: skip
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


class Saved:
    """What a folder says of its model.

    Attributes:
        name: the registered builder.
        record: the weights, with what they need and what they mean.
        num_classes: number of outputs; 0 for a backbone.
        dtype: the precision the model was saved in.
        input_spec: the input it was saved with.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path) -> None:
        options = {key: _tuples(value) for key, value in config["options"].items()}
        outputs = Outputs(**_tuples_in(config["outputs"], Outputs))
        self.name: str = config["model"]
        self.num_classes: int = options.pop("num_classes")
        self.input_spec = InputSpec(**_tuples_in(config["input"], InputSpec))
        self.dtype = DTYPES[config["dtype"]]
        whole = self.num_classes > 0
        self.record = Weights(
            tag=str(folder),
            source=LocalFile((folder / WEIGHTS).absolute()),
            digest=str(config["weights"]["digest"]),
            size=int(config["weights"]["size"]),
            license=str(config["license"]),
            citation="",
            trained_on=str(config["trained_on"]),
            part="model" if whole else "encoder",
            in_chans=options.pop("in_chans"),
            channels=tuple(map(str, config["channels"])),
            labels=outputs.labels,
            task=outputs.task if whole else None,
            thresholds=outputs.thresholds,
            normalised=outputs.normalised,
            trained=outputs.trained,
            preprocessing=Preprocessing(**_tuples_in(config["preprocessing"], Preprocessing)),
            metrics=dict(config["metrics"]),
            options=options,
        )


def save_pretrained(
    model: Classifier,
    folder: str | os.PathLike[str],
    *,
    license: str | None = None,
    trained_on: str | None = None,
    metrics: Mapping[str, float] | None = None,
    place: str = "local-dir:FOLDER",
) -> Path:
    """Write the model into a folder that ``medzoo.create("local-dir:FOLDER")`` gives back, bit for bit.

    Each file is written whole or not at all.

    Args:
        model: made by :func:`medzoo.create`.
        folder: made if it is not there.
        license: SPDX identifier of the licence you give the weights; ``None`` is that of the weights it came from.
        trained_on: the data, in a sentence; ``None`` likewise.
        metrics: figures to publish with them.
        place: what the model card tells its reader to create.

    Raises:
        ConfigError: not a registered model, or one without a preparation.
        WeightsUnavailable: the folder cannot be written.
    """
    from safetensors.torch import save

    # Only create() tells a model its options.
    if not model.options or model.preprocessing is None:
        raise ConfigError(
            f"{model.name}: expected a model from medzoo.create, whose name and preparation a folder can hold. "
            "Register its builder, or save model.state_dict() with safetensors."
        )
    dtypes = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    if len(dtypes) > 1:
        raise ConfigError(
            f"{model.name}: expected parameters of one type, got {', '.join(sorted(dtypes))}, which would not come "
            "back bit for bit. Cast the model to one with model.to(...)."
        )
    came = model.load_report
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    config = {
        "format": FORMAT,
        "medzoo": __version__,
        "torch": str(torch.__version__),
        "model": model.name,
        "options": model.options,
        "dtype": dtypes.pop(),
        "input": asdict(model.input_spec),
        "preprocessing": asdict(model.preprocessing),
        "outputs": asdict(model.outputs),
        "weights": {"file": WEIGHTS, "digest": f"sha256:{hashlib.sha256(data).hexdigest()}", "size": len(data)},
        "channels": came.channels if came else (),
        "license": license or (came.license if came else NOT_STATED),
        "trained_on": trained_on or (came.trained_on if came else NOT_STATED),
        "metrics": dict(metrics or {}),
    }
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_atomically(target / WEIGHTS, data)
        write_atomically(target / CONFIG, (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode())
        write_atomically(target / CARD, _card(model, config, place).encode())
    except OSError as error:
        raise WeightsUnavailable(
            f"{target}: the model cannot be written ({error.strerror or error}). Check the path, its permissions and "
            "the space left."
        ) from error
    return target


def read_folder(folder: str | os.PathLike[str]) -> Saved:
    """Return what a folder of :func:`save_pretrained` says; its weights are not read yet.

    Raises:
        WeightsUnavailable: there is no such folder or no config in it.
        ConfigError: the config is not medzoo's, or a newer medzoo's.
    """
    path = Path(folder) / CONFIG
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise WeightsUnavailable(
            f"{path}: the config cannot be read ({error.strerror or error}). Give a folder that save_pretrained wrote."
        ) from error
    config = _parse(path, data)
    try:
        return Saved(config, Path(folder))
    except MedzooError:
        raise
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path}: not as medzoo writes it ({error}). Save the model again.") from error


def _parse(path: Path, data: bytes) -> dict[str, Any]:
    """Read the config, and hold it to its schema."""
    if len(data) > MOST_BYTES:
        raise ConfigError(f"{path}: expected at most {MOST_BYTES:,} bytes, got more. This is no config of medzoo's.")
    try:
        config = parse(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: expected JSON, got other text ({error}). Save the model again.") from error
    if not isinstance(config, dict) or "format" not in config:
        raise ConfigError(f"{path}: expected a config that medzoo wrote, got another. Only its own can be loaded.")
    if config["format"] != FORMAT:
        raise ConfigError(
            f"{path}: it was written by medzoo {config.get('medzoo')}, in format {config['format']!r}; this is medzoo "
            f"{__version__}, which reads {FORMAT}. Upgrade medzoo."
        )
    # Folders from before there were these.
    config.setdefault("channels", [])
    if isinstance(config.get("outputs"), dict):
        config["outputs"].setdefault("normalised", False)
    unknown, missing = config.keys() - KEYS, KEYS - config.keys()
    if unknown or missing:
        name = sorted(unknown or missing)[0]
        problem = f"no key {name!r} is known.{did_you_mean(name, KEYS)}" if unknown else f"{name!r} is missing."
        raise ConfigError(f"{path}: {problem} Save the model again.")
    return config


def _tuples(value: Any) -> Any:
    """Turn JSON's lists back into tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _tuples_in(values: Mapping[str, Any], kind: Any) -> dict[str, Any]:
    """Check that a part of the config has exactly the fields of its dataclass."""
    names = {field.name for field in fields(kind)}
    if values.keys() != names:
        odd = sorted(values.keys() ^ names)[0]
        raise ValueError(f"{kind.__name__} and its field {odd!r}")
    return {name: _tuples(value) for name, value in values.items()}


def _card(model: Classifier, config: Mapping[str, Any], place: str) -> str:
    """Return a model card with the front matter that the Hub reads."""
    outputs = [
        f"| {label} | {'yes' if ok else '**no**'} |"
        for label, ok in zip(model.outputs.labels, model.outputs.trained, strict=True)
    ]
    metrics = [f"| {name} | {value} |" for name, value in config["metrics"].items()] or ["| none given | |"]
    licence = config["license"] if config["license"] != NOT_STATED else "other"
    return "\n".join(
        [
            "---",
            "library_name: medzoo",
            f"license: {json.dumps(licence.lower())}",
            "tags: [medical-imaging, image-classification]",
            "---",
            "",
            f"# {model.name}",
            "",
            "```python",
            "import medzoo",
            "",
            f'model = medzoo.create("{place}")' + ("  # where this file lies" if "FOLDER" in place else ""),
            'prediction = medzoo.predict(model, "image.dcm")',
            "```",
            "",
            f"- input: {model.input_spec}",
            f"- outputs: {model.outputs.task}",
            f"- trained on: {config['trained_on']}",
            f"- licence: {config['license']}",
            f"- weights: {config['weights']['digest']}",
            f"- written by medzoo {config['medzoo']}, torch {config['torch']}",
            "",
            "| output | trained |",
            "|---|---|",
            *outputs,
            "",
            "| metric | value |",
            "|---|---|",
            *metrics,
            "",
            "## Intended use and limits",
            "",
            "For research. Not a medical device, and no output is a diagnosis. It knows only images like those it was",
            "trained on, prepared as `config.json` says.",
            "",
        ]
    )
