"""``medzoo.check_explanation``: a map of a trained model follows its weights, and one that does not is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn.functional import avg_pool2d, binary_cross_entropy_with_logits

import medzoo
from medzoo.errors import ConfigError, DataError
from medzoo.inference.view import float32_view
from medzoo.interpretation.choose import choose_layer
from medzoo.interpretation.layer_maps import layer_maps
from medzoo.interpretation.map_check import MapCheck, MapSimilarity, similarity, t_quantile
from medzoo.interpretation.randomise import check_explanation, compare_with_random, randomise, weight_stages

SIZES = {"densenet121_xray": (64, 64), "resnet18_multilabel": (64, 64), "swin_encoder_mlp": (32,) * 3}
CPU = torch.device("cpu")


def draw(n, seed):
    """Return images ``n 1 32 32`` of noise, in which positives have a bright blob at a random place, and targets."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    rows, columns = np.mgrid[:32, :32]
    at = rng.uniform(6, 26, (n, 2))
    blob = np.exp(-((rows - at[:, :1, None]) ** 2 + (columns - at[:, 1:, None]) ** 2) / 18)
    images = rng.uniform(0, 0.5, (n, 32, 32)) + 0.5 * blob * y[:, None, None]
    return images[:, None].astype(np.float32), torch.from_numpy(y[:, None].astype(np.float32))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    options = {"size": 32, "widths": (8, 8, 8, 16), "hidden": 16}
    model = medzoo.create("xray_cnn", in_chans=1, num_classes=1, task="binary", labels=["blob"], **options)
    images, targets = draw(256, 0)
    prepare = medzoo.transform(model)
    x = torch.stack([prepare.normalise(torch.from_numpy(image)) for image in images])
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    model.train()
    for step in range(96):
        rows = slice(step % 8 * 32, step % 8 * 32 + 32)
        optimiser.zero_grad()
        binary_cross_entropy_with_logits(model(x[rows]), targets[rows]).backward()
        optimiser.step()
    with torch.no_grad():
        assert ((model.eval()(x) > 0) == (targets > 0)).float().mean() > 0.95
    return model.set_outputs(labels=["blob"])


@pytest.fixture(scope="module")
def images():
    return list(draw(16, 1)[0][1::2])


@pytest.fixture(scope="module")
def found(trained, images):
    return medzoo.check_explanation(trained, images, layer="encoder.stages.2.relu")


def inputs(model, images):
    return torch.stack([medzoo.transform(model)(image) for image in images])


def as_check(view, found, method="mine", n=8):
    return MapCheck(view.name, method, "", (4, 4), ("blob",) * n, tuple(range(8)), *found)


def test_the_map_of_a_trained_model_follows_its_weights(found):
    assert found.verdict == "follows"
    low, high = found.cascade[-1].interval
    assert low <= found.cascade[-1].mean <= high < 0.5
    assert [one.name for one in found.cascade] == ["head", *(f"head to encoder.stages.{i}" for i in (3, 2, 1, 0))]
    assert found.cascade[-1].rank.shape == (8, 8)
    assert found.size == (8, 8)
    assert found.summary().startswith("The map follows the weights: with all weights random")
    assert "nothing about whether it points at the right place" in found.summary()
    text = str(found)
    assert "head to encoder.stages.0" in text
    assert "two random models" in text
    assert "two images, trained" in text
    assert not text.count("Warning")


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_map_that_ignores_the_weights_is_found(trained, images, share):
    """Edges of the image, as of an edge detector, also where a little of the real map is mixed in."""
    view = float32_view(trained, CPU)
    x = inputs(trained, images)

    def edges(of, x, targets):
        coarse = avg_pool2d(x, 4)[:, 0]
        drawn = torch.gradient(coarse, dim=(1, 2))[0].abs()
        maps = layer_maps(of, "encoder.stages.2.relu", x, lambda _: targets[:, None])[1][:, 0]
        return drawn / drawn.amax((1, 2), True) + share * maps / maps.amax((1, 2), True).clamp(min=1e-9)

    found = as_check(
        view, compare_with_random(view, x, torch.zeros(8, dtype=torch.long), edges, range(4), batch_size=8)
    )
    assert found.verdict == "does not follow"
    assert "It would look much the same from an untrained model." in found.summary()
    if not share:
        assert found.cascade[-1].mean == pytest.approx(1)
        assert found.untrained.mean == pytest.approx(1)
        assert found.images.mean < 0.5


