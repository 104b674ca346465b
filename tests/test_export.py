"""Exported files give the outputs of PyTorch, state what they are, and are kept only if they do.

Outputs are compared by onnxruntime and ``torch.export.load`` themselves, and metadata is read by onnx alone, so that
nothing of the export is asked about itself.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import medzoo
from medzoo.classifier import calibrate_head
from medzoo.cli.main import main
from medzoo.deployment import onnx_export
from medzoo.deployment.golden import golden_inputs
from medzoo.errors import ConfigError, ExportError, WeightsUnavailable
from medzoo.nn import Head

FORMATS = ("onnx", "pt2")
TREE = Path(medzoo.__file__).parents[1]


def tiny(name="xray_cnn", **options):
    return medzoo.create(name, **{**medzoo.describe(name).tiny, **options})


def tiny_size(name):
    size = medzoo.describe(name).tiny_size
    return (max(size),) * 2 if name == "densenet121_xray" else size  # its preprocessing crops to a square


def batch(model, size, count=5):
    return torch.randn(count, model.input_spec.channels, *size, generator=torch.Generator().manual_seed(1))


def trained(model, size):
    """Take a training step, which changes weights and statistics, and leave the model in training mode."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(3 * batch(model, size)).square().sum().backward()
    optimizer.step()
    return model


def run_file(path, x):
    """Run an exported file without medzoo."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"image": x.numpy()})[0])
    with torch.no_grad():
        return torch.export.load(path).module()(x)


def assert_same_outputs(path, model, x, allowed=1e-4):
    """Compare at several batch sizes with the model as its user runs it."""
    fast = medzoo.optimize(model).float()
    for count in (1, 2, 5):
        with torch.no_grad():
            expected = fast(x[:count].float())
        got = run_file(path, x[:count])
        assert got.shape == expected.shape
        scale = expected.abs().amax(1, keepdim=True).clamp(min=1)
        assert ((got - expected).abs() / scale).max() <= allowed


def files(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Return the folder of a trained model that states what it is."""
    model = trained(tiny(num_classes=2, labels=["effusion", "nodule"]), (32, 32))
    model.set_outputs(thresholds=[0.3, None], trained=[True, False])
    folder = tmp_path_factory.mktemp("of alice") / "model"
    return model.save_pretrained(folder, license="MIT", trained_on="drawn dots ✓", metrics={"auroc": 0.9})


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory):
    """Return the report of that model as ONNX, in training mode and with gradients; nothing is printed or warned of."""
    model = medzoo.create(f"local-dir:{saved}").train()
    return medzoo.export(model, tmp_path_factory.mktemp("onnx") / "new" / "model.onnx")


DEFAULT = [("xray_cnn", "pt2", "as created"), ("cnn3d_small", "pt2", "after a step")]
SLOW = [
    *[("xray_cnn", "onnx", "as created"), ("cnn3d_small", "onnx", "after a step")],
    *[
        (name, format, state)
        for name in ("cnn3d_base", "resnet18_multilabel", "densenet121_xray", "swin_encoder_mlp")
        for format, state in (("onnx", "as created"), ("pt2", "optimized after a step"))
    ],
]


@pytest.mark.parametrize(
    ("name", "format", "state"), DEFAULT + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW]
)
def test_every_model_gives_the_outputs_of_pytorch(name, format, state, tmp_path):
    model, size = tiny(name), tiny_size(name)
    if state != "as created":
        trained(model, size)
    if state == "optimized after a step":
        model = medzoo.optimize(model)
    report = medzoo.export(model, tmp_path / f"model.{format}", size=size)
    assert_same_outputs(report.file, model, batch(model, size))
    assert max(one.relative for one in report.differences.values()) <= 1e-5
    assert report.spread > 1e-3, "the comparison shows something"


def test_the_slow_cases_have_every_model():
    assert {name for name, *_ in DEFAULT + SLOW} == set(medzoo.list_models())


