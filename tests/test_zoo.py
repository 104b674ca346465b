"""What every registered model must do. A model is covered by being registered."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from tensors import batch, scatter_weights, tiny
from torch import nn

import medzoo

MODELS = medzoo.list_models()

pytestmark = pytest.mark.parametrize("name", MODELS)


def test_check_model_finds_no_fault(name):
    """Gradients, determinism, maps, sizes, saving and loading: what a plugin's own test demands of its model."""
    report = medzoo.check_model(name)
    assert report.parameters == medzoo.describe(name).parameters


def test_documented_facts(name):
    spec = medzoo.describe(name)
    assert len(spec.options) <= 8
    assert spec.summary
    assert spec.source
    assert spec.citation
    assert not any(key.endswith("relative_position_index") for key in tiny(name).state_dict())


def test_forward_intermediates_takes_timms_indices(name):
    model, x = tiny(name).eval(), batch(name)
    _, maps = model.forward_intermediates(x)
    for wrong in (0, -1, len(maps) + 1, [], [len(maps)]):
        with pytest.raises(medzoo.errors.ConfigError, match=rf"^{name}: expected indices of its {len(maps)} maps"):
            model.forward_intermediates(x, wrong)
    for indices, expected in [([0, -1], [maps[0], maps[-1]]), (2, maps[-2:]), ([1], [maps[1]]), ([2, 0], maps[2::-2])]:
        chosen = model.forward_intermediates(x, indices, intermediates_only=True)
        assert len(chosen) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(chosen, expected, strict=True))


def test_features_only_returns_the_chosen_maps(name):
    torch.manual_seed(1)
    model = tiny(name).eval()
    torch.manual_seed(1)
    extractor = tiny(name, features_only=True, out_indices=[0, -1]).eval()
    x = batch(name)
    first, last = extractor(x)
    assert extractor.feature_info.channels() == [first.shape[1], last.shape[1]]
    expected = model.forward_intermediates(x, [0, -1], intermediates_only=True)
    assert torch.equal(first, expected[0])
    assert torch.equal(last, expected[1])
    assert torch.equal(last, model.forward_features(x))
    last_two = tiny(name, features_only=True, out_indices=2)
    assert last_two.out_indices == [len(model.feature_info) - 2, len(model.feature_info) - 1]
    for again in (copy.deepcopy(extractor), pickle.loads(pickle.dumps(extractor))):
        assert torch.equal(again(x)[0], first)
    assert {key.partition(".")[0] for key in extractor.state_dict()} == {"encoder"}


def test_a_backbone_takes_sizes_that_its_flatten_head_would_not(name):
    model = tiny(name).eval()
    spec = model.input_spec
    larger = tuple(spec.nearest(2 * max(s, spec.minimum))[1] for s in medzoo.describe(name).tiny_size)
    x = torch.randn(1, spec.channels, *larger)
    if spec.exact:
        with pytest.raises(
            medzoo.errors.ShapeError, match=r"build it with size=\.\.\., or for any size with pool='avg'"
        ):
            model(x)
    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features)


