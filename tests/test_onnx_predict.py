"""``open_onnx``: an exported file gives what the model gives, from any source; what is wrong with a file is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import pickle
import re
import subprocess
import sys
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from make_images import write_dicom, write_png
from onnx import TensorProto, helper, numpy_helper
from onnx_files import GRAPHS, eager, metadata_of, write_metadata, write_onnx

import medzoo
from medzoo.cli.main import main
from medzoo.deployment import onnx_file
from medzoo.deployment.onnx_file import read_onnx
from medzoo.errors import (
    ConfigError,
    InputError,
    MedzooError,
    ShapeError,
    UnsafeWeights,
    WeightsCorrupt,
    WeightsUnavailable,
)
from medzoo.interpretation.explain import explain
from medzoo.training.recipe import Recipe
from medzoo.visual.phantoms import write_ct, write_ct_series, write_xray

PATCH = medzoo.Preprocessing(
    size=(16, 16, 16), orientation="SPL", intensity="window", window=(-1000.0, 400.0), patch=(40.0, 32.0, 24.0)
)


def trained(dims, **outputs):
    """Return a golden model whose outputs were trained, or mean something else."""
    model = eager(dims)
    given = {"thresholds": tuple(np.linspace(0.1, 0.7, model.num_classes))} if dims == 2 else {}
    model.outputs = replace(model.outputs, **{"trained": (True,) * model.num_classes, **given, **outputs})
    return model


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Return files of every kind: an X-ray as PNG and DICOM, a CT as a series and as NIfTI."""
    folder = tmp_path_factory.mktemp("sources")
    grey = np.linspace(0, 255, 60 * 50).reshape(60, 50)
    ct = write_ct_series(folder / "ct")
    return {
        "png": write_png(folder / "x.png", grey.astype(np.uint8)),
        "dicom": write_dicom(folder / "x.dcm", (grey * 16).astype(np.uint16)),
        "xray": write_xray(folder),
        "series": ct if ct.is_dir() else ct.parent,
        "nifti": write_ct(folder),
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a file and its model, by number of axes."""
    folder = tmp_path_factory.mktemp("files")
    models = {dims: trained(dims) for dims in (2, 3)}
    return {dims: (model, write_onnx(model, folder / f"{dims}d.onnx")) for dims, model in models.items()}


def predicted(model, *arguments, **options):
    """Return what predict does, and the warnings it issues."""
    with warnings.catch_warnings(record=True, action="always") as caught:
        found = medzoo.predict(model, *arguments, **options)
    return found, [str(one.message) for one in caught]


def both(model, file, *arguments, **options):
    """Check that a file predicts and warns as its model does; return the model's predictions."""
    found, issued = predicted(model, *arguments, **options)
    other, also_issued = predicted(file, *arguments, **options)
    assert also_issued == issued
    if isinstance(found, medzoo.Prediction):
        compare(found, other)
        return found
    assert (other.skipped, other.counts(), other.errors) == (found.skipped, found.counts(), found.errors)
    for one, same in zip(found, other, strict=True):
        compare(one, same)
    return found


def compare(of_model, of_file):
    """Check that two predictions differ in rounding alone, and in the engine."""
    a, b = of_model.to_dict(), of_file.to_dict()
    for name in ("probabilities", "logits"):
        assert list(b[name]) == list(a[name])
        expected = list(a.pop(name).values())
        # An optimized model is exact relative to its largest output; those of these random weights reach hundreds.
        close = 2e-6 * max([1.0, *map(abs, expected)])
        assert list(b.pop(name).values()) == pytest.approx(expected, rel=1e-5, abs=close)
    assert b["provenance"].pop("engine") == f"onnxruntime {onnxruntime.__version__}"
    assert b == a


# The same predictions


@pytest.mark.parametrize("kind", ["png", "dicom", "xray", "series", "nifti"])
def test_each_source_gives_what_the_model_gives(kind, sources, files):
    model, path = files[3 if kind in ("series", "nifti") else 2]
    found = both(model, medzoo.open_onnx(path), sources[kind])
    assert found.steps
    assert bool(found.warning) == (kind in ("dicom", "series"))
    assert len(set(found.probabilities.values())) == model.num_classes, "a model that says the same of everything"


@pytest.mark.parametrize(
    "outputs",
    [
        {"normalised": True},
        {"task": "multiclass", "thresholds": ()},
        {"thresholds": (None, 0.2) * 7},
        {"labels": tuple(f"Befund {i} – “ä/1”" for i in range(14))},
        {"trained": (True, False) * 7},
        {"caution": "It was trained on its test rows."},
    ],
    ids=lambda outputs: next(iter(outputs)),
)
def test_outputs_mean_what_they_mean_in_the_model(outputs, sources, tmp_path):
    model = trained(2, **outputs)
    found = medzoo.open_onnx(write_onnx(model, tmp_path / "m.onnx"))
    assert found.outputs == model.outputs
    prediction = both(model, found, sources["xray"])
    assert prediction.warning.endswith(outputs.get("caution", ""))
    if "caution" in outputs:
        for one in (model, found):
            with pytest.raises(ConfigError, match=r"^xray_cnn: expected a model without a caution, as strict treats"):
                medzoo.predict(one, sources["xray"], strict=True)


def test_points_give_patches(sources, tmp_path):
    model = eager(3)
    model.preprocessing = PATCH
    points = [(-20.0, 0.0, 30.0), (10.0, 5.0, 60.0), (900.0, 0.0, 0.0)]
    file = medzoo.open_onnx(write_onnx(model, tmp_path / "m.onnx"))
    assert len(both(model, file, sources["nifti"], points=points).failed) == 1
    both(model, file, sources["series"], points=points[:1], points_frame="RAS")
    with pytest.raises(ConfigError, match=r"^cnn3d_small: it was trained on patches of 40"):
        medzoo.predict(file, sources["nifti"])


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (3, 0), (8, 2)])
def test_a_list_has_the_same_errors_warnings_and_skips(batch_size, num_workers, sources, files, tmp_path):
    model = trained(2)
    model.intended_use = medzoo.IntendedUse(modality=("DX", "CR"), body_part=("CHEST",))
    file = medzoo.open_onnx(write_onnx(model, tmp_path / "m.onnx"))
    assert file.intended_use == model.intended_use
    shifted = [np.roll(np.linspace(0, 1, 40 * 30, dtype=np.float32).reshape(1, 40, 30), s, 1) for s in range(4)]
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "note.txt").write_text("no image")
    ct = write_dicom(tmp_path / "ct.dcm", np.ones((8, 8), np.uint16), Modality="CT")
    given = [*shifted, sources["dicom"], tmp_path / "broken.png", ct, tmp_path, sources["nifti"]]
    found = both(model, file, given, batch_size=batch_size, num_workers=num_workers)
    assert {"cannot be read", "wrong modality"} <= found.counts()["failed"].keys()
    assert found.skipped
    marked = both(model, file, [ct, *shifted[:1]], allow_mismatch=True, batch_size=batch_size)
    assert marked[0].mismatch
    (refused,) = both(model, file, [sources["dicom"]], strict=True)
    assert refused.error


