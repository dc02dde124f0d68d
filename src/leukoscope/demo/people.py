"""What a model says of many cells and of the people they are of, as plain data for the plot, the table and the API."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import TypedDict

from leukoscope import RESEARCH_NOTICE, DataError, LeukoscopeError
from leukoscope.data.images import open_bytes
from leukoscope.data.registry import cells_of
from leukoscope.demo.answers import as_csv, colour
from leukoscope.demo.files import Batch
from leukoscope.demo.models import Models
from leukoscope.demo.pictures import Picture, Row
from leukoscope.demo.uploads import CELL_PIXELS
from leukoscope.inference.prediction import NOT_A_CELL, OUT_OF_DISTRIBUTION, TOO_FEW_CELLS, Prediction
from leukoscope.inference.subject import SubjectPrediction, SubjectRule
from leukoscope.models.release import ReleaseInfo
from leukoscope.reports import words

MAX_BATCH_KEPT = 64 * 2**20  # bytes of a batch's files that stay in the visitor's session, to be opened
MAX_NOTES = 8  # that the page shows
UNKNOWN = "unknown person"


class Cell(NamedTuple):
    """One picture's prediction; `content` is its file, empty beyond `MAX_BATCH_KEPT`."""

    name: str
    subject: str
    label: str
    prediction: Prediction
    content: bytes = b""


class Plot(TypedDict, total=False):
    """A batch as its plot shows it."""

    problem: str
    model: str
    title: str
    reading: bool
    done: int
    total: int
    caveats: list[str]
    notes: list[str]
    people: list[Row]  # each with `dots`; places are shares of the width
    axis: str
    saved: str


@dataclass
class BatchResult:
    """A batch as far as one model has read it; in a visitor's session, in memory only."""

    release: ReleaseInfo
    total: int
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)
    done: int = 0
    stopped: bool = False

    @property
    def is_reading(self) -> bool:
        """Whether files of it are still read."""
        return self.done < self.total and not self.stopped

    @cached_property
    def rule(self) -> SubjectRule | None:
        """What the release predicts for people by; None where it was not measured."""
        return SubjectRule.from_metrics(self.release.metrics, self.release.labels)

    @property
    def positive(self) -> str:
        """The class whose probability is plotted."""
        return self.rule.positive_label if self.rule else self.release.labels[0]

    def share(self, number: int) -> float:
        """The probability of a cell that is plotted."""
        return self.cells[number].prediction.probabilities[self.positive]

    @property
    def by_person(self) -> dict[str, list[int]]:
        """Person, "" for unknown → numbers of the cells, people by name."""
        numbers = defaultdict(list)
        for number, cell in enumerate(self.cells):
            numbers[cell.subject].append(number)
        return {name: numbers[name] for name in sorted(numbers, key=by_number)}

    def prediction(self, name: str) -> SubjectPrediction | None:
        """What the model says of a known person; None while files are read, or without a rule."""
        if not name or self.rule is None or self.is_reading:
            return None
        cells = [cell.prediction for cell in self.cells if cell.subject == name]
        shares = np.array([list(cell.probabilities.values()) for cell in cells])
        return self.rule.predict(shares, [cell.outcome for cell in cells], subject=name)

    def cell_picture(self, number: int) -> Picture | None:
        """A cell that can be opened; None where there is none of that number.

        Raises:
            DataError: its file was not kept.
        """
        if not 0 <= number < len(self.cells):
            return None
        cell = self.cells[number]
        if not cell.content:
            raise DataError(
                f"{cell.name}: of a batch, {MAX_BATCH_KEPT // 2**20} MB of pictures are kept; send this one alone"
            )
        return opened(cell.name, cell.content)

    @property
    def caveats(self) -> list[str]:
        """What must be known before the results are used."""
        names = {cell.name for cell in self.cells} | {f"UID_{cell.subject}_" for cell in self.cells}
        trained_on = {words.training_subject(self.release.metrics, name) for name in names} - {""}
        if not trained_on:
            return []
        listed = ", ".join(sorted(trained_on, key=by_number))
        return [f"Trained on people called {listed}: if these are the same, the results are too good."]

    @property
    def sentences(self) -> list[str]:
        """How many cells of known classes were given them, what is not known, and what cannot be used."""
        of_class = Counter(cell.label for cell in self.cells)
        right = Counter(cell.label for cell in self.cells if cell.prediction.outcome == cell.label)
        labels = [label for label in self.release.labels if of_class[label]]
        parts = [f"{right[label]} of {of_class[label]} {cells_of(label)}" for label in labels]
        recognised = [f"Given their class: {', '.join(parts)}."] if parts else []
        return [*recognised, *self.notes, *self.problems]


def by_number(name: str) -> list[Any]:
    """Sorts names as people do: 2 before 16, the unknown last."""
    parts: list[Any] = re.split(r"(\d+)", name or "\uffff")
    parts[1::2] = map(int, parts[1::2])
    return parts


