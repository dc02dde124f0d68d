"""Measure what bfloat16 and int8 change of a release's predictions, and decide which of them it offers.

The result is the block "precision" of metrics.json, which `open_backend` reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from leukoscope.data.pixel_cache import FramedCells, PixelRows
from leukoscope.evaluation.bootstrap import paired_difference
from leukoscope.evaluation.calibration import OUT_OF_FOLD
from leukoscope.evaluation.ood_metrics import evenly
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.files import cache_root
from leukoscope.inference.backends import BF16, F32, INT8, OPENVINO, NoGraph
from leukoscope.inference.export import kept_graph
from leukoscope.inference.graph import ExportedBackend, computes, convolution_ranges
from leukoscope.inference.prediction import Thresholds, softmax
from leukoscope.models.release import ReleaseInfo, folder_name, read_release
from leukoscope.progress import track

ALLOWED_AUROC, ALLOWED_OUTCOMES = 0.003, 0.005
"""On unseen subjects: where the interval of the difference in AUROC lies, and the share of outcomes that change."""
COMPARED_CELLS, SHIFT_CELLS, RANGE_CELLS = 1000, 512, 128
"""Cells on which a release's precisions are compared, and those from which the logit shift of a fold's network and the
ranges of int8 are measured."""
WORTHWHILE, MOST_LABELS = 1.25, 0.05
"""A lower precision is offered where it is so many times as fast, and changes at most this share of the labels."""
BATCH = 8


def precision_block(
    folder: Path, pixels: np.ndarray | PixelRows, unseen: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Make the "precision" block of metrics.json: what bfloat16 and int8 change of a release's predictions.

    One of them is the default only where it loses nothing on unseen subjects (`loses_nothing`).

    Args:
        folder: the release, its thresholds in place.
        pixels: (N, S, S, 3) uint8, cells framed by its preprocessing, of which at most `COMPARED_CELLS` are taken; may
            be memory-mapped.
        unseen: "bf16" or "int8" → what `precisions_on_unseen` measured of the release's fold networks.

    Returns:
        `default`, "bf16", "int8" or "f32"; `fast`, those that are worth offering, the fastest first; and of each that
        this processor computes: `logit_shift`, for int8 `ranges` (see `convolution_ranges`), `speed` (how many times as
        fast as float32 it was here), on how many `cells` which predictions `changed`, and `unseen`. Where this
        processor computes neither, or OpenVINO has no fitting graph of the release, why that is `not_measured`.
    """
    release = read_release(folder)
    try:
        backends, logits, seconds = _in_each_precision(release, evenly(pixels, COMPARED_CELLS))
    except NoGraph as reason:
        # Published with the release, whose folder has another name on other machines.
        why = str(reason).replace(str(folder), folder_name(folder)).replace(str(cache_root()), "the cache")
        return {"default": F32, "not_measured": why}
    if len(backends) == 1:
        return {"default": F32, "not_measured": "the processor that assessed this release has no bfloat16 and no int8"}
    thresholds = Thresholds.from_metrics(release.metrics)
    exactly = softmax(logits.pop(F32))
    block: dict[str, Any] = {"default": F32, "backend": OPENVINO}
    for name, lower in logits.items():
        probabilities, ranges = softmax(lower), backends[name].ranges
        block[name] = {
            "logit_shift": backends[name].logit_shift.tolist(),
            **({"ranges": list(ranges)} if ranges else {}),
            "speed": seconds[F32] / seconds[name],
            "cells": len(exactly),
            "changed": _changes(thresholds, release.labels, exactly, probabilities),
            "largest_move": float(np.abs(exactly - probabilities).max()),
            **({"unseen": dict(unseen[name])} if unseen and name in unseen else {}),
        }
    block |= offered_precisions(block)
    if INT8 not in block["fast"]:
        block.get(INT8, {}).pop("ranges", None)
    return block


def offered_precisions(block: Mapping[str, Any]) -> dict[str, Any]:
    """Derive `default` and `fast` (the fastest first) from the other entries of a "precision" block."""
    measured = {name: block[name] for name in (BF16, INT8) if name in block}
    fast = [
        name
        for name, of in measured.items()
        if of["speed"] >= WORTHWHILE and of["changed"]["label"] <= MOST_LABELS * of["cells"]
    ]
    fast.sort(key=lambda name: -float(measured[name]["speed"]))
    harmless = (name for name in fast if "unseen" in measured[name] and loses_nothing(measured[name]["unseen"]))
    return {"default": next(harmless, F32), "fast": fast}


