"""Small changes that pictures meet in another laboratory: lamp, stain, lens, camera, magnification, file format.

`PICTURE_CHANGES` lists them. Each is applied to the upright RGB picture in its own pixels, before it is framed.
Brightness, contrast, saturation, hue, rotation, size and blur follow torchvision's `transforms.v2.functional`. Families
are called as in medmnist-c (Di Salvo et al. 2024, arXiv:2406.17536) where both make the same change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageEnhance

from leukoscope.data.images import foreground, pixel_hash

Apply: TypeAlias = Callable[[Image.Image, float, bool], Image.Image]
_JPEG_SUBSAMPLING = "4:2:0"
_REFLECTED = 0.25  # of a smear's side, mirrored around it: a turn by 30° shows less


@dataclass(frozen=True)
class Change:
    """One change of a picture.

    Attributes:
        name: key of `PICTURE_CHANGES`.
        family: what is changed; a card shows one row for each.
        strength: what `apply` takes: a factor, or degrees, pixels, levels of 0–255, a JPEG quality.
        shows: how the picture is shown, to follow "shown".
        apply: (RGB picture, strength, whether it is a cell cut out on black) → RGB picture of the same size.
    """

    name: str
    family: str
    strength: float
    shows: str
    apply: Apply

    def __call__(self, picture: Image.Image, *, black: bool) -> Image.Image:
        """Change an upright RGB picture; a background that is `black` stays so, as it is cut out afterwards."""
        return self.apply(picture, self.strength, black)


def _brightness(picture: Image.Image, factor: float, black: bool) -> Image.Image:
    return ImageEnhance.Brightness(picture).enhance(factor)


def _saturation(picture: Image.Image, factor: float, black: bool) -> Image.Image:
    return ImageEnhance.Color(picture).enhance(factor)


def _contrast(picture: Image.Image, factor: float, black: bool) -> Image.Image:
    """Distances from the mean grey grow by the factor; on black, it is the mean grey of the cell."""
    pixels = np.asarray(picture)
    cell = _cell(pixels, black)
    if not cell.any():
        return picture
    mean = np.asarray(picture.convert("L"))[cell].mean()
    changed = (pixels - mean) * factor + mean
    return _within(cell, changed, pixels)


def _hue(picture: Image.Image, degrees: float, black: bool) -> Image.Image:
    import torch  # here and below: predicting with OpenVINO loads no torch
    from torchvision.transforms.v2 import functional

    pixels = np.asarray(picture)
    # As float: in whole numbers a hue would be rounded to 1.4 degrees.
    unit = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255)
    turned = functional.adjust_hue(unit, degrees / 360)
    return _within(_cell(pixels, black), turned.numpy().transpose(1, 2, 0) * 255, pixels)


def _size(picture: Image.Image, factor: float, black: bool) -> Image.Image:
    return _affine(picture, factor, 0.0, black)


def _rotation(picture: Image.Image, degrees: float, black: bool) -> Image.Image:
    return _affine(picture, 1.0, degrees, black)


def _affine(picture: Image.Image, factor: float, degrees: float, black: bool) -> Image.Image:
    """Enlarge and turn to the left about the centre; around it is black, or for a smear the picture, mirrored."""
    width, height = picture.size
    margin = 0
    if not black:
        margin = math.ceil(_REFLECTED * max(picture.size))
        pixels = np.asarray(picture)
        # A narrow picture is mirrored several times.
        picture = Image.fromarray(np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric"))
    cos = math.cos(math.radians(degrees)) / factor
    sin = math.sin(math.radians(degrees)) / factor
    x = width / 2
    y = height / 2
    # Pillow asks where in the given picture a point of the new one comes from.
    from_new = (cos, -sin, margin + x - cos * x + sin * y, sin, cos, margin + y - sin * x - cos * y)
    return picture.transform((width, height), Image.Transform.AFFINE, from_new, Image.Resampling.BICUBIC)


def _blur(picture: Image.Image, sigma: float, black: bool) -> Image.Image:
    import torch
    from torchvision.transforms.v2 import functional

    pixels = np.asarray(picture).astype(np.float32)
    side = 2 * math.ceil(3 * sigma) + 1
    blurred = functional.gaussian_blur(torch.from_numpy(pixels.transpose(2, 0, 1)), [side, side], [sigma, sigma])
    return _rounded(blurred.numpy().transpose(1, 2, 0))


def _noise(picture: Image.Image, deviation: float, black: bool) -> Image.Image:
    """Add noise that depends on the picture alone, so that the same picture is always changed alike."""
    pixels = np.asarray(picture)
    rng = np.random.default_rng(int(pixel_hash(picture), 16))
    noisy = pixels + rng.normal(0, deviation, pixels.shape)
    return _within(_cell(pixels, black), noisy, pixels)


def _jpeg(picture: Image.Image, quality: float, black: bool) -> Image.Image:
    file = BytesIO()
    picture.save(file, "JPEG", quality=int(quality), subsampling=_JPEG_SUBSAMPLING)
    return Image.open(file).convert("RGB")


def _resolution(picture: Image.Image, factor: float, black: bool) -> Image.Image:
    width, height = picture.size
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    return picture.resize(small, Image.Resampling.BICUBIC).resize((width, height), Image.Resampling.BICUBIC)


def _cell(pixels: np.ndarray, black: bool) -> np.ndarray:
    """(H, W) bool: where a camera saw something; everywhere but on a black background."""
    return foreground(pixels) if black else np.ones(pixels.shape[:2], bool)


def _within(cell: np.ndarray, changed: np.ndarray, pixels: np.ndarray) -> Image.Image:
    return _rounded(np.where(cell[..., None], changed, pixels))


def _rounded(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


PICTURE_CHANGES: dict[str, Change] = {
    change.name: change
    for change in (
        Change("brightness_up_10", "brightness", 1.1, "10 % brighter", _brightness),
        Change("brightness_up_20", "brightness", 1.2, "20 % brighter", _brightness),
        Change("brightness_down_10", "brightness", 0.9, "10 % darker", _brightness),
        Change("brightness_down_20", "brightness", 0.8, "20 % darker", _brightness),
        Change("contrast_up_10", "contrast", 1.1, "10 % higher in contrast", _contrast),
        Change("contrast_down_10", "contrast", 0.9, "10 % lower in contrast", _contrast),
        Change("saturate_up_15", "saturation", 1.15, "15 % more saturated", _saturation),
        Change("saturate_down_15", "saturation", 0.85, "15 % less saturated", _saturation),
        Change("hue_up_4", "hue", 4.0, "shifted by +4° in hue", _hue),
        Change("hue_down_4", "hue", -4.0, "shifted by -4° in hue", _hue),
        Change("size_up_5", "size", 1.05, "5 % larger", _size),
        Change("size_up_10", "size", 1.1, "10 % larger", _size),
        Change("size_down_5", "size", 0.95, "5 % smaller", _size),
        Change("size_down_10", "size", 0.9, "10 % smaller", _size),
        Change("rotation_30", "rotation", 30.0, "turned by 30°", _rotation),
        Change("gaussian_blur_1", "blur", 1.0, "blurred (σ 1 px)", _blur),
        Change("gaussian_blur_2", "blur", 2.0, "blurred (σ 2 px)", _blur),
        Change("gaussian_noise_8", "noise", 8.0, "noisy (σ 8 of 255)", _noise),
        Change("jpeg_compression_90", "JPEG", 90, "compressed (JPEG 90)", _jpeg),
        Change("jpeg_compression_50", "JPEG", 50, "compressed (JPEG 50)", _jpeg),
        Change("jpeg_compression_30", "JPEG", 30, "compressed (JPEG 30)", _jpeg),
        Change("half_resolution", "resolution", 0.5, "at half the resolution", _resolution),
    )
}
"""name → change; of a family the weakest first."""

BORDERLINE_CHANGES = (
    Change("brightness_up_5", "brightness", 1.05, "5 % brighter", _brightness),
    Change("brightness_down_5", "brightness", 0.95, "5 % darker", _brightness),
    PICTURE_CHANGES["size_up_5"],
    PICTURE_CHANGES["size_down_5"],
)
"""Changes that two pictures of the same cell differ by anyway: an answer that one of them changes is borderline."""

TRAINING_RANGES: dict[str, tuple[Apply, float, float]] = {
    "brightness": (_brightness, 0.8, 1.2),
    "contrast": (_contrast, 0.85, 1.15),
    "saturation": (_saturation, 0.8, 1.2),
    "hue": (_hue, -6.0, 6.0),
    "size": (_size, 0.85, 1.15),
    "rotation": (_rotation, -45.0, 45.0),
    "blur": (_blur, 0.3, 1.5),
    "JPEG": (_jpeg, 30, 95),
}
"""family → what changes a picture in training, the weakest and the strongest strength drawn."""


def drawn_change(rng: np.random.Generator) -> Change:
    """Draw a change for training: every family of `TRAINING_RANGES` alike, and evenly within its range."""
    family = list(TRAINING_RANGES)[rng.integers(len(TRAINING_RANGES))]
    apply, weakest, strongest = TRAINING_RANGES[family]
    strength = rng.uniform(weakest, strongest)
    return Change(f"{family}_{strength:.3f}", family, strength, f"changed in {family} by {strength:.3f}", apply)


_TELLING_CHANGES = 8
_FIRST_WITHOUT_MEASUREMENT = ("saturate_down_15", "contrast_up_10", "hue_up_4", "jpeg_compression_50")


def most_telling(class_changed: Mapping[str, float]) -> tuple[Change, ...]:
    """The eight changes that tell most of one answer: `BORDERLINE_CHANGES`, then those that change most classes.

    Args:
        class_changed: name of a change → share of cells that get another class under it; {} where it was not measured.

    Returns:
        of every family that is not borderline the change with the largest share, largest first.
    """
    if not class_changed:
        return (*BORDERLINE_CHANGES, *(PICTURE_CHANGES[name] for name in _FIRST_WITHOUT_MEASUREMENT))
    families = {change.family for change in BORDERLINE_CHANGES}
    chosen: list[Change] = []
    for name in sorted(class_changed, key=lambda name: -class_changed[name]):
        change = PICTURE_CHANGES.get(name)
        if change is not None and change.family not in families:
            families.add(change.family)
            chosen.append(change)
    return (*BORDERLINE_CHANGES, *chosen)[:_TELLING_CHANGES]
