"""ONNX files for tests: golden ones of medzoo.export, changed to state what another model states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

import medzoo
from medzoo.inference.naming import provenance

GOLDEN = Path(__file__).parent / "golden"
# The graph and the folder of the same weights, by number of axes.
GRAPHS = {2: GOLDEN / "onnx" / "xray_cnn.onnx", 3: GOLDEN / "onnx" / "cnn3d_small.onnx"}
FOLDERS = {2: GOLDEN / "format1" / "xray_cnn", 3: GOLDEN / "format2" / "cnn3d_small"}


def eager(dims: int, **options: Any) -> medzoo.Classifier:
    """Return the model of a golden file in PyTorch."""
    return medzoo.create(f"local-dir:{FOLDERS[dims]}", **options).eval()


def metadata_of(model: medzoo.Classifier) -> dict[str, Any]:
    """Return what an exported model states, before it is text."""
    digest = "sha256:" + "0" * 64
    config = model._saved_config().to_json(dtype="float32", digest=digest, size=1, metrics={})
    return {"medzoo.config": config, "medzoo.provenance": provenance(model)}


def write_metadata(proto: onnx.ModelProto, metadata: Mapping[str, Any]) -> onnx.ModelProto:
    """Replace the metadata of a file."""
    del proto.metadata_props[:]
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value if isinstance(value, str) else json.dumps(value))
    return proto


def write_onnx(model: medzoo.Classifier, path: Path, **changed: Any) -> Path:
    """Write the golden graph with the metadata of a model that has its weights; ``changed`` replaces entries."""
    proto = write_metadata(onnx.load(GRAPHS[model.input_spec.dims]), metadata_of(model) | changed)
    path.write_bytes(proto.SerializeToString())
    return path
