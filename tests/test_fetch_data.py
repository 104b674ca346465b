"""``medzoo fetch data:NAME``: what a set is, what is there of it, and the one file that is downloaded."""

from __future__ import annotations

import hashlib
import json
from types import MappingProxyType

import numpy as np
import pytest
from click.testing import CliRunner
from images import write_images
from loopback import CERTIFICATE
from loopback_faults import cut, gzipped, redirect, status, web_page, wrong_bytes

from medzoo.cli import fetch_data
from medzoo.cli.main import main
from medzoo.data.sources import catalogue
from medzoo.data.sources.published import PublishedData
from medzoo.data.sources.rsna_mapping import check_mapping
from medzoo.data.table import Table
from medzoo.errors import ConfigError, DataError, WeightsCorrupt, WeightsUnavailable

pytest_plugins = ["hub_fixtures"]

NAME = "pneumonia-challenge-dataset-mappings_2018.json"
RECORDS = [
    {"subset_img_id": f"id-{i}", "img_id": f"{i // 2:08d}_{i % 2:03d}.png", "SOPInstanceUID": f"1.2.{i}"}
    for i in range(40)
]
MAPPING = json.dumps(RECORDS).encode()


def fetch(*arguments):
    """Run the command; an error of medzoo's is raised as it is."""
    found = CliRunner().invoke(main, ["--debug", "fetch", *map(str, arguments)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Register a set of 60 images of 30 patients, 20 of them positive, of which all are there; return its folder."""
    folder = write_images(tmp_path / "tiny").parent

    def read(root, choices):
        table = Table.from_csv(root / "n.csv", label="grade", patient="pid", groups=["site"], images=False)
        there = np.array([(root / "images" / one).exists() for one in table.ids])
        if choices.missing == "refuse" and not there.all():
            raise DataError(f"{(~there).sum()} images are absent")
        return vars(table.select(np.flatnonzero(there)))

    about = PublishedData(
        title="a tiny set", get="Draw it.", licence="CC0", citation="Nobody (2020)", layout=("n.csv", "images/*.png"),
        read=read, options=("missing",), counts={"rows": 60, "patients": 30, "grade": 20, "never": 3},
    )  # fmt: skip
    sets = MappingProxyType({"tiny": about})
    monkeypatch.setattr(catalogue, "SOURCES", sets)
    monkeypatch.setattr(fetch_data, "SOURCES", sets)
    return folder


@pytest.fixture
def mapping(hub, monkeypatch):
    """Publish the mapping on the server."""
    monkeypatch.setattr(fetch_data, "MAPPING_URL", hub.put(f"/AI/2018/{NAME}", MAPPING))
    return hub


def test_a_set_is_described_and_nothing_is_fetched(tiny, hub):
    text = fetch("data:tiny").output
    for part in ("a tiny set", "Draw it.", "CC0", "Nobody (2020)", "images/*.png", "missing", "rows 60", "never 3"):
        assert part in text
    assert "medzoo downloads no images" in text
    assert hub.requests == []


@pytest.mark.parametrize("option", ["--check", "--to"])
def test_what_is_there_is_compared_with_what_is_published(tiny, option):
    lines = fetch("data:tiny", option, tiny).output.splitlines()
    rows = {
        line.split("│")[1].strip(): [part.strip() for part in line.split("│")[2:4]] for line in lines if "│" in line
    }
    assert (rows["rows"], rows["patients"]) == (["60", "60"], ["30", "30"])
    assert (rows["positive: grade"], rows["positive: never"]) == (["20", "20"], ["unknown", "3"])
    assert "other than published: never" in lines[-1]
    (tiny / "images" / "1_0.png").unlink()
    (tiny / "images" / "1_1.png").unlink()
    text = fetch("data:tiny", option, tiny).output
    assert "other than published: rows, patients, never" in text
    assert "p1" not in text, "no patient is named"


def test_what_cannot_be_is_named(tiny, tmp_path):
    with pytest.raises(
        ConfigError, match=r"no data set 'tinny'\. Did you mean 'tiny'\? There are tiny, rsna-mapping\."
    ):
        fetch("data:tinny")
    with pytest.raises(ConfigError, match="expected the folder of tiny, found none"):
        fetch("data:tiny", "--check", tmp_path / "absent")
    with pytest.raises(ConfigError, match="got --check and --to"):
        fetch("data:tiny", "--check", tiny, "--to", tiny)
    with pytest.raises(ConfigError, match=r"Give --to FILE\.json alone"):
        fetch("data:rsna-mapping")
    for wrong in (["data:tiny", "cnn3d_small"], ["data:tiny", "--all"], ["--all", "--check", "x"]):
        assert fetch(*wrong).exit_code == 2


def test_the_mapping_is_fetched_once_and_its_digest_recorded(mapping, tmp_path):
    to = tmp_path / "m.json"
    text = fetch("data:rsna-mapping", "--to", to).output
    digest = hashlib.sha256(MAPPING).hexdigest()
    assert to.read_bytes() == MAPPING
    assert f"{to}: 40 records, sha256:{digest}" in text.replace("\n", "")
    record = tmp_path / "medzoo" / "recorded" / "rsna-mapping.json"
    assert json.loads(record.read_text())["digest"] == f"sha256:{digest}"
    fetch("data:rsna-mapping", "--to", to)
    assert len(mapping.asked("GET")) == 1
    fetch("data:rsna-mapping", "--to", tmp_path)
    assert (tmp_path / NAME).read_bytes() == MAPPING
    left = sorted(path.name for path in (tmp_path / "medzoo").rglob("*") if path.is_file())
    assert [name for name in left if not name.endswith(".lock")] == ["rsna-mapping.json"]


def test_another_digest_is_refused_and_nothing_is_kept(mapping, tmp_path):
    fetch("data:rsna-mapping", "--to", tmp_path / "m.json")
    mapping.put(f"/AI/2018/{NAME}", json.dumps(RECORDS[:-1]).encode())
    with pytest.raises(
        DataError, match=r"as recorded when the file was first used, got sha256:.*to accept the new one"
    ):
        fetch("data:rsna-mapping", "--to", tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()
    (tmp_path / "mine.json").write_bytes(json.dumps(RECORDS[:3]).encode())
    with pytest.raises(DataError, match=r"mine\.json: expected sha256:"):
        fetch("data:rsna-mapping", "--to", tmp_path / "mine.json")
    (tmp_path / "medzoo" / "recorded" / "rsna-mapping.json").write_text("{")
    with pytest.raises(DataError, match="the digest of its first use, cannot be read"):
        fetch("data:rsna-mapping", "--to", tmp_path / "new.json")
    (tmp_path / "medzoo" / "recorded" / "rsna-mapping.json").unlink()
    assert "39 records" in fetch("data:rsna-mapping", "--to", tmp_path / "new.json").output


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        (web_page(), WeightsCorrupt, "this is a web page"),
        (wrong_bytes(), DataError, "expected a list of records in JSON"),
        (status(404), WeightsUnavailable, "answers 404"),
        (status(503), WeightsUnavailable, "busy"),
        (cut(100), WeightsUnavailable, "copy it from another machine|3 times in a row"),
    ],
)
def test_faults_of_the_server_leave_nothing(mapping, waits, tmp_path, fault, error, match):
    mapping.fail("/AI/*", fault)
    with pytest.raises(error, match=match):
        fetch("data:rsna-mapping", "--to", tmp_path / "m.json")
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"] == []


def test_a_short_fault_is_overcome(mapping, waits, tmp_path):
    mapping.fail("/AI/*", cut(100), times=1)
    mapping.fail("/AI/*", gzipped(), times=1)
    fetch("data:rsna-mapping", "--to", tmp_path / "m.json")
    assert (tmp_path / "m.json").read_bytes() == MAPPING


def test_no_more_than_the_limit_is_read(mapping, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_data, "MOST_BYTES", 1000)
    mapping.put(f"/AI/2018/{NAME}", b"[" + b" " * (8 << 20))
    with pytest.raises(WeightsCorrupt, match="expected at most 1,000 bytes, got more"):
        fetch("data:rsna-mapping", "--to", tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()
    (tmp_path / "m.json").write_bytes(b" " * 1001)
    with pytest.raises(ConfigError, match=r"m\.json: expected at most 1,000 bytes, found more"):
        fetch("data:rsna-mapping", "--to", tmp_path / "m.json")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="zero: expected a file, found a folder, pipe or device"):
        fetch("data:rsna-mapping", "--to", tmp_path / "zero")


def test_a_redirect_stays_encrypted(mapping, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))
    monkeypatch.setattr(fetch_data, "MAPPING_URL", mapping.secure(f"/first/{NAME}"))
    mapping.fail("/first/*", redirect(mapping.url(f"/AI/2018/{NAME}")))
    with pytest.raises(WeightsUnavailable, match="leads from https to http, where the file could be exchanged"):
        fetch("data:rsna-mapping", "--to", tmp_path / "m.json")
    assert not any(request.path.startswith("/AI/") for request in mapping.requests)
    monkeypatch.setattr(fetch_data, "MAPPING_URL", mapping.secure(f"/second/{NAME}"))
    mapping.fail("/second/*", redirect(f"/AI/2018/{NAME}"))
    fetch("data:rsna-mapping", "--to", tmp_path / "m.json")
    assert (tmp_path / "m.json").read_bytes() == MAPPING


def test_offline_nothing_is_asked(mapping, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable, match=r"forbids network access.*copy it from another machine"):
        fetch("data:rsna-mapping", "--to", tmp_path / "m.json")
    assert mapping.requests == []


def test_a_mirror_is_asked_and_nobody_else(mapping, tmp_path, monkeypatch):
    mapping.put(f"/mirror/data/{NAME}", MAPPING)
    monkeypatch.setenv("MEDZOO_MIRROR", mapping.url("/mirror"))
    fetch("data:rsna-mapping", "--to", tmp_path / "m.json")
    assert {request.path for request in mapping.requests} == {f"/mirror/data/{NAME}"}


def test_the_place_of_the_file_is_checked_before_a_request(mapping, tmp_path):
    with pytest.raises(ConfigError, match="expected a file in a folder that exists"):
        fetch("data:rsna-mapping", "--to", tmp_path / "absent" / "m.json")
    assert mapping.requests == []


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "in JSON, got another file"), (b"{}", "got a dict"), (b"[]", "got an empty list"),
        (b"[" * 100_000, "got another file"), (b'[{"subset_img_id": "a"}]', "record 0 has none"),
        (b'[{"subset_img_id": "a", "img_id": "b"}, 3]', "record 0 has none"),
        (b'[{"subset_img_id": 7, "img_id": "b"}]', "record 0 has none"),
    ],
)  # fmt: skip
def test_only_a_mapping_is_a_mapping(data, match):
    with pytest.raises(DataError, match=match):
        check_mapping(data, "m.json")
