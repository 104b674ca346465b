"""From the files of a CT series to a volume in HU: ``medzoo.read``, plain pydicom, SimpleITK, and MONAI's two readers.

The CT is a series of 512 × 512 × 30 voxels: that of ``MEDZOO_DATA``, else a phantom. The peers do less: plain pydicom
decodes and sorts the slices; none checks that they are of one volume, complete, and of one patient. All take turns,
round after round, with the files in the cache of the operating system. A ratio is between the processor times of one
round, and between the least times of all. The voxels are compared first, and are equal.

The figures are printed, and saved in ``extra_info``.
"""

from __future__ import annotations

import os
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.transforms import LoadImage

import medzoo
from benchmarks.timing import spread
from medzoo.visual.phantoms import draw_ct, write_ct_series

ROUNDS = 15


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    real = Path(os.environ.get("MEDZOO_DATA") or ".") / "chest_ct" / "dicom_A0002"
    if os.environ.get("MEDZOO_DATA") and real.is_dir():
        return real
    return write_ct_series(tmp_path_factory.mktemp("series"), draw_ct((512, 512, 30)))


def ours(folder):
    return medzoo.read(folder).array[0]


def plain_pydicom(folder):
    slices = sorted(map(pydicom.dcmread, folder.iterdir()), key=lambda ds: ds.ImagePositionPatient[2])
    return np.stack([ds.pixel_array * ds.RescaleSlope + ds.RescaleIntercept for ds in slices])


def simpleitk(folder):
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    return sitk.GetArrayFromImage(reader.Execute())


def monai_reader(name):
    load = LoadImage(reader=name, image_only=True)
    return lambda folder: load(folder).numpy().transpose(2, 1, 0)


def readers():
    found = {"medzoo": ours, "pydicom": plain_pydicom, "SimpleITK": simpleitk}
    for library, name in (("pydicom", "PydicomReader"), ("itk", "ITKReader")):
        if find_spec(library):
            found[f"MONAI's {name}"] = monai_reader(name)
    return found


def test_series(benchmark, series):
    """The target is less than any peer; on the real series, whose headers have sequences, a third of plain pydicom."""
    calls = readers()
    expected = ours(series)
    for name, call in calls.items():
        found = np.asarray(call(series))
        same = np.array_equal(found, expected) or np.array_equal(found[::-1], expected)  # some sort from the head down
        assert same, name
    times = {name: [] for name in calls}

    def one_round():
        for name, call in calls.items():
            start = time.process_time()
            call(series)
            times[name].append(time.process_time() - start)

    rounds, warm_up = (1, 0) if benchmark.disabled else (ROUNDS, 1)
    benchmark.pedantic(one_round, rounds=rounds, warmup_rounds=warm_up)
    own = times["medzoo"]
    for name, found in times.items():
        ratio = spread([other / mine for other, mine in zip(found, own, strict=True)])
        ratio["least"] = min(found) / min(own)
        benchmark.extra_info[name] = {"least_s": min(found), "ratio": ratio}
        if benchmark.stats:
            figures = f"{ratio['least']:.1f} times medzoo's (median {ratio['median']:.1f})"
            print(f"\n{name}: {1000 * min(found):.1f} ms, {figures}")
