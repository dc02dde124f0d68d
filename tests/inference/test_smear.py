"""A smear's reading must count what is in distribution, set the rest apart, and never call a smear a cell."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, Prediction, Predictor
from leukoscope.data.smear import UnusableSmear, cut_out, find_cells
from leukoscope.inference.ood import NUM_STATISTICS, OodDetector, picture_statistics
from leukoscope.inference.prediction import ABSTAIN, NOT_A_CELL, OUT_OF_DISTRIBUTION, Decision
from leukoscope.inference.smear import AT_EDGE, CUT_OUT_AS_C_NMC, CellReading, SmearReading, draw_reading, read_smear
from leukoscope.synthetic import draw_smear

CLASSES = ("ALL", "HEM", "ALL", "HEM")


@pytest.fixture(scope="module")
def smear() -> Image.Image:
    return Image.fromarray(draw_smear(CLASSES, size=(300, 380), um_per_pixel=0.2).image)


@pytest.fixture
def predictor(tiny_release: Path) -> Predictor:
    return Predictor.from_pretrained(tiny_release)


def detector(limit: float, mean: np.ndarray | None = None) -> OodDetector:
    values = (
        np.zeros(NUM_STATISTICS) if mean is None else mean,
        np.ones(NUM_STATISTICS),
        np.eye(NUM_STATISTICS),
        limit,
    )
    return OodDetector(*(np.asarray(value, np.float32) for value in values))


def knows(predictor: Predictor, smear: Image.Image, count: int) -> OodDetector:
    """A detector whose limit lets pass that many of the smear's cells: those most like the first."""
    cells = [cut_out(smear, cell, 0.2) for cell in find_cells(smear, um_per_pixel=0.2).cells]
    statistics = np.stack([picture_statistics(predictor.release.preprocessing.frame(cell)) for cell in cells])
    around = detector(1.0, mean=statistics[0])
    near = np.sort(around.distances(statistics))
    return replace(around, limit=np.asarray((near[count - 1] + near[count]) / 2, np.float32))


def predicted(cell: CellReading) -> Prediction:
    assert cell.prediction is not None
    return cell.prediction


def ood_score(cell: CellReading) -> float:
    score = predicted(cell).checks.ood_score
    assert score is not None
    return score


def test_every_whole_cell_gets_a_class_and_counts_add_up(
    predictor: Predictor, smear: Image.Image, tmp_path: Path
) -> None:
    smear.save(path := tmp_path / "smear.png")
    reading = read_smear(predictor, path, um_per_pixel=0.2)

    assert len(reading.cells) == sum(reading.counts.values()) == len(CLASSES)
    assert list(reading.counts) == ["ALL", "HEM", ABSTAIN, OUT_OF_DISTRIBUTION, NOT_A_CELL, AT_EDGE]
    assert all(cell.outcome == cell.prediction.outcome in CLASSES for cell in reading.cells if cell.prediction)
    shares = ", ".join(f"{reading.counts[label]} {label}" for label in ("ALL", "HEM") if reading.counts[label])
    assert reading.summary == f"4 nucleated cell(s): {shares}."
    told = json.loads(json.dumps(reading.to_dict()))
    assert (told["source"], told["notice"]) == (str(path), RESEARCH_NOTICE)
    assert (told["um_per_pixel"], told["scale_from"]) == (0.2, "given")
    assert told["in_distribution"] is reading.in_distribution is None, "this release has no OOD detector"
    for cell, one in zip(told["cells"], reading.cells, strict=True):
        assert (cell["box"], cell["outcome"]) == (list(one.cell.box), one.outcome)
        assert (cell["reasons"], cell["ood_score"]) == ([], None)
        assert cell["probabilities"] == predicted(one).probabilities
    for mode in ("RGBA", "P"):
        given = smear.convert(mode)
        same = read_smear(predictor, given.convert("RGB"), um_per_pixel=0.2)
        assert read_smear(predictor, given, um_per_pixel=0.2).counts == same.counts
    with pytest.raises(LeukoscopeError, match="CMYK"):
        read_smear(predictor, smear.convert("CMYK"), um_per_pixel=0.2)


