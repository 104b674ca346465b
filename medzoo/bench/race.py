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
from torch import Tensor

from medzoo.bench.contest import OURS, Contest, build, full_float32
from medzoo.bench.memory import measure_peak
from medzoo.bench.peers import matched_parameters

__all__ = ["Difference", "Race", "differences", "spread"]

# What one timing lasts at least: a call that is shorter is repeated.
SHORTEST = 0.01
# Largest difference that passes: absolute, and relative to the largest value of the peer.
ABSOLUTE, RELATIVE = 2e-5, 1e-5
# In bfloat16 two right answers differ more than a wrong one may: there we must lie no farther from the float32 outputs
# than this many times what the peer does, in root mean square.
FARTHER = 1.3
GRADIENT_TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-1}


@dataclass(frozen=True)
class Difference:
    """How far we are from a peer.

    Attributes:
        output: largest absolute difference of the outputs.
        gradient: largest difference of a parameter's gradient, relative to that gradient's largest value; ``None``
            without a backward pass.
        ok: whether both are within the tolerance.
    """

    output: float
    gradient: float | None
    ok: bool


def differences(contest: Contest) -> dict[str, Difference]:
    """Run everyone on the same input and compare with us."""
    x, dtype = contest.inputs[0], contest.case.dtype
    with full_float32():
        outputs = {name: call(x).double() for name, call in contest.calls.items()}
    ours = outputs.pop(OURS)
    exact = None
    if dtype == "bfloat16":
        precise = build(replace(contest.case, dtype="float32", peers=()), x.device)
        exact = precise.calls[OURS](x.float()).double()
    found = {}
    for name, theirs in outputs.items():
        if theirs.shape != ours.shape:
            raise ValueError(f"{name}: expected {tuple(ours.shape)}, got {tuple(theirs.shape)}.")
        output = float((ours - theirs).abs().max())
        if exact is None:
            ok = output <= ABSOLUTE + RELATIVE * float(theirs.abs().max())
        else:
            ok = _distance(ours, exact) <= FARTHER * _distance(theirs, exact)
        gradient = None
        if contest.case.mode == "train":
            pairs = matched_parameters(contest.modules[OURS], contest.modules[name])
            gradient = max(_relative(mine.grad, other.grad) for mine, other in pairs)
            ok = ok and gradient <= GRADIENT_TOLERANCE[dtype]
        found[name] = Difference(output, gradient, ok)
    return found


def _distance(a: Tensor, b: Tensor) -> float:
    """Return the root mean square of the difference."""
    return float((a - b).square().mean().sqrt())


def _relative(mine: Tensor | None, theirs: Tensor | None) -> float:
    """Return the largest difference over the largest value; a gradient that only one side has is infinitely far."""
    if mine is None or theirs is None:
        return 0.0 if mine is theirs else float("inf")
    mine, theirs = mine.double(), theirs.double()
    return float((mine - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


class Race:
    """Times everyone of a contest in turn.

    pytest-benchmark calls :meth:`peers` between its rounds and :meth:`ours` as the round; :meth:`run` does both.
    """

    def __init__(self, contest: Contest) -> None:
        self.contest = contest
        self.times: dict[str, list[float]] = {name: [] for name in contest.calls}
        self.cuda = contest.inputs[0].is_cuda
        self.next_input = 0
        self.once = {name: self._warm(name) for name in contest.calls}
        self.repeats = {name: max(1, min(1000, round(SHORTEST / once))) for name, once in self.once.items()}

    def _warm(self, name: str) -> float:
        """Return about how many seconds a call takes, warm; the first calls of a short one are not."""
        first = self._time(name, 1)
        return max(1e-7, first if first > 1.0 else min(self._time(name, 1) for _ in range(2)))

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
        for name in self.contest.calls:
            if name != OURS:
                self.times[name].append(self._time(name, self.repeats[name]))

    def ours(self) -> None:
        """Time us once."""
        self.times[OURS].append(self._time(OURS, self.repeats[OURS]))

    def rounds(self, budget: float, least: int, most: int = 25) -> int:
        """Return how many rounds fit into about ``budget`` seconds."""
        each = sum(self.once[name] * self.repeats[name] for name in self.once)
        return max(least, min(most, int(budget / each)))

    def run(self, rounds: int) -> None:
        """Time everyone in turn, ``rounds`` times."""
        for _ in range(rounds):
            self.peers()
            self.ours()

    def peaks(self) -> dict[str, int | None]:
        """Return the bytes each needs on top of its tensors and its input."""
        x = self.contest.inputs[0]
        device = x.device
        found = {}
        for name, call in self.contest.calls.items():
            # Gradients of an earlier step would be there already, and not count.
            self.contest.modules[name].zero_grad(set_to_none=True)
            found[name] = measure_peak(lambda call=call: call(x), device)  # type: ignore[misc]
            self.contest.modules[name].zero_grad(set_to_none=True)
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
