"""The Swin encoder against MONAI's, and its parts against plain loops."""

from __future__ import annotations

import itertools

import pytest
import torch
from monai.networks.nets.swin_unetr import compute_mask
from monai_swin import reference
from tensors import scatter_weights

from medzoo.errors import ConfigError
from medzoo.models.swin import DropPath, SwinEncoder, swin_encoder_mlp
from medzoo.nn.patch_merging import OCTANTS, PatchMerging
from medzoo.nn.swin_block import WindowAttention, WindowGrid, relative_position_index

# 32³ has maps smaller than the window at three axes from the first merging on (16, 8, 4, 2); 64 has 32, 16, 8, 4.
SHAPES = [
    (1, 32, 32, 32),
    (2, 32, 32, 32),
    (1, 32, 64, 96),  # one axis below the window at 1/8, non-cubic
    (1, 64, 32, 32),  # two axes below it
]


def outputs_and_gradients(model, x, maps):
    """Return every map and the gradient of a fixed mixture of them."""
    outs = maps(model, x)
    loss = sum((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum() / out.numel() ** 0.5 for out in outs)
    loss.backward()
    return [out.detach() for out in outs], {name: p.grad for name, p in model.named_parameters()}


def assert_parity(shape, *, patch_merging, use_v2=False, feature_size=12, in_chans=1):
    encoder = SwinEncoder(in_chans, feature_size=feature_size, patch_merging=patch_merging, use_v2=use_v2)
    scatter_weights(encoder)
    monai = reference(encoder, patch_merging=patch_merging, feature_size=feature_size, in_chans=in_chans)
    batch, *size = shape
    x = torch.randn(batch, in_chans, *size)
    ours, our_grads = outputs_and_gradients(
        encoder, x, lambda m, x: m.forward_intermediates(x, range(5), intermediates_only=True)
    )
    theirs, their_grads = outputs_and_gradients(monai, x, lambda m, x: m(x, normalize=True))
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 2e-5, f"map {i}"
    assert our_grads.keys() == their_grads.keys()
    for name, grad in our_grads.items():
        assert (grad - their_grads[name]).norm() <= 1e-5 * their_grads[name].norm(), name
    with torch.inference_mode():
        torch.testing.assert_close(encoder(x), theirs[-1], rtol=0, atol=2e-5)


# By default a shape that is not square, once: it takes as long as the rest.
@pytest.mark.parametrize(
    ("shape", "patch_merging"),
    [
        pytest.param(shape, octants, id=f"{shape}-{octants}",
                     marks=[pytest.mark.slow] if shape != SHAPES[0] and (shape, octants) != (SHAPES[3], "monai1.5")
                     else [])
        for shape in SHAPES for octants in OCTANTS
    ],
)  # fmt: skip
def test_maps_and_gradients_are_monais(shape, patch_merging):
    assert_parity(shape, patch_merging=patch_merging)


@pytest.mark.parametrize(
    "patch_merging", [pytest.param(name, marks=pytest.mark.slow if i else ()) for i, name in enumerate(OCTANTS)]
)
def test_residual_convolutions_of_v2_are_monais(patch_merging):
    assert_parity((2, 64, 32, 32), patch_merging=patch_merging, use_v2=True)


def test_four_channels_are_monais():
    assert_parity((1, 32, 32, 64), patch_merging="monai1.4", in_chans=4)


@pytest.mark.slow
@pytest.mark.parametrize("patch_merging", OCTANTS)
def test_full_width_at_96_is_monais(patch_merging):
    assert_parity((1, 96, 96, 96), patch_merging=patch_merging, feature_size=48)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 64, 64, 64), (1, 64, 160, 32), (2, 96, 32, 64)], ids=str)
def test_full_width_at_other_shapes_is_monais(shape):
    assert_parity(shape, patch_merging="monai1.4", feature_size=48)


@pytest.mark.slow
@pytest.mark.parametrize("patch_merging", OCTANTS)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 64, 64, 64),
        (3, 32, 32, 32),
        (1, 32, 32, 64),
        (2, 32, 64, 64),
        (1, 96, 32, 64),
        (1, 128, 32, 32),
        (1, 32, 160, 64),
        (2, 96, 64, 32),
        (1, 224, 32, 32),  # 112, 56, 28, 14: complete windows along one axis
    ],
    ids=str,
)
def test_maps_and_gradients_at_more_shapes_are_monais(shape, patch_merging):
    assert_parity(shape, patch_merging=patch_merging)


