"""A blob that is planted in a file is found by the map where it was planted, in voxels and in mm.

The models only average, with weights that are all equal, so that Grad-CAM is the intensity that each cell sees.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_images import slice_fields, write_dicom, write_nifti, write_png, write_series
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

import medzoo
from medzoo.contract import Outputs
from medzoo.input_spec import InputSpec
from medzoo.interpretation.explain import explain
from medzoo.interpretation.explanation import Explanation
from medzoo.nn.encoder import Encoder
from medzoo.nn.head import Head

Array = NDArray[np.float64]

# Kernel, stride and padding of each convolution. All have cells of 4 voxels; only those of the last are bordered by the
# borders of the image.
NETWORKS = {
    "odd kernels": ((3, 2, 1), (3, 2, 1)),
    "without padding": ((3, 1, 0), (2, 2, 0), (4, 2, 0)),
    "padded": ((2, 1, 1), (4, 4, 1)),
    "patches": ((4, 4, 0),),
}
CELL = 4
ORIENTATIONS = [
    np.diag(signs)[:, list(order)]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
SIGMA = 6.0  # mm, of a blob


# Its norms over the channels of a place are 0 where all channels are equal; see the tests of its training.
AVERAGING = [name for name in medzoo.list_models() if name != "swin_encoder_mlp"]


class Averages(Encoder):
    """Convolutions that average."""

    def __init__(self, parts: tuple[tuple[int, int, int], ...], channels: int, dims: int) -> None:
        super().__init__()
        kind = nn.Conv2d if dims == 2 else nn.Conv3d
        self.layers = nn.Sequential(*[kind(channels if i == 0 else 1, 1, *part) for i, part in enumerate(parts)])
        self.feature_info.append({"num_chs": 1, "reduction": CELL, "module": "layers"})

    def stage(self, i: int, x: Tensor) -> Tensor:
        return self.layers(x)


def with_equal_weights(model: medzoo.Classifier) -> medzoo.Classifier:
    """Make every layer average what it sees, without a bias."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.constant_(parameter, 1 / parameter[0].numel())
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    return model.eval()


def averaging(network: str, how: medzoo.Preprocessing) -> medzoo.Classifier:
    dims = len(how.size)
    model = medzoo.Classifier(
        Averages(NETWORKS[network], 1, dims),
        Head(1, 1),
        input_spec=InputSpec("b c h w" if dims == 2 else "b c d h w", channels=1, size=how.size),
        outputs=Outputs(labels=("blob",), task="binary", trained=(True,)),
        preprocessing=how,
    )
    return with_equal_weights(model)


