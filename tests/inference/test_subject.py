"""Cells of a subject become one prediction, and where they cannot, the outcome says why."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drawn import save_cell
from leukoscope import RESEARCH_NOTICE, LeukoscopeError, Predictor
from leukoscope.data.reading import Reading
from leukoscope.inference.prediction import logits_of
from leukoscope.inference.scoring import open_source
from leukoscope.inference.subject import QUANTILES, SubjectRule, pool, predict_subjects
from leukoscope.models.metrics import Rate
from release_fixtures import SUBJECT_RULE

RULE = SubjectRule(("HEM", "ALL"), "ALL", (0.2,) * 5, 0.0, 3)
FOLDERS = Reading(subject_folders=True)
FOREIGN = ["out of distribution", "not a cell"]


def _p(*positive: float) -> np.ndarray:
    return np.array([[1 - p, p] for p in positive])


def _sigmoid(value: Any) -> Any:
    return 1 / (1 + np.exp(-value))


def test_logits_are_pooled_as_numpy_would_and_stay_finite() -> None:
    logits = np.random.default_rng(0).normal(size=(3, 37))
    assert pool(logits) == pytest.approx(np.quantile(logits, (0.1, 0.25, 0.5, 0.75, 0.9), axis=1).T)
    assert np.isfinite(logits_of(np.array([0.0, 1.0]))).all()


def test_cells_that_agree_give_a_class() -> None:
    found = RULE.predict(_p(0.9, 0.8, 0.95, 0.9), ["ALL", "abstain", "ALL", "ALL"], subject="7")
    assert (found.subject, found.outcome, found.reason) == ("7", "ALL", "")
    assert found.probability == pytest.approx(_sigmoid(pool(logits_of(np.array([0.9, 0.8, 0.95, 0.9]))).mean()))
    assert found.interval is not None and found.probability is not None
    assert 0.5 < found.interval[0] <= found.probability <= found.interval[1]
    assert (found.cells, found.used, found.refused, found.abstained) == (4, 4, 0, 1)


def test_cells_that_disagree_are_abstained_from() -> None:
    found = RULE.predict(_p(0.9, 0.1, 0.95, 0.2, 0.6), ["ALL", "HEM", "ALL", "HEM", "ALL"])
    assert (found.outcome, found.abstained) == ("abstain", 0)
    assert found.interval is not None and found.interval[0] < 0.5 < found.interval[1]
    assert found.reason.startswith("other cells of this subject may give either class (interval 0.")


@pytest.mark.parametrize(
    ("shares", "outcomes", "outcome", "used", "reason"),
    [
        ([0.99] * 2, ["ALL"] * 2, "too few cells", 2, "2 cells can be used, but 3 are needed"),
        ([0.99] * 3, ["ALL", "ALL", "not a cell"], "too few cells", 2, "2 cells can be used, but 3 are needed"),
        ([0.9] * 3 + [0.01] * 2, ["ALL"] * 3 + FOREIGN, "ALL", 3, ""),
        ([0.9] * 3 + [0.01] * 3, ["ALL"] * 3 + FOREIGN + ["not a cell"], "ALL", 3, ""),
        (
            [0.9] * 3 + [0.01] * 4,
            ["ALL"] * 3 + FOREIGN * 2,
            "out of distribution",
            3,
            "4 of 7 cells are out of distribution, more than 50%",
        ),
    ],
    ids=["few", "few in use", "some refused", "half refused", "most refused"],
)
def test_refused_cells_are_not_pooled_and_too_many_refuse_the_subject(
    shares: list[float], outcomes: list[str], outcome: str, used: int, reason: str
) -> None:
    found = RULE.predict(_p(*shares), outcomes)
    assert (found.outcome, found.used, found.refused, found.reason) == (outcome, used, len(shares) - used, reason)
    assert found.probability == pytest.approx(shares[0]), "of the cells in use alone"


def test_a_subject_without_a_cell_in_use_has_no_probability_and_one_without_cells_is_an_error() -> None:
    found = RULE.predict(_p(0.9), ["not a cell"])
    assert (found.outcome, found.probability, found.interval) == ("out of distribution", None, None)
    with pytest.raises(LeukoscopeError, match="subject '7': has no cell; give at least one picture"):
        RULE.predict(_p(), [], subject="7")


def test_the_interval_holds_95_percent_of_the_resamples() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 4, 20)
    pooled = np.quantile(rng.choice(logits, (20_000, 20)), QUANTILES, axis=1).mean(axis=0)
    expected = np.quantile(_sigmoid(pooled), [0.025, 0.975])
    assert RULE.interval(logits) == pytest.approx(tuple(expected), abs=0.02)


def test_it_is_ready_for_json_with_its_rule_and_the_notice() -> None:
    rule = replace(RULE, error_rate=Rate.model_validate(SUBJECT_RULE["measured"]["error_rate"]))
    row = json.loads(json.dumps(rule.predict(_p(0.9, 0.8, 0.95), ["ALL"] * 3).to_dict()))
    assert row["notice"] == RESEARCH_NOTICE
    assert row["rule"] == (
        "10, 25, 50, 75 and 90 % quantiles of the cells' logits, from 3 or more cells; wrong for 5% of "
        "subjects (95 % interval 1% to 20%)"
    )
    assert row["low"] <= row["p_ALL"] <= row["high"]
    nothing = replace(rule, error_rate=Rate(share=None))
    assert nothing.text.endswith("from 3 or more cells; none of the subjects measured was given a class")


@pytest.fixture(scope="module")
def release(tiny_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny release with a rule for subjects."""
    folder = Path(shutil.copytree(tiny_release, tmp_path_factory.mktemp("subjects") / "release"))
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"subject_rule": SUBJECT_RULE}))
    return folder


