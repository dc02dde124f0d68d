"""Make the blocks of our releases' metrics.json that their users read and never make themselves.

    python -m research.checks RELEASE --train_dir DIR [--fields_dir DIR …]

assesses a release on the cells that it was made from (`leukoscope.evaluation.assess`), then measures its maps
(heat_maps, evidence_scale), what its OOD detector refuses (ood: kinds, healthy) and, from the runs of its protocol,
what test-time augmentation gains (views). What is not given is listed as not measured. Without --train_dir, only what
needs no cells is fitted anew.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.images import open_image
from leukoscope.data.layouts import ImageFolder
from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import FramedCells, PixelRows, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.smear import UnusableSmear, cut_out, find_cells
from leukoscope.evaluation.assess import assess
from leukoscope.evaluation.calibration import OUT_OF_FOLD
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.inference.ood import fit_detector, picture_statistics
from leukoscope.inference.prediction import NUM_VIEWS, WITHOUT_CLASS, disagreement, softmax, turned
from leukoscope.inference.predictor import Predictor, open_backend
from leukoscope.inference.runtime import Runtime
from leukoscope.models.metrics import Ood
from leukoscope.models.release import HEALTHY, OF_FIELDS, read_metrics, read_release, write_metrics
from leukoscope.models.weights import load_release
from leukoscope.progress import track
from leukoscope.reports.card import write_card
from leukoscope.synthetic import Background, phantom_cells
from research.commands import make_parser, run
from research.map_checks import explanation_blocks
from research.paired import paired_difference

BATCH = 8
# Kinds that need images from elsewhere; where they are not given, they are listed as not measured.
FROM_ELSEWHERE = {
    "fields": "fields of view with many cells (BCCD)",
    "other_data_set": "pictures of another leukaemia data set",
}
_MADE_HERE = {
    "blank": "evenly black, grey or white",
    "noise": "coloured noise with the 1/f spectrum of natural pictures",
    "inverted": "true cells, colours inverted",
    "blurred": "true cells, Gaussian blur of a twentieth of the side",
    "cut": "true cells, moved until a quarter of the view is left in a corner",
    "zoomed": "true cells, the central part magnified 2.5 times",
}
_FOR_INFORMATION = {"phantoms": "synthetic cells, drawn to look true; not counted as something to refuse"}
KINDS = FROM_ELSEWHERE | _MADE_HERE | _FOR_INFORMATION


def checked(
    release: Path,
    cells: FramedCells,
    *,
    others: Mapping[str, np.ndarray] | None = None,
    healthy: Mapping[str, Path] | None = None,
    sample: int = 48,
) -> dict[str, Any]:
    """Measure the blocks of an assessed release that need its cells: heat_maps, evidence_scale and ood.

    Args:
        others: kind (a key of `FROM_ELSEWHERE`) → framed images that must be refused.
        healthy: source → folder with images of white cells, none of them a blast; see `healthy_outcomes`.
        sample: cells whose maps are checked.
    """
    loaded, metrics = load_release(release), read_metrics(release)
    rows, background = cells.rows(tuple(cells.data.train["cell_id"])), cells.data.info.background
    pixels, subjects = PixelRows(cells.pixels, rows), [cells.subjects[row] for row in rows]
    refused = refusals(loaded.preprocessing, pixels, subjects, background=background, others=others)
    blocks: dict[str, Any] = {
        **explanation_blocks(loaded, pixels, cells.labels[rows], subjects, background=background, sample=sample),
        "ood": (metrics.ood or Ood()).content() | refused,
    }
    if healthy:
        predictor = Predictor.from_pretrained(release, backend="torch", device="cpu")
        groups = track(healthy.items(), "predicting healthy donors' cells")
        blocks["ood"]["healthy"] = {name: healthy_outcomes(predictor, folder) for name, folder in groups}
    return blocks


def refusals(
    preprocessing: Preprocessing,
    pixels: np.ndarray | PixelRows,
    subjects: Sequence[str],
    *,
    background: Background,
    others: Mapping[str, np.ndarray] | None = None,
    sample: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """What the detector fitted on these cells refuses: "kinds" and "not_measured" of the block "ood".

    Args:
        pixels, subjects: the release's training cells, framed by it.
        background: what surrounds the cells of this data set; phantoms are drawn on the same.
        sample: number of cells that inverted, blurred and other such images are made from.

    Raises:
        LeukoscopeError: an unknown kind.
    """
    others = others or {}
    if unknown := sorted(others.keys() - FROM_ELSEWHERE.keys()):
        raise LeukoscopeError(f"OOD check {unknown[0]!r}: unknown kind; give {' or '.join(FROM_ELSEWHERE)}")
    detector, held_out = fit_detector(np.asarray([picture_statistics(one) for one in pixels], np.float32), subjects)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(pixels), min(sample, len(pixels)), replace=False))
    phantoms = phantom_cells(subjects_per_class=10, cells_per_subject=5, background=background, seed=seed)
    foreign = {
        **others,
        **unsuitable_images(np.asarray(pixels[chosen]), rng),
        "phantoms": np.stack([preprocessing.frame(Image.fromarray(phantom.image)) for phantom in phantoms]),
    }
    scores = {kind: detector.scores(pictures) for kind, pictures in foreign.items()}
    kinds = {
        kind: {
            "shows": what,
            "to_be_refused": kind not in _FOR_INFORMATION,
            "pictures": len(scores[kind]),
            "auroc": float(
                roc_auc_score(
                    np.repeat([0, 1], [len(held_out), len(scores[kind])]), np.concatenate([held_out, scores[kind]])
                )
            ),
            "refused_share": float((scores[kind] > 1).mean()),
            "least_score": float(scores[kind].min()),
        }
        for kind, what in KINDS.items()
        if kind in scores
    }
    return {"kinds": kinds, "not_measured": [what for kind, what in KINDS.items() if kind not in scores]}


def unsuitable_images(cells: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Make images that must get no class, from (N, S, S, 3) uint8 cells or synthetically: kind → (n, S, S, 3) uint8."""
    side, half = cells.shape[1], cells.shape[1] // 2
    edge = round(side * (1 - 1 / 2.5) / 2)
    # Noise whose amplitude falls as 1/frequency, as in natural images (Field 1987, doi:10.1364/JOSAA.4.002379).
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((min(100, len(cells)), 3, side, side))) / frequency
    noise = np.fft.irfft2(spectrum, s=(side, side))
    noise *= 50 / noise.std(axis=(2, 3), keepdims=True)
    # The lower right quarter moved to the upper left; the rest gets the colour of the image's border.
    borders = np.concatenate([cells[:, 0], cells[:, -1], cells[:, :, 0], cells[:, :, -1]], axis=1)
    cut = np.empty_like(cells)
    cut[:] = np.median(borders, axis=1)[:, None, None]
    cut[:, :half, :half] = cells[:, -half:, -half:]

    def each(pixels: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
        return np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pixels])

    return {
        "blank": np.stack([np.full((side, side, 3), level, np.uint8) for level in range(0, 256, 15)]),
        "noise": np.clip(128 + noise, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1),
        "inverted": 255 - cells,
        "blurred": each(cells, lambda cell: cell.filter(ImageFilter.GaussianBlur(side / 20))),
        "cut": cut,
        "zoomed": each(
            cells[:, edge : side - edge, edge : side - edge],
            lambda part: part.resize((side, side), Image.Resampling.BICUBIC),
        ),
    }


