"""Readers of image files: any supported file or DICOM series to one :class:`medzoo.Image`."""
