"""One decision for each picture: which rule comes first, what each reason says, and what a release decides by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from leukoscope.data.registry import DATASETS
from leukoscope.inference.prediction import (
    ABSTAIN,
    NOT_A_CELL,
    OUT_OF_DISTRIBUTION,
    WITHOUT_CLASS,
    Checks,
    Decision,
    Reason,
    Thresholds,
    passes_map_checks,
)

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"
TWO = Thresholds("ALL", {"sensitivity_95": 0.3, "specificity_95": 0.9}, abstain_below=0.7, least_on_cell=0.4)
SURE, UNSURE = {"ALL": 0.8, "HEM": 0.2}, {"ALL": 0.6, "HEM": 0.4}


def codes(decision: Decision) -> list[str]:
    return [reason.code for reason in decision.reasons]


# The rules


def test_a_sure_picture_in_distribution_gets_its_most_probable_class_without_a_word() -> None:
    fine = Checks(ood_score=1.0, field_share=0.5, disagreement=0.25, on_cell=0.4)

    for checks in (None, Checks(), fine):
        assert TWO.decide(SURE, checks) == Decision("ALL")
    assert TWO.decide({"ALL": 0.1, "HEM": 0.9}).label == "HEM"


def test_a_picture_out_of_distribution_gets_no_class_however_sure_the_network_is() -> None:
    decision = TWO.decide({"ALL": 1.0, "HEM": 0.0}, Checks(ood_score=1.01, ood_group="texture"))

    assert decision == Decision(OUT_OF_DISTRIBUTION, (Reason("ood_texture", 1.01, 1.0),))
    assert decision.label is None


def test_out_of_distribution_comes_before_every_other_reason() -> None:
    """What the network and its map say of a picture it cannot know is no reason for anything."""
    all_at_once = Checks(ood_score=2.0, field_share=0.1, disagreement=0.9, on_cell=0.0)

    assert codes(TWO.decide(UNSURE, all_at_once)) == ["ood_colour"]
    assert codes(TWO.decide(UNSURE, replace(all_at_once, ood_score=0.9))) == ["ood_field"]


def test_a_smear_is_not_a_cell_only_when_it_is_out_of_distribution_as_well() -> None:
    smear = Checks(ood_score=1.7, ood_group="shape", field_of_view=True)

    assert TWO.decide(SURE, smear) == Decision(NOT_A_CELL, (Reason("field_of_view"), Reason("ood_shape", 1.7, 1.0)))
    assert TWO.decide(SURE, replace(smear, ood_score=1.0)).outcome == "ALL"
    assert TWO.decide(SURE, replace(smear, ood_score=None)).outcome == "ALL"


@pytest.mark.parametrize(("share", "outcome"), [(None, "ALL"), (0.0, OUT_OF_DISTRIBUTION), (0.49, OUT_OF_DISTRIBUTION),
                                                (0.5, "ALL"), (1.0, "ALL")])  # fmt: skip
def test_a_cell_gets_a_class_only_where_half_of_its_field_is_in_distribution(share: float | None, outcome: str) -> None:
    decision = TWO.decide(SURE, Checks(ood_score=0.8, field_share=share))

    assert decision.outcome == outcome
    assert decision.reasons == (() if outcome == "ALL" else (Reason("ood_field", share, 0.5),))


@pytest.mark.parametrize(("p_all", "outcome"), [(0.69, ABSTAIN), (0.7, "ALL"), (0.31, ABSTAIN), (0.3, "HEM")])
def test_no_class_is_given_below_the_threshold(p_all: float, outcome: str) -> None:
    decision = TWO.decide({"ALL": p_all, "HEM": 1 - p_all})

    assert decision.outcome == outcome
    assert codes(decision) == (["low_confidence"] if outcome == ABSTAIN else [])
    if outcome == ABSTAIN:
        assert (decision.reasons[0].value, decision.reasons[0].limit) == (max(p_all, 1 - p_all), 0.7)


def test_views_that_disagree_are_abstained_from_whatever_the_confidence() -> None:
    assert TWO.decide(SURE, Checks(disagreement=0.25)).outcome == "ALL"

    assert TWO.decide(SURE, Checks(disagreement=0.375)) == Decision(ABSTAIN, (Reason("views_disagree", 0.375, 0.25),))
    assert Thresholds().decide(SURE, Checks(disagreement=0.375)).outcome == ABSTAIN
    assert codes(TWO.decide(UNSURE, Checks(disagreement=0.375))) == ["low_confidence", "views_disagree"]


@pytest.mark.parametrize(
    "checks",
    [Checks(), Checks(disagreement=0.5), Checks(ood_score=2.0), Checks(ood_score=0.5, field_share=0.1)],
    ids=["class", "abstain", "out of distribution", "field"],
)
@pytest.mark.parametrize("probabilities", [SURE, UNSURE], ids=["sure", "unsure"])
def test_an_explanation_off_the_cell_never_changes_the_outcome(probabilities: dict[str, float], checks: Checks) -> None:
    without, off = (TWO.decide(probabilities, replace(checks, on_cell=share)) for share in (None, 0.39))

    assert off.outcome == without.outcome
    said = () if without.outcome in (OUT_OF_DISTRIBUTION, NOT_A_CELL) else (Reason("explanation_off_cell", 0.39, 0.4),)
    assert off.reasons == (*without.reasons, *said)


def test_an_explanation_is_held_against_nothing_where_nothing_was_measured() -> None:
    assert replace(TWO, least_on_cell=None).decide(SURE, Checks(on_cell=0.0)).reasons == ()


@pytest.mark.parametrize(
    ("side", "cautious"),
    [(None, False), (450, False), (430, False), (472, False), (420, True), (302, True), (700, True)],
)
def test_a_cell_in_another_frame_gets_its_class_with_a_reason_for_caution(side: int | None, cautious: bool) -> None:
    """A cell in a smaller frame is enlarged: normal ones then look like blasts, and not all are out of distribution."""
    decision = replace(TWO, picture_side=450).decide(SURE, Checks(ood_score=0.5, shorter_side=side))

    assert decision == Decision("ALL", (Reason("other_frame", side, 450),) if cautious else ())
    assert TWO.decide(SURE, Checks(shorter_side=side)) == Decision("ALL"), "the training cells have no common side"


def test_only_a_release_trained_on_pictures_of_one_size_knows_their_side() -> None:
    sides = {name: Thresholds.from_metrics({"data": {"name": name}}).picture_side for name in DATASETS}

    assert sides.pop("cnmc2019") == 450
    assert set(sides.values()) == {None} and Thresholds.from_metrics({}).picture_side is None
    assert Thresholds.from_metrics({"data": {"name": "lab/cells", "copy_of": "cnmc2019"}}).picture_side == 450


def test_a_release_without_thresholds_always_gives_its_most_probable_class() -> None:
    assert Thresholds().decide({"ALL": 0.5001, "HEM": 0.4999}) == Decision("ALL")


# Operating points


@pytest.mark.parametrize(
    ("p_all", "point", "outcome"),
    [
        (0.8, "", "ALL"),
        (0.8, "sensitivity_95", "ALL"),
        (0.8, "specificity_95", "HEM"),
        (0.9, "specificity_95", "ALL"),
        (0.3, "", "HEM"),
        (0.3, "sensitivity_95", "ALL"),
        (0.29, "sensitivity_95", "HEM"),
    ],
)
def test_the_operating_point_chooses_the_class(p_all: float, point: str, outcome: str) -> None:
    for names in (("ALL", "HEM"), ("HEM", "ALL")):
        shares = {"ALL": p_all, "HEM": 1 - p_all}
        decision = TWO.decide({name: shares[name] for name in names}, operating_point=point)
        assert decision == Decision(outcome, (), point), "whatever the order of the classes"


def test_an_operating_point_decides_on_unsure_cells_too() -> None:
    """Its sensitivity was measured so; and most points lie where the most probable class would be abstained from."""
    assert TWO.decide(UNSURE).outcome == ABSTAIN
    assert TWO.decide(UNSURE, operating_point="sensitivity_95") == Decision("ALL", (), "sensitivity_95")
    assert TWO.decide(UNSURE, operating_point="specificity_95") == Decision("HEM", (), "specificity_95")


def test_views_that_disagree_are_a_reason_for_caution_with_the_class_of_an_operating_point() -> None:
    decision = TWO.decide(UNSURE, Checks(disagreement=0.375), operating_point="specificity_95")
    assert decision == Decision("HEM", (Reason("views_disagree", 0.375, 0.25),), "specificity_95")


def test_an_operating_point_gives_no_class_where_there_is_a_reason_against_one() -> None:
    assert TWO.decide(SURE, Checks(ood_score=3), operating_point="sensitivity_95") == Decision(
        OUT_OF_DISTRIBUTION, (Reason("ood_colour", 3, 1.0),), "sensitivity_95"
    )


@pytest.mark.parametrize(("p_all", "sensitive", "specific"), [(0.29, False, False), (0.30, True, False),
                                                              (0.90, True, True)])  # fmt: skip
def test_a_cell_is_positive_from_the_threshold_up(p_all: float, sensitive: bool, specific: bool) -> None:
    called = TWO.positives(np.array([[p_all, 1 - p_all]]), ("ALL", "HEM"))

    assert {name: bool(which[0]) for name, which in called.items()} == {
        "sensitivity_95": sensitive,
        "specificity_95": specific,
    }


def test_the_positive_class_is_found_by_name_not_by_place() -> None:
    called = TWO.positives(np.array([[0.05, 0.95]]), ("HEM", "ALL"))
    assert called["specificity_95"].tolist() == [True]


def test_a_refused_cell_is_neither_positive_nor_negative_in_a_table() -> None:
    shares = np.array([[0.95, 0.05], [0.95, 0.05], [0.5, 0.5], [0.1, 0.9]])
    columns = TWO.positive_columns(shares, ("ALL", "HEM"), [OUT_OF_DISTRIBUTION, "ALL", ABSTAIN, "HEM"])
    assert columns == {
        "positive_sensitivity_95": [None, True, True, False],
        "positive_specificity_95": [None, True, False, False],
    }


# In words


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (
            Reason("field_of_view"),
            "the picture is no single cell cut out on black, which is what this model was trained on",
        ),
        (
            Reason("ood_colour", 2.345, 1.0),
            "its colours are unlike those of the training cells (OOD score 2.3, limit 1)",
        ),
        (Reason("ood_texture", 1.26, 1.0), "its texture is unlike that of the training cells (OOD score 1.3, limit 1)"),
        (
            Reason("ood_shape", 10.0, 1.0),
            "its size or outline is unlike that of the training cells (OOD score 10.0, limit 1)",
        ),
        (
            Reason("ood_field", 0.25, 0.5),
            "of its field only 25% of the cells are like the training cells, and 50% are needed",
        ),
        (Reason("low_confidence", 0.61234, 0.7), "its most probable class has 0.612, and the threshold is 0.700"),
        (
            Reason("views_disagree", 0.375, 0.25),
            "38% of its turned and mirrored views are predicted otherwise, more than 25%",
        ),
        (
            Reason("explanation_off_cell", 0.31, 0.42),
            "31% of its Grad-CAM map lies on the cell; 95 % of the cells measured have more than 42%",
        ),
        (
            Reason("other_frame", 302, 450),
            "its shorter side has 302 pixels, that of the training cells 450: unless the whole picture was resized, "
            "the model sees the cell too large or too small",
        ),
    ],
    ids=lambda value: value.code if isinstance(value, Reason) else "",
)
def test_every_reason_says_what_was_found_and_what_was_allowed(reason: Reason, text: str) -> None:
    assert reason.text == text


def test_a_decision_is_json() -> None:
    decision = TWO.decide(UNSURE, Checks(ood_score=0.5, disagreement=0.5))

    assert json.loads(json.dumps(decision.to_dict())) == {
        "outcome": "abstain",
        "reasons": [
            {
                "code": "low_confidence",
                "value": 0.6,
                "limit": 0.7,
                "text": "its most probable class has 0.600, and the threshold is 0.700",
            },
            {
                "code": "views_disagree",
                "value": 0.5,
                "limit": 0.25,
                "text": "50% of its turned and mirrored views are predicted otherwise, more than 25%",
            },
        ],
        "operating_point": "",
    }
    assert TWO.decide(SURE, operating_point="sensitivity_95").to_dict()["operating_point"] == "sensitivity_95"
    smear = TWO.decide(SURE, Checks(ood_score=2.0, field_of_view=True)).to_dict()["reasons"][0]
    assert (smear["code"], smear["value"], smear["limit"]) == ("field_of_view", None, None)


def test_an_outcome_is_a_class_or_one_of_three_others() -> None:
    assert WITHOUT_CLASS == (ABSTAIN, OUT_OF_DISTRIBUTION, NOT_A_CELL)
    assert [Decision(outcome).label for outcome in (*WITHOUT_CLASS, "ALL")] == [None, None, None, "ALL"]


# What a release carries


def test_thresholds_of_a_committed_release_are_those_of_its_metrics() -> None:
    metrics = json.loads((RELEASE / "metrics.json").read_text())
    thresholds = Thresholds.from_metrics(metrics)
    points = metrics["decisions"]["operating_points"]["points"]
    assert thresholds.positive_label == "ALL"
    assert thresholds.operating_points == {name: point["threshold"] for name, point in points.items()}
    assert thresholds.abstain_below == metrics["decisions"]["abstention"]["default"]["threshold"]
    scale = metrics["evidence_scale"]
    assert thresholds.least_on_cell == (scale.get("on_cell_p05") if scale.get("method") == "evidence" else None)
    assert thresholds.maps_passed == passes_map_checks(metrics["heat_maps"])


def test_a_release_without_decisions_gives_its_class_and_no_operating_point() -> None:
    nothing = Thresholds.from_metrics({"decisions": {"operating_points": {}, "abstention": {}}})
    assert nothing == Thresholds.from_metrics({}) == Thresholds()
    assert nothing.decide({"ALL": 0.5, "HEM": 0.5}).label == "ALL"
    assert nothing.positives(np.array([[0.5, 0.5]]), ("ALL", "HEM")) == {}


def test_the_least_share_on_the_cell_is_that_of_the_evidence_scale() -> None:
    assert Thresholds.from_metrics({"evidence_scale": {"p05": 1.0, "p95": 2.0}}).least_on_cell is None
    scale = {"method": "evidence", "on_cell_p05": 0.6}
    assert Thresholds.from_metrics({"evidence_scale": scale}).least_on_cell == 0.6
    of_other_maps = {"on_cell_p05": 0.6}
    assert Thresholds.from_metrics({"evidence_scale": of_other_maps}).least_on_cell is None


def test_more_than_two_classes_have_no_operating_point_but_may_be_abstained_from() -> None:
    four = Thresholds.from_metrics(
        {"decisions": {"operating_points": {}, "abstention": {"default": {"threshold": 0.6}}}}
    )
    assert four.positives(np.full((1, 4), 0.25), ("a", "b", "c", "d")) == {}
    assert four.decide(dict.fromkeys("abcd", 0.25)).outcome == ABSTAIN
    assert four.decide({"a": 0.1, "b": 0.1, "c": 0.7, "d": 0.1}).outcome == "c"
