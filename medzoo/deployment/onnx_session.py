"""A session of onnxruntime, as medzoo starts each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["start_session"]


def start_session(model: bytes | Path, threads: int) -> Any:
    """Return a session of onnxruntime on the CPU that prints nothing.

    Args:
        model: an ONNX file, or its bytes; they are not kept.
        threads: for each call.

    Raises:
        Exception: of onnxruntime's types, which have no base of their own: it cannot load the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal alone: every error is raised, and the others would be printed
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads spin on after each call
    options.add_session_config_entry("session.load_model_format", "ONNX")  # not its own format, by the first bytes
    session = onnxruntime.InferenceSession(
        model,
        options,
        providers=["CPUExecutionProvider"],
        enable_fallback=0,  # which prints, and tries the same again
        read_config_from_model=0,  # options in the file, which an environment variable would turn on
    )
    if hasattr(session, "_model_bytes"):
        session._model_bytes = None  # kept to start again with other providers; the weights are in memory once more
    return session