def blob(
    shape: tuple[int, ...], affine: Array, centre: Array, top: float = 1000, body: float = 0.1
) -> NDArray[np.int16]:
    """Return a blob in a body, ``*shape``.

    Args:
        shape: of the array.
        affine: 4 x 4, from its index to mm.
        centre: of the blob, in mm.
        top: intensity of the blob; air is 0.
        body: intensity of the body, as a share of that.
    """
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    dims = len(shape)
    place = index @ affine[:dims, :dims].T + affine[:dims, 3]
    found = np.exp(-((place - centre) ** 2).sum(-1) / (2 * SIGMA**2))
    inside = tuple(slice(side // 8, side - side // 9) for side in shape)  # with air around it, to crop
    found[inside] = np.maximum(found[inside], body)
    return np.rint(top * found).astype(np.int16)


def look(model: medzoo.Classifier, source: Any, **options: Any) -> Explanation:
    found: Any = explain(model, source, **options)
    return found if isinstance(found, Explanation) else found[0]


def check(found: Explanation, index: Array, middle: bool = True) -> None:
    """Check that the map is highest within half a cell of an index of the array, along each of its axes.

    Args:
        found: the explanation.
        index: where the blob was planted.
        middle: whether the map around it is complete, so that its centre of mass is the blob's centre.
    """
    values, dims = found.map.astype(np.float64), len(index)
    assert values.shape == found.image.array.shape[1:]
    # A cell that is oblique to the array reaches over all of its axes.
    cell = np.abs((found.geometry.to_source @ found.frame)[:dims, :dims]).sum(1)
    # The highest place may be a plateau, up to the border of the image; a voxel can be half a voxel beside the centre.
    highest = np.argwhere(values >= values.max() * (1 - 1e-5))
    beside = np.maximum(np.maximum(highest.min(0) - index, index - highest.max(0)), 0)
    assert (beside <= cell / 2 + 0.5).all(), (beside, cell)
    if not middle:
        return
    weight = np.clip(values - values.max() / 2, 0, None)
    grid = np.meshgrid(*map(np.arange, values.shape), indexing="ij")
    centre = np.array([(weight * axis).sum() / weight.sum() for axis in grid])
    assert (np.abs(centre - index) < 0.15 * cell).all(), (centre, index, cell)


def check_mm(found: Explanation, centre: Array, middle: bool = True) -> None:
    """Check the map of a volume against a place in mm, RAS."""
    assert found.image.affine is not None
    index = np.linalg.inv(found.image.affine) @ [*centre, 1]
    check(found, index[:3], middle)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("fit", ["resize", "crop", "square"])
@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_an_x_ray(network: str, fit: Any, kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for shape in ((150, 110), (90, 160)):
        centre = np.array(shape) * rng.uniform(0.4, 0.6, 2)
        pixels = blob(shape, np.diag([0.6, 0.6, 1, 1]), 0.6 * centre, 250).astype(np.uint8)
        path = tmp_path / f"x.{kind}"
        path = write_png(path, pixels) if kind == "png" else write_dicom(path, pixels)
        how = medzoo.Preprocessing(size=(64, 64) if fit == "square" else (72, 80), fit=fit)
        check(look(averaging(network, how), path), centre)


def world(shape: tuple[int, ...], orientation: Array, spacing: tuple[float, ...], tilt: float, seed: int) -> Array:
    """Return an affine whose volume is centred on a random place, turned by ``tilt`` degrees around a random axis."""
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    turn = Rotation.from_rotvec(np.radians(tilt) * axis / np.linalg.norm(axis)).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ orientation @ np.diag(spacing)
    affine[:3, 3] = rng.uniform(-100, 100, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def inside(shape: tuple[int, ...], affine: Array, seed: int, share: float = 0.25) -> Array:
    """Return a random place around the middle of a volume, in mm."""
    index = np.array(shape) * (0.5 + np.random.default_rng(seed).uniform(-share, share, 3) / 2)
    return affine[:3, :3] @ index + affine[:3, 3]


WINDOW: dict[str, Any] = {"intensity": "window", "window": (0.0, 1000.0)}
# For a volume of about 96 × 90 × 105 mm.
HOW = {
    "resized": medzoo.Preprocessing(size=(40, 36, 44), orientation="SPL", **WINDOW),
    "padded": medzoo.Preprocessing(size=(56, 48, 52), orientation="RAS", spacing=(2.0, 2.5, 2.0), fit="crop", **WINDOW),
    "foreground": medzoo.Preprocessing(size=(36, 44, 40), orientation="LPI", foreground=True, **WINDOW),
    "cropped": medzoo.Preprocessing(size=(36, 40, 36), orientation="PSR", spacing=(2.0,) * 3, fit="crop", **WINDOW),
    "as it is": medzoo.Preprocessing(size=(40, 44, 48), **WINDOW),
}
SPACING, SHAPE = (1.6, 2.5, 3.5), (60, 36, 30)


def check_volume(path: Path, orientation: Array, tilt: float, seed: int, how: str, network: str) -> None:
    affine = world(SHAPE, orientation, SPACING, tilt, seed)
    centre = inside(SHAPE, affine, seed)
    check_mm(look(averaging(network, HOW[how]), write_nifti(path, blob(SHAPE, affine, centre), affine)), centre)


@pytest.mark.parametrize("how", HOW)
def test_a_volume(how: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for seed, network in enumerate(NETWORKS):
        orientation = ORIENTATIONS[rng.integers(48)]
        check_volume(tmp_path / "v.nii.gz", orientation, seed % 2 * 25, seed, how, network)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW)
def test_a_volume_in_every_orientation(how: str, tmp_path: Path) -> None:
    for seed, (orientation, network) in enumerate(zip(ORIENTATIONS, itertools.cycle(NETWORKS), strict=False)):
        check_volume(tmp_path / "v.nii.gz", orientation, (0, 12, 33)[seed % 3], seed, how, network)


PATCH = medzoo.Preprocessing(size=(40, 36, 32), orientation="SPL", patch=(80.0, 90.0, 76.0), **WINDOW)


def check_patch(path: Path, network: str, tilt: float, seed: int, border: bool) -> None:
    """Plant a blob beside the centre of a patch; with ``border``, between it and a border of the scan."""
    affine = world(SHAPE, ORIENTATIONS[seed % 48], SPACING, tilt, seed)
    if border:
        axis, end = seed % 3, seed // 3 % 2
        index = (np.array(SHAPE) - 1) / 2
        index[axis] = end * (SHAPE[axis] - 1)
        point = affine[:3, :3] @ index + affine[:3, 3]
        centre = point + affine[:3, axis] * (1 - 2 * end) / SPACING[axis] * 1.5 * SIGMA
    else:
        centre = inside(SHAPE, affine, seed)
        point = centre + np.random.default_rng(seed).uniform(-6, 6, 3)
    source = write_nifti(path, blob(SHAPE, affine, centre, body=0), affine)
    found = look(averaging(network, PATCH), source, points=[tuple(point)], points_frame="RAS")
    check_mm(found, centre, middle=not border)
    assert border or not found.map.all()  # 0 outside of the patch


@pytest.mark.parametrize("border", [False, True], ids=["inside", "border"])
@pytest.mark.parametrize("tilt", [0, 27])
def test_a_patch(border: bool, tilt: float, tmp_path: Path) -> None:
    for seed, network in enumerate(NETWORKS):
        check_patch(tmp_path / "v.nii.gz", network, tilt, seed, border)


@pytest.mark.slow
@pytest.mark.parametrize("border", [False, True], ids=["inside", "border"])
def test_patches_in_every_orientation(border: bool, tmp_path: Path) -> None:
    for seed, network in zip(range(48), itertools.cycle(NETWORKS), strict=False):
        check_patch(tmp_path / "v.nii.gz", network, (0, 8, 41)[seed % 3], seed, border)


@pytest.mark.parametrize("how", ["resized", "padded", "foreground"])
def test_a_dicom_series(how: str, tmp_path: Path) -> None:
    shape, step = (30, 120, 100), 3.5
    # Slices, rows and columns in RAS: DICOM has x to the left and y to the back.
    affine = np.array([[0, 0, -0.9, 20], [0, -0.7, 0, 30], [step, 0, 0, 100], [0, 0, 0, 1]])
    index = np.array([13.3, 70.2, 44.6])
    centre = (affine @ [*index, 1])[:3]
    write_series(tmp_path / "ct", blob(shape, affine, centre), step, RescaleIntercept=0)
    found = look(averaging("odd kernels", HOW[how]), tmp_path / "ct")
    check(found, index)
    check_mm(found, centre)


def test_an_oblique_dicom_series(tmp_path: Path) -> None:
    """A gantry that is not tilted, and a patient who lies at an angle: what MR does routinely."""
    shape, step = (30, 60, 50), 3.5
    turn = Rotation.from_euler("zyx", [10, -18, 25], degrees=True).as_matrix()
    affine = np.eye(4)  # in LPS
    affine[:3, :3] = turn[:, [2, 1, 0]] @ np.diag([step, 1.4, 1.8])
    affine[:3, 3] = -30, -40, 70
    index = np.array([15.3, 33.2, 22.6])
    centre = (affine @ [*index, 1])[:3]
    (tmp_path / "mr").mkdir()
    for i, pixels in enumerate(blob(shape, affine, centre)):
        where = (affine @ [i, 0, 0, 1])[:3].round(6).tolist()
        axes = [*turn[:, 0].round(9), *turn[:, 1].round(9)]
        fields = slice_fields(where, i + 1, ImageOrientationPatient=axes, PixelSpacing=[1.4, 1.8], RescaleIntercept=0)
        write_dicom(tmp_path / "mr" / f"{i}", pixels, **fields)
    for how in ("resized", "padded"):
        found = look(averaging("padded", HOW[how]), tmp_path / "mr")
        check(found, index)
        check_mm(found, centre * [-1, -1, 1])
    point = centre + np.array([5, -4, 3])
    found = look(averaging("without padding", PATCH), tmp_path / "mr", points=[tuple(point)])
    check(found, index)


@pytest.mark.parametrize("name", AVERAGING)
def test_a_registered_model_of_equal_weights(name: str, tmp_path: Path) -> None:
    """The layer and the cells are those of the model; the highest cell is the one whose centre is nearest."""
    spec = medzoo.describe(name)
    side = 256 if spec.input_spec.dims == 2 else 94
    options = dict(spec.tiny) | ({"size": side} if "size" in spec.tiny else {})
    model = with_equal_weights(medzoo.create(name, num_classes=1, **options))
    model.set_outputs(labels=["blob"], task="binary")
    model.intended_use = medzoo.IntendedUse()
    rng = np.random.default_rng(0)
    if spec.input_spec.dims == 2:
        model.preprocessing = medzoo.Preprocessing(size=(side, side))
        shape, affine = (200, 280), np.diag([0.6, 0.6, 1, 1])
        index = np.array(shape) * rng.uniform(0.35, 0.65, 2)
        path = write_png(tmp_path / "x.png", blob(shape, affine, 0.6 * index, 250, body=0).astype(np.uint8))
        check(look(model, path), index, middle=False)
        return
    model.preprocessing = medzoo.Preprocessing(size=(side,) * 3, orientation="SPL", **WINDOW)
    for seed in range(2):
        affine = world(SHAPE, ORIENTATIONS[rng.integers(48)], SPACING, 20, seed)
        centre = inside(SHAPE, affine, seed)
        path = write_nifti(tmp_path / "v.nii.gz", blob(SHAPE, affine, centre, body=0), affine)
        check_mm(look(model, path), centre, middle=False)
