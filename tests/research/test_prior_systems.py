"""Rows of prior systems: which are made, that none is made twice, and that each says what it stands for."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.registry import DATASETS
from leukoscope.evaluation.calibration import OUT_OF_FOLD
from leukoscope.evaluation.metrics import measure
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.protocol import RANDOM_SPLIT
from leukoscope.training.config import TrainingConfig, parse_config
from research import commands
from research.prior_claims import CLAIMS
from research.prior_recipes import PRIOR_RECIPES
from research.prior_systems import PRIOR_RESULTS, Row, main, prior_rows, reproduce

pytestmark = pytest.mark.usefixtures("prior_recipes")

CNMC = ["--dataset_name", "cnmc2019"]
SHORT = ["--num_folds", "3", "--num_train_epochs", "2", "--from_scratch"]


@pytest.fixture(autouse=True)
def finished(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is trained but in slow tests: those of the others are finished."""
    if "slow" not in request.keywords:
        monkeypatch.setattr("research.prior_systems.train_prior", lambda config: config.output_dir)


def rows(tmp_path: Path, *flags: str, recipes: tuple[str, ...] = (), protocols: tuple[str, ...] = ()) -> list[Row]:
    config = parse_config([*flags, "--output_dir", str(tmp_path / "runs")])
    return prior_rows(config, recipes, protocols, tmp_path / "results")


@pytest.fixture
def row(tmp_path: Path) -> Row:
    """One row on unseen subjects, of which nothing is made yet."""
    (made,) = rows(tmp_path, *CNMC, *SHORT, "--image_size", "64", recipes=("prior_d_resnet",), protocols=("unseen",))
    return made


