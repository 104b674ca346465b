"""The Triton kernels of the Swin encoder: in Triton's interpreter on the CPU, and on a GPU by marker."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from interpreted import poison, run_interpreted
from torch import nn

import medzoo
from medzoo.kernels import dispatch
from medzoo.kernels.cuda.box_tables import BLOCK, box_tables
from medzoo.kernels.dispatch import set_fast_paths
from medzoo.kernels.window_partition import cut_axis
from medzoo.nn.patch_merging import OCTANTS, PatchMerging
from medzoo.nn.swin_block import SwinBlock, WindowGrid

pytest.importorskip("triton")

# Maps with every kind of border: padding, the seam of a shift, and an axis that fits into one window.
MAPS = [((8, 9, 10), True), ((8, 4, 16), False), ((3, 9, 5), True)]
HALF = torch.float16  # the interpreter multiplies the bits of bfloat16 as if they were integers


def scattered(module):
    """Move every vector and bias table away from its start, where an error in either would not show."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
            elif name.endswith("bias_table"):
                parameter.normal_()
    return module.eval().requires_grad_(False)


def block_of(heads, shifted, width=16):
    torch.manual_seed(0)
    return scattered(SwinBlock(heads * width, heads, shifted, 0.0))


def exactly(module, x):
    """Return what a module's plain path gives in float64."""
    with set_fast_paths(False), torch.no_grad():
        return copy.deepcopy(module).double()(x.double())


def distance(got, expected):
    assert got.shape == expected.shape
    return float((got.double() - expected).norm() / expected.norm())


def tables_of(size, shifted, device="cpu"):
    grid = WindowGrid.of(size, (7, 7, 7), shifted)
    axes = tuple(map(cut_axis, grid.size, grid.window, grid.shift))
    return grid, box_tables(axes, grid.window, torch.device(device))


@pytest.fixture
def used(monkeypatch):
    """Count the calls of the kernels, so that a test cannot pass without them."""
    from medzoo.kernels.cuda import swin_block

    calls = []
    for name in ("attend_in_boxes", "norm_linear", "finish_block"):
        real = getattr(swin_block, name)
        monkeypatch.setattr(
            swin_block, name, lambda *a, real=real, name=name, **k: (calls.append(name), real(*a, **k))[1]
        )
    return calls


@pytest.mark.parametrize(("size", "shifted"), [*MAPS, ((6, 6, 6), False), ((16, 9, 14), True)], ids=str)
def test_tables_hold_each_token_once(size, shifted):
    _, tables = tables_of(size, shifted)
    held = tables.token_of_row[tables.token_of_row >= 0]
    assert held.sort().values.equal(torch.arange(len(tables.scatter_index), dtype=torch.int32))
    assert tables.token_of_row[tables.scatter_index.long()].equal(
        torch.arange(len(tables.scatter_index), dtype=torch.int32)
    )
    assert tables.padding_rows.equal((tables.token_of_row == -1).nonzero().flatten())
    assert tables.gather_index.equal(tables.token_of_row.clamp(min=0))
    rows = torch.zeros(len(tables.token_of_row), dtype=torch.int32)
    for start, kind, first, _ in tables.tiles.tolist():
        tokens, keys, *_ = tables.types[kind].tolist()
        rows[start + first : start + min(first + BLOCK, tokens)] += 1
        assert tables.token_of_row[start + tokens : start + keys].eq(-1).all()
    assert rows.equal((tables.token_of_row >= 0).int())


def test_no_table_starts_within_16_bytes():
    """Triton compiles a kernel once more for a pointer that is not so aligned."""
    _, tables = tables_of((9, 8, 7), True)
    assert all(table.storage_offset() % 4 == 0 for table in tables[:-1])


def test_on_a_cpu_no_kernel_is_asked():
    assert not any(dispatch.kernel_serves(name, torch.zeros(1)) for name in dispatch.KERNELS)


