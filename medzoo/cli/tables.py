"""Output shared by the commands: the console, tables, and errors in the terms of the command line.

rich is imported inside the functions, so that ``medzoo --help`` is quick.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import medzoo

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from medzoo.contract import Preprocessing
    from medzoo.deployment.onnx_model import OnnxModel

__all__ = [
    "cli_message", "console", "info_table", "is_onnx", "megabytes", "models_table", "next_steps", "onnx_table",
    "prediction_table", "weights_table",
]  # fmt: skip

# Advice in the errors of the Python API, and its equivalent on the command line.
ADVICE = {
    "call model.set_outputs(labels=...) after training or loading a bare file": (
        "use a model saved in Python after model.set_outputs(labels=...) (local-dir:FOLDER)"
    ),
    "pretrained=...": "NAME:TAG",
    "allow_untrained=True": "--allow-untrained",
    "allow_mismatch=True": "--allow-mismatch",
    "set model.intended_use if it was trained for such images": (
        "if it was trained for such images, save it in Python with intended_use=medzoo.IntendedUse(...)"
    ),
    "num_workers=0": "--workers 0",
    "device='cpu'": "--device cpu",
    "Check points_frame, and": "Check --points-frame, and",
    "expected points_frame 'LPS'": "expected --points-frame 'LPS'",
    "Give points=.": "Give --points FILE.",
    "Leave points out.": "Leave --points out.",
    "Choose one: frame=0.": "Split the file.",
    "Choose one with frame=0, or split the file.": "Split the file.",
    "Choose a frame of it, such as medzoo.read(path, frame=0) of a DICOM or TIFF file, or use a model with dims=3.": (
        "Use a 3D model (medzoo list --dims 3)."
    ),
    "use a model with dims=2; see medzoo.list_models(dims=2)": "use a 2D model (medzoo list --dims 2)",
    "give channel_axis=": "in Python give channel_axis=",
    "Choose one with stack=0 to": "Choose one in Python with stack=0 to",
    "allow it with max_voxels=": "read it in Python with max_voxels=",
    "read it with nan='zero'": "read it in Python with nan='zero'",
    "create it with in_chans=": "create it in Python with in_chans=",
    "such as medzoo.read(path, channel_axis=3), or an array (c, d, h, w)": "or in Python an array (c, d, h, w)",
    "Give an array (c, h, w)": "Give in Python an array (c, h, w)",
    "medzoo.show(path)": "medzoo show PATH --out check.png",
    "create the model with num_classes=0": "create the model in Python with num_classes=0",
    "Leave frame out.": "Leave --frame out.",
    "use method='occlusion'": "use --method occlusion",
    "Save the array to a .npy file, or a picture to a .png file.": "Choose --format npy or --format png.",
    "use medzoo.predict for a folder tree": "use medzoo predict for a folder tree",
    "medzoo.list_models()": "medzoo list",
}

# The only command with --frame and --stack; these come before the others.
SHOW_ADVICE = {
    "Choose one: frame=0.": "Choose one: --frame 0.",
    "with frame=0": "with --frame 0",
    "with stack=0 to": "with --stack 0 to",
}

TRAIN_ADVICE = {
    "If it is elsewhere now: Give the images again: medzoo.resume(folder, data=table), "
    "medzoo.evaluate(folder, table, part=...).": "If it is elsewhere now, start a new run.",
    "Give the images again: medzoo.resume(folder, data=table), medzoo.evaluate(folder, table, part=...).": (
        "Such a run is continued in Python, where it was started."
    ),
    "patient_groups=False": "--no-patient-groups",
    "Give the table its patients": "Give --patient-col",
    "let choose_split divide the patients": "leave --split-col out, so that patients are drawn",
    "allow_mismatch=True": "--set data.allow_mismatch=true",
    "inexact=True": "--inexact",
    "names=": "--labels",
    "root=": "--root",
    "key=": "--key",
    "train.workers=": "--workers ",
    "train.batch=": "--batch ",
    "give mapping=": "give --mapping ",
    "roi=None and patch=None": "--set data.roi=null --set data.patch=null",
    "expected roi 'seg' or None": "expected --roi seg, or --set data.roi=null --set data.patch=null",
    "data.cache=": "--cache ",
    "augment=None": "--no-augment",
    "then=None": "--then none",
    "set train.then: finetune": "add --then finetune",
    "set train.freeze: encoder": "give --freeze encoder",
}
EVALUATE_ADVICE = {
    "medzoo.resume(folder, data=table), medzoo.evaluate(folder, table, part=...)": (
        "medzoo evaluate RUN --data FILE --part test"
    ),
    '--set "data.unreadable=drop"': "--unreadable drop",
    "or prevalence=, got neither": "or --prevalence, got neither",
    "or table=": "or --data",
    "(score=)": "(--score-col)",
    "(target=)": "(--label-col)",
    "Give image= with the column": "Give --image-col with the column",
    "Give labels=": "Give --labels",
    "seen='drop'": "--seen drop",
    "Give the table.": "Give --data.",
    "Leave part out.": "Leave --part out.",
    "Give prevalence=, such as prevalence=0.05.": "Give --prevalence, such as --prevalence 0.05.",
    "scale='logit'": "--scale logit",
    "thresholds=": "--threshold",
    "score=": "--score-col",
    "target=": "--label-col",
    "patient=": "--patient-col",
    "partial=True": "in Python partial=True",
    **TRAIN_ADVICE,
}
# Arguments of Python that are options, and fields of the recipe without an option of their own.
OPTION = re.compile(r"\b(uncertain|task|cache|on_leak|missing|roi|source)='([\w-]+)'")
FIELD = re.compile(
    r"\b(unreadable|duplicates|unmatched|others|blank|choose|positive|sep|sequence|same_person)='([^']+)'"
)
COLUMN = re.compile(r"\((label|patient|image)=\)")
NOT_TAKEN = re.compile(r"from_source\('(\w+)'\): it does not take (\w+)\. It takes ([\w, ]+)\.")
OPTION_OF_SETS = ("missing", "findings", "mapping", "negatives", "roi")
RESUME = re.compile(r"medzoo\.resume\((?!folder, data=)([^)]+)\)")
EXPORT_ADVICE = {
    "overwrite=True": "--overwrite",
    "larger tolerance=": "larger --tolerance",
    "Another opset= may help": "Another --opset may help",
    "Use opset=": "Use --opset ",
    "another with size=": "another with --size",
    "create it with num_classes=0": "create it in Python with num_classes=0",
}
_OWN_ADVICE = {
    "show": SHOW_ADVICE, "check": TRAIN_ADVICE, "train": TRAIN_ADVICE, "evaluate": EVALUATE_ADVICE,
    "recalibrate": EVALUATE_ADVICE, "export": EXPORT_ADVICE,
    "froc": {"missing='drop'": "--missing drop", "Leave it out.": "Leave --part out."},
    "sweep": {"The same call continues": "The same command continues", **TRAIN_ADVICE},
}  # fmt: skip


def console() -> Console:
    """Return a console; output to a pipe or file is 160 columns wide instead of 80."""
    from rich.console import Console

    return Console(width=None if sys.stdout is not None and sys.stdout.isatty() else 160)


def cli_message(error: object, command: str | None = None) -> str:
    """Return the text of an error with its advice in the terms of the command line.

    >>> cli_message("a.png: Use fewer workers (num_workers=0).")
    'a.png: Use fewer workers (--workers 0).'
    """
    text = str(error)
    if command in _OWN_ADVICE.keys() - {"show"}:
        text = RESUME.sub(lambda found: f"medzoo train --resume {found[1].strip(chr(39))}", text)
        text = OPTION.sub(lambda found: f"--{found[1].replace('_', '-')} {found[2]}", text)
        text = NOT_TAKEN.sub(_not_taken, text)
        text = COLUMN.sub(r"(--\1-col)", text)
        text = FIELD.sub(r'--set "data.\1=\2"', text)
    own = _OWN_ADVICE.get(command or "", {})
    for python, cli in (*own.items(), *ADVICE.items()):
        text = text.replace(python, cli)
    return text


def _not_taken(found: re.Match[str]) -> str:
    """Return that a published set does not take an option, by the names of the command line."""
    names = [found[2], *([] if found[3] == "no options" else found[3].split(", "))]
    first, *rest = (f"--{name}" if name in OPTION_OF_SETS else f"--set data.{name}=…" for name in names)
    return f"the published set {found[1]} does not take {first}. It takes {', '.join(rest) or 'no options'}."


def next_steps(run: Path, preprocessing: Preprocessing | None) -> str:
    """Return what to do with a finished run, as it can be pasted.

    >>> next_steps(Path("my runs/a"), None)
    "Next: medzoo evaluate 'my runs/a', or medzoo predict 'local-dir:my runs/a/model' IMAGE"
    """
    of_patches = preprocessing is not None and preprocessing.patch is not None
    what, model = "SCAN --points points.csv" if of_patches else "IMAGE", shlex.quote(f"local-dir:{run / 'model'}")
    return f"Next: medzoo evaluate {shlex.quote(str(run))}, or medzoo predict {model} {what}"


def models_table(names: list[str]) -> Table:
    """Return a table with one row per model."""
    from rich.table import Table

    table = Table("model", "input", "outputs", "parameters", "weights", "description")
    for name in names:
        spec = medzoo.describe(name)
        outputs = f"{len(spec.outputs.labels)} {spec.outputs.task}"
        tags = ", ".join(spec.weights) or "–"
        table.add_row(name, _shape(spec.input_spec), outputs, f"{spec.parameters:,}", tags, spec.summary)
    return table


def info_table(name: str) -> Table:
    """Return a table with the registry's facts about one model."""
    from rich.table import Table

    spec = medzoo.describe(name)
    table = Table(title=name, show_header=False, title_justify="left")
    table.add_row("description", spec.summary)
    table.add_row("input", f"{spec.input_spec}; default {_shape(spec.input_spec)}")
    table.add_row("outputs", f"{spec.outputs.task}: {', '.join(spec.outputs.labels)}")
    table.add_row("preprocessing", _steps(spec.preprocessing))
    table.add_row("made for", str(spec.intended_use) or "any image")
    table.add_row("parameters", f"{spec.parameters:,}")
    table.add_row("options", ", ".join(f"{key}={value!r}" for key, value in spec.options.items()))
    table.add_row("weights", ", ".join(spec.weights) or "none yet")
    table.add_row("activation maps", spec.cam_layer)
    table.add_row("source", spec.source)
    table.add_row("citation", spec.citation)
    return table


