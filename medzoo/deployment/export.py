"""``export``: a model as a file that other engines run, compared with PyTorch before it is kept.

Axes: b batch, c channels, s spatial axes, n outputs.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medzoo.classifier import Classifier
from medzoo.deployment.capture import capture, count_nodes, load_pt2, plain_inference, write_pt2
from medzoo.deployment.export_report import ExportReport
from medzoo.deployment.golden import BATCHES, OutputDifference, compare, golden_inputs, reference
from medzoo.deployment.onnx_export import INPUT, check_opset, check_size, onnx_runner, onnx_versions, write_onnx
from medzoo.deployment.statement import Statement, state
from medzoo.deployment.target import ExportTarget
from medzoo.errors import ConfigError, check_ints
from medzoo.extra import require_export_extra
from medzoo.features import FeatureExtractor
from medzoo.inference.view import float32_view
from medzoo.progress import progress_bar
from medzoo.version import __version__
from medzoo.weights.cache import digest_of
from medzoo.weights.config import CONFIG_FILE

__all__ = ["export"]

# Below this multiple of the tolerance, outputs that do not depend on the input would pass the comparison.
LEAST_SPREAD = 10


def export(
    model: Classifier,
    file: str | os.PathLike[str],
    *,
    size: int | Sequence[int] | None = None,
    opset: int | None = None,
    tolerance: float = 1e-4,
    overwrite: bool = False,
) -> ExportReport:
    """Write a model as an ONNX file, or as a ``.pt2`` file of ``torch.export``, and compare it with PyTorch.

    The file has one input, ``image`` (``b c *s``, float32, preprocessed as the model requires), and one output:
    ``logits`` (``b n``), or ``features`` of a model without a head. The batch may have any size; the others are fixed.
    It computes in float32 on the plain layers in eval mode, whatever the mode, dtype and device of the model and
    whether it was optimized; a calibration is part of the weights. An ONNX file holds all its weights. Labels, task,
    thresholds, preprocessing, licence and digests are in its metadata, in a ``.pt2`` file in its extra files.

    Before it is kept, the file is loaded again, by onnxruntime or ``torch.export.load``, and its outputs are compared
    with those in PyTorch at batch sizes 1, 2 and 5, for inputs as the preprocessing makes them. Beside it are written:

    - ``config.json``, as :meth:`Classifier.save_pretrained` writes it;
    - ``NAME.golden.npz``, an input (``image``) and its output in PyTorch (``logits``), to test another engine with;
    - ``NAME.onnx.json`` or ``NAME.pt2.json``, the report.

    The model is not changed. Outputs that were not trained are exported, and marked. Threads export in turn.

    Args:
        model: from :func:`medzoo.create`, in any mode. Its forward hooks must be removed before.
        file: the file to write, ``.onnx`` or ``.pt2``; its folder is made if there is none.
        size: spatial size of the input, one int for all axes or one per axis; ``None`` is that of the preprocessing.
        opset: version of the ONNX operator set, 18 to 23; ``None`` for 20, which onnxruntime 1.20 and later run.
        tolerance: the largest difference of an output that is accepted, as a multiple of the largest output of the same
            image where that is above 1.
        overwrite: replace an export that is there.

    Raises:
        ConfigError: not a model, file name, size or opset that can be; a file that is there; the folder of another
            model; packages that are not installed; or weights too large for an ONNX file.
        ExportError: the model cannot be exported, the engine cannot run it, or the outputs differ. Nothing is kept.
        WeightsUnavailable: the folder cannot be written.

    >>> import medzoo, tempfile
    >>> model = medzoo.create("xray_cnn", size=32, hidden=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = medzoo.export(model, f"{folder}/model.pt2")
    >>> report.input_shape, report.output, len(report.untrained)
    (('batch', 3, 32, 32), 'logits', 14)
    """
    target = ExportTarget.of(file, overwrite)
    _check_model(model)
    if opset is not None and target.format != "onnx":
        raise ConfigError(f"export: expected no opset for a {target.path.suffix} file, got {opset!r}. Leave it out.")
    if not isinstance(tolerance, (int, float)) or isinstance(tolerance, bool) or not 0 < tolerance < math.inf:
        raise ConfigError(f"export: expected tolerance to be a number above 0, got {tolerance!r}. Such as 1e-4.")
    sides = _sides(model, size)
    version = None
    if target.format == "onnx":
        version = check_opset("export", opset)
        require_export_extra()
        check_size(model.name, 4 * sum(t.numel() for t in model.state_dict().values()))
    view = float32_view(model, torch.device("cpu"))
    if view.preprocessing is not None:
        view.preprocessing = replace(view.preprocessing, size=sides)
    statement = state(model, view, target.path.parent, overwrite)
    job = _Job(view, sides, "logits" if view.num_classes else "features", version, tolerance, statement)
    return job.run(target, overwrite)


def _check_model(model: Any) -> None:
    """Raise ConfigError unless it is a classifier that can be copied as it is."""
    if not isinstance(model, Classifier):
        maps = isinstance(model, FeatureExtractor)
        advice = "For features, create it with num_classes=0." if maps else "Use the model as medzoo.create returns it."
        raise ConfigError(f"export: expected a Classifier from medzoo.create, got {type(model).__name__}. {advice}")
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.is_meta or value.is_quantized:
            raise ConfigError(
                f"{model.name}: expected weights that are plain tensors, got {name}, which is quantized or on the meta "
                "device. Export the model before it is quantized, or load its weights."
            )
    hooked = [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    if hooked:
        raise ConfigError(
            f"{model.name}: expected a model without forward hooks, which an export would run but not contain, got "
            f"some on {', '.join(name or 'the model' for name in hooked[:3])}. Remove them before; "
            "torch.nn.utils.prune.remove and remove_weight_norm make theirs part of the weights."
        )


def _sides(model: Classifier, size: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the spatial size of the input, which the model must take."""
    spec, how = model.input_spec, model.preprocessing
    if size is None:
        sides = spec.size if how is None else how.size
    else:
        given = [size] * spec.dims if isinstance(size, int) else size
        sides = check_ints("export", "size", given, spec.dims)
    if not spec.fits(sides):
        raise ConfigError(f"export: {model.name} takes {spec}, got size {sides}. Choose another with size=.")
    return tuple(sides)


@dataclass(frozen=True, eq=False)
class _Job:
    """One export.

    Attributes:
        view: what is exported.
        sides: spatial size of the input.
        output: name of the output.
        opset: version of the ONNX operator set; ``None`` for a ``.pt2`` file.
        tolerance: the largest difference that is accepted.
        statement: what the files state.
    """

    view: Classifier
    sides: tuple[int, ...]
    output: str
    opset: int | None
    tolerance: float
    statement: Statement

    def run(self, target: ExportTarget, overwrite: bool) -> ExportReport:
        """Write, compare and keep the files."""
        view = self.view
        inputs = golden_inputs(view.input_spec.channels, self.sides, view.preprocessing)
        with progress_bar(transient=True) as bar, target.staging() as folder:
            task = bar.add_task(f"exporting {view.name}", total=3)
            with plain_inference():
                expected = reference(view, inputs, view.name)
            golden: dict[str, Any] = {INPUT: inputs[:1].numpy(), self.output: expected[1].numpy()}
            target.check_golden(golden, self.tolerance, overwrite)
            bar.advance(task)
            nodes, exported = self._write(folder / target.path.name, inputs)
            bar.advance(task)
            with plain_inference():
                what = f"{view.name} as {target.path.name}"
                differences = compare(exported, inputs, expected, self.tolerance, what)
            report = self._report(target, (folder / target.path.name).read_bytes(), nodes, differences, expected)
            bar.advance(task)
            np.savez(folder / target.golden.name, **golden)
            text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
            (folder / target.report.name).write_text(text, "utf-8")
            if self.statement.replaces(target.path.with_name(CONFIG_FILE)):
                (folder / CONFIG_FILE).write_bytes(self.statement.config or b"")
        return report

    def _write(self, path: Path, inputs: Tensor) -> tuple[Counter[str], Callable[[Tensor], Tensor]]:
        """Write the file, and return the operators in it and a function that runs it."""
        who, stated = self.view.name, self.statement.metadata(self.view)
        program = capture(self.view, torch.zeros_like(inputs[:2]))
        if self.opset is None:
            write_pt2(program, path, stated, who)
            return count_nodes(program), load_pt2(path).module()
        nodes = write_onnx(program, path, output=self.output, opset=self.opset, stated=stated, who=who)
        return nodes, onnx_runner(path, self.output, who)

    def _report(
        self,
        target: ExportTarget,
        data: bytes,
        nodes: Counter[str],
        differences: Mapping[int, OutputDifference],
        expected: Mapping[int, Tensor],
    ) -> ExportReport:
        view, statement, outputs = self.view, self.statement, self.view.outputs
        every = expected[BATCHES[-1]]
        spread = float((every.amax(0) - every.amin(0)).max())
        versions = {"medzoo": __version__, "torch": str(torch.__version__)}
        return ExportReport(
            file=target.path,
            format=target.format,
            digest=digest_of(data),
            size=len(data),
            model=view.name,
            weights=statement.digest,
            dtype=statement.dtype,
            input_shape=("batch", view.input_spec.channels, *self.sides),
            output=self.output,
            labels=outputs.labels,
            untrained=tuple(n for n, trained in zip(outputs.labels, outputs.trained, strict=True) if not trained),
            license=statement.license,
            trained_on=statement.trained_on,
            opset=self.opset,
            made_with=versions if self.opset is None else versions | onnx_versions(),
            nodes=dict(sorted(nodes.items())),
            tolerance=self.tolerance,
            differences=differences,
            spread=spread,
            date=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            notes=tuple(self._notes(spread)),
        )

    def _notes(self, spread: float) -> Iterator[str]:
        """Yield what to know of the file."""
        outputs = self.view.outputs
        if outputs.labels and not any(outputs.trained):
            yield "untrained outputs: these numbers mean nothing"
        elif not all(outputs.trained):
            yield "some outputs are untrained: their numbers mean nothing"
        if outputs.caution:
            yield outputs.caution
        if self.statement.dtype != "float32":
            yield f"the weights are of {self.statement.dtype}; the file holds and computes them in float32"
        if self.statement.config is None:
            yield (
                "the model has no registered name or no preprocessing, so that there is no config.json, and "
                "medzoo.predict cannot use the file"
            )
        if spread <= LEAST_SPREAD * self.tolerance:
            yield (
                f"the outputs of the compared inputs differ by no more than {spread:.1e}, so that the comparison shows "
                "little: give a smaller tolerance="
            )
