"""Occlusion against a plain loop and against MONAI; what hides a box, how many passes it takes, and where cells lie."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from tensors import batch, scatter_weights, tiny

import medzoo
from medzoo.errors import ConfigError
from medzoo.interpretation.occlusion import box_frame, check_box, default_box, occlusion_maps, positions


def scattered(name, **options):
    torch.manual_seed(5)
    model = tiny(name, **options).eval()
    scatter_weights(model)
    return model


def by_a_loop(model, x, target, box):
    """Return the mean fall of a logit over the boxes that each voxel is in, ``*s``."""
    size, steps = x.shape[2:], [max(1, side // 2) for side in box]
    starts = []
    for length, side, step in zip(size, box, steps, strict=True):
        along = list(range(0, length - side + 1, step))
        starts.append(along if along[-1] == length - side else [*along, length - side])
    total, count = torch.zeros(size), torch.zeros(size)
    with torch.inference_mode():
        for corner in itertools.product(*starts):
            place = tuple(slice(start, start + side) for start, side in zip(corner, box, strict=True))
            hidden = x.clone()
            for c in range(x.shape[1]):
                hidden[(0, c, *place)] = x[0, c].mean()
            total[place] += model(x)[0, target] - model(hidden)[0, target]
            count[place] += 1
    return total / count


def cells_of(full, box):
    """Return the value at the middle of each half box."""
    steps = [max(1, side // 2) for side in box]
    return full[tuple(slice(step // 2, None, step) for step in steps)]


SLOW = [
    ("resnet18_multilabel", (8, 11)),
    ("densenet121_xray", (20, 20)),
    ("cnn3d_base", (46, 30, 31)),
    ("swin_encoder_mlp", (16, 32, 20)),
]


@pytest.mark.parametrize(
    ("name", "box"),
    [("xray_cnn", (9, 16)), ("cnn3d_small", (5, 4, 16))]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW],
)
def test_it_is_the_mean_fall_of_a_plain_loop(name, box):
    model, ran = scattered(name, num_classes=3), []
    x = batch(name, 1) + 2  # a mean that is not 0, and another one in each channel
    x *= torch.arange(1.0, 1 + x.shape[1]).view(-1, *[1] * (x.ndim - 2))
    with torch.inference_mode():
        logits = model(x)
    found = occlusion_maps(model, x, logits, torch.tensor([2, 0]), box, 3, ran.append)
    assert sum(ran) == positions(x.shape[2:], box)
    assert all(count == 3 for count in ran[:-1])
    for row, target in zip(found, (2, 0), strict=True):
        expected = cells_of(by_a_loop(model, x, target, box), box)
        assert expected.abs().max() > 1e-4
        assert row.shape == expected.shape
        assert torch.allclose(row, expected, atol=2e-5 * max(1, float(logits.abs().max())))


def test_it_is_that_of_monai():
    from monai.visualize import OcclusionSensitivity

    model = scattered("xray_cnn", num_classes=2, in_chans=1)  # MONAI hides all channels by one number
    x = torch.randn(1, 1, 32, 32) + 1
    with torch.inference_mode():
        logits = model(x)
    found = occlusion_maps(model, x, logits, torch.tensor([1]), (8, 16), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI indexes with lists, which PyTorch warns about
        score, _ = OcclusionSensitivity(model, (8, 16), 4, verbose=False, mode="mean_img", overlap=0.5, activate=False)(
            x
        )
    assert torch.allclose(found[0], cells_of(logits[0, 1] - score[0, 1], (8, 16)), atol=2e-5)


@pytest.mark.parametrize("size", [(224, 224), (320, 320), (96, 96, 96), (64, 128, 128), (32, 40), (50, 61), (16,) * 3])
def test_the_default_box_takes_a_bearable_number_of_passes(size):
    box = default_box(size)
    assert positions(size, box) <= (400 if len(size) == 2 else 600)
    assert all(side % 2 == 0 and side <= length for side, length in zip(box, size, strict=True))


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((8, 8, 8), r"expected mask_size to be 2 numbers, got \(8, 8, 8\)"),
        (0, r"expected mask_size to be an int >= 1, got 0"),
        ((40, 8), r"expected mask_size within the input of \(32, 40\), got \(40, 8\)\. Take a smaller one\."),
    ],
)
def test_a_box_that_cannot_be_is_an_error(box, message):
    with pytest.raises(ConfigError, match="^model: " + message):
        check_box("model", box, (32, 40))


def test_a_box_may_be_the_image_or_a_voxel():
    assert check_box("model", 7, (32, 40)) == (7, 7)
    assert positions((32, 40), (32, 40)) == 1
    assert positions((4, 5), (1, 1)) == 20
    assert np.array_equal(box_frame((1, 2, 3)), np.eye(4))


def test_a_cell_lies_in_the_middle_of_its_half_box():
    """A bright spot that alone counts is found where it is, by the frame."""

    class Spot(torch.nn.Module):
        def forward(self, x):
            return x[:, :, 20:24, 40:44].mean((1, 2, 3), keepdim=True).flatten(1)

    x = torch.zeros(1, 1, 64, 64)
    x[..., 20:24, 40:44] = 1
    model, box = Spot(), (8, 8)
    maps = occlusion_maps(model, x, model(x), torch.tensor([0]), box, 8)[0]
    cells = np.argwhere(maps.numpy() == maps.max().item())
    centre = (box_frame(box) @ [*cells.mean(0), 0, 1])[:2]
    assert np.abs(centre - [21.5, 41.5]).max() <= 0.5


def test_falls_within_rounding_are_zero():
    class Noise(torch.nn.Module):
        def forward(self, x):
            return 100 + 1e-4 * torch.rand(len(x), 1)

    x = torch.rand(1, 1, 32, 32)
    maps = occlusion_maps(Noise(), x, torch.full((1, 1), 100.0), torch.tensor([0]), (8, 8), 8)
    assert not maps.any()


def test_explain_runs_it_with_progress_and_leaves_out_what_it_does_not_take():
    model = scattered("xray_cnn", num_classes=2).set_outputs(labels=["a", "b"], task="multilabel")
    images = [np.random.default_rng(i).integers(0, 256, (1, 40, 50), np.uint8) for i in range(2)]
    calls = []
    found = medzoo.explain(
        model, images, ["b", "a"], "occlusion", mask_size=16, batch_size=4, progress=lambda *done: calls.append(done)
    )
    passes = positions((32, 32), (16, 16))
    assert passes == 9
    assert [total for _, total in calls] == [2 * passes] * len(calls)
    assert [done for done, _ in calls] == [4, 8, 9, 13, 17, 18]
    assert [(e.method, e.layer, e.targets) for e in found] == [("occlusion", "", ("b", "a"))] * 2
    x = medzoo.transform(model)(images[1])[None]
    expected = cells_of(by_a_loop(model, x, 1, (16, 16)), (16, 16))
    assert np.allclose(found[1].cells["b"], expected, atol=2e-5)
    assert np.array_equal(found[1].frame, box_frame((16, 16)))
    with pytest.raises(
        ConfigError, match=r"^xray_cnn: occlusion looks at no layer, got layer='encoder'\. Leave it out"
    ):
        medzoo.explain(model, images, "a", "occlusion", layer="encoder")
    with pytest.raises(ConfigError, match=r"^xray_cnn: mask_size is for method='occlusion', got method='gradcam'\."):
        medzoo.explain(model, images, "a", mask_size=3)