def test_untrained_outputs_are_refused_and_marked(sources, tmp_path):
    file = medzoo.open_onnx(write_onnx(eager(2), tmp_path / "m.onnx"))
    with pytest.raises(ConfigError, match=r"^xray_cnn: no output was trained, so its probabilities mean nothing\."):
        medzoo.predict(file, sources["xray"])
    found = medzoo.predict(file, sources["xray"], allow_untrained=True)
    assert found.untrained == file.outputs.labels
    assert not found.trained


def test_a_prediction_names_weights_version_and_engine(sources, files, tmp_path):
    model = files[3][0]
    provenance = metadata_of(model)["medzoo.provenance"] | {"medzoo": "0.0.7"}  # another version exported it
    file = medzoo.open_onnx(write_onnx(model, tmp_path / "m.onnx", **{"medzoo.provenance": provenance}))
    found = medzoo.predict(file, [sources["nifti"]])
    (row,) = found.rows()
    assert (row["digest"], row["medzoo"]) == (model.load_report.digest, medzoo.__version__)
    assert row["engine"] == f"onnxruntime {onnxruntime.__version__}"
    assert medzoo.predict(model, [sources["nifti"]]).rows()[0]["engine"] == ""
    assert found.to_csv().splitlines()[0].endswith(",model,weights,digest,medzoo,engine")


def test_tensors_go_in_and_come_out_as_those_of_the_model(files):
    model, path = files[2]
    file = medzoo.open_onnx(path)
    for batch in (0, 1, 2, 5):
        x = torch.randn(batch, 3, 32, 32).transpose(2, 3)  # not contiguous
        before = x.clone()
        found = file(x)
        torch.testing.assert_close(found, model(x).detach(), rtol=0, atol=2e-6)
        assert torch.equal(x, before)
    with torch.inference_mode():
        torch.testing.assert_close(file(torch.ones(1, 3, 32, 32)), model(torch.ones(1, 3, 32, 32)))


