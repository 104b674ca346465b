"""State dicts as torch.save writes them: the tensors are read bit for bit, and no code runs."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from pickled_modules import as_legacy, as_zip, call, emit, emit_module, emit_tensor, name, torch_saved

from medzoo.errors import UnsafeWeights, WeightsCorrupt, WeightsMismatch
from medzoo.weights.checkpoint import parse_checkpoint, read_checkpoint

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
KINDS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
KINDS += ["bool", "float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"]
KINDS += [f"float8_{form}" for form in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")]


def as_bytes(tensor):
    """Return the bytes of a tensor's values, so that NaN compares equal."""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@FORMATS
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_is_read_bit_for_bit(kind, zipped):
    dtype = getattr(torch, kind)
    values = torch.arange(12 * dtype.itemsize, dtype=torch.uint8) * 19
    if dtype is torch.bool:
        values %= 2
    full = values.view(dtype).view(3, 4)
    state = {"full": full, "transposed": full.T, "part": full[1:, ::2], "one": full[2, 3], "copy": full.clone()}
    tensors = parse_checkpoint(torch_saved(state, zipped), "x.pt")
    assert list(tensors) == list(state)
    for key, tensor in tensors.items():
        assert (tensor.dtype, tensor.shape) == (dtype, state[key].shape)
        assert as_bytes(tensor) == as_bytes(state[key])
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


@FORMATS
def test_tensors_are_on_the_cpu_whatever_the_default_device_is(zipped):
    data = torch_saved({"full": torch.ones(2, 3), "empty": torch.ones(0, 3)}, zipped)
    with torch.device("meta"):
        tensors = parse_checkpoint(data, "x.pt")
    assert {key: tensor.device.type for key, tensor in tensors.items()} == {"full": "cpu", "empty": "cpu"}


@FORMATS
def test_the_state_of_trainers_is_dropped(zipped):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 1, 8, 8)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    kept = {
        "epoch": 3,
        "global_step": 2**40,
        "loss": [0.5, -1, float("nan")],
        "best": (np.float64(0.5), np.float32(1), np.int64(2), np.bool_(True), np.str_("a")),
        "sets": ({1, 2}, {"a"}, frozenset({(1, 2)}), set()),
        "plain": (None, True, "ü", b"\x00\xff", bytearray(b"x"), 1 + 2j, (), [], {}, Counter("aab")),
        "torch": (torch.Size([1]), torch.float32, torch.qint8, torch.device("cuda", 1), torch.strided),
        "keys": {1: 2, (1, 2): 3, 1.5: 4, None: 5, torch.float16: 6},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
        "hyper_parameters": {"lr": 1e-3, "widths": [4, 8]},
        "pytorch-lightning_version": "2.6",
        "rng": torch.get_rng_state(),
    }
    expected = model.state_dict()
    assert type(expected) is OrderedDict
    for content in ({"state_dict": expected} | kept, {"model": {"net": expected} | kept} | kept, expected):
        tensors = parse_checkpoint(torch_saved(content, zipped), "x.pt")
        assert list(tensors) == list(expected)
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)


@FORMATS
def test_parameters_shared_expanded_and_empty_tensors(zipped):
    shared = torch.randn(4, 6)
    annotated = torch.nn.Parameter(torch.randn(2))
    annotated.note = "a"
    tagged = torch.randn(2)
    tagged.note = "a"
    state = {
        "parameter": torch.nn.Parameter(torch.randn(3), requires_grad=False),
        "annotated": annotated,
        "tagged": tagged,
        "shared": shared,
        "again": shared,
        "view": shared[:, 1],
        "row": shared[:1],
        "expanded": torch.randn(1).expand(3, 5),
        "empty": torch.empty(0, 7, dtype=torch.int64),
        "number": torch.tensor(3),
    }
    tensors = parse_checkpoint(torch_saved(state, zipped), "x.pt")
    assert list(tensors) == list(state)
    for key, tensor in tensors.items():
        assert type(tensor) is torch.Tensor
        assert not tensor.requires_grad
        assert tensor.dtype == state[key].dtype
        assert torch.equal(tensor, state[key])
        assert tensor.stride() == torch.empty(tensor.shape).stride()
    tensors["shared"].zero_()
    assert torch.equal(tensors["again"], shared)


def test_a_python_2_string_is_a_name():
    entry = pickle.EMPTY_DICT + pickle.SHORT_BINSTRING + b"\x01a" + emit_tensor() + pickle.SETITEM
    assert list(parse_checkpoint(as_zip(entry), "x.pt")) == ["a"]


def test_a_state_dict_without_checksums_is_read():
    torch.serialization.set_crc32_options(False)
    try:
        data = torch_saved({"a": torch.ones(30)}, True)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(parse_checkpoint(data, "x.pt")["a"], torch.ones(30))


