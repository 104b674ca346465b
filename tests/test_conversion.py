"""Checkpoints in the exact layouts of other projects, converted: the same outputs as upstream's own module."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner
from monai.networks.nets import SwinUNETR
from monai_swin import DOWNSAMPLE
from safetensors.torch import save_file
from tensors import scatter_weights

import medzoo
from medzoo.cli.main import main
from medzoo.conversion import convert_checkpoint
from medzoo.errors import ConfigError, UnsafeWeights, WeightsCorrupt, WeightsMismatch, WeightsUnavailable
from medzoo.weights.checkpoint import read_checkpoint
from medzoo.weights.layouts import detect_layout

VOLUME = torch.randn(1, 1, 32, 64, 32, generator=torch.Generator().manual_seed(1))


def swin_unetr(patch_merging="monai1.4", use_v2=False, in_channels=1):
    model = SwinUNETR(
        in_channels=in_channels, out_channels=3, feature_size=12, use_v2=use_v2, downsample=DOWNSAMPLE[patch_merging]
    )
    scatter_weights(model)
    return model.eval()


def medzoo_swin(patch_merging="monai1.4", **options):
    return medzoo.create(
        "swin_encoder_mlp", num_classes=0, feature_size=12, patch_merging=patch_merging, **options
    ).eval()


def as_plain(flat):
    return flat


def as_data_parallel(flat):
    return {f"module.{name}": tensor for name, tensor in flat.items()}


def as_ssl(flat):
    """As model_swinvit.pt: only the encoder, with fc1 and fc2, and the heads of the pretext tasks."""
    encoder = {name.removeprefix("swinViT."): t for name, t in flat.items() if name.startswith("swinViT.")}
    named = {
        n.replace(".mlp.linear1.", ".mlp.fc1.").replace(".mlp.linear2.", ".mlp.fc2."): t for n, t in encoder.items()
    }
    heads = {
        "norm.weight": torch.ones(3),
        "rotation_head.weight": torch.ones(4, 3),
        "contrastive_head.bias": torch.ones(2),
    }
    return as_data_parallel(named | heads | {"convTrans3d.weight": torch.ones(1)})


def as_dae(flat):
    """As ssl_pretrained_weights.pth: a second list index in each layer's name, a mask token and a last norm."""
    encoder = {name.removeprefix("swinViT."): t for name, t in flat.items() if name.startswith("swinViT.")}
    named = {f"encoder.{n[:10]}0.{n[10:]}" if n.startswith("layers") else f"encoder.{n}": t for n, t in encoder.items()}
    rest = {
        "encoder.mask_token": torch.ones(1),
        "encoder.norm.weight": torch.ones(3),
        "out.conv.conv.bias": torch.ones(1),
    }
    return named | rest


@pytest.mark.parametrize("layout", [as_plain, as_data_parallel, as_ssl, as_dae])
@pytest.mark.parametrize("patch_merging", ["monai1.4", "monai1.5"])
def test_swin_checkpoints_give_the_feature_maps_of_monai(layout, patch_merging):
    theirs = swin_unetr(patch_merging)
    model = medzoo_swin(patch_merging)
    report = medzoo.load_state(model, layout(theirs.state_dict()))
    with torch.no_grad():
        expected = theirs.swinViT(VOLUME, normalize=True)[-1]
        torch.testing.assert_close(model.forward_features(VOLUME), expected, rtol=0, atol=2e-5)
    assert set(report.loaded) == set(model.state_dict())
    assert report.new == ()
    index = [name for name in report.dropped if name.endswith("relative_position_index")]
    assert len(index) == 8


def test_the_voco_layout_has_residual_convolutions():
    theirs = swin_unetr(use_v2=True)
    flat = {name: t for name, t in theirs.state_dict().items() if not name.startswith(("decoder", "out"))}
    model = medzoo_swin(use_v2=True)
    medzoo.load_state(model, flat)
    with torch.no_grad():
        expected = theirs.swinViT(VOLUME, normalize=True)[-1]
        torch.testing.assert_close(model.forward_features(VOLUME), expected, rtol=0, atol=2e-5)