def test_onnx_gives_the_outputs_of_pytorch(exported, saved):
    model = medzoo.create(f"local-dir:{saved}").eval()
    assert_same_outputs(exported.file, model, batch(model, (32, 32)))
    with torch.no_grad():
        x = golden_inputs(3, (32, 32), model.preprocessing)
        assert torch.allclose(run_file(exported.file, x[:3]), model(x[:3]), atol=1e-5)


def test_the_files_of_an_export(exported, saved):
    folder = exported.file.parent
    assert files(folder) == ["config.json", "model.golden.npz", "model.onnx", "model.onnx.json"]
    assert (exported.file.stat().st_mode & 0o777) == (saved / "config.json").stat().st_mode & 0o777
    ours, theirs = (json.loads((one / "config.json").read_text("utf-8")) for one in (folder, saved))
    assert theirs.pop("metrics") == {"auroc": 0.9}
    assert ours.pop("metrics") == {}
    assert ours == theirs
    with np.load(folder / "model.golden.npz") as golden:
        image, logits = golden["image"], golden["logits"]
    assert (image.shape, image.dtype, logits.shape) == ((1, 3, 32, 32), np.float32, (1, 2))
    model = medzoo.create(f"local-dir:{saved}").eval()
    with torch.no_grad():
        assert np.allclose(model(torch.from_numpy(image)).numpy(), logits, atol=1e-6)
    assert np.allclose(run_file(exported.file, torch.from_numpy(image)).numpy(), logits, atol=1e-5)


def test_the_report(exported, saved):
    written = json.loads(exported.file.with_name("model.onnx.json").read_text("utf-8"))
    assert written == json.loads(json.dumps(exported.to_dict()))
    assert written["digest"] == medzoo.weights.cache.digest_of(exported.file.read_bytes())
    assert written["size"] == exported.file.stat().st_size
    assert written["weights"] == json.loads((saved / "config.json").read_text("utf-8"))["weights"]["digest"]
    assert (written["file"], written["format"], written["opset"]) == ("model.onnx", "onnx", 20)
    assert written["input_shape"] == ["batch", 3, 32, 32]
    assert written["untrained"] == ["nodule"]
    assert (written["license"], written["trained_on"]) == ("MIT", "drawn dots ✓")
    assert written["differences"].keys() == {"1", "2", "5"}
    assert written["made_with"]["onnxruntime"] == onnxruntime.__version__
    lines = dict(line.split("  ", 1) for line in str(exported).splitlines())
    assert lines["output"].strip() == "logits: batch × 2: effusion, nodule"
    assert lines["licence"].strip() == "MIT"
    assert lines["note"].strip() == "some outputs are untrained: their numbers mean nothing"


def test_the_graph_is_the_layers_alone(exported):
    """The input check costs no operator; only the batch may have any size."""
    proto = onnx.load(exported.file)
    assert dict(exported.nodes) == {"Conv": 4, "Relu": 4, "MaxPool": 4, "Reshape": 1, "Gemm": 2}
    assert [node.op_type for node in proto.graph.node].count("Conv") == 4
    assert [(one.domain, one.version) for one in proto.opset_import] == [("", 20)]
    arrays = {
        one.name: [side.dim_param or side.dim_value for side in one.type.tensor_type.shape.dim]
        for one in (*proto.graph.input, *proto.graph.output)
    }
    assert arrays == {"image": ["batch", 3, 32, 32], "logits": ["batch", 2]}
    assert not any(tensor.external_data for tensor in proto.graph.initializer)
    assert not any(one.metadata_props for one in (*proto.graph.node, *proto.graph.value_info, proto.graph))


