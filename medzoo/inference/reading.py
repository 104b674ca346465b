"""Read and preprocess planned images, one after the other or in worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor
from torch.utils.data import Dataset

from medzoo.errors import DataError
from medzoo.inference.plan import PlannedImage
from medzoo.inference.result import Prediction
from medzoo.io.image import Image
from medzoo.io.options import ReadOptions
from medzoo.io.read import read_image, read_scanned
from medzoo.transforms.transform import Prepared, Transform

__all__ = ["ImageReader", "PreparedItem", "check_workers", "read_planned"]


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
        if self.last is None or self.last[0] != (planned.image, planned.stack):
            self.last = None  # two scans at once may exceed the memory
            image = read_planned(planned, self.transform.channels)
            if planned.point is None:
                return image
            self.last = ((planned.image, planned.stack), image)
        return self.last[1]


def read_planned(planned: PlannedImage, channels: int) -> Image:
    """Read a planned image for a model of so many channels, or return the one in memory."""
    if isinstance(planned.image, Image):
        return planned.image
    options = ReadOptions(channels=channels, stack=planned.stack)
    image = read_scanned(planned.headers, options) if planned.headers else read_image(planned.image, options)
    return planned.annotate(image)


def check_workers(loader: Iterable[PreparedItem]) -> Iterator[PreparedItem]:
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
