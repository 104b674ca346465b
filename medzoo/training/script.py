"""``recipe_script``: a recipe as a Lightning script of its own, with its values written out, to be read and edited.

On a CPU the script gives the weights that :func:`medzoo.train` gives by the recipe, bit for bit. What it takes from the
package is public; see docs/api.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medzoo.data.sources.catalogue import published
from medzoo.errors import ConfigError, did_you_mean
from medzoo.registry import describe
from medzoo.training.code_text import Code, assign_lines, call_lines, comment_lines, python_text
from medzoo.training.frozen import phases
from medzoo.training.recipe import AugmentSection, Recipe
from medzoo.training.recipe_files import write_new
from medzoo.training.recipe_types import Section
from medzoo.training.setup import builder_options, preprocessing_changes
from medzoo.training.source import label_options, source_choices

__all__ = ["recipe_script", "write_script"]

LOADED = ("local-dir:", "hf-hub:")
# Choices of a published set that are written out where they have their defaults: much data needs another.
CHOICES = {
    "missing": 'missing="drop" leaves out rows whose image is not there, as of a part of the set.',
    "mapping": 'mapping="FILE" is the file by which images are of patients; None takes the one in the folder.',
}
DATA, TABLE = Code("data"), Code("table")


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
    return write_new(to, recipe_script(Recipe.load(source), Path(source).name))


def recipe_script(recipe: Recipe, source: str) -> str:
    """Return the script, formatted. No text of the recipe is code in it.

    Args:
        recipe: any recipe.
        source: how ``medzoo train`` is given the recipe: its name, or its file.

    Raises:
        ConfigError: a name in ``model.options`` that is no option of the model, or no name at all.
    """
    _check_options(recipe)
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
        *comment_lines(
            f"Made by medzoo recipes copy, from the recipe {source}: {recipe.description or 'no description'}."
        ),
        *comment_lines(
            "On a CPU it gives the weights of medzoo train by that recipe, bit for bit, until it is edited: on the "
            "same machine, with the same versions and number of threads."
        ),
    ]
    return "\n\n".join("\n".join(block) for block in (head, *blocks)) + "\n"


def _check_options(recipe: Recipe) -> None:
    """Raise ConfigError unless the builder has the options; those of a saved model need only be names."""
    name, known = recipe.model.name, builder_options(recipe.model.name)
    for option in recipe.model.options:
        if option not in known and not name.startswith(LOADED):
            raise ConfigError(
                f"model.options: expected options of {name}, got {option!r}.{did_you_mean(option, known)} It has "
                f"{', '.join(known)}."
            )


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
        lines.append(f"DEVICE = {python_text(how.device)}")
    names = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    if how.precision != "auto":
        lines.append(f"PRECISION = {python_text(names[how.precision])}")
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
        lines += assign_lines("    labels = ", "", labels)
    more: dict[str, Any] = {Code("**labels"): None} if labels else {}
    if how.key is not None:
        patient = {"patient": how.patient or "PatientID"}
        rest = {"key": how.key, "label": how.label, **patient, "choose": how.choose, "unmatched": how.unmatched}
        return [*lines, *call_lines("    return ", "medzoo.Table.from_dicom", [Code("root"), DATA], {**rest, **more})]
    columns = _set({"image": how.image, "label": how.label, "patient": how.patient, "point": how.point})
    columns |= _set({"roi": how.roi})
    columns |= {"points_frame": how.points_frame} if how.point or how.roi else {}
    columns |= {} if how.duplicates == "refuse" else {"duplicates": how.duplicates}
    lines.append('    if data.suffix.lower() in (".csv", ".tsv"):')
    root = {"root": Code("root")}
    lines += call_lines("        return ", "medzoo.Table.from_csv", [DATA], {**root, **columns, **more})
    patient = _set({"patient": how.patient})
    if how.source != "medmnist":  # which is published as a file, and read as that set
        lines.append('    if data.suffix.lower() == ".npz":')
        lines += call_lines("        return ", "medzoo.Table.from_npz", [DATA], {**patient, **more})
    if how.source == "table":
        return [*lines, *call_lines("    return ", "medzoo.Table.from_folder", [DATA], {**patient, **more})]
    options, every = published(how.source).options, source_choices(how)
    asked = {name: value for name, value in every.items() if name in CHOICES and name in options}
    choices = asked | _given(every, source_choices(type(how)()))
    lines += [f"    # {CHOICES[name]}" for name in asked]
    return [*lines, *call_lines("    return ", "medzoo.Table.from_source", [how.source, DATA], choices)]


def _fit(recipe: Recipe) -> list[str]:
    """Return the function that trains a model once, with the loop of Lightning."""
    how = recipe.train
    callbacks = [f"AveragedWeights({how.ema})"] if how.ema else []
    if how.stop_after is not None:
        mode = "min" if how.monitor == "valid_loss" else "max"
        callbacks.append(f'EarlyStopping({python_text(how.monitor)}, patience={how.stop_after}, mode="{mode}")')
    task = {
        "loss": Code("loss"),
        "optimizer": Code(f"OptimizerSection({_fields(recipe.optimizer, but=('lr', 'clip'))}, lr=lr)"),
        "schedule": _section(recipe.schedule),
        "freeze": Code("freeze"),
        "batchnorm": how.batchnorm,
    }
    trainer = {
        "max_epochs": Code("epochs"),
        "accelerator": Code('"cpu" if DEVICE == "cpu" else "gpu"'),
        "devices": [int(how.device.partition(":")[2])] if ":" in how.device else 1,
        "precision": Code("PRECISION"),
        "callbacks": Code(f"[{', '.join(callbacks)}]"),
        **({"accumulate_grad_batches": how.accumulate} if how.accumulate > 1 else {}),
        **({"gradient_clip_val": recipe.optimizer.clip} if recipe.optimizer.clip is not None else {}),
        "logger": Code("CSVLogger(to)"),
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
        *call_lines("    loss = ", "loss_from_recipe", [_section(recipe.loss), Code("table.task"), Code("part")], {}),
        *call_lines("    task = ", "medzoo.ClassificationTask", [Code("model.train()")], task, long=True),
        "    # A second run gives the same bits on a CPU; on CUDA a few operations have no such implementation.",
        '    torch.use_deterministic_algorithms(True, warn_only=DEVICE != "cpu")',
        *threads,
        '    torch.manual_seed(row_seed(SEED, 0, "training"))',
        *call_lines("    trainer = ", "pl.Trainer", [], trainer, long=True),
        "    trainer.fit(task, datamodule=data)",
        "    return task",
    ]


def _main(recipe: Recipe, parts: tuple[Recipe, ...]) -> list[str]:
    decide = Code(f"DecideSection({_fields(recipe.decide, but=('baseline',))})")
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
        *call_lines(
            "    ", "decide", [Code("model"), decide, TABLE, Code("task.predictions")],
            {"prevalence": Code("prevalence"), "loss_weights": Code("task.loss.relative_weights")},
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
    outputs = {"labels": Code("table.labels"), "task": Code("table.task")}
    if name.startswith(LOADED):
        lines = [
            *call_lines("    model = ", "medzoo.create", [name], given),
            "    if (model.outputs.labels, model.outputs.task) != (table.labels, table.task):",
            "        model.reset_classifier(len(table.labels))",
            "        model.set_outputs(labels=table.labels, task=table.task, trained=False)",
        ]
    else:
        lines = call_lines("    model = ", "medzoo.create", [name], {**given, **outputs})
    changes = preprocessing_changes(recipe.data)
    size = changes.get("size")
    if isinstance(size, int):
        known = not name.startswith(LOADED)
        sides = (size,) * describe(name).input_spec.dims if known else None
        changes["size"] = sides or Code(f"({size},) * len(model.preprocessing.size)")
    if changes:
        lines += call_lines("    model.preprocessing = ", "replace", [Code("model.preprocessing")], changes)
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
    return call_lines("    pixels = ", "medzoo.PixelStore", [TABLE, Code("medzoo.transform(model)")], options)


def _split(recipe: Recipe) -> list[str]:
    how = recipe.split
    groups = {} if recipe.data.patient_groups else {"patient_groups": False}
    common: dict[str, Any] = {"seed": how.seed, "draws": how.draws, **groups, "pixels": Code("pixels")}
    given = {"on_leak": how.on_leak, "valid": how.shares[1]}
    arguments: list[Any]
    if how.column is not None:
        name, arguments, options = "split_from_column", [how.column], {**given, **common}
    elif how.leave_out is not None:
        ((column, values),) = how.leave_out.items()
        name, arguments, options = "leave_out", [column, list(values)], {**given, **common}
    elif how.folds is not None:
        name, arguments, options = "folds", [how.folds], {"on_leak": how.on_leak, **common}
    else:
        name, arguments, options = "choose_split", [], {"shares": how.shares, **common}
    lines = call_lines("    split = ", f"medzoo.{name}", [TABLE, *arguments], options)
    if how.folds is not None:
        lines[-1] += f"[{how.fold}]"
    return lines


def _data(recipe: Recipe) -> list[str]:
    values = _given(recipe.augment.model_dump(), AugmentSection().model_dump())
    lines, augmenter = [], {}
    if values:
        lines = call_lines("    augment = ", "medzoo.Augmentation", [], values)
        lines.append("    augmenter = medzoo.transform(model, train=True, augment=augment).augmenter")
        augmenter = {"augmenter": Code("augmenter")}
    return [*lines, *_loaders("data", "pixels", recipe, augmenter)]


def _loaders(name: str, pixels: str, recipe: Recipe, more: Mapping[str, Any]) -> list[str]:
    options = {"batch_size": Code("BATCH"), **more, "seed": Code("SEED"), "workers": recipe.train.workers}
    return call_lines(f"    {name} = ", "medzoo.ImageDataModule", [Code("split"), Code(pixels)], options)


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
        lines += call_lines("    task = ", "fit", [Code("model"), Code(data), Code(folder)], options)
    return lines


def _section(section: Section) -> Code:
    return Code(f"{type(section).__name__}({_fields(section)})")


def _fields(section: Section, but: Iterable[str] = ()) -> str:
    """Return the fields of a section as arguments, without those that are None."""
    values = {name: value for name, value in _set(section.model_dump()).items() if name not in but}
    return ", ".join(f"{name}={python_text(value)}" for name, value in values.items())


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _given(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != defaults[name]}
