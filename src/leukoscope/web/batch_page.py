"""Many cells on the stage: each as a dot by its probability, by person, and beside that what follows from them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any

from markupsafe import Markup

from leukoscope.data.registry import cells_of
from leukoscope.inference.prediction import (
    ABSTAIN,
    OUT_OF_DISTRIBUTION,
    REFUSED,
    TOO_FEW_CELLS,
    WITHOUT_CLASS,
    Thresholds,
)
from leukoscope.inference.subject import SubjectPrediction
from leukoscope.reports import trust
from leukoscope.reports.formatting import data_uri, metric_name
from leukoscope.reports.text import (
    FOREIGN_VERDICT,
    NO_CELL_VERDICT,
    NOTHING_FOUND,
    about_model,
    digits_of_limit,
    outcome_text,
    percent,
    percentages,
)
from leukoscope.web.batch import SHEET_SIZE, BatchResult, BatchRow, LabelMetrics, measured_on_labels
from leukoscope.web.batch_files import Batch, first_thumbnails
from leukoscope.web.drawing import (
    NO_ADDRESS,
    UNLIKE_TRAINING,
    Address,
    EmbeddedImage,
    colour,
    form,
    outcome_counts,
    render,
)
from leukoscope.web.smear_page import counts_text
from leukoscope.web.stage import Tile
from leukoscope.web.swarm import Space, common_radius, swarm

SHOWN_CELLS = 120
SHOWN_WHILE_READ = 24
LEAST_SHOWN = 12  # of each person
FIRST_CELLS = 12  # of an opened person, until all are asked for
# Width by height of the place for pictures on a stage, in a wide window and on a phone.
STAGE_SHAPE = 1.4
NARROW_STAGE_SHAPE = 0.9
SHOWN_WRONG = 24
SHOWN_PROBLEMS = 20
SHORT_NAME = 12  # letters below a thumbnail
MOST_NAMED = 3  # people of a class whom a headline names
LONGEST_CODE = 4  # letters of a name that is called a person's
LONGEST_FILE_NAME = 24  # of an opened cell
LONGEST_PERSON_NAME = 16  # letters in a headline
LONGEST_LIST = 28  # letters of such names, so that a headline has two lines
SHOWN_FILES = 6  # of each problem
# Fewer say nothing about others, whatever interval is computed from them.
LEAST_CELLS = 10
LEAST_PEOPLE = 5
# Of a row's plot: the shares of its width that the probabilities and the refused cells have, and its pixels on a phone.
AXIS_END = 0.73
REFUSED_FROM = 0.78
_ON_LIMIT = 1e-9  # so near to a limit, a probability is on it
WIDTH = 356
LEAST_HEIGHT = 48
MOST_HEIGHT = 200
OPENED_HEIGHT = 104  # of a person's row above their cells
FEW_CELLS = 32  # of one row, which need less height
HEIGHT_OF_FEW = 136
# What `find_subjects` says that people are guessed from → the same in few words: a warning has one line.
_GUESSED_FROM = {
    "the number after UID_ in each file name, as C-NMC 2019 names its cells": "UID_ numbers",
    "the folder of each picture": "folders",
}
_END_OF_WORD = re.compile(r"(?<=[_\- .])")
# Pixels of all rows together, where that leaves each its least height: in a wide window, and on a phone, where a line
# with name and answer stands above each person's dots.
ALL_ROWS = 400
ALL_ROWS_NARROW = 254
NAME_LINE = 28


def progress(result: BatchResult, *, waits: str = "", is_chosen: bool = False) -> Markup:
    """How many pictures of a batch are predicted, and what is known so far.

    `waits` says what it waits for; `is_chosen`: whether the visitor chose its model, which is not the first one.
    """
    seconds_left = None
    if 0 < result.done < result.total:
        seconds_left = max(1, round(result.seconds / result.done * (result.total - result.done)))
    return render(
        "progress.html",
        done=result.done,
        total=result.total,
        seconds_left=seconds_left,
        people=_people(len(result.subjects)) if result.subjects else "people unknown",
        caveats=_caveats(result),
        counts=_counts(result),
        model=result.model,
        is_chosen=is_chosen,
        sentence=waits or _progress_sentence(result),
        trust=trust.trust_rows(result.metrics) if result.metrics else [],
        labels=result.classes,
        colours=_colours(result),
    )


def _progress_sentence(result: BatchResult) -> str:
    """What will be said of people: it stands where the answer says it."""
    if result.rule is None or not result.subjects:
        return _people_hint(result)
    least = result.rule.least_cells
    people = len(result.subjects)
    answered = people - len(_with_too_few_cells(result))
    if not answered:
        most = max(_given_cells(result).values())
        return (
            f"No answer about any person will follow. An answer needs {least} cells like its training cells; none has "
            f"more than {_count_text(most, 'picture')}."
        )
    after_all_pictures = "once all of their pictures are predicted"
    if answered == people:
        return f"A person’s answer follows {after_all_pictures}."
    return (
        f"An answer needs {least} cells like its training cells: at most {answered} of {people} people can get one, "
        f"{after_all_pictures}."
    )


# Its tile in the strip.


def batch_tile(act: str, result: BatchResult, pressed: bool) -> Tile:
    """A tile with six of its cells, or with all of fewer."""
    image = EmbeddedImage(data_uri("image/webp", result.sheet), *SHEET_SIZE)
    is_dark = all(row.is_dark for _, row in result.cells)
    return Tile(act, _read_text(result), _given_text(result), image, dark=is_dark, pressed=pressed)


# The left of the stage: a plot, and before that the pictures.


def given_picture(batch: Batch) -> Markup:
    """The left of the stage before the first cells are predicted: how many pictures were given, and the first ones."""
    pictures = [
        (data_uri("image/webp", thumbnail.content), thumbnail.is_dark)
        for thumbnail in first_thumbnails(batch.files, SHOWN_WHILE_READ)
    ]
    return render(
        "batch_given.html",
        count=_count_text(len(batch.files), "picture"),
        pictures=pictures,
        columns=_columns(len(pictures), STAGE_SHAPE),
        narrow_columns=_columns(len(pictures), NARROW_STAGE_SHAPE),
    )


def _columns(pictures: int, shape: float) -> int:
    """In how many columns so many pictures, about square, fill a stage of this width by height."""
    return max(1, math.ceil(math.sqrt(pictures * shape)))


def batch_picture(result: BatchResult) -> Markup:
    """The left of the stage: a row of dots for each person, or one for all; behind a row are its cells."""
    is_read = not result.unread or result.stopped
    too_few = _with_too_few_cells(result)
    groups: list[str | None] = [None]
    if result.subjects:
        groups = [*_in_order(result, too_few)]
        if any(not row.subject for _, row in result.cells) or "" in result.unread:
            groups.append("")
    cells_of_row = [_cells(result, subject) for subject in groups]
    radius = common_radius([space for cells in cells_of_row for space in _spaces(result, cells, len(groups))])
    cells_a_row = SHOWN_CELLS
    if len(groups) > 1:
        cells_a_row = max(LEAST_SHOWN, SHOWN_CELLS // len(groups))
    is_every_person_known = set(result.subjects) <= result.trained_on
    # Where all rows have their least height, a line more leaves them as high as they are.
    is_said_once = bool(too_few) and len(groups) * LEAST_HEIGHT >= ALL_ROWS
    short_names = _short_names([row.name for row in result.rows])
    rows = []
    for subject, cells in zip(groups, cells_of_row, strict=True):
        listed: list[dict[str, Any]] = []
        unread = 0
        if is_read:
            listed = [_cell(result, number, row, short_names) for number, row in _least_sure_first(cells)[:cells_a_row]]
        elif subject is None:
            # As they come; what has not come has its place already.
            listed = [
                {**_cell(result, number, row, short_names), "opens": False} for number, row in cells[:SHOWN_WHILE_READ]
            ]
            unread = min(result.total, SHOWN_WHILE_READ) - len(listed)
        rows.append(
            {
                "name": _row_name(result, subject),
                # Where that is asked of every person, the answer says so once.
                "in_training": subject in result.trained_on and not is_every_person_known,
                "waits": not cells and bool(result.unread) and not result.stopped,
                "heading": _too_few_text(result, len(too_few)) if is_said_once and subject == too_few[0] else "",
                "answer": _row_answer(result, subject, is_said_once and subject in too_few) if subject else None,
                "sentences": person_sentences(result, subject) if subject else [],
                "words": _counts_words([row for _, row in cells]) or "no cell read yet",
                "dots": _dots(result, cells, len(groups), radius),
                "total": len(cells),
                "cells": listed,
                "unread": unread,
            }
        )
    return render(
        "batch_picture.html",
        key=result.given.key,
        rows=rows,
        axis=_axis(result),
        radius=f"{radius:g}",
        narrow=f"{_narrow_dots(result, len(groups)):.2f}",
        opened=f"{min(1, OPENED_HEIGHT / _row_height(ALL_ROWS / len(groups))):.2f}",
        by_person=bool(result.subjects),
        answers_people=result.rule is not None,
        opens=len(groups) == 1,
        few=_are_few(result, len(groups)),
        is_read=is_read,
        order=_order_text(result, is_read),
        first_cells=FIRST_CELLS,
        all_rows=f"All {_people(len(result.subjects))}" if len(result.subjects) > 1 else "More cells",
    )


def _in_order(result: BatchResult, too_few: Sequence[str]) -> list[str]:
    """Every known person, by name, those with too few cells last: while cells are read and after it the same."""
    return [*(subject for subject in result.subjects if subject not in too_few), *too_few]


def _with_too_few_cells(result: BatchResult) -> list[str]:
    """The people of whom fewer pictures were given than an answer needs cells, by name."""
    if result.rule is None:
        return []
    given = _given_cells(result)
    return [subject for subject in result.subjects if given[subject] < result.rule.least_cells]


def _given_cells(result: BatchResult) -> dict[str, int]:
    """Person → how many pictures were given of them, read or not."""
    return {subject: len(result.by_subject.get(subject, ())) + result.unread.get(subject, 0)
            for subject in result.subjects}  # fmt: skip


def _too_few_text(result: BatchResult, people: int) -> str:
    """Why so many people have no answer, above their rows."""
    assert result.rule is not None, "else nobody has too few cells"
    least = result.rule.least_cells
    return f"No answer about these {_people(people)}: each has fewer than {least} cells."


def _row_answer(result: BatchResult, subject: str, reason_stands_above: bool) -> PersonAnswer:
    """What stands at the end of a person's row: only how many cells where the reason for no answer stands above."""
    answer = person_answer(result, subject)
    prediction = _prediction(result, subject)
    if reason_stands_above and prediction is not None and prediction.outcome == TOO_FEW_CELLS:
        return PersonAnswer("", _count_text(prediction.used))
    return answer