def test_an_encoder_leaves_the_head_unchanged_and_is_reported():
    model = medzoo.create("swin_encoder_mlp", feature_size=12, patch_merging="monai1.4", hidden=8).eval()
    before = model.head.fc.weight.clone()
    report = medzoo.load_state(model, swin_unetr().state_dict())
    assert torch.equal(model.head.fc.weight, before)
    assert report.new == ("head.classifier.bias", "head.classifier.weight", "head.fc.bias", "head.fc.weight")
    assert "4 random" in str(report)


def test_to_monai_returns_the_original_tensors():
    theirs = swin_unetr()
    model = medzoo_swin()
    medzoo.load_state(model, theirs.state_dict())
    back = medzoo.to_monai(model)
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in back.items())
    missing, unexpected = swin_unetr().load_state_dict(back, strict=False)
    assert not unexpected
    assert not [m for m in missing if m.startswith("swinViT.") and not m.endswith("relative_position_index")]
    with pytest.raises(ConfigError, match="expected swin_encoder_mlp"):
        medzoo.to_monai(medzoo.create("cnn3d_small"))


@pytest.mark.parametrize("upstream", ["timm", "torchvision"])
def test_resnet_checkpoints(upstream):
    theirs = timm.create_model("resnet18") if upstream == "timm" else torchvision.models.resnet18()
    scatter_weights(theirs)
    model = medzoo.create("resnet18_multilabel", num_classes=0).eval()
    report = medzoo.load_state(model, theirs.eval().state_dict())
    assert report.dropped == ("fc.weight", "fc.bias")
    x = torch.randn(2, 3, 64, 75)
    expected = torch.nn.Sequential(*list(theirs.children())[:-1])(x).flatten(1)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=2e-5)


def test_torchxrayvisions_densenet():
    theirs = torchvision.models.densenet121(num_classes=18)
    theirs.features.conv0 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    scatter_weights(theirs)
    model = medzoo.create("densenet121_xray").eval()
    report = medzoo.load_state(model, theirs.eval().state_dict() | {"op_threshs": torch.ones(18)})
    assert report.dropped == ("op_threshs",)
    assert report.new == ()
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-4, atol=2e-5)


def run(*arguments):
    return CliRunner().invoke(main, ["convert", *map(str, arguments)])


