"""The benchmarks on a GPU, as far as a CPU can check them: failures, time limits, targets, the page, the runner."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
import zipfile
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import torch
from timm.models import ResNet
from torch import nn

import medzoo
from medzoo.bench import contest, environment, failures, race, suite
from medzoo.bench.cases import CHANNELS_LAST, CREATED, EAGER, GRAPHLESS, Case, dry_run, select, tiny
from medzoo.bench.page import render
from medzoo.bench.peers import Chain, ChannelsLast, MonaiFeatures, channels_last, fastest_plain
from medzoo.bench.plots import draw
from medzoo.bench.targets import judged, targets
from medzoo.bench.work import work

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]
CASE = Case("cnn3d_small", (16, 16, 16), peers=(EAGER, CREATED), tiny=True)
OTHER = Case("xray_cnn", (32, 32), tiny=True)


@pytest.fixture(autouse=True)
def _without_ceilings(monkeypatch):
    monkeypatch.setattr(suite, "measure_ceilings", lambda device, **_: {})


def raising(error):
    def call(*_, **__):
        raise error

    return call


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
    peers = contest.PEERS | {EAGER: lambda model: Failing(contest.PEERS[CREATED](model), first)}
    monkeypatch.setattr(contest, "PEERS", peers)
    # Three calls, however busy the machine is.
    monkeypatch.setattr(race.Race, "_warm", lambda self, name: min(self._time(name, 1) for _ in range(3)))
    result = suite.run_suite([CASE], CPU, "quick")
    (row,) = result["rows"]
    assert row["absent"] == {EAGER: "OutOfMemoryError: CUDA out of memory"}
    assert list(row["peers"]) == [CREATED]
    assert not result["failed"]


def test_a_peer_that_cannot_be_built_is_absent(monkeypatch):
    monkeypatch.setattr(contest, "PEERS", contest.PEERS | {EAGER: raising(torch.OutOfMemoryError("no memory"))})
    assert contest.build(CASE, CPU).absent == {EAGER: "OutOfMemoryError: no memory"}


def test_a_peer_that_disagrees_is_left_out_where_another_agrees(monkeypatch):
    case = Case("cnn3d_small", (16, 16, 16), peers=(EAGER, CHANNELS_LAST), tiny=True)

    def off(model):
        module = contest.PEERS[CREATED](model)
        module.register_forward_hook(lambda module, args, out: out + 1)
        return module

    monkeypatch.setattr(contest, "PEERS", contest.PEERS | {EAGER: off})
    result = suite.run_suite([case], CPU, "quick")
    assert list(result["rows"][0]["peers"]) == [CHANNELS_LAST]
    assert result["failed"][case.id] == f"expected the outputs of {EAGER}, got a difference of 1.0e+00"


def test_outputs_that_are_not_finite_fail(monkeypatch):
    monkeypatch.setattr(medzoo, "optimize", lambda model: nn.Threshold(1e9, float("nan")))
    result = suite.run_suite([OTHER], CPU, "quick")
    assert result["failed"] == {OTHER.id: "ValueError: medzoo: expected finite outputs, got some that are not."}


def test_after_the_gpu_is_lost_no_case_begins(monkeypatch, tmp_path):
    def lost(device):
        raise failures.DeviceLost("AcceleratorError: an illegal memory access was encountered")

    monkeypatch.setattr(suite, "recover", lost)
    monkeypatch.setattr(suite, "run_case", raising(RuntimeError("an illegal memory access was encountered")))
    result = suite.run_suite([CASE, OTHER], CPU, "quick", folder=tmp_path)
    assert result["failed"] == {CASE.id: "RuntimeError: an illegal memory access was encountered"}
    assert result["skipped"][OTHER.id].startswith(f"the GPU stopped working in {CASE.id}: AcceleratorError")


def test_a_case_begins_only_where_the_time_left_sufficed_before(monkeypatch):
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(suite.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(suite, "run_case", raising(ValueError("x")))
    result = suite.run_suite([CASE, CASE, OTHER], CPU, "quick", limit=25)
    assert list(result["failed"]) == [CASE.id]
    assert result["skipped"][OTHER.id] == "would pass the time limit of 25 s"


# Cases and peers


def test_the_rows_with_a_target_come_first():
    listed = [case.id for case in select(device="cuda")]
    wanted = {target.row for target in targets({"cuda": "13", "device": "NVIDIA H100 80GB HBM3"})}
    assert set(listed[: len(wanted)]) == wanted


def test_tiny_cases_keep_their_peers():
    found = {(case.subject, case.dtype, case.mode, case.graph): case for case in tiny(select(device="cuda"))}
    assert all(case.peers for case in found.values())
    assert len(found) == len(tiny(select(device="cuda")))


def test_bfloat16_is_compared_with_float32_in_training():
    case = Case("cnn3d_small", (16, 16, 16), dtype="bfloat16", mode="train", peers=(EAGER,), tiny=True)
    assert not suite.run_suite([case], CPU, "quick")["failed"]


def test_the_channels_last_peer_is_channels_last_from_its_first_convolution_on():
    model = medzoo.create("cnn3d_base", **medzoo.describe("cnn3d_base").tiny).eval()
    peer, seen = channels_last(model), []
    first = next(module for module in peer.modules() if isinstance(module, nn.Conv3d))
    first.register_forward_hook(lambda module, args, out: seen.extend((args[0], module.weight, out)))
    x = torch.randn(2, 1, 46, 46, 62)
    with torch.no_grad():
        torch.testing.assert_close(peer(x), model(x))
    assert [tensor.stride(1) for tensor in seen] == [1, 1, 1]
    assert seen[0].data_ptr() == x.data_ptr()


# Environment and targets


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


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", [*["≥ 1.5", "≥ 2"] * 2, *["≤ 0.005", "≥ 4500"] * 2]),
        ("NVIDIA H200", [*["≥ 1.5", "≥ 2"] * 2, *["≤ 0.0035", "≥ 6500"] * 2]),
        ("NVIDIA L4", ["≥ 1.5", "≥ 2"] * 2),
    ],
)
def test_targets_are_those_of_the_card(device, expected):
    result = {"environment": {"device": device, "cuda": "13.0", "allocator": "default"}, "rows": []}
    assert [line[3] for line in judged(result)] == expected


# The page of a GPU


def spread_of(value):
    return {"median": value, "low": value * 0.97, "high": value * 1.05}


def made_row(case, tflops):
    """Return a row that reaches a fifth of the matrix products; its peers take 1.4 to 15.2 times as long."""
    todo = work(case)
    seconds = todo.flops / tflops / 0.2e12 + 2e-5
    ratios = dict(zip(case.peers, (15.2, 3.1, 1.4, 2.0), strict=False))
    peers = {
        name: {
            "difference": 1e-2,
            "gradient_difference": 1e-3 if case.mode == "train" else None,
            "seconds": spread_of(seconds * ratio),
            "ratio": spread_of(ratio),
            "peak": 10**9,
        }
        for name, ratio in ratios.items()
    }
    return {
        "case": asdict(case),
        "id": case.id,
        "peers": peers,
        "absent": {},
        "disagreed": {},
        "rounds": 5,
        "seconds": spread_of(seconds),
        "samples_per_second": case.batch / seconds,
        "peak": None if case.graph else 100 * case.voxels,
        "flops": todo.flops,
        "bytes": todo.bytes,
        "share_of_matmul": 0.2,
        "share_of_copy": 0.1,
    }


def gpu_result(device, level="usual", tflops=700):
    """Return a result of all rows for a GPU, with times that are made up."""
    state = dict.fromkeys(environment.GPU_FIELDS[1:], "1980 MHz") | {
        "driver_version": "580.1",
        "power.limit": "700.00 W",
    }
    card = {
        "device": device,
        "cuda": "13.0",
        "cudnn": 91002,
        "device_memory_gb": 85.0,
        "tf32": {"matmul": False, "cudnn": True},
        "gpu": state,
        "date": "2026-01-31 10:00 UTC",
    }
    ceilings = {"torch.mm float32": 5e13, "matmul float32": 5e13, "torch.mm bfloat16": tflops * 1e12}
    return {
        "environment": environment.describe_environment(CPU) | card | {"level": level},
        "ceilings": ceilings | {"matmul bfloat16": tflops * 1e12, "copy": 2.8e12},
        "rows": [made_row(case, tflops) for case in select(level=level, device="cuda")],
        "skipped": {"cnn3d_base-64x128x128-b512-bfloat16-forward": "needs about 274.9 GB, 71.0 GB are free"},
        "failed": {},
        "startup": {},
    }


def words(svg):
    return [element.text for element in ElementTree.parse(svg).iter() if element.tag.endswith("text")]


@pytest.mark.parametrize("device", ["NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA L4"])
def test_the_result_of_a_gpu_becomes_a_page(device, tmp_path):
    result = gpu_result(device)
    file = suite.write_result(result, tmp_path / "results")
    render([file], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert f"\n## {device}, CUDA events\n" in page
    section = page[page.index(f"## {device}") :]
    assert "allocator" not in section
    assert "huge pages" not in section
    assert "driver 580.1, SM clock 1980 MHz of at most 1980 MHz" in section
    assert "power limit 700.00 W" in section
    assert "torch.mm float32 50 TFLOP/s, torch.mm bfloat16 700 TFLOP/s, copy 2800 GB/s" in section
    assert "- cnn3d_base-64x128x128-b512-bfloat16-forward: needs about 274.9 GB" in section
    lines = section[section.index("### Targets") : section.index("### swin_encoder_mlp")].strip().splitlines()[2:]
    assert lines[0] == "| row | what | against | target | next | measured |  |"
    assert [line.split(" | ")[-1].strip(" |") in ("met", "**missed**") for line in lines[2:]] == [True] * (
        4 if device == "NVIDIA L4" else 8
    )
    for name in ("ratios", "roofline", "throughput", "scaling", "memory"):
        assert f"![{name}](images/benchmark-{file.stem}-{name}.svg)" in section
        assert (tmp_path / "images" / f"benchmark-{file.stem}-{name}.svg").exists()


def test_the_pictures_of_a_gpu_are_in_its_dtype(tmp_path):
    result = gpu_result("NVIDIA H100 80GB HBM3")
    pictures = draw(result, tmp_path, "x")
    assert "Roofline, bfloat16 inference" in words(pictures["roofline"])
    assert "TFLOP/s" in words(pictures["roofline"])
    throughput = words(pictures["throughput"])
    assert "Throughput over batch, bfloat16 inference; a ring replays a CUDA graph" in throughput
    assert {"swin_encoder_mlp 96×96×96", "cnn3d_base 64×128×128", "xray_cnn 320×320"} <= set(throughput)
    assert "swin_encoder_mlp 64×64×64" not in throughput  # one batch makes no line
    assert words(pictures["scaling"])[0].endswith("over voxels, bfloat16, batch 1 to 128")


def test_a_gpu_that_nvidia_smi_does_not_report_has_a_page_too(tmp_path):
    result = gpu_result("NVIDIA L4")
    result["environment"]["gpu"] = None
    result["rows"] = result["rows"][:1]
    render([suite.write_result(result, tmp_path / "results")], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "power limit" not in page
    assert sorted(picture.stem.rpartition("-")[2] for picture in (tmp_path / "images").iterdir()) == [
        "ratios",
        "roofline",
    ]


def test_no_text_of_a_picture_leaves_it(tmp_path):
    """A character is at most 7.5 wide, a bold one 8."""
    for picture in draw(gpu_result("NVIDIA H100 80GB HBM3", "full"), tmp_path, "x").values():
        root = ElementTree.parse(picture).getroot()
        for element in root.iter():
            if element.tag.endswith("text") and "transform" not in element.attrib:
                width = len(element.text) * (8 if "font-weight" in element.attrib else 7.5)
                left = (
                    float(element.get("x")) - {"start": 0, "middle": 0.5, "end": 1}[element.get("text-anchor")] * width
                )
                assert left >= 0, element.text
                assert left + width <= float(root.get("width")), element.text


# CUDA graphs and compiled peers


def test_only_a_row_with_a_graph_asks_for_one_and_only_on_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(medzoo, "optimize", lambda model, **options: asked.append(options) or nn.Identity())
    for case, device in product((OTHER, replace(OTHER, graph=True)), ("cpu", "cuda")):
        contest.optimized(nn.Identity(), case, torch.device(device))
    assert asked == [{}, {}, {}, {"cuda_graph": True}]


def test_rows_with_a_graph_are_named_and_have_a_row_without():
    graphs = [case for case in select(level="full", device="cuda") if case.graph]
    ids = {case.id for case in select(device="cuda")}
    assert len(graphs) == 4
    assert all(case.id.endswith("-forward-graph") and case.id.removesuffix("-graph") in ids for case in graphs)
    assert not any(case.graph for case in select(level="full"))


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


@pytest.mark.parametrize(
    ("name", "cpu", "cuda"),
    [
        ("cnn3d_base", Chain, ChannelsLast),
        ("xray_cnn", Chain, ChannelsLast),
        ("resnet18_multilabel", ResNet, ResNet),
        ("swin_encoder_mlp", MonaiFeatures, MonaiFeatures),
    ],
)
def test_the_compiled_peer_is_the_fastest_of_its_device(name, cpu, cuda):
    options = medzoo.describe(name).tiny | ({"num_classes": 0} if name == "swin_encoder_mlp" else {})
    model = medzoo.create(name, **options)
    assert type(fastest_plain(model, "cpu")) is cpu
    assert type(fastest_plain(model, "cuda")) is cuda


def test_a_dry_run_has_every_kind_of_row_and_each_peer_of_a_model():
    every, dry = select(device="cuda"), dry_run(select(device="cuda"))
    kinds = {(case.model, case.mode, case.graph) for case in every}
    assert [(case.model, case.mode, case.graph) for case in dry] == list(
        dict.fromkeys((case.model, case.mode, case.graph) for case in every)
    )
    assert len(dry) == len(kinds)
    assert all(case.tiny and case.dtype == "float32" for case in dry)
    assert {(case.model, peer) for case in dry for peer in case.peers} == {
        (case.model, peer) for case in every for peer in case.peers
    }
    assert all(case.peers for case in dry)


# The runner


def gpu_script(*arguments, **variables):
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)


def test_the_runner_keeps_pythonpath_and_unpacks_wheels(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    monkeypatch.setenv("PYTHONPATH", "/already/there")
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried/__init__.py", "")
    variables = gpu.environment(tmp_path / "wheels", tmp_path / "site")
    assert variables["PYTHONPATH"].split(os.pathsep)[-2:] == [str(tmp_path / "site"), "/already/there"]
    assert (tmp_path / "site" / "carried" / "__init__.py").exists()


def test_a_step_that_hangs_is_stopped_and_logged(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu

    log = tmp_path / "gpu.log"
    code = "import time; print('begun', flush=True); time.sleep(60)"
    assert gpu.run("nap", 1, [sys.executable, "-c", code], dict(os.environ), log) == 124
    assert "begun" in log.read_text()
    assert "stopped after 1 s" in log.read_text()


def test_an_unknown_step_is_named(tmp_path):
    done = gpu_script(tmp_path, "--steps", "suit")
    assert done.returncode == 1
    assert "expected steps of device, tests, suite, got suit" in done.stderr


@pytest.mark.slow
def test_a_dry_run_takes_every_step(tmp_path):
    done = gpu_script(tmp_path, "--dry-run")
    assert done.returncode == 0, done.stdout
    log, result = sorted(tmp_path.iterdir(), key=lambda file: file.suffix, reverse=True)
    assert log.name == "gpu.log"
    assert {row["case"]["subject"] for row in json.loads(result.read_text())["rows"]} == set(medzoo.list_models())
