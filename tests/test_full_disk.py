"""A full disk, at each writer: an error that names place and fix; what was there stays, and nothing is added."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from drawn import save_cell
from hub_server import Hub
from leukoscope import LeukoscopeError
from leukoscope.cli import app
from leukoscope.hub.publish import Destination, publish
from leukoscope.models.release import edit_release
from leukoscope.synthetic import draw_smear
from release_fixtures import METRICS, SUBJECT_RULE

MEGABYTES = 256  # training asks for 72 before it begins
PREDICTIONS = (
    Path(__file__).parents[1] / "model_card" / "leukoscope-densenet169-cnmc" / "predictions" / "subject_cv.parquet"
)
CELLS = ("--dataset_name", "imagefolder", "--train_dir", "cells")
SUBJECTS = ("--subject_pattern", r"(?P<subject>\w+)_")
FIELD = ("smear", "release", "field.png", "--um_per_pixel", "0.2")
SCORE = ("score", "release", "--input", "cells", *SUBJECTS)
TRAIN = (
    *("train", *CELLS, *SUBJECTS, "--split", "subject-cv"),
    *("--num_folds", "3", "--no_validation", "--image_size", "32", "--num_train_epochs", "1", "--from_scratch"),
    *("--per_device_train_batch_size", "4", "--override", "block_config=[2,2,2,2]", "--mixed_precision", "no"),
)
# Commands that replace what they wrote before; OUT is a folder of the disk.
REPLACING: dict[str, Sequence[str]] = {
    "maps": ("predict", "release", "cell.png", "--explain", "OUT/maps"),
    "overlay": (*FIELD, "--output", "OUT/overlays"),
    "crops": (*FIELD, "--crops", "OUT/crops"),
    "evaluation": ("evaluate", "release", *CELLS, *SUBJECTS, "--output", "OUT/evaluation"),
    "audit": ("audit", "cells", *SUBJECTS, "--output", "OUT/audit"),
    "card": ("release", "card", "OUT/release"),
    "onnx": ("release", "export", "release", "--output", "OUT/graph"),
    "space": ("release", "space", "lab/cells", "--output", "OUT/space"),
}
LONG = ("evaluation", "card", "onnx")
# Commands that refuse to.
ONCE: dict[str, Sequence[str]] = {
    f"score {kind}": (*SCORE, "--output", f"OUT/score{kind}") for kind in (".csv", ".parquet")
}


class Disk:
    """A file system of a few megabytes, with a folder in which commands write."""

    def __init__(self, path: Path):
        self.out, self._filler = path / "out", path / "filler"
        self.out.mkdir()

    def contents(self) -> dict[str, bytes | None]:
        """Each path in the folder, and what its file holds."""
        found = sorted(self.out.rglob("*"))
        return {path.relative_to(self.out).as_posix(): path.read_bytes() if path.is_file() else None for path in found}

    def fill(self, left: int) -> None:
        """Leave so many bytes, rounded up to whole pages."""
        self._filler.unlink(missing_ok=True)
        free = shutil.disk_usage(self.out).free - left
        self._filler.write_bytes(bytes(free - free % 4096))

    def empty(self) -> None:
        """Take away what filled it."""
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "tmpfs", str(path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def inputs(tmp_path: Path, tiny_release: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a release, a cell, a field and 24 cells of six subjects."""
    folder = tmp_path / "inputs"
    release = folder / "release"
    shutil.copytree(tiny_release, release)
    (release / "metrics.json").write_text(json.dumps(METRICS | {"subject_rule": SUBJECT_RULE}))
    (release / "predictions").mkdir()
    shutil.copy(PREDICTIONS, release / "predictions")
    save_cell(folder / "cell.png", size=450)
    Image.fromarray(draw_smear(size=(300, 380), um_per_pixel=0.2).image).save(folder / "field.png")
    for label, subject, cell in product(("ALL", "HEM"), range(3), range(4)):
        save_cell(folder / "cells" / label / f"{label}{subject}_{cell}.png", label, subject=subject, cell=cell)
    monkeypatch.chdir(folder)
    return folder


def run(words: Sequence[str], disk: Disk) -> tuple[int, str]:
    """The exit code of a command and what it says on stderr."""
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [word.replace("OUT", str(disk.out)) for word in words])
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)
    return result.exit_code, result.stderr


