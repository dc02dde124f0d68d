"""Many cells: one prediction for each person, how many cells are missing, and what is said of unsure ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asked import answer, png, release
from leukoscope import LeukoscopeError
from leukoscope.demo import people
from leukoscope.demo.files import Batch, BatchCell
from leukoscope.demo.models import Models
from leukoscope.demo.people import BatchResult, Cell, lines_of, person, plot_of, predict_batch


def result(shares: list[float], subject: str = "P1", label: str = "", **facts: Any) -> BatchResult:
    """A batch of one person's cells, each with this probability of ALL."""
    cells = [Cell(f"{number}.png", subject, label, answer(share).known) for number, share in enumerate(shares)]
    return BatchResult(release(), len(cells), cells=cells, done=len(cells), **facts)


def row_of(shares: list[float]) -> dict[str, Any]:
    return person(result(shares), "P1", range(len(shares)))


def test_a_person_without_enough_cells_is_told_how_many_are_missing() -> None:
    row = row_of([0.9] * 48)
    assert row["cells"] == "48 cells" and row["words"] == "Too few cells"
    assert row["detail"] == "2 more cells are needed, like its training cells: 50 in all" and "high" not in row


def test_a_person_whose_cells_are_unsure_leans() -> None:
    sure = row_of([0.02] * 60)
    assert sure["words"] == "Looks like HEM" and "95 % interval" in sure["detail"] and sure["colour"] == "class-1"
    unsure = row_of([0.31] * 60)
    assert unsure["words"] in ("Leans towards HEM", "Not sure") and (
        unsure["words"] == "Not sure" or unsure["detail"].startswith("60 of 60 cells are not sure; ")
    )


def test_cells_of_unknown_people_have_a_row_without_a_verdict() -> None:
    plot = plot_of(result([0.9], subject="", notes=["Whose?"]))
    (row,) = plot["people"]
    assert row["name"] == "unknown person" and row["cells"] == "1 cell" and "words" not in row
    trust, note = plot["notes"]
    assert trust.startswith("Recognised, 34 further people: 80 of 100 blasts") and note == "Whose?"
    assert plot["title"] == "1 of 1 pictures read"


def test_where_classes_are_known_it_is_said_how_many_were_given_them() -> None:
    """The second is more probably a blast, and not sure."""
    assert plot_of(result([0.9, 0.6, 0.4], label="ALL"))["notes"][1] == "Given their class: 1 of 3 blasts."


def test_people_of_the_training_are_a_caveat() -> None:
    assert plot_of(result([0.9], subject="1"))["caveats"] == [
        "Trained on people called 1: if these are the same, the results are too good."
    ]


def test_a_line_has_the_columns_that_programs_read() -> None:
    (line,) = lines_of(result([0.25]))
    assert line["file"] == "0.png" and line["p_ALL"] == 0.25 and line["outcome"] == "HEM"


def test_a_batch_is_read_cell_by_cell_and_what_is_no_cell_is_said(
    tiny_release: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = {"a.png": png(), "copy.png": png(), "broken.png": b"no picture", "b.png": png(cell=1)}
    cells = [BatchCell(name, "P1", "", content) for name, content in pictures.items()]
    batch = Batch(cells, ["c.txt: is no picture"], [])
    models = Models({"tiny": tiny_release})
    *_, last = predict_batch(models, "tiny", lambda classes: batch)
    assert [cell.name for cell in last.cells] == ["a.png", "b.png"] and not last.is_reading
    assert last.problems[:2] == [
        "c.txt: is no picture",
        "copy.png: is a copy of a.png, pixel for pixel; it counts once",
    ]
    assert last.problems[2].startswith("broken.png: ")
    assert all(cell.content for cell in last.cells)
    *_, stopped = predict_batch(models, "tiny", lambda classes: batch, lambda: True)
    assert stopped.stopped and stopped.done == 1 and plot_of(stopped)["title"] == "Stopped: 1 of 4 pictures read"
    with pytest.raises(LeukoscopeError, match="Not one picture can be used. broken.png: "):
        list(predict_batch(models, "tiny", lambda classes: Batch([cells[2]], [], [])))
    monkeypatch.setattr(people, "MAX_BATCH_KEPT", 1)
    *_, last = predict_batch(models, "tiny", partial(lambda batch, classes: batch, batch))
    assert not any(cell.content for cell in last.cells)
