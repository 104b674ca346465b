"""DICOM objects and series."""
