"""Framing must give to the pixel what timm's evaluation transform gives, and need no torch."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data import create_transform

from leukoscope.data.images import open_image
from leukoscope.data.preprocessing import Preprocessing


def timms(preprocessing: Preprocessing, picture: Image.Image) -> np.ndarray:
    whole = create_transform(
        input_size=(3, preprocessing.image_size, preprocessing.image_size),
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
    )
    resize, crop = whole.transforms[:2]
    return np.asarray(crop(resize(picture)))


@pytest.mark.parametrize("size", [(450, 450), (207, 207), (64, 64), (301, 200), (200, 301), (61, 449), (160, 160)])
@pytest.mark.parametrize(
    ("side", "crop_pct", "interpolation"),
    [(160, 350 / 450, "bicubic"), (160, 1.0, "bicubic"), (97, 0.875, "bilinear"), (300, 0.9, "lanczos")],
)
def test_frames_are_timms_to_the_pixel(size: tuple[int, int], side: int, crop_pct: float, interpolation: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    preprocessing = Preprocessing(side, crop_pct, interpolation)

    assert np.array_equal(preprocessing.frame(picture), timms(preprocessing, picture))


def test_frames_of_real_cells_are_timms_to_the_pixel(real_data: Path) -> None:
    files = sorted((real_data / "cnmc2019").rglob("*.bmp"))[:20] + sorted((real_data / "ball4").rglob("*.jp*g"))[:20]
    assert files, "no picture found"
    preprocessing = Preprocessing(160, 350 / 450)

    for file in files:
        assert np.array_equal(preprocessing.frame(open_image(file)), timms(preprocessing, open_image(file))), file


# In the middle, cut by an edge or a corner of the frame, seen only outside the crop, and nothing at all.
@pytest.mark.parametrize("box", [(150, 120, 310, 330), (0, 200, 90, 380), (420, 0, 450, 30), (0, 0, 9, 9), None])
@pytest.mark.parametrize("interpolation", ["bicubic", "nearest", "lanczos"])
def test_frames_of_cells_cut_out_on_black_are_timms_to_the_pixel(
    box: tuple[int, int, int, int] | None, interpolation: str
) -> None:
    picture = Image.new("RGB", (450, 450))
    if box:
        width, height = box[2] - box[0], box[3] - box[1]
        noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture.paste(Image.fromarray(noise), box)
    preprocessing = Preprocessing(160, 350 / 450, interpolation)

    assert np.array_equal(preprocessing.frame(picture), timms(preprocessing, picture))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"crop_pct": 1.5}, "crop_pct is 1.5"),
        ({"crop_pct": 0}, "crop_pct is 0"),
        ({"interpolation": "random"}, "RANDOM"),
        ({"interpolation": 3}, "interpolation is 3, no name of a filter"),
        ({"mean": [0.5, 0.5]}, r"mean is \[0.5, 0.5\]; of pixels in 0–1, three numbers from 0 to 1 are read"),
        ({"mean": ["0.5"] * 3}, "mean is .'0.5', '0.5', '0.5'.; of pixels in 0–1, three numbers"),
        ({"mean": 0.5}, "mean is 0.5; of pixels in 0–1, three numbers"),
        ({"std": [0, 0, 0]}, r"std is \[0, 0, 0\]; of pixels in 0–1, three numbers from 0.001 to 1 are read"),
        ({"std": [0.2, 0.2, math.nan]}, r"std is \[0.2, 0.2, nan\]; of pixels in 0–1, three numbers"),
        ({"input_size": [3, 160, 200]}, r"input_size is \[3, 160, 200\], no square; only square inputs"),
        ({"crop_mode": "squash"}, "crop_mode is 'squash'; only the central crop, 'center', is made here"),
    ],
)
def test_settings_that_say_no_preprocessing_are_refused(change: dict[str, object], problem: str) -> None:
    settings = {**Preprocessing(160, 0.9).to_pretrained_cfg(), **change}

    with pytest.raises((ValueError, KeyError), match=problem):
        Preprocessing.from_pretrained_cfg(settings)


def test_framing_needs_no_torch() -> None:
    code = (
        "import sys; from PIL import Image; from leukoscope.data.preprocessing import Preprocessing;"
        "Preprocessing(96, 0.9).frame(Image.new('RGB', (64, 64))); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
