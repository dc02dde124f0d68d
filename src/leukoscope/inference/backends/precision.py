"""Whether a release may be computed in bfloat16: only where that changes no label and no outcome.

Processors with bfloat16 units compute several times faster in it, and every probability moves a little. Measured once
on all cells at hand and kept in metrics.json, so that a user gets the speed only where it was measured to be harmless.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from leukoscope.files import cache_root
from leukoscope.inference.backends import kept_graph
from leukoscope.inference.backends.base import BF16, F32, OPENVINO, NoGraph
from leukoscope.inference.backends.graph import ExportedBackend, computes_bf16
from leukoscope.inference.prediction import Thresholds, softmax
from leukoscope.models.release_files import folder_name, read_release

ALLOWED_MOVE = 0.02
"""Of a probability; beyond it, it is too much even where no outcome changes."""
ENOUGH = 1000
"""Cells after which a change that is found decides; that there is none takes all cells to say."""


def precision_block(
    folder: Path,
    pixels: np.ndarray,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The "precision" block of metrics.json: what bfloat16 changes of a release's predictions.

    Args:
        folder: the release, its thresholds in place.
        pixels: (N, S, S, 3) uint8, all cells at hand, framed by its preprocessing; may be memory-mapped.
        progress: called with (done, total) after each batch.

    Returns:
        `default`, "bf16" or "f32"; on how many `cells` which predictions changed (all of them, unless a change among
        the first `ENOUGH` decides); or, where this processor has no bfloat16 or OpenVINO no graph of the release, why
        that is `not_measured`.
    """
    if not computes_bf16():
        return {"default": F32, "not_measured": "the processor that assessed this release has no bfloat16"}
    release = read_release(folder)
    try:
        graph = kept_graph(release, OPENVINO)
    except NoGraph as reason:
        # Published with the release, whose folder has another name on other machines.
        why = str(reason).replace(str(folder), folder_name(folder)).replace(str(cache_root()), "the cache")
        return {"default": F32, "not_measured": why}
    exact, lower = ExportedBackend(graph, release), ExportedBackend(graph, release, precision=BF16)
    thresholds = Thresholds.from_metrics(release.metrics)

    def decided(probabilities: np.ndarray) -> dict[str, np.ndarray]:
        """Everything decided from the probabilities of N cells: what → (N,). The OOD detector uses no network."""
        rows = [dict(zip(release.labels, row.tolist(), strict=True)) for row in probabilities]
        return {
            "label": probabilities.argmax(axis=1),
            "outcome": np.asarray([thresholds.decide(row).outcome for row in rows]),
            **thresholds.positives(probabilities, release.labels),
        }

    changed: dict[str, int] = {}
    largest, done = 0.0, 0
    for first in range(0, len(pixels), batch_size):
        batch = np.asarray(pixels[first : first + batch_size])
        in_f32, in_bf16 = softmax(exact(batch).logits), softmax(lower(batch).logits)
        largest = max(largest, float(np.abs(in_f32 - in_bf16).max()))
        others = decided(in_bf16)
        for what, values in decided(in_f32).items():
            changed[what] = changed.get(what, 0) + int((values != others[what]).sum())
        done += len(batch)
        if progress:
            progress(done, len(pixels))
        if done >= ENOUGH and (any(changed.values()) or largest >= ALLOWED_MOVE):
            break
    harmless = not any(changed.values()) and largest < ALLOWED_MOVE
    return {
        "default": BF16 if harmless else F32,
        "backend": OPENVINO,
        "compared": "bfloat16 with float32",
        "cells": done,
        "changed": changed,
        "largest_move": largest,
        "allowed_move": ALLOWED_MOVE,
    }
