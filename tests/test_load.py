"""Strict loading of weights from a file by ``create``: damaged files, wrong tensors, other channels and classes."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensors import TINY, changed

import medzoo
from medzoo.errors import UnsafeWeights, WeightsCorrupt, WeightsMismatch, WeightsUnavailable
from medzoo.weights.load import adapt_channels


def test_weights_decide_classes_and_channels(tmp_path):
    model = medzoo.create("cnn3d_small", num_classes=4, in_chans=2, **TINY).eval()
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = medzoo.create("cnn3d_small", pretrained=str(tmp_path / "m.safetensors"), **TINY)
    assert (again.num_classes, again.input_spec.channels) == (4, 2)
    x = torch.randn(1, 2, 16, 16, 16)
    assert torch.equal(again(x), model(x))


def test_load_report_accounts_for_every_tensor(saved):
    model, path = saved
    report = medzoo.create("cnn3d_small", pretrained=path, **TINY).load_report
    assert set(report.loaded) == set(model.state_dict())
    assert report.digest == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert "25 of 25 tensors loaded, 0 random" in str(report)


def test_20_another_number_of_classes_replaces_the_classifier_alone(saved):
    model, path = saved
    message = (
        r"head\.classifier\.weight and head\.classifier\.bias are randomly initialised, because the weights have 3 "
        r"outputs and the model has 5\. Train it before use\."
    )
    with pytest.warns(UserWarning, match=message) as caught:
        other = medzoo.create("cnn3d_small", pretrained=path, num_classes=5, **TINY)
    assert caught[0].filename == __file__
    assert other.load_report.new == ("head.classifier.bias", "head.classifier.weight")
    assert other.load_report.dropped == ("head.classifier.weight", "head.classifier.bias")
    assert torch.equal(other.head.fc.weight, model.head.fc.weight)
    assert other.head.classifier.weight.std() > 0
    assert not any(t.is_meta for t in other.state_dict().values())


def test_a_replaced_classifier_warns_at_the_line_that_loads(saved):
    _, path = saved
    other = medzoo.create("cnn3d_small", num_classes=5, **TINY)
    with pytest.warns(UserWarning, match="the weights have 3 outputs and the model has 5") as caught:
        medzoo.load_state(other, load_file(path))
    assert caught[0].filename == __file__


def test_a_backbone_leaves_the_head_in_the_file(saved):
    model, path = saved
    backbone = medzoo.create("cnn3d_small", pretrained=path, num_classes=0, **TINY)
    x = torch.randn(2, 1, 16, 16, 16)
    torch.testing.assert_close(backbone(x), model.forward_features(x).mean((2, 3, 4)))


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (1, 4), (4, 2), (2, 3)])
def test_adapted_channels_keep_the_response(old, new):
    """A grey image repeated over the channels gives the same response as before."""
    kernel = torch.randn(5, old, 3, 3, 3)
    adapted = adapt_channels(kernel, new)
    assert adapted.shape == (5, new, 3, 3, 3)
    if old == 1 or new == 1 or new % old == 0:
        torch.testing.assert_close(adapted.sum(1), kernel.sum(1))
    if new > 1:
        torch.testing.assert_close(adapted[:, 0], kernel[:, 0] * old / new)


def test_in_chans_other_than_the_weights_is_adapted_and_reported(saved):
    model, path = saved
    wide = medzoo.create("cnn3d_small", pretrained=path, in_chans=3, **TINY)
    grey = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(wide(grey.expand(1, 3, 16, 16, 16)), model(grey), rtol=1e-4, atol=1e-5)
    assert dict(wide.load_report.adapted) == {"encoder.stages.0.conv.weight": "1 input channels to 3"}


def test_16_wrong_shape_names_both(saved):
    _, path = saved
    shapes = r"is \(8, 4, 2, 2, 2\) in the file, \(6, 4, 2, 2, 2\) in the model; .*, and \d+ more"
    message = rf"encoder\.stages\.1\.conv\.weight {shapes}"
    with pytest.raises(WeightsMismatch, match=message):
        medzoo.create("cnn3d_small", pretrained=path, **TINY | {"widths": (4, 6, 6)})


def test_17_a_missing_tensor(saved):
    _, path = saved
    changed(path, encoder__stages__1__norm__running_var=None)
    with pytest.raises(WeightsMismatch, match=r"missing encoder\.stages\.1\.norm\.running_var"):
        medzoo.create("cnn3d_small", pretrained=path, **TINY)


def test_18_an_unexpected_tensor(saved):
    _, path = saved
    changed(path, encoder__extra=torch.zeros(1))
    with pytest.raises(WeightsMismatch, match=r"unexpected encoder\.extra"):
        medzoo.create("cnn3d_small", pretrained=path, **TINY)


@pytest.mark.parametrize("prefix", ["module", "_orig_mod"])
def test_18_a_prefix_is_named(saved, prefix):
    _, path = saved
    save_file({f"{prefix}.{name}": tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(WeightsMismatch, match=f"strip the prefix '{prefix}.'"):
        medzoo.create("cnn3d_small", pretrained=path, **TINY)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_19_another_precision_is_cast_with_one_log_line(saved, dtype, caplog):
    _, path = saved
    save_file({n: t.to(dtype) if t.is_floating_point() else t for n, t in load_file(path).items()}, path)
    with caplog.at_level("INFO", logger="medzoo"):
        model = medzoo.create("cnn3d_small", pretrained=path, **TINY)
    assert [r.getMessage() for r in caplog.records] == [f"{path}: cast from {dtype}"]
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float8_e4m3fn])
def test_19_another_dtype(saved, dtype):
    _, path = saved
    changed(path, head__fc__bias=torch.zeros(8).to(dtype))
    with pytest.raises(WeightsMismatch, match=rf"expected head\.fc\.bias to be torch\.float32, got {dtype}"):
        medzoo.create("cnn3d_small", pretrained=path, **TINY)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_14_nan_and_infinity(saved, value):
    _, path = saved
    changed(path, head__fc__bias=torch.full((8,), value))
    with pytest.raises(WeightsCorrupt, match=r"head\.fc\.bias contains NaN or infinity"):
        medzoo.create("cnn3d_small", pretrained=path, **TINY)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pt2", ".ts", ".npz", ".PTH"])
def test_21_a_format_that_can_run_code(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"anything")
    with pytest.raises(UnsafeWeights, match=r"a format that can run code when it is read"):
        medzoo.create("cnn3d_small", pretrained=str(path))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "got 0 bytes"),
        (b"1234567", "got 7 bytes"),
        ((2**64 - 1).to_bytes(8, "little") + b"{}", "got a length of 18446744073709551615"),
        ((100).to_bytes(8, "little") + b"{}", "expected a safetensors header of at most 2 bytes, got a length of 100"),
        ((2).to_bytes(8, "little") + b"\xff\xff", "not valid JSON"),
        ((16).to_bytes(8, "little") + b'{"a": 1, "a": 2}', "a key is given twice"),
        ((10).to_bytes(8, "little") + b'{"a": 123}', "not a valid safetensors file"),
    ],
)
def test_bytes_that_are_not_a_safetensors_file(tmp_path, data, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsCorrupt, match=message):
        medzoo.create("cnn3d_small", pretrained=path)


def with_header(path, header, data=b""):
    """Write a safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize("keep", [8, 9, 40, 200])
