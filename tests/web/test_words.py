"""An answer in words: as firm as the figures behind it, silent where it should be."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from leukoscope.cells.field_stain import measure_stain
from leukoscope.cells.phantom_fields import draw_field
from leukoscope.inference.verdicts import Thresholds
from leukoscope.web import words

BLANK = Image.new("RGB", (40, 40), "white")


def cut_out_cell(side: int = 40) -> Image.Image:
    """A bright square cell that fills the left half of a black view."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:, : side // 2] = 120
    return Image.fromarray(pixels)


DECIDED = Thresholds("ALL", {"sensitivity_95": 0.35, "specificity_95": 0.92}, abstain_below=0.7)


@pytest.mark.parametrize(
    ("probability", "point", "headline", "because"),
    [
        (0.93, "specificity_95", "ALL-like, leukaemic blast: above the 95 %-specificity threshold.", "lies at 92 %."),
        (0.78, "specificity_95", "HEM-like, normal precursor: below the 95 %-specificity threshold.", "ALL has 78 %;"),
        (0.78, "sensitivity_95", "ALL-like, leukaemic blast: above the 95 %-sensitivity threshold.", "lies at 35 %."),
        (0.40, "sensitivity_95", "Not sure: the model abstains.", "HEM (normal precursor), has 60 %; below 70 %"),
        (0.40, "sensitivity_95", "Not sure: the model abstains.", "Made to choose: ALL-like"),
        (0.78, "", "The model leans towards ALL (leukaemic blast), 78 %, and is not firm about it.", ""),
    ],
)
def test_a_cell_is_judged_at_the_operating_point_or_not_at_all(
    probability: float, point: str, headline: str, because: str
) -> None:
    judged = words.judgement({"ALL": probability, "HEM": 1 - probability}, DECIDED, point)
    assert judged.headline.replace("\u00a0", " ") == headline
    assert because in judged.because.replace("\u00a0", " ")


def test_a_cell_the_guard_does_not_know_is_not_judged() -> None:
    judged = words.judgement({"ALL": 0.99, "HEM": 0.01}, DECIDED, "sensitivity_95", recognised=False)
    assert judged.headline == "This does not look like the cells this model knows."
    assert "it means nothing" in judged.because


def test_evidence_weaker_than_another_class_s_is_said() -> None:
    heatmaps = {"ALL": np.full((2, 2), 1.0), "HEM": np.full((2, 2), 4.0)}
    assert words.weak_evidence(heatmaps, "ALL") == "Little evidence: it amounts to 25\u00a0% of what speaks for HEM."
    assert words.weak_evidence(heatmaps, "HEM") == ""


def test_evidence_weaker_than_in_nearly_all_cells_is_said_of_every_class() -> None:
    heatmaps = {"ALL": np.full((2, 2), 1.0), "HEM": np.full((2, 2), 4.0)}
    for label in heatmaps:
        assert words.weak_evidence(heatmaps, label, weak=4.1).startswith("Little evidence for any class")
    assert words.weak_evidence(heatmaps, "HEM", weak=3.9) == ""


@pytest.mark.parametrize(
    ("probability", "opening"),
    [
        (0.97, "The model reads this picture as ALL (leukaemic blast): 97\u00a0%."),
        (0.75, "The model leans towards ALL (leukaemic blast), 75\u00a0%, and is not firm"),
        (0.55, "The model is undecided: ALL (leukaemic blast) 55\u00a0%, HEM (normal precursor) 45\u00a0%."),
    ],
)
def test_verdict_is_as_firm_as_the_probability(probability: float, opening: str) -> None:
    assert words.verdict({"HEM": 1 - probability, "ALL": probability}).startswith(opening)


def test_verdict_names_an_unknown_label_plainly() -> None:
    assert "reads this picture as basophil: 95" in words.verdict({"basophil": 0.95, "other": 0.05})


@pytest.mark.parametrize(("share", "text"), [(0.004, "<1"), (0.996, ">99"), (1.0, "100"), (0.0, "0")])
def test_percent_never_rounds_to_certainty(share: float, text: str) -> None:
    assert words.percent(share) == f"{text}\u00a0%"


