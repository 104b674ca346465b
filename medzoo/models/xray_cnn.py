"""A plain 2D CNN for chest X-rays: ``xray_cnn``.

It follows a ChestX-ray14 project: Conv2d 3→16→32→64→128 with 3 × 3 kernels, ReLU and MaxPool 2 after each, then
Linear 51200→1024, dropout 0.25 and Linear 1024→14, with no activation between the two, as in the source.

Axes: b batch, c channels, h w height width, n findings.
"""

from __future__ import annotations

from medzoo.classifier import Classifier
from medzoo.contract import InputSpec, Outputs, Preprocessing
from medzoo.errors import check_int, check_ints, check_rate
from medzoo.models.findings import CHESTXRAY14, IMAGENET_MEAN, IMAGENET_STD
from medzoo.nn.conv import ConvEncoder, StageTable
from medzoo.nn.head import Head
from medzoo.registry import register

__all__ = ["xray_cnn"]

STAGES = StageTable(stages=4, kernel=3, padding=1, order=("relu", "pool"), pool=2)
INPUT = InputSpec("b c h w", channels=3, size=(320, 320), minimum=16, exact=True)


@register(
    input_spec=INPUT,
    outputs=Outputs(labels=CHESTXRAY14, task="multilabel"),
    preprocessing=Preprocessing(size=INPUT.size, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    parameters=52_541_614,
    summary="four convolution stages with a flatten head, 14 findings",
    source="a ChestX-ray14 project (PyTorch)",
    citation="Wang et al., ChestX-ray8, CVPR 2017 (the data and its findings)",
    cam_layer="encoder.stages.3.relu",
    tiny={"size": 32, "widths": (4, 4, 8, 8), "hidden": 8},
    tiny_size=(32, 32),
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
    who = "xray_cnn"
    spec = INPUT.built_for(size, pool, who).with_channels(in_chans)
    encoder = ConvEncoder(in_chans, check_ints(who, "widths", widths, STAGES.stages), STAGES, dims=2)
    head = Head(
        encoder.num_features,
        num_classes,
        order=("fc", "dropout"),
        hidden=check_int(who, "hidden", hidden, 1),
        dropout=check_rate(who, "dropout", dropout),
        flatten=STAGES.map_size(spec.size) if spec.exact else (),
    )
    return Classifier(encoder, head, input_spec=spec)
