"""CUDA graphs of optimized models: their rules by a stand-in for the capture, and the real one on a GPU by marker."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import medzoo
from medzoo.inference.optimize import _Guard, _InferenceOnly
from medzoo.kernels.cuda import graphs as graphs_module
from medzoo.kernels.cuda.graphs import GraphCache, keep_alive, kind_of
from medzoo.kernels.dispatch import set_fast_paths

MODELS = medzoo.list_models()
FOLDED = [name for name in MODELS if name != "swin_encoder_mlp"]
CHOSEN = ["swin_encoder_mlp", "cnn3d_base", "resnet18_multilabel", "densenet121_xray"]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def tiny(name, device="cpu"):
    """Return a small model whose BatchNorms hold what training leaves."""
    model = medzoo.create(name, **dict(medzoo.describe(name).tiny)).eval()
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_(0, 0.1)
            norm.running_var.uniform_(0.5, 2)
            norm.weight.normal_()
    return model.to(device)


def batch(name, n=2, device="cpu"):
    spec = medzoo.describe(name)
    return torch.randn(n, spec.input_spec.channels, *spec.tiny_size, device=device)


class Tape:
    """A stand-in for a captured graph: it runs the forward pass again, and counts its replays."""

    def __init__(self, run, x):
        self.run, self.shape, self.replays, self.waited = run, x.shape, 0, False
        self.running = False

    def __call__(self, x):
        assert not self.running  # the lock keeps threads apart
        self.running = True
        self.replays += 1
        out = self.run(x)
        self.running = False
        return out

    def wait(self):
        self.waited = True


@pytest.fixture
def tapes(monkeypatch):
    """Replace the capture, and return what was recorded."""
    made = []

    def record(run, x, beside):
        made.append(Tape(run, x))
        made[-1].beside = beside
        return made[-1]

    monkeypatch.setattr(graphs_module, "record", record)
    return made


class Graphed:
    """A model on the CPU called as one on a GPU is."""

    def __init__(self, name):
        self.model = medzoo.optimize(tiny(name), cuda_graph=True)
        self.cache = self.model._graphs

    def __call__(self, x):
        return self.cache(x, self.run, lambda: _Guard(self.model), self.model.name)

    def run(self, x):
        return super(_InferenceOnly, self.model).forward(x)


@pytest.fixture
def small(tapes):
    return Graphed("cnn3d_small")


def test_a_kind_is_captured_once_and_replayed(small, tapes):
    x = batch("cnn3d_small")
    for _ in range(3):
        assert torch.equal(small(x), small.run(x))
    assert [tape.replays for tape in tapes] == [3]
    small(x[:1])
    small(x)
    assert [tape.replays for tape in tapes] == [4, 1]
    assert tapes[0].beside is None
    assert tapes[1].beside is tapes[0]


def test_what_makes_a_kind():
    x = torch.randn(2, 3, 4, 5)
    last = x.to(memory_format=torch.channels_last)
    assert kind_of(x) == kind_of(torch.zeros_like(x)) == kind_of(x.flip(0)) == kind_of(x.mT.contiguous().mT)
    assert len({kind_of(y) for y in (x, last, x[:1], x.double(), x.to("meta"))}) == 5
    assert kind_of(torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d)).channels_last


def test_the_number_of_graphs_is_bounded(small, tapes, monkeypatch):
    monkeypatch.setattr(GraphCache, "LIMIT", 2)
    x = batch("cnn3d_small", 3)
    for n in (1, 2, 1, 3, 1):  # the second is dropped for the third
        small(x[:n])
    assert len(small.cache) == 2
    assert [tape.shape[0] for tape in tapes] == [1, 2, 3]
    assert [tape.waited for tape in tapes] == [False, True, False]
    small(x[:2])
    assert len(tapes) == 4


def replaces_a_tensor(model):
    part = next(m for m in model.encoder.modules() if "weight" in m._parameters)
    part.weight = nn.Parameter(part.weight.clone(), requires_grad=False)


def replaces_a_module(model):
    model.head.classifier = copy.deepcopy(model.head.classifier)


def replaces_the_encoder(model):
    model.encoder = copy.deepcopy(model.encoder)


def moves_and_returns(model):
    model.double().float()


def sets_data(model):
    parameter = next(model.parameters())
    parameter.data = parameter.data.clone()


def replaces_a_buffer(model):
    for part in model.modules():
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer.clone()
            return
    replaces_a_tensor(model)


CHANGES = [replaces_a_tensor, replaces_a_module, replaces_the_encoder, moves_and_returns, sets_data, replaces_a_buffer]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", ["cnn3d_small", "swin_encoder_mlp"])
def test_a_change_of_what_the_kernels_read_drops_the_graphs(name, change, tapes):
    graphed, x = Graphed(name), batch(name, 1)
    graphed(x)
    graphed(x)
    change(graphed.model)
    assert torch.equal(graphed(x), graphed.run(x))
    assert len(tapes) == 2
    assert tapes[0].waited
    graphed(x)
    assert len(tapes) == 2


@pytest.mark.parametrize("name", ["cnn3d_small", "resnet18_multilabel", "swin_encoder_mlp"])
def test_a_write_drops_the_graphs(name, tapes):
    graphed, x = Graphed(name), batch(name)
    graphed(x)
    next(graphed.model.parameters()).add_(1)
    assert torch.equal(graphed(x), graphed.run(x))
    assert len(tapes) == 2


def test_written_statistics_drop_the_graphs(tapes):
    graphed, x = Graphed("resnet18_multilabel"), batch("resnet18_multilabel")
    graphed(x)
    graphed.model.encoder.bn1.running_mean.add_(1)
    graphed(x)
    graphed.model.load_state_dict(graphed.model.state_dict())
    graphed(x)
    assert len(tapes) == 3


@pytest.mark.parametrize("name", CHOSEN[:3])
def test_hooks_and_training_mode_run_without_a_graph(name, tapes):
    graphed, x = Graphed(name), batch(name)
    graphed(x)
    calls = []
    handle = graphed.model.head.classifier.register_forward_hook(lambda *_: calls.append(1))
    graphed(x)
    calls.clear()  # this tape runs hooks, before its result is dropped; a graph does not
    graphed(x)
    graphed(x)
    assert len(calls) == 2
    handle.remove()
    graphed(x)
    graphed(x)
    assert len(calls) == 2
    assert [tape.replays for tape in tapes][1:] == [2]
    graphed.model.encoder.train()
    graphed(x)
    assert len(tapes) == 2


def test_a_capture_that_fails_warns_once_and_runs_without(small, monkeypatch):
    tries = []

    def record(run, x, beside):
        tries.append(x)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(graphs_module, "record", record)
    x = batch("cnn3d_small")
    what = r"^cnn3d_small: .*\(2, 1, .*\) runs without a CUDA graph.*RuntimeError: operation not permitted .*ing\.$"
    with pytest.warns(RuntimeWarning, match=what):
        assert torch.equal(small(x), small.run(x))
    small(x)
    small(x[:1])
    assert len(tries) == 2
    assert len(small.cache) == 0


def in_threads(call, arguments):
    """Call a function with each of some arguments, each in a thread of its own, and wait."""
    threads = [threading.Thread(target=call, args=args) for args in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_take_turns(small, tapes):
    inputs = [batch("cnn3d_small") for _ in range(4)]
    expected = [small.run(x) for x in inputs]
    wrong = []

    def call(x, y):
        with torch.no_grad():
            wrong.extend(x for _ in range(10) if not torch.equal(small(x), y))

    in_threads(call, zip(inputs, expected, strict=True))
    assert not wrong
    assert [tape.replays for tape in tapes] == [40]


def test_what_is_held_is_kept_while_recording_only():
    keep_alive("nobody records")
    held = []
    token = graphs_module._held.set(held)
    keep_alive("a table", "a kernel")
    graphs_module._held.reset(token)
    keep_alive("nobody records")
    assert held == ["a table", "a kernel"]


@pytest.mark.parametrize("name", MODELS)
def test_on_a_cpu_nothing_changes(name, recwarn):
    model, x = tiny(name), batch(name)
    fast, graphed = medzoo.optimize(model), medzoo.optimize(model, cuda_graph=True)
    assert torch.equal(graphed(x), fast(x))
    assert len(graphed._graphs) == 0
    assert "(optimized) CUDA graphs: none on a CPU" in repr(graphed)
    assert "CUDA graphs" not in repr(fast)
    for wrong in (x[0], x.double(), "x.png"):
        with pytest.raises(medzoo.errors.InputError) as said:
            fast(wrong)
        with pytest.raises(type(said.value)) as again:
            graphed(wrong)
        assert str(again.value) == str(said.value)
    assert not recwarn.list


def test_copies_and_files_leave_graphs_behind(small, tapes, tmp_path):
    x = batch("cnn3d_small")
    model, expected = small.model, small(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), medzoo.optimize(model, cuda_graph=True)):
        assert other._graphs is not model._graphs
        assert (len(other._graphs), len(model._graphs)) == (0, 1)
        assert torch.equal(other(x), expected)
    assert medzoo.optimize(model)._graphs is None
    assert model.state_dict().keys() == tiny("cnn3d_small").state_dict().keys()
    again = medzoo.create(f"local-dir:{model.save_pretrained(tmp_path / 'saved')}")
    torch.testing.assert_close(again(x), expected)
    model(x)  # on a CPU, which a model on a GPU has then left
    assert len(model._graphs) == 0


@pytest.fixture
def on_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return "cuda"


def near(got, expected):
    """Compare to the tolerance that ``optimize`` documents for float32; a GPU may use TF32 in convolutions."""
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2 * max(1.0, float(expected.abs().max())))


def graphed_and_not(name, device):
    model = tiny(name, device)
    return medzoo.optimize(model, cuda_graph=True), medzoo.optimize(model), model


@pytest.mark.gpu
@pytest.mark.parametrize("name", MODELS)
def test_on_a_gpu_graphs_give_equal_outputs(name, on_gpu):
    graphed, fast, model = graphed_and_not(name, on_gpu)
    x = batch(name, 3, on_gpu)
    for some in (x, x[:1], x, 2 * x, x[:1]):
        near(graphed(some), fast(some))
        near(graphed(some), model(some))
    assert len(graphed._graphs) == 2
    assert "CUDA graphs: one for each kind of input" in repr(graphed)
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    near(graphed(x.to(memory_format=layout)), model(x))
    with torch.inference_mode():
        near(graphed(x), model(x))
    extractor = medzoo.FeatureExtractor(model, [0, -1]).eval()
    for got, expected in zip(medzoo.optimize(extractor, cuda_graph=True)(x), extractor(x), strict=True):
        near(got, expected)
    for wrong in (x[0], x.double(), x.cpu()):
        with pytest.raises(medzoo.errors.InputError):
            graphed(wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHOSEN)
def test_on_a_gpu_a_result_is_not_written_over(name, on_gpu):
    graphed, _, _ = graphed_and_not(name, on_gpu)
    x = batch(name, 2, on_gpu)
    first = graphed(x)
    kept = first.clone()
    graphed(3 * x)
    graphed(x[:1])
    assert torch.equal(first, kept)
    assert torch.equal(graphed(x), kept)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHOSEN)
def test_on_a_gpu_graphs_follow_the_weights(name, on_gpu):
    graphed, _, model = graphed_and_not(name, on_gpu)
    x = batch(name, 2, on_gpu)
    near(graphed(x), model(x))
    other = tiny(name, on_gpu)
    graphed.load_state_dict(other.state_dict())
    near(graphed(x), other(x))
    for both in (graphed, other):
        for parameter in both.parameters():
            parameter.mul_(1.1)
        for norm in both.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.add_(0.1)
    near(graphed(x), other(x))
    graphed.bfloat16()
    assert graphed(x.bfloat16()).dtype == torch.bfloat16
    graphed.float()
    other.bfloat16().float()
    near(graphed(x), other(x))
    graphed.cpu()
    torch.testing.assert_close(graphed(x.cpu()), other.cpu()(x.cpu()), rtol=1e-4, atol=1e-4)
    assert len(graphed._graphs) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHOSEN)
def test_on_a_gpu_a_hook_that_is_added_later_is_called(name, on_gpu):
    graphed, _, model = graphed_and_not(name, on_gpu)
    x, seen = batch(name, 2, on_gpu), []
    graphed(x)
    layer = graphed.get_submodule(medzoo.describe(name).cam_layer)
    handle = layer.register_forward_hook(lambda module, args, out: seen.append(out))
    near(graphed(x), model(x))
    assert len(seen) == 1
    handle.remove()
    near(graphed(x), model(x))
    assert len(seen) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("name", CHOSEN)
def test_on_a_gpu_threads_and_streams_share_a_model(name, on_gpu):
    graphed, fast, _ = graphed_and_not(name, on_gpu)
    inputs = [batch(name, 2, on_gpu) for _ in range(3)]
    expected = [fast(x) for x in inputs]
    torch.cuda.synchronize()
    wrong = []

    def call(x, y):
        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            atol = 1e-2 * max(1.0, float(y.abs().max()))
            wrong.extend(x for _ in range(20) if not torch.allclose(graphed(x), y, rtol=1e-2, atol=atol))

    in_threads(call, zip(inputs, expected, strict=True))
    assert not wrong


@pytest.mark.gpu
def test_on_a_gpu_other_ways_run_without_a_graph(on_gpu):
    graphed, _, model = graphed_and_not("cnn3d_small", on_gpu)
    x = batch("cnn3d_small", 2, on_gpu)
    leaf = x.clone().requires_grad_()
    with torch.enable_grad():
        graphed(leaf).sum().backward()
    assert leaf.grad is not None
    with torch.autocast("cuda", torch.bfloat16):
        graphed(x)
    with set_fast_paths(False):
        graphed(x)
    assert graphed(x[:0]).shape[0] == 0
    near(graphed.forward_features(x), model.forward_features(x))
    assert len(graphed._graphs) == 0


@pytest.mark.gpu
def test_on_a_gpu_memory_is_bounded(on_gpu):
    graphed, _, _ = graphed_and_not("cnn3d_small", on_gpu)
    x = batch("cnn3d_small", 1, on_gpu)

    def reserved(sizes):
        for n in sizes:
            graphed(x.expand(n, *x.shape[1:]))
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    once = reserved(range(20, 4, -1))
    assert len(graphed._graphs) == GraphCache.LIMIT
    assert reserved([*range(20, 4, -1)] * 3) <= once + 2**24