def precisions_on_unseen(
    folds: Sequence[tuple[Path, CellPredictions]], cells: FramedCells, metrics: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Measure what bfloat16 and int8 change for unseen subjects, from each fold's network on its test cells.

    Args:
        folds, cells: as for `assess.tta_gain`; the logit shift and ranges of each network are measured on cells that it
            is not tested on.
        metrics: the release's metrics.json, whose temperature and thresholds decide.

    Returns:
        "bf16" and "int8", as far as this processor computes them → disjoint_by ("subject" or "block"), cells, `changed`
        (what → how many), largest_move of a probability, map_correlation (median over cells, of the Grad-CAM maps of
        the predicted class), and `difference`: less float32, by `paired_difference`.

    Raises:
        NoGraph: see `kept_graph` and `ExportedBackend`.
    """
    thresholds, temperature = Thresholds.from_metrics(metrics), metrics["calibration"]["temperature"]
    every = np.arange(len(cells.pixels))
    predicted: dict[str, list[CellPredictions]] = {}
    correlations: dict[str, list[float]] = {}
    for number, (folder, fold) in enumerate(folds, start=1):
        release, tested = read_release(folder), cells.rows(fold.cell_ids)
        others = evenly(np.setdiff1d(every, tested), SHIFT_CELLS)
        backends = _in_each_precision(release, cells.pixels[others])[0]
        parts: dict[str, list[np.ndarray]] = {name: [] for name in backends}
        doing = f"predicting unseen subjects in {', '.join(backends)}, fold {number} of {len(folds)}"
        for first in track(range(0, len(tested), BATCH), doing):
            pixels = np.asarray(cells.pixels[tested[first : first + BATCH]])
            # Maps of some cells are enough.
            explain = first % (BATCH * 8) == 0
            outputs = {name: backend(pixels, explain=explain) for name, backend in backends.items()}
            for name, output in outputs.items():
                parts[name].append(softmax(output.logits / temperature))
            label = outputs[F32].logits.argmax(axis=1)
            maps = {
                name: np.maximum(output.maps[np.arange(len(label)), label], 0).reshape(len(label), -1)
                for name, output in outputs.items()
                if output.maps is not None
            }
            for name in maps.keys() - {F32}:
                pairs = zip(maps[F32], maps[name], strict=True)
                correlations.setdefault(name, []).extend(
                    np.corrcoef(a, b)[0, 1] for a, b in pairs if a.std() and b.std()
                )
        for name, part in parts.items():
            predicted.setdefault(name, []).append(replace(fold, probabilities=np.concatenate(part)))
    exactly = pooled(predicted.pop(F32))
    found = {}
    for name, lowered in ((name, pooled(parts)) for name, parts in predicted.items()):
        found[name] = {
            "estimates": OUT_OF_FOLD,
            "disjoint_by": cells.data.info.group,
            "cells": len(exactly.cell_ids),
            "changed": _changes(thresholds, exactly.label_names, exactly.probabilities, lowered.probabilities),
            "largest_move": float(np.abs(exactly.probabilities - lowered.probabilities).max()),
            "map_correlation": float(np.median(correlations[name])) if correlations.get(name) else None,
            "difference": paired_difference(lowered, exactly),
        }
    return found


def _in_each_precision(
    release: ReleaseInfo, pixels: np.ndarray
) -> tuple[dict[str, ExportedBackend], dict[str, np.ndarray], dict[str, float]]:
    """Compute a release's graph in float32 and each lower precision of this processor, fitted to (N, S, S, 3) cells.

    Rounding moves every channel's mean by an amount that hardly depends on the picture, and the last layer turns that
    into a shift of the logits. Added again, it leaves only what differs from picture to picture ("bias correction",
    Nagel et al. 2019, arXiv:1906.04721). `NoGraph` is raised as by `kept_graph` and `ExportedBackend`.

    Returns:
        precision → backend; → (N, K) logits of these cells; → seconds per cell, the median of the batches.
    """
    folder = kept_graph(release, OPENVINO)
    backends = {F32: ExportedBackend(folder, release)}
    for precision in filter(computes, (BF16, INT8)):
        ranges = convolution_ranges(folder, evenly(pixels, RANGE_CELLS)) if precision == INT8 else ()
        backends[precision] = ExportedBackend(folder, release, precision=precision, ranges=ranges)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in backends}
    seconds: dict[str, list[float]] = {name: [] for name in backends}
    for first in track(range(0, len(pixels), BATCH), f"computing in {', '.join(backends)}"):
        batch = pixels[first : first + BATCH]
        for name, backend in backends.items():
            started = perf_counter()
            parts[name].append(backend(batch).logits)
            seconds[name].append((perf_counter() - started) / len(batch))
    logits = {name: np.concatenate(part) for name, part in parts.items()}
    for name, backend in backends.items():
        backend.logit_shift = (logits[F32] - logits[name]).mean(axis=0)
        logits[name] = logits[name] + backend.logit_shift
    return backends, logits, {name: float(np.median(each)) for name, each in seconds.items()}


def _changes(thresholds: Thresholds, labels: Sequence[str], a: np.ndarray, b: np.ndarray) -> dict[str, int]:
    """Count for how many cells what is decided from their (N, K) probabilities differs: what → cells."""

    def decided(probabilities: np.ndarray) -> dict[str, np.ndarray]:
        rows = [dict(zip(labels, row.tolist(), strict=True)) for row in probabilities]
        return {
            "label": probabilities.argmax(axis=1),
            "outcome": np.asarray([thresholds.decide(row).outcome for row in rows]),
            **thresholds.positives(probabilities, tuple(labels)),
        }

    others = decided(b)
    return {what: int((values != others[what]).sum()) for what, values in decided(a).items()}


def loses_nothing(unseen: Mapping[str, Any]) -> bool:
    """Return whether AUROC by subject differs little and few outcomes change; False where subjects are unknown."""
    ranking = unseen["difference"].get("auroc_by_subject") if unseen["disjoint_by"] == "subject" else None
    outcomes = unseen["changed"]["outcome"] / unseen["cells"]
    within = ranking and ranking["low"] >= -ALLOWED_AUROC and ranking["high"] <= ALLOWED_AUROC
    return bool(within and outcomes <= ALLOWED_OUTCOMES)
