"""One cell image, from a file to 8-bit RGB pixels.

Loading, prediction and the demo all open images here, so each refuses the same files with the same message.
Orientation follows the EXIF tag, as transformers' pipelines do; colours are converted to sRGB.
"""

from __future__ import annotations

import errno
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError
from PIL import TiffImagePlugin as Tiff

from leukoscope import DataError
from leukoscope.files import LFS_POINTER, first_line

# What Pillow finds odd in metadata does not concern the pixels, and raw warnings would stand between the results.
warnings.filterwarnings("ignore", module=r"PIL\.")


class UnreadableImage(DataError):
    """An image that cannot be used; the message names the file, what is wrong with it and the fix."""


class UnreachableImage(UnreadableImage):
    """An image file that is missing or cannot be read from disk; nothing is known of its content."""


RgbColour = tuple[int, int, int]
BLACK_RGB: RgbColour = (0, 0, 0)
FILLED_WITH = "filled_with"
"""Key in the `info` of a picture that had transparent parts: the colour they were filled with."""
IMAGE_SUFFIXES = (".bmp", ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".gif")
BACKGROUND_LEVEL = 8
"""Black may be as bright in a compressed picture: the WebP and JPEG copies of cut-out cells carry pixels of 1–8."""
SHOWN_BRIGHTER = 1.6
"""How much brighter pages show a dark cell on black: `brightness` in the styles of demo/."""
# Micrometres per pixel of C-NMC 2019's cut-out cells. Not published: this makes its median normal cell (186 px) 11 µm
# and its median blast (216 px) 13 µm wide, as lymphoid cells are in smears.
CUT_OUT_PITCH = 0.06
CUT_OUT_SIDE = 450
# A cell or a field of view is far below this; beyond it a file is a slide, or a decompression bomb.
MAX_PIXELS = 100_000_000
# Fields are read in tiles; from twice its own limit (89 megapixels) on, Pillow opens nothing.
MAX_SMEAR_PIXELS = 178_000_000
MIN_SIDE = 8
# The shorter side is resized to the network's, so a strip would fill all memory: a million × 8 gives 26 million × 205.
MAX_SIDE_RATIO = 10
# Pillow goes by content, not by name: an EPS called cell.png would start Ghostscript. JPEG covers MPO; GIF is here so
# that animations are refused with a message that helps.
_FORMATS = ("BMP", "PNG", "JPEG", "TIFF", "WEBP", "GIF")
# A progressive JPEG has about ten scans. Each one decodes the whole picture anew: thousands fit into a few kilobytes.
MAX_SCANS = 100
_START_OF_SCAN = b"\xff\xda"
# Values of a TIFF's tags: sample format, extra samples, and photometric interpretations that are not grey or RGB.
_UNSIGNED = 1
_ALPHA = (2,)
_YCBCR = 6
_OTHER_COLOURS = (5, 6, 8, 9, 10)
# A caller who turns warnings into errors gets the same message.
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_MODES_READ_AS_RGB = ("RGB", "RGBA", "L", "LA", "P", "PA", "1")
_MAGIC = (*Tiff.PREFIXES, b"\x89PNG", b"\xff\xd8\xff", b"GIF8")
_HEAD = 64  # bytes of a file that show what it is
# A profile of an RGB space is a few kilobytes, with tables for all colours a few hundred; several are kept in memory.
_MAX_PROFILE = 4_000_000  # bytes


def open_image(path: str | Path, *, ground: RgbColour | None = BLACK_RGB) -> Image.Image:
    """Open a BMP, PNG, JPEG, TIFF or WebP file as a decoded 8-bit RGB picture, turned by its EXIF orientation.

    Transparent parts are filled with `ground`; the picture's `info[FILLED_WITH]` then says so. With None, a picture
    with transparent parts is RGBA, which `to_rgb` lays on any ground.

    Raises:
        UnreadableImage: missing, empty, corrupt, animated, CMYK, 16-bit, tiny, huge or strip-like files.
    """
    return _decode(_file(path), path, ground=ground)


def open_smear(path: str | Path, *, ground: RgbColour = BLACK_RGB) -> Image.Image:
    """Open a field of view as `open_image` does, but up to 178 megapixels, and without a second copy of its pixels."""
    return _decode(_file(path), path, MAX_SMEAR_PIXELS, copy=False, ground=ground)


def open_bytes(
    data: bytes, name: str, *, max_pixels: int = MAX_PIXELS, ground: RgbColour | None = BLACK_RGB
) -> Image.Image:
    """Open an image file held in memory, as `open_image` does; messages call it `name`."""
    _require_content(len(data), name)
    return _decode(BytesIO(data), name, max_pixels, ground=ground)


