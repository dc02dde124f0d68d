"""Metrics of a release's OOD detector: how well it separates the release's own cells from everything else.

True cells are scored by detectors that did not see their subject. The other images are made from those cells (inverted,
blurred, cut, …), synthetic (blank, noise, phantoms), or from other data sets; the detector is fitted on none of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from leukoscope import LeukoscopeError
from leukoscope.data.fields import UnusableField, cut_out, find_cells
from leukoscope.data.folders import ImageFolder
from leukoscope.data.images import open_image
from leukoscope.data.pixel_cache import PixelRows
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.inference.ood import FOLDS, KEPT_SHARE, METHOD, OodDetector, fit_detector, picture_statistics
from leukoscope.inference.prediction import WITHOUT_CLASS
from leukoscope.models.release import HEALTHY, OF_FIELDS
from leukoscope.synthetic import Background, phantom_cells

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Predictor
    from leukoscope.models.release import ReleaseInfo

ESTIMATES = "cells of subjects that the detector was not fitted on; no network has a part in it"
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


def fit_and_measure_detector(
    preprocessing: Preprocessing,
    pixels: np.ndarray | PixelRows,
    subjects: Sequence[str],
    *,
    background: Background,
    others: Mapping[str, np.ndarray] | None = None,
    sample: int = 300,
    seed: int = 0,
) -> tuple[OodDetector, dict[str, Any]]:
    """Fit the detector of a release on its cells and measure it: the detector and metrics.json's "ood" block.

    Args:
        pixels: (N, S, S, 3) uint8, the release's training cells framed by it; may be memory-mapped.
        subjects: (N,) subject of each cell, or its block where subjects are unknown.
        background: what surrounds the cells of this data set; phantoms are drawn on the same.
        others: kind (a key of `FROM_ELSEWHERE`) → framed images, see `frame_sample`; what is missing is listed as
            not measured.
        sample: number of cells that inverted, blurred and other such images are made from.

    Raises:
        LeukoscopeError: too few cells or subjects, or an unknown kind.
    """
    others = others or {}
    if unknown := sorted(others.keys() - FROM_ELSEWHERE.keys()):
        raise LeukoscopeError(f"OOD check {unknown[0]!r}: unknown kind; give {' or '.join(FROM_ELSEWHERE)}")
    statistics = np.asarray([picture_statistics(cell) for cell in pixels], np.float32)
    detector, held_out = fit_detector(statistics, subjects)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(pixels), min(sample, len(pixels)), replace=False))
    phantoms = phantom_cells(subjects_per_class=10, cells_per_subject=5, background=background, seed=seed)
    frame = preprocessing.frame
    foreign = {
        **others,
        **unsuitable_images(pixels[chosen], rng),
        "phantoms": np.stack([frame(Image.fromarray(phantom.image)) for phantom in phantoms]),
    }
    scores = {kind: detector.scores(pictures) for kind, pictures in foreign.items()}
    return detector, ood_block(detector, held_out, subjects, scores)


def ood_block(
    detector: OodDetector, held_out: np.ndarray, subjects: Sequence[str], scores: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Make the "ood" block of metrics.json.

    Args:
        held_out, subjects: (N,) OOD scores of the true cells from `fit_detector`, and their subjects.
        scores: kind (a key of `KINDS`) → OOD scores of its images.
    """
    from sklearn.metrics import roc_auc_score

    kept = held_out <= 1
    names, of, cells = np.unique(subjects, return_inverse=True, return_counts=True)
    shares = np.bincount(of, kept) / cells
    # Ties go to the subject with more cells: half of two cells says less than half of two hundred.
    worst = min(range(len(names)), key=lambda i: (shares[i], -cells[i]))
    kinds = {}
    for kind, what in KINDS.items():
        if kind in scores:
            is_foreign = np.repeat([0, 1], [len(held_out), len(scores[kind])])
            kinds[kind] = {
                "shows": what,
                "to_be_refused": kind not in _FOR_INFORMATION,
                "pictures": len(scores[kind]),
                "auroc": float(roc_auc_score(is_foreign, np.concatenate([held_out, scores[kind]]))),
                "refused_share": float((scores[kind] > 1).mean()),
                "least_score": float(scores[kind].min()),
            }
    return {
        "estimates": ESTIMATES,
        "method": METHOD,
        "distance_limit": float(detector.limit),
        "wanted_kept_share": KEPT_SHARE,
        "held_out": {
            "cells": len(held_out),
            "subjects": len(names),
            "folds": min(FOLDS, len(names)),
            "kept_share": float(kept.mean()),
            "kept_share_by_subject": float(shares.mean()),
            "worst_subject": {
                "subject": str(names[worst]),
                "cells": int(cells[worst]),
                "kept_share": float(shares[worst]),
            },
        },
        "kinds": kinds,
        "not_measured": [what for kind, what in KINDS.items() if kind not in scores],
    }


def white_cell_sources(release: ReleaseInfo, healthy: Path | None, fields: Path | None) -> dict[str, Path]:
    """Return source → folder of the white cells for `healthy_outcomes`: of healthy donors, and those of fields of view.

    The cells of fields are cut out, so only a release of cut-out cells predicts them.
    """
    given = {HEALTHY: healthy, OF_FIELDS: fields if release.takes_cut_outs else None}
    return {source: folder for source, folder in given.items() if folder is not None}


def healthy_outcomes(predictor: Predictor, folder: Path, *, pictures: int = 150) -> dict[str, Any]:
    """Count a release's decisions on white cells of healthy donors, none of which is a blast, or of fields of view.

    For a release of cut-out cells, cells are found in each image and cut out as in `leukoscope field`; for another
    one the images are given as they are. A folder without an image, or with a damaged one in the sample, is an error.

    Args:
        folder: images, or one folder of them for each kind of cell; "Annotations" and the like hold none.
        pictures: at most this many of each kind, evenly chosen.

    Returns:
        kind → pictures, cells, `outcomes` (outcome → cells), and `most_probable` (class → cells): what the network
        alone would have predicted.
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
    except UnusableField:
        return []
    scale = field.scale
    return [cut_out(image, cell, scale.um_per_pixel) for cell in field.cells if cell.whole and scale is not None]


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


def frame_sample(folder: Path, preprocessing: Preprocessing, *, pictures: int = 150) -> np.ndarray:
    """Frame an even sample of at most so many images below a folder for a network: (n, S, S, 3) uint8.

    A folder without an image, or with a damaged one in the sample, is an error.
    """
    frame = preprocessing.frame
    return np.stack([frame(open_image(path)) for path in evenly(np.asarray(_image_files(folder)), pictures)])


def _image_files(folder: Path) -> list[Path]:
    paths = ImageFolder.read(folder).images
    if not paths:
        raise LeukoscopeError(f"{folder}: holds no picture to check the OOD detector with; name another folder")
    return paths


def evenly(rows: np.ndarray | PixelRows, count: int) -> np.ndarray:
    """Take at most `count` of (N, …), evenly spaced."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int))]
