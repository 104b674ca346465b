"""timm's DenseNet-121 in TorchXRayVision's form: ``densenet121_xray``.

Sources: Huang et al., Densely Connected Convolutional Networks, https://arxiv.org/abs/1608.06993, in timm's
implementation; Cohen et al., TorchXRayVision, https://arxiv.org/abs/2111.00595, for one channel in [-1024, 1024] and 18
findings. Keys under ``encoder.`` are timm's and torchvision's.

Axes: b batch, c channels, h w height width, n findings.
"""

from __future__ import annotations

from medzoo.classifier import Classifier
from medzoo.contract import Outputs, Preprocessing
from medzoo.input_spec import InputSpec
from medzoo.models.findings import TORCHXRAYVISION18
from medzoo.nn.head import Head
from medzoo.provenance import RADIOGRAPH, IntendedUse
from medzoo.registry import register
from medzoo.weights.record import UrlFile, Weights

__all__ = ["densenet121_xray"]

# Two strides that round up, then three that round down: up to 60 pixels the last map is a single cell.
INPUT = InputSpec("b c h w", channels=1, size=(224, 224), minimum=32, lone_minimum=61)

# [0, 1] - 1/2, over 1/2048, is TorchXRayVision's (2 x - 1) 1024. It cuts the square at the centre, then scales.
PREPROCESSING = Preprocessing(size=INPUT.size, fit="square", mean=(0.5,), std=(1 / 2048,))

# Labels that CheXpert's annotation does not have; TorchXRayVision leaves their names empty.
_NOT_IN_CHEXPERT = {
    "Infiltration", "Emphysema", "Fibrosis", "Pleural_Thickening", "Nodule", "Mass", "Hernia",
}  # fmt: skip


def _torchxrayvision(
    tag: str, file: str, digest: str, size: int | None, trained_on: str, operating_points: tuple[float, ...]
) -> Weights:
    """Return the record of one of TorchXRayVision's files; its operating points are those of the trained labels."""
    trained = tuple(len(operating_points) == 18 or name not in _NOT_IN_CHEXPERT for name in TORCHXRAYVISION18)
    points = iter(operating_points)
    return Weights(
        tag=tag,
        source=UrlFile(f"https://github.com/mlmed/torchxrayvision/releases/download/v1/{file}"),
        digest=digest,
        size=size,
        license="Apache-2.0",
        citation=CITATION,
        trained_on=trained_on,
        intended_use=IntendedUse(modality=("CR", "DX"), body_part=("CHEST",)),
        layout="torchxrayvision",
        in_chans=1,
        labels=TORCHXRAYVISION18,
        task="multilabel",
        thresholds=tuple(next(points) if known else 0.5 for known in trained),
        normalised=True,
        trained=trained,
        preprocessing=PREPROCESSING,
        default=tag == "xrv_all",
    )


CITATION = "Cohen et al., TorchXRayVision: A library of chest X-ray datasets and models, MIDL 2022"
# Digests and sizes as unrelated projects that use the files give them; operating points from torchxrayvision/models.py.
WEIGHTS = (
    _torchxrayvision(
        "xrv_all",
        "nih-pc-chex-mimic_ch-google-openi-kaggle-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        "sha256:56524913dd16a906422e8d8b66a7a5c46be1d82eb7ac012d8103776f1aa68899",
        28_382_008,
        "chest X-rays of NIH ChestX-ray14, PadChest, CheXpert, MIMIC-CXR, Google's NIH labels, Open-i and RSNA; never "
        "score it on ChestX-ray14",
        (
            0.07422872, 0.038290843, 0.09814756, 0.0098118475, 0.023601074, 0.0022490358, 0.010060724, 0.103246614,
            0.056810737, 0.026791653, 0.050318155, 0.023985857, 0.01939503, 0.042889766, 0.053369623, 0.035975814,
            0.20204692, 0.05015312,
        ),
    ),
    _torchxrayvision(
        "xrv_mimic_ch",
        "mimic_ch-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        "sha256:23b13a04459684ffa41247d068207a7657b4e1b4dec2b02431f5026bd75b1189",
        28_382_012,
        "chest X-rays of MIMIC-CXR with CheXpert's labels",
        (
            0.09121389, 0.010573786, 0.005023008, 0.003698257, 0.08001232, 0.037242252, 0.05006329, 0.019866971,
            0.03823637, 0.11303808, 0.0069147074,
        ),
    ),
    _torchxrayvision(
        "xrv_chex",
        "chex-densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt",
        "sha256:1a914ae802170187a4852e594708206c12468eeeefd66aa4e8e26141649d61a4",
        None,
        "chest X-rays of CheXpert",
        (
            0.1988969, 0.05710573, 0.0531293, 0.1435217, 0.27212676, 0.07749717, 0.19712369, 0.09932402, 0.09273402,
            0.3270967, 0.10888247,
        ),
    ),
)  # fmt: skip


@register(
    input_spec=INPUT,
    outputs=Outputs(labels=TORCHXRAYVISION18, task="multilabel"),
    preprocessing=PREPROCESSING,
    parameters=6_966_034,
    summary="DenseNet-121 of one channel with a logit for each of 18 findings",
    source="https://arxiv.org/abs/2111.00595",
    citation=CITATION,
    cam_layer="encoder.features.norm5",
    tiny={},
    tiny_size=(32, 64),
    weights=WEIGHTS,
    intended_use=RADIOGRAPH,
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
