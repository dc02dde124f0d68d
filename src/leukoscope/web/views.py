"""What the stage can show of a cell: one entry of `STAGE_VIEWS` each, in the order of the buttons.

A view has a name (of its address in a click), a label (on its button), what computes it (beyond the answer itself) and
how it is drawn. To add one, see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from leukoscope.data.images import CUT_OUT_PITCH, foreground
from leukoscope.inference.prediction import REFUSED, Decision
from leukoscope.reports import trust
from leukoscope.reports.text import ORIENTATION_NAMES, changes_text, outcome_text, percentages
from leukoscope.web.answer import Picture, Row, covered, views_of
from leukoscope.web.drawing import UNLIKE_TRAINING, colour, embedded, render
from leukoscope.web.model_cache import ModelCache

FILLS = 0.7  # share of the stage's side that a cell cut out on black fills when it is shown first
FILLS_FORM = 0.88  # the same of a form's picture
FORM_SIDE = 400  # pixels of a form's picture
MOST_ENLARGED = 2.2
TILE_ZOOM = 1.6  # of a cell on black in its tile
FINER_MAP = 2  # how many times as large as its picture a map is drawn, which is shown enlarged
_COVERED = {
    "": "As given",
    "nucleus": "Nucleus covered",
    "cytoplasm": "Cytoplasm covered",
    "outside": "Surroundings covered",
}
Forms = Mapping[str, Row]
"""Part of a cell → what the model says without it."""


@dataclass(frozen=True)
class Shown:
    """What a view draws.

    Attributes:
        row: what the open model says of the cell.
        label: the class whose map is shown.
        forms: what `View.compute` gave; None until it is computed.
        rows: what all models say of it, in the order of the answer.
    """

    row: Row
    label: str = ""
    forms: Forms | None = None
    rows: Sequence[Row] = ()


@dataclass(frozen=True)
class View:
    """One way to show a cell.

    Attributes:
        name: what a click on its button says.
        label: what stands on its button.
        draw: its HTML.
        compute: what is asked of the model before it can be drawn; None for nothing.
        offered: whether a row can show it.
    """

    name: str
    label: str
    draw: Callable[[Shown], Markup]
    compute: Callable[[Row, ModelCache], Forms] | None = None
    offered: Callable[[Row], bool] = lambda row: not row.refused and row.prediction is not None


def _draw_cell(shown: Shown) -> Markup:
    return _zoomable(shown.row, "")


def _draw_map(shown: Shown) -> Markup:
    return _zoomable(shown.row, shown.label, shown.rows)


def leads_to_maps(other: Row, opened: Row) -> bool:
    """Whether another model's maps passed their checks where those of the open one failed."""
    failed = trust.maps_passed(opened.metrics) is False
    has_maps = other.pending or bool(other.maps)
    return failed and has_maps and trust.maps_passed(other.metrics) is True


def row_with_maps(opened: Row, rows: Sequence[Row]) -> int | None:
    """Number of the first row whose maps passed their checks, where those of the open one failed; else None."""
    return next((number for number, other in enumerate(rows) if leads_to_maps(other, opened)), None)


def _zoomable(row: Row, label: str, rows: Sequence[Row] = ()) -> Markup:
    """The cell, with the map of a class over it beyond the divider where a class is given; while it is computed, alone.

    `rows` are the answers of all models: one whose maps passed is offered where those of the open one failed.
    """
    original, overlaid = row.pictures(label, finer=FINER_MAP)
    width, height = row.picture.image.size
    left, top, right, bottom = row.known.view_box if row.prediction else (0.0, 0.0, width, height)
    frame = {
        "left": max(0.0, left / width),
        "top": max(0.0, top / height),
        "right": max(0.0, 1 - right / width),
        "bottom": max(0.0, 1 - bottom / height),
    }
    return render(
        "view_cell.html",
        image=embedded(original),
        over=embedded(overlaid) if overlaid is not None else None,
        rim=embedded(row.picture.rim) if row.picture.rim is not None and row.picture.is_dark else None,
        caption=row.picture.caption,
        on_black=row.picture.on_black,
        dark=row.picture.is_dark,
        zoom=enlarged(row.picture),
        frame=frame if max(frame.values()) > 0.01 else None,
        label=label,
        labels=list(row.maps),
        scale_bar=_scale_bar(row.picture),
        awaits_map=bool(label) and row.pending,
        passed=trust.maps_passed(row.metrics),
        with_maps=row_with_maps(row, rows),
        rows=rows,
    )


def _scale_bar(picture: Picture) -> tuple[float, str] | None:
    """What share of a picture's width one unit has, and which unit: µm where its scale is known, of a cell else px."""
    width = picture.image.width
    if picture.field_share is not None:  # cut out of a smear
        return 1 / CUT_OUT_PITCH / width, "µm"
    if picture.um_per_pixel:
        return 1 / picture.um_per_pixel / width, "µm"
    if picture.on_black:
        return 1 / width, "px"
    return None


def enlarged(picture: Picture, fills: float = FILLS) -> float:
    """How much a cell on black is enlarged at first, ≥ 1, to fill that share of the stage; other pictures are not."""
    if not picture.on_black:
        return 1.0
    cell = foreground(np.asarray(picture.image))
    rows = np.flatnonzero(cell.any(axis=1))
    columns = np.flatnonzero(cell.any(axis=0))
    if not len(rows):
        return 1.0
    # The picture is enlarged about its centre: the farthest edge of the cell counts.
    farthest = 0.0
    for edges, length in ((rows, cell.shape[0]), (columns, cell.shape[1])):
        middle = length / 2
        farthest = max(farthest, abs(edges[0] - middle) / middle, abs(edges[-1] - middle) / middle)
    return float(min(MOST_ENLARGED, max(1.0, fills / max(farthest, 1e-6))))


