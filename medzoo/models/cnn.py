"""Plain CNNs, all tables of numbers over one convolution stage: ``cnn3d_small``, ``cnn3d_base`` and ``xray_cnn``.

``cnn3d_small`` follows a Lightning project that predicts EGFR mutation from chest CT: 3 × [Conv3d k2 s1 p1, ReLU,
BatchNorm, MaxPool 3], dropout 0.3 and two fully connected layers. Its source gives no widths, and does not state
what is between the two layers; 32 64 128, 128 hidden units and a ReLU are ours.

``cnn3d_base`` follows the Keras 3D classification example (Zunair et al., Uniformizing Techniques to Process CT scans
with 3D CNNs, https://arxiv.org/abs/2007.13224; https://keras.io/examples/vision/3D_image_classification/), used for the
MGMT promoter from FLAIR MR: 4 × [Conv3d k3 valid, ReLU, MaxPool 2, BatchNorm], average, Dense 512 ReLU, dropout 0.3,
Dense. Keras' BatchNorm has epsilon 1e-3 and momentum 0.99; ours has PyTorch's 1e-5 and 0.1.

``xray_cnn`` follows a ChestX-ray14 project: Conv2d 3→16→32→64→128 with 3 × 3 kernels, ReLU and MaxPool 2 after each,
then Linear 51200→1024, dropout 0.25 and Linear 1024→14, with no activation between the two, as in the source.

Axes: b batch, c channels, d h w depth height width, n classes or findings.
"""

from __future__ import annotations

from typing import Literal

from medzoo.classifier import Classifier
from medzoo.contract import Outputs, Preprocessing
from medzoo.errors import check_int, check_ints, check_rate
from medzoo.input_spec import InputSpec
from medzoo.models.findings import CHESTXRAY14, IMAGENET_MEAN, IMAGENET_STD
from medzoo.nn.conv import ConvEncoder, StageTable
from medzoo.nn.head import Head
from medzoo.provenance import RADIOGRAPH
from medzoo.registry import register

__all__ = ["cnn3d_base", "cnn3d_small", "xray_cnn"]

SMALL = StageTable(stages=3, kernel=2, padding=1, order=("relu", "norm", "pool"), pool=3)
SMALL_INPUT = InputSpec("b c d h w", channels=1, size=(64, 64, 64), minimum=14, exact=True)

BASE = StageTable(stages=4, kernel=3, padding=0, order=("relu", "pool", "norm"), pool=2)
BASE_INPUT = InputSpec("b c d h w", channels=1, size=(64, 128, 128), minimum=46, lone_minimum=62)


@register(
    input_spec=SMALL_INPUT,
    outputs=Outputs(labels=("positive",), task="binary"),
    preprocessing=Preprocessing(size=SMALL_INPUT.size, orientation="SPL", intensity="zscore", resample="triangle"),
    parameters=214_177,
    summary="three convolution stages with a flatten head",
    source="an EGFR mutation project on chest CT (Lightning)",
    citation="none published",
    cam_layer="encoder.stages.2.norm",
    tiny={"size": 16, "widths": (4, 8, 8), "hidden": 8},
    tiny_size=(16, 16, 16),
)
def cnn3d_small(
    *,
    num_classes: int = 1,
    in_chans: int = 1,
    size: int | tuple[int, ...] = 64,
    pool: str = "flatten",
    widths: tuple[int, ...] = (32, 64, 128),
    hidden: int = 128,
    dropout: float = 0.3,
) -> Classifier:
    """Build the small 3D CNN, ``b c d h w -> b n``.

    Args:
        num_classes: number of logits, or 0 for the averaged features ``b widths[-1]``.
        in_chans: channels of the volume.
        size: the input size the flatten head is built for, one number or (d, h, w).
        pool: ``"flatten"`` takes exactly ``size``; ``"avg"`` averages the last map and takes any size from 14.
        widths: channels after each stage.
        hidden: width of the first fully connected layer.
        dropout: rate before the fully connected layers.

    Raises:
        ConfigError: a ``size`` too small for the stages, or another option that cannot be.
    """
    spec = SMALL_INPUT.built_for(size, pool, "cnn3d_small").with_channels(in_chans)
    return _build("cnn3d_small", spec, SMALL, ("dropout", "fc", "relu"), num_classes, widths, hidden, dropout)


