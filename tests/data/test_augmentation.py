"""Preprocessing equals timm's own to the pixel; augmentation changes how a cell looks and never what it is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image

from leukoscope.data.augmentation import Augmentation, Augmenter, in_view
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.synthetic import draw_cell

STILL = Augmentation(scale=0.0, brightness=0.0, contrast=0.0, stain=0.0)


def _noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _batch(*cells: np.ndarray) -> torch.Tensor:
    """(H, W, 3) pictures as (B, 3, S, S) uint8."""
    return torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2).contiguous()


def _disc(size: int, radius: float, level: int = 200) -> torch.Tensor:
    """One round cell in the middle of black, (1, 3, S, S) uint8."""
    axis = torch.arange(size) - (size - 1) / 2
    inside = (axis[:, None] ** 2 + axis[None, :] ** 2) <= radius**2
    return (inside * level).to(torch.uint8).expand(1, 3, size, size).contiguous()


@pytest.fixture(scope="module")
def phantom() -> torch.Tensor:
    return _batch(draw_cell("ALL", size=96).image)


# Preprocessing


@pytest.mark.parametrize(
    "preprocessing", [Preprocessing(96, 350 / 450), Preprocessing(64, 1.0, "bilinear"), Preprocessing(160, 0.9)]
)
@pytest.mark.parametrize("extent", [(450, 450), (300, 200), (61, 97)], ids=str)
def test_frame_and_normalise_equal_timms_evaluation_transform(
    preprocessing: Preprocessing, extent: tuple[int, int]
) -> None:
    from timm.data import create_transform, resolve_data_config
    from torchvision.transforms import ToTensor

    whole = create_transform(**resolve_data_config(pretrained_cfg=preprocessing.to_pretrained_cfg()))
    picture = _noise(*extent)
    framed = preprocessing.frame(picture)
    assert (framed.shape, framed.dtype) == ((preprocessing.image_size, preprocessing.image_size, 3), np.dtype(np.uint8))
    pixels = picture
    for step in whole.transforms:
        if "ToTensor" in type(step).__name__:
            break
        pixels = step(pixels)
    assert np.array_equal(framed, np.asarray(pixels)), "the geometric part, pixel for pixel"
    ours = preprocessing.normalise(_batch(framed))[0]
    assert torch.allclose(ours, whole(picture), atol=1e-5)
    assert torch.allclose(ToTensor()(pixels) * 255, _batch(framed)[0].float(), atol=1e-4)


def test_normalise_takes_any_number_type_and_gives_channels_last_float32() -> None:
    preprocessing = Preprocessing(8, 1.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    expected = torch.tensor([[-2.0, -1.0, -0.5], [2.0, 1.0, 0.5]])
    for given in (pixels, pixels.double(), pixels.to(torch.int64)):
        out = preprocessing.normalise(given)
        assert out.dtype == torch.float32
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(out.mean(dim=(2, 3)), expected)


def test_preprocessing_survives_its_config_json() -> None:
    import json

    preprocessing = Preprocessing(160, 350 / 450, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    written = json.loads(json.dumps(preprocessing.to_pretrained_cfg()))
    assert Preprocessing.from_pretrained_cfg(written) == preprocessing


def test_view_box_marks_what_the_network_sees() -> None:
    # 140 px are the centre of a picture resized to exactly 180; 160 of one resized to 205, the whole part of 205.7.
    assert Preprocessing(140, 350 / 450).view_box(Image.new("RGB", (450, 450))) == pytest.approx((50, 50, 400, 400))
    # (205 - 160) / 2 is 22.5, of which `frame` takes 22.
    first, end = 450 * 22 / 205, 450 * 182 / 205
    assert Preprocessing(160, 350 / 450).view_box(Image.new("RGB", (450, 450))) == pytest.approx(
        (first, first, end, end)
    )
    # 517 × 499 pixels become 109 × 106: the longer side, 109.8, is rounded down as well.
    view = Preprocessing(96, 0.9).view_box(Image.new("RGB", (517, 499)))
    across, down = 517 / 109, 499 / 106
    assert view == pytest.approx((6 * across, 5 * down, 102 * across, 101 * down))
    assert Preprocessing(160, 1.0).view_box(Image.new("RGB", (300, 200))) == pytest.approx((50, 0, 250, 200))
    # A picture that is white inside the box and black around it must be framed all white, but for the resampled edge.
    left, top, right, bottom = (round(x) for x in Preprocessing(160, 350 / 450).view_box(Image.new("RGB", (450, 450))))
    picture = Image.new("RGB", (450, 450))
    picture.paste((255, 255, 255), (left, top, right, bottom))
    framed = Preprocessing(160, 350 / 450).frame(picture)
    assert framed[2:-2, 2:-2].min() == 255


# Augmentation


def test_what_a_cell_gets_depends_on_its_row_and_not_on_its_batch(phantom: torch.Tensor) -> None:
    augment = Augmenter(Augmentation(), "black", seed=0)
    other = _batch(draw_cell("HEM", size=96).image)
    alone = augment(phantom, [7], epoch=2)
    together = augment(torch.cat([other, phantom, other]), [3, 7, 9], epoch=2)
    assert torch.allclose(alone[0], together[1], atol=1e-3)
    again = Augmenter(Augmentation(), "black", seed=0)(torch.cat([phantom, other]), [7, 3], epoch=2)
    assert torch.allclose(again[0], together[1], atol=1e-3)
    assert torch.allclose(again[1], together[0], atol=1e-3)


@pytest.mark.parametrize(("seed", "row", "epoch"), [(1, 7, 2), (0, 8, 2), (0, 7, 3)], ids=["seed", "row", "epoch"])
def test_another_seed_row_or_epoch_changes_a_cell_otherwise(
    phantom: torch.Tensor, seed: int, row: int, epoch: int
) -> None:
    one = Augmenter(Augmentation(), "black", seed=0)(phantom, [7], epoch=2)
    other = Augmenter(Augmentation(), "black", seed=seed)(phantom, [row], epoch=epoch)
    assert (one - other).abs().mean() > 1


def test_draws_of_a_row_do_not_depend_on_how_many_rows_there_are() -> None:
    small, large = (Augmenter(Augmentation(), "black", seed=3) for _ in range(2))
    first = small._draws([0, 5], epoch=1)
    large._draws([9000], epoch=1)
    assert torch.equal(first, large._draws([0, 5], epoch=1))
    small._draws([2], epoch=2)
    assert torch.equal(first, small._draws([0, 5], epoch=1)), "another epoch in between changes nothing"
    many = large._draws(range(9000), epoch=1)
    assert many.abs().max() <= 1
    assert many.mean(dim=0).abs().max() < 0.05
    assert len(many.unique(dim=0)) == 9000


def test_a_cell_that_is_not_resampled_keeps_every_pixel_exactly(phantom: torch.Tensor) -> None:
    augment, whole = Augmenter(Augmentation(), "smear", seed=0), phantom.float()
    draws = augment._draws(range(64), epoch=0)
    warped = augment._warp(whole.expand(64, -1, -1, -1), draws)
    turns = torch.cat([torch.rot90(f, k, (2, 3)) for f in (whole, whole.flip(3)) for k in range(4)])
    exact = (warped[:, None] == turns[None]).flatten(2).all(dim=2).any(dim=1)
    assert torch.equal(exact, draws[:, 8] >= 0)


def test_augmented_pixels_stay_floats_within_0_to_255(phantom: torch.Tensor) -> None:
    out = Augmenter(Augmentation(), "black", seed=0)(phantom.expand(32, -1, -1, -1), range(32), epoch=0)
    assert (out.shape, out.dtype) == ((32, 3, 96, 96), torch.float32)
    assert out.min() >= 0
    assert out.max() <= 255
    assert torch.isfinite(out).all()


def test_a_black_background_stays_exactly_black(phantom: torch.Tensor) -> None:
    cells = phantom.expand(32, -1, -1, -1)
    strong = Augmentation(brightness=0.4, contrast=0.4, stain=0.4)
    out = Augmenter(strong, "black", seed=0)(cells, range(32), epoch=1)
    edge = torch.cat([out[..., :4].flatten(1), out[..., -4:].flatten(1), out[..., :4, :].flatten(1)], dim=1)
    assert edge.abs().max() == 0
    background_share = (out.amax(dim=1) == 0).float().mean(dim=(1, 2))
    assert background_share.min() > 0.2
    nothing = Augmenter(strong, "black", seed=0)(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), range(4), epoch=0)
    assert nothing.abs().max() == 0


def test_a_cell_that_fits_is_never_cut() -> None:
    size, strength = 128, 0.2
    radius = (size / 2 - 2) / (1 + strength)
    cell = _disc(size, radius).expand(128, -1, -1, -1)
    out = Augmenter(Augmentation(strength, 0.0, 0.0, 0.0), "black", seed=0)(cell, range(128), epoch=0)
    grown = ((out[:, 0] > 100).float().sum(dim=(1, 2)) / (cell[0, 0] > 100).sum()).sqrt()
    assert 1 / (1 + strength) - 0.01 < grown.min() < 1 / (1 + 0.8 * strength), "cells shrink, as far as they may"
    assert 1 + 0.8 * strength < grown.max() < 1 + strength + 0.01, "and grow, as far as they may"
    assert out[..., 0, :].max() == out[..., -1].max() == 0, "no cell touches the frame"
    rows = (out[:, 0] > 100).any(dim=2).sum(dim=1)
    columns = (out[:, 0] > 100).any(dim=1).sum(dim=1)
    assert (rows - columns).abs().max() <= 2, "a round cell stays round"


def _marks(size: int) -> torch.Tensor:
    """A bright dot to the right of the middle and a fainter one above it, (1, 3, S, S) uint8."""
    marks = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    middle = size // 2
    marks[..., middle - 2 : middle + 3, size - 11 : size - 6] = 250
    marks[..., 6:11, middle - 2 : middle + 3] = 120
    return marks


def _directions(augmentation: Augmentation, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Radians from the right of the bright mark and of the faint one, in `count` augmented cells."""
    size = 65
    out = Augmenter(augmentation, "black", seed=0)(_marks(size).expand(count, -1, -1, -1), range(count), epoch=0)[:, 0]
    axis = torch.arange(size) - (size - 1) / 2

    def direction(weight: torch.Tensor) -> torch.Tensor:
        return torch.atan2((weight * -axis[:, None]).sum((1, 2)), (weight * axis[None, :]).sum((1, 2)))

    return direction(out * (out > 160)), direction(out * ((out > 40) & (out < 125)))


