"""A field of view with the outcome drawn round each of its cells, told apart by line as well as by colour."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from leukoscope import RESEARCH_NOTICE
from leukoscope.inference.decision import ABSTAIN, NOT_A_CELL, OUT_OF_DISTRIBUTION, REFUSED
from leukoscope.inference.field_reading import AT_EDGE, FieldReading

# Okabe & Ito (2008): told apart by people with any colour vision.
CLASS_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00")
OTHER_COLOURS = {ABSTAIN: "#56565b", OUT_OF_DISTRIBUTION: "#000000", NOT_A_CELL: "#000000", AT_EDGE: "#8a8a8f"}
DASHED = (*REFUSED, AT_EDGE)
# Below the second, names of outcomes would not fit.
DRAWN_SIDE, SMALLEST_SIDE = 1600, 800


def draw_reading(image: Image.Image, reading: FieldReading, *, side: int = DRAWN_SIDE) -> Image.Image:
    """Draw every cell's box and outcome, and a legend below.

    Args:
        image: the field that was read.
        side: longest side of the drawing of the field, pixels; at least 800, where a small field is drawn larger.

    Returns:
        RGB. Classes have full lines, cells abstained from a thin one, the others are dashed; those out of
        distribution are crossed out.
    """
    factor = min(side, max(SMALLEST_SIDE, *image.size)) / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    drawn = image.resize(size, Image.Resampling.BOX if factor < 1 else Image.Resampling.BICUBIC)
    pen, width = ImageDraw.Draw(drawn), max(2, round(max(size) / 400))
    font_size = max(11, round(max(size) / 60))
    font = ImageFont.load_default(font_size)
    for cell in reading.cells:
        box = tuple(edge * factor for edge in cell.cell.box)
        _draw_box(pen, box, cell.outcome, _colour(cell.outcome, reading.labels), width)
        if cell.outcome in reading.labels and cell.prediction:
            share = cell.prediction.probabilities[cell.outcome]
            place = (box[0], max(0, box[1] - font_size - 2))
            pen.text(place, f"{cell.outcome} {share:.2f}", _colour(cell.outcome, reading.labels), font)
    return _with_legend(drawn, reading, font, font_size)


def _colour(outcome: str, labels: tuple[str, ...]) -> str:
    return OTHER_COLOURS.get(outcome) or CLASS_COLOURS[labels.index(outcome) % len(CLASS_COLOURS)]


def _draw_box(pen: ImageDraw.ImageDraw, box: tuple[float, ...], outcome: str, colour: str, width: int) -> None:
    left, top, right, bottom = box
    if outcome not in DASHED:
        pen.rectangle((left, top, right, bottom), outline=colour, width=1 if outcome == ABSTAIN else width)
        return
    for start, end in (((left, top), (right, top)), ((right, top), (right, bottom)),
                       ((right, bottom), (left, bottom)), ((left, bottom), (left, top))):  # fmt: skip
        _dashes(pen, start, end, colour, width)
    if outcome in REFUSED:
        pen.line((left, top, right, bottom), colour, 1)
        pen.line((left, bottom, right, top), colour, 1)


def _dashes(
    pen: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], colour: str, width: int
) -> None:
    length = max(1.0, abs(end[0] - start[0]) + abs(end[1] - start[1]))
    count = max(2, round(length / (4 * width)))
    for dash in range(count):
        a, b = dash / count, (dash + 0.6) / count
        at = [start[k] + share * (end[k] - start[k]) for share in (a, b) for k in (0, 1)]
        pen.line(at, colour, width)


def _with_legend(
    drawn: Image.Image, reading: FieldReading, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, font_size: int
) -> Image.Image:
    lines = [(f"{outcome}: {count}", _colour(outcome, reading.labels)) for outcome, count in reading.counts.items()]
    step = int(font_size * 1.5)
    below = Image.new("RGB", (drawn.width, drawn.height + step * 2 + 6), "white")
    below.paste(drawn, (0, 0))
    pen, x, y = ImageDraw.Draw(below), 6.0, drawn.height + 4
    for text, colour in lines:
        pen.text((x, y), text, colour, font)
        x += pen.textlength(text, font) + 2 * font_size
    pen.text((6, y + step), RESEARCH_NOTICE, "#3c3c41", font)
    return below
