"""The backward pass of attention over boxes: in Triton's interpreter on the CPU, and on a GPU by marker."""

from __future__ import annotations

import pytest
import torch
from einops import rearrange
from interpreted import poison, run_interpreted

from medzoo.kernels.window_partition import cut_axis
from medzoo.nn.swin_block import WindowGrid, relative_position_index

pytest.importorskip("triton")

# The window of the models. The interpreter runs a program for each row of the table, and gets smaller ones.
WINDOW = (7, 7, 7)


@pytest.fixture(scope="module")
def backward():
    from medzoo.kernels.cuda import box_attention_backward

    return box_attention_backward


def attend_in_windows(qkv, padding, table, grid, sides, batch):
    """Attend in masked windows, in PyTorch's own operations."""
    heads = table.shape[1]
    # The grid pads with zeros.
    windows = grid.split((qkv - padding).view(batch, *grid.size, -1)) + padding
    q, k, v = rearrange(windows, "(b g) t (three m e) -> three b g m t e", three=3, m=heads, b=batch)
    tokens = q.shape[-2]
    index = relative_position_index(sides).to(qkv.device)[:tokens, :tokens]
    score = q @ k.mT * q.shape[-1] ** -0.5 + table[index].permute(2, 0, 1)
    mask = grid.mask(qkv.device)
    if mask is not None:
        score = score + mask[:, None]
    out = rearrange(score.softmax(-1) @ v, "b g m t e -> (b g) t (m e)")
    return grid.join(out).reshape(len(qkv), -1)


