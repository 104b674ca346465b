"""Which cases are measured, and the formulas of their work, checked against PyTorch's FLOP counter."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import medzoo
from benchmarks.cases import Case, dry_run, select, tiny
from benchmarks.peers import eager, monai_swin, timm_model
from benchmarks.targets import TARGETS, targets
from benchmarks.work import estimate_memory, pairs, segments, swin_flops, work

# Only shapes matter: nothing is computed.
META = torch.device("meta")


def counted(model: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad(), META:
        model.eval()(x)
    return counter.get_total_flops()


# What is measured


def test_every_registered_model_has_a_quick_and_a_usual_case():
    """densenet121_xray has no target, and no quick case."""
    assert {case.model for case in select()} == set(medzoo.list_models())
    assert {case.model for case in select(level="quick")} == set(medzoo.list_models()) - {"densenet121_xray"}


@pytest.mark.parametrize("level", ["quick", "usual", "full"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_case_is_listed_twice(level, device):
    ids = [case.id for case in select(level=level, device=device)]
    assert len(ids) == len(set(ids))


def test_full_adds_the_compiled_peer_and_no_case():
    usual, full = select(), select(level="full")
    assert [case.id for case in usual] == [case.id for case in full]
    assert sum("compile + freezing" in case.peers for case in full) == len(medzoo.list_models())


def test_the_grid_is_complete():
    """Batch 1, 2, 4 and 8 at each of three volumes, in float32."""
    found = {(case.size, case.batch) for case in select(["swin_encoder_mlp"]) if not case.part}
    assert {((side,) * 3, batch) for side, batch in product((64, 96, 128), (1, 2, 4, 8))} <= found


def test_an_unknown_model_is_named():
    with pytest.raises(medzoo.errors.UnknownModelError, match=r"no benchmark of 'xray_cn'\. Did you mean 'xray_cnn'\?"):
        select(["xray_cn"])


@pytest.mark.parametrize(
    ("wanted", "device"), [(TARGETS, "cpu"), (targets({"cuda": "13.0", "device": "NVIDIA H100"}), "cuda")]
)
def test_every_target_is_about_a_row_that_is_measured(wanted, device):
    rows = {case.id: case for case in select(level="full", device=device)}
    for target in wanted:
        if not target.row.startswith(("startup/", "scaling/")):
            assert not target.peer or target.peer in rows[target.row].peers


def test_the_rows_with_a_target_come_first():
    listed = [case.id for case in select(device="cuda")]
    wanted = {target.row for target in targets({"cuda": "13", "device": "NVIDIA H100 80GB HBM3"})}
    assert set(listed[: len(wanted)]) == wanted


def test_tiny_cases_keep_their_peers():
    found = {(case.subject, case.dtype, case.mode, case.graph): case for case in tiny(select(device="cuda"))}
    assert all(case.peers for case in found.values())
    assert len(found) == len(tiny(select(device="cuda")))


def test_rows_with_a_graph_are_named_and_have_a_row_without():
    graphs = [case for case in select(level="full", device="cuda") if case.graph]
    ids = {case.id for case in select(device="cuda")}
    assert len(graphs) == 4
    assert all(case.id.endswith("-forward-graph") and case.id.removesuffix("-graph") in ids for case in graphs)
    assert not any(case.graph for case in select(level="full"))


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


# Work


@pytest.mark.parametrize("size", [(64, 64, 64), (32, 64, 96), (32, 32, 160)])
def test_swin_operations_are_those_that_monai_runs(size):
    model = monai_swin(medzoo.create("swin_encoder_mlp", num_classes=0)).to(META)
    assert counted(model, torch.empty(1, 1, *size, device=META)) == swin_flops(size, padded=True)


def test_needed_operations_are_fewer():
    assert swin_flops((64, 64, 64)) == 11_759_215_104
    assert swin_flops((64, 64, 64), batch=4) == 4 * swin_flops((64, 64, 64))
    assert swin_flops((64, 64, 64)) < 0.7 * swin_flops((64, 64, 64), padded=True)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("side", range(1, 40))
def test_segments_are_the_regions_of_the_mask(side, shifted):
    """Tokens that attend to each other, counted one by one."""

    def region(token: int) -> tuple[int, bool]:
        if not shifted or side <= 7:
            return token // 7, False
        padded = -(-side // 7) * 7
        rolled = (token - 3) % padded
        return rolled // 7, token < 3

    regions = [region(token) for token in range(side)]
    assert sum(segments(side, 7, shifted)) == side
    assert sum(n * n for n in segments(side, 7, shifted)) == sum(a == b for a, b in product(regions, regions))


def test_pairs_multiply_along_the_axes():
    assert pairs((7, 7, 7), shifted=True) == 343**2
    assert pairs((8, 7, 4), shifted=True) == (9 + 25) * 49 * 16


@pytest.mark.parametrize("name", ["cnn3d_small", "cnn3d_base", "xray_cnn", "resnet18_multilabel", "densenet121_xray"])
def test_operations_of_the_convolutional_models_are_those_that_run(name):
    spec = medzoo.describe(name)
    with META:
        model = medzoo.create(name)
        plain = timm_model(model) if name in ("resnet18_multilabel", "densenet121_xray") else eager(model)
        x = torch.empty(2, spec.input_spec.channels, *spec.input_spec.size)
    assert counted(plain, x) == work(Case(name, spec.input_spec.size, batch=2)).flops


def test_training_is_three_times_inference():
    case = Case("cnn3d_base", (64, 128, 128))
    assert work(Case("cnn3d_base", (64, 128, 128), mode="train")).flops == 3 * work(case).flops


def test_stages_sum_up_to_the_encoder():
    full = work(Case("cnn3d_base", (64, 128, 128))).flops
    stages = sum(work(Case(f"cnn3d_base/stage {i}", (64, 128, 128))).flops for i in range(1, 5))
    assert stages == full - 2 * (256 * 512 + 512)


@pytest.mark.parametrize("case", dict.fromkeys(select() + select(device="cuda")), ids=lambda case: case.id)
def test_every_case_has_work_and_an_estimate(case):
    needed = work(case)
    assert needed.flops > 0
    assert needed.bytes > 0
    assert all(estimate_memory(case, who) > 0 for who in ("medzoo", *case.peers))
