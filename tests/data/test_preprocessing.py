"""Framing must give to the pixel what timm's evaluation transform gives."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import Compose

from leukoscope.data.images import open_image
from leukoscope.data.preprocessing import Preprocessing


def timms(preprocessing: Preprocessing) -> Compose:
    return create_transform(**resolve_data_config(pretrained_cfg=preprocessing.to_pretrained_cfg()))


def timms_frame(preprocessing: Preprocessing, picture: Image.Image) -> np.ndarray:
    resize, crop = timms(preprocessing).transforms[:2]
    return np.asarray(crop(resize(picture)))


@pytest.mark.parametrize("size", [(450, 450), (207, 207), (64, 64), (301, 200), (200, 301), (61, 449), (160, 160)])
@pytest.mark.parametrize(
    ("side", "crop_pct", "interpolation"),
    [(160, 350 / 450, "bicubic"), (160, 1.0, "bicubic"), (97, 0.875, "bilinear"), (300, 0.9, "lanczos")],
)
def test_frames_are_timms_to_the_pixel(size: tuple[int, int], side: int, crop_pct: float, interpolation: Any) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    preprocessing = Preprocessing(side, crop_pct, interpolation)
    framed = preprocessing.frame(picture)
    assert np.array_equal(framed, timms_frame(preprocessing, picture))
    pixels = torch.from_numpy(framed.copy()).permute(2, 0, 1)[None]
    assert torch.allclose(preprocessing.normalise(pixels)[0], timms(preprocessing)(picture), atol=1e-5)


def test_frames_of_real_cells_are_timms_to_the_pixel(real_data: Path) -> None:
    files = sorted((real_data / "cnmc2019").rglob("*.bmp"))[:20] + sorted((real_data / "ball4").rglob("*.jp*g"))[:20]
    assert files, "no picture found"
    preprocessing = Preprocessing(160, 350 / 450)

    for file in files:
        assert np.array_equal(preprocessing.frame(open_image(file)), timms_frame(preprocessing, open_image(file))), file


# In the middle, cut by an edge or a corner of the frame, seen only outside the crop, and nothing at all.
@pytest.mark.parametrize("box", [(150, 120, 310, 330), (0, 200, 90, 380), (420, 0, 450, 30), (0, 0, 9, 9), None])
@pytest.mark.parametrize("interpolation", ["bicubic", "nearest", "lanczos"])
def test_frames_of_cells_cut_out_on_black_are_timms_to_the_pixel(
    box: tuple[int, int, int, int] | None, interpolation: Any
) -> None:
    picture = Image.new("RGB", (450, 450))
    if box:
        width, height = box[2] - box[0], box[3] - box[1]
        noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture.paste(Image.fromarray(noise), box)
    preprocessing = Preprocessing(160, 350 / 450, interpolation)

    assert np.array_equal(preprocessing.frame(picture), timms_frame(preprocessing, picture))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"crop_pct": 1.5}, "crop_pct is 1.5; input should be less than or equal to 1"),
        ({"crop_pct": 0}, "crop_pct is 0; input should be greater than 0"),
        ({"interpolation": "random"}, "interpolation is 'random'; input should be 'bicubic', 'bilinear'"),
        ({"mean": [0.5, 0.5]}, r"mean is \[0.5, 0.5\]; "),
        ({"mean": ["0.5"] * 3}, "mean is .'0.5', '0.5', '0.5'.; input should be a valid number"),
        ({"mean": 0.5}, "mean is 0.5; input should be a valid "),
        ({"std": [0, 0, 0]}, r"std is \[0, 0, 0\]; input should be greater than or equal to 0.001"),
        ({"std": [0.2, 0.2, math.nan]}, r"std is \[0.2, 0.2, nan\]; input should be"),
        ({"input_size": [3, 2000, 2000]}, "image_size is 2000; input should be less than or equal to 1024"),
        ({"input_size": [3, 160, 200]}, r"input_size is \[3, 160, 200\], not a square; only square inputs"),
        ({"crop_mode": "squash"}, "crop_mode is 'squash'; only the central crop, 'center', is supported"),
    ],
)
def test_settings_that_say_no_preprocessing_are_refused(change: dict[str, object], problem: str) -> None:
    settings = json.loads(json.dumps(Preprocessing(160, 0.9).to_pretrained_cfg()))
    assert Preprocessing.from_pretrained_cfg(settings) == Preprocessing(160, 0.9)
    settings |= change
    with pytest.raises((ValueError, KeyError), match=problem):
        Preprocessing.from_pretrained_cfg(settings)


def test_normalise_takes_any_number_type_and_gives_channels_last_float32() -> None:
    preprocessing = Preprocessing(8, 1.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    expected = torch.tensor([[-2.0, -1.0, -0.5], [2.0, 1.0, 0.5]])
    for given in (pixels, pixels.double(), pixels.to(torch.int64)):
        out = preprocessing.normalise(given)
        assert out.dtype == torch.float32
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(out.mean(dim=(2, 3)), expected)


def test_view_box_marks_what_the_network_sees() -> None:
    whole = Image.new("RGB", (450, 450))
    # 140 px are the centre of a picture resized to exactly 180; 160 of one resized to 205, the whole part of 205.7.
    assert Preprocessing(140, 350 / 450).view_box(whole) == pytest.approx((50, 50, 400, 400))
    # (205 - 160) / 2 is 22.5, of which `frame` takes 22.
    first, end = 450 * 22 / 205, 450 * 182 / 205
    assert Preprocessing(160, 350 / 450).view_box(whole) == pytest.approx((first, first, end, end))
    # 517 × 499 pixels become 109 × 106: the longer side, 109.8, is rounded down as well.
    view = Preprocessing(96, 0.9).view_box(Image.new("RGB", (517, 499)))
    across, down = 517 / 109, 499 / 106
    assert view == pytest.approx((6 * across, 5 * down, 102 * across, 101 * down))
    assert Preprocessing(160, 1.0).view_box(Image.new("RGB", (300, 200))) == pytest.approx((50, 0, 250, 200))
    # A picture that is white inside the box and black around it must be framed all white, but for the resampled edge.
    left, top, right, bottom = (round(x) for x in Preprocessing(160, 350 / 450).view_box(whole))
    whole.paste((255, 255, 255), (left, top, right, bottom))
    framed = Preprocessing(160, 350 / 450).frame(whole)
    assert framed[2:-2, 2:-2].min() == 255
