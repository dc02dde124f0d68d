"""A smear on the stage: the picture with its boxes on the left, what was found in words and cells on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from leukoscope.data.images import is_dark
from leukoscope.data.registry import cells_of, trained_on
from leukoscope.data.smear import IMPLAUSIBLE_SCALE, PASSED_OVER, SmearCell
from leukoscope.inference.prediction import ABSTAIN, FIELD_NEEDS, REFUSED
from leukoscope.inference.smear import AT_EDGE, CellReading
from leukoscope.reports import trust
from leukoscope.reports.text import about_model, outcome_text, percent, percentages
from leukoscope.web.answer import Picture, Row
from leukoscope.web.drawing import NO_ADDRESS, UNLIKE_TRAINING, Address, colour, embedded, form, outcome_counts, render
from leukoscope.web.smear import Smear, example_smear, scale_text, with_painted_rim
from leukoscope.web.smear_flags import place_flags
from leukoscope.web.stage import model_line, next_tile
from leukoscope.web.views import closer_in_tile

SMEAR_SIDE = 1400
MOST_BOXES_WITH_CLASS = 12
# The room that a smear has at least, in CSS pixels: a phone's width; of many cells, whose numbers stand on wider stages
# only, that width.
_LEAST_WIDTH = 390
_LEAST_WIDTH_OF_MANY = 520
_LEAST_HEIGHT = 420
CAPTION_SHARE = 0.08  # of the picture's height, what its name and scale take at most where they lie over it
LEAST_RATIO_UNDER_CAPTION = 1.2  # of width to height: below it, the caption would lie half beside the picture
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_GUESSED = "better give it."  # the end of a note on its scale, for which the stage has its own words


def number_word(number: int) -> str:
    """A number as it stands in a sentence."""
    if number < len(_NUMBERS):
        return _NUMBERS[number]
    return str(number)


def cell_size(cell: SmearCell) -> tuple[float, float]:
    """The area of a whole cell in µm² and its nucleus's share, by both outlines.

    They pass over pale cytoplasm, and the parts of a segmented nucleus, so there is no count of lobes.
    """
    share = np.count_nonzero(cell.nucleus) / max(1, int(np.count_nonzero(cell.mask | cell.nucleus)))
    return cell.nucleus_area / max(share, 1e-6), share


def measures(cell: SmearCell) -> str:
    """The area of a whole cell and its nucleus's share, in words."""
    area, nucleus = cell_size(cell)
    return f"{area:.0f} µm², nucleus {percent(nucleus)} of it"


def next_cell(smear: Smear, number: int) -> int | None:
    """Number of the whole cell after this one, after the last the first; None where there is no other."""
    others = [other for other in smear.whole if other != number]
    if not others:
        return None
    return next((other for other in others if other > number), others[0])


def verdict(smear: Smear) -> str:
    """What the cells of a smear look like, in one sentence."""
    reading = smear.reading
    counts = reading.counts
    if not reading.cells:
        return "No white blood cell found"
    if not smear.whole:
        return "No whole white cell found"
    if smear.is_foreign and _doubts_of_scale(smear):
        return "No class: the scale is not plausible"
    if _is_refused(smear):
        return "No class: unlike the cells it knows"
    return counts_text(counts, reading.labels)


def _is_refused(smear: Smear) -> bool:
    """Whether none of its cells gets a class because they are unlike the training cells."""
    return smear.is_foreign or sum(smear.reading.counts[outcome] for outcome in REFUSED) == len(smear.whole)


def counts_text(counts: Mapping[str, int], labels: Sequence[str], *, in_figures: bool = False) -> str:
    """What cells look like, from how many have each outcome, in one sentence."""
    parts: list[str] = []
    in_figures = in_figures or any(count >= len(_NUMBERS) for count in counts.values())
    words = str if in_figures else number_word
    for label in labels:
        if counts.get(label):
            number = words(counts[label])
            kind = cells_of(label)
            if parts:
                # "two normal" after "three look like blasts": on one line.
                kind = kind.removesuffix(" cells")
                parts.append(f"{number} {kind.removesuffix('s') if counts[label] == 1 else kind}")
            elif counts[label] == 1:
                parts.append(f"{number} looks like a {kind.removesuffix('s')}")
            else:
                parts.append(f"{number} look like {kind}")
    if counts.get(ABSTAIN):
        parts.append(f"{words(counts[ABSTAIN])} not sure")
    refused = sum(counts.get(outcome, 0) for outcome in REFUSED)
    if refused:
        parts.append(f"{words(refused)} unlike its training cells")
    sentence = ", ".join(parts)
    return sentence[:1].upper() + sentence[1:]


