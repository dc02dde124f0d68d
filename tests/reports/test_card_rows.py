"""Every row of a card names the cells that it was measured on: read against its metrics.json, row by row."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.evaluation.assess import recalibrate
from leukoscope.models.metrics import Evaluation, Metrics
from leukoscope.models.release import PREDICTIONS_FOLDER, read_metrics
from leukoscope.reports.card import render_card, write_card
from leukoscope.reports.tables import of_100, share
from leukoscope.synthetic import phantom_cells
from leukoscope.training.config import parse_config
from leukoscope.training.train import train
from release_fixtures import METRICS, ROBUSTNESS

EMBEDDED = sorted(path.parent for path in (Path(__file__).parents[2] / "model_card").glob("*/metrics.json"))


def people(number: str, words: str, evaluation: Evaluation) -> bool:
    """Whether so many people, or blocks, are those that an evaluation tested."""
    unit = evaluation.split.disjoint_by
    expected = {"subject": "person" if number == "1" else "people"}.get(unit, f"{unit}s")
    return words == expected and int(number) == len(evaluation.metrics.subjects)


def check_row(tested: str, figures: list[str], metrics: Metrics) -> None:
    """Check what a row of the first table says of its cells, and its figures, against the block that it is of."""
    evaluation = metrics.unseen_evaluation
    assert evaluation is not None
    further, robustness = metrics.further_subjects, metrics.robustness
    if match := re.fullmatch(r"(\d+) further people", tested):
        assert further is not None and int(match[1]) == further.subjects
        recalls = [further.recall(label) for label in metrics.labels]
        assert figures[:-1] == [of_100(recall.value, recall) for recall in recalls if recall]
    elif match := re.fullmatch(r"(\d+) of these, (\w+ \w+)", tested):
        assert further is not None and int(match[1]) == further.by_batch[match[2].replace(" ", "_")].subjects
    elif match := re.fullmatch(r"cell size alone, the same (\d+) (\w+)", tested):
        assert people(match[1], match[2], evaluation) and evaluation.size_only_baseline is not None
        assert figures[-1] == share(evaluation.size_only_baseline.auroc_by_subject)
    elif match := re.fullmatch(r"([\d,]+) (of these|validation) cells(?:,? of (\d+) \w+)?, shown (.+)", tested):
        assert robustness is not None and robustness.cells == int(match[1].replace(",", ""))
        assert (match[2] == "validation") == (robustness.cells_of == "validation")
        assert match[4] == robustness.worst.shows and figures[-1].startswith(share(robustness.worst.auroc_by_subject))
        assert match[3] is None or int(match[3]) == robustness.subjects
        has_all_people = robustness.subjects == len(evaluation.metrics.subjects)
        assert match[3] is not None or (has_all_people and robustness.cells_of == "test")
    else:
        match = re.fullmatch(r"(.+), (\d+) (\w+)", tested)
        assert match is not None, f"{tested}: names no cells"
        assert match[1] == ("cross-validation" if evaluation.folds else evaluation.split.detail)
        assert people(match[2], match[3], evaluation)
        assert figures[:-1] == [of_100(*evaluation.recalls[label]) for label in metrics.labels]


def check_card(card: str, metrics: Metrics, *, has_predictions: bool) -> None:
    """Check every row, and every sentence that says on whom something was measured."""
    tables = re.findall(r"^\| measured on .*\n\|[-:|]+\n((?:\|.*\n)+)", card, re.MULTILINE)
    rows = [line.strip("| ").split(" | ") for line in tables[0].splitlines()]
    assert len(tables) == 1 and rows
    for tested, *figures in rows:
        check_row(tested, figures, metrics)
    text = " ".join(card.split())
    assert ("`predictions/` holds" in text) == has_predictions
    decisions, robustness = metrics.decisions, metrics.robustness
    if decisions is not None:
        assert (" % of unseen " in text) == (decisions.cells_of == "test")
        assert (" % of the validation " in text) == (decisions.cells_of == "validation")
    if robustness is not None:
        words = "validation cells" if robustness.cells_of == "validation" else "cells"
        assert f"worst change of each kind; on {robustness.cells:,} {words}" in text
        assert ("which chose the epoch; every" in text) == (robustness.cells_of == "validation")
    assert ("In the cross-validation, networks" in text) == any(row[0].startswith("cross-") for row in rows)


@pytest.mark.parametrize("release", EMBEDDED, ids=lambda path: path.name)
def test_each_row_of_a_protocols_card_names_its_cells(release: Path) -> None:
    check_card((release / "README.md").read_text(), read_metrics(release), has_predictions=True)


TEST_SIDE = {key: block for key, block in METRICS["evaluations"][0].items() if key != "folds"} | {
    "name": "test",
    "estimates": "these weights",
    "split": {"strategy": "subject", "detail": "70/15/15 by subject", "disjoint_by": "subject"},
}
DECISIONS = {"abstention": {"default": {"threshold": 0.6, "coverage_by_subject": 0.8, "risk_by_subject": 0.1}}}
VALIDATED = {"decisions": DECISIONS, "robustness": ROBUSTNESS | {"cells": 84, "subjects": 9}}


@pytest.mark.parametrize(
    ("blocks", "row"),
    [
        ({"evaluations": [TEST_SIDE], **VALIDATED}, "| 84 validation cells of 9 people, shown 10 % larger |"),
        ({"evaluations": [TEST_SIDE]}, "| 70/15/15 by subject, 2 people |"),
        (
            {"decisions": DECISIONS, "robustness": ROBUSTNESS | {"cells": 84, "subjects": 2}},
            "| 84 of these cells, shown 10 % larger |",
        ),
    ],
    ids=["training", "training without a validation side", "protocol"],
)
def test_each_row_names_its_cells(release: Path, blocks: dict[str, Any], row: str) -> None:
    (release / "metrics.json").write_text(json.dumps(METRICS | blocks))
    card = render_card(release)
    assert row in card
    check_card(card, read_metrics(release), has_predictions=False)
    (release / PREDICTIONS_FOLDER).mkdir()
    assert "`predictions/` holds" in render_card(release)


SIZE = 32
PATTERN = r"/(?P<subject>[^_]+)_"
SMALL = ("--image_size", SIZE, "--num_train_epochs", 1, "--mixed_precision", "no", "--robustness_cells", 20)


def laboratory(folder: Path) -> Path:
    """Class folders with twelve drawn cells of each of eight subjects a class."""
    for phantom in phantom_cells(subjects_per_class=8, cells_per_subject=12):
        path = folder / phantom.label / f"{phantom.subject}_{phantom.cell_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(phantom.image).save(path)
    return folder


def trained(out: Path, *words: object) -> Path:
    return train(parse_config([str(word) for word in (*words, *SMALL, "--output_dir", out)])) / "release"


def by_training(folder: Path, cells: Path) -> Path:
    start = ("--from_scratch", "--override", "block_config=[2,2,2]")
    return trained(folder / "run", "--dataset_name", "cnmc2019", "--train_dir", cells, "--split", "subject", *start)


def by_fine_tuning(folder: Path, cells: Path) -> Path:
    own = ("--dataset_name", "imagefolder", "--train_dir", laboratory(folder / "own"), "--subject_pattern", PATTERN)
    start = ("--model_name_or_path", by_training(folder, cells), "--override", "block_config=[2,2,2]")
    return trained(folder / "tuned", *own, *start, "--positive_label", "ALL", "--split", "subject")


def by_recalibration(folder: Path, cells: Path) -> Path:
    data = load_cells("imagefolder", laboratory(folder / "own"), subject_pattern=PATTERN, image_size=2 * SIZE)
    framed = frame_cells(data, Preprocessing(SIZE, 350 / 450))
    return recalibrate(by_training(folder, cells), framed, folder / "ours")


@pytest.mark.slow
@pytest.mark.parametrize("make", [by_training, by_fine_tuning, by_recalibration])
def test_each_row_of_a_written_card_names_its_cells(
    few_real_cells: Path, tmp_path: Path, make: Callable[[Path, Path], Path]
) -> None:
    release = make(tmp_path, few_real_cells)
    metrics = read_metrics(release)
    check_card(write_card(release).read_text(), metrics, has_predictions=False)
    assert (metrics.robustness is None) == (make is by_recalibration)
    if metrics.robustness is not None:
        assert metrics.robustness.cells_of == "validation" and metrics.robustness.cells <= 20
        tested = set(metrics.evaluations[0].metrics.subjects)
        assert tested.isdisjoint(metrics.training.subjects)
    shutil.rmtree(release)
