"""The README's tables: rendered from JSON between markers, and the committed README is what they render to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leukoscope import LeukoscopeError
from leukoscope.evaluation.bootstrap import point_metrics
from leukoscope.evaluation.metrics import headline
from leukoscope.evaluation.predictions import CellPredictions
from release_fixtures import ROBUSTNESS
from research.readme_tables import (
    decisions_table,
    external_table,
    headline_table,
    leakage_table,
    markers,
    readme_tables,
    results_table,
    subjects_table,
    update_tables,
)
from research.speed_table import speed_table

REPOSITORY = Path(__file__).parents[2]
EMBEDDED = sorted(path.parent for path in (REPOSITORY / "model_card").glob("*/metrics.json"))

COMPARISON: dict[str, Any] = {
    "recipe": {"architecture": "densenet121", "image_size": 160, "num_train_epochs": 2},
    "data": {"title": "C-NMC 2019", "unit": "subject"},
    "train_cells": [5000, 5000],
    "seeds": [
        {"seed": 0, "unseen": {"f1_weighted": 0.8, "auroc": None}, "seen": {"f1_weighted": 0.9, "auroc": None}},
        {"seed": 1, "unseen": {"f1_weighted": 0.84, "auroc": None}, "seen": {"f1_weighted": 0.88, "auroc": None}},
    ],
    "difference": {"f1_weighted": {"mean": 0.07, "smallest": 0.04, "largest": 0.1}},
}


def test_the_headline_tells_classes_apart_beside_further_people_and_size_alone(
    release: Path, release_metrics: dict[str, Any]
) -> None:
    heading, _, row, changed, size = headline_table([release]).splitlines()
    assert "| of 100 blasts, recognised | of 100 normal cells, recognised |" in heading
    assert row == "| cross-validation, 2 people | `leukoscope-test` | 100 | 19 | 0.777 |"
    assert changed == "| their cells under small changes: not measured | `leukoscope-test` | – | – | – |"
    assert size == "| cell size alone, the same 2 people | – | – | – | 0.722 |"
    one = {"value": 0.5, "low": 0.4, "high": 0.6}
    further = {"subjects": 34, "measured": "2026-11-27", "estimates": "In view.", "earlier_weights": True}
    further |= {key: one for key in ("recall_ALL_by_subject", "recall_HEM_by_subject", "auroc_by_subject")}
    further["by_batch"] = {"fold_2": {"cells": 101, "subjects": 13, "auroc_by_subject": one}}
    (release / "metrics.json").write_text(json.dumps(release_metrics | {"further_subjects": further}))
    table = headline_table([release])
    earlier = "(earlier weights of this recipe, 2026-11-27)"
    _, _, outside, cross_validated, *_ = table.splitlines()
    assert (
        outside == f"| 34 further people {earlier} | `leukoscope-test` | 50 (40–60) | 50 (40–60) | 0.500 (0.40–0.60) |"
    )
    assert "of these" not in table, "the batches stand in docs/results.md"
    assert "cross-validation" in cross_validated
    assert table.endswith("\n\nIn view.")


def test_the_headline_shows_what_is_recognised_under_the_worst_change(
    release: Path, release_metrics: dict[str, Any]
) -> None:
    (release / "metrics.json").write_text(json.dumps(release_metrics | {"robustness": ROBUSTNESS}))
    table = headline_table([release])
    assert "| 1,200 of these cells, shown 10 % larger | `leukoscope-test` | 90 | 50 (40–60) | 0.688" in table
    assert "not measured" not in table


def test_weights_that_are_no_release_s_are_called_earlier(release: Path) -> None:
    one = {"value": 0.5, "low": 0.4, "high": 0.6}
    view = {"auroc_by_subject": one}
    rows: list[dict[str, Any]] = [
        {"release": name, "sha256": "x", "one_view": view} for name in ("leukoscope-test", "gone")
    ]
    rows[0]["by_batch"] = {"preliminary_test": {"subjects": 21, "recall_HEM_by_subject": one}}
    content: dict[str, Any] = {"data": "C-NMC", "measured": "2026-11-27", "subjects": 34, "size_alone": {}}
    content["cells_by_class"] = {"ALL": 2}
    (release / "model.safetensors").write_bytes(b"weights")
    lines = external_table([content | {"releases": rows}], [release]).splitlines()
    assert "| `leukoscope-test` (earlier weights) | all 34 | 0.500 (0.40–0.60) | – | – | – |" in lines
    assert "| `leukoscope-test` (earlier weights) | 21, preliminary test | – | – | – | 0.500 (0.40–0.60) |" in lines
    assert not any("gone" in line for line in lines), "it is no release any more"


def test_decisions_and_subjects_are_counted_where_they_were_measured(
    release: Path, release_metrics: dict[str, Any]
) -> None:
    # Of 20 normal cells two are called leukaemic, both of one subject who has no others.
    subjects = ("n1",) * 18 + ("n2",) * 2 + ("l1", "l2")
    called = np.array([[0.1, 0.9]] * 18 + [[0.9, 0.1]] * 4)
    truth = np.array([1] * 20 + [0] * 2)
    cells = CellPredictions(tuple(map(str, range(22))), subjects, truth, called, ("ALL", "HEM"))
    (release / "predictions").mkdir()
    cells.save(release / "predictions" / "subject_cv.parquet")
    interval = {"low": 0.8, "high": 1.0}
    rate = {"share": 0.9286, **interval, "right": 26, "of": 28}
    measured = {
        "subjects": 41,
        "auroc": {"value": 0.912, **interval},
        "sensitivity": rate,
        "specificity": rate,
        "given_a_class": 34,
        "error_rate": {"share": 0.0588, "low": 0.01, "high": 0.2},
    }
    rule = {"pooling": "quantiles", "coefficients": [0.2] * 5, "intercept": 0.5}
    release_metrics["subject_rule"] = {"positive_label": "ALL", "rule": rule, "measured": measured, "least_cells": 20}
    alone = {"auroc": {"value": 0.898, **interval}, "difference": {"difference": 0.014, "low": -0.09, "high": 0.16}}
    release_metrics["subject_rule"]["size_only"] = alone
    kind = {"cells": 50, "outcomes": {"ALL": 1, "HEM": 0}, "most_probable": {"ALL": 40, "HEM": 10}}
    of_fields = {"JPEGImages": kind | {"outcomes": {"ALL": 50, "HEM": 0}}}
    healthy = {"white cells": {"neutrophil": kind, "monocyte": kind}, "white cells of fields": of_fields}
    release_metrics["ood"] = {"healthy": healthy}
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    assert "| 2 | 80 |" in decisions_table([release]), "of fields nothing is known"
    assert decisions_table([release]).endswith(" | 50 (0–100) |"), "every subject weighs the same"
    row = subjects_table([release]).splitlines()[-1]
    assert row == (
        "| `leukoscope-test` | 0.912 (0.80–1.00) | 0.898 (0.80–1.00) | +0.014 (-0.090 to +0.160) | "
        "0.929 (0.80–1.00) | 0.929 (0.80–1.00) | 34 of 41 | 0.059 (0.01–0.20) | 20 |"
    )
    release_metrics["subject_rule"]["least_cells_suffice"] = False
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    assert subjects_table([release]).endswith(" | more than 20 |"), "it is no promise"


def test_decisions_are_counted_with_every_subject_weighing_the_same_and_healthy_people_alone(
    release: Path, release_metrics: dict[str, Any]
) -> None:
    default = {"threshold": 0.6, "coverage": 0.9, "risk": 0.2, "coverage_by_subject": 0.8, "risk_by_subject": 0.1}
    release_metrics["decisions"] = {"abstention": {"default": default}}
    kind = {"cells": 50, "outcomes": {"ALL": 1, "HEM": 0}, "most_probable": {"ALL": 40, "HEM": 10}}
    sources = {"white cells": {"monocyte": kind}, "white cells of fields": {"JPEGImages": kind}}
    release_metrics["ood"] = {"healthy": sources}
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    row = decisions_table([release]).splitlines()[-1]
    assert row == "| `leukoscope-test` | 0.800 | 0.100 | 50 | 2 | 80 | – |"


def test_metrics_by_block_say_so_under_the_heading_by_subject() -> None:
    (ball4,) = [release for release in EMBEDDED if "ball4" in release.name]
    assert "ball4" not in headline_table([ball4]), "its data name no people"
    assert all(row.count(") by block") == 2 for row in results_table([ball4]).splitlines()[-2:])


def test_results_table_marks_subjects_on_both_sides(release: Path) -> None:
    rows = [line for line in results_table([release]).splitlines() if line.startswith("| `")]
    assert "| no | 1,234 | 0.777 | 0.667 | 0.701 | 0.722 / – |" in rows[0]
    assert "| **yes** | 1,234 | 0.777 | 0.667 | 0.701 | – |" in rows[1]


def test_subjects_found_since_the_measurement_are_marked(release: Path, release_metrics: dict[str, Any]) -> None:
    release_metrics["training"]["subjects"] = ["H2", "H6"]
    (release / "metrics.json").write_text(json.dumps(release_metrics))
    assert "| **a few**, found since | 1,234 | 0.777 |" in results_table([release])


def test_leakage_table_shows_what_seeds_agree_on() -> None:
    table = leakage_table([COMPARISON])
    assert "| weighted F1 | 0.820 | 0.890 | **+0.070** (+0.040 … +0.100) |" in table
    assert "| C-NMC 2019 | densenet121" in table
    blocks = leakage_table([COMPARISON | {"data": {"name": "ball4", "title": "B-ALL", "unit": "block"}}])
    assert "| B-ALL — blocks for subjects | densenet121" in blocks
    assert "AUROC" not in table, "a metric that was not measured has no row"
    assert leakage_table([]) == "Not measured yet."


def _page(path: Path, *names: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    parts = [f"{start}\nstale\n{end}" for start, end in map(markers, names)]
    path.write_text("\n".join(["before", *parts, "after\n"]))
    return path


def test_tables_replace_only_what_stands_between_markers_on_every_page(release: Path, tmp_path: Path) -> None:
    (tmp_path / "results" / "leakage").mkdir(parents=True)
    (tmp_path / "results" / "leakage" / "a.json").write_text(json.dumps(COMPARISON))
    first, *others = readme_tables(tmp_path, [])
    readme, page = _page(tmp_path / "README.md", first), _page(tmp_path / "docs" / "results.md", *others)
    (tmp_path / "docs" / "other.md").write_text("no table here\n")
    assert update_tables(readme, [release]) == [readme, page]
    for text in (readme.read_text(), page.read_text()):
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text
    assert "0.777" in readme.read_text() and "+0.070" in page.read_text()


def test_a_table_without_a_place_is_refused_and_nothing_written(release: Path, tmp_path: Path) -> None:
    readme = _page(tmp_path / "README.md", "headline")
    with pytest.raises(LeukoscopeError, match="README.md, docs/, research/: lack the markers '<!-- rendered: leak"):
        update_tables(readme, [release])
    assert "stale" in readme.read_text()


def test_a_table_without_its_end_is_refused(release: Path, tmp_path: Path) -> None:
    readme = _page(tmp_path / "README.md", *readme_tables(tmp_path, []))
    readme.write_text(readme.read_text().replace(markers("results")[1], "no end"))
    with pytest.raises(LeukoscopeError, match=r"README\.md: lacks the marker '<!-- end of results -->' after"):
        update_tables(tmp_path / "README.md", [release])


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "leakage").mkdir()
    (tmp_path / "leakage" / "a.json").write_text("{")
    with pytest.raises(LeukoscopeError, match=r"a\.json: damaged \(.*\); restore it from the repository$"):
        readme_tables(tmp_path, [])


def test_committed_tables_are_the_rendered_ones() -> None:
    paths = ("README.md", "research/README.md", *(f"docs/{page.name}" for page in (REPOSITORY / "docs").glob("*.md")))
    pages = [(REPOSITORY / path).read_text() for path in paths]
    for name, table in readme_tables(REPOSITORY / "results", EMBEDDED).items():
        start, end = markers(name)
        held = [text.split(start)[1].split(end)[0] for text in pages if start in text]
        assert held and set(held) == {f"\n{table}\n"}, name


def test_speed_is_told_row_by_row_with_what_it_was_measured_on(release: Path, tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    assert speed_table(folder, [release]) == "Not measured yet."
    cpu: dict[str, Any] = {"threads": 2, "machine": {"cpu": "Some CPU", "gpus": []}}
    row = {"recipe": "densenet121", "setting": "all layers", "times_faster": {"cold": 1.254, "warm": 2}}
    rows = [row, row | {"recipe": "b3"}, {"recipe": "no comparison"}]
    (folder / "training.json").write_text(json.dumps(cpu | {"beside": "a script", "rows": rows}))
    (folder / "load.json").write_text(json.dumps(cpu | {"seconds": 3}))
    assert speed_table(folder, [release]).splitlines()[2:] == [
        "| training: times as fast as a script, after the first epoch | densenet121, all layers **2.00** · "
        "b3, all layers **2.00** |",
        "",
        "Measured on Some CPU, 2 thread(s).",
    ]
    ratios: list[dict[str, Any]] = [{"what": "one: times faster than timm", "value": 3.456, "aim": "≥ 3", "met": True}]
    ratios.append({"what": "many: times faster than timm", "value": 9})
    release = release.rename(release.with_name("ours"))
    ours = {"model": "ours", "ratios": ratios}
    gpu = cpu | {"machine": {"cpu": "Some CPU", "gpus": [{"name": "Some GPU"}]}}
    (folder / "inference.json").write_text(json.dumps(gpu | {"releases": [ours, ours | {"model": "gone"}]}))
    table = speed_table(folder, [release])
    assert table.splitlines()[2] == "| one: times faster than timm | `ours` **3.46** |"
    assert "9.00" not in table, "it has no aim"
    assert table.endswith("Measured on Some CPU, 2 thread(s); Some GPU.")
    (folder / "inference.json").write_text(json.dumps(gpu | {"device": "cpu", "releases": [ours]}))
    assert speed_table(folder, [release]).endswith("Measured on Some CPU, 2 thread(s)."), "the GPU was not used"


@pytest.mark.parametrize("directory", EMBEDDED, ids=lambda path: path.name)
def test_committed_metrics_of_a_release_are_those_of_its_predictions(directory: Path) -> None:
    evaluations = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))["evaluations"]
    assert evaluations
    for block in evaluations:
        predictions = CellPredictions.load(directory / "predictions" / f"{block['name']}.parquet")
        assert (predictions.folds is not None) == ("folds" in block)
        assert headline(block["metrics"]) == pytest.approx(headline(point_metrics(predictions)), abs=2e-5)


@pytest.mark.parametrize(
    "file", sorted((REPOSITORY / "results" / "prior").glob("*.parquet")), ids=lambda path: path.stem
)
def test_committed_metrics_of_a_prior_system_are_those_of_its_predictions(file: Path) -> None:
    predictions = CellPredictions.load(file)
    assert predictions.folds is not None
    committed = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["metrics"]
    assert headline(committed) == pytest.approx(headline(point_metrics(predictions)), abs=2e-5)
    if file.stem.endswith("-unseen"):
        whole = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        by_image = point_metrics(CellPredictions.load(file.with_stem(file.stem.replace("-unseen", "-random"))))
        unseen = point_metrics(predictions)
        for name, leak in whole["by_image_minus_unseen"].items():
            assert leak["difference"] == pytest.approx(by_image[name] - unseen[name], abs=2e-5), name


def test_a_cold_epoch_counts_all_that_comes_before_it() -> None:
    rows = json.loads((REPOSITORY / "results" / "benchmarks" / "training.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        complete = all("preparing_seconds" in turn for turn in row["turns"]["leukoscope"])
        assert complete or "cold" not in row["times_faster"], row["recipe"]