def cell_words(cell: CellReading, labels: Sequence[str]) -> str:
    """A cell's outcome, with its probability where it has a class."""
    if cell.prediction and cell.outcome in labels:
        return f"{cell.outcome} {percent(cell.prediction.probabilities[cell.outcome])}"
    return outcome_text(cell.outcome)


def title_words(cell: CellReading, labels: Sequence[str]) -> str:
    """The same with the most probable class of a cell that the model is not sure of."""
    words = cell_words(cell, labels)
    if cell.prediction is None or cell.outcome != ABSTAIN:
        return words
    likely = cell.prediction.most_probable
    percent_of = percentages(cell.prediction.probabilities, cell.prediction.decision)
    return f"{words}, {likely} {percent_of[likely]}"


def smear_picture(smear: Smear) -> Markup:
    """The smear with a button round each of its cells; cells that the edge cuts are marked, but cannot be opened."""
    image = smear.picture.image
    reading = smear.reading
    width, height = image.size
    crowded = len(reading.cells) > MOST_BOXES_WITH_CLASS
    boxes = [_box(smear, number, crowded=crowded) for number in range(len(reading.cells))]
    # Where a cell lies along the upper edge, or the picture is narrower than the stage, name and scale stand above it.
    has_bar = width < LEAST_RATIO_UNDER_CAPTION * height or any(box["top"] < CAPTION_SHARE for box in boxes)
    _add_flags(boxes, width / height, crowded=crowded, top=0.0 if has_bar else CAPTION_SHARE)
    scale = reading.smear.scale
    um_per_pixel = ""
    if scale:
        um_per_pixel = f"{scale.um_per_pixel:.3g}"
    return render(
        "smear_picture.html",
        image=embedded(image, SMEAR_SIDE),
        source=reading.source,
        whole=len(smear.whole),
        boxes=boxes,
        crowded=crowded,
        has_bar=has_bar,
        ratio=width / height,
        scale=scale_text(smear),
        um_per_pixel=um_per_pixel,
        scale_bar=(1 / scale.um_per_pixel / width, "µm") if scale else None,
        next_tile="people" if smear.picture is example_smear() else next_tile(smear.picture),
    )


def mark(cell: CellReading, labels: Sequence[str]) -> str:
    """What stands beside a cell's number: its class, "?" where the model is not sure, "no class" for any other."""
    if cell.outcome in labels:
        return cell.outcome
    return "?" if cell.outcome == ABSTAIN else "no class"


def _box(smear: Smear, number: int, *, crowded: bool) -> dict[str, Any]:
    """The box of a cell, its place in shares of the picture's width and height."""
    cell = smear.reading.cells[number]
    labels = smear.reading.labels
    width, height = smear.picture.image.size
    left, top, right, bottom = cell.cell.box
    is_class = cell.outcome in labels
    return {
        "number": number,
        "left": left / width,
        "top": top / height,
        "width": (right - left) / width,
        "height": (bottom - top) / height,
        "colour": colour(cell.outcome, labels),
        "words": title_words(cell, labels),
        "mark": "–" if crowded and cell.outcome in REFUSED else mark(cell, labels),
        "is_class": is_class,
        "form": "lk-cut" if cell.outcome == AT_EDGE else form(cell.outcome),
        "opens": cell.outcome != AT_EDGE,
    }


def _add_flags(boxes: list[dict[str, Any]], ratio: float, *, crowded: bool, top: float) -> None:
    """Add to each box where its number stands; `top` is the share of the picture that the numbers leave free."""
    width = min(_LEAST_WIDTH_OF_MANY if crowded else _LEAST_WIDTH, _LEAST_HEIGHT * ratio)
    height = width / ratio
    corners = []
    texts = []
    for box in boxes:
        left = box["left"] * width
        upper = box["top"] * height
        corners.append((left, upper, left + box["width"] * width, upper + box["height"] * height))
        text = f"{box['number'] + 1} {box['mark']}"
        if crowded and box["is_class"]:
            # Among many cells a class in letters would lie on the neighbours; it follows on hover and focus.
            text = str(box["number"] + 1)
        if not box["opens"]:
            text = "" if crowded else box["words"]
        texts.append(text)
    places = place_flags(corners, texts, (0.0, top * height, width, height))
    for box, (place, covers) in zip(boxes, places, strict=True):
        box["place"] = place
        box["covers"] = crowded and covers


