"""Every registered set of weights end to end: served, downloaded, verified, converted, loaded and run.

The files have exactly the upstream layout but made-up tensors, and the outputs are compared with upstream's own module
on the same tensors. ``medzoo verify`` checks the real files against their digests.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from monai.networks.nets import SwinUNETR
from monai_swin import DOWNSAMPLE
from pickled_modules import as_upstream, torch_saved, torchvision_densenet
from records import digest_of
from safetensors.torch import save
from tensors import scatter_weights
from test_conversion import as_dae

import medzoo
from medzoo import registry
from medzoo.weights.record import HubFile, UrlFile, ZipMember
from medzoo.weights.verify import find_records

pytest_plugins = ["hub_fixtures"]

RECORDS = {f"{spec.name}:{record.tag}": (spec, record) for spec, record in find_records()}
SWIN = [who for who in RECORDS if who.startswith("swin")]
SMALL, PAPERS = 12, 48


def saved_pt(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def operating_points(record):
    """Return the operating points as upstream stores them: NaN for a label that was not trained."""
    return [t if known else np.nan for t, known in zip(record.thresholds, record.trained, strict=True)]


def swin_unetr(record, feature_size):
    """Return MONAI's network with the arithmetic that the weights were trained with."""
    v2 = record.options.get("use_v2", False)
    model = SwinUNETR(
        in_channels=record.in_chans,
        out_channels={"brats21_fold0": 3, "voco_b": 21}.get(record.tag, 14),
        feature_size=feature_size,
        use_v2=v2,
        downsample=DOWNSAMPLE["monai1.4"],
    )
    scatter_weights(model)
    return model.eval()


def upstream(who, feature_size=SMALL):
    """Return upstream's module, and the bytes of a file as upstream publishes it."""
    _, record = RECORDS[who]
    if record.layout == "timm-resnet":
        theirs = timm.create_model("resnet18")
        scatter_weights(theirs)
        return theirs.eval(), save(theirs.state_dict())
    if record.layout == "torchxrayvision":
        theirs = torchvision_densenet()
        points = torch.tensor(operating_points(record))
        pickled = as_upstream(theirs, op_threshs=points, pathologies=list(record.labels))
        # mimic_ch is reported to have the format of torch before 1.6.
        return theirs, torch_saved(pickled, zipped=record.tag != "xrv_mimic_ch")
    theirs = swin_unetr(record, feature_size)
    state = theirs.state_dict()
    content = {
        "btcv": lambda: state,
        "brats21_fold0": lambda: {"epoch": 299, "best_acc": np.mean([0.88, 0.89]), "state_dict": state},
        "dae50k": lambda: {"model": as_dae(state), "epoch": 99},
        "voco_b": lambda: {name: t for name, t in state.items() if not name.startswith(("decoder", "out"))},
    }[record.tag]()
    return theirs, saved_pt(content)


def served(hub, who, data, monkeypatch, **options):
    """Publish the bytes at the source of the record, and return the record for these bytes."""
    spec, record = RECORDS[who]
    source = record.source
    if isinstance(source, HubFile):
        revision = hub.add(source.repo, {source.file: data}, revision=source.revision)
        assert source.revision in (None, revision)
    elif isinstance(source, ZipMember):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(source.member, data)
        archived = buffer.getvalue()
        url = hub.put("/files/archive.zip", archived)
        source = replace(source, url=url, digest=digest_of(archived), size=len(archived))
    else:
        source = UrlFile(hub.put(f"/files/{source.url.rpartition('/')[2]}", data))
    record = replace(
        record,
        source=source,
        digest=digest_of(data, record.digest.partition(":")[0]),
        size=record.size and len(data),
        options={**record.options, **options},
    )
    monkeypatch.setitem(registry._MODELS, spec.name, replace(spec, weights={**spec.weights, record.tag: record}))
    return record


