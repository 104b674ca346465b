"""Timing a row: agreement first, then memory, then everyone in turn, round after round.

Machines drift: their clocks, their neighbours, their caches. A peer timed between our rounds drifts with us, so the
ratio of a round holds where two separate medians would not.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from medzoo.bench.cases import CREATED, Case
from medzoo.bench.contest import OURS, Contest, build, full_float32
from medzoo.bench.memory import measure_peak
from medzoo.bench.peers import matched_parameters

__all__ = ["Difference", "Race", "differences", "spread"]

# What one timing lasts at least: a call that is shorter is repeated.
SHORTEST = 0.01
# Largest difference that passes: absolute, and relative to the largest value of the peer.
ABSOLUTE, RELATIVE = 2e-5, 1e-5
# In bfloat16 two right answers differ more than a wrong one may: there we must lie no farther from the float32 outputs
# than this many times what the peer does, in root mean square. A kernel with BatchNorm folded in is rounded once more
# than one without, which alone makes √2.
FARTHER = 1.5
# Atomic additions on a GPU come in another order each time.
GRADIENT_TOLERANCE = {"cpu": 2e-5, "cuda": 1e-4}
# Statistics of a batch over a few voxels multiply the rounding errors of a tiny model.
TINY_TOLERANCE = 2e-4
# Samples at once in the float32 forward pass that bfloat16 is compared with: it needs twice the memory.
EXACT_BATCH = 4


@dataclass(frozen=True)
class Difference:
    """How far we are from a peer.

    Attributes:
        output: largest absolute difference of the outputs.
        gradient: largest difference of a parameter's gradient, relative to the largest gradient of the same layer;
            ``None`` without a backward pass.
        ok: whether both are within the tolerance.
    """

    output: float
    gradient: float | None
    ok: bool


def differences(contest: Contest) -> dict[str, Difference]:
    """Run everyone on the same input and compare with us; a peer that fails leaves the contest.

    Raises:
        ValueError: our outputs are not finite, or a peer's have another shape.
    """
    x, train = contest.inputs[0], contest.case.mode == "train"
    outputs = {}
    with full_float32():
        for name, call in list(contest.calls.items()):
            out = contest.attempt(name, lambda call=call: call(x).double())  # type: ignore[misc]
            if out is not None:
                outputs[name] = out
        ours = outputs.pop(OURS)
        if not ours.isfinite().all():
            raise ValueError("medzoo: expected finite outputs, got some that are not.")
        exact = _exact(contest.case, x) if outputs and contest.case.dtype == "bfloat16" else None
    found = {}
    for name, theirs in outputs.items():
        if theirs.shape != ours.shape:
            raise ValueError(f"{name}: expected {tuple(ours.shape)}, got {tuple(theirs.shape)}.")
        output = float((ours - theirs).abs().max())
        if exact is None:
            ok = output <= ABSOLUTE + RELATIVE * float(theirs.abs().max())
        else:
            ok = _distance(ours, exact[0]) <= FARTHER * _distance(theirs, exact[0])
        gradient = None
        if train:
            gradient = float(torch.tensor(_relative(contest.modules[OURS], contest.modules[name])).max())
            if exact is None:
                ok = ok and gradient <= (TINY_TOLERANCE if contest.case.tiny else GRADIENT_TOLERANCE[x.device.type])
            else:
                mine, other = (_relative(contest.modules[who], exact[1]) for who in (OURS, name))
                ok = ok and sum(mine) <= FARTHER * sum(other)
        found[name] = Difference(output, gradient, ok)
    return found


def _exact(case: Case, x: Tensor) -> tuple[Tensor, nn.Module]:
    """Return the outputs of the model as created in float32, and that model with its gradients in training."""
    train = case.mode == "train"
    name = OURS if train or case.part else CREATED
    precise = build(replace(case, dtype="float32", graph=False, peers=() if name == OURS else (name,)), x.device)
    # In training the batch is normalised as a whole.
    pieces = torch.split(x.float(), len(x) if train or case.part else EXACT_BATCH)
    return torch.cat([precise.calls[name](piece).double() for piece in pieces]), precise.modules[name]


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the root mean square of the difference."""
    return float((a - b).square().mean().sqrt())