def smear_answer(
    smear: Smear, others: Sequence[str] = (), *, address: Address = NO_ADDRESS, is_chosen: bool = False
) -> Markup:
    """What was found in words, how many cells of each outcome, each cell with its measurements, and how it was read.

    Args:
        others: the other models that can read it.
        address: by which the browser finds it again.
        is_chosen: whether the visitor chose its model, which is not the first one.
    """
    reading = smear.reading
    if not smear.whole:
        return _without_whole_cell(smear, others, address, is_chosen)
    notes = [line for line in reading.smear.notes if not line.endswith((_GUESSED, IMPLAUSIBLE_SCALE, PASSED_OVER))]
    trust_rows: Sequence[trust.TrustRow] = ()
    if smear.metrics and not smear.is_foreign:
        trust_rows = trust.trust_rows(smear.metrics)
    details = ""
    if reading.smear.scale:
        details = f"{about_model(reading.model, reading.revision)}; {scale_text(smear)}."
    return render(
        "smear.html",
        model=reading.model,
        is_chosen=is_chosen,
        summary=summary(smear),
        verdict=verdict(smear),
        is_refused=_is_refused(smear),
        caveats=caveats(smear),
        counts=outcome_counts(reading.counts, reading.labels),
        notes=notes,
        groups=_groups(smear),
        trust=trust_rows,
        labels=reading.labels,
        colours={label: colour(label, reading.labels) for label in reading.labels},
        others=[name for name in others if name not in {row.model for row in smear.whole_picture}],
        help=_help_text(smear) if smear.is_foreign else "",
        whole_picture=[_whole_picture_line(row) for row in smear.whole_picture],
        address=address,
        details=details,
    )


def _doubts_of_scale(smear: Smear) -> list[str]:
    """That its scale makes its nuclei larger or smaller than those of white cells are."""
    return [note for note in smear.reading.smear.notes if note.endswith(IMPLAUSIBLE_SCALE)]


def _passed_over(smear: Smear) -> list[str]:
    """How many of its regions are too large to be a cell, in a sentence; none where no region is."""
    return [note for note in smear.reading.smear.notes if note.endswith(PASSED_OVER)]


def caveats(smear: Smear) -> list[str]:
    """What must be known before the answer is used."""
    doubts = _doubts_of_scale(smear)
    sentences = [*doubts, *_passed_over(smear)]
    if smear.is_foreign and doubts:
        sentences.append(_foreign_text(smear))
    elif smear.is_foreign:
        causes = "another stain, microscope or kind of cell"
        if smear.picture.scale_set:
            causes = f"a wrong scale, or with {causes}"
        sentences.append(f"{_foreign_text(smear)} This happens with {causes}.")
    if smear.metrics and not smear.metrics.get("calibration"):
        sentences.append("This model has no calibration: its percentages are not how often it is right.")
    return sentences


def _foreign_text(smear: Smear) -> str:
    """That too few cells of a smear are like the training cells, in one sentence."""
    if len(smear.whole) == 1:
        return "The cell is unlike the training cells and gets no class."
    alike = _like_training(smear)
    if not alike:
        return "None of the cells is like the training cells."
    verb = "is" if alike == 1 else "are"
    return (
        f"{alike} of {len(smear.whole)} cells {verb} like the training cells; below {percent(FIELD_NEEDS)}, none gets "
        "a class."
    )


def _whole_picture_line(row: Row) -> dict[str, Any]:
    """What a model says of the whole picture, and that it was not measured on people where it was not."""
    caveat = ""
    if row.gives_a_class and not any(measured.meters for measured in trust.trust_rows(row.metrics)):
        caveat = "It was not measured on people: how far to trust it is not known."
    line = model_line(row)
    if caveat:
        line |= {"bar": [], "share": ""}
    return {"act": f"read:{row.model}", **line, "caveat": caveat}


def _help_text(smear: Smear) -> str:
    """What to do about a smear whose cells are foreign."""
    source = trained_on(smear.metrics)
    stained = f" stained as those of {source.title}" if source else ""
    if smear.picture.scale_set:
        return f"Give the right scale, or 0, for which it is measured (“change” on the picture); or a smear{stained}."
    if _doubts_of_scale(smear):
        return "Give its scale in micrometres per pixel (“change” on the picture)."
    return f"Give a smear{stained}; or train or recalibrate a model on such cells."