def check_swin(hub, who, monkeypatch, feature_size, size):
    theirs, data = upstream(who, feature_size)
    record = served(hub, who, data, monkeypatch, feature_size=feature_size)
    model = medzoo.create("swin_encoder_mlp", pretrained=record.tag, num_classes=0)
    x = torch.randn(1, record.in_chans, *size)
    with torch.no_grad():
        maps = theirs.swinViT(x, normalize=True)
        for ours, expected in zip(model.forward_intermediates(x, intermediates_only=True), maps, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=2e-5)
        torch.testing.assert_close(model(x), maps[-1].mean((2, 3, 4)), rtol=0, atol=2e-5)
    report = model.load_report
    assert set(report.loaded) == set(model.state_dict())
    assert (report.new, dict(report.adapted)) == ((), {})
    assert report.digest == record.digest
    return record, report


@pytest.mark.parametrize("who", SWIN)
def test_swin_weights(hub, monkeypatch, who):
    record, report = check_swin(hub, who, monkeypatch, SMALL, (32, 64, 32))
    assert sum(name.endswith("relative_position_index") for name in report.dropped) == 8
    asked = len(hub.requests)
    again = medzoo.create("swin_encoder_mlp", pretrained=record.tag, num_classes=0)
    assert again.load_report == report
    assert len(hub.requests) == asked


@pytest.mark.slow
@pytest.mark.parametrize("who", SWIN)
def test_swin_weights_of_the_papers_size(hub, monkeypatch, who):
    check_swin(hub, who, monkeypatch, PAPERS, (64, 32, 64))


def test_the_order_of_octants_is_kept(hub, monkeypatch):
    """MONAI 1.5 has other arithmetic under the same keys and gives other maps: the record must state which."""
    theirs, data = upstream("swin_encoder_mlp:btcv")
    served(hub, "swin_encoder_mlp:btcv", data, monkeypatch, feature_size=SMALL)
    model = medzoo.create("swin_encoder_mlp", pretrained=True, num_classes=0)
    new = SwinUNETR(in_channels=1, out_channels=14, feature_size=SMALL)
    new.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        wrong = new.eval().swinViT(x, normalize=True)
        ours = model.forward_intermediates(x, intermediates_only=True)
    # The stem precedes any merging.
    torch.testing.assert_close(ours[0], wrong[0], rtol=0, atol=2e-5)
    for mine, theirs_now in zip(ours[1:], wrong[1:], strict=True):
        assert (mine - theirs_now).norm() / theirs_now.norm() > 0.1


@pytest.mark.parametrize("who", [who for who in RECORDS if who.startswith("resnet")])
def test_resnet_weights(hub, monkeypatch, who):
    theirs, data = upstream(who)
    record = served(hub, who, data, monkeypatch)
    model = medzoo.create("resnet18_multilabel", pretrained=record.tag, num_classes=0)
    x = torch.randn(2, 3, 64, 75)
    torch.testing.assert_close(model(x), theirs.forward_features(x).mean((2, 3)), rtol=1e-5, atol=2e-5)
    assert set(model.load_report.dropped) == {"fc.bias", "fc.weight"}
    grey = medzoo.create("resnet18_multilabel", pretrained=record.tag, num_classes=0, in_chans=1)
    one = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(grey(one), model(one.expand(2, 3, 64, 64)), rtol=1e-4, atol=1e-4)
    assert "1 input channels" not in str(model.load_report)
    assert "3 input channels to 1" in str(grey.load_report)


def normalised(p, points):
    """Apply TorchXRayVision's normalisation by operating points, label by label; NaN marks untrained labels."""
    out = torch.full_like(p, 0.5)
    for i, t in enumerate(points):
        if not np.isnan(t):
            column = p[:, i]
            out[:, i] = torch.where(column < t, column / (t * 2), 1.0 - ((1.0 - column) / ((1.0 - t) * 2)))
    return out


@pytest.mark.parametrize("who", [who for who in RECORDS if who.startswith("densenet")])
def test_densenet_weights(hub, monkeypatch, who):
    theirs, data = upstream(who)
    record = served(hub, who, data, monkeypatch)
    model = medzoo.create("densenet121_xray", pretrained=record.tag)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        logits = theirs(x)
        torch.testing.assert_close(model(x), logits, rtol=1e-5, atol=2e-5)
        probabilities = model.outputs.probabilities(model(x))
    points = operating_points(record)
    known = torch.tensor(record.trained)
    torch.testing.assert_close(probabilities, normalised(logits.sigmoid(), points))
    reached = logits.sigmoid() >= torch.tensor(record.thresholds)
    assert torch.equal(model.outputs.positive(probabilities), reached & known)
    model.set_outputs(labels=[f"finding {i}" for i in range(18)], trained=model.outputs.trained)
    assert torch.equal(model.outputs.probabilities(model(x)), probabilities)
    model.set_outputs(thresholds=[0.5] * 18)
    torch.testing.assert_close(model.outputs.probabilities(logits), logits.sigmoid())
    assert sum(record.trained) == (18 if record.tag == "xrv_all" else 11)
    assert len(model.load_report.loaded) == len(model.state_dict())


