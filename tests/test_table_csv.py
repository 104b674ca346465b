"""Tables from CSV files and DataFrames: which files are read, and that all faults are reported at once, by line."""

from __future__ import annotations

import codecs
import os
import pickle
import socket

import numpy as np
import pandas
import pytest

from medzoo import Table
from medzoo.data.texts import Texts
from medzoo.errors import ConfigError, DataError


def write(folder, text, images=("a.png", "b.png", "c.png"), encoding="utf-8", name="t.csv"):
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes(b"an image that is not opened")
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


PLAIN = "path,label,pid,site\na.png,0,007,x\nb.png,1,7,y\nc.png,1,7,x\n"


def test_a_table_of_a_csv_file(tmp_path):
    table = Table.from_csv(write(tmp_path, PLAIN), patient="pid")
    assert len(table) == 3
    assert table.ids.tolist() == ["a.png", "b.png", "c.png"]
    assert table.targets.tolist() == [[0], [1], [1]]
    assert (table.targets.dtype, table.labels, table.task) == (np.float32, ("positive",), "binary")
    assert table.patients.tolist() == ["007", "7", "7"]
    assert table.groups["site"].tolist() == ["x", "y", "x"]
    assert list(table.groups) == ["site"]
    assert table.lines.tolist() == [2, 3, 4]
    assert table.image(1) == tmp_path / "b.png"
    assert repr(table).startswith("Table(3 rows of 2 patients, binary: positive; ")


def test_a_table_is_of_arrays_and_survives_pickling(tmp_path):
    table = pickle.loads(pickle.dumps(Table.from_csv(write(tmp_path, PLAIN), patient="pid")))
    assert isinstance(table.paths, Texts)
    assert all(isinstance(v, np.ndarray) for v in (table.ids, table.targets, table.patients, *table.groups.values()))
    part = table.select([2, 0])
    assert part.ids.tolist() == ["c.png", "a.png"]
    assert part.image(0) == tmp_path / "c.png"
    assert part.lines.tolist() == [4, 2]
    assert len(table.select([])) == 0


def test_paths_take_their_own_length_in_memory_and_not_that_of_the_longest():
    texts = Texts(["é.png", "\n".join(["slice.dcm"] * 1000), ""])
    assert texts.nbytes < 11_000
    assert list(texts) == ["é.png", "\n".join(["slice.dcm"] * 1000), ""]
    assert list(texts[np.array([2, 0])]) == ["", "é.png"]
    assert np.asarray(texts[::2]).tolist() == ["é.png", ""]


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        codecs.BOM_UTF8 + PLAIN.encode(),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "sep=;\n" + PLAIN.replace(",", ";"),
        PLAIN.replace("\n", ",\n"),  # a last column without name or values, as NIH's file has it
        PLAIN.replace("\n", ",\n", 1),
        PLAIN + ",,,\n\n",
        PLAIN.replace("a.png", '"a.png"').replace("site", '"site"'),
        PLAIN.replace(",", " , "),
        "".join(f"{i if i else ''},{line}\n" for i, line in enumerate(PLAIN.splitlines())),  # the index of pandas
    ],
    ids=["semicolon", "tab", "bom", "crlf", "cr", "sep", "blank-column", "blank-header", "blank-rows", "quoted",
         "spaces", "index"],
)  # fmt: skip
def test_forms_of_csv_that_are_read(tmp_path, text):
    table = Table.from_csv(write(tmp_path, text), patient="pid")
    assert table.ids.tolist() == ["a.png", "b.png", "c.png"]
    assert table.patients.tolist() == ["007", "7", "7"]
    assert list(table.groups) == ["site"]


