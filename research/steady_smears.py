"""Whether a smear's answer hangs on small differences of its scale, or on where its pixels fall.

    python -m research.steady_smears

reads synthetic smears at 0.12 µm per pixel, then each again at other given scales and moved by half a pixel. It counts
the whole cells whose outcome is another, or that are not found again, and writes the block `today` of
results/steady_smears.json; a change of `cut_out` is measured beside it with --block NAME.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from leukoscope import RESEARCH_NOTICE
from leukoscope.inference.predictor import Predictor
from leukoscope.inference.smear import AT_EDGE, read_smear
from leukoscope.models.release import write_json
from leukoscope.progress import track
from leukoscope.synthetic import draw_smear

RESULTS = Path(__file__).parents[1] / "results" / "steady_smears.json"
PITCH = 0.12  # µm per pixel
FIRST_SEED = 31
UNCHANGED = "unchanged"
SHIFTED = "moved by half a pixel"
SCALES = {f"scale {percent:+g} %": 1 + percent / 100 for percent in (0.05, -0.05, 0.5, -0.5, 2, -2)}
SAME_PLACE = 1.2  # µm between the middles of two boxes of one cell, at most
Cell = dict[str, Any]


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("model_card/leukoscope-densenet169-cnmc"))
    parser.add_argument("--smears", type=int, default=16)
    parser.add_argument("--block", default="today")
    flags = parser.parse_args()
    predictor = Predictor.from_pretrained(flags.model)
    readings = []
    for seed in track(range(FIRST_SEED, FIRST_SEED + flags.smears), "smears"):
        image = Image.fromarray(draw_smear(seed=seed, um_per_pixel=PITCH).image)
        reading = {name: _cells(predictor, image, PITCH * factor) for name, factor in SCALES.items()}
        reading[UNCHANGED] = _cells(predictor, image, PITCH)
        reading[SHIFTED] = _cells(predictor, shifted(image), PITCH)
        readings.append(reading)
    result = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"notice": RESEARCH_NOTICE}
    result |= {"model": predictor.release.name, flags.block: changes(readings)}
    write_json(RESULTS, result)
    print(RESULTS)


def shifted(image: Image.Image, by: float = 0.5) -> Image.Image:
    """Move a picture to the right and down by a part of a pixel, as its Fourier series does: nothing is blurred."""
    margin = 16
    pixels = np.pad(np.asarray(image, float), ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    down = np.fft.fftfreq(pixels.shape[0])[:, None, None]
    right = np.fft.fftfreq(pixels.shape[1])[None, :, None]
    turned = np.fft.fft2(pixels, axes=(0, 1)) * np.exp(-2j * np.pi * by * (down + right))
    moved = np.fft.ifft2(turned, axes=(0, 1)).real[margin:-margin, margin:-margin]
    return Image.fromarray(moved.round().clip(0, 255).astype(np.uint8))


def _cells(predictor: Predictor, image: Image.Image, um_per_pixel: float) -> list[Cell]:
    """Outcome of each whole cell, and the middle of its box in µm."""
    reading = read_smear(predictor, image, um_per_pixel=um_per_pixel)
    cells = []
    for cell in reading.to_dict()["cells"]:
        if cell["outcome"] != AT_EDGE:
            left, top, right, bottom = cell["box"]
            middle = [um_per_pixel * (left + right) / 2, um_per_pixel * (top + bottom) / 2]
            cells.append({"middle": middle, "outcome": cell["outcome"]})
    return cells


def changes(readings: Sequence[dict[str, list[Cell]]]) -> dict[str, Any]:
    """Of 100 whole cells, how many have another outcome in each variant, and how many are lost."""
    rows = {}
    for name in (*SCALES, SHIFTED):
        pairs = [pair for cells in readings for pair in _paired(cells[UNCHANGED], cells[name], SCALES.get(name, 1))]
        changed = sum(other is not None and other["outcome"] != cell["outcome"] for cell, other in pairs)
        lost = sum(other is None for _, other in pairs)
        rows[name] = {"outcome_changed": 100 * changed / len(pairs), "lost": 100 * lost / len(pairs)}
    return {"smears": len(readings), "cells": len(pairs), "changes": rows}


def _paired(cells: Sequence[Cell], others: Sequence[Cell], factor: float) -> Iterator[tuple[Cell, Cell | None]]:
    """Each cell with the nearest of the others, None where none is near; scales differ by a factor."""
    for cell in cells:
        distances = [np.hypot(*np.subtract(np.divide(other["middle"], factor), cell["middle"])) for other in others]
        nearest = int(np.argmin(distances)) if distances else 0
        near = bool(distances) and distances[nearest] <= SAME_PLACE
        yield cell, others[nearest] if near else None


if __name__ == "__main__":
    main()
