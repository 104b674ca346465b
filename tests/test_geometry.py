"""A map on the grid of the original image, against SciPy's interpolation at every voxel."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from medzoo.transforms import geometry as geometry_module
from medzoo.transforms.geometry import Geometry, resample_to_grid, resize_affine

ORIENTATIONS = [
    np.diag(signs)[:, list(order)]
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]


def at_every_voxel(geometry: Geometry, values: NDArray[Any], frame: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what ``invert`` documents: linear, the border's value beyond the cells, 0 outside the field of view."""
    dims = len(geometry.size)
    grid = np.stack(np.meshgrid(*map(np.arange, geometry.source_size), indexing="ij")).reshape(dims, -1)
    grid = np.concatenate([grid, np.zeros((3 - dims, grid.shape[1])), np.ones((1, grid.shape[1]))])
    to_tensor = np.linalg.inv(geometry.to_source)
    inside, cells = (to_tensor @ grid)[:dims], (np.linalg.inv(frame) @ to_tensor @ grid)[:dims]
    seen = np.all([(i > -0.501) & (i < side - 0.499) for i, side in zip(inside, geometry.size, strict=True)], 0)
    found = [map_coordinates(channel.astype(np.float64), cells, order=1, mode="nearest") for channel in values]
    return (np.array(found) * seen).reshape(-1, *geometry.source_size)


@st.composite
def geometries(draw: st.DrawFn, dims: int) -> tuple[Geometry, NDArray[np.float32], NDArray[np.float64]]:
    """Draw an orientation, spacing, and crop or padding; a map; and where its cells lie."""
    side, real = st.integers(1, 11), st.floats(-1, 1)
    source, size, cells = (tuple(draw(side) for _ in range(dims)) for _ in range(3))
    matrix = draw(st.sampled_from([m for m in ORIENTATIONS if dims == 3 or m[2, 2] == 1]))
    to_source = np.eye(4)
    to_source[:3, :3] = matrix @ np.diag([*(2 ** (2 * draw(real)) for _ in range(dims)), 1.0][:3])
    centre = np.array([*((n - 1) / 2 for n in size), 0, 0][:3])
    to_source[:dims, 3] = [(n - 1) / 2 + n * draw(real) for n in source]
    to_source[:3, 3] -= to_source[:3, :3] @ centre
    frame = resize_affine(size, cells)
    if draw(st.booleans()):
        frame[range(dims), range(dims)] = [2 ** (1.5 * draw(real)) for _ in range(dims)]
        frame[:dims, 3] = [3 * draw(real) for _ in range(dims)]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return Geometry(source, size, to_source), rng.random((2, *cells)).astype(np.float32), frame


@pytest.mark.parametrize("dims", [2, 3])
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_map_is_what_every_voxel_finds_in_it(dims: int, data: st.DataObject) -> None:
    geometry, values, frame = data.draw(geometries(dims))
    found = geometry.invert(values, frame)
    np.testing.assert_allclose(found, at_every_voxel(geometry, values, frame), atol=1e-5)
    seen = at_every_voxel(geometry, np.ones((1, *values.shape[1:])), frame)[0] > 0.5
    np.testing.assert_array_equal(geometry.covered(), seen)


@pytest.mark.parametrize("matrix", ORIENTATIONS, ids=lambda m: np.array2string(m.flatten().astype(int))[1:-1])
def test_along_the_axes_it_equals_monai(matrix: NDArray[np.float64]) -> None:
    size, source, cells = (12, 15, 9), (16, 10, 13), (4, 5, 3)
    to_source = np.eye(4)
    to_source[:3, :3] = matrix @ np.diag([0.9, 1.3, 0.7])
    to_source[:3, 3] = (np.array(source) - 1) / 2 - to_source[:3, :3] @ ((np.array(size) - 1) / 2) + [1, -2, 0.3]
    geometry = Geometry(source, size, to_source)
    values, frame = torch.rand(2, *cells), resize_affine(size, cells)
    whole = resample_to_grid(values, to_source @ frame, np.eye(4), source, "border")
    torch.testing.assert_close(geometry.invert(values), (whole * geometry.covered()).float(), atol=1e-5, rtol=0)


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_an_oblique_patch_is_resampled_in_its_box_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, size, cells = (tuple(rng.integers(low, high, 3)) for low, high in ((5, 24), (4, 9), (1, 6)))
    to_source = np.eye(4)
    to_source[:3, :3] = Rotation.random(random_state=seed).as_matrix() @ np.diag(rng.uniform(0.5, 2, 3))
    to_source[:3, 3] = rng.uniform(0, source) - to_source[:3, :3] @ ((np.array(size) - 1) / 2)
    geometry, values = Geometry(source, size, to_source), rng.random((2, *cells)).astype(np.float32)
    frame = resize_affine(size, cells)
    frame[:3, 3] += rng.uniform(-1, 1, 3)
    np.testing.assert_allclose(geometry.invert(values, frame), at_every_voxel(geometry, values, frame), atol=1e-5)