def test_a_delimiter_within_names_of_columns_is_not_taken_for_one(tmp_path):
    text = "path;label;size [w,h,d,x]\na.png;0;1\nb.png;1;2\n"
    assert list(Table.from_csv(write(tmp_path, text)).groups) == ["size [w,h,d,x]"]
    nih = "Image Index,label,OriginalImage[Width,Height],Spacing[x,y],\na.png,0,1,2,3,4,\nb.png,1,1,2,3,4,\n"
    table = Table.from_csv(write(tmp_path, nih), image="Image Index")
    assert list(table.groups) == ["OriginalImage[Width", "Height]", "Spacing[x", "y]"]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", r"t.csv: expected a CSV file with a header, found an empty file \(0 bytes\)"),
        ("\n\n", "found no text"),
        ("path,label\n", "expected rows below the header, found none"),
        ("path,label\na.png,1\n", "expected 2 rows or more, found 1"),
        ("path,label,label\na.png,0,1\n", "expected one column of each name, found 'label' more than once"),
        (",,\na.png,0,1\n", "expected a header with names of columns, found no|found none"),
        (PLAIN.encode("utf-16"), "found UTF-16, which Excel calls Unicode text. Save it as CSV with the enc"),
        (b"PK\x03\x04rest", r"found an Excel workbook \(.xlsx\)"),
        ("path,label\nMüller.png,0\n".encode("cp1252"), "byte 0xFC in line 2, which is not UTF-8.*Windows-1252"),
        ('path,label\n"a.png,0\nb.png,1\n', "from line 2 on that cannot be read: a quote that is not closed"),
        ("a;b,c\n1;2,3\n", "found as many columns with ',' as with ';'. Give delimiter="),
        ("sep=|\n" + PLAIN, "expected the line 'sep=' to give"),
    ],
)  # fmt: skip
def test_fault_96_a_file_that_is_no_such_csv(tmp_path, text, cause):
    with pytest.raises(DataError, match=cause):
        Table.from_csv(write(tmp_path, text))


def test_fault_96_rows_with_too_many_or_too_few_fields(tmp_path):
    text = "path,label,pid\na.png,0,1\nb.png,1,2,extra\nc.png,1\n"
    with pytest.raises(DataError) as error:
        Table.from_csv(write(tmp_path, text))
    assert "1 rows with too many fields: line 3 (4 fields). The header has 3." in str(error.value)
    assert "1 rows with too few fields: line 4 (2 fields)" in str(error.value)


def test_fault_96_a_value_in_a_column_without_name(tmp_path):
    with pytest.raises(DataError, match="1 rows with a value in a column that has no name: line 3"):
        Table.from_csv(write(tmp_path, "path,label,\na.png,0,\nb.png,1,x\nc.png,1,\n"))


