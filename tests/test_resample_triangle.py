"""The triangle filter against its definition in float64, against Pillow, torchvision and MONAI, and on real volumes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from tensors import pytorch_threads

import medzoo
from medzoo.contract import Preprocessing
from medzoo.io.image import Image
from medzoo.transforms import triangle
from medzoo.transforms.transform import Prepared, Transform
from medzoo.transforms.triangle import AxisGrid, resample_by_triangle, resize_by_triangle

TURNS = [
    np.diag(signs)[:, list(order)]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
SPACING = (0.7, 2.4, 1.3)
# Of values from 0 to 1: the kernel of PyTorch computes positions and weights in float32.
CLOSE = 1e-5


def weights(side: int, centres: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Return what each voxel of an axis contributes to each centre: a triangle, within the axis, that adds up to 1."""
    width = max(1.0, step)
    found = np.clip(1 - np.abs(np.arange(side) - centres[:, None]) / width, 0, None)
    return found / found.sum(1, keepdims=True)


def along(x: NDArray[Any], matrices: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Apply one matrix to each spatial axis of ``c *s``."""
    found = x.astype(np.float64)
    for axis, matrix in enumerate(matrices, start=1):
        found = np.moveaxis(np.tensordot(matrix, found, axes=(1, axis)), 0, axis)
    return found


def resized(x: NDArray[Any], size: tuple[int, ...]) -> NDArray[np.float64]:
    """Resize in float64 so that borders coincide."""
    pairs = list(zip(x.shape[1:], size, strict=True))
    return along(x, [weights(old, (np.arange(new) + 0.5) * old / new - 0.5, old / new) for old, new in pairs])


def spaced(x: NDArray[Any], old: list[float], new: tuple[float, ...]) -> NDArray[np.float64]:
    """Resample in float64 to another spacing, with both first voxels at one place, as MONAI's ``Spacing`` puts them."""
    matrices = []
    for side, before, after in zip(x.shape[1:], old, new, strict=True):
        count = round((side - 1) * before / after + 1)
        matrices.append(weights(side, np.arange(count) * after / before, after / before))
    return along(x, matrices)


def volume(shape: tuple[int, ...], turn: NDArray[np.float64] = TURNS[0], dtype: Any = np.float32) -> Image:
    values = np.random.default_rng(0).integers(0, 1000, shape).astype(dtype)
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(SPACING)
    affine[:3, 3] = (-30, 12, 55)
    return Image(values, affine, SPACING, value_range=(0, 1000))


def oriented(image: Image, orientation: str) -> tuple[NDArray[Any], list[float]]:
    """Return the values, from 0 to 1, and the spacing of an image with its axes in another orientation."""
    x, letters, spacing = image.array.astype(np.float64) / 1000, image.orientation, list(image.spacing or ())
    assert letters is not None
    pairs = ["RL", "AP", "SI"]
    world = ["".join(filter(lambda pair: letter in pair, pairs)) for letter in letters]
    order = [world.index(next(pair for pair in pairs if letter in pair)) for letter in orientation]
    x = x.transpose(0, *[1 + axis for axis in order])
    flips = [1 + i for i, (axis, letter) in enumerate(zip(order, orientation, strict=True)) if letters[axis] != letter]
    return np.flip(x, flips), [spacing[axis] for axis in order]


def prepare(image: Image, **options: Any) -> Prepared:
    how = Preprocessing(**{"orientation": "RAS", "resample": "triangle"} | options)
    return Transform(how, len(image.array), "model").examine(image)


def but_for_the_filter(steps: tuple[str, ...]) -> tuple[str, ...]:
    """Return the steps of the triangle filter as those of the reference are, which name no filter."""
    return tuple(step.removesuffix(" by the triangle filter") for step in steps)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("size", [(5, 9, 11), (40, 3, 13), (17, 8, 64), (17, 23, 12), (1, 1, 1), (33, 46, 24)], ids=str)
def test_resize_is_what_float64_gives(channels: int, size: tuple[int, ...]) -> None:
    x = torch.rand(channels, 17, 23, 12)
    found = resize_by_triangle(x, size)
    assert found.shape == (channels, *size)
    np.testing.assert_allclose(found, resized(x.numpy(), size), atol=CLOSE)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_any_order_in_memory_gives_the_same(order: tuple[int, ...]) -> None:
    x, size = torch.rand(2, 17, 23, 12), (9, 30, 7)
    turned = x.permute(order).contiguous().permute([order.index(axis) for axis in range(4)])
    gaps = torch.rand(2, 34, 24, 12)[:, ::2, 1:]
    gaps.copy_(x)
    for same in (turned, gaps):
        kept = same.clone()
        np.testing.assert_allclose(resize_by_triangle(same, size), resized(x.numpy(), size), atol=CLOSE)
        grid = [AxisGrid(0.4, (side - 1) / new, new) for side, new in zip(x.shape[1:], size, strict=True)]
        matrices = [weights(side, at.centres(), at.step) for side, at in zip(x.shape[1:], grid, strict=True)]
        np.testing.assert_allclose(resample_by_triangle(same, grid), along(x.numpy(), matrices), atol=1e-6)
        assert torch.equal(same, kept), "the input was changed"


def test_a_size_that_is_kept_changes_nothing() -> None:
    x = torch.rand(1, 6, 7, 8)
    assert torch.equal(resize_by_triangle(x, (6, 7, 8)), x)
    assert torch.equal(resample_by_triangle(x, [AxisGrid(0, 1, side) for side in (6, 7, 8)]), x)


def test_either_end_of_an_axis_has_the_same_weights() -> None:
    x, size = torch.rand(1, 31, 20, 8), (9, 47, 3)
    turned = resize_by_triangle(x.flip(1, 2, 3), size).flip(1, 2, 3)
    torch.testing.assert_close(turned, resize_by_triangle(x, size), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (1, 0, 2, 3)], ids=["by channel", "by plane"])
