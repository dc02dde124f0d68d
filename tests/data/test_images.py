"""Every kind of file a person may hand in: read upright and in 8-bit RGB, or refused in words that say what to do."""

from __future__ import annotations

import os
import random
import re
import struct
import subprocess
import sys
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from leukoscope.data.images import (
    BLACK_RGB,
    FILLED_WITH,
    MAX_PIXELS,
    UnreadableImage,
    cell_area,
    check_header,
    foreground,
    from_array,
    is_cut_out,
    is_dark,
    open_bytes,
    open_image,
    open_smear,
    pixel_hash,
    to_rgb,
)


@pytest.fixture
def picture() -> Image.Image:
    """A 40×24 RGB picture of noise: no compressor can make it tiny, so half a file is half a picture."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))


def _refusal(path: Path) -> str:
    with pytest.raises(UnreadableImage) as refused:
        open_image(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: "), "a refusal names the file first"
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def _png(width: int, height: int, rows: bytes = b"", bits: int = 8, colour_type: int = 2) -> bytes:
    """A PNG that promises width × height pixels and holds these rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["bmp", "png", "tiff", "tif", "webp"])
def test_reads_lossless_formats_to_the_pixel(tmp_path: Path, picture: Image.Image, suffix: str) -> None:
    path = tmp_path / f"cell.{suffix}"
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    picture.save(path, **options)
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert opened.size == (40, 24)
    assert np.array_equal(np.asarray(opened), np.asarray(picture))
    assert check_header(path) == (40, 24)


def test_refuses_what_is_no_file_of_a_picture(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "nowhere.png") == "no such file; check the path"
    assert _refusal(tmp_path) == "is a folder, a pipe or a device; name an image file"
    (tmp_path / "cell.bmp").touch()
    assert _refusal(tmp_path / "cell.bmp") == "the file is empty (0 bytes); copy or export it again"
    (tmp_path / "notes.png").write_text("cell,label\n1,ALL\n")
    assert _refusal(tmp_path / "notes.png") == "is not an image; give one of BMP, PNG, JPG, TIFF, WEBP"
    for name in ("a" * 300 + ".png", "a\0b.png"):
        with pytest.raises(UnreadableImage, match=r"no such file|cannot be read \(.*\); check the path and who may"):
            open_image(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_refuses_a_pipe_without_waiting_for_its_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "cell.png")
    assert _refusal(tmp_path / "cell.png").startswith("is a folder, a pipe or a device; name")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp"])
def test_refuses_truncated_file_which_its_header_does_not_show(
    tmp_path: Path, picture: Image.Image, suffix: str
) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    picture.save(whole)
    cut.write_bytes(whole.read_bytes()[: int(0.7 * whole.stat().st_size)])
    assert check_header(cut) == (40, 24)
    message = _refusal(cut)
    assert message.startswith("the image is damaged or cut short (")
    assert message.endswith("; copy or export it again")


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_refuses_16_bit_png_of_every_colour_type(tmp_path: Path, colour_type: int, channels: int) -> None:
    """As a 12-bit camera fills it: every value 0x0FFF."""
    path = tmp_path / "camera.png"
    path.write_bytes(_png(16, 16, 16 * (b"\0" + b"\x0f\xff" * (16 * channels)), 16, colour_type))
    assert re.fullmatch(r"has more than 8 bits a channel \(mode .*\); convert it to 8-bit RGB first", _refusal(path))


def test_refuses_other_kinds_of_pixels(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16)).save(tmp_path / "print.jpg")
    assert _refusal(tmp_path / "print.jpg") == "has pixels of mode CMYK; convert it to 8-bit RGB first"
    with pytest.raises(UnreadableImage, match="^upload: has pixels of mode F; convert"):
        to_rgb(Image.fromarray(np.ones((16, 16), np.float32)), "upload")


