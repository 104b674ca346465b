"""TorchXRayVision's pickled modules: their tensors are read, and nothing else in the file has any effect."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from pickled_modules import (
    as_legacy,
    as_upstream,
    as_zip,
    call,
    emit,
    emit_module,
    emit_tensor,
    name,
    torch_saved,
    torchvision_densenet,
)

import medzoo
from medzoo.errors import MedzooError, UnsafeWeights, WeightsCorrupt
from medzoo.weights.checkpoint import parse_checkpoint, read_checkpoint

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
SMALL = {"growth_rate": 4, "block_config": (2, 1), "num_init_features": 8}
WRAPPED = {"zip": as_zip, "legacy": as_legacy}


@FORMATS
def test_a_pickled_densenet_gives_the_outputs_of_torchvision(tmp_path, zipped):
    theirs = torchvision_densenet()
    (tmp_path / "all.pt").write_bytes(torch_saved(as_upstream(theirs, op_threshs=torch.rand(18)), zipped))
    tensors, digest = read_checkpoint(tmp_path / "all.pt")
    assert "torchxrayvision" not in sys.modules
    assert digest.startswith("sha256:")
    expected = theirs.state_dict()
    assert list(tensors) == list(expected)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert all(tensors[name].dtype == expected[name].dtype for name in expected)
    model = medzoo.create("densenet121_xray").eval()
    report = medzoo.load_state(model, tensors)
    assert (len(report.loaded), report.new) == (727, ())
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(model(x), theirs(x), rtol=0, atol=2e-5)


@FORMATS
def test_attributes_of_upstream_are_dropped(zipped):
    theirs = torchvision_densenet(**SMALL)
    attributes = {
        "op_threshs": torch.rand(18),
        "pathologies": ["Mass", ""],
        "targets": ("Mass",),
        "size": torch.Size([1, 2]),
        "best": np.float64(0.5),
        "weights": np.float32(0.5),
        "apply_sigmoid": True,
    }
    tensors = parse_checkpoint(torch_saved(as_upstream(theirs, **attributes), zipped), "x.pt")
    assert list(tensors) == list(theirs.state_dict())


@FORMATS
def test_only_persistent_buffers_are_kept(zipped):
    model = as_upstream(torchvision_densenet(**SMALL))
    del model.op_threshs
    model.register_buffer("op_threshs", torch.rand(18))
    model.register_buffer("passing", torch.rand(2), persistent=False)
    model.register_buffer("none", None)
    tensors = parse_checkpoint(torch_saved(model, zipped), "x.pt")
    assert list(tensors) == list(model.state_dict())
    assert torch.equal(tensors["op_threshs"], model.op_threshs)


@FORMATS
def test_tensors_are_contiguous_with_memory_of_their_own(zipped):
    model = as_upstream(torchvision_densenet(**SMALL))
    shared = torch.randn(18, 2, dtype=torch.float64)
    model.register_buffer("a", shared.T)
    model.register_buffer("b", shared[3:5])
    model.register_buffer("c", torch.arange(3, dtype=torch.float16))
    tensors = parse_checkpoint(torch_saved(model, zipped), "x.pt")
    assert torch.equal(tensors["a"], shared.T)
    assert torch.equal(tensors["b"], shared[3:5])
    assert torch.equal(tensors["c"], model.c)
    assert all(tensor.is_contiguous() for tensor in tensors.values())
    tensors["a"].zero_()
    assert torch.equal(tensors["b"], shared[3:5])


class Reduced:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


LINEAR = "torch.nn.modules.linear Linear"
# Attacks of a pickle on its reader, and the messages by which they are refused.
ATTACKS = {
    "system": (call("posix system", "touch {canary}"), "the name 'posix.system'"),
    "eval": (call("__builtin__ eval", "open('{canary}', 'w').close()"), "the name '__builtin__.eval'"),
    "open": (call("builtins open", "{canary}", "w"), "the name 'builtins.open'"),
    "getattr": (call("builtins getattr", name(LINEAR), "forward"), "the name 'builtins.getattr'"),
    "hub": (call("torch.hub load", "{canary}"), "the name 'torch.hub.load'"),
    "load": (call("torch.storage _load_from_bytes", "x"), "the name 'torch.storage._load_from_bytes'"),
    "partial": (call("functools partial", name(LINEAR)), "the name 'functools.partial'"),
    "reconstructor": (call("copy_reg _reconstructor", name(LINEAR)), "the name 'copy_reg._reconstructor'"),
    "dotted": (name(f"{LINEAR}.__init__.__globals__"), r"the name 'torch.nn.modules.linear.Linear.__init__.__gl"),
    "import": (name("this s"), "the name 'this.s'"),
    "upstream": (name("torchxrayvision.models get_model"), "the name 'torchxrayvision.models.get_model'"),
    "other module": (emit_module("torch.nn.modules.rnn LSTM"), "the name 'torch.nn.modules.rnn.LSTM'"),
    "lambda": (name("torch._utils <lambda>"), "the name 'torch._utils.<lambda>'"),
    "sparse": (call("torch._utils _rebuild_sparse_tensor"), "the name 'torch._utils._rebuild_sparse_tensor'"),
    "quantised": (call("torch._utils _rebuild_qtensor"), "the name 'torch._utils._rebuild_qtensor'"),
    "meta": (call("torch._utils _rebuild_meta_tensor_no_storage"), "the name 'torch._utils._rebuild_meta_tensor"),
    "inst": (pickle.MARK + emit("touch {canary}") + b"iposix\nsystem\n", "the pickle opcode INST"),
    "obj": (pickle.MARK + name(LINEAR) + pickle.OBJ, "the pickle opcode OBJ"),
    "ext1": (pickle.EXT1 + b"\x01", "the pickle opcode EXT1"),
    "ext2": (pickle.EXT2 + b"\x01\x00", "the pickle opcode EXT2"),
    "ext4": (pickle.EXT4 + b"\x01\x00\x00\x00", "the pickle opcode EXT4"),
    "stack global": (emit("posix") + emit("system") + pickle.STACK_GLOBAL, "the pickle opcode STACK_GLOBAL"),
    "newobj_ex": (name(LINEAR) + emit(()) + emit({}) + pickle.NEWOBJ_EX, "the pickle opcode NEWOBJ_EX"),
    "persid": (b"Pstorage\n", "the pickle opcode PERSID"),
    "long4": (pickle.LONG4 + b"\xff\xff\xff\x7f", "the pickle opcode LONG4"),
    "nothing": (b"\xff", r"the pickle opcode b'\xff'"),
    "call of a module": (call(LINEAR, 2, 2), f"a call of '{LINEAR.replace(' ', '.')}'"),
    "call of data": (emit("eval") + emit(("1",)) + pickle.REDUCE, "a call of a str"),
    "new from a call": (name("collections OrderedDict") + emit(()) + pickle.NEWOBJ, "made from 'collections.Ord"),
    "new with arguments": (name(LINEAR) + emit((2, 2)) + pickle.NEWOBJ, "an object made from 'torch.nn"),
    "slots": (name(LINEAR) + emit(()) + pickle.NEWOBJ + emit((None, {"a": 1})) + pickle.BUILD, "a state of type tuple"),
    "two states": (
        emit_module(LINEAR, __setstate__=name("collections OrderedDict")) + emit({}) + pickle.BUILD,
        "a state of",
    ),
    "state of a name": (name("collections OrderedDict") + emit((None, {"__init__": 1})) + pickle.BUILD, "a state of"),
    "state of a dict": (call("collections OrderedDict") + emit({"items": 1}) + pickle.BUILD, "a state of type dict"),
}


def aimed(payload, canary):
    """Return the opcodes with the canary's path in their strings."""
    for text in ("touch {canary}", "open('{canary}', 'w').close()", "{canary}"):
        payload = payload.replace(emit(text), emit(text.replace("{canary}", str(canary))))
    return payload


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize(("payload", "message"), ATTACKS.values(), ids=ATTACKS)
def test_22_an_attack_is_refused_by_name(tmp_path, payload, message, wrapped):
    data = wrapped(emit_module(a=aimed(payload, tmp_path / "canary")))
    with pytest.raises(UnsafeWeights) as caught:
        parse_checkpoint(data, "x.pt")
    assert message in str(caught.value)
    assert str(caught.value).startswith("x.pt: it contains more than tensors, which could run code (")
    assert not (tmp_path / "canary").exists()


