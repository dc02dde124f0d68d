"""The sentences above the table of all models: they follow from their metrics, whatever was measured."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from leukoscope.reports.conclusion import conclusion
from release_fixtures import METRICS


def release(
    share: float | None = None,
    *,
    half: float | None = 0.02,
    earlier: bool = False,
    size_alone: float | None = None,
    labels: tuple[str, ...] = ("ALL", "HEM"),
    data: str = "34 people",
) -> dict[str, Any]:
    """Metrics of a release: how many of further people's cells it recognised, and size alone beside 0.75–0.80."""
    metrics: dict[str, Any] = copy.deepcopy(METRICS) | {"labels": list(labels), "further_subjects": {}}
    metrics["evaluations"] = metrics["evaluations"][:1]
    evaluation = metrics["evaluations"][0]
    evaluation["folds"] = [{}]
    evaluation["split"]["disjoint_by"] = "subject"
    evaluation["intervals"] = {"by_subject": {"auroc_by_subject": {"low": 0.75, "high": 0.8}}}
    evaluation["size_only_baseline"] = None
    if size_alone is not None:
        evaluation["size_only_baseline"] = {"auroc_by_subject": size_alone}
    if share is not None:
        estimate = {"value": share} | ({"low": share - half, "high": share + half} if half else {})
        metrics["further_subjects"] = {
            "data": data,
            "subjects": 34,
            "cells": 211,
            "earlier_weights": earlier,
            "balanced_accuracy_by_subject": estimate,
        }
    return metrics


def without_people() -> dict[str, Any]:
    """Metrics of a release whose data name no people."""
    metrics = release()
    metrics["evaluations"][0]["split"]["disjoint_by"] = "block"
    return metrics


WHOSE = "Of 34 further people’s cells of both classes,"
EARLIER = "Earlier weights are those of an earlier training of the same recipe."


@pytest.mark.parametrize(
    ("releases", "said"),
    [
        ({}, ""),
        ({"a": without_people()},
         "No model here was measured on people that did not train it. How it does on them is not known."),
        ({"a": release(), "b": without_people()},
         "No model here was measured on further people, only in its own test."),
        ({"a": release(0.7)}, f"{WHOSE} a recognised 70 of 100 (68–72)."),
        ({"a": release(0.7, half=None, earlier=True)}, f"{WHOSE} a (earlier weights) recognised 70 of 100. {EARLIER}"),
        ({"a": release(0.7), "b": release(0.8)},
         f"{WHOSE} b recognised most: 80 of 100 (78–82). It is clearly above a."),
        ({"a": release(0.7), "b": release(0.72, earlier=True)},
         f"{WHOSE} b (earlier weights) recognised most: 72 of 100 (70–74). It is not clearly above a. {EARLIER}"),
        ({"a": release(0.7, earlier=True), "b": release(0.72), "c": release(0.5)},
         f"{WHOSE} b recognised most: 72 of 100 (70–74). It is not clearly above a (earlier weights). {EARLIER}"),
        ({"a": release(0.7, half=None), "b": release(0.9)},
         f"{WHOSE} b recognised most: 90 of 100 (88–92). It is not clearly above a."),
        ({"a": release(0.7), "b": release(0.7), "c": release()},
         f"{WHOSE} a recognised 70 of 100 (68–72). b recognised as many. c was not measured on them."),
        ({"a": release(0.7), "b": release(0.5), "c": release(0.6), "d": release(), "e": release()},
         f"{WHOSE} a recognised most: 70 of 100 (68–72). It is clearly above 2 others. 2 were not measured on them."),
        ({"a": release(0.7, labels=("Benign", "Early", "Pre", "Pro"))},
         "Of 34 further people’s cells of all classes, a recognised 70 of 100 (68–72)."),
        ({"a": release(0.7), "b": release(0.8, data="other people")},
         "The models were not checked alike on further people. Their figures cannot be compared."),
        ({"a": release(0.7), "b": release(0.8, labels=("Benign", "Early", "Pre", "Pro"))},
         "The models were not checked alike on further people. Their figures cannot be compared."),
    ],
)  # fmt: skip
def test_what_further_people_show(releases: dict[str, Any], said: str) -> None:
    assert " ".join(conclusion(releases)) == said


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((None, None), ""),
        ((0.7, None), " In cross-validation, a clearly beats cell size alone."),
        ((0.76, None), " In cross-validation, a does not clearly beat cell size alone."),
        ((0.76, 0.7), " In cross-validation, only b clearly beats cell size alone."),
        ((0.9, 0.76), " In cross-validation, none clearly beats cell size alone."),
        ((0.7, 0.7), " In cross-validation, 2 models clearly beat cell size alone."),
        ((0.7, 0.7, 0.9), " In cross-validation, only 2 models clearly beat cell size alone."),
    ],
)
def test_whether_size_alone_is_beaten(sizes: tuple[float | None, ...], said: str) -> None:
    """By the interval of the network's AUROC, 0.75–0.80, not by the figure alone."""
    releases = {name: release(size_alone=size) for name, size in zip("abc", sizes, strict=False)}
    not_measured = "No model here was measured on further people, only in its own test."
    assert " ".join(conclusion(releases)) == f"{not_measured}{said}"
    for metrics in releases.values():
        del metrics["evaluations"][0]["folds"]
    assert said.replace("cross-validation", "their own tests") in " ".join(conclusion(releases))


def test_an_older_check_that_counts_by_cell_is_not_compared_with_one_that_counts_by_person() -> None:
    older = release(0.7)
    del older["further_subjects"]["balanced_accuracy_by_subject"]
    older["further_subjects"] |= {"recall_ALL": {"value": 0.9}, "recall_HEM": {"value": 0.4}}
    assert conclusion({"a": older}) == [f"{WHOSE} a recognised 65 of 100."]
    assert "cannot be compared" in " ".join(conclusion({"a": older, "b": release(0.8)}))


def test_the_longest_conclusion_has_short_sentences() -> None:
    measured = [release(0.7 + n / 100, earlier=True, size_alone=0.7) for n in range(2)]
    releases = {str(n): metrics for n, metrics in enumerate([*measured, release(size_alone=0.9), release()])}
    said = " ".join(conclusion(releases))
    for words in ("earlier weights", "not clearly above", "not measured on them", "only 2"):
        assert words in said
    assert max(len(sentence.split()) for sentence in said.split(". ")) <= 17
