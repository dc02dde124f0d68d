"""One decision for each picture: which rule comes first, what each reason says, and what a release decides by."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from leukoscope.inference.prediction import (
    ABSTAIN,
    NOT_A_CELL,
    NUM_VIEWS,
    OUT_OF_DISTRIBUTION,
    WITHOUT_CLASS,
    Checks,
    Decision,
    Reason,
    Thresholds,
    disagreement,
    turned,
    turned_back,
)
from leukoscope.models.metrics import Metrics

TWO = Thresholds(abstain_below=0.7, least_on_cell=0.4)
SURE, UNSURE = {"ALL": 0.8, "HEM": 0.2}, {"ALL": 0.6, "HEM": 0.4}


def codes(decision: Decision) -> list[str]:
    return [reason.code for reason in decision.reasons]


# The rules


def test_a_sure_picture_in_distribution_gets_its_most_probable_class_without_a_word() -> None:
    fine = Checks(ood_score=1.0, field_share=0.5, disagreement=0.25, on_cell=0.4)

    for checks in (Checks(), fine):
        assert TWO.decide(SURE, checks) == Decision("ALL")
    assert TWO.decide({"ALL": 0.1, "HEM": 0.9}).label == "HEM"
    assert [Decision(outcome).label for outcome in (*WITHOUT_CLASS, "ALL")] == [None, None, None, "ALL"]
    # What was not measured is held against nothing.
    assert Thresholds().decide({"ALL": 0.5001, "HEM": 0.4999}, Checks(on_cell=0.0)) == Decision("ALL")


def test_out_of_distribution_comes_before_every_other_reason_however_sure_the_network_is() -> None:
    """What the network and its map say of a picture it cannot know is no reason for anything."""
    decision = TWO.decide({"ALL": 1.0, "HEM": 0.0}, Checks(ood_score=1.01, ood_group="texture"))
    assert decision == Decision(OUT_OF_DISTRIBUTION, (Reason("ood_texture", 1.01, 1.0),))
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


@pytest.mark.parametrize(
    ("side", "cautious"),
    [(None, False), (450, False), (430, False), (472, False), (420, True), (302, True), (700, True)],
)
def test_a_cell_in_another_frame_gets_its_class_with_a_reason_for_caution(side: int | None, cautious: bool) -> None:
    """A cell in a smaller frame is enlarged: normal ones then look like blasts, and not all are out of distribution."""
    decision = replace(TWO, picture_side=450).decide(SURE, Checks(ood_score=0.5, shorter_side=side))

    assert decision == Decision("ALL", (Reason("other_frame", side, 450),) if cautious else ())
    assert TWO.decide(SURE, Checks(shorter_side=side)) == Decision("ALL"), "the training cells have no common side"


@pytest.mark.parametrize(
    ("data", "side"),
    [({"name": "cnmc2019"}, 450), ({"name": "lab/cells", "copy_of": "cnmc2019"}, 450), ({"name": "ball4"}, None)],
)
def test_only_a_release_trained_on_pictures_of_one_size_knows_their_side(data: dict[str, str], side: int) -> None:
    assert Thresholds.from_metrics(Metrics.model_validate({"data": data})).picture_side == side


# In words


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (Reason("field_of_view"),
         "The picture is no single cell cut out on black, which is what this model was trained on."),
        (Reason("ood_colour", 2.345, 1.0),
         "Its colours are unlike those of the training cells (OOD score 2.3, limit 1)."),
        (Reason("ood_texture", 1.26, 1.0),
         "Its texture is unlike that of the training cells (OOD score 1.3, limit 1)."),
        (Reason("ood_texture", 1.013, 1.0),
         "Its texture is unlike that of the training cells (OOD score 1.01, limit 1.0)."),
        (Reason("ood_shape", 10.0, 1.0),
         "Its size or outline is unlike that of the training cells (OOD score 10.0, limit 1)."),
        (Reason("ood_field", 0.25, 0.5),
         "Only 25\u00a0% of the smear's cells are like the training cells; 50\u00a0% are needed."),
        (Reason("low_confidence", 0.69996, 0.7),
         "Its most probable class has 69.996\u00a0%; the model gives a class from 70.000\u00a0%."),
        (Reason("low_confidence", 0.61234, 0.7),
         "Its most probable class has 61\u00a0%; the model gives a class from 70\u00a0%."),
        (Reason("views_disagree", 0.375, 0.25),
         "38\u00a0% of its turned and mirrored views get another class; at most 25\u00a0% may."),
        (Reason("explanation_off_cell", 0.31, 0.42),
         "31\u00a0% of its map lies on the cell: less than for 95 of 100 measured cells (limit 42\u00a0%)."),
        (Reason("other_frame", 302, 450),
         "Its shorter side has 302 pixels, that of the training cells 450: unless the whole picture was resized, the "
         "model sees the cell too large or too small."),
    ],
    ids=lambda value: value.code if isinstance(value, Reason) else "",
)  # fmt: skip
def test_every_reason_says_what_was_found_and_what_was_allowed(reason: Reason, text: str) -> None:
    assert reason.text == text
    assert json.loads(json.dumps(reason.to_dict())) == {**vars(reason), "text": text}


# What a release carries


def test_a_release_says_how_strong_its_evidence_usually_is_or_nothing() -> None:
    measured = {"p05": 0.1, "median": 0.2, "p95": 0.4, "on_cell_p05": 0.6}
    scale = measured | {"method": "evidence"}
    known = Thresholds(least_on_cell=0.6, strong_evidence=0.4)
    assert Thresholds.from_metrics(Metrics.model_validate({"evidence_scale": scale})) == known
    for other in (measured, measured | {"method": "gradcam"}):
        assert Thresholds.from_metrics(Metrics.model_validate({"evidence_scale": other})) == Thresholds()
    zero = Thresholds.from_metrics(
        Metrics.model_validate({"evidence_scale": {"method": "evidence", "p05": 0, "p95": 0}})
    )
    assert zero.strong_evidence is None, "nothing to divide by"


def test_a_release_without_decisions_gives_its_class_and_more_than_two_may_be_abstained_from() -> None:
    nothing = Thresholds.from_metrics(Metrics.model_validate({"decisions": {"abstention": {}}}))
    assert nothing == Thresholds.from_metrics(Metrics.model_validate({})) == Thresholds()
    assert nothing.decide({"ALL": 0.5, "HEM": 0.5}).label == "ALL"
    four = Thresholds.from_metrics(
        Metrics.model_validate({"decisions": {"abstention": {"default": {"threshold": 0.6}}}})
    )
    assert four.decide(dict.fromkeys("abcd", 0.25)).outcome == ABSTAIN
    assert four.decide({"a": 0.1, "b": 0.1, "c": 0.7, "d": 0.1}).outcome == "c"


# Views of a cell


def test_the_first_view_is_the_picture_and_no_two_are_alike() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), dtype=np.uint8)

    views = [turned(pixels, view) for view in range(NUM_VIEWS)]

    assert np.array_equal(views[0], pixels)
    assert len({one.tobytes() for view in views for one in view}) == 2 * NUM_VIEWS


@pytest.mark.parametrize("view", range(NUM_VIEWS))
def test_a_map_is_turned_back_onto_the_picture(view: int) -> None:
    pixels = np.random.default_rng(1).random((3, 4, 4, 2))
    # A map that shows where a pixel lies follows it through every view.
    assert np.array_equal(turned_back(np.moveaxis(turned(pixels, view), -1, 1), view), np.moveaxis(pixels, -1, 1))


def test_disagreement_counts_the_views_that_differ_from_their_average() -> None:
    agreeing = np.tile([0.9, 0.1], (NUM_VIEWS, 1))
    two_differ = agreeing.copy()
    two_differ[:2] = [0.4, 0.6]

    assert disagreement(np.stack([agreeing, two_differ])).tolist() == [0.0, 0.25]
