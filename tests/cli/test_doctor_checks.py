"""What `leukoscope doctor` looks at: each thing that can be wrong is found, and comes with its next step."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from hub_server import Hub
from leukoscope.cli import app
from leukoscope.cli.doctor import check_device, check_folder, check_network, check_versions

# The package's attribute of that name is the command.
doctor = sys.modules["leukoscope.cli.doctor"]


def test_this_installation_has_what_it_needs() -> None:
    found = check_versions()
    assert (found.state, found.next_step) == ("good", "") and f"torch {torch.__version__.split('+')[0]}" in found.seen


def _needing(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(doctor, "requires", lambda package: list(lines))


def test_a_missing_or_old_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for line, problem in (("no-such>=1", "The 'no-such>=1' distribution was not found"), ("pillow>=99", "but found")):
        _needing(monkeypatch, "numpy>=1", line)
        found = check_versions()
        assert found.state == "broken" and found.next_step == "pip install --upgrade leukoscope"
        assert problem in found.seen and line in found.seen


def test_what_an_extra_brings_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    _needing(monkeypatch, "numpy>=1", 'no-such-package-here>=1; extra == "demo"')
    assert check_versions().state == "good"


def test_a_source_that_is_not_installed_is_told_how_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> list[str]:
        raise PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "requires", missing)
    found = check_versions()
    assert (found.state, found.next_step) == ("advice", 'pip install --editable ".[all]"')


def test_a_package_that_is_missing_ends_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    _needing(monkeypatch, "no-such-package-here")
    said = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    found = [(finding["name"], finding["state"]) for finding in said["findings"]]
    assert found == [("versions", "broken"), ("device", "good")]


def test_a_driver_without_a_gpu_that_pytorch_sees_is_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        assert check_device().seen == torch.cuda.get_device_name()
        return
    assert check_device().seen.startswith("CPU with ")
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = check_device()
    assert found.state == "advice" and "sees no GPU" in found.seen and "pytorch.org" in found.next_step


def test_a_cache_that_cannot_be_written_is_broken(tmp_path: Path) -> None:
    good = check_folder(tmp_path / "new" / "folder", "LEUKOSCOPE_CACHE")
    assert good.state == "good" and " GB free" in good.seen
    assert not (tmp_path / "new").exists(), "a check leaves nothing behind"
    (tmp_path / "file").write_text("")
    bad = check_folder(tmp_path / "file" / "folder", "LEUKOSCOPE_CACHE")
    assert bad.state == "broken" and bad.next_step == "set LEUKOSCOPE_CACHE to a folder of your own"
    assert str(tmp_path / "file") in bad.seen


def test_little_room_on_disk_is_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(doctor, "NEEDED_ON_DISK", 0)
    assert check_folder(tmp_path / "new", "X").state == "good"
    monkeypatch.setattr(doctor, "NEEDED_ON_DISK", 10 * free)
    found = check_folder(tmp_path, "X")
    assert found.state == "advice" and "set X to a folder on another disk" in found.next_step


def test_the_disk_is_measured_where_the_cache_cannot_be_looked_at(tmp_path: Path) -> None:
    """As below a closed folder, the system refuses to say whether this one exists."""
    assert " GB free" in check_folder(tmp_path / ("a" * 300), "X").seen


def test_without_a_network_what_still_works_is_said() -> None:
    found = check_network()
    assert found.state == "advice" and found.seen == "the Hub cannot be reached: HF_HUB_OFFLINE is set"
    assert "--from_scratch" in found.next_step and found.next_step.endswith("for the rest unset HF_HUB_OFFLINE")


def test_a_hub_that_keeps_the_start_weights_back_is_advice(hub: Hub) -> None:
    found = check_network()
    assert found.state == "advice" and found.next_step.endswith("check the network, or `hf auth login`"), found
