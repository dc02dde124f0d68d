"""`leukoscope experiment reproduce`: the table there is, one line for what is missing, and rows that are made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from leukoscope import RESEARCH_NOTICE
from leukoscope.cli import app


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["experiment", "reproduce", *map(str, arguments)])


def test_the_table_has_ten_rows_before_anything_is_run(tmp_path: Path) -> None:
    result = run("--table", "--output", tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stdout.count("| not run | not run |") == 10
    assert result.stdout.endswith(f"{RESEARCH_NOTICE}\n")


def test_the_name_may_be_written_with_dashes() -> None:
    result = run("--recipe", "prior_d_baseline_cnn", "--dataset-name", "phantoms")
    assert result.stderr.startswith("error: --dataset_name phantoms: prior_d_baseline_cnn is rebuilt on cnmc2019; ")


def test_cells_must_be_named() -> None:
    result = run("--recipe", "prior_d_baseline_cnn")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "error: leukoscope experiment reproduce: name the cells, with --dataset_name cnmc2019 "
    )


def test_phantoms_never_stand_among_the_prior_results() -> None:
    result = run("--recipe", "prior_d_baseline_cnn", "--dataset_name", "phantoms")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: --dataset_name phantoms: prior_d_baseline_cnn is rebuilt on cnmc2019; ")


@pytest.mark.slow
def test_rows_are_made_once_and_shown(tmp_path: Path) -> None:
    small = ("--image_size", 64, "--num_train_epochs", 1, "--max_train_samples", 48, "--num_folds", 3)
    argv = (
        "--recipe",
        "prior_d_baseline_cnn",
        "--output",
        tmp_path / "rows",
        *small,
        "--dataset_name",
        "phantoms",
        "--output_dir",
        tmp_path / "runs",
    )
    first = run(*argv)
    assert first.exit_code == 0, first.output
    random, unseen = (tmp_path / "rows" / f"prior_d_baseline_cnn-{p}.json" for p in ("random", "unseen"))
    assert str(random) in first.stdout and str(unseen) in first.stdout
    made = json.loads(unseen.read_text())
    assert [(fold["epochs_run"], fold["cells"]) for fold in made["training"]["folds"]] == [(1, 48)] * 3
    runs = tmp_path / "runs" / "prior_d_baseline_cnn-unseen"
    assert all((runs / f"fold-{fold}" / "figures" / "confusion.png").is_file() for fold in range(3))
    again = run(*argv)
    assert again.stdout.count("has its row, skipped") == 2
    table = run("--table", "--output", tmp_path / "rows").stdout
    assert f"{made['metrics']['accuracy']:.3f}" in table and table.count("not run") == 18