@FORMATS
def test_22_a_reduce_inside_a_saved_module(tmp_path, zipped):
    model = as_upstream(torchvision_densenet(**SMALL))
    model.features.conv0.evil = Reduced(open, str(tmp_path / "canary"), "w")
    with pytest.raises(UnsafeWeights, match=r"the name '(io|_io)\.open'"):
        parse_checkpoint(torch_saved(model, zipped), "x.pt")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("attack", ["system", "eval", "inst"])
def test_the_attacks_do_work_on_pythons_own_unpickler(tmp_path, attack):
    """Otherwise a missing canary would prove nothing."""
    pickle.loads(pickle.PROTO + b"\x02" + aimed(ATTACKS[attack][0], tmp_path / "canary") + pickle.STOP)
    assert (tmp_path / "canary").exists()


WATCHED = """
import json, sys
from pathlib import Path
from medzoo.errors import MedzooError
from medzoo.weights.checkpoint import read_checkpoint
valid, folder = map(Path, sys.argv[1:])
read_checkpoint(valid)  # loads the libraries
events = []
watched = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
sys.addaudithook(lambda event, args: events.append(event) if event in watched else None)
read_checkpoint(valid)
refused = []
for path in sorted(folder.iterdir()):
    try:
        read_checkpoint(path)
    except MedzooError as error:
        refused.append(type(error).__name__)
    except BaseException as error:
        refused.append(f"{path.name}: {error!r}")
loaded = sorted({"this", "torchxrayvision"} & sys.modules.keys())
print(json.dumps({"events": events, "refused": refused, "loaded": loaded}))
"""