def refused(words: Sequence[str], disk: Disk, left: int) -> None:
    """Run a command on a full disk, which it must name together with the fix."""
    disk.fill(left)
    code, said = run(words, disk)
    disk.empty()
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    # Of a field, its crops and the list of them are refused one after the other.
    assert code == 1 and 1 <= len(errors) <= (2 if "--crops" in words else 1), said
    for error in errors:
        assert "No space left on device" in error and "free some space or " in error and str(disk.out) in error


def rooms(contents: dict[str, bytes | None]) -> list[int]:
    """Bytes left on a full disk: none, and where it takes more than a page, half of the largest file."""
    read = ("release/model", "release/predictions")
    largest = max(len(content) for path, content in contents.items() if content and not path.startswith(read))
    return [0, *([max(4096, largest // 2)] if largest > 4096 else [])]


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.slow] * (one in LONG)) for one in REPLACING])
def test_what_a_command_wrote_before_stays_as_it_was(name: str, disk: Disk, inputs: Path, hub: Hub) -> None:
    if name in ("card", "space"):
        (inputs / "release" / "metrics.json").write_text(json.dumps(METRICS))
    if name == "card":
        shutil.copytree(inputs / "release", disk.out / "release")
    if name == "space":
        publish(inputs / "release", Destination("lab/cells"))
    code, said = run(REPLACING[name], disk)
    assert code == 0 or (name == "audit" and code == 3), said  # with findings, it ends with 3
    before = disk.contents()
    for left in rooms(before):
        refused(REPLACING[name], disk, left)
        assert disk.contents() == before


@pytest.mark.parametrize("name", ONCE)
def test_a_table_that_does_not_fit_leaves_nothing(name: str, disk: Disk, inputs: Path) -> None:
    assert run(ONCE[name], disk)[0] == 0
    whole = disk.contents()
    shutil.rmtree(disk.out)
    disk.out.mkdir()
    for left in rooms(whole):
        refused(ONCE[name], disk, left)
        parts = {path for path in disk.contents() if ".parts" in path}
        assert disk.contents().keys() == parts and (not parts or ONCE[name][0] == "score"), "what was scored is kept"
        assert not any(path.endswith(".tmp") for path in parts)
    assert run(ONCE[name], disk)[0] == 0
    assert disk.contents().keys() == whole.keys()


def test_an_upload_that_cannot_be_prepared_changes_nothing_on_the_hub(
    disk: Disk, inputs: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inputs / "release" / "metrics.json").write_text(json.dumps(METRICS))
    monkeypatch.setattr("tempfile.tempdir", str(disk.out))
    refused(("release", "push", "release", "--hub_model_id", "lab/cells"), disk, 8192)
    assert disk.contents() == {}
    repositories = hub.storage.repositories.values()
    assert not [file for one in repositories for file in one.at("main").files if file.endswith((".parquet", "tensors"))]


def test_cells_that_do_not_fit_into_the_cache_leave_nothing_there(
    disk: Disk, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(disk.out / "cache"))
    refused((*TRAIN, "--output_dir", "run"), disk, 8192)
    assert not [path for path, content in disk.contents().items() if content is not None]


@pytest.mark.slow
def test_a_graph_that_does_not_fit_into_the_cache_is_done_without(
    disk: Disk, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEUKOSCOPE_CACHE", str(disk.out / "cache"))
    monkeypatch.delenv("LEUKOSCOPE_BACKEND")
    disk.fill(8192)
    code, said = run(("predict", "release", "cell.png", "--device", "cpu"), disk)
    assert code == 0, said
    assert {path for path, content in disk.contents().items() if content is not None} <= {"cache/graphs/.lock"}
    refused(("predict", "release", "cell.png", "--backend", "openvino"), disk, 8192)


@pytest.mark.parametrize("left", [0, 1 << 20])
def test_a_changed_release_that_does_not_fit_leaves_the_old_one(disk: Disk, inputs: Path, left: int) -> None:
    """As `release assess` and `release recalibrate` write it."""
    shutil.copytree(inputs / "release", disk.out / "release")
    before = disk.contents()
    disk.fill(left)
    said = r"release: the release cannot be written there \(.*No space left on device.*\); free some space or"
    with pytest.raises(LeukoscopeError, match=said), edit_release(disk.out / "release"):
        pass
    assert disk.contents() == before
