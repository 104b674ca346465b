"""timm's ResNet-18 for many findings at once: ``resnet18_multilabel``.

Source: He et al., Deep Residual Learning, https://arxiv.org/abs/1512.03385, in timm's implementation; the head is one
linear layer with a logit for each finding. Keys under ``encoder.`` are timm's and torchvision's.

Axes: b batch, c channels, h w height width, n findings.
"""

from __future__ import annotations

from medzoo.classifier import Classifier
from medzoo.contract import Outputs, Preprocessing
from medzoo.errors import check_rate
from medzoo.input_spec import InputSpec
from medzoo.models.findings import CHESTXRAY14, IMAGENET_MEAN, IMAGENET_STD
from medzoo.nn.head import Head
from medzoo.provenance import RADIOGRAPH
from medzoo.registry import register
from medzoo.weights.record import HubFile, Weights

__all__ = ["resnet18_multilabel"]

# Strides of 2, rounded up, make one cell of every 32 pixels.
INPUT = InputSpec("b c h w", channels=3, size=(320, 320), minimum=32, lone_minimum=33)

# The weights saw 224 × 224; the project that this model follows trained them on at 320.
PREPROCESSING = Preprocessing(size=INPUT.size, mean=IMAGENET_MEAN, std=IMAGENET_STD)

WEIGHTS = (
    Weights(
        tag="tv_in1k",
        source=HubFile("timm/resnet18.tv_in1k", "model.safetensors", "bbd144b3e5565108aad885f145491d11bc6ce807"),
        digest="sha256:694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81",
        size=46_807_446,
        license="BSD-3-Clause",
        citation="He et al., Deep Residual Learning for Image Recognition, CVPR 2016; torchvision",
        trained_on="ImageNet-1k photographs, 224 × 224, by torchvision",
        layout="timm-resnet",
        part="encoder",
        in_chans=3,
        preprocessing=PREPROCESSING,
        metrics={"ImageNet-1k top-1 at 224": 0.69758},
        default=True,
    ),
    Weights(
        tag="a1_in1k",
        source=HubFile("timm/resnet18.a1_in1k", "model.safetensors", "491b427b45c94c7fb0e78b5474cc919aff584bbf"),
        digest="sha256:80c49dee3da4822c009c5a7fe591e9223c5a2cfcf95a4067ca4dfb5a7b89c612",
        size=46_807_446,
        license="Apache-2.0",
        citation="Wightman et al., ResNet strikes back, 2021, https://arxiv.org/abs/2110.00476",
        trained_on="ImageNet-1k photographs, 224 × 224, by timm's recipe A1",
        layout="timm-resnet",
        part="encoder",
        in_chans=3,
        preprocessing=PREPROCESSING,
        metrics={"ImageNet-1k top-1 at 224": 0.7150, "ImageNet-1k top-1 at 288": 0.7316},
    ),
)


@register(
    input_spec=INPUT,
    outputs=Outputs(labels=CHESTXRAY14, task="multilabel"),
    preprocessing=PREPROCESSING,
    parameters=11_183_694,
    summary="ResNet-18 with a logit for each of 14 findings",
    source="https://arxiv.org/abs/1512.03385",
    citation="He et al., Deep Residual Learning for Image Recognition, CVPR 2016; Wightman, timm",
    cam_layer="encoder.layer4",
    tiny={},
    tiny_size=(32, 40),
    weights=WEIGHTS,
    intended_use=RADIOGRAPH,
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

    drop = check_rate("resnet18_multilabel", "drop_path_rate", drop_path_rate)

    encoder = timm.create_model("resnet18", num_classes=0, global_pool="", in_chans=in_chans, drop_path_rate=drop)
    head = Head(512, num_classes)
    return Classifier(encoder, head, input_spec=INPUT.with_channels(in_chans))