def test_the_cells_of_a_folder_a_subject_are_predicted_together(release: Path, tmp_path: Path) -> None:
    for number in range(7):
        save_cell(tmp_path / f"subject-{number % 2}" / f"{number}.png", cell=number)
    (tmp_path / "subject-1" / "broken.png").write_text("no picture")
    predictor = Predictor.from_pretrained(release)
    subjects, unreadable = predict_subjects(predictor, open_source(str(tmp_path), FOLDERS), batch_size=2)

    assert [(one.subject, one.cells) for one in subjects] == [("subject-0", 4), ("subject-1", 3)]
    assert [str(error).split(":")[0] for error in unreadable] == [str(tmp_path / "subject-1" / "broken.png")]
    cells = predictor(sorted((tmp_path / "subject-0").iterdir()))
    pooled = pool(logits_of(np.array([one.probabilities["ALL"] for one in cells])))
    assert subjects[0].probability == pytest.approx(_sigmoid(pooled.mean()), abs=1e-5)


def test_copies_of_a_picture_count_once_for_a_subject(release: Path, tmp_path: Path, capsys: Any) -> None:
    """Enough copies of one cell would lift "too few cells" to a class."""
    for number in range(2):
        save_cell(tmp_path / "p1" / f"{number}.png", cell=number)
    shutil.copy(tmp_path / "p1" / "0.png", tmp_path / "p1" / "0 (1).png")
    Image.open(tmp_path / "p1" / "1.png").save(tmp_path / "p1" / "again.bmp")
    source = open_source(str(tmp_path), FOLDERS)
    (subject,), _ = predict_subjects(Predictor.from_pretrained(release), source, batch_size=1)
    assert subject.cells == 2
    assert "2 picture(s) are copies of others, pixel for pixel, and count once" in "".join(capsys.readouterr())


def test_a_picture_of_two_subjects_is_refused(release: Path, tmp_path: Path) -> None:
    for subject in ("anna", "bert"):
        save_cell(tmp_path / subject / "0.png", cell=1)
    said = r"bert/0.png: is the same picture as .*anna/0.png, pixel for pixel, which is of another subject \('bert' and"
    with pytest.raises(LeukoscopeError, match=said):
        predict_subjects(Predictor.from_pretrained(release), open_source(str(tmp_path), FOLDERS))