def test_22_23_an_audit_hook_sees_no_lookup_of_a_class(tmp_path):
    """Every attack in both formats, as a bare pickle and renamed to .safetensors: nothing is looked up or run."""
    (tmp_path / "valid.pt").write_bytes(torch_saved(as_upstream(torchvision_densenet(**SMALL)), False))
    (tmp_path / "attacks").mkdir()
    for number, (payload, _) in enumerate(ATTACKS.values()):
        payload = aimed(payload, tmp_path / "canary")
        bare = pickle.PROTO + b"\x02" + payload + pickle.STOP
        files = {
            "zip.pt": as_zip(emit_module(a=payload)),
            "legacy.pt": as_legacy(emit_module(a=payload)),
            "bare.pt": bare,
        }
        files |= {"dict.pt": as_zip({"state_dict": payload}), "model.safetensors": as_legacy(emit_module(a=payload))}
        files |= {"bare.safetensors": bare}
        for suffix, data in files.items():
            (tmp_path / "attacks" / f"{number}{suffix}").write_bytes(data)
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "valid.pt"), str(tmp_path / "attacks")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    assert result["events"] == []
    assert result["loaded"] == []
    assert len(result["refused"]) == 6 * len(ATTACKS)
    assert set(result["refused"]) <= {"UnsafeWeights", "WeightsCorrupt", "WeightsMismatch"}
    assert not (tmp_path / "canary").exists()


def nested(depth):
    module = emit_module(LINEAR)
    for _ in range(depth):
        module = emit_module("torch.nn.modules.container Sequential", _modules={"0": module})
    return emit_module(_modules={"features": module})


# The module is remembered, and its state names it again.
CYCLE = (
    name("torchxrayvision.models DenseNet") + emit(()) + pickle.NEWOBJ + pickle.BINPUT + b"\x00"
    + emit({"_parameters": {}, "_buffers": {}, "_modules": {"again": pickle.BINGET + b"\x00"}}) + pickle.BUILD
)  # fmt: skip
DEEP_KEY = {emit(()) + pickle.TUPLE1 * 200_000: 1}
TWICE = {"a": emit_module(LINEAR) + pickle.BINPUT + b"\x01", "b": pickle.BINGET + b"\x01"}


def module_with(tensor):
    return emit_module(_parameters={"weight": tensor})


