"""The benchmark: its folds, its repository, and results of tables, of releases and of other models."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from command import run
from drawn import save_cell
from leukoscope import LeukoscopeError
from leukoscope.benchmark import benchmark_result, eval_results, read_benchmark, read_table
from leukoscope.data.registry import DATASETS
from leukoscope.models.release import DEFAULT_RELEASE
from leukoscope.split_check import cell_named
from research.benchmark import FOLDER, NAME, write_repository

BENCHMARK = read_benchmark(NAME)
INFO = DATASETS["cnmc2019"]
# Of folds 1, 2, 0, 1: two leukaemic subjects and two healthy ones.
SUBJECTS = ("11", "20", "H11", "H10")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (FOLDER / "cells.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_predictions(path: Path, names: Iterable[str], right: float = 0.9) -> Path:
    lines = ["file,ALL,HEM"]
    for name in names:
        leukaemic = right if "_all" in name else 1 - right
        lines.append(f"{name},{leukaemic:.3f},{1 - leukaemic:.3f}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def names_of(subjects: Iterable[str], cells: int = 3) -> list[str]:
    label = {True: "hem", False: "all"}
    return [
        f"UID_{name}_{cell}_1_{label[name.startswith('H')]}.bmp" for name in subjects for cell in range(1, cells + 1)
    ]


def test_folds_hold_every_published_cell_and_divide_no_subject(rows: list[dict[str, str]]) -> None:
    published = {key: counts for key, counts in INFO.official_counts.items() if key.startswith("fold")}
    named = Counter((f"fold_{row['official_fold']}", row["label"]) for row in rows)
    assert named == {(fold, label): count for fold, counts in published.items() for label, count in counts.items()}
    assert len({row["file"] for row in rows}) == len(rows) == BENCHMARK.cells
    folds_of = defaultdict(set)
    for row in rows:
        assert cell_named(INFO, row["file"]) == (row["label"], row["published_subject"])
        assert INFO.canonical_subject(row["published_subject"]) == row["subject"]
        folds_of[row["subject"]].add(int(row["fold"]))
    assert {subject: {fold} for subject, fold in BENCHMARK.fold_of.items()} == folds_of
    for fold in range(5):
        assert {row["label"] for row in rows if row["fold"] == str(fold)} == {"ALL", "HEM"}


def test_the_committed_repository_is_the_rendered_one_and_holds_no_picture(tmp_path: Path) -> None:
    (tmp_path / "cells.csv").write_bytes((FOLDER / "cells.csv").read_bytes())
    write_repository(tmp_path)
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {"README.md", "baselines.json", "cells.csv", "croissant.json", "eval.yaml"}
    for name in files:
        assert (tmp_path / name).read_text() == (FOLDER / name).read_text(), f"{name}: run make docs"


def test_the_hub_s_file_names_what_the_hub_asks_for() -> None:
    content = yaml.safe_load((FOLDER / "eval.yaml").read_text())
    assert content.keys() == {"name", "description", "evaluation_framework", "tasks"}
    assert content["tasks"] == [{"id": BENCHMARK.task_id, "config": "default", "split": "test"}]
    front_matter = yaml.safe_load((FOLDER / "README.md").read_text().split("---")[1])
    assert front_matter["configs"] == [
        {"config_name": "default", "data_files": [{"split": "test", "path": "cells.csv"}]}
    ]


def test_datasets_loads_the_repository(rows: list[dict[str, str]], tmp_path: Path) -> None:
    import datasets

    cells = datasets.load_dataset(str(FOLDER), split="test", cache_dir=str(tmp_path))
    assert len(cells) == len(rows)
    assert (cells[0]["file"], cells[0]["fold"]) == (rows[0]["file"], int(rows[0]["fold"]))


def test_croissant_metadata_is_valid_and_reads_the_cells(rows: list[dict[str, str]]) -> None:
    import mlcroissant

    dataset = mlcroissant.Dataset(jsonld=str(FOLDER / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    assert not dataset.metadata.ctx.issues.warnings
    assert dataset.metadata.ctx.is_v1_1()
    first = next(iter(dataset.records(record_set="cells")))
    assert first["cells/file"].decode() == rows[0]["file"]
    assert first["cells/fold"] == int(rows[0]["fold"])


def test_a_table_of_all_cells_is_measured_and_gives_the_hub_s_entry(rows: list[dict[str, str]], tmp_path: Path) -> None:
    table = write_predictions(tmp_path / "mine.csv", [row["file"] for row in rows])
    result = benchmark_result(BENCHMARK, read_table(BENCHMARK, table))
    assert result["value"] == 1
    assert (result["cells"], result["subjects"]) == (BENCHMARK.cells, 60)
    (entry,) = yaml.safe_load(eval_results(result, "lab/cnmc2019-subjects"))
    assert entry["dataset"] == {"id": "lab/cnmc2019-subjects", "task_id": "subjects"}
    assert entry["value"] == 1
    assert isinstance(entry["date"], str)
    assert "10,661 of 10,661 cells, 60 of 60 subjects" in entry["notes"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("UID_999_1_1_all.bmp,0.5,0.5", "row 2, UID_999_1_1_all.bmp: is not a cell of cnmc2019-subjects; leave it out"),
        ("cat.png,0.5,0.5", "row 2, cat.png: is not a cell"),
        ("UID_11_10_1_all.bmp,0.9,0.9", "its probabilities are not from 0 to 1 with the sum 1"),
        ("UID_11_10_1_all.bmp,nan,0.5", "its probabilities are not from 0 to 1 with the sum 1"),
        ("UID_11_10_1_all.bmp,,0.5", "its probabilities are not from 0 to 1 with the sum 1"),
    ],
)
def test_a_row_that_is_no_prediction_is_refused(tmp_path: Path, line: str, message: str) -> None:
    table = tmp_path / "t.csv"
    table.write_text(f"file,ALL,HEM\n{line}\n")
    with pytest.raises(LeukoscopeError, match=message):
        read_table(BENCHMARK, table)


def test_the_command_measures_a_table_and_says_what_is_missing(tmp_path: Path) -> None:
    table = write_predictions(tmp_path / "mine.csv", names_of(SUBJECTS))
    words = ("evaluate", table, "--output", tmp_path / "out", "--benchmark")
    outcome = run(*words, "cnmc2019-subjects")
    assert outcome.exit_code == 0, outcome.output
    assert "12 of 10,661 cells, 4 of 60 subjects" in outcome.output
    assert "10,649 cells are missing: do not compare this with a result on all cells" in outcome.output
    assert "give --benchmark OWNER/cnmc2019-subjects" in outcome.output
    assert not (tmp_path / "out" / ".eval_results").exists()

    outcome = run(*words, "lab/cnmc2019-subjects")
    assert outcome.exit_code == 0, outcome.output
    assert "no .eval_results entry: " in outcome.output
    assert "12 of 10,661 cells were predicted; predict all of them" in outcome.output
    assert not (tmp_path / "out" / ".eval_results").exists()


def test_the_command_writes_the_hub_s_entry_of_all_cells(rows: list[dict[str, str]], tmp_path: Path) -> None:
    table = write_predictions(tmp_path / "mine.csv", [row["file"] for row in rows])
    outcome = run("evaluate", table, "--output", tmp_path / "out", "--benchmark", "lab/cnmc2019-subjects")
    assert outcome.exit_code == 0, outcome.output
    place = tmp_path / "out" / ".eval_results" / "cnmc2019-subjects.yaml"
    assert f"upload this file to the model's repository: {place}" in outcome.output
    assert yaml.safe_load(place.read_text())[0]["dataset"]["id"] == "lab/cnmc2019-subjects"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--benchmark", "cnmc2020"), "--benchmark cnmc2020: unknown; choose one of cnmc2019-subjects"),
        (("--benchmark", NAME, "--split", "subject"), "--split: the benchmark defines the tested cells"),
        ((), "--dataset_name: missing; name the labelled cells, or give --benchmark"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    table = write_predictions(tmp_path / "mine.csv", names_of(SUBJECTS))
    outcome = run("evaluate", table, *words)
    assert outcome.exit_code == 1
    assert message in outcome.output


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Drawn cells under the names of two subjects of each class, a few of every fold."""
    folder = tmp_path / "C-NMC_Leukemia"
    subjects = [next(s for s in fold if s.startswith("H") == healthy) for fold in BENCHMARK.folds for healthy in (0, 1)]
    for name in names_of(subjects, cells=2):
        label = "HEM" if "_hem" in name else "ALL"
        subject, cell = name.split("_")[1:3]
        save_cell(
            folder / "fold_0" / label.lower() / name, label, size=96, subject=BENCHMARK.fold_of[subject], cell=int(cell)
        )
    return folder


