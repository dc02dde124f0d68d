"""Ablations: which runs a grid makes, what may differ between settings, and what the comparison says."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.evaluation.bootstrap import aligned
from leukoscope.evaluation.predictions import CellPredictions, pooled
from leukoscope.protocol import ProtocolRun
from research import ablation
from research.ablation import ablation_settings, main, make_runs, read_grid, worst_subjects_accuracy

ROOT = Path(__file__).parents[2]
GRID = {"house": [], "No jitter!": ["--override", "augmentation.scale=0"]}
COMMON = ["--num_folds", "3", "--image_size", "32"]


def test_a_grid_is_read_in_order_with_variables_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTS", "/somewhere")
    file = tmp_path / "grid.yaml"
    file.write_text("house:\nlarger: --image_size 64 --pretrained_weights $WEIGHTS/w.safetensors\n")
    grid = read_grid(file)
    assert list(grid.items()) == [
        ("house", []),
        ("larger", ["--image_size", "64", "--pretrained_weights", "/somewhere/w.safetensors"]),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"grid.yaml: cannot be read \(No such file or directory\); give a YAML file of settings"),
        ("a: [", r"grid.yaml: no YAML \(.*\); write lines `name: --flag …`"),
        ("- a\n- b\n", "grid.yaml: give two settings or more"),
        ("house: --seed 0\n", "grid.yaml: give two settings or more"),
        ("a:\nb:\na: --seed 1\n", "grid.yaml: a: a name used twice; rename one of the settings$"),
        ("a:\nb: --override 'x\n", "grid.yaml: b: --override 'x: no closing quotation; close the quotes$"),
        ("1:\nb:\n'1': --seed 1\n", "grid.yaml: 1: a name used twice"),
        ("house: 1\nother: 2\n", "grid.yaml: give two settings or more, each a line"),
    ],
)
def test_what_is_no_grid_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "grid.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(LeukoscopeError, match=message):
        read_grid(file)


@pytest.mark.parametrize("file", sorted((ROOT / "results" / "ablation").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_setting_of_a_committed_grid_can_be_made(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTS", str(tmp_path))
    grid = read_grid(file)
    for name in {word for flags in grid.values() for word in flags if word.endswith(".safetensors")}:
        Path(name).touch()
    made = ablation_settings(["--dataset_name", "cnmc2019", "--output_dir", str(tmp_path / "runs")], grid)
    assert [setting.name for setting in made] == list(grid)


def test_every_setting_is_cross_validated_in_a_folder_of_its_own(tmp_path: Path) -> None:
    house, other = ablation_settings([*COMMON, "--output_dir", str(tmp_path)], GRID)
    assert (house.name, other.name) == ("house", "No jitter!")
    assert [run.folder for run in other.runs] == [tmp_path / "no-jitter" / f"cv-{fold}" for fold in range(3)]
    assert {run.config.data.split for run in house.runs} == {"subject-cv"}
    assert [run.config.data.fold for run in house.runs] == [0, 1, 2]
    assert all(run.config.data.no_validation for run in house.runs), "no epoch is chosen on any cell"
    assert house.runs[0].config.resolve().augmentation.scale > 0 == other.runs[0].config.resolve().augmentation.scale


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_folds", "4"], "setting 'b': --num_folds differs from the other settings'"),
        (["--dataset_name", "ball4"], "setting 'b': --dataset_name differs"),
        (["--seed", "1"], "setting 'b': --seed differs"),
        (["--max_eval_samples", "5"], "setting 'b': --max_eval_samples differs"),
        (["--override", "ema_decay=often"], "--override ema_decay=often: input should be a valid number"),
        (["--push_to_hub"], "publishes nothing"),
        (["--split", "random"], "--split: an experiment makes its own splits"),
    ],
)
def test_settings_that_cannot_be_compared_are_refused_before_training(flags: list[str], message: str) -> None:
    with pytest.raises(LeukoscopeError, match=message):
        ablation_settings(COMMON, {"a": [], "b": flags})


def test_settings_may_train_on_fewer_cells_and_need_names_of_their_own() -> None:
    assert len(ablation_settings(COMMON, {"a": [], "b": ["--max_train_samples", "64"]})) == 2
    with pytest.raises(LeukoscopeError, match=r"two names give one folder \(a-b\); rename one"):
        ablation_settings(COMMON, {"a b": [], "A_b": []})


def test_the_worst_tenth_of_the_subjects_counts_subjects_not_cells() -> None:
    subjects = [f"s{i}" for i in range(20) for _ in range(4)]
    right = np.ones(80, dtype=int)
    right[0:4], right[4:6] = 0, 0  # s0 all wrong, s1 half wrong
    answers = CellPredictions(
        tuple(map(str, range(80))), tuple(subjects), np.ones(80, dtype=int), np.eye(2)[right], ("a", "b")
    )
    assert worst_subjects_accuracy(answers) == pytest.approx(0.25)


def test_a_setting_that_the_grid_lacks_is_refused(tmp_path: Path) -> None:
    settings = ablation_settings([*COMMON, "--output_dir", str(tmp_path)], GRID)
    with pytest.raises(LeukoscopeError, match="^--only cutout: no such setting; the grid has house, No jitter!$"):
        make_runs(settings, ["house", "cutout"])
    assert not list(tmp_path.iterdir()), "refused before the first run"


@pytest.mark.parametrize("main", [True, False])
def test_a_finished_table_is_replaced_only_by_a_finished_one_of_the_main_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, main: bool
) -> None:
    results, seen, kept = tmp_path / "r.json", [], []
    results.write_text("an earlier table")

    def finish(runs: list[ProtocolRun]) -> None:
        seen.append({path.name: path.read_text() for path in tmp_path.iterdir()})

    monkeypatch.setattr(ablation, "finish", finish)

    def compare(settings: list[ablation.Setting], measured: list[str]) -> dict[str, list[str]]:
        kept.append(list(measured))
        return {"settings": [setting.name for setting in settings]}

    monkeypatch.setattr(ablation, "compare_settings", compare)
    monkeypatch.setattr("accelerate.PartialState", lambda: SimpleNamespace(is_main_process=main))
    ablation.ablate(ablation_settings([*COMMON, "--output_dir", str(tmp_path / "runs")], GRID), results)
    assert kept == [[], ["house"]], "no setting is measured twice"
    assert seen[0] == {"r.json": "an earlier table"}
    assert seen[1].pop("r.json") == "an earlier table", "though the first setting is finished"
    assert [json.loads(text) for text in seen[1].values()] == [{"settings": ["house"]}] * main
    if main:
        assert json.loads(results.read_text()) == {"settings": ["house", "No jitter!"]}
        assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    else:
        assert results.read_text() == "an earlier table"


@pytest.mark.slow
def test_the_command_compares_settings_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, results = tmp_path / "grid.yaml", tmp_path / "results" / "r.json"
    grid.write_text("house:\nbalanced: --override sampling=subjects ema_decay=0.9\n")
    argv = [str(grid), "--output", str(results), "--output_dir", str(tmp_path / "runs"), "--num_folds", "2"]
    argv += ["--image_size", "32", "--num_train_epochs", "1", "--max_train_samples", "96"]
    main([*argv, "--only", "balanced"])
    assert not results.exists()
    capsys.readouterr()
    main(argv)
    said = capsys.readouterr().out
    assert said.count("finished earlier, kept") == 2
    made = json.loads(results.read_text())
    house, balanced = made["settings"]
    assert made["compared_with"] == "house" and made["notice"] == RESEARCH_NOTICE
    assert house["difference"]["f1_weighted"]["difference"] == 0.0
    assert balanced["recipe"]["sampling"] == "subjects" and balanced["metrics"]["cells"] == house["metrics"]["cells"]
    assert balanced["by_subject"]["auroc"].keys() >= {"low", "high"}
    one, other = (
        pooled(
            [CellPredictions.load(path) for path in sorted((tmp_path / "runs" / name).glob("*/predictions.parquet"))]
        )
        for name in ("house", "balanced")
    )
    averaged = (one.probabilities + aligned(other, one).probabilities) / 2
    right = averaged.argmax(axis=1) == one.references
    assert made["together"]["metrics"]["accuracy"] == pytest.approx(right.mean())
    assert "| *the mean prediction of all* |" in said
    assert "| balanced |" in said and RESEARCH_NOTICE in said
    main(argv)
    assert capsys.readouterr().out.count("finished earlier, kept") == 4
