"""Heads that were not kept are found again from what they predicted, and the block decides as the release does."""

from __future__ import annotations

import numpy as np
import pytest

from leukoscope.data.changes import PICTURE_CHANGES
from leukoscope.evaluation.calibration import OUT_OF_FOLD
from leukoscope.evaluation.predictions import CellPredictions
from research.robustness_baseline import block_of, solve_heads


def test_the_heads_of_folds_are_found_again_from_their_logits() -> None:
    rng = np.random.default_rng(0)
    # Features of a network: few directions hold most of the variance.
    features = rng.normal(size=(400, 60)) @ np.diag(0.8 ** np.arange(60)) @ rng.normal(size=(60, 60)) + 3
    folds = np.arange(400) % 2
    prior = rng.normal(size=60)
    true = np.stack([np.append(prior + 0.1 * rng.normal(size=60), bias) for bias in (0.3, -2.0)])
    logits = np.einsum("nf,nf->n", features, true[folds, :-1]) + true[folds, -1]
    heads, exactness = solve_heads(features, logits, folds, prior)
    # A change moves features in directions in which cells differ; in others, no prediction tells the head's weights.
    changed = features[:100] + features[100:200] - features[200:300]
    for fold, head in enumerate(heads):
        wanted = changed @ true[fold, :-1] + true[fold, -1]
        assert changed @ head[:-1] + head[-1] == pytest.approx(wanted, abs=0.05)
    assert exactness["rms_of_logits"] < 1e-2
    assert (exactness["cells"], exactness["checked_on"]) == (400, 68)


def test_logits_that_no_head_gives_are_seen_in_the_check() -> None:
    rng = np.random.default_rng(1)
    features, logits = rng.normal(size=(90, 40)), rng.normal(size=90)
    _, exactness = solve_heads(features, logits, np.zeros(90, int), np.zeros(40))
    assert exactness["rms_of_logits"] > 0.5


def test_a_table_becomes_the_block_decided_by_temperature_threshold_and_detector() -> None:
    ids = ("a", "b", "c", "d")
    stored = CellPredictions(
        ids,
        ("1", "2", "H1", "H2"),
        np.array([0, 0, 1, 1]),
        np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]]),
        ("ALL", "HEM"),
        folds=np.array([0, 1, 0, 1]),
    )
    unchanged = [np.log(p / q) for p, q in stored.probabilities]
    columns: dict[str, list[object]] = {"cell_id": [], "change": [], "logit": [], "ood_score": []}
    for cell, logit in zip(ids, unchanged, strict=True):
        for name in ("", *PICTURE_CHANGES):
            moved = {"size_up_10": -2.5, "hue_up_4": -0.7}.get(name, 0.0)
            columns["cell_id"].append(cell)
            columns["change"].append(name)
            columns["logit"].append(logit + moved)
            columns["ood_score"].append(1.2 if (cell, name) == ("a", "gaussian_blur_2") else 0.4)
    metrics = {"calibration": {"temperature": 2.0}, "decisions": {"abstention": {"default": {"threshold": 0.6}}}}
    block = block_of(columns, stored, metrics, {})
    assert block["estimates"] == OUT_OF_FOLD
    assert (block["sample"]["cells"], block["sample"]["drawn_from"]) == (4, 4)
    changes = block["changes"]
    assert changes["gaussian_blur_2"]["refused"] == 0.25
    assert changes["size_up_10"]["class_changed"] == 0.5
    assert changes["size_up_10"]["directions"] == [{"from": "ALL", "to": "HEM", "share": 0.5}]
    # At temperature 2, .8 becomes .667, and with its logit .7 lower .587: below the threshold.
    assert changes["hue_up_4"]["abstained"] == 0.25
    assert changes["jpeg_compression_90"]["changed"] == 0
