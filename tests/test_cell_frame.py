"""Where the cells of a map lie in the input, against the gradient of the cells with respect to the input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm.layers
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import medzoo
from medzoo.inference.view import float32_view
from medzoo.interpretation.cell_frame import cell_frame
from medzoo.interpretation.choose import choose_layer
from medzoo.interpretation.layer_maps import layer_shapes
from medzoo.transforms.geometry import resize_affine


def view_of(name: str) -> Any:
    """Return a model of random weights in its small form, without a head, so that it takes any size."""
    options = {key: value for key, value in medzoo.describe(name).tiny.items() if key not in ("size", "hidden")}
    return float32_view(medzoo.create(name, num_classes=0, **options).eval(), torch.device("cpu"))


def gradient_centre(view: Any, layer: str, x: Tensor, cell: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the centroid of the absolute gradient of a cell, in a random mixture of its channels."""
    maps: list[Tensor] = []
    handle = view.get_submodule(layer).register_forward_hook(lambda _, __, out: maps.append(out))
    x = x.clone().requires_grad_()
    view(x)
    handle.remove()
    values = maps[-1][(..., *cell)]
    (gradient,) = torch.autograd.grad((values * torch.randn_like(values)).sum(), x)
    weight = gradient.abs().sum((0, 1)).double().numpy()
    grid = np.meshgrid(*map(np.arange, weight.shape), indexing="ij")
    return np.array([(weight * index).sum() / weight.sum() for index in grid])


def place(frame: NDArray[np.float64], cell: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the index in the input that a frame gives for a cell."""
    return (frame @ np.array([*cell, *[0] * (3 - len(cell)), 1]))[: len(cell)]


def compare(name: str, size: tuple[int, ...], at: float, draws: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how far, in cells, the gradient of a cell is from its frame, and from borders that coincide.

    Args:
        name: of the model.
        size: of the images.
        at: where the cell is, as a share of the image.
        draws: of weights; for each, small models see 6 images and large ones, which scatter less, one.
    """
    found = []
    for seed in range(draws):
        torch.manual_seed(seed)
        view = view_of(name)
        rows = 6 if sum(p.numel() for p in view.parameters()) < 1e5 else 1
        x = torch.randn(rows, medzoo.describe(name).input_spec.channels, *size)
        layer = choose_layer(view, x[:1])
        frame, borders = cell_frame(view, layer.name, x[:1], layer.size), resize_affine(size, layer.size)
        distance = np.diag(frame)[: len(size)]
        index = np.rint((at * np.array(size) - frame[: len(size), 3]) / distance)
        cell = tuple(np.clip(index, 0, np.array(layer.size) - 1).astype(int).tolist())
        centre = gradient_centre(view, layer.name, x, cell)
        found.append([(centre - place(m, cell)) / distance for m in (frame, borders)])
    off, off_borders = np.mean(found, 0)
    return off, off_borders


@pytest.mark.parametrize("name", medzoo.list_models())
def test_a_cell_sees_what_is_around_its_centre(name: str) -> None:
    # Near the middle, as a cell near a border sees less of what is beyond it.
    tiny = medzoo.describe(name).tiny_size
    size = (8 * tiny[0],) * 2 if len(tiny) == 2 else tiny
    off, off_borders = compare(name, size, 0.45, 1)
    assert np.abs(off).max() < 0.15
    if name == "resnet18_multilabel":  # 32 i, not 32 i + 15.5
        assert (off_borders < -0.4).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", medzoo.list_models())
def test_cells_of_random_networks_see_what_is_around_their_centres(name: str) -> None:
    tiny = medzoo.describe(name).tiny_size
    size = (8 * tiny[0], 9 * tiny[0]) if len(tiny) == 2 else tuple(max(side, 32) for side in tiny)
    off, _ = compare(name, size, 0.55, 4)
    assert np.abs(off).max() < 0.1


def test_without_padding_the_first_cell_is_far_from_the_border() -> None:
    off, off_borders = compare("cnn3d_base", (62, 62, 70), 0.0, 1)
    assert np.abs(off).max() < 0.15
    assert (off_borders > 1.2).all()


# By hand, of the layer that is chosen: for each axis, the centre of the first cell and the distance of two.
FRAMES = {
    "cnn3d_base": ((128, 128, 128), 18.5, 8),
    "cnn3d_small": ((64, 64, 64), -2.5, 9),
    "densenet121_xray": ((224, 256), 14, 32),
    "resnet18_multilabel": ((320, 288), 0, 32),
    "swin_encoder_mlp": ((96, 96, 96), 3.5, 8),
    "xray_cnn": ((320, 320), 3.5, 8),
}


@pytest.mark.parametrize("name", FRAMES)
def test_the_frames_of_the_models_are_those_found_by_hand(name: str) -> None:
    size, first, distance = FRAMES[name]
    options = {key: value for key, value in medzoo.describe(name).tiny.items() if key not in ("size", "hidden")}
    # Without values: the frame depends on sizes alone.
    view = medzoo.create(name, num_classes=0, **options).eval().to("meta")
    x = torch.empty(1, medzoo.describe(name).input_spec.channels, *size, device="meta")
    layer = medzoo.describe(name).cam_layer if name != "swin_encoder_mlp" else "encoder.layers2"
    shape = layer_shapes(view, [layer], x)[layer][0]
    frame = cell_frame(view, layer, x, shape[2:])
    expected = np.eye(4)
    expected[range(len(size)), range(len(size))] = distance
    expected[: len(size), 3] = first
    np.testing.assert_array_equal(frame, expected)
    assert not view.get_submodule(layer)._forward_hooks


class Net(nn.Module):
    """A function with convolutions of equal weights, so that a cell averages what it sees."""

    def __init__(self, run: Any, *convolutions: nn.Module) -> None:
        super().__init__()
        self.run, self.convolutions, self.last = run, nn.ModuleList(convolutions), nn.Identity()
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.1)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.run(x, *self.convolutions))