def _order_text(result: BatchResult, is_read: bool) -> str:
    """In which order the cells behind a row stand; of pictures that are none, that none is."""
    if not is_read:
        return "As they are read"
    if _shows_no_cell(result):
        return "None is a single cell"
    has_unlike = any(row.prediction.outcome in REFUSED for row in result.rows)
    return "The least sure first, unlike ones last" if has_unlike else "The least sure first"


def _cells(result: BatchResult, subject: str | None) -> list[tuple[int, BatchRow]]:
    """Number and row of each cell of a subject, "" for those without; of all for None."""
    return [(number, row) for number, row in result.cells if subject is None or row.subject == subject]


def _least_sure_first(cells: Sequence[tuple[int, BatchRow]]) -> list[tuple[int, BatchRow]]:
    """Cells in the order in which they stand behind a row, those unlike the training cells last."""
    return sorted(cells, key=lambda numbered: (numbered[1].prediction.outcome in REFUSED, numbered[1].confidence))


def next_cell(result: BatchResult, number: int) -> int | None:
    """Number of the cell after this one in its person's list, after the last the first; None for no other."""
    subject = result.rows[number].subject if result.subjects else None
    listed = [other for other, row in _least_sure_first(_cells(result, subject)) if row.picture]
    if number not in listed or len(listed) == 1:
        return None
    return listed[(listed.index(number) + 1) % len(listed)]


