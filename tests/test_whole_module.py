"""TorchXRayVision's pickles of a whole module: their tensors come out, and nothing else of them does anything."""

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
from whole_modules import archived, call, emit, name, saved, shell, stored, streamed, torchvisions, upstreams

import medzoo
from medzoo.errors import MedzooError, UnsafeWeights, WeightsCorrupt
from medzoo.weights.checkpoint import read_checkpoint, tensors_in

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
SMALL = {"growth_rate": 4, "block_config": (2, 1), "num_init_features": 8}
WRAPPED = {"zip": archived, "legacy": streamed}


@FORMATS
def test_a_whole_densenet_gives_torchvisions_outputs(tmp_path, zipped):
    theirs = torchvisions()
    (tmp_path / "all.pt").write_bytes(saved(upstreams(theirs, op_threshs=torch.rand(18)), zipped))
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
def test_upstreams_attributes_are_left_behind(zipped):
    theirs = torchvisions(**SMALL)
    attributes = {
        "op_threshs": torch.rand(18),
        "pathologies": ["Mass", ""],
        "targets": ("Mass",),
        "size": torch.Size([1, 2]),
        "best": np.float64(0.5),
        "weights": np.float32(0.5),
        "apply_sigmoid": True,
    }
    tensors = tensors_in(saved(upstreams(theirs, **attributes), zipped), "x.pt")
    assert list(tensors) == list(theirs.state_dict())


@FORMATS
def test_a_buffer_is_kept_if_it_persists(zipped):
    model = upstreams(torchvisions(**SMALL))
    del model.op_threshs
    model.register_buffer("op_threshs", torch.rand(18))
    model.register_buffer("passing", torch.rand(2), persistent=False)
    model.register_buffer("none", None)
    tensors = tensors_in(saved(model, zipped), "x.pt")
    assert list(tensors) == list(model.state_dict())
    assert torch.equal(tensors["op_threshs"], model.op_threshs)


@FORMATS
def test_tensors_are_contiguous_and_their_own(zipped):
    model = upstreams(torchvisions(**SMALL))
    shared = torch.randn(18, 2, dtype=torch.float64)
    model.register_buffer("a", shared.T)
    model.register_buffer("b", shared[3:5])
    model.register_buffer("c", torch.arange(3, dtype=torch.float16))
    tensors = tensors_in(saved(model, zipped), "x.pt")
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
# What a pickle can do to whoever reads it, and the words in which it is refused.
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
    "other module": (shell("torch.nn.modules.rnn LSTM"), "the name 'torch.nn.modules.rnn.LSTM'"),
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
    "call of a shell": (call(LINEAR, 2, 2), f"a call of '{LINEAR.replace(' ', '.')}'"),
    "call of data": (emit("eval") + emit(("1",)) + pickle.REDUCE, "a call of a str"),
    "new from a call": (name("collections OrderedDict") + emit(()) + pickle.NEWOBJ, "made from 'collections.Ord"),
    "new with arguments": (name(LINEAR) + emit((2, 2)) + pickle.NEWOBJ, "an object made from 'torch.nn"),
    "slots": (name(LINEAR) + emit(()) + pickle.NEWOBJ + emit((None, {"a": 1})) + pickle.BUILD, "a state of type tuple"),
    "two states": (shell(LINEAR, __setstate__=name("collections OrderedDict")) + emit({}) + pickle.BUILD, "a state of"),
    "state of a name": (name("collections OrderedDict") + emit((None, {"__init__": 1})) + pickle.BUILD, "a state of"),
    "state of a dict": (call("collections OrderedDict") + emit({"items": 1}) + pickle.BUILD, "a state of type dict"),
}


def aimed(payload, canary):
    """The opcodes with the canary's path in their texts."""
    for text in ("touch {canary}", "open('{canary}', 'w').close()", "{canary}"):
        payload = payload.replace(emit(text), emit(text.replace("{canary}", str(canary))))
    return payload


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize(("payload", "message"), ATTACKS.values(), ids=ATTACKS)
def test_22_an_attack_is_refused_by_name(tmp_path, payload, message, wrapped):
    data = wrapped(shell(a=aimed(payload, tmp_path / "canary")))
    with pytest.raises(UnsafeWeights) as caught:
        tensors_in(data, "x.pt")
    assert message in str(caught.value)
    assert str(caught.value).startswith("x.pt: it asks for more than tensors, which could run code (")
    assert not (tmp_path / "canary").exists()


