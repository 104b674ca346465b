"""The fast paths of the Swin encoder against the plain one."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensors import process_group, scatter_weights
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from medzoo.kernels import dispatch
from medzoo.kernels.box_attention import _rows, biased_attention
from medzoo.kernels.cpu import linear as linear_module
from medzoo.kernels.cpu import patch_merging as cpu_patch_merging
from medzoo.kernels.cpu import swin_block as cpu_swin_block
from medzoo.kernels.cpu.linear import linear, onednn_works
from medzoo.kernels.cpu.swin_block import AttentionBranch, MlpBranch
from medzoo.kernels.dispatch import set_fast_paths
from medzoo.kernels.window_partition import box_layout
from medzoo.models.swin import PatchEmbed, SwinEncoder, SwinStage
from medzoo.nn.guards import fast_path_for
from medzoo.nn.patch_merging import OCTANTS, PatchMerging
from medzoo.nn.swin_block import PARTS, WINDOW, SwinBlock, WindowAttention, WindowGrid

MAPS = [(16, 16, 16), (8, 14, 20), (16, 4, 7), (9, 5, 3), (2, 2, 2), (24, 8, 8)]


def make(shifted=True, channels=12, heads=3, rate=0.0, dtype=torch.float32):
    block = SwinBlock(channels, heads, shifted, rate).to(dtype).eval()
    scatter_weights(block)
    with torch.no_grad():
        block.attn.relative_position_bias_table.mul_(20)
    return block


def fast_runs(monkeypatch):
    """Record the calls of the CPU's implementations."""
    calls = []
    for name in ("run_by_slabs", "run_in_training"):
        run = getattr(dispatch, name)
        monkeypatch.setattr(dispatch, name, lambda *a, run=run, name=name, **k: (calls.append(name), run(*a, **k))[1])
    return calls


def gradients(block, x, weight):
    x = x.clone().requires_grad_()
    parameters = dict(block.named_parameters())
    y = block(x)
    got = torch.autograd.grad((y * weight).sum(), [x, *parameters.values()])
    return [y.detach(), *got]


