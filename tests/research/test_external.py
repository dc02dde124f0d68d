"""The outside check finds each named cell, measures a release on it, and its figures reach the release's card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from drawn import save_cell
from leukoscope import LeukoscopeError
from leukoscope.models.release import read_metrics
from leukoscope.reports.card import render_card
from research.external import check, find_cells, numbered_pictures, record, sha256_of, subject_of

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"


def names() -> list[str]:
    """Two cells of each of three subjects a class; `subject_of` reads the subjects in them."""
    patients, healthy = (("18", "24", "25"), "all"), (("H48", "H9", "H20"), "hem")
    return [f"UID_{one}_{n}_1_{label}" for subjects, label in (patients, healthy) for one in subjects for n in (1, 2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Drawn cells under C-NMC's names; every other is numbered, as in the preliminary test, with a table."""
    root = tmp_path / "C-NMC"
    for number, name in enumerate(names()):
        file = f"{number}.bmp" if number % 2 else f"{name}.bmp"
        label = "ALL" if name.endswith("all") else "HEM"
        save_cell(root / file, label, subject=number // 2, cell=number, size=450, background="black")
    rows = [f"{names()[number]}.bmp,{number}.bmp,0\n" for number in range(1, 12, 2)]
    table = "Patient_ID,new_names,labels\n" + "".join(rows)
    (root / "C-NMC_test_prelim_phase_data_labels.csv").write_text(table)
    return root


def test_a_numbered_picture_is_found_by_the_name_in_its_table(folder: Path) -> None:
    numbered = numbered_pictures(folder)
    assert numbered == {str(number): names()[number] for number in range(1, 12, 2)}
    files = find_cells(folder, names(), numbered)
    assert list(files) == names() and files[names()[-1]].name == "11.bmp"
    with pytest.raises(LeukoscopeError, match=r"holds no picture of UID_1_1_1_all \(1 of 13 cells are missing\)"):
        find_cells(folder, [*names(), "UID_1_1_1_all"], numbered)


def test_an_alias_of_a_subject_is_the_subject() -> None:
    assert subject_of("UID_H2_1_1_hem") == subject_of("UID_H6_1_1_hem") != subject_of("UID_H9_1_1_hem")


def test_a_release_is_measured_and_its_row_stands_on_its_card(folder: Path, tmp_path: Path, kept_graphs: Path) -> None:
    release = shutil.copytree(RELEASE, tmp_path / RELEASE.name)
    earlier = {"release": "withdrawn", "sha256": "x", "one_view": {}}
    batches = {name: "fold_2" if number % 3 < 2 else "preliminary_test" for number, name in enumerate(names())}
    named = {"data": "C-NMC", "cell_names": names(), "batch_of_cell": batches, "releases": [earlier]}

    content = check(folder, named, [release])

    assert (content["cells"], content["subjects"], content["cells_by_class"]) == (12, 6, {"ALL": 6, "HEM": 6})
    row, kept = content["releases"]
    assert kept == earlier and row["sha256"] == sha256_of(release)
    assert json.loads(json.dumps(content)) == content
    for view in ("one_view", "eight_views"):
        found = row[view]["recall_HEM_by_subject"]
        assert 0 <= found["low"] <= found["value"] <= found["high"] <= 1
    by_batch = row["by_batch"]
    assert {name: (batch["cells"], batch["subjects"]) for name, batch in by_batch.items()} == {
        "fold_2": (8, 6),
        "preliminary_test": (4, 4),
    }
    assert record(content, [release]) == [release]
    block = read_metrics(release).content()["further_subjects"]
    assert not block["earlier_weights"] and block["recall_ALL"] == pytest.approx(
        row["one_view"]["recall_ALL"], abs=1e-5
    )
    card = render_card(release)
    assert "| 6 further people |" in card and "| 6 of these, fold 2 |" in card
    assert "6 of them have one to three cells." in card
    assert block["by_batch"]["fold_2"]["subjects_with_at_most_3_cells"] == 6
    assert block["by_batch"]["fold_2"]["recall_HEM_by_subject"]["value"] == pytest.approx(
        by_batch["fold_2"]["recall_HEM_by_subject"]["value"], abs=1e-5
    )
    row["sha256"] = "other weights"
    record(content, [release])
    assert "earlier weights of this recipe" in render_card(release)
