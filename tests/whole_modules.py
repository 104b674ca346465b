"""Checkpoints as TorchXRayVision saved them: a pickle of a whole DenseNet, whose classes are not installed here."""

from __future__ import annotations

import io
import sys
import warnings
from collections import OrderedDict
from contextlib import contextmanager
from types import ModuleType

import torch
import torchvision
from tensors import scatter_weights
from torch import nn

UPSTREAM = "torchxrayvision.models"


class DenseNet(nn.Module):
    """The outer module; what it holds is torchvision's, under upstream's class names."""


class _DenseLayer(nn.Sequential):
    pass


class _DenseBlock(nn.Sequential):
    pass


class _Transition(nn.Sequential):
    pass


CLASSES = (DenseNet, _DenseLayer, _DenseBlock, _Transition)


@contextmanager
def installed():
    """Upstream's package as far as pickle needs it, for as long as something is saved."""
    package, models = ModuleType("torchxrayvision"), ModuleType(UPSTREAM)
    own = [(cls, cls.__module__) for cls in CLASSES]
    for cls in CLASSES:
        cls.__module__ = UPSTREAM
        setattr(models, cls.__name__, cls)
    package.models = models
    sys.modules |= {"torchxrayvision": package, UPSTREAM: models}
    try:
        yield
    finally:
        del sys.modules["torchxrayvision"], sys.modules[UPSTREAM]
        for cls, module in own:
            cls.__module__ = module


def torchvisions(outputs=18, **options):
    """The oracle: torchvision's DenseNet-121 over one channel, or a smaller one."""
    options = {"growth_rate": 32, "block_config": (6, 12, 24, 16), "num_init_features": 64} | options
    theirs = torchvision.models.DenseNet(num_classes=outputs, **options)
    theirs.features.conv0 = nn.Conv2d(1, options["num_init_features"], 7, stride=2, padding=3, bias=False)
    scatter_weights(theirs)
    return theirs.eval()


def upstreams(theirs, **attributes):
    """The same tensors as upstream's module, with its attributes."""
    names = {"_DenseLayer": _DenseLayer, "_DenseBlock": _DenseBlock, "_Transition": _Transition}

    def renamed(module):
        cls = names.get(type(module).__name__)
        children = OrderedDict((name, renamed(child)) for name, child in module.named_children())
        if cls is None and not isinstance(module, nn.Sequential):
            return module
        made = (cls or nn.Sequential)(children)
        if cls is _DenseLayer:
            made.drop_rate = 0
        return made

    model = DenseNet()
    model.features = renamed(theirs.features)
    model.classifier = theirs.classifier
    for name, value in ({"op_threshs": None, "n": 18, "apply_sigmoid": False} | attributes).items():
        setattr(model, name, value)
    return model.eval()


def saved(content, zipped):
    """The bytes that torch.save writes, in either format."""
    buffer = io.BytesIO()
    with installed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older format warns where it finds no source
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()
