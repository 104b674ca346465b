"""``open_onnx``: an exported ONNX file, run by onnxruntime on the CPU.

Axes: b batch, c channels, s spatial axes, n classes.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medzoo.contract import Outputs, Preprocessing
from medzoo.deployment.onnx_export import INPUT
from medzoo.deployment.onnx_file import read_onnx
from medzoo.errors import ConfigError, InputError, ShapeError, UnsafeWeights, WeightsCorrupt, check_int
from medzoo.inference.engine import EngineModel
from medzoo.input_spec import InputSpec
from medzoo.version import __version__
from medzoo.weights.config import parse_config
from medzoo.weights.record import Weights
from medzoo.weights.safetensors import parse_json

__all__ = ["OnnxModel", "open_onnx"]

CONFIG, PROVENANCE = "medzoo.config", "medzoo.provenance"
OUTPUT = "logits"
FACTS = ("model", "weights", "digest", "medzoo")  # of the provenance
# A parameter of such a model, for the check of an input.
LIKE = torch.empty(0)


def open_onnx(path: str | os.PathLike[str], *, threads: int | None = None) -> OnnxModel:
    """Return a model that :func:`medzoo.export` wrote as an ONNX file, run by onnxruntime on the CPU.

    :func:`medzoo.predict` takes it as it takes a model of :func:`medzoo.create`, with the same preprocessing, checks,
    warnings and names, which are in the metadata of the file. Needs ``pip install 'medzoo[export]'``, and of it only
    onnxruntime.

    Nothing of the file is run but operators of onnxruntime itself: one with operators of its own, or with weights in
    another file, is refused. If the report of the export is beside it (``model.onnx.json``), its digest is checked.

    Args:
        path: the ``.onnx`` file; nothing else of the export is needed.
        threads: of onnxruntime; ``None`` for as many as PyTorch uses now, ``torch.get_num_threads()``.

    Raises:
        WeightsUnavailable: no such file, or it cannot be read.
        WeightsCorrupt: not a complete ONNX file, or other bytes than were exported.
        UnsafeWeights: it names another file, or an operator that onnxruntime does not have.
        ConfigError: onnxruntime is not installed, the file was not written by :func:`medzoo.export`, or its input and
            outputs are not what it states.
    """
    return OnnxModel(Path(path), torch.get_num_threads() if threads is None else threads)


class OnnxModel(EngineModel):
    """An ONNX file in onnxruntime, ``b c *s -> b n``; see :func:`open_onnx`.

    Threads may call it at the same time. A process that is forked from one that holds it must open it again. A pickle
    of it holds the path and the digest, not the weights.

    Args:
        path: the file.
        threads: of onnxruntime.
        expected: its digest, if it must be the same file as before.

    Attributes:
        path: the file.
        digest: ``"sha256:…"`` of the file; ``provenance["digest"]`` is that of the weights it was exported from.
        threads: of onnxruntime.
        license: licence of the weights.
        trained_on: their training data, in a sentence.
        engine: what runs it, such as ``"onnxruntime 1.32.0"``.
    """

    def __init__(self, path: Path, threads: int, expected: str | None = None) -> None:
        self.path, self.threads = path.absolute(), check_int("open_onnx", "threads", threads, 1)
        engine = _import_engine()
        data, self.digest = read_onnx(path)
        if expected not in (None, self.digest):
            raise WeightsCorrupt(
                f"{path}: expected the file that was opened before, {expected}, got {self.digest}. Open it again."
            )
        self._session = _start(engine, data, path, self.threads)
        stated = _Stated.of(self._session, path)
        _check_arrays(self._session, stated, path)
        self.name, self.outputs, self.preprocessing = stated.model, stated.outputs, stated.preprocessing
        self.input_spec = replace(stated.input_spec, size=self.preprocessing.size, exact=True)
        self.intended_use = stated.weights.intended_use
        self.license, self.trained_on = stated.weights.license, stated.weights.trained_on
        self.engine = f"onnxruntime {engine.__version__}"
        self.provenance = {**stated.provenance, "medzoo": __version__, "engine": self.engine}

    def __call__(self, x: Tensor) -> Tensor:
        """Check the input and return logits, ``b c *s -> b n``, without gradients.

        Raises:
            ShapeError: wrong axes, channels or sizes.
            InputError: wrong type, dtype or device, a tensor that requires a gradient, or more than the memory holds.
            ConfigError: onnxruntime cannot run the file.
        """
        self._check_input(x)
        try:
            (logits,) = self._session.run([OUTPUT], {INPUT: x.detach().contiguous().numpy()})
        except Exception as error:
            if "Failed to allocate memory" in str(error) or "bad_alloc" in str(error):
                raise InputError(
                    f"{self.name}: {tuple(x.shape)} needs more memory than this machine has. Use a smaller batch. The "
                    "model is still usable."
                ) from error
            raise ConfigError(
                f"{self.name}: {self.engine} cannot run {self.path} ({_reason(error)}). Export the model again."
            ) from error
        return torch.from_numpy(logits)

    def _check_input(self, x: Tensor) -> None:
        """Raise unless the file was exported for such inputs."""
        spec = self.input_spec
        if isinstance(x, Tensor) and x.ndim == 2 + spec.dims and x.shape[1] == spec.channels:
            if tuple(x.shape[2:]) != spec.size:
                raise ShapeError(
                    f"{self.name}: expected {spec}, got {tuple(x.shape)}: the file was exported for this size alone. "
                    "Export the model again for the other size."
                )
            if x.requires_grad and torch.is_grad_enabled():
                raise InputError(
                    f"{self.name}: expected a tensor without a gradient, which onnxruntime does not compute, got one "
                    "that requires it. Use x.detach(), or the model that the file was exported from."
                )
        spec.check(x, who=self.name, like=LIKE)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path and the digest: the file is opened again."""
        return OnnxModel, (self.path, self.threads, self.digest)

    def __repr__(self) -> str:
        """Return what it is in one line."""
        arrays = f"{self.input_spec} -> 'b {self.num_classes}'"
        return f"OnnxModel({str(self.path)!r}: {self.name}, {arrays}, {self.engine}, {self.threads} threads)"