def test_evidence_on_a_cut_out_cell_is_shared_between_cell_and_background() -> None:
    heat = np.array([[3.0, 1.0]], np.float32)
    text = words.evidence(heat, cut_out_cell(), "ALL")
    # Bilinear between two cells of 3 and 1: the left half holds 2.75 of 4 parts.
    assert text.startswith("69\u00a0% of the evidence for ALL lies on the cell, 31\u00a0% on background")
    assert "the cell fills 50\u00a0% of what the model saw" in text
    assert "do not rely" not in text


def test_evidence_on_the_background_is_a_warning() -> None:
    text = words.evidence(np.array([[0.0, 1.0]], np.float32), cut_out_cell(), "HEM")
    assert "Most of it is not on the cell: do not rely on this answer." in text


def test_evidence_in_a_smear_is_placed() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[0, 3] = 1
    assert words.evidence(heat, BLANK, "Pro") == (
        "Half of the evidence for Pro lies in 6\u00a0% of what the model saw, around its upper right."
    )


def test_evidence_in_a_stained_smear_is_shared_between_nuclei_and_the_rest() -> None:
    drawn = draw_field(("ALL", "HEM"), size=(160, 320), um_per_pixel=0.12, red_cells=12, scale_bar=False, seed=1)
    view = Image.fromarray(drawn.image)
    stain = measure_stain(view)
    nuclei = stain.nuclear(drawn.image) > stain.threshold
    filled = words.percent(float(nuclei.mean()))
    on_nuclei = words.evidence(nuclei.astype(np.float32), view, "Pro")
    assert on_nuclei == (
        f"100\u00a0% of the evidence for Pro lies on what is stained like nuclei, which fills {filled} of what the "
        "model saw."
    )
    assert words.evidence(1.0 - nuclei, view, "Pro").startswith("0\u00a0% of the evidence for Pro lies on what is")


@pytest.mark.parametrize(
    ("together", "share", "disagreement", "said"),
    [
        ("ALL", 0.93, 0.0, "All 8 turned and mirrored views are answered ALL; their average gives it 93\u00a0%."),
        ("ALL", 0.61, 0.125, "1 of 8 turned and mirrored views is not answered ALL, which has 61\u00a0% in their"),
        ("HEM", 0.7, 0.375, "3 of 8 turned and mirrored views are not answered HEM, which has 70\u00a0% in their"),
    ],
)
def test_views_that_disagree_are_counted(together: str, share: float, disagreement: float, said: str) -> None:
    text = words.agreement("ALL", together, share, disagreement)
    assert text.startswith(said)
    assert ("do not rely" in text) == (disagreement > 0)
    assert ("Their average says HEM, the upright view ALL." in text) == (together == "HEM")


def test_an_empty_heat_map_is_said_to_be_empty() -> None:
    assert "Nothing the model saw speaks for ALL" in words.evidence(np.zeros((3, 3)), cut_out_cell(), "ALL")


def test_synthetic_training_is_said() -> None:
    calibrated = {"calibration": {"temperature": 1.2}}
    (said,) = words.warnings({"data": {"synthetic": True}} | calibrated, guarded=True)
    assert "trained on synthetic phantoms" in said
    assert words.warnings({"data": {"synthetic": False}} | calibrated, guarded=True) == ()


@pytest.mark.parametrize(
    ("metrics", "guarded", "said"),
    [
        ({"calibration": {"temperature": 1.2}}, False, "This model brings no input guard: it names a class for any"),
        ({}, True, "This model brings no calibration: its percentages are not how often it is right."),
        ({}, False, "This model brings no calibration: its percentages are not how often it is right; and no input"),
    ],
)
def test_what_a_model_lacks_is_said_once(metrics: dict[str, object], guarded: bool, said: str) -> None:
    (warning,) = words.warnings(metrics, guarded=guarded)
    assert warning.startswith(said)