@pytest.mark.parametrize("size", MAPS, ids=str)
@pytest.mark.parametrize("shifted", [False, True])
def test_fast_is_plain_with_and_without_gradients(size, shifted, monkeypatch):
    block, x = make(shifted), torch.randn(2, *size, 12)
    calls = fast_runs(monkeypatch)
    weight = torch.randn_like(x)
    with set_fast_paths(False):
        expected = gradients(block, x, weight)
    assert not calls
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected[0], rtol=1e-5, atol=1e-5)
    for got, want in zip(gradients(block, x, weight), expected, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()
    assert calls == ["run_by_slabs", "run_in_training"]


@torch.no_grad()
def test_training_mode_drops_branches_without_gradients_too():
    block, x = make(rate=0.5).train(), torch.randn(16, 8, 8, 8, 12)
    torch.manual_seed(3)
    fast = block(x)
    torch.manual_seed(3)
    with set_fast_paths(False):
        torch.testing.assert_close(fast, block(x), rtol=1e-5, atol=1e-5)
    kept_out = (fast == x).flatten(1).all(1)
    assert 0 < kept_out.sum() < len(x)


@pytest.mark.parametrize("limit", [2**10, 2**14])
def test_small_slabs_change_nothing(limit, monkeypatch):
    block, x = make(), torch.randn(3, 16, 10, 8, 12)
    weight = torch.randn_like(x)
    with torch.no_grad():
        complete = block(x)
    expected = gradients(block, x, weight)
    monkeypatch.setattr(cpu_swin_block, "SLAB", limit)
    monkeypatch.setattr(cpu_swin_block, "CHUNK", limit)
    with torch.no_grad():
        torch.testing.assert_close(block(x), complete, rtol=1e-5, atol=1e-5)
    for got, want in zip(gradients(block, x, weight), expected, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.parametrize("limit", [2**12, 2**21], ids=["cut twice", "in one piece"])
def test_a_block_may_write_over_its_input(limit, monkeypatch):
    monkeypatch.setattr(cpu_swin_block, "SLAB", limit)
    block, x = make(), torch.randn(2, 16, 10, 8, 12)
    with torch.no_grad():
        expected, spare = block(x), x.clone()
        assert block.forward_inplace(spare) is spare
        assert torch.equal(spare, expected)
        with set_fast_paths(False):
            kept = x.clone()
            assert block.forward_inplace(kept) is not kept
    assert torch.equal(kept, x)
    assert block.forward_inplace(x) is not x, "with gradients the input is needed again"


@torch.no_grad()
def test_a_stage_writes_over_what_nobody_saw_alone(monkeypatch):
    stage = SwinStage(12, 3, (0.0, 0.0), "v2").eval()
    x, seen, over = torch.randn(1, 12, 8, 8, 8), [], []
    run = SwinBlock.forward_inplace
    monkeypatch.setattr(SwinBlock, "forward_inplace", lambda self, y: (over.append((y, run(self, y))), over[-1][1])[1])
    before = x.clone()
    expected = stage(x)
    assert torch.equal(x, before)
    ((given, written),) = over
    assert written is given
    with set_fast_paths(False):
        between = stage.blocks[0](x.movedim(1, -1))
    handle = stage.blocks[0].register_forward_hook(lambda module, args, result: seen.append(result))
    torch.testing.assert_close(stage(x), expected)
    torch.testing.assert_close(seen[0], between, rtol=1e-5, atol=1e-5)
    handle.remove()
    heard = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, result: heard.append(module))
    stage(x)
    handle.remove()
    assert [module for module in heard if isinstance(module, SwinBlock)] == list(stage.blocks)
    compiled = []
    stage.blocks[1]._compiled_call_impl = lambda y: compiled.append(y) or y
    stage(x)
    assert len(compiled) == 1, "block.compile() was ignored"
    stage.blocks[1]._compiled_call_impl = None
    assert len(over) == 1
    stage.blocks[1] = nn.Identity()
    torch.testing.assert_close(stage(x), stage.downsample(between).movedim(-1, 1), rtol=1e-5, atol=1e-5)


def test_the_embedding_can_be_differentiated_twice():
    embed, x = PatchEmbed(1, 4), torch.randn(1, 1, 4, 4, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(embed(x).square().sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert x.grad.abs().sum() > 0


@settings(max_examples=4, deadline=None)
@given(size=st.tuples(*[st.sampled_from([32, 32, 64])] * 3), batch=st.integers(1, 2), order=st.sampled_from([*OCTANTS]))
def test_any_multiple_of_32_gives_what_the_plain_path_gives(size, batch, order):
    encoder = SwinEncoder(1, feature_size=12, patch_merging=order).eval()
    scatter_weights(encoder)
    x = torch.randn(batch, 1, *size)
    with torch.no_grad():
        got = encoder.forward_intermediates(x, range(5), intermediates_only=True)
        with set_fast_paths(False):
            expected = encoder.forward_intermediates(x, range(5), intermediates_only=True)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(3, 8, 2), (2, 3, 2)], ids=str)
def test_gradcheck_in_float64(size):
    block = make(channels=6, dtype=torch.float64)
    x = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.5, 2.0], dtype=torch.float64)
    inputs = block._inputs(x, WindowGrid.of(size, WINDOW, True), None)
    table = block.attn.relative_position_bias_table

    def attention(x, table, *weights):
        return AttentionBranch.apply(x, scale, inputs.geometry, WINDOW, 1e-5, table, *weights)

    check = {"fast_mode": True, "atol": 1e-7}
    assert torch.autograd.gradcheck(attention, (x, table, *inputs.attention), **check)
    assert torch.autograd.gradcheck(lambda x, *w: MlpBranch.apply(x, scale, 1e-5, *w), (x, *inputs.mlp), **check)