def test_the_metadata_is_read_by_onnx_alone(exported, saved):
    stated = {one.key: one.value for one in onnx.load(exported.file).metadata_props}
    config = (exported.file.parent / "config.json").read_text("utf-8")
    assert stated["medzoo.config"] == config
    assert json.loads(stated["medzoo.labels"]) == ["effusion", "nodule"]
    assert json.loads(stated["medzoo.thresholds"]) == [0.3, None]
    assert json.loads(stated["medzoo.trained"]) == [True, False]
    assert (stated["medzoo.model"], stated["medzoo.task"]) == ("xray_cnn", "multilabel")
    assert (stated["medzoo.license"], stated["medzoo.trained_on"]) == ("MIT", "drawn dots ✓")
    assert stated["medzoo.digest"] == json.loads(config)["weights"]["digest"]
    assert stated["medzoo.version"] == medzoo.__version__
    provenance = json.loads(stated["medzoo.provenance"])
    assert provenance.keys() == {"model", "weights", "digest", "medzoo"}
    assert provenance["digest"] == stated["medzoo.digest"]


@pytest.mark.parametrize("format", FORMATS)
def test_no_file_names_a_path_or_a_line_of_code(format, exported, saved, tmp_path):
    folder = exported.file.parent
    if format == "pt2":
        folder = tmp_path
        medzoo.export(medzoo.create(f"local-dir:{saved}"), tmp_path / "model.pt2")
    for path in folder.iterdir():
        data = path.read_bytes()
        for text in (
            TREE,
            Path(torch.__file__).parents[1],
            saved,
            folder,
            Path.home(),
            "of alice",
            "stack_trace",
            ".py",
        ):
            assert str(text).encode() not in data, (path.name, text)


@pytest.mark.slow
def test_the_same_model_gives_the_same_bytes(saved, tmp_path):
    model = medzoo.create(f"local-dir:{saved}")
    first, second = (medzoo.export(model, tmp_path / n / "model.pt2").file.parent for n in "ab")
    for name in ("model.pt2", "config.json", "model.golden.npz"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.slow
def test_the_same_model_gives_the_same_onnx_in_another_process(exported, saved, tmp_path):
    code = f"import medzoo; medzoo.export(medzoo.create('local-dir:{saved}'), '{tmp_path}/model.onnx')"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    assert (tmp_path / "model.onnx").read_bytes() == exported.file.read_bytes()


def test_a_pt2_file_states_the_same(exported, saved, tmp_path):
    path = medzoo.export(medzoo.create(f"local-dir:{saved}"), tmp_path / "model.pt2").file
    assert files(tmp_path) == ["config.json", "model.golden.npz", "model.pt2", "model.pt2.json"]
    stated = {one.key: one.value for one in onnx.load(exported.file).metadata_props}
    extra = dict.fromkeys(stated, "")
    program = torch.export.load(path, extra_files=extra)
    assert extra == stated
    assert program.example_inputs is None, "of the size of a batch of inputs"
    with pytest.raises(RuntimeError, match=r"shape\[3\] to be equal to 32, but got 33"):
        program.module()(torch.zeros(1, 3, 32, 33))


def snapshot(model):
    """Return all of a model that an export might change."""
    tensors = {
        name: (id(t), t._version if not t.is_inference() else 0) for name, t in model.state_dict(keep_vars=True).items()
    }
    values = {name: t.detach().clone() for name, t in model.state_dict().items()}
    modes = [(module.training, type(module), sorted(module.__dict__)) for module in model.modules()]
    grads = [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    return tensors, modes, model.preprocessing, model.outputs, model.load_report, values, grads


def assert_unchanged(before, model):
    now = snapshot(model)
    assert now[:5] == before[:5]
    assert all(torch.equal(now[5][name], value) for name, value in before[5].items())
    for (required, grad), (required_before, grad_before) in zip(now[6], before[6], strict=True):
        assert required == required_before
        assert grad is grad_before is None or torch.equal(grad, grad_before)


def created(how):
    """Return a model in some state, and what else is switched on while it is exported."""
    if how == "inference mode":
        with torch.inference_mode():
            return tiny(), torch.inference_mode()
    model = trained(tiny(), (32, 32))
    if how == "frozen":
        model.freeze_encoder()
    if how == "no gradients":
        model.eval().requires_grad_(False)
    if how == "optimized":
        model = medzoo.optimize(model)
    contexts = {
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "no gradients": torch.no_grad(),
        "another device": torch.device("meta"),
    }
    return model, contexts.get(how, torch.enable_grad())


@pytest.mark.parametrize(
    "how",
    [
        *("in training", "optimized", "inference mode"),
        *(
            pytest.param(how, marks=pytest.mark.slow)
            for how in ("frozen", "no gradients", "autocast", "another device")
        ),
    ],
)
def test_a_model_in_any_state_is_exported_and_unchanged(how, tmp_path, capfd):
    """FAULTS 141."""
    model, context = created(how)
    before, filters, random = snapshot(model), list(warnings.filters), torch.get_rng_state()
    with context:
        report = medzoo.export(model, tmp_path / "model.pt2")
        assert torch.is_grad_enabled() == (how not in ("no gradients", "inference mode"))
    assert_unchanged(before, model)
    assert warnings.filters == filters
    assert torch.equal(torch.get_rng_state(), random)
    assert_same_outputs(report.file, model, batch(model, (32, 32)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.half, torch.double))]
)
def test_other_dtypes_are_exported_in_float32(dtype, tmp_path):
    model = tiny().to(dtype)
    report = medzoo.export(model, tmp_path / "model.pt2")
    name = str(dtype).removeprefix("torch.")
    assert report.dtype == name
    assert f"the weights are of {name}; the file holds and computes them in float32" in report.notes
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["dtype"] == name
    assert next(model.parameters()).dtype == dtype
    plain = tiny()
    plain.load_state_dict({key: value.float() for key, value in model.state_dict().items()})
    assert_same_outputs(report.file, plain, batch(plain, (32, 32)))


