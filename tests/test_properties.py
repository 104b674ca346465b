"""Properties that hold for every size, tested with random ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medzoo.input_spec import InputSpec
from medzoo.nn.conv import ConvEncoder, StageTable
from medzoo.nn.swin_block import WindowGrid

sides = st.tuples(*[st.integers(1, 17)] * 3)


@settings(max_examples=60, deadline=None)
@given(size=sides, shifted=st.booleans())
def test_windows_cover_each_token_once(size, shifted):
    grid = WindowGrid.of(size, (7, 7, 7), shifted)
    tokens = torch.arange(1, 1 + size[0] * size[1] * size[2]).float().view(1, *size, 1)
    windows = grid.split(tokens)
    assert torch.equal(windows[windows > 0].sort().values, tokens.flatten())
    assert torch.equal(grid.join(windows), tokens)


@settings(max_examples=60, deadline=None)
@given(size=sides)
def test_tokens_adjacent_only_after_the_roll_are_masked(size):
    """Two tokens of a window attend to each other exactly when they share a window before the roll."""
    grid = WindowGrid.of(size, (7, 7, 7), shifted=True)
    mask = grid.mask(torch.device("cpu"))
    if mask is None:
        return
    place = torch.stack(torch.meshgrid(*[torch.arange(1, 1 + s) for s in size], indexing="ij"), -1).float()[None]
    windows = grid.split(place)
    for window, apart in zip(windows, mask, strict=True):
        real = (window > 0).all(-1)
        reach = (window[real][:, None] - window[real][None, :]).abs().amax(-1)
        assert torch.equal(apart[real][:, real] == 0, reach < 7)


@given(
    multiple=st.sampled_from([1, 2, 32]),
    minimum=st.integers(1, 100),
    length=st.integers(0, 500),
)
def test_the_nearest_sizes_are_valid_and_none_is_between(multiple, minimum, length):
    spec = InputSpec("b c h w", channels=1, size=(1, 1), multiple=multiple, minimum=minimum)
    below, above = spec.nearest(length)
    assert spec.fits((below, below))
    assert spec.fits((above, above))
    assert not any(spec.fits((between, between)) for between in range(below + 1, above))


@given(kernel=st.integers(1, 4), padding=st.integers(0, 2), pool=st.integers(1, 3), side=st.integers(20, 60))
@settings(max_examples=200, deadline=None)
def test_the_map_size_is_what_the_modules_give(kernel, padding, pool, side):
    table = StageTable(stages=2, kernel=kernel, padding=padding, order=("relu", "pool"), pool=pool)
    encoder, x = ConvEncoder(1, (1, 1), table, dims=2), torch.zeros(1, 1, side, side + 3)
    expected = table.map_size((side, side + 3))
    if 0 in expected:  # InputSpec.minimum excludes these
        with pytest.raises(RuntimeError, match="Output size is too small"):
            encoder(x)
    else:
        assert tuple(encoder(x).shape[2:]) == expected
