"""Bulk scoring must give each cell the prediction it gets alone, once, in order, however often the run is cut short."""

from __future__ import annotations

import csv as stdlib_csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
import pytest

from drawn import place, save_cell
from leukoscope import RESEARCH_NOTICE, LeukoscopeError, Predictor
from leukoscope.data.images import open_image
from leukoscope.data.reading import Reading
from leukoscope.inference import scoring
from leukoscope.inference.ood import NUM_STATISTICS, OodDetector, picture_statistics
from leukoscope.inference.prediction import ABSTAIN, OUT_OF_DISTRIBUTION, WITHOUT_CLASS
from leukoscope.inference.scoring import SourceCell, open_source, score_cells, unreadable_list, write_table
from leukoscope.models.release import OOD_FILE

ROOT = Path(__file__).parents[2]
BY_NAME = r"^(?P<subject>\w+)-"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven phantoms of three subjects and two files that cannot be read."""
    folder = tmp_path_factory.mktemp("cells")
    for number in range(11):
        label, subject = ("ALL", "HEM")[number % 2], number % 3
        save_cell(folder / f"{label.lower()}{subject}-{number:02d}.png", label, subject=subject, cell=number)
    (folder / "bad-1.png").write_text("no picture")
    (folder / "bad-2.png").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def decided_release(tiny_release: Path, cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny release with thresholds amid its predictions, and a detector that lets eight of eleven cells pass."""
    paths = [*cells.glob("all*.png"), *cells.glob("hem*.png")]
    predictor = Predictor.from_pretrained(tiny_release)
    p_all = np.array([prediction.probabilities["ALL"] for prediction in predictor(paths)])
    folder = Path(shutil.copytree(tiny_release, tmp_path_factory.mktemp("decided") / "release"))
    metrics = json.loads((folder / "metrics.json").read_text())
    threshold = np.quantile(np.maximum(p_all, 1 - p_all), 0.45)
    metrics["decisions"] = {"abstention": {"default": {"threshold": threshold}}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    frame = predictor.release.preprocessing.frame
    statistics = np.stack([picture_statistics(frame(open_image(path))) for path in paths])
    arrays = statistics[0], np.ones(NUM_STATISTICS), np.eye(NUM_STATISTICS), np.ones(())
    distances = OodDetector(*arrays).distances(statistics)
    OodDetector(*arrays[:3], np.quantile(distances, 0.75)).save(folder / OOD_FILE)
    return folder


@pytest.fixture(scope="module")
def predictor(decided_release: Path) -> Predictor:
    return Predictor.from_pretrained(decided_release)


def score(predictor: Predictor, cells: Path, output: Path, **more: Any) -> Any:
    """Score in shards of four cells, unless told otherwise."""
    source = open_source(str(cells), Reading(subject_pattern=more.pop("subject_pattern", BY_NAME)))
    listener, in_shard = more.pop("progress", lambda done, total: None), more.pop("cells_per_shard", 4)

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
        done = 0

        def advance(by: int = 1) -> None:
            nonlocal done
            done += by
            listener(done, total)

        yield advance

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "progress", progress)
        patch.setattr(scoring, "CELLS_PER_SHARD", in_shard)
        return score_cells(predictor, source, output, **{"batch_size": 3} | more)


def test_folders_of_the_classes_of_the_release_are_no_people(predictor: Predictor, tmp_path: Path) -> None:
    of_own_classes = copy(predictor)
    of_own_classes.release = replace(predictor.release, labels=("blasts of ours", "others"))
    place(tmp_path / "cells", "blasts of ours/1.png", "others/2.png")
    source = open_source(str(tmp_path / "cells"), Reading(subject_folders=True))
    with pytest.raises(
        LeukoscopeError, match=r"the subjects \(blasts of ours, others\) have the names of classes, not"
    ):
        score_cells(of_own_classes, source, tmp_path / "out.csv")