def test_the_file_alone_is_enough_and_need_not_be_of_a_registered_model(sources, files, tmp_path):
    model, _ = files[3]
    stated = metadata_of(model)
    stated["medzoo.config"]["model"] = stated["medzoo.provenance"]["model"] = "of_a_plugin"
    path = write_onnx(model, tmp_path / "x.ONNX", **stated)
    found = medzoo.predict(medzoo.open_onnx(str(path)), sources["nifti"])
    assert found.provenance["model"] == "of_a_plugin"
    assert list(found.logits.values()) == pytest.approx(list(medzoo.predict(model, sources["nifti"]).logits.values()))


# How it runs


def test_threads_share_a_model(files):
    model, path = files[2]
    file = medzoo.open_onnx(path, threads=1)
    inputs = [torch.randn(1 + i % 3, 3, 32, 32) for i in range(24)]
    with ThreadPoolExecutor(8) as pool, torch.no_grad():
        for x, found in zip(inputs, pool.map(file, inputs), strict=True):
            torch.testing.assert_close(found, model(x), rtol=0, atol=2e-6)


def test_threads_are_those_of_torch_or_as_given(files, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    path = files[2][1]
    for file, count in ((medzoo.open_onnx(path), 3), (medzoo.open_onnx(path, threads=2), 2)):
        assert file.threads == file._session.get_session_options().intra_op_num_threads == count
        assert file._session.get_providers() == ["CPUExecutionProvider"]
    with pytest.raises(ConfigError, match=r"^open_onnx: expected threads to be an int >= 1, got 0"):
        medzoo.open_onnx(path, threads=0)


def test_a_pickle_opens_the_same_file_again(files, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(files[2][1].read_bytes())
    file = medzoo.open_onnx(path, threads=1)
    again, x = pickle.loads(pickle.dumps(file)), torch.rand(1, 3, 32, 32)
    assert torch.equal(again(x), file(x))
    assert (again.threads, again.digest, again.outputs) == (1, file.digest, file.outputs)
    assert torch.equal(copy.deepcopy(file)(x), file(x))
    assert len(pickle.dumps(file)) < 1000
    write_onnx(eager(2), path)
    with pytest.raises(WeightsCorrupt, match=r"expected the file that was opened before, sha256:.*Open it again"):
        copy.deepcopy(file)


def test_the_bytes_of_the_file_are_not_kept(tmp_path):
    model = eager(2)
    path = write_onnx(model, tmp_path / "m.onnx", padding="x" * 2_000_000)
    medzoo.open_onnx(path)  # what is imported and kept once
    tracemalloc.start()
    try:
        file = medzoo.open_onnx(path, threads=1)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 500_000 < 2_000_000 < peak
    x = torch.rand(1, 3, 32, 32)
    for one in (file, pickle.loads(pickle.dumps(file))):
        torch.testing.assert_close(one(x), model(x).detach(), rtol=0, atol=2e-6)


def test_repr_and_facts(files):
    file = medzoo.open_onnx(files[3][1], threads=1)
    assert re.fullmatch(
        r"OnnxModel\('/.*3d\.onnx': cnn3d_small, 'b 1 d h w' with d, h, w = 16, 16, 16 -> 'b 1', "
        r"onnxruntime [\d.]+, 1 threads\)",
        repr(file),
    )
    assert (file.license, file.trained_on, file.num_classes) == ("Apache-2.0", "random numbers", 1)
    assert file.intended_use.population == "adults with lung cancer"


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (torch.zeros(1, 3, 40, 32), ShapeError, r"got \(1, 3, 40, 32\): the file was exported for this size alone\."),
        (torch.zeros(1, 1, 32, 32), ShapeError, "c=1 is not 3"),
        (torch.zeros(3, 32, 32), ShapeError, r"add the batch axis with x\[None\]"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.float64), InputError, "expected torch.float32"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), InputError, "expected torch.float32, got torch.uint8"),
        (torch.zeros(1, 3, 32, 32, device="meta"), InputError, "expected a tensor on cpu"),
        (torch.zeros(1, 3, 32, 32, requires_grad=True), InputError, "expected a tensor without a gradient"),
        (np.zeros((1, 3, 32, 32), np.float32), InputError, r"expected a torch\.Tensor, got ndarray"),
    ],
)
def test_an_input_that_the_file_cannot_take_is_refused(x, kind, message, files):
    with pytest.raises(kind, match=message) as caught:
        medzoo.open_onnx(files[2][1])(x)
    assert str(caught.value).startswith("xray_cnn: ")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "mps", torch.device("cuda")])
