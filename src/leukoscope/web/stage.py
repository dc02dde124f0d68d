"""The page around one cell: the line on top, the strip of what can be given, the cell's picture and its answer.

A click does what `data-act` says, by `acts.py`. What the stage can show of a cell stands in `views.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from markupsafe import Markup
from PIL import Image, ImageDraw

from leukoscope.inference.prediction import ABSTAIN, OUT_OF_DISTRIBUTION
from leukoscope.reports import text, trust
from leukoscope.synthetic import EXAMPLE_CELLS, EXAMPLE_SMEARS
from leukoscope.web import views
from leukoscope.web.answer import Answer, Picture, Row, example
from leukoscope.web.drawing import NO_ADDRESS, Address, EmbeddedImage, colour, embedded, render
from leukoscope.web.smear import example_smear

MOST_OF_LABEL = 10  # letters
TILE_SIDE = 132  # pixels of a tile's picture, for screens of two pixels a point


def head(labels: Sequence[str]) -> Markup:
    """The one line on top of the page, for models of these classes."""
    return render("head.html", question=text.question(labels))


# The strip of what can be given.


def tile_label(name: str) -> str:
    """A file's name as it fits a tile: both its beginning and its end tell it from others."""
    if len(name) <= MOST_OF_LABEL:
        return name
    return f"{name[:4]}…{name[-3:]}"


@dataclass(frozen=True)
class Tile:
    """A picture that can be picked; `act` is what a click on it does."""

    act: str
    label: str
    title: str
    image: EmbeddedImage
    dark: bool = False
    pressed: bool = False


def example_tiles(*, smears: bool, pressed: str = "") -> list[Tile]:
    """The synthetic pictures that can be picked, and what else can be tried."""
    tiles: list[Tile] = []
    for number in range(1, len(EXAMPLE_SMEARS if smears else EXAMPLE_CELLS) + 1):
        picture = example(number, smear=smears)
        act = f"example:{number}"
        label = picture.caption.rsplit(" ", 1)[-1]
        with_label = sum(tile.label.startswith(label) for tile in tiles)
        tiles.append(picture_tile(act, f"{label} {with_label + 1}", picture, act == pressed))
    if not smears:
        tiles.append(picture_tile("smear", "a smear", example_smear(), pressed == "smear"))
    people = picture_tile("people", "two people", example(2, smear=smears), pressed == "people")
    if not smears:
        people = replace(people, image=_two_cells())
    tiles.append(people)
    tiles.append(Tile("real", "real cells", "Real cells", _outlines()))
    return tiles


@cache
def _tile_image(number: int, smears: bool) -> EmbeddedImage:
    picture = example(number, smear=smears) if number else example_smear()
    return embedded(views.closer_in_tile(picture), TILE_SIDE)


