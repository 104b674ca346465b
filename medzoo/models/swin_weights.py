"""The public weights of Swin UNETR's encoder that ``swin_encoder_mlp`` takes, each trained with MONAI up to 1.4.

They fill the encoder. The arithmetic of their patch merging, ``"monai1.4"``, is part of the record: under the same keys
MONAI changed it in 1.5.
"""

from __future__ import annotations

from medzoo.contract import Preprocessing
from medzoo.weights.record import HubFile, UrlFile, Weights, ZipMember

__all__ = ["SWIN_WEIGHTS"]

_RELEASE = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1"
_SIZE = (96, 96, 96)
# Abdominal soft tissue, in HU.
_WINDOW = (-175.0, 250.0)

SWIN_WEIGHTS = (
    Weights(
        tag="btcv",
        source=HubFile("MONAI/swin_unetr_btcv_segmentation", "models/model.pt"),
        # The publisher gives no other digest, and no commit is known.
        digest="md5:50dd67a01b28a1d5487fd9ac27e682fb",
        license="Apache-2.0",
        citation="Tang et al., Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis, CVPR "
        "2022; MONAI model zoo",
        trained_on="abdominal CT of BTCV, segmentation into 14 classes",
        layout="monai-swinunetr",
        part="encoder",
        preprocessing=Preprocessing(
            size=_SIZE, orientation="RAS", spacing=(1.5, 1.5, 2.0), intensity="window", window=_WINDOW, fit="crop"
        ),
        options={"patch_merging": "monai1.4"},
        default=True,
    ),
    Weights(
        tag="brats21_fold0",
        source=ZipMember(
            url=f"{_RELEASE}/fold0_f48_ep300_4gpu_dice0_8854.zip",
            member="fold0_f48_ep300_4gpu_dice0_8854/model.pt",
            digest="sha256:47ba479743f9d5151654d1232d3e8d3aa68d7e9d68a837ef7b8c644329293d63",
            size=231_022_652,
        ),
        digest="sha256:1083e1585263a73919a5ecfee9403989ca4bfd2ec70308679667bd23b53714b4",
        size=256_368_326,
        license="not stated",
        citation="Hatamizadeh et al., Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors, 2022",
        trained_on="brain MR of BraTS 2021, fold 0, segmentation of tumours",
        layout="monai-swinunetr",
        part="encoder",
        in_chans=4,
        channels=("FLAIR", "T1 post contrast", "T1", "T2"),
        preprocessing=Preprocessing(size=(128, 128, 128), intensity="zscore_nonzero", fit="crop"),
        metrics={"BraTS 2021 fold 0 mean Dice, published": 0.8854},
        options={"patch_merging": "monai1.4"},
    ),
    Weights(
        tag="dae50k",
        source=UrlFile(f"{_RELEASE}/ssl_pretrained_weights.pth"),
        digest="sha256:c3564f40a6a051d3753a6d8fae5cc8eaf21ce8d82a9a3baf80748d15664055e8",
        license="not stated",
        citation="Valanarasu et al., Disruptive Autoencoders: Leveraging Low-level Features for 3D Medical Image "
        "Pre-training, 2023, https://arxiv.org/abs/2307.16896",
        trained_on="unlabelled scans, 50,000 by its name, by a disruptive autoencoder",
        layout="dae",
        part="encoder",
        options={"patch_merging": "monai1.4"},
    ),
    Weights(
        tag="voco_b",
        source=HubFile("Luffy503/VoCo", "VoCo_B_SSL_head.pt"),
        # As a project that uses the file gives it; no other digest and no commit are known.
        digest="md5:f80c4da2f81d700bdae3df188f2057eb",
        license="Apache-2.0",
        citation="Wu et al., Large-Scale 3D Medical Image Pre-training with Geometric Context Priors (VoCo), 2024",
        trained_on="unlabelled CT, by volume contrast",
        layout="monai-swinunetr",
        part="encoder",
        # Neither orientation nor spacing is known.
        preprocessing=Preprocessing(size=_SIZE, intensity="window", window=_WINDOW, fit="crop"),
        options={"patch_merging": "monai1.4", "use_v2": True},
    ),
)
