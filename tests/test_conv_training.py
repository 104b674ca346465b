"""The training path of a convolution stage on a CPU against its plain modules."""

from __future__ import annotations

import copy
import itertools
import threading

import pytest
import torch
from tensors import process_group, pytorch_threads, scatter_weights
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import medzoo
from medzoo.kernels import dispatch
from medzoo.kernels.cpu import conv_slabs, threads
from medzoo.kernels.cpu.threads import in_threads
from medzoo.kernels.dispatch import set_fast_paths
from medzoo.nn.conv import ConvEncoder, ConvStage, StageTable

ORDERS = [("relu", "norm", "pool"), ("relu", "pool", "norm"), ("relu", "pool")]
SIZES = {2: (11, 14), 3: (7, 8, 9)}


@pytest.fixture(autouse=True)
def small_slabs(monkeypatch):
    """Cut small maps too, into slabs of one pooled row."""
    for name in ("SMALL_MAP", "LARGE_MAP", "SLAB_BYTES", "LEAST_SLAB", "ONEDNN"):
        monkeypatch.setattr(conv_slabs, name, 0)


@pytest.fixture
def runs(monkeypatch):
    """Record for each stage that asks whether it ran by slabs."""
    found = []
    run = dispatch.pooled_conv
    monkeypatch.setattr(dispatch, "pooled_conv", lambda inputs: (found.append(y := run(inputs)), y)[1])
    return found


def make(order=ORDERS[0], dims=3, kernel=2, padding=1, pool=2, chans=(2, 5)):
    torch.manual_seed(3)
    stage = ConvStage(*chans, StageTable(1, kernel, padding, order, pool), dims).train()
    scatter_weights(stage)
    return stage


def step(stage, x, *, wanted=True, fast=True):
    """Return output, gradient of the input, of the parameters, and buffers after a step of a copy."""
    stage = copy.deepcopy(stage)
    x = x.detach().clone().requires_grad_(wanted)
    with set_fast_paths(fast):
        y = stage(x)
    generator = torch.Generator().manual_seed(5)
    y.backward(torch.randn(y.shape, generator=generator, dtype=y.dtype))
    grads = {name: p.grad for name, p in stage.named_parameters()} | {"x": x.grad}
    return y.detach(), grads, dict(stage.named_buffers())


