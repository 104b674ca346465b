"""What determines the numbers of a training besides its recipe: device, precision, threads, and PyTorch's settings.

Everything is chosen by rules over the features of the machine, never by a timing, and recorded in the checkpoints.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from medzoo.errors import ConfigError
from medzoo.kernels.dispatch import TRAINING_REVISION, fast_paths_enabled
from medzoo.training.recipe import TrainSection

__all__ = ["Environment", "numeric_environment", "resolve_environment"]

Precision = Literal["float32", "bf16", "fp16"]
LIGHTNING_PRECISION = {"float32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class Environment:
    """The resolved choices.

    Attributes:
        device: of the training.
        precision: of the forward and backward pass; weights are float32 in any case.
        threads: of PyTorch on the CPU.
        channels_last: whether the weights of 2D convolutions are laid out channels last.
        why: how ``auto`` was resolved, for people.
    """

    device: torch.device
    precision: Precision
    threads: int
    channels_last: bool
    why: tuple[str, ...] = ()

    @property
    def accelerator(self) -> dict[str, Any]:
        """Arguments of Lightning's ``Trainer`` for the device and the precision."""
        devices: Any = 1 if self.device.index is None else [self.device.index]
        return {
            "accelerator": "gpu" if self.device.type == "cuda" else "cpu",
            "devices": devices,
            "precision": LIGHTNING_PRECISION[self.precision],
        }

    def facts(self) -> dict[str, Any]:
        """Return what a resume compares, as plain values.

        CUDA sums in an order of its own in some backward passes, so on a GPU the state is complete and the result equal
        up to rounding; on a CPU it is equal to the bit.
        """
        facts: dict[str, Any] = {
            "device": self.device.type,
            "precision": self.precision,
            "threads": self.threads,
            "channels_last": self.channels_last,
            "fast_paths": TRAINING_REVISION if fast_paths_enabled() else 0,
            "torch": ".".join(torch.__version__.split(".")[:2]),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        }
        if self.device.type == "cuda":
            facts["gpu"] = torch.cuda.get_device_name(self.device)
            facts["matmul_precision"] = torch.get_float32_matmul_precision()
        return facts


def resolve_environment(train: TrainSection, dims: int, *, threads: int | None = None) -> Environment:
    """Resolve ``auto``.

    Args:
        train: with device, precision and threads as they were asked for.
        dims: spatial axes of the model.
        threads: used where the recipe leaves them open, such as those of the run that is resumed; ``None`` takes those
            that PyTorch has.

    Raises:
        ConfigError: the device is absent or not known, or the precision is not possible on it.
    """
    device, why = _device(train.device)
    precision, reason = _precision(train.precision, device)
    return Environment(
        device,
        precision,
        train.threads or threads or torch.get_num_threads(),
        # By this rule and not by measuring: tensor cores work on channels-last convolutions, and cuDNN would transpose
        # each of them. In 3D, pooling and BatchNorm convert back.
        channels_last=device.type == "cuda" and precision != "float32" and dims == 2,
        why=tuple(text for text in (why, reason) if text),
    )


def _device(given: str) -> tuple[torch.device, str]:
    available = torch.cuda.is_available()
    if given == "auto":
        return (
            (torch.device("cuda"), "") if available else (torch.device("cpu"), "device cpu: no CUDA device was found")
        )
    try:
        device = torch.device(given)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"train: expected the device to be 'auto', 'cpu', 'cuda' or 'cuda:0', got {given!r}.")
    if device.type == "cuda" and not available:
        cause = "this PyTorch is built without CUDA" if torch.version.cuda is None else "PyTorch finds no CUDA device"
        raise ConfigError(f"train: the device {given!r} is not available: {cause}. Use 'auto' or 'cpu'.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"train: the device {given!r} is not available: there are {torch.cuda.device_count()}.")
    return device, ""


def _precision(given: str, device: torch.device) -> tuple[Precision, str]:
    if device.type == "cpu":
        if given == "fp16":
            raise ConfigError("train: precision 'fp16' needs a CUDA device; on a CPU use 'float32' or 'bf16'.")
        if given == "auto":
            return "float32", "precision float32: on a CPU bfloat16 changes the numbers and is often slower"
    elif given == "auto":
        major, minor = torch.cuda.get_device_capability(device)
        fits = major >= 8
        name = "bf16" if fits else "float32"
        return name, f"precision {name}: compute capability {major}.{minor}" + ("" if fits else " has no bfloat16")  # type: ignore[return-value]
    return given, ""  # type: ignore[return-value]


_active = threading.RLock()


@contextmanager
def numeric_environment(environment: Environment, seed: int) -> Iterator[None]:
    """Set threads, deterministic algorithms and the seed of PyTorch's random numbers; restore all of them at the end.

    These settings belong to the process: another thread that computes meanwhile has them too.

    Args:
        environment: the choices.
        seed: of the global random numbers of PyTorch, which initialisation and dropout draw from.

    Raises:
        ConfigError: another thread of this process trains already.
    """
    if not _active.acquire(blocking=False):
        raise ConfigError("train: another thread of this process trains already; train in processes of their own.")
    cuda = environment.device.type == "cuda"
    devices = [environment.device.index or 0] if cuda else []
    try:
        with _restored(), torch.random.fork_rng(devices):
            torch.set_num_threads(environment.threads)
            # On CUDA some backward passes, such as of max_pool3d, have no deterministic kernel.
            torch.use_deterministic_algorithms(True, warn_only=cuda)
            # Filling new memory with NaN finds reads of what was never written, and costs a pass over each tensor.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = False
            if cuda:
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
            torch.manual_seed(seed)
            yield
    finally:
        _active.release()


@contextmanager
def _restored() -> Iterator[None]:
    """Restore the settings of the process."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    grad = torch.is_grad_enabled()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark
        torch.set_grad_enabled(grad)  # Lightning's loop switches it on
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        else:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = workspace