def test_a_triton_that_does_not_run_leaves_the_other_paths(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    dispatch._triton_runs_on.cache_clear()
    with pytest.warns(RuntimeWarning, match=r"Triton is installed but does not run on cuda:0"):
        assert not dispatch._triton_runs_on(device)
    dispatch._triton_runs_on.cache_clear()


def test_every_kernel_has_its_module_and_a_measurement_on_a_gpu():
    root = Path(__file__).parents[1]
    results = [json.loads(file.read_text("utf-8")) for file in (root / "benchmarks/results").glob("*.json")]
    rows = {row["id"]: row for result in results if "cuda" in result["environment"] for row in result["rows"]}
    for kernel in dispatch.KERNELS.values():
        assert (root / f"medzoo/kernels/cuda/{kernel.module}.py").exists()
        assert all(peer["ratio"]["median"] > 1 for peer in rows[kernel.measured]["peers"].values())


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize(("size", "shifted"), MAPS, ids=str)
def interpreted_attention(size, shifted, pair, monkeypatch):
    from medzoo.kernels.cuda.box_attention import attend_in_boxes, fill_biases

    block, (grid, tables) = block_of(2, shifted).double(), tables_of(size, shifted)
    attention, x = block.attn, torch.randn(3, *size, 32).double()
    with set_fast_paths(False), torch.no_grad():
        expected = grid.join(attention(grid.split(x), grid.mask(x.device))).flatten(1, 3)
    qkv = attention.qkv(x.flatten(1, 3))[:, tables.token_of_row.clamp(min=0).long()]
    qkv[:, tables.padding_rows.long()] = attention.qkv.bias
    poison(monkeypatch)
    biases = fill_biases(attention.relative_position_bias_table.float(), tables, (7, 7, 7))
    out, lse = attend_in_boxes(qkv.flatten(0, 1).float(), biases, tables, 2, keep=True, PAIR=pair)
    out = out.view(3, -1, 32)[:, tables.scatter_index.long()]
    assert distance(attention.proj(out.double()), expected) <= 1e-6
    assert lse.view(3, -1, 2)[:, tables.scatter_index.long()].isfinite().all()


@pytest.mark.parametrize("dtype", [HALF, torch.float32], ids=str)
@pytest.mark.parametrize(("size", "shifted"), MAPS[:2], ids=str)
def interpreted_block(size, shifted, dtype, used, monkeypatch):
    """In half precision all layers are kernels, in float32 attention alone."""
    block, x = block_of(1, shifted).to(dtype), torch.randn(2, *size, 16).to(dtype)
    expected = exactly(block, x)
    poison(monkeypatch)
    with torch.no_grad():
        got = block(x)
    assert used == (["norm_linear", "attend_in_boxes", "finish_block"] if dtype == HALF else ["attend_in_boxes"])
    assert distance(got, expected) <= (1e-3 if dtype == HALF else 1e-6)


@pytest.mark.parametrize("order", OCTANTS)
def interpreted_merging(order, monkeypatch):
    merging = scattered(PatchMerging(20, order)).to(HALF)
    x = torch.randn(2, 4, 6, 8, 20).to(HALF)
    expected = exactly(merging, x)
    poison(monkeypatch)
    with torch.no_grad():
        assert distance(merging(x), expected) <= 1e-3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, behind the interpreter
def interpreted_nan():
    """A broken token breaks its box, and no other."""
    block, x = block_of(1, False).to(HALF), torch.randn(1, 8, 8, 8, 16).to(HALF)
    x[0, 7, 7, 7, 3] = torch.nan
    with torch.no_grad():
        got, kept = block(x).isnan(), torch.zeros(1, 8, 8, 8, 16, dtype=torch.bool)
    kept[0, 7, 7, 7] = True
    assert got.equal(kept)


def interpreted_wide_heads_and_odd_ones(used):
    """Heads of 32 run by the kernel; of 8, whose products it cannot make, by the other paths."""
    for width, kernels in ((32, 3), (8, 0)):
        used.clear()
        block, x = block_of(1, True, width).to(HALF), torch.randn(1, 8, 4, 9, width).to(HALF)
        with torch.no_grad():
            assert distance(block(x), exactly(block, x)) <= 1e-3
        assert len(used) == kernels


def interpreted_mixed_types_keep_the_error_of_pytorch():
    block, x = block_of(1, False).to(HALF), torch.randn(1, 4, 4, 4, 16)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"dtype|same type"):
        block(x)


def interpreted_layouts_that_are_not_contiguous():
    """Tokens, and weights that were pruned or are views, give what the plain layers give."""
    block, x = block_of(2, True).to(HALF), torch.randn(2, 32, 8, 4, 9).to(HALF)
    wide = torch.randn(1, 8, 4, 9, 64).to(HALF)[..., ::2]
    with torch.no_grad():
        for y in (x.permute(0, 2, 3, 4, 1), wide, x[:1].permute(0, 2, 3, 4, 1).expand(2, -1, -1, -1, -1)):
            assert distance(block(y), exactly(block, y)) <= 1e-3
        table = block.attn.relative_position_bias_table
        table.data = table.data.t().contiguous().t()
        assert distance(block(y), exactly(block, y)) <= 1e-3
        merging, z = scattered(PatchMerging(16, "v2")).to(HALF), torch.randn(1, 4, 2, 6, 16).to(HALF)
        merging.reduction.weight.data = merging.reduction.weight.data.t().contiguous().t()
        assert distance(merging(z), exactly(merging, z)) <= 1e-3