def test_another_device_is_refused(device, sources, files):
    with pytest.raises(ConfigError, match=r"^xray_cnn: expected the CPU, where alone onnxruntime .*device='cpu'"):
        medzoo.predict(medzoo.open_onnx(files[2][1]), sources["xray"], device=device)


def test_the_cpu_may_be_named(sources, files):
    model, path = files[2]
    both(model, medzoo.open_onnx(path), sources["png"], device="cpu")


OUT_OF_MEMORY = """
import resource, sys, medzoo, torch
from medzoo.errors import InputError
file, x = medzoo.open_onnx(sys.argv[1], threads=1), torch.rand(8000, 3, 32, 32)
before = file(x[:1])
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 50_000_000,) * 2)
try:
    file(x)  # its first map alone has 131 MB
except InputError as error:
    print(error)
print(torch.equal(file(x[:1]), before))
"""


@pytest.mark.slow
def test_a_batch_that_exceeds_the_memory_leaves_the_model_usable(files):
    command = [sys.executable, "-c", OUT_OF_MEMORY, str(files[2][1])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "xray_cnn: (8000, 3, 32, 32) needs more memory than this machine has. Use a smaller batch. The model is still "
        "usable.",
        "True",
    ], done.stderr
    assert done.stderr == ""


def test_an_engine_that_fails_gives_its_cause_and_prints_nothing(tmp_path, capfd):
    """A graph that is valid, and cannot run: it looks up a row that is not there."""
    model = eager(2)
    proto = onnx.load(GRAPHS[2])
    proto.graph.node[-1].output[0] = "before"
    nodes = [helper.make_node("Gather", ["before", "row"], ["logits"], axis=1)]
    proto.graph.initializer.append(numpy_helper.from_array(np.full(14, 99, np.int64), "row"))
    proto.graph.node.extend(nodes)
    path = tmp_path / "m.onnx"
    path.write_bytes(write_metadata(proto, metadata_of(model)).SerializeToString())
    file = medzoo.open_onnx(path)
    with pytest.raises(ConfigError, match=r"^xray_cnn: onnxruntime .* cannot run .*m\.onnx .*Gather.*Export the model"):
        file(torch.zeros(1, 3, 32, 32))
    assert capfd.readouterr() == ("", "")


def test_outputs_that_are_not_finite_are_errors(sources, tmp_path):
    model = trained(2)
    proto = onnx.load(GRAPHS[2])
    bias = next(one for one in proto.graph.initializer if one.name == "head.classifier.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(14, np.nan, np.float32), bias.name))
    path = tmp_path / "m.onnx"
    path.write_bytes(write_metadata(proto, metadata_of(model)).SerializeToString())
    (found,) = medzoo.predict(medzoo.open_onnx(path), [sources["xray"]])
    assert "the model returned NaN or infinity" in found.error


def test_onnxruntime_that_is_not_installed_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"^open_onnx: expected onnxruntime, .* Run: pip install 'medzoo\[export\]'$"):
        medzoo.open_onnx(files[2][1])


def test_only_onnxruntime_is_needed_to_run(files, monkeypatch):
    for name in ("onnx", "onnxscript", "onnx_ir"):
        monkeypatch.setitem(sys.modules, name, None)
    assert medzoo.open_onnx(files[2][1])(torch.zeros(1, 3, 32, 32)).shape == (1, 14)


# Files that are refused


def test_a_file_that_is_not_there_or_no_file(tmp_path):
    for path, message in (
        (tmp_path / "no.onnx", r"no\.onnx: the ONNX file cannot be read \(No such file or directory\)"),
        (tmp_path, "expected an ONNX file, got a folder or a device"),
        (Path("/dev/zero"), "expected an ONNX file, got a folder or a device"),
        (Path("a\0b.onnx"), "cannot be read"),
    ):
        with pytest.raises(WeightsUnavailable, match=message):
            medzoo.open_onnx(path)
    for path in (None, 5, b"m.onnx"):
        with pytest.raises(
            ConfigError, match=r"^open_onnx: expected the path of an \.onnx file, got (NoneType|int|bytes)"
        ):
            medzoo.open_onnx(path)


