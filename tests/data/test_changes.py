"""Every change does what its name says, as torchvision does it, and leaves a black background black."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from leukoscope.data.changes import PICTURE_CHANGES, TRAINING_RANGES, drawn_change, most_telling
from leukoscope.data.images import foreground
from leukoscope.synthetic import phantom_cells


@pytest.fixture(scope="module")
def cell() -> Image.Image:
    """A phantom cut out on black."""
    return Image.fromarray(next(iter(phantom_cells(subjects_per_class=1, cells_per_subject=1))).image)


@pytest.fixture(scope="module")
def smear() -> Image.Image:
    """A picture without a background: coloured blocks, so that a hue means something."""
    blocks = np.random.default_rng(0).integers(80, 216, size=(12, 16, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((96, 72), Image.Resampling.BICUBIC)


def _apart(a: Image.Image, b: Image.Image) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


@pytest.mark.parametrize("name", PICTURE_CHANGES)
@pytest.mark.parametrize("black", [True, False])
def test_every_change_is_a_picture_of_the_same_size_and_repeats(cell: Image.Image, name: str, black: bool) -> None:
    before = cell.copy()
    changed = PICTURE_CHANGES[name](cell, black=black)
    assert (changed.size, changed.mode) == (cell.size, "RGB")
    assert _apart(changed, PICTURE_CHANGES[name](cell, black=black)) == 0
    assert _apart(changed, cell) > 0
    assert _apart(before, cell) == 0, "the picture that was given is changed"


@pytest.mark.parametrize("name", [name for name, change in PICTURE_CHANGES.items() if change.family != "JPEG"])
def test_around_a_cut_out_cell_it_stays_black(cell: Image.Image, name: str) -> None:
    changed = np.asarray(PICTURE_CHANGES[name](cell, black=True))
    corners = changed[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.max() == 0


@pytest.mark.parametrize("name", ["contrast_down_10", "gaussian_noise_8", "hue_up_4"])
def test_a_change_of_colour_does_not_move_the_outline_of_a_cell(cell: Image.Image, name: str) -> None:
    outside = ~foreground(np.asarray(cell))
    assert np.array_equal(np.asarray(PICTURE_CHANGES[name](cell, black=True))[outside], np.asarray(cell)[outside])


def test_no_corner_of_a_turned_smear_is_black(smear: Image.Image) -> None:
    for name in ("rotation_30", "size_down_10"):
        assert np.asarray(PICTURE_CHANGES[name](smear, black=False)).min() > 20
        assert np.asarray(PICTURE_CHANGES[name](smear, black=True)).min() == 0


def test_changes_are_those_of_torchvision(smear: Image.Image) -> None:
    bicubic = InterpolationMode.BICUBIC
    pairs = {
        "brightness_up_10": functional.adjust_brightness(smear, 1.1),
        "brightness_down_20": functional.adjust_brightness(smear, 0.8),
        "contrast_up_10": functional.adjust_contrast(smear, 1.1),
        "saturate_down_15": functional.adjust_saturation(smear, 0.85),
        "gaussian_blur_1": functional.gaussian_blur(smear, [7, 7], [1.0, 1.0]),
    }
    for name, theirs in pairs.items():
        assert _apart(PICTURE_CHANGES[name](smear, black=False), theirs) <= 1, name
    # Around what is turned or smaller they have black, too.
    turned = functional.rotate(smear, 30, interpolation=bicubic)
    assert _apart(PICTURE_CHANGES["rotation_30"](smear, black=True), turned) == 0
    smaller = functional.affine(smear, 0, [0, 0], 0.9, [0, 0], interpolation=bicubic)
    assert _apart(PICTURE_CHANGES["size_down_10"](smear, black=True), smaller) == 0


def test_a_hue_of_four_degrees_is_not_rounded_to_a_step_of_an_8_bit_hue(smear: Image.Image) -> None:
    def hue(picture: Image.Image) -> np.ndarray:
        red, green, blue = np.asarray(picture).astype(float).transpose(2, 0, 1)
        return np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue))

    pixels = np.asarray(smear)
    colourful = pixels.max(axis=2).astype(int) - pixels.min(axis=2) > 60
    for name, degrees in (("hue_up_4", 4), ("hue_down_4", -4)):
        moved = hue(PICTURE_CHANGES[name](smear, black=False)) - hue(smear)
        moved = ((moved + 180) % 360 - 180)[colourful]
        assert np.median(moved) == pytest.approx(degrees, abs=0.4)


def test_noise_has_its_strength_and_other_pictures_get_another_one(smear: Image.Image) -> None:
    noise = np.asarray(PICTURE_CHANGES["gaussian_noise_8"](smear, black=False)).astype(float) - np.asarray(smear)
    assert noise.std() == pytest.approx(8, rel=0.05)
    other = Image.fromarray(np.asarray(smear)[::-1].copy())
    other_noise = np.asarray(PICTURE_CHANGES["gaussian_noise_8"](other, black=False)).astype(float) - np.asarray(other)
    assert abs(np.corrcoef(noise.ravel(), other_noise.ravel())[0, 1]) < 0.1


def test_the_names_say_family_and_strength() -> None:
    for name, change in PICTURE_CHANGES.items():
        assert name == change.name
        assert change.shows
    assert len({(change.apply, change.strength) for change in PICTURE_CHANGES.values()}) == len(PICTURE_CHANGES)


def test_most_telling_changes_are_the_borderline_ones_then_the_worst_of_each_other_family() -> None:
    shares = dict.fromkeys(PICTURE_CHANGES, 0.0)
    shares |= {"jpeg_compression_30": 0.3, "jpeg_compression_50": 0.2, "hue_down_4": 0.25, "size_up_10": 0.9}
    names = [change.name for change in most_telling(shares)]
    assert names[:4] == ["brightness_up_5", "brightness_down_5", "size_up_5", "size_down_5"]
    assert names[4:6] == ["jpeg_compression_30", "hue_down_4"]
    families = [change.family for change in most_telling(shares)][4:]
    assert len(set(families)) == len(families) == 4
    assert not {"size", "brightness"} & set(families)


def test_most_telling_changes_without_a_measurement_and_with_names_of_another_version() -> None:
    assert len(most_telling({})) == 8
    assert [change.name for change in most_telling({"fog_3": 0.9, "hue_up_4": 0.1})][4:] == ["hue_up_4"]


def test_changes_drawn_for_training_are_of_every_family_and_within_its_range(cell: Image.Image) -> None:
    rng = np.random.default_rng(0)
    drawn = [drawn_change(rng) for _ in range(200)]
    assert {change.family for change in drawn} == set(TRAINING_RANGES)
    for change in drawn:
        _, weakest, strongest = TRAINING_RANGES[change.family]
        assert weakest <= change.strength <= strongest
    for change in drawn[:20]:
        assert change(cell, black=True).size == cell.size