def interpreted_pruned_layers():
    """An MLP of another width, and fewer channels in the heads than in the tokens."""
    block, x = block_of(1, False).to(HALF), torch.randn(1, 8, 4, 9, 16).to(HALF)
    block.mlp.linear1, block.mlp.linear2 = nn.Linear(16, 40), nn.Linear(40, 16)
    block.to(HALF).requires_grad_(False)
    with torch.no_grad():
        assert distance(block(x), exactly(block, x)) <= 1e-3
        block = block_of(2, False).to(HALF)
        block.attn.heads, block.attn.qkv, block.attn.proj = 1, nn.Linear(32, 48), nn.Linear(16, 32)
        block.attn.relative_position_bias_table = nn.Parameter(block.attn.relative_position_bias_table[:, :1])
        block.to(HALF).requires_grad_(False)
        x = torch.randn(1, 8, 4, 9, 32).to(HALF)
        assert distance(block(x), exactly(block, x)) <= 1e-3


def interpreted_empty_batch():
    block, merging = block_of(1, False).to(HALF), scattered(PatchMerging(16, "v2")).to(HALF)
    x = torch.zeros(0, 8, 8, 8, 16).to(HALF)
    with torch.no_grad():
        assert block(x).shape == x.shape
        assert merging(x).shape == (0, 4, 4, 4, 32)


def interpreted_gelu():
    """Within 5e-5 of the exact one, and 0 or x far out."""
    import triton
    import triton.language as tl

    from medzoo.kernels.cuda import swin_layers

    gelu = swin_layers._gelu

    @triton.jit
    def run(x, out, SIZE: tl.constexpr):  # noqa: N803
        at = tl.arange(0, SIZE)
        tl.store(out + at, gelu(tl.load(x + at)))

    x = torch.linspace(-8, 8, 4096)
    x[:4] = torch.tensor([-1e4, 1e4, -20.0, torch.nan])
    out = torch.empty_like(x)
    run.fn.__globals__["gelu"] = gelu
    run[(1,)](x, out, 4096)
    assert (out - nn.functional.gelu(x.double())).abs()[4:].max() <= 5e-5
    assert out[:3].tolist() == [0.0, pytest.approx(1e4, rel=2e-6), 0.0]
    assert out[3].isnan()


def interpreted_opcheck():
    """The operator's fake kernel and schema match what it does."""
    from medzoo.kernels.cuda.swin_block import box_attention

    grid, tables = tables_of((4, 3, 8), True)
    qkv, table = torch.randn(2 * len(tables.token_of_row), 48), torch.randn(13**3, 1)
    for keep in (True, False):
        arguments = (qkv, table, grid.size, grid.window, grid.shift, (7, 7, 7), keep)
        torch.library.opcheck(box_attention, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.slow
def test_the_kernels_give_equal_values_in_the_interpreter():
    run_interpreted(__file__)


GPU_MAPS = [*MAPS, ((16, 16, 16), True), ((24, 24, 24), False), ((6, 6, 6), True), ((24, 16, 32), True)]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("heads", [1, 3, 6, 12, 24])
@pytest.mark.parametrize(("size", "shifted"), GPU_MAPS[-4:], ids=str)
def test_a_block_on_a_gpu(size, shifted, heads, dtype, used):
    block = block_of(heads, shifted).cuda().to(dtype)
    x = torch.randn(3, *size, 16 * heads, device="cuda").to(dtype)
    expected = exactly(block, x)
    with torch.no_grad():
        got = block(x)
        with set_fast_paths(False):
            plain = block(x)
    assert "attend_in_boxes" in used
    limit = 2e-6 if dtype == torch.float32 else 1.1 * distance(plain, expected)
    assert distance(got, expected) <= limit


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("order", OCTANTS)
@pytest.mark.parametrize("channels", [16, 48, 96, 192, 384])
def test_merging_on_a_gpu(channels, order, dtype):
    merging = scattered(PatchMerging(channels, order)).cuda().to(dtype)
    x = torch.randn(3, 6, 10, 4, channels, device="cuda").to(dtype)
    expected = exactly(merging, x)
    with torch.no_grad(), set_fast_paths(False):
        plain = distance(merging(x), expected)
    with torch.no_grad():
        assert distance(merging(x), expected) <= max(1.1 * plain, 1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(64, 64, 64), (32, 64, 96), (96, 96, 96)], ids=str)
def test_the_encoder_on_a_gpu_is_as_close_to_float64_as_the_plain_path(size):
    torch.manual_seed(0)
    model = scattered(medzoo.create("swin_encoder_mlp", num_classes=0)).cuda()
    x = torch.randn(2, 1, *size, device="cuda")
    expected = exactly(model, x)
    for dtype in (torch.float32, torch.bfloat16):
        half, y = copy.deepcopy(model).to(dtype), x.to(dtype)
        with torch.no_grad():
            got = half(y)
            with set_fast_paths(False):
                plain = half(y)
        assert distance(got, expected) <= 1.2 * distance(plain, expected) + 1e-7
    with torch.no_grad():
        assert (model(x) - expected).abs().max() <= 2e-5


