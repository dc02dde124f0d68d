"""How well a release's OOD detector tells its own cells from everything else, measured when it is fitted.

True cells are judged by detectors that did not see their subject; the rest is made from those cells (inverted, blurred,
cut, …), drawn (blank, noise, phantoms), or comes from data sets at hand. None of it was fitted on. The metrics are the
"ood" block of metrics.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from leukoscope import LeukoscopeError
from leukoscope.cells.fields import UnusableField, cut_out, find_cells
from leukoscope.cells.images import open_image
from leukoscope.cells.phantoms import Background, phantom_cells
from leukoscope.cells.preprocessing import Preprocessing
from leukoscope.cells.registry import image_files
from leukoscope.inference.decision import WITHOUT_CLASS
from leukoscope.inference.ood import (
    FOLDS,
    KEPT_SHARE,
    METHOD,
    STATISTICS,
    OodDetector,
    fit_detector,
    picture_statistics,
)

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Predictor

ESTIMATES = "cells of subjects that the detector was not fitted on; no network has a part in it"
# Kinds that need pictures from elsewhere; where nobody gives them, they are listed as not measured.
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


def fit_and_check(
    preprocessing: Preprocessing,
    pixels: np.ndarray,
    subjects: Sequence[str],
    *,
    background: Background,
    others: Mapping[str, np.ndarray] | None = None,
    sample: int = 300,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[OodDetector, dict[str, Any]]:
    """Fit the detector of a release on its cells and measure it.

    Args:
        preprocessing: the release's.
        pixels: (N, S, S, 3) uint8, its training cells framed by it; may be memory-mapped.
        subjects: (N,) subject of each cell, or the block it must stay with where patients are unknown.
        background: what surrounds the cells of this data set; phantoms are drawn on the same.
        others: kind (a key of `FROM_ELSEWHERE`) → framed pictures, see `frame_sample`; what is missing is listed as
            not measured.
        sample: number of cells that inverted, blurred and other such pictures are made from.
        seed: of that sample, the noise and the phantoms.
        progress: called with (done, total) over the cells.

    Returns:
        The detector, to be saved as ood.safetensors, and the "ood" block of metrics.json.

    Raises:
        LeukoscopeError: too few cells or subjects, or an unknown kind.
    """
    others = others or {}
    if unknown := sorted(others.keys() - FROM_ELSEWHERE.keys()):
        raise LeukoscopeError(f"OOD check {unknown[0]!r}: unknown kind; give {' or '.join(FROM_ELSEWHERE)}")
    statistics = np.empty((len(pixels), STATISTICS), np.float32)
    for row, cell in enumerate(pixels):
        statistics[row] = picture_statistics(cell)
        if progress:
            progress(row + 1, len(pixels))
    detector, held_out = fit_detector(statistics, subjects)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(pixels), min(sample, len(pixels)), replace=False))
    foreign = {**others, **wrong_pictures(pixels[chosen], rng)}
    foreign["phantoms"] = _phantoms(preprocessing, background, seed)
    scores = {kind: detector.scores(pictures) for kind, pictures in foreign.items()}
    return detector, ood_block(detector, held_out, subjects, scores)


def ood_block(
    detector: OodDetector, held_out: np.ndarray, subjects: Sequence[str], scores: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The "ood" block of metrics.json.

    Args:
        held_out: (N,) OOD scores of the true cells from `fit_detector`.
        subjects: (N,) their subjects.
        scores: kind (a key of `KINDS`) → OOD scores of its pictures.
    """
    return {
        "estimates": ESTIMATES,
        "method": METHOD,
        "distance_limit": float(detector.limit),
        "wanted_kept_share": KEPT_SHARE,
        "held_out": _held_out(held_out, np.asarray(subjects)),
        "kinds": {
            kind: {"shows": what, "to_be_refused": kind not in _FOR_INFORMATION, **_refused(held_out, scores[kind])}
            for kind, what in KINDS.items()
            if kind in scores
        },
        "not_measured": [what for kind, what in KINDS.items() if kind not in scores],
    }


def _held_out(scores: np.ndarray, subjects: np.ndarray) -> dict[str, Any]:
    kept = scores <= 1
    names, of, cells = np.unique(subjects, return_inverse=True, return_counts=True)
    shares = np.bincount(of, kept) / cells
    # Ties go to the subject with more cells: half of two cells says less than half of two hundred.
    worst = min(range(len(names)), key=lambda i: (shares[i], -cells[i]))
    return {
        "cells": len(scores),
        "subjects": len(names),
        "folds": min(FOLDS, len(names)),
        "kept_share": float(kept.mean()),
        "kept_share_by_subject": float(shares.mean()),
        "worst_subject": {
            "subject": str(names[worst]),
            "cells": int(cells[worst]),
            "kept_share": float(shares[worst]),
        },
    }


def _refused(true_cells: np.ndarray, others: np.ndarray) -> dict[str, Any]:
    from sklearn.metrics import roc_auc_score

    is_foreign = np.repeat([0, 1], [len(true_cells), len(others)])
    return {
        "pictures": len(others),
        "auroc": float(roc_auc_score(is_foreign, np.concatenate([true_cells, others]))),
        "refused_share": float((others > 1).mean()),
        "least_score": float(others.min()),
    }