@pytest.mark.parametrize(
    ("mean", "verdict", "text"),
    [
        (0.2, "follows", "The map follows the weights"),
        (0.5, "undecided", "which is on neither side of 0.5. Take more images and seeds"),
        (0.8, "does not follow", "The map does not follow"),
        (np.nan, "undecided", "too few maps of random models differ between places"),
    ],
)
def test_the_verdict_is_of_the_interval(mean, verdict, text):
    rows = mean + np.random.default_rng(0).normal(0, 0.1, (5, 6))
    one = MapSimilarity("head to a", rows, rows, rows)
    found = MapCheck("m", "gradcam", "a", (4, 4), ("x",) * 5, tuple(range(6)), (one,), (), one, None, "4 x 4 cells")
    assert found.verdict == verdict
    assert text in found.summary()
    assert ("left out" in str(found)) == np.isnan(mean)
    assert "Warning: 4 x 4 cells." in str(found)
    alone = MapSimilarity("head to a", rows[:1], rows[:1], rows[:1])
    few = MapCheck("m", "gradcam", "a", (4, 4), ("x",), tuple(range(6)), (alone,), (), alone, None)
    assert ("for these images alone" in few.summary()) == (not np.isnan(mean))


def test_nothing_of_the_caller_is_touched(trained, images, found):
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    trained.train()
    grads = [p.requires_grad for p in trained.parameters()]
    done = []
    again = check_explanation(
        trained, images[:3], layer="encoder.stages.2.relu", seeds=4, batch_size=2, progress=lambda *at: done.append(at)
    )
    assert trained.training
    trained.eval()
    assert grads == [p.requires_grad for p in trained.parameters()]
    assert all(p.grad is not None for p in trained.parameters()), "of the training, and kept"
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert not any(m._forward_hooks for m in trained.modules())
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert done == [(i, 20) for i in range(1, 21)]
    for a, b in zip(again.cascade, found.cascade, strict=True):
        # The same seeds give the same random models; batches differ by rounding, and so may ties.
        np.testing.assert_allclose(a.rank, b.rank[:3, :4], atol=0.02)


def test_each_stage_alone(trained, images):
    found = check_explanation(trained, images[:1], seeds=[5, 3, 8, 1], alone=True)
    assert [one.name for one in found.alone] == [f"encoder.stages.{i} alone" for i in (3, 2, 1, 0)]
    assert found.alone[0].rank.shape == (1, 4)
    assert found.images is None
    assert "alone" in str(found)


@pytest.mark.parametrize("name", medzoo.list_models())
def test_every_weight_is_in_one_stage_and_becomes_random(name):
    spec = medzoo.describe(name)
    model = medzoo.create(name, **spec.tiny).eval()
    x = torch.rand(1, model.input_spec.channels, *SIZES.get(name, model.input_spec.size))
    view = float32_view(model, CPU)
    stages = weight_stages(view, x)
    names = [module for stage in stages for module in stage.modules]
    assert len(names) == len(set(names))
    assert set(names) == {n for n, m in view.named_modules() if m._parameters}
    assert [stage.name for stage in stages] == [
        "head", *(f"encoder.{info['module']}" for info in reversed(view.feature_info))
    ]  # fmt: skip
    with torch.inference_mode(False):
        copied = float32_view(medzoo.create(name, **spec.tiny), CPU)
    norms = [m for m in copied.modules() if hasattr(m, "running_var")]
    for norm in norms:  # as after a training
        for value in norm.state_dict().values():
            value.copy_(torch.rand(value.shape) * 9)
    before = {n: p.clone() for n, p in copied.named_parameters()}
    for k, stage in enumerate(stages):
        randomise(copied, stage, torch.Generator().manual_seed(k))
    for n, parameter in copied.named_parameters():
        if before[n].numel() >= 1000 and before[n].ndim > 1:
            was = before[n].square().mean().sqrt()
            assert not torch.equal(parameter, before[n]), n
            assert parameter.square().mean().sqrt() == pytest.approx(float(was), rel=0.15), n
            assert abs(float(parameter.mean())) < 0.15 * float(was), n
    for norm in norms:
        assert all((norm.weight == 1).all() and (v == one).all() for v, one in ((norm.bias, 0), (norm.running_var, 1)))
        assert (norm.running_mean == 0).all()
    assert torch.isfinite(copied(x)).all()


