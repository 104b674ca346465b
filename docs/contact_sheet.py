"""Draw a contact sheet of files as ``medzoo.read`` returns them, to check their orientation by eye.

    python docs/contact_sheet.py                     the phantom X-ray and CT, in six formats, for docs/images
    python docs/contact_sheet.py OUT.png PATH...     your own files and series folders
"""  # fmt: skip

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from medzoo.visual.phantoms import draw_ct, draw_xray
from medzoo.visual.show import contact_sheet

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))


def draw_files(folder: Path) -> list[Path]:
    """Write the phantom X-ray and CT in six formats, and return the files and the folder of the series."""
    from make_images import slice_fields, write_dicom, write_metaimage, write_nifti, write_png

    xray = draw_xray()
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "ViewPosition": "PA", "PixelSpacing": [0.8, 0.8]}
    ct, affine = draw_ct()
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    origin = tuple(lps[:3, 3])
    direction = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
    rows = np.ascontiguousarray(ct.transpose(2, 1, 0)[:, ::-1, ::-1])  # d h w: head up, rows to the back, columns left
    corner = affine @ [ct.shape[0] - 1, ct.shape[1] - 1, 0, 1]
    stored = (rows + 1024).clip(0).astype(np.uint16)
    fields = {"PixelSpacing": [3.0, 3.0]}
    (folder / "ct-series").mkdir()
    for i, pixels in enumerate(stored):
        place = (-corner[0], -corner[1], corner[2] + 8.0 * i)
        write_dicom(folder / "ct-series" / f"{i:03d}", pixels, **slice_fields(place, i, **fields))
    backwards = affine @ np.diag([-1.0, 1.0, -1.0, 1.0])
    backwards[:3, 3] = (affine @ [ct.shape[0] - 1, 0, ct.shape[2] - 1, 1])[:3]
    write_metaimage(
        folder / "ct.mha", ct.transpose(2, 1, 0), spacing=(3.0, 3.0, 8.0), origin=origin, direction=direction
    )
    return [
        write_png(folder / "xray.png", xray),
        write_dicom(folder / "xray-monochrome1.dcm", 255 - xray, **inverted),
        write_dicom(folder / "ct-slice.dcm", stored[20], **slice_fields((0.0, 0.0, 0.0), **fields)),
        folder / "ct-series",
        write_nifti(folder / "ct-stored-backwards.nii.gz", ct[::-1, :, ::-1], backwards),
        folder / "ct.mha",
    ]


def main() -> None:
    """Draw the sheet for the command-line arguments."""
    if len(sys.argv) > 2:
        contact_sheet(sys.argv[2:], sys.argv[1])
        return
    out = HERE / "images" / "contact_sheet.png"
    out.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        contact_sheet(draw_files(Path(folder))).quantize(64).save(out, optimize=True)


if __name__ == "__main__":
    main()
