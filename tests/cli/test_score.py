"""The command must say what it wrote and where, keep problems to one line on stderr, and refuse before it works."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import command
from drawn import save_cell
from leukoscope import RESEARCH_NOTICE

RELEASE = Path(__file__).parents[2] / "model_card" / "leukoscope-densenet169-cnmc"


run = partial(command.run, "score")


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Four phantoms of two subjects and a file that cannot be read."""
    folder = tmp_path / "cells"
    for number in range(4):
        save_cell(folder / f"s{number % 2}-{number}.png", subject=number % 2, cell=number)
    (folder / "s1-bad.png").write_text("no picture")
    return folder


def test_says_what_was_written_and_where(tiny_release: Path, cells: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    result = run(tiny_release, "--input", cells, "--output", out, "--subject-pattern", r"(s\d)-")
    assert result.exit_code == 1, "as predict ends with a file that cannot be read"
    assert result.stdout.splitlines() == [
        f"4 cells scored: {out}",
        "This model has no calibration: its percentages are not how often it is right.",
        "This model has no OOD detector: it gives a class to any picture, even one without a cell.",
        RESEARCH_NOTICE,
    ]
    assert f"1 file(s) could not be read: {tmp_path / 'out.parquet.unreadable.csv'}" in result.stderr.splitlines()
    table = pq.read_table(out)
    assert table["cell_id"].to_pylist() == ["s0-0.png", "s0-2.png", "s1-1.png", "s1-3.png"]
    assert table["subject"].to_pylist() == ["s0", "s0", "s1", "s1"]


def test_a_table_in_the_folder_names_the_subjects_as_for_patient(
    tiny_release: Path, cells: Path, tmp_path: Path
) -> None:
    (cells / "s1-bad.png").unlink()
    rows = [f"{path.stem},P{number % 2}" for number, path in enumerate(sorted(cells.glob("*.png")))]
    (cells / "people.csv").write_text("file,subject\n" + "\n".join(rows))
    shards = cells / "out.parquet.parts"
    shards.mkdir()
    (shards / "shard-000000.parquet").write_text("cut short by a loss of power")
    out = cells / "out.parquet"
    result = run(tiny_release, "--input", cells, "--output", out)
    assert result.exit_code == 0, result.output
    assert f"Subjects are named by {cells / 'people.csv'}." in result.stderr.splitlines()
    assert pq.read_table(out)["subject"].to_pylist() == ["P0", "P1", "P0", "P1"]
    again = run(tiny_release, "--input", cells, "--output", tmp_path / "again.parquet")
    assert again.exit_code == 0, "a table of predictions names no files"


def test_transparent_pictures_are_counted_and_the_table_says_which(
    tiny_release: Path, cells: Path, tmp_path: Path
) -> None:
    (cells / "s1-bad.png").unlink()
    with Image.open(cells / "s0-0.png") as cell:
        transparent = cell.convert("RGBA")
    transparent.putpixel((0, 0), (255, 0, 0, 0))
    transparent.save(cells / "s1-1.png")
    out = tmp_path / "out.parquet"
    result = run(tiny_release, "--input", cells, "--output", out)
    assert "1 of 4 pictures have transparent parts: these are read as black" in result.stderr.splitlines()
    assert pq.read_table(out)["reasons"].to_pylist() == ["", "", "filled_black", ""]


def test_reading_framing_and_joining_need_no_torch() -> None:
    code = (
        "import sys\n"
        "import leukoscope.inference.scoring, leukoscope.cli.predict\n"
        "from PIL import Image\n"
        "from leukoscope.data.preprocessing import Preprocessing\n"
        "Preprocessing(96, 0.9).frame(Image.new('RGB', (64, 64)))\n"
        "print({'torch', 'timm', 'transformers', 'datasets', 'accelerate'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "set()\n"