@pytest.mark.parametrize("data", [b"", b"no ONNX file", b"PK\x03\x04" * 50, b"ORTM" * 50, b"\x08\x0a", b"\x3a\xff" * 9])
def test_other_bytes_are_no_onnx_file(data, tmp_path, capfd):
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises((WeightsCorrupt, ConfigError), match=r"m\.onnx: "):
        medzoo.open_onnx(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_truncated_file_is_refused_wherever_it_ends(files, tmp_path):
    data, path = files[3][1].read_bytes(), tmp_path / "m.onnx"
    for end in (*range(0, len(data), 97), len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises((WeightsCorrupt, ConfigError)):
            medzoo.open_onnx(path)


def test_a_changed_byte_is_found_where_the_report_is_beside_the_file(files, tmp_path):
    data, path = files[3][1].read_bytes(), tmp_path / "m.onnx"
    path.write_bytes(data)
    report = tmp_path / "m.onnx.json"
    report.write_text(json.dumps({"format": "onnx", "digest": read_onnx(path)[1]}))
    medzoo.open_onnx(path)
    rng = np.random.default_rng(0)
    for at in rng.integers(len(data), size=20):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(
            WeightsCorrupt, match=r"of the report beside it, got sha256:.*changed or damaged after its exp"
        ):
            medzoo.open_onnx(path)
    path.write_bytes(data)
    for text in ("", "[1]", "{}", "{" * 100_000):
        report.write_text(text)
        with pytest.raises(WeightsCorrupt, match=r"m\.onnx\.json: expected the report that medzoo\.export wrote"):
            medzoo.open_onnx(path)


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_file_is_a_medzoo_error_or_runs(seed, files, tmp_path, capfd):
    data, path, rng = bytearray(files[3][1].read_bytes()), tmp_path / "m.onnx", np.random.default_rng(seed)
    for _ in range(25):
        changed = bytearray(data)
        for at in rng.integers(len(data), size=3):
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(MedzooError):
            assert medzoo.open_onnx(path)(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 1)
    assert capfd.readouterr() == ("", "")


def external(tensor, location, by_field=True):
    """Make a tensor name another file."""
    tensor.ClearField("raw_data")
    if by_field:
        tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def constant(location):
    return external(TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1]), location)


def hide(proto, where):
    """Put a tensor of another file somewhere into a model."""
    node, graph = helper.make_node("Constant", [], ["c"], value=constant("w.bin")), proto.graph
    inner = helper.make_graph([node], "inner", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])])
    flag = numpy_helper.from_array(np.array(True), "flag")
    if where == "initializer":
        external(graph.initializer[0], "w.bin")
    elif where == "initializer without a location":
        external(graph.initializer[0], "w.bin", by_field=False)
    elif where == "constant":
        graph.node.insert(0, node)
    elif where == "branch":
        graph.initializer.append(flag)
        graph.node.insert(0, helper.make_node("If", ["flag"], ["c"], then_branch=inner, else_branch=inner))
    elif where == "sparse":
        graph.sparse_initializer.add().values.CopyFrom(constant("w.bin"))
    elif where == "indices":
        graph.sparse_initializer.add().indices.CopyFrom(constant("w.bin"))
    elif where == "list":
        attribute = onnx.AttributeProto(name="many", type=onnx.AttributeProto.TENSORS)
        attribute.tensors.append(constant("w.bin"))
        graph.node[0].attribute.append(attribute)
    elif where == "function":
        proto.functions.add(name="f", domain="d").node.append(node)
    elif where == "training":
        proto.training_info.add().initialization.CopyFrom(inner)
    return proto


PLACES = (
    "initializer", "initializer without a location", "constant", "branch", "sparse", "indices", "list", "function",
    "training",
)  # fmt: skip


@pytest.mark.parametrize("where", PLACES)
def test_weights_in_another_file_are_refused_wherever_they_are(where, files, tmp_path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("onnxruntime saw the file"))
    (tmp_path / "w.bin").write_bytes(bytes(1 << 16))
    path = tmp_path / "m.onnx"
    path.write_bytes(hide(onnx.load(files[3][1]), where).SerializeToString())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafeWeights, match=r"m\.onnx: expected one file with all its weights, got one that reads wei"):
        medzoo.open_onnx(path)


@pytest.mark.parametrize("location", ["w.bin", "../w.bin", "/etc/passwd"])
def test_weights_of_any_place_are_refused(location, files, tmp_path):
    proto = onnx.load(files[3][1])
    external(proto.graph.initializer[0], location)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UnsafeWeights):
        medzoo.open_onnx(tmp_path / "m.onnx")


