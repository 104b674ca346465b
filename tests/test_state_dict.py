"""State dicts as torch.save writes them: what a trainer keeps comes out bit for bit, and nothing runs."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from whole_modules import archived, call, emit, name, saved, shell, stored, streamed

from medzoo.errors import UnsafeWeights, WeightsCorrupt, WeightsMismatch
from medzoo.weights.checkpoint import read_checkpoint, tensors_in

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
KINDS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
KINDS += ["bool", "float16", "bfloat16", "float32", "float64", "complex32", "complex64", "complex128"]
KINDS += [f"float8_{form}" for form in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0fnu")]


def as_bytes(tensor):
    """b c -> bytes: a tensor's numbers, of which NaN is one like any other."""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).tolist())


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@FORMATS
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_number_comes_out_bit_for_bit(kind, zipped):
    dtype = getattr(torch, kind)
    numbers = torch.arange(12 * dtype.itemsize, dtype=torch.uint8) * 19
    if dtype is torch.bool:
        numbers %= 2
    whole = numbers.view(dtype).view(3, 4)
    state = {"whole": whole, "turned": whole.T, "part": whole[1:, ::2], "one": whole[2, 3]}
    state["apart"] = whole.clone()
    tensors = tensors_in(saved(state, zipped), "x.pt")
    assert list(tensors) == list(state)
    for key, tensor in tensors.items():
        assert (tensor.dtype, tensor.shape) == (dtype, state[key].shape)
        assert as_bytes(tensor) == as_bytes(state[key])
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


@FORMATS
def test_what_trainers_keep_beside_the_weights_is_left_behind(zipped):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 1, 8, 8)).sum().backward()
    optimiser.step()
    scheduler = torch.optim.lr_scheduler.StepLR(optimiser, 2)
    kept = {
        "epoch": 3,
        "global_step": 2**40,
        "loss": [0.5, -1, float("nan")],
        "best": (np.float64(0.5), np.float32(1), np.int64(2), np.bool_(True), np.str_("a")),
        "sets": ({1, 2}, {"a"}, frozenset({(1, 2)}), set()),
        "plain": (None, True, "ü", b"\x00\xff", bytearray(b"x"), 1 + 2j, (), [], {}, Counter("aab")),
        "torch": (torch.Size([1]), torch.float32, torch.qint8, torch.device("cuda", 1), torch.strided),
        "keys": {1: 2, (1, 2): 3, 1.5: 4, None: 5, torch.float16: 6},
        "optimizer_states": [optimiser.state_dict()],
        "lr_schedulers": [scheduler.state_dict()],
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}},
        "hyper_parameters": {"lr": 1e-3, "widths": [4, 8]},
        "pytorch-lightning_version": "2.6",
        "rng": torch.get_rng_state(),
    }
    expected = model.state_dict()
    assert type(expected) is OrderedDict
    for content in ({"state_dict": expected} | kept, {"model": {"net": expected} | kept} | kept, expected):
        tensors = tensors_in(saved(content, zipped), "x.pt")
        assert list(tensors) == list(expected)
        assert all(torch.equal(tensors[key], expected[key]) for key in expected)


@FORMATS
def test_parameters_shared_expanded_and_empty_tensors(zipped):
    shared = torch.randn(4, 6)
    annotated = torch.nn.Parameter(torch.randn(2))
    annotated.note = "a"
    told = torch.randn(2)
    told.note = "a"
    state = {
        "parameter": torch.nn.Parameter(torch.randn(3), requires_grad=False),
        "annotated": annotated,
        "told": told,
        "shared": shared,
        "again": shared,
        "view": shared[:, 1],
        "row": shared[:1],
        "expanded": torch.randn(1).expand(3, 5),
        "empty": torch.empty(0, 7, dtype=torch.int64),
        "number": torch.tensor(3),
    }
    tensors = tensors_in(saved(state, zipped), "x.pt")
    assert list(tensors) == list(state)
    for key, tensor in tensors.items():
        assert type(tensor) is torch.Tensor
        assert not tensor.requires_grad
        assert tensor.dtype == state[key].dtype
        assert torch.equal(tensor, state[key])
        assert tensor.stride() == torch.empty(tensor.shape).stride()
    tensors["shared"].zero_()
    assert torch.equal(tensors["again"], shared)


