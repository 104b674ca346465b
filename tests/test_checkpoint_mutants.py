"""Damaged checkpoints give plain tensors or a medzoo error, and no class is ever looked up.

Each mutant is a valid file with a few seeded faults: bytes overwritten with random or extreme values, pieces cut,
doubled or removed. Half of the mutants of a zip archive have faults in the pickle alone, under a correct checksum, so
that they reach the reader. They are read in a separate process, which also detects a crash in C.
"""

from __future__ import annotations

import io
import json
import random
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from pickled_modules import as_upstream, torch_saved, torchvision_densenet
from safetensors.torch import save

KINDS = {
    "safetensors": (30, 10_000),
    "state-zip": (30, 2000),
    "state-legacy": (30, 2000),
    "module-zip": (30, 2000),
    "module-legacy": (30, 2000),
}
EXTREMES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
MEMORY = 2**30  # bytes above what the libraries themselves take


@pytest.mark.parametrize("kind", ["safetensors", "module-zip"])  # the slow test has all
def test_30_mutants_give_tensors_or_a_medzoo_error(tmp_path, kind):
    _run(tmp_path, kind, KINDS[kind][0])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_mutants_give_tensors_or_a_medzoo_error(tmp_path, kind):
    _run(tmp_path, kind, KINDS[kind][1])


def _run(folder: Path, kind: str, count: int) -> None:
    """Read ``count`` mutants in a separate process, and check its result."""
    command = [sys.executable, "-W", "error", __file__, kind, str(count), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-500:]}\n{done.stderr[-4000:]}"
    assert done.stderr == ""
    result = json.loads(done.stdout.splitlines()[-1])
    assert sum(result["ends"].values()) == count
    assert result["ends"].keys() <= {"tensors", "WeightsCorrupt", "UnsafeWeights", "WeightsMismatch"}
    assert result["ends"]["tensors"] < count * 3 // 4
    assert result["found"] == []
    assert result["grown"] < MEMORY


def main(kind: str, count: int, folder: Path) -> None:
    """Read the mutants of one kind; any other exception ends the process with its seed."""
    from medzoo.errors import MedzooError
    from medzoo.weights.checkpoint import read_checkpoint

    original = valid_file(kind)
    path = folder / ("mutant.safetensors" if kind == "safetensors" else "mutant.pt")
    path.write_bytes(original)
    expected, _ = read_checkpoint(path)  # loads the libraries
    found: list[str] = []
    sys.addaudithook(lambda event, args: found.append(str(args[1:])) if event == "pickle.find_class" else None)
    before = _most_memory()
    ends: Counter[str] = Counter()
    for seed in range(count):
        sys.stdout.write(f"seed {seed}\n")
        inside = kind.endswith("zip") and seed % 2 == 0
        path.write_bytes(mutant(original, random.Random(seed), inside))
        try:
            tensors, _ = read_checkpoint(path)
        except MedzooError as error:
            str(error).encode()  # it can be printed
            ends[type(error).__name__] += 1
            continue
        assert 0 < len(tensors) <= len(expected)
        for name, tensor in tensors.items():
            assert type(name) is str
            assert type(tensor) is torch.Tensor
            tensor.to(torch.complex128).sum().item()  # every value can be read
        if kind == "module-zip" and not inside:  # its checksum is verified
            assert tensors.keys() == expected.keys()
            assert all(torch.equal(tensors[name], expected[name]) for name in expected)
        ends["tensors"] += 1
    sys.stdout.write(json.dumps({"ends": ends, "found": found, "grown": _most_memory() - before}) + "\n")


def _most_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def valid_file(kind: str) -> bytes:
    """Return the file that the mutants of one kind are made from."""
    if kind.startswith("module"):
        theirs = torchvision_densenet(growth_rate=4, block_config=(2, 1), num_init_features=8)
        return torch_saved(
            as_upstream(theirs, op_threshs=torch.rand(18), best=np.float64(0.5)), zipped=kind == "module-zip"
        )
    state = {"encoder.a": torch.randn(4, 3), "encoder.n": torch.tensor(3), "head.b": torch.randn(3)}
    if kind == "safetensors":
        return save(state)
    return torch_saved({"state_dict": state, "best": np.float64(0.5), "epoch": 3}, zipped=kind == "state-zip")


def mutant(data: bytes, generator: random.Random, inside: bool) -> bytes:
    """Damage a file, or only the pickle inside an archive."""
    if not inside:
        return damaged(data, generator)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(buffer, "w") as after:
        for entry in before.namelist():
            content = before.read(entry)
            after.writestr(entry, damaged(content, generator) if entry.endswith("data.pkl") else content)
    return buffer.getvalue()


def damaged(data: bytes, generator: random.Random) -> bytes:
    """Add one to three faults, most at the start or the end, where headers and directories are."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 3)):
        size = max(len(changed), 1)
        near = generator.choice([size, min(size, 400), min(size, 60)])
        place = generator.choice([generator.randrange(near), size - 1 - generator.randrange(near)])
        fault = generator.randrange(6)
        if fault < 2:
            changed[place : place + 1] = bytes([generator.randrange(256)])
        elif fault == 2:
            width = generator.choice(["<B", "<H", "<I"])
            number = generator.choice(EXTREMES) % 2 ** (8 * struct.calcsize(width))
            changed[place : place + struct.calcsize(width)] = struct.pack(width, number)
        elif fault == 3:
            del changed[place : place + generator.randint(1, 40)]
        elif fault == 4:
            changed[place:place] = changed[place : place + generator.randint(1, 40)]
        elif generator.random() < 0.5:
            del changed[place:]
    return bytes(changed)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
