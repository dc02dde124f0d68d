"""An evaluation must say what it estimates and who trained the model before it shows a single flattering figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.evaluation.evaluate import ModelPredictions
from leukoscope.evaluation.plots import confusion_plot
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.reports.html import build_evaluation, decisions_line, plot_picture, write_evaluation
from leukoscope.reports.release_tables import worst_first

NOT_A_TEST = {"verdict": "bad", "statement": "These weights were trained on 6 of these 6 subjects: not a test."}
FINE = {"verdict": "good", "statement": "None of these 6 subjects trained these weights."}


def answers(seed: int = 0, subjects: bool = True) -> CellPredictions:
    """Three subjects a class with ten cells each; subject s0 is answered wrong throughout."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(6), 10)
    references = owner % 2
    shares = rng.uniform(0.2, 0.9, size=60)
    positive = np.where(references == 0, shares, 1 - shares)
    positive[owner == 0] = 0.1
    names = tuple(f"s{o}" for o in owner) if subjects else ("",) * 60
    ids = tuple(f"cell-{i}" for i in range(60))
    return CellPredictions(ids, names, references, np.stack([positive, 1 - positive], axis=1), ("ALL", "HEM"))


def answered(overlap: Mapping[str, Any] = FINE, **more: Any) -> ModelPredictions:
    return ModelPredictions(answers(**more), "some-model", "", "these weights", overlap)


@pytest.fixture(scope="module")
def evaluation() -> dict[str, Any]:
    return build_evaluation(answered(), None, compared=replace(answered(seed=1), name="another"))


def test_a_dollar_in_a_label_is_no_formula() -> None:
    picture = plot_picture(confusion_plot([[3, 1], [0, 2]], [r"$\foo$", "x"]), "two classes")
    assert picture.source.startswith("data:image/svg+xml")


def test_the_json_says_what_was_measured_on_whom(evaluation: dict[str, Any], tmp_path: Path) -> None:
    write_evaluation(tmp_path / "new" / "out", evaluation, answers())
    read = json.loads((tmp_path / "new" / "out" / "evaluation.json").read_text())
    assert read["notice"] == RESEARCH_NOTICE
    assert (read["estimates"], read["training_overlap"]) == ("these weights", FINE)
    assert read["metrics"]["cells"] == 60 and len(read["metrics"]["subjects"]) == 6
    block = read["intervals"]
    assert block["subjects"] == {"ALL": 3, "HEM": 3} and block["draws"] == 2000
    assert set(block["by_subject"]) == set(read["figures"])
    for key, interval in block["by_cell"].items():
        assert interval["low"] <= read["figures"][key] <= interval["high"], key
    assert read["versions"]["leukoscope"]


def test_figures_of_the_json_agree_with_its_metrics(evaluation: dict[str, Any]) -> None:
    for key in ("accuracy", "balanced_accuracy", "f1_weighted", "f1_macro", "auroc"):
        assert evaluation["figures"][key] == pytest.approx(evaluation["metrics"][key], abs=1e-9)


def test_the_answers_are_kept_beside_the_page(evaluation: dict[str, Any], tmp_path: Path) -> None:
    write_evaluation(tmp_path, evaluation, answers())
    kept = CellPredictions.load(tmp_path / "predictions.parquet")
    assert kept.cell_ids == answers().cell_ids
    assert np.allclose(kept.probabilities, answers().probabilities, atol=1e-6)


def test_the_page_shows_figures_subjects_and_the_other_model(evaluation: dict[str, Any], tmp_path: Path) -> None:
    text = write_evaluation(tmp_path, evaluation, answers()).read_text()
    for part in ("Metrics", "Subject by subject", "Which class is taken for which", "Beside another", RESEARCH_NOTICE):
        assert part in text
    assert "<td>s0</td><td>ALL</td><td>10</td><td>0.000</td>" in text, "the worst subject is named"
    assert text.count("data:image/svg+xml") == 3
    assert "With so few subjects of ALL and HEM" in text
    assert "bootstrap samples of subjects. An interval" in text and "difference (95% interval, by subject)" in text


def test_decisions_of_a_release_are_said(tmp_path: Path) -> None:
    cells = answers()
    some = ("ALL", "abstain", "out of distribution", "HEM", *["abstain"] * (len(cells.cell_ids) - 4))
    right = int(cells.references[0] == 0) + int(cells.references[3] == 1)
    evaluation = build_evaluation(replace(answered(), predictions=cells, outcomes=some), None)
    line = (
        f"The release gives a class to 2 of these {len(some)} cells, {right} of them right ({len(some) - 3} abstain, "
        "1 out of distribution)."
    )
    assert decisions_line(evaluation["decisions"]) == line
    assert line in write_evaluation(tmp_path, evaluation, cells).read_text()