def test_every_message_with_a_tensor_in_it_is_looked_into():
    """The table is what follows from the schema of the onnx package."""
    found, pending = {}, [onnx.ModelProto.DESCRIPTOR]
    while pending:
        message = pending.pop()
        if message.name not in found:
            found[message.name] = {f.number: f.message_type for f in message.fields if f.message_type is not None}
            pending += found[message.name].values()
    holds = {"TensorProto"}
    while more := {name for name, fields in found.items() if holds & {m.name for m in fields.values()}} - holds:
        holds |= more
    table = {
        name: {number: inner.name for number, inner in fields.items() if inner.name in holds}
        for name, fields in found.items()
        if name in holds
    }
    assert table == onnx_file.MESSAGES
    fields = TensorProto.DESCRIPTOR.fields_by_name
    assert fields["external_data"].number == onnx_file.EXTERNAL_DATA
    assert fields["data_location"].number == onnx_file.DATA_LOCATION


def test_the_bytes_are_read_as_protobuf_reads_them(files, tmp_path):
    """Every file that protobuf writes is accepted, and graphs inside of graphs are followed to a limit."""
    for _, path in files.values():
        assert read_onnx(path)[0] == path.read_bytes()
    graph = helper.make_graph([], "g", [], [])
    for _ in range(20):
        graph = helper.make_graph([helper.make_node("If", ["c"], [], then_branch=graph)], "g", [], [])
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(WeightsCorrupt, match="too many graphs inside of each other"):
        read_onnx(path)


def test_a_file_of_many_tiny_parts_is_refused_soon(files, tmp_path, monkeypatch):
    """Each takes a microsecond or two, and 2 GiB have a billion; those of nested messages count too."""
    data, path = files[3][1].read_bytes(), tmp_path / "m.onnx"
    monkeypatch.setattr(onnx_file, "MAX_FIELDS", 20_000)
    for part in (b"\x28\x01", b"\x3a\x00", b"\x3a\x02\x28\x01"):  # an int, an empty graph, an int in a graph
        path.write_bytes(data + part * 9_000)
        assert read_onnx(path)[0]
        path.write_bytes(data + part * 20_000)
        with pytest.raises(
            WeightsCorrupt, match=r"m\.onnx: .*more than 20,000 fields, of which a model has some thous"
        ):
            read_onnx(path)


def test_operators_of_a_library_are_refused(files, tmp_path):
    proto = onnx.load(files[3][1])
    proto.graph.node[0].domain, proto.graph.node[0].op_type = "evil", "Run"
    proto.opset_import.add(domain="evil", version=1)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(UnsafeWeights, match=r"expected operators of ONNX alone, got one .*evil:Run.*none is loaded"):
        medzoo.open_onnx(tmp_path / "m.onnx")


def test_a_file_that_the_engine_cannot_load_gives_its_cause(files, tmp_path, capfd):
    proto = onnx.load(files[3][1])
    proto.ir_version = 99
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(
        ConfigError, match=r"onnxruntime .* cannot load the file \(.*IR version: 99.*upgrade onnxruntim"
    ):
        medzoo.open_onnx(tmp_path / "m.onnx")
    assert capfd.readouterr() == ("", "")


# What a file states about itself


def test_a_file_of_another_library_is_refused(tmp_path):
    proto = write_metadata(onnx.load(GRAPHS[2]), {})
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ConfigError, match=r"with the metadata of medzoo\.export, got one without .* medzoo\.export\("):
        medzoo.open_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format": 3, "medzoo": "7.1"},
            r"m\.onnx, medzoo\.config: format 3 is not known.*Upgrade medzoo to that vers",
        ),
        ({"chanels": 1}, r"no field 'chanels' of config is known\. Did you mean 'channels'\?.*Export the model again"),
        ({"input": {"axes": "b c h w", "channels": 3}}, "the field 'size' of input is missing"),
        ({"preprocessing": {"size": [32, 32], "fit": "stretch"}}, "expected intensity to be one of"),
        ({"preprocessing": None}, "expected preprocessing to be a set of fields"),
        ({"dtype": "int8"}, "expected dtype to be one of"),
        ({"outputs": {"labels": [], "task": "binary"}}, "expected a label for each of 14 outputs, got 0"),
        ({"weights": {"digest": "sha256:0", "size": 1}}, "expected the digest 'sha256:' and 64 hex digits"),
    ],
)
def test_a_config_is_read_by_the_reader_of_saved_folders(change, message, tmp_path):
    stated = metadata_of(eager(2))
    stated["medzoo.config"] |= change
    path = write_onnx(eager(2), tmp_path / "m.onnx", **stated)
    with pytest.raises(ConfigError, match=message):
        medzoo.open_onnx(path)


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;pwn\x07", "\u202egnp", "a\rb", "\x9b2J"])
def test_texts_that_rule_a_terminal_are_refused(text, tmp_path):
    for key, change in (
        ("medzoo.config", {"outputs": {"labels": [text], "task": "binary"}}),
        ("medzoo.config", {"format": 99, "medzoo": text}),
        ("medzoo.provenance", {"weights": text}),
    ):
        stated = metadata_of(eager(2))
        stated[key] |= change
        path = write_onnx(eager(2), tmp_path / "m.onnx", **stated)
        for command in (("info", path), ("predict", path, path)):
            found = run(*command)
            assert found.exit_code == 2
            assert not any(letter in found.output for letter in text if not letter.isprintable())
            assert key in found.output


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"a": 1, "a": 2}', "[" * 50_000, '"' + "x" * 2**20 + '"'])
@pytest.mark.parametrize("key", ["medzoo.config", "medzoo.provenance"])
def test_metadata_that_is_something_else_is_refused(key, text, tmp_path):
    with pytest.raises(ConfigError, match=rf"m\.onnx, {key}: "):
        medzoo.open_onnx(write_onnx(eager(2), tmp_path / "m.onnx", **{key: text}))