def codes(reading: SmearReading) -> list[list[str]]:
    return [[reason.code for reason in cell.prediction.decision.reasons] for cell in reading.cells if cell.prediction]


def test_a_smear_with_few_known_cells_gives_no_class_even_to_those(predictor: Predictor, smear: Image.Image) -> None:
    """The share of a smear is known only when the smear is read: a cell given by itself gets its class."""
    predictor.ood = knows(predictor, smear, count=1)

    reading = read_smear(predictor, smear, um_per_pixel=0.2)

    first, *others = reading.cells
    assert ood_score(first) <= 1 < min(ood_score(cell) for cell in others)
    (reason,) = predicted(first).decision.reasons
    assert (reason.code, reason.value, reason.limit) == ("ood_field", 0.25, 0.5)
    assert all(found[0] in ("ood_colour", "ood_texture", "ood_shape") for found in codes(reading)[1:])
    assert reading.summary == (
        "4 nucleated cell(s): 4 out of distribution. 25% of the whole cells are like those the model was trained on, "
        "less than the 50% needed (another microscope or stain): no cell gets a class."
    )
    told = json.loads(json.dumps(reading.to_dict()))
    assert told["in_distribution"] == reading.in_distribution == 0.25
    assert told["counts"] == reading.counts and reading.counts[OUT_OF_DISTRIBUTION] == len(CLASSES)
    assert told["cells"][0]["outcome"] == OUT_OF_DISTRIBUTION
    assert told["cells"][0]["reasons"] == [reason.to_dict()]
    assert told["cells"][0]["ood_score"] == ood_score(first)
    alone = predictor(cut_out(smear, first.cell, 0.2))
    assert alone.outcome == alone.most_probable and alone.checks.field_share is None
    assert alone.probabilities == pytest.approx(predicted(first).probabilities, abs=1e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_where_half_of_a_smears_cells_are_known_those_get_their_class(
    predictor: Predictor, smear: Image.Image, count: int
) -> None:
    predictor.ood = knows(predictor, smear, count)

    reading = read_smear(predictor, smear, um_per_pixel=0.2)

    assert reading.in_distribution == count / 4
    for cell in reading.cells:
        known = ood_score(cell) <= 1
        assert cell.outcome == (predicted(cell).most_probable if known else OUT_OF_DISTRIBUTION)
        assert predicted(cell).checks.field_share == count / 4
    assert f", {4 - count} out of distribution. {count / 4:.0%} of the whole cells are like" in reading.summary


def test_cells_cut_by_the_edge_are_not_asked_about_and_do_not_count_in_the_share(
    predictor: Predictor, smear: Image.Image
) -> None:
    (left, _, right, _), *_ = (cell.cell.box for cell in read_smear(predictor, smear, um_per_pixel=0.2).cells)
    predictor.ood = detector(limit=1e6)

    reading = read_smear(predictor, smear.crop(((left + right) // 2, 0, *smear.size)), um_per_pixel=0.2)

    cut = [cell for cell in reading.cells if cell.outcome == AT_EDGE]
    assert cut and reading.in_distribution == 1
    assert all((cell.prediction is None) == (cell.outcome == AT_EDGE) for cell in reading.cells)
    # Numbered as they stand: whole cells first, in the table, on the drawn smear and in the demo.
    assert list(reading.cells) == sorted(reading.cells, key=lambda cell: cell.outcome == AT_EDGE)
    assert reading.smear.cells[0].box != reading.cells[0].cell.box, "the cell at the edge was found first"
    told = [cell for cell in reading.to_dict()["cells"] if cell["outcome"] == AT_EDGE]
    assert len(told) == len(cut) == reading.counts[AT_EDGE]
    for cell in told:
        assert (cell["reasons"], cell["probabilities"], cell["ood_score"]) == ([], None, None)


def test_more_cells_or_seconds_than_are_given_are_refused(predictor: Predictor, smear: Image.Image) -> None:
    assert len(read_smear(predictor, smear, um_per_pixel=0.2, most_cells=len(CLASSES)).cells) == len(CLASSES)
    with pytest.raises(UnusableSmear, match=r"^a.png: shows more than the 3 nucleated cells predicted at once; crop"):
        read_smear(predictor, smear, "a.png", um_per_pixel=0.2, most_cells=3)
    with pytest.raises(UnusableSmear, match=r"^a.png: takes longer than 0 seconds; crop it, or"):
        read_smear(predictor, smear, "a.png", um_per_pixel=0.2, seconds=0)


def test_an_empty_smear_is_said_to_be_empty_and_an_unusable_one_is_named(
    predictor: Predictor, smear: Image.Image
) -> None:
    reading = read_smear(predictor, Image.new("RGB", (200, 200), (236, 220, 217)))

    assert reading.summary == "No nucleated cell was found."
    assert reading.in_distribution is reading.to_dict()["um_per_pixel"] is None
    with pytest.raises(UnusableSmear, match=r"^grey\.png: the picture is grey"):
        read_smear(predictor, smear.convert("L").convert("RGB"), "grey.png")


@pytest.mark.parametrize(
    ("data", "said"),
    [({"name": "imagefolder"}, True), ({}, True), ({"name": "cnmc2019"}, False), ({"name": "ball4"}, None)],
)
def test_how_cells_are_cut_out_is_said_where_the_training_cells_are_not_known(
    predictor: Predictor, smear: Image.Image, data: dict[str, str], said: bool | None
) -> None:
    predictor.release = replace(predictor.release, metrics=predictor.release.metrics.changed(data=data))
    if said is None:
        with pytest.raises(LeukoscopeError, match="was trained on pictures with their background.*leukoscope predict"):
            read_smear(predictor, smear)
    else:
        notes = read_smear(predictor, smear, um_per_pixel=0.2).to_dict()["notes"]
        assert (CUT_OUT_AS_C_NMC in notes) == said


@pytest.mark.parametrize("size", [(100, 300), (300, 100)])
def test_the_legend_of_a_narrow_smear_is_not_cut_off(predictor: Predictor, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (236, 220, 217))

    drawn = draw_reading(image, read_smear(predictor, image))

    legend = np.asarray(drawn)[round(800 * size[1] / max(size)) :]
    assert (legend < 200).any(), "it is there"
    assert (legend[:, -4:] == 255).all() and (legend[-2:] == 255).all()


def test_what_is_drawn_is_numbered_as_in_the_table_and_never_certain(
    predictor: Predictor, smear: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading = read_smear(predictor, smear, um_per_pixel=0.2)
    sure = {label: share for label, share in zip(reading.labels, (0.9979, 0.0021), strict=True)}
    cells = tuple(
        replace(
            one, prediction=one.prediction and replace(one.prediction, probabilities=sure, decision=Decision("ALL"))
        )
        for one in reading.cells
    )
    drawn: list[str] = []
    text = ImageDraw.ImageDraw.text

    def noted(pen: ImageDraw.ImageDraw, at: tuple[float, float], said: str, *more: Any, **options: Any) -> None:
        drawn.append(said)
        text(pen, at, said, *more, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", noted)
    draw_reading(smear, replace(reading, cells=cells))
    assert [said for said in drawn if said[0].isdigit()] == [
        f"{number} ALL > 99 %" if one.prediction else str(number) for number, one in enumerate(cells, 1)
    ]


def test_the_overlay_draws_what_is_out_of_distribution_differently(predictor: Predictor, smear: Image.Image) -> None:
    known = read_smear(predictor, smear, um_per_pixel=0.2)
    predictor.ood = detector(limit=1e-6)
    foreign = read_smear(predictor, smear, um_per_pixel=0.2)

    one, other = (np.asarray(draw_reading(smear, reading)) for reading in (known, foreign))

    assert one.shape == other.shape and one.shape[1] == 800
    left, top, right, bottom = (edge * 800 / 380 for edge in known.cells[0].cell.box)
    middle = slice(round((top + bottom) / 2) - 4, round((top + bottom) / 2) + 4)
    crossing = slice(round((left + right) / 2) - 4, round((left + right) / 2) + 4)
    assert not np.array_equal(one[middle, crossing], other[middle, crossing]), "a cross over what gets no class"
    assert (other[middle, crossing] == 0).all(axis=-1).any()
