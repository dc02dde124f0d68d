"""Leakage of subjects: the same test cells, equally many training cells; only the subjects' other halves differ."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from drawn import place
from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.loading import load_cells
from leukoscope.data.splits import groups_of
from leukoscope.training.config import parse_config
from research.leakage import SEEN, UNSEEN, compare_leakage, leakage_pair, leakage_runs, main


def _labels(data: LoadedCells) -> dict[str, int]:
    return dict(zip(data.train["cell_id"][:], data.train["label"][:], strict=True))


@pytest.mark.parametrize("limit", [None, 60])
def test_only_the_tested_subjects_other_cells_differ(phantom_data: LoadedCells, limit: int | None) -> None:
    pair = leakage_pair(phantom_data, 0, max_train_cells=limit)
    subject, label = groups_of(phantom_data, "subject"), _labels(phantom_data)
    assert pair[UNSEEN].test == pair[SEEN].test
    tested = {subject[cell] for cell in pair[UNSEEN].test}
    assert not tested & {subject[cell] for cell in pair[UNSEEN].train}
    leaked = tested & {subject[cell] for cell in pair[SEEN].train}
    assert leaked == tested if limit is None else leaked, "the tested subjects leak"
    assert not set(pair[SEEN].test) & set(pair[SEEN].train), "but no tested cell is trained on"
    of_class = [Counter(label[cell] for cell in pair[side].train) for side in (UNSEEN, SEEN)]
    assert of_class[0] == of_class[1]
    assert limit is None or limit - 2 < len(pair[UNSEEN].train) <= limit


def test_a_seed_draws_its_own_subjects_of_every_class_and_repeats_them(phantom_data: LoadedCells) -> None:
    first, again, other = (leakage_pair(phantom_data, seed)[SEEN] for seed in (0, 0, 1))
    assert first == again
    assert set(first.test) != set(other.test)
    label = _labels(phantom_data)
    shares = Counter(label[cell] for cell in leakage_pair(phantom_data, 3)[UNSEEN].test)
    for k, count in Counter(label.values()).items():
        assert 0.08 < shares[k] / count < 0.25, "about an eighth of each class is tested"


def test_cells_without_subjects_cannot_price_a_leak(tmp_path: Path) -> None:
    data = load_cells(
        "imagefolder", place(tmp_path, *(f"{label}/{n}.png" for label in ("ALL", "HEM") for n in range(4)))
    )
    with pytest.raises(LeukoscopeError, match=r"^class ALL has 0 known subject\(s\); .* --labels\)$"):
        leakage_pair(data, 0)


def test_the_comparison_takes_its_figures_from_finished_runs(tmp_path: Path) -> None:
    argv = ["--output_dir", str(tmp_path), "--image_size", "32", "--max_train_samples", "64"]
    runs = list(leakage_runs(parse_config(argv), seeds=[0, 1]))
    assert [run.name for run in runs] == ["unseen-0", "seen-0", "unseen-1", "seen-1"]
    assert all(Path(run.config.data.split_file or "").is_file() for run in runs)
    for run, f1 in zip(runs, (0.7, 0.9, 0.8, 0.85), strict=True):
        _write_metrics(run.folder, f1)
    comparison = compare_leakage(runs)
    gain = comparison["difference"]["f1_weighted"]
    assert gain == {"mean": pytest.approx(0.125), "smallest": pytest.approx(0.05), "largest": pytest.approx(0.2)}
    assert comparison["seeds"][1]["difference"]["f1_weighted"] == pytest.approx(0.05)
    assert "auroc" not in comparison["difference"], "a figure that one side lacks has no difference"
    assert comparison["training_seconds"] == 40 and comparison["notice"] == RESEARCH_NOTICE


def test_a_metric_that_one_seed_lacks_has_no_mean_over_seeds(tmp_path: Path) -> None:
    runs = list(leakage_runs(parse_config(["--output_dir", str(tmp_path), "--image_size", "32"]), seeds=[0, 1]))
    for run, equal_size in zip(runs, (0.6, 0.7, None, 0.7), strict=True):
        _write_metrics(run.folder, 0.8, auroc_equal_size=equal_size)
    comparison = compare_leakage(runs)
    assert comparison["seeds"][0]["difference"]["auroc_equal_size"] == pytest.approx(0.1)
    assert "auroc_equal_size" not in comparison["difference"] and "f1_weighted" in comparison["difference"]


def _write_metrics(folder: Path, f1: float, **more: float | None) -> None:
    figures = {k: f1 for k in ("accuracy", "balanced_accuracy", "f1_weighted", "f1_macro")} | more
    folder.mkdir(parents=True)
    content = {
        "recipe": {"name": "densenet121"},
        "data": {k: "" for k in ("name", "title", "fingerprint", "unit", "citation")},
        "training": {"start_weights": "x", "cells": 64, "seconds": 10, "hardware": "CPU", "versions": {}},
        "evaluations": [{"metrics": {"cells": 20, "auroc": None, **figures}}],
    }
    (folder / "metrics.json").write_text(json.dumps(content))


@pytest.mark.parametrize("flag", [["--split", "random"], ["--num_folds", "3"], ["--push_to_hub"]])
def test_flags_without_an_effect_are_refused(flag: list[str]) -> None:
    with pytest.raises(LeukoscopeError, match=rf"^{flag[0]}: an experiment makes its own splits .* leave it out$"):
        next(leakage_runs(parse_config(flag), seeds=[0]))


def test_no_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match="^--seeds 0: give 1 or more$"):
        main(["--output", str(tmp_path / "r.json"), "--seeds", "0"])


@pytest.mark.slow
def test_the_command_trains_both_sides_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--image_size", "32", "--num_train_epochs", "1", "--max_train_samples", "64"]
    argv = ["--output", str(tmp_path / "r.json"), "--seeds", "1", *flags]
    argv += ["--output_dir", str(tmp_path / "runs")]
    main(argv)
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["train_cells"] == [64] and result["seeds"][0]["test_cells"] > 10
    assert f"{result['difference']['f1_weighted']['mean']:+.3f}" in said and RESEARCH_NOTICE in said
    main(argv)
    assert capsys.readouterr().out.count("this run is finished, and is not trained again") == 2
    with pytest.raises(LeukoscopeError, match=r"holds a run with other settings \(the split's fingerprint: "):
        main([*argv, "--max_train_samples", "48"])
