"""How often data was evaluated on this machine, and the keyed pseudonyms of a project."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import stat

import numpy as np
import pytest

from medzoo.data.identity import pseudonym
from medzoo.errors import ConfigError
from medzoo.evaluation import pseudonyms
from medzoo.evaluation.openings import Opened, fingerprint_of, record_opening
from medzoo.evaluation.pseudonyms import Pseudonyms
from medzoo.evaluation.scores import Scores

DATA, MODEL = "ab" * 32, f"sha256:{'0' * 64}"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pseudonyms, "_OF_THIS_PROCESS", {})
    return tmp_path / "home"


def scores_of(n=6, labels=("a", "b"), order=None, **options):
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, (n, 2)).astype(np.float32)
    targets[0, 0] = np.nan
    rows = np.arange(n) if order is None else np.asarray(order)
    return Scores.from_logits(
        rng.normal(size=(n, 2)), task="multilabel", ids=np.array([f"i{i}" for i in rows]), targets=targets[rows],
        labels=labels, **options,
    )  # fmt: skip


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_fingerprint_is_of_the_data_alone():
    found = fingerprint_of(scores_of())
    assert re.fullmatch("[0-9a-f]{64}", found)
    assert fingerprint_of(scores_of(order=[5, 3, 0, 1, 4, 2])) == found
    assert fingerprint_of(scores_of(patients=np.array(list("uvwxyz")))) == found
    assert fingerprint_of(scores_of().select(range(5))) != found
    swapped = scores_of()
    object.__setattr__(swapped, "targets", swapped.targets[:, ::-1])
    assert fingerprint_of(swapped) != found
    object.__setattr__(swapped, "labels", ("b", "a"))
    assert fingerprint_of(swapped) == found


def test_pixels_stand_for_ids():
    here, there = scores_of(), scores_of()
    object.__setattr__(there, "ids", np.array([f"/elsewhere/{i}" for i in range(6)]))
    pixels = [f"{i:064x}" for i in range(6)]
    assert fingerprint_of(here) != fingerprint_of(there)
    assert fingerprint_of(here, pixels) == fingerprint_of(there, np.array(pixels))
    with pytest.raises(ConfigError, match="expected 6 identities, one for each row, got 5"):
        fingerprint_of(here, pixels[:5])


def test_evaluations_are_counted(home):
    assert record_opening(DATA, MODEL, "test") == Opened(1, 1)
    assert record_opening(DATA, MODEL, "test") == Opened(2, 1)
    assert record_opening(DATA, "/home/anna/model", "test") == Opened(3, 2)
    assert record_opening("cd" * 32, MODEL, "scores") == Opened(1, 1)
    path = home / "evaluations" / f"{DATA[:16]}.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(set(line) == {"time", "model", "what", "medzoo"} for line in lines)
    assert lines[0]["model"] == MODEL
    assert "anna" not in path.read_text()


@pytest.mark.skipif(os.name != "posix", reason="modes are Unix's")
def test_only_the_user_can_read_them(home):
    record_opening(DATA, MODEL, "test")
    assert mode(home / "evaluations") == 0o700
    assert {mode(path) for path in (home / "evaluations").iterdir()} == {0o600}


def test_arguments_that_would_leak_are_refused():
    with pytest.raises(ConfigError, match="expected a fingerprint of 64 hex digits"):
        record_opening("../../etc", MODEL, "test")
    with pytest.raises(ConfigError, match="expected what to be a word or two"):
        record_opening(DATA, MODEL, "/data/anna.csv")


def test_damaged_lines_are_not_counted(home):
    record_opening(DATA, MODEL, "test")
    path = home / "evaluations" / f"{DATA[:16]}.jsonl"
    with path.open("ab") as file:
        file.write(b'\xff\xfe\n[]\n\n{"model": "x", "ti')  # the last writer was killed
    found = record_opening(DATA, MODEL, "test")
    assert found == Opened(2, 1, unreadable=3)
    assert "3 damaged lines are not counted" in str(found)
    assert record_opening(DATA, MODEL, "test") == Opened(3, 1, unreadable=3)


def test_a_home_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"cannot be counted among those of its data.*Set MEDZOO_HOME"):
        assert record_opening(DATA, MODEL, "test") is None


def test_what_can_be_read_is_counted(home, monkeypatch):
    record_opening(DATA, MODEL, "test")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("medzoo.evaluation.openings._append", refuse)
    with pytest.warns(UserWarning, match="Permission denied"):
        assert record_opening(DATA, f"sha256:{'1' * 64}", "test") == Opened(2, 2)


def test_it_goes_on_without_locks(monkeypatch):
    import filelock

    def fail(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    assert record_opening(DATA, MODEL, "test") == Opened(1, 1)


def record_many(number):
    for i in range(20):
        record_opening(DATA, f"{number:08d}{i:08d}", "test")


def read_key(_):
    return Pseudonyms("race").of("p1")


def test_concurrent_processes_lose_nothing(home):
    with multiprocessing.get_context("fork" if os.name == "posix" else "spawn").Pool(4) as pool:
        pool.map(record_many, range(4), chunksize=1)
    assert record_opening(DATA, MODEL, "test") == Opened(81, 81)


def test_a_patient_has_one_pseudonym_in_a_project():
    first, again, other = Pseudonyms("study"), Pseudonyms("study"), Pseudonyms("other")
    assert re.fullmatch("[0-9a-f]{10}", first.of("007"))
    assert first.of("007") == again.of("007") == first.of(pseudonym("007"))
    assert first.of("7") != first.of("007") != other.of("007")
    assert first.of("007") not in pseudonym("007")
    assert first.of("\udcff")  # a name that is no UTF-8
    assert Pseudonyms().of("007") != first.of("007")


def test_a_key_is_made_once_by_processes_that_race(home):
    with multiprocessing.get_context("fork" if os.name == "posix" else "spawn").Pool(4) as pool:
        assert len(set(pool.map(read_key, range(40), chunksize=1))) == 1
    assert [path.name for path in (home / "projects").iterdir()] == ["race.key"]


@pytest.mark.skipif(os.name != "posix", reason="modes are Unix's")
def test_only_the_user_can_read_a_key(home):
    Pseudonyms("study")
    path = home / "projects" / "study.key"
    assert (mode(path.parent), mode(path), len(path.read_bytes())) == (0o700, 0o600, 32)
    path.chmod(0o644)
    Pseudonyms("study")
    assert mode(path) == 0o600


def test_a_filesystem_without_links_has_a_key_too(home, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert Pseudonyms("study").of("a") == Pseudonyms("study").of("a")
    assert [path.name for path in (home / "projects").iterdir()] == ["study.key"]


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "x" * 65, "ü", "a\n"])
def test_a_project_has_a_plain_name(name):
    with pytest.raises(ConfigError, match="expected the name of a project"):
        Pseudonyms(name)


def test_without_a_home_the_key_is_of_this_process(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDZOO_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=r"Those of this process will not be those of another.*Set MEDZOO_HOME"):
        first = Pseudonyms("study")
    with pytest.warns(UserWarning, match="of this process"):
        again = Pseudonyms("study")
    with pytest.warns(UserWarning, match="of this process"):
        other = Pseudonyms("other")
    assert first.of("a") == again.of("a") != other.of("a")


def test_a_damaged_key_is_named(home, monkeypatch):
    monkeypatch.setattr(pseudonyms, "_PATIENCE", 0.1)
    Pseudonyms("study")
    (home / "projects" / "study.key").write_bytes(b"short")
    with pytest.warns(UserWarning, match="expected 32 bytes, got 5: remove the file"):
        Pseudonyms("study")