def _row_name(result: BatchResult, subject: str | None) -> str:
    """What stands before a row of dots."""
    if subject is None:
        return f"{result.total or len(result.rows)} cells"
    return subject or "person unknown"


def _axis(result: BatchResult) -> dict[str, Any]:
    """What the place and the colour of a dot mean, and which part of the axis gives no class."""
    classes: Sequence[str] = result.classes
    highest = percent(1.0)
    to_the_right = "its class is more probable"
    if len(classes) == 2:
        to_the_right = f"more probably {_with_article(result.positive)}"
        highest = f"{highest} {_kind(result.positive, 1)}"
        classes = sorted(classes, key=lambda label: label == result.positive)
    legend = [_legend_part(_kind(label), colour(label, classes)) for label in classes]
    zone = None
    grey = colour(ABSTAIN, classes)
    unsure = _unsure_band(result)
    if unsure:
        zone = {"from": unsure[0] * AXIS_END, "to": unsure[1] * AXIS_END}
        band = f"grey band, {_span(unsure, digits_of_limit(unsure[1]))}: not sure"
        legend.append(_legend_part(band, grey, "lk-in-band"))
    if result.wrong:
        legend.append(_legend_part("ringed: wrong by your labels", "", "lk-ringed"))
    return {
        "end": AXIS_END,
        "caption": f"Each dot is one cell; further right: {to_the_right}.",
        "legend": legend,
        "figures": [percent(0.0), percent(0.5), highest],
        "unlike": _legend_part(UNLIKE_TRAINING, grey, form(OUT_OF_DISTRIBUTION)),
        "zone": zone,
    }


def _unsure_band(result: BatchResult) -> tuple[float, float] | None:
    """From where to where on the axis the model is not sure; None where it gives every cell a class."""
    limit = Thresholds.from_metrics(result.metrics).abstain_below or 0.0
    if not _leaves_unsure(result):
        return None
    return (1 - limit if len(result.classes) == 2 else 0.0), limit


def _borders(result: BatchResult) -> list[float]:
    """Where on the axis the band ends; what lies on one of its ends has a class."""
    unsure = _unsure_band(result)
    if unsure is None:
        return []
    low, high = unsure
    ends = [high - _ON_LIMIT]
    if low > 0:
        ends.insert(0, low + _ON_LIMIT)
    return ends


def _legend_part(words: str, colour: str, form: str = "lk-known") -> dict[str, str]:
    """What dots of a colour and form are."""
    return {"words": words, "colour": colour, "form": form}


def _share(result: BatchResult, row: BatchRow) -> float:
    """Where a cell lies on the axis: its probability of the positive class; of more classes, of its own."""
    if len(result.classes) == 2:
        return row.prediction.probabilities[result.positive]
    return row.confidence


def _are_few(result: BatchResult, rows: int) -> bool:
    """Whether one row has so few cells that it needs less height."""
    return rows == 1 and max(result.total, len(result.rows)) <= FEW_CELLS


def _row_height(height: float) -> float:
    """The height of a row of dots, in pixels, within its limits."""
    return min(MOST_HEIGHT, max(LEAST_HEIGHT, height))


def _narrow_dots(result: BatchResult, rows: int) -> float:
    """How large dots are on a phone, as a share of those in a wide window: so much lower are the rows."""
    if not result.subjects:
        return 1.0
    return _row_height(ALL_ROWS_NARROW / rows - NAME_LINE) / _row_height(ALL_ROWS / rows)


def _spaces(result: BatchResult, cells: Sequence[tuple[int, BatchRow]], rows: int) -> tuple[Space, Space]:
    """The dots of a row: those by their probability, and the refused ones, stacked in their own place."""
    height = _row_height(ALL_ROWS / rows) - 8
    if _are_few(result, rows):
        height = HEIGHT_OF_FEW - 8
    shares = [_share(result, row) for _, row in cells if row.prediction.outcome not in REFUSED]
    refused = len(cells) - len(shares)
    return (
        Space(shares, WIDTH * AXIS_END, height, borders=_borders(result)),
        Space([0.5] * refused, WIDTH * (1 - REFUSED_FROM), height, stacked=True),
    )


