"""Metrics are those worked out by hand; their table has one prediction per cell and survives Parquet unchanged."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leukoscope import LeukoscopeError
from leukoscope.evaluation.bootstrap import point_metrics
from leukoscope.evaluation.metrics import BY_SUBJECT, cell_metric, headline, measure, references_of
from leukoscope.evaluation.predictions import CellPredictions, pooled
from predicted import two_class

LABELS = ("ALL", "HEM")


@pytest.fixture(scope="module")
def ten() -> CellPredictions:
    """Six ALL cells, four found; four HEM cells, three found.

    Confusion (rows: truth): [[4, 2], [1, 3]]. Precision ALL 4/5, HEM 3/5; recall 4/6, 3/4; F1 8/11, 2/3.
    AUROC: 24 ALL–HEM pairs; p(ALL) of the HEM cells is .05 .10 .15 .70, of the ALL cells .90 .80 .75 .60 .40 .30.
    Against .05, .10 and .15 all six win (18); against .70 three win (3): 21/24.
    """
    return two_class(
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1],
        [0.90, 0.80, 0.75, 0.60, 0.40, 0.30, 0.05, 0.10, 0.15, 0.70],
        ["a", "a", "a", "b", "b", "b", "H1", "H1", "H2", ""],
    )


@pytest.fixture(scope="module")
def metrics(ten: CellPredictions) -> dict[str, object]:
    return measure(ten)


def test_metrics_are_those_worked_out_by_hand(metrics: dict[str, object]) -> None:
    assert metrics["cells"] == 10
    assert metrics["confusion_matrix"] == [[4, 2], [1, 3]]
    assert metrics["accuracy"] == pytest.approx(7 / 10)
    assert metrics["balanced_accuracy"] == pytest.approx((4 / 6 + 3 / 4) / 2)
    assert metrics["f1_macro"] == pytest.approx((8 / 11 + 2 / 3) / 2)
    assert metrics["f1_weighted"] == pytest.approx(0.6 * 8 / 11 + 0.4 * 2 / 3)
    assert metrics["auroc"] == pytest.approx(21 / 24)
    assert metrics["per_class"] == {
        "ALL": pytest.approx({"precision": 4 / 5, "recall": 4 / 6, "f1": 8 / 11, "support": 6}),
        "HEM": pytest.approx({"precision": 3 / 5, "recall": 3 / 4, "f1": 2 / 3, "support": 4}),
    }
    assert metrics["subjects"] == {  # the unknown is none
        "a": {"label": "ALL", "cells": 3, "accuracy": 1.0},
        "b": {"label": "ALL", "cells": 3, "accuracy": pytest.approx(1 / 3)},
        "H1": {"label": "HEM", "cells": 2, "accuracy": 1.0},
        "H2": {"label": "HEM", "cells": 1, "accuracy": 1.0},
    }
    assert json.loads(json.dumps(metrics)) == metrics, "plain numbers"


def test_cells_are_counted_in_whole_numbers_where_none_is_right() -> None:
    wrong = measure(two_class([0, 0, 1], [0.1, 0.2, 0.9], ["a", "b", "H1"]))
    supports = [row["support"] for row in wrong["per_class"].values()]
    assert wrong["accuracy"] == 0 and list(map(repr, supports)) == ["2", "1"]


def test_a_subject_with_cells_of_two_classes_has_the_class_of_most_of_them() -> None:
    predictions = two_class([0, 1, 1, 1, 0], [0.9, 0.2, 0.4, 0.3, 0.6], ["b", "b", "b", "a", "a"])
    labels = {subject: one["label"] for subject, one in measure(predictions)["subjects"].items()}
    assert labels == {"a": "ALL", "b": "HEM"}, "of equally many the first class"


# Every subject the same, and cells of equal size


def _uneven(areas: bool = True) -> CellPredictions:
    """200 cells of 12 subjects with 2 to 60 cells each; larger cells get a higher probability of ALL."""
    rng = np.random.default_rng(1)
    cells = [60, 40, 30, 2, 3, 5, 20, 15, 12, 6, 4, 3]
    owner = np.repeat(np.arange(12), cells)
    size = rng.uniform(0.1, 0.5, len(owner)) + 0.05 * (owner % 2 == 0)
    logit = 8 * (size - 0.3) + rng.normal(size=len(owner)) + 0.5 * (owner % 2 == 0)
    predictions = two_class((owner % 2).tolist(), (1 / (1 + np.exp(-logit))).tolist(), [f"s{o}" for o in owner])
    return replace(predictions, areas=size if areas else None)


def test_by_subject_metrics_are_those_of_scikit_learn_with_each_subject_weighing_the_same() -> None:
    from sklearn import metrics as sk

    predictions = _uneven()
    counts = Counter(predictions.subjects)
    weights = [1 / counts[subject] for subject in predictions.subjects]
    truth, said = predictions.references, predictions.predicted
    metrics = measure(predictions)
    expected = {
        "accuracy_by_subject": sk.accuracy_score(truth, said, sample_weight=weights),
        "balanced_accuracy_by_subject": sk.balanced_accuracy_score(truth, said, sample_weight=weights),
        "f1_weighted_by_subject": sk.f1_score(truth, said, average="weighted", sample_weight=weights),
        "f1_macro_by_subject": sk.f1_score(truth, said, average="macro", sample_weight=weights),
        "auroc_by_subject": sk.roc_auc_score(truth == 0, predictions.probabilities[:, 0], sample_weight=weights),
    }
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, abs=1e-12), key
        assert headline(metrics)[key] == metrics[key]
    assert abs(metrics["auroc_by_subject"] - metrics["auroc"]) > 0.01, "the two are told apart by these cells"


@pytest.mark.parametrize("known", [True, False])
def test_auroc_at_equal_size_is_the_pair_weighted_mean_of_the_deciles_each_known_subject_the_same(known: bool) -> None:
    from sklearn.metrics import roc_auc_score

    predictions = _uneven()
    assert predictions.areas is not None
    edges = np.quantile(predictions.areas, np.arange(1, 10) / 10)
    decile = np.digitize(predictions.areas, edges)
    counts = Counter(predictions.subjects)
    weights = np.array([1 / counts[subject] if known else 1.0 for subject in predictions.subjects])
    parts = []
    for k in range(10):
        rows = decile == k
        truth, scores, weight = predictions.references[rows] == 0, predictions.probabilities[rows, 0], weights[rows]
        if 0 < truth.sum() < len(truth):
            auroc = roc_auc_score(truth, scores, sample_weight=weight)
            parts.append((auroc, weight[truth].sum() * weight[~truth].sum()))
    expected = np.average([auroc for auroc, _ in parts], weights=[pairs for _, pairs in parts])
    if not known:
        predictions = replace(predictions, subjects=("", *predictions.subjects[1:]))
    assert measure(predictions)["auroc_equal_size"] == pytest.approx(expected, abs=1e-12)
    assert point_metrics(predictions)["auroc_equal_size"] == pytest.approx(expected, abs=1e-12)


def test_a_shift_between_folds_does_not_change_auroc_at_equal_size() -> None:
    """Two networks that rank their cells alike, one with less probability everywhere, as its class balance makes it."""
    first = _uneven()
    blast = first.probabilities[:, 0] / 4
    second = replace(
        first,
        cell_ids=tuple(f"second-{cell}" for cell in first.cell_ids),
        probabilities=np.stack([blast, 1 - blast], axis=1),
    )
    both = pooled([first, second])
    assert both.folds is not None
    assert both.folds.tolist() == [0] * len(first.cell_ids) + [1] * len(second.cell_ids)
    alone = measure(first)["auroc_equal_size"]
    assert measure(second)["auroc_equal_size"] == pytest.approx(alone)
    assert measure(both)["auroc_equal_size"] == pytest.approx(alone)
    assert point_metrics(both)["auroc_equal_size"] == pytest.approx(alone)
    without = replace(both, folds=None)
    assert measure(without)["auroc_equal_size"] != pytest.approx(alone, abs=0.02)
    order = np.random.default_rng(1).permutation(len(both.cell_ids))
    assert measure(both.take(order))["auroc_equal_size"] == pytest.approx(alone)


def test_what_is_not_known_is_not_measured(ten: CellPredictions) -> None:
    metrics = measure(ten)
    assert not {*BY_SUBJECT, "auroc_equal_size"} & metrics.keys(), "one subject is unnamed, no area is known"
    assert measure(_uneven(areas=False)).keys() - {"subjects"} >= {*BY_SUBJECT}


def test_three_classes_by_hand() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.5, 0.2], [0.1, 0.2, 0.7]])
    predictions = CellPredictions(
        tuple("wxyz"), ("",) * 4, np.array([0, 1, 2, 2]), probabilities, ("Early", "Pre", "Pro")
    )
    metrics = measure(predictions)
    assert metrics["confusion_matrix"] == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert metrics["balanced_accuracy"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert metrics["f1_macro"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert metrics["f1_weighted"] == pytest.approx((1 + 2 / 3 + 2 * 2 / 3) / 4)
    # One against the rest: Early 1; Pre wins against all three; Pro: .7 and .2 both beat .1 and .1.
    assert metrics["auroc"] == pytest.approx(1.0)


def test_an_absent_class_leaves_auroc_unknown_and_does_not_lower_the_averages() -> None:
    metrics = measure(two_class([0, 0, 0, 0], [0.9, 0.8, 0.7, 0.2]))
    assert metrics["auroc"] is None
    assert metrics["balanced_accuracy"] == pytest.approx(3 / 4)
    assert metrics["f1_macro"] == metrics["f1_weighted"] == pytest.approx(6 / 7)
    assert metrics["per_class"]["HEM"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}


# The table


def test_a_cell_predicted_twice_is_refused() -> None:
    with pytest.raises(LeukoscopeError) as refused:
        CellPredictions(("c1", "c2", "c1"), ("",) * 3, np.zeros(3, int), np.ones((3, 2)) / 2, LABELS)
    assert str(refused.value) == "predictions: cell c1 appears more than once; give one prediction per cell"


@pytest.mark.parametrize("short", ["subjects", "references", "probabilities"])
def test_columns_of_unequal_length_are_refused(short: str) -> None:
    columns: dict[str, Any] = {
        "subjects": ("",) * 3,
        "references": np.zeros(3, int),
        "probabilities": np.ones((3, 2)) / 2,
    }
    columns[short] = columns[short][:2]
    with pytest.raises(LeukoscopeError, match="differ in length"):
        CellPredictions(("a", "b", "c"), **columns, label_names=LABELS)


def test_predictions_survive_parquet(ten: CellPredictions, tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    ten.save(path)
    loaded = CellPredictions.load(path)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name], "nothing is left beside it"
    assert (loaded.cell_ids, loaded.subjects, loaded.label_names) == (ten.cell_ids, ten.subjects, ten.label_names)
    assert loaded.references.tolist() == ten.references.tolist()
    assert np.allclose(loaded.probabilities, ten.probabilities, atol=1e-7)
    assert measure(loaded)["confusion_matrix"] == [[4, 2], [1, 3]]
    assert loaded.areas is None and loaded.folds is None
    first = _uneven()
    both = pooled([first, replace(first, cell_ids=tuple(f"second-{cell}" for cell in first.cell_ids))])
    both.save(path)
    kept = CellPredictions.load(path)
    assert kept.areas == pytest.approx(both.areas, abs=1e-6)
    assert kept.folds is not None and kept.folds.tolist() == np.repeat([0, 1], len(first.cell_ids)).tolist()


def test_a_parquet_row_is_readable_without_leukoscope_and_odd_names_keep_their_order(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    names, shares = ("p_odd", "Ünsure", "a"), np.array([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    CellPredictions(("1", "2"), ("", ""), np.array([2, 0]), shares, names).save(tmp_path / "p.parquet")
    rows = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert list(rows[0]) == ["cell_id", "subject", "label", "p_p_odd", "p_Ünsure", "p_a"]
    assert rows[1] == {
        **{"cell_id": "2", "subject": "", "label": "p_odd"},
        **{"p_p_odd": 0.5, "p_Ünsure": 0.25, "p_a": 0.25},
    }
    loaded = CellPredictions.load(tmp_path / "p.parquet")
    assert (loaded.label_names, loaded.references.tolist()) == (names, [2, 0])


def test_pooling_joins_folds_in_order_and_refuses_overlap() -> None:
    first, second = two_class([0, 1], [0.9, 0.2], ["a", "b"]), two_class([1], [0.6], ["c"], start=2)
    both = pooled([first, second])
    assert both.cell_ids == ("cell-0", "cell-1", "cell-2")
    assert both.subjects == ("a", "b", "c")
    assert both.references.tolist() == [0, 1, 1]
    assert both.probabilities[:, 0].tolist() == [0.9, 0.2, 0.6]
    with pytest.raises(LeukoscopeError, match="cell cell-0 appears more than once"):
        pooled([first, first])


# 🤗 evaluate


def test_the_metric_combines_with_others_and_takes_batches(ten: CellPredictions, metrics: dict[str, object]) -> None:
    import evaluate

    metric = evaluate.combine({"cells": cell_metric(LABELS)}, force_prefix=True)
    references = references_of(ten)
    for part in (slice(0, 4), slice(4, 10)):
        metric.add_batch(predictions=ten.probabilities[part], references=references[part])
    batched = metric.compute()
    assert batched["cells_confusion_matrix"] == metrics["confusion_matrix"]
    assert batched["cells_auroc"] == pytest.approx(metrics["auroc"])


def test_the_metric_gives_the_figures_of_measure() -> None:
    cells = _uneven(areas=False)
    metric = cell_metric(cells.label_names)
    references = references_of(cells)
    half = len(references) // 2
    for part in (slice(0, half), slice(half, None)):
        metric.add_batch(predictions=cells.probabilities[part], references=references[part])
    figures = metric.compute()
    assert figures == measure(cells)
    assert figures["accuracy_by_subject"] is not None


def test_the_metric_writes_nothing_so_that_no_cache_can_stop_it(
    ten: CellPredictions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.chdir(tmp_path)
    metric = cell_metric(LABELS)
    metric.add_batch(predictions=ten.probabilities, references=references_of(ten))
    assert metric.compute()["cells"] == len(ten.cell_ids)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