def open_encoded(encoded: Mapping[str, Any], cell_id: str, *, ground: RgbColour = BLACK_RGB) -> Image.Image:
    """Open the undecoded `image` of a data set's row: its file, or the bytes that a Hub data set carries."""
    content = encoded["bytes"]
    if isinstance(content, bytes):
        return open_bytes(content, f"cell {cell_id}", ground=ground)
    return open_image(str(encoded["path"]), ground=ground)


def encoded_content(encoded: Mapping[str, Any]) -> bytes:
    """The undecoded `image` of a data set's row as the bytes of its file."""
    data = encoded["bytes"]
    return data if isinstance(data, bytes) else Path(encoded["path"]).read_bytes()


def check_header(path: str | Path) -> tuple[int, int]:
    """(width, height) as stored; refuses what the header shows to be unusable, as `open_image` does."""
    with _identified(_file(path), path) as image:
        return image.size


def _file(path: str | Path) -> Path:
    file = Path(path)
    try:
        if not file.exists():
            raise UnreachableImage(f"{path}: no such file; check the path")
        if not file.is_file():
            raise UnreadableImage(f"{path}: is a folder, a pipe or a device; name an image file")
        _require_content(file.stat().st_size, path)
    except (OSError, ValueError) as error:  # a name that is too long or holds a zero byte, a folder closed to us
        raise UnreachableImage(
            f"{path}: cannot be read ({first_line(error)}); check the path and who may read it"
        ) from None
    return file


def _require_content(size: int, name: str | Path) -> None:
    if size == 0:
        raise UnreadableImage(f"{name}: the file is empty (0 bytes); copy or export it again")