def test_fault_96_an_address_is_never_fetched(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    text = "path,label\nhttps://example.org/a.png,0\nfile:///etc/passwd,1\nS3://bucket/b.png,1\n"
    with pytest.raises(DataError, match=r"3 addresses: line 2 .*line 3 .*line 4 .*Nothing is fetched"):
        Table.from_csv(write(tmp_path, text))
    with pytest.raises(DataError, match="got an address, which is never fetched"):
        Table.from_csv("https://example.org/t.csv")


def test_fault_96_paths_that_lead_out_of_the_root(tmp_path):
    (tmp_path / "other.png").write_bytes(b"x")
    root = tmp_path / "root"
    text = f"path,label\n../other.png,0\n{tmp_path}/other.png,1\nx/../../other.png,1\n/etc/passwd,0\nx/../a.png,0\n"
    (root / "x").mkdir(parents=True)
    with pytest.raises(DataError) as error:
        Table.from_csv(write(root, text))
    assert f"4 paths that lead out of {root}: line 2 ('../other.png'), line 3" in str(error.value)
    assert "line 6" not in str(error.value)


def test_fault_96_absolute_paths_in_the_root_are_accepted(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    path = write(tmp_path / "real", f"path,label\n{tmp_path}/link/a.png,0\n{tmp_path}/real/b.png,1\n")
    table = Table.from_csv(path, root=tmp_path / "link")
    assert [table.image(i).name for i in range(2)] == ["a.png", "b.png"]


def test_fault_96_links_that_lead_out_of_the_root(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "d.png").write_bytes(b"x")
    root = tmp_path / "root"
    path = write(root, "path,label\nlink.png,0\nfolder/d.png,1\ninside.png,1\n")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path / "far")
    (root / "inside.png").symlink_to(root / "a.png")
    with pytest.raises(DataError, match=r"2 links that lead out of .*line 2 \('link.png'\), line 3 \('folder/d.png'\)"):
        Table.from_csv(path)


@pytest.mark.parametrize("name", ['"a\rb.png"', '"a\nb.png"', "a\0b.png"])
def test_fault_96_control_characters_in_names(tmp_path, name):
    with pytest.raises(DataError, match=r"1 names with a control character, such as .* or NUL: line 3 \('a\\"):
        Table.from_csv(write(tmp_path, f"path,label\nb.png,0\n{name},1\nc.png,1\n"))


def test_lines_are_counted_through_line_breaks_in_quotes(tmp_path):
    text = 'path,label,note\na.png,0,"two\nlines"\n\nmissing.png,1,x\n'
    with pytest.raises(DataError, match=r"line 5 \('missing.png'\)"):
        Table.from_csv(write(tmp_path, text))


def test_fault_63_missing_images_are_listed_at_once(tmp_path):
    rows = "".join(f"no{i}.png,{i % 2}\n" for i in range(25))
    with pytest.raises(DataError) as error:
        Table.from_csv(write(tmp_path, f"path,label\na.png,0\n{rows}"))
    assert f"{tmp_path}/t.csv: expected rows without faults, found 25 faults:\n- 25 images that do not exist: " in str(
        error.value
    )
    assert "line 12 ('no9.png') and 15 more. Looked in " in str(error.value)
    assert "no10.png" not in str(error.value)


def test_a_missing_image_names_the_file_of_another_suffix(tmp_path):
    text = "path,label\nA.PNG,0\nb,1\nc.jpg,1\n"
    with pytest.raises(DataError, match=r"'A.PNG', there is 'a.png'\), .*'b', there is 'b.png'.*there is 'c.png'"):
        Table.from_csv(write(tmp_path, text))


def test_all_faults_are_reported_together(tmp_path):
    text = "path,label,pid\na.png,0,1\na.png,1,1\nb.png,yes,\nmissing.png,-1,2\nc.png,,3\nc.png,,3\n"
    with pytest.raises(DataError) as error:
        Table.from_csv(write(tmp_path, text), patient="pid")
    message = str(error.value)
    for part in (
        "1 images that do not exist: line 5 ('missing.png')",
        "1 labels that are not 0 or 1: line 4 ('yes')",
        "1 labels that are -1 (uncertain): line 5 ('-1'). Give uncertain='mask'",
        "2 labels that are blank or NaN: line 6 (''), line 7 ('')",
        "1 rows without a patient: line 4",
        "other labels or another patient: line 3 (the image of line 2)",
        "1 rows with the image and labels of another row: line 7 (the image of line 6)",
    ):
        assert part in message
    assert "found 8 faults" in message


def test_fault_90_the_same_image_with_other_labels(tmp_path):
    path = write(tmp_path, "path,label\na.png,0\nb.png,1\n./a.png,1\n")
    for duplicates in ("refuse", "drop"):
        with pytest.raises(DataError, match=r"another patient: line 4 \(the image of line 2\). Keep the right one"):
            Table.from_csv(path, duplicates=duplicates)


def test_fault_90_the_same_image_of_two_patients(tmp_path):
    path = write(tmp_path, "path,label,pid\na.png,0,1\nb.png,1,2\na.png,0,3\n")
    with pytest.raises(DataError, match="or another patient: line 4"):
        Table.from_csv(path, patient="pid", duplicates="drop")


def test_fault_90_duplicates_are_refused_or_the_first_is_kept(tmp_path):
    path = write(tmp_path, "path,label\na.png,0\nb.png,1\na.png,0\nlink.png,1\n")
    (tmp_path / "link.png").symlink_to(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"2 rows with the image and labels of another row: line 4 .*line 5 .*'drop'"):
        Table.from_csv(path)
    table = Table.from_csv(path, duplicates="drop")
    assert table.ids.tolist() == ["a.png", "b.png"]
    assert table.notes == ("2 duplicate rows left out",)
    with pytest.raises(ConfigError, match="duplicates"):
        Table.from_csv(path, duplicates="first")


def test_fault_92_a_row_without_a_patient(tmp_path):
    with pytest.raises(DataError, match="2 rows without a patient: line 2, line 4"):
        Table.from_csv(write(tmp_path, "path,label,pid\na.png,0, \nb.png,1,SECRET\nc.png,1,\n"), patient="pid")


def test_a_message_has_no_patient(tmp_path):
    path = write(tmp_path, 'path,label,pid\na.png,0,SECRET\na.png,1,SECRET\nb.png,1,\nc.png,1,"SEC\nRET"\n')
    with pytest.raises(DataError, match="1 patients with a control character: line 5") as error:
        Table.from_csv(path, patient="pid")
    assert "SEC" not in str(error.value)
    table = Table.from_csv(write(tmp_path, PLAIN.replace("007", "SECRET")), patient="pid")
    assert "SECRET" not in table.summary() + repr(table)


def test_a_patient_of_its_own_in_every_row_is_noted(tmp_path):
    table = Table.from_csv(write(tmp_path, PLAIN), patient="path")
    assert table.notes == ("every row has another patient: check that it is not the id of an image",)


def test_fault_93_a_misspelt_column(tmp_path):
    path = write(tmp_path, PLAIN)
    with pytest.raises(DataError) as error:
        Table.from_csv(path, label="lable", patient="PID")
    assert str(error.value).startswith(
        f"{path}: expected the columns 'lable' (label=), 'PID' (patient=); "
        "found 'path', 'label', 'pid', 'site'. Did you mean 'label'?"
    )
    with pytest.raises(DataError, match=r"expected the column 'sex' \(groups=\)"):
        Table.from_csv(path, groups=["sex"])


def test_groups_can_be_chosen_and_long_columns_are_left_out(tmp_path):
    path = write(tmp_path, f"path,label,site,report\na.png,0,x,{'long ' * 100}\nb.png,1,y,\n")
    table = Table.from_csv(path)
    assert list(table.groups) == ["site"]
    assert table.notes == ("columns left out, with values over 256 characters: 'report'",)
    with pytest.raises(DataError, match="longer ones in 'report'"):
        Table.from_csv(path, groups=["report"])


def test_windows_paths(tmp_path):
    path = write(tmp_path, "path,label\nx\\a.png,0\nx\\B 1.PNG,1\n", ["x/a.png", "x/B 1.PNG"])
    table = Table.from_csv(path)
    assert table.ids.tolist() == ["x\\a.png", "x\\B 1.PNG"]
    assert table.image(1) == tmp_path / "x" / "B 1.PNG"
    path = write(tmp_path, "path,label\nC:\\x\\a.png,0\n\\\\server\\a.png,1\n..\\..\\a.png,1\n")
    with pytest.raises(
        DataError, match=r"2 Windows paths with a drive: line 2 .*line 3 .*Give paths relative"
    ) as error:
        Table.from_csv(path)
    assert "1 paths that lead out of" in str(error.value)


def test_fault_64_what_is_no_file(tmp_path):
    path = write(tmp_path, "path,label\nempty.png,0\npipe.png,1\nfolder,1\n.,0\n,1\n")
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError) as error:
        Table.from_csv(path)
    for part in (
        "1 empty files (0 bytes): line 2", "1 pipes or devices: line 3", "2 folders without a DICOM file: line 4",
        "1 rows without an image: line 6",
    ):  # fmt: skip
        assert part in str(error.value)