def test_rotation_covers_the_whole_circle_evenly_and_flips_half_the_time() -> None:
    count = 600
    bright, faint = _directions(STILL, count)
    # Sectors of a twelfth, their borders off the right angles that some cells are turned by.
    sectors = ((bright / (2 * math.pi) + 1 / 24) % 1 * 12).long()
    counts = torch.bincount(sectors, minlength=12)
    assert counts.min() > 0.3 * count / 12, counts
    quarters = counts.roll(1).view(4, 3).sum(dim=1)
    assert (quarters > 0.7 * count / 4).all(), quarters
    mirrored = torch.sin(faint - bright) < 0
    assert 0.4 < mirrored.float().mean() < 0.6


def test_zero_strength_leaves_colours_as_they_are(phantom: torch.Tensor) -> None:
    augment = Augmenter(STILL, "black", seed=0)
    turned = augment._warp(phantom.float(), augment._draws([0], 0))
    out = augment(phantom, [0], epoch=0)
    cell = (turned.amax(dim=1, keepdim=True) > 8).expand_as(out)
    assert (out - turned)[cell].abs().max() <= 1
    assert out[~cell].abs().max() == 0


@pytest.mark.parametrize("name", ["brightness", "contrast", "stain"])
def test_each_strength_changes_colours_within_its_bound(phantom: torch.Tensor, name: str) -> None:
    cells = phantom.expand(24, -1, -1, -1)
    still = Augmenter(STILL, "black", seed=0)(cells, range(24), epoch=0)
    strengths: dict[str, Any] = {"scale": 0.0, "brightness": 0.0, "contrast": 0.0, "stain": 0.0} | {name: 0.2}
    out = Augmenter(Augmentation(**strengths), "black", seed=0)(cells, range(24), epoch=0)
    change = (out.sum(dim=(1, 2, 3)) / still.sum(dim=(1, 2, 3)) - 1).abs()
    assert change.max() > 0.01, "it does something"
    assert change.max() < 0.45
    assert (out - still).abs().amax(dim=(1, 2, 3)).median() > 2