def _dots(result: BatchResult, cells: Sequence[tuple[int, BatchRow]], rows: int, radius: float) -> list[dict[str, Any]]:
    """The dots of a row, each with its cell's number and what the model says of it."""
    known, refused = _spaces(result, cells, rows)
    centres = {
        False: iter([(x * AXIS_END, y) for x, y in swarm(known, radius)]),
        True: iter([(REFUSED_FROM + x * (1 - REFUSED_FROM), y) for x, y in swarm(refused, radius)]),
    }
    dots = []
    for number, row in cells:
        outcome = row.prediction.outcome
        x, y = next(centres[outcome in REFUSED])
        dots.append(
            {
                "number": number,
                "x": f"{100 * x:.2f}",
                "y": f"{100 * y:.2f}",
                # Half of a ring's line lies outside.
                "radius": f"{radius - 1 if outcome in REFUSED else radius:g}",
                "colour": colour(outcome, result.classes),
                "form": form(outcome),
                "wrong": row.is_wrong,
                "title": f"{row.name}: {_cell_words(row)}",
            }
        )
    return dots


# What is said of people.


def _prediction(result: BatchResult, subject: str) -> SubjectPrediction | None:
    """The prediction for a person; None where the release makes none, or not all of its files are read."""
    return next((known for known in result.subject_predictions if known.subject == subject), None)


@dataclass(frozen=True)
class PersonAnswer:
    """What stands at the end of a person's row: the answer, what it is made from, and the class's colour."""

    short: str
    detail: str = ""
    colour: str = ""


def person_answer(result: BatchResult, subject: str) -> PersonAnswer:
    """The answer about a person in few words, or why there is none."""
    cells = len(result.by_subject.get(subject, ()))
    unread = result.unread.get(subject, 0)
    if unread:
        read = f"{cells} of {cells + unread} cells"
        if result.stopped:
            return PersonAnswer("not all read" if cells else "not read", read)
        if cells == 0:
            return PersonAnswer("waiting …", read)
        return PersonAnswer("reading …", read)
    prediction = _prediction(result, subject)
    if prediction is None:
        return PersonAnswer(_count_text(len(_cells(result, subject))))
    if prediction.outcome == TOO_FEW_CELLS:
        needed = prediction.rule.least_cells
        return PersonAnswer("no answer", f"{_count_text(prediction.used)}; {needed} needed")
    if prediction.outcome == OUT_OF_DISTRIBUTION:
        return PersonAnswer("no answer", f"{prediction.refused} of {cells} unlike")
    assert prediction.probability is not None and prediction.interval is not None, "a result has both"
    if prediction.outcome == ABSTAIN:
        return PersonAnswer("not sure", f"{_span(prediction.interval)} for {_kind(prediction.positive_label)}")
    share = prediction.probability
    if prediction.outcome != prediction.positive_label:
        share = 1 - share
    # A mere percentage would be read as the share of the person's cells.
    probability = f"probability {percent(share)}"
    return PersonAnswer(_kind(prediction.outcome), probability, colour(prediction.outcome, result.classes))


def person_sentences(result: BatchResult, subject: str) -> list[str]:
    """What a person's cells say together and why, how many have each outcome, and how many are right where known."""
    rows = result.by_subject.get(subject, [])
    sentences = []
    prediction = _prediction(result, subject)
    # That all its cells are too few stands in the row.
    if prediction is not None and (prediction.outcome != TOO_FEW_CELLS or prediction.used < prediction.cells):
        sentences.append(_about_answer(prediction))
    cells = [row for _, row in _cells(result, subject)]
    if cells:
        sentences.append(f"{_count_text(len(cells))}: {_counts_words(cells)}.")
    judged = [row for row in rows if row.truth and row.prediction.decision.label]
    if judged:
        right = sum(row.prediction.decision.label == row.truth for row in judged)
        sentences.append(f"Right by your labels: {right} of {len(judged)} with a class.")
    return sentences


def _about_answer(prediction: SubjectPrediction) -> str:
    """How far an answer about a person may move, or why there is none, in a sentence."""
    if prediction.outcome == TOO_FEW_CELLS:
        needed = prediction.rule.least_cells
        verb = "is" if prediction.used == 1 else "are"
        return f"An answer about a person needs {needed} cells like the training cells; here {verb} {prediction.used}."
    if prediction.outcome == OUT_OF_DISTRIBUTION:
        return (
            f"{prediction.refused} of {prediction.cells} cells are unlike the training cells: where most are, nothing "
            "is said about the person."
        )
    assert prediction.probability is not None and prediction.interval is not None, "a result has both"
    if prediction.outcome == ABSTAIN:
        positive = _kind(prediction.positive_label)
        return f"Other cells of this person may give either class: {_span(prediction.interval)} for {positive}."
    low, high = prediction.interval
    of_positive = prediction.outcome == prediction.positive_label
    interval = (low, high) if of_positive else (1 - high, 1 - low)
    return f"With other cells of this person the probability would be {_span(interval)}."


def _span(interval: tuple[float, float], digits: int = 0) -> str:
    """An interval of probabilities, in percent; a bound that is "<1" or ">99" in words, as a dash would read as one."""
    low, high = (percent(share, digits) for share in interval)
    if low == high:
        return low
    low = low.removesuffix(_PERCENT)
    if low.startswith("<") or high.startswith(">"):
        return f"{low} to {high}".replace("<", "under\u00a0").replace(">", "over\u00a0")
    return f"{low}–{high}"


_PERCENT = "\u00a0%"


def _counts_words(rows: Sequence[BatchRow]) -> str:
    """How many cells have each outcome that occurs."""
    counts = Counter(row.prediction.outcome for row in rows)
    classes = sorted(outcome for outcome in counts if outcome not in WITHOUT_CLASS)
    outcomes = [*classes, *(outcome for outcome in WITHOUT_CLASS if counts[outcome])]
    return ", ".join(f"{counts[outcome]} {_kind(outcome, counts[outcome])}" for outcome in outcomes)