@contextmanager
def _identified(source: Path | BytesIO, name: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """The picture with its header read and found usable, its pixels not yet decoded."""
    with _damage_named(name, "cannot be read as an image"):
        try:
            image = Image.open(source, formats=_FORMATS)
        except UnidentifiedImageError:
            raise UnreadableImage(f"{name}: {_unopened(source)}") from None
    with image:
        with _damage_named(name, "cannot be read as an image"):
            _check_kind(image, name, max_pixels)
            _check_scans(image, name)
        yield image


def _unopened(source: Path | BytesIO) -> str:
    """What a file is that Pillow does not open, and the fix."""
    with source.open("rb") if isinstance(source, Path) else BytesIO(source.getvalue()) as file:
        head = file.read(_HEAD)
    if head.startswith(LFS_POINTER):
        return "is a Git LFS pointer, not the file itself; run `git lfs pull`"
    if head[4:8] == b"ftyp":
        return "is a HEIC (iPhones), AVIF or MP4 file; export a picture as JPEG or PNG"
    if head.startswith(_MAGIC):
        return "is a damaged picture, or of a kind that is not supported; copy it again, or convert it to 8-bit RGB"
    return "is not an image; give one of BMP, PNG, JPG, TIFF, WEBP"


def _check_scans(image: Image.Image, name: str | Path) -> None:
    """Refuse a JPEG, or a TIFF packed as JPEG, of more scans than a photograph has."""
    is_tiff = isinstance(image, Tiff.TiffImageFile)
    if not (image.format in ("JPEG", "MPO") or (is_tiff and image.info.get("compression") == "jpeg")):
        return
    # Each strip and tile of a TIFF is a picture with a scan of its own.
    parts = 1
    if is_tiff:
        tags: Mapping[int, Any] = image.tag_v2  # type: ignore[attr-defined]
        parts = max(len(tags.get(tag, ())) for tag in (Tiff.STRIPOFFSETS, Tiff.TILEOFFSETS))
    file: BinaryIO = image.fp  # type: ignore[attr-defined]
    at = file.tell()
    file.seek(0)
    # Within a scan's data, 255 is followed by 0 or a restart marker: the marker is found nowhere else.
    scans = file.read().count(_START_OF_SCAN)
    file.seek(at)
    if scans > parts + MAX_SCANS:
        raise UnreadableImage(
            f"{name}: is a JPEG of {scans} scans; at most {MAX_SCANS} are decoded: save it again as a plain JPEG"
        )


def _decode(
    source: Path | BytesIO,
    name: str | Path,
    max_pixels: int = MAX_PIXELS,
    *,
    copy: bool = True,
    ground: RgbColour | None = BLACK_RGB,
) -> Image.Image:
    with _identified(source, name, max_pixels) as image, _damage_named(name):
        image.load()
        image.info.pop(FILLED_WITH, None)  # a text of the file
        ImageOps.exif_transpose(image, in_place=True)
        picture = _on_ground(image, ground)
        info: dict[str | tuple[int, int], Any] = {
            key: filled for key, filled in picture.info.items() if key == FILLED_WITH
        }
        # Pillow keeps parts of the file or a decoder's canvases with a picture, of BMP alone nothing but the pixels.
        if copy and picture is image and image.format != "BMP":
            picture = image.copy()
        # Megabytes of text may be in it, and where and when a picture was taken.
        picture.info = info
        return picture


def _on_ground(image: Image.Image, ground: RgbColour | None) -> Image.Image:
    """An upright picture in 8-bit RGB; transparent parts are filled with the ground, or without one stay so (RGBA)."""
    alpha = _alpha(image)
    picture = _in_srgb(image)
    if alpha is None:
        return picture
    if ground is None:
        picture.putalpha(alpha)
        return picture
    picture = Image.composite(picture, Image.new("RGB", picture.size, ground), alpha)
    picture.info[FILLED_WITH] = ground
    return picture


def _alpha(image: Image.Image) -> Image.Image | None:
    """The opacity of each pixel, 0–255, of a decoded picture; None where all of it is opaque."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    if np.asarray(alpha).min() == 255:
        return None
    return alpha


def filled_note(filled: int, pictures: int, ground: RgbColour) -> str:
    """How many pictures have transparent parts, and what colour these got; "" where none has any."""
    if not filled:
        return ""
    colour = "the colour of an empty slide" if any(ground) else "black"
    return f"{filled:,} of {pictures:,} pictures have transparent parts: these are read as {colour}"


@contextmanager
def _damage_named(name: str | Path, problem: str = "the image is damaged or cut short") -> Iterator[None]:
    """Raise `UnreadableImage` for whatever Pillow raises: struct.error, TypeError and more come out of metadata."""
    try:
        yield
    except _BOMBS:
        raise UnreadableImage(_too_large(name)) from None
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:
        # Pillow's own errors have no errno; a damaged offset is an invalid argument to the system.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            reason = first_line(error)
            raise UnreachableImage(f"{name}: cannot be read ({reason}); check the path and who may read it") from None
        raise UnreadableImage(f"{name}: {problem} ({error}); copy or export it again") from None


def to_rgb(image: Image.Image, name: str | Path = "image", *, ground: RgbColour = BLACK_RGB) -> Image.Image:
    """Turn a PIL image upright and into 8-bit RGB, as `open_image` does; raises `UnreadableImage` as it does.

    Returns:
        The picture itself where it is both already: a copy takes as long as decoding a cell's file.
    """
    name = getattr(image, "filename", "") or name
    with _damage_named(name):
        _check_kind(image, name)
        image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
        return _on_ground(image, ground)


def _in_srgb(image: Image.Image) -> Image.Image:
    """The 8-bit RGB pixels of a decoded picture in sRGB; the picture itself where it holds them already."""
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    profile = image.info.get("icc_profile")
    # A profile of grey states only its brightness, and hardly any program follows it.
    is_grey = image.mode in ("L", "LA", "1")
    if is_grey or not isinstance(profile, bytes):
        return rgb
    to_srgb = _to_srgb(profile)
    if to_srgb is None:
        return rgb
    rgb = to_srgb.apply(rgb)
    del rgb.info["icc_profile"]  # now that of sRGB
    return rgb


@lru_cache(maxsize=8)
def _to_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """The transform to sRGB from the space of a profile; None where the pixels stay as they are.

    They stay under any profile of sRGB, and under one that is broken or of no RGB space: viewers ignore it too.
    """
    if len(profile) > _MAX_PROFILE:
        return None
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        # As measured; the intent "perceptual" may shift all colours to make room for some.
        to_srgb = ImageCms.buildTransform(source, target, "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
    except (ImageCms.PyCMSError, OSError):
        return None
    steps = np.linspace(0, 255, 18).astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(18, -1, 3)
    moved = np.abs(np.asarray(to_srgb.apply(Image.fromarray(colours))).astype(int) - colours).max()
    # Profiles of sRGB differ in rounding, by a level of 255; the next space, Rec. 709, differs by 16.
    if moved <= 1:
        return None
    return to_srgb


def pixel_hash(image: Image.Image) -> str:
    """16 hexadecimal digits of a decoded RGB picture: equal for the same pixels, whatever file they came in."""
    return blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=8).hexdigest()


def foreground(pixels: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 → (…) bool: what is brighter than black."""
    # Channel by channel: numpy takes twenty times as long for a maximum over a last axis of three.
    return np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2]) > BACKGROUND_LEVEL


def cell_area(pixels: np.ndarray) -> float:
    """The share of an (S, S, 3) uint8 picture that a cell on black covers, 0–1."""
    return float(np.mean(foreground(pixels)))


