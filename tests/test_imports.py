"""``import medzoo`` is light: each case in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = [
    "timm", "monai", "torchvision", "pandas", "pydicom", "nibabel", "SimpleITK", "PIL",
    "lightning", "matplotlib", "sklearn",
]  # fmt: skip


def loaded_after(code: str) -> set[str]:
    """Run code and return which of the heavy libraries it loaded."""
    program = f"{code}\nimport json, sys\nprint(json.dumps([n for n in ['torch', *{HEAVY}] if n in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_loads_not_even_torch():
    assert loaded_after("import medzoo; medzoo.__version__; dir(medzoo)") == set()


def test_errors_are_reachable_without_torch():
    assert loaded_after("import medzoo; medzoo.errors.ShapeError") == set()


def test_public_layers_are_imported_when_they_are_used():
    assert loaded_after("import medzoo.nn; dir(medzoo.nn)") == set()
    assert loaded_after("from medzoo.nn import Encoder, Head") == {"torch"}


def test_listing_models_loads_torch_alone():
    assert loaded_after("import medzoo; medzoo.list_models(); medzoo.describe('densenet121_xray')") == {"torch"}


def test_own_models_run_without_timm_and_monai():
    """Neither is imported although both are there."""
    code = """
import medzoo, torch
for name in ("cnn3d_small", "cnn3d_base", "swin_encoder_mlp", "xray_cnn"):
    spec = medzoo.describe(name)
    model = medzoo.create(name, **spec.tiny).eval()
    model(torch.zeros(1, model.input_spec.channels, *spec.tiny_size))
"""
    assert loaded_after(code) == {"torch"}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["predict", "--help"], ["quickstart", "--help"]])
def test_the_command_line_answers_without_torch(arguments):
    code = f"""
import sys, medzoo.cli.main
sys.argv = ["medzoo", *{arguments}]
try:
    medzoo.cli.main.main()
except SystemExit as stop:
    assert not stop.code
"""
    assert loaded_after(code) == set()


def test_functions_are_not_hidden_by_modules_of_their_name():
    modules = "medzoo, medzoo.cli.main, medzoo.cli.quickstart, medzoo.transforms.transform, medzoo.visual.show"
    loaded_after(f"import {modules}\nassert all(map(callable, (medzoo.predict, medzoo.read, medzoo.show)))")


def test_the_stub_lists_what_there_is():
    import medzoo
    import medzoo.nn

    for package in (medzoo, medzoo.nn):
        for name in package.__all__:
            assert getattr(package, name) is not None
    assert medzoo.nn.__all__ == ["Encoder", "Head"]


def test_own_models_need_no_more_than_the_documented_few():
    """On a bare GPU machine: torch, einops, numpy, safetensors, huggingface-hub, lazy-loader."""
    absent = [*HEAVY, "click", "rich", "pooch"]
    code = f"""
import sys
sys.modules |= dict.fromkeys({absent})  # importing one of these now fails
import medzoo, torch
for name in ("cnn3d_small", "cnn3d_base", "swin_encoder_mlp", "xray_cnn"):
    model = medzoo.create(name, **medzoo.describe(name).tiny).eval()
    model(torch.zeros(1, model.input_spec.channels, *medzoo.describe(name).tiny_size))
assert len(medzoo.list_models()) == 6
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