def test_memory_does_not_grow_with_the_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an oblique scan no more voxels are resampled at once than a slab has, nor any outside of the box."""
    resampled: list[int] = []
    original = geometry_module.resample_to_grid

    def counted(*args: Any) -> torch.Tensor:
        resampled.append(int(np.prod(args[3])))
        return original(*args)

    monkeypatch.setattr(geometry_module, "resample_to_grid", counted)
    monkeypatch.setattr(geometry_module, "SLAB", 2000)
    to_source = np.eye(4)
    to_source[:3, :3] = Rotation.from_euler("z", 30, degrees=True).as_matrix()
    to_source[:3, 3] = 20
    geometry = Geometry((80, 90, 70), (16, 16, 16), to_source)
    values = np.random.default_rng(0).random((1, 4, 4, 4)).astype(np.float32)
    found = geometry.invert(values)
    assert max(resampled) <= 2000
    assert sum(resampled) < 24 * 24 * 17
    np.testing.assert_allclose(found, at_every_voxel(geometry, values, resize_affine((16,) * 3, (4,) * 3)), atol=1e-5)


def test_a_scan_outside_of_the_tensor_sees_nothing() -> None:
    to_source = np.eye(4)
    to_source[:3, 3] = 40
    geometry = Geometry((8, 8, 8), (4, 4, 4), to_source)
    assert not geometry.invert(torch.ones(2, 4, 4, 4)).any()
    assert not geometry.covered().any()


def placed(matrix: NDArray[np.float64], spacing: tuple[float, ...], tilt: float = 0.0) -> Geometry:
    """Return a tensor of 24 x 20 x 16 voxels in the middle of a volume of 30 x 31 x 32."""
    to_source = np.eye(4)
    turn = Rotation.from_rotvec(np.radians(tilt) * np.array([0.48, 0.6, 0.64])).as_matrix()
    to_source[:3, :3] = turn @ matrix @ np.diag(spacing)
    to_source[:3, 3] = (14.5, 15.0, 15.5) - to_source[:3, :3] @ (11.5, 9.5, 7.5)
    return Geometry((30, 31, 32), (24, 20, 16), to_source)


@pytest.mark.parametrize("cell", [(0, 0, 0), (3, 4, 1), (2, 1, 0)])
@pytest.mark.parametrize("tilt", [0, 20])
@pytest.mark.parametrize("matrix", ORIENTATIONS[::5])
def test_the_peak_is_the_centre_of_the_highest_cell(
    matrix: NDArray[np.float64], tilt: float, cell: tuple[int, ...]
) -> None:
    geometry, cells = placed(matrix, (1.1, 1.2, 1.3), tilt), np.full((4, 5, 2), 0.25, np.float32)
    cells[cell] = 1
    frame = resize_affine(geometry.size, cells.shape)
    centre = np.rint((geometry.to_source @ frame @ [*cell, 1])[:3].clip(0, (29, 30, 31)))
    assert geometry.peak(cells) == geometry.peak(cells, frame) == tuple(centre)
    assert geometry.peak(-cells) == tuple(centre), "of a map that is nowhere above 0 it is the lowest"
    assert geometry.peak(0 * cells) in itertools.product((14, 15), (15,), (15, 16))


@pytest.mark.parametrize("matrix", ORIENTATIONS[::5])
def test_the_peak_was_seen(matrix: NDArray[np.float64]) -> None:
    """Also where it rounds to a voxel that is outside: cells on the border of the tensor, in a coarser volume."""
    for tilt in (0, 10, 25, 40):
        geometry = placed(matrix, (0.4, 0.5, 0.6), tilt)
        seen, frame = geometry.covered().numpy(), np.diag([23 / 3, 19 / 4, 15.0, 1])
        for cell in itertools.product((0, 3), (0, 4), (0, 1)):
            cells = np.zeros((4, 5, 2), np.float32)
            cells[cell] = 1
            at = geometry.peak(cells, frame)
            assert seen[at]
            assert np.abs((geometry.to_source @ frame @ [*cell, 1])[:3] - at).max() < 2


def test_a_cell_outside_of_the_image_is_as_high_as_the_map_at_its_border() -> None:
    shift = np.eye(4)
    shift[0, 3] = -5  # the cells are centred on indices -3.5, 0.5, 4.5 and 8.5
    padded = Geometry((12, 8), (16, 8), shift)
    cells = np.array([[1.0], [0.1], [0.6], [0.0]], np.float32)
    assert padded.peak(cells)[0] == padded.invert(cells[None])[0].numpy().max(1).argmax() == 4
    cells[2] = 0.2  # less than the 0.2125 to which the map rises at the border
    assert padded.peak(cells)[0] == padded.invert(cells[None])[0].numpy().max(1).argmax() == 0
