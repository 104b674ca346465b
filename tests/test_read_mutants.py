"""Reading a damaged file gives an image or a medzoo error, in bounded memory and without output on stderr.

Each mutant is a valid file with a few seeded faults: bits, bytes and extreme values overwritten, pieces cut, doubled,
removed or zeroed. Where a checksum would catch them all, half of the mutants get a correct one, so that faults reach
the code behind it. They are read in a separate process with a memory limit, which also detects a crash in C.
"""

from __future__ import annotations

import gzip
import json
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

resource = pytest.importorskip("resource", reason="limits on memory are set as on Linux")

MEMORY = 2**30  # bytes above what the libraries themselves take
MOST_VOXELS = 2**22
FRAMES = {"big.tif": 1, "imagej.tif": 2, "four.nii.gz": 1}
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]


KINDS = ["png", "tiff", "dicom", "nifti", "metaimage", "other"]


@pytest.mark.parametrize("kind", KINDS)
def test_500_mutants_end_in_an_image_or_a_medzoo_error(tmp_path, kind):
    _run(tmp_path, kind, 500)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_40000_mutants_end_in_an_image_or_a_medzoo_error(tmp_path, kind):
    _run(tmp_path, kind, 40000)


def _run(folder: Path, kind: str, count: int) -> None:
    """Read ``count`` mutants in a separate process, and check how it ended."""
    command = [sys.executable, "-W", "error", __file__, kind, str(count), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert done.stderr == ""  # ITK, GDCM and libjpeg print here
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["image"] + result["refused"] == count
    assert result["refused"] > count // 4
    assert result["grown"] < MEMORY
    assert result["slowest"] < 60  # seconds: nothing hangs


def main(kind: str, count: int, folder: Path) -> None:
    """Read the mutants of one kind; any other exception ends the process with its seed."""
    from medzoo.errors import MedzooError
    from medzoo.io.options import ReadOptions
    from medzoo.io.read import read_image

    bases = BASES[kind](folder)
    for path, _, _ in bases:
        read_image(path, ReadOptions(frame=FRAMES.get(path.name)))  # loads the libraries
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {"image": 0, "refused": 0, "slowest": 0.0}
    for seed in range(count):
        path, target, seal = bases[seed % len(bases)]
        original = target.read_bytes()
        target.write_bytes(seal(original, random.Random(seed)))
        start = time.monotonic()
        sys.stdout.write(f"seed {seed} of {path.name}\n")
        sys.stdout.flush()
        try:
            image = read_image(path, ReadOptions(frame=FRAMES.get(path.name), nan="zero", max_voxels=MOST_VOXELS))
            assert image.array.size <= MOST_VOXELS
            assert image.array.dtype.kind in "uif"
            assert np.isfinite(image.array.sum(dtype=np.float64))
            result["image"] += 1
        except MedzooError:
            result["refused"] += 1
        finally:
            target.write_bytes(original)
        result["slowest"] = max(result["slowest"], time.monotonic() - start)
    result["grown"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    sys.stdout.write(json.dumps(result))


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Return the bytes with one to four faults, most of them in the header."""
    out = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        if not out:
            break
        at = dice.randrange(len(out) if dice.random() < 0.5 else min(len(out), 1024))
        size = dice.choice([1, 2, 4, 16, 200])
        fault = dice.randrange(8)
        if fault == 0:
            out[at] ^= 1 << dice.randrange(8)
        elif fault == 1:
            out[at] = dice.randrange(256)
        elif fault == 2:
            value = dice.choice(EXTREMES)
            out[at : at + 4] = struct.pack(dice.choice("<>") + "I", value)
        elif fault == 3:
            out[at : at + 2] = struct.pack(dice.choice("<>") + "H", dice.choice(EXTREMES) & 0xFFFF)
        elif fault == 4:
            del out[at:]
        elif fault == 5:
            del out[at : at + size]
        elif fault == 6:
            out[at:at] = out[at : at + size]
        else:
            out[at : at + size] = bytes(len(out[at : at + size]))
    return bytes(out)


def mutate_png(data: bytes, dice: random.Random) -> bytes:
    """Mutate the content of the chunks and correct their checksums, or mutate the file directly."""
    if dice.random() < 0.5:
        return mutate(data, dice)
    out, at = data[:8], 8
    names = [data[i : i + 4] for i in range(len(data)) if data[i : i + 4] in (b"IHDR", b"IDAT", b"tRNS", b"PLTE")]
    victim = dice.choice(names)
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        name, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += 12 + length
        if name == victim:
            body = zlib.compress(mutate(zlib.decompress(body), dice)) if name == b"IDAT" else mutate(body, dice)
        out += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return out


def mutate_codestream(data: bytes, dice: random.Random) -> bytes:
    """Mutate a JPEG inside DICOM between its first marker and its last, so that it still looks complete."""
    start = max(data.find(b"\xff\xd8\xff"), data.find(b"\xff\x4f\xff")) + 2  # JPEG, JPEG 2000
    end = data.rindex(b"\xff\xd9")
    return data[:start] + mutate(data[start:end], dice) + data[end:]


def mutate_gzip(data: bytes, dice: random.Random) -> bytes:
    """Mutate the uncompressed content and correct the checksum, or mutate the file directly."""
    return mutate(data, dice) if dice.random() < 0.3 else gzip.compress(mutate(gzip.decompress(data), dice), 1)


Base = tuple[Path, Path, Callable[[bytes, random.Random], bytes]]


def pngs(folder: Path) -> list[Base]:
    from make_images import arrow, write_png
    from PIL import Image as Pillow

    grey = arrow().astype(np.uint8)
    paths = [write_png(folder / "grey.png", grey), write_png(folder / "deep.png", arrow(top=60000))]
    for mode in ("RGBA", "P", "1"):
        paths.append(folder / f"{mode}.png")
        Pillow.fromarray(grey).convert(mode).save(paths[-1])
    return [(path, path, mutate_png) for path in paths]


def dicoms(folder: Path) -> list[Base]:
    import imagecodecs
    from make_images import arrow, dataset, save, slice_fields, write_compressed, write_dicom, write_jpeg_lossless
    from pydicom.dataset import Dataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import (
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        ImplicitVRLittleEndian,
        JPEG2000Lossless,
        JPEGBaseline8Bit,
        JPEGExtended12Bit,
        JPEGLSLossless,
        RLELossless,
    )

    grey, deep = arrow().astype(np.uint8), arrow(top=4000)
    window = {"BitsStored": 12, "WindowCenter": 2000, "WindowWidth": 3000, "PhotometricInterpretation": "MONOCHROME1"}
    rle = dataset(np.stack([deep] * 2), BitsStored=12)
    rle.compress(RLELossless)
    for name, syntax, stream in (
        ("ls", JPEGLSLossless, imagecodecs.jpegls_encode(deep)),
        ("jpeg12", JPEGExtended12Bit, imagecodecs.jpeg8_encode(deep, level=90, bitspersample=12)),
    ):
        ds = dataset(deep, BitsStored=12)
        ds.file_meta.TransferSyntaxUID, ds.PixelData = syntax, encapsulate([stream])
        ds["PixelData"].VR = "OB"
        save(ds, folder / name)
    palette = dataset(grey, PhotometricInterpretation="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(palette, f"{colour}PaletteColorLookupTableDescriptor", [250, 0, 16])
        words = np.array([0, 2, 10, 20, 1, 200, 65535, 2, 1, 0, 0, 1, 46, 0], "<u2").tobytes()
        setattr(palette, f"Segmented{colour}PaletteColorLookupTableData", words)
    frames, voi = dataset(np.stack([deep] * 2), BitsStored=12), Dataset()
    voi.WindowCenter, voi.WindowWidth = 2000, 3000
    group = Dataset()
    group.FrameVOILUTSequence = [voi]
    frames.PerFrameFunctionalGroupsSequence = [group, group]
    paths = [
        folder / "ls",
        folder / "jpeg12",
        save(palette, folder / "palette"),
        save(frames, folder / "enhanced"),
        write_dicom(folder / "plain", deep, **window),
        write_dicom(folder / "ct", deep, **slice_fields((0, 0, 0))),
        write_dicom(folder / "frames", np.stack([grey] * 3), syntax=ImplicitVRLittleEndian),
        write_dicom(folder / "colour", np.stack([grey, grey // 2, grey], -1)),
        write_dicom(folder / "deflated", deep, syntax=DeflatedExplicitVRLittleEndian),
        write_dicom(folder / "big", deep, syntax=ExplicitVRBigEndian),
        write_compressed(folder / "jpeg", np.stack([grey] * 2), JPEGBaseline8Bit),
        write_compressed(folder / "j2k", grey, JPEG2000Lossless),
        write_jpeg_lossless(folder / "lossless", deep, **window),
        save(rle, folder / "rle"),
    ]
    jpegs = [path for path in paths if path.name in ("jpeg", "j2k", "lossless", "ls", "jpeg12")]
    return [*((path, path, mutate) for path in paths), *((path, path, mutate_codestream) for path in jpegs)]


def niftis(folder: Path) -> list[Base]:
    import nibabel
    from make_images import write_nifti

    volume = np.random.default_rng(0).integers(-1000, 1000, (12, 10, 8), dtype=np.int16)
    plain = [write_nifti(folder / "a.nii", volume), write_nifti(folder / "b.nii", volume.astype(np.float64))]
    packed = [write_nifti(folder / "a.nii.gz", volume), write_nifti(folder / "four.nii.gz", np.stack([volume] * 2, -1))]
    nibabel.save(nibabel.Nifti1Pair(volume, np.diag([-1, 2, 3, 1])), folder / "pair.img")
    plain.append(folder / "pair.hdr")
    return [*((path, path, mutate) for path in plain), *((path, path, mutate_gzip) for path in packed)]


def metaimages(folder: Path) -> list[Base]:
    from make_images import write_metaimage

    volume = np.random.default_rng(0).integers(-1000, 1000, (8, 10, 12), dtype=np.int16)
    split, packed = (
        write_metaimage(folder / "a.mhd", volume),
        write_metaimage(folder / "p.mhd", volume, compressed=True),
    )
    joined = [write_metaimage(folder / f"{flag}.mha", volume, compressed=flag) for flag in (False, True)]
    text = folder / "text.mha"
    head = "NDims = 2\nBinaryData = False\nDimSize = 12 10\nElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
    text.write_text(head + " ".join(map(str, volume[0].ravel())))
    joined.append(text)
    return [
        (split, split, mutate),
        (split, folder / "a.raw", mutate),
        (packed, packed, mutate),
        (packed, folder / "p.zraw", mutate),
        *((path, path, mutate) for path in joined),
    ]


def tiffs(folder: Path) -> list[Base]:
    import tifffile
    from make_images import arrow
    from PIL import Image as Pillow

    grey, deep = Pillow.fromarray(arrow().astype(np.uint8)), arrow(top=60000)
    colour = np.stack([deep, deep // 2, deep // 3], -1)
    paths = [folder / f"{name}.tif" for name in ("plain", "lzw", "bits", "palette", "cmyk", "jpeg", "packbits")]
    modes = ("L", "L", "1", "P", "CMYK", "RGB", "L")
    methods = (None, "tiff_lzw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
    for path, mode, method in zip(paths, modes, methods, strict=True):
        grey.convert(mode).save(path, compression=method)
    written = {
        "tiles": (deep, {"tile": (16, 32), "compression": "zlib", "predictor": True, "byteorder": ">"}),
        "planar": (np.moveaxis(colour, -1, 0), {"photometric": "rgb", "planarconfig": "separate", "rowsperstrip": 7}),
        "float": (deep.astype(np.float32), {"compression": "zlib", "predictor": True, "rowsperstrip": 5}),
        "big": (np.stack([deep] * 2), {"bigtiff": True, "photometric": "miniswhite"}),
        "double": (deep.astype(np.float64), {"compression": "lzma"}),
        "imagej": (np.stack([deep] * 3), {"imagej": True}),
    }
    for name, (pixels, options) in written.items():
        paths.append(folder / f"{name}.tif")
        tifffile.imwrite(paths[-1], pixels, **options)
    return [(path, path, mutate) for path in paths]


def others(folder: Path) -> list[Base]:
    from make_images import arrow
    from PIL import Image as Pillow

    paths = [folder / name for name in ("a.jpg", "a.npy")]
    Pillow.fromarray(arrow().astype(np.uint8)).save(paths[0])
    np.save(paths[1], arrow()[None])
    return [(path, path, mutate) for path in paths]


BASES = {"png": pngs, "tiff": tiffs, "dicom": dicoms, "nifti": niftis, "metaimage": metaimages, "other": others}

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