def test_a_calibration_is_part_of_the_file(tmp_path):
    model = tiny(num_classes=2, labels=["a", "b"]).eval()
    x = batch(model, (32, 32), 1)
    with torch.no_grad():
        before = model(x)
    calibrate_head(model, medzoo.Calibration("Platt", (3.0, 0.5), (1.0, -2.0)))
    after = medzoo.export(model, tmp_path / "model.pt2").file
    expected = before * torch.tensor([3.0, 0.5]) + torch.tensor([1.0, -2.0])
    assert torch.allclose(run_file(after, x), expected, atol=1e-5)


def test_features_are_exported_under_that_name(tmp_path):
    model = tiny("cnn3d_small", num_classes=0)
    report = medzoo.export(model, tmp_path / "model.pt2")
    assert (report.output, report.labels, report.untrained) == ("features", (), ())
    with np.load(tmp_path / "model.golden.npz") as golden:
        assert golden["features"].shape == (1, model.num_features)
    assert_same_outputs(report.file, model, batch(model, (16, 16, 16)))


@pytest.mark.slow
def test_another_size(tmp_path):
    model = tiny("cnn3d_base")
    report = medzoo.export(model, tmp_path / "model.pt2", size=[46, 48, 50])
    assert report.input_shape == ("batch", 1, 46, 48, 50)
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["preprocessing"]["size"] == [46, 48, 50]
    assert model.preprocessing.size == (64, 128, 128)
    assert run_file(report.file, torch.zeros(3, 1, 46, 48, 50)).shape == (3, 1)


class Scaled(nn.Module):
    """An encoder that someone brings along."""

    feature_info = [{"num_chs": 4, "reduction": 1, "module": "conv"}]  # noqa: RUF012  # as of every encoder

    def __init__(self, when):
        super().__init__()
        self.conv, self.when = nn.Conv2d(1, 4, 3, padding=1), when

    def forward(self, x):
        return self.conv(x) * (2.0 if self.when(x) else 1.0)


def own_model(when=lambda x: False):
    spec = medzoo.InputSpec("b c h w", channels=1, size=(8, 8))
    return medzoo.Classifier(Scaled(when), Head(4, 2), input_spec=spec, name="mine")


