"""Draw the picture of README: the phantoms of ``medzoo quickstart``. ``python docs/readme_picture.py``."""

from __future__ import annotations

import tempfile
from pathlib import Path

from PIL import Image

import medzoo
from medzoo.visual.phantoms import write_ct, write_xray

OUT = Path(__file__).parent / "images" / "quickstart.png"
HEIGHT = 420


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        pictures = [medzoo.show(write(Path(folder))).convert("RGB") for write in (write_xray, write_ct)]
    pictures = [p.resize((round(p.width * HEIGHT / p.height), HEIGHT), Image.Resampling.LANCZOS) for p in pictures]
    sheet = Image.new("RGB", (sum(p.width for p in pictures), HEIGHT))
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width
    OUT.parent.mkdir(exist_ok=True)
    sheet.quantize(64).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
