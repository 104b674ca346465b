"""timm's ResNet-18 for many findings at once: ``resnet18_multilabel``.

Source: He et al., Deep Residual Learning, https://arxiv.org/abs/1512.03385, in timm's implementation; the head is one
linear layer with a logit for each finding. Keys under ``encoder.`` are timm's and torchvision's.

Axes: b batch, c channels, h w height width, n findings.
"""

from __future__ import annotations

from medzoo.checks import rate
from medzoo.classifier import Classifier
from medzoo.contract import InputSpec, Outputs, Preprocessing
from medzoo.models.findings import CHESTXRAY14, IMAGENET_MEAN, IMAGENET_STD
from medzoo.nn.head import Head
from medzoo.registry import register

__all__ = ["resnet18_multilabel"]

# Strides of 2, rounded up, make one cell of every 32 pixels.
INPUT = InputSpec("b c h w", channels=3, size=(320, 320), minimum=32, lone_minimum=33)


@register(
    input_spec=INPUT,
    outputs=Outputs(labels=CHESTXRAY14, task="multilabel"),
    preprocessing=Preprocessing(size=INPUT.size, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    parameters=11_183_694,
    summary="ResNet-18 with a logit for each of 14 findings",
    source="https://arxiv.org/abs/1512.03385",
    citation="He et al., Deep Residual Learning for Image Recognition, CVPR 2016; Wightman, timm",
    cam_layer="encoder.layer4",
    tiny={},
    tiny_size=(32, 40),
)
def resnet18_multilabel(*, num_classes: int = 14, in_chans: int = 3, drop_path_rate: float = 0.0) -> Classifier:
    """Build ResNet-18 with a linear head, ``b c h w -> b n``; any size from 32.

    Args:
        num_classes: number of logits, or 0 for the averaged features ``b 512``.
        in_chans: channels of the image.
        drop_path_rate: stochastic depth of the last block, in [0, 1).

    Raises:
        ConfigError: a ``drop_path_rate`` outside of that.
    """
    import timm

    drop = rate("resnet18_multilabel", "drop_path_rate", drop_path_rate)

    encoder = timm.create_model("resnet18", num_classes=0, global_pool="", in_chans=in_chans, drop_path_rate=drop)
    head = Head(512, num_classes)
    return Classifier(encoder, head, input_spec=INPUT.with_channels(in_chans))