def test_a_folder_with_a_series_is_an_image(tmp_path):
    from make_images import write_series

    for name in ("one", "two"):
        write_series(tmp_path / name, np.zeros((2, 4, 4), np.uint16))
    table = Table.from_csv(write(tmp_path, "path,label\none,0\ntwo/,1\n"))
    assert [table.image(i) for i in range(2)] == [tmp_path / "one", tmp_path / "two"]


def test_a_file_or_root_of_the_wrong_kind(tmp_path):
    path = write(tmp_path, PLAIN)
    with pytest.raises(DataError, match="expected a CSV file, found a folder"):
        Table.from_csv(tmp_path)
    with pytest.raises(DataError, match="expected root to be a folder, found a file"):
        Table.from_csv(path, root=path)
    with pytest.raises(DataError, match="found nothing there"):
        Table.from_csv(tmp_path / "other.csv")
    with pytest.raises(ConfigError, match="expected delimiter to be"):
        Table.from_csv(path, delimiter="|")


def test_a_table_of_a_frame(tmp_path):
    path = write(tmp_path, PLAIN)
    table = Table.from_frame(pandas.read_csv(path, dtype=str), root=tmp_path, patient="pid")
    assert table.patients.tolist() == ["007", "7", "7"]
    assert table.lines.tolist() == [0, 1, 2]
    assert table.source == "the frame"


