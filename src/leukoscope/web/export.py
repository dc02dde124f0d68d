"""A result as a PNG to keep: cell and map side by side, the bars and every sentence that the page shows beside them."""

from __future__ import annotations

import textwrap

from PIL import Image, ImageDraw

from leukoscope.inference.gradcam import map_colours
from leukoscope.inference.smear import drawing_font
from leukoscope.reports.text import named, percent
from leukoscope.web.answer import Row
from leukoscope.web.stage import colour
from leukoscope.web.upload import File, png_file, safe_stem

# In pixels; LETTERS fit into a line.
SIDE, MARGIN, LINE, LETTERS = 450, 20, 24, 105
INK, QUIET, TRACK = "#18181b", "#55515f", "#e7e4ee"


def save_row(row: Row, label: str = "") -> File:
    """One model's answer as shown, with the map of a class; "" for the one that is called."""
    label = label or row.called()
    return png_file(
        f"leukoscope-{safe_stem(row.picture.caption) or 'cell'}.png",
        row_image(row, label),
        title=f"{row.picture.caption}, predicted by {row.model}",
        model=row.model,
        revision=row.known.revision,
        description=row.summary(label=label),
    )


def row_image(row: Row, label: str) -> Image.Image:
    """Cell and map side by side, the colour scale, the probability bars and the whole text, as RGB."""
    pictures = []
    for picture in filter(None, row.pictures(label)):
        factor = SIDE / max(picture.size)
        pictures.append(picture.resize([max(1, round(side * factor)) for side in picture.size]))
    shares, decided = row.shares(), row.decision_text()
    lines = [line for said in row.summary(label=label).splitlines() for line in textwrap.wrap(said, LETTERS)]
    width, captions_at = 2 * SIDE + 3 * MARGIN, max(picture.height for picture in pictures) + MARGIN + 4
    bars_at = captions_at + 2 * LINE + MARGIN
    text_at = bars_at + (2 * len(shares) + (not decided.has_class)) * LINE + MARGIN
    drawn = Image.new("RGB", (width, text_at + len(lines) * LINE + MARGIN), "white")
    pen, font = ImageDraw.Draw(drawn), drawing_font(15)

    caption = row.picture.caption
    captions = (
        caption if len(caption) <= 52 else f"{caption[:51]}…",
        f"Map for {label}" if row.maps else "Unusual colours",
    )
    for column, (picture, said) in enumerate(zip(pictures, captions, strict=False)):
        left = MARGIN + column * (SIDE + MARGIN)
        drawn.paste(picture, (left, MARGIN))
        pen.text((left, captions_at), said, QUIET, font)
    if row.maps:
        colours = map_colours(160)[None].repeat(12, axis=0)
        left = 2 * MARGIN + SIDE
        drawn.paste(Image.fromarray(colours), (left + 18, captions_at + LINE + 4))
        pen.text((left, captions_at + LINE), "0", QUIET, font)
        pen.text((left + 186, captions_at + LINE), f"{row.peak:.3g}", QUIET, font)

    top = bars_at
    if not decided.has_class:
        pen.text((MARGIN, top), "Probabilities: no result for this picture", QUIET, font)
        top += LINE
    for name, share in shares.items():
        pen.text((MARGIN, top), named(name), INK, font)
        pen.text((width - MARGIN, top), percent(share), INK, font, anchor="ra")
        pen.rectangle((MARGIN, top + LINE, width - MARGIN, top + LINE + 10), TRACK)
        if share * (width - 2 * MARGIN) >= 1:
            ink = colour(name, list(row.known.probabilities)) if decided.has_class else QUIET
            pen.rectangle((MARGIN, top + LINE, MARGIN + share * (width - 2 * MARGIN), top + LINE + 10), ink)
        top += 2 * LINE
    for number, line in enumerate(lines):
        pen.text((MARGIN, text_at + number * LINE), line, INK, drawing_font(18) if number == 0 else font)
    return drawn