def is_onnx(name: str) -> bool:
    """Whether a name is the path of an ONNX file."""
    return name.lower().endswith(".onnx")


def onnx_table(model: OnnxModel) -> Table:
    """Return a table with what an exported file states about itself."""
    from rich.markup import escape
    from rich.table import Table

    outputs, facts = model.outputs, model.provenance
    limits = outputs.thresholds or (None,) * len(outputs.labels)
    named = [
        label + ("" if limit is None else f" (from {limit:.3g})") + ("" if trained else " (untrained)")
        for label, limit, trained in zip(outputs.labels, limits, outputs.trained, strict=True)
    ]
    table = Table(title=escape(str(model.path)), show_header=False, title_justify="left")
    for name, value in (
        ("file", f"{megabytes(model.path.stat().st_size)}, {model.digest}"),
        ("model", model.name),
        ("weights", facts["weights"] + (f" ({facts['digest']})" if facts["digest"] != "none" else "")),
        ("input", str(model.input_spec)),
        ("outputs", f"{outputs.task}: {', '.join(named)}"),
        ("preprocessing", _steps(model.preprocessing)),
        ("made for", str(model.intended_use) or "any image"),
        ("licence", model.license),
        ("trained on", model.trained_on),
        ("engine", f"{model.engine}, {model.threads} threads"),
        *((("caution", outputs.caution),) if outputs.caution else ()),
    ):
        table.add_row(name, escape(value))
    return table