def healthy_outcomes(predictor: Predictor, folder: Path, *, pictures: int = 150) -> dict[str, Any]:
    """What a release decides of white cells of healthy people: none of them is a blast.

    For a release of cut-out cells, cells are found in each picture and cut out as in `leukoscope field`; for another
    one the pictures are given as they are.

    Args:
        folder: pictures, or one folder of them for each kind of cell; "Annotations" and the like hold none.
        pictures: at most this many of each kind, evenly chosen.

    Returns:
        kind → pictures, cells, `outcomes` (outcome → cells), and `most_probable` (class → cells): what the network
        alone would have called them.

    Raises:
        LeukoscopeError: the folder holds no picture.
        UnreadableImage: a picture of the sample is damaged.
    """
    kinds: dict[str, list[Path]] = {}
    for path in image_files(folder):
        kinds.setdefault(path.parent.name, []).append(path)
    if not kinds:
        raise LeukoscopeError(f"{folder}: holds no picture to check the OOD detector with; name another folder")
    found = {}
    for kind, paths in kinds.items():
        chosen = _evenly(paths, pictures)
        shown = [cell for path in chosen for cell in _cells_of(predictor, path)]
        decided = predictor(shown)
        outcomes = Counter(one.outcome for one in decided)
        alone = Counter(one.most_probable for one in decided)
        found[kind] = {
            "pictures": len(chosen),  # some may show no cell that can be cut out
            "cells": len(shown),
            "outcomes": {outcome: outcomes[outcome] for outcome in (*predictor.labels, *WITHOUT_CLASS)},
            "most_probable": {label: alone[label] for label in predictor.labels},
        }
    return found


def _cells_of(predictor: Predictor, path: Path) -> Iterator[Image.Image]:
    image = open_image(path)
    if predictor.release.takes_cut_outs is not True:
        yield image
        return
    try:
        field = find_cells(image)
    except UnusableField:
        return
    for cell in field.cells:
        if cell.whole and field.scale is not None:
            yield cut_out(image, cell, field.scale.um_per_pixel)


def wrong_pictures(cells: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Pictures that nobody should get an answer for, made from true cells or from nothing.

    Args:
        cells: (N, S, S, 3) uint8.

    Returns:
        kind → (n, S, S, 3) uint8.
    """
    side = cells.shape[1]
    edge = round(side * (1 - 1 / 2.5) / 2)
    return {
        "blank": np.stack([np.full((side, side, 3), level, np.uint8) for level in range(0, 256, 15)]),
        "noise": _natural_noise(min(100, len(cells)), side, rng),
        "inverted": 255 - cells,
        "blurred": _each(cells, lambda cell: cell.filter(ImageFilter.GaussianBlur(side / 20))),
        "cut": np.stack([_moved_to_the_corner(cell) for cell in cells]),
        "zoomed": _each(
            cells[:, edge : side - edge, edge : side - edge],
            lambda part: part.resize((side, side), Image.Resampling.BICUBIC),
        ),
    }


def _each(pixels: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pixels])


def _natural_noise(pictures: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Amplitude falls as 1/frequency, as in natural pictures (Field 1987, doi:10.1364/JOSAA.4.002379)."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((pictures, 3, side, side))) / frequency
    noise = np.fft.irfft2(spectrum, s=(side, side))
    noise *= 50 / noise.std(axis=(2, 3), keepdims=True)
    return np.clip(128 + noise, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _moved_to_the_corner(cell: np.ndarray) -> np.ndarray:
    """The lower right quarter moved to the upper left; the rest takes the colour of the picture's border."""
    half = cell.shape[0] // 2
    border = np.concatenate([cell[0], cell[-1], cell[:, 0], cell[:, -1]])
    moved = np.empty_like(cell)
    moved[:] = np.median(border, axis=0)
    moved[:half, :half] = cell[-half:, -half:]
    return moved


def _phantoms(preprocessing: Preprocessing, background: Background, seed: int) -> np.ndarray:
    frame = preprocessing.frame
    drawn = phantom_cells(subjects_per_class=10, cells_per_subject=5, background=background, seed=seed)
    return np.stack([frame(Image.fromarray(phantom.image)) for phantom in drawn])


def frame_sample(folder: Path, preprocessing: Preprocessing, *, pictures: int = 150) -> np.ndarray:
    """An even sample of the pictures below a folder, framed for a network.

    Args:
        pictures: at most this many.

    Returns:
        (n, S, S, 3) uint8.

    Raises:
        LeukoscopeError: the folder holds no picture.
        UnreadableImage: a picture of the sample is damaged.
    """
    paths = list(image_files(folder))
    if not paths:
        raise LeukoscopeError(f"{folder}: holds no picture to check the OOD detector with; name another folder")
    frame = preprocessing.frame
    return np.stack([frame(open_image(path)) for path in _evenly(paths, pictures)])


def _evenly(paths: Sequence[Path], most: int) -> list[Path]:
    """At most that many of some files, from the first to the last."""
    return [paths[i] for i in np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)]
