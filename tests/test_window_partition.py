"""The partition of a map into boxes, checked against the windows under a mask."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medzoo.kernels.window_partition import bias_rows, box_layout, cut_axis
from medzoo.nn.swin_block import WindowGrid, relative_position_index

CPU = torch.device("cpu")
sides = st.tuples(*[st.integers(1, 24)] * 3)


def axes_of(grid):
    return tuple(cut_axis(*axis) for axis in zip(grid.size, grid.window, grid.shift, strict=True))


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 200), window=st.integers(1, 9), shifted=st.booleans())
def test_segments_tile_the_axis_and_stay_in_their_window(size, window, shifted):
    window = min(size, window)
    shift = window // 2 if shifted and size > window else 0
    cut = cut_axis(size, window, shift)
    assert [s.start for s in cut] == [0, *itertools.accumulate(s.length for s in cut)][:-1]
    assert sum(s.length for s in cut) == size
    assert all(s.length >= 1 and s.padding >= 0 and s.offset + s.length + s.padding <= window for s in cut)


@settings(max_examples=40, deadline=None)
@given(size=sides, shifted=st.booleans())
def test_boxes_are_the_regions_of_the_mask(size, shifted):
    """Two tokens share a box exactly when they share a window and the mask lets them meet."""
    grid = WindowGrid.of(size, (7, 7, 7), shifted)
    layout = box_layout(axes_of(grid), grid.window, 1, CPU)
    n = size[0] * size[1] * size[2]
    box = torch.full((n,), -1)
    position = torch.full((n,), -1)
    for group in layout.groups:
        rows = layout.gather_index[slice(*group.rows)].view(group.boxes, -1)
        real, _ = group.type.positions()
        for i, tokens in enumerate(rows[:, : len(real)].long()):
            box[tokens], position[tokens] = group.rows[0] + i, real
    windows = grid.split(torch.arange(1, n + 1).float().view(1, *size, 1))[..., 0].long() - 1
    masks = grid.mask(CPU)
    for i, window in enumerate(windows):
        there = (window >= 0).nonzero().flatten()
        tokens = window[there]
        assert torch.equal(position[tokens], there)
        apart = (masks[i] != 0)[there][:, there] if masks is not None else torch.zeros(len(there), len(there)) > 0
        assert torch.equal(box[tokens][:, None] == box[tokens][None], ~apart)
        # A box sees the padding of its window that the mask lets it see.
        for group in layout.groups:
            kind = group.type
            if len(there) and group.rows[0] <= box[tokens[0]] < group.rows[0] + group.boxes:
                row = (masks[i] == 0)[there[0]] if masks is not None else torch.ones(len(window)) > 0
                padding = ((window < 0) & row).nonzero().flatten()
                assert torch.equal(kind.positions()[1], padding)


@settings(max_examples=60, deadline=None)
@given(size=sides, shifted=st.booleans(), batch=st.integers(1, 3))
def test_a_layout_can_be_inverted(size, shifted, batch):
    grid = WindowGrid.of(size, (7, 7, 7), shifted)
    layout = box_layout(axes_of(grid), grid.window, batch, CPU)
    tokens = torch.arange(batch * size[0] * size[1] * size[2])
    rows = tokens[layout.gather_index.long()]
    assert torch.equal(rows[layout.scatter_index.long()], tokens)
    assert len(rows) == len(tokens) + len(layout.padding_rows)
    assert layout.groups[-1].rows[1] == len(rows)


@pytest.mark.parametrize(("size", "types"), [(48, 27), (24, 8), (12, 27), (6, 1), (16, 27)])
def test_there_are_at_most_27_types(size, types):
    grid = WindowGrid.of((size,) * 3, (7, 7, 7), True)
    assert len(box_layout(axes_of(grid), grid.window, 1, CPU).groups) == types


@settings(max_examples=30, deadline=None)
@given(window=st.tuples(*[st.integers(1, 5)] * 3), seed=st.integers(0, 99))
def test_rows_of_the_bias_table_are_those_of_the_relative_position_index(window, seed):
    index = relative_position_index(window)
    generator = torch.Generator().manual_seed(seed)
    queries, keys = (torch.randperm(len(index), generator=generator)[: 1 + seed % len(index)] for _ in range(2))
    assert torch.equal(bias_rows(window, queries, keys), index[queries][:, keys])
