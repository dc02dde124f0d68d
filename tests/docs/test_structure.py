"""The source has no import circle, and `make structure` counts and traces what it says."""

from __future__ import annotations

from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import numpy as np
import structure

from leukoscope import Predictor


def test_no_import_is_part_of_a_circle() -> None:
    """None of a lazy import either, nor of one for type checkers."""
    graph = grimp.build_graph("leukoscope", cache_dir=None)
    # What `leukoscope` itself offers by name, it imports when asked for: nothing depends on that.
    names = graph.modules - {"leukoscope"}
    TopologicalSorter({name: graph.find_modules_directly_imported_by(name) for name in names}).prepare()


def test_loading_a_release_and_predicting_enters_few_files(tiny_release: Path) -> None:
    cell = np.full((96, 96, 3), 100, np.uint8)
    Predictor.from_pretrained(tiny_release, backend="torch")  # whatever is imported first
    entered = structure.traced(lambda: Predictor.from_pretrained(tiny_release, backend="torch")(cell))
    assert "inference/predictor.py" in entered and "models/release.py" in entered
    assert len(entered) <= structure.TRACES["one prediction"] + 2


def test_long_functions_are_found(tmp_path: Path) -> None:
    longer = "def long():\n" + structure.FUNCTION_LINES * "    call()\n"
    shorter = longer.replace("long", "short").replace("    call()\n", "", 1)
    (tmp_path / "m.py").write_text(longer + shorter)
    assert list(structure.long_functions(tmp_path / "m.py")) == [("long", structure.FUNCTION_LINES + 1)]