REGISTERED = """
import sys, torch
from pathlib import Path
from medzoo.errors import UnsafeWeights
from medzoo.weights.checkpoint import read_checkpoint
class Other:
    def __init__(self, path="{0}"):
        Path(path).touch()
    def __setstate__(self, state):
        Path("{0}").touch()
class Made(Other):
    def __reduce__(self):
        return Other, ("{0}",)
torch.save({{"state_dict": {{"a": torch.ones(1)}}, "other": Made()}}, "{1}")
Path("{0}").unlink()
torch.serialization.add_safe_globals([Other])
if sys.argv[1] == "torch":
    torch.load("{1}", weights_only=True)
try:
    read_checkpoint(Path("{1}"))
except UnsafeWeights as error:
    print(error)
"""


@pytest.mark.parametrize("reader", ["medzoo", "torch"])
def test_22_a_class_that_another_library_registered_is_not_called(tmp_path, reader):
    """torch's list of safe classes is process-wide; torch.load shows that the canary works."""
    code = REGISTERED.format(tmp_path / "canary", tmp_path / "x.pt")
    done = subprocess.run([sys.executable, "-c", code, reader], capture_output=True, text=True, check=True)
    assert "it contains more than tensors, which could run code (the name '__main__.Other')" in done.stdout
    assert (tmp_path / "canary").exists() == (reader == "torch")


def test_four_threads_read_at_once(tmp_path):
    (tmp_path / "x.pt").write_bytes(torch_saved({"best": np.float64(0.5), "state_dict": {"a": torch.arange(3)}}, True))

    def read(_):
        return read_checkpoint(tmp_path / "x.pt")[0]["a"].tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(400))) == [[0, 1, 2]] * 400


def parts(count, numel):
    """Return ``count`` tensors: alternately the last value of a storage, and its first and last values."""
    last = emit_tensor(offset=numel - 1, shape=(1,), numel=numel)
    ends = emit_tensor(shape=(2,), stride=(numel - 1,), numel=numel)
    return {f"a{n}": ends if n % 2 else last for n in range(count)}


