"""CUDA graphs of forward passes: one for each kind of input, captured at its first call and replayed afterwards.

A replay launches all kernels of a forward pass at once, where PyTorch launches one after the other from Python. The
kernels read and write fixed addresses, so the input is copied to one, and the result is copied from another.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from medzoo.warn import warn

__all__ = ["Graph", "GraphCache", "Guard", "keep_alive", "record"]

# Passes before the capture: the first compile kernels and choose algorithms, which cannot be captured.
WARM_UP = 3

Result = Tensor | list[Tensor]

# PyTorch allows one capture at a time in a process.
_capturing = threading.Lock()
_held_for_ever: list[object] = []
_held: ContextVar[list[object] | None] = ContextVar("_held", default=None)


def keep_alive(*objects: object) -> None:
    """Keep what the kernels of a graph read by address alive as long as the graph, if one is being recorded.

    The parameters, the input and what a forward pass itself allocates need none of this. What is derived from them
    and cached does: another input may evict it.
    """
    held = _held.get()
    if held is not None:
        held.extend(objects)
    elif torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        _held_for_ever.extend(objects)  # the caller's own graph, whose end is not known here


class Kind(NamedTuple):
    """What inputs that share a graph have in common."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    channels_last: bool


def kind_of(x: Tensor) -> Kind:
    """Return the kind of an input; whatever does not lie channels last is copied to a contiguous one."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    last = layout is not None and not x.is_contiguous() and x.is_contiguous(memory_format=layout)
    return Kind(x.shape, x.dtype, x.device, last)


class Graph:
    """A captured forward pass.

    Args:
        graph: replays it.
        x: where it reads its input.
        out: where it writes its result.
        held: what else it reads.
        free: the end of the last use of its memory pool, by whichever graph.
        stream: which it was captured on. Graphs of a pool share one: libraries keep a workspace for each.
    """

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        x: Tensor,
        out: Result,
        held: list[object],
        free: torch.cuda.Event,
        stream: torch.cuda.Stream,
    ) -> None:
        self._graph, self._x, self._out, self._held, self.free, self.stream = graph, x, out, held, free, stream

    @property
    def pool(self) -> Any:
        """The memory pool, which exists as long as one of its graphs."""
        return self._graph.pool()

    def __call__(self, x: Tensor) -> Result:
        """Replay on the current stream and return a copy of the result, which no later replay writes to."""
        with torch.cuda.device(x.device):
            stream = torch.cuda.current_stream()
            stream.wait_event(self.free)
            try:
                self._x.copy_(x, non_blocking=True)
                self._graph.replay()
                return [t.clone() for t in self._out] if isinstance(self._out, list) else self._out.clone()
            finally:
                self.free.record(stream)

    def wait(self) -> None:
        """Wait until no graph of the pool runs, so that its memory may be given to others."""
        self.free.synchronize()


def record(run: Callable[[Tensor], Result], x: Tensor, beside: Graph | None) -> Graph:
    """Capture ``run`` on an input like ``x``, in the memory pool of another graph or in a new one."""
    held: list[object] = []
    token = _held.set(held)
    _capturing.acquire()
    try:
        # Tensors of inference mode could not be written to outside of it.
        with torch.cuda.device(x.device), torch.inference_mode(False), torch.no_grad():
            fixed = torch.empty_like(x).copy_(x)
            stream = torch.cuda.Stream() if beside is None else beside.stream
            current = torch.cuda.current_stream()
            stream.wait_stream(current)
            try:
                with torch.cuda.stream(stream):
                    for _ in range(WARM_UP):
                        run(fixed)
                graph = torch.cuda.CUDAGraph()
                pool = None if beside is None else beside.pool
                # Other threads may go on allocating.
                with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                    out = run(fixed)
            finally:
                torch.cuda.set_stream(current)  # a capture that fails leaves its own behind
                current.wait_stream(stream)
            free = torch.cuda.Event() if beside is None else beside.free
        return Graph(graph, fixed, out, held, free, stream)
    finally:
        _capturing.release()
        _held.reset(token)


class Guard(Protocol):
    """Says whether graphs that were captured still compute what the model does."""

    capturable: bool

    def holds(self) -> bool:
        """Whether nothing changed that the graphs depend on."""


class GraphCache:
    """The graphs of one model, the last used ones of a bounded number, in one memory pool.

    One pool is enough because graphs of one cache never overlap: a lock orders the threads, and an event the streams.
    Copies and pickles of a model start with an empty cache.
    """

    LIMIT = 8

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._graphs: OrderedDict[Kind, Graph | None] = OrderedDict()  # None: it could not be captured
        self._guard: Guard | None = None
        self._warned = False

    def __reduce__(self) -> tuple[Any, ...]:
        return (GraphCache, ())

    def __len__(self) -> int:
        return sum(graph is not None for graph in self._graphs.values())

    def __call__(self, x: Tensor, run: Callable[[Tensor], Result], guard: Callable[[], Guard], name: str) -> Result:
        """Return what ``run`` gives for ``x``, by a graph where one can be captured.

        Args:
            x: on a GPU, and not empty.
            run: the forward pass, which must do the same for every input of a kind.
            guard: makes a new guard.
            name: of the model, for the warning that it cannot be captured.
        """
        kind = kind_of(x)
        with self._lock:
            graph = self._graphs.get(kind)
            # The guard is asked while the GPU works; if it no longer holds, the result is dropped.
            out = None if graph is None else graph(x)
            if self._guard is None or not self._guard.holds():
                self._drop_all()
                self._guard, out = guard(), None
            if out is not None:
                self._graphs.move_to_end(kind)
                return out
            graph = self._captured(kind, x, run, name) if self._guard.capturable else None
            if graph is not None:
                return graph(x)
        return run(x)

    def clear(self) -> None:
        """Drop all graphs and what they hold."""
        if self._guard is not None:
            with self._lock:
                self._drop_all()

    def _drop_all(self) -> None:
        if (one := self._any_graph()) is not None:
            one.wait()
        self._graphs.clear()
        self._guard = None

    def _any_graph(self) -> Graph | None:
        return next((graph for graph in self._graphs.values() if graph is not None), None)

    def _captured(self, kind: Kind, x: Tensor, run: Callable[[Tensor], Result], name: str) -> Graph | None:
        """Return the graph of a kind, captured if it is new, or ``None`` if that kind cannot be captured."""
        if kind in self._graphs:
            return self._graphs[kind]
        if len(self._graphs) >= self.LIMIT:
            _, oldest = self._graphs.popitem(last=False)
            if oldest is not None:
                oldest.wait()
        try:
            self._graphs[kind] = record(run, x, self._any_graph())
        except Exception as error:
            if not isinstance(error, torch.OutOfMemoryError):  # which may pass
                self._graphs[kind] = None
            self._warn_once(name, kind, error)
        return self._graphs.get(kind)

    def _warn_once(self, name: str, kind: Kind, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        warn(
            f"{name}: an input of {tuple(kind.shape)} runs without a CUDA graph, for none could be captured: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}.",
            RuntimeWarning,
        )