DAMAGE = {
    "size past the end": (module_with(emit_tensor(shape=(5,))), "a tensor whose shape does not fit its storage"),
    "offset past the end": (module_with(emit_tensor(offset=1)), "shape does not fit its storage"),
    "offset before it": (module_with(emit_tensor(offset=-1)), "shape does not fit its storage"),
    "stride past the end": (module_with(emit_tensor(shape=(2,), stride=(4,))), "shape does not fit its storage"),
    "negative stride": (module_with(emit_tensor(stride=(-1,))), "shape does not fit its storage"),
    "expanded": (module_with(emit_tensor(shape=(2**15, 2**15), stride=(0, 0))), "of 1 tensors in a file of"),
    "negative size": (module_with(emit_tensor(shape=(-4,))), "shape does not fit its storage"),
    "not an int": (module_with(emit_tensor(shape=("4",))), "shape does not fit its storage"),
    "fewer strides": (module_with(emit_tensor(shape=(2, 2))), "shape does not fit its storage"),
    "nine axes": (module_with(emit_tensor(shape=(1,) * 9, stride=(1,) * 9)), "shape does not fit its storage"),
    "conjugate bit": (module_with(emit_tensor(metadata=({"conj": True},))), "has no storage or is conjugated"),
    "no storage": (module_with(call("torch._utils _rebuild_tensor_v2", "a", 0, (), (), False, None)), "a tensor that"),
    "negative storage": (module_with(emit_tensor(numel=-1)), "a reference to something other than a storage"),
    "storage of a class": (module_with(emit_tensor(kind=LINEAR)), "a reference to something other than a storage"),
    "two types": (
        emit_module(_buffers={"a": emit_tensor(), "b": emit_tensor(kind="torch IntStorage")}),
        "in two sizes or types",
    ),
    "parameter": (module_with(call("torch._utils _rebuild_parameter", 1, True, None)), "a parameter without a tensor"),
    "reference": (module_with(emit(("code", "x")) + pickle.BINPERSID), "a reference to something other than"),
    "a text as a tensor": (module_with("x"), "got a str at weight"),
    "a module as a tensor": (module_with(emit_module(LINEAR)), "got a StoredModule at weight"),
    "a tensor as a module": (emit_module(_modules={"a": emit_tensor()}), "got a StoredTensor at a"),
    "a dotted name": (emit_module(_parameters={"a.b": emit_tensor()}), "a duplicate or invalid name: 'a.b'"),
    "a name with a line": (emit_module(_parameters={"a\n": emit_tensor()}), r"a duplicate or invalid name: 'a\\n'"),
    "a name twice": (
        emit_module(_parameters={"a": emit_tensor()}, _buffers={"a": emit_tensor()}),
        "a duplicate or invalid name",
    ),
    "no parts": (emit_module(_modules=None), r"without parameters, buffers or modules \(the root\)"),
    "set of a text": (emit_module(a=call("builtins set", "a")), "a set that is not built from a list"),
    "passing": (emit_module(_non_persistent_buffers_set=["a"]), "without parameters, buffers or modules"),
    "ordered": (emit_module(a=call("collections OrderedDict", [])), "an OrderedDict with arguments"),
    "a cycle": (CYCLE, "a module that is in two places, or nested deeper than 32"),
    "shared": (emit_module(_modules=TWICE), "a module that is in two places, or nested deeper than 32"),
    "deep": (nested(200), "a module that is in two places, or nested deeper than 32"),
    "huge text": (emit_module(a=pickle.BINUNICODE + b"\xff\xff\xff\xff"), "it ends early"),
    "no text": (emit_module(a=pickle.BINUNICODE + b"\x01\x00\x00\x00\xff"), "can't decode byte 0xff"),
    "unknown memo": (emit_module(a=pickle.LONG_BINGET + b"\xff\xff\xff\xff"), "a pickle that cannot be read"),
    "empty stack": (emit_module(a=pickle.TUPLE3 * 9), "an empty stack"),
    "no mark": (emit_module(a=pickle.TUPLE * 30), "a pickle that cannot be read"),
    "append to a text": (emit_module(a=emit("x") + emit(1) + pickle.APPEND), "items for a str"),
    "entry of a text": (emit_module(a=emit("x") + emit("y") + emit(1) + pickle.SETITEM), "entries for a str"),
    "endless name": (emit_module(a=pickle.GLOBAL + b"x" * 500 + b"\nx\n"), "a name without an end"),
    "protocol": (emit_module(a=pickle.PROTO + b"\x04"), "protocol 4, expected 2"),
    "opcodes": (emit_module(a=emit([pickle.EMPTY_DICT * 1_100_000])), r"more than 10\d{5} opcodes"),
    "two results": (emit(1) + emit_module(), "too many values"),
}