def test_convert_a_data_parallel_checkpoint_with_numpy_scalars(tmp_path):
    """As the BTCV trainer saves it: the best metric is a NumPy scalar, which plain weights_only refuses."""
    theirs = swin_unetr()
    torch.save(
        {"epoch": 3, "best_acc": np.mean([0.5, 1.0]), "state_dict": as_data_parallel(theirs.state_dict())},
        tmp_path / "model.pt",
    )
    result = run(
        tmp_path / "model.pt", "--model", "swin_encoder_mlp", "--option", "feature_size=12",
        "--option", "patch_merging=monai1.4", "--to", tmp_path / "mine",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "118 of 118 tensors loaded, 0 random" in result.output
    model = medzoo.create(f"local-dir:{tmp_path / 'mine'}")
    assert model.options["patch_merging"] == "monai1.4"
    with torch.no_grad():
        expected = theirs.swinViT(VOLUME, normalize=True)[-1]
        torch.testing.assert_close(model.forward_features(VOLUME), expected, rtol=0, atol=2e-5)


def test_convert_a_lightning_checkpoint(tmp_path):
    model = medzoo.create("cnn3d_small", num_classes=3, in_chans=2, size=16, widths=(4, 8, 8), hidden=8).eval()
    state = {f"model.{name}": t for name, t in model.state_dict().items()} | {"loss.weight": torch.ones(3)}
    torch.save({"state_dict": state, "optimizer_states": [{}], "pytorch-lightning_version": "2.6"}, tmp_path / "x.ckpt")
    shape = ["--option", "size=16", "--option", "widths=[4, 8, 8]", "--option", "hidden=8"]
    assert run(tmp_path / "x.ckpt", "--model", "cnn3d_small", *shape, "--to", tmp_path / "m").exit_code == 4
    result = run(tmp_path / "x.ckpt", "--model", "cnn3d_small", "--strip", "model.", *shape, "--to", tmp_path / "m")
    assert result.exit_code == 0, result.output
    assert "dropped: loss.weight" in result.output
    again = medzoo.create(f"local-dir:{tmp_path / 'm'}")
    x = torch.randn(2, 2, 16, 16, 16)
    assert torch.equal(again(x), model(x))
    assert not any(again.outputs.trained)


def test_convert_keeps_four_channels(tmp_path):
    save_file(swin_unetr(in_channels=4).state_dict(), tmp_path / "brats.safetensors")
    convert_checkpoint(
        tmp_path / "brats.safetensors",
        "swin_encoder_mlp",
        tmp_path / "m",
        options={"feature_size": 12, "patch_merging": "monai1.4"},
    )
    assert medzoo.create(f"local-dir:{tmp_path / 'm'}").input_spec.channels == 4


class Canary:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_22_a_malicious_pickle_runs_nothing(tmp_path):
    canary = tmp_path / "canary"
    torch.save({"state_dict": Canary(canary)}, tmp_path / "zip.pt")
    torch.save({"state_dict": Canary(canary)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for name in ("zip.pt", "old.pt", "module.pt"):
        with pytest.raises(UnsafeWeights, match="it contains more than tensors, which could run code"):
            read_checkpoint(tmp_path / name)
    assert not canary.exists()
    (tmp_path / "evil.safetensors").write_bytes((tmp_path / "old.pt").read_bytes())
    with pytest.raises(WeightsCorrupt):
        read_checkpoint(tmp_path / "evil.safetensors")
    assert not canary.exists()


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (b"", WeightsCorrupt, "expected a PyTorch checkpoint"),
        (b"PK\x03\x04 cut", WeightsCorrupt, "expected a PyTorch checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\n", WeightsCorrupt, "this is a Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>", WeightsCorrupt, "this is a web page"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_1_11_12_the_result_of_a_failed_download(tmp_path, data, kind, message, suffix):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(data)
    with pytest.raises(kind, match=message if suffix == "pt" or b"http" in data or b"html" in data else "safetensors"):
        read_checkpoint(path)


def test_files_without_a_state_dict(tmp_path):
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    torch.save({"epoch": 1}, tmp_path / "none.pt")
    for name in ("list.pt", "none.pt"):
        with pytest.raises(WeightsMismatch, match="expected a dict of tensors"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(WeightsUnavailable, match="cannot be read"):
        read_checkpoint(tmp_path / "absent.pt")


def test_an_unknown_layout_is_an_error_with_the_names_found():
    with pytest.raises(
        WeightsMismatch,
        match=r"got names such as net\.a, net\.b.*start with 'net\.'.*convert \.\.\. --strip net\.",
    ):
        detect_layout({"net.a": torch.ones(1), "net.b": torch.ones(1)}, "x.pt")


def test_14_nan_is_refused_by_load_and_convert(tmp_path):
    model = medzoo.create("cnn3d_small", size=16, widths=(4, 8, 8), hidden=8)
    state = model.state_dict() | {"head.fc.bias": torch.full((8,), float("nan"))}
    with pytest.raises(WeightsCorrupt, match=r"the tensors: head\.fc\.bias contains NaN or infinity"):
        medzoo.load_state(model, state)
    torch.save(state, tmp_path / "nan.pt")
    options = {"size": 16, "widths": [4, 8, 8], "hidden": 8}
    with pytest.raises(WeightsCorrupt, match=r"nan\.pt: head\.fc\.bias contains NaN or infinity"):
        convert_checkpoint(tmp_path / "nan.pt", "cnn3d_small", tmp_path / "m", options=options)
    assert not (tmp_path / "m").exists()
