"""The command line: output and exit codes."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import medzoo
from medzoo.cli.main import main
from medzoo.cli.tables import ADVICE, SHOW_ADVICE, TRAIN_ADVICE
from medzoo.errors import MedzooError
from medzoo.visual.phantoms import write_ct, write_xray


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_version_and_help():
    assert run("--version").output == f"medzoo, version {medzoo.__version__}\n"
    help_text = run("--help").output
    for command in ("list", "info", "predict", "quickstart"):
        assert command in help_text
        assert run(command, "-h").exit_code == 0


def test_list_shows_each_model_once():
    result = run("list")
    assert result.exit_code == 0
    for name in medzoo.list_models():
        assert len(re.findall(rf"\b{name}\b", result.output)) == 1
    assert "cnn3d_base" not in run("list", "--dims", "2").output
    assert "xray_cnn" not in run("list", "swin*").output


@pytest.mark.parametrize("name", medzoo.list_models())
def test_info_shows_what_describe_returns(name):
    spec, text = medzoo.describe(name), run("info", name).output
    assert f"{spec.parameters:,}" in text
    assert spec.cam_layer in text
    assert spec.outputs.labels[-1] in text
    assert f"resample {spec.preprocessing.resample}" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predct"], 2, "no command 'predct'. Did you mean 'predict'?"),
        (["info", "cnn3d_smal"], 2, "UnknownModelError: no model 'cnn3d_smal'. Did you mean 'cnn3d_small'?"),
        (["predict", "xray_cnn"], 2, "Missing argument 'PATHS...'"),
        (["predict", "xray_cnn:best", "a.png"], 2, "ConfigError: xray_cnn: no weights 'best'"),
        (["predict", "xray_cnn", "a.png"], 2, "ConfigError: xray_cnn: no output was trained"),
        (["predict", "xray_cnn", "a.png", "--allow-untrained"], 5, "DataError: a.png: "),
        (["predict", "xray_cnn", "a.png", "--batch-size", "0"], 2, "Invalid value for '--batch-size'"),
        (["quickstart", "a.png"], 5, "DataError: a.png: "),
        (["quickstart", "--to", "file/out"], 2, "ConfigError: file/out: the images cannot be written (Not a directory"),
    ],
)
def test_errors_are_one_line_and_a_code(arguments, code, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    result = run(*arguments)
    assert result.exit_code == code
    assert message in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["info", "nothing"], "medzoo list "),
        (
            ["predict", "xray_cnn", "a.png"],
            "(NAME:TAG), use a model saved in Python after model.set_outputs(labels=...) (local-dir:FOLDER), or pass "
            "--allow-untrained.",
        ),
        (["predict", "xray_cnn", "a.png", "--allow-untrained", "--device", "gpu"], "Use --device cpu."),
        (["predict", "xray_cnn", "a.png", "--allow-untrained", "--points", "p.csv"], "Leave --points out."),
        (["quickstart", Path(__file__).parent], "use medzoo predict for a folder tree."),
    ],
)
def test_errors_give_advice_for_the_command_line(arguments, advice):
    message = run(*arguments).stderr
    assert advice in message
    assert "medzoo." not in message


def test_advice_for_the_command_line_is_up_to_date():
    """Every piece of advice that is translated is still in an error of the Python API."""
    texts = []
    for path in Path(medzoo.__file__).parent.rglob("*.py"):
        if path.name != "tables.py":
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    texts.append("".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
    for advice in ADVICE | SHOW_ADVICE | TRAIN_ADVICE:
        assert any(advice in text for text in texts), advice


def test_debug_shows_the_traceback():
    result = run("--debug", "info", "nothing")
    assert isinstance(result.exception, MedzooError)


def test_predict_prints_outputs_and_steps(tmp_path):
    path = write_xray(tmp_path)
    result = run("predict", "resnet18_multilabel", path, "--allow-untrained")
    assert result.exit_code == 0, result.output
    for label in medzoo.describe("resnet18_multilabel").outputs.labels:
        assert f"{label} (untrained)" in result.output
    assert "untrained outputs: these numbers mean nothing" in result.output
    assert "grey repeated to 3 channels" in " ".join(result.output.split())


def test_predict_takes_a_saved_folder(tmp_path):
    model = medzoo.create("xray_cnn", size=64, widths=(4, 4, 8, 8), hidden=8).set_outputs()
    model.save_pretrained(tmp_path / "mine")
    result = run("predict", f"local-dir:{tmp_path / 'mine'}", write_xray(tmp_path))
    assert result.exit_code == 0, result.output
    assert "untrained" not in result.output


def test_a_picture_for_a_volume_model_exits_5(tmp_path):
    result = run("predict", "swin_encoder_mlp", write_xray(tmp_path), "--allow-untrained")
    assert result.exit_code == 5
    assert "takes a 3D volume, got a 2D image" in result.output


def test_quickstart_runs_every_model(tmp_path):
    result = run("quickstart", "--to", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for name in medzoo.list_models():
        assert f"{medzoo.describe(name).parameters:,}" in result.output
        assert f"{name}: " in result.output
    assert (
        "ShapeError: swin_encoder_mlp: expected 'b 1 d h w' with d, h, w multiples of 32, got (1, 1, 60"
        in result.output
    )
    assert "every output is untrained" in result.output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"chest_xray.dcm", "chest_ct.nii.gz", "chest_ct_dicom"}


@pytest.mark.slow
def test_quickstart_with_a_file_runs_the_models_that_fit_it(tmp_path):
    result = run("quickstart", write_ct(tmp_path))
    assert result.exit_code == 0, result.output
    assert "cnn3d_base" in result.output
    assert "xray_cnn" not in result.output


def test_exit_codes_are_the_documented_ones():
    codes = {name: getattr(medzoo.errors, name).exit_code for name in medzoo.errors.__all__ if name[0].isupper()}
    assert codes == {
        "MedzooError": 1,
        "UnknownModelError": 2,
        "ConfigError": 2,
        "RegistrationError": 2,
        "WeightsUnavailable": 3,
        "WeightsCorrupt": 4,
        "WeightsMismatch": 4,
        "UnsafeWeights": 4,
        "InputError": 5,
        "ShapeError": 5,
        "DataError": 5,
        "WrongImage": 5,
        "TrainError": 6,
        "ExportError": 8,
    }


def test_errors_can_be_made_and_pickled_from_one_message():
    import pickle

    for name in (name for name in medzoo.errors.__all__ if name[0].isupper()):
        kind = getattr(medzoo.errors, name)
        error = pickle.loads(pickle.dumps(kind("one message")))
        assert type(error) is kind
        assert str(error) == "one message"
    assert issubclass(medzoo.errors.ShapeError, medzoo.errors.InputError)
    assert issubclass(medzoo.errors.UnknownModelError, LookupError)
    assert issubclass(medzoo.errors.WeightsUnavailable, OSError)


def test_readme_lists_the_models_of_the_registry():
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for name in medzoo.list_models():
        spec = medzoo.describe(name)
        shape = " × ".join(map(str, (spec.input_spec.channels, *spec.input_spec.size)))
        outputs = f"{len(spec.outputs.labels)} {spec.outputs.task}"
        assert f"| `{name}` | {spec.summary} | {shape} | {outputs} | {spec.parameters:,} |" in text


@pytest.mark.parametrize(
    "command", [["show", "frame=3/none.dcm", "--out", "x.png"], ["predict", "cnn3d_small", "points_frame/a.png"]]
)
def test_a_path_is_shown_as_it_was_given(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(*command, *(["--allow-untrained"] if command[0] == "predict" else []))
    assert result.exit_code != 0
    assert next(part for part in command if "/" in part) in result.output


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize(("sink", "code"), [("/dev/full", 7), (None, 0)])
def test_144_an_output_that_is_full_or_closed(sink, code):
    command = f"exec {sys.executable} -m medzoo.cli.main list {'>' + sink if sink else '>&-'}"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    assert ("the output cannot be written (No space left on device)" in done.stderr) == bool(sink)
    assert "Traceback" not in done.stderr