def _relative(ours: nn.Module, peer: nn.Module) -> list[float]:
    """Return each gradient's largest difference over the largest gradient of its layer.

    The layer's, since the gradient of a bias before a normalisation cancels to rounding errors. A gradient that only
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


class Race:
    """Times everyone of a contest in turn.

    pytest-benchmark calls :meth:`peers` between its rounds and :meth:`ours` as the round; :meth:`run` does both.
    """

    def __init__(self, contest: Contest) -> None:
        self.contest = contest
        self.times: dict[str, list[float]] = {name: [] for name in contest.calls}
        self.cuda = contest.inputs[0].is_cuda
        self.next_input = 0
        self.once: dict[str, float] = {}
        for name in list(contest.calls):
            once = contest.attempt(name, lambda name=name: self._warm(name))  # type: ignore[misc]
            if once is not None:
                self.once[name] = once
        self.repeats = {name: max(1, min(1000, round(SHORTEST / once))) for name, once in self.once.items()}

    def _warm(self, name: str) -> float:
        """Return about how many seconds a call takes, warm; the first calls of a short one are not."""
        first = self._time(name, 1)
        enough = 0.3 if self.contest.case.tiny else 1.0
        again = 5 if self.cuda else 2  # a GPU raises its clocks first
        return max(1e-7, first if first > enough else min(self._time(name, 1) for _ in range(again)))

    def _time(self, name: str, repeats: int) -> float:
        """Return the seconds of one call, averaged over ``repeats``."""
        call, inputs = self.contest.calls[name], self.contest.inputs
        turn = [inputs[(self.next_input + i) % len(inputs)] for i in range(repeats)]
        self.next_input += repeats
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
        return begin.elapsed_time(end) / 1000 / repeats

    def peers(self) -> None:
        """Time each peer once."""
        for name in list(self.contest.calls):
            if name == OURS:
                continue
            time = self.contest.attempt(name, lambda name=name: self._time(name, self.repeats[name]))  # type: ignore[misc]
            if time is not None:
                self.times[name].append(time)

    def ours(self) -> None:
        """Time us once."""
        self.times[OURS].append(self._time(OURS, self.repeats[OURS]))

    def rounds(self, budget: float, least: int, most: int = 25) -> int:
        """Return how many rounds fit into about ``budget`` seconds."""
        each = sum(self.once[name] * self.repeats[name] for name in self.contest.calls)
        return max(least, min(most, int(budget / each)))

    def run(self, rounds: int) -> None:
        """Time everyone in turn, ``rounds`` times."""
        for _ in range(rounds):
            self.peers()
            self.ours()

    def peaks(self) -> dict[str, int | None]:
        """Return the bytes each needs on top of its tensors and its input; ``None`` where that cannot be measured.

        A CUDA graph keeps its memory in a pool of its own from its capture on: a replay allocates its output alone.
        """
        x = self.contest.inputs[0]
        found: dict[str, int | None] = {}
        for name, call in list(self.contest.calls.items()):
            if name == OURS and self.contest.case.graph:
                found[name] = None
                continue
            # Gradients of an earlier step would be there already, and not count.
            module = self.contest.modules[name]
            module.zero_grad(set_to_none=True)
            found[name] = self.contest.attempt(
                name,
                lambda call=call: measure_peak(lambda: call(x), x.device),  # type: ignore[misc]
            )
            module.zero_grad(set_to_none=True)
        return found

    def ratios(self, name: str) -> dict[str, float]:
        """Return how many times as long as us a peer took, round by round."""
        pairs = zip(self.times[name], self.times[OURS], strict=True)
        return spread([theirs / ours for theirs, ours in pairs])


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median and the quartiles.

    >>> spread([1.0, 2.0, 3.0, 4.0, 100.0])
    {'median': 3.0, 'low': 2.0, 'high': 4.0}
    """
    if len(values) < 2:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}