def test_a_model_of_ones_own(tmp_path):
    """It has no registered name and no preprocessing, so that no config can state them."""
    model = own_model()
    report = medzoo.export(model, tmp_path / "model.pt2")
    assert files(tmp_path) == ["model.golden.npz", "model.pt2", "model.pt2.json"]
    assert any("medzoo.predict cannot use the file" in note for note in report.notes)
    extra = {"medzoo.model": ""}
    torch.export.load(report.file, extra_files=extra)
    assert extra["medzoo.model"] == "mine"
    assert "medzoo.config" not in extra
    assert_same_outputs(report.file, model, batch(model, (8, 8)))


def test_a_subclass_keeps_its_forward(tmp_path):
    class Negated(medzoo.Classifier):
        def forward(self, x):
            return -super().forward(x)

    model = own_model()
    model.__class__ = Negated
    report = medzoo.export(model, tmp_path / "model.pt2")
    x = batch(model, (8, 8), 2)
    with torch.no_grad():
        assert torch.allclose(run_file(report.file, x), model(x), atol=1e-6)


@pytest.mark.parametrize(
    ("when", "message"),
    [
        (lambda x: x.sum() > 0, r"mine: expected a model that torch\.export of PyTorch .* can export, got "),
        (
            lambda x: torch.compiler.is_exporting(),
            r"mine as model\.pt2: expected outputs within 0\.0001 of PyTorch's, .* got differences of [\d.e-]+ at "
            r"batch 1, [\d.e-]+ at batch 2, [\d.e-]+ at batch 5\. No file was kept\.",
        ),
    ],
    ids=["branches on values", "computes something else when it is exported"],
)
def test_a_model_that_cannot_be_exported_leaves_nothing(when, message, tmp_path):
    model = own_model(when)
    before = snapshot(model)
    with pytest.raises(ExportError, match=message):
        medzoo.export(model, tmp_path / "new" / "deep" / "model.pt2")
    assert files(tmp_path) == []
    assert_unchanged(before, model)
    assert not torch.compiler.is_exporting()


def test_outputs_that_are_not_finite_are_refused(tmp_path):
    model = tiny()
    with torch.no_grad():
        model.head.classifier.bias[0] = math.nan
    with pytest.raises(ExportError, match=r"xray_cnn: expected finite outputs .*, got NaN or infinity"):
        medzoo.export(model, tmp_path / "model.pt2")
    assert files(tmp_path) == []


def test_outputs_that_hardly_depend_on_the_input_are_noted(tmp_path):
    model = tiny()
    with torch.no_grad():
        model.head.classifier.weight.mul_(1e-6)
    report = medzoo.export(model, tmp_path / "model.pt2")
    assert any("so that the comparison shows little" in note for note in report.notes)


