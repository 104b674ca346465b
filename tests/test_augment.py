"""Augmentation: equal to torchvision and MONAI, on the axes of the patient, from the seed alone."""

from __future__ import annotations

import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

import medzoo
from medzoo.contract import Preprocessing
from medzoo.errors import ConfigError
from medzoo.training.recipe import AugmentSection
from medzoo.transforms.augment import Augmentation, Augmenter, check_augmentation, row_seed
from medzoo.transforms.warp import blur, pull_matrix, warp_image, warp_volume

EVERYTHING = Augmentation(
    flip=("x", "y"), rotate=25, translate=0.1, scale=(0.8, 1.2), shear=10, crop=(0.6, 1.0), brightness=0.2,
    contrast=0.2, gamma=(0.7, 1.4), noise=0.05, blur=1.0,
)  # fmt: skip
FLAT = Preprocessing(size=(20, 28))
SOLID = Preprocessing(size=(10, 12, 14), orientation="SPL", intensity="zscore")
KINDS = {
    "unit": FLAT,
    "window": Preprocessing(size=(10, 12, 14), intensity="window", window=(-1000, 400)),
    "zscore": SOLID,
    "zscore_nonzero": Preprocessing(size=(10, 12, 14), intensity="zscore_nonzero"),
}


def image(how: Preprocessing, channels: int = 1, seed: int = 0) -> Tensor:
    """Return smooth values as the preprocessing gives them."""
    x = torch.rand(channels, *how.size, generator=torch.Generator().manual_seed(seed))
    if how.intensity.startswith("zscore"):
        x = (x - 0.5) / 0.29
    if how.intensity == "zscore_nonzero":
        x[:, : how.size[0] // 3] = 0
    return x


def augment(how: Preprocessing, x: Tensor, seed: int = 0, **fields) -> Tensor:
    return Augmenter(Augmentation(**fields), how)(x, seed)


@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
def test_nothing_on_returns_the_same_bits(how):
    x = image(how)
    assert torch.equal(augment(how, x), x)
    same = {"translate": 0.0, "scale": (1, 1), "crop": (1, 1), "gamma": (1, 1), "rotate": 0}
    assert torch.equal(augment(how, x, **same), x)


@pytest.mark.parametrize("shape", [(20, 28), (28, 20), (21, 21)])
def test_a_picture_is_warped_as_by_torchvision(shape):
    from torchvision.transforms.v2.functional import InterpolationMode, affine

    x = torch.rand(3, *shape)
    given = warp_image(x, angle=17.0, shift=(2.5, -3.0), scale=1.3, shear=(5.0, -4.0), fill=torch.zeros(3))
    peer = affine(x, 17.0, [-3.0, 2.5], 1.3, [5.0, -4.0], interpolation=InterpolationMode.BILINEAR)
    assert torch.equal(given, peer)


@pytest.mark.parametrize("shape", [(10, 12, 14), (16, 8, 11)])
def test_a_volume_is_warped_as_by_monai(shape):
    from monai.transforms import Affine

    x = torch.rand(2, *shape)
    angles, shift, shear, scale = (10.0, -20.0, 5.0), (1.5, -2.0, 0.5), (0.1, 0.0, -0.1, 0.05, 0.0, 0.2), 1.25
    given = warp_volume(x, pull_matrix(angles, shift, scale, shear, (1.0, 1.0, 1.0)), torch.zeros(2))
    peer = Affine(
        rotate_params=[math.radians(a) for a in angles],
        shear_params=shear,
        translate_params=[-s / scale for s in shift],
        scale_params=[1 / scale] * 3,
        padding_mode="zeros",
        image_only=True,
    )(x)
    torch.testing.assert_close(given, torch.as_tensor(peer).as_subclass(Tensor), atol=2e-5, rtol=0)
    assert type(given) is Tensor


@pytest.mark.parametrize("how", [FLAT, SOLID], ids=["2D", "3D"])
def test_the_two_libraries_move_an_image_the_same_way(how):
    """A shift and an enlargement, worked out by hand on one bright point."""
    size = (21, 31) if len(how.size) == 2 else (9, 21, 31)
    x = torch.zeros(1, *size)
    centre = [n // 2 for n in size]
    x[(0, *centre[:-2], centre[-2] + 3, centre[-1] - 4)] = 1
    shift = [0.0] * (len(size) - 2) + [2.0, 5.0]
    fill = torch.zeros(1)
    if len(size) == 2:
        moved = warp_image(x, angle=0.0, shift=shift, scale=2.0, shear=(0.0, 0.0), fill=fill)
    else:
        moved = warp_volume(x, pull_matrix((0, 0, 0), shift, 2.0, (0,) * 6, (1, 1, 1)), fill)
    found = np.unravel_index(int(moved.argmax()), moved.shape)[1:]
    assert list(map(int, found)) == [*centre[:-2], centre[-2] + 3 * 2 + 2, centre[-1] - 4 * 2 + 5]


def test_a_turn_of_a_volume_is_one_of_the_body():
    """With voxels of 1, 1 and 2 mm, a quarter turn moves a point 6 mm away by 6 mm, which is 3 voxels."""
    x = torch.zeros(1, 3, 21, 21)
    x[0, 1, 16, 10] = 1
    moved = warp_volume(x, pull_matrix((90, 0, 0), (0, 0, 0), 1.0, (0,) * 6, (1, 1, 2)), torch.zeros(1))
    place = np.unravel_index(int(moved.argmax()), moved.shape)
    assert (int(place[2]), abs(int(place[3]) - 10)) == (10, 3)
    cut = Preprocessing(size=(3, 21, 21), orientation="SPL", patch=(3.0, 21.0, 42.0))
    assert Augmenter(Augmentation(), cut).spacing == (1.0, 1.0, 2.0)
    spaced = Preprocessing(size=(3, 21, 21), orientation="RAS", spacing=(1.0, 1.0, 2.0), fit="crop")
    assert Augmenter(Augmentation(), spaced).spacing == (1.0, 1.0, 2.0)
    resized = Preprocessing(size=(3, 21, 21), orientation="RAS", spacing=(1.0, 1.0, 2.0))
    assert Augmenter(Augmentation(), resized).spacing == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("orientation", "axes"),
    [("RAS", {"x": 1, "y": 2, "z": 3}), ("SPL", {"x": 3, "y": 2, "z": 1}), ("LSA", {"x": 1, "y": 3, "z": 2}),
     (None, {"x": 3, "y": 2, "z": 1})],
)  # fmt: skip
@pytest.mark.parametrize("axis", "xyz")
def test_a_flip_is_along_the_axis_of_the_patient(orientation, axes, axis):
    how = Preprocessing(size=(4, 5, 6), orientation=orientation)
    x = torch.rand(1, 4, 5, 6)
    results = [augment(how, x, seed, flip=(axis,)) for seed in range(20)]
    flipped = [not torch.equal(result, x) for result in results]
    assert 4 < sum(flipped) < 16
    for result, changed in zip(results, flipped, strict=True):
        assert torch.equal(result, x.flip(axes[axis]) if changed else x)


def test_flips_and_quarter_turns_of_a_picture():
    x = torch.rand(1, 5, 5)
    how = Preprocessing(size=(5, 5))
    for axis, dim in (("x", 2), ("y", 1)):
        assert any(torch.equal(augment(how, x, seed, flip=(axis,)), x.flip(dim)) for seed in range(9))
    turned = [augment(how, x, seed, rotate90=True) for seed in range(40)]
    counts = [sum(torch.equal(result, x.rot90(k, (1, 2))) for result in turned) for k in range(4)]
    assert sum(counts) == 40
    assert min(counts) > 3
    with pytest.raises(ConfigError, match="flip to name x or y for a model of 2D images, got 'z'"):
        Augmenter(Augmentation(flip=("z",)), how)
    with pytest.raises(ConfigError, match="rotate90 needs equal sides along x and y, got 28 and 20"):
        Augmenter(Augmentation(rotate90=True), FLAT)


def test_quarter_turns_of_a_volume_are_axial():
    how = Preprocessing(size=(5, 5, 3), orientation="RAS")
    x = torch.rand(1, 5, 5, 3)
    expected = [x.rot90(k, (2, 1)) for k in range(4)]
    for seed in range(8):
        assert any(torch.equal(augment(how, x, seed, rotate90=True), turned) for turned in expected)


@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
def test_what_moves_in_is_air(how):
    x = image(how, channels=2) + (0.0 if how.intensity in ("unit", "window") else 0.1)
    if how.intensity == "zscore_nonzero":
        x[:, : how.size[0] // 3] = 0
    moved = augment(how, x, 3, translate=0.9)
    air = x.flatten(1).amin(1) if how.intensity == "zscore" else torch.zeros(2)
    for channel, value in zip(moved, air, strict=True):
        assert torch.isclose(channel, value, atol=1e-6).float().mean() > 0.2
        assert channel.min() >= value - 1e-5 or how.intensity == "zscore_nonzero"


@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
def test_zeros_and_the_range_are_kept(how):
    x = image(how)
    shaded = augment(
        how, x, 1, brightness=0.9, contrast=0.9, gamma=(0.5, 2.0), noise=0.5, blur=2.0
    )  # strong, so that clipping matters
    assert shaded.isfinite().all()
    assert not torch.equal(shaded, x)
    if how.intensity in ("unit", "window"):
        assert (shaded.min(), shaded.max()) == (0, 1)
    else:
        assert shaded.max() > 1
    if how.intensity == "zscore_nonzero":
        assert torch.equal(shaded[x == 0], torch.zeros(int((x == 0).sum())))


def test_values_outside_of_0_to_1_are_not_clipped():
    x = image(FLAT) * 3 - 1
    shaded = augment(FLAT, x, 1, gamma=(1.5, 1.5), brightness=0.3)
    assert shaded.isfinite().all()
    assert shaded.max() > 1.2
    assert shaded.min() < 0


def test_values_change_as_by_torchvision_and_monai():
    from monai.transforms import AdjustContrast, GaussianSmooth
    from torchvision.transforms.v2 import functional as peer

    x = image(FLAT) * 0.5 + 0.2
    for seed in range(3):
        factor = float(augment(FLAT, x, seed, brightness=0.3).mean() / x.mean())
        assert 0.7 <= factor <= 1.3
        torch.testing.assert_close(augment(FLAT, x, seed, brightness=0.3), peer.adjust_brightness(x, factor))
        spread = float(augment(FLAT, x, seed, contrast=0.3).std() / x.std())
        assert 0.7 <= spread <= 1.3
        torch.testing.assert_close(augment(FLAT, x, seed, contrast=0.3), peer.adjust_contrast(x, spread))
    torch.testing.assert_close(augment(FLAT, x, 0, gamma=(1.7, 1.7)), peer.adjust_gamma(x, 1.7))
    z = image(SOLID)
    expected = torch.as_tensor(AdjustContrast(1.7)(z)).as_subclass(Tensor)
    torch.testing.assert_close(augment(SOLID, z, 0, gamma=(1.7, 1.7)), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(blur(x, 1.0), peer.gaussian_blur(x, [7, 7], [1.0, 1.0]))
    point = torch.zeros(1, 15, 15, 15)
    point[0, 7, 7, 7] = 1
    smooth = torch.as_tensor(GaussianSmooth(1.0, approx="sampled")(point)).as_subclass(Tensor)
    torch.testing.assert_close(blur(point, 1.0), smooth, atol=1e-3, rtol=0)  # which cuts it at 4 sigma
    assert torch.allclose(blur(torch.ones(1, 4, 9, 9), 1.5), torch.ones(1))  # no dark border
    assert blur(torch.rand(1, 3, 40), 9.0).shape == (1, 3, 40)  # a kernel larger than the picture
    shift = augment(SOLID, z, 0, brightness=0.3) - z
    assert shift.std() < 1e-6
    assert 0 < shift.mean().abs() < 0.3


def test_a_crop_is_the_box_enlarged():
    """Half of each side: what is left has twice the size, from any place."""
    how = Preprocessing(size=(32, 48))
    ramp = torch.stack([torch.arange(32.0)[:, None].expand(32, 48), torch.arange(48.0).expand(32, 48)])
    corners = []
    for seed in range(30):
        cut = augment(how, ramp, seed, crop=(0.25, 0.25))
        torch.testing.assert_close(cut[0].diff(dim=0), torch.full((31, 48), 0.5), atol=1e-3, rtol=0)
        torch.testing.assert_close(cut[1].diff(dim=1), torch.full((32, 47), 0.5), atol=1e-3, rtol=0)
        corners.append((float(cut[0, 1, 1]), float(cut[1, 1, 1])))
    low, high = np.min(corners, 0), np.max(corners, 0)
    assert (low >= 0).all()
    assert (low < 4).all()
    assert (high <= (18, 26)).all()
    assert (high > (12, 18)).all()


@pytest.mark.parametrize("how", [FLAT, SOLID], ids=["2D", "3D"])
def test_one_interpolation_whatever_is_on(how, monkeypatch):
    calls = []
    sample = torch.nn.functional.grid_sample

    def counted(*args, **kwargs):
        calls.append(1)
        return sample(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "grid_sample", counted)
    monkeypatch.setattr("torchvision.transforms.v2.functional._geometry.grid_sample", counted, raising=False)
    Augmenter(EVERYTHING, how)(image(how), 0)
    assert len(calls) == 1


@pytest.mark.parametrize("how", KINDS.values(), ids=KINDS)
def test_the_seed_alone_determines_the_result(how):
    x = image(how)
    original, state = x.clone(), torch.get_rng_state()
    augmenter = pickle.loads(pickle.dumps(Augmenter(EVERYTHING, how)))
    first = augmenter(x, 5)
    torch.manual_seed(99)
    assert torch.equal(augmenter(x, 5), first)
    assert not torch.equal(augmenter(x, 6), first)
    torch.set_rng_state(state)
    augmenter(x, 7)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, original)
    assert type(first) is Tensor
    assert first.dtype == torch.float32


@pytest.mark.parametrize("how", [FLAT, SOLID], ids=["2D", "3D"])
def test_switching_one_part_on_leaves_the_others_as_they_were(how):
    x = image(how)
    for seed in range(4):
        flipped = augment(how, x, seed, flip=("x",))
        assert torch.equal(augment(how, x, seed, flip=("x",), rotate90=False, noise=0.0), flipped)
        noisy = augment(how, x, seed, noise=0.01)
        both = augment(how, x, seed, noise=0.01, flip=("x",))
        torch.testing.assert_close(both - flipped, noisy - x, atol=2e-2, rtol=0)


@pytest.mark.parametrize("how", [FLAT, SOLID], ids=["2D", "3D"])
def test_threads_at_once_give_the_same_results(how):
    augmenter, images = Augmenter(EVERYTHING, how), [image(how, seed=i) for i in range(24)]
    expected = [augmenter(x, seed) for seed, x in enumerate(images)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(augmenter, images, range(24)))
    assert all(map(torch.equal, got, expected))


@pytest.mark.parametrize("how", [Preprocessing(size=(160, 224)), Preprocessing(size=(48,) * 3, intensity="zscore")])
def test_the_number_of_threads_does_not_change_a_bit(how):
    x, threads = image(how), torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            results.append(Augmenter(EVERYTHING, how)(x, 1))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_seeds_of_rows_differ_and_are_the_same_everywhere():
    seeds = {row_seed(s, e, r) for s in range(3) for e in range(20) for r in map(str, range(20))}
    assert len(seeds) == 3 * 20 * 20
    assert row_seed(0, 0, "a.png") == 9153899025212848068
    assert augment(FLAT, image(FLAT), -1, noise=0.1).isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flip": ("x", "x")}, "flip to be a list of 'x', 'y' and 'z'"),
        ({"flip": "xy"}, "flip to be a list"),
        ({"flip": ("w",)}, "flip to be a list"),
        ({"rotate": 200}, "rotate to be in 0 to 180, got 200"),
        ({"noise": float("inf")}, "noise to be finite and at least 0"),
        ({"noise": float("nan")}, "noise to be finite"),
        ({"scale": (1.2, 0.8)}, r"scale to have 0 < smallest <= largest, got \(1.2, 0.8\)"),
        ({"scale": 2}, "scale to be two numbers"),
        ({"crop": (0.5, 1.5)}, "crop to have 0 < smallest <= largest <= 1"),
        ({"translate": True}, "translate to be in 0 to 1, got True"),
    ],
)
def test_amounts_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ConfigError, match=f"Augmentation: expected {message}"):
        Augmentation(**fields)