def same(stage, x, runs, **options):
    """Compare a step by slabs with one of the plain modules."""
    y, grads, buffers = step(stage, x, fast=True, **options)
    assert len(runs) == 1
    assert runs[0] is not None
    expected, plain, plain_buffers = step(stage, x, fast=False, **options)
    assert len(runs) == 1
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert y.stride(1) == 1
    for name, got in grads.items():
        want = plain[name]
        assert (got is None) == (want is None), name
        if want is not None:
            # The gradient of a bias before a BatchNorm cancels to almost nothing.
            like = max(g.norm() for n, g in plain.items() if g is not None and (n == name or n == "conv.weight"))
            assert (got - want).norm() <= 1e-4 * like, name
    assert buffers.keys() == plain_buffers.keys()
    for name, got in buffers.items():
        torch.testing.assert_close(got, plain_buffers[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("kernel", "padding"), [(2, 1), (3, 0), (3, 1)])
@pytest.mark.parametrize("pool", [2, 3])
def test_gradients_are_those_of_the_plain_modules(order, dims, kernel, padding, pool, runs):
    for batch, wanted in ((1, True), (3, False)):
        runs.clear()
        x = torch.randn(batch, 2, *SIZES[dims])
        same(make(order, dims, kernel, padding, pool), x, runs, wanted=wanted)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize(("size", "chans"), [((5, 6), (1, 8)), ((6, 5, 6), (9, 2)), ((2, 9, 4), (3, 1))], ids=str)
@pytest.mark.parametrize(("limit", "onednn"), [(0, 0), (3000, 0), (2**20, 0), (0, 2**20)])
def test_any_slab_gives_the_same(order, size, chans, limit, onednn, runs, monkeypatch):
    monkeypatch.setattr(conv_slabs, "SLAB_BYTES", limit)
    monkeypatch.setattr(conv_slabs, "ONEDNN", onednn)
    stage = make(order, len(size), kernel=2, padding=1, pool=2, chans=chans)
    same(stage, torch.randn(5, chans[0], *size), runs, wanted=chans[0] == 9)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize(("kernel", "padding", "pool"), [(1, 3, 1), (2, 5, 2), (1, 5, 2), (3, 4, 1)])
@pytest.mark.parametrize("wanted", [True, False], ids=["to input", "to weight"])
def test_padding_larger_than_the_kernel(order, kernel, padding, pool, wanted, runs):
    # In float64, for most of such a map is the bias: a variance of almost nothing makes much of rounding.
    stage = make(order, 3, kernel, padding, pool, chans=(1, 6)).double()
    same(stage, torch.randn(2, 1, 2, 5, 3, dtype=torch.float64), runs, wanted=wanted)


@pytest.mark.parametrize("order", ORDERS[:2], ids="-".join)
@pytest.mark.parametrize("training", [True, False], ids=["batch", "running"])
def test_scales_of_any_sign(order, training, runs):
    stage = make(order)
    with torch.no_grad():
        stage.norm.weight.copy_(torch.tensor([1.0, -1.0, 0.0, -0.3, 2.0]))
    stage.norm.train(training)
    same(stage, torch.randn(2, 2, *SIZES[3]), runs)


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf], ids=str)
def test_infinity_is_where_the_plain_modules_have_it(pool, value, runs, monkeypatch):
    monkeypatch.setattr(conv_slabs, "SLAB_BYTES", 2**20)
    monkeypatch.setattr(conv_slabs, "LEAST_SLAB", 2**20)
    stage = make(pool=pool, kernel=1, padding=0, chans=(2, 4))
    x = torch.randn(2, 2, *SIZES[3])
    x[0, 0, 2:4, 2:4, 2:4], x[0, 0, 4:6, 4, 4] = value, -value
    x[0, :, 4:6, 6:8, 4:6] = value
    with torch.no_grad():
        stage.norm.weight.copy_(torch.tensor([1.0, -1.0, 0.0, -0.3]))
        stage.conv.weight[:, 0, 0, 0, 0] = 1.0
    stage.norm.eval()
    found = [step(stage, x, fast=fast)[0] for fast in (True, False)]
    assert runs[0] is not None
    assert found[1].isinf().any()
    torch.testing.assert_close(*found, equal_nan=True)


@pytest.mark.parametrize("order", ORDERS[:2], ids="-".join)
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize(("track", "affine"), [(True, True), (False, True), (True, False)])
def test_settings_of_the_norm(order, momentum, track, affine, runs):
    stage = make(order)
    stage.norm = nn.BatchNorm3d(5, eps=0.1, momentum=momentum, affine=affine, track_running_stats=track).train()
    if order[1] == "norm":  # it was put last
        stage.pool = stage._modules.pop("pool")
    fast, plain = stage, copy.deepcopy(stage)
    for _ in range(2):
        x = torch.randn(2, 2, *SIZES[3])
        fast(x).sum().backward()
        with set_fast_paths(False):
            plain(x).sum().backward()
    assert len(runs) == 2
    assert None not in runs
    for got, want in zip(fast.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    runs.clear()
    same(stage, x, runs)
    runs.clear()
    same(stage.eval(), x, runs)


@pytest.mark.parametrize("order", ORDERS[:2], ids="-".join)
def test_statistics_of_values_far_from_zero(order, runs):
    stage, x = make(order), torch.randn(4, 2, *SIZES[3])
    with torch.no_grad():
        stage.conv.bias.fill_(3e3)
        exact = copy.deepcopy(stage).double()
        expected = exact(x.double())
    y = stage(x)
    assert runs[0] is not None
    assert (y - expected).abs().max() <= 3e-3 * expected.abs().max(), "a value has seven digits, of which four are lost"
    torch.testing.assert_close(stage.norm.running_var.double(), exact.norm.running_var, rtol=1e-3, atol=0)
    constant = make(order)
    nn.init.zeros_(constant.conv.weight)
    nn.init.constant_(constant.conv.bias, 1234.567)
    constant(x)
    assert (constant.norm.running_var <= 0.9).all()
    assert (runs[1][2] <= (1e-6 * 1234.567) ** 2).all(), "no variance but that of rounding the mean"


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("dims", [2, 3])
def test_equal_values_give_the_gradient_to_the_first(order, dims, runs):
    stage = make(order, dims, kernel=3, padding=1, chans=(1, 4))
    with torch.no_grad():
        stage.conv.weight.abs_()
        if stage._modules.get("norm"):
            stage.norm.weight.copy_(torch.tensor([1.0, -1.0, 0.0, 2.0]))
    x = torch.ones(2, 1, *SIZES[dims])
    x[..., :3] = 0.5
    same(stage, x, runs)
    places = []
    for fast in (True, False):
        conv = make(("relu", "pool"), dims, 1, 0, chans=(1, 4))
        nn.init.ones_(conv.conv.weight)
        leaf = torch.ones(1, 1, *SIZES[dims], requires_grad=True)
        with set_fast_paths(fast):
            conv(leaf).sum().backward()
        places.append(leaf.grad)
    assert torch.equal(*places)


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_nan_and_dead_channels_pass_through(order, runs):
    stage, x = make(order), torch.randn(2, 2, *SIZES[3])
    with torch.no_grad():
        stage.conv.bias[1] = -1e3  # ReLU makes all of it zero
    same(stage, x, runs)
    x[0, 0, 2, 2, 2] = torch.nan
    found = [step(stage, x, fast=fast) for fast in (True, False)]
    assert torch.equal(found[0][0].isnan(), found[1][0].isnan())
    assert found[0][1]["conv.weight"].isnan().any()


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("dims", [2, 3])
def test_derivatives_in_float64(order, dims, runs):
    stage = make(order, dims, chans=(1, 2)).double()
    size = (3, 4) if dims == 2 else (2, 3, 3)
    x = torch.randn(2, 1, *size, dtype=torch.float64, requires_grad=True)
    if len(order) == 3:
        stage.norm.weight.data[0] *= -1
        stage.norm.momentum = 0.0

    def run(x, *_):
        return stage(x)

    for wanted in (True, False):  # without, the gradient of the kernel is a matrix product
        leaves = (x.detach().requires_grad_(wanted), *stage.parameters())
        assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, (x, *stage.parameters()), fast_mode=True)
    assert None not in runs