# The right of the stage.


@dataclass(frozen=True)
class Verdict:
    """What a batch is answered, in one sentence, and why there is no more to say, in others."""

    sentence: str
    because: str = ""


def batch_answer(
    result: BatchResult,
    others: Sequence[str] = (),
    readings: Sequence[BatchResult] = (),
    *,
    least_cells: Mapping[str, int | None] | None = None,
    address: Address = NO_ADDRESS,
    is_given_last: bool = False,
    is_chosen: bool = False,
) -> Markup:
    """The right of the stage: what follows for people or cells, counts, metrics on labels, wrong cells, problems.

    Args:
        others: the other models that can read the batch.
        readings: what some of them predicted for it.
        least_cells: other model → how many cells of a person its answer needs; None where it gives none, or that is not
            known.
        address: by which the browser finds it again.
        is_given_last: nothing was given after it, so the browser can send its files again.
        is_chosen: whether the visitor chose its model, which is not the first one.
    """
    measured = measured_on_labels(result)
    problems = _problems(result)
    reading_of = {reading.model: reading for reading in readings}
    names = dict.fromkeys([*others, *reading_of])
    short_names = _short_names([row.name for row in result.rows])
    trust_rows: Sequence[trust.TrustRow] = ()
    if result.metrics and not _is_foreign(result):
        trust_rows = trust.trust_rows(result.metrics)
    answered = verdict(result)
    other_models = [_other_model(result, name, reading_of.get(name), (least_cells or {}).get(name)) for name in names]
    return render(
        "batch.html",
        model=result.model,
        is_chosen=is_chosen,
        given=_given_text(result),
        without_answer=_number_without_answer(result),
        verdict=answered.sentence,
        because=answered.because,
        caveats=_caveats(result) if result.rows else [],
        counts=_counts(result),
        kind="pictures" if _shows_no_cell(result) else "cells",
        rule=_rule_text(result),
        measured=_measured_row(result, measured),
        measured_labels=[label for label in result.classes if measured.cells.get(label)],
        measures=_measures(measured),
        wrong=[_cell(result, number, row, short_names) for number, row in result.wrong[:SHOWN_WRONG]],
        wrong_total=len(result.wrong),
        problems=problems,
        problems_total=len(result.problems),
        trust=trust_rows,
        labels=result.classes,
        colours=_colours(result),
        answer_more=[other for other in other_models if other["needs"]],
        others=[other for other in other_models if not other["needs"]],
        details=f"{about_model(result.model, result.revision)}.",
        can_save=bool(result.rows),
        read_again=result.stopped and is_given_last and not readings,
        address=address,
    )


def _rule_text(result: BatchResult) -> str:
    """How cells become an answer about a person, and what that is worth; "" without a rule for people."""
    if result.rule is None:
        return ""
    sentences = [
        "Rule for a person: a logistic regression on the 10, 25, 50, 75 and 90\u00a0% quantiles of the cells’ logits, "
        f"from {result.rule.least_cells} cells on that are like its training cells.",
        *_error_rate(result),
        "The interval of an answer says how far other cells of the person may move it, not how people differ.",
    ]
    return " ".join(sentences)


def _colours(result: BatchResult) -> dict[str, str]:
    """Class → its colour."""
    return {label: colour(label, result.classes) for label in result.classes}


def _problems(result: BatchResult) -> list[str]:
    """A sentence for each reason why files were not used, with the files that it holds for."""
    files_of: dict[str, list[str]] = {}
    for problem in result.problems:
        name, _, reason = problem.partition(": ")
        files_of.setdefault(reason, []).append(name)
    sentences = []
    for reason, names in files_of.items():
        listed = ", ".join(names[:SHOWN_FILES])
        if len(names) > SHOWN_FILES:
            listed += f" and {len(names) - SHOWN_FILES} more"
        sentences.append(f"{listed}: {reason}")
    more = len(sentences) - SHOWN_PROBLEMS
    if more > 0:
        sentences[SHOWN_PROBLEMS:] = [f"and {more} more"]
    return sentences


def _other_model(
    result: BatchResult, name: str, reading: BatchResult | None, least_cells: int | None
) -> dict[str, Any]:
    """What another model predicted for the batch, beside what is shown; that it can read it, where it has not."""
    if reading is None:
        words = f"read the {_read_text(result)}, too"
        needs = _answers_about_more(result, least_cells)
        if not needs:
            return {"model": name, "words": words, "needs": "", "title": f"{name}: {words}", "counts": []}
        return {"model": name, "needs": needs, "title": f"{name} {needs}; {words}"}
    words = _agreement(result, reading)
    title = f"{name}: {_counts_words([row for _, row in reading.cells])}; {words}; show it"
    return {"model": name, "words": words, "needs": "", "title": title, "counts": _counts(reading)}


def _answers_about_more(result: BatchResult, least_cells: int | None) -> str:
    """That another model needs so few cells that it can answer about people without an answer; "" for nobody."""
    if least_cells is None:
        return ""
    without = [prediction for prediction in result.subject_predictions if prediction.outcome not in result.classes]
    too_few = [prediction for prediction in without if prediction.outcome == TOO_FEW_CELLS]
    # Those like this model's training cells: the other one has read none yet.
    enough = sum(prediction.used >= least_cells for prediction in too_few)
    if not enough:
        return ""
    known = len(result.subjects)
    if len(without) < known:
        # Some of their cells may be unlike the other model's training cells.
        whom = "1 more person" if enough == 1 else f"up to {enough} more people"
    elif known == 1:
        whom = "this person"
    else:
        share = f"all {known}" if enough == known else f"{enough} of {known}"
        whom = f"{share} people"
    return f"needs only {_count_text(least_cells)} of a person, so it can answer about {whom}"