def test_a_text_of_python_2_is_a_name():
    entry = pickle.EMPTY_DICT + pickle.SHORT_BINSTRING + b"\x01a" + stored() + pickle.SETITEM
    assert list(tensors_in(archived(entry), "x.pt")) == ["a"]


def test_a_state_dict_without_checksums_is_read():
    torch.serialization.set_crc32_options(False)
    try:
        data = saved({"a": torch.ones(30)}, True)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(tensors_in(data, "x.pt")["a"], torch.ones(30))


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


@pytest.mark.parametrize("reader", ["ours", "torch"])
def test_22_a_class_that_another_library_registered_is_not_called(tmp_path, reader):
    """Torch's list is the whole process's; its own reader shows that the canary works."""
    code = REGISTERED.format(tmp_path / "canary", tmp_path / "x.pt")
    done = subprocess.run([sys.executable, "-c", code, reader], capture_output=True, text=True, check=True)
    assert "it asks for more than tensors, which could run code (the name '__main__.Other')" in done.stdout
    assert (tmp_path / "canary").exists() == (reader == "torch")


def test_four_threads_read_at_once(tmp_path):
    (tmp_path / "x.pt").write_bytes(saved({"best": np.float64(0.5), "state_dict": {"a": torch.arange(3)}}, True))

    def read(_):
        return read_checkpoint(tmp_path / "x.pt")[0]["a"].tolist()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(read, range(400))) == [[0, 1, 2]] * 400


def parts(count, numel):
    """As many tensors, by turns the last number of one storage and its first and last."""
    last = stored(offset=numel - 1, shape=(1,), numel=numel)
    ends = stored(shape=(2,), stride=(numel - 1,), numel=numel)
    return {f"a{n}": ends if n % 2 else last for n in range(count)}


@pytest.mark.parametrize("whole", [True, False], ids=["module", "state"])
@FORMATS
def test_small_tensors_do_not_keep_a_large_storage(zipped, whole):
    numel, count = 2**20, 150
    root = shell(_parameters=parts(count, numel)) if whole else parts(count, numel)
    numbers = torch.arange(numel, dtype=torch.float32).numpy().tobytes()
    behind = numel.to_bytes(8, "little") + numbers
    data = archived(root, {"0": numbers}) if zipped else streamed(root, ["0"], behind)
    tensors = tensors_in(data, "x.pt")
    expected = [[numel - 1], [0, numel - 1]] * (count // 2)
    assert [tensor.tolist() for tensor in tensors.values()] == expected
    held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    assert (len(held), sum(held.values())) == (count, 4 * sum(map(len, expected)))


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
    (tmp_path / "small.pt").write_bytes(archived(parts(1, 4)))
    (tmp_path / "large.pt").write_bytes(archived(parts(150, numel), {"0": bytes(4 * numel)}))
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
        (torch.ones(1).expand(100_000), WeightsCorrupt, "400008 bytes of 2 tensors in a file of .* save them contig"),
        (torch.complex(torch.ones(2), torch.ones(2)).conj(), WeightsCorrupt, "or is conjugated"),
        (torch.empty(2, dtype=torch.bits8), WeightsCorrupt, "a tensor of torch bits8, expected plain numbers"),
    ],
    ids=["sparse", "meta", "expanded", "conjugated", "bits"],
)
def test_a_state_dict_holds_plain_tensors(tensor, kind, message, zipped):
    with pytest.raises(kind, match=message):
        tensors_in(saved({"b": torch.ones(2), "a": tensor}, zipped), "x.pt")


DTYPED = ("storage", name("torch.storage UntypedStorage"), "0", "cpu", 16)


def untyped(shape, kind="torch float8_e5m2", stride=(1,)):
    storage = emit(DTYPED) + pickle.BINPERSID
    hooks = call("collections OrderedDict")
    return {"a": call("torch._utils _rebuild_tensor_v3", storage, 0, shape, stride, False, hooks, name(kind))}