def healthy_outcomes(predictor: Predictor, folder: Path, *, pictures: int = 150) -> dict[str, Any]:
    """Count a release's decisions on white cells of healthy donors, none of which is a blast, or of fields of view.

    For a release of cut-out cells, cells are found in each image and cut out as in `leukoscope smear`; for another
    one the images are given as they are.

    Args:
        folder: images, or one folder of them for each kind of cell; "Annotations" and the like hold none.
        pictures: at most this many of each kind, evenly chosen.

    Returns:
        kind → pictures, cells, `outcomes` (outcome → cells), and `most_probable` (class → cells): what the network
        alone would have predicted.

    Raises:
        LeukoscopeError: a folder without an image, or with a damaged one in the sample.
    """
    kinds: dict[str, list[Path]] = {}
    for path in _image_files(folder):
        kinds.setdefault(path.parent.name, []).append(path)
    found = {}
    for kind, paths in kinds.items():
        chosen = evenly(np.asarray(paths), pictures)
        predictions = predictor(cell for path in chosen for cell in _cells_of(predictor, path))
        outcomes = Counter(one.outcome for one in predictions)
        most_probable = Counter(one.most_probable for one in predictions)
        found[kind] = {
            "pictures": len(chosen),  # some may show no cell that can be cut out
            "cells": len(predictions),
            "outcomes": {outcome: outcomes[outcome] for outcome in (*predictor.labels, *WITHOUT_CLASS)},
            "most_probable": {label: most_probable[label] for label in predictor.labels},
        }
    return found


def _cells_of(predictor: Predictor, path: Path) -> list[Image.Image]:
    image = open_image(path)
    if predictor.release.takes_cut_outs is not True:
        return [image]
    try:
        field = find_cells(image)
    except UnusableSmear:
        return []
    scale = field.scale
    return [cut_out(image, cell, scale.um_per_pixel) for cell in field.cells if cell.whole and scale is not None]


def frame_sample(folder: Path, preprocessing: Preprocessing, *, pictures: int = 150) -> np.ndarray:
    """Frame an even sample of at most so many images below a folder for a network: (n, S, S, 3) uint8.

    Raises:
        LeukoscopeError: a folder without an image, or with a damaged one in the sample.
    """
    paths = evenly(np.asarray(_image_files(folder)), pictures)
    return np.stack([preprocessing.frame(open_image(path)) for path in paths])


def _image_files(folder: Path) -> list[Path]:
    paths = ImageFolder.read(folder).images
    if not paths:
        raise LeukoscopeError(f"{folder}: holds no picture to check the OOD detector with; name another folder")
    return paths