@pytest.mark.parametrize("who", RECORDS)
def test_a_record_is_complete(who):
    spec, record = RECORDS[who]
    built = medzoo.create(spec.name, **spec.tiny, **{k: v for k, v in record.options.items() if k not in spec.tiny})
    assert record.options.keys() <= spec.options.keys()
    assert record.license
    assert record.citation
    assert record.trained_on
    if record.part == "model":
        assert len(record.labels) == len(record.thresholds) == len(record.trained) == built.num_classes
    if record.preprocessing is not None:
        assert len(record.preprocessing.size) == built.input_spec.dims
    if isinstance(record.source, HubFile) and record.source.revision is None:
        # Without a commit the digest alone pins the file.
        assert record.weak


def test_a_new_head_on_an_encoder_is_reported(hub, monkeypatch):
    _, data = upstream("swin_encoder_mlp:btcv")
    served(hub, "swin_encoder_mlp:btcv", data, monkeypatch, feature_size=SMALL)
    labels = ["benign", "indeterminate", "malignant"]
    model = medzoo.create("swin_encoder_mlp", pretrained="btcv", labels=labels, task="multiclass")
    assert model.outputs == medzoo.Outputs(tuple(labels), "multiclass", trained=(False,) * 3)
    assert model.load_report.new == ("head.classifier.bias", "head.classifier.weight", "head.fc.bias", "head.fc.weight")
    assert "4 random" in str(model.load_report)
    four = medzoo.create("swin_encoder_mlp", pretrained="btcv", num_classes=0, in_chans=4)
    assert "1 input channels to 4" in str(four.load_report)
    with pytest.raises(medzoo.errors.ConfigError, match=r"need patch_merging='monai1\.4', got 'monai1\.5'"):
        medzoo.create("swin_encoder_mlp", pretrained="btcv", patch_merging="monai1.5")


def test_unknown_preprocessing_is_reported(hub, monkeypatch):
    _, data = upstream("swin_encoder_mlp:dae50k")
    served(hub, "swin_encoder_mlp:dae50k", data, monkeypatch, feature_size=SMALL)
    model = medzoo.create("swin_encoder_mlp", pretrained="dae50k", num_classes=0)
    assert "the preprocessing of these weights is not known" in str(model.load_report)


def test_channels_are_reported_in_order(hub, monkeypatch):
    _, data = upstream("swin_encoder_mlp:brats21_fold0")
    served(hub, "swin_encoder_mlp:brats21_fold0", data, monkeypatch, feature_size=SMALL)
    model = medzoo.create("swin_encoder_mlp", pretrained="brats21_fold0", num_classes=0)
    assert "channels, in this order: FLAIR, T1 post contrast, T1, T2" in str(model.load_report)


def test_predict_on_a_real_xray(hub, monkeypatch, data):
    """18 named findings, positions and provenance; with made-up tensors the values themselves have no meaning."""
    _, made_up = upstream("densenet121_xray:xrv_all")
    record = served(hub, "densenet121_xray:xrv_all", made_up, monkeypatch)
    model = medzoo.create("densenet121_xray", pretrained=True)
    found = medzoo.predict(model, sorted((data / "chestxray14_dicom").glob("*.dcm"))[0])
    assert tuple(found.probabilities) == record.labels
    assert len(found.probabilities) == 18
    assert found.trained
    assert found.provenance["weights"] == "densenet121_xray:xrv_all"
    assert found.provenance["digest"] == record.digest
    for label, probability in found.probabilities.items():
        assert found.positive[label] == (probability >= 0.5)
        plain = float(torch.tensor(found.logits[label]).sigmoid())
        assert found.positive[label] == (plain >= record.thresholds[record.labels.index(label)])