def test_similarity_is_that_of_scipy_and_of_its_formula():
    rng = np.random.default_rng(0)
    a = rng.integers(-4, 5, (6, 5, 5)).astype(np.float32)  # with many ties
    b = (a + rng.normal(0, 3, a.shape)).astype(np.float32)
    found = similarity(a, b)
    for row, (one, other) in enumerate(zip(a, b, strict=True)):
        assert found[row, 0] == pytest.approx(stats.spearmanr(one.ravel(), other.ravel()).statistic)
        assert found[row, 1] == pytest.approx(stats.spearmanr(abs(one).ravel(), abs(other).ravel()).statistic)
    assert similarity(a, a) == pytest.approx(np.ones((6, 3)))
    assert similarity(a, -a)[:, 0] == pytest.approx(-np.ones(6))
    assert similarity(a, -a)[:, 1:] == pytest.approx(np.ones((6, 2)))
    # One window of 5 x 5 with Gaussian weights, by Wang's formula.
    weights = np.exp(-((np.arange(5) - 2) ** 2) / 2 / 1.5**2)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    for row, (one, other) in enumerate(zip(np.abs(a), np.abs(b), strict=True)):
        x, y = one / one.max(), other / other.max()
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy, cov = ((weights * v).sum() - m for v, m in ((x * x, mx * mx), (y * y, my * my), (x * y, mx * my)))
        ssim = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        assert found[row, 2] == pytest.approx(ssim, abs=1e-4)
    volume = rng.random((2, 4, 4, 4)).astype(np.float32)
    assert similarity(volume, volume) == pytest.approx(np.ones((2, 3)))
    assert np.isnan(similarity(np.zeros_like(a), a)).all(), "a map that is zero everywhere has no order"


def test_the_interval_of_a_mean_over_images_and_models():
    for degrees in (3, 4, 7.5, 30, 1000):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=2e-3)
    rng = np.random.default_rng(0)
    held = []
    for _ in range(400):
        rows = 0.3 + 0.1 * rng.normal(size=(6, 1)) + 0.1 * rng.normal(size=(1, 5)) + 0.1 * rng.normal(size=(6, 5))
        low, high = MapSimilarity("a", rows, rows, rows).interval
        held.append(low <= 0.3 <= high)
    assert 0.93 <= np.mean(held) <= 0.99
    one = rng.normal(0.2, 0.1, (1, 6))
    expected = stats.t.interval(0.95, 5, one.mean(), stats.sem(one[0]))
    assert MapSimilarity("a", one, one, one).interval == pytest.approx(expected, abs=1e-3)
    gone = np.full((5, 6), np.nan)
    assert MapSimilarity("a", gone, gone, gone).interval is None
    gone[:, :4] = rows[:5, :4]
    low, high = MapSimilarity("a", gone, gone, gone).interval
    assert low < gone[:, :4].mean() < high


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "occlusion"}, "expected method 'gradcam' or 'gradcam\\+\\+', got 'occlusion'"),
        ({"target": "blub"}, "Did you mean 'blob'"),
        ({"target": ["blob", "blob"]}, "expected one target"),
        ({"seeds": 3}, "expected seeds to be an int >= 4, got 3"),
        ({"seeds": [1, 1, 2, 3]}, "at least 4 different seeds, got \\[1, 1, 2, 3\\]"),
        ({"seeds": [1, 2, 3, -1]}, "each seed"),
        ({"layer": "encoder.stages.9"}, "expected the dotted name of a module"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_what_cannot_be_checked(trained, images, options, message):
    with pytest.raises(ConfigError, match=message):
        check_explanation(trained, images[:1], **options)


def test_images_that_cannot_be_checked(trained, tmp_path, images):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"a\.png"):
        check_explanation(trained, [tmp_path / "a.png", images[0]])
    with pytest.raises(ConfigError, match="expected an image or more, got none"):
        check_explanation(trained, [])
    with pytest.raises(ConfigError, match=r"trained"):
        check_explanation(medzoo.create("xray_cnn", in_chans=1, **medzoo.describe("xray_cnn").tiny), images)
    view = float32_view(trained, CPU)
    with pytest.raises(ConfigError, match="the same everywhere: there is nothing to compare"):
        compare_with_random(
            view,
            inputs(trained, images[:2]),
            torch.zeros(2, dtype=torch.long),
            lambda *_: torch.ones(2, 4, 4),
            range(4),
        )


def test_the_layer_is_that_of_explain(trained, images):
    view = float32_view(trained, CPU)
    chosen = choose_layer(view, inputs(trained, images[:1]))
    found = check_explanation(trained, images[:1], seeds=4)
    assert (found.layer, found.size) == (chosen.name, chosen.size)
    assert found.targets == ("blob",)
