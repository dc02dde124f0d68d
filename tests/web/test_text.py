"""A decision in words: as firm as the numbers behind it, and without a class where none is decided on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leukoscope.data.fields import measure_stain
from leukoscope.data.synthetic import draw_field
from leukoscope.evaluation.morphology import Morphology
from leukoscope.inference.prediction import Checks, Thresholds
from leukoscope.web.text import (
    DecisionText,
    class_text,
    decision_text,
    map_text,
    model_text,
    morphology_text,
    percent,
    purpose,
    tta_text,
    warnings,
    weak_map_text,
)

BLANK = Image.new("RGB", (40, 40), "white")


def cut_out_cell(side: int = 40) -> Image.Image:
    """A bright square cell that fills the left half of a black view."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:, : side // 2] = 120
    return Image.fromarray(pixels)


DECIDED = Thresholds("ALL", {"sensitivity_95": 0.35, "specificity_95": 0.92}, abstain_below=0.7)


def text_of(p_all: float, point: str = "", **checks: object) -> DecisionText:
    """The text for a cell with this probability of ALL, by a release with the thresholds above."""
    shares = {"ALL": p_all, "HEM": 1 - p_all}
    decision = DECIDED.decide(shares, Checks(**checks), operating_point=point)  # type: ignore[arg-type]
    said = decision_text(decision, shares, DECIDED)
    return DecisionText(said.headline.replace("\u00a0", " "), said.because.replace("\u00a0", " "), said.has_class)


@pytest.mark.parametrize(
    ("probability", "point", "headline", "because"),
    [
        (0.93, "specificity_95", "ALL, leukaemic blast: above the 95 %-specificity threshold.", "lies at 92 %."),
        (0.78, "specificity_95", "HEM, normal precursor: below the 95 %-specificity threshold.", "ALL has 78 %;"),
        (0.78, "sensitivity_95", "ALL, leukaemic blast: above the 95 %-sensitivity threshold.", "lies at 35 %."),
        (0.78, "", "The model leans towards ALL (leukaemic blast): 78 %.", ""),
    ],
)
def test_a_class_is_told_at_the_operating_point(probability: float, point: str, headline: str, because: str) -> None:
    text = text_of(probability, point, ood_score=0.5)
    assert text.headline == headline
    assert because in text.because
    assert text.has_class


@pytest.mark.parametrize("point", ["", "sensitivity_95", "specificity_95"])
@pytest.mark.parametrize(
    ("probability", "checks", "headline", "because"),
    [
        (
            0.40, {}, "No class: the model abstains.",
            "Its most probable class has 0.600, and the threshold is 0.700.",
        ),
        (
            0.99, {"disagreement": 0.375}, "No class: the model abstains.",
            "38 % of its turned and mirrored views are predicted otherwise, more than 25 %.",
        ),
        (
            0.99, {"ood_score": 3.14, "ood_group": "texture"}, "Out of distribution: no class is given.",
            "Its texture is unlike that of the training cells (OOD score 3.1, limit 1).",
        ),
        (
            0.99, {"ood_score": 0.6, "field_share": 0.2}, "Out of distribution: no class is given.",
            "Of its field only 20 % of the cells are like the training cells, and 50 % are needed.",
        ),
    ],
)  # fmt: skip
def test_without_a_class_the_reason_is_told_and_no_class_is_named(
    probability: float, checks: dict[str, object], headline: str, because: str, point: str
) -> None:
    text = text_of(probability, point, **checks)
    if point and "ood_score" not in checks:
        assert text.has_class, "an operating point decides on every cell in distribution"
        assert "disagreement" not in checks or because in text.because
        return
    assert (text.headline, text.because, text.has_class) == (headline, because, False)
    assert "leukaemic" not in text.headline + text.because


def test_a_smear_is_sent_to_where_its_cells_are_found() -> None:
    text = text_of(0.99, ood_score=36.0, field_of_view=True)
    assert text.headline == "Not a cell: no class is given."
    assert text.because.startswith(
        "The picture is no single cell cut out on black, which is what this model was trained on"
    )
    assert text.because.endswith("If it is a smear, open it in the tab “Field” (in the API: /field).")


def test_evidence_off_the_cell_is_a_caution_beside_a_class_which_stays() -> None:
    wary = Thresholds("ALL", {"sensitivity_95": 0.35}, least_on_cell=0.25)
    shares = {"ALL": 0.95, "HEM": 0.05}
    for point, headline in (("", "The model predicts ALL"), ("sensitivity_95", "ALL, leukaemic blast")):
        decision = wary.decide(shares, Checks(ood_score=0.5, on_cell=0.1), operating_point=point)
        text = decision_text(decision, shares, wary)
        assert text.headline.startswith(headline) and text.has_class
        assert text.because.endswith(
            "10\u00a0% of its Grad-CAM map lies on the cell; 95 % of the cells measured have more than 25\u00a0%."
        )


def test_evidence_weaker_than_another_class_s_is_said() -> None:
    heatmaps = {"ALL": np.full((2, 2), 1.0), "HEM": np.full((2, 2), 4.0)}
    assert weak_map_text(heatmaps, "ALL") == "Little evidence: it amounts to 25\u00a0% of what speaks for HEM."
    assert weak_map_text(heatmaps, "HEM") == ""


