"""Augmentation changes how a cell looks and never what it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from leukoscope.data.augmentation import Augmentation, Augmenter, in_view
from leukoscope.synthetic import draw_cell

STILL = Augmentation(scale=0.0, brightness=0.0, contrast=0.0, stain=0.0)


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


def test_what_a_cell_gets_depends_on_seed_row_and_epoch_and_not_on_its_batch(phantom: torch.Tensor) -> None:
    def augmented(rows: Sequence[int], seed: int = 0, epoch: int = 2) -> torch.Tensor:
        return Augmenter(Augmentation(), "black", seed)(phantom.expand(len(rows), -1, -1, -1), rows, epoch)

    together = augmented([3, 7, 9000])
    assert torch.allclose(augmented([7])[0], together[1], atol=1e-3)
    for other in (together[0], augmented([7], seed=1)[0], augmented([7], epoch=3)[0]):
        assert (other - together[1]).abs().mean() > 1
    augment = Augmenter(Augmentation(), "black", seed=3)
    first = augment._draws([0, 5], epoch=1)
    augment._draws([2], epoch=2)
    many = augment._draws(range(9000), epoch=1)
    assert torch.equal(first, many[[0, 5]]), "other rows and another epoch in between change nothing"
    assert many.abs().max() <= 1 and many.mean(dim=0).abs().max() < 0.05
    assert len(many.unique(dim=0)) == 9000


def test_a_cell_that_is_not_resampled_keeps_every_pixel_exactly(phantom: torch.Tensor) -> None:
    augment, whole = Augmenter(Augmentation(), "smear", seed=0), phantom.float()
    draws = augment._draws(range(64), epoch=0)
    warped = augment._warp(whole.expand(64, -1, -1, -1), draws)
    turns = torch.cat([torch.rot90(f, k, (2, 3)) for f in (whole, whole.flip(3)) for k in range(4)])
    exact = (warped[:, None] == turns[None]).flatten(2).all(dim=2).any(dim=1)
    assert torch.equal(exact, draws[:, 8] >= 0)


def test_a_black_background_stays_exactly_black(phantom: torch.Tensor) -> None:
    strong = Augmentation(brightness=0.4, contrast=0.4, stain=0.4)
    out = Augmenter(strong, "black", seed=0)(phantom.expand(32, -1, -1, -1), range(32), epoch=1)
    assert (out.shape, out.dtype) == ((32, 3, 96, 96), torch.float32)
    assert torch.isfinite(out).all() and out.min() == 0 and out.max() <= 255
    assert not (out[..., [0, 1, -2, -1]].any() or out[..., [0, 1, -2, -1], :].any())
    assert (out.amax(dim=1) == 0).float().mean(dim=(1, 2)).min() > 0.2
    nothing = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    assert not Augmenter(strong, "black", seed=0)(nothing, range(4), epoch=0).any()


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


@pytest.mark.parametrize("name", ["brightness", "contrast", "stain"])
def test_each_strength_changes_colours_within_its_bound_and_stains_move_apart(phantom: torch.Tensor, name: str) -> None:
    cells = phantom.expand(24, -1, -1, -1)
    strength: dict[str, Any] = {name: 0.2}
    augment = Augmenter(replace(STILL, **strength), "black", seed=0)
    out, still = (each(cells, range(24), epoch=0) for each in (augment, Augmenter(STILL, "black", seed=0)))
    change = (out.sum(dim=(1, 2, 3)) / still.sum(dim=(1, 2, 3)) - 1).abs()
    assert 0.01 < change.max() < 0.45
    assert (out - still).abs().amax(dim=(1, 2, 3)).median() > 2
    # A grey picture turns coloured: brightness and contrast alone never do that.
    grey = augment(torch.full((16, 3, 8, 8), 120, dtype=torch.uint8), range(16), epoch=0)
    assert ((grey.amax(dim=1) - grey.amin(dim=1)).max() > 5) == (name == "stain")


# What a recipe may ask for instead: less rotation, other flips


def test_less_rotation_and_other_flips_show_what_they_say() -> None:
    def shown(rotation: float, flips: Literal["none", "horizontal", "both"]) -> tuple[torch.Tensor, torch.Tensor]:
        bright, faint = _directions(replace(STILL, rotation=rotation, flips=flips), 300)
        return torch.rad2deg(bright), torch.sin(faint - bright) < 0

    angle, mirrored = shown(20.0, "none")
    assert not mirrored.any()
    assert -20.5 < angle.min() < -18 and 18 < angle.max() < 20.5
    assert angle.abs().median() == pytest.approx(10, abs=2), "every cell is turned, evenly within the angle"
    angle, mirrored = shown(5.0, "both")
    left = angle.abs() > 90
    counts = torch.tensor([(side & m).sum() for side in (left, ~left) for m in (mirrored, ~mirrored)])
    assert counts.sum() == 300 and counts.min() > 50, "all four mirrorings"
    angle, mirrored = shown(5.0, "horizontal")
    assert torch.equal(angle.abs() > 90, mirrored), "the mark to the right is on the left just where it is mirrored"
    assert 0.4 < mirrored.float().mean() < 0.6


@pytest.mark.parametrize(("flips", "looks"), [("none", 1), ("horizontal", 2), ("both", 4), ("dihedral", 8)])
def test_with_flips_alone_a_cell_has_exactly_its_views(
    phantom: torch.Tensor, flips: Literal["none", "horizontal", "both", "dihedral"], looks: int
) -> None:
    augmentation = replace(STILL, rotation=0.0, flips=flips)
    assert augmentation.only_views
    assert len(augmentation.views) == looks
    augment, rows = Augmenter(augmentation, "black", seed=0), list(range(400))
    out, which = augment(phantom.expand(400, -1, -1, -1), rows, epoch=3), augment.versions_of(rows, epoch=3)
    for cell, number in zip(out, which.tolist(), strict=True):
        assert torch.equal(cell, in_view(phantom, augmentation.views[number])[0].float())
    assert len({tuple(in_view(phantom, view).flatten().tolist()) for view in augmentation.views}) == looks
    shares = torch.bincount(which, minlength=looks) / 400
    assert len(shares) == looks
    assert shares.min() > 0.6 / looks


def test_each_version_but_the_first_has_a_view_and_a_small_change_of_its_own_that_stay(phantom: torch.Tensor) -> None:
    still = replace(STILL, rotation=0.0, flips="dihedral")
    augmentation = replace(still, small_changes=1.0, versions=5)
    assert augmentation.only_views
    assert augmentation.version_count == 5
    augment = Augmenter(augmentation, "black", seed=0)
    versions = [augment.version(phantom, [5], number) for number in range(5)]
    assert torch.equal(versions[0], phantom), "a cell is predicted as it is"
    for number in range(1, 5):
        assert not any(torch.equal(versions[number], in_view(phantom, view)) for view in range(8))
        assert torch.equal(versions[number], Augmenter(augmentation, "black", seed=9).version(phantom, [5], number))
        assert not torch.equal(versions[number], augment.version(phantom, [6], number))
    rows = list(range(60))
    shown = augment(phantom.expand(60, -1, -1, -1), rows, epoch=1)
    which = augment.versions_of(rows, epoch=1)
    assert torch.bincount(which, minlength=5).min() > 4, "every version is shown"
    for row, number in enumerate(which.tolist()):
        assert torch.equal(shown[row], augment.version(phantom, [row], number)[0].float())


def test_a_share_of_the_cells_has_a_small_change_in_every_epoch_another(phantom: torch.Tensor) -> None:
    still = replace(STILL, rotation=1e-9, flips="none")
    cells = phantom.expand(60, -1, -1, -1)
    augmenters = [Augmenter(replace(still, small_changes=share), "black", seed=0) for share in (0.0, 0.5)]
    first, second = (
        augmenters[1](cells, range(60), epoch) - augmenters[0](cells, range(60), epoch) for epoch in (1, 2)
    )
    assert 0.3 < (first.abs().amax(dim=(1, 2, 3)) > 1).float().mean() < 0.7
    assert not torch.allclose(first, second, atol=1)


def test_a_smear_has_no_black_corners() -> None:
    """Reflection fills them with the smear itself."""
    smear = _batch(draw_cell("ALL", size=96, background="smear").image).expand(48, -1, -1, -1)
    out = Augmenter(replace(STILL, scale=0.25), "smear", seed=0)(smear, range(48), epoch=0)
    edges = [*range(12), *range(-12, 0)]
    corners = out[..., edges, :][..., edges]
    assert corners.min() > 0.8 * smear.amin() and corners.mean() > 150
