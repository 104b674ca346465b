"""Times a built case: agreement of the outputs first, then memory, then all models in turn, round after round.

A machine drifts: its clocks, its neighbours, its caches. A peer timed between medzoo's rounds drifts along, so the
ratio of a round is meaningful where two separate medians are not.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.build import OURS, BuiltCase, build_case, full_float32
from benchmarks.cases import CREATED, ONNXRUNTIME, Case
from benchmarks.environment import kilobytes
from benchmarks.peers import TABLES, matched_parameters

# Seconds that one measurement lasts at least: a shorter call is repeated.
MIN_SECONDS = 0.01
# Tolerance of outputs: absolute, and relative to the largest value of the peer.
ABSOLUTE, RELATIVE = 2e-5, 1e-5
# In bfloat16 two right answers differ more than a wrong one may. There, medzoo's distance from the float32 outputs may
# be at most this many times the peer's, in root mean square. A kernel with BatchNorm folded in is rounded once more
# than one without, which alone makes √2.
BFLOAT16_FACTOR = 1.5
# Images to compare in bfloat16: the distances of a few outputs vary by more than the factor allows.
COMPARED = 64
# Atomic additions on a GPU come in another order each time.
GRADIENT_TOLERANCE = {"cpu": 2e-5, "cuda": 1e-4}
# Batch statistics over a few voxels amplify the rounding errors of a tiny model.
TINY_TOLERANCE = 2e-4
# Where two values of a pooling window differ by less than rounding, the gradient of one goes to the other. One window
# may have a hundredth of a gradient; tests/test_conv_training.py compares gradients without such windows.
TIES_TOLERANCE = 2e-2
# Samples at once in the float32 forward pass that bfloat16 is compared with: it needs twice the memory.
EXACT_BATCH = 4


class Difference(NamedTuple):
    """How far medzoo is from a peer."""

    output: float  # largest absolute difference
    gradient: float | None  # largest of a parameter's, relative to the largest gradient of its layer; None in inference
    ok: bool  # whether both are within the tolerance


def differences(built: BuiltCase) -> dict[str, Difference]:
    """Run all models on the same inputs and compare the peers with medzoo; a peer that fails is dropped.

    In bfloat16 on several inputs, as many as there are up to :data:`COMPARED` images.

    Raises:
        ValueError: medzoo's outputs are not finite, or a peer's have another shape.
    """
    x, train = built.inputs[0], built.case.mode == "train"
    half = built.case.dtype == "bfloat16"
    inputs = built.inputs[: max(1, COMPARED // len(x))] if half and not train else [x]
    outputs = {}
    with full_float32():
        for name, call in list(built.calls.items()):
            outs = built.attempt(name, lambda call: [call(x).double() for x in inputs], call)
            if outs is not None:
                outputs[name] = torch.cat(outs)
        ours = outputs.pop(OURS)
        if not ours.isfinite().all():
            raise ValueError("medzoo: expected finite outputs, got some that are not.")
        exact = _exact(built.case, torch.cat(inputs)) if outputs and half else None
    found = {}
    for name, theirs in outputs.items():
        if theirs.shape != ours.shape:
            raise ValueError(f"{name}: expected {tuple(ours.shape)}, got {tuple(theirs.shape)}.")
        output = float((ours - theirs).abs().max())
        if exact is None:
            ok = output <= ABSOLUTE + RELATIVE * float(theirs.abs().max())
        else:
            ok = _rms(ours, exact[0]) <= BFLOAT16_FACTOR * _rms(theirs, exact[0])
        gradient = None
        if train:
            relative = _gradient_differences(built.modules[OURS], built.modules[name])
            gradient = float(torch.tensor(relative).max())  # unlike Python's max, it returns NaN if there is one
            if exact is None:
                ok = ok and gradient <= _gradient_tolerance(built.case, x.device.type)
            else:
                mine, other = (_gradient_differences(built.modules[who], exact[1]) for who in (OURS, name))
                ok = ok and sum(mine) <= BFLOAT16_FACTOR * sum(other)
        found[name] = Difference(output, gradient, ok)
    return found


def _gradient_tolerance(case: Case, device: str) -> float:
    if case.tiny:
        return TINY_TOLERANCE
    return TIES_TOLERANCE if case.model in TABLES else GRADIENT_TOLERANCE[device]


def _exact(case: Case, x: Tensor) -> tuple[Tensor, nn.Module]:
    """Return the outputs of the model as created in float32, and that model with its gradients in training."""
    train = case.mode == "train"
    name = OURS if train or case.part else CREATED
    precise = build_case(replace(case, dtype="float32", graph=False, peers=() if name == OURS else (name,)), x.device)
    # In training, BatchNorm takes its statistics over the full batch.
    pieces = torch.split(x.float(), len(x) if train or case.part else EXACT_BATCH)
    return torch.cat([precise.calls[name](piece).double() for piece in pieces]), precise.modules[name]


def _rms(a: Tensor, b: Tensor) -> float:
    return float((a - b).square().mean().sqrt())


def _gradient_differences(ours: nn.Module, peer: nn.Module) -> list[float]:
    """Return each gradient's largest difference over the largest gradient of its layer.

    The layer's, because the gradient of a bias before a normalization cancels to rounding errors. A gradient that only
    one side has is infinitely far.
    """
    layers = [name.rpartition(".")[0] for name, _ in ours.named_parameters()]
    found, scales = [], dict.fromkeys(layers, 1e-30)
    for layer, (mine, theirs) in zip(layers, matched_parameters(ours, peer), strict=True):
        if mine.grad is None or theirs.grad is None:
            found.append(0.0 if mine.grad is theirs.grad else float("inf"))
            continue
        scales[layer] = max(scales[layer], float(theirs.grad.abs().max()))
        found.append(float((mine.grad.double() - theirs.grad.double()).abs().max()))
    return [value / scales[layer] for value, layer in zip(found, layers, strict=True)]


class InterleavedTimer:
    """Times all models of a built case in turn; for pytest-benchmark, :meth:`time_ours` alone is the round."""

    def __init__(self, built: BuiltCase) -> None:
        self.built = built
        self.times: dict[str, list[float]] = {name: [] for name in built.calls}
        self.cuda = built.inputs[0].is_cuda
        self.inputs = itertools.cycle(built.inputs)
        self.once: dict[str, float] = {}
        for name in list(built.calls):
            once = built.attempt(name, self._warm_up, name)
            if once is not None:
                self.once[name] = once
        self.repeats = {name: max(1, min(1000, round(MIN_SECONDS / once))) for name, once in self.once.items()}

    def _warm_up(self, name: str) -> float:
        """Return about how many seconds a warm call takes; the first calls of a short one are not warm."""
        first = self._time(name, 1)
        enough = 0.3 if self.built.case.tiny else 1.0
        again = 5 if self.cuda else 2  # a GPU raises its clocks first
        return max(1e-7, first if first > enough else min(self._time(name, 1) for _ in range(again)))

    def _time(self, name: str, repeats: int) -> float:
        """Return the seconds of one call, averaged over ``repeats``."""
        call, turn = self.built.calls[name], list(itertools.islice(self.inputs, repeats))
        if not self.cuda:
            start = time.perf_counter()
            for x in turn:
                call(x)
            return (time.perf_counter() - start) / repeats
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        begin.record()
        for x in turn:
            call(x)
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1000 / repeats

    def time_peers(self) -> None:
        """Time each peer once."""
        for name in [name for name in self.built.calls if name != OURS]:
            took = self.built.attempt(name, self._time, name, self.repeats[name])
            if took is not None:
                self.times[name].append(took)

    def time_ours(self) -> None:
        """Time medzoo once."""
        self.times[OURS].append(self._time(OURS, self.repeats[OURS]))

    def rounds(self, budget: float, least: int, most: int = 25) -> int:
        """Return how many rounds fit into about ``budget`` seconds."""
        each = sum(self.once[name] * self.repeats[name] for name in self.built.calls)
        return max(least, min(most, int(budget / each)))

    def run(self, rounds: int) -> None:
        """Time all models in turn, ``rounds`` times."""
        for _ in range(rounds):
            self.time_peers()
            self.time_ours()

    def peaks(self) -> dict[str, int | None]:
        """Return the bytes each model needs on top of its tensors and its input; ``None`` if that is not measurable.

        A CUDA graph keeps its memory in a pool of its own from its capture on: a replay allocates only its output.
        """
        x = self.built.inputs[0]
        found: dict[str, int | None] = {}
        for name, call in list(self.built.calls.items()):
            # onnxruntime keeps its memory too, from its first call on.
            if (name == OURS and self.built.case.graph) or name == ONNXRUNTIME:
                found[name] = None
                continue
            # Gradients of an earlier step would be there already, and not count.
            module = self.built.modules[name]
            module.zero_grad(set_to_none=True)
            found[name] = self.built.attempt(name, measure_peak, partial(call, x), x.device)
            module.zero_grad(set_to_none=True)
        return found


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median and the quartiles.

    >>> spread([1.0, 2.0, 3.0, 4.0, 100.0])
    {'median': 3.0, 'low': 2.0, 'high': 4.0}
    """
    enough = len(values) > 1
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if enough else [*values] * 3
    return {"median": median, "low": low, "high": high}


def measure_peak(call: Callable[[], Any], device: torch.device) -> int | None:
    """Return the bytes a call needed on top of what was there before, or ``None`` if that is not measurable.

    On Linux the kernel's high-water mark of resident memory is reset before the call. Freed heap is returned first:
    what an earlier call left behind would be reused without counting.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = kilobytes("/proc/self/status", "VmRSS")
        call()
        return max(0, kilobytes("/proc/self/status", "VmHWM") - before) * 1024
    except OSError:  # not Linux, or a container that forbids it
        return None