def test_the_compared_inputs_are_like_preprocessed_images():
    how = medzoo.describe("densenet121_xray").preprocessing
    x = golden_inputs(1, (64, 64), how)
    low, high = (0 - how.mean[0]) / how.std[0], (1 - how.mean[0]) / how.std[0]
    assert x[:4].min() >= low - 1e-3
    assert x[:4].max() <= high + 1e-3
    assert (x[2].max() - x[2].min(), x[3].max() - x[3].min()) == (0, 0)
    brain = medzoo.Preprocessing(size=(16, 16, 16), intensity="zscore_nonzero")
    y = golden_inputs(2, (16, 16, 16), brain)
    inside = y[:2][y[:2] != 0]
    assert y.shape == (5, 2, 16, 16, 16)
    assert 0.2 < (y[:2] == 0).float().mean() < 0.8
    assert inside.mean() == pytest.approx(0, abs=1e-4)
    assert inside.std() == pytest.approx(1, abs=1e-3)
    assert torch.equal(y, golden_inputs(2, (16, 16, 16), brain)), "the same for each call"


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        (
            "model.onx",
            {},
            r"expected a file name that ends in \.onnx or \.pt2, got 'model\.onx'\. Did you mean '\.onnx'\?",
        ),
        ("model.onnx", {"opset": 17}, r"export: expected opset to be an int >= 18, got 17\."),
        ("model.onnx", {"opset": 40}, r"export: expected opset from 18 to 23, got 40\. 20 is the default\."),
        ("model.pt2", {"opset": 20}, r"export: expected no opset for a \.pt2 file, got 20\. Leave it out\."),
        ("model.pt2", {"tolerance": 0}, r"export: expected tolerance to be a number above 0, got 0\."),
        ("model.pt2", {"size": 40}, r"export: xray_cnn takes 'b 3 h w' with h, w = 32, 32, got size \(40, 40\)\."),
        ("model.pt2", {"size": (32,)}, r"export: expected size to be 2 numbers, got \(32,\)\."),
    ],
)
def test_arguments_that_cannot_be(file, options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        medzoo.export(tiny(), tmp_path / "new" / file, **options)
    assert files(tmp_path) == []


def test_what_is_not_a_classifier_is_refused(tmp_path):
    maps = tiny("cnn3d_small", features_only=True)
    with pytest.raises(ConfigError, match=r"expected a Classifier .*, got FeatureExtractor\. For features"):
        medzoo.export(maps, tmp_path / "model.pt2")
    with pytest.raises(
        ConfigError, match=r"expected a Classifier .*, got str\. Use the model as medzoo\.create returns it"
    ):
        medzoo.export("xray_cnn", tmp_path / "model.pt2")
    with pytest.raises(
        ConfigError, match=r"expected weights that are plain tensors, got encoder\.stages\.0\.conv\.weight"
    ):
        medzoo.export(tiny().to("meta"), tmp_path / "model.pt2")
    model = tiny()
    model.encoder.register_forward_hook(print)
    with pytest.raises(ConfigError, match=r"expected a model without forward hooks, .* got some on encoder\. Remove"):
        medzoo.export(model, tmp_path / "model.pt2")


def test_an_export_that_is_there_is_replaced_only_if_asked_for(tmp_path):
    first, second = tiny(), tiny()
    path = tmp_path / "model.pt2"
    medzoo.export(first, path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    with pytest.raises(ConfigError, match=r"model\.pt2: expected no such file, found one\. .* overwrite=True"):
        medzoo.export(second, path)
    with pytest.raises(
        ConfigError, match=r"model\.golden\.npz: expected none, or that of the same weights, found anot"
    ):
        medzoo.export(second, tmp_path / "model.onnx")
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
    medzoo.export(second, path, overwrite=True)
    assert_same_outputs(path, second, batch(second, (32, 32)))
    assert len(files(tmp_path)) == 4


def test_the_config_of_another_model_is_not_replaced(tmp_path):
    medzoo.export(tiny(), tmp_path / "a.pt2")
    other = tiny(num_classes=2, labels=["a", "b"])
    before = (tmp_path / "config.json").read_bytes()
    message = r"config\.json: expected none, .* found the config of another model: options, outputs differ\."
    with pytest.raises(ConfigError, match=message):
        medzoo.export(other, tmp_path / "b.pt2")
    assert (tmp_path / "config.json").read_bytes() == before
    medzoo.export(other, tmp_path / "b.pt2", overwrite=True)
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["outputs"]["labels"] == ["a", "b"]
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="found the config of another model: its format differ"):
        medzoo.export(other, tmp_path / "c.pt2")


def test_a_saved_model_keeps_its_config(tmp_path):
    """It may state more than the model does, such as figures, and belongs to the weights beside it."""
    model = tiny()
    model.save_pretrained(tmp_path, license="MIT", metrics={"auroc": 0.9})
    before = (tmp_path / "config.json").read_bytes()
    report = medzoo.export(model, tmp_path / "model.pt2")
    assert report.license == "MIT"
    assert (tmp_path / "config.json").read_bytes() == before
    extra = {"medzoo.config": ""}
    torch.export.load(report.file, extra_files=extra)
    assert json.loads(extra["medzoo.config"])["metrics"] == {"auroc": 0.9}
    for overwrite in (False, True):
        with pytest.raises(
            ConfigError, match=r"found the saved weights of another: weights differ\. Export to another"
        ):
            medzoo.export(tiny(), tmp_path / "other.pt2", overwrite=overwrite)
    assert (tmp_path / "config.json").read_bytes() == before
    assert torch.equal(medzoo.create(f"local-dir:{tmp_path}").head.fc.weight, model.head.fc.weight)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsUnavailable, match=r"the export cannot be written \(.*\)\. Check the path"):
        medzoo.export(tiny(), tmp_path / "file" / "model.pt2")
    (tmp_path / "model.pt2").mkdir()
    with pytest.raises(ConfigError, match=r"model\.pt2: expected a file or nothing, found a folder"):
        medzoo.export(tiny(), tmp_path / "model.pt2", overwrite=True)


