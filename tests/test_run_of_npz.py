"""A run of an NPZ file reads its images again from that file: evaluated, resumed, and refused when it has changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from published_2d import write_medmnist
from test_train import Stop, StopAt

import medzoo
from medzoo.cli.main import main
from medzoo.data.table_npz import read_images, read_npz
from medzoo.errors import DataError
from medzoo.evaluation.run_record import RunRecord

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*does not have many workers", "ignore:.*log_")
HOW = {
    "model": "xray_cnn", "model.options": {"widths": (4, 4, 8, 8), "hidden": 8}, "size": 32, "epochs": 2, "batch": 8,
    "device": "cpu", "threads": 1, "cache": "off", "checkpoint_steps": 1, "model.pretrained": False,
}  # fmt: skip
"""What makes a training quick."""
ADRENAL = {
    "model": "cnn3d_small", "model.options": {"widths": (4, 4, 8), "hidden": 8}, "size": 16,
}  # fmt: skip


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the folder of a run and the file that it is of, whose path is given relative to the working folder."""
    folder = tmp_path_factory.mktemp("npz")
    path = write_medmnist(folder / "pneumoniamnist.npz", n=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        medzoo.train("medmnist", "pneumoniamnist.npz", to=folder / "run", **HOW)
    return folder / "run", path


def test_images_are_read_by_their_ids(tmp_path):
    path = write_medmnist(tmp_path / "breastmnist.npz", n=9)
    found = read_npz(path)
    assert np.array_equal(read_images(path, found.ids), found.images)
    rows = [14, 0, 10]
    assert np.array_equal(read_images(path, [found.ids[row] for row in rows]), found.images[rows])
    with pytest.raises(DataError, match=r"1 are absent: breastmnist.npz:train:9\. Restore the file"):
        read_images(path, [found.ids[0], "breastmnist.npz:train:9"])


def test_a_table_knows_its_file(tmp_path, monkeypatch):
    path = write_medmnist(tmp_path / "breastmnist.npz", n=9)
    monkeypatch.chdir(tmp_path)
    for table in (
        medzoo.Table.from_npz("breastmnist.npz"),
        medzoo.Table.from_source("medmnist", "breastmnist.npz"),
        medzoo.Table.from_source("medmnist", "."),
    ):
        assert table.archive == str(path)
        assert table.select([0, 1]).archive == str(path)
    assert medzoo.Table.from_arrays(np.zeros((4, 8, 8)), [0, 1, 0, 1]).archive is None


@pytest.mark.parametrize("part", ["test", "valid"])
def test_a_run_is_evaluated_without_its_data(trained, tmp_path, part):
    folder, path = trained
    shown = run("evaluate", folder, "--part", part, "--resamples", 100, "--to", tmp_path / "own")
    assert "pneumonia" in shown
    run("evaluate", folder, "--data", path, "--part", part, "--resamples", 100, "--to", tmp_path / "given")
    own, given = ((tmp_path / name / "scores.csv").read_text() for name in ("own", "given"))
    assert own == given
    assert len(own.splitlines()) == 1 + 8


def test_the_table_of_a_run_has_the_images(trained):
    folder, path = trained
    table, found = RunRecord(folder).read_table(), read_npz(path)
    assert np.array_equal(table.arrays, found.images)
    assert table.ids.tolist() == found.ids
    assert json.loads((folder / "run.json").read_text())["archive"] == str(path)


@pytest.mark.slow
def test_a_stopped_run_continues_to_the_same_weights(trained, tmp_path):
    folder, path = trained
    with pytest.raises(Stop):
        medzoo.train("medmnist", path, to=tmp_path / "a", callbacks=[StopAt(3)], **HOW)
    run("train", "--resume", tmp_path / "a")
    want = medzoo.create(f"local-dir:{folder / 'model'}").state_dict()
    found = medzoo.create(f"local-dir:{tmp_path / 'a' / 'model'}").state_dict()
    assert want.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in want.items())


def test_some_rows_of_a_file_and_a_file_that_changed(tmp_path):
    path = write_medmnist(tmp_path / "mine.npz", (16, 16, 16), n=24)
    table = medzoo.Table.from_npz(path).select(np.arange(40)[::-1][:36])
    with pytest.raises(Stop):
        medzoo.train("adrenalmnist3d", table, to=tmp_path / "a", callbacks=[StopAt(2)], **{**HOW, **ADRENAL})
    assert np.array_equal(RunRecord(tmp_path / "a").read_table().arrays, table.arrays)
    with np.load(path) as file:
        arrays = dict(file)
    arrays["train_images"][9, 3, 3, 3] ^= 255
    np.savez_compressed(path, **arrays)
    assert "pixels are others than when the run began" in run("train", "--resume", tmp_path / "a", code=2)
    path.unlink()
    shown = run("train", "--resume", tmp_path / "a", code=5)
    assert f"{path}: expected the NPZ file that {tmp_path / 'a'} was started with, found nothing there." in shown
    assert "Put it back. If it is elsewhere now, start a new run." in shown


def test_a_changed_file_is_not_evaluated(tmp_path, trained):
    folder, path = trained
    kept = path.read_bytes()
    try:
        with np.load(path) as file:
            arrays = dict(file)
        arrays["test_images"][2, 3, 3] ^= 255
        np.savez_compressed(path, **arrays)
        assert "other labels, patients or pixels" in run("evaluate", folder, "--resamples", 100, code=5)
        path.rename(tmp_path / path.name)
        shown = run("evaluate", folder, code=5)
        assert "found nothing there. Put it back." in shown
        assert "medzoo evaluate RUN --data FILE --part test" in shown
        assert "medzoo.evaluate(" not in shown
    finally:
        path.write_bytes(kept)


def test_images_in_memory_are_advised_for_the_command_line(tmp_path):
    rng = np.random.default_rng(0)
    table = medzoo.Table.from_arrays(rng.integers(0, 256, (24, 32, 32), np.uint8), np.arange(24) % 2)
    with pytest.raises(Stop):
        medzoo.train("table", table, to=tmp_path / "a", callbacks=[StopAt(2)], patient_groups=False, **HOW)
    shown = run("train", "--resume", tmp_path / "a", code=2)
    assert "which it does not keep. Such a run is continued in Python, where it was started." in shown
    assert "medzoo.resume" not in shown
