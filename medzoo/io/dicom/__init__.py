"""The readers of DICOM files and series."""