def test_evidence_weaker_than_in_nearly_all_cells_is_said_of_every_class() -> None:
    heatmaps = {"ALL": np.full((2, 2), 1.0), "HEM": np.full((2, 2), 4.0)}
    for label in heatmaps:
        assert weak_map_text(heatmaps, label, weak=4.1).startswith("Little evidence for any class")
    assert weak_map_text(heatmaps, "HEM", weak=3.9) == ""


@pytest.mark.parametrize(
    ("probability", "opening"),
    [
        (0.97, "The model predicts ALL (leukaemic blast): 97\u00a0%."),
        (0.75, "The model leans towards ALL (leukaemic blast): 75\u00a0%."),
        (0.55, "The model is undecided: ALL (leukaemic blast) 55\u00a0%, HEM (normal precursor) 45\u00a0%."),
    ],
)
def test_the_class_is_as_firm_as_the_probability(probability: float, opening: str) -> None:
    assert class_text({"HEM": 1 - probability, "ALL": probability}).startswith(opening)


def test_the_class_names_an_unknown_label_plainly() -> None:
    assert "predicts basophil: 95" in class_text({"basophil": 0.95, "other": 0.05})


@pytest.mark.parametrize(("share", "text"), [(0.004, "<1"), (0.996, ">99"), (1.0, "100"), (0.0, "0")])
def test_percent_never_rounds_to_certainty(share: float, text: str) -> None:
    assert percent(share) == f"{text}\u00a0%"


def test_evidence_on_a_cut_out_cell_is_shared_between_cell_and_background() -> None:
    heat = np.array([[3.0, 1.0]], np.float32)
    text = map_text(heat, cut_out_cell(), "ALL")
    # Bilinear between two cells of 3 and 1: the left half holds 2.75 of 4 parts.
    assert text.startswith("69\u00a0% of the Grad-CAM map for ALL lies on the cell, 31\u00a0% on background")
    assert "the cell fills 50\u00a0% of what the model saw" in text


def test_evidence_on_the_background_is_counted_as_such() -> None:
    text = map_text(np.array([[0.0, 0.0, 0.0, 1.0]], np.float32), cut_out_cell(), "HEM")
    assert text.startswith("0\u00a0% of the Grad-CAM map for HEM lies on the cell, 100\u00a0% on background")


def test_evidence_in_a_smear_is_placed() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1
    assert map_text(heat, BLANK, "Pro") == (
        "Half of the Grad-CAM map for Pro lies in 6\u00a0% of what the model saw, around its upper right."
    )


def test_evidence_in_a_stained_smear_is_shared_between_nuclei_and_the_rest() -> None:
    drawn = draw_field(("ALL", "HEM"), size=(160, 320), um_per_pixel=0.12, red_cells=12, scale_bar=False, seed=1)
    view = Image.fromarray(drawn.image)
    stain = measure_stain(view)
    nuclei = stain.nuclear(drawn.image) > stain.threshold
    filled = percent(float(nuclei.mean()))
    on_nuclei = map_text(nuclei.astype(np.float32), view, "Pro")
    assert on_nuclei == (
        f"100\u00a0% of the Grad-CAM map for Pro lies on what is stained like nuclei, which fills {filled} of what the "
        "model saw."
    )
    assert map_text(1.0 - nuclei, view, "Pro").startswith("0\u00a0% of the Grad-CAM map for Pro lies on what is")


@pytest.mark.parametrize(
    ("together", "share", "disagreement", "said"),
    [
        ("ALL", 0.93, 0.0, "All 8 turned and mirrored views are predicted ALL; their average gives it 93\u00a0%."),
        ("ALL", 0.61, 0.125, "1 of 8 turned and mirrored views is not predicted ALL, which has 61\u00a0% in their"),
        ("ALL", 0.61, 0.25, "2 of 8 turned and mirrored views are not predicted ALL, which has 61\u00a0% in their"),
        ("HEM", 0.7, 0.375, "3 of 8 turned and mirrored views are not predicted HEM, which has 70\u00a0% in their"),
    ],
)
def test_views_that_disagree_are_counted(together: str, share: float, disagreement: float, said: str) -> None:
    text = tta_text("ALL", together, share, disagreement)
    assert text.startswith(said)
    abstains = Thresholds().decide({"ALL": 0.9, "HEM": 0.1}, Checks(disagreement=disagreement)).outcome == "abstain"
    assert text.endswith("More than 25\u00a0% differ: with all views, the model abstains.") == abstains
    assert abstains == (disagreement > 0.25)
    assert ("Their average predicts HEM, the upright view ALL." in text) == (together == "HEM")


def test_an_empty_heat_map_is_said_to_be_empty() -> None:
    assert "The Grad-CAM map for ALL is empty: nothing that the model saw" in map_text(
        np.zeros((3, 3)), cut_out_cell(), "ALL"
    )