def test_dropped_mask_terms_stay_below_the_documented_bound():
    """With queries and keys so large that the mask leaks, boxes differ from it by at most the documented bound."""
    torch.manual_seed(1)
    block = make(channels=6, dtype=torch.float64)
    x = torch.randn(1, 10, 8, 4, 6, dtype=torch.float64)
    grid = WindowGrid.of(x.shape[1:4], WINDOW, True)
    attn = block.attn
    seen = []
    for strength in (1.0, 12.0, 40.0):
        weights = copy.deepcopy(attn.qkv.weight)
        with torch.no_grad():
            attn.qkv.weight[:12] *= strength
            windows = grid.split(block.norm1(x))
            q, k, v = attn.qkv(windows).view(len(windows), -1, 3, 3, 2).permute(2, 0, 3, 1, 4)
            logits = q @ k.mT / 2**0.5 + attn.bias(windows.shape[1])
            apart = (grid.mask(x.device) != 0)[:, None].expand_as(logits)
            reach = (logits.masked_fill(~apart, -1e9).amax(-1) - logits.masked_fill(apart, -1e9).amax(-1)).max()
            bound = 2 * apart.sum(-1).max() * (reach - 100).exp().clamp(max=1) * v.abs().max()
            bound = bound * attn.proj.weight.abs().sum(1).max()
            no_mlp = [block.mlp.linear2.weight, block.mlp.linear2.bias]
            for tensor in no_mlp:
                tensor.zero_()
            fast = block(x)
            with set_fast_paths(False):
                exact = block(x)
            seen.append((fast - exact).abs().max())
            assert seen[-1] <= bound + 1e-12, strength
            attn.qkv.weight.copy_(weights)
    assert seen[0] <= 1e-12


def test_memo_forgets_when_the_table_changes():
    block, x = make(), torch.randn(1, 8, 8, 8, 12)
    table = block.attn.relative_position_bias_table

    def check():
        with torch.no_grad():
            got = block(x)
            with set_fast_paths(False):
                torch.testing.assert_close(got, block(x), rtol=1e-5, atol=1e-5)

    check()
    table.data.copy_(torch.randn_like(table))  # does not count as a new version
    check()
    block.load_state_dict({k: v * 1.5 for k, v in block.state_dict().items()})
    check()
    optimizer = torch.optim.SGD(block.parameters(), 0.1)
    block(x).square().mean().backward()
    optimizer.step()
    check()
    block.attn.relative_position_bias_table = nn.Parameter(torch.randn_like(table))
    check()
    block.double()
    x = x.double()
    check()


def test_memo_is_not_used_under_grad_and_is_left_behind_by_copies():
    block, x = make(), torch.randn(1, 8, 8, 8, 12)
    block(x).sum().backward()
    assert block.attn.memo._known is None
    with torch.inference_mode():
        expected = block(x)
    assert block.attn.memo._known[1]
    assert not any(bias.requires_grad for bias in block.attn.memo._known[1].values())
    block.zero_grad()
    block(x).sum().backward()  # what was cached under inference mode is not in the way
    for again in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert again.attn.memo._known is None
        with torch.no_grad():
            assert torch.equal(again(x), expected)
    assert not any("memo" in key for key in block.state_dict())


def test_what_was_cached_in_inference_mode_serves_training():
    box_layout.cache_clear()
    _rows.cache_clear()
    block, x = make(), torch.randn(1, 8, 10, 3, 12)
    with torch.inference_mode():
        block(x)
    block(x).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


