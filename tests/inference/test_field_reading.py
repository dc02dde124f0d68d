"""A field's reading must count what the model knows, set the rest apart, and never call a smear a cell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, Predictor
from leukoscope.cells.fields import UnusableField
from leukoscope.cells.images import UnreadableImage
from leukoscope.cells.phantom_fields import draw_field
from leukoscope.cells.phantoms import draw_cell
from leukoscope.inference.field_overlay import draw_reading
from leukoscope.inference.field_reading import (
    AT_EDGE,
    NOT_RECOGNISED,
    NOT_SURE,
    read_field,
    refuse_smear,
    takes_cut_outs,
)
from leukoscope.inference.guard import Guard

CLASSES = ("ALL", "HEM", "ALL", "HEM")


@pytest.fixture(scope="module")
def smear() -> Image.Image:
    return Image.fromarray(draw_field(CLASSES, size=(300, 380), um_per_pixel=0.2).image)


@pytest.fixture
def predictor(tiny_release: Path) -> Predictor:
    return Predictor.from_pretrained(tiny_release)


def about(predictor: Predictor, **metrics: Any) -> Predictor:
    predictor.release = replace(predictor.release, metrics={**predictor.release.metrics, **metrics})
    return predictor


def guard(limit: float) -> Guard:
    values = (np.zeros(1024), np.eye(1, 1024), np.ones(1), 1.0, limit)
    return Guard(*(np.asarray(value, np.float32) for value in values))


def test_every_whole_cell_gets_a_class_and_counts_add_up(predictor, smear):
    reading = read_field(predictor, smear, "a.png", um_per_pixel=0.2)

    assert len(reading.cells) == sum(reading.counts.values()) == len(CLASSES)
    assert list(reading.counts) == ["ALL", "HEM", NOT_SURE, NOT_RECOGNISED, AT_EDGE]
    assert all(cell.verdict == cell.prediction.label for cell in reading.cells if cell.prediction)
    told = json.loads(json.dumps(reading.to_dict()))
    assert told["notice"] == RESEARCH_NOTICE
    assert told["um_per_pixel"] == 0.2 and told["scale_from"] == "given"
    assert [cell["box"] for cell in told["cells"]] == [list(cell.cell.box) for cell in reading.cells]


def test_cells_the_guard_does_not_recognise_count_as_no_class(predictor, smear):
    predictor.guard = guard(limit=1e-6)

    reading = read_field(predictor, smear, um_per_pixel=0.2)

    assert reading.counts[NOT_RECOGNISED] == len(CLASSES)
    assert reading.counts["ALL"] == reading.counts["HEM"] == 0
    assert "does not recognise 4 of these" in reading.summary and "means little" in reading.summary


def test_cells_below_the_release_s_own_threshold_are_not_sure(predictor, smear):
    about(predictor, decisions={"abstention": {"default": {"threshold": 1.0}}})

    assert read_field(predictor, smear, um_per_pixel=0.2).counts[NOT_SURE] == len(CLASSES)


def test_cells_cut_by_the_edge_are_not_asked_about(predictor, smear):
    (left, _, right, _), *_ = (cell.cell.box for cell in read_field(predictor, smear, um_per_pixel=0.2).cells)

    reading = read_field(predictor, smear.crop(((left + right) // 2, 0, *smear.size)), um_per_pixel=0.2)

    cut = [cell for cell in reading.cells if cell.verdict == AT_EDGE]
    assert cut and all(cell.prediction is None for cell in cut)


def test_more_cells_than_may_be_answered_for_are_refused(predictor, smear):
    assert len(read_field(predictor, smear, um_per_pixel=0.2, most_cells=len(CLASSES)).cells) == len(CLASSES)
    with pytest.raises(
        UnusableField, match=r"^a.png: shows 4 nucleated cells, more than the 3 answered for at once; crop"
    ):
        read_field(predictor, smear, "a.png", um_per_pixel=0.2, most_cells=3)


def test_an_empty_field_is_said_to_be_empty(predictor):
    reading = read_field(predictor, Image.new("RGB", (200, 200), (236, 220, 217)))

    assert reading.summary == "No nucleated cell was found."
    assert reading.to_dict()["um_per_pixel"] is None


def test_an_unusable_field_is_named(predictor, smear):
    with pytest.raises(UnusableField, match=r"^grey\.png: the picture is grey"):
        read_field(predictor, smear.convert("L").convert("RGB"), "grey.png")


def test_a_release_that_learnt_from_whole_fields_refuses_to_read_cut_outs(predictor, smear):
    about(predictor, data={"name": "ball4"})

    with pytest.raises(LeukoscopeError, match="learnt from pictures with their background.*leukoscope predict"):
        read_field(predictor, smear)


def test_a_smear_is_refused_as_a_cell_and_a_cut_out_is_not(predictor, smear):
    assert takes_cut_outs(predictor.release) is None
    refuse_smear(predictor.release, smear, "smear.png")  # nothing is known of what this release learnt from

    release = about(predictor, data={"name": "cnmc2019"}).release
    one_cell = draw_cell("ALL", background="smear").image
    for picture in (smear, Image.fromarray(one_cell)):
        with pytest.raises(UnreadableImage, match="smear.png: shows a smear.* leukoscope field smear.png --model"):
            refuse_smear(release, picture, "smear.png")
    for picture in (Image.fromarray(draw_cell("ALL").image), Image.new("RGB", (90, 90)), noise()):
        refuse_smear(release, picture, "cell.png")


def noise() -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 90, (64, 64, 3), np.uint8)
    return Image.fromarray(levels)


def test_the_overlay_draws_what_is_not_recognised_differently(predictor, smear):
    known = read_field(predictor, smear, um_per_pixel=0.2)
    predictor.guard = guard(limit=1e-6)
    foreign = read_field(predictor, smear, um_per_pixel=0.2)

    one, other = (np.asarray(draw_reading(smear, reading)) for reading in (known, foreign))

    assert one.shape == other.shape and one.shape[1] == 800
    left, top, right, bottom = (edge * 800 / 380 for edge in known.cells[0].cell.box)
    middle = slice(round((top + bottom) / 2) - 4, round((top + bottom) / 2) + 4)
    crossing = slice(round((left + right) / 2) - 4, round((left + right) / 2) + 4)
    assert not np.array_equal(one[middle, crossing], other[middle, crossing]), "a cross over what is not recognised"
    assert (other[middle, crossing] == 0).all(axis=-1).any()