@pytest.mark.parametrize("shape", [(1, 9, 20, 30), (3, 9, 20, 30), (2, 9, 1, 300)], ids=str)
def test_planes_longer_than_the_kernel_counts_are_cut(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], order: tuple[int, ...]
) -> None:
    x = torch.rand([shape[axis] for axis in order]).permute(order)
    whole = resize_by_triangle(x, (4, 25, 7))
    monkeypatch.setattr(triangle, "LONGEST", 64)
    assert torch.equal(resize_by_triangle(x, (4, 25, 7)), whole)


@pytest.mark.parametrize("size", [(20, 31), (63, 7), (64, 20), (1, 50), (33, 100)], ids=str)
def test_planes_are_pillows_and_torchvisions(size: tuple[int, int]) -> None:
    from torchvision.transforms.v2.functional import resize

    x = torch.rand(3, 64, 101)
    found = resize_by_triangle(x, size)
    for plane, own in zip(x.numpy(), found.numpy(), strict=True):
        peer = Pillow.fromarray(plane)
        assert peer.mode == "F"
        np.testing.assert_allclose(own, peer.resize(size[::-1], Pillow.Resampling.BILINEAR), atol=CLOSE)
    torch.testing.assert_close(found, resize(x, list(size), antialias=True), atol=1e-6, rtol=0)
    slices = resize_by_triangle(x[None], (3, *size))[0]
    assert torch.equal(slices, found)


@pytest.mark.parametrize("size", [(8, 13, 40), (11, 10, 12), (16, 20, 9)], ids=str)
def test_growth_alone_is_monais(size: tuple[int, ...]) -> None:
    from monai.transforms import Resize

    x = torch.rand(2, 8, 10, 9)
    peer = Resize(size, mode="trilinear", anti_aliasing=True)(x).as_tensor()
    torch.testing.assert_close(resize_by_triangle(x, size), peer, atol=1e-5, rtol=0)


