"""Read and preprocess planned images: in the calling thread, in threads that read ahead, or in worker processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from queue import SimpleQueue

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medzoo.errors import DataError
from medzoo.inference.plan import PlannedImage
from medzoo.inference.result import Prediction
from medzoo.io.image import Image
from medzoo.io.options import ReadOptions
from medzoo.io.read import read_image, read_scanned
from medzoo.kernels.cpu.threads import compute_alone
from medzoo.transforms.transform import Prepared, Transform

__all__ = ["ImageReader", "PreparedItem", "read_all", "read_planned"]

# Threads that read ahead, at most: two images at a time leave memory for the model.
READERS = 2
# Seconds to wait for an image that a thread still reads when nobody wants it any more.
PATIENCE = 5.0


@dataclass(frozen=True, eq=False)
class PreparedItem:
    """An image after preprocessing, sent back by the workers.

    Attributes:
        prediction: the prediction without outputs, or with the error.
        tensor: the input of the model; ``None`` if there is an error.
        steps: for the prediction, if the model runs.
        warning: likewise.
        mismatch: likewise.
        kind: the type of the error, if there is one.
        prepared: the image and its geometry, where the reader keeps them.
    """

    prediction: Prediction
    tensor: Tensor | None = None
    steps: tuple[str, ...] = ()
    warning: str = ""
    mismatch: str = ""
    kind: type[DataError] = DataError
    prepared: Prepared | None = None


class ImageReader(Dataset[PreparedItem]):
    """Reads and preprocesses the n-th planned image; pickled to the workers.

    Args:
        transform: the preprocessing.
        images: what is planned.
        provenance: of the model, for the predictions.
        allow_mismatch: accept images of another kind than the model is for.
        keep: return the image and its geometry with each item, which a worker would have to send.
    """

    def __init__(
        self,
        transform: Transform,
        images: tuple[PlannedImage, ...],
        provenance: Mapping[str, str],
        allow_mismatch: bool = False,
        keep: bool = False,
    ) -> None:
        self.transform, self.images, self.provenance = transform, images, provenance
        self.allow_mismatch, self.keep = allow_mismatch, keep
        self.last: tuple[object, Image] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> PreparedItem:
        planned = self.images[index]
        identity = {"stack": planned.stack_name} if planned.stack_name else {}
        base = Prediction(planned.label, identity=identity, provenance=self.provenance, point=planned.given_point)
        try:
            prepared = self.transform.examine(self._read(planned), planned.point, self.allow_mismatch)
        except DataError as error:
            return PreparedItem(replace(base, error=str(error), reason=error.reason), kind=type(error))
        except (MemoryError, RuntimeError, ValueError) as error:
            # An unexpected error of a library in one image must not stop the others.
            reason = str(error).split("\n")[0][:200]
            message = f"{planned.label}: preprocessing failed ({reason}). Check the image with medzoo.show(path)."
            return PreparedItem(replace(base, error=message, reason="preprocessing failed"))
        found = replace(base, identity=dict(prepared.image.identity))
        item = PreparedItem(found, prepared.tensor, prepared.steps, prepared.warning, prepared.mismatch)
        return replace(item, prepared=prepared) if self.keep else item

    def _read(self, planned: PlannedImage) -> Image:
        """Read the image, or return the last one again: a scan may have many points."""
        if isinstance(planned.image, Image):
            return planned.image
        key, last = (planned.image, planned.stack), self.last  # one thread alone reads scans with points
        if last is not None and last[0] == key:
            return last[1]
        self.last = last = None  # two scans at once may exceed the memory
        image = read_planned(planned, self.transform.channels)
        if planned.point is not None:
            self.last = (key, image)
        return image


def read_planned(planned: PlannedImage, channels: int) -> Image:
    """Read a planned image for a model of so many channels, or return the one in memory."""
    if isinstance(planned.image, Image):
        return planned.image
    options = ReadOptions(channels=channels, stack=planned.stack)
    image = read_scanned(planned.headers, options) if planned.headers else read_image(planned.image, options)
    return planned.annotate(image)


def read_all(reader: ImageReader, num_workers: int, batch_size: int) -> Generator[PreparedItem]:
    """Yield every image in order. Close it to end threads and processes that still read.

    Args:
        reader: what reads an image.
        num_workers: processes that read ahead; with 0, threads do, unless there is one image or one core.
        batch_size: images of a forward pass; as many are read ahead, or three for smaller ones.
    """
    if num_workers:
        # The loader yields single images, so that a slow or broken one delays no batch; workers read ahead.
        # It draws a seed for them, from a generator of its own: the random numbers of the process stay as they were.
        own = torch.Generator(torch.get_default_device())
        return _check_workers(DataLoader(reader, batch_size=None, num_workers=num_workers, generator=own))
    return _read_ahead(reader, _reader_threads(reader), max(batch_size, READERS + 1))


def _reader_threads(reader: ImageReader) -> int:
    """Return how many threads read ahead: one for each core beside the one that runs the model, and at most two.

    Decoders, resampling and the model release Python's lock while they compute. There is none in a worker process,
    which is one of several, and one for the points of a scan, which is read once for all of them.
    """
    if len(reader) < 2 or multiprocessing.parent_process() is not None:
        return 0
    affinity = getattr(os, "sched_getaffinity", None)  # of Linux; a container may have fewer cores than the machine
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    most = 1 if any(planned.point is not None for planned in reader.images) else READERS
    return min(most, cores - 1, len(reader) - 1)


def _read_ahead(reader: ImageReader, readers: int, ahead: int) -> Generator[PreparedItem]:
    """Yield every image in order, while threads read the next ones, at most ``ahead`` of them.

    An exception is raised in place of its image. The calling thread reads the first one, so that libraries are not
    imported by two threads at once. A daemon thread does not keep the process from ending.
    """
    tasks: SimpleQueue[tuple[int, Future[PreparedItem]] | None] = SimpleQueue()
    pending: deque[Future[PreparedItem]] = deque()
    threads: list[threading.Thread] = []
    indices = iter(range(len(reader)))
    try:
        for first in itertools.islice(indices, min(readers, 1)):
            pending.append(Future())
            pending[0].set_result(reader[first])
            threads += _start_threads(readers, reader, tasks)
        while threads:
            for index in itertools.islice(indices, ahead + 1 - len(pending)):
                pending.append(Future())
                tasks.put((index, pending[-1]))
            if not pending:
                return
            while not pending[0].done():
                wait((pending[0],), 1.0)  # an interrupt that comes just before a wait is seen after it
            yield pending.popleft().result()
        yield from (future.result() for future in pending)
        yield from map(reader.__getitem__, indices)
    finally:
        for future in pending:
            future.cancel()
        for _ in threads:
            tasks.put(None)
        for thread in threads:
            thread.join(PATIENCE)


def _start_threads(
    readers: int, reader: ImageReader, tasks: SimpleQueue[tuple[int, Future[PreparedItem]] | None]
) -> list[threading.Thread]:
    """Start threads that read; fewer, or none, where the system allows no more."""

    def work() -> None:
        # More would compete with the forward pass for the cores. What is computed does not depend on the number.
        compute_alone()
        while (task := tasks.get()) is not None:
            index, future = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(reader[index])
                except BaseException as error:
                    future.set_exception(error)
            del task, future  # a result is kept by who waits for it alone

    threads = []
    for _ in range(readers):
        thread = threading.Thread(target=work, name="medzoo-reader", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # a limit of the system
            break
        threads.append(thread)
    return threads


def _check_workers(loader: Iterable[PreparedItem]) -> Generator[PreparedItem]:
    """Yield the items, and raise DataError if a worker was killed."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            "a worker process that reads images was killed, probably because memory or shared memory ran out. Use "
            "fewer workers (num_workers=0)."
        ) from error
