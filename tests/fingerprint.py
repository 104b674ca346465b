"""Fingerprint everything a refactoring must not change, and compare two of them.

For every registered model and its tiny forms: state-dict keys and initial values, output bits of eval (plain, fast,
optimized), gradients, feature maps, ``config.json``, load reports and preprocessed tensors, all on a CPU in float32.
Run it on the commit before and on the commit after, on one machine with the same libraries:

    python tests/fingerprint.py write before.json --folders saved/
    python tests/fingerprint.py write after.json --saved-before saved/
    python tests/fingerprint.py compare before.json after.json

``--saved-before`` also loads the folders that the other commit saved.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import hashlib
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import medzoo

FORMS: dict[str, list[dict[str, Any]]] = {
    "swin_encoder_mlp": [
        {"use_v2": True},
        {"patch_merging": "monai1.4"},
        {"patch_merging": "v2"},
        {"drop_path_rate": 0.3},
    ],
    "cnn3d_small": [{"pool": "avg"}],
    "xray_cnn": [{"pool": "avg"}],
}
SHARED: list[dict[str, Any]] = [{}, {"num_classes": 0}, {"in_chans": 2}, {"num_classes": 3}]


def digest(value: Any) -> str:
    """Return a digest of the bits of tensors, in order."""
    tensors = [value] if isinstance(value, Tensor) else list(value)
    sha = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().contiguous()
        sha.update(repr((tuple(plain.shape), plain.dtype)).encode())
        sha.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return sha.hexdigest()[:32]


@contextlib.contextmanager
def plain_paths() -> Any:
    """Switch the fast paths off, by whichever name this commit has for it."""
    try:
        switch: Any = medzoo.set_fast_paths(False)
    except AttributeError:
        from medzoo.nn.fast_path import plain_path

        switch = plain_path()
    with switch:
        yield


def image(model: Any, size: tuple[int, ...], batch: int, seed: int = 1) -> Tensor:
    """Return a fixed input of a model."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, model.input_spec.channels, *size, generator=generator)


def report(model: Any) -> Any:
    """Return the fields of a load report but for its text and its path."""
    if model.load_report is None:
        return None
    fields = dataclasses.asdict(model.load_report)
    return {key: value for key, value in fields.items() if key not in ("notes", "source")}