def test_a_section_of_a_recipe_is_an_augmentation():
    assert Augmentation(**AugmentSection().model_dump()) == Augmentation()
    section = AugmentSection(flip=["x"], scale=(0.5, 2), allow_label_flips=True)
    assert Augmentation(**section.model_dump()) == Augmentation(("x",), scale=(0.5, 2), allow_label_flips=True)


@pytest.mark.parametrize(
    "label",
    ["Left lower lobe", "RIGHT", "lung_L", "leftLung", "Fracture (Rt)", "RUL opacity", "Dextrocardia", "situs inversus",
     "Levoscoliosis", "Kartagener", "left1", "Right2", "left2lung", "LEFT3", "RUL2", "2R",
     "OD", "glaucoma_OS", "od2", "OSLeft"],
)  # fmt: skip
def test_a_flip_that_changes_a_label_is_refused(label):
    with pytest.raises(ConfigError, match="names a side, which flip of x") as caught:
        check_augmentation(Augmentation(flip=("x",)), ["Effusion", label])
    assert repr(label) in str(caught.value)
    assert "allow_label_flips=True" in str(caught.value)
    assert check_augmentation(Augmentation(flip=("x",), allow_label_flips=True), [label]) == ()
    assert check_augmentation(Augmentation(rotate=30), [label]) == ()


