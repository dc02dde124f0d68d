"""A decision in words: as firm as the numbers behind it, and without a class where none is decided on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leukoscope.inference.prediction import Checks, Decision, Reason, Thresholds
from leukoscope.reports.text import (
    DecisionText,
    agreement_text,
    brief_class_text,
    brief_reason,
    class_words,
    decision_text,
    digits_of_limit,
    foreign_text,
    map_text,
    meanings_text,
    model_text,
    percent,
    percentages,
    question,
    recall_text,
    robustness_text,
    trust_text,
    warnings,
    weak_map_text,
    worst_change_text,
)
from release_fixtures import ROBUSTNESS

ROOT = Path(__file__).parents[2]
SUBJECTS = {
    "1": {"label": "ALL", "accuracy": 0.9}, "2": {"label": "ALL", "accuracy": 1.0},
    "H1": {"label": "HEM", "accuracy": 0.8},
}  # fmt: skip
METRICS: dict[str, Any] = {
    "labels": ["ALL", "HEM"],
    "data": {"title": "C-NMC 2019", "unit": "subject", "licence": "CC BY 3.0"},
    "training": {"subjects": ["1", "2"]},
    "evaluations": [{"split": {"disjoint_by": "subject"}, "metrics": {"subjects": SUBJECTS}}],
    "ood": {"held_out": {"kept_share_by_subject": 0.978}},
}  # fmt: skip

DECIDED = Thresholds(abstain_below=0.7)
CALIBRATED: dict[str, Any] = {"calibration": {"temperature": 1.2}}


def text_of(p_all: float, **checks: object) -> DecisionText:
    """The text for a cell with this probability of ALL, by a release with the thresholds above."""
    shares = {"ALL": p_all, "HEM": 1 - p_all}
    decision = DECIDED.decide(shares, Checks(**checks))  # type: ignore[arg-type]
    said = decision_text(decision, shares, METRICS)
    return replace(said, headline=said.headline.replace("\u00a0", " "), because=said.because.replace("\u00a0", " "))


@pytest.mark.parametrize(
    ("probability", "checks", "headline", "because"),
    [
        (
            0.40, {}, "Not sure: HEM 60 %, ALL 40 %.",
            "Its most probable class has 60 %; the model gives a class from 70 %.",
        ),
        (
            0.99, {"disagreement": 0.375}, "Not sure: ALL 99 %, HEM 1 %.",
            "38 % of its turned and mirrored views get another class; at most 25 % may.",
        ),
        (
            0.99, {"ood_score": 3.14, "ood_group": "texture"}, "No class: unlike the cells this model knows.",
            "Its texture is unlike that of the training cells (OOD score 3.1, limit 1).",
        ),
        (
            0.99, {"ood_score": 0.6, "field_share": 0.2}, "No class: unlike the cells this model knows.",
            "Only 20 % of the smear's cells are like the training cells; 50 % are needed.",
        ),
    ],
)  # fmt: skip
def test_without_a_class_the_reason_is_told_and_no_class_is_named(
    probability: float, checks: dict[str, object], headline: str, because: str
) -> None:
    text = text_of(probability, **checks)
    assert (text.headline, text.because, text.has_class) == (headline, because, False)
    assert "leukaemic" not in text.headline + text.because


def test_a_smear_is_told_what_the_model_reads() -> None:
    text = text_of(0.99, ood_score=36.0, field_of_view=True)
    assert text.short == "No cell cut out on black" and text.headline == "No class: no cell cut out on black."
    assert text.because.startswith(
        "The picture is no single cell cut out on black, which is what this model was trained on"
    )


def test_evidence_off_the_cell_is_a_caution_beside_a_class_which_stays() -> None:
    wary, shares = Thresholds(least_on_cell=0.25), {"ALL": 0.95, "HEM": 0.05}
    text = decision_text(wary.decide(shares, Checks(ood_score=0.5, on_cell=0.1)), shares, METRICS)
    assert text.headline.startswith("The model predicts ALL") and text.has_class
    assert text.because.endswith(
        "10\u00a0% of its map lies on the cell: less than for 95 of 100 measured cells (limit 25\u00a0%)."
    )


def test_evidence_weaker_than_another_class_s_is_said() -> None:
    heatmaps = {"ALL": np.full((2, 2), 1.0), "HEM": np.full((2, 2), 4.0)}
    assert weak_map_text(heatmaps, "ALL") == "Little evidence: it amounts to 25\u00a0% of what speaks for HEM."
    assert weak_map_text(heatmaps, "HEM") == ""
    for label in heatmaps:
        assert weak_map_text(heatmaps, label, weak=4.1).startswith("Little evidence for any class")
    assert weak_map_text(heatmaps, "HEM", weak=3.9) == ""


@pytest.mark.parametrize(
    ("probability", "short", "headline"),
    [
        (0.97, "Looks like a leukaemic blast", "The model predicts ALL (leukaemic blast): 97 %."),
        (0.75, "Probably a leukaemic blast", "The model leans towards ALL (leukaemic blast): 75 %."),
        # Beside the limit of a release, .637, a class is a class.
        (0.701, "Probably a leukaemic blast", "The model leans towards ALL (leukaemic blast): 70 %."),
        (0.699, "Not sure", "Not sure: ALL 69.9 %, HEM 30.1 %."),
    ],
)
def test_all_words_follow_from_the_one_decision(probability: float, short: str, headline: str) -> None:
    text = text_of(probability, ood_score=0.5)
    assert (text.short, text.headline) == (short, headline)
    assert text.has_class == (probability >= 0.7) == ("Not sure" not in text.headline)


@pytest.mark.parametrize(
    ("limit", "share", "shown", "shown_limit"),
    [
        (0.717784, 0.7172, "71.7 %", "72 %"),
        (0.717784, 0.66, "66 %", "72 %"),
        (0.717784, 0.7177, "71.77 %", "72 %"),
        (0.823087, 0.822, "82 %", "82.3 %"),
    ],
)
def test_the_percentage_of_an_unsure_cell_lies_below_the_limit(
    limit: float, share: float, shown: str, shown_limit: str
) -> None:
    """A cell that was not sure had 72 % where a class was given from 72 %."""
    probabilities = {"ALL": share, "HEM": 1 - share}
    decision = Thresholds(abstain_below=limit).decide(probabilities)
    assert percentages(probabilities, decision)["ALL"].replace("\u00a0", " ") == shown
    assert percent(limit, digits_of_limit(limit)).replace("\u00a0", " ") == shown_limit


def test_the_class_names_an_unknown_label_plainly() -> None:
    shares = {"basophil": 0.95, "other": 0.05}
    text = decision_text(Thresholds().decide(shares), shares, METRICS)
    assert text.short == "Looks like basophil" and text.headline == "The model predicts basophil: 95\u00a0%."


@pytest.mark.parametrize(("share", "text"), [(0.004, "<1"), (0.996, ">99"), (1.0, "100"), (0.0, "0")])
def test_percent_never_rounds_to_certainty(share: float, text: str) -> None:
    assert percent(share) == f"{text}\u00a0%"


def test_half_of_a_map_is_placed() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1
    assert map_text(heat, "Pro") == (
        "Half of the map for Pro lies in 6\u00a0% of what the model saw; it is strongest at the upper right."
    )
    rim = np.zeros((9, 9), np.float32)
    rim[[0, 8], :] = 1
    rim[0, 4] = 2
    assert "strongest at the upper centre" in map_text(rim, "ALL"), "its centre of mass lies where it is empty"
    rim[8, 4] = 2
    assert "it is strong in several places." in map_text(rim, "ALL"), "above and below alike"
    assert "The map for ALL is empty: nothing" in map_text(np.zeros((3, 3)), "ALL")


@pytest.mark.parametrize(
    ("metrics", "has_detector", "said"),
    [
        (CALIBRATED, False, ["This model has no OOD detector: it gives a class to any"]),
        (CALIBRATED | {"data": {"synthetic": True}}, True, ["This model was trained on synthetic phantoms, not on"]),
        (CALIBRATED | {"data": {"synthetic": False}}, True, []),
        ({}, True, ["This model has no calibration: its percentages are not how often it is right."]),
        ({}, False, ["This model has no calibration:", "This model has no OOD detector:"]),
    ],
)
def test_what_a_model_lacks_is_said_once(metrics: dict[str, Any], has_detector: bool, said: list[str]) -> None:
    found = warnings(metrics, has_detector=has_detector)
    assert len(found) == len(said) and all(one.startswith(start) for one, start in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("probability", "checks", "said"),
    [
        # 2 people × .95 called rightly, 1 × .2 wrongly.
        (0.97, {}, "Of 100 cells that it calls ALL, 90 were ALL: 3 unseen people, each counting the same"),
        (0.10, {}, "Of 100 cells that it calls HEM, 89 were HEM: 3 unseen people"),
        (0.52, {}, ""),
        (0.97, {"ood_score": 3.0}, "Of 100 cells like its training cells, it refuses 2."),
    ],
)
def test_trust_is_about_the_called_class_and_by_subject(probability: float, checks: Any, said: str) -> None:
    shares = {"ALL": probability, "HEM": 1 - probability}
    decision = DECIDED.decide(shares, Checks(**{"ood_score": 0.5, **checks}))
    assert said in trust_text(decision, METRICS) and bool(trust_text(decision, METRICS)) == bool(said)
    assert trust_text(decision, {}) == ""


def test_how_good_a_release_is_stands_by_class() -> None:
    assert recall_text(METRICS) == "Recognises 95 of 100 blasts, 80 of 100 normal cells of 3 unseen people."
    by_image = {**METRICS, "evaluations": [{"split": {"disjoint_by": "cell"}, "metrics": {"subjects": SUBJECTS}}]}
    assert recall_text(by_image) == "Not measured on people: it was not measured on unseen people."


def test_a_release_that_was_not_measured_on_people_speaks_softly() -> None:
    blocks = {**METRICS, "evaluations": [], "data": {"unit": "block"}}
    shares = {"Early": 0.995, "Pre": 0.005}
    text = decision_text(Thresholds().decide(shares), shares, blocks)
    assert text.soft and text.short.endswith(" an early pre-B blast")
    assert text.headline == "Early (early pre-B blast): >99\u00a0%, but its data name no people."
    assert not text_of(0.97, ood_score=0.5).soft


def test_orientations_are_told_with_those_that_would_get_no_class() -> None:
    def said(*shares: float) -> str:
        views = [{"ALL": one, "HEM": 1 - one} for one in shares]
        decisions = [DECIDED.decide(one, Checks(ood_score=0.5)) for one in views]
        return agreement_text("ALL", decisions, [max(one, key=one.__getitem__) for one in views])

    assert said(*[0.9] * 8) == "The same in all eight orientations."
    assert said(0.9, 0.9, 0.1, 0.1, 0.1, 0.9, 0.9, 0.9) == "5 of 8 orientations agree; 3 say HEM."
    assert said(*[0.9] * 7, 0.6) == "7 of 8 orientations agree; 1 is undecided."
    assert said(*[0.6] * 8) == "Undecided in all eight orientations."
    assert said(0.6, 0.9, 0.9, *[0.6] * 5) == "Undecided in 6 of 8 orientations; 2 say ALL."
    assert said(0.6, 0.9, 0.1, 0.1, *[0.6] * 4) == "Undecided in 5 of 8 orientations; 1 says ALL; 2 say HEM."


def test_a_release_is_described_in_one_line() -> None:
    assert model_text(METRICS) == "Trained on C-NMC 2019, 2 people · CC BY 3.0"
    assert model_text({}) == ""
    assert model_text({**METRICS, "data": {"title": "B-ALL", "unit": "block", "licence": ""}}) == "Trained on B-ALL"


def test_a_class_is_told_by_the_percentage_that_stands_beside_it() -> None:
    """90 % was "Probably" in one row and "Looks like" in the next."""
    assert [class_words(share) for share in (0.894, 0.8951, 0.9, 0.999)] == ["Probably", *["Looks like"] * 3]


def test_a_refused_picture_is_told_how_far_it_is_from_the_training_cells() -> None:
    far = Decision("out of distribution", (Reason("ood_texture", 12.34, 1.0),))
    assert foreign_text(far).startswith("Its texture is unlike that of the training cells. As a whole it is")
    assert "is 12 times as far from them as the limit allows" in foreign_text(far)
    assert "OOD score" not in foreign_text(far)
    near = Decision("out of distribution", (Reason("ood_texture", 1.04, 1.0),))
    assert " 1.04 times as far from them as the limit" in foreign_text(near)


def test_the_two_worst_kinds_of_changes_are_said_in_one_sentence() -> None:
    assert robustness_text({"robustness": ROBUSTNESS}) == (
        "Of 100 cells, 11 change class when 10 % larger, 5 when 15 % more saturated."
    )
    assert robustness_text({}) == ""
    tested = {"split": {"disjoint_by": "subject"}, "metrics": {"subjects": {f"H{number}": {} for number in range(50)}}}
    assert robustness_text({"robustness": ROBUSTNESS, "evaluations": [tested]}) == (
        "Of 100 cells of 41 people, 11 change class when 10 % larger, 5 when 15 % more saturated."
    )
    still = {name: change | {"class_changed": 0.0} for name, change in ROBUSTNESS["changes"].items()}
    assert robustness_text({"robustness": ROBUSTNESS | {"changes": still}}) == (
        "No class of 1200 unseen cells changes under the small changes that were tried."
    )


def test_the_worst_change_is_said_in_plain_words() -> None:
    assert worst_change_text({"robustness": ROBUSTNESS}) == "11 (6–22) of 100 cells change class when 10 % larger"
    assert worst_change_text({}) == "not measured"
    metrics = json.loads((ROOT / "model_card" / "leukoscope-efficientnet-b3-cnmc" / "metrics.json").read_text())
    assert worst_change_text(metrics).endswith("when blurred (σ 1 px); measured on 9 of these 41 people")


def test_the_question_on_top_follows_the_classes_of_the_model() -> None:
    assert question(("ALL", "HEM")) == "Is this white blood cell a leukaemic blast?"
    assert question(("Benign", "Early", "Pre", "Pro")) == "Is this white blood cell Benign, Early, Pre or Pro?"
    assert question(()) == question(tuple("abcdefgh")) == "Which kind of white blood cell is this?"
    said = meanings_text(("ALL", "HEM"))
    assert said == "ALL: a blast of acute lymphoblastic leukaemia. HEM: a normal cell, a B-cell precursor."
    assert meanings_text(("Benign", "x")) == "Benign: a benign haematogone."


@pytest.mark.parametrize(
    ("label", "share", "expected"),
    [
        ("ALL", 0.95, "Looks like a blast"),
        ("ALL", 0.6, "Probably a blast"),
        ("HEM", 0.95, "Looks normal"),
        ("HEM", 0.6, "Probably normal"),
        ("basophil", 0.95, "Looks like basophil"),
    ],
)
def test_the_line_of_another_model_has_the_fewest_words(label: str, share: float, expected: str) -> None:
    assert brief_class_text(label, share) == expected


def test_a_reason_beside_its_picture_names_the_class_and_the_limit() -> None:
    low = Reason("low_confidence", 0.69996, 0.7)
    assert brief_reason(low, "HEM") == "HEM has 69.996\u00a0%; the model gives a class from 70.000\u00a0%."
    between = Reason("low_confidence", 0.81, 0.823)
    assert brief_reason(between, "HEM") == "HEM has 81\u00a0%; the model gives a class from 82.3\u00a0%."
    off_cell = Reason("explanation_off_cell", 0.55, 0.63)
    assert brief_reason(off_cell, "ALL") == "Only 55\u00a0% of its map lies on the cell; 63\u00a0% or more is usual."
    views = Reason("views_disagree", 0.375, 0.25)
    assert brief_reason(views, "ALL") == views.text
