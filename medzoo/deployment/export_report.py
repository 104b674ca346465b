"""``ExportReport``: what an exported file is, what it was made from, and how far its outputs are from PyTorch's.

Axes: b batch, c channels, s spatial axes, n outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from medzoo.deployment.golden import OutputDifference

__all__ = ["ExportReport", "Format"]

Format = Literal["onnx", "pt2"]
# Operators, labels and digits of digests that the text has; the JSON file has all.
MOST, DIGITS = 8, 19


@dataclass(frozen=True)
class ExportReport:
    """What :func:`medzoo.export` wrote. Printed, it is a small table; as JSON it is beside the file.

    Attributes:
        file: the exported file.
        format: ``"onnx"`` or ``"pt2"``.
        digest: ``"sha256:…"`` of the file.
        size: bytes of the file.
        model: name of the model.
        weights: ``"sha256:…"`` of the weights it was made from, as :meth:`medzoo.Classifier.save_pretrained` writes
            them.
        dtype: of those weights; the file computes in float32.
        input_shape: of ``image``: ``("batch", c, *s)``. The batch alone may have any size.
        output: name of the output: ``"logits"``, or ``"features"`` of a model without a head.
        labels: names of the outputs.
        untrained: those that were not trained: their numbers mean nothing.
        license: licence of the weights.
        trained_on: their training data, in a sentence.
        opset: version of the ONNX operator set; ``None`` for a ``.pt2`` file.
        made_with: versions of medzoo and of the packages that wrote and ran the file.
        nodes: how often each operator is in the graph.
        tolerance: the largest relative difference that was allowed.
        differences: what was found, by batch size.
        spread: by how much an output differs between the inputs that were compared, at most.
        date: when it was exported, in UTC.
        notes: what to know of the file, in sentences.
    """

    file: Path
    format: Format
    digest: str
    size: int
    model: str
    weights: str
    dtype: str
    input_shape: tuple[str | int, ...]
    output: str
    labels: tuple[str, ...]
    untrained: tuple[str, ...]
    license: str
    trained_on: str
    opset: int | None
    made_with: Mapping[str, str]
    nodes: Mapping[str, int]
    tolerance: float
    differences: Mapping[int, OutputDifference]
    spread: float
    date: str
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON; of the file it has the name alone, not the folder."""
        found = asdict(self) | {"file": self.file.name}
        found["differences"] = {str(batch): one for batch, one in found["differences"].items()}
        return found

    def __str__(self) -> str:
        """Return a table with a row for each fact."""
        kind = "torch.export" if self.opset is None else f"ONNX, opset {self.opset}"
        most = sorted(self.nodes.items(), key=lambda pair: (-pair[1], pair[0]))
        operators = _listed([f"{count} {name}" for name, count in most])
        apart = ", ".join(f"{one.relative:.1e} at batch {batch}" for batch, one in self.differences.items())
        shape = " × ".join(map(str, self.input_shape))
        outputs = f" × {len(self.labels)}: {_listed(self.labels)}" if self.labels else ""
        rows = [
            ("file", f"{self.file} ({kind}, {self.size / 1e6:,.2f} MB)"),
            ("digest", f"{self.digest[:DIGITS]}…"),
            ("weights", f"{self.model}, {self.dtype}, {self.weights[:DIGITS]}…"),
            ("licence", self.license),
            ("input", f"image: {shape}"),
            ("output", f"{self.output}: batch{outputs}"),
            ("differences", f"{apart} of {self.tolerance:g} allowed"),
            ("operators", f"{sum(self.nodes.values())}: {operators}"),
            ("made with", ", ".join(f"{name} {version}" for name, version in self.made_with.items())),
            *(("note", note) for note in self.notes),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {text}" for name, text in rows)


def _listed(names: list[str] | tuple[str, ...]) -> str:
    """Return the first names, and how many more there are.

    >>> _listed(["a", "b"])
    'a, b'
    """
    more = len(names) - MOST
    return ", ".join(names[:MOST]) + (f" and {more} more" if more > 0 else "")
