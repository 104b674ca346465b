"""A patient has the same digits wherever one is named."""

from __future__ import annotations

import numpy as np
import pydicom
from make_images import PATIENT_ID, dataset, write_dicom

import medzoo
from medzoo.data.identity import hashed
from medzoo.io.dicom.slices import slice_of
from medzoo.io.hashing import hash_text


def test_a_patient_has_the_same_digits_in_images_series_and_messages(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16))
    digits = hash_text(PATIENT_ID)
    assert medzoo.read(path).identity["patient"] == digits
    assert digits in slice_of(pydicom.dcmread(path), path).identity
    assert digits.startswith(hashed(PATIENT_ID))
    assert len(hashed(PATIENT_ID)) == 8


def test_no_id_is_no_digits(tmp_path):
    blank = dataset(np.zeros((4, 4), np.uint16), PatientID="")
    assert slice_of(blank, tmp_path).identity[0] == ""
    assert hash_text("\udcff") == hash_text("\\udcff"), "what is not UTF-8 is hashed too"
