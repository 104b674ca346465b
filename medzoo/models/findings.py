"""Names and numbers that the X-ray models share."""

from __future__ import annotations

__all__ = ["CHESTXRAY14", "IMAGENET_MEAN", "IMAGENET_STD", "TORCHXRAYVISION18"]

# In the order of the ChestX-ray14 paper and of CheXNet's code; TorchXRayVision's differs.
CHESTXRAY14 = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip

# In the order of every TorchXRayVision model.
TORCHXRAYVISION18 = (
    "Atelectasis", "Consolidation", "Infiltration", "Pneumothorax", "Edema", "Emphysema", "Fibrosis",
    "Effusion", "Pneumonia", "Pleural_Thickening", "Cardiomegaly", "Nodule", "Mass", "Hernia", "Lung Lesion",
    "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum",
)  # fmt: skip

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