def test_a_frame_with_numbers_booleans_and_missing_values(tmp_path):
    write(tmp_path, PLAIN)
    frame = pandas.DataFrame({
        "path": [tmp_path / "a.png", "b.png", "c.png"], "label": [True, None, False], "pid": [7.0, 8.0, 7.0],
        "age": [60, np.nan, 70],
    })  # fmt: skip
    with pytest.raises(DataError, match="1 labels that are blank or NaN: row 1"):
        Table.from_frame(frame, root=tmp_path, patient="pid")
    table = Table.from_frame(frame, root=tmp_path, patient="pid", uncertain="mask")
    np.testing.assert_array_equal(table.targets[:, 0], [1, np.nan, 0])
    assert table.patients.tolist() == ["7", "8", "7"]
    assert table.groups["age"].tolist() == ["60", "", "70"]
    with pytest.raises(DataError, match="expected a pandas DataFrame, got dict"):
        Table.from_frame({})
    with pytest.raises(DataError, match="found pid twice"):
        Table.from_frame(frame.rename(columns={"age": "pid"}), root=tmp_path)


def test_summary_counts_labels_groups_and_patients(tmp_path):
    text = "path,label,pid,site\na.png,0,1,x\nb.png,1,2,x\nc.png,,2,\n" + "".join(
        f"d{i}.png,1,{i + 3},y\n" for i in range(3)
    )
    path = write(tmp_path, text, ["a.png", "b.png", "c.png", "d0.png", "d1.png", "d2.png"])
    assert Table.from_csv(path, patient="pid", uncertain="mask").summary() == (
        f"Table(6 rows of 5 patients, binary: positive; {path})\n"
        "  positive  4 positive, 1 negative, 1 not known (4 positive patients)\n"
        "  site: blank 1, x 2, y 3\n"
        "  note: 1 label not known, left out of loss and metrics"
    )


def test_real_tables_are_read(data):
    table = Table.from_csv(data / "pneumonia_cxr" / "labels.csv", label="class", patient="patient_key")
    assert (len(table), len(np.unique(table.patients)), table.labels) == (5638, 3015, ("PNEUMONIA",))
    assert table.targets.sum() == 4146
    path = data / "chestxray14_64px" / "labels.csv"
    joined = Table.from_csv(path, label="finding_labels", sep="|", patient="patient_id")
    assert len(joined.labels) == 14
    columns = Table.from_csv(path, label=joined.labels, patient="patient_id", groups=["split", "patient_split"])
    np.testing.assert_array_equal(joined.targets, columns.targets)
    with pytest.raises(DataError, match=r"55 classes of one row: .*read with sep='\|'"):
        Table.from_csv(path, label="finding_labels")