def test_2_a_cut_header(saved, keep):
    _, path = saved
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsCorrupt, match="cut short or is of another format"):
        medzoo.create("cnn3d_small", pretrained=path, **TINY)


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, 10_000_001, 2**31])
def test_5_a_header_that_claims_to_be_long(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(1000))
    tracemalloc.start()
    with pytest.raises(WeightsCorrupt, match=f"got a length of {length}"):
        medzoo.create("cnn3d_small", pretrained=path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * 2**20


def test_5_a_header_longer_than_any_models(tmp_path):
    path = tmp_path / "model.safetensors"
    with_header(path, b'{"a": "' + b" " * 10_000_001 + b'"}')
    with pytest.raises(WeightsCorrupt, match="header of at most 10000000 bytes"):
        medzoo.create("cnn3d_small", pretrained=path)


@pytest.mark.parametrize(
    "header", [b"\xff\xfe{}", b"nothing", b"[]", b"3", b'"x"', b"null", b"[" * 100_000, b'{"a":' * 100_000]
)
def test_6_a_header_that_is_not_a_json_object(tmp_path, header):
    path = tmp_path / "model.safetensors"
    with_header(path, header)
    with pytest.raises(WeightsCorrupt, match="safetensors header is not"):
        medzoo.create("cnn3d_small", pretrained=path)


@pytest.mark.parametrize(
    "entries",
    [
        {"a": entry([2], 0, 8), "b": entry([2], 4, 12)},
        {"a": entry([2], 0, 8), "b": entry([2], 12, 20)},
        {"a": entry([2], 8, 0)},
        {"a": entry([2], -8, 0)},
        {"a": entry([2], 2**63, 2**63 + 8)},
    ],
    ids=["overlap", "gap", "reversed", "negative", "beyond"],
)
def test_7_invalid_offsets(tmp_path, entries):
    path = tmp_path / "model.safetensors"
    with_header(path, entries, bytes(20))
    with pytest.raises(WeightsCorrupt, match="not a valid safetensors file"):
        medzoo.create("cnn3d_small", pretrained=path)


@pytest.mark.parametrize(
    "made",
    [
        entry([3], 0, 8),
        entry([2**32, 2**32], 0, 8),
        entry([2**63, 2], 0, 8),
        entry([-2], 0, 8),
    ],
)
def test_8_a_shape_that_does_not_fit_its_bytes(tmp_path, made):
    path = tmp_path / "model.safetensors"
    with_header(path, {"a": made}, bytes(8))
    with pytest.raises(WeightsCorrupt, match="not a valid safetensors file"):
        medzoo.create("cnn3d_small", pretrained=path)


def test_8_an_unknown_dtype(tmp_path):
    path = tmp_path / "model.safetensors"
    with_header(path, {"a": entry([2], 0, 8, "F99")}, bytes(8))
    with pytest.raises(WeightsCorrupt, match=r"does not read the dtype 'F99' of a\. Save it in one of F64, F32"):
        medzoo.create("cnn3d_small", pretrained=path)


def test_9_a_name_given_twice(tmp_path):
    path = tmp_path / "model.safetensors"
    one = json.dumps(entry([2], 0, 8))
    with_header(path, f'{{"a": {one}, "a": {one}}}'.encode(), bytes(8))
    with pytest.raises(WeightsCorrupt, match="a key is given twice"):
        medzoo.create("cnn3d_small", pretrained=path)


def test_10_more_tensors_than_any_model_has(tmp_path):
    path = tmp_path / "model.safetensors"
    with_header(path, {f"encoder.tensor{i}": entry([0], 0, 0) for i in range(100_000)})
    with pytest.raises(WeightsMismatch, match="expected 25 tensors, got 100,000"):
        medzoo.create("cnn3d_small", pretrained=path, **TINY)


def test_15_a_variance_below_zero(saved):
    _, path = saved
    changed(path, encoder__stages__0__norm__running_var=torch.full((4,), -1e-3))
    with pytest.raises(WeightsCorrupt, match=r"encoder\.stages\.0\.norm\.running_var contains a variance below 0"):
        medzoo.create("cnn3d_small", pretrained=path, **TINY)


@pytest.mark.parametrize("harm", ["replaced", "cut", "deleted"])
def test_24_a_file_that_changes_after_the_load(saved, harm):
    _, path = saved
    model = medzoo.create("cnn3d_small", pretrained=path, **TINY)
    x = torch.randn(1, 1, 16, 16, 16)
    before = model(x)
    if harm == "replaced":
        path.write_bytes(bytes(path.stat().st_size))
    elif harm == "cut":
        path.write_bytes(b"")
    else:
        path.unlink()
    assert torch.equal(model(x), before)


def test_3_4_a_short_or_long_file(saved):
    _, path = saved
    complete = path.read_bytes()
    for data in (complete[:-1], complete + b"x"):
        path.write_bytes(data)
        with pytest.raises(WeightsCorrupt, match="not a valid safetensors file"):
            medzoo.create("cnn3d_small", pretrained=path, **TINY)


def test_a_wrong_path_is_named(tmp_path):
    with pytest.raises(
        WeightsUnavailable, match=r"missing\.safetensors: the weight file cannot be read \(No such file"
    ):
        medzoo.create("cnn3d_small", pretrained=tmp_path / "missing.safetensors")


def test_weights_of_an_encoder_are_an_error_with_advice(saved):
    model, path = saved
    save_file({name: t for name, t in model.state_dict().items() if name.startswith("encoder.")}, path)
    with pytest.raises(WeightsMismatch, match=r"contains only an encoder, .*num_classes=0, then call model\.reset"):
        medzoo.create("cnn3d_small", pretrained=path, **TINY)
    assert medzoo.create("cnn3d_small", pretrained=path, num_classes=0, **TINY).num_classes == 0


def test_18_names_without_any_match_are_an_error_with_advice(saved):
    _, path = saved
    save_file({"conv1.weight": torch.zeros(3)}, path)
    with pytest.raises(WeightsMismatch, match=r"no name starts with 'encoder\.' or 'head\.'"):
        medzoo.create("cnn3d_small", pretrained=path, **TINY)


def test_weights_follow_the_default_device(saved):
    original, path = saved
    assert medzoo.create("cnn3d_small", pretrained=path, **TINY).head.fc.weight.device.type == "cpu"
    with torch.device("meta"):
        assert next(medzoo.create("cnn3d_small", **TINY).parameters()).is_meta
        model = medzoo.create("cnn3d_small", pretrained=path, **TINY)
    assert all(t.is_meta for t in model.state_dict().values())
    assert {name: t.shape for name, t in model.state_dict().items()} == {
        name: t.shape for name, t in original.state_dict().items()
    }


@pytest.mark.gpu
def test_weights_are_loaded_on_a_default_gpu(saved):
    original, path = saved
    with torch.device("cuda"):
        model = medzoo.create("cnn3d_small", pretrained=path, **TINY)
    assert all(t.is_cuda and torch.equal(t.cpu(), original.state_dict()[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("shape", [[2**40, 0], [2**62, 4, 0], [2**70, 0], [2**30, 0]])
def test_8_sides_without_bytes_behind_them(tmp_path, shape):
    """A few bytes must not claim a classifier that fills the memory."""
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    header = json.dumps({"head.classifier.weight": entry}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises((WeightsCorrupt, WeightsMismatch)):
        medzoo.create("cnn3d_small", pretrained=tmp_path / "m.safetensors", **TINY)