def save_vit(folder: Path) -> Path:
    """A model of transformers that is no release."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    config.id2label = {0: "normal", 1: "blast"}
    config.label2id = {"normal": 0, "blast": 1}
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_any_model_that_pipeline_loads_is_measured(tmp_path: Path, cells: Path) -> None:
    for fold in range(5):
        save_vit(tmp_path / f"fold{fold}")
    flags = (
        "--train_dir",
        cells,
        "--label_map",
        "blast=ALL",
        "--label_map",
        "normal=HEM",
        "--output",
        tmp_path / "out",
    )
    outcome = run("evaluate", tmp_path / "fold{fold}", "--benchmark", f"lab/{NAME}", *flags)
    assert outcome.exit_code == 0, outcome.output
    assert "20 of 10,661 cells, 10 of 60 subjects" in outcome.output
    assert "What trained these weights is not recorded: a test only if none of these cells did." in outcome.output
    result: dict[str, Any] = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert (result["value"], result["cells"]) == (None, 20)
    assert result["metrics"][BENCHMARK.metric] is not None
    assert not (tmp_path / "out" / ".eval_results").exists()


def test_a_release_that_knows_the_subjects_gets_no_entry(tmp_path: Path, cells: Path) -> None:
    output = tmp_path / "out"
    outcome = run("evaluate", DEFAULT_RELEASE, "--benchmark", f"lab/{NAME}", "--train_dir", cells, "--output", output)
    assert outcome.exit_code == 0, outcome.output
    assert "no .eval_results entry" in outcome.output
    assert "These weights were trained on" in outcome.output
    result: dict[str, Any] = json.loads((output / "benchmark.json").read_text())
    assert result["training_overlap"]["verdict"] == "bad"
    assert not (output / ".eval_results").exists()


def test_a_part_of_the_cells_gives_no_value_for_the_whole(rows: list[dict[str, str]], tmp_path: Path) -> None:
    table = write_predictions(tmp_path / "part.csv", [row["file"] for row in rows[::2]])
    result = benchmark_result(BENCHMARK, read_table(BENCHMARK, table))
    assert (result["value"], result["interval"]) == (None, None)
    assert result["metrics"][BENCHMARK.metric] == 1
    with pytest.raises(LeukoscopeError, match=r"5,331 of 10,661 cells were predicted; predict all of them$"):
        eval_results(result, "lab/cnmc2019-subjects")