def clear_gradient(stage, x):
    """Return the exact result of a stage, and a gradient of it with nothing for windows whose maximum is a near-tie.

    There rounding decides which value is the largest, and all of the gradient goes to one or the other.
    """
    parts = dict(stage.named_children())
    last = list(parts).index("pool")
    with torch.no_grad():
        windows = before = nn.Sequential(*list(parts.values())[:last])(x)
        for axis in range(2, x.ndim):
            windows = windows.unfold(axis, parts["pool"].kernel_size, parts["pool"].kernel_size)
        two = windows.flatten(x.ndim).topk(2, dim=-1).values
        clear = (two[..., 0] - two[..., 1] > 1e-4 * before.std()).double()
        y = stage(x)
    grad = torch.randn(y.shape, dtype=torch.float64) * clear
    if list(parts)[-1] == "norm":
        # The statistics would give every window a part of the gradient: of a constant, and of one linear in its value.
        clear, values, wanted = (t.transpose(0, 1).flatten(1) for t in (clear, y, grad))
        spread = torch.stack([clear, clear * (values - values.mean(1, keepdim=True))], dim=-1)
        wanted = wanted[..., None] - spread @ torch.linalg.lstsq(spread, wanted[..., None]).solution
        grad = wanted.view(y.shape[1], len(y), *y.shape[2:]).transpose(0, 1)
    return y, grad


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("cnn3d_small", (64, 64, 64)), ("cnn3d_base", (48, 64, 64)), ("xray_cnn", (320, 320))]
)
def test_no_farther_from_float64_than_the_plain_modules(name, size, monkeypatch):
    sizes = {key: getattr(conv_slabs, key) for key in ("SMALL_MAP", "LARGE_MAP")}
    monkeypatch.undo()  # slabs as they are in use
    for key, value in sizes.items():
        monkeypatch.setattr(conv_slabs, key, value)
    torch.manual_seed(0)
    model = medzoo.create(name).train()
    x = torch.randn(2, model.input_spec.channels, *size)
    for i, stage in enumerate(model.encoder.stages):
        y, grad = clear_gradient(copy.deepcopy(stage).double(), x.double())
        found = []
        for dtype, fast in ((torch.float64, False), (torch.float32, True), (torch.float32, False)):
            run, leaf = copy.deepcopy(stage).to(dtype), x.to(dtype, copy=True).requires_grad_(i > 0)
            with set_fast_paths(fast):
                run(leaf).backward(grad.to(dtype))
            found.append({n: p.grad.double() for n, p in (*run.named_parameters(), ("x", leaf)) if p.grad is not None})
        for n, want in found[0].items():
            # Those of the norm, and of a bias before it, cancel to almost nothing.
            like = {"conv": found[0]["conv.weight"].norm(), "norm": max(want.norm(), grad.norm())}
            ours, plain = (
                float((grads[n] - want).norm() / like.get(n.partition(".")[0], want.norm())) for grads in found[1:]
            )
            # Below that it is the rounding of oneDNN, which with channels last is up to three times as large.
            assert ours <= 1.5 * plain + 3e-6, (i, n)
        x = y.float()


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize(
    "moving", ["conv.weight", "conv.bias", "norm.weight", "norm.bias", "x", "conv.weight norm.bias", "x norm.weight"]
)
@pytest.mark.parametrize("bias", [True, False])
def test_frozen_parts_get_no_gradient_and_the_others_the_same(order, moving, bias, runs):
    stage = make(order)
    if not bias:
        stage.conv.bias = None
    for name, p in stage.named_parameters():
        p.requires_grad_(name in moving.split())
    if not any(p.requires_grad for p in stage.parameters()) and "x" not in moving.split():
        return  # this order has no such part
    same(stage, torch.randn(2, 2, *SIZES[3]), runs, wanted="x" in moving.split())


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_each_time(order, threads, runs, monkeypatch):
    stage, x = make(order, kernel=3, chans=(3, 16)), torch.randn(3, 3, 8, 18, 18)
    monkeypatch.setattr(conv_slabs, "SLAB_BYTES", 2**18)
    with pytorch_threads(threads):
        first, second = (step(stage, x) for _ in range(2))
        runs.clear()
        same(stage, x, runs)
    for a, b in itertools.chain(zip(first[1].values(), second[1].values(), strict=True), [(first[0], second[0])]):
        assert torch.equal(a, b)


