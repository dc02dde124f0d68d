"""Rows of prior systems: which are made, that none is made twice, and that each says what it stands for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.registry import DATASETS
from leukoscope.evaluation.metrics import CellPredictions, measure
from leukoscope.experiments.prior_systems import CLAIMS, PRIOR_RESULTS, Row, prior_rows, reproduce
from leukoscope.experiments.protocol import RANDOM_SPLIT
from leukoscope.models.recipes import RECIPES, get_recipe
from leukoscope.training.config import parse_config
from leukoscope.training.run_folder import write_args

CNMC = ["--dataset_name", "cnmc2019"]


def rows(tmp_path: Path, *flags: str, recipes: tuple[str, ...] = (), protocols: tuple[str, ...] = ()) -> list[Row]:
    config = parse_config([*flags, "--output_dir", str(tmp_path / "runs")])
    return prior_rows(config, recipes, protocols, tmp_path / "results")


@pytest.fixture
def row(tmp_path: Path) -> Row:
    """One row on unseen subjects, of which nothing is made yet."""
    (made,) = rows(tmp_path, *CNMC, "--image_size", "64", recipes=("prior_d_resnet",), protocols=("unseen",))
    return made


def finish_run(row: Row, subjects: int = 6) -> None:
    """Leave the run folder that training leaves: a third of each subject's cells is answered wrong."""
    config, recipe = row.run.config, row.run.config.resolve()
    (row.run.folder / "release").mkdir(parents=True)
    write_args(row.run.folder / "args.yaml", config, recipe)
    references = np.repeat(np.arange(subjects) % 2, 9)
    right = np.where(np.arange(len(references)) % 3 == 0, 0.2, 0.8)
    probabilities = np.stack([np.where(references == k, right, 1 - right) for k in (0, 1)], axis=1)
    ids = tuple(f"cell-{i}" for i in range(len(references)))
    answers = CellPredictions(
        ids, tuple(f"s{i // 9}" for i in range(len(ids))), references, probabilities, ("ALL", "HEM")
    )
    answers.save(row.run.folder / "predictions.parquet")
    split = {"strategy": "subject", "detail": "about 70/15/15 by subject", "disjoint_by": "subject", "fingerprint": "f"}
    block = {"split": split, "metrics": measure(answers), "size_only_baseline": {"accuracy": 0.6}}
    training = {k: 1 for k in ("cells", "epochs_run", "kept_epoch", "seconds", "seed")}
    training |= {"start_weights": "half of ResNet-50", "created": "", "hardware": "CPU", "versions": {"torch": "2"}}
    data: dict[str, Any] = {k: "x" for k in ("name", "title", "unit", "citation")}
    data |= {"fingerprint": "0123456789abcdef", "cells": len(ids)}
    metrics = {"recipe": {"image_size": 64}, "data": data, "training": training, "evaluations": [block]}
    for folder in (row.run.folder, row.run.folder / "release"):
        (folder / "metrics.json").write_text(json.dumps(metrics))


def test_every_claim_has_its_recipe_and_its_data_set() -> None:
    assert len(CLAIMS) == 10
    for name, claim in CLAIMS.items():
        assert get_recipe(name) is RECIPES[name]
        assert claim.dataset in DATASETS
        assert f"prior_{claim.system.lower()}_" in name
        assert all(0 < value < 1 for value in claim.figures.values()) and "accuracy" in claim.figures


def test_all_recipes_of_a_data_set_are_made_under_both_protocols(tmp_path: Path) -> None:
    made = rows(tmp_path, *CNMC)
    assert [row.run.name for row in made[:4]] == [
        "prior_e_densenet121_frozen-random",
        "prior_e_densenet121_frozen-unseen",
        "prior_a_efficientnet_b3-random",
        "prior_a_efficientnet_b3-unseen",
    ]
    assert len(made) == 18 and "prior_b_densenet201" not in {row.claim.recipe for row in made}
    splits = {row.protocol: row.run.config.data.split for row in made}
    assert splits == {"random": "random", "unseen": "subject"}
    assert {row.run.folder for row in made} == {tmp_path / "runs" / row.run.name for row in made}
    assert made[0].run.estimates == RANDOM_SPLIT and made[1].run.estimates == "recipe (one split by subject)"


def test_blocks_stand_for_patients_where_none_are_named(tmp_path: Path) -> None:
    made = rows(tmp_path, "--dataset_name", "ball4")
    assert [row.run.name for row in made] == ["prior_b_densenet201-random", "prior_b_densenet201-unseen"]
    assert made[1].run.config.data.split == "block"
    assert made[1].run.estimates == "recipe (one split by block)"