def predict_batch(
    models: Models, model: str, read: Callable[[Sequence[str]], Batch], stopped: Callable[[], bool] = lambda: False
) -> Iterator[BatchResult]:
    """Predict every picture of a batch: the cells so far after each, at last the whole result.

    Args:
        read: classes of the release → the batch.
        stopped: whether the rest is to be left out; asked after each cell.

    Raises:
        LeukoscopeError: the model cannot be used, what is known of the pictures contradicts itself, or not one picture
            can be used.
    """
    predictor = models.predictor(model)
    batch = read(predictor.release.labels)
    result = BatchResult(predictor.release, len(batch.cells), batch.notes, [*batch.problems])
    first_of: dict[str, str] = {}
    room = MAX_BATCH_KEPT
    for cell in batch.cells:
        # One by one: decoded pictures of a whole batch would fill the memory, and a visitor's cell waits for one only.
        content = cell.source if isinstance(cell.source, bytes) else cell.source.read_bytes()
        room -= len(content)
        try:
            picture = opened(cell.name, content)
            (prediction,) = predictor([picture.image])
            _require_cell(picture, prediction, first_of)
            if room < 0:
                content = b""
            result.cells.append(Cell(cell.name, cell.subject, cell.label, prediction, content))
        except LeukoscopeError as error:
            result.problems.append(str(error))
        result.done += 1
        result.stopped = stopped()
        yield result
        if result.stopped:
            break
    if not result.cells:
        raise DataError(f"Not one picture can be used. {[*result.problems, 'None was given.'][0]}")


def _require_cell(picture: Picture, prediction: Prediction, first_of: dict[str, str]) -> None:
    """Raise `DataError` for a picture that does not count as a cell, or counts already."""
    other = first_of.setdefault(prediction.pixel_hash, picture.name)
    if other != picture.name:
        raise DataError(f"{picture.name}: is a copy of {other}, pixel for pixel; it counts once")
    if prediction.outcome == NOT_A_CELL:
        raise DataError(f"{picture.name}: shows a smear, no single cell; give it in the tab Smear")
    if prediction.outcome == OUT_OF_DISTRIBUTION and picture.holds_no_cell:
        raise DataError(f"{picture.name}: no white blood cell found; nothing in it is stained as the nucleus of one is")


def opened(name: str, content: bytes) -> Picture:
    """A picture of a batch."""
    return Picture(open_bytes(content, name, max_pixels=CELL_PIXELS, ground=None), name, back="batch")


def plot_of(result: BatchResult) -> Plot:
    """A batch as its plot shows it."""
    stopped = "Stopped: " if result.stopped else ""
    notes = [words.trust_rows(result.release.metrics)[0].sentence, *result.sentences]
    if len(notes) > MAX_NOTES:
        notes[MAX_NOTES:] = [f"{len(notes) - MAX_NOTES} more could not be used."]
    return Plot(
        model=words.short_name(result.release.name),
        title=f"{stopped}{len(result.cells)} of {result.total} pictures read",
        reading=result.is_reading,
        done=result.done,
        total=result.total,
        caveats=result.caveats,
        notes=notes,
        people=[person(result, name, numbers) for name, numbers in result.by_person.items()],
        axis=f"each dot a cell: its probability of {words.named(result.positive)}",
        saved="" if result.is_reading else as_csv(lines_of(result)),
    )


def person(result: BatchResult, name: str, numbers: Sequence[int]) -> Row:
    """One person with these cells; without a verdict while cells are still read."""
    row: Row = {"name": name or UNKNOWN, "cells": f"{len(numbers)} cell{'s' * (len(numbers) > 1)}"}
    row["dots"] = [dot(result, number) for number in sorted(numbers, key=result.share)]
    prediction = result.prediction(name)
    if prediction is None:
        return row
    row |= {"colour": colour(prediction.outcome, result.release.labels), **person_words(prediction)}
    if prediction.is_result and prediction.interval is not None:
        row["low"], row["high"] = prediction.interval
    return row


def person_words(prediction: SubjectPrediction) -> Row:
    """What a model says of a person, and why or how surely: it leans where most of its cells are not sure."""
    rule = prediction.rule
    if prediction.outcome == TOO_FEW_CELLS:
        missing = rule.least_cells - prediction.used
        detail = f"{missing} more cells are needed, like its training cells: {rule.least_cells} in all"
        return {"words": "Too few cells", "detail": detail}
    if prediction.outcome == OUT_OF_DISTRIBUTION:
        detail = f"{prediction.refused} of {prediction.cells} cells are unlike its training cells"
        return {"words": "No class", "detail": detail}
    low, high = prediction.interval or (0.0, 1.0)
    interval = f"{words.percent(low)} to {words.percent(high)}"
    detail = f"{prediction.positive_label} {words.percent(prediction.probability or 0)}, 95 % interval {interval}"
    says = "Looks like"
    if 2 * prediction.abstained >= prediction.used:
        says = "Leans towards"
        detail = f"{prediction.abstained} of {prediction.used} cells are not sure; {detail}"
    verdict = f"{says} {prediction.outcome}" if prediction.outcome in rule.labels else "Not sure"
    return {"words": verdict, "detail": detail}


def dot(result: BatchResult, number: int) -> Row:
    """One cell."""
    cell = result.cells[number]
    share = result.share(number)
    outcome = cell.prediction.outcome
    title = f"{cell.name}: {words.outcome_text(outcome)}, {result.positive} {words.percent(share)}"
    return {"number": number, "share": share, "colour": colour(outcome, result.release.labels), "title": title}


def lines_of(result: BatchResult) -> list[Row]:
    """A line for each cell, as the API gives it and the page saves it."""
    return [
        {
            "file": cell.name,
            "subject": cell.subject,
            "outcome": cell.prediction.outcome,
            "reasons": " ".join(reason.code for reason in cell.prediction.decision.reasons),
            "label": cell.label,
            **{f"p_{label}": share for label, share in cell.prediction.probabilities.items()},
            "ood_score": cell.prediction.checks.ood_score,
            "model": result.release.name,
            "revision": result.release.revision,
            "notice": RESEARCH_NOTICE,
        }
        for cell in result.cells
    ]