def test_parameters_are_monais_own_number():
    assert sum(p.numel() for p in SwinEncoder(1, feature_size=48).parameters()) == 8_062_002
    assert sum(p.numel() for p in SwinEncoder(4, feature_size=48).parameters()) == 8_063_154
    assert sum(p.numel() for p in SwinEncoder(1, feature_size=48, use_v2=True).parameters()) == 18_637_362


def test_linear_layers_start_as_the_papers():
    for name, parameter in SwinEncoder(feature_size=48).named_parameters():
        if name.endswith(("qkv.weight", "linear1.weight", "reduction.weight", "bias_table")):
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.05), name
            assert parameter.abs().max() <= 2.0
        if name.endswith(("qkv.bias", "linear1.bias")):
            assert not parameter.any(), name


def test_the_three_mergings_differ():
    x = torch.randn(1, 4, 4, 4, 3)
    results = []
    for order in OCTANTS:
        torch.manual_seed(0)
        results.append(PatchMerging(3, order)(x))
    for a, b in itertools.combinations(results, 2):
        assert (a - b).abs().max() > 1e-3


@pytest.mark.parametrize("order", ["monai1.5", "v2"])
def test_each_octant_is_read_once(order):
    assert sorted(OCTANTS[order].split()) == [f"{i:03b}" for i in range(8)]


def test_old_merging_reads_two_octants_twice():
    read = OCTANTS["monai1.4"].split()
    assert sorted({o for o in read if read.count(o) == 2}) == ["001", "010"]
    assert {f"{i:03b}" for i in range(8)} - set(read) == {"011", "110"}


@pytest.mark.parametrize("size", [(16, 16, 16), (8, 14, 20), (16, 4, 7), (9, 5, 3)], ids=str)
@pytest.mark.parametrize("shifted", [False, True])
def test_splitting_and_joining_windows_gives_the_map_back(size, shifted):
    grid = WindowGrid.of(size, (7, 7, 7), shifted)
    x = torch.randn(2, *size, 3)
    assert torch.equal(grid.join(grid.split(x)), x)


@pytest.mark.parametrize("size", [(16, 16, 16), (8, 14, 20), (16, 4, 7)], ids=str)
def test_mask_is_monais(size):
    grid = WindowGrid.of(size, (7, 7, 7), shifted=True)
    theirs = compute_mask(grid.padded, grid.window, grid.shift, torch.device("cpu"))
    assert torch.equal(grid.mask(torch.device("cpu")), theirs)


def test_position_index_counts_offsets_in_c_order():
    index = relative_position_index((2, 3, 4))
    places = list(itertools.product(range(2), range(3), range(4)))
    for q, k in itertools.product(range(len(places)), repeat=2):
        d, h, w = (a - b for a, b in zip(places[q], places[k], strict=True))
        assert index[q, k] == ((d + 1) * 5 + h + 2) * 7 + w + 3


def test_attention_is_a_plain_softmax_loop():
    attention = WindowAttention(6, 3, (2, 2, 2))
    scatter_weights(attention)
    windows, mask = torch.randn(4, 8, 6), torch.randn(2, 8, 8)
    q, k, v = attention.qkv(windows).chunk(3, -1)
    out = torch.empty(4, 8, 6)
    for window, head in itertools.product(range(4), range(3)):
        part = slice(2 * head, 2 * head + 2)
        bias = attention.relative_position_bias_table[attention.relative_position_index, head]
        logits = q[window, :, part] @ k[window, :, part].T / 2**0.5 + bias + mask[window % 2]
        out[window, :, part] = logits.softmax(-1) @ v[window, :, part]
    torch.testing.assert_close(attention(windows, mask), attention.proj(out), rtol=1e-5, atol=1e-6)


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    drop = DropPath(0.25).train()
    out = drop(torch.ones(4000, 2, 3))
    kept = out[:, 0, 0] != 0
    assert torch.equal(out[kept], torch.full_like(out[kept], 1 / 0.75))
    assert abs(kept.float().mean() - 0.75) < 0.03
    assert torch.equal(drop.eval()(torch.ones(2, 2)), torch.ones(2, 2))


def test_drop_path_grows_to_the_last_block():
    rates = [m.rate for m in SwinEncoder(feature_size=12, drop_path_rate=0.7).modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_size": 13}, "expected feature_size 12, 24, 48, 96 or 192, got 13"),
        ({"patch_merging": "monai1.3"}, "got 'monai1.3'.*Did you mean 'monai1.[45]'"),
        ({"drop_path_rate": 1.0}, r"expected drop_path_rate to be in \[0, 1\), got 1.0"),
    ],
)
def test_an_option_that_cannot_be_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        swin_encoder_mlp(**options)
