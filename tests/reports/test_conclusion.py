"""The sentences about all models: they follow from their metrics, whatever was measured."""

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
        for label, distance in zip(labels, (0.1, -0.1, 0, 0), strict=False):
            recall = {"value": share + distance, "low": share + distance, "high": share + distance}
            metrics["further_subjects"][f"recall_{label}_by_subject"] = recall
    return metrics


def without_people() -> dict[str, Any]:
    """Metrics of a release whose data name no people."""
    metrics = release()
    metrics["evaluations"][0]["split"]["disjoint_by"] = "block"
    return metrics


WHOSE = "Of 34 further people’s cells,"
BEST = f"{WHOSE} the best model recognised"
BEST_EARLIER = BEST.replace("the best model", "the best model (earlier weights)")
EARLIER = "Earlier weights: {} measured on them after an earlier training, not with the weights that answer here."


def shares(blasts: int, normal: int) -> str:
    """How a claim ends."""
    return f"{blasts} of 100 blasts and {normal} of 100 normal cells; guessing gives 50."


@pytest.mark.parametrize(
    ("releases", "said"),
    [
        ({}, []),
        ({"a": without_people()},
         ["No model here was measured on people that did not train it.", "How it does on them is not known."]),
        ({"a": release(), "b": without_people()},
         ["No model here was measured on further people, only in its own test."]),
        ({"a": release(0.7)}, [f"{WHOSE} a recognised {shares(80, 60)}"]),
        ({"a": release(0.7, half=None, earlier=True)},
         [f"{WHOSE} a (earlier weights) recognised {shares(80, 60)}", EARLIER.format("a was")]),
        ({"a": release(0.7), "b": release(0.8)},
         [f"{BEST} {shares(90, 70)}", "b is the best one, clearly better than a."]),
        ({"a": release(0.7), "b": release(0.72, earlier=True)},
         [f"{BEST_EARLIER} {shares(82, 62)}",
          "b is the best one, but not clearly better than a.",
          EARLIER.format("b was")]),
        ({"a": release(0.7, earlier=True), "b": release(0.72, earlier=True), "c": release(0.5)},
         [f"{BEST_EARLIER} {shares(82, 62)}",
          "b is the best one, but not clearly better than a.",
          EARLIER.format("a and b were")]),
        ({"a": release(0.7, half=None), "b": release(0.9)},
         [f"{BEST} {shares(100, 80)}", "b is the best one, but not clearly better than a."]),
        ({"a": release(0.7), "b": release(0.7), "c": release()},
         [f"{BEST} {shares(80, 60)}", "a is the best one; b recognised as many."]),
        ({"a": release(0.7), "b": release(0.5), "c": release(0.6), "d": release(), "e": release()},
         [f"{BEST} {shares(80, 60)}", "a is the best one, clearly better than c and b."]),
        ({"a": release(0.7, labels=("Benign", "Early", "Pre", "Pro"))},
         [f"{WHOSE} a recognised 80 of 100 Benign cells, 60 of 100 Early cells, 70 of 100 Pre cells and "
          "70 of 100 Pro cells; guessing gives 25."]),
        ({"a": release(0.7), "b": release(0.8, data="other people")},
         ["The models were not checked alike on further people.", "Their figures cannot be compared."]),
        ({"a": release(0.7), "b": release(0.8, labels=("Benign", "Early", "Pre", "Pro"))},
         ["The models were not checked alike on further people.", "Their figures cannot be compared."]),
    ],
)  # fmt: skip
def test_what_further_people_show(releases: dict[str, Any], said: list[str]) -> None:
    assert conclusion(releases) == said


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((None, None), ""),
        ((0.7, None), "a separates {}"),
        ((0.76, None), "a does not separate {}"),
        ((0.76, 0.7), "b separates {}; a does not"),
        ((0.9, 0.76), "a and b do not separate {}"),
        ((0.7, 0.7), "a and b separate {}"),
        ((0.7, 0.7, 0.9), "a and b separate {}; c does not"),
        ((0.9, 0.7, 0.9), "b separates {}; a and c do not"),
    ],
)
def test_whether_size_alone_is_beaten(sizes: tuple[float | None, ...], said: str) -> None:
    """By the interval of the network's AUROC, 0.75–0.80, not by the figure alone."""
    releases = {name: release(size_alone=size) for name, size in zip("abc", sizes, strict=False)}
    said = said.format("the classes clearly better than cell size alone")
    _, *lines = conclusion(releases)
    assert lines == ([f"In cross-validation, {said}."] if said else [])
    for metrics in releases.values():
        del metrics["evaluations"][0]["folds"]
    _, *lines = conclusion(releases)
    assert lines == ([f"In their own tests, {said}."] if said else [])


def test_an_older_check_that_counts_by_cell_is_not_compared_with_one_that_counts_by_person() -> None:
    older = release(0.7)
    del older["further_subjects"]["balanced_accuracy_by_subject"]
    older["further_subjects"] |= {
        "recall_ALL": {"value": 0.9, "low": 0.8, "high": 1.0}, "recall_HEM": {"value": 0.4, "low": 0.3, "high": 0.5},
    }  # fmt: skip
    for label in ("ALL", "HEM"):
        del older["further_subjects"][f"recall_{label}_by_subject"]
    said = f"{WHOSE} a recognised 90 of 100 blasts and 40 of 100 normal cells; guessing gives 50."
    assert conclusion({"a": older}) == [said]
    assert "cannot be compared" in " ".join(conclusion({"a": older, "b": release(0.8)}))


def test_how_far_the_further_people_are_unseen_stands_below_the_claim_once_for_each_check() -> None:
    """That the default network was chosen with them in view was folded away below the table."""
    chosen = "34 further subjects: no weights were trained on them; the default network was chosen with them in view."
    releases = {name: release(share) for name, share in (("a", 0.7), ("b", 0.72), ("c", None))}
    for name in "ab":
        releases[name]["further_subjects"]["estimates"] = chosen
    assert conclusion(releases)[1] == chosen.replace("subjects", "people")
    assert " ".join(conclusion(releases)).count("in view") == 1
    releases["b"]["further_subjects"] |= {"estimates": "30 other subjects.", "subjects": 30}
    assert conclusion(releases)[2:] == [chosen.replace("subjects", "people"), "30 other people."], "not checked alike"


def test_the_longest_conclusion_has_four_lines_of_short_sentences_below_its_claim() -> None:
    """Four facts in one paragraph, without the names of the models, were not understood at the first reading."""
    measured = [release(0.7 + n / 100, earlier=True, size_alone=0.7) for n in range(2)]
    releases = {str(n): metrics for n, metrics in enumerate([*measured, release(size_alone=0.9), release()])}
    measured[0]["further_subjects"]["estimates"] = "34 further subjects: no weights were trained on them."
    claim, *lines = conclusion(releases)
    assert len(lines) == 4 and "the best model" in claim and "not clearly better" in lines[1]
    said = " ".join(lines)
    assert "Earlier weights" in said and "2 does not" in said
    assert max(len(sentence.split()) for sentence in said.split(". ")) <= 24
