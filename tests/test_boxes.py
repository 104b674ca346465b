"""Which boxes there are: plain geometry, against the windows under a mask."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medzoo.kernels.boxes import _runs, arrange, slabs
from medzoo.kernels.window_partition import segments
from medzoo.nn.windows import WindowGrid

CPU = torch.device("cpu")
sides = st.tuples(*[st.integers(1, 24)] * 3)


def axes_of(grid):
    return tuple(segments(*axis) for axis in zip(grid.size, grid.window, grid.shift, strict=True))


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 200), window=st.integers(1, 9), shifted=st.booleans())
def test_segments_tile_the_axis_and_stay_in_their_window(size, window, shifted):
    window = min(size, window)
    shift = window // 2 if shifted and size > window else 0
    cut = segments(size, window, shift)
    assert [s.start for s in cut] == [0, *itertools.accumulate(s.length for s in cut)][:-1]
    assert sum(s.length for s in cut) == size
    assert all(s.length >= 1 and s.padding >= 0 and s.offset + s.length + s.padding <= window for s in cut)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 200), shifted=st.booleans(), longest=st.integers(0, 250))
def test_runs_are_as_few_as_can_be_and_about_even(size, shifted, longest):
    window = min(size, 7)
    axis = segments(size, window, window // 2 if shifted and size > window else 0)
    runs = _runs(axis, longest)
    assert tuple(itertools.chain(*runs)) == axis
    lengths = [sum(s.length for s in run) for run in runs]
    assert all(length <= longest or len(run) == 1 for length, run in zip(lengths, runs, strict=True))
    fewest, length = 1, 0
    for segment in axis:
        fewest, length = (fewest + 1, 0) if length and length + segment.length > longest else (fewest, length)
        length += segment.length
    assert len(runs) == fewest
    # Cut between windows, a run may be longer than an even share by less than one.
    assert max(lengths) <= max(7, -(-size // fewest) + 7)


@settings(max_examples=40, deadline=None)
@given(size=sides, shifted=st.booleans())
def test_boxes_are_the_regions_of_the_mask(size, shifted):
    """Two tokens share a box exactly when they share a window and the mask lets them meet."""
    grid = WindowGrid.of(size, (7, 7, 7), shifted)
    where = arrange(axes_of(grid), grid.window, 1, CPU)
    n = size[0] * size[1] * size[2]
    box = torch.full((n,), -1)
    place = torch.full((n,), -1)
    for group in where.groups:
        rows = where.order[slice(*group.rows)].view(group.boxes, -1)
        real, _ = group.type.places()
        for i, tokens in enumerate(rows[:, : len(real)].long()):
            box[tokens], place[tokens] = group.rows[0] + i, real
    windows = grid.split(torch.arange(1, n + 1).float().view(1, *size, 1))[..., 0].long() - 1
    masks = grid.mask(CPU)
    for i, window in enumerate(windows):
        there = (window >= 0).nonzero().flatten()
        tokens = window[there]
        assert torch.equal(place[tokens], there)
        apart = (masks[i] != 0)[there][:, there] if masks is not None else torch.zeros(len(there), len(there)) > 0
        assert torch.equal(box[tokens][:, None] == box[tokens][None], ~apart)
        # A box sees the padding of its window that the mask lets it see.
        for group in where.groups:
            kind = group.type
            if len(there) and group.rows[0] <= box[tokens[0]] < group.rows[0] + group.boxes:
                row = (masks[i] == 0)[there[0]] if masks is not None else torch.ones(len(window)) > 0
                padding = ((window < 0) & row).nonzero().flatten()
                assert torch.equal(kind.places()[1], padding)


@settings(max_examples=100, deadline=None)
@given(size=sides, shifted=st.booleans(), batch=st.integers(1, 3), tokens=st.integers(1, 5000))
def test_slabs_hold_each_token_once_and_stay_small(size, shifted, batch, tokens):
    grid = WindowGrid.of(size, (7, 7, 7), shifted)
    seen = torch.zeros(batch, *size)
    for place, axes in slabs(grid, batch, tokens):
        slab = seen[place]
        assert tuple(sum(s.length for s in axis) for axis in axes) == slab.shape[1:]
        assert slab.numel() <= max(tokens, 49 * size[2])
        seen[place] += 1
    assert (seen == 1).all()


@settings(max_examples=60, deadline=None)
@given(size=sides, shifted=st.booleans(), batch=st.integers(1, 3))
def test_an_arrangement_can_be_undone(size, shifted, batch):
    grid = WindowGrid.of(size, (7, 7, 7), shifted)
    where = arrange(axes_of(grid), grid.window, batch, CPU)
    tokens = torch.arange(batch * size[0] * size[1] * size[2])
    rows = tokens[where.order.long()]
    assert torch.equal(rows[where.seat.long()], tokens)
    assert len(rows) == len(tokens) + len(where.empty)
    assert where.groups[-1].rows[1] == len(rows)


@pytest.mark.parametrize(("size", "types"), [(48, 27), (24, 8), (12, 27), (6, 1), (16, 27)])
def test_there_are_at_most_27_types(size, types):
    grid = WindowGrid.of((size,) * 3, (7, 7, 7), True)
    assert len(arrange(axes_of(grid), grid.window, 1, CPU).groups) == types
