"""Augmentation: random changes of an image that follow from one seed alone; torchvision's in 2D, MONAI's in 3D.

No global random state is read or changed, so threads and worker processes can augment at once, and a row has the same
change in whichever process it is made.

Axes: c channels, s spatial axes (h w or d h w). x y z are left-right, front-back and feet-head of the patient; in 2D x
is left-right and y top-bottom.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from medzoo.contract import Preprocessing
from medzoo.errors import ConfigError
from medzoo.transforms.warp import blur, pull_matrix, warp_image, warp_volume

__all__ = ["Augmentation", "Augmenter", "check_augmentation", "row_seed"]

Axis = Literal["x", "y", "z"]

# Words of a label that name a side, lobes of the lung and coronary arteries included.
_SIDES = {
    *("left", "right", "l", "r", "lt", "rt", "laterality", "sinister", "sinistra", "dexter", "dextra"),
    *("od", "os"),  # the right and the left eye
    *("lul", "lll", "rul", "rml", "rll", "lad", "lcx", "rca", "rv", "lv"),
}
# Words of a label that a mirror image changes: the organs lie on the other side.
_SITUS = {"situs", "heterotaxy", "heterotaxia", "kartagener", "isomerism"}
_SITUS_STARTS = ("dextro", "levo", "laevo")
# Labels that a mirror image keeps, though hardly any patient looks like it.
_ORGANS = {"cardiomegaly", "cardiomediastinum", "heart", "cardiac", "aorta", "aortic", "stomach", "liver", "spleen"}
# Two of LeftLung and of left2lung, but none of L1, a vertebra. A trailing digit is no part of a word.
_WORD = re.compile(r"(?![A-Za-z][0-9])(?:[A-Z]+(?![a-z])|[A-Z]?[a-z]+)")


def row_seed(seed: int, epoch: int, row: str) -> int:
    """Return the seed of a row in an epoch, the same in any process.

    >>> row_seed(0, 1, "a.png") == row_seed(0, 1, "a.png") != row_seed(0, 2, "a.png")
    True
    """
    digest = hashlib.sha256(f"{seed}|{epoch}|{row}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@dataclass(frozen=True)
class Augmentation:
    """What is changed at random, on values before the model's mean and std; each part is off by default.

    Every part that is on is applied to every image, by an amount that is drawn uniformly; factors are drawn uniformly
    on a logarithmic scale. Values are in [0, 1] with the intensities ``unit`` and ``window``, and z-scores otherwise.
    The result is clipped to [0, 1] where the image was inside. With ``zscore_nonzero`` zeros stay 0.

    What moves in from outside of the image is air: 0, and with ``zscore`` the lowest value of each channel.

    Attributes:
        flip: axes that are reversed, each with probability 1/2: x left-right, y front-back (top-bottom in 2D), z
            feet-head.
        rotate90: turn by 0, 90, 180 or 270 degrees, in 3D in the axial plane (x y).
        rotate: largest angle in degrees, in 3D around each axis.
        translate: largest shift along each axis as a share of its side.
        scale: smallest and largest factor; above 1 enlarges.
        shear: largest shear in degrees, in each direction.
        crop: smallest and largest share of the area, or of the volume, that is cut out at random and enlarged to the
            size of the image. Its sides keep their ratio.
        brightness: for [0, 1], values are multiplied by 1 - brightness to 1 + brightness; z-scores are shifted by up to
            this many standard deviations.
        contrast: the distance of the values from their mean is multiplied by 1 - contrast to 1 + contrast.
        gamma: smallest and largest exponent of the values, those that are not in [0, 1] scaled to it by their own range
            and back.
        noise: largest standard deviation of Gaussian noise, in the unit of the values.
        blur: largest sigma of a Gaussian in pixels or voxels.
        allow_label_flips: keep an image's label where :func:`check_augmentation` would refuse to.
    """

    flip: tuple[Axis, ...] = ()
    rotate90: bool = False
    rotate: float = 0.0
    translate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    shear: float = 0.0
    crop: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: tuple[float, float] = (1.0, 1.0)
    noise: float = 0.0
    blur: float = 0.0
    allow_label_flips: bool = False

    def __post_init__(self) -> None:
        for name in ("flip", "scale", "crop", "gamma"):  # lists, as a recipe has them
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, (list, tuple)) else value)
        for fault in self._faults():
            raise ConfigError(f"Augmentation: {fault}")

    def _faults(self) -> Iterator[str]:
        """Yield what is wrong."""
        if not isinstance(self.flip, tuple) or len(set(self.flip)) != len(self.flip) or not {*self.flip} <= {*"xyz"}:
            yield f"expected flip to be a list of 'x', 'y' and 'z', each at most once, got {self.flip!r}."
        for name, least, most in (
            *(("rotate", 0, 180), ("translate", 0, 1), ("shear", 0, 89), ("brightness", 0, 1), ("contrast", 0, 1)),
            *(("noise", 0, math.inf), ("blur", 0, math.inf)),
        ):
            value = getattr(self, name)
            if not _is_number(value) or not least <= value <= most:
                limits = f"in {least} to {most}" if most < math.inf else f"finite and at least {least}"
                yield f"expected {name} to be {limits}, got {value!r}."
        for name in ("scale", "crop", "gamma"):
            pair = getattr(self, name)
            if not isinstance(pair, tuple) or len(pair) != 2 or not all(map(_is_number, pair)):
                yield f"expected {name} to be two numbers, the smallest and the largest, got {pair!r}."
            elif not 0 < pair[0] <= pair[1] or (name == "crop" and pair[1] > 1):
                limits = "0 < smallest <= largest" + " <= 1" * (name == "crop")
                yield f"expected {name} to have {limits}, got {pair}."

    @classmethod
    def modest(cls, dims: int) -> Augmentation:
        """Return small changes that keep any label: what ``medzoo.transform(model, train=True)`` applies.

        Turns of up to 10 degrees, shifts of up to 5 % and scales of 0.9 to 1.1; in 2D also brightness and contrast by
        up to 10 %. Values of a volume are kept: Hounsfield units have a meaning of their own.
        """
        levels = 0.1 if dims == 2 else 0.0
        return cls(rotate=10, translate=0.05, scale=(0.9, 1.1), brightness=levels, contrast=levels)

    def changes(self) -> dict[str, str]:
        """Return what is on, by field, with its amount in words.

        >>> Augmentation(flip=("x",), rotate=10, scale=(0.9, 1.1)).changes()
        {'flip': 'x, each with probability 1/2', 'rotate': 'up to 10 degrees', 'scale': '0.9 to 1.1'}
        """
        units = {"rotate": " degrees", "shear": " degrees", "blur": " pixels", "translate": " of a side"}
        found = {}
        for part in fields(self):
            name, value = part.name, getattr(self, part.name)
            if value == part.default or name == "allow_label_flips":
                continue
            if name == "flip":
                found[name] = f"{', '.join(value)}, each with probability 1/2"
            elif name == "rotate90":
                found[name] = "by 0 to 3 quarters"
            elif isinstance(value, tuple):
                found[name] = f"{value[0]:g} to {value[1]:g}"
            else:
                found[name] = f"up to {value:g}{units.get(name, '')}"
        return found

    @property
    def moves(self) -> bool:
        """Whether anything is interpolated."""
        return bool(self.rotate or self.translate or self.shear) or (self.scale, self.crop) != ((1, 1), (1, 1))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def check_augmentation(augmentation: Augmentation, labels: Sequence[str]) -> tuple[str, ...]:
    """Return notes on labels that a mirror image makes unlikely.

    A flip of x, quarter turns and turns by more than 90 degrees move the left side of the patient to the right of the
    image. Any flip makes a mirror image of the patient.

    Args:
        augmentation: the changes.
        labels: names of the outputs.

    Raises:
        ConfigError: a label names a side, or the situs of the organs, and the augmentation changes it.

    >>> check_augmentation(Augmentation(flip=("x",)), ["Cardiomegaly"])[0].partition(":")[0]
    'Cardiomegaly'
    """
    swaps = ["flip of x"] * ("x" in augmentation.flip) + ["rotate90"] * augmentation.rotate90
    swaps += [f"rotate={augmentation.rotate:g}"] * (augmentation.rotate > 90)
    mirrors = [f"flip of {', '.join(augmentation.flip)}"] * bool(augmentation.flip)
    notes = []
    for label in labels:
        words = {word.lower() for word in _WORD.findall(label)}
        situs = words & _SITUS or any(word.startswith(_SITUS_STARTS) for word in words)
        changed = mirrors if situs else swaps if words & _SIDES else []
        if changed and not augmentation.allow_label_flips:
            raise ConfigError(
                f"augment: the label {label!r} names a side, which {' and '.join(changed)} changes: the image would no "
                "longer be of its label. Leave it out, or set allow_label_flips=True if the label means no side of "
                "the image."
            )
        if mirrors and words & _ORGANS:
            notes.append(
                f"{label}: a {mirrors[0]} puts the organs on the side where hardly any patient has them; the label "
                "stays the same."
            )
    return tuple(notes)


class Augmenter:
    """Changes one image by its seed; it can be pickled, and used by several threads at once.

    Args:
        augmentation: what is changed.
        preprocessing: what the images come from: it states which tensor axis is which, what the values mean, and the
            spacing, by which turns and shears of a volume are those of the body. Without an orientation the axes of a
            volume are z y x; without a spacing voxels are taken as cubes.

    Raises:
        ConfigError: a flip of z of a picture, or quarter turns of a plane with unequal sides.
    """

    def __init__(self, augmentation: Augmentation, preprocessing: Preprocessing) -> None:
        self.augmentation, self.preprocessing = augmentation, preprocessing
        how = preprocessing
        letters = how.orientation or "SPL"[-len(how.size) :]
        at = ["xxyyzz"["RLAPSI".index(letter)] for letter in letters]
        self.axes = {name: 1 + at.index(name) for name in sorted(at)}
        if how.patch is not None:
            self.spacing = tuple(side / n for side, n in zip(how.patch, how.size, strict=True))
        else:
            self.spacing = how.spacing if how.spacing is not None and how.fit == "crop" else (1.0,) * len(how.size)
        missing = set(augmentation.flip) - set(self.axes)
        if missing:
            raise ConfigError("Augmentation: expected flip to name x or y for a model of 2D images, got 'z'.")
        if augmentation.rotate90:
            sides = [how.size[self.axes[name] - 1] for name in "xy"]
            if sides[0] != sides[1]:
                raise ConfigError(
                    f"Augmentation: rotate90 needs equal sides along x and y, got {sides[0]} and {sides[1]}. Use "
                    "rotate, or another size."
                )

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """Return the changed image, ``c *s`` float32, before the model's mean and std; the input is not changed.

        Args:
            image: from :meth:`Transform.pixels`.
            seed: an int, such as from :func:`row_seed`; the same seed gives the same bits.
        """
        generator = torch.Generator().manual_seed(seed % 2**63)
        # One number for each thing that can change, used or not: switching one part on leaves the others as they were.
        draw = iter(torch.rand(32, generator=generator, dtype=torch.float64).tolist())
        image = self._turned(image, draw)
        if self.augmentation.moves:
            image = self._moved(image, draw)
        return self._shaded(image, generator)

    def _turned(self, image: Tensor, draw: Iterator[float]) -> Tensor:
        """Reverse axes and turn by quarters, which keeps every value."""
        how = self.augmentation
        flips = {name: next(draw) < 0.5 for name in "xyz"}
        quarters = int(next(draw) * 4)
        reversed_axes = [self.axes[name] for name in how.flip if flips[name]]
        if reversed_axes:
            image = image.flip(reversed_axes)
        if how.rotate90 and quarters:
            image = image.rot90(quarters, (self.axes["y"], self.axes["x"]))
        return image

    def _moved(self, image: Tensor, draw: Iterator[float]) -> Tensor:
        """Turn, shear, scale, shift and crop in one interpolation."""
        how, sides = self.augmentation, image.shape[1:]

        def around(largest: float, count: int) -> list[float]:
            return [(2 * next(draw) - 1) * largest for _ in range(count)]

        angles = around(how.rotate, 3)
        shares = around(how.translate, 3)
        shear = around(how.shear, 6)
        scale = _between(how.scale, next(draw))
        cut = _between(how.crop, next(draw)) ** (1 / len(sides))  # the share of each side
        places = around(1.0, 3)
        # Cutting out a box and enlarging it is one more scale and shift; the box ends at the centres of border pixels.
        shift = [
            (n * share - place * (1 - cut) * (n - 1) / 2) / cut
            for n, share, place in zip(sides, shares, places, strict=False)
        ]
        fill = _lowest(image) if self.preprocessing.intensity == "zscore" else image.new_zeros(len(image))
        if len(sides) == 2:
            return warp_image(image, angle=angles[0], shift=shift, scale=scale / cut, shear=shear[:2], fill=fill)
        factors = [math.tan(math.radians(a)) for a in shear]
        return warp_volume(image, pull_matrix(angles, shift, scale / cut, factors, self.spacing), fill)

    def _shaded(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """Change the values: gamma, contrast, brightness, blur and noise, in this order."""
        how, before = self.augmentation, image
        amounts = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
        scaled = self.preprocessing.intensity in ("unit", "window")
        # Resampling leaves rounding errors around 0 and 1.
        bounded = scaled and bool(image.min() >= -1e-3) and bool(image.max() <= 1 + 1e-3)
        if how.gamma != (1, 1):
            image = _gamma(image, _between(how.gamma, amounts[0]), bounded)
        if how.contrast:
            mean = _mean(image, self.preprocessing.intensity == "zscore_nonzero")
            image = mean + (image - mean) * (1 + how.contrast * (2 * amounts[1] - 1))
        if how.brightness:
            step = how.brightness * (2 * amounts[2] - 1)
            image = image * (1 + step) if scaled else image + step
        if how.blur:
            sigma = how.blur * amounts[3]
            image = blur(image, sigma) if sigma > 1e-3 else image
        if how.noise:
            image = image + torch.randn(image.shape, generator=generator) * (how.noise * amounts[4])
        if image is before:
            return image
        if self.preprocessing.intensity == "zscore_nonzero":
            image = image.where(before != 0, 0.0)
        return image.clamp(0, 1) if bounded else image


def _between(pair: tuple[float, float], share: float) -> float:
    """Return a number between two on a logarithmic scale.

    >>> round(_between((0.5, 2.0), 0.5), 6)
    1.0
    """
    return math.exp(math.log(pair[0]) + share * (math.log(pair[1]) - math.log(pair[0])))


def _lowest(image: Tensor) -> Tensor:
    """Return the lowest value of each channel, ``c``."""
    return image.flatten(1).amin(1)


def _mean(image: Tensor, nonzero: bool) -> float:
    """Return the mean, the same for any number of threads: a sum by PyTorch is not."""
    values = image.numpy()
    return float(np.mean(values, dtype=np.float64, where=values != 0 if nonzero else True)) if values.any() else 0.0


def _gamma(image: Tensor, exponent: float, bounded: bool) -> Tensor:
    """Raise values to a power, on the scale [0, 1] of their range unless they are in it."""
    if bounded:
        return image.clamp(0, 1) ** exponent
    low, high = float(image.min()), float(image.max())
    return ((image - low) / ((high - low) or 1.0)) ** exponent * (high - low) + low