def test_blocks_are_named_blocks_and_promise_nothing_for_new_patients(tmp_path: Path) -> None:
    evaluation = build_evaluation(replace(answered(), unit="block"), None)
    text = write_evaluation(tmp_path, evaluation, answers()).read_text()
    assert evaluation["unit"] == "block"
    assert "60 cells of 6 blocks." in text and "Block by block" in text
    assert "how far a metric may move with other blocks like these (3 ALL, 3 HEM)" in text
    assert "other subjects like these" not in text and "resampling subjects" not in text
    assert "nothing on this page says what to expect of new ones" in text


def test_a_model_that_saw_these_people_is_called_out_before_any_figure(tmp_path: Path) -> None:
    evaluation = build_evaluation(answered(overlap=NOT_A_TEST), None)
    text = write_evaluation(tmp_path, evaluation, answers()).read_text()
    header = text.split("</header>")[0]
    assert header.index(NOT_A_TEST["statement"]) < header.index("Balanced accuracy")
    assert 'Overlap with the training<span class="verdict bad">' in text
    assert "no interval below says what to expect of new ones" in text


def test_figures_from_synthetic_cells_say_so_at_the_top(evaluation: dict[str, Any], tmp_path: Path) -> None:
    data = {"title": "Phantoms", "synthetic": True, "fingerprint": "0" * 64, "citation": "none"}
    header = write_evaluation(tmp_path, {**evaluation, "data": data}, answers()).read_text().split("</header>")[0]
    assert "Synthetic cells: these metrics say nothing about patients." in header


def test_without_subjects_the_reason_stands_where_the_interval_would(tmp_path: Path) -> None:
    evaluation = build_evaluation(answered(subjects=False), None)
    assert evaluation["intervals"]["by_subject"] is None
    assert evaluation["intervals"]["by_cell"]
    text = write_evaluation(tmp_path, evaluation, answers(subjects=False)).read_text()
    assert "No interval by subject: cell cell-0: its subject is not known" in text
    assert "Subject by subject" not in text


def test_without_subjects_two_models_are_compared_by_cell_and_the_page_says_so(tmp_path: Path) -> None:
    first, other = answered(subjects=False), replace(answered(subjects=False, seed=1), name="another")
    evaluation = build_evaluation(first, None, compared=other)
    assert evaluation["comparison"]["resampled"] == "cells"
    found = evaluation["comparison"]["figures"]["accuracy"]
    assert found["low"] <= found["difference"] <= found["high"]
    text = write_evaluation(tmp_path, evaluation, first.predictions).read_text()
    assert "the same bootstrap samples of cells. An interval that includes 0 decides nothing. Intervals by cell" in text
    assert "difference (95% interval, by cell)" in text


def test_an_interval_without_width_is_not_taken_for_certainty(tmp_path: Path) -> None:
    right = answers()
    perfect = replace(right, probabilities=np.eye(2)[right.references])
    text = write_evaluation(
        tmp_path, build_evaluation(replace(answered(), predictions=perfect), None), perfect
    ).read_text()
    assert "No width (accuracy, " in text and "not that the metric is certain" in text


def test_many_unreadable_cells_are_counted_not_listed(tmp_path: Path) -> None:
    lost = tuple(f"cell {i}: is empty" for i in range(50))
    evaluation = build_evaluation(replace(answered(), left_out=lost), None)
    assert evaluation["left_out"] == list(lost)
    text = write_evaluation(tmp_path, evaluation, answers()).read_text()
    assert "cell 19: is empty" in text and "cell 20: is empty" not in text
    assert "and 30 more, in evaluation.json" in text


def test_the_worst_subjects_come_first(evaluation: dict[str, Any]) -> None:
    subjects = evaluation["metrics"]["subjects"]
    (name, worst), *_ = worst_first(subjects)
    assert (name, worst["accuracy"], worst["cells"]) == ("s0", 0.0, 10)
    assert len(worst_first(subjects)) == 6


def test_no_answer_at_all_is_an_error_with_its_reason() -> None:
    nothing = CellPredictions((), (), np.zeros(0, dtype=int), np.zeros((0, 2)), ("ALL", "HEM"))
    with pytest.raises(LeukoscopeError, match=r"m: not one cell was predicted \(a.png: is empty\); check the cells"):
        build_evaluation(ModelPredictions(nothing, "m", "", "these weights", FINE, ("a.png: is empty",)), None)


def test_a_folder_that_cannot_be_written_ends_in_one_sentence(evaluation: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LeukoscopeError, match="file/out: the evaluation cannot be written there"):
        write_evaluation(tmp_path / "file" / "out", evaluation, answers())


def test_the_page_of_real_answers_is_complete(tmp_path: Path) -> None:
    kept = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc" / "predictions"
    real = CellPredictions.load(kept / "subject_cv.parquet")
    evaluation = build_evaluation(ModelPredictions(real, "release", "", "recipe (cross-validated)", FINE), None)
    by_subject, by_cell = evaluation["intervals"]["by_subject"], evaluation["intervals"]["by_cell"]
    for key, naive in by_cell.items():
        assert by_subject[key]["high"] - by_subject[key]["low"] > 2 * (naive["high"] - naive["low"]), key
    assert write_evaluation(tmp_path, evaluation, real).stat().st_size < 2_000_000