def inputs(grid, sides, batch, heads, width, dtype, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    n, c = batch * torch.Size(grid.size).numel(), heads * width

    def made(*shape, spread=1.0):
        return (torch.randn(*shape, generator=generator) * spread).to(device, dtype)

    rows = torch.Size(2 * side - 1 for side in sides).numel()
    tensors = made(n, 3 * c), made(3 * c), made(rows, heads)
    return [t.requires_grad_() for t in tensors], made(n, c)


def gradients(attend, tensors, grad_out):
    out = attend(*tensors)
    return out, torch.autograd.grad(out, tensors, grad_out)


def by_kernels(grid, sides, keep=True):
    from medzoo.kernels.cuda.box_tables import box_tables
    from medzoo.kernels.cuda.swin_block import box_attention

    def attend(qkv, padding, table):
        tables = box_tables(tuple(map(cut_axis, grid.size, grid.window, grid.shift)), grid.window, qkv.device)
        maps = qkv.view(-1, len(tables.scatter_index), qkv.shape[-1])
        rows = maps.index_select(1, tables.gather_index)
        rows = torch.where((tables.token_of_row < 0)[:, None], padding, rows).flatten(0, 1)
        out, _ = box_attention(rows, table, grid.size, grid.window, grid.shift, sides, keep)
        return out.view(len(maps), -1, out.shape[-1]).index_select(1, tables.scatter_index).flatten(0, 1)

    return attend


def reference(tensors, grad_out, grid, sides, batch, dtype=torch.float64):
    """Return output and gradients of the windows, sample by sample to save memory."""
    qkv, *rest = (t.detach().to(dtype).requires_grad_() for t in tensors)
    outs, total = [], [torch.zeros_like(t) for t in rest]
    grads = []
    for one, grad in zip(qkv.chunk(batch), grad_out.to(dtype).chunk(batch), strict=True):
        one = one.detach().requires_grad_()
        out, (first, *others) = gradients(lambda *t: attend_in_windows(*t, grid, sides, 1), [one, *rest], grad)
        outs.append(out.detach())
        grads.append(first)
        total = [a + b for a, b in zip(total, others, strict=True)]
    return torch.cat(outs), [torch.cat(grads), *total]


def distance(got, expected):
    assert got.shape == expected.shape
    got = got.detach()
    return float((got.to(expected.dtype) - expected).norm() / expected.norm().clamp(min=1e-30))


def check(size, sides, shifted, heads, width, dtype, limit, device="cpu", batch=2):
    grid = WindowGrid.of(size, sides, shifted)
    tensors, grad_out = inputs(grid, sides, batch, heads, width, dtype, device)
    expected, exact = reference(tensors, grad_out, grid, sides, batch)
    out, got = gradients(by_kernels(grid, sides), tensors, grad_out)
    assert distance(out, expected) <= limit
    for tensor, mine, theirs in zip(tensors, got, exact, strict=True):
        assert mine.dtype == tensor.dtype
        assert mine.isfinite().all()
        if theirs.norm() > 1e-9 * exact[0].norm():
            assert distance(mine, theirs) <= limit
        else:  # no box has padding: the reference, which adds it and takes it away again, leaves rounding errors
            assert not mine.any()
    _, again = gradients(by_kernels(grid, sides), tensors, grad_out)
    assert all(map(torch.equal, got, again))


# Padding and several blocks of keys, among them a box of 64 tokens, whose padding is a block of its own; a shift with
# and without padding; windows clipped along an axis, where the table is read as MONAI does. None of them is a cube.
MAPS = [
    ((2, 1, 65), (2, 1, 33), False, 2, 16),
    ((5, 3, 4), (3, 2, 3), True, 2, 16),
    ((4, 3, 5), (2, 4, 3), True, 1, 32),
    ((2, 5, 5), (3, 3, 2), False, 1, 64),
]


@pytest.mark.parametrize(("size", "sides", "shifted", "heads", "width"), MAPS)
def interpreted_float32(size, sides, shifted, heads, width, backward, monkeypatch):
    poison(monkeypatch)
    check(size, sides, shifted, heads, width, torch.float32, 1e-5)


def interpreted_float16(backward, monkeypatch):
    poison(monkeypatch)
    check((3, 4, 5), (2, 4, 3), True, 1, 16, torch.float16, 5e-3)


def interpreted_parts_of_a_sum(backward, monkeypatch):
    """Many boxes of a type are summed in parts, here of one block each."""
    from medzoo.kernels.cuda import box_tables

    poison(monkeypatch)
    monkeypatch.setattr(box_tables, "FEWEST", 1)
    monkeypatch.setattr(box_tables, "PROGRAMS", 10**6)
    box_tables.backward_tables.cache_clear()
    check((2, 5, 6), (2, 3, 2), True, 1, 16, torch.float32, 1e-5)
    grid = WindowGrid.of((2, 5, 6), (2, 3, 2), True)
    axes = tuple(map(cut_axis, grid.size, grid.window, grid.shift))
    work = box_tables.backward_tables(axes, grid.window, (2, 3, 2), 2, 1, torch.device("cpu"))
    assert work.split[:, 1].max() > 1
    box_tables.backward_tables.cache_clear()


def interpreted_frozen_table_and_broadcast_gradient(backward):
    sides = (2, 3, 4)
    grid = WindowGrid.of((2, 3, 5), sides, False)
    tensors, _ = inputs(grid, sides, 1, 1, 16, torch.float32)
    _, exact = reference(tensors, torch.ones(30, 16), grid, sides, 1)
    qkv, padding, table = tensors
    by_kernels(grid, sides)(qkv, padding, table.detach()).sum().backward()
    assert table.grad is None
    assert distance(qkv.grad, exact[0]) <= 1e-5


def interpreted_forward_without_logsumexp(backward):
    sides = (2, 3, 4)
    grid = WindowGrid.of(sides, sides, False)
    tensors, _ = inputs(grid, sides, 1, 1, 16, torch.float32)
    out = by_kernels(grid, sides, keep=False)(*tensors)
    with pytest.raises(RuntimeError, match="call the forward pass with keep=True"):
        out.sum().backward()


@pytest.mark.slow
def test_kernels_in_the_interpreter():
    run_interpreted(__file__)


# The maps of an encoder that is given 96³.
STAGES = [(48, 3), (24, 6), (12, 12), (6, 24)]


@pytest.mark.gpu
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("side", "heads"), STAGES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2e-2), (torch.float16, 5e-3), (torch.float32, 1e-4)])
def test_gradients_on_a_gpu(side, heads, shifted, dtype, limit, backward):
    check((side,) * 3, WINDOW, shifted, heads, 16, dtype, limit, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-4)])
def test_wide_heads_on_a_gpu(width, dtype, limit, backward):
    check((10, 15, 9), WINDOW, True, 2, width, dtype, limit, "cuda")