def finish_runs(row: Row, subjects: int = 6, wrong_in: int = 3, kept_epoch: int = 1) -> None:
    """Leave the run folders that training leaves: a fraction of each subject's cells is predicted wrongly."""
    count = 9 * subjects
    references = np.repeat(np.arange(subjects) % 2, 9)
    right = np.where(np.arange(count) % wrong_in == 0, 0.2, 0.8)
    probabilities = np.stack([np.where(references == k, right, 1 - right) for k in (0, 1)], axis=1)
    of_subject = np.arange(count) // 9
    for fold, run in enumerate(row.runs):
        run.folder.mkdir(parents=True)
        rows = np.flatnonzero(np.arange(count) // 3 % len(row.runs) == fold)
        tested = CellPredictions(
            tuple(f"cell-{i}" for i in rows),
            tuple(f"s{of_subject[i]}" for i in rows),
            references[rows],
            probabilities[rows],
            ("ALL", "HEM"),
        )
        tested.save(run.folder / "predictions.parquet")
        tested.save(run.folder / "size_only_predictions.parquet")
        training: dict[str, Any]
        training = {"cells": 100 + fold, "epochs_run": 2, "kept_epoch": kept_epoch, "seconds": 1.5, "seed": 0}
        training |= {"start_weights": "half of ResNet-50", "created": "", "hardware": "CPU", "versions": {"torch": "2"}}
        training["start_weights_sha256"] = ""
        data: dict[str, Any] = {k: "x" for k in ("name", "title", "citation")}
        data |= {"fingerprint": "0123456789abcdef", "cells": count, "unit": "subject"}
        block = {"split": {"fingerprint": f"f{fold}"}, "metrics": measure(tested)}
        recipe = asdict(run.config.resolve())
        metrics = {"recipe": recipe, "data": data, "training": training, "evaluations": [block]}
        (run.folder / "metrics.json").write_text(json.dumps(metrics))


def with_config(row: Row, config: TrainingConfig) -> Row:
    """The row, its first fold with another configuration."""
    return replace(row, runs=(replace(row.runs[0], config=config), *row.runs[1:]))


def test_every_claim_has_its_recipe_and_its_data_set() -> None:
    assert len(CLAIMS) == 10
    assert CLAIMS.keys() == PRIOR_RECIPES.keys()
    for name, claim in CLAIMS.items():
        assert claim.dataset in DATASETS
        assert f"prior_{claim.system.lower()}_" in name
        assert all(0 < value < 1 for value in claim.figures.values()) and "accuracy" in claim.figures


def test_all_recipes_of_a_data_set_are_made_under_both_protocols(tmp_path: Path) -> None:
    made = rows(tmp_path, *CNMC)
    assert [row.file.stem for row in made[:4]] == [
        "prior_e_densenet121_frozen-random",
        "prior_e_densenet121_frozen-unseen",
        "prior_a_efficientnet_b3-random",
        "prior_a_efficientnet_b3-unseen",
    ]
    assert len(made) == 18 and "prior_b_densenet201" not in {row.claim.recipe for row in made}
    assert {row.protocol: row.config.data.split for row in made} == {"random": "random-cv", "unseen": "subject-cv"}
    for row in made:
        assert [run.config.data.fold for run in row.runs] == [0, 1, 2, 3, 4]
        assert [run.folder for run in row.runs] == [tmp_path / "runs" / row.file.stem / f"fold-{k}" for k in range(5)]
    estimates = {row.protocol: row.runs[0].estimates for row in made}
    assert estimates == {"random": RANDOM_SPLIT.format(unit="subject"), "unseen": OUT_OF_FOLD}


def test_blocks_stand_for_subjects_where_none_are_named(tmp_path: Path) -> None:
    made = rows(tmp_path, "--dataset_name", "ball4")
    assert [row.file.stem for row in made] == ["prior_b_densenet201-random", "prior_b_densenet201-unseen"]
    assert made[1].config.data.split == "block-cv"


@pytest.mark.parametrize(
    ("flags", "recipes", "protocols", "message"),
    [
        (CNMC, ("vgg",), (), r"^--recipe vgg: unknown; choose one of prior_e_densenet121_frozen, "),
        (CNMC, (), ("both",), r"^--protocol both: unknown; choose one of random, unseen$"),
        ([*CNMC, "--split", "all"], (), (), r"^--split: an experiment makes its own splits .*; leave it out$"),
        ([*CNMC, "--push_to_hub"], (), (), r"^--push_to_hub: an experiment makes .*; leave it out$"),
        ([*CNMC, "--pretrained_weights", "w.safetensors"], (), (), r"^--pretrained_weights w\.safetensors: fits one "),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, flags: list[str], recipes: tuple[str, ...], protocols: tuple[str, ...], message: str
) -> None:
    with pytest.raises(LeukoscopeError, match=message):
        rows(tmp_path, *flags, recipes=recipes, protocols=protocols)


def test_other_cells_go_into_a_results_folder_of_their_own(tmp_path: Path) -> None:
    config = parse_config(["--dataset_name", "ball4", "--output_dir", str(tmp_path)])
    message = r"^--dataset_name ball4: prior_d_resnet is rebuilt on cnmc2019; .* --output DIR$"
    with pytest.raises(LeukoscopeError, match=message):
        prior_rows(config, ["prior_d_resnet"], [], PRIOR_RESULTS)
    assert len(prior_rows(config, ["prior_d_resnet"], [], tmp_path)) == 2


def test_finished_runs_become_a_row(row: Row) -> None:
    finish_runs(row)
    assert list(reproduce([row])) == [row.file]
    made: dict[str, Any] = json.loads(row.file.read_text())
    assert made["notice"] == RESEARCH_NOTICE
    assert made["protocol"] == "unseen" and made["estimates"] == OUT_OF_FOLD
    assert made["claim"]["figures"] == {"accuracy": 0.82} and made["claim"]["system"] == "D"
    assert made["metrics"]["accuracy"] == pytest.approx(2 / 3, abs=1e-5)
    assert made["metrics"]["subjects"] == 6
    assert made["intervals"]["by_subject"]["accuracy"]["low"] <= made["metrics"]["accuracy"]
    assert made["split"]["fingerprints"] == ["f0", "f1", "f2"]
    assert made["split"]["detail"] == "3-fold cross-validation by subject"
    assert made["size_only_baseline"]["accuracy"] == pytest.approx(2 / 3, abs=1e-5)
    assert [fold["cells"] for fold in made["training"]["folds"]] == [100, 101, 102]
    assert made["training"]["seconds"] == 4.5 and made["under_trained"] == ""
    assert made["training"]["start_weights"] == "half of ResNet-50"
    assert made["training"]["command"].startswith("train.py --dataset_name cnmc2019 --class_frequencies data --split ")


def test_a_row_with_its_file_is_skipped(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    finish_runs(row)
    list(reproduce([row]))
    before = row.file.stat().st_mtime_ns
    capsys.readouterr()
    # The run folder may be gone: the committed file is enough.
    (row.runs[0].folder / "metrics.json").unlink()
    assert list(reproduce([row])) == [row.file]
    assert capsys.readouterr().out == "row 1 of 1, prior_d_resnet-unseen: has its row, skipped\n"
    assert row.file.stat().st_mtime_ns == before


def test_a_row_of_other_flags_is_not_taken_for_this_one(row: Row, tmp_path: Path) -> None:
    finish_runs(row)
    list(reproduce([row]))
    flags = (*CNMC, *SHORT, "--image_size", "96", "--seed", "1")
    (other,) = rows(tmp_path, *flags, recipes=("prior_d_resnet",), protocols=("unseen",))
    with pytest.raises(
        LeukoscopeError, match=r"\.json: made with other flags \(.*'image_size': 64.*; .* the row anew$"
    ):
        list(reproduce([other]))
    moved = replace(row.config, data=replace(row.config.data, train_dir="/elsewhere"))
    assert with_config(row, moved).is_finished(), "where files lie makes no other row"


def test_a_damaged_row_is_named(row: Row) -> None:
    row.file.parent.mkdir(parents=True)
    row.file.write_text("{")
    with pytest.raises(
        LeukoscopeError, match=r"unseen\.json: damaged \(.*\); restore it, or remove it to run the row$"
    ):
        list(reproduce([row]))


def test_the_difference_between_both_protocols_has_an_interval(tmp_path: Path) -> None:
    by_image, unseen = rows(tmp_path, *CNMC, *SHORT, recipes=("prior_d_resnet",))
    finish_runs(by_image, wrong_in=9)
    finish_runs(unseen)
    list(reproduce([unseen]))
    assert "by_image_minus_unseen" not in json.loads(unseen.file.read_text())
    list(reproduce([by_image]))
    assert "by_image_minus_unseen" not in json.loads(by_image.file.read_text())
    leak = json.loads(unseen.file.read_text())["by_image_minus_unseen"]["accuracy"]
    assert leak["difference"] == pytest.approx(2 / 9, abs=1e-5)
    assert leak["low"] <= leak["difference"] <= leak["high"]


@pytest.mark.parametrize(
    ("block", "changed", "is_compared"),
    [
        ("recipe", {"image_size": 96}, False),
        ("training", {"start_weights": "other weights"}, False),
        ("recipe", {"learning_rate": 0.5}, False),
        ("recipe", {"about": "other words, the same recipe"}, True),
    ],
)
def test_protocols_of_other_settings_start_weights_or_recipes_have_no_difference(
    tmp_path: Path, block: str, changed: dict[str, Any], is_compared: bool
) -> None:
    by_image, unseen = rows(tmp_path, *CNMC, *SHORT, recipes=("prior_d_resnet",))
    finish_runs(by_image)
    finish_runs(unseen)
    list(reproduce([by_image]))
    made = json.loads(by_image.file.read_text())
    made[block] |= changed
    by_image.file.write_text(json.dumps(made))
    list(reproduce([unseen]))
    assert (json.loads(unseen.file.read_text())["by_image_minus_unseen"] is not None) == is_compared


@pytest.mark.parametrize(
    ("kept_epoch", "wrong_in", "reason"),
    [
        (1, 1, "predicts one class for nearly every cell"),
        (2, 3, "still improving when its 2 epochs ended, in 3 of 3 folds"),
    ],
)
def test_an_under_trained_row_says_why_and_too_few_subjects_leave_the_interval_out(
    row: Row, kept_epoch: int, wrong_in: int, reason: str
) -> None:
    finish_runs(row, subjects=2, kept_epoch=kept_epoch, wrong_in=wrong_in)
    list(reproduce([row]))
    made = json.loads(row.file.read_text())
    assert (made["under_trained"], made["intervals"]) == (reason, {})


PHANTOMS = ["--dataset_name", "phantoms", "--recipe", "prior_d_baseline_cnn", "--num_folds", "3", "--image_size", "64"]


# The program


def test_cells_must_be_named_and_phantoms_never_stand_among_the_prior_results() -> None:
    with pytest.raises(LeukoscopeError, match=r"^name the cells, with --dataset_name cnmc2019 "):
        main(["--recipe", "prior_d_baseline_cnn"])
    with pytest.raises(
        LeukoscopeError, match=r"^--dataset_name phantoms: prior_d_baseline_cnn is rebuilt on cnmc2019; "
    ):
        main(["--recipe", "prior_d_baseline_cnn", "--dataset_name", "phantoms"])


def test_an_error_ends_the_program_in_one_line() -> None:
    with pytest.raises(SystemExit, match="^error: --recipe vgg: unknown; choose one of prior_e_"):
        commands.run(lambda: main(["--dataset_name", "phantoms", "--recipe", "vgg"]))


@pytest.mark.slow
def test_rows_are_made_once_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*PHANTOMS, "--protocol", "unseen", "--num_train_epochs", "1", "--max_train_samples", "48"]
    argv += ["--output", str(tmp_path / "rows"), "--output_dir", str(tmp_path / "runs")]
    main(argv)
    row = tmp_path / "rows" / "prior_d_baseline_cnn-unseen.json"
    assert str(row) in capsys.readouterr().out
    made = json.loads(row.read_text())
    assert [(fold["epochs_run"], fold["cells"]) for fold in made["training"]["folds"]] == [(1, 48)] * 3
    runs = tmp_path / "runs" / "prior_d_baseline_cnn-unseen"
    assert all((runs / f"fold-{fold}" / "summary.csv").is_file() for fold in range(3))
    assert not (runs / "fold-0" / "release").exists(), "a release cannot hold its network"
    main(argv)
    assert capsys.readouterr().out.count("has its row, skipped") == 1