def test_slabs_are_those_of_the_forward_pass_where_the_backward_pass_has_other_threads(monkeypatch):
    monkeypatch.setattr(conv_slabs, "SLAB_BYTES", 2**20)
    stage, x = make(), torch.randn(4, 2, 12, 12, 12, requires_grad=True)
    before, grads = torch.get_num_threads(), []
    for forward, backward in ((1, 1), (2, 1), (1, 3), (3, 2)):
        torch.set_num_threads(forward)
        try:
            y = stage(x)
            torch.set_num_threads(backward)
            grads.append(torch.autograd.grad(y.square().sum(), [x, *stage.parameters()]))
        finally:
            torch.set_num_threads(before)
    for found in grads[1:]:
        for got, want in zip(found, grads[0], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_threads_that_compute_alone_leave_the_others_as_they_are():
    with pytorch_threads(3):
        found = list(in_threads(lambda i: (i, torch.get_num_threads(), torch.is_grad_enabled()), range(20)))
        elsewhere = []
        thread = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert found == [(i, 1, False) for i in range(20)]
        assert [torch.get_num_threads(), *elsewhere] == [3, 3]
        with pytest.raises(ZeroDivisionError):
            list(in_threads(lambda i: 1 // i, range(3)))
        assert [n for n, _ in in_threads(lambda i: (i, 0), [7])] == [7]


def test_threads_are_in_inference_mode_where_the_caller_is():
    with pytorch_threads(3):
        with torch.inference_mode():
            out = torch.zeros(20, 4)
            in_threads(lambda i: out[i].fill_(i), range(20))
        assert torch.equal(out[:, 0], torch.arange(20.0))
        assert not torch.is_inference_mode_enabled()
        assert not any(in_threads(lambda _: torch.is_inference_mode_enabled(), range(20)))


def test_pieces_run_in_the_calling_thread_where_no_more_threads_may_be_started(monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_pool", refuse)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert in_threads(lambda i: threading.current_thread(), range(3)) == [threading.current_thread()] * 3


def test_a_process_that_may_start_no_more_threads_says_so(monkeypatch):
    """And does not wait for those that never start."""
    pool, start, started = threads._pool.__wrapped__, threading.Thread.start, []

    def limited(thread):
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    before = torch.get_num_threads()
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            pool(0, 4)
        assert torch.get_num_threads() == before
        monkeypatch.undo()
        for thread in started:
            thread.join(timeout=10)
        assert not any(thread.is_alive() for thread in started)
        elsewhere = []
        other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert elsewhere == [before]
    finally:
        torch.set_num_threads(before)


# Where the plain modules run.


def changed_by(name):
    """Return a stage that was changed in a way that its modules must run themselves."""
    stage = make()
    if name == "hook":
        stage.relu.register_forward_hook(lambda *_: None)
    elif name == "pre-hook":
        stage.conv.register_forward_pre_hook(lambda *_: None)
    elif name == "backward hook":
        stage.pool.register_full_backward_hook(lambda *_: None)
    elif name == "forward put in by hand":
        stage.relu.forward = torch.relu
    elif name == "parametrization":
        parametrize.register_parametrization(stage.conv, "weight", nn.Identity())
    elif name == "subclass":
        stage.relu.__class__ = type("Other", (nn.ReLU,), {})
    elif name == "other part":
        stage.pool = nn.AvgPool3d(2)
    elif name == "further part":
        stage.add_module("drop", nn.Dropout(0.0))
    elif name == "stride":
        stage.conv.stride = (1, 2, 1)
    elif name == "pooling that pads":
        stage.pool.padding = 1
    elif name == "norm taken out":
        stage.norm = nn.Identity()
    elif name == "circular padding":
        stage.conv = nn.Conv3d(2, 5, 3, padding=1, padding_mode="circular")
    return stage


@pytest.mark.parametrize(
    "name",
    [
        "hook",
        "pre-hook",
        "backward hook",
        "forward put in by hand",
        "parametrization",
        "subclass",
        "other part",
        "further part",
        "stride",
        "pooling that pads",
        "norm taken out",
        "circular padding",
    ],
)
def test_changed_stages_run_their_modules(name, runs):
    stage, x = changed_by(name), torch.randn(2, 2, *SIZES[3])
    y = stage(x)
    assert not runs
    with set_fast_paths(False):
        torch.testing.assert_close(y, stage(x))


def autocast(stage, x):
    with torch.autocast("cpu", torch.bfloat16):
        return stage(x)


def traced_by_a_mode(stage, x):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        y = stage(x)
    assert counter.get_total_flops() > 0
    return y


def switched_off(stage, x):
    with set_fast_paths(False):
        return stage(x)


def without_gradients(stage, x):
    with torch.no_grad():
        return stage(x)


def vmapped(stage, x):
    parameters = dict(stage.named_parameters())
    stage.norm.track_running_stats = False
    run = torch.func.vmap(lambda x: torch.func.functional_call(stage, parameters, (x[None],))[0])
    return run(x)


def transformed(stage, x):
    parameters = dict(stage.named_parameters())
    stage.norm.track_running_stats = False

    def loss(p):
        return torch.func.functional_call(stage, p, (x,)).sum()

    grads = torch.func.grad(loss)(parameters)
    assert all(g.isfinite().all() for g in grads.values())
    return torch.func.jvp(lambda x: stage(x), (x,), (x,))[1]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # by torch.func.jvp
@pytest.mark.parametrize(
    "run", [autocast, traced_by_a_mode, switched_off, without_gradients, vmapped, transformed], ids=lambda f: f.__name__
)
def test_who_must_see_each_operation_gets_the_plain_modules(run, runs):
    run(make(), torch.randn(2, 2, *SIZES[3]))
    assert not runs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_run_the_plain_modules(dtype, runs):
    make().to(dtype)(torch.randn(2, 2, *SIZES[3]).to(dtype)).float().sum().backward()
    assert runs == [None]


def test_compilers_and_exporters_see_the_plain_modules(runs):
    stage, x = make(), torch.randn(2, 2, *SIZES[3])
    torch.compile(stage, backend="eager", fullgraph=True)(x)
    exported = torch.export.export(stage, (x,), strict=False)
    assert any("max_pool3d" in str(node.target) for node in exported.graph.nodes)
    assert not runs


def test_maps_that_do_not_fit_raise_what_the_modules_raise(runs):
    stage = make()
    for x in (torch.randn(1, 2, 1, 8, 1), torch.randn(2, 3, 8, 8, 8), torch.randn(2, 2, 8), torch.randn(0, 2, 8, 8, 8)):
        messages = []
        for fast in (True, False):
            with set_fast_paths(fast):
                try:
                    messages.append(stage(x).shape)
                except (RuntimeError, ValueError) as error:
                    messages.append(str(error))
        assert messages[0] == messages[1]
    assert stage(torch.randn(2, 8, 8, 8)[None][0][None]).shape == (1, 5, 4, 4, 4)


def test_the_rule_is_one_of_sizes(runs, monkeypatch):
    monkeypatch.setattr(conv_slabs, "SMALL_MAP", 4 * 5 * 8 * 9 * 10 * 2)
    monkeypatch.setattr(conv_slabs, "FEW", 16)
    monkeypatch.setattr(conv_slabs, "LARGE_MAP", 4 * 5 * 8 * 9 * 10 * 3)
    for chans, batch, expected in ((2, 1, False), (2, 2, True), (3, 2, False), (3, 3, True)):
        make(chans=(chans, 5))(torch.randn(batch, chans, *SIZES[3]))
        assert (runs.pop() is not None) == expected


def test_a_plain_stage_after_a_fast_one_sums_up_as_it_does_alone(monkeypatch):
    monkeypatch.setattr(conv_slabs, "SMALL_MAP", 2**40)
    stage, x = make(), torch.randn(3, 2, *SIZES[3])
    found = step(stage, x.contiguous(memory_format=torch.channels_last_3d))
    plain = step(stage, x, fast=False)
    assert torch.equal(found[0], plain[0])
    for got, want in zip(found[2].values(), plain[2].values(), strict=True):
        assert torch.equal(got, want)


# What a training does around a stage.


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_what_observes_saved_tensors_works(order, runs, recwarn):
    stage, x = make(order), torch.randn(2, 2, *SIZES[3])
    expected = step(stage, x)
    with torch.autograd.graph.save_on_cpu():
        offloaded = step(stage, x)
    with torch.autograd.set_detect_anomaly(True, check_nan=True):
        checked = step(stage, x)
    for found in (offloaded, checked):
        assert torch.equal(found[0], expected[0])
        assert all(torch.equal(found[1][name], g) for name, g in expected[1].items())
    assert None not in runs


def test_a_checkpointed_encoder_gets_the_same_gradients(runs):
    table = StageTable(2, 2, 1, ORDERS[0], 2)
    encoder, x = ConvEncoder(1, (4, 6), table, 3).train(), torch.randn(2, 1, 9, 9, 9)
    found = []
    for checkpointed in (False, True):
        encoder.zero_grad()
        encoder.set_grad_checkpointing(checkpointed)
        encoder(x).square().sum().backward()
        found.append([p.grad.clone() for p in encoder.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len(runs) == 2 + 2  # computing again stops with what is saved, before it returns
    assert None not in runs
    stage, leaf = make(), torch.randn(1, 2, *SIZES[3], requires_grad=True)
    checkpoint(stage, leaf, use_reentrant=True).sum().backward()
    assert leaf.grad.isfinite().all()


def test_second_derivatives_are_those_of_the_plain_modules(runs):
    stage, x = make(), torch.randn(2, 2, *SIZES[3])
    found = []
    for fast in (True, False):
        leaf = x.clone().requires_grad_()
        with set_fast_paths(fast):
            (first,) = torch.autograd.grad(stage(leaf).square().sum(), leaf, create_graph=True)
        stage.zero_grad()
        first.square().sum().backward()
        found.append([leaf.grad, stage.conv.weight.grad.clone(), stage.norm.weight.grad.clone()])
    for got, want in zip(*found, strict=True):
        assert (got - want).norm() <= 1e-4 * want.norm()
    assert len(runs) == 1


def test_gradients_for_several_outputs_at_once(runs):
    stage, x = make(), torch.randn(2, 2, *SIZES[3], requires_grad=True)
    given = torch.randn(3, *stage(x).shape)
    batched = torch.autograd.grad(stage(x), [x, *stage.parameters()], given, is_grads_batched=True)
    for i, one in enumerate(given):
        for got, want in zip(batched, torch.autograd.grad(stage(x), [x, *stage.parameters()], one), strict=True):
            torch.testing.assert_close(got[i], want, rtol=1e-4, atol=1e-4)
    y = stage(x)
    vmapped = torch.func.vmap(lambda one: torch.autograd.grad(y, x, one, retain_graph=True)[0])(given)
    torch.testing.assert_close(vmapped, batched[0])


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_the_result_may_be_written_over(order, runs):
    stage, x = make(order), torch.randn(2, 2, *SIZES[3])
    results = []
    for write in (False, True):
        stage.zero_grad()
        y = stage(x)
        (y.mul_(2) if write else y * 2).sum().backward()
        results.append(stage.conv.weight.grad.clone())
    assert torch.equal(*results)
    y = stage(x)
    with torch.no_grad():
        stage.conv.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
@pytest.mark.parametrize("graph", [False, True], ids=["first", "second derivative"])
@pytest.mark.parametrize("wanted", [True, False], ids=["to input", "to weight"])
def test_a_backward_pass_under_autocast_gets_the_same_gradients(order, graph, wanted):
    stage, x = make(order, kernel=3, chans=(1, 32)), torch.randn(2, 1, *SIZES[3], requires_grad=wanted)
    with pytorch_threads(1):  # as other threads have no autocast
        loss = stage(x).square().sum()
        leaves = [*stage.parameters(), *[x] * wanted]
        expected = torch.autograd.grad(loss, leaves, create_graph=graph, retain_graph=True)
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.autograd.grad(loss, leaves, create_graph=graph)
    assert all(map(torch.equal, found, expected))


def test_a_plain_step_may_be_followed_by_a_fast_one_before_both_go_back(runs, monkeypatch):
    """As where images of several sizes, or a validation, come between."""
    stage, x = make(), torch.randn(2, 2, *SIZES[3])
    grads = []
    for fast in (True, False):
        run, losses = copy.deepcopy(stage), []
        for training, enabled in ((True, False), (True, fast), (False, False), (True, fast)):
            with set_fast_paths(enabled):
                losses.append(run.train(training)(x).square().sum())
        sum(losses).backward()
        grads.append(run.conv.weight.grad)
    assert len(runs) == 2
    assert None not in runs
    assert (grads[0] - grads[1]).norm() <= 1e-4 * grads[1].norm()


def test_parameters_of_a_functional_call_get_the_gradients(runs):
    stage, x = make(), torch.randn(2, 2, *SIZES[3])
    others = {name: (p.detach() * 1.5).requires_grad_() for name, p in stage.named_parameters()}
    torch.func.functional_call(stage, others, (x,)).square().sum().backward()
    assert runs[0] is not None
    assert all(p.grad is None for p in stage.parameters())
    assert all(p.grad.isfinite().all() for p in others.values())


def test_distributed_data_parallel_gets_the_same_gradients(tmp_path, runs):
    stage, x = make(), torch.randn(2, 2, *SIZES[3])
    stage(x).square().sum().backward()
    expected = [p.grad.clone() for p in stage.parameters()]
    stage.zero_grad()
    with process_group(tmp_path):
        nn.parallel.DistributedDataParallel(stage)(x).square().sum().backward()
    assert len(runs) == 2
    assert all(torch.equal(p.grad, want) for p, want in zip(stage.parameters(), expected, strict=True))


@pytest.mark.parametrize("name", ["cnn3d_small", "cnn3d_base", "xray_cnn"])
def test_models_train_alike(name, runs):
    spec = medzoo.describe(name)
    model = medzoo.create(name, **dict(spec.tiny) | {"dropout": 0.0}).train()
    scatter_weights(model)
    x = torch.randn(4, spec.input_spec.channels, *spec.tiny_size)
    grads = []
    for fast in (True, False):
        model.zero_grad()
        with set_fast_paths(fast):
            F.softplus(model(x)).mean().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert len(runs) == len(model.encoder.stages)
    assert None not in runs
    for n, got in grads[0].items():
        want = grads[1][n]
        layer = n.rpartition(".")[0]
        like = max(g.norm() for m, g in grads[1].items() if m.rpartition(".")[0] == layer)
        assert (got - want).norm() <= 1e-4 * like, n


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_less_is_kept_for_the_backward_pass(order, runs):
    stage, x = make(order, kernel=3, padding=1, pool=2, chans=(1, 16)), torch.randn(2, 1, 16, 16, 16)
    kept = []
    for fast in (True, False):
        storages = {}

        def pack(t, storages=storages):
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with set_fast_paths(fast), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = stage(x)
        kept.append(sum(storages.values()))
        del y
    assert kept[0] <= kept[1] / 4