def conv(*args: Any, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(2, 2, *args, bias=False, **options)


def squeezed(x: Tensor, first: nn.Module, gate: nn.Module) -> Tensor:
    """Squeeze and excitation, which scales the channels of all places alike."""
    x = first(x)
    return x * gate(x.mean((2, 3), keepdim=True)).sigmoid()


FOLLOWED = {
    "dilation": Net(lambda x, c: c(x), conv((3, 2), stride=(2, 3), padding=(0, 1), dilation=(3, 2))),
    "functional pooling": Net(lambda x, c: F.avg_pool2d(c(x), (3, 2), stride=2, padding=(1, 0)), conv(4, stride=2)),
    "pooling up": Net(lambda x, c: F.avg_pool2d(c(x).relu(), 3, 2, ceil_mode=True, count_include_pad=False), conv(2)),
    "max pooling": Net(lambda x, c: F.max_pool2d(c(x), (3, 2), (1, 2), (1, 0), dilation=(2, 1)), conv(3)),
    "padding on one side": Net(lambda x, c: c(F.pad(x, (1, 2, 0, 3), value=1.0)), conv(4, stride=3)),
    "blurred pooling": Net(lambda x, c, pool: pool(c(x)), conv(3), timm.layers.BlurPool2d(2)),
    "branches": Net(lambda x, c, d: torch.cat(c(x).chunk(2, 1)[::-1], 1) + d(x), conv(3), conv(3)),
    "batch norm": Net(lambda x, c, norm: norm(c(x)), conv(5, stride=2), nn.BatchNorm2d(2)),
}


@pytest.mark.parametrize("kind", FOLLOWED)
def test_what_is_followed(kind: str) -> None:
    net: Any = FOLLOWED[kind]
    x = torch.rand(200, 2, 36, 30)
    shape = net(x).shape[2:]
    frame = cell_frame(net, "last", x[:1], shape)
    assert not np.array_equal(frame, resize_affine((36, 30), shape))
    cell = (shape[0] // 3, shape[1] // 2)
    off = np.abs(gradient_centre(net, "last", x, cell) - place(frame, cell))
    assert off.max() < (0.5 if kind == "max pooling" else 1e-4)  # which value is the largest is left to chance


ALIKE = {
    "instance norm": Net(lambda x, c: F.instance_norm(c(x)).sigmoid(), conv(5, stride=2)),
    "group norm": Net(lambda x, c: F.group_norm(c(x), 2), conv(5, stride=2)),
    "squeezed": Net(squeezed, conv(5, stride=2), conv(1)),
    "in place": Net(lambda x, c: c(x).add_(1).mul_(2).clamp_(0).contiguous(), conv(5, stride=2)),
    "sliced": Net(lambda x, c: c(x)[:, 1:].double(), conv(5, stride=2)),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_what_leaves_each_value_in_its_place(kind: str) -> None:
    net: Any = ALIKE[kind]
    x = torch.rand(1, 2, 33, 29)
    expected = np.diag([2.0, 2.0, 1.0, 1.0])
    expected[:2, 3] = 2
    np.testing.assert_array_equal(cell_frame(net, "last", x, net(x).shape[2:]), expected)


def test_branches_that_differ_by_less_than_a_cell_are_averaged() -> None:
    """The shortcut of ResNet-D pools pairs, whose centres are half a pixel from those of the odd kernels beside it."""
    net: Any = Net(lambda x, c: c(x) + F.avg_pool2d(x, 2), conv(3, stride=2, padding=1))
    frame = cell_frame(net, "last", torch.rand(1, 2, 32, 32), (16, 16))
    np.testing.assert_array_equal(frame[:2], [[2, 0, 0, 0.25], [0, 2, 0, 0.25]])


NOT_FOLLOWED = {
    "turned": lambda x, c: c(x).rot90(2, (2, 3)),
    "flipped": lambda x, c: c(x).flip(2),
    "rolled": lambda x, c: c(x).roll(3, 2),
    "larger": lambda x, c: F.interpolate(c(x), scale_factor=2, mode="bilinear"),
    "transposed": lambda x, c: F.conv_transpose2d(x, c.weight, stride=2),
    "an unknown branch": lambda x, c: c(x) + c(x).flip(2),
    "far branches": lambda x, c: F.pad(c(x), (3, 0, 0, 0)) + F.pad(c(x), (0, 3, 0, 0)),
    "in place": lambda x, c: c(x).copy_(c(x).flip(2)),
    "to one cell": lambda x, c: F.adaptive_avg_pool2d(c(x), 5),
}


@pytest.mark.parametrize("kind", NOT_FOLLOWED)
def test_what_is_not_followed_has_the_borders_of_the_input(kind: str) -> None:
    net: Any = Net(NOT_FOLLOWED[kind], conv(3, padding=(0, 1), stride=2))
    x = torch.rand(1, 2, 32, 32)
    shape = net(x).shape[2:]
    np.testing.assert_array_equal(cell_frame(net, "last", x, shape), resize_affine((32, 32), shape))