def test_metadata_of_another_encoding_is_refused(tmp_path):
    path = write_onnx(eager(2), tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes().replace(b"Cardiomegaly", b"Cardiomeg\xff\xfey"))
    with pytest.raises(ConfigError, match=r"m\.onnx: expected metadata in UTF-8"):
        medzoo.open_onnx(path)


@pytest.mark.parametrize(
    "change",
    [{"model": "another"}, {"digest": 1}, {"note": "x"}, {"digest": None}],
    ids=lambda change: next(iter(change)),
)
def test_the_provenance_is_of_the_same_model_and_has_its_four_facts(change, tmp_path):
    stated = metadata_of(eager(2))["medzoo.provenance"] | change
    path = write_onnx(eager(2), tmp_path / "m.onnx", **{"medzoo.provenance": stated})
    with pytest.raises(ConfigError, match="expected model, weights, digest, medzoo of xray_cnn as texts"):
        medzoo.open_onnx(path)


def arrays(proto, what):
    """Change what a graph takes or gives."""
    graph = proto.graph
    image, logits = graph.input[0].type.tensor_type, graph.output[0].type.tensor_type
    if what == "batch":
        for one in (image, logits):
            one.shape.dim[0].Clear()
            one.shape.dim[0].dim_value = 1
    elif what == "size":
        image.shape.dim[3].Clear()
        image.shape.dim[3].dim_param = "width"
    elif what == "name":
        for node in graph.node:
            node.input[:] = ["x" if name == "image" else name for name in node.input]
        graph.input[0].name = "x"
    elif what == "second":
        graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", 1]))
    elif what == "outputs":
        graph.node[-1].output[0] = "scores"
        graph.output[0].name = "scores"
    return proto


@pytest.mark.parametrize("what", ["batch", "size", "name", "second", "outputs"])
def test_arrays_other_than_the_config_states_are_refused(what, tmp_path):
    path = write_onnx(eager(2), tmp_path / "m.onnx")
    path.write_bytes(arrays(onnx.load(path), what).SerializeToString())
    expected = re.escape("expected image tensor(float) (batch, 3, 32, 32) and logits tensor(float) (batch, 14), as the")
    with pytest.raises(ConfigError, match=expected + ".* got .*Export the model again"):
        medzoo.open_onnx(path)


def test_a_config_of_another_number_of_outputs_or_size_is_refused(tmp_path):
    model = eager(2)
    model.preprocessing = replace(model.preprocessing, size=(64, 64))
    with pytest.raises(ConfigError, match=re.escape("(batch, 3, 64, 64)")):
        medzoo.open_onnx(write_onnx(model, tmp_path / "m.onnx"))
    model = eager(2)
    model.reset_classifier(2)
    with pytest.raises(ConfigError, match=re.escape("logits tensor(float) (batch, 2), as")):
        medzoo.open_onnx(write_onnx(model, tmp_path / "m.onnx"))
    model.reset_classifier(0)
    with pytest.raises(ConfigError, match="expected a model with outputs to name, got an encoder"):
        medzoo.open_onnx(write_onnx(model, tmp_path / "m.onnx"))


# What it cannot be used for