@cache
def _two_cells() -> EmbeddedImage:
    """One cell of each of two people, for their tile."""
    tile = Image.new("RGB", (TILE_SIDE, TILE_SIDE))
    for place, number in enumerate((2, 5)):
        image = example(number).image
        cell = image.crop(image.getbbox())
        cell.thumbnail((TILE_SIDE // 2 - 6, TILE_SIDE // 2))
        tile.paste(cell, (place * TILE_SIDE // 2 + 3, (TILE_SIDE - cell.height) // 2))
    return embedded(tile)


@cache
def _outlines() -> EmbeddedImage:
    """Outlines of cells, for the tile of those that are on the Hub: none of them is here before it is asked for."""
    large = 4 * TILE_SIDE
    tile = Image.new("RGB", (large, large))
    pen = ImageDraw.Draw(tile)
    for middle_x, middle_y, radius in ((0.3, 0.4, 0.15), (0.68, 0.34, 0.12), (0.58, 0.68, 0.17)):
        box = [large * edge for edge in (middle_x - radius, middle_y - radius, middle_x + radius, middle_y + radius)]
        pen.ellipse(box, outline="#b9a3dc", width=large // 44)
        inner = [edge + sign * large * radius * 0.45 for edge, sign in zip(box, (1, 1, -1, -1), strict=True)]
        pen.ellipse(inner, "#6f4fa8")
    return embedded(tile, TILE_SIDE)


def picture_tile(act: str, label: str, picture: Picture, pressed: bool) -> Tile:
    """A tile of a picture."""
    if picture.example:
        image = _tile_image(picture.example, not picture.on_black)
    elif picture is example_smear():
        image = _tile_image(0, False)
    else:
        image = embedded(views.closer_in_tile(picture), TILE_SIDE)
    return Tile(act, label, picture.caption, image, dark=picture.is_dark, pressed=pressed)


def tiles(given: Sequence[Tile], *, real: Sequence[Tile] = (), credit: str = "", recent: Sequence[Tile] = ()) -> Markup:
    """The strip: what can be given, real cells with their licence, and the cells of this visit."""
    return render("tiles.html", given=given, real=real, credit=credit, recent=recent)


# A cell's picture and its answer.


def cell_picture(
    row: Row,
    *,
    name: str = "",
    view: str = "",
    label: str = "",
    forms: Mapping[str, Row] | None,
    back: str = "",
    rows: Sequence[Row] = (),
    next_cell: int | None = None,
) -> Markup:
    """The left of the stage: the cell, its orientations, its covered parts, or its map.

    Args:
        name: what stands in its corner; "" for the picture's caption.
        view: name of the view that is chosen; "" for the one that the model's maps open with.
        label: the class whose map is shown; "" for the called one.
        forms: what the model says of the cell without each part; None until it is computed.
        back: what the cell was opened from, in a word; "" for nothing.
        rows: what all models say of the cell, in the order of the answer.
        next_cell: number of the smear's cell after it; None for no other.
    """
    chosen = views.chosen_view(row, view)
    offered = views.offered(row)
    pressed = chosen
    waits = row.prediction is None and not row.error and row.picture.on_black
    if waits:
        offered = list(views.STAGE_VIEWS.values())
        pressed = views.STAGE_VIEWS.get(view, chosen)
    if not label and row.prediction is not None:
        label = row.called()
    return render(
        "picture.html",
        views=offered if len(offered) > 1 else (),
        view=chosen,
        pressed=pressed,
        waits=waits,
        body=chosen.draw(views.Shown(row, label, forms, rows)),
        caption=row.picture.caption,
        name=name or row.picture.caption,
        dark=row.picture.is_dark,
        back=back,
        next_tile="" if back else next_tile(row.picture),
        next_cell=next_cell,
        is_read_as_smear=len(offered) == 1 and not back and not row.picture.on_black,
    )


def next_tile(picture: Picture) -> str:
    """What the tile after this picture does: after the last synthetic cell, the smear's; after one's own, the first."""
    if not picture.example:
        return "example:1"
    if picture.on_black and picture.example == len(EXAMPLE_CELLS):
        return "smear"
    return f"example:{picture.example % len(EXAMPLE_CELLS if picture.on_black else EXAMPLE_SMEARS) + 1}"


def cell_answer(
    answer: Answer,
    opened: int,
    *,
    name: str = "",
    address: Address = NO_ADDRESS,
    asked_next: Sequence[str] = (),
    readers: Sequence[str] = (),
    next_cell: int | None = None,
    is_chosen: bool = False,
) -> Markup:
    """The right of the stage: the open model's answer, then a line for each other model.

    Args:
        name: what a cell of a batch is called, or what was measured of one of a smear; "" for any other.
        asked_next: models whose answers for a smear's cell follow.
        readers: models that can read the smear that it was opened from.
        next_cell: number of the smear's cell after it; None for no other.
        is_chosen: whether the visitor chose its model, which is not the first one.
    """
    row = None
    if opened < len(answer.rows):
        row = answer.rows[opened]
    others = [
        {"act": f"row:{number}", **model_line(other, row), "maps": row is not None and views.leads_to_maps(other, row)}
        for number, other in enumerate(answer.rows)
        if number != opened
    ]
    model = ""
    if row is not None:
        model = row.model
    elif address.cell is not None and answer.waiting:
        # One of a smear or a batch has an address at once: Back leads there even before it is answered.
        model = answer.waiting[0]
    return render(
        "cell.html",
        row=row,
        model=model,
        answer=answer,
        others=others,
        opened=_opened(row) if row is not None and row.prediction is not None else None,
        working=not answer.complete or row is None or row.changes_pending,
        name=name,
        address=address,
        waiting=[*answer.waiting, *asked_next],
        readers=readers,
        next_cell=next_cell,
        is_chosen=is_chosen,
    )


def model_line(row: Row, opened: Row | None = None) -> dict[str, Any]:
    """One of the other models' lines: what it says beside the open one, and its bar."""
    if row.prediction is None:
        return {"model": row.model, "words": row.error, "bar": [], "share": ""}
    decision = row.decision_text()
    if row.refused:
        opened_has_none = opened is not None and opened.prediction is not None and not opened.gives_a_class
        words = "Unlike its training cells" if row.known.outcome == OUT_OF_DISTRIBUTION else "No class"
        if opened_has_none:
            words = "No class either"
        return {"model": row.model, "words": words, "bar": [], "share": ""}
    called = row.called()
    words = text.brief_class_text(called, row.known.probabilities[called])
    bar_colour = class_colour(row, called)
    if not decision.has_class:
        words = f"Not sure, {called}"
        bar_colour = "var(--lk-none)"
    return {
        "model": row.model,
        "words": words,
        "bar": [(row.known.probabilities[called], bar_colour)],
        "limit": missed_limit(row),
        "share": text.percentages(row.known.probabilities, row.known.decision)[called],
    }


def class_colour(row: Row, label: str) -> str:
    """The CSS colour of a class of a row's model."""
    return colour(label, list(row.known.probabilities))


def _opened(row: Row) -> dict[str, Any]:
    """What the open answer says, in the order in which it is read."""
    decision = row.decision_text()
    called = row.called()
    labels = list(row.known.probabilities)
    left, top, right, bottom = row.known.view_box
    whole = row.picture.image.size
    return {
        "verdict": row.verdict(),
        "has_class": decision.has_class,
        "colour": colour(row.known.outcome, labels),
        "caveats": row.caveats(),
        "help": row.help_text(),
        "limit": missed_limit(row),
        "shares": [(label, share, _colour_on_bar(row, label)) for label, share in row.known.probabilities.items()],
        "percentages": text.percentages(row.known.probabilities, row.known.decision),
        "distances": [] if row.distances is None else _distance_bars(row.distances),
        "dots": [colour(decision.outcome, labels) for decision in row.orientations],
        "agreement": row.agreement(),
        "is_lost_by_turning": row.is_class_lost_by_turning,
        "changes": [colour(answer.decision.outcome, labels) for answer in row.known.changed],
        "borderline": row.borderline(),
        "unchanged": text.unchanged_text(row.known),
        "maps": trust.maps_passed(row.metrics),
        "reads_whole_pictures": row.reads_whole_pictures,
        "trust": trust.trust_rows(row.metrics) if not row.refused else (),
        "labels": labels,
        "colours": {label: class_colour(row, label) for label in labels},
        "facts": {
            **facts(row, called),
            "Trained on": text.model_text(row.metrics).removeprefix("Trained on ") or "not told",
            "Picture": row.picture.remark if row.picture.field_share is not None else "",
            "Seen by the model": f"{right - left:.0f} × {bottom - top:.0f} of {whole[0]} × {whole[1]} pixels",
        },
        "can_save": not row.pending,
    }


ABOUT_MAPS = ("Map", "Check of its maps")  # topics of `facts`


def facts(row: Row, label: str) -> dict[str, str]:
    """What stands behind an answer, topic → sentences, "" for none; the map is that of this class."""
    check = row.known.map_check
    map_sentences = [
        row.map_text(label),
        row.off_cell.text if row.off_cell is not None else "",
        row.caution_of_nuclei(),
    ]
    return {
        "Map": " ".join(sentence for sentence in map_sentences if sentence),
        "Check of its maps": f"{check.text} {text.MAP_CAVEATS[check.method]}" if row.maps else "",
        "Its answers": text.trust_text(row.known.decision, row.metrics),
        "Further people": trust.about_further_people(row.metrics),
        "Model": f"{row.model}, {row.known.revision[:12] or 'local files'}",
    }


def _colour_on_bar(row: Row, label: str) -> str:
    """The colour of a class, of a cell that gets none in grey: the more probable class darker."""
    if missed_limit(row) is None:
        return class_colour(row, label)
    return "var(--lk-none)" if label == row.known.most_probable else "var(--lk-less)"


def missed_limit(row: Row) -> float | None:
    """The probability, 0–1, that neither of two classes reached where the model is "not sure"; None for any other."""
    limit = row.thresholds.abstain_below
    if limit is None or row.known.outcome != ABSTAIN or len(row.known.probabilities) != 2:
        return None
    return limit


def _distance_bars(distances: Mapping[str, float]) -> list[dict[str, Any]]:
    """Colour, texture and shape, each with how many times as far as a training cell it is, and its bar's share."""
    longest = max(*distances.values(), 4.0)
    names = text.STATISTIC_GROUP_NAMES
    return [
        {"name": names[group], "times": f"{distance:.1f}", "share": distance / longest, "usual": 1 / longest}
        for group, distance in distances.items()
    ]


def empty_picture(sentence: str = "The picture appears here") -> Markup:
    """The left of the stage without a picture: why there is none."""
    return render("empty_picture.html", sentence=sentence)


def not_read(reason: str) -> Markup:
    """The right of the stage for what was given and could not be read: why, and what can be given."""
    return render("not_read.html", reason=reason)


def no_model(reason: str) -> Markup:
    """What stands where an answer would, in a demo without a model."""
    return render("no_model.html", reason=reason)