class _Stated(NamedTuple):
    """What the metadata of a file states.

    Attributes:
        model: the registered name, which need not be registered here: nothing is built.
        weights: the config, as a record of weights.
        outputs: the meaning of the logits.
        input_spec: the input of the model that was exported.
        preprocessing: how a file becomes an input.
        provenance: of that model.
    """

    model: str
    weights: Weights
    outputs: Outputs
    input_spec: InputSpec
    preprocessing: Preprocessing
    provenance: dict[str, str]

    @classmethod
    def of(cls, session: Any, path: Path) -> _Stated:
        """Read the metadata.

        Raises:
            ConfigError: it is absent, or not as :func:`medzoo.export` writes it.
        """
        try:
            metadata = session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{path}: expected metadata in UTF-8, got other bytes. Export the model again."
            ) from error
        if CONFIG not in metadata or PROVENANCE not in metadata:
            raise ConfigError(
                f"{path}: expected an ONNX file with the metadata of medzoo.export, got one without {CONFIG} or "
                f"{PROVENANCE}: its preprocessing and outputs are not known. Export a model of medzoo.create with "
                "medzoo.export(model, 'model.onnx'), or run the file by onnxruntime itself."
            )
        again = "Export the model again"
        model, weights = parse_config(metadata[CONFIG].encode(), f"{path}, {CONFIG}", path.parent, again)
        outputs, spec, how = weights.outputs, weights.input_spec, weights.preprocessing
        if outputs is None or spec is None or how is None:
            raise ConfigError(f"{path}: expected a model with outputs to name, got an encoder. Export one with a head.")
        try:
            facts = parse_json(metadata[PROVENANCE].encode())
        except (ValueError, RecursionError):
            facts = None
        known = isinstance(facts, dict) and facts.keys() == set(FACTS) and all(type(v) is str for v in facts.values())
        if not known or facts["model"] != model:
            raise ConfigError(
                f"{path}, {PROVENANCE}: expected {', '.join(FACTS)} of {model} as texts, got something else. {again}."
            )
        return cls(model, weights, outputs, spec, how, facts)


def _import_engine() -> Any:
    """Return the module onnxruntime."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError(
            f"open_onnx: expected onnxruntime, which cannot be imported ({error}). Run: pip install 'medzoo[export]'"
        ) from error
    return onnxruntime


def _start(engine: Any, data: bytes, path: Path, threads: int) -> Any:
    """Return a session of onnxruntime on the CPU that logs nothing."""
    options = engine.SessionOptions()
    options.log_severity_level = 4  # fatal alone: every error is raised, and the others would be printed
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # or its threads spin on after each call
    options.add_session_config_entry("session.load_model_format", "ONNX")  # not its own format, by the first bytes
    try:
        return engine.InferenceSession(
            data,
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # which prints, and tries the same again
            read_config_from_model=0,  # options in the file, which an environment variable would turn on
        )
    except Exception as error:
        if "is not a registered function/op" in str(error):
            raise UnsafeWeights(
                f"{path}: expected operators of ONNX alone, got one that would need a library of its own "
                f"({_reason(error)}), and none is loaded. Export the model again with medzoo.export."
            ) from error
        raise ConfigError(
            f"{path}: onnxruntime {engine.__version__} cannot load the file ({_reason(error)}). Export the model again "
            "for this version, or upgrade onnxruntime."
        ) from error


def _reason(error: Exception) -> str:
    r"""Return the cause that onnxruntime gives, in one line.

    >>> _reason(ValueError("[ONNXRuntimeError] : 1 : FAIL : no\n  such op"))
    'no such op'
    """
    text = " ".join(str(error).split())
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)[:300]


def _check_arrays(session: Any, stated: _Stated, path: Path) -> None:
    """Raise ConfigError unless input and output are those that the config states, with any batch size."""
    spec, size = stated.input_spec, stated.preprocessing.size
    expected = [
        f"{INPUT} tensor(float) ({', '.join(map(str, ('batch', spec.channels, *size)))})",
        f"{OUTPUT} tensor(float) (batch, {len(stated.outputs.labels)})",
    ]
    found = [_signature(array) for array in (*session.get_inputs(), *session.get_outputs()[:1])]
    if found != expected or not spec.fits(size):
        raise ConfigError(
            f"{path}: expected {' and '.join(expected)}, as the config in the file states, got "
            f"{' and '.join(found)}. Export the model again."
        )


def _signature(array: Any) -> str:
    """Return name, type and shape of an input or output; an axis of any length is called batch if it is the first."""
    shape = [str(side) if isinstance(side, int) else "any" for side in array.shape]
    if shape[:1] == ["any"]:
        shape[0] = "batch"
    return f"{array.name} {array.type} ({', '.join(shape)})"