def is_cut_out(image: Image.Image) -> bool:
    """Whether an RGB picture shows a cell cut out on black: at least half of its border is black, and not all of it."""
    bright = foreground(np.asarray(image))
    border = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    return bool(border.mean() <= 0.5 and bright.any())


def is_dark(image: Image.Image, *, on_black: bool | None = None) -> bool:
    """Whether an RGB picture shows a cell on black that is dark enough to be shown `SHOWN_BRIGHTER` times as bright.

    95 % of the cell then keep their colour, none of whose channels is cut off: pale cytoplasm is not shown as a white
    area. `on_black` is what `is_cut_out` says of the picture, where that is known.
    """
    if on_black is None:
        on_black = is_cut_out(image)
    if not on_black:
        return False
    pixels = np.asarray(image)
    brightest_channel = pixels[foreground(pixels)].max(axis=1)
    return float(np.percentile(brightest_channel, 95)) * SHOWN_BRIGHTER <= 255


def from_array(array: np.ndarray, name: str = "array") -> Image.Image:
    """Make an RGB image from (H, W, 3) or (H, W) uint8 pixels; raises `UnreadableImage` for any others."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise UnreadableImage(
            f"{name}: has shape {array.shape} and dtype {array.dtype}; give (H, W, 3) or (H, W) of uint8, 0–255"
        )
    return to_rgb(Image.fromarray(array), name)


def _check_kind(image: Image.Image, name: str | Path, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse a picture by its size, frames and way of storing pixels."""
    width, height = image.size
    extent = f"{name}: is {width}×{height} pixels"
    if width * height > max_pixels:
        raise UnreadableImage(_too_large(name, image.size, max_pixels))
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage(f"{extent}, too small for a cell; give at least {MIN_SIDE}×{MIN_SIDE}")
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise UnreadableImage(f"{extent}, one side more than {MAX_SIDE_RATIO} times the other; crop it to the cell")
    # A phone's JPEG may carry previews of its own (MPO); its first picture is the photograph.
    if getattr(image, "is_animated", False) and image.format != "MPO":
        # Without their number: counting those of a hostile TIFF takes minutes.
        raise UnreadableImage(f"{name}: holds several frames; save the one to use as a single image")
    # Pillow opens 16-bit colour as plain RGB and keeps each channel's high byte: a 12-bit picture would come out black.
    deep = any(re.search(r";16[BLN]", str(tile[3])) for tile in getattr(image, "tile", ()))
    problem = _tiff_problem(image.tag_v2) if isinstance(image, Tiff.TiffImageFile) else ""
    if deep:
        problem = f"has more than 8 bits a channel (mode {image.mode})"
    elif image.mode not in _MODES_READ_AS_RGB:
        problem = f"has pixels of mode {image.mode}"
    if problem:
        raise UnreadableImage(f"{name}: {problem}; convert it to 8-bit RGB first")


def _tiff_problem(tags: Tiff.ImageFileDirectory_v2) -> str:
    """Why Pillow cannot read the pixels of such a TIFF, or would read wrong ones silently; "" for no known reason."""
    bits = max(tags.get(Tiff.BITSPERSAMPLE, (1,)))
    extra = tags.get(Tiff.EXTRASAMPLES, ())
    photometric = tags.get(Tiff.PHOTOMETRIC_INTERPRETATION, 0)
    channels = tags.get(Tiff.SAMPLESPERPIXEL, 1)
    is_packed = tags.get(Tiff.COMPRESSION, 1) != 1
    if bits > 8:
        return f"has more than 8 bits a channel ({bits} bits)"
    # Packed pixels of YCbCr are made RGB as they are unpacked; others come out as the numbers they are.
    other_colours = photometric in _OTHER_COLOURS and not (photometric == _YCBCR and is_packed)
    several_greys = photometric in (0, 1) and channels > 1 and not (channels == 2 and extra == _ALPHA)
    # Pillow takes unpacked planes for plain 8-bit ones, whatever the tags say.
    planes = tags.get(Tiff.PLANAR_CONFIGURATION, 1)
    misread = planes == 2 and not is_packed
    numbers = max(tags.get(Tiff.SAMPLEFORMAT, (_UNSIGNED,)))
    if not (other_colours or several_greys or misread or numbers != _UNSIGNED):
        return ""
    return (
        f"is a TIFF of a kind that is not supported ({channels} channel(s), photometric interpretation {photometric}, "
        f"planar configuration {planes}, sample format {numbers})"
    )


def _too_large(name: str | Path, size: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS) -> str:
    extent = f"is {size[0]}×{size[1]} pixels" if size else "is larger than it may be"
    return f"{name}: {extent}, more than the {max_pixels // 1_000_000} megapixels allowed; crop it to its cells first"