@pytest.mark.parametrize("as_module", [True, False], ids=["module", "state"])
@FORMATS
def test_small_tensors_do_not_keep_a_large_storage(zipped, as_module):
    numel, count = 2**20, 150
    root = emit_module(_parameters=parts(count, numel)) if as_module else parts(count, numel)
    values = torch.arange(numel, dtype=torch.float32).numpy().tobytes()
    behind = numel.to_bytes(8, "little") + values
    data = as_zip(root, {"0": values}) if zipped else as_legacy(root, ["0"], behind)
    tensors = parse_checkpoint(data, "x.pt")
    expected = [[numel - 1], [0, numel - 1]] * (count // 2)
    assert [tensor.tolist() for tensor in tensors.values()] == expected
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    assert (len(memory), sum(memory.values())) == (count, 4 * sum(map(len, expected)))


GROWTH = """
import sys
from pathlib import Path
from medzoo.weights.checkpoint import read_checkpoint
def most():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
small, large = map(Path, sys.argv[1:])
read_checkpoint(small)
before = most()
tensors, _ = read_checkpoint(large)
print(len(tensors), most() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the most memory from /proc")
def test_reading_takes_the_memory_of_a_few_files(tmp_path):
    numel = 5 * 10**6
    (tmp_path / "small.pt").write_bytes(as_zip(parts(1, 4)))
    (tmp_path / "large.pt").write_bytes(as_zip(parts(150, numel), {"0": bytes(4 * numel)}))
    command = [sys.executable, "-c", GROWTH, str(tmp_path / "small.pt"), str(tmp_path / "large.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    count, grown = map(int, done.stdout.split())
    assert count == 150
    assert grown < 4 * 4 * numel


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("tensor", "kind", "message"),
    [
        (torch.ones(3).to_sparse(), UnsafeWeights, r"the name 'torch\._utils\._rebuild_sparse_tensor'"),
        (torch.ones(3, device="meta"), UnsafeWeights, r"the name 'torch\._utils\._rebuild_meta_tensor_no_storage'"),
        (torch.ones(1).expand(100_000), WeightsCorrupt, "400008 bytes of 2 tensors in a file of .* Save them contig"),
        (torch.complex(torch.ones(2), torch.ones(2)).conj(), WeightsCorrupt, "is conjugated"),
        (torch.empty(2, dtype=torch.bits8), WeightsCorrupt, r"a tensor of torch\.bits8, which medzoo does not read"),
    ],
    ids=["sparse", "meta", "expanded", "conjugated", "bits"],
)
def test_a_state_dict_has_plain_tensors_alone(tensor, kind, message, zipped):
    with pytest.raises(kind, match=message):
        parse_checkpoint(torch_saved({"b": torch.ones(2), "a": tensor}, zipped), "x.pt")


DTYPED = ("storage", name("torch.storage UntypedStorage"), "0", "cpu", 16)


def untyped(shape, kind="torch float8_e5m2", stride=(1,)):
    storage = emit(DTYPED) + pickle.BINPERSID
    hooks = call("collections OrderedDict")
    return {"a": call("torch._utils _rebuild_tensor_v3", storage, 0, shape, stride, False, hooks, name(kind))}


HUGE = pickle.LONG1 + b"\xff" + b"\x7f" * 255
DAMAGE = {
    "past the end": (untyped((17,)), "a tensor whose shape does not fit its storage"),
    "past the end of wide values": (untyped((5,), "torch float32"), "shape does not fit its storage"),
    "empty and endless": (untyped((0, 2**31 - 1, 2**31 - 1, 2**31 - 1), stride=(1,) * 4), "shape does not fit"),
    "more than 64 bits count": (
        {"a": emit_tensor(shape=(HUGE,) * 8, stride=(0,) * 8)},
        "shape does not fit its storage",
    ),
    "a storage of as many": ({"a": emit_tensor(numel=HUGE)}, "a reference to something other than a storage"),
    "no dtype": (untyped((1,), "torch Tensor"), r"a tensor of torch\.Tensor, which medzoo does not read"),
    "quantised": (untyped((1,), "torch qint8"), r"a tensor of torch\.qint8, which medzoo does not read"),
    "a subclass": (
        {"a": call("torch._tensor _rebuild_from_type_v2", name("torch Size"), name("torch Tensor"), (), {})},
        "a tensor of a subclass",
    ),
    "protocol": (pickle.PROTO + b"\x03", "protocol 3, expected 2, the default of torch.save"),
}


@pytest.mark.parametrize(("root", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_dict_is_refused(root, message):
    for data in (as_zip(root), as_legacy(root, ["0"], bytes(24))):
        with pytest.raises(WeightsCorrupt, match=message):
            parse_checkpoint(data, "x.pt")


def test_the_same_state_dict_without_damage_is_read():
    tensors = parse_checkpoint(as_zip(untyped((16,))), "x.pt")
    assert as_bytes(tensors["a"]) == bytes(range(16))
    assert parse_checkpoint(as_zip(untyped((4,), "torch float32")), "x.pt")["a"].shape == (4,)


def test_the_stride_of_an_axis_of_one_may_be_any_int():
    tensor = {"a": emit_tensor(shape=(1, 4), stride=(HUGE, 1))}
    assert parse_checkpoint(as_zip(tensor), "x.pt")["a"].shape == (1, 4)


@pytest.mark.parametrize("root", [[emit_tensor()], {"epoch": 1}, {}, "x"], ids=["list", "no tensor", "empty", "text"])
def test_a_file_without_a_dict_of_tensors(root):
    with pytest.raises(WeightsMismatch, match="expected a dict of tensors, or one under state_dict, model_state_dict"):
        parse_checkpoint(as_zip(root), "x.pt")


def test_big_endian_values_are_refused():
    for data in (
        as_zip({"a": emit_tensor()}, byteorder=b"big"),
        as_legacy({"a": emit_tensor()}, ["0"], bytes(24)).replace(b"\x88", b"\x89", 1),
    ):
        with pytest.raises(WeightsCorrupt, match=r"x\.pt: .* got big-endian values, which medzoo does not read"):
            parse_checkpoint(data, "x.pt")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (call("posix system", "true"), r"\(the name 'posix\.system'\)"),
        (call("collections OrderedDict")[:-1] + b"o", r"\(the pickle opcode OBJ, which torch\.save does not write\)"),
        (call("collections defaultdict"), r"\(the name 'collections\.defaultdict'\)"),
    ],
)
def test_the_error_for_a_refused_state_dict_does_not_advise_to_trust_it(payload, message):
    with pytest.raises(UnsafeWeights, match=message) as caught:
        parse_checkpoint(as_zip({"state_dict": payload}), "x.pt")
    assert "weights_only" not in str(caught.value)


def test_a_damaged_numpy_scalar_is_ignored():
    """NumPy's own dtype crashes with this state."""
    dtype = call("numpy dtype", "f8", False, True)
    state = emit((3, "<", emit((None, None, -1, -1, 0)), -1, -1, 0)) + pickle.BUILD
    scalar = call("numpy.core.multiarray scalar", dtype + state, "x")
    data = as_zip({"best": scalar, "state_dict": {"a": emit_tensor()}})
    assert parse_checkpoint(data, "x.pt")["a"].shape == (4,)
