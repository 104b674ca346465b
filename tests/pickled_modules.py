"""Checkpoints as TorchXRayVision saved them, a pickled DenseNet, and pickles written opcode by opcode."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from types import ModuleType

import torch
import torchvision
from tensors import scatter_weights
from torch import nn

UPSTREAM = "torchxrayvision.models"


class DenseNet(nn.Module):
    """The outer module; its parts are torchvision's, under upstream's class names."""


class _DenseLayer(nn.Sequential):
    pass


class _DenseBlock(nn.Sequential):
    pass


class _Transition(nn.Sequential):
    pass


CLASSES = (DenseNet, _DenseLayer, _DenseBlock, _Transition)


@contextmanager
def installed():
    """Install a stand-in for upstream's package, as far as pickle needs it."""
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


def torchvision_densenet(outputs=18, **options):
    """Return the reference: torchvision's DenseNet-121 over one channel, or a smaller one."""
    options = {"growth_rate": 32, "block_config": (6, 12, 24, 16), "num_init_features": 64} | options
    theirs = torchvision.models.DenseNet(num_classes=outputs, **options)
    theirs.features.conv0 = nn.Conv2d(1, options["num_init_features"], 7, stride=2, padding=3, bias=False)
    scatter_weights(theirs)
    return theirs.eval()


def as_upstream(theirs, **attributes):
    """Return the same tensors as upstream's module, with its attributes."""
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


def torch_saved(content, zipped):
    """Return the bytes that torch.save writes, as a zip archive or in the legacy format."""
    buffer = io.BytesIO()
    with installed(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the legacy format warns if it finds no source code
        torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def emit(value):
    """Return the opcodes of a value in protocol 2; bytes are opcodes already."""
    match value:
        case bytes():
            return value
        case None | bool():
            return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
        case int():
            return pickle.BININT + struct.pack("<i", value)
        case str():
            return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()
        case tuple():
            return pickle.MARK + b"".join(map(emit, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(emit, value)) + pickle.APPENDS
        case dict():
            entries = b"".join(emit(key) + emit(entry) for key, entry in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + entries + pickle.SETITEMS
    raise TypeError(type(value))


def name(path):
    module, _, last = path.partition(" ")
    return pickle.GLOBAL + f"{module}\n{last}\n".encode()


def call(path, *arguments):
    return name(path) + emit(arguments) + pickle.REDUCE


def emit_module(path="torchxrayvision.models DenseNet", **state):
    """Return the opcodes of a module: an object of a class, with a state."""
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}} | state
    return name(path) + pickle.EMPTY_TUPLE + pickle.NEWOBJ + emit(state) + pickle.BUILD


def emit_tensor(numel=4, offset=0, shape=(4,), stride=(1,), key="0", kind="torch FloatStorage", metadata=()):
    """Return the opcodes of a tensor over a storage."""
    storage = emit(("storage", name(kind), key, "cpu", numel)) + pickle.BINPERSID
    hooks = call("collections OrderedDict")
    return call("torch._utils _rebuild_tensor_v2", storage, offset, shape, stride, False, hooks, *metadata)


def as_zip(root, storages=None, **entries):
    """Return a zip archive around a pickle."""
    buffer = io.BytesIO()
    pickled = pickle.PROTO + b"\x02" + emit(root) + pickle.STOP
    values = {
        f"data/{key}": value for key, value in ({"0": bytes(range(16))} if storages is None else storages).items()
    }
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry, content in (
            {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n"} | entries | values
        ).items():
            archive.writestr(f"archive/{entry}", content)
    return buffer.getvalue()


def as_legacy(root, keys=(), behind=b""):
    """Return the legacy format around a pickle."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    before = b"".join(pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, machine))
    pickled = pickle.PROTO + b"\x02" + emit(root) + pickle.STOP
    return before + pickled + pickle.dumps(list(keys), protocol=2) + behind
