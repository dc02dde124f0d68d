"""A result as one picture to keep or to send: cell, heat map, decision, model, revision and notice, drawn and written.

What is drawn for people also stands in the PNG's metadata for programs.
"""

from __future__ import annotations

import textwrap
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from leukoscope import RESEARCH_NOTICE, __version__
from leukoscope.web.look import Look, draw, summary
from leukoscope.web.saving import File

SIDE, MARGIN, LINE, LETTERS = 450, 20, 24, 105
INK, QUIET = "#18181b", "#55515f"


def save_look(look: Look, label: str, opacity: float, point: str = "") -> File:
    """The result as shown: the class, opacity and operating point that were chosen."""
    about = PngInfo()
    about.add_itxt("Title", f"{look.caption}, read by {look.model}")
    about.add_itxt("Description", summary(look, point))
    about.add_itxt("Source", f"model {look.model}, revision {look.prediction.revision or 'of a local folder'}")
    about.add_itxt("Disclaimer", RESEARCH_NOTICE)
    about.add_text("Software", f"Leukoscope {__version__}")
    buffer = BytesIO()
    draw_sheet(look, label, opacity, point).save(buffer, "PNG", pnginfo=about)
    return File(f"leukoscope-{_stem(look.caption)}.png", "image/png", buffer.getvalue())


def draw_sheet(look: Look, label: str, opacity: float, point: str = "") -> Image.Image:
    """Cell and heat map side by side over everything that is said of them, as RGB."""
    pictures = [_fitted(picture) for picture in draw(look, label, opacity)]
    height = max(picture.height for picture in pictures)
    said = [line for text in summary(look, point).splitlines() for line in textwrap.wrap(_plain(text), LETTERS)]
    width = 2 * SIDE + 3 * MARGIN
    sheet = Image.new("RGB", (width, height + (len(said) + 2) * LINE + 3 * MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    captions = (look.caption, f"evidence for {label} (Grad-CAM), 0 to {look.peak:.3g}")
    for column, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = MARGIN + column * (SIDE + MARGIN)
        sheet.paste(picture, (left, MARGIN))
        pen.text((left, height + MARGIN + 4), textwrap.shorten(_plain(caption), 52), QUIET, font)
    top = height + 2 * MARGIN + LINE
    for number, line in enumerate(said):
        pen.text((MARGIN, top + number * LINE), line, INK, ImageFont.load_default(20) if number == 0 else font)
    return sheet


def _fitted(picture: Image.Image) -> Image.Image:
    factor = SIDE / max(picture.size)
    return picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))


def _plain(text: str) -> str:
    """Without what the drawing font lacks."""
    return text.replace("\u00a0", " ").encode("latin-1", "replace").decode("latin-1")


def _stem(caption: str) -> str:
    """A caption as part of a file name: a visitor's words may hold anything."""
    return "".join(letter if letter.isalnum() else "-" for letter in caption.rsplit(".", 1)[0])[:60] or "cell"