@pytest.mark.parametrize("size", MAPS, ids=str)
@pytest.mark.parametrize("shifted", [False, True])
def test_boxes_by_sdpa_equal_the_plain_path(size, shifted):
    """The implementation for GPUs without Triton; it runs on a CPU as well."""
    block, x = make(shifted), torch.randn(2, *size, 12)
    weight = torch.randn_like(x)
    with set_fast_paths(False):
        expected = gradients(block, x, weight)
    grid = WindowGrid.of(size, WINDOW, shifted)
    block.forward = lambda x: dispatch.run_by_sdpa(block._inputs(x, grid, None))
    for got, want in zip(gradients(block, x, weight), expected, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm()


def test_a_plain_tensor_in_the_place_of_a_parameter_keeps_its_gradient():
    block, x = make(), torch.randn(1, 4, 4, 4, 12)
    weight = block.mlp.linear1.weight.detach().clone().requires_grad_()
    block.requires_grad_(False)
    del block.mlp.linear1.weight
    block.mlp.linear1.weight = weight
    block(x).square().mean().backward()
    assert weight.grad.abs().sum() > 0


def test_threads_that_share_a_block_agree():
    block = make()
    inputs = [torch.randn(1, *size, 12) for size in MAPS]
    with torch.no_grad():
        expected = [copy.deepcopy(block)(x) for x in inputs]
    wrong = []

    def work():
        with torch.no_grad():
            for x, want in zip(inputs, expected, strict=True):
                wrong.extend([1] * (not torch.allclose(block(x), want, atol=1e-6)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("works", [True, False])
def test_linear_is_torchs_with_and_without_onednn(works, monkeypatch):
    if works:
        assert onednn_works() == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(linear_module, "onednn_works", lambda: works)
    x, weight, bias, add = torch.randn(9, 6), torch.randn(4, 6), torch.randn(4), torch.randn(9, 4)
    plain = nn.functional.linear(x, weight, bias)
    torch.testing.assert_close(linear(x, weight, bias), plain)
    torch.testing.assert_close(linear(x, weight), plain - bias)
    torch.testing.assert_close(linear(x, weight, bias, add=add), plain + add)
    torch.testing.assert_close(linear(x, weight, bias, gelu=True), nn.functional.gelu(plain))
    tensors = [t.requires_grad_() for t in (x, weight, bias, add)]
    got = torch.autograd.grad(linear(x, weight, bias, gelu=True, add=add).square().sum(), tensors)
    want = torch.autograd.grad(
        (nn.functional.gelu(nn.functional.linear(x, weight, bias)) + add).square().sum(), tensors
    )
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_a_block_without_onednn_gives_the_same(monkeypatch):
    block, x = make(), torch.randn(1, 8, 9, 7, 12)
    with torch.no_grad():
        expected = block(x)
        monkeypatch.setattr(linear_module, "onednn_works", lambda: False)
        torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-5)


def test_a_private_operator_that_changed_is_not_used(monkeypatch):
    onednn_works.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *args: args[0])
    assert not onednn_works()
    monkeypatch.undo()
    onednn_works.cache_clear()


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("change", ["hook", "parametrized", "subclass", "patched", "autocast"])
def test_what_looks_into_a_block_or_changes_a_part_gets_the_plain_path(change, monkeypatch):
    block, x = make(), torch.randn(1, 8, 8, 8, 12)
    calls, fired = fast_runs(monkeypatch), []
    if change == "hook":
        block.attn.register_forward_hook(lambda *args: fired.append(1))
    elif change == "parametrized":
        parametrize.register_parametrization(block.attn.qkv, "weight", Doubled())
    elif change == "subclass":
        block.mlp.linear1 = OwnLinear(12, 48)
    elif change == "patched":
        block.norm1.forward = lambda x: x
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        got = block(x)
        with set_fast_paths(False):
            assert torch.equal(got, block(x))
    assert not calls
    assert len(fired) == 2 * (change == "hook")


def test_modes_and_transforms_get_the_plain_path():
    from torch.utils.flop_counter import FlopCounterMode

    block, x = make(), torch.randn(1, 4, 4, 4, 12)
    assert fast_path_for(block, x, PARTS)
    with FlopCounterMode(display=False) as counter:
        block(x)
    assert counter.get_total_flops() > 0
    parameters = {k: v.detach() for k, v in block.named_parameters()}

    def loss(parameters, x):
        return torch.func.functional_call(block, parameters, (x,)).square().mean()

    got = torch.func.grad(loss)(parameters, x)
    block(x).square().mean().backward()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_second_derivative_is_refused_and_the_plain_path_gives_it():
    block, x = make(), torch.randn(1, 3, 3, 3, 12, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"expected a first derivative, got create_graph=True.*set_fast_paths"):
        torch.autograd.grad(block(x).sum(), x, create_graph=True)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with set_fast_paths(False), sdpa_kernel(SDPBackend.MATH):
        (first,) = torch.autograd.grad(block(x).sum(), x, create_graph=True)
        assert torch.autograd.grad(first.square().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("frozen", ["all but the table", "the table", "all", "norms"])
def test_frozen_parameters_get_no_gradient_and_the_others_the_same(frozen):
    block, x = make(), torch.randn(1, 8, 8, 5, 12)
    for name, parameter in block.named_parameters():
        table, norm = name.endswith("table"), name.startswith("norm")
        parameter.requires_grad_(
            {"all but the table": table, "the table": not table, "all": False, "norms": not norm}[frozen]
        )
    grads = []
    for plain in (False, True):
        block.zero_grad()
        leaf = x.clone().requires_grad_(frozen == "all")
        if plain:
            with set_fast_paths(False):
                block(leaf).square().mean().backward()
        else:
            block(leaf).square().mean().backward()
        grads.append([leaf.grad, *(p.grad for p in block.parameters())])
    for got, want in zip(*grads, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_a_block_used_twice_and_checkpointed_adds_its_gradients_up():
    block, x = make(), torch.randn(2, 8, 3, 9, 12)

    def run(once):
        block.zero_grad()
        once(once(x)).square().mean().backward()
        return [p.grad.clone() for p in block.parameters()]

    with set_fast_paths(False):
        expected = run(block)
    for once in (block, lambda x: checkpoint(block, x, use_reentrant=False)):
        for got, want in zip(run(once), expected, strict=True):
            assert (got - want).norm() <= 1e-5 * want.norm()


def test_drop_path_in_training_drops_the_same_samples():
    block, x = make(rate=0.5).train(), torch.randn(6, 4, 8, 4, 12)
    weight = torch.randn_like(x)
    torch.manual_seed(3)
    got = gradients(block, x, weight)
    torch.manual_seed(3)
    with set_fast_paths(False):
        expected = gradients(block, x, weight)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_parameters_changed_between_the_passes_are_an_error():
    block, x = make(), torch.randn(1, 4, 4, 4, 12)
    y = block(x)
    with torch.no_grad():
        block.mlp.linear1.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_autocast_trains(monkeypatch):
    block, x = make(), torch.randn(1, 8, 8, 5, 12)
    with torch.autocast("cpu", torch.bfloat16):
        block(x).float().square().mean().backward()
    autocast = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    block(x).square().mean().backward()
    for got, p in zip(autocast, block.parameters(), strict=True):
        assert (got - p.grad).norm() <= 0.1 * p.grad.norm()


def test_distributed_data_parallel_gets_the_same_gradients(tmp_path):
    block, x = make(), torch.randn(1, 8, 4, 4, 12)
    block(x).square().mean().backward()
    expected = [p.grad.clone() for p in block.parameters()]
    block.zero_grad()
    with process_group(tmp_path):
        nn.parallel.DistributedDataParallel(block)(x).square().mean().backward()
    for got, p in zip(expected, block.parameters(), strict=True):
        torch.testing.assert_close(got, p.grad)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    block, x = make().to(dtype), torch.randn(1, 8, 9, 7, 12).to(dtype)
    with torch.no_grad():
        got = block(x)
        with set_fast_paths(False):
            expected = block.double()(x.double())
    assert got.dtype == dtype
    assert (got.double() - expected).norm() <= {torch.float64: 1e-12}.get(dtype, 0.03) * expected.norm()


@pytest.mark.parametrize("order", OCTANTS)
def test_merging_by_slabs_is_merging(order, monkeypatch):
    merge, x = PatchMerging(5, order), torch.randn(2, 8, 4, 6, 5)
    scatter_weights(merge)
    monkeypatch.setattr(cpu_patch_merging, "SLAB", 300)
    weight = torch.randn(2, 4, 2, 3, 10)
    with set_fast_paths(False):
        expected = gradients(merge, x, weight)
    with torch.no_grad():
        torch.testing.assert_close(merge(x), expected[0])
    for got, want in zip(gradients(merge, x, weight), expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("order", OCTANTS)
def test_merging_passes_gradcheck_and_refuses_a_second_derivative(order):
    merge, x = PatchMerging(2, order).double(), torch.randn(1, 2, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    assert "MergeBySlabs" in merge(x).grad_fn.name()
    assert torch.autograd.gradcheck(lambda x, *_: merge(x), (x, *merge.parameters()))
    with pytest.raises(RuntimeError, match=r"PatchMerging: expected a first derivative, got create_graph=True"):
        torch.autograd.grad(merge(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("frozen", ["norm.weight", "norm.bias", "reduction.weight", "x"])
def test_merging_with_a_frozen_part_gives_the_others_the_same(frozen):
    merge, x = PatchMerging(5, "monai1.4"), torch.randn(1, 4, 4, 2, 5)
    parts = {**dict(merge.named_parameters()), "x": x}
    for name, part in parts.items():
        part.requires_grad_(name != frozen)
    moving = [part for name, part in parts.items() if name != frozen]
    with set_fast_paths(False):
        expected = torch.autograd.grad(merge(x).square().sum(), moving)
    for got, want in zip(torch.autograd.grad(merge(x).square().sum(), moving), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_only_what_is_asked_is_published(monkeypatch):
    encoder, x = SwinEncoder(feature_size=12).eval(), torch.randn(1, 1, 32, 32, 32)
    published = []
    publish = SwinEncoder.publish
    monkeypatch.setattr(SwinEncoder, "publish", lambda self, x: (published.append(x.shape[1]), publish(self, x))[1])
    with torch.no_grad():
        encoder(x)
    assert published == [192]


@pytest.mark.gpu
def test_bias_has_the_dtype_of_the_queries_on_a_gpu():
    """CuDNN reads a float32 bias beside bfloat16 queries wrongly, without a word."""
    q, k, v = torch.randn(3, 2, 3, 64, 16, device="cuda").unbind()
    bias = torch.randn(1, 3, 64, 64, device="cuda") * 3
    expected = (q @ k.mT / 4 + bias).softmax(-1) @ v
    got = biased_attention(*(t.bfloat16() for t in (q, k, v)), bias)
    assert (got.float() - expected).norm() <= 0.02 * expected.norm()


@pytest.mark.gpu
def test_gradients_are_finite_where_every_weight_underflows_on_a_gpu():
    """The backward pass of cuDNN gives NaN for 64 tokens whose log-sum-exp is below -88.7."""
    q, k, v = (t.bfloat16().requires_grad_() for t in torch.randn(3, 2, 3, 64, 16, device="cuda"))
    bias = torch.full((1, 3, 64, 64), -95.0, device="cuda")
    biased_attention(q, k, v, bias).float().sum().backward()
    assert all(t.grad.isfinite().all() for t in (q, k, v))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_a_gpu_gives_what_the_cpu_gives_without_waiting():
    block, x = make(), torch.randn(2, 8, 14, 9, 12)
    weight = torch.randn_like(x)
    with set_fast_paths(False):
        expected = gradients(block, x, weight)
    block, x, weight = block.cuda(), x.cuda(), weight.cuda()
    block(x)  # the indices travel once
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = gradients(block, x, weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(got, expected, strict=True):
        assert (a.cpu() - b).norm() <= 1e-3 * b.norm()


def test_attention_without_a_grid_still_runs_alone():
    """The module is public, and its own forward stays what it was."""
    attention = WindowAttention(6, 3, (2, 2, 2))
    assert attention(torch.randn(4, 8, 6)).shape == (4, 8, 6)
