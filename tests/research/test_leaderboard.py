"""A leaderboard must compare on the same cells, rank by the figure it names, and call no lead settled that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.evaluation.metrics import measure
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.reports.formatting import cell_html
from research.leaderboard import (
    RANKED_BY,
    compare_releases,
    first_place,
    main,
    recorded_predictions,
    table_rows,
    write_board,
)

SUBJECTS, CELLS = 24, 20


def answers(skill: float, *, cells: int = CELLS, seed: int = 0) -> CellPredictions:
    """Answers of which a share of `skill` is right, for subjects of one class each."""
    draw = np.random.default_rng(seed)
    truth = np.repeat(np.arange(SUBJECTS) % 2, cells)
    right = draw.random(len(truth)) < skill
    sure = np.where(right, truth, 1 - truth) * 0.6 + 0.2
    ids = [f"UID_{subject}_{cell}" for subject in range(SUBJECTS) for cell in range(cells)]
    subjects = [name.split("_")[1] for name in ids]
    return CellPredictions(tuple(ids), tuple(subjects), truth, np.stack([1 - sure, sure], axis=1), ("ALL", "HEM"))


def make_release(folder: Path, made: CellPredictions, *, disjoint_by: str = "subject") -> Path:
    (folder / "predictions").mkdir(parents=True)
    made.save(folder / "predictions" / "subject_cv.parquet")
    block = {
        "name": "subject_cv",
        "estimates": "recipe (cross-validated)",
        "split": {"disjoint_by": disjoint_by, "detail": "5-fold", "fingerprint": "x"},
        "metrics": measure(made),
    }
    (folder / "metrics.json").write_text(json.dumps({"evaluations": [block]}))
    return folder


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three releases of known skill; the second answered more cells than the others."""
    root = tmp_path_factory.mktemp("releases")
    skills = {"weak": answers(0.6, seed=1), "strong": answers(0.95, cells=CELLS + 5), "twin": answers(0.95, seed=7)}
    return {name: make_release(root / name, made) for name, made in skills.items()}


def test_blocks_are_not_called_subjects(tmp_path: Path) -> None:
    folders = [make_release(tmp_path / name, answers(0.9, seed=7), disjoint_by="block") for name in ("a", "b")]
    for folder in folders:
        found = json.loads((folder / "metrics.json").read_text()) | {"data": {"unit": "block"}}
        (folder / "metrics.json").write_text(json.dumps(found))
    board = board_of(*folders)
    page = write_board(tmp_path / "board.html", board).read_text()
    assert "on other blocks" in first_place(board) and "AUROC by block" in page and "24 blocks" in page
    assert "subject" not in page


def board_of(*folders: Path) -> dict[str, Any]:
    return compare_releases([recorded_predictions(f, "subject_cv", name=f.name) for f in folders], samples=200)


def names(board: dict[str, Any]) -> list[str]:
    return [row["model"]["name"] for row in board["rows"]]


def test_the_better_release_comes_first_and_its_lead_is_settled(releases: dict[str, Path]) -> None:
    board = board_of(releases["weak"], releases["strong"])
    assert names(board) == ["strong", "weak"]
    assert board["rows"][0]["behind_the_first"] is None
    behind = board["rows"][1]["behind_the_first"]
    assert behind["difference"] == pytest.approx(
        board["rows"][1]["figures"][RANKED_BY]["value"] - board["rows"][0]["figures"][RANKED_BY]["value"]
    )
    assert behind["high"] < 0
    assert first_place(board) == "strong leads: no interval of the difference reaches 0."


def test_equally_good_releases_are_not_ranked_with_certainty(releases: dict[str, Path]) -> None:
    board = board_of(releases["strong"], releases["twin"], releases["weak"])
    second = names(board)[1]
    assert names(board)[2] == "weak"
    assert first_place(board) == f"Not settled: {second} may be as good as {names(board)[0]} on other subjects."


def test_only_cells_that_all_answered_count_and_the_others_are_told_of(releases: dict[str, Path]) -> None:
    board = board_of(releases["weak"], releases["strong"])
    # Of 25 cells per subject the first 20 carry the same ids.
    assert board["cells"] == SUBJECTS * CELLS
    assert board["subjects"] == SUBJECTS
    assert board["left_out"] == [f"strong: {SUBJECTS * 5} cells that not every release predicted"]


def test_a_split_with_subjects_on_both_sides_is_marked(tmp_path: Path, releases: dict[str, Path]) -> None:
    leaky = make_release(tmp_path / "leaky", answers(0.99, seed=3), disjoint_by="cell")
    row = board_of(leaky, releases["weak"])["rows"][0]
    assert row["trust"] == {"verdict": "bad", "statement": "5-fold: subjects on both sides, no test of new ones."}


def test_the_page_shows_every_row_and_the_notice(tmp_path: Path, releases: dict[str, Path]) -> None:
    board = board_of(releases["weak"], releases["strong"])
    page = write_board(tmp_path / "board.html", board).read_text()
    assert RESEARCH_NOTICE in page
    for row in table_rows(board):
        assert all(cell_html(cell) in page for cell in row if not cell.startswith("+"))


def test_the_command_prints_the_board_without_private_paths(
    releases: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(releases["weak"]), str(releases["strong"])])
    said = capsys.readouterr().out
    assert said.index("| 1 | strong |") < said.index("| 2 | weak |")
    assert said.endswith(f"{RESEARCH_NOTICE}\n") and str(releases["weak"].parent) not in said


def test_the_page_may_lie_in_a_new_folder_but_not_below_a_file(
    tmp_path: Path, releases: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words, page = [str(releases["weak"]), str(releases["strong"])], tmp_path / "new" / "board.html"
    main([*words, "--output", str(page)])
    assert f"page: {page}\n" in capsys.readouterr().out and page.is_file()
    with pytest.raises(LeukoscopeError, match=rf"--output {page / 'board.html'}: cannot be written \(File exists\)"):
        main([*words, "--output", str(page / "board.html")])


def test_cells_of_unknown_subjects_are_refused(tmp_path: Path) -> None:
    made = answers(0.9)
    nameless = CellPredictions(
        made.cell_ids, ("",) * len(made.cell_ids), made.references, made.probabilities, made.label_names
    )
    folders = [make_release(tmp_path / name, nameless) for name in ("a", "b")]
    with pytest.raises(LeukoscopeError, match="its subject is not known"):
        board_of(*folders)


def test_what_cannot_be_compared_is_refused(tmp_path: Path, releases: dict[str, Path]) -> None:
    with pytest.raises(LeukoscopeError, match="leaderboard: name two releases or more"):
        board_of(releases["weak"])
    with pytest.raises(
        LeukoscopeError, match=r"^weak: holds no predictions of the evaluation random; it has subject_cv"
    ):
        recorded_predictions(releases["weak"], "random", name="weak")
    others = answers(0.9)
    moved = CellPredictions(
        tuple(f"x{cell}" for cell in others.cell_ids),
        others.subjects,
        others.references,
        others.probabilities,
        others.label_names,
    )
    with pytest.raises(LeukoscopeError, match="no cell was predicted by all of these releases"):
        board_of(releases["weak"], make_release(tmp_path / "other", moved))
    one_class = others.take(np.flatnonzero(others.references == 0))
    with pytest.raises(
        LeukoscopeError, match="leaderboard: the cells that all of these releases predicted lack a clas"
    ):
        board_of(releases["weak"], make_release(tmp_path / "one_class", one_class))
