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
    source = open_source(str(cells), subject_pattern=more.pop("subject_pattern", BY_NAME))
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


def test_neither_shards_nor_batches_show_in_the_predictions(
    predictor: Predictor, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_JOINED_AT_ONCE", 2)
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
    source = open_source(str(folder))
    assert [cell.cell_id for cell in source.cells] == list(FILES) and not source.has_subjects
    assert [number_of(cell) for cell in source.cells] == [0, 1, 2, 3, 4]
    source = open_source(str(folder), subject_pattern=r"^(?P<subject>\w+)/")
    assert [cell.subject for cell in source.cells] == ["ann", "ann", "bob", "bob", "bob"] and source.has_subjects
    with pytest.raises(LeukoscopeError, match=r"'\^\(ann\)/': does not match 'bob/2.png'; it must match every image"):
        open_source(str(folder), subject_pattern="^(ann)/")


def test_links_to_folders_are_followed_and_hidden_folders_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "ann" / "more").symlink_to(place(tmp_path / "elsewhere", "9.png"))
    (folder / "ann" / "circle").symlink_to(folder)
    place(folder / "bob" / ".thumbnails", "2.png")
    assert [cell.cell_id for cell in open_source(str(folder)).cells] == [*FILES[:2], "ann/more/9.png", *FILES[2:]]


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


def test_a_csv_names_paths_subjects_and_ids(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "cells.csv"
    rows = f'one,"a, ""b""\nover two lines",cells/ann/1.bmp,007\ntwo,,{folder / "bob" / "2.png"},bob\n'
    table.write_text(f"\ufeffcell_id,note,file,patient_id\n{rows}", encoding="utf-8")
    source = open_source(str(table))
    cells = [(cell.cell_id, cell.subject, number_of(cell)) for cell in source.cells]
    assert cells == [("one", "007", 1), ("two", "bob", 2)] and source.has_subjects
    with pytest.raises(LeukoscopeError, match="a column of it names the subjects as well; leave the pattern out"):
        open_source(str(table), subject_pattern="(a)")


TEXT = pa.array(["cells/ann/0.png"])


@pytest.mark.parametrize(
    ("columns", "subject"),
    [
        ({"path": TEXT, "subject": [12]}, "12"),
        ({"path": TEXT, "image": [7]}, ""),
        *(({"image": TEXT.cast(kind)}, "") for kind in (pa.large_string(), pa.dictionary(pa.int32(), pa.string()))),
        ({"path": TEXT, "image": [{"bytes": b"", "path": "a.png"}]}, ""),
    ],
    ids=["subject", "numbers called image", "paths called image", "categories", "a nested column"],
)
def test_a_table_of_paths_may_be_parquet(folder: Path, tmp_path: Path, columns: dict[str, Any], subject: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "cells.parquet")
    (cell,) = open_source(str(tmp_path / "cells.parquet")).cells
    assert (cell.cell_id, cell.subject, number_of(cell)) == ("cells/ann/0.png", subject, 0)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        *((path, r"no such file .* below .*; correct the row") for path in ("a\0.png", "gone.png", "x" * 5000)),
        (None, "names no file; fill it in, or delete the row"),
    ],
    ids=["zero", "gone", "long", "none"],
)
def test_a_row_without_a_file_is_named(tmp_path: Path, path: str | None, said: str) -> None:
    pq.write_table(pa.table({"path": pa.array([path], pa.string()), "subject": [1]}), tmp_path / "cells.parquet")
    with pytest.raises(LeukoscopeError, match=rf"row 1:? {said}"):
        open_source(str(tmp_path / "cells.parquet"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cells.csv", b"PK\x03\x04 a spreadsheet", "cells.csv: is not a text file; export the table as CSV"),
        ("cells.csv", b"name,age\nann,7\n", r"has no column of image paths \(one of path, file, .*name, age"),
        ("cells.parquet", b"PAR1, or is it?", r"^.*cells.parquet: cannot be read as Parquet \(.*\); copy it"),
        ("cells.xlsx", b"", r"cells.xlsx: is a .xlsx file; give a folder, .csv or .parquet"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LeukoscopeError, match=message):
        open_source(str(tmp_path / name))


def test_what_is_no_path_or_holds_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match="^cnmc2019: no such folder or file; give a folder of images"):
        open_source("cnmc2019")
    with pytest.raises(LeukoscopeError, match=f"^{tmp_path}: holds no cell; give a folder of images"):
        open_source(str(tmp_path))


def test_damage_inside_a_table_of_paths_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cells.parquet"
    pq.write_table(pa.table({"path": ["a.png", "b.png"]}), path, use_dictionary=False)
    with path.open("r+b") as file:
        file.seek(pq.read_metadata(path).row_group(0).column(0).data_page_offset)
        file.write(b"\xff" * 20)
    with pytest.raises(LeukoscopeError, match=r".*cells.parquet: cannot be read as Parquet \(.*\); copy it"):
        open_source(str(path))
