"""The switch of the fast paths, and the tables that choose an implementation."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import medzoo
from medzoo.kernels import dispatch
from medzoo.kernels.dispatch import fast_paths_enabled
from medzoo.nn.patch_merging import PatchMerging
from medzoo.nn.swin_block import SwinBlock, WindowGrid


@pytest.fixture(autouse=True)
def switched_on():
    yield
    medzoo.set_fast_paths(True)


def calls_of(monkeypatch, *names):
    calls = []
    for name in names:
        run = getattr(dispatch, name)
        monkeypatch.setattr(dispatch, name, lambda *a, run=run, name=name, **k: (calls.append(name), run(*a, **k))[1])
    return calls


def test_a_call_switches_the_process():
    medzoo.set_fast_paths(False)
    assert not fast_paths_enabled()
    seen = []
    thread = threading.Thread(target=lambda: seen.append(fast_paths_enabled()))
    thread.start()
    thread.join()
    assert seen == [False]
    medzoo.set_fast_paths(True)
    assert fast_paths_enabled()


def test_a_context_switches_its_own_thread_and_ends():
    seen = []
    with medzoo.set_fast_paths(False):
        assert not fast_paths_enabled()
        with medzoo.set_fast_paths(True):
            assert fast_paths_enabled()
        thread = threading.Thread(target=lambda: seen.append(fast_paths_enabled()))
        thread.start()
        thread.join()
        assert not fast_paths_enabled()
    assert fast_paths_enabled()
    assert seen == [True]
    medzoo.set_fast_paths(False)
    with medzoo.set_fast_paths(True):
        assert fast_paths_enabled()
    assert not fast_paths_enabled()


def test_a_context_ends_after_an_error_too():
    with pytest.raises(ZeroDivisionError), medzoo.set_fast_paths(False):
        _ = 1 / 0
    assert fast_paths_enabled()


def test_a_setting_kept_in_a_variable_does_not_come_back():
    off = medzoo.set_fast_paths(False)
    assert not fast_paths_enabled()
    medzoo.set_fast_paths(True)
    medzoo.set_fast_paths(False)
    with off, off:
        assert not fast_paths_enabled()
    assert not fast_paths_enabled(), "the last call still holds"
    medzoo.set_fast_paths(True)
    with off:
        assert not fast_paths_enabled()
    assert fast_paths_enabled()


def test_contexts_entered_in_any_order_leave_the_process_as_it_was():
    first, second = medzoo.set_fast_paths(False), medzoo.set_fast_paths(False)
    first.__enter__()
    second.__enter__()
    second.__exit__()
    first.__exit__()
    assert fast_paths_enabled()


def test_threads_do_not_disturb_each_other():
    wrong = []

    def work():
        for _ in range(300):
            with medzoo.set_fast_paths(False):
                wrong.extend([1] * fast_paths_enabled())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert fast_paths_enabled()
    assert len(dispatch._settings) <= 2, "settings do not pile up"


def test_a_decorator_switches_the_function_alone():
    @medzoo.set_fast_paths(False)
    def inside():
        return fast_paths_enabled()

    assert fast_paths_enabled()
    assert inside() is False
    assert fast_paths_enabled()


@pytest.mark.parametrize("name", [pytest.param("swin_encoder_mlp", marks=pytest.mark.slow), "cnn3d_small"])
def test_compilers_never_meet_the_switch(name, monkeypatch):
    """They cannot trace a context variable in every version of PyTorch."""
    from medzoo.nn import guards

    def refuse():
        raise AssertionError("asked under a compiler")

    spec = medzoo.describe(name)
    model = medzoo.optimize(medzoo.create(name, **spec.tiny).eval())
    x = torch.randn(1, 1, *spec.tiny_size)
    with torch.no_grad():
        expected = model(x)
        monkeypatch.setattr(guards, "fast_paths_enabled", refuse)
        torch.testing.assert_close(
            torch.compile(model, backend="eager", fullgraph=True)(x), expected, rtol=0, atol=1e-5
        )
    torch.compiler.reset()


@pytest.mark.parametrize("given", [0, 1, None, "no"])
def test_only_a_bool_switches(given):
    with pytest.raises(medzoo.errors.ConfigError, match="set_fast_paths: expected True or False, got"):
        medzoo.set_fast_paths(given)
    assert fast_paths_enabled()


@pytest.mark.parametrize(("given", "printed"), [("0", "False\n"), ("off", "")])
def test_the_environment_switches_from_the_start(given, printed):
    code = "from medzoo.kernels.dispatch import fast_paths_enabled; print(fast_paths_enabled())"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MEDZOO_FAST_PATHS": given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == printed
    assert ("MEDZOO_FAST_PATHS: expected 0 or 1, got 'off'" in run.stderr) == (given == "off")


@torch.inference_mode()
def test_switched_off_no_fast_path_runs(monkeypatch):
    from medzoo.kernels.conv_stage import FoldedStage

    calls = calls_of(monkeypatch, "run_by_slabs", "merge_by_slabs")
    folded = []
    run = FoldedStage.__call__
    monkeypatch.setattr(FoldedStage, "__call__", lambda self, x: (folded.append(1), run(self, x))[1])
    swin = medzoo.create("swin_encoder_mlp", feature_size=12, hidden=8).eval()
    cnn = medzoo.create("cnn3d_small", size=16).eval()
    fast = medzoo.optimize(cnn)
    x, y = torch.randn(1, 1, 32, 32, 32), torch.randn(1, 1, 16, 16, 16)
    with medzoo.set_fast_paths(False):
        swin(x)
        assert torch.equal(fast(y), cnn(y)), "an optimized model runs its plain layers"
    assert not calls
    assert not folded
    torch.testing.assert_close(fast(y), cnn(y), rtol=0, atol=1e-5)
    assert folded
    swin(x)
    assert {*calls} == {"run_by_slabs", "merge_by_slabs"}


def chosen(table, inputs):
    return next(i for i, row in enumerate(table) if row.serves(inputs))


def test_the_first_row_that_serves_a_block_is_the_cpus():
    block, x = SwinBlock(12, 3, True, 0.5), torch.randn(1, 8, 8, 8, 12)
    grid = WindowGrid.of(x.shape[1:4], (7, 7, 7), True)
    assert chosen(dispatch.SWIN_BLOCK, block._inputs(x, grid, None)) == 3, "training"
    with torch.no_grad():
        assert chosen(dispatch.SWIN_BLOCK, block._inputs(x, grid, None)) == 3, "stochastic depth is active"
        assert chosen(dispatch.SWIN_BLOCK, block.eval()._inputs(x, grid, None)) == 2, "inference"


class OnGpu:
    """Stands for a tensor on a GPU: what the conditions read of one."""

    is_cuda, dtype, device = True, torch.bfloat16, torch.device("cuda", 0)

    def __init__(self, *shape):
        self.shape = torch.Size(shape)

    def numel(self):
        return self.shape.numel()


def on_gpu(kernels, monkeypatch, channels=48, **changes):
    """Return the row of the table that a block takes on a GPU, and whether the layers around attention are kernels."""
    monkeypatch.setattr(dispatch, "kernel_serves", lambda name, x: name in kernels)
    block = SwinBlock(channels, 3, True, 0.0).to(torch.bfloat16).eval().requires_grad_(False)
    x = torch.zeros(1, 8, 8, 8, channels, dtype=torch.bfloat16)
    inputs = block._inputs(x, WindowGrid.of(x.shape[1:4], (7, 7, 7), True), None)
    inputs = inputs._replace(x=OnGpu(*x.shape), **{k: v for k, v in changes.items() if k != "without"})
    if "without" in changes:
        inputs = inputs._replace(attention=inputs.attention._replace(**{changes["without"]: None}))
    return chosen(dispatch.SWIN_BLOCK, inputs), dispatch._layer_kernels_serve(inputs)


ALL = {"box_attention", "box_attention_backward", "swin_layers"}


@pytest.mark.parametrize(
    ("kernels", "changes", "row", "layers"),
    [
        (ALL, {}, 0, True),
        (ALL, {"drops": True}, 0, False),
        (ALL, {"differentiated": True}, 0, False),
        (ALL - {"box_attention_backward"}, {"differentiated": True}, 1, False),
        (ALL - {"swin_layers"}, {}, 0, False),
        (ALL, {"without": "qkv_bias"}, 1, None),
        (ALL, {"channels": 36}, 1, None),  # heads of 12
        (ALL, {"table": torch.zeros(5, 3)}, 1, None),
        ({"swin_layers"}, {}, 1, None),
        (set(), {}, 1, None),
    ],
)
def test_a_gpu_takes_the_attention_kernel_where_it_fits(kernels, changes, row, layers, monkeypatch):
    pytest.importorskip("triton")
    if layers is None:
        monkeypatch.setattr(dispatch, "_layer_kernels_serve", lambda inputs: None)
    assert on_gpu(kernels, monkeypatch, **changes) == (row, layers)


def test_under_autocast_the_layers_around_attention_are_pytorchs(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    assert on_gpu(ALL, monkeypatch) == (0, False)


def test_a_block_without_a_bias_runs_plain_in_training():
    block, x = SwinBlock(12, 3, True, 0.0), torch.randn(1, 8, 8, 8, 12)
    block.attn.proj.bias = None
    inputs = block._inputs(x, WindowGrid.of(x.shape[1:4], (7, 7, 7), True), None)
    assert dispatch.swin_block(inputs) is None
    got = block(x)
    with medzoo.set_fast_paths(False):
        assert torch.equal(got, block(x))


def test_merging_is_chosen_by_whether_a_gradient_may_follow(monkeypatch):
    merge, x = PatchMerging(4, "v2"), torch.randn(1, 2, 2, 2, 4)
    calls = calls_of(monkeypatch, "merge_by_slabs")
    assert "MergeBySlabs" in merge(x).grad_fn.name()
    assert not calls
    with torch.no_grad():
        merge(x)
    assert calls
