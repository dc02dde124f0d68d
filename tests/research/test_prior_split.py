"""System F's split, rebuilt: its proportions, and what each way of dividing the images keeps on one side."""

from __future__ import annotations

import numpy as np
import pytest

from research.prior_split import TEST_SHARE, choose_images, divide, heads, measure_division, summarise

LABELS = np.repeat([0, 1], [849, 404])
# Subjects of one class each, about ten cells a subject.
SUBJECTS = np.asarray([f"{label}{cell // 10}" for label, cell in zip(LABELS, range(len(LABELS)), strict=True)])


def test_images_are_chosen_in_the_notebook_s_proportions() -> None:
    images = choose_images(LABELS, seed=0)
    labels = LABELS[images]
    assert np.bincount(labels).tolist() == [603, 646]
    leukaemic, normal = images[labels == 0], images[labels == 1]
    assert len(set(leukaemic.tolist())) == 603
    assert set(normal.tolist()) == set(range(849, 1253))


@pytest.mark.parametrize("seed", [0, 1])
def test_each_division_keeps_together_what_it_says(seed: int) -> None:
    images = choose_images(LABELS, seed=0)
    labels, subjects = LABELS[images], SUBJECTS[images]
    shared = {}
    for division in ("by image", "by original", "by subject"):
        tested = divide(division, images, labels, subjects, seed)
        assert abs(tested.mean() - TEST_SHARE) < 0.03
        copies = set(images[tested].tolist()) & set(images[~tested].tolist())
        people = set(subjects[tested].tolist()) & set(subjects[~tested].tolist())
        shared[division] = (bool(copies), bool(people))
    assert shared == {"by image": (True, True), "by original": (False, True), "by subject": (False, False)}


def test_a_head_is_measured_on_the_images_that_did_not_fit_it() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(len(LABELS), 4)) + LABELS[:, None] * [3, 0, 0, 0]
    tested = np.arange(len(LABELS)) % 5 == 0
    linear = heads()["logistic regression"]
    right = measure_division(linear, features, tested, LABELS, SUBJECTS)
    assert right["auroc"] > 0.95
    # Labels of tested images do not reach the head: with these exchanged it is wrong throughout.
    exchanged = np.where(tested, 1 - LABELS, LABELS)
    assert measure_division(linear, features, tested, exchanged, SUBJECTS)["auroc"] < 0.05
    summary = summarise([right, {**right, "auroc": 0.5}])
    assert summary["auroc"]["smallest"] == 0.5
    assert summary["auroc"]["mean"] == pytest.approx((right["auroc"] + 0.5) / 2)
