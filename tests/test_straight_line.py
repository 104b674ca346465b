"""From a name to a model: how many functions that takes, in how many files, and that each byte is read once.

A reader follows the calls from ``create`` downwards. A *stop* is a function on the way, a *climb* a step back into a
file that came before. Not counted: the builder and what it calls, the checks of plain values (``contract``,
``input_spec``, ``provenance``, ``errors``), and methods of a line or two.
"""

from __future__ import annotations

import io
import itertools
import sys
from pathlib import Path

import pytest
from records import digest_of, publish, record_of, weight_bytes
from tensors import TINY

import medzoo
from medzoo.weights.record import LocalFile

ROOT = Path(medzoo.__file__).parent
VALUES = {"contract.py", "errors.py", "input_spec.py", "provenance.py", "version.py"}
SHORT = {"ModelSpec.options", "Weights.outputs", "Weights.title", "Classifier.num_classes"}


def stops(call):
    """Return file and name of each function that a call runs, in the order of their first calls."""
    found, in_builder = [], 0

    def follow(frame, event, _):
        nonlocal in_builder
        code = frame.f_code
        file = Path(code.co_filename)
        if not file.is_relative_to(ROOT):
            return
        place = file.relative_to(ROOT).as_posix()
        if place.startswith("models/"):
            in_builder += (event == "call") - (event == "return")
        elif event == "call" and not in_builder and not place.startswith("nn/") and place not in VALUES:
            stop = place, code.co_qualname
            if not code.co_name.startswith(("<", "__")) and code.co_qualname not in SHORT and stop not in found:
                found.append(stop)

    sys.setprofile(follow)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def climbs(found):
    files = list(dict.fromkeys(place for place, _ in found))
    places = [files.index(place) for place, _ in found]
    return sum(later < earlier for earlier, later in itertools.pairwise(places))


@pytest.fixture
def ways(tmp_path, monkeypatch):
    """Return the ways to the same weights: a tag, a path and a folder."""
    file = tmp_path / "model.safetensors"
    file.write_bytes(weight_bytes())
    publish("cnn3d_small", record_of(LocalFile(file), file.read_bytes()), monkeypatch)
    medzoo.create("cnn3d_small", **TINY).save_pretrained(tmp_path / "m")
    return {
        "tag": (file, lambda: medzoo.create("cnn3d_small", pretrained="test")),
        "path": (file, lambda: medzoo.create("cnn3d_small", pretrained=file, **TINY)),
        "folder": (tmp_path / "m" / "model.safetensors", lambda: medzoo.create(f"local-dir:{tmp_path / 'm'}")),
    }


@pytest.mark.parametrize(("way", "most"), [("tag", (40, 13, 5)), ("path", (40, 13, 5)), ("folder", (47, 15, 5))])
def test_a_name_becomes_a_model_in_one_line(ways, way, most):
    """A folder's config is read on the way, which is two files more."""
    _, call = ways[way]
    call()  # what is imported or registered once
    found = stops(call)
    assert found[0] == ("factory.py", "create")
    assert len(found) <= most[0]
    assert len({place for place, _ in found}) <= most[1]
    assert climbs(found) <= most[2]


@pytest.mark.parametrize("way", ["tag", "path", "folder"])
@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_142_each_byte_is_read_and_hashed_once(ways, way, algorithm, monkeypatch):
    file, call = ways[way]
    if way == "tag":
        data = file.read_bytes()
        publish("cnn3d_small", record_of(LocalFile(file), data, digest=digest_of(data, algorithm)), monkeypatch)
    read = []
    plain = Path.open

    class Counting(io.BufferedReader):
        def read(self, size=-1, /):
            data = super().read(size)
            read.append(len(data))
            return data

        def readinto(self, buffer, /):
            read.append(super().readinto(buffer))
            return read[-1]

    def opened(path, *arguments, **options):
        stream = plain(path, *arguments, **options)
        return Counting(stream.detach()) if path == file else stream

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read as a whole"))
    call()
    assert sum(read) == file.stat().st_size
