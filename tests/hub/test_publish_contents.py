"""No picture of a patient's cell ever travels: what would be uploaded is looked into, file by file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hub_server import Hub
from leukoscope import LeukoscopeError
from leukoscope.hub.publish import Destination, is_release_file, publish, release_contents, unpublished_files
from leukoscope.reports.card import SHOWN
from leukoscope.synthetic import draw_cell

RELEASES = sorted(path.parent for path in (Path(__file__).parents[2] / "model_card").glob("*/config.json"))
# How picture files of every kind we read begin, wherever they stand in a file.
PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"WEBPVP8")


def put_cells(release: Path) -> list[str]:
    """Leave cell images all over a release's folder, as somebody's script may."""
    cell = Image.fromarray(draw_cell("ALL", subject=1, cell=0, size=64, background="black").image)
    names = ["UID_1_1_1_all.png", "figures/UID_all.png", "figures/cells/roc.png", "predictions/UID_all.webp"]
    for name in [*names, "cells.bmp"]:
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        cell.save(release / name)
    (release / "cells.npz").write_bytes(b"pixels")
    return sorted([*names, "cells.bmp", "cells.npz"])


def test_pictures_that_lie_about_stay_at_home(hub: Hub, whole_release: Path) -> None:
    before = set(release_contents(whole_release))
    left = put_cells(whole_release)
    publish(whole_release, Destination("lab/cells"))
    drawn = {"examples/phantom_ALL.png", "examples/phantom_HEM.png"}
    assert set(hub.repository("lab/cells").at("main").files) - {".gitattributes"} == before | drawn
    assert sorted(unpublished_files(whole_release)) == left


@pytest.mark.parametrize(
    ("column", "content"),
    [("image", [b"pixels"]), ("pixels", [[0, 1]]), ("p_ALL", [b"pixels"]), ("label", [{"bytes": b"pixels"}])],
)
def test_a_table_with_other_columns_is_refused(hub: Hub, whole_release: Path, column: str, content: list[Any]) -> None:
    table = whole_release / "predictions" / "subject_cv.parquet"
    pq.write_table(pa.table({"cell_id": ["UID_1_1_1_all"], column: content}), table)
    with pytest.raises(
        LeukoscopeError, match=rf"subject_cv.parquet: column {column} \(.+\) is no prediction; only cell ids"
    ):
        publish(whole_release, Destination("lab/cells"))
    assert hub.requests == []


def test_a_damaged_table_is_refused(whole_release: Path) -> None:
    (whole_release / "predictions" / "subject_cv.parquet").write_bytes(b"no table")
    with pytest.raises(LeukoscopeError, match="subject_cv.parquet: cannot be read"):
        release_contents(whole_release)


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_the_releases_of_this_repository_hold_no_pixels(release: Path) -> None:
    from safetensors import safe_open

    assert RELEASES, "without a release this would test nothing"
    for name, path in release_contents(release).items():
        if path.suffix == ".png":
            assert path.stem in SHOWN
            continue
        content = path.read_bytes()
        assert not [start for start in PICTURES[1:] if start in content], name
        assert not content.startswith(PICTURES), name
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as tensors:
                kinds = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
            assert kinds <= {"F16", "F32", "F64", "I64"}, "bytes may be pixels"
    assert unpublished_files(release) == []


def test_only_what_a_release_may_have_is_removed_from_a_repository() -> None:
    there = ["README.md", "LICENSE", ".gitattributes", "predictions/old.parquet"]
    there += ["figures/subjects.png", "figures/mine.png"]
    assert [name for name in there if is_release_file(name)] == [
        "README.md",
        "predictions/old.parquet",
        "figures/subjects.png",
    ]