@pytest.mark.gpu
def test_every_write_to_a_bias_table_is_followed_on_a_gpu():
    block = block_of(3, True).cuda()
    x = torch.randn(2, 14, 9, 12, 48, device="cuda")
    with torch.no_grad():
        block(x)
        block.attn.relative_position_bias_table.data.copy_(torch.randn_like(block.attn.relative_position_bias_table))
        assert distance(block(x), exactly(block, x)) <= 2e-6


@pytest.mark.gpu
def test_a_graph_of_the_encoder_follows_its_weights():
    """Capturing fails on any wait for the GPU; the graph derives everything from the weights, so it follows them."""
    model = scattered(medzoo.create("swin_encoder_mlp", num_classes=0)).cuda().bfloat16()
    x = torch.randn(2, 1, 64, 64, 64, device="cuda", dtype=torch.bfloat16)
    with torch.inference_mode():
        model(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(x)
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, model(x))


def gradients_of(model, x, weight):
    """Return the gradients of the input and of every parameter."""
    x = x.detach().requires_grad_()
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    return torch.autograd.grad((model(x).double() * weight).sum(), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_training_step_on_a_gpu(dtype, checkpointing):
    torch.manual_seed(0)
    model = scattered(medzoo.create("swin_encoder_mlp", num_classes=0)).requires_grad_().cuda().to(dtype)
    x, weight = torch.randn(2, 1, 32, 64, 96, device="cuda").to(dtype), torch.randn(2, 768, device="cuda").double()
    with set_fast_paths(False):
        exact = gradients_of(copy.deepcopy(model).double(), x.double(), weight)
        plain = gradients_of(model, x, weight)
    model.set_grad_checkpointing(checkpointing)
    for got, other, expected in zip(gradients_of(model, x, weight), plain, exact, strict=True):
        limit = 1e-5 if dtype == torch.float32 else 1.3 * distance(other, expected) + 1e-4
        assert distance(got, expected) <= limit


@pytest.mark.gpu
def test_only_what_is_trained_gets_gradients_on_a_gpu():
    block, x = block_of(3, True).cuda(), torch.randn(2, 8, 9, 10, 48, device="cuda")
    table = block.attn.relative_position_bias_table.requires_grad_()
    block(x).square().sum().backward()
    assert table.grad.isfinite().all()
    assert table.grad.any()
    assert all(p.grad is None for p in block.parameters() if p is not table)


@pytest.mark.gpu
def test_a_second_derivative_is_refused_on_a_gpu():
    block, x = block_of(3, True).cuda(), torch.randn(1, 8, 9, 10, 48, device="cuda", requires_grad=True)
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(block(x).square().sum(), x, create_graph=True)


@pytest.mark.gpu
def test_branches_are_dropped_on_a_gpu():
    """Stochastic depth drops complete samples: what is left of a sample is its input, or a scaled branch."""
    torch.manual_seed(0)
    block = scattered(SwinBlock(48, 3, True, 0.5)).cuda().train()
    x = torch.randn(16, 7, 7, 7, 48, device="cuda")
    with torch.no_grad():
        unchanged = (block(x) == x).flatten(1).all(1)
    assert 0 < unchanged.sum() < 16


@pytest.mark.gpu
def test_autocast_on_a_gpu_keeps_its_meaning():
    block, x = block_of(3, True).cuda(), torch.randn(2, 14, 9, 12, 48, device="cuda")
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        got = block(x)
        with set_fast_paths(False):
            plain = block(x)
    expected = exactly(block, x)
    assert got.dtype == plain.dtype
    assert distance(got, expected) <= 1.2 * distance(plain, expected)


@pytest.mark.gpu
def test_a_hook_gets_the_plain_path_on_a_gpu(used):
    block, x = block_of(3, True).cuda(), torch.randn(1, 8, 9, 10, 48, device="cuda")
    seen = []
    block.attn.register_forward_hook(lambda *a: seen.append(a))
    with torch.no_grad():
        block(x)
    assert seen
    assert not used


@pytest.mark.gpu
def test_nothing_is_left_of_the_plain_layers_on_a_gpu():
    """A module that is not plain, such as a quantised linear layer, keeps its own forward."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    block, x = block_of(3, False).cuda().bfloat16(), torch.randn(1, 7, 7, 7, 48, device="cuda").bfloat16()
    block.mlp.linear2.__class__ = Doubled
    with torch.no_grad():
        assert distance(block(x), exactly(block, x)) <= 1e-2
