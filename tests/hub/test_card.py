"""Cards and the README's table: every figure comes from metrics.json, and what is missing is said."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import yaml

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.hub.card import RESULTS_END, RESULTS_START, render_card, results_table, update_readme, write_card

REPOSITORY = Path(__file__).parents[2]
EMBEDDED = sorted(path.parent for path in (REPOSITORY / "model_card").glob("*/metrics.json"))

FIGURES = {
    "cells": 1234,
    "accuracy": 0.8111,
    "balanced_accuracy": 0.7222,
    "f1_weighted": 0.8333,
    "f1_macro": 0.7444,
    "auroc": 0.8554,
    "per_class": {},
    "confusion_matrix": [],
    "subjects": {
        "H10": {"label": "HEM", "cells": 405, "accuracy": 0.1919},
        "16": {"label": "ALL", "cells": 53, "accuracy": 1.0},
    },
}
METRICS = {
    "schema_version": 1,
    "notice": RESEARCH_NOTICE,
    "recipe": {
        "name": "densenet121",
        "architecture": "densenet121",
        "image_size": 160,
        "num_train_epochs": 2,
        "frozen": [],
    },
    "labels": ["ALL", "HEM"],
    "positive_label": "ALL",
    "data": {
        "name": "cnmc2019",
        "title": "C-NMC 2019",
        "licence": "CC BY 3.0",
        "citation": "Gupta & Gupta 2019.",
        "count_differences": ["fold_2 ALL: 413 cells here, 2,457 published"],
        "synthetic": False,
    },
    "training": {
        "cells": 7779,
        "subjects": ["1", "2", "3"],
        "split": "every cell trains",
        "start_weights": "channels selected from ImageNet DenseNet169",
        "seed": 0,
        "seconds": 600.0,
        "protocol_seconds": 6000.0,
        "hardware": "CPU, 2 threads",
        "versions": {"leukoscope": "0.1.0"},
    },
    "evaluations": [
        {
            "name": "subject_cv",
            "estimates": "recipe (cross-validated)",
            "split": {
                "strategy": "subject-cv",
                "detail": "2-fold cross-validation by subject",
                "disjoint_by": "subject",
            },
            "metrics": FIGURES,
            "size_only_baseline": {"f1_weighted": 0.7999},
            "folds": [
                {
                    "fold": 0,
                    "cells": 617,
                    "subjects": ["16"],
                    "f1_weighted": 0.8011,
                    "balanced_accuracy": 0.7,
                    "auroc": None,
                },
                {
                    "fold": 1,
                    "cells": 617,
                    "subjects": ["H10"],
                    "f1_weighted": 0.8654,
                    "balanced_accuracy": 0.7,
                    "auroc": 0.9,
                },
            ],
        },
        {
            "name": "random",
            "estimates": "recipe (random split by image: patients on both sides)",
            "split": {"strategy": "random", "detail": "70/15/15 by image", "disjoint_by": "cell"},
            "metrics": {**FIGURES, "f1_weighted": 0.9666},
        },
    ],
}


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A release folder with known figures; the card needs no weights."""
    folder = tmp_path / "leukoscope-test"
    folder.mkdir()
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    (folder / "config.json").write_text(json.dumps({"pretrained_cfg": {"crop_pct": 350 / 450}}))
    return folder


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_front_matter_says_which_estimate_each_figure_is(release: Path) -> None:
    results = front_matter(render_card(release))["model-index"][0]["results"]
    f1 = {r["dataset"]["name"]: r["metrics"][0] for r in results}
    assert f1["C-NMC 2019 — 2-fold cross-validation by subject"]["value"] == 0.833
    assert "estimates: recipe (cross-validated)" in f1["C-NMC 2019 — 2-fold cross-validation by subject"]["name"]
    assert "patients on both sides" in f1["C-NMC 2019 — 70/15/15 by image"]["name"]


def test_card_states_notice_data_start_weights_and_limits(release: Path) -> None:
    card = render_card(release)
    for text in (
        RESEARCH_NOTICE,
        "channels selected from ImageNet DenseNet169",
        "fold_2 ALL: 413 cells here, 2,457 published",
        "Gupta & Gupta 2019.",
        "no external clinical validation",
        "not calibrated",
    ):
        assert text in card


def test_card_lists_subjects_worst_first(release: Path) -> None:
    card = render_card(release)
    assert card.index("| H10 | HEM | 405 | 0.192 |") < card.index("| 16 | ALL | 53 | 1.000 |")


def test_a_figure_that_does_not_exist_is_a_dash(release: Path) -> None:
    card = render_card(release)
    assert "| 0 | 617 | 1 | 0.801 | 0.700 | – |" in card
    random_row = next(line for line in card.splitlines() if line.startswith("| 70/15/15 by image"))
    assert random_row.endswith("| – |")


def test_synthetic_models_say_so(release: Path) -> None:
    metrics = copy.deepcopy(METRICS)
    metrics["data"]["synthetic"] = True  # type: ignore[index]
    (release / "metrics.json").write_text(json.dumps(metrics))
    assert "Trained on synthetic phantoms" in render_card(release)


def test_hub_id_replaces_the_folder_in_the_examples(release: Path) -> None:
    assert 'model="lab/cells"' in render_card(release, hub_id="lab/cells")


def test_no_card_without_figures(release: Path) -> None:
    (release / "metrics.json").unlink()
    with pytest.raises(LeukoscopeError, match=r"metrics\.json: missing or without a 'training' block"):
        render_card(release)


def test_write_card_leaves_no_half_written_file(release: Path) -> None:
    assert write_card(release).name == "README.md"
    assert not list(release.glob(".*"))


def test_results_table_marks_patients_on_both_sides(release: Path) -> None:
    rows = [line for line in results_table([release]).splitlines() if line.startswith("| `")]
    assert "| no | 1,234 | 0.833 |" in rows[0] and rows[0].endswith("| 0.800 |")
    assert "| **yes** | 1,234 | 0.967 |" in rows[1]
    assert "Weighted F1 by fold: 0.801, 0.865." in results_table([release])


def test_update_readme_replaces_only_the_results(release: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{RESULTS_START}\nstale\n{RESULTS_END}\nafter\n")
    update_readme(readme, [release])
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text and "0.833" in text


def test_update_readme_without_markers_is_refused(release: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(LeukoscopeError, match="lacks the markers"):
        update_readme(tmp_path / "README.md", [release])


@pytest.mark.parametrize("embedded", EMBEDDED, ids=lambda path: path.name)
def test_committed_cards_are_the_rendered_ones(embedded: Path) -> None:
    assert (embedded / "README.md").read_text() == render_card(embedded)


@pytest.mark.parametrize("embedded", EMBEDDED, ids=lambda path: path.name)
def test_every_figure_of_a_committed_card_stands_in_its_metrics(embedded: Path) -> None:
    known = {f"{number:.3f}" for number in _numbers(json.loads((embedded / "metrics.json").read_text()))}
    shown = set(re.findall(r"\b[01]\.\d{3}\b", (embedded / "README.md").read_text()))
    assert shown and shown <= known


def test_committed_readme_table_is_the_rendered_one() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert text.split(RESULTS_START)[1].split(RESULTS_END)[0] == f"\n{results_table(EMBEDDED)}\n"


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [n for v in value.values() for n in _numbers(v)]
    if isinstance(value, list):
        return [n for v in value for n in _numbers(v)]
    return [float(value)] if isinstance(value, int | float) else []
