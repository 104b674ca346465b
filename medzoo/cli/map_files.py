"""The files of maps that ``medzoo explain`` and ``medzoo predict --explain`` write: their names, one set an image."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medzoo.errors import ConfigError

if TYPE_CHECKING:
    from medzoo.inference.result import Predictions
    from medzoo.interpretation.explanation import Explanation

__all__ = ["FORMATS", "MapFiles", "SavedMaps", "add_maps_to_csv", "add_maps_to_json", "with_map_warnings"]

FORMATS = ("nii.gz", "nii", "npy", "png", "jpg")
_PICTURES = ("png", "jpg")
_SUFFIX = re.compile(r"\.(nii\.gz|nii|mhd|mha|dcm|dicom|ima|png|jpe?g|tiff?|npy)$", re.IGNORECASE)
_LONGEST = 180  # bytes; a file system allows 255


@dataclass(frozen=True)
class SavedMaps:
    """The files of one image.

    Attributes:
        files: that were written.
        targets: the outputs that they explain.
        warning: why a map says little.
    """

    files: tuple[Path, ...]
    targets: tuple[str, ...]
    warning: str = ""

    def texts(self) -> tuple[str, str, str]:
        """Return the files, the targets and the warning, each as one text."""
        return "; ".join(map(str, self.files)), "; ".join(self.targets), self.warning


class MapFiles:
    """Writes the maps of images to one folder under names that are not used twice.

    An image has the name of its file, or of the folder of its series, with the stack and the point if it has one. Where
    that is taken, folders are put in front, and at last a number behind. A picture shows all targets; the other formats
    have a file for each, with the target in its name.

    Args:
        folder: which is made.
        sources: the paths of the images, which must lie elsewhere: a second run would read the maps as images.
        formats: of :data:`FORMATS`.

    Raises:
        ConfigError: the folder has images, or cannot be made.
    """

    def __init__(self, folder: str, sources: Sequence[str], formats: Sequence[str] = ("png",)) -> None:
        self.folder = Path(folder)
        # Volumes first: an image without a position then leaves no other file either.
        self.formats = sorted(dict.fromkeys(formats), key=FORMATS.index)
        self._used: set[str] = set()
        self._check_apart(sources)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{folder}: the folder of the maps cannot be made ({error.strerror}). Name one you may write to."
            ) from error

    def _check_apart(self, sources: Sequence[str]) -> None:
        to = self.folder.resolve()
        for source in sources:
            path = Path(source).resolve()
            images = path if path.is_dir() else path.parent
            if to == images or (path.is_dir() and images in to.parents):
                raise ConfigError(
                    f"{self.folder}: expected a folder apart from the images, got one in {images}, which has "
                    "them: the maps would be read as images the next time. Name another folder, such as "
                    f"{images.parent / 'maps'}."
                )

    def save(self, explanation: Explanation) -> SavedMaps:
        """Write the files of one image.

        Raises:
            ConfigError: they cannot be written, or the image has no position for a volume.
        """
        files = []
        for kind in self.formats:
            for target in (None,) if kind in _PICTURES else explanation.targets:
                file = self.folder / self._name(explanation, target, kind)
                files.append((explanation if target is None else explanation[target]).save(file))
        return SavedMaps(tuple(files), explanation.targets, explanation.warning)

    def _name(self, explanation: Explanation, target: str | None, kind: str) -> str:
        """Return a name that no file of this run has."""
        found, identity = explanation.prediction, explanation.prediction.identity
        place = Path(identity.get("file", found.source))
        end = [identity["stack"]] if "stack" in identity else []
        end += ["_".join(f"{value:.1f}" for value in found.point)] if found.point else []
        end += [target] if target is not None else []
        stem = _SUFFIX.sub("", place.name)
        folders = [part for part in place.parent.parts if _plain(part)]
        fronts = [[*folders[len(folders) - count :], stem] for count in range(len(folders) + 1)]
        names = ["_".join(map(_plain, [*front, *end])) for front in fronts]
        numbered = (f"{names[-1]}_{number}" for number in itertools.count(2))
        for name in itertools.chain(names, numbered):
            file = f"{_last_bytes(name)}.{kind}"
            if file.casefold() not in self._used:
                break
        self._used.add(file.casefold())
        return file


def _last_bytes(name: str) -> str:
    return name.encode()[-_LONGEST:].decode("utf-8", "ignore")


def _plain(text: str) -> str:
    """Return a text with what a file name cannot have in every system replaced.

    >>> _plain("Pleural thickening / left"), _plain("/")
    ('Pleural_thickening_left', '')
    """
    return re.sub(r"[^\w.+-]+", "_", text).strip("._")


def with_map_warnings(results: Predictions, maps: Sequence[SavedMaps | None]) -> Predictions:
    """Return the results, with what is known against a map in the warning of its image."""
    noted = results[:]
    for i, (found, own) in enumerate(zip(results, maps, strict=True)):
        if own is not None and own.warning:
            rest = own.warning.removeprefix(f"{found.name}: ") if found.warning else own.warning
            noted[i] = replace(found, warning=f"{found.warning} {rest}".strip())
    return noted


def add_maps_to_json(results: Predictions, maps: Sequence[SavedMaps | None]) -> str:
    """Return the results as JSON; ``explanation`` of an image has its files, targets and warning, or is null."""
    saved = json.loads(results.to_json())
    for prediction, own in zip(saved["predictions"], maps, strict=True):
        prediction["explanation"] = own and {
            "files": [str(file) for file in own.files], "targets": list(own.targets), "warning": own.warning
        }  # fmt: skip
    return json.dumps(saved, indent=2, ensure_ascii=False) + "\n"


def add_maps_to_csv(results: Predictions, maps: Sequence[SavedMaps | None]) -> str:
    """Return CSV with the columns ``explanation``, ``explained`` (targets) and ``explanation_warning``."""
    from medzoo.inference.result import rows_to_csv

    rows = []
    for row, own in zip(results.rows(), maps, strict=True):
        files, targets, warning = ("", "", "") if own is None else own.texts()
        rows.append(row | {"explanation": files, "explained": targets, "explanation_warning": warning})
    return rows_to_csv(rows)