def test_what_needs_layers_or_weights_refuses_it(files, tmp_path):
    path = files[2][1]
    file, cannot = (
        medzoo.open_onnx(path),
        r": expected a model from medzoo.create, got xray_cnn as OnnxModel, which onnx",
    )
    for name in ("x", "y"):
        write_png(tmp_path / f"{name}.png", np.full((8, 8), ord(name), np.uint8))
    table = tmp_path / "t.csv"
    table.write_text("path,label\nx.png,1\ny.png,0\n")
    for who, call in (
        ("optimize", lambda: medzoo.optimize(file)),
        ("explain", lambda: explain(file, np.ones((1, 40, 40), np.float32))),
        ("evaluate", lambda: medzoo.evaluate(file, table)),
        ("train", lambda: medzoo.train(file, table, to=tmp_path / "run")),
    ):
        with pytest.raises(ConfigError, match=f"^{who}{cannot}"):
            call()
    assert not (tmp_path / "run").exists()
    for call in (lambda: medzoo.create(str(path)), lambda: medzoo.create(path)):
        with pytest.raises(
            ConfigError, match=r"got an ONNX file, which onnxruntime runs\. Open it with medzoo\.open_onnx"
        ):
            call()
    with pytest.raises(
        ConfigError, match=r"got an ONNX file, which only predict takes\. Evaluate the model that it was"
    ):
        medzoo.evaluate(str(path), table)
    with pytest.raises(ConfigError):
        Recipe.load(str(path))


# The command line


def run(*arguments):
    return CliRunner().invoke(main, [str(one) for one in arguments])


def test_the_command_predicts_and_shows_a_file(sources, files):
    model, path = files[3]
    found = run("predict", path, sources["nifti"], "--output", "json")
    assert (found.exit_code, found.stderr) == (0, "")
    (stated,) = json.loads(found.stdout)["predictions"]
    assert stated["logits"] == pytest.approx(medzoo.predict(model, sources["nifti"]).logits, abs=2e-6)
    assert stated["provenance"]["engine"] == f"onnxruntime {onnxruntime.__version__}"
    assert "mutation" in run("predict", path, sources["nifti"]).stdout
    shown = run("info", path).stdout
    for text in ("cnn3d_small", "binary: mutation (from 0.3)", "Apache-2.0", "adults with lung cancer", "sha256:"):
        assert text in shown


def test_the_command_names_what_is_wrong(sources, files, tmp_path):
    path = files[3][1]
    for arguments, code, message in (
        (
            ("predict", tmp_path / "no:1.onnx", sources["nifti"]),
            3,
            "WeightsUnavailable: .*no:1.onnx: the ONNX file cannot",
        ),
        (("info", tmp_path / "no.onnx"), 3, "WeightsUnavailable: "),
        (("predict", path, sources["nifti"], "--device", "cuda"), 2, r"ConfigError: .* Use --device cpu"),
        (("predict", path, sources["png"]), 5, "DataError: .* takes a 3D volume"),
        (("evaluate", path, "--data", "t.csv"), 2, "ConfigError: .*which only predict takes"),
    ):
        found = run(*arguments)
        assert found.exit_code == code, found.output
        assert re.search(message, found.output), found.output
        assert len(found.stderr.splitlines()) <= 2


# Real images, and every model


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_real_images_give_what_the_model_gives(dims, data, tmp_path):
    model = trained(dims)
    model.intended_use = medzoo.IntendedUse()
    file = medzoo.open_onnx(write_onnx(model, tmp_path / "m.onnx"))
    images = {
        2: [
            *sorted((data / "chestxray14_dicom").glob("*.dcm"))[:2],
            *sorted((data / "chestxray14_64px/test").iterdir())[:4],
        ],
        3: [data / "chest_ct" / "dicom_A0002", data / "chest_ct" / "A0002.nii.gz"],
    }[dims]
    found = both(model, file, images, batch_size=2)
    assert not found.failed
    assert len(found) == len(images)


@pytest.mark.slow
@pytest.mark.parametrize("name", medzoo.list_models())
def test_every_model_predicts_alike_after_its_export(name, sources, tmp_path):
    model = medzoo.create(name, **medzoo.describe(name).tiny).eval()
    medzoo.export(model, tmp_path / "model.onnx")
    file = medzoo.open_onnx(tmp_path / "model.onnx")
    given = [sources["xray"], sources["png"]] if model.input_spec.dims == 2 else [sources["nifti"], sources["series"]]
    for batch_size in (1, 2):
        both(model, file, given, allow_untrained=True, batch_size=batch_size)