@pytest.mark.parametrize(("root", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_module_is_refused(root, message):
    with pytest.raises(WeightsCorrupt, match=message):
        parse_checkpoint(as_zip(root), "x.pt")


def test_a_key_that_is_not_a_string_is_dropped():
    """Hashing a tuple as deep as this would crash the process."""
    assert list(parse_checkpoint(as_zip(emit_module(a=DEEP_KEY, _buffers={"a": emit_tensor()})), "x.pt")) == ["a"]


def test_the_same_module_without_damage_is_read():
    tensors = parse_checkpoint(
        as_zip(emit_module(_buffers={"a": emit_tensor(offset=1, shape=(3, 1), stride=(1, 1))})), "x.pt"
    )
    assert torch.equal(tensors["a"], torch.frombuffer(bytearray(range(4, 16)), dtype=torch.float32)[:, None])
    root = module_with(call("torch._utils _rebuild_parameter", emit_tensor(), True, call("collections OrderedDict")))
    values = struct.pack("<q", 4) + bytes(range(16))
    assert parse_checkpoint(as_legacy(root, ["0"], values), "x.pt")["weight"].shape == (4,)


def test_tensors_larger_than_the_file_are_refused():
    """A storage may be used many times, so the total is limited by the size of the file."""
    names = {f"a{n}": pickle.BINGET + b"\x07" for n in range(2000)}
    many = emit_module(_buffers={"a": emit_tensor(numel=2**14, shape=(2**14,)) + pickle.BINPUT + b"\x07"} | names)
    with pytest.raises(WeightsCorrupt, match=r"131137536 bytes of 2001 tensors in a file of \d+"):
        parse_checkpoint(as_zip(many, {"0": bytes(2**16)}), "x.pt")


ROOT = module_with(emit_tensor())


def deflated():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.PROTO + b"\x02" + ROOT + pickle.STOP)
    return buffer.getvalue()


VALUES = struct.pack("<q", 4) + bytes(16)
CONTAINERS = {
    "torchscript": (as_zip(ROOT, **{"constants.pkl": b"x"}), UnsafeWeights, "a TorchScript archive, which contains"),
    "code": (as_zip(ROOT, **{"code/x.py": b"x"}), UnsafeWeights, "a TorchScript archive"),
    "tar": (b"x" * 257 + b"ustar" + b"x" * 300, UnsafeWeights, "a tar archive"),
    "big endian": (as_zip(ROOT, byteorder=b"big"), WeightsCorrupt, "big-endian values, which medzoo does not read"),
    "no values": (as_zip(ROOT, {}), WeightsCorrupt, "no entry 'data/0'"),
    "short values": (as_zip(ROOT, {"0": b"x"}), WeightsCorrupt, "1 bytes for 4 values"),
    "long values": (as_zip(ROOT, {"0": bytes(20)}), WeightsCorrupt, "20 bytes for 4 values"),
    "checksum": (as_zip(ROOT).replace(bytes(range(16)), bytes(16)), WeightsCorrupt, "Bad CRC-32"),
    "cut zip": (as_zip(ROOT)[:-30], WeightsCorrupt, "File is not a zip file"),
    "two pickles": (as_zip(ROOT).replace(b"archive/data/0", b"other/data.pkl"), WeightsCorrupt, "not one data.pkl"),
    "compressed": (deflated(), WeightsCorrupt, "compressed or overlapping entries"),
    "not its size": (as_legacy(ROOT, ["0"], struct.pack("<q", 5) + bytes(20)), WeightsCorrupt, "whose size is not 4"),
    "short stream": (as_legacy(ROOT, ["0"], VALUES[:-1]), WeightsCorrupt, "bytes where"),
    "long stream": (as_legacy(ROOT, ["0"], VALUES + b"x"), WeightsCorrupt, "bytes where"),
    "no storage": (as_legacy(ROOT, [], VALUES), WeightsCorrupt, "other storages than its tensors need"),
    "other storage": (as_legacy(ROOT, ["0", "1"], VALUES), WeightsCorrupt, "other storages than"),
    "number as key": (as_legacy(ROOT, [0], VALUES), WeightsCorrupt, "other storages than"),
    "version": (
        as_legacy(ROOT, ["0"], VALUES).replace(b"M\xe9\x03", b"M\xe8\x03", 1),
        WeightsCorrupt,
        "another format",
    ),
    "big stream": (as_legacy(ROOT, ["0"], VALUES).replace(b"\x88", b"\x89", 1), WeightsCorrupt, "big-endian values"),
    "other root": (as_zip({"a": ROOT}), UnsafeWeights, "that is not a complete DenseNet of TorchXRayVision"),
}


@pytest.mark.parametrize(("data", "kind", "message"), CONTAINERS.values(), ids=CONTAINERS)
def test_a_damaged_container_is_refused(data, kind, message):
    with pytest.raises(kind, match=message):
        parse_checkpoint(data, "x.pt")


def test_any_other_module_is_refused():
    for zipped in (True, False):
        with pytest.raises(UnsafeWeights, match="contains more than tensors"):
            parse_checkpoint(torch_saved(torch.nn.Sequential(torch.nn.Linear(2, 2)), zipped), "x.pt")


def test_every_truncated_file_is_a_medzoo_error(tmp_path):
    """Each prefix of a file is a download that was cut short."""
    data = as_zip(ROOT)
    for length in range(len(data)):
        with pytest.raises(MedzooError):
            parse_checkpoint(data[:length], "x.pt")