def test_stain_jitter_moves_the_two_stains_apart() -> None:
    """A grey picture turns coloured: brightness and contrast alone never do that."""
    grey = torch.full((16, 3, 8, 8), 120, dtype=torch.uint8)
    stained = Augmenter(Augmentation(0.0, 0.0, 0.0, 0.15), "smear", seed=0)(grey, range(16), epoch=0)
    assert (stained.amax(dim=1) - stained.amin(dim=1)).max() > 5
    lit = Augmenter(Augmentation(0.0, 0.15, 0.15, 0.0), "smear", seed=0)(grey, range(16), epoch=0)
    assert (lit.amax(dim=1) - lit.amin(dim=1)).max() < 0.01


# What a recipe may ask for instead: less rotation, other flips


def _angle_and_mirroring(augmentation: Augmentation, count: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each cell's bright mark went, in degrees from the right, and whether the cell was mirrored."""
    bright, faint = _directions(augmentation, count)
    return torch.rad2deg(bright), torch.sin(faint - bright) < 0


def test_rotation_stays_within_its_angle() -> None:
    angle, mirrored = _angle_and_mirroring(replace(STILL, rotation=20.0, flips="none"))
    assert not mirrored.any()
    assert -20.5 < angle.min() < -18
    assert 18 < angle.max() < 20.5
    assert angle.abs().median() == pytest.approx(10, abs=2), "every cell is turned, evenly within the angle"


def test_both_flips_show_all_four_mirrorings_equally_often() -> None:
    angle, mirrored = _angle_and_mirroring(replace(STILL, rotation=5.0, flips="both"))
    left = angle.abs() > 90
    counts = torch.tensor([(side & m).sum() for side in (left, ~left) for m in (mirrored, ~mirrored)])
    assert counts.sum() == 300
    assert counts.min() > 50, counts


def test_a_horizontal_flip_never_turns_a_cell_upside_down() -> None:
    angle, mirrored = _angle_and_mirroring(replace(STILL, rotation=5.0, flips="horizontal"))
    assert torch.equal(angle.abs() > 90, mirrored), "the mark to the right is on the left just where it is mirrored"
    assert 0.4 < mirrored.float().mean() < 0.6


@pytest.mark.parametrize(("flips", "looks"), [("none", 1), ("horizontal", 2), ("both", 4), ("dihedral", 8)])
def test_with_flips_alone_a_cell_has_exactly_its_views(
    phantom: torch.Tensor, flips: Literal["none", "horizontal", "both", "dihedral"], looks: int
) -> None:
    augmentation = Augmentation(0.0, 0.0, 0.0, 0.0, rotation=0.0, flips=flips)
    assert augmentation.only_views
    assert len(augmentation.views) == looks
    augment, rows = Augmenter(augmentation, "black", seed=0), list(range(400))
    out, which = augment(phantom.expand(400, -1, -1, -1), rows, epoch=3), augment.views_of(rows, epoch=3)
    for cell, number in zip(out, which.tolist(), strict=True):
        assert torch.equal(cell, in_view(phantom, augmentation.views[number])[0].float())
    assert len({tuple(in_view(phantom, view).flatten().tolist()) for view in augmentation.views}) == looks
    shares = torch.bincount(which, minlength=looks) / 400
    assert len(shares) == looks
    assert shares.min() > 0.6 / looks


@pytest.mark.parametrize("name", ["scale", "brightness", "contrast", "stain", "rotation"])
def test_any_other_change_leaves_more_looks_than_views(name: str) -> None:
    nothing: dict[str, Any] = {"scale": 0.0, "brightness": 0.0, "contrast": 0.0, "stain": 0.0, "rotation": 0.0}
    assert not Augmentation(**nothing | {name: 0.1}).only_views


def test_a_smear_has_no_black_corners() -> None:
    smear = _batch(draw_cell("ALL", size=96, background="smear").image).expand(48, -1, -1, -1)
    out = Augmenter(Augmentation(brightness=0.0, contrast=0.0, stain=0.0), "smear", seed=0)(smear, range(48), epoch=0)
    corners = torch.cat(
        [out[..., rows, columns] for rows in (slice(12), slice(-12, None)) for columns in (slice(12), slice(-12, None))]
    )
    assert corners.min() > 0.8 * smear.amin(), "reflection fills the corners with the smear itself"
    assert corners.mean() > 150