@pytest.mark.parametrize("turn", TURNS, ids=lambda m: np.array2string(m.flatten().astype(int))[1:-1])
def test_a_volume_of_every_orientation(turn: NDArray[np.float64]) -> None:
    """Oriented, resampled and resized at once, where axes shrink and grow."""
    image = volume((1, 12, 9, 14), turn, np.int16)
    for orientation, size in (("RAS", (7, 20, 10)), ("SPL", (16, 5, 9))):
        x, spacing = oriented(image, orientation)
        found = prepare(image, size=size, orientation=orientation).tensor
        np.testing.assert_allclose(found, resized(x, size), atol=CLOSE)
        assert found.is_contiguous()
        asked = {"size": size, "orientation": orientation, "spacing": (1.9, 0.9, 1.2)}
        found = prepare(image, **asked).tensor
        np.testing.assert_allclose(found, resized(spaced(x, spacing, (1.9, 0.9, 1.2)), size), atol=CLOSE)


RULES: dict[str, dict[str, Any]] = {
    "unit": {},
    "window": {"intensity": "window", "window": (200.0, 700.0)},
    "zscore": {"intensity": "zscore"},
    "zscore_nonzero": {"intensity": "zscore_nonzero"},
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 1.5), (3.1, 80.0, 2.9)], ids=str)
def test_the_intensity_is_that_of_the_volume_before_it_is_resized(
    rule: str, channels: int, spacing: tuple[float, ...] | None
) -> None:
    image = volume((channels, 13, 10, 11), TURNS[11], np.int16)
    x, old = oriented(image, "RAS")
    x = 1000 * (spaced(x, old, spacing) if spacing else x)
    if rule == "window":
        x = np.clip((x - 200) / 500, 0, 1)
    elif rule == "zscore":
        x = (x - x.mean()) / x.std()
    elif rule == "zscore_nonzero":
        for channel in x:
            some = channel[channel != 0]
            channel[channel != 0] = (some - some.mean()) / some.std()
    else:
        x = x / 1000
    asked = {"size": (6, 9, 12), "spacing": spacing, **RULES[rule]}
    found, other = (prepare(image, **asked, resample=name) for name in ("triangle", "reference"))
    np.testing.assert_allclose(found.tensor, resized(x, (6, 9, 12)), atol=4 * CLOSE)
    if spacing is None or rule != "zscore":  # a filter changes what is resampled, and its mean
        assert but_for_the_filter(found.steps) == other.steps
    np.testing.assert_allclose(found.geometry.to_source, other.geometry.to_source, atol=1e-9)


@pytest.mark.parametrize(
    "how", [{}, {"fit": "crop"}, {"foreground": True}, {"foreground": True, "fit": "crop"}], ids=str
)
@pytest.mark.parametrize("size", [(12, 21, 7), (30, 5, 40), (13, 10, 11)], ids=str)
def test_where_nothing_is_resampled_both_filters_give_the_same(how: dict[str, Any], size: tuple[int, ...]) -> None:
    image = volume((1, 13, 10, 11), TURNS[22], np.int16)
    image.array[:, :3], image.array[:, :, 8:] = 0, 0
    if how.get("fit") != "crop":  # nothing shrinks
        size = tuple(max(side, 13) for side in size)
    asked = {"size": size, "intensity": "window", "window": (0.0, 1000.0), **how}
    ours, peer = (prepare(image, **asked, resample=name) for name in ("triangle", "reference"))
    torch.testing.assert_close(ours.tensor, peer.tensor, atol=1e-5, rtol=0)
    np.testing.assert_allclose(ours.geometry.to_source, peer.geometry.to_source, atol=1e-9)
    assert but_for_the_filter(ours.steps) == peer.steps


@pytest.mark.parametrize("angle", [0.0, 0.2, -0.4])
def test_a_finer_spacing_is_monais(angle: float) -> None:
    """Both are linear there, also for a scan that is oblique to the patient."""
    image = volume((2, 13, 10, 11), TURNS[30])
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    assert image.affine is not None
    image.affine[:3, :3] = turn @ image.affine[:3, :3]
    asked = {"size": (10, 20, 16), "spacing": (0.6, 0.7, 0.65), "fit": "crop"}
    ours, peer = (prepare(image, **asked, resample=name) for name in ("triangle", "reference"))
    torch.testing.assert_close(ours.tensor, peer.tensor, atol=1e-5, rtol=0)
    np.testing.assert_allclose(ours.geometry.to_source, peer.geometry.to_source, atol=1e-9)
    assert but_for_the_filter(ours.steps) == peer.steps
    coarse = [prepare(image, **asked | {"spacing": (2, 3, 4)}, resample=name) for name in ("triangle", "reference")]
    np.testing.assert_allclose(coarse[0].geometry.to_source, coarse[1].geometry.to_source, atol=1e-9)