def _without_whole_cell(smear: Smear, others: Sequence[str], address: Address, is_chosen: bool) -> Markup:
    """Why a smear has no answer, and what helps."""
    reading = smear.reading
    reason = "Nothing in it has the stain and the size of a white cell."
    if reading.cells:
        is_single = len(reading.cells) == 1
        cells = "1 white cell is" if is_single else f"{len(reading.cells)} white cells are"
        reason = f"{cells} cut by the edge of the picture; only whole cells are read."
    return render(
        "smear_refused.html",
        is_chosen=is_chosen,
        model=reading.model,
        labels=reading.labels,
        verdict=verdict(smear),
        reason=" ".join([reason, *_passed_over(smear)]),
        help=_help_without_whole_cell(smear),
        others=others,
        address=address,
    )


def _help_without_whole_cell(smear: Smear) -> str:
    """What to do about a smear without a whole white cell."""
    scale = smear.reading.smear.scale
    needed = "Give a stained smear with whole white cells"
    scale_is_known = scale is not None and scale.source == "given"
    if smear.reading.cells:
        help_text = "Give a picture of the same place that holds the whole cell."
        if not scale_is_known:
            help_text += " If this one holds whole cells, give its scale (“change” on the picture)."
        return help_text
    if not scale_is_known:
        return f"{needed}, or the scale of this one (“change” on the picture)."
    return f"{needed}, or the right scale, or 0, for which it is measured (“change” on the picture)."


def summary(smear: Smear) -> str:
    """How many white cells are whole, and how many of them are like the training cells."""
    reading = smear.reading
    whole = f"{len(smear.whole)} whole white cell{'' if len(smear.whole) == 1 else 's'}"
    cut = len(reading.cells) - len(smear.whole)
    if cut:
        whole += f", {cut} cut by the edge"
    share = reading.in_distribution
    if not share:
        return whole
    if share == 1:
        return f"{whole}, {'like' if len(smear.whole) == 1 else 'all like'} its training cells"
    return f"{whole}, {_like_training(smear)} of {len(smear.whole)} like its training cells"


def _like_training(smear: Smear) -> int:
    """How many of the whole cells are like the training cells."""
    return round((smear.reading.in_distribution or 0.0) * len(smear.whole))


def _groups(smear: Smear) -> list[dict[str, Any]]:
    """The whole cells with what was measured of them; of many, those of each outcome under a heading of their own."""
    cells = [_measured(smear, number) for number in smear.whole]
    if len(cells) <= MOST_BOXES_WITH_CLASS:
        return [{"title": "", "cells": cells}] if cells else []
    reading = smear.reading
    groups = []
    for outcome in sorted(reading.counts, key=lambda outcome: _order(outcome, reading.labels)):
        of_outcome = [cell for cell in cells if cell["outcome"] == outcome]
        if not of_outcome:
            continue
        kind = outcome_text(outcome)
        if outcome in reading.labels:
            kind = cells_of(outcome)
            if len(of_outcome) == 1:
                kind = kind.removesuffix("s")
        groups.append(
            {
                "title": f"{len(of_outcome)} {kind}",
                "colour": colour(outcome, reading.labels),
                "form": form(outcome),
                "cells": [{**cell, "words": cell["share"]} for cell in of_outcome],
            }
        )
    return groups


def _order(outcome: str, labels: Sequence[str]) -> int:
    """Where the cells of an outcome stand: the classes, those that it is not sure of, then the others."""
    if outcome in labels:
        return list(labels).index(outcome)
    return len(labels) + (outcome != ABSTAIN)


def _measured(smear: Smear, number: int) -> dict[str, Any]:
    """A whole cell with what was measured of it."""
    cell = smear.reading.cells[number]
    labels = smear.reading.labels
    alone = smear.cut_out(number)
    dark = is_dark(alone)
    thumbnail = alone
    if dark:
        thumbnail = with_painted_rim(alone)
    thumbnail = closer_in_tile(Picture(alone, ""), thumbnail)
    area, _ = cell_size(cell.cell)
    caption = cell_words(cell, labels)
    if cell.outcome in REFUSED:
        caption = UNLIKE_TRAINING
    if smear.is_foreign:
        caption = ""
    share = ""
    if cell.prediction and cell.outcome in labels:
        share = percent(cell.prediction.probabilities[cell.outcome])
    words = title_words(cell, labels)
    return {
        "number": number,
        "image": embedded(thumbnail, 132),
        "dark": dark,
        "outcome": cell.outcome,
        "colour": colour(cell.outcome, labels),
        "words": caption,
        "share": share,
        "area": f"{area:.0f}\u00a0µm²",
        "title": f"Cell {number + 1}: {words}, {measures(cell.cell)}; open it",
    }
