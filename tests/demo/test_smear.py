"""A smear: its words, the boxes that open cells, and a scale that is never invented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from asked import answer, release
from leukoscope.data.smear import IMPLAUSIBLE_SCALE, Scale, Smear, SmearCell
from leukoscope.demo.models import Models
from leukoscope.demo.pictures import SMEAR_NAME, Picture, examples
from leukoscope.demo.smear import Reading, box, read_cells, smear_card, smear_view, verdict, whole_words
from leukoscope.inference.smear import CellReading, SmearReading

NONE = Models({})
MEASURED = Scale(0.15, "red cells")


def reading(
    shares: list[float | None], scale: Scale | None = MEASURED, notes: tuple[str, ...] = (), ood: float = 0.2
) -> Reading:
    """A smear with cells of these probabilities of ALL; None for one that the edge cuts."""
    outline = np.ones((8, 8), bool)
    cells = []
    for number, share in enumerate(shares):
        cell = SmearCell((100 * number, 50, 100 * number + 40, 90), outline, outline, 60.0, share is not None)
        cells.append(CellReading(cell, None if share is None else answer(share, ood_score=ood).known))
    smear = Smear((1000, 500), tuple(cell.cell for cell in cells), scale, notes)
    read = SmearReading("s.png", smear, ("ALL", "HEM"), tuple(cells), release().name, "")
    picture = Image.new("RGB", (1000, 500), (235, 222, 218))
    for read_cell in cells:
        ImageDraw.Draw(picture).ellipse(read_cell.cell.box, (90, 40, 120))
    return Reading(Picture(picture, "s.png"), read, release())


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (reading([0.9, 0.9, 0.1]), "2 blasts, 1 normal cell"),
        (reading([0.9]), "1 blast"),
        (reading([0.9, 0.6]), "1 blast, 1 cell not sure"),
        (reading([0.9, 0.9], ood=3.0), "No class: unlike the cells it knows"),
        (reading([None]), "No whole white cell found"),
        (reading([]), "No white blood cell found"),
        (reading([0.9] * 3, Scale(0.181, "red cells"), (f"Nuclei are 3 µm wide: {IMPLAUSIBLE_SCALE}",)),
         "No class: its scale is not known"),
        (reading([0.9] * 2, Scale(0.15, "nuclei")), "No class: its scale is not known"),
        (reading([0.9] * 3, Scale(0.15, "nuclei")), "3 blasts"),
        (reading([0.9], Scale(0.15, "given"), (f"x {IMPLAUSIBLE_SCALE}",)), "1 blast"),
    ],
)  # fmt: skip
def test_the_verdict_counts_cells_and_a_scale_is_never_invented(read: Reading, words: str) -> None:
    assert verdict(read) == words
    assert smear_card(read, NONE)["verdict"] == words
    view = smear_view(read.picture, read)
    has_scale = read.has_scale
    assert ("um_per_pixel" in view) == has_scale and (view["scale"] == "scale not known") != has_scale
    said = " ".join(smear_card(read, NONE)["caveats"])
    assert "no OOD detector" not in said
    if read.whole and not has_scale:
        assert "Give its scale in micrometres per pixel" in said and IMPLAUSIBLE_SCALE not in said
        assert "tiles" not in smear_card(read, NONE)


def test_a_box_is_a_button_with_its_class_however_many_there_are() -> None:
    read = reading([0.9, 0.6, None] + [0.1] * 30)
    boxes = [box(read, number) for number in range(len(read.reading.cells))]
    assert [boxes[number]["words"] for number in (0, 1, 32)] == ["1 ALL", "2 ?", "33 HEM"]
    assert [boxes[number]["whole"] for number in (0, 2)] == [True, False]
    assert boxes[0]["left"] == 0 and boxes[0]["width"] == 40 and boxes[0]["top"] == 50
    assert whole_words(read) == "32 whole white cells, 1 cut by the edge"


def test_the_example_is_read_and_each_cell_can_be_opened(tiny_release: Path) -> None:
    picture = examples()[SMEAR_NAME]
    read = read_cells(Models({"tiny": tiny_release}), picture, "tiny")
    assert len(read.whole) == 5 and read.has_scale and read.reading.model == "tiny"
    card = smear_card(read, NONE)
    assert len(card["tiles"]) == 5 and "µm², nucleus" in card["tiles"][0]["name"]
    assert card["saved"].startswith("data:text/csv;base64,")