def _agreement(result: BatchResult, reading: BatchResult) -> str:
    """For how many people two models give the same answer; for how many cells where one has too few of each person."""
    kind = "people"
    outcomes = _people_outcomes(result)
    others = _people_outcomes(reading)
    if not outcomes or not others:
        kind = "cells"
        outcomes = {row.name: row.prediction.outcome for _, row in result.cells}
        others = {row.name: row.prediction.outcome for _, row in reading.cells}
    in_both = [name for name in outcomes if name in others]
    same = sum(outcomes[name] == others[name] for name in in_both)
    return f"same answer for {same} of {len(in_both)} {kind}"


def _people_outcomes(result: BatchResult) -> dict[str, str]:
    """Person → what was answered, where there are cells enough for an answer."""
    predictions = result.subject_predictions
    return {prediction.subject: prediction.outcome for prediction in predictions if prediction.outcome != TOO_FEW_CELLS}


def _caveats(result: BatchResult) -> list[str]:
    """The warnings beside the answer; people who were guessed stand in the plot, and are not listed again."""
    lines = []
    names = result.names_of_training
    if names:
        trained_on = f"people called {', '.join(names)}"
        if len(names) == 1:
            trained_on = f"a person called {names[0]}"
        elif result.subjects == names:
            trained_on = "people of these names"
        lines.append(f"It was trained on {trained_on} and may look better than it is.")
    if result.subjects and result.without_subject:
        lines.append(result.without_subject)
    if result.subjects and result.guessed_from:
        guessed_from = _GUESSED_FROM.get(result.guessed_from, result.guessed_from)
        lines.append(f"People are guessed from {guessed_from}; a table of files and people is safer.")
    return [*lines, *map(_note_on_people, result.notes)]


def _note_on_people(note: str) -> str:
    """A sentence of `BatchFacts` in the page's words: it says people where data sets say subjects."""
    note = note.replace("Subjects are named by", "People are named by")
    return note.replace("names neither subjects nor", "names neither people nor")


def _counts(result: BatchResult) -> list[dict[str, Any]]:
    """How many cells have each outcome that the release can give, as the bar shows them, from the first cell on."""
    counts = Counter(row.prediction.outcome for _, row in result.cells)
    may_occur = {OUT_OF_DISTRIBUTION: "ood" in result.metrics, ABSTAIN: _leaves_unsure(result)}
    if _shows_no_cell(result):
        may_occur = {}
    also = [outcome for outcome, may in may_occur.items() if may]
    return outcome_counts(counts, result.classes, also=also, words=_kind)


def _leaves_unsure(result: BatchResult) -> bool:
    """Whether the release gives some cells no class for a low probability."""
    return (Thresholds.from_metrics(result.metrics).abstain_below or 0.0) > 1 / len(result.classes)


def _count_text(number: int, kind: str = "cell") -> str:
    """A number of cells, or of another kind, with its noun."""
    return f"{number} {kind}{'' if number == 1 else 's'}"


def _people(number: int) -> str:
    """A number of people with its noun."""
    return f"{number} {'person' if number == 1 else 'people'}"


def _read_text(result: BatchResult) -> str:
    """How many cells were predicted; how many pictures where none is one of a cell."""
    return _count_text(len(result.cells), "picture" if _shows_no_cell(result) else "cell")


def _given_text(result: BatchResult) -> str:
    """How many cells of how many people were predicted."""
    cells = _read_text(result)
    if result.stopped:
        cells = f"stopped after {result.done} of {result.total} pictures"
    if not result.subjects:
        return f"{cells}, people unknown"
    return f"{cells} of {_people(len(result.subjects))}"


def _number_without_answer(result: BatchResult) -> int:
    """How many people have no answer, where somebody has one: the verdict names only these."""
    outcomes = [prediction.outcome for prediction in result.subject_predictions]
    answered = sum(outcome in result.classes for outcome in outcomes)
    return len(result.subjects) - answered if answered else 0


def verdict(result: BatchResult) -> Verdict:
    """What was answered; of a batch that was stopped, that it is from some pictures only."""
    if not result.rows:
        return Verdict("Stopped before a picture was read", "Read them again, or pick something else below.")
    answered = _verdict(result)
    if not result.stopped:
        return answered
    return replace(answered, sentence=f"So far: {answered.sentence[0].lower()}{answered.sentence[1:]}")


def _verdict(result: BatchResult) -> Verdict:
    """What was answered: about people where the release answers about them and they are known, else about cells."""
    if result.subject_predictions:
        return _people_verdict(result)
    counts = Counter(row.prediction.outcome for _, row in result.cells)
    hint = _people_hint(result)
    if all(row.shows_no_cell for row in result.rows):
        return Verdict(NOTHING_FOUND)
    if _shows_no_cell(result):
        return Verdict(NO_CELL_VERDICT)
    if _is_foreign(result):
        return Verdict(FOREIGN_VERDICT, hint)
    return Verdict(counts_text(counts, result.classes, in_figures=True), hint)


def _people_hint(result: BatchResult) -> str:
    """What an answer about people needs, where nobody is known; "" where the release has none, or somebody is."""
    if result.rule is None or result.subjects:
        return ""
    least = result.rule.least_cells
    if max(result.total, len(result.rows)) < least:
        return f"An answer about a person needs {least} of their cells."
    return "With each person’s cells in a folder, or a table of files and people, it answers about people, too."


