"""Name the logits of an image, and state which model and weights they come from.

Axes: n classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medzoo.contract import Outputs
from medzoo.errors import DataError
from medzoo.inference.engine import AnyModel, EngineModel
from medzoo.inference.reading import PreparedItem
from medzoo.inference.result import Prediction
from medzoo.transforms.transform import ImplausibleValues
from medzoo.version import __version__

__all__ = ["name_outputs", "provenance", "settle"]


def name_outputs(item: PreparedItem, logits: Tensor, outputs: Outputs) -> Prediction:
    """Return the prediction. Logits that are not finite are an error, because NaN would read as negative."""
    if not bool(torch.isfinite(logits).all()):
        who = item.prediction.source
        error = f"{who}: the model returned NaN or infinity. Use float32, and check its weights."
        return replace(item.prediction, error=error, reason="outputs that are not finite")
    probabilities, caution = outputs.probabilities(logits[None]), outputs.caution

    def by_label(row: Tensor) -> dict[str, Any]:
        return dict(zip(outputs.labels, row.tolist(), strict=True))

    return replace(
        item.prediction,
        probabilities=by_label(probabilities[0]),
        positive={
            label: called if decided else None
            for (label, called), decided in zip(
                by_label(outputs.positive(probabilities)[0]).items(), outputs.decided, strict=True
            )
        },
        logits=by_label(logits),
        untrained=tuple(label for label, trained in zip(outputs.labels, outputs.trained, strict=True) if not trained),
        steps=item.steps,
        warning=" ".join(filter(None, [item.warning or f"{item.prediction.source}:" * bool(caution), caution])),
        mismatch=item.mismatch,
    )


def settle(
    result: Prediction, kind: type[DataError], strict: bool
) -> tuple[Prediction, type[DataError]]:  # fmt: skip
    """Return a prediction and the type of its error, a warning as an error under ``strict``, a mismatch in it first."""
    if result.warning and strict:
        failed = replace(result, probabilities={}, positive={}, logits={}, untrained=(), error=result.warning)
        return replace(failed, reason=ImplausibleValues.reason), ImplausibleValues
    if result.mismatch:
        rest = result.warning.removeprefix(f"{result.source}: ")
        return replace(result, warning=f"{result.mismatch} {rest}".strip()), kind
    return result, kind


def provenance(model: AnyModel) -> dict[str, str]:
    """Return the model, its weights and how many tensors did not come from them, their digest, and the version.

    Where tensors were changed after loading, no file has the digest of the weights that ran, and ``digest`` is
    ``"none"``: a reader who compares it would take the model for the one that was loaded. ``weights`` has it. An
    exported model states those of the model it was exported from, and ``engine``.
    """
    if isinstance(model, EngineModel):
        return dict(model.provenance)
    weights = digest = "none"
    if (report := model.load_report) is not None:
        new = len(report.new)
        weights, digest = report.source + (f", but for {new} new tensors of the head" if new else ""), report.digest
        if report.changed:
            how = ", ".join(dict.fromkeys(report.changed.values()))
            weights += f" ({digest}), but for {len(report.changed)} tensors changed after loading: {how}"
            digest = "none"
    return {"model": model.name, "weights": weights, "digest": digest, "medzoo": __version__}