@pytest.mark.parametrize(
    "label",
    [
        "Leftover",
        "Bright spot",
        "fright",
        "L1 fracture",
        "T12L1",
        "l4",
        "podcast",
        "OU",
        "Mass",
        "Pleural_Thickening",
        "0",
    ],
)
def test_a_label_without_a_side_may_be_flipped(label):
    assert check_augmentation(Augmentation(flip=("x", "y"), rotate90=True), [label]) == ()


def test_what_else_changes_sides():
    for fields in ({"rotate90": True}, {"rotate": 120}):
        with pytest.raises(ConfigError, match="names a side"):
            check_augmentation(Augmentation(**fields), ["left lung"])
        assert check_augmentation(Augmentation(**fields), ["dextrocardia"]) == ()
    assert check_augmentation(Augmentation(flip=("z",)), ["left lung"]) == ()
    with pytest.raises(ConfigError, match="'dextrocardia' names a side, which flip of z"):
        check_augmentation(Augmentation(flip=("z",)), ["dextrocardia"])
    (note,) = check_augmentation(Augmentation(flip=("x",)), ["Cardiomegaly", "Mass"])
    assert note.startswith("Cardiomegaly: a flip of x puts the organs on the side")


@pytest.mark.parametrize("name", ["xray_cnn", "cnn3d_small"])
def test_transform_for_training(name):
    spec = medzoo.describe(name)
    model = medzoo.create(name, **spec.tiny)
    source = np.random.default_rng(0).integers(0, 255, (1, *[40] * spec.input_spec.dims), np.uint8)
    plain, train = medzoo.transform(model), medzoo.transform(model, train=True)
    assert train.augmenter.augmentation == Augmentation.modest(spec.input_spec.dims)
    first = train(source, seed=3)
    assert torch.equal(first, train(source, seed=3))
    assert not torch.equal(first, plain(source))
    assert first.shape == plain(source).shape
    assert torch.equal(train.prepare(source).tensor, plain(source))
    by_hand = train.augmenter(plain.pixels(source).tensor, 3)
    assert torch.equal(plain.normalise(by_hand), first)
    torch.manual_seed(1)
    drawn = train(source)
    assert not torch.equal(train(source), drawn)
    torch.manual_seed(1)
    assert torch.equal(train(source), drawn)
    still = medzoo.transform(model, train=True, augment=Augmentation())
    assert torch.equal(still(source), plain(source))


def test_transform_refuses_what_does_not_go_together():
    model = medzoo.create("xray_cnn", labels=["Left", "Mass"], **medzoo.describe("xray_cnn").tiny)
    with pytest.raises(ConfigError, match=r"xray_cnn: augment is for training\. Set train=True"):
        medzoo.transform(model, augment=Augmentation())
    with pytest.raises(ConfigError, match="the label 'Left' names a side"):
        medzoo.transform(model, train=True, augment=Augmentation(flip=("x",)))
    assert medzoo.transform(model, train=True).augmenter is not None
    with pytest.raises(ConfigError, match="a seed is for a transform with train=True"):
        medzoo.transform(model)(np.zeros((1, 40, 40), np.uint8), seed=1)