def _shows_no_cell(result: BatchResult) -> bool:
    """Whether no picture is one of a single cell."""
    return bool(result.rows) and all(row.no_cell for row in result.rows)


def _is_foreign(result: BatchResult) -> bool:
    """Whether no cell is like the training cells."""
    return all(row.prediction.outcome in REFUSED for row in result.rows)


def _people_verdict(result: BatchResult) -> Verdict:
    """What was answered about people; where that is nothing, so it says, and why."""
    predictions = result.subject_predictions
    counts = Counter(prediction.outcome for prediction in predictions)
    if any(counts[label] for label in result.classes):
        return Verdict(", ".join(_clauses(result)), " ".join([*_error_rate(result), *_without_answer(result)]))
    reasons = _reasons(predictions)
    unread = sum(subject in result.unread for subject in result.subjects)
    if unread:
        reasons.append(f"Not all pictures of {_people(unread)} were read.")
    if _is_foreign(result):
        return Verdict(FOREIGN_VERDICT.replace("class", "answer"), " ".join(reasons))
    if set(counts) == {ABSTAIN}:
        return Verdict("Not sure", " ".join(reasons))
    whom = "the person" if len(result.subjects) == 1 else f"any of {_people(len(result.subjects))}"
    return Verdict(f"No answer about {whom}", " ".join(reasons))


def _clauses(result: BatchResult) -> list[str]:
    """Whose cells look like each class: few people by name, more by their number."""
    clauses: list[str] = []
    for label in result.classes:
        subjects = [prediction.subject for prediction in result.subject_predictions if prediction.outcome == label]
        if not subjects:
            continue
        people = _named(subjects)
        if len(subjects) > MOST_NAMED or len(people) > LONGEST_LIST:
            people = _people(len(subjects))
        cells = "those" if clauses else "Cells"
        clauses.append(f"{cells} of {people} {_look_text(label)}")
    return clauses


def _named(subjects: Sequence[str]) -> str:
    """People as a sentence names them: a short code alone would be read as something else, a number as how many."""
    names = _listed([_person_name(subject) for subject in subjects])
    if all(len(subject) > LONGEST_CODE for subject in subjects):
        return names
    return f"{'person' if len(subjects) == 1 else 'people'} {names}"


def _person_name(subject: str) -> str:
    """A person's name; a long one is cut in its middle."""
    return _cut(subject, LONGEST_PERSON_NAME)


def _cut(name: str, longest: int) -> str:
    """A name of so many letters at most, without its middle where it has more."""
    if len(name) <= longest:
        return name
    half = longest // 2
    return f"{name[: half - 1]}…{name[-half:]}"


def _listed(names: Sequence[str]) -> str:
    """Names in a row; a line does not end after their comma."""
    *before, last = names
    return " and ".join([",\u00a0".join(before), last] if before else [last])


def _kind(outcome: str, number: int = 2) -> str:
    """What so many cells are called everywhere on the page of a batch: "blasts", "normal", or why there is no class."""
    if outcome in WITHOUT_CLASS:
        return outcome_text(outcome)
    kind = cells_of(outcome)
    if kind.endswith(" cells"):
        return kind.removesuffix(" cells")
    return kind.removesuffix("s") if number == 1 else kind


def _with_article(label: str) -> str:
    """What one cell of a class is: "a blast", "normal"."""
    kind = _kind(label, 1)
    return kind if kind == _kind(label) else f"a {kind}"


def _look_text(label: str) -> str:
    """What cells of a class look like: "look normal", or "look like blasts"."""
    kind = cells_of(label)
    if kind.endswith(" cells"):
        return f"look {kind.removesuffix(' cells')}"
    return f"look like {kind}"


def _error_rate(result: BatchResult) -> list[str]:
    """Of how many unseen people an answer was wrong, in a sentence; none where that was not measured."""
    rate = result.rule.error_rate if result.rule else {}
    wrong, low, high = (rate.get(key) for key in ("share", "low", "high"))
    if wrong is None or low is None or high is None:
        return []
    interval = f"95\u00a0%: {100 * low:.0f} to {100 * high:.0f}"
    return [f"Such answers were wrong for {100 * wrong:.0f} of 100 unseen people ({interval})."]


def _without_answer(result: BatchResult) -> list[str]:
    """Why people have no answer beside those who have one, in a sentence; none where all have one."""
    least = result.subject_predictions[0].rule.least_cells
    reasons = {
        TOO_FEW_CELLS: f"fewer than {least} cells like its training cells",
        OUT_OF_DISTRIBUTION: "most cells unlike its training cells",
        ABSTAIN: "cells that may give either class",
        "": "pictures that were not read",
    }
    outcome_of = {prediction.subject: prediction.outcome for prediction in result.subject_predictions}
    without = [
        outcome for outcome in (outcome_of.get(subject, "") for subject in result.subjects) if outcome in reasons
    ]
    if not without:
        return []
    why = " or ".join(reason for outcome, reason in reasons.items() if outcome in without)
    if len(without) == 1:
        return [f"The person without an answer has {why}."]
    return [f"The {len(without)} without an answer have {why}."]


def _reasons(predictions: Sequence[SubjectPrediction]) -> list[str]:
    """Why people have no answer, a sentence for each reason that occurs."""
    sentences = []
    few = [prediction.used for prediction in predictions if prediction.outcome == TOO_FEW_CELLS]
    if few:
        least = predictions[0].rule.least_cells
        cells = f"{min(few)} to {max(few)}" if min(few) < max(few) else f"{few[0]}"
        verb = "has" if len(few) == 1 else "have"
        people = _people(len(few)).replace(" ", "\u00a0")
        sentences.append(f"An answer needs {least} cells like its training cells; {people} {verb} {cells}.")
    unlike = sum(prediction.outcome == OUT_OF_DISTRIBUTION for prediction in predictions)
    if unlike:
        sentences.append(f"Most cells of {_people(unlike)} are unlike its training cells.")
    unsure = sum(prediction.outcome == ABSTAIN for prediction in predictions)
    if unsure:
        sentences.append(f"Other cells of {_people(unsure)} may give either class.")
    return sentences