def test_each_cell_gets_the_prediction_it_gets_alone(predictor: Predictor, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "out.parquet.unreadable.csv").write_text("of an earlier run")
    scored = score(predictor, cells, tmp_path / "out.parquet")

    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == [
        "cell_id", "subject", "outcome", "reasons", "p_ALL", "p_HEM", "ood_score", "pixel_hash", "model", "revision",
    ]  # fmt: skip
    assert table.schema.metadata[b"notice"].decode() == RESEARCH_NOTICE
    assert json.loads(table.schema.metadata[b"scored_with"])["model"] == predictor.release.name
    rows = table.to_pylist()
    paths = sorted(path for path in cells.iterdir() if not path.name.startswith("bad"))
    alone = predictor(paths, batch_size=1)
    assert [row["cell_id"] for row in rows] == [path.name for path in paths]
    assert [row["subject"] for row in rows] == [path.name.partition("-")[0] for path in paths]
    shares = np.array([[row["p_ALL"], row["p_HEM"]] for row in rows])
    assert shares == pytest.approx(np.array([list(one.probabilities.values()) for one in alone]), abs=1e-5)
    outcomes = [row["outcome"] for row in rows]
    assert outcomes == [prediction.outcome for prediction in alone]
    assert set(outcomes) >= {ABSTAIN, OUT_OF_DISTRIBUTION}, "else nothing is compared"
    reasons = [[reason.code for reason in prediction.decision.reasons] for prediction in alone]
    assert [row["reasons"].split() for row in rows] == reasons
    assert [bool(row["reasons"]) for row in rows] == [row["outcome"] in WITHOUT_CLASS for row in rows]
    assert [row["ood_score"] for row in rows] == [prediction.checks.ood_score for prediction in alone]
    assert {(row["model"], row["revision"]) for row in rows} == {(predictor.release.name, "")}
    assert (scored.cells, scored.unreadable) == (11, 2)
    assert (scored.abstained, scored.refused) == (outcomes.count(ABSTAIN), outcomes.count(OUT_OF_DISTRIBUTION))
    assert csv.read_csv(unreadable_list(tmp_path / "out.parquet")).to_pylist() == [
        {"source": "bad-1.png", "reason": "is not an image; give one of BMP, PNG, JPG, TIFF, WEBP"},
        {"source": "bad-2.png", "reason": "the file is empty (0 bytes); copy or export it again"},
    ]


def test_without_a_good_file_the_table_is_empty_and_without_a_bad_one_there_is_no_list(
    predictor: Predictor, cells: Path, tmp_path: Path
) -> None:
    for kind in ("bad-1", "all0-00"):
        (tmp_path / kind).mkdir()
        shutil.copy(cells / f"{kind}.png", tmp_path / kind)
        output = tmp_path / f"{kind}.parquet"
        unreadable_list(output).write_text("of an earlier run")
        scored = score(predictor, tmp_path / kind, output)
        good = kind != "bad-1"
        assert (scored.cells, scored.unreadable) == (good, not good)
        assert pq.read_table(output).num_rows == good and unreadable_list(output).exists() != good
        assert not output.with_name(f"{output.name}.parts").exists()
    assert unreadable_list(Path("a/run.csv")) != unreadable_list(Path("a/run.parquet"))


def test_neither_shards_nor_batches_show_in_the_predictions(predictor: Predictor, cells: Path, tmp_path: Path) -> None:
    for name, sizes in {"a": (4, 3), "b": (100, 3), "c": (1, 1)}.items():
        score(predictor, cells, tmp_path / f"{name}.parquet", cells_per_shard=sizes[0], batch_size=sizes[1])
    a, b, c = (pq.read_table(tmp_path / f"{name}.parquet").drop_columns("p_HEM") for name in "abc")
    assert a.drop_columns("p_ALL") == b.drop_columns("p_ALL") == c.drop_columns("p_ALL") and len(a) == 11
    for other in (b, c):
        assert a["p_ALL"].to_numpy() == pytest.approx(other["p_ALL"].to_numpy(), abs=1e-5)
    assert unreadable_list(tmp_path / "a.parquet").read_bytes() == unreadable_list(tmp_path / "c.parquet").read_bytes()


