"""The models, one file a family; importing this package registers them all."""

from medzoo.models.cnn import cnn3d_base, cnn3d_small, xray_cnn
from medzoo.models.densenet import densenet121_xray
from medzoo.models.resnet import resnet18_multilabel
from medzoo.models.swin import swin_encoder_mlp

__all__ = [
    "cnn3d_base",
    "cnn3d_small",
    "densenet121_xray",
    "resnet18_multilabel",
    "swin_encoder_mlp",
    "xray_cnn",
]