def _measured_row(result: BatchResult, measured: LabelMetrics) -> trust.TrustRow | None:
    """How many cells of each class are recognised; with intervals only from enough cells and people."""
    if not measured.cells or min(measured.cells.values()) < LEAST_CELLS:
        return None
    cells_and_people = _count_text(sum(measured.cells.values()))
    if measured.people:
        cells_and_people += f" of {_people(len({row.subject for row in result.rows if row.truth}))}"
    meters = []
    for label in result.classes:
        if not measured.cells.get(label):
            continue
        share = round(100 * measured.right.get(label, 0) / measured.cells[label])
        interval = measured.intervals.get(f"recall_{label}")
        if interval is None or not _is_enough(measured):
            meters.append(trust.Meter(label, share))
        else:
            meters.append(trust.Meter(label, share, round(100 * interval["low"]), round(100 * interval["high"])))
    return trust.TrustRow(cells_and_people, meters=tuple(meters))


def _is_enough(measured: LabelMetrics) -> bool:
    """Whether there are cells and people enough of each class for an interval that says something."""
    if min(measured.cells.values()) < LEAST_CELLS:
        return False
    return not measured.people or min(measured.people.values()) >= LEAST_PEOPLE


def _measures(measured: LabelMetrics) -> list[str]:
    """How many cells are recognised, and what else was measured from enough of them, in sentences."""
    if not measured.cells:
        return []
    right = [f"{measured.right.get(label, 0)} of {cells} {cells_of(label)}" for label, cells in measured.cells.items()]
    sentences = [f"Recognised by the most probable class, given as the answer or not: {', '.join(right)}."]
    if min(measured.cells.values()) < LEAST_CELLS:
        return [*sentences, f"From {LEAST_CELLS} cells of each class on, more is measured."]
    shares = [f"{metric_name(name)} {percent(measured.values[name])}" for name in ("accuracy", "balanced_accuracy")]
    areas = [
        f"{metric_name(name)} {measured.values[name]:.2f}" for name in ("f1_macro", "auroc") if name in measured.values
    ]
    figures = ", ".join([*shares, *areas])
    sentences.append(f"{figures[0].upper()}{figures[1:]}.")
    if _is_enough(measured):
        sampled = "bootstrap samples of people"
        if not measured.by_subject:
            sampled = "samples of cells, too narrow for new people"
        return [*sentences, f"95\u00a0% intervals from {sampled}."]
    return [*sentences, f"From {LEAST_PEOPLE} people of each class on, intervals are given."]


# One cell.


def _cell_words(row: BatchRow) -> str:
    """What the model says of a cell, and its true class where that is another."""
    words = _kind(row.prediction.outcome, 1)
    if row.prediction.decision.label:
        words += f" {percent(row.confidence)}"
    elif row.prediction.outcome == ABSTAIN:
        words += f", {_kind(row.called, 1)} {_unsure_percent(row)}"
    return words + _truth_words(row)


def _short_cell_words(row: BatchRow) -> str:
    """The same for below its thumbnail, where a line has few letters."""
    if row.prediction.outcome == OUT_OF_DISTRIBUTION:
        return UNLIKE_TRAINING
    if row.prediction.outcome == ABSTAIN:
        return f"{_kind(row.called, 1)}? {_unsure_percent(row)}{_truth_words(row)}"
    return _cell_words(row)


def _unsure_percent(row: BatchRow) -> str:
    """The percentage of the most probable class of a cell that the model is not sure of."""
    return percentages(row.prediction.probabilities, row.prediction.decision)[row.called]


def _truth_words(row: BatchRow) -> str:
    return f", is {_with_article(row.truth)}" if row.is_wrong else ""


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """File's name → it without its folders and suffix; of long names, without the words that all begin with, too."""
    stems = {name: PurePosixPath(name).stem for name in names}
    if all(len(stem) <= SHORT_NAME for stem in stems.values()):
        return stems
    words = [_END_OF_WORD.split(stem)[:-1] for stem in stems.values()]
    shared = takewhile(lambda same_place: len(set(same_place)) == 1, zip(*words, strict=False))
    start = sum(len(same_place[0]) for same_place in shared)
    return {name: stem[start:] for name, stem in stems.items()}


def cell_name(row: BatchRow) -> str:
    """What an opened cell is called: its person, where known, and its file; long names without their middle."""
    stem = _cut(PurePosixPath(row.name).stem, LONGEST_FILE_NAME)
    return f"{_person_name(row.subject)} / {stem}" if row.subject else stem


def _cell(result: BatchResult, number: int, row: BatchRow, short_names: Mapping[str, str]) -> dict[str, Any]:
    """A cell with what the model says of it."""
    return {
        "number": number,
        "name": row.name,
        "short_name": short_names[row.name],
        "words": _cell_words(row),
        "short_words": _short_cell_words(row),
        "source": data_uri("image/webp", row.thumbnail),
        "opens": bool(row.picture),
        "wrong": row.is_wrong,
        "dark": row.is_dark,
        "colour": colour(row.prediction.outcome, result.classes),
        "form": form(row.prediction.outcome),
    }