def test_synthetic_training_is_said() -> None:
    calibrated = {"calibration": {"temperature": 1.2}}
    (said,) = warnings({"data": {"synthetic": True}} | calibrated, has_detector=True)
    assert "trained on synthetic phantoms" in said
    assert warnings({"data": {"synthetic": False}} | calibrated, has_detector=True) == ()


@pytest.mark.parametrize(
    ("metrics", "has_detector", "said"),
    [
        ({"calibration": {"temperature": 1.2}}, False, "This model has no OOD detector: it gives a class to any"),
        ({}, True, "This model has no calibration: its percentages are not how often it is right."),
        ({}, False, "This model has no calibration: its percentages are not how often it is right; and no OOD"),
    ],
)
def test_what_a_model_lacks_is_said_once(metrics: dict[str, object], has_detector: bool, said: str) -> None:
    (warning,) = warnings(metrics, has_detector=has_detector)
    assert warning.startswith(said)


def test_a_decision_has_plain_words_and_what_was_checked() -> None:
    measured = Thresholds("ALL", {}, abstain_below=0.7, least_on_cell=0.2, maps_passed=True)

    def told(p_all: float, **found: Any) -> DecisionText:
        shares, checks = {"ALL": p_all, "HEM": 1 - p_all}, Checks(**found)
        return decision_text(measured.decide(shares, checks), shares, measured, checks)

    good = told(0.9, ood_score=0.5, on_cell=0.4)
    assert good.short == "Looks like a leukaemic blast"
    assert good.checks == (
        ("like its training cells", True),
        ("confident: 90\u00a0%", True),
        ("looks at the cell: 40\u00a0% of the map", True),
    )
    unsure = told(0.6, ood_score=0.5, on_cell=0.1)
    assert [check for check, _ in unsure.checks[1:]] == [
        "not confident: 60\u00a0%",
        "looks beside the cell: only 10\u00a0% of the map is on it",
    ]
    failed = replace(measured, maps_passed=False)
    for limit in (0.2, None):
        without = decision_text(
            failed.decide({"ALL": 0.9, "HEM": 0.1}, Checks(on_cell=0.9)),
            {"ALL": 0.9, "HEM": 0.1},
            replace(failed, least_on_cell=limit),
            Checks(on_cell=0.9),
        )
        assert without.checks[1:] == (("where the network reacts; this map failed our tests", False),)
    assert unsure.short == "Not sure" and [holds for _, holds in unsure.checks] == [True, False, False]
    unknown = told(0.9, ood_score=1.5, on_cell=0.4)
    assert unknown.short == "Not a cell this model knows" and unknown.checks == (
        ("not like its training cells", False),
    )
    assert told(0.9, ood_score=1.5, field_of_view=True).short == "Not a single cell"
    in_field = told(0.9, ood_score=0.5, field_share=0.2)
    assert not in_field.has_class and in_field.checks == (("like its training cells", True),), "only its field is not"
    plain = decision_text(Thresholds().decide({"Early": 0.9, "Pro": 0.1}), {"Early": 0.9, "Pro": 0.1}, Thresholds())
    assert plain.short == "Looks like an early pre-B blast" and plain.checks == ()


def test_a_release_is_described_in_one_line() -> None:
    metrics = {
        "data": {"title": "C-NMC 2019", "unit": "subject", "licence": "CC BY 3.0"},
        "training": {"subjects": ["1", "2"]},
        "evaluations": [{"split": {"disjoint_by": "subject"}, "metrics": {"auroc_by_subject": 0.887}}],
    }
    assert model_text(metrics) == (
        "Trained on C-NMC 2019, 2 subjects · AUROC by subject 0.89, on subjects it has not seen · CC BY 3.0"
    )
    assert model_text({}) == ""
    metrics["evaluations"][0]["split"]["disjoint_by"] = "cell"
    assert model_text(metrics) == "Trained on C-NMC 2019, 2 subjects · CC BY 3.0", (
        "a split by image says nothing of them"
    )
    blocks = {**metrics, "data": {"title": "B-ALL", "unit": "block", "licence": ""}}
    assert model_text(blocks) == ("Trained on B-ALL · not measured on unseen subjects: its data names none"), (
        "no subject is known"
    )


def test_morphology_is_told_with_its_place_among_the_training_cells() -> None:
    cell = Morphology(1000.0, 0.8, 2)
    known = {"area": [0, 2000], "nucleus_share": [0.6, 1.0], "lobes": {"1": 0.9, "2": 0.1}}
    assert morphology_text(cell, known, um_per_pixel=0.1) == {
        "Area": "10 µm²; larger than in 50\u00a0% of the training cells",
        "Nucleus to cell": "80\u00a0%; larger than in 50\u00a0% of the training cells",
        "Nuclear lobes": "2; so have 10\u00a0% of the training cells",
    }
    # A release made before has no quantiles.
    assert list(morphology_text(cell, {}).values()) == ["1,000 pixels", "80\u00a0%", "2"]
    assert morphology_text(None, known) == {}


def test_a_model_s_purpose_is_told_in_plain_words() -> None:
    assert purpose(("ALL", "HEM"), True) == "single cells: leukaemic blast or normal precursor"
    assert purpose(("Pro", "Q"), False) == "pictures of a smear: pro-B blast or Q"