def test_onnx_needs_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = (
        r"an export to ONNX needs packages that are not installed \(onnxruntime\)\. Run: pip install 'medzoo\[export\]'"
    )
    with pytest.raises(ConfigError, match=message):
        medzoo.export(tiny(), tmp_path / "model.onnx")
    assert medzoo.export(tiny(), tmp_path / "model.pt2").file.exists()


def test_weights_that_do_not_fit_in_an_onnx_file(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "MAX_BYTES", 1000)
    with pytest.raises(
        ConfigError, match=r"xray_cnn: expected weights of less than 2 GiB, .* Export to a \.pt2 file\."
    ):
        medzoo.export(tiny(), tmp_path / "model.onnx")


@pytest.mark.slow
def test_threads_export_in_turn_while_others_predict(tmp_path):
    models = [tiny("cnn3d_small") for _ in range(2)]
    running = tiny("cnn3d_small").eval()
    x = batch(running, (16, 16, 16))
    with torch.no_grad():
        expected = running(x)
    failed: list[BaseException] = []
    done = threading.Event()

    def attempt(work):
        try:
            work()
        except BaseException as error:
            failed.append(error)

    def predict():
        while not done.is_set():
            with torch.inference_mode():
                assert torch.allclose(running(x), expected, atol=1e-6)

    exports = [
        threading.Thread(target=attempt, args=(lambda i=i: medzoo.export(models[i], tmp_path / str(i) / "m.pt2"),))
        for i in range(2)
    ]
    predicting = threading.Thread(target=attempt, args=(predict,))
    for thread in (predicting, *exports):
        thread.start()
    for thread in exports:
        thread.join()
    done.set()
    predicting.join()
    assert failed == []
    for i, model in enumerate(models):
        assert_same_outputs(tmp_path / str(i) / "m.pt2", model, x)


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 19, 21, 23])
def test_another_opset(opset, tmp_path, capfd):
    model = tiny("cnn3d_small")
    report = medzoo.export(model, tmp_path / "model.onnx", opset=opset)
    assert capfd.readouterr() == ("", ""), "the exporter converts without a message"
    assert report.opset == onnx.load(report.file).opset_import[0].version == opset
    assert_same_outputs(report.file, model, batch(model, (16, 16, 16)))


def test_the_command(saved, tmp_path):
    path = tmp_path / "model.pt2"
    command = ["export", f"local-dir:{saved}", str(path)]
    result = CliRunner().invoke(main, [*command, "--size", "32,32"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert "logits: batch × 2: effusion, nodule" in result.stdout
    assert path.exists()
    again = CliRunner().invoke(main, command)
    assert (again.exit_code, again.stdout) == (2, "")
    assert "replace it with --overwrite." in again.stderr
    wrong = CliRunner().invoke(main, [*command, "--overwrite", "--size", "33"])
    assert "Choose another with --size." in wrong.stderr


@pytest.mark.slow
def test_differences_above_the_tolerance_leave_nothing(saved, tmp_path):
    command = ["export", f"local-dir:{saved}", str(tmp_path / "model.onnx"), "--tolerance", "1e-12"]
    result = CliRunner().invoke(main, command)
    assert (result.exit_code, result.stdout) == (8, "")
    assert "xray_cnn as model.onnx: expected outputs within 1e-12 of PyTorch's" in result.stderr
    assert "give a larger --tolerance." in result.stderr
    assert files(tmp_path) == [], "what was written is gone"