def _tiff(channels: int, kind: str = "uint8", photometric: str = "rgb", **tags: Any) -> bytes:
    """An unpacked TIFF of noise; for `planarconfig` "separate", one channel after the other."""
    most = np.iinfo(kind).max if np.issubdtype(np.dtype(kind), np.integer) else 1
    pixels = (np.random.default_rng(0).random((channels, 16, 16)) * most).astype(kind)
    if channels == 4:
        pixels[3] = most  # opaque
    if tags.get("planarconfig") != "separate":
        pixels = np.moveaxis(pixels, 0, -1)
    file = BytesIO()
    tifffile.imwrite(file, pixels.squeeze(), photometric=photometric, metadata=None, **tags)
    return file.getvalue()


@pytest.mark.parametrize("channels", [3, 4])
def test_a_tiff_of_8_bits_is_read_to_the_pixel_and_one_of_16_refused(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "camera.tif"
    tags: dict[str, Any] = {"extrasamples": ["unassalpha"] * (channels - 3)}
    path.write_bytes(_tiff(channels, **tags))
    assert np.array_equal(np.asarray(open_image(path)), tifffile.imread(path)[..., :3])
    path.write_bytes(_tiff(channels, "uint16", **tags))
    for read in (check_header, open_image, open_smear, lambda path: to_rgb(Image.open(path))):
        with pytest.raises(UnreadableImage, match=r"has more than 8 bits a channel \((16 bits|mode RGBA?)\); convert"):
            read(path)


@pytest.mark.parametrize(
    "content",
    [
        _tiff(3, planarconfig="separate"),
        _tiff(4, planarconfig="separate", extrasamples=["unassalpha"]),
        _tiff(3, "uint32"),
        _tiff(3, "float32"),
        _tiff(1, "float16", "minisblack"),
        _tiff(2, photometric="minisblack", planarconfig="contig"),
        _tiff(2, photometric="minisblack", planarconfig="separate"),
        _tiff(3, photometric="minisblack", planarconfig="contig"),
        _tiff(3, photometric="cielab", planarconfig="separate"),
        _tiff(1, "int8", "minisblack"),
        _tiff(2, photometric="miniswhite", planarconfig="separate"),
    ],
)
def test_a_tiff_that_pillow_reads_wrong_or_not_at_all_is_refused(tmp_path: Path, content: bytes) -> None:
    """Which of these Pillow opens changes with its version."""
    (tmp_path / "map.tif").write_bytes(content)
    problem = _refusal(tmp_path / "map.tif")
    assert re.match(
        r"is a (TIFF|damaged picture, or) of a kind that is not supported|has (more than 8 bits|pixels of mode LAB)",
        problem,
    )
    assert "convert it to 8-bit RGB" in problem
    with pytest.raises(UnreadableImage, match=f"^cell 7: {re.escape(problem)}"):
        open_bytes(content, "cell 7")


def test_a_packed_tiff_in_ycbcr_is_read(tmp_path: Path, picture: Image.Image) -> None:
    smooth = picture.resize((8, 8)).resize((64, 64), Image.Resampling.BICUBIC)
    smooth.convert("YCbCr").save(tmp_path / "cell.tif", compression="tiff_lzw")
    assert np.abs(np.asarray(open_image(tmp_path / "cell.tif")).astype(int) - np.asarray(smooth)).max() <= 3


def _box(*brands: bytes) -> bytes:
    """The first box of a file of the HEIF family, and some of what follows."""
    return struct.pack(">I", 12 + 4 * len(brands)) + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:]) + bytes(99)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_box(b"heic", b"mif1"), "is a HEIC (iPhones), AVIF or MP4 file; export a picture as JPEG or PNG"),
        (b"\0\0\0", "is not an image; give one of BMP, PNG, JPG, TIFF, WEBP"),
        (b"II*\0\xff\xff\0\0" + bytes(200), "is a damaged picture, or"),
        *((head, "is a damaged picture, or") for head in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a")),
        (b"II*\0\x08", "is a damaged picture, or of a kind that is not supported; copy it again, or conv"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 607\n",
         "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_picture_of_ours_is_called_what_it_is(tmp_path: Path, content: bytes, said: str) -> None:
    for name in ("IMG_0001.HEIC", "cell.jpg"):
        (tmp_path / name).write_bytes(content)
        assert _refusal(tmp_path / name).startswith(said)
    with pytest.raises(UnreadableImage, match=f"^cell 7: {re.escape(said)}"):
        open_bytes(content, "cell 7")


def _profile(space: bytes = b"RGB ") -> bytes:
    """An ICC profile of Adobe RGB (primaries as XYZ under D50, gamma 563/256)."""

    def xyz(*values: float) -> bytes:
        return b"XYZ " + struct.pack(">4x3i", *(round(65536 * value) for value in values))

    white = xyz(0.9642, 1, 0.8249)
    curve = b"curv" + struct.pack(">IIHxx", 0, 1, 563)
    tags = {b"wtpt": white, b"desc": b"desc" + bytes(88), b"cprt": b"text" + bytes(8), b"kTRC": curve}
    tags |= {b"rXYZ": xyz(0.6097, 0.3111, 0.0195), b"gXYZ": xyz(0.2053, 0.6257, 0.0609)}
    tags |= {b"bXYZ": xyz(0.1492, 0.0632, 0.7446), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    table = struct.pack(">I", len(tags))
    start = 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += name + struct.pack(">II", start, len(tag))
        start += len(tag)
    header = struct.pack(">I4xI4s4s4s6H4s28x", start, 0x02400000, b"mntr", space, b"XYZ ", 2026, 1, 1, 0, 0, 0, b"acsp")
    return (header + white[8:]).ljust(128, b"\0") + table + b"".join(tags.values())


_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
_ADOBE = _profile()
_VIOLET = (170, 80, 160)
_VIOLET_IN_SRGB = np.array((194.4, 79.0, 163.9))  # by the formulas of the two spaces


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
def test_colours_of_a_profile_become_srgb_however_a_picture_is_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cell.{suffix}"
    options: dict[str, Any] = {"jpg": {"quality": 100}, "webp": {"lossless": True}}
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16), _VIOLET).save(path, icc_profile=_ADOBE, exif=exif, **options.get(suffix, {}))
    with Image.open(path) as raw:
        kept = raw.copy()
        opened = [
            open_image(path), open_smear(path), open_bytes(path.read_bytes(), "cell"), to_rgb(raw), to_rgb(kept)
        ]  # fmt: skip
    for picture in opened:
        assert (picture.mode, picture.size) == ("RGB", (16, 24))
        assert np.abs(np.asarray(picture) - _VIOLET_IN_SRGB).max() <= (3 if suffix == "jpg" else 1)
        assert to_rgb(picture) is picture, "it is converted once"
    assert kept.getpixel((5, 5)) == raw.getpixel((5, 5)), "what was given stays as it was"
    assert opened[0].info == {}


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_colours_of_a_palette_and_beside_transparency_become_srgb_too(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGB", (16, 16), _VIOLET)
    (picture.quantize(4) if mode == "P" else picture.convert(mode)).save(tmp_path / "cell.png", icc_profile=_ADOBE)
    assert np.abs(np.asarray(open_image(tmp_path / "cell.png")) - _VIOLET_IN_SRGB).max() <= 1


@pytest.mark.parametrize(
    "profile",
    [
        None,
        _SRGB,
        # Primaries a little aside, as other writers round them.
        _SRGB.replace(struct.pack(">i", 0x6FA0), struct.pack(">i", 0x6FA0 + 16)),
        b"broken",
        b"x" * 999,
        _ADOBE[:200],
        _ADOBE[:-10],
        _profile(b"GRAY"),
        _profile(b"CMYK"),
        _ADOBE.ljust(5_000_000, b"\0"),
    ],
)
def test_srgb_and_broken_profiles_leave_every_pixel(
    tmp_path: Path, picture: Image.Image, profile: bytes | None
) -> None:
    picture.save(tmp_path / "cell.tiff", icc_profile=profile)
    for read in (open_image, open_smear, lambda path: to_rgb(Image.open(path))):
        assert np.array_equal(np.asarray(read(tmp_path / "cell.tiff")), np.asarray(picture))
    given = picture.copy()
    given.info["icc_profile"] = profile
    assert to_rgb(given) is given


def test_grey_pictures_are_left_as_they_are_whatever_their_profile(tmp_path: Path, picture: Image.Image) -> None:
    grey = picture.convert("L")
    for profile in (_profile(b"GRAY"), _ADOBE):
        grey.save(tmp_path / "cell.png", icc_profile=profile)
        assert np.array_equal(np.asarray(open_image(tmp_path / "cell.png")), np.asarray(grey.convert("RGB")))


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff"])
def test_refuses_several_frames(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / f"film.{suffix}", save_all=True, append_images=frames[1:])
    assert _refusal(tmp_path / f"film.{suffix}") == "holds several frames; save the one to use as a single image"


@pytest.mark.parametrize(("width", "height"), [(1_000_000, 8), (8, 1_000_000), (161, 16)])
def test_refuses_strips_from_the_header_alone(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "strip.png"
    path.write_bytes(_png(width, height))
    wanted = f"is {width}×{height} pixels, one side more than 10 times the other; crop it to the cell"
    assert _refusal(path) == wanted
    with pytest.raises(UnreadableImage, match=wanted):
        check_header(path)
    with pytest.raises(UnreadableImage, match=f"^array: {wanted}"):
        from_array(np.zeros((height, width), np.uint8))


def test_the_smallest_and_the_longest_pictures_are_read(tmp_path: Path) -> None:
    for size in ((8, 8), (160, 16)):
        Image.new("L", size).save(tmp_path / "cell.png")
        assert open_image(tmp_path / "cell.png").size == size
    (tmp_path / "cell.png").write_bytes(_png(40, 7))
    assert _refusal(tmp_path / "cell.png") == "is 40×7 pixels, too small for a cell; give at least 8×8"


def test_formats_that_would_start_another_program_are_no_images(tmp_path: Path, picture: Image.Image) -> None:
    path = tmp_path / "cell.png"
    picture.save(path, "EPS")
    assert Image.open(path).format == "EPS", "Pillow alone goes by the content"
    wanted = "is not an image; give one of BMP, PNG, JPG, TIFF, WEBP"
    assert _refusal(path) == wanted
    with pytest.raises(UnreadableImage, match=wanted):
        check_header(path)


def test_a_phone_photograph_with_previews_is_its_first_picture(tmp_path: Path) -> None:
    photograph, preview = Image.new("RGB", (32, 24), "white"), Image.new("RGB", (16, 12), "black")
    photograph.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[preview])
    assert Image.open(tmp_path / "phone.jpg").format == "MPO"
    opened = open_image(tmp_path / "phone.jpg")
    assert (opened.size, opened.getpixel((5, 5))) == ((32, 24), (255, 255, 255))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refuses_more_than_100_megapixels_from_the_header_alone(tmp_path: Path) -> None:
    """The file holds not one pixel: had anything been decoded, the message would be another."""
    path = tmp_path / "slide.png"
    path.write_bytes(_png(10_000, MAX_PIXELS // 10_000))
    assert check_header(path) == (10_000, 10_000)
    limit = "more than the 100 megapixels allowed; crop it to its cells first"
    for side, size in ((10_001, "is 10001×10000 pixels"), (400_000, "is larger than it may be")):
        path.write_bytes(_png(side, 10_000))
        assert _refusal(path) == f"{size}, {limit}"
        with pytest.raises(UnreadableImage, match=f"^{re.escape(str(path))}: {size}, {limit}$"):
            check_header(path)
    path.write_bytes(_png(11_000, 10_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _refusal(path).endswith(limit), "a warning turned into an error, too"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_refuses_a_jpeg_of_thousands_of_scans_without_decoding_them(tmp_path: Path, picture: Image.Image) -> None:
    """Each scan of a progressive JPEG costs a pass over the whole picture, however few bytes it has."""
    encoded = BytesIO()
    picture.save(encoded, "JPEG", progressive=True)
    content = encoded.getvalue()
    (tmp_path / "photograph.jpg").write_bytes(content)
    open_image(tmp_path / "photograph.jpg")
    last = content[content.rindex(b"\xff\xda") : -2]
    (tmp_path / "cell.jpg").write_bytes(content[:-2] + 2490 * last + content[-2:])
    with pytest.raises(UnreadableImage, match=r"cell.jpg: is a JPEG of 2500 scans; at most 100 are decoded: save it"):
        check_header(tmp_path / "cell.jpg")


def test_a_tiff_packed_as_jpeg_has_a_scan_in_each_strip(tmp_path: Path) -> None:
    Image.effect_noise((64, 4000), 50).convert("RGB").resize((500, 4000)).save(
        tmp_path / "strips.tif", compression="jpeg", tiffinfo={278: 8}
    )
    assert (tmp_path / "strips.tif").read_bytes().count(b"\xff\xda") > 400
    assert open_image(tmp_path / "strips.tif").size == (500, 4000)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "webp"])
def test_random_damage_never_raises_anything_but_a_refusal(tmp_path: Path, picture: Image.Image, suffix: str) -> None:
    whole, hurt = tmp_path / f"whole.{suffix}", tmp_path / f"hurt.{suffix}"
    picture.save(whole)
    data, dice, refused = whole.read_bytes(), random.Random(1), 0
    for _ in range(40):
        damaged = bytearray(data)
        for _ in range(dice.choice((1, 3, 8))):
            damaged[dice.randrange(min(len(data), 200))] = dice.randrange(256)
        hurt.write_bytes(damaged[: dice.randrange(1, len(data))] if dice.random() < 0.4 else damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert open_image(hurt).mode == "RGB"
        except UnreadableImage:
            refused += 1
    assert refused > 0, "the damage was too light to test anything"


# How a camera held in each of these ways stores the same scene (Exif 2.3, tag 0x0112).
_STORED_AS = ["FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_90", "TRANSVERSE", "ROTATE_270"]


@pytest.mark.parametrize(("orientation", "stored_as"), enumerate(_STORED_AS, start=2))
def test_turns_pictures_upright_as_their_exif_tag_says(tmp_path: Path, orientation: int, stored_as: str) -> None:
    upright = Image.new("RGB", (24, 16), "black")
    upright.paste((255, 0, 0), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright.transpose(Image.Transpose[stored_as]).save(tmp_path / "phone.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "phone.png")), np.asarray(upright))


@pytest.mark.parametrize("mode", ["P", "L", "LA", "RGBA", "1"])
def test_reads_palette_grey_and_transparent_pictures_as_rgb(tmp_path: Path, mode: str) -> None:
    Image.new("RGB", (16, 16), "white").convert(mode).save(tmp_path / "cell.png")
    opened = open_image(tmp_path / "cell.png")
    assert (opened.mode, np.asarray(opened).min()) == ("RGB", 255)


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "png", "tiff", "webp"])
def test_a_picture_keeps_nothing_of_its_file(picture: Image.Image, suffix: str) -> None:
    file, about = BytesIO(), PngImagePlugin.PngInfo()
    about.add_text("Patient", "Ann")
    about.add_text(FILLED_WITH, "nothing")
    extra: dict[str, Any] = {"png": {"pnginfo": about}, "jpg": {"comment": b"Ann", "icc_profile": b"x" * 999}}
    picture.save(file, {"jpg": "JPEG"}.get(suffix, suffix), **extra.get(suffix, {}))
    opened = open_bytes(file.getvalue(), "cell")
    assert opened.info == {}
    assert not [name for name in ("fp", "_fp", "_decoder", "app", "applist", "icclist") if getattr(opened, name, None)]


def test_arrays_become_rgb(picture: Image.Image) -> None:
    pixels = np.asarray(picture)
    assert np.array_equal(np.asarray(from_array(pixels)), pixels)
    assert np.array_equal(np.asarray(from_array(pixels[..., 0])), pixels[..., [0, 0, 0]])


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((16, 16, 3), "float32"), ((16, 16), "bool"), ((16, 16, 4), "uint8"), ((3, 16, 16), "uint8"), ((16,), "uint8")],
)
def test_refuses_arrays_of_another_kind(shape: tuple[int, ...], kind: str) -> None:
    said = f"frame 3: has shape {shape} and dtype {kind}; give (H, W, 3) or (H, W) of uint8, 0–255"
    with pytest.raises(UnreadableImage, match=re.escape(said)):
        from_array(np.zeros(shape, kind), "frame 3")


@pytest.mark.slow
def test_a_field_may_be_larger_than_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "field.png"
    Image.new("1", (10_400, 10_000), 1).save(path)

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(UnreadableImage, match="more than the 100 megapixels allowed"):
            open_image(path)
    field = open_smear(path)
    assert (field.mode, field.size) == ("RGB", (10_400, 10_000))


def test_foreground_is_what_is_brighter_than_compressed_black_and_area_its_share() -> None:
    levels = np.array([[[0, 0, 0], [8, 8, 8]], [[9, 0, 0], [0, 0, 255]]], dtype=np.uint8)
    assert foreground(levels).tolist() == [[False, False], [True, True]]
    assert cell_area(levels) == 0.5


@pytest.mark.parametrize(("bright", "cut_out"), [(0, False), (8, True), (12, False), (20, False)])
def test_a_cut_out_cell_has_a_border_that_is_half_black_or_more(bright: int, cut_out: bool) -> None:
    pixels = np.zeros((20, 20, 3), np.uint8)
    pixels[:, :bright] = 200
    assert is_cut_out(Image.fromarray(pixels)) is cut_out


def test_pictures_of_equal_bytes_and_another_shape_have_another_hash() -> None:
    assert pixel_hash(Image.new("RGB", (16, 32))) != pixel_hash(Image.new("RGB", (32, 16)))


def test_odd_metadata_is_no_warning_on_stderr(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "cell.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0")
    code = "import sys; from leukoscope.data.images import open_image; print(open_image(sys.argv[1]).size)"
    told = subprocess.run([sys.executable, "-c", code, tmp_path / "cell.jpg"], capture_output=True, text=True)
    assert (told.stdout, told.stderr) == ("(32, 32)\n", "")


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "P", "LA"])
@pytest.mark.parametrize("ground", [BLACK_RGB, (246, 254, 252)])
def test_what_is_transparent_is_filled_with_the_ground_and_the_picture_says_so(
    tmp_path: Path, mode: str, ground: tuple[int, int, int]
) -> None:
    """The left half is opaque and dark; the right half hides red under transparency."""
    rgba = np.zeros((16, 16, 4), np.uint8)
    rgba[:, :8] = (90, 40, 120, 255)
    rgba[:, 8:] = (255, 0, 0, 0)
    picture = Image.fromarray(rgba)
    path = tmp_path / "cell.png"
    if mode in ("RGB", "P"):
        picture = picture.convert("RGB")
        if mode == "P":
            picture = picture.quantize(2)
        picture.save(path, transparency=picture.getpixel((15, 0)))
    else:
        picture.convert(mode).save(path)
    with Image.open(path) as stored:
        opened = [open_image(path, ground=ground), to_rgb(stored, ground=ground)]
        dark = np.asarray(stored.convert("RGB"))[:, :8]
    opened.append(open_bytes(path.read_bytes(), "cell", ground=ground))
    for picture in opened:
        assert (np.asarray(picture)[:, 8:] == ground).all()
        assert (np.asarray(picture)[:, :8] == dark).all()
        assert picture.info[FILLED_WITH] == ground


def test_half_transparent_pixels_are_mixed_and_opaque_pictures_are_not_touched(tmp_path: Path) -> None:
    half = Image.new("RGBA", (16, 16), (200, 100, 0, 128))
    assert to_rgb(half, ground=(0, 0, 200)).getpixel((3, 3)) == pytest.approx((100, 50, 100), abs=1)
    Image.new("RGBA", (16, 16), (200, 100, 0, 255)).save(tmp_path / "opaque.png")
    opaque = open_image(tmp_path / "opaque.png", ground=(1, 2, 3))
    assert opaque.getpixel((3, 3)) == (200, 100, 0) and FILLED_WITH not in opaque.info


@pytest.mark.parametrize(
    ("pale", "dark"),
    [
        (None, True),
        ((139, 60, 174), False),  # of a lymphocyte with pale cytoplasm: its violet would be cut off at 255
        ((100, 60, 109), True),
    ],
)
def test_a_cell_is_dark_where_brighter_it_keeps_its_colours(pale: tuple[int, int, int] | None, dark: bool) -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[20:80, 20:80] = (60, 25, 75)
    if pale is not None:
        pixels[20:30, 20:80] = pale
    assert is_dark(Image.fromarray(pixels), on_black=True) == dark