def closer(image: Image.Image, zoom: float) -> Image.Image:
    """The middle of a picture that is enlarged so many times."""
    left = round(image.width * (1 - 1 / zoom) / 2)
    top = round(image.height * (1 - 1 / zoom) / 2)
    return image.crop((left, top, image.width - left, image.height - top))


def closer_in_tile(picture: Picture, shown: Image.Image | None = None) -> Image.Image:
    """A picture for its tile, or what is shown in its place: all cells on black are enlarged alike where they fit."""
    return closer(shown or picture.image, min(TILE_ZOOM, enlarged(picture, FILLS_FORM)))


def _draw_turned(shown: Shown) -> Markup:
    row = shown.row
    if row.pending:
        return render("view_waiting.html", sentence="Computing eight orientations …")
    forms_of_cell = []
    orientations = zip(ORIENTATION_NAMES, views_of(row.picture.image), row.known.views, row.orientations, strict=True)
    for title, image, shares, decision in orientations:
        answered = _answered(decision, shares, _most_probable(shares))
        forms_of_cell.append(_form(row, image, decision.outcome, answered, title))
    return render("view_forms.html", forms=forms_of_cell, sentence="", dark=row.picture.is_dark)


def _draw_changed(shown: Shown) -> Markup:
    row = shown.row
    if row.changes_pending:
        return render("view_waiting.html", sentence="Computing small changes …")
    forms_of_cell = []
    for answer in row.known.changed:
        image = answer.change(row.picture.image, black=row.picture.on_black)
        answered = _answered(answer.decision, answer.probabilities, _most_probable(answer.probabilities))
        forms_of_cell.append(_form(row, image, answer.decision.outcome, answered, answer.change.shows))
    return render("view_forms.html", forms=forms_of_cell, sentence=changes_text(row.known), dark=row.picture.is_dark)


def _most_probable(probabilities: Mapping[str, float]) -> str:
    return max(probabilities, key=probabilities.__getitem__)


def _answered(decision: Decision, probabilities: Mapping[str, float], label: str) -> tuple[str, str]:
    """What is answered for one form of the cell, and where it gets no class, why or how likely the label is."""
    share = f"{label}\u00a0{percentages(probabilities, decision)[label]}"
    if decision.outcome in REFUSED:
        return UNLIKE_TRAINING, ""
    if decision.label is None:
        return outcome_text(decision.outcome), share
    return share, ""


def _draw_covered(shown: Shown) -> Markup:
    row = shown.row
    forms = shown.forms
    if forms is None:
        return render("view_waiting.html", sentence="Covering its parts …")
    called = row.called()
    sentence = ""
    is_said_above = False
    if "nucleus" not in forms:
        sentence = "No nucleus is told apart in this picture."
    elif all(form.refused for form in forms.values()):
        sentence = (
            f"A covered cell is unlike the training cells: no class. That alone can change the figure for {called}."
        )
        is_said_above = True
    forms_of_cell = []
    for part, form in {"": row, **forms}.items():
        title = _COVERED[part]
        if part == "outside" and row.picture.on_black:
            title = "Background covered"
        share = f"{called}\u00a0{percentages(form.known.probabilities, form.known.decision)[called]}"
        if form.refused:
            if not is_said_above:
                share += ", no\u00a0class"
        elif form.known.decision.label is None:
            share += ", " + outcome_text(form.known.outcome).replace(" ", "\u00a0")
        forms_of_cell.append(_form(row, form.picture.image, form.known.outcome, (share, ""), title))
    return render("view_forms.html", forms=forms_of_cell, sentence=sentence, dark=row.picture.is_dark)


def _form(row: Row, image: Image.Image, outcome: str, answered: tuple[str, str], title: str) -> dict[str, Any]:
    """A form of the cell, with what the model says of it; all forms are enlarged alike, as the cell needs it."""
    words, detail = answered
    zoom = enlarged(row.picture, FILLS_FORM)
    return {
        "image": embedded(closer(image, zoom), FORM_SIDE),
        "colour": colour(outcome, list(row.known.probabilities)),
        "words": words,
        "detail": detail,
        "title": title[0].upper() + title[1:],
    }


STAGE_VIEWS = {
    view.name: view
    for view in (
        View("cell", "Cell", _draw_cell, offered=lambda row: True),
        View("turned", "Turned", _draw_turned),
        View("changed", "Changed", _draw_changed),
        View("covered", "Covered", _draw_covered, compute=covered),
        View(
            "map", "Map", _draw_map,
            offered=lambda row: not row.refused and row.prediction is not None and (row.pending or bool(row.maps)),
        ),
    )
}  # fmt: skip
"""Name → view, in the order of the buttons."""


def offered(row: Row) -> list[View]:
    """The views that a row can show."""
    return [view for view in STAGE_VIEWS.values() if view.offered(row)]


def chosen_view(row: Row, name: str) -> View:
    """The view of that name where the row can show it; else the one that the answer opens with.

    A release whose maps passed their checks opens with the map, every other one with the plain cell.
    """
    view = STAGE_VIEWS.get(name)
    if view is not None and view.offered(row):
        return view
    if trust.maps_passed(row.metrics) is True and STAGE_VIEWS["map"].offered(row):
        return STAGE_VIEWS["map"]
    return STAGE_VIEWS["cell"]