@register(
    input_spec=BASE_INPUT,
    outputs=Outputs(labels=("positive",), task="binary"),
    preprocessing=Preprocessing(size=BASE_INPUT.size, orientation="SPL", intensity="zscore", resample="triangle"),
    parameters=1_351_873,
    summary="four valid convolution stages, averaged, with a wide hidden layer",
    source="https://keras.io/examples/vision/3D_image_classification/",
    citation="Zunair et al., Uniformizing Techniques to Process CT scans with 3D CNNs, PRIME 2020",
    cam_layer="encoder.stages.3.relu",
    tiny={"widths": (4, 4, 8, 8), "hidden": 8},
    tiny_size=(46, 46, 62),
)
def cnn3d_base(
    *,
    num_classes: int = 1,
    in_chans: int = 1,
    widths: tuple[int, ...] = (64, 64, 128, 256),
    hidden: int = 512,
    dropout: float = 0.3,
) -> Classifier:
    """Build the 3D CNN of the Keras example, ``b c d h w -> b n``; any size from 46.

    Args:
        num_classes: number of logits, or 0 for the averaged features ``b widths[-1]``.
        in_chans: channels of the volume.
        widths: channels after each stage.
        hidden: width of the hidden layer.
        dropout: rate after the hidden layer.

    Raises:
        ConfigError: an option that cannot be.
    """
    spec = BASE_INPUT.with_channels(in_chans)
    return _build("cnn3d_base", spec, BASE, ("fc", "relu", "dropout"), num_classes, widths, hidden, dropout)


XRAY = StageTable(stages=4, kernel=3, padding=1, order=("relu", "pool"), pool=2)
XRAY_INPUT = InputSpec("b c h w", channels=3, size=(320, 320), minimum=16, exact=True)


@register(
    input_spec=XRAY_INPUT,
    outputs=Outputs(labels=CHESTXRAY14, task="multilabel"),
    preprocessing=Preprocessing(size=XRAY_INPUT.size, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    parameters=52_541_614,
    summary="four convolution stages with a flatten head, 14 findings",
    source="a ChestX-ray14 project (PyTorch)",
    citation="Wang et al., ChestX-ray8, CVPR 2017 (the data and its findings)",
    cam_layer="encoder.stages.3.relu",
    tiny={"size": 32, "widths": (4, 4, 8, 8), "hidden": 8},
    tiny_size=(32, 32),
    intended_use=RADIOGRAPH,
)
def xray_cnn(
    *,
    num_classes: int = 14,
    in_chans: int = 3,
    size: int | tuple[int, ...] = 320,
    pool: str = "flatten",
    widths: tuple[int, ...] = (16, 32, 64, 128),
    hidden: int = 1024,
    dropout: float = 0.25,
) -> Classifier:
    """Build the plain X-ray CNN, ``b c h w -> b n``.

    Args:
        num_classes: number of logits, or 0 for the averaged features ``b widths[-1]``.
        in_chans: channels of the image.
        size: the input size the flatten head is built for, one number or (h, w).
        pool: ``"flatten"`` takes exactly ``size``; ``"avg"`` averages the last map and takes any size from 16.
        widths: channels after each stage.
        hidden: width of the first linear layer.
        dropout: rate between the two linear layers.

    Raises:
        ConfigError: a ``size`` too small for the stages, or another option that cannot be.
    """
    spec = XRAY_INPUT.built_for(size, pool, "xray_cnn").with_channels(in_chans)
    return _build("xray_cnn", spec, XRAY, ("fc", "dropout"), num_classes, widths, hidden, dropout)


def _build(
    who: str,
    spec: InputSpec,
    table: StageTable,
    order: tuple[Literal["fc", "relu", "dropout"], ...],
    num_classes: int,
    widths: tuple[int, ...],
    hidden: int,
    dropout: float,
) -> Classifier:
    """Build the stages of a table and a head with a hidden layer; it flattens the map where ``spec`` is exact."""
    encoder = ConvEncoder(spec.channels, check_ints(who, "widths", widths, table.stages), table, dims=spec.dims)
    head = Head(
        encoder.num_features,
        num_classes,
        order=order,
        hidden=check_int(who, "hidden", hidden, 1),
        dropout=check_rate(who, "dropout", dropout),
        flatten=table.map_size(spec.size) if spec.exact else (),
    )
    return Classifier(encoder, head, input_spec=spec)
