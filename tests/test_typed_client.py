"""A program of somebody else's is type-checked against Leukoscope's own annotations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CLIENT = """
import leukoscope as lk

predictor = lk.Predictor.from_pretrained("owner/name")
prediction = predictor("cell.bmp")
reveal_type(prediction.outcome)
reveal_type(lk.load_dataset("cnmc2019", "C-NMC_Leukemia"))
try:
    lk.train(num_train_epochs=1)
except lk.DataError as error:
    print(error)
lk.score(12, "cells")
"""


@pytest.mark.slow
def test_a_client_outside_the_repository_sees_types(tmp_path: Path) -> None:
    client = tmp_path / "client.py"
    client.write_text(CLIENT)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(client)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = [line.removeprefix("client.py:") for line in checked.stdout.splitlines() if line.startswith("client.py:")]
    assert '6: note: Revealed type is "str"' in lines, checked.stdout
    assert '7: note: Revealed type is "leukoscope.data.cells.LoadedCells"' in lines
    errors = [line for line in lines if " error: " in line]
    assert len(errors) == 2 and all(line.startswith("12: ") for line in errors), "a number as model, and no output"