def evenly(rows: np.ndarray, count: int) -> np.ndarray:
    """Take at most `count` of (N, …), evenly spaced."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]


def tta_gain(
    folds: Sequence[tuple[Path, CellPredictions]], cells: FramedCells, *, sample: int = 2000, device: str = "cpu"
) -> dict[str, Any]:
    """Make the "views" block of metrics.json: what test-time augmentation gains on unseen subjects.

    Args:
        folds: of each fold the release folder of its network, and the network's predictions for its test cells.
        cells: those cells, framed for the networks.
        sample: number of cells over all folds, chosen at random; all where there are fewer.

    Returns:
        metrics of one view and of the average of eight, their `difference` (eight less one) on the same bootstrap
        samples, and the accuracy on cells whose views agree, and on the others.

    Raises:
        LeukoscopeError: too few subjects of a class.
    """
    ends = np.cumsum([0, *(len(fold.cell_ids) for _, fold in folds)])
    chosen = np.sort(np.random.default_rng(0).permutation(ends[-1])[:sample])
    parts, view_probabilities = [], []
    for number, ((folder, fold), first, last) in enumerate(zip(folds, ends, ends[1:], strict=False), 1):
        some = fold.take(chosen[(first <= chosen) & (chosen < last)] - first)
        backend, rows = open_backend(read_release(folder), Runtime(device=device)), cells.rows(some.cell_ids)
        parts.append(some)
        label = f"test-time augmentation, fold {number} of {len(folds)}"
        for start in track(range(0, len(rows), BATCH), label):
            pixels = np.asarray(cells.pixels[rows[start : start + BATCH]])
            by_view = [softmax(backend(turned(pixels, view)).logits) for view in range(NUM_VIEWS)]
            view_probabilities.append(np.stack(by_view, axis=1))
    tested, each = pooled(parts), np.concatenate(view_probabilities)
    one, eight = (replace(tested, probabilities=p) for p in (each[:, 0], each.mean(axis=1)))  # upright comes first
    share_apart = disagreement(each)
    correct, agreed = eight.predicted == eight.references, share_apart == 0

    def accuracy(correct: np.ndarray) -> dict[str, Any]:
        return {"cells": len(correct), "accuracy": float(correct.mean()) if len(correct) else None}

    return {
        "estimates": OUT_OF_FOLD,
        "definition": "four quarter turns of a cell, each also mirrored",
        "views": NUM_VIEWS,
        "network_passes_per_cell": NUM_VIEWS,
        "cells": len(correct),
        "one_view": headline(measure(one)),
        "all_views": headline(measure(eight)),
        "difference": paired_difference(eight, one),
        "mean_disagreement": float(share_apart.mean()),
        "agreeing_cells": accuracy(correct[agreed]),
        "disagreeing_cells": accuracy(correct[~agreed]),
    }


def parser() -> ArgumentParser:
    """The program's flags."""
    made = make_parser("checks", __doc__)
    made.add_argument("release", type=Path, help="Folder of a release made by `leukoscope protocol`.")
    made.add_argument("--train_dir", type=Path, help="The cells that it was made from.")
    made.add_argument("--fields_dir", type=Path, help="Fields of view, which must be out of distribution (BCCD).")
    made.add_argument("--other_dir", type=Path, help="Images of another data set, which must be out of distribution.")
    made.add_argument("--healthy_dir", type=Path, help="White cells of healthy donors, a folder for each kind (PBC).")
    made.add_argument("--runs", type=Path, help="The protocol's --output_dir, whose folds measure the views.")
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Assess a release, measure its blocks, and render its card."""
    given = parser().parse_args(argv)
    about = read_release(given.release)
    cells = None
    if given.train_dir:
        preprocessing = about.preprocessing
        data = load_cells(about.metrics.data.name, given.train_dir, image_size=2 * preprocessing.image_size)
        cells = frame_cells(data, preprocessing)
    assess(given.release, cells)
    if cells is not None:
        unlike = {"fields": given.fields_dir, "other_data_set": given.other_dir}
        others = {kind: frame_sample(folder, about.preprocessing) for kind, folder in unlike.items() if folder}
        # The cells of fields are cut out, so only a release of cut-out cells predicts them.
        sources = {HEALTHY: given.healthy_dir, OF_FIELDS: given.fields_dir if about.takes_cut_outs else None}
        healthy = {name: folder for name, folder in sources.items() if folder}
        blocks = checked(given.release, cells, others=others, healthy=healthy)
        if given.runs:
            folders = sorted(given.runs.glob("cv-*"))
            folds = [(one / "release", CellPredictions.load(one / "predictions.parquet")) for one in folders]
            blocks["views"] = tta_gain(folds, cells)
        write_metrics(given.release, read_metrics(given.release).changed(**blocks))
    print(f"{write_card(given.release)}\n{RESEARCH_NOTICE}")


if __name__ == "__main__":
    run(main)