def weights_table(names: list[str], license_: str | None = None, trained: bool = False) -> Table:
    """Return a table with one row per set of weights of some models."""
    from rich.table import Table

    from medzoo.registry import is_wanted

    table = Table("weights", "fills", "licence", "size", "digest", "trained on")
    for name in names:
        for record in medzoo.describe(name).weights.values():
            if is_wanted(record, license_, trained):
                licence = record.license + (" (non-commercial)" if record.non_commercial else "")
                table.add_row(
                    f"{name}:{record.tag}" + (" (default)" if record.default else ""),
                    "model" if record.part == "model" else "encoder only",
                    licence,
                    megabytes(record.size) if record.size is not None else "not known",
                    "md5 (weak)" if record.weak else "sha256",
                    record.trained_on,
                )
    return table


def prediction_table(result: medzoo.Prediction) -> Table:
    """Return a table with the outputs of one image, the most probable first, with untrained outputs marked.

    An output without a threshold is called neither positive nor negative, and has a dash.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table("output", "probability", "positive")
    for label in sorted(result.probabilities, key=result.probabilities.__getitem__, reverse=True):
        mark = " (untrained)" if label in result.untrained else ""
        probability = f"{result.probabilities[label]:.3f}"
        called = {True: "yes", False: "no", None: "–"}[result.positive[label]]
        table.add_row(escape(label) + mark, probability, called)
    return table


def megabytes(size: int) -> str:
    """Return a number of bytes in MB.

    >>> megabytes(33_040_000)
    '33.0 MB'
    """
    return f"{size / 1e6:,.1f} MB"


def _steps(how: Preprocessing) -> str:
    orientation = f", orientation {how.orientation}" if how.orientation else ""
    return f"{how.fit} to {' × '.join(map(str, how.size))}, {how.intensity}{orientation}, resample {how.resample}"


def _shape(spec: medzoo.InputSpec) -> str:
    return " × ".join(map(str, (spec.channels, *spec.size)))