class Stopped(Exception):
    pass


def stop_after(count: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done >= count:
            raise Stopped

    return progress


def shards(output: Path) -> list[str]:
    return sorted(path.name for path in output.with_name(f"{output.name}.parts").glob("shard-*.parquet"))


@pytest.mark.parametrize("damage", [None, b"", b"PAR1 cut short"], ids=["none", "empty", "cut short"])
def test_a_run_resumes_where_it_was_stopped_and_does_a_damaged_shard_anew(
    predictor: Predictor, cells: Path, tmp_path: Path, damage: bytes | None
) -> None:
    whole, output = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    score(predictor, cells, whole, batch_size=2)
    with pytest.raises(Stopped):
        score(predictor, cells, output, batch_size=2, progress=stop_after(9))
    assert shards(output) == ["shard-000000.parquet", "shard-000001.parquet"]
    assert not output.exists()
    if damage is not None:
        (output.with_name("out.parquet.parts") / "shard-000000.parquet").write_bytes(damage)
    seen: list[int] = []
    score(predictor, cells, output, batch_size=2, progress=lambda done, total: seen.append(done))
    assert damage is not None or seen == [4, *range(8, 14)], "finished shards are not done anew"
    assert output.read_bytes() == whole.read_bytes()
    assert unreadable_list(output).read_bytes() == unreadable_list(whole).read_bytes()


@pytest.mark.parametrize("other", ["", "model.safetensors", "metrics.json", OOD_FILE, "precision"])
def test_shards_of_other_weights_or_of_another_precision_are_done_anew(
    decided_release: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    release, output = Path(shutil.copytree(decided_release, tmp_path / "release")), tmp_path / "out.parquet"
    with pytest.raises(Stopped):
        score(Predictor.from_pretrained(release), cells, output, progress=stop_after(5))
    if other == "metrics.json":
        (release / other).write_text((release / other).read_text() + "\n")
    elif (release / other).is_file():
        content = bytearray((release / other).read_bytes())
        content[-2] ^= 1
        (release / other).write_bytes(content)
    predictor = Predictor.from_pretrained(release)
    if other == "precision":
        # As on another processor, which computes bfloat16.
        monkeypatch.setattr(predictor.backend, "precision", "bf16")
    seen: list[int] = []
    score(predictor, cells, output, progress=lambda done, total: seen.append(done))
    assert seen[0] == (1 if other else 4)


@pytest.mark.parametrize("change", ["replaced", "as old", "moved", "renamed", "gone", "fewer"])
def test_a_resumed_run_has_the_rows_of_the_pictures_that_are_there_now(
    predictor: Predictor, cells: Path, tmp_path: Path, change: str
) -> None:
    folder, output, whole = tmp_path / "cells", tmp_path / "out.parquet", tmp_path / "whole.parquet"
    shutil.copytree(cells, folder)
    with pytest.raises(Stopped):
        score(predictor, folder, output, progress=stop_after(9))
    first, other = folder / "all0-00.png", folder / "hem1-01.png"
    before = first.stat()
    if change in ("replaced", "as old"):
        # As a BMP of another cell, whose size is the same; its old time may be set, too.
        first.write_bytes(other.read_bytes()[: before.st_size].ljust(before.st_size, b"\0"))
        if change == "as old":
            os.utime(first, ns=(before.st_atime_ns, before.st_mtime_ns))
    elif change == "moved":
        folder = folder.rename(tmp_path / "elsewhere")
    elif change == "renamed":
        first.rename(folder / "all0-zz.png")
    elif change == "gone":
        first.unlink()
    else:
        for path in sorted(folder.iterdir())[5:]:
            path.unlink()
    seen: list[int] = []
    score(predictor, folder, output, progress=lambda done, total: seen.append(done))
    score(predictor, folder, whole)
    assert output.read_bytes() == whole.read_bytes()
    assert (seen[0] == 4) == (change in ("moved", "fewer")), "a copy elsewhere is the same data"


def test_a_second_run_into_the_same_table_is_refused(predictor: Predictor, cells: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"

    def second(done: int, total: int) -> None:
        with pytest.raises(LeukoscopeError, match=r"^--output .*out.parquet: another process is scoring into it; wait"):
            score(predictor, cells, output)

    score(predictor, cells, output, progress=second)
    assert pq.read_table(output).num_rows == 11
    with pytest.raises(LeukoscopeError, match="out.parquet: exists already"):
        score(predictor, cells, output)


def test_any_name_of_a_table_is_written_whatever_the_locale(tiny_release: Path, cells: Path, tmp_path: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT / "src")}
    words = ["score", str(tiny_release), "--input", str(cells), "--output", str(tmp_path / "größe.csv")]
    command = [sys.executable, "-m", "leukoscope", *words]
    done = subprocess.run(command, env=os.environ | plain, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr  # two files cannot be read
    assert {path.name for path in tmp_path.iterdir()} == {"größe.csv", "größe.csv.unreadable.csv"}


FORMULAS = ("=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1")


def test_no_text_of_a_csv_is_a_formula_and_other_tables_keep_it_as_it_is(tmp_path: Path) -> None:
    texts = [*FORMULAS, "a=1", "", None]
    table = pa.table({"cell_id": texts, "p_ALL": [-0.5] * len(texts), "=1+2": texts, "none": pa.nulls(len(texts))})
    read = list(stdlib_csv.reader(StringIO(write_table(table, tmp_path / "t.csv").read_bytes().decode(), newline="")))
    quoted = [f"'{text}" for text in FORMULAS]
    assert read[0] == ["cell_id", "p_ALL", "'=1+2", "none"]
    assert [row[0] for row in read[1:]] == [row[2] for row in read[1:]] == [*quoted, "a=1", "", ""]
    assert {row[1] for row in read[1:]} == {"-0.5"}, "a number is none"
    assert pq.read_table(write_table(table, tmp_path / "t.parquet")).equals(table)


def test_a_folder_that_cannot_be_written_is_named(predictor: Predictor, cells: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = r"file/out.parquet.parts: cannot be read or written \(Not a directory\); name another"
    with pytest.raises(LeukoscopeError, match=said):
        score(predictor, cells, tmp_path / "file" / "out.parquet")


# A source names every cell it is given, in a fixed order, and says why it cannot


BY_TOP = Reading(subject_pattern=r"^(?P<subject>\w+)/")
FILES = ("ann/0.png", "ann/1.bmp", "bob/2.png", "bob/more/3.PNG", "bob/more/4.tif")


def number_of(cell: SourceCell) -> int:
    return int(np.asarray(open_image(cell.file))[0, 0, 0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five cells of two subjects, whose red is their number, and two files that are none."""
    cells = place(tmp_path / "cells", *FILES, ".hidden.png")
    (cells / "notes.txt").write_text("no picture")
    return cells


def test_a_folder_gives_its_images_in_a_fixed_order_with_the_subjects_of_a_pattern(folder: Path) -> None:
    source = open_source(str(folder), BY_TOP)
    assert [cell.cell_id for cell in source.cells] == list(FILES)
    assert [number_of(cell) for cell in source.cells] == [0, 1, 2, 3, 4]
    assert [cell.subject for cell in source.cells] == ["ann", "ann", "bob", "bob", "bob"]
    source = open_source(str(folder), Reading(subject_folders=True))
    assert [cell.subject for cell in source.cells] == ["ann", "ann", "bob", "more", "more"]
    with pytest.raises(LeukoscopeError, match=r"'\^\(ann\)/': does not match 'bob/2.png'; it must match every image"):
        open_source(str(folder), Reading(subject_pattern="^(ann)/"))


def test_a_folder_that_cannot_be_read_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def closed(path: str) -> object:
        # As for anybody but root, who may read every folder.
        if path == str(folder / "bob"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(LeukoscopeError) as error:
        open_source(str(folder))
    assert str(error.value) == (
        f"{folder / 'bob'}: the folder cannot be read (Permission denied); check who may read it, or move it away"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="such names cannot exist on Windows or macOS")
def test_a_name_that_is_no_utf8_is_read_and_shown(tmp_path: Path) -> None:
    save_cell(tmp_path / "cell.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/cell-\xff.png"))
    (cell,) = open_source(str(tmp_path)).cells
    assert cell.cell_id == r"cell-\xff.png" and open_image(cell.file).size == (64, 64)


def test_a_table_names_paths_subjects_and_ids(folder: Path, tmp_path: Path) -> None:
    cells = {"cell_id": ["one", "two"], "path": ["cells/ann/1.bmp", str(folder / "bob" / "2.png")], "subject": [7, 8]}
    frame = pa.table(cells | {"image": [{"bytes": b"", "path": "a.png"}] * 2})
    write_table(frame.drop_columns("image"), tmp_path / "cells.csv")
    pq.write_table(frame, tmp_path / "cells.parquet")
    for name in ("cells.csv", "cells.parquet"):
        source = open_source(str(tmp_path / name))
        rows = [(cell.cell_id, cell.subject, number_of(cell)) for cell in source.cells]
        assert rows == [("one", "7", 1), ("two", "8", 2)]


@pytest.mark.parametrize(
    ("files", "named", "reading", "problem"),
    [
        (["P1/0.png", "P2/1.png"], "", {}, "'P1/0.png' lies in a folder, and nothing says whose its cells are; give -"),
        (["P1/slide/0.png", "P2/slide/1.png"], "", {"subject_folders": True},
         "--subject_folders: 'P1/slide' and 'P2/slide' would be one subject, 'slide'; if they are, give --subject"),
        (["P1/0.png", "1.png"], "", {"subject_folders": True}, "--subject_folders: '1.png' lies in no folder; move"),
        (["0.png"], "cells.xlsx", {}, "cells.xlsx: is a .xlsx file; give a folder, .csv or .parquet"),
        (["0.png"], "cells.parquet", {}, "cells.parquet: cannot be read as Parquet ("),
        (["0.png"], "cells.csv", {"subject_pattern": "(a)"}, "names the subjects as a flag does; leave out the flag"),
        (["0.png"], "gone", {}, "gone: no such folder or file; give a folder of images"),
        ([], "", {}, "holds no cell; give a folder of images"),
    ],
)  # fmt: skip
def test_what_is_no_source_or_could_give_a_cell_to_a_wrong_subject_is_refused(
    tmp_path: Path, files: list[str], named: str, reading: dict[str, Any], problem: str
) -> None:
    place(tmp_path, *files)
    for name in ("cells.xlsx", "cells.csv", "cells.parquet"):
        (tmp_path / name).write_text("file,subject\n0.png,P1\n" if name == named else "other\n1\n")
    if named != "cells.parquet":
        (tmp_path / "cells.parquet").unlink()
    with pytest.raises(LeukoscopeError) as refused:
        open_source(str(tmp_path / named), Reading(**reading))
    assert problem in str(refused.value)


def test_a_table_of_the_pictures_that_cannot_be_read_or_names_nobody_is_not_passed_over(tmp_path: Path) -> None:
    """Otherwise all people of a folder would be one."""
    save_cell(tmp_path / "a.png", "ALL", size=64)
    table = tmp_path / "metadata.csv"
    table.write_text("Datei;Diagnose;Patient\na.png;ALL;P1\n")
    with pytest.raises(LeukoscopeError, match="metadata.csv: has no column of image paths, such as file, only Datei"):
        open_source(str(tmp_path))
    table.write_text("file;label;Patinet\na.png;ALL;P1\n")
    source = open_source(str(tmp_path))
    assert source.report == f"{table} names no subject; --subject_column names its column."
    with pytest.raises(LeukoscopeError, match="metadata.csv: names no subject; add a column called subject"):
        source.subjects()
    table.write_text("file;subject\nb.png;P1\n")
    with pytest.raises(LeukoscopeError, match="metadata.csv: names no subject for 'a.png'"):
        open_source(str(tmp_path))
