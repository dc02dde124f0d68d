"""Pictures that training refuses, read for a single result: by their own range, with one remark."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from leukoscope.data.conversion import open_converted
from leukoscope.data.images import UnreadableImage, open_image

COLOURS = np.random.default_rng(0).integers(0, 4096, (40, 50, 3)).astype(np.uint16)  # a 12-bit camera's


def tiff(values: np.ndarray, order: str, *, packed: bool = False) -> bytes:
    """A TIFF of 16 bits a channel, which Pillow does not write in colour."""
    sign = {"II": "<", "MM": ">"}[order]
    data = values.astype(f"{sign}u2").tobytes()
    data = zlib.compress(data) if packed else data
    height, width, channels = (*values.shape, 1)[:3]
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, -1), (259, 3, 1, 8 if packed else 1),
            (262, 3, 1, 2 if channels == 3 else 1), (273, 4, 1, -2), (277, 3, 1, channels), (278, 3, 1, height),
            (279, 4, 1, len(data))]  # fmt: skip
    bits_at = 8 + 2 + 12 * len(tags) + 4
    out = order.encode() + struct.pack(f"{sign}HIH", 42, 8, len(tags))
    for tag, kind, count, value in tags:
        if value == -1:
            packed_value = struct.pack(f"{sign}I", bits_at) if channels > 2 else struct.pack(f"{sign}HH", 16, 0)
        elif value == -2:
            packed_value = struct.pack(f"{sign}I", bits_at + 2 * channels)
        else:
            packed_value = struct.pack(f"{sign}HH", value, 0) if kind == 3 else struct.pack(f"{sign}I", value)
        out += struct.pack(f"{sign}HHI", tag, kind, count) + packed_value
    return out + struct.pack(f"{sign}I", 0) + struct.pack(f"{sign}H", 16) * channels + data


def png(values: np.ndarray) -> bytes:
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.tif", tiff(COLOURS, "II"), COLOURS >> 4),
        ("b.tif", tiff(COLOURS, "MM"), COLOURS >> 4),
        ("c.tif", tiff(COLOURS, "II", packed=True), COLOURS >> 4),
        ("d.tif", tiff(COLOURS, "MM", packed=True), COLOURS >> 4),
        ("e.png", png(COLOURS), COLOURS >> 4),
        ("f.png", png(COLOURS * 16), COLOURS >> 4),
        ("g.tif", tiff(COLOURS[..., 0], "II"), np.repeat(COLOURS[..., :1] >> 4, 3, axis=2)),
    ],
)
def test_16_bits_are_read_by_their_true_range(tmp_path: Path, name: str, content: bytes, expected: np.ndarray) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImage):
        open_image(tmp_path / name)
    found = open_converted(tmp_path / name, 10**7)
    assert found is not None and found[1] == "bits"
    assert np.array_equal(np.asarray(found[0]), expected)


def test_print_colours_and_the_first_frame_are_read(tmp_path: Path) -> None:
    violet = Image.new("RGB", (60, 40), (104, 60, 150))
    violet.convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    violet.convert("CMYK").save(tmp_path / "print.tif")
    violet.save(tmp_path / "moving.gif", save_all=True, append_images=[Image.new("RGB", (60, 40), "white")])
    for name, conversion in (("print.jpg", "cmyk"), ("print.tif", "cmyk"), ("moving.gif", "frames")):
        found = open_converted(tmp_path / name, 10**7)
        assert found is not None and found[1] == conversion
        assert np.abs(np.asarray(found[0]).astype(int) - (104, 60, 150)).max() <= 4, name


def test_a_broken_profile_is_passed_over(tmp_path: Path) -> None:
    violet = Image.new("CMYK", (60, 40), (100, 200, 30, 20))
    rgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # of another colour space
    for number, profile in enumerate((b"no profile", rgb)):
        violet.save(tmp_path / f"{number}.tif", icc_profile=profile)
        found = open_converted(tmp_path / f"{number}.tif", 10**7)
        assert found is not None and np.array_equal(np.asarray(found[0]), np.asarray(violet.convert("RGB")))


def test_nothing_else_is_converted(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "plain.png")
    assert open_converted(tmp_path / "plain.png", 10**7) is None
    (tmp_path / "deep.tif").write_bytes(tiff(COLOURS, "II"))
    assert open_converted(tmp_path / "deep.tif", 100) is None, "too large"
    (tmp_path / "text.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableImage):
        open_converted(tmp_path / "text.png", 10**7)
    (tmp_path / "cut.tif").write_bytes(tiff(COLOURS, "II")[:-4000])
    with pytest.raises(UnreadableImage):
        open_converted(tmp_path / "cut.tif", 10**7)
