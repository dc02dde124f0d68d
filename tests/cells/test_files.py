"""A file is there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from leukoscope.cells.files import write_whole


def test_replaces_the_older_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text("old")
    assert write_whole(path, "new") == path
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["split.json"]


def test_text_that_cannot_be_written_leaves_the_older_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "\ud800")
    assert path.read_text() == "old"