@FORMATS
def test_22_a_reduce_inside_of_a_saved_module(tmp_path, zipped):
    model = upstreams(torchvisions(**SMALL))
    model.features.conv0.evil = Reduced(open, str(tmp_path / "canary"), "w")
    with pytest.raises(UnsafeWeights, match=r"the name '(io|_io)\.open'"):
        tensors_in(saved(model, zipped), "x.pt")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("attack", ["system", "eval", "inst"])
def test_the_attacks_do_work_on_pythons_own_unpickler(tmp_path, attack):
    """So that a canary that is not there means something."""
    pickle.loads(pickle.PROTO + b"\x02" + aimed(ATTACKS[attack][0], tmp_path / "canary") + pickle.STOP)
    assert (tmp_path / "canary").exists()


WATCHED = """
import json, sys
from pathlib import Path
from medzoo.errors import MedzooError
from medzoo.weights.checkpoint import read_checkpoint
sound, folder = map(Path, sys.argv[1:])
read_checkpoint(sound)  # loads the libraries
events = []
watched = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
sys.addaudithook(lambda event, args: events.append(event) if event in watched else None)
read_checkpoint(sound)
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


def test_22_23_an_audit_hook_sees_no_class_looked_up(tmp_path):
    """Every attack in both formats, as a bare pickle and renamed to .safetensors: nothing is looked up or run."""
    (tmp_path / "sound.pt").write_bytes(saved(upstreams(torchvisions(**SMALL)), False))
    (tmp_path / "attacks").mkdir()
    for number, (payload, _) in enumerate(ATTACKS.values()):
        payload = aimed(payload, tmp_path / "canary")
        bare = pickle.PROTO + b"\x02" + payload + pickle.STOP
        files = {"zip.pt": archived(shell(a=payload)), "legacy.pt": streamed(shell(a=payload)), "bare.pt": bare}
        files |= {"dict.pt": archived({"state_dict": payload}), "model.safetensors": streamed(shell(a=payload))}
        files |= {"bare.safetensors": bare}
        for suffix, data in files.items():
            (tmp_path / "attacks" / f"{number}{suffix}").write_bytes(data)
    command = [sys.executable, "-c", WATCHED, str(tmp_path / "sound.pt"), str(tmp_path / "attacks")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = json.loads(done.stdout)
    assert result["events"] == []
    assert result["loaded"] == []
    assert len(result["refused"]) == 6 * len(ATTACKS)
    assert set(result["refused"]) <= {"UnsafeWeights", "WeightsCorrupt", "WeightsMismatch"}
    assert not (tmp_path / "canary").exists()


def nested(depth):
    module = shell(LINEAR)
    for _ in range(depth):
        module = shell("torch.nn.modules.container Sequential", _modules={"0": module})
    return shell(_modules={"features": module})


# The module is remembered, and its state names it again.
CYCLE = (
    name("torchxrayvision.models DenseNet") + emit(()) + pickle.NEWOBJ + pickle.BINPUT + b"\x00"
    + emit({"_parameters": {}, "_buffers": {}, "_modules": {"again": pickle.BINGET + b"\x00"}}) + pickle.BUILD
)  # fmt: skip
DEEP_KEY = {emit(()) + pickle.TUPLE1 * 200_000: 1}
TWICE = {"a": shell(LINEAR) + pickle.BINPUT + b"\x01", "b": pickle.BINGET + b"\x01"}


def holding(tensor):
    return shell(_parameters={"weight": tensor})


DAMAGE = {
    "size past the end": (holding(stored(shape=(5,))), "a tensor that does not lie inside of its storage"),
    "offset past the end": (holding(stored(offset=1)), "a tensor that does not lie"),
    "offset before it": (holding(stored(offset=-1)), "a tensor that does not lie"),
    "stride past the end": (holding(stored(shape=(2,), stride=(4,))), "a tensor that does not lie"),
    "negative stride": (holding(stored(stride=(-1,))), "a tensor that does not lie"),
    "expanded": (holding(stored(shape=(2**15, 2**15), stride=(0, 0))), "of 1 tensors in a file of"),
    "negative size": (holding(stored(shape=(-4,))), "a tensor that does not lie"),
    "no number": (holding(stored(shape=("4",))), "a tensor that does not lie"),
    "fewer strides": (holding(stored(shape=(2, 2))), "a tensor that does not lie"),
    "nine axes": (holding(stored(shape=(1,) * 9, stride=(1,) * 9)), "a tensor that does not lie"),
    "conjugate bit": (holding(stored(metadata=({"conj": True},))), "a tensor that does not lie"),
    "no storage": (holding(call("torch._utils _rebuild_tensor_v2", "a", 0, (), (), False, None)), "a tensor that"),
    "negative storage": (holding(stored(numel=-1)), "a reference to something other than a storage"),
    "storage of a class": (holding(stored(kind=LINEAR)), "a reference to something other than a storage"),
    "two types": (shell(_buffers={"a": stored(), "b": stored(kind="torch IntStorage")}), "in two sizes or types"),
    "parameter": (holding(call("torch._utils _rebuild_parameter", 1, True, None)), "a parameter without a tensor"),
    "reference": (holding(emit(("code", "x")) + pickle.BINPERSID), "a reference to something other than"),
    "a text as a tensor": (holding("x"), "got a str at weight"),
    "a module as a tensor": (holding(shell(LINEAR)), "got a Shell at weight"),
    "a tensor as a module": (shell(_modules={"a": stored()}), "got a StoredTensor at a"),
    "a dotted name": (shell(_parameters={"a.b": stored()}), "one that is no name: 'a.b'"),
    "a name with a line": (shell(_parameters={"a\n": stored()}), r"one that is no name: 'a\\n'"),
    "a name twice": (shell(_parameters={"a": stored()}, _buffers={"a": stored()}), "a name given twice"),
    "no parts": (shell(_modules=None), r"without parameters, buffers or modules \(the root\)"),
    "set of a text": (shell(a=call("builtins set", "a")), "a set of no list"),
    "passing": (shell(_non_persistent_buffers_set=["a"]), "without parameters, buffers or modules"),
    "ordered": (shell(a=call("collections OrderedDict", [])), "an OrderedDict with arguments"),
    "a cycle": (CYCLE, "a module that is in two places, or nested deeper than 32"),
    "shared": (shell(_modules=TWICE), "a module that is in two places, or nested deeper than 32"),
    "deep": (nested(200), "a module that is in two places, or nested deeper than 32"),
    "huge text": (shell(a=pickle.BINUNICODE + b"\xff\xff\xff\xff"), "it ends early"),
    "no text": (shell(a=pickle.BINUNICODE + b"\x01\x00\x00\x00\xff"), "can't decode byte 0xff"),
    "unknown memo": (shell(a=pickle.LONG_BINGET + b"\xff\xff\xff\xff"), "cannot be read as one"),
    "empty stack": (shell(a=pickle.TUPLE3 * 9), "an empty stack"),
    "no mark": (shell(a=pickle.TUPLE * 30), "cannot be read as one"),
    "append to a text": (shell(a=emit("x") + emit(1) + pickle.APPEND), "items for a str"),
    "entry of a text": (shell(a=emit("x") + emit("y") + emit(1) + pickle.SETITEM), "entries for a str"),
    "endless name": (shell(a=pickle.GLOBAL + b"x" * 500 + b"\nx\n"), "a name without an end"),
    "protocol": (shell(a=pickle.PROTO + b"\x04"), "protocol 4, expected 2"),
    "opcodes": (shell(a=emit([pickle.EMPTY_DICT * 1_100_000])), r"more than 10\d{5} opcodes"),
    "two results": (emit(1) + shell(), "too many values"),
}


@pytest.mark.parametrize(("root", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_module_is_refused(root, message):
    with pytest.raises(WeightsCorrupt, match=message):
        tensors_in(archived(root), "x.pt")


def test_a_key_that_is_no_name_is_left_behind():
    """To hash a tuple as deep as this would end the process."""
    assert list(tensors_in(archived(shell(a=DEEP_KEY, _buffers={"a": stored()})), "x.pt")) == ["a"]


def test_what_the_damage_is_measured_against():
    tensors = tensors_in(archived(shell(_buffers={"a": stored(offset=1, shape=(3, 1), stride=(1, 1))})), "x.pt")
    assert torch.equal(tensors["a"], torch.frombuffer(bytearray(range(4, 16)), dtype=torch.float32)[:, None])
    whole = holding(call("torch._utils _rebuild_parameter", stored(), True, call("collections OrderedDict")))
    numbers = struct.pack("<q", 4) + bytes(range(16))
    assert tensors_in(streamed(whole, ["0"], numbers), "x.pt")["weight"].shape == (4,)


def test_tensors_larger_than_the_file_are_refused():
    """A storage may be named many times, so that the sum is held to what the file has."""
    names = {f"a{n}": pickle.BINGET + b"\x07" for n in range(2000)}
    many = shell(_buffers={"a": stored(numel=2**14, shape=(2**14,)) + pickle.BINPUT + b"\x07"} | names)
    with pytest.raises(WeightsCorrupt, match=r"131137536 bytes of 2001 tensors in a file of \d+"):
        tensors_in(archived(many, {"0": bytes(2**16)}), "x.pt")


ROOT = holding(stored())


def deflated():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.PROTO + b"\x02" + ROOT + pickle.STOP)
    return buffer.getvalue()


NUMBERS = struct.pack("<q", 4) + bytes(16)
CONTAINERS = {
    "torchscript": (archived(ROOT, **{"constants.pkl": b"x"}), UnsafeWeights, "a TorchScript archive, which holds a p"),
    "code": (archived(ROOT, **{"code/x.py": b"x"}), UnsafeWeights, "a TorchScript archive"),
    "tar": (b"x" * 257 + b"ustar" + b"x" * 300, UnsafeWeights, "a tar archive"),
    "big endian": (archived(ROOT, byteorder=b"big"), WeightsCorrupt, "numbers of another byte order"),
    "no numbers": (archived(ROOT, {}), WeightsCorrupt, "no entry 'data/0'"),
    "short numbers": (archived(ROOT, {"0": b"x"}), WeightsCorrupt, "1 bytes for 4 numbers"),
    "long numbers": (archived(ROOT, {"0": bytes(20)}), WeightsCorrupt, "20 bytes for 4 numbers"),
    "checksum": (archived(ROOT).replace(bytes(range(16)), bytes(16)), WeightsCorrupt, "Bad CRC-32"),
    "cut zip": (archived(ROOT)[:-30], WeightsCorrupt, "File is not a zip file"),
    "two pickles": (archived(ROOT).replace(b"archive/data/0", b"other/data.pkl"), WeightsCorrupt, "not one data.pkl"),
    "compressed": (deflated(), WeightsCorrupt, "compressed or overlapping entries"),
    "not its size": (streamed(ROOT, ["0"], struct.pack("<q", 5) + bytes(20)), WeightsCorrupt, "whose size is not 4"),
    "short stream": (streamed(ROOT, ["0"], NUMBERS[:-1]), WeightsCorrupt, "bytes where"),
    "long stream": (streamed(ROOT, ["0"], NUMBERS + b"x"), WeightsCorrupt, "bytes where"),
    "no storage": (streamed(ROOT, [], NUMBERS), WeightsCorrupt, "other storages than its tensors need"),
    "other storage": (streamed(ROOT, ["0", "1"], NUMBERS), WeightsCorrupt, "other storages than"),
    "number as key": (streamed(ROOT, [0], NUMBERS), WeightsCorrupt, "other storages than"),
    "version": (
        streamed(ROOT, ["0"], NUMBERS).replace(b"M\xe9\x03", b"M\xe8\x03", 1),
        WeightsCorrupt,
        "another format",
    ),
    "big stream": (streamed(ROOT, ["0"], NUMBERS).replace(b"\x88", b"\x89", 1), WeightsCorrupt, "another byte order"),
    "other root": (archived({"a": ROOT}), UnsafeWeights, "that is not all of TorchXRayVision's DenseNet"),
}


@pytest.mark.parametrize(("data", "kind", "message"), CONTAINERS.values(), ids=CONTAINERS)
def test_a_damaged_container_is_refused(data, kind, message):
    with pytest.raises(kind, match=message):
        tensors_in(data, "x.pt")


def test_any_other_module_is_refused():
    for zipped in (True, False):
        with pytest.raises(UnsafeWeights, match="asks for more than tensors"):
            tensors_in(saved(torch.nn.Sequential(torch.nn.Linear(2, 2)), zipped), "x.pt")


def test_every_refusal_is_medzoos(tmp_path):
    """Each prefix of a file is a download that was cut."""
    data = archived(ROOT)
    for length in range(len(data)):
        with pytest.raises(MedzooError):
            tensors_in(data[:length], "x.pt")
