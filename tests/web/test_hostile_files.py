"""Hundreds of seeded hostile files, each answered or refused in one kind sentence, and none left on the disk."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from leukoscope.reports.formatting import encoded
from leukoscope.web.app import Endpoints
from leukoscope.web.model_cache import ModelCache
from leukoscope.web.upload import OWN_FOLDER

Maker = Callable[[random.Random], bytes]
EACH = 9


def noise(rng: random.Random, mode: str = "RGB", side: int = 0) -> Image.Image:
    width, height = (side, side) if side else (rng.randint(16, 200), rng.randint(16, 200))
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height, width, channels))
    return Image.fromarray(pixels.astype(np.uint8).squeeze(), mode if channels == 1 else None).convert(mode)


def huge_png(rng: random.Random) -> bytes:
    """20,000 × 20,000 pixels in a few kilobytes."""
    side = rng.randint(20_000, 30_000)
    rows = zlib.compress(bytes((side // 8 + 1) * 200), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    )


def text_bomb(rng: random.Random) -> bytes:
    about = PngInfo()
    about.add_text("Comment", "a" * rng.randint(2, 8) * 2**20, zip=True)
    return encoded(noise(rng), "PNG", pnginfo=about)


def rotated(rng: random.Random) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = rng.randint(0, 12)
    return encoded(noise(rng), "JPEG", exif=exif)


def any_kind(rng: random.Random) -> bytes:
    return encoded(noise(rng), rng.choice(("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")))


def damaged(rng: random.Random) -> bytes:
    data = bytearray(any_kind(rng))
    for _ in range(rng.randint(1, 40)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def packed(rng: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("cell.png", rng.randbytes(100))
    return buffer.getvalue()


def frames(rng: random.Random) -> bytes:
    pictures = [noise(rng, side=40) for _ in range(rng.randint(2, 5))]
    kind = rng.choice(("GIF", "PNG", "TIFF", "WEBP"))
    return encoded(pictures[0], kind, save_all=True, append_images=pictures[1:])


MAKERS: dict[str, Maker] = {
    "huge": huge_png,
    "text bomb": text_bomb,
    "16-bit grey": lambda rng: encoded(Image.fromarray(np.full((40, 40), rng.randrange(2**16), np.uint16)), "PNG"),
    "32-bit float": lambda rng: encoded(Image.new("F", (40, 40), rng.random()), "TIFF"),
    "32-bit integer": lambda rng: encoded(Image.new("I", (40, 40), rng.randrange(2**20)), "TIFF"),
    "CMYK": lambda rng: encoded(noise(rng).convert("CMYK"), rng.choice(("JPEG", "TIFF"))),
    "palette": lambda rng: encoded(noise(rng).convert("P"), "PNG", transparency=rng.randrange(256)),
    "alpha": lambda rng: encoded(noise(rng, "RGBA"), "PNG"),
    "grey with alpha": lambda rng: encoded(noise(rng, "LA"), "PNG"),
    "black and white": lambda rng: encoded(noise(rng, "L").convert("1"), "PNG"),
    "rotated by EXIF": rotated,
    "frames": frames,
    "LAB": lambda rng: encoded(Image.new("LAB", (40, 40)), "TIFF"),
    "icon": lambda rng: encoded(noise(rng, "RGBA", 64), "ICO"),
    "SVG": lambda rng: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "HTML": lambda rng: b"<!doctype html><script>alert(1)</script>" + rng.randbytes(20),
    "PDF": lambda rng: b"%PDF-1.7\n" + rng.randbytes(200),
    "EPS": lambda rng: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n(x) run\n" + rng.randbytes(50),
    "HEIC": lambda rng: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + rng.randbytes(200),
    "Git LFS pointer": lambda rng: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:%x\n" % rng.getrandbits(256)
    ),
    # A TIFF whose values have 12 bits each, which Pillow cannot open.
    "12-bit colour": lambda rng: encoded(noise(rng, side=64), "TIFF").replace(
        struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 12, 12, 12)
    ),
    "program": lambda rng: b"\x7fELF" + rng.randbytes(300),
    "zip": packed,
    "one pixel": lambda rng: encoded(noise(rng, side=rng.randint(1, 7)), "PNG"),
    "strip": lambda rng: encoded(Image.new("RGB", (rng.randint(5_000, 20_000), 8)), "PNG"),
    "random bytes": lambda rng: rng.randbytes(rng.randint(1, 5_000)),
    "nothing": lambda rng: b"",
    "damaged": damaged,
    "cut short": lambda rng: (data := any_kind(rng))[: rng.randrange(len(data))],
}
NAMES = ("cell.png", "..%2f..%2fetc%2fpasswd", "a b\tc.jpg", "<img onerror=x>.png", "細胞.tiff", "con.bmp", "x" * 200)
SEEDED = [(kind, seed) for kind in MAKERS for seed in range(EACH)]


@pytest.fixture(scope="module")
def endpoints(tiny_release: Path) -> Endpoints:
    return Endpoints(ModelCache({"tiny": tiny_release}))


def ask(endpoint: Callable[..., Any], *values: Any) -> str:
    """What a visitor reads: "" for an answer, else the message; anything but a kind refusal fails the test."""
    try:
        endpoint(*values)
    except gradio.Error as refusal:
        return refusal.message
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["predict", "field", "batch"])
def test_no_file_crashes_or_stays(
    endpoints: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert len(SEEDED) >= 200
    for kind, seed in SEEDED:
        rng = random.Random(f"{kind} {seed}")
        path = tmp_path / f"{OWN_FOLDER}1" / rng.choice(NAMES)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(MAKERS[kind](rng))
        said = ask(getattr(endpoints, name), [str(path)] if name == "batch" else str(path), "tiny")
        assert "Traceback" not in said and "\n" not in said, f"{kind} {seed}: {said}"
        assert str(tmp_path) not in said, f"{kind} {seed} names a folder: {said}"
        assert not path.exists(), f"{kind} {seed} stays on the disk"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("huge", "more than the 100 megapixels"),
        ("16-bit grey", "has more than 8 bits a channel"),
        ("CMYK", "has pixels of mode CMYK"),
        ("frames", "several frames; save the one to use"),
        *((kind, "is not an image") for kind in ("SVG", "HTML", "PDF", "EPS")),
        ("HEIC", "is a HEIC (iPhones), AVIF or MP4 file; export a picture as JPEG or PNG"),
        ("Git LFS pointer", "is a Git LFS pointer, not the file itself"),
        ("12-bit colour", "of a kind that is not supported; convert it to 8-bit RGB"),
        ("one pixel", "too small for a cell"),
        ("strip", "one side more than 10 times the other"),
        ("nothing", "the file is empty"),
        *((kind, "") for kind in ("palette", "alpha", "rotated by EXIF")),
    ],
)
def test_each_kind_is_answered_or_told_what_is_wrong(
    endpoints: Endpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "cell.png").write_bytes(MAKERS[kind](random.Random(0)))
    answer = ask(endpoints.predict, str(tmp_path / "cell.png"), "tiny")
    assert said in answer and bool(answer) == bool(said)
