"""Write the graph of a model as one ONNX file, and run it by onnxruntime to compare it.

Axes: b batch, c channels, s spatial axes, n outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from medzoo.deployment.capture import exporting
from medzoo.errors import ConfigError, ExportError, check_int

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["INPUT", "MAX_BYTES", "OPSET", "check_opset", "check_size", "onnx_runner", "onnx_versions", "write_onnx"]

INPUT = "image"
# The first with Gelu as one operator, and the default of PyTorch's exporter; onnxruntime 1.20 runs up to 21.
OPSET = 20
# The exporter's own operators are of 18, and it converts upwards. Beyond these it logs a failure, and keeps 18.
OPSETS = range(18, 24)
# Protobuf, which an ONNX file is, has no longer messages; 16 MiB are for the graph.
MAX_BYTES = 2**31 - 2**24


def check_opset(who: str, opset: int | None) -> int:
    """Return the operator set to write."""
    if opset is None:
        return OPSET
    if check_int(who, "opset", opset, OPSETS[0]) not in OPSETS:
        raise ConfigError(
            f"{who}: expected opset from {OPSETS[0]} to {OPSETS[-1]}, got {opset}. {OPSET} is the default."
        )
    return int(opset)


def check_size(who: str, size: int) -> None:
    """Raise ConfigError if weights of ``size`` bytes do not fit in one ONNX file."""
    if size > MAX_BYTES:
        raise ConfigError(
            f"{who}: expected weights of less than 2 GiB, the largest ONNX file without a second one for the weights, "
            f"got {size / 2**30:.1f} GiB in float32. Export to a .pt2 file."
        )


def onnx_versions() -> dict[str, str]:
    """Return the versions of the packages that write and run ONNX files."""
    return {name: metadata.version(name) for name in ("onnx", "onnxscript", "onnxruntime")}


def write_onnx(
    program: ExportedProgram, path: Path, *, output: str, opset: int, stated: Mapping[str, str], who: str
) -> Counter[str]:
    """Write one ONNX file with all weights, ``image`` (``batch c *s``) to ``output``, and check it.

    Args:
        program: of :func:`medzoo.deployment.capture.capture`.
        path: the file.
        output: name of the output.
        opset: version of the operator set.
        stated: the metadata of the file.
        who: the model, for messages.

    Returns:
        How often each operator is in the graph.

    Raises:
        ExportError: it cannot be translated, or not to this operator set, or the file is not valid.
    """
    import onnx

    with exporting(who, f"the ONNX exporter, for opset {opset},"):
        translated: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[output],
            dynamic_shapes=({0: "batch"},),
            verbose=False,
        )
        proto = translated.model_proto
    found = {one.domain or "ai.onnx": one.version for one in proto.opset_import}
    if found.get("ai.onnx") != opset:
        raise ExportError(
            f"{who}: expected operators of opset {opset}, got {found} from the exporter of PyTorch "
            f"{torch.__version__}. No file was written. Use opset={OPSET}."
        )
    _drop_notes(proto)
    onnx.helper.set_model_props(proto, dict(stated))
    path.write_bytes(proto.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # of several types that share no base but this
        raise ExportError(
            f"{who}: expected a valid ONNX model from the exporter of PyTorch {torch.__version__}, got {error}. No "
            "file was kept."
        ) from error
    return Counter(node.op_type for node in proto.graph.node)


def _drop_notes(message: Any) -> None:
    """Remove the exporter's notes on the graph, its nodes and values: lines of code, and the paths of their files."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                _drop_notes(inner)


def onnx_runner(path: Path, output: str, who: str) -> Callable[[Tensor], Tensor]:
    """Return a function that runs an ONNX file by onnxruntime on the CPU, ``b c *s -> b n``.

    Raises:
        ExportError: onnxruntime cannot load it; the function raises it where it cannot run it.
    """
    import onnxruntime

    def failed(error: Exception) -> ExportError:
        return ExportError(
            f"{who}: expected a model that onnxruntime {onnxruntime.__version__} runs, got {str(error).strip()[:300]}. "
            "No file was kept. Another opset= may help."
        )

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised; the rest would be printed
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no base of their own
        raise failed(error) from error

    def run(x: Tensor) -> Tensor:
        try:
            return torch.from_numpy(session.run([output], {INPUT: x.numpy()})[0])
        except Exception as error:
            raise failed(error) from error

    return run