def test_reset_classifier_renews_the_last_layer_alone(name):
    model, x = tiny(name).eval(), batch(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.reset_classifier(5)
    assert model(x).shape == (2, 5)
    assert model.num_classes == len(model.outputs.labels) == model.options["num_classes"] == 5
    assert not any(model.outputs.trained)
    for key, tensor in model.state_dict().items():
        assert key.startswith("head.classifier.") or torch.equal(tensor, before[key])


def test_reset_classifier_can_renew_or_drop_the_head(name):
    model, x = tiny(name).eval(), batch(name)
    head = {key for key in model.state_dict() if key.startswith("head.")}
    old = model.head
    model.reset_classifier(5, whole_head=True)
    assert model.head is not old
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert {key for key in model.state_dict() if key.startswith("head.")} == head
    assert not model.head.training


def test_a_frozen_encoder_stays_as_it_is(name):
    model, x = tiny(name).train(), batch(name)
    model.freeze_encoder()
    model.eval().train()
    before = copy.deepcopy(model.encoder.state_dict())
    model(x).square().sum().backward()
    assert model.head.training
    assert not model.encoder.training
    assert all(p.grad is None for p in model.encoder.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.encoder.state_dict().items())
    model.freeze_encoder(False)
    assert model.encoder.training
    assert all(p.requires_grad for p in model.parameters())


def test_param_groups_hold_every_parameter_once(name):
    model = tiny(name)
    for layer_decay in (1.0, 0.5):
        groups = model.param_groups(lr=1e-3, weight_decay=0.1, layer_decay=layer_decay)
        seen = [id(p) for group in groups for p in group["params"]]
        assert sorted(seen) == sorted(map(id, model.parameters()))
        torch.optim.AdamW(groups)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    for key, parameter in model.named_parameters():
        plain = parameter.ndim == 1 or key.endswith("bias_table")
        assert (id(parameter) in decayed) != plain, key


def test_layer_decay_shrinks_towards_the_input(name):
    model = tiny(name)
    rate = {}
    for group in model.param_groups(lr=1.0, layer_decay=0.5):
        rate |= {id(p): group["lr"] for p in group["params"]}
    rates = {key: rate[id(p)] for key, p in model.named_parameters()}
    first = next(key for key in rates if key.startswith("encoder."))
    assert rates["head.classifier.weight"] == 1.0
    assert rates[first] == 0.5 ** len(model.feature_info)
    assert len(set(rates.values())) == len(model.feature_info) + 1


def test_gradient_checkpointing_changes_no_gradient(name):
    model, x = tiny(name).train(), batch(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0

    def gradients():
        model.zero_grad()
        model(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    def kept():
        """Count the numbers that the forward pass keeps for the backward pass."""
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(x)
        return sum(sizes)

    plain, much = gradients(), kept()
    model.set_grad_checkpointing()
    assert kept() < 0.9 * much
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_meta_device_then_real_tensors(name):
    model, x = tiny(name).eval(), batch(name)
    with torch.device("meta"):
        empty = tiny(name).eval()
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(x), model(x))
    with torch.device("meta"):
        held = nn.ModuleDict({"inner": tiny(name).eval()})  # as a trainer's module holds it
    held.to_empty(device="cpu")
    held.load_state_dict({f"inner.{key}": tensor for key, tensor in model.state_dict().items()})
    assert torch.equal(held["inner"](x), model(x))


def test_a_replica_without_parameters_runs(name):
    """What nn.DataParallel makes: tensors are attributes, and parameters() is empty."""
    model, x = tiny(name).eval(), batch(name)
    replica = torch.func.functional_call(model, dict(model.named_parameters()), (x,))
    assert torch.equal(replica, model(x))
    model.encoder.parameters = lambda recurse=True: iter(())
    assert torch.equal(model(x), replica)


def test_bfloat16_is_near(name):
    model, x = tiny(name).eval(), batch(name)
    scatter_weights(model)
    expected = model(x)
    got = model.to(torch.bfloat16)(x.to(torch.bfloat16))
    assert got.dtype == torch.bfloat16
    assert (got.float() - expected).norm() <= 0.05 * expected.norm()


def test_another_number_of_channels_has_a_mean_for_each(name):
    assert len(tiny(name, in_chans=2).preprocessing.mean) in (1, 2)


def test_57_memory_layouts_and_views_give_the_same_output(name):
    model, x = tiny(name).eval(), batch(name)
    expected = model(x)
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    strided = torch.stack([x, x], -1)[..., 0]
    assert not strided.is_contiguous()
    for variant in (x.to(memory_format=layout), strided, x.clone().requires_grad_()):
        torch.testing.assert_close(model(variant), expected, rtol=1e-5, atol=1e-6)
    row = x[:1].expand_as(x)
    torch.testing.assert_close(model(row), model(row.contiguous()), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_61_compile_has_one_graph_and_the_same_output(name):
    """No graph break; the eager backend is enough to prove it."""
    torch._dynamo.reset()  # what other models compiled makes sizes dynamic here, and tracing five times as slow
    model, x = tiny(name).eval(), batch(name)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_61_a_backbone_and_its_maps_compile_and_export(name):
    torch._dynamo.reset()
    x = batch(name)
    for options in ({"num_classes": 0}, {"features_only": True, "out_indices": [0]}):
        model = tiny(name, **options).eval()
        expected = model(x)
        with torch.no_grad():
            torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("b")},))
        torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-4)


def test_61_compile_keeps_the_message(name):
    """The default mode falls back to the plain forward, whose error is ours."""
    model, x = tiny(name).eval(), batch(name)
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(medzoo.errors.ShapeError, match=f"^{name}: expected"):
        compiled(x[:, :, :-1])
    torch._dynamo.reset()


@pytest.mark.slow
def test_62_export_takes_any_batch(name):
    """The part that needs no ONNX."""
    model = tiny(name).eval()
    program = torch.export.export(model, (batch(name),), dynamic_shapes=({0: torch.export.Dim("b")},))
    for n in (1, 2, 5):
        x = batch(name, n)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-4)


def test_shape_error_says_who_expected_got_and_what_to_do(name):
    model = tiny(name)
    spec = model.input_spec
    x = batch(name)
    with pytest.raises(medzoo.errors.ShapeError, match=rf"^{name}: expected 'b {spec.channels} .*, got \(2, "):
        model(torch.cat([x, x], 1))
    with pytest.raises(medzoo.errors.ShapeError, match=rf"that is {x.ndim - 1} axes, not {x.ndim}"):
        model(x[0])
    with pytest.raises(medzoo.errors.ShapeError):
        model.forward_features(x[..., :1])
    with pytest.raises(medzoo.errors.ShapeError):
        model.forward_intermediates(x[..., :1])


def test_smallest_size_works_and_one_less_does_not(name):
    model = tiny(name, num_classes=0).eval()
    spec = model.input_spec
    assert model(torch.randn(1, spec.channels, *[spec.minimum] * spec.dims)).shape == (1, model.num_features)
    with pytest.raises(medzoo.errors.ShapeError):
        model(torch.randn(1, spec.channels, *[spec.minimum - 1] * spec.dims))


def test_59_a_lone_sample_trains_from_the_documented_size_on(name):
    """Where BatchNorm would see one value, the error is ours; from ``lone_minimum`` on it trains."""
    model = tiny(name, num_classes=0).train()
    spec = model.input_spec
    if spec.lone_minimum == 0:
        assert model(torch.randn(1, spec.channels, *[spec.minimum] * spec.dims)).isfinite().all()
        return
    small = torch.randn(1, spec.channels, *[spec.lone_minimum - 1] * spec.dims)
    with pytest.raises(medzoo.errors.InputError, match="BatchNorm would see one value of each channel"):
        model(small)
    model.input_spec = replace(spec, lone_minimum=0)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(small)
    model.input_spec = spec
    enough = torch.randn(1, spec.channels, spec.lone_minimum, *[spec.minimum] * (spec.dims - 1))
    assert model(enough).isfinite().all()
    assert model.eval()(small).isfinite().all()