def gradients(model: Any, x: Tensor) -> str:
    """Return a digest of the gradients of a training step."""
    model.train()
    torch.manual_seed(2)
    torch.use_deterministic_algorithms(True)  # else PyTorch adds up the gradient of a bias table in any order
    out = model(x)
    (out * torch.linspace(0.5, 1.5, out.numel()).view_as(out)).sum().backward()
    torch.use_deterministic_algorithms(False)
    found = digest([p.grad for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    model.eval()
    return found


def fingerprint(name: str, options: dict[str, Any], size: tuple[int, ...], batch: int, folder: Path) -> dict[str, Any]:
    """Return all that is compared of one form of a model."""
    torch.manual_seed(0)
    model = medzoo.create(name, **options).eval()
    for buffer in model.buffers():  # so that a BatchNorm does something
        if buffer.is_floating_point():
            buffer.add_(torch.linspace(0.0, 0.3, buffer.numel()).view_as(buffer))
    x = image(model, size, batch)
    state = model.state_dict()
    found: dict[str, Any] = {"keys": list(state), "values": digest(state.values())}
    with torch.inference_mode():
        found["fast"] = digest(model(x))
        found["optimized"] = digest(medzoo.optimize(model)(x))
        found["bfloat16"] = digest(medzoo.optimize(copy.deepcopy(model).bfloat16())(x.bfloat16()))
        with plain_paths():
            found["plain"] = digest(model(x))
    if batch > 1:
        found["gradients"] = gradients(model, x)
        with plain_paths():
            found["gradients, plain"] = gradients(model, x)
        with torch.no_grad():
            found["maps"] = digest(model.forward_intermediates(x, intermediates_only=True))
    if model.num_classes:
        model.set_outputs(labels=[f"finding {i}" for i in range(model.num_classes)])
        model.save_pretrained(folder, license="Apache-2.0", trained_on="nothing")
        found["config"] = json.loads((folder / "config.json").read_text())
        back = medzoo.create(f"local-dir:{folder}")
        found["load report"] = report(back)
        with torch.inference_mode():
            found["loaded"] = digest(back.eval()(x))
        other = medzoo.create(name, pretrained=str(folder / "model.safetensors"), **{**options, "num_classes": 7})
        found["load report, new classifier"] = report(other)
    return found


def foreign() -> dict[str, Any]:
    """Return the load reports of other projects' layouts."""
    import timm

    found = {}
    torch.manual_seed(0)
    swin = medzoo.create("swin_encoder_mlp", feature_size=12)
    back = {f"module.{key}": value for key, value in medzoo.to_monai(swin).items()}
    found["monai"] = dataclasses.asdict(medzoo.load_state(swin, back))
    resnet = medzoo.create("resnet18_multilabel")
    found["timm"] = dataclasses.asdict(medzoo.load_state(resnet, timm.create_model("resnet18").state_dict()))
    for fields in found.values():
        fields.pop("notes")
    return found


def preprocessed(folder: Path) -> dict[str, Any]:
    """Return digests of what files become for each model."""
    try:
        from medzoo.visual.phantoms import write_ct, write_ct_series, write_xray
    except ImportError:
        from medzoo.drawings import write_ct, write_ct_series, write_xray  # the name of earlier commits
    xray, volumes = write_xray(folder), [write_ct(folder), write_ct_series(folder)]
    found = {}
    for name in medzoo.list_models():
        model = medzoo.create(name)
        for path in volumes if model.input_spec.dims == 3 else [xray]:
            read = medzoo.read(path)
            key = f"{name} {path.name}"
            found[key] = {
                "array": hashlib.sha256(np.ascontiguousarray(read.array)).hexdigest()[:32],
                "tensor": digest(medzoo.transform(model)(path)),
            }
    torch.manual_seed(0)
    model = medzoo.create("cnn3d_small", size=32)
    model.set_outputs(labels=["nodule"])
    for path in volumes:
        found[f"logits {path.name}"] = dict(medzoo.predict(model, path).logits)
    return found


def write(out: Path, folders: Path, saved_before: Path | None) -> None:
    """Write the fingerprint of this commit."""
    torch.set_num_threads(2)
    found: dict[str, Any] = {}
    for name in medzoo.list_models():
        spec = medzoo.describe(name)
        for options in SHARED + FORMS.get(name, []):
            tiny = {**spec.tiny, **options}
            key = f"{name} tiny {options}"
            found[key] = fingerprint(name, tiny, spec.tiny_size, 2, folders / f"{len(found):03d}")
        found[f"{name} default"] = fingerprint(name, {}, spec.input_spec.size, 1, folders / f"{len(found):03d}")
        print(name, file=sys.stderr)
    found["foreign layouts"] = foreign()
    with tempfile.TemporaryDirectory() as folder:
        found["preprocessing"] = preprocessed(Path(folder))
    if saved_before is not None:
        for old in sorted(saved_before.iterdir()):
            model = medzoo.create(f"local-dir:{old}").eval()
            key = list(found)[int(old.name)]
            size = model.input_spec.size if key.endswith("default") else medzoo.describe(model.name).tiny_size
            with torch.inference_mode():
                again = digest(model(image(model, size, 1 if key.endswith("default") else 2)))
            if again != found[key]["loaded"] or report(model) != found[key]["load report"]:
                raise SystemExit(f"{old}: saved before, it no longer loads as the same model ({key})")
        print(f"{len(list(saved_before.iterdir()))} folders saved before load as the same models", file=sys.stderr)
    out.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")


def compare(one: Path, two: Path) -> int:
    """Print what differs between two fingerprints; return how much does."""
    before, after = json.loads(one.read_text()), json.loads(two.read_text())
    wrong = [key for key in sorted({*before, *after}) if key not in before or key not in after]
    count = 0
    for key in before.keys() & after.keys():
        for field in sorted({*before[key], *after[key]}):
            count += 1
            if before[key].get(field) != after[key].get(field):
                wrong.append(f"{key}: {field}: {before[key].get(field)} -> {after[key].get(field)}")
    print("\n".join(wrong) or f"equal: {count} facts of {len(before)} forms")
    return len(wrong)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "compare"])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--folders", type=Path, help="where to save every model")
    parser.add_argument("--saved-before", type=Path, help="folders that another commit saved")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.what == "compare":
        raise SystemExit(compare(*given.files) > 0)
    with tempfile.TemporaryDirectory() as folder:
        write(given.files[0], given.folders or Path(folder), given.saved_before)


if __name__ == "__main__":
    main()
