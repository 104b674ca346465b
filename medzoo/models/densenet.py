"""timm's DenseNet-121 in TorchXRayVision's form: ``densenet121_xray``.

Sources: Huang et al., Densely Connected Convolutional Networks, https://arxiv.org/abs/1608.06993, in timm's
implementation; Cohen et al., TorchXRayVision, https://arxiv.org/abs/2111.00595, for one channel in [-1024, 1024] and 18
findings. Keys under ``encoder.`` are timm's and torchvision's.

Axes: b batch, c channels, h w height width, n findings.
"""

from __future__ import annotations

from medzoo.classifier import Classifier
from medzoo.contract import InputSpec, Outputs, Preprocessing
from medzoo.models.findings import TORCHXRAYVISION18
from medzoo.nn.head import Head
from medzoo.registry import register

__all__ = ["densenet121_xray"]

# Two strides that round up, then three that round down: up to 60 pixels the last map is a single cell.
INPUT = InputSpec("b c h w", channels=1, size=(224, 224), minimum=32, lone_minimum=61)


@register(
    input_spec=INPUT,
    outputs=Outputs(labels=TORCHXRAYVISION18, task="multilabel"),
    # [0, 1] - 1/2, over 1/2048, is TorchXRayVision's (2 x - 1) 1024.
    preprocessing=Preprocessing(size=INPUT.size, mean=(0.5,), std=(1 / 2048,)),
    parameters=6_966_034,
    summary="DenseNet-121 of one channel with a logit for each of 18 findings",
    source="https://arxiv.org/abs/2111.00595",
    citation="Cohen et al., TorchXRayVision: A library of chest X-ray datasets and models, MIDL 2022",
    cam_layer="encoder.features.norm5",
    tiny={},
    tiny_size=(32, 64),
)
def densenet121_xray(*, num_classes: int = 18, in_chans: int = 1) -> Classifier:
    """Build DenseNet-121 with a linear head, ``b c h w -> b n``; designed for 224 × 224, takes any size from 32.

    Args:
        num_classes: number of logits, or 0 for the averaged features ``b 1024``.
        in_chans: channels of the image.
    """
    import timm

    encoder = timm.create_model("densenet121", num_classes=0, global_pool="", in_chans=in_chans)
    head = Head(1024, num_classes)
    return Classifier(encoder, head, input_spec=INPUT.with_channels(in_chans))