@pytest.mark.parametrize(
    ("flags", "recipes", "protocols", "message"),
    [
        (CNMC, ("vgg",), (), r"^--recipe vgg: unknown; choose one of prior_e_densenet121_frozen, "),
        (CNMC, (), ("both",), r"^--protocol both: unknown; choose one of random, unseen$"),
        ([*CNMC, "--split", "all"], (), (), r"^--split: the protocols make their own splits .*; leave it out$"),
        ([*CNMC, "--push_to_hub"], (), (), r"^--push_to_hub: the protocols make .*; leave it out$"),
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


def test_a_finished_run_becomes_a_row_without_training_again(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    finish_run(row)
    assert list(reproduce([row])) == [row.file]
    assert "finished earlier, kept" in capsys.readouterr().out
    made: dict[str, Any] = json.loads(row.file.read_text())
    assert made["notice"] == RESEARCH_NOTICE
    assert made["protocol"] == "unseen" and made["estimates"] == "recipe (one split by subject)"
    assert made["claim"]["figures"] == {"accuracy": 0.82} and made["claim"]["system"] == "D"
    assert made["metrics"]["accuracy"] == pytest.approx(2 / 3, abs=1e-5)
    assert made["metrics"]["one_vs_rest_accuracy"] == pytest.approx(2 / 3, abs=1e-5)
    assert made["metrics"]["per_class"]["ALL"]["specificity"] == pytest.approx(2 / 3, abs=1e-5)
    assert made["metrics"]["subjects"] == 6
    assert made["intervals"]["by_subject"]["accuracy"]["low"] <= made["metrics"]["accuracy"]
    assert made["split"]["fingerprint"] == "f" and made["size_only_baseline"] == {"accuracy": 0.6}
    assert made["training"]["start_weights"] == "half of ResNet-50"
    assert made["training"]["command"].startswith("train.py --dataset_name cnmc2019 --recipe prior_d_resnet")


def test_a_row_with_its_file_is_skipped(row: Row, capsys: pytest.CaptureFixture[str]) -> None:
    finish_run(row)
    list(reproduce([row]))
    before = row.file.stat().st_mtime_ns
    capsys.readouterr()
    # The run folder may be gone: the committed file is enough.
    (row.run.folder / "metrics.json").unlink()
    assert list(reproduce([row])) == [row.file]
    assert capsys.readouterr().out == "row 1 of 1, prior_d_resnet-unseen: has its row, skipped\n"
    assert row.file.stat().st_mtime_ns == before


def test_a_row_of_other_settings_is_not_taken_for_this_one(row: Row, tmp_path: Path) -> None:
    finish_run(row)
    list(reproduce([row]))
    (other,) = rows(
        tmp_path, *CNMC, "--image_size", "96", "--seed", "1", recipes=("prior_d_resnet",), protocols=("unseen",)
    )
    message = r"unseen\.json: made with other settings \(image_size: 64, seed: None\); .* to run the row anew$"
    with pytest.raises(LeukoscopeError, match=message):
        list(reproduce([other]))


def test_a_row_of_other_cells_is_not_taken_for_this_one(row: Row, tmp_path: Path) -> None:
    finish_run(row)
    list(reproduce([row]))
    for number, label in enumerate(("all", "hem")):
        folder = tmp_path / "cells" / "fold_0" / label
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / f"UID_{'H' * number}1_1_1_{label}.bmp")
    config = row.run.config
    other = replace(config, data=replace(config.data, train_dir=str(tmp_path / "cells")))
    message = r"unseen\.json: made with other settings \(the data's fingerprint: 0123456789ab\); .* the row anew$"
    with pytest.raises(LeukoscopeError, match=message):
        replace(row, run=replace(row.run, config=other)).is_finished()


def test_a_row_of_other_start_weights_is_not_taken_for_this_one(row: Row, tmp_path: Path) -> None:
    def starting_from(name: str | None) -> Row:
        file = None if name is None else str(tmp_path / name)
        config = replace(row.run.config, model=replace(row.run.config.model, pretrained_weights=file))
        return replace(row, run=replace(row.run, config=config))

    for name in ("there/a.safetensors", "there/b.safetensors", "elsewhere/a.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    made = starting_from("there/a.safetensors")
    finish_run(made)
    list(reproduce([made]))
    assert "there" not in made.file.read_text(), "where files lie is private"
    assert starting_from("elsewhere/a.safetensors").is_finished()
    for name in ("there/b.safetensors", None):
        with pytest.raises(LeukoscopeError, match=r"made with other settings \(pretrained_weights: a\.safetensors\)"):
            starting_from(name).is_finished()


def test_a_damaged_row_is_named(row: Row) -> None:
    row.file.parent.mkdir(parents=True)
    row.file.write_text("{")
    with pytest.raises(
        LeukoscopeError, match=r"unseen\.json: damaged \(.*\); restore it, or remove it to run the row$"
    ):
        list(reproduce([row]))


def test_where_files_lie_makes_no_other_row(row: Row) -> None:
    finish_run(row)
    list(reproduce([row]))
    config = row.run.config
    moved = replace(config, data=replace(config.data, train_dir="/elsewhere"))
    assert replace(row, run=replace(row.run, config=moved)).is_finished()


def test_too_few_subjects_leave_the_interval_out(row: Row) -> None:
    finish_run(row, subjects=2)
    list(reproduce([row]))
    assert json.loads(row.file.read_text())["intervals"] == {}


def test_a_random_split_has_no_interval_by_subject(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, *CNMC, recipes=("prior_d_resnet",), protocols=("random",))
    finish_run(row)
    list(reproduce([row]))
    assert json.loads(row.file.read_text())["intervals"] == {}
