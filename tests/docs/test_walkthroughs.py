"""The walk-throughs of CONTRIBUTING.md, done to a copy of the source: what they promise is there afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from drawn import save_cell

ROOT = Path(__file__).parents[2]
PIECE = re.compile(
    r"^```python\n"
    r"# (into (?P<file>\S+), (?P<where>above|below) `(?P<line>[^`\n]+)`|a new file, (?P<new>\S+))\n"
    r"(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.pyi"))
    (tmp_path / "model_card").mkdir()
    for name in ("train.py", "model_card/template.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def follow(heading: str, copied: Path) -> None:
    """Put every piece under a heading of CONTRIBUTING.md where its first line says."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    pieces = list(PIECE.finditer(section))
    assert pieces, heading
    for piece in pieces:
        if piece["new"]:
            assert not (copied / piece["new"]).exists()
            (copied / piece["new"]).write_text(piece["text"])
        else:
            _insert(copied / piece["file"], piece["where"], piece["line"], piece["text"])


def _insert(file: Path, where: str, line: str, text: str) -> None:
    lines = file.read_text().splitlines(keepends=True)
    (place,) = (number for number, there in enumerate(lines) if line in there)
    if len(text.splitlines()) == 1:
        # A single line takes the indentation of its neighbour.
        text = re.match(r"\s*", lines[place])[0] + text.lstrip()  # type: ignore[index]
    lines.insert(place + (where == "below"), text if where == "below" else f"{text}\n\n")
    file.write_text("".join(lines))


def run(copied: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(copied / "src"), "LEUKOSCOPE_CACHE": str(copied / "cells")}
    done = subprocess.run(
        [sys.executable, *words], cwd=copied, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_data_set_is_recognised_and_split_by_its_subjects(copied: Path) -> None:
    follow("Add a data set", copied)
    for label, subject, cell in product(("blast", "normal"), range(7), range(3)):
        path = copied / "our_cells" / label / f"{label[0]}{subject}_{cell}.png"
        save_cell(path, "ALL" if label == "blast" else "HEM", subject=subject, cell=cell)
    said = json.loads(run(copied, "-m", "leukoscope", "audit", "our_cells", "--quick", "--json"))
    assert said["dataset_name"] == "our_laboratory" and said["problems"] == []
    assert said["subjects"]["blast"] == {f"b{subject}": 3 for subject in range(7)}
    code = (
        "from leukoscope import load_dataset, make_split\n"
        "split = make_split(load_dataset('our_laboratory', 'our_cells'), 'subject')\n"
        "print(split.group, len(split.train) + len(split.validation) + len(split.test))"
    )
    assert run(copied, "-c", code).split() == ["subject", "42"]


@pytest.mark.slow
def test_a_recipe_is_trained_to_a_release(copied: Path) -> None:
    follow("Add a recipe", copied)
    tiny = ("--image_size", "32", "--max_train_samples", "48", "--num_train_epochs", "1", "--output_dir", "run")
    run(copied, "train.py", "--recipe", "resnet18", "--from_scratch", *tiny)
    assert json.loads((copied / "run/release/config.json").read_text())["architecture"] == "resnet18"


@pytest.mark.slow
def test_a_figure_of_the_card_is_a_line(copied: Path) -> None:
    follow("Add a figure to the demo's card", copied)
    code = "from leukoscope.demo.answers import Card; print('seconds' in Card.__annotations__)"
    assert run(copied, "-c", code).split() == ["True"]
