"""The ways from files to logits that are compared: medzoo's, and those that users of MONAI and TorchXRayVision write.

Each way gets the same files and the same weights. ``python -m benchmarks.pipelines KIND WAY`` builds one, reads lines
of JSON from stdin, each a list of studies, and answers each with a line: the logits of every study, in order. The
process stays, so that ways can take turns without sharing memory.

Axes: n studies, c channels, d h w depth height width, l logits.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

import medzoo
from benchmarks.peers import Absent, eager

Way = Callable[[Sequence[str]], list[list[float]]]
MODELS = {"ct": "cnn3d_base", "xray": "densenet121_xray"}
MEDZOO, REFERENCE = "medzoo", "medzoo, reference filter"
MONAI, XRV = "MONAI", "TorchXRayVision"
# How many processes of a DataLoader read for the peers.
WORKERS = {"": 0, ", 2 workers": 2}
WAYS = {
    "ct": (MEDZOO, REFERENCE, *(MONAI + suffix for suffix in WORKERS)),
    "xray": (MEDZOO, *(XRV + suffix for suffix in WORKERS)),
}


def make_model(kind: str) -> Any:
    """Return the model of a kind in eval mode, with the same random weights in every process."""
    torch.manual_seed(0)
    model = medzoo.create(MODELS[kind])
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):  # not those of a new model, which hide a fault
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def make_way(kind: str, name: str) -> Way:
    """Return a function from the paths of studies to their logits, ``n l``.

    Raises:
        Absent: the peer is not installed.
    """
    model = make_model(kind)
    if name in (MEDZOO, REFERENCE):
        return _medzoo(model, reference=name == REFERENCE)
    peer, _, _ = name.partition(",")
    workers = WORKERS[name.removeprefix(peer)]
    dataset, network = (_monai if peer == MONAI else _torchxrayvision)(model)

    def run(paths: Sequence[str]) -> list[list[float]]:
        loader = torch.utils.data.DataLoader(dataset(paths), batch_size=1, num_workers=workers)
        with torch.inference_mode():
            return [row for x in loader for row in network(x).tolist()]

    return run


def _medzoo(model: Any, *, reference: bool) -> Way:
    if reference:
        model.preprocessing = replace(model.preprocessing, resample="reference")

    def run(paths: Sequence[str]) -> list[list[float]]:
        found = medzoo.predict(model, list(paths), allow_untrained=True)
        for prediction in found:
            if prediction.error:
                raise RuntimeError(prediction.error)
        return [list(prediction.logits.values()) for prediction in found]

    return run


def _monai(model: Any) -> tuple[Callable[[Sequence[str]], Any], torch.nn.Module]:
    """Return MONAI's reading and preprocessing of a CT series, in the order that medzoo's documents it."""
    from monai.data import Dataset
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, NormalizeIntensity, Orientation, Resize

    how = model.preprocessing
    steps = Compose([
        LoadImage(reader="PydicomReader", image_only=True),
        EnsureChannelFirst(),
        Orientation(axcodes=how.orientation, labels=None),
        NormalizeIntensity(),
        Resize(how.size, mode="trilinear", anti_aliasing=True),
    ])  # fmt: skip
    network = eager(model)
    return lambda paths: Dataset(list(paths), lambda path: steps(path).as_tensor().float()), network


def _torchxrayvision(model: Any) -> tuple[Callable[[Sequence[str]], Any], torch.nn.Module]:
    """Return TorchXRayVision's reading, crop, resizing and DenseNet, with medzoo's tensors."""
    try:
        import torchvision
        import torchxrayvision as xrv
    except ImportError as error:
        raise Absent(f"TorchXRayVision is not installed ({error})") from error
    network = xrv.models.DenseNet(num_classes=model.num_classes)
    tensors = {name.removeprefix("encoder.").removeprefix("head."): x for name, x in model.state_dict().items()}
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    if missing or unexpected:
        raise Absent(f"its tensors are not medzoo's: {[*missing, *unexpected][:3]}")
    crop = torchvision.transforms.Compose([xrv.datasets.XRayCenterCrop(), xrv.datasets.XRayResizer(224)])

    class Files(torch.utils.data.Dataset[Any]):
        def __init__(self, paths: Sequence[str]) -> None:
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> Any:
            return crop(xrv.utils.read_xray_dcm(self.paths[index])[None])

    return Files, network.eval()


def main() -> None:
    """Answer until stdin ends."""
    kind, name = sys.argv[1:]
    warnings.simplefilter("ignore")  # the peers' own
    try:
        run = make_way(kind, name)
    except Absent as reason:
        sys.stdout.write(json.dumps({"absent": str(reason)}) + "\n")
        return
    sys.stdout.write(json.dumps({"ready": True}) + "\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
