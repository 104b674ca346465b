"""The graph of a model as ``torch.export`` records it, and the ``.pt2`` file of it.

Both formats start from this graph. It is recorded from the plain layers, without gradients.

Axes: b batch, c channels, s spatial axes, n outputs.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medzoo.classifier import Classifier
from medzoo.errors import ExportError, InputError
from medzoo.kernels.dispatch import set_fast_paths

if TYPE_CHECKING:
    from torch.export import ExportedProgram

__all__ = ["capture", "count_nodes", "exporting", "load_pt2", "plain_inference", "write_pt2"]

# torch.export and the ONNX exporter keep their state in globals.
_one_at_a_time = threading.Lock()


@contextmanager
def plain_inference() -> Iterator[None]:
    """Run the plain layers on the CPU, without gradients, whatever the caller has switched on in this thread."""
    plain = torch.autocast("cpu", enabled=False)
    with torch.inference_mode(False), torch.no_grad(), plain, torch.device("cpu"), set_fast_paths(False):
        yield


@contextmanager
def exporting(who: str, how: str) -> Iterator[None]:
    """Let one thread at a time use PyTorch's exporters, and raise what they raise as an ExportError."""
    with _one_at_a_time, plain_inference():
        try:
            yield
        except (MemoryError, OSError, InputError):
            raise
        except Exception as error:  # of many types, from the model's own layers too
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ExportError(
                f"{who}: expected a model that {how} of PyTorch {torch.__version__} can export, got "
                f"{type(error).__name__}: {reason[:300]}. The cause has all of it. No file was written."
            ) from error


def capture(view: Classifier, x: Tensor) -> ExportedProgram:
    """Record the graph of a model for any batch size, ``b c *s -> b n``, without what names files of this machine.

    Args:
        view: a model on the CPU in eval mode, in float32; see :func:`medzoo.inference.view.float32_view`.
        x: an input with a batch of two or more; a batch of one would be taken for a constant.

    Raises:
        ExportError: it cannot be recorded.
    """
    with exporting(view.name, "torch.export"):
        program = torch.export.export(view, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                # The lines of code that made a node, with the paths of their files.
                node.meta.pop("stack_trace", None)
    program.example_inputs = None  # of the size of an input: they would be stored with the weights
    return program


def count_nodes(program: ExportedProgram) -> Counter[str]:
    """Return how often each operator is in the graph."""
    return Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")


def write_pt2(program: ExportedProgram, path: Path, metadata: Mapping[str, str], who: str) -> None:
    """Write a ``.pt2`` file, with the metadata as its extra files."""
    with exporting(who, "torch.export.save"), path.open("wb") as file:
        torch.export.save(program, file, extra_files=dict(metadata))


def load_pt2(path: Path) -> ExportedProgram:
    """Load a ``.pt2`` file that was just written."""
    with _one_at_a_time, torch.device("cpu"):
        return torch.export.load(path)