HUGE = pickle.LONG1 + b"\xff" + b"\x7f" * 255
DAMAGE = {
    "past the end": (untyped((17,)), "a tensor that does not lie inside of its storage"),
    "past the end of wide numbers": (untyped((5,), "torch float32"), "a tensor that does not lie"),
    "empty and endless": (untyped((0, 2**31 - 1, 2**31 - 1, 2**31 - 1), stride=(1,) * 4), "a tensor that does not"),
    "more than 64 bits count": ({"a": stored(shape=(HUGE,) * 8, stride=(0,) * 8)}, "a tensor that does not lie"),
    "a storage of as many": ({"a": stored(numel=HUGE)}, "a reference to something other than a storage"),
    "no kind": (untyped((1,), "torch Tensor"), "a tensor of torch Tensor, expected plain numbers"),
    "quantised": (untyped((1,), "torch qint8"), "a tensor of torch qint8, expected plain numbers"),
    "a class of its own": (
        {"a": call("torch._tensor _rebuild_from_type_v2", name("torch Size"), name("torch Tensor"), (), {})},
        "a tensor of a class of its own",
    ),
    "protocol": (pickle.PROTO + b"\x03", "protocol 3, expected 2, which torch.save writes unless it is told another"),
}


@pytest.mark.parametrize(("root", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_dict_is_refused(root, message):
    for data in (archived(root), streamed(root, ["0"], bytes(24))):
        with pytest.raises(WeightsCorrupt, match=message):
            tensors_in(data, "x.pt")


def test_what_the_damage_is_measured_against():
    tensors = tensors_in(archived(untyped((16,))), "x.pt")
    assert as_bytes(tensors["a"]) == bytes(range(16))
    assert tensors_in(archived(untyped((4,), "torch float32")), "x.pt")["a"].shape == (4,)


def test_a_step_that_is_never_taken_may_be_any_number():
    tensor = {"a": stored(shape=(1, 4), stride=(HUGE, 1))}
    assert tensors_in(archived(tensor), "x.pt")["a"].shape == (1, 4)


@pytest.mark.parametrize("root", [[stored()], {"epoch": 1}, {}, "x"], ids=["list", "no tensor", "empty", "text"])
def test_a_file_without_a_dict_of_tensors(root):
    with pytest.raises(WeightsMismatch, match="expected a dict of tensors, or one under state_dict, model_state_dict"):
        tensors_in(archived(root), "x.pt")


def test_another_byte_order_is_refused_by_name():
    for data in (
        archived({"a": stored()}, byteorder=b"big"),
        streamed({"a": stored()}, ["0"], bytes(24)).replace(b"\x88", b"\x89", 1),
    ):
        with pytest.raises(WeightsCorrupt, match=r"x\.pt: .* got numbers of another byte order"):
            tensors_in(data, "x.pt")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (call("posix system", "true"), r"\(the name 'posix\.system'\)"),
        (call("collections OrderedDict")[:-1] + b"o", r"\(the pickle opcode OBJ, which torch\.save does not write\)"),
        (call("collections defaultdict"), r"\(the name 'collections\.defaultdict'\)"),
    ],
)
def test_a_refused_state_dict_is_not_advised_to_be_trusted(payload, message):
    with pytest.raises(UnsafeWeights, match=message) as caught:
        tensors_in(archived({"state_dict": payload}), "x.pt")
    assert "weights_only" not in str(caught.value)


def test_a_damaged_numpy_scalar_ends_in_tensors():
    """NumPy's own dtype, given this state, ends the process."""
    dtype = call("numpy dtype", "f8", False, True)
    state = emit((3, "<", emit((None, None, -1, -1, 0)), -1, -1, 0)) + pickle.BUILD
    scalar = call("numpy.core.multiarray scalar", dtype + state, "x")
    data = archived({"best": scalar, "state_dict": {"a": stored()}})
    assert tensors_in(data, "x.pt")["a"].shape == (4,)
