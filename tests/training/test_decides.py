"""A release of a single training decides like one of a protocol: it refuses what is no such cell, and abstains."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from leukoscope import Predictor
from leukoscope.inference.prediction import ABSTAIN, NOT_A_CELL, OUT_OF_DISTRIBUTION
from leukoscope.models.release import OOD, read_metrics
from leukoscope.reports.card import write_card
from leukoscope.synthetic import smear_picture
from leukoscope.training.config import parse_config
from leukoscope.training.train import train


def trained(cells: Path, out: Path, split: str, image_size: int) -> Path:
    """The release of a small network, trained for an epoch."""
    words = ("--dataset_name", "cnmc2019", "--train_dir", cells, "--split", split, "--image_size", image_size)
    small = ("--num_train_epochs", 1, "--mixed_precision", "no", "--from_scratch", "--override", "block_config=[2,2,2]")
    return train(parse_config([str(word) for word in (*words, *small, "--output_dir", out)])) / "release"


@pytest.mark.slow
def test_a_release_trained_with_a_validation_side_refuses_and_abstains(
    few_real_cells: Path, real_data: Path, tmp_path: Path
) -> None:
    release = trained(few_real_cells, tmp_path / "run", "subject", 64)
    metrics = read_metrics(release)
    assert metrics["calibration"]["estimates"] == "these weights, on the subjects that chose their epoch"
    assert metrics["decisions"]["fitted_on"]["subjects"]["HEM"] >= 2
    assert metrics["ood"]["held_out"]["cells"] < sum(1 for _ in few_real_cells.rglob("UID_*")), (
        "tested cells fit nothing"
    )
    predictor = Predictor.from_pretrained(release)
    neutrophil = sorted((real_data / "pbc" / "neutrophil").iterdir())[0]
    for picture in (Image.new("RGB", (450, 450), "white"), Image.fromarray(smear_picture("Pre", 0)), neutrophil):
        assert predictor(picture).outcome in (OUT_OF_DISTRIBUTION, NOT_A_CELL)
    outcomes = [prediction.outcome for prediction in predictor(sorted(few_real_cells.rglob("UID_*"))[::3])]
    assert ABSTAIN in outcomes and outcomes.count(OUT_OF_DISTRIBUTION) < len(outcomes) / 4
    card = write_card(release).read_text(encoding="utf-8")
    assert "gives no class below a probability of" in card and "a picture without a cell it still names" not in card


@pytest.mark.slow
def test_a_release_without_a_validation_side_says_what_it_lacks(few_real_cells: Path, tmp_path: Path) -> None:
    release = trained(few_real_cells, tmp_path / "run", "all", 32)
    assert not (release / OOD).exists() and not {"calibration", "decisions", "ood"} & read_metrics(release).keys()
    said = re.sub(r"\s+", " ", write_card(release).read_text(encoding="utf-8"))
    assert "On a picture without a cell it still names a class." in said and "are not calibrated" in said
    white = Predictor.from_pretrained(release)(np.full((450, 450, 3), 255, np.uint8))
    assert white.outcome in ("ALL", "HEM"), "it names a class for every picture"
