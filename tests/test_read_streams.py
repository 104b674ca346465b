"""Reading redirects and switches nothing of the process: stderr, its absence, and the filters of warnings."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from make_images import arrow, write_metaimage, write_nifti, write_png
from PIL import Image as Pillow

from medzoo.errors import DataError
from medzoo.io.files import wrap_read_errors
from medzoo.io.read import read

READ_ALL = """
import sys, threading
import numpy as np
from medzoo.io.read import read

folder, writing = sys.argv[1], sys.argv[2] == "writing"
stop, written = threading.Event(), 0

def progress_bar():
    global written
    while not stop.is_set():
        sys.stderr.write("loading\\n")
        sys.stderr.flush()
        written += 1
        stop.wait(0.0005)

thread = threading.Thread(target=progress_bar)
if writing:
    thread.start()
wrong = []
for _ in range(5 if writing else 1):
    for name in open(folder + "/names").read().split():
        try:
            image = read(f"{folder}/{name}")
            same = np.array_equal(image.array, np.load(f"{folder}/{name}.npy"))
            wrong += [] if same else [name]
        except Exception as error:
            wrong.append(f"{name}: {error}")
stop.set()
if writing:
    thread.join()
wrong += ["SimpleITK is loaded"] if "SimpleITK" in sys.modules else []
open(folder + "/result", "w").write(repr((wrong, written)))
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with one file of each kind, the values that each should be read with, and their names."""
    deep = arrow(top=60000)
    volume = np.random.default_rng(0).integers(-1000, 1000, (6, 7, 8), dtype=np.int16)
    for name, compression in (("plain", None), ("lzw", "tiff_lzw"), ("deflate", "tiff_adobe_deflate")):
        Pillow.fromarray(deep).save(tmp_path / f"{name}.tif", compression=compression)
        np.save(tmp_path / f"{name}.tif.npy", deep[None])
    tifffile.imwrite(tmp_path / "private.tif", deep, extratags=[(65123, 2, 0, "private", True)])
    np.save(tmp_path / "private.tif.npy", deep[None])
    np.save(tmp_path / "a.png.npy", np.load(write_array(tmp_path / "tmp", deep)))
    write_png(tmp_path / "a.png", deep)
    canonical = volume.transpose(2, 1, 0)[None, ::-1, ::-1]  # LPS to RAS
    for name in ("a.mha", "a.mhd"):
        write_metaimage(tmp_path / name, volume, compressed=True)
        np.save(tmp_path / f"{name}.npy", canonical)
    write_nifti(tmp_path / "a.nii.gz", volume)
    np.save(tmp_path / "a.nii.gz.npy", volume[None])
    names = [path.name.removesuffix(".npy") for path in tmp_path.glob("*.*.npy")]
    (tmp_path / "names").write_text("\n".join(names))
    assert len(names) == 8
    return tmp_path


def write_array(path, pixels):
    with path.open("wb") as file:
        np.save(file, pixels[None])
    return path


def test_120_another_thread_writes_to_stderr(folder):
    """What it writes is neither taken for damage nor kept from the terminal."""
    command = [sys.executable, "-c", READ_ALL, str(folder), "writing"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    wrong, written = eval((folder / "result").read_text())
    assert wrong == []
    assert written > 10
    assert done.stderr == "loading\n" * written


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"])
def test_120_standard_streams_may_be_closed(folder, closed):
    command = ["sh", "-c", f'exec "$0" -c "$1" "$2" alone {closed}', sys.executable, READ_ALL, str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    assert eval((folder / "result").read_text()) == ([], 0)


def test_120_eight_threads_read_the_same_files(folder):
    names = (folder / "names").read_text().split() * 10
    with ThreadPoolExecutor(8) as threads:
        images = list(threads.map(lambda name: read(folder / name), names))
    for name, image in zip(names, images, strict=True):
        np.testing.assert_array_equal(image.array, np.load(folder / f"{name}.npy"))


def test_120_a_damaged_file_is_found_without_stderr(folder, capfd):
    for name in ("lzw.tif", "deflate.tif", "a.mha"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) * 2 // 3] + bytes(7) + data[len(data) * 2 // 3 + 7 :])
        with pytest.raises(DataError, match=r"damaged|cut short|cannot be read"):
            read(folder / name)
    assert capfd.readouterr() == ("", "")


def test_120_itk_keeps_its_setting_of_warnings(folder):
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    read(folder / "a.mha")
    assert sitk.ProcessObject.GetGlobalWarningDisplay() == shown


def test_120_warnings_of_a_library_are_dropped_in_the_reading_thread_alone(tmp_path):
    """``warnings.catch_warnings`` in two threads leaves the filters of the process replaced."""
    inside, leave = threading.Event(), threading.Event()

    def read_slowly():
        with wrap_read_errors(tmp_path, "a file"):
            warnings.warn("from a library", UserWarning, stacklevel=1)
            inside.set()
            leave.wait(10)
            warnings.warn("from a library again", UserWarning, stacklevel=1)

    threads = [threading.Thread(target=read_slowly) for _ in range(2)]
    with warnings.catch_warnings(record=True, action="always") as caught:
        before = warnings.showwarning
        for thread in threads:
            thread.start()
        inside.wait(10)
        warnings.warn("from the user", UserWarning, stacklevel=1)
        leave.set()
        for thread in threads:
            thread.join()
        assert warnings.showwarning is before
        warnings.warn("from the user again", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in caught] == ["from the user", "from the user again"]


def test_120_reading_does_not_add_to_the_filters_of_warnings(tmp_path):
    path = write_png(tmp_path / "a.png", arrow().astype(np.uint8))
    with warnings.catch_warnings():
        read(path)
        count = len(warnings.filters)
        for _ in range(3):
            warnings.simplefilter("default")
            read(path)
        assert len(warnings.filters) <= count + 1
