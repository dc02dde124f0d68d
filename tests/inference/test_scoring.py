"""Bulk scoring must give each cell the prediction it gets alone, once, in order, however often the run is cut short."""

from __future__ import annotations

import csv as stdlib_csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
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
from PIL import Image

from leukoscope import RESEARCH_NOTICE, LeukoscopeError, Predictor
from leukoscope.data.images import open_image
from leukoscope.inference import scoring
from leukoscope.inference.ood import STATISTICS, OodDetector, picture_statistics
from leukoscope.inference.prediction import ABSTAIN, NOT_A_CELL, OUT_OF_DISTRIBUTION, WITHOUT_CLASS
from leukoscope.inference.scoring import check_output, open_source, score_cells, unreadable_list, write_table
from leukoscope.models.release import OOD
from leukoscope.synthetic import draw_cell
from leukoscope.synthetic_smears import draw_smear
from warm import Warm

ROOT = Path(__file__).parents[2]
BY_NAME = r"^(?P<subject>\w+)-"


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven phantoms of three subjects and two files that cannot be read."""
    folder = tmp_path_factory.mktemp("cells")
    for number in range(11):
        label, subject = ("ALL", "HEM")[number % 2], number % 3
        cell = draw_cell(label, subject=subject, cell=number, size=64, background="black")
        Image.fromarray(cell.image).save(folder / f"{label.lower()}{subject}-{number:02d}.png")
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
    arrays = statistics[0], np.ones(STATISTICS), np.eye(STATISTICS), np.ones(())
    distances = OodDetector(*arrays).distances(statistics)
    OodDetector(*arrays[:3], np.quantile(distances, 0.75)).save(folder / OOD)
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


def test_what_is_no_cell_is_counted_with_what_is_refused(decided_release: Path, cells: Path, tmp_path: Path) -> None:
    release, folder = Path(shutil.copytree(decided_release, tmp_path / "release")), tmp_path / "mixed"
    metrics = json.loads((release / "metrics.json").read_text()) | {"data": {"name": "cnmc2019"}}
    (release / "metrics.json").write_text(json.dumps(metrics))
    folder.mkdir()
    Image.fromarray(draw_smear(("ALL", "HEM") * 2, size=(300, 380), um_per_pixel=0.2).image).save(folder / "smear.png")
    Image.new("RGB", (64, 64), "white").save(folder / "white.png")
    shutil.copy(next(cells.glob("all*.png")), folder / "cell.png")

    scored = score(Predictor.from_pretrained(release), folder, tmp_path / "out.parquet", subject_pattern=None)

    _, smear, white = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert smear["outcome"] == NOT_A_CELL and smear["reasons"].split()[0] == "field_of_view"
    assert white["outcome"] == OUT_OF_DISTRIBUTION
    assert (scored.cells, scored.refused) == (3, 2)


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


@pytest.mark.parametrize("other", ["", "model.safetensors", "metrics.json", OOD, "precision"])
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
    with pytest.raises(LeukoscopeError, match="out.parquet: is already there"):
        score(predictor, cells, output)


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_any_name_of_a_table_is_written_whatever_the_locale(
    decided_release: Path, cells: Path, tmp_path: Path, suffix: str
) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, *command(decided_release, cells, tmp_path / f"größe{suffix}"), "--backend", "torch"]
    done = subprocess.run(words, env=environment() | plain, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr  # two files cannot be read
    assert {path.name for path in tmp_path.iterdir()} == {f"größe{suffix}", f"größe{suffix}.unreadable.csv"}


def test_what_could_not_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "there.parquet").touch()
    with pytest.raises(LeukoscopeError, match="there.parquet: is already there; move it, or name another file"):
        check_output(tmp_path / "there.parquet")
    with pytest.raises(
        LeukoscopeError, match=r"out.ods: is no kind of table written here; give a name that ends in .parquet, .csv$"
    ):
        check_output(tmp_path / "out.ods")


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
    with pytest.raises(
        LeukoscopeError, match=r"file/out.parquet.parts: cannot be read or written \(Not a directory\); name another"
    ):
        score(predictor, cells, tmp_path / "file" / "out.parquet")


# --- a process that is killed ----------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    own = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
    return os.environ | own | {"OMP_NUM_THREADS": "1"}


def command(release: Path, cells: Path, output: Path) -> list[str]:
    flags = ["--batch_size", "3", "--subject_pattern", BY_NAME]
    small = (
        "from leukoscope.inference import scoring; scoring.CELLS_PER_SHARD = 4; from leukoscope.cli import app; app()"
    )
    return ["-c", small, "score", str(release), "--input", str(cells), "--output", str(output), *flags]


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_as_if_it_had_not_been(
    warm: str, decided_release: Path, cells: Path, tmp_path: Path
) -> None:
    def start(output: Path) -> Warm:
        return Warm([warm, *command(decided_release, many, output)], environment())

    whole, output = tmp_path / "whole.parquet", tmp_path / "out.parquet"
    many = tmp_path / "many"
    many.mkdir()
    for copy in range(15):
        for path in cells.iterdir():
            (many / f"{path.stem}-{copy}.png").symlink_to(path)
    assert start(whole).wait(300) == 1, "a file could not be read"
    running = start(output)
    until = time.monotonic() + 300
    while len(shards(output)) < 3:
        assert running.poll() is None and time.monotonic() < until
        time.sleep(0.001)
    running.kill()
    assert running.wait(30) == 128 + signal.SIGKILL
    finished = shards(output)
    assert 3 <= len(finished) < 49 and not output.exists()
    assert start(output).wait(300) == 1
    assert output.read_bytes() == whole.read_bytes()
    assert unreadable_list(output).read_bytes() == unreadable_list(whole).read_bytes()
    assert not output.with_name("out.parquet.parts").exists()