@pytest.mark.parametrize("fit", ["resize", "crop"])
def test_the_steps_name_the_filter(fit: Any) -> None:
    image = volume((1, 13, 10, 11))
    steps = prepare(image, size=(6, 9, 12), spacing=(2.0, 3.0, 4.0), fit=fit, resample="triangle").steps
    named = [step for step in steps if step.endswith(" by the triangle filter")]
    assert [step.split()[0] for step in named] == ["resampled", "resized"][: 2 - (fit == "crop")]


def test_axes_that_are_not_at_right_angles_are_resampled_by_monai() -> None:
    image = volume((1, 13, 10, 11))
    assert image.affine is not None
    image.affine[0, 2] = 0.5  # a gantry tilt
    asked = {"size": (10, 10, 10), "spacing": (2.0, 2.0, 2.0), "fit": "crop"}
    ours, peer = (prepare(image, **asked, resample=name) for name in ("triangle", "reference"))
    assert torch.equal(ours.tensor, peer.tensor)
    assert "resampled to 2, 2, 2 mm linearly, as the axes of the file are not at right angles" in ours.steps


def test_threads_change_nothing() -> None:
    image = volume((1, 60, 70, 50), TURNS[5], np.int16)
    asked, found = {"size": (32, 33, 64), "intensity": "zscore"}, []
    for threads in (1, 2):
        with pytorch_threads(threads):
            found.append([prepare(image, **asked).tensor, prepare(image, **asked, spacing=(1.0, 2.0, 3.0)).tensor])
    assert all(map(torch.equal, *found))


def test_images_have_one_filter() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 90, 70)).astype(np.uint8)
    for fit in ("resize", "square", "crop"):
        both = [Transform(Preprocessing(size=(32, 32), fit=fit, resample=name), 1, "model").examine(pixels)
                for name in ("triangle", "reference")]  # fmt: skip
        assert torch.equal(both[0].tensor, both[1].tensor)


def test_own_defaults_are_fast_and_published_weights_keep_theirs() -> None:
    for name in ("cnn3d_small", "cnn3d_base", "swin_encoder_mlp"):
        assert medzoo.describe(name).preprocessing.resample == "triangle"
    records = [one for name in medzoo.list_models() for one in medzoo.describe(name).weights.values()]
    assert records
    assert all(one.preprocessing is None or one.preprocessing.resample == "reference" for one in records)
    assert Preprocessing(size=(8, 8, 8)).resample == "reference", "what a config without the field means"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn3d_small", "cnn3d_base", "swin_encoder_mlp"])
def test_real_volumes(name: str, data: Path) -> None:
    """The filters differ by hundredths of a standard deviation; what is right is what float64 gives."""
    how = replace(medzoo.describe(name).preprocessing, intensity="zscore")
    for path in (data / "chest_ct" / "dicom_A0002", data / "brain_mr" / "PGBM-002_FLAIR.nii.gz"):
        image = medzoo.read(path)
        ours, peer = (Transform(replace(how, resample=filter_), 1, "model").examine(image)
                      for filter_ in ("triangle", "reference"))  # fmt: skip
        x = oriented(replace(image, array=image.array * np.float64(1000)), how.orientation or "")[0]
        x = (x - x.mean()) / x.std()
        np.testing.assert_allclose(ours.tensor, resized(x, how.size), atol=2e-4)
        differ = (ours.tensor - peer.tensor).double()
        assert 0.01 < float(differ.square().mean().sqrt()) < 0.04, "docs/reading.md states it"
        assert but_for_the_filter(ours.steps) == peer.steps
        np.testing.assert_allclose(ours.geometry.to_source, peer.geometry.to_source, atol=1e-9)
