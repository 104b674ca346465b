"""``recipe_script``: a recipe as a Lightning script of its own, with its values written out, to be read and edited.

On a CPU the script gives the weights that :func:`medzoo.train` gives by the recipe, bit for bit. What it takes from the
package is public; see docs/api.md.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medzoo.errors import ConfigError
from medzoo.registry import describe
from medzoo.training.frozen import phases
from medzoo.training.recipe import AugmentSection, Recipe
from medzoo.training.recipe_files import write_new
from medzoo.training.recipe_types import Section
from medzoo.training.setup import builder_options, preprocessing_changes
from medzoo.training.source import label_options, source_choices

__all__ = ["recipe_script", "write_script"]

WIDTH = 120
LOADED = ("local-dir:", "hf-hub:")


def write_script(source: str, path: str | os.PathLike[str]) -> Path:
    """Write the script of a recipe to a new file.

    Args:
        source: a recipe of the package by its name, or a file.
        path: of the script.

    Raises:
        ConfigError: no such recipe, or the file exists or cannot be written.
    """
    to = Path(path)
    if to.suffix != ".py":
        raise ConfigError(f"{to}: expected a file name ending in .py. Write {to.with_suffix('.py')}.")
    return write_new(to, recipe_script(Recipe.load(source), source))


def recipe_script(recipe: Recipe, source: str) -> str:
    """Return the script, formatted.

    Args:
        recipe: any recipe.
        source: how ``medzoo train`` is given the recipe: its name, or its file.
    """
    parts = phases(recipe)
    blocks = [
        _imports(recipe, parts),
        _settings(recipe),
        ["", *_read_table(recipe)],
        ["", *_fit(recipe)],
        ["", *_main(recipe, parts)],
        ["", 'if __name__ == "__main__":', "    main()"],
    ]
    head = [
        '"""Trains a classifier of medical images: python THIS.py DATA TO [--root FOLDER]."""',
        *_comment(f"Made by medzoo recipes copy, from the recipe {source}: {recipe.description or 'no description'}."),
        *_comment(
            "On a CPU it gives the weights of medzoo train by that recipe, bit for bit, until it is edited: on the "
            "same machine, with the same versions and number of threads."
        ),
    ]
    return "\n\n".join("\n".join(block) for block in (head, *blocks)) + "\n"


def _imports(recipe: Recipe, parts: tuple[Recipe, ...]) -> list[str]:
    """Return the imports, sorted; each name is used below."""
    stops = recipe.train.stop_after is not None
    cached = any(part.train.freeze == "features" for part in parts)
    return [
        "import argparse",
        *(["from dataclasses import replace"] if preprocessing_changes(recipe.data) else []),
        "from pathlib import Path",
        "",
        "import lightning.pytorch as pl",
        "import medzoo",
        "import numpy as np",
        "import torch",
        *(["from lightning.pytorch.callbacks import EarlyStopping"] if stops else []),
        "from lightning.pytorch.loggers import CSVLogger",
        "from medzoo.training.decide import decide",
        *(["from medzoo.training.ema import AveragedWeights"] if recipe.train.ema else []),
        *(["from medzoo.training.frozen import FeatureStore"] if cached else []),
        "from medzoo.training.losses import loss_from_recipe",
        "from medzoo.training.recipe import DecideSection, LossSection, OptimizerSection, ScheduleSection",
        "from medzoo.transforms.augment import row_seed",
    ]


def _settings(recipe: Recipe) -> list[str]:
    how = recipe.train
    lines = [f"SEED, BATCH = {how.seed}, {how.batch}"]
    if how.device == "auto":
        lines.append('DEVICE = "cuda" if torch.cuda.is_available() else "cpu"')
    else:
        lines.append(f"DEVICE = {_value(how.device)}")
    names = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    if how.precision != "auto":
        lines.append(f"PRECISION = {_value(names[how.precision])}")
    elif how.device == "cpu":
        lines.append('PRECISION = "32-true"')
    else:
        lines.append('FAST = DEVICE != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)')
        lines.append('PRECISION = "bf16-mixed" if FAST else "32-true"')
    return lines


def _read_table(recipe: Recipe) -> list[str]:
    """Return the function that reads the table of whatever path is given."""
    how = recipe.data
    labels: dict[str, Any] = _given(label_options(how), label_options(type(how)()))
    lines = ["def read_table(data: Path, root: Path | None) -> medzoo.Table:"]
    lines.append('    """Read images, labels and patients, one row per image; no image is opened yet."""')
    if labels:
        lines += _assign("    labels = ", "", labels)
    more = {"**labels": None} if labels else {}
    if how.key is not None:
        patient = {"patient": how.patient or "PatientID"}
        rest = {"key": how.key, "label": how.label, **patient, "choose": how.choose, "unmatched": how.unmatched}
        return [*lines, *_call("    return ", "medzoo.Table.from_dicom", ["root", "data"], {**rest, **more})]
    columns = _set({"image": how.image, "label": how.label, "patient": how.patient, "point": how.point})
    columns |= {"points_frame": how.points_frame} if how.point else {}
    columns |= {} if how.duplicates == "refuse" else {"duplicates": how.duplicates}
    lines.append('    if data.suffix.lower() in (".csv", ".tsv"):')
    root = {"root": _Code("root")}
    lines += _call("        return ", "medzoo.Table.from_csv", ["data"], {**root, **columns, **more})
    lines.append('    if data.suffix.lower() == ".npz":')
    patient = _set({"patient": how.patient})
    lines += _call("        return ", "medzoo.Table.from_npz", ["data"], {**patient, **more})
    if how.source == "table":
        return [*lines, *_call("    return ", "medzoo.Table.from_folder", ["data"], {**patient, **more})]
    choices = _given(source_choices(how), source_choices(type(how)()))
    return [*lines, *_call("    return ", "medzoo.Table.from_source", [_value(how.source), "data"], choices)]


def _fit(recipe: Recipe) -> list[str]:
    """Return the function that trains a model once, with the loop of Lightning."""
    how = recipe.train
    callbacks = [f"AveragedWeights({how.ema})"] if how.ema else []
    if how.stop_after is not None:
        mode = "min" if how.monitor == "valid_loss" else "max"
        callbacks.append(f'EarlyStopping("{how.monitor}", patience={how.stop_after}, mode="{mode}")')
    task = {
        "loss": _Code("loss"),
        "optimizer": _Code(f"OptimizerSection({_fields(recipe.optimizer, but=('lr', 'clip'))}, lr=lr)"),
        "schedule": _Code(_section(recipe.schedule)),
        "freeze": _Code("freeze"),
        "batchnorm": how.batchnorm,
    }
    trainer = {
        "max_epochs": _Code("epochs"),
        "accelerator": _Code('"cpu" if DEVICE == "cpu" else "gpu"'),
        "devices": [int(how.device.partition(":")[2])] if ":" in how.device else 1,
        "precision": _Code("PRECISION"),
        "callbacks": _Code(f"[{', '.join(callbacks)}]"),
        **({"accumulate_grad_batches": how.accumulate} if how.accumulate > 1 else {}),
        **({"gradient_clip_val": recipe.optimizer.clip} if recipe.optimizer.clip is not None else {}),
        "logger": _Code("CSVLogger(to)"),
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    threads = [f"    torch.set_num_threads({how.threads})"] if how.threads else []
    return [
        "def fit(model, data, to: Path, *, epochs: int, lr: float, freeze: str) -> medzoo.ClassificationTask:",
        '    """Train the model in place, and return the task, which has the predictions of the validation part."""',
        "    table, part = data.split.table, data.split.train",
        *_call("    loss = ", "loss_from_recipe", [_section(recipe.loss), "table.task", "part"], {}),
        *_call("    task = ", "medzoo.ClassificationTask", ["model.train()"], task, long=True),
        "    # A second run gives the same bits on a CPU; on CUDA a few operations have no such implementation.",
        '    torch.use_deterministic_algorithms(True, warn_only=DEVICE != "cpu")',
        *threads,
        '    torch.manual_seed(row_seed(SEED, 0, "training"))',
        *_call("    trainer = ", "pl.Trainer", [], trainer, long=True),
        "    trainer.fit(task, datamodule=data)",
        "    return task",
    ]


def _main(recipe: Recipe, parts: tuple[Recipe, ...]) -> list[str]:
    decide = f"DecideSection({_fields(recipe.decide, but=('baseline',))})"
    relaid = "torch.contiguous_format" if _channels_last(recipe) else None
    return [
        "def main() -> None:",
        '    """Read, split, train, decide, save."""',
        "    parser = argparse.ArgumentParser(description=__doc__)",
        '    parser.add_argument("data", type=Path, help="a .csv, .tsv or .npz file, or a folder")',
        '    parser.add_argument("to", type=Path, help="a new folder, for the log and the model")',
        '    parser.add_argument("--root", type=Path, help="folder of the images of a table; else that of the file")',
        "    given = parser.parse_args()",
        "    given.to.mkdir(parents=True)",
        "    table = read_table(given.data, given.root)",
        "",
        "    # The model, and how an image becomes its input; the random initial weights follow from the seed.",
        "    torch.manual_seed(SEED)",
        *_model(recipe),
        "",
        "    # Images are read once. No patient and no image is in two parts.",
        *_pixels(recipe),
        *_split(recipe),
        *_data(recipe),
        "",
        *_phases(parts),
        "",
        "    # Decided on the validation part: a calibration, which is folded into the last layer, and thresholds.",
        f"    model.cpu(){f'.to(memory_format={relaid})' if relaid else ''}.eval()",
        "    model.set_outputs(labels=table.labels, task=table.task)",
        "    prevalence = tuple(np.nanmean(table.targets[split.train.rows], axis=0, dtype=float).tolist())",
        *_call(
            "    ", "decide", ["model", decide, "table", "task.predictions"],
            {"prevalence": _Code("prevalence"), "loss_weights": _Code("task.loss.relative_weights")},
        ),
        '    model.save_pretrained(given.to / "model")',
    ]  # fmt: skip


def _channels_last(recipe: Recipe) -> bool:
    """Whether the training may lay out weights channels last: in 2D on a GPU, but not in float32."""
    how, name = recipe.train, recipe.model.name
    flat = name.startswith(LOADED) or describe(name).input_spec.dims == 2
    return flat and how.device != "cpu" and how.precision != "float32"


def _model(recipe: Recipe) -> list[str]:
    """Return the lines that make the model, as :func:`~medzoo.training.setup.build_model` does."""
    name, options = recipe.model.name, dict(recipe.model.options)
    if recipe.data.size is not None and "size" in builder_options(name):
        options.setdefault("size", recipe.data.size)
    given = _set({"pretrained": recipe.model.pretrained or None, "in_chans": recipe.model.in_chans}) | options
    outputs = {"labels": _Code("table.labels"), "task": _Code("table.task")}
    if name.startswith(LOADED):
        lines = [
            *_call("    model = ", "medzoo.create", [_value(name)], given),
            "    if (model.outputs.labels, model.outputs.task) != (table.labels, table.task):",
            "        model.reset_classifier(len(table.labels))",
            "        model.set_outputs(labels=table.labels, task=table.task, trained=False)",
        ]
    else:
        lines = _call("    model = ", "medzoo.create", [_value(name)], {**given, **outputs})
    changes = preprocessing_changes(recipe.data)
    size = changes.get("size")
    if isinstance(size, int):
        known = not name.startswith(LOADED)
        sides = (size,) * describe(name).input_spec.dims if known else None
        changes["size"] = sides or _Code(f"({size},) * len(model.preprocessing.size)")
    if changes:
        lines += _call("    model.preprocessing = ", "replace", ["model.preprocessing"], changes)
    if _channels_last(recipe):
        flat = "" if not name.startswith(LOADED) else " and len(model.preprocessing.size) == 2"
        lines.append(f'    if DEVICE != "cpu" and PRECISION != "32-true"{flat}:')
        lines.append("        model.to(memory_format=torch.channels_last)")
    return lines


def _pixels(recipe: Recipe) -> list[str]:
    how = recipe.data
    options: dict[str, Any] = {"cache": how.cache}
    options |= {} if how.unreadable == "refuse" else {"unreadable": how.unreadable}
    options |= {"allow_mismatch": True} if how.allow_mismatch else {}
    return _call("    pixels = ", "medzoo.PixelStore", ["table", "medzoo.transform(model)"], options)


def _split(recipe: Recipe) -> list[str]:
    how = recipe.split
    groups = {} if recipe.data.patient_groups else {"patient_groups": False}
    common: dict[str, Any] = {"seed": how.seed, "draws": how.draws, **groups, "pixels": _Code("pixels")}
    given = {"on_leak": how.on_leak, "valid": how.shares[1]}
    if how.column is not None:
        name, arguments, options = "split_from_column", [_value(how.column)], {**given, **common}
    elif how.leave_out is not None:
        ((column, values),) = how.leave_out.items()
        name, arguments, options = "leave_out", [_value(column), _value(list(values))], {**given, **common}
    elif how.folds is not None:
        name, arguments, options = "folds", [str(how.folds)], {"on_leak": how.on_leak, **common}
    else:
        name, arguments, options = "choose_split", [], {"shares": how.shares, **common}
    lines = _call("    split = ", f"medzoo.{name}", ["table", *arguments], options)
    if how.folds is not None:
        lines[-1] += f"[{how.fold}]"
    return lines


def _data(recipe: Recipe) -> list[str]:
    values = _given(recipe.augment.model_dump(), AugmentSection().model_dump())
    lines, augmenter = [], {}
    if values:
        lines = _call("    augment = ", "medzoo.Augmentation", [], values)
        lines.append("    augmenter = medzoo.transform(model, train=True, augment=augment).augmenter")
        augmenter = {"augmenter": _Code("augmenter")}
    return [*lines, *_loaders("data", "pixels", recipe, augmenter)]


def _loaders(name: str, pixels: str, recipe: Recipe, more: Mapping[str, Any]) -> list[str]:
    options = {"batch_size": _Code("BATCH"), **more, "seed": _Code("SEED"), "workers": recipe.train.workers}
    return _call(f"    {name} = ", "medzoo.ImageDataModule", ["split", pixels], options)


def _phases(parts: tuple[Recipe, ...]) -> list[str]:
    """Return the lines that train: once, or the head alone and then all weights."""
    lines = []
    for number, part in enumerate(parts):
        how, data = part.train, "data"
        folder = "given.to" if number == len(parts) - 1 else 'given.to / "frozen"'
        if number:
            lines.append("    model.freeze_encoder(False)")
        if how.freeze == "features":
            lines.append("    # The encoder is frozen: its outputs are computed once, and the head is trained on them.")
            lines.append("    model.freeze_encoder()")
            lines.append("    model.to(DEVICE)")
            lines.append("    store = FeatureStore(model, pixels, split.train, split.valid)")
            lines += _loaders("features", "store", part, {})
            data = "features"
        options = {"epochs": how.epochs, "lr": part.optimizer.lr, "freeze": how.freeze}
        lines += _call("    task = ", "fit", ["model", data, folder], options)
    return lines


class _Code(str):
    """Text that is code, not a value."""


def _section(section: Section) -> str:
    return f"{type(section).__name__}({_fields(section)})"


def _fields(section: Section, but: Iterable[str] = ()) -> str:
    """Return the fields of a section as arguments, without those that are None."""
    values = {name: value for name, value in _set(section.model_dump()).items() if name not in but}
    return ", ".join(f"{name}={_value(value)}" for name, value in values.items())


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _given(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != defaults[name]}


def _comment(text: str) -> list[str]:
    """Return a text as comments; nothing in it can end one."""
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), WIDTH - 2)]


def _value(value: Any) -> str:
    """Return a plain value as code.

    >>> _value(("x", 1e-4)), _value(["a"]), _value((2,))
    ('("x", 0.0001)', '["a"]', '(2,)')
    """
    if isinstance(value, _Code):
        return str(value)
    if isinstance(value, str):
        return (
            repr(value)
            if '"' in value and "'" not in value
            else json.dumps(value, ensure_ascii=not value.isprintable())
        )
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_value(key)}: {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_value, value))}{',' * (len(value) == 1)})"
    return f"[{', '.join(map(_value, value))}]" if isinstance(value, list) else repr(value)


def _assign(before: str, after: str, value: Any) -> list[str]:
    """Return ``before value after`` in lines that are short enough, the parts of a long value in lines of their own."""
    line = f"{before}{_value(value)}{after}"
    if len(line) <= WIDTH or isinstance(value, (str, int, float)) or not value:
        return [line]
    indent = " " * (len(before) - len(before.lstrip()))
    opened, closed = ("{", "}") if isinstance(value, Mapping) else "()" if isinstance(value, tuple) else "[]"
    named = value.items() if isinstance(value, Mapping) else ((None, each) for each in value)
    lines = [f"{before}{opened}"]
    for name, each in named:
        lines += _assign(f"{indent}    {'' if name is None else f'{_value(name)}: '}", ",", each)
    return [*lines, f"{indent}{closed}{after}"]


def _call(
    before: str, name: str, arguments: Iterable[str], options: Mapping[str, Any], *, long: bool = False
) -> list[str]:
    """Return a call as a formatter lays it out: in one line, in three, or with an argument in each.

    Args:
        before: what is before the call, with the indentation.
        name: of the function.
        arguments: code.
        options: values by keyword, or ``**name``.
        long: an argument in each line in any case.
    """
    each = [*arguments, *(key if key.startswith("*") else f"{key}={_value(value)}" for key, value in options.items())]
    line = f"{before}{name}({', '.join(each)})"
    indent = " " * (len(before) - len(before.lstrip()))
    inner = f"{indent}    {', '.join(each)}"
    if len(line) <= WIDTH and not long:
        return [line]
    if len(inner) <= WIDTH and not long:
        return [f"{before}{name}(", inner, f"{indent})"]
    lines = [f"{before}{name}(", *(f"{indent}    {argument}," for argument in arguments)]
    for key, value in options.items():
        lines += [f"{indent}    {key},"] if key.startswith("*") else _assign(f"{indent}    {key}=", ",", value)
    return [*lines, f"{indent})"]
