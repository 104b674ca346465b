"""Running cases: failures, memory and time limits, CUDA graphs, isolated rows."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import medzoo
from benchmarks import build, environment, peers, suite, timing
from benchmarks.cases import CHANNELS_LAST, CREATED, EAGER, GRAPHLESS, ONNXRUNTIME, Case, select, tiny
from benchmarks.environment import available_memory
from benchmarks.targets import TARGETS, target_rows
from benchmarks.tests.conftest import CASE, CPU, OTHER, raising
from benchmarks.work import estimate_memory

pytestmark = pytest.mark.usefixtures("no_ceilings")

# Failures


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("cuDNN error"), ValueError()]
)
def test_a_case_that_fails_costs_its_own_row_only(error, monkeypatch, tmp_path):
    real = suite.run_case
    monkeypatch.setattr(suite, "run_case", lambda case, *args: raising(error)() if case == OTHER else real(case, *args))
    result = suite.run_suite([OTHER, CASE], CPU, "quick", folder=tmp_path)
    assert [row["id"] for row in result["rows"]] == [CASE.id]
    assert result["failed"][OTHER.id].startswith(type(error).__name__)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == json.loads(json.dumps(result))


def test_the_result_file_is_there_after_each_row(tmp_path):
    counts = []

    def report(name, row):
        counts.append([len(json.loads(file.read_text())["rows"]) for file in tmp_path.iterdir()])

    suite.run_suite([CASE, OTHER], CPU, "quick", folder=tmp_path, report=report)
    assert counts == [[], [1], [1], [2]]


class Failing(nn.Module):
    """Fails from the n-th call on."""

    def __init__(self, module, first):
        super().__init__()
        self.module, self.left = module, first

    def forward(self, x):
        self.left -= 1
        if self.left <= 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.module(x)


@pytest.mark.parametrize("first", [1, 2, 3, 4, 5])
def test_a_peer_that_fails_is_absent_and_the_row_goes_on(first, monkeypatch):
    """While the agreement is checked, warming up, measuring memory, and in a round."""
    failing = {EAGER: lambda model: Failing(peers.PEERS[CREATED](model), first)}
    monkeypatch.setattr(peers, "PEERS", peers.PEERS | failing)
    # Three calls, however busy the machine is.
    warm_up = lambda self, name: min(self._time(name, 1) for _ in range(3))  # noqa: E731
    monkeypatch.setattr(timing.InterleavedTimer, "_warm_up", warm_up)
    result = suite.run_suite([CASE], CPU, "quick")
    (row,) = result["rows"]
    assert row["absent"] == {EAGER: "OutOfMemoryError: CUDA out of memory"}
    assert list(row["peers"]) == [CREATED]
    assert not result["failed"]


def test_a_peer_that_cannot_be_built_is_absent(monkeypatch):
    monkeypatch.setattr(peers, "PEERS", peers.PEERS | {EAGER: raising(torch.OutOfMemoryError("no memory"))})
    assert build.build_case(CASE, CPU).absent == {EAGER: "OutOfMemoryError: no memory"}


def test_a_peer_that_disagrees_is_left_out_if_another_agrees(monkeypatch):
    case = Case("cnn3d_small", (16, 16, 16), peers=(EAGER, CHANNELS_LAST), tiny=True)

    def off(model):
        module = peers.PEERS[CREATED](model)
        module.register_forward_hook(lambda module, args, out: out + 1)
        return module

    monkeypatch.setattr(peers, "PEERS", peers.PEERS | {EAGER: off})
    result = suite.run_suite([case], CPU, "quick")
    assert list(result["rows"][0]["peers"]) == [CHANNELS_LAST]
    assert result["failed"][case.id] == f"expected the outputs of {EAGER}, got a difference of 1.0e+00"


def test_outputs_that_are_not_finite_fail(monkeypatch):
    monkeypatch.setattr(medzoo, "optimize", lambda model: nn.Threshold(1e9, float("nan")))
    result = suite.run_suite([OTHER], CPU, "quick")
    assert result["failed"] == {OTHER.id: "ValueError: medzoo: expected finite outputs, got some that are not."}


def test_after_the_gpu_is_lost_no_case_begins(monkeypatch, tmp_path):
    def lost(device):
        raise build.DeviceLost("AcceleratorError: an illegal memory access was encountered")

    monkeypatch.setattr(suite, "recover", lost)
    monkeypatch.setattr(suite, "run_case", raising(RuntimeError("an illegal memory access was encountered")))
    result = suite.run_suite([CASE, OTHER], CPU, "quick", folder=tmp_path)
    assert result["failed"] == {CASE.id: "RuntimeError: an illegal memory access was encountered"}
    assert result["skipped"][OTHER.id].startswith(f"the GPU stopped working in {CASE.id}: AcceleratorError")


# Limits


def test_what_cannot_fit_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(suite, "available_memory", lambda device: 1000)
    with pytest.raises(suite.Skipped, match=r"needs about \d+\.\d GB, 0\.0 GB are free"):
        suite.prepare(Case("swin_encoder_mlp", (128, 128, 128)), CPU)


def test_a_peer_that_cannot_fit_is_absent_with_the_reason(monkeypatch):
    case = Case("swin_encoder_mlp", (64, 64, 64), peers=("MONAI", "as created"))
    monkeypatch.setattr(suite, "available_memory", lambda device: estimate_memory(case, "medzoo") + 1)
    fits, absent = suite._fitting(case, CPU)
    assert fits.peers == ("as created",)
    assert absent["MONAI"].startswith("needs about 0.")


def test_the_memory_estimate_grows_with_batch_volume_and_training():
    def of(side, batch=1, mode="forward"):
        return estimate_memory(Case("swin_encoder_mlp", (side,) * 3, batch=batch, mode=mode), "MONAI")

    assert of(64) < of(96) < of(128)
    assert of(64, batch=8) == 8 * of(64)
    assert of(64) < of(64, mode="train")
    assert available_memory(CPU) > 0


def test_after_the_time_limit_no_case_begins():
    result = suite.run_suite(select(["xray_cnn"], "quick"), CPU, "quick", limit=-1.0)
    assert not result["rows"]
    assert list(result["skipped"]) == ["xray_cnn-320x320-b1-float32-forward"]


def test_a_case_begins_only_if_the_time_left_sufficed_before(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(suite.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(suite, "run_case", raising(ValueError("x")))
    result = suite.run_suite([CASE, CASE, OTHER], CPU, "quick", limit=25)
    assert list(result["failed"]) == [CASE.id]
    assert result["skipped"][OTHER.id] == "would pass the time limit of 25 s"


def test_the_state_of_the_gpu_is_that_of_the_card_in_use(monkeypatch):
    h200 = "GPU-bb, NVIDIA H200, 580.1, 345 MHz, 3201 MHz, 1980 MHz, 3201 MHz, 700.00 W"
    answer = f"GPU-aa, A, 1, 2 MHz, 3 MHz, 4 MHz, 5 MHz, 6 W\n{h200}\n"
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=answer))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="bb"))
    state = environment.gpu_state(torch.device("cuda"))
    assert state["driver_version"] == "580.1"
    assert state["clocks.max.sm"] == "1980 MHz"
    assert state["power.limit"] == "700.00 W"
    monkeypatch.setattr(environment.subprocess, "run", raising(FileNotFoundError("nvidia-smi")))
    assert environment.gpu_state(torch.device("cuda")) is None


# CUDA graphs


def test_only_a_row_with_a_graph_asks_for_one_and_only_on_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(medzoo, "optimize", lambda model, **options: asked.append(options) or nn.Identity())
    for case, device in product((OTHER, replace(OTHER, graph=True)), ("cpu", "cuda")):
        build.optimized(nn.Identity(), case, torch.device(device))
    assert asked == [{}, {}, {}, {"cuda_graph": True}]


def test_a_row_with_a_graph_is_checked_against_the_model_without_and_has_no_peak():
    result = suite.run_suite([replace(OTHER, graph=True, peers=(GRAPHLESS,))], CPU, "quick")
    (row,) = result["rows"]
    assert row["peers"][GRAPHLESS]["difference"] == 0
    assert row["peak"] is None


def test_a_row_whose_graph_is_not_captured_fails(monkeypatch):
    class Warns(nn.Module):
        def forward(self, x):
            warnings.warn(
                "xray_cnn: an input of (1,) runs without a CUDA graph, for none", RuntimeWarning, stacklevel=1
            )
            return x

    monkeypatch.setattr(medzoo, "optimize", lambda model: Warns())
    case = replace(OTHER, graph=True)
    with warnings.catch_warnings(action="ignore"):  # as the command does
        result = suite.run_suite([case], CPU, "quick")
    assert result["failed"][case.id].startswith("RuntimeWarning: xray_cnn: an input of (1,) runs without a CUDA graph")


# onnxruntime

EXPORTED = Case("xray_cnn", (32, 32), peers=(EAGER, ONNXRUNTIME), tiny=True)


def test_onnxruntime_is_a_peer_with_as_many_threads_as_torch_and_no_peak(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    session = build.build_case(EXPORTED, CPU).modules[ONNXRUNTIME].session
    assert session.get_session_options().intra_op_num_threads == 3
    monkeypatch.undo()
    monkeypatch.setattr(peers, "PEERS", peers.PEERS | {ONNXRUNTIME: lambda model: Exported(session)})
    (row,) = suite.run_suite([EXPORTED], CPU, "quick")["rows"]
    assert row["peers"][ONNXRUNTIME]["difference"] < 1e-6
    assert row["peers"][ONNXRUNTIME]["peak"] is None, "it keeps the memory of its first call"
    assert row["peers"][EAGER]["peak"] is not None


class Exported(nn.Module):
    """Runs a session that was made before; the models of a case have the same weights each time."""

    def __init__(self, session):
        super().__init__()
        self.session = session

    def forward(self, x):
        return torch.from_numpy(self.session.run(None, {"image": x.numpy()})[0])


@pytest.mark.parametrize("module", ["onnx", "onnxscript", "onnxruntime"])
def test_a_row_is_measured_without_onnxruntime_where_that_is_absent(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    (row,) = suite.run_suite([EXPORTED], CPU, "quick")["rows"]
    assert list(row["peers"]) == [EAGER]
    assert row["absent"][ONNXRUNTIME].startswith("onnx, onnxscript or onnxruntime is not installed (import of")


def test_onnxruntime_is_absent_from_other_precisions():
    absent = build.build_case(replace(EXPORTED, dtype="bfloat16"), CPU).absent
    assert absent[ONNXRUNTIME] == "it is compared in float32 on a CPU, not in torch.bfloat16 on cpu"


def test_what_was_exported_from_a_model_cannot_vouch_for_it(monkeypatch):
    """With every other peer wrong, nothing is timed."""
    agrees, case = peers.PEERS[CREATED], replace(EXPORTED, peers=(EAGER, ONNXRUNTIME))

    def off(model):
        module = agrees(model)
        module.register_forward_hook(lambda module, args, out: out + 1)
        return module

    monkeypatch.setattr(peers, "PEERS", peers.PEERS | {EAGER: off, ONNXRUNTIME: agrees})
    with pytest.raises(suite.BenchmarkError, match="expected the outputs of eager PyTorch"):
        suite.prepare(case, CPU)


def test_every_model_runs_beside_onnxruntime_at_its_default_size():
    found = {case.model: case for case in select() if ONNXRUNTIME in case.peers}
    assert found.keys() == set(medzoo.list_models())
    for name, case in found.items():
        spec = medzoo.describe(name)
        assert case.size == spec.preprocessing.size
        assert (case.batch, case.dtype, case.mode) == (1, "float32", "forward")
    kept = [case.model for case in tiny(select()) if ONNXRUNTIME in case.peers]
    assert kept == ["cnn3d_small", "cnn3d_base", "xray_cnn"], "those whose export is quick"


# Isolated rows


def test_isolated_rows_are_joined(monkeypatch, tmp_path):
    """Each row comes from a process of its own; here those write made-up results."""
    asked = []

    def process(command, **options):
        row, folder = command[command.index("--row") + 1], Path(command[command.index("--results") + 1])
        assert command[-1] == "--full"
        asked.append(row)
        made = {
            "environment": {"allocator": "default", "date": "2026-01-01", "device": "x", "versions": {"torch": "2"}},
            "ceilings": {"copy": float(len(asked))},
            "rows": [{"id": row}],
            "skipped": {},
            "failed": {},
            "startup": {},
        }
        (folder / "x.json").write_text(json.dumps(made))
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(suite.subprocess, "run", process)
    rows = target_rows(["cnn3d_small", "xray_cnn"])
    found = suite.run_isolated(rows, ["--full"], lambda *_: None, tmp_path)
    assert asked == rows == [row["id"] for row in found["rows"]]
    assert "cnn3d_small-96x96x96-b1-float32-forward" in rows
    assert found["ceilings"] == {"copy": float(len(rows))}
    assert found["environment"]["alone"]
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text()) == found
    monkeypatch.setattr(suite.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=3, stderr="no"))
    with pytest.raises(RuntimeError, match=r"no result \(3\): no"):
        suite.run_isolated(rows, [], lambda *_: None)


def test_every_target_is_about_a_row_there_is():
    wanted = {target.row for target in TARGETS if target.what not in ("growth", "share")} - {"startup/import"}
    assert wanted <= set(target_rows([]))
