"""What leaves the demo as a file: results that a visitor saves, as PNG or CSV, and pictures that the API returns."""

from __future__ import annotations

import csv
import io
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gradio.utils import get_upload_folder
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, __version__
from leukoscope.inference.scoring import safe_cell
from leukoscope.reports.formatting import encoded
from leukoscope.reports.text import outcome_text
from leukoscope.web.answer import Row
from leukoscope.web.saved_picture import row_image, smear_image
from leukoscope.web.smear import Smear
from leukoscope.web.smear_page import cell_size
from leukoscope.web.upload import ANSWER_FOLDER


class File(NamedTuple):
    """A file to be saved by the visitor: its name, media type and content."""

    name: str
    kind: str
    content: bytes


def png_answer(image: Image.Image) -> str:
    """Write a picture as a PNG with the research notice, in a folder of its own of Gradio's cache, and give its path.

    Gradio sends it from there; `delete_old` deletes it. Its own files take three times as long to compress, and
    have the name of an equal answer's: writing one anew breaks off the download of whoever is being sent it.
    """
    texts = PngInfo()
    texts.add_text("Disclaimer", RESEARCH_NOTICE)
    path = Path(get_upload_folder()) / f"{ANSWER_FOLDER}{secrets.token_hex(16)}" / "image.png"
    try:
        path.parent.mkdir(parents=True)
        image.save(path, pnginfo=texts, compress_level=1)
    except OSError:
        shutil.rmtree(path.parent, ignore_errors=True)
        raise LeukoscopeError("the disk of this server is full; try again in a few minutes") from None
    return str(path)


def _png_file(source: str, image: Image.Image, title: str, model: str, revision: str, description: str = "") -> File:
    """A picture as a PNG that states in its texts which model it is from, and that it is for research only."""
    texts = PngInfo()
    texts.add_itxt("Title", title)
    if description:
        texts.add_itxt("Description", description)
    texts.add_itxt("Source", f"model {model}, revision {revision or 'of a local folder'}")
    texts.add_itxt("Disclaimer", RESEARCH_NOTICE)
    texts.add_text("Software", f"Leukoscope {__version__}")
    return File(f"leukoscope-{_stem(source)}.png", "image/png", encoded(image, "PNG", pnginfo=texts))


def _stem(name: str) -> str:
    """A picture's name without its suffix as part of a file name, whatever a visitor called it."""
    return "".join(letter if letter.isalnum() else "-" for letter in name.rsplit(".", 1)[0])[:60] or "picture"


def csv_file(name: str, columns: Mapping[str, Sequence[Any]]) -> File:
    """A table as CSV, in which a spreadsheet takes no text for a formula."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        table.writerow([safe_cell(value) if isinstance(value, str) else value for value in row])
    return File(name, "text/csv", text.getvalue().encode())


def save_smear(kind: str, smear: Smear) -> File:
    """A smear's reading as a file; `kind` is "png" or "csv"."""
    reading = smear.reading
    if kind == "png":
        title = f"{reading.source} read by {reading.model}: {reading.summary}"
        drawn = smear_image(smear)
        return _png_file(reading.source, drawn, title, reading.model, reading.revision)
    cells = reading.to_dict()["cells"]
    sizes = [cell_size(cell.cell) if cell.cell.whole else (None, None) for cell in reading.cells]
    scale = reading.smear.scale
    same_in_all = {
        "source": reading.source,
        "um_per_pixel": scale and round(scale.um_per_pixel, 4),
        "scale_from": scale and scale.source,
        "model": reading.model,
        "revision": reading.revision,
        "notice": RESEARCH_NOTICE,
    }
    columns: dict[str, Sequence[Any]] = {"cell": range(1, len(cells) + 1)}
    for side, edge in enumerate(("left", "top", "right", "bottom")):
        columns[edge] = [cell["box"][side] for cell in cells]
    columns["outcome"] = [outcome_text(cell["outcome"]) for cell in cells]
    for label in reading.labels:
        columns[f"p_{label}"] = [(cell["probabilities"] or {}).get(label) for cell in cells]
    columns |= {
        "ood_score": [cell["ood_score"] for cell in cells],
        "nucleus_um2": [cell["nucleus_um2"] for cell in cells],
        "area_um2": [area and round(area, 2) for area, _ in sizes],
        "nucleus_share": [share and round(share, 4) for _, share in sizes],
        **{name: [value] * len(cells) for name, value in same_in_all.items()},
    }
    return csv_file(f"leukoscope-{_stem(reading.source)}.csv", columns)


def save_row(row: Row, label: str = "", *, with_map: bool = True) -> File:
    """One model's answer as shown, with the map of a class, "" for the one that is called, or without it."""
    label = label or row.called()
    title = f"{row.picture.caption}, predicted by {row.model}"
    summary = row.summary(label=label)
    image = row_image(row, label, with_map=with_map)
    return _png_file(row.picture.caption, image, title, row.model, row.known.revision, summary)
