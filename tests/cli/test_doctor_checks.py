"""What `leukoscope doctor` looks at: each thing that can be wrong is found, and comes with its next step."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hub_server import Hub
from leukoscope import LeukoscopeError
from leukoscope.cli.doctor import (
    check_device,
    check_folder,
    check_network,
    check_releases,
    check_versions,
    examine,
)
from leukoscope.files import embedded_releases

# The package's attribute of that name is the command.
doctor = sys.modules["leukoscope.cli.doctor"]


@pytest.fixture
def copied(tiny_release: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_release, tmp_path / "shelf" / "tiny"))


def test_this_installation_has_what_it_needs() -> None:
    found = check_versions()
    assert (found.state, found.next_step) == ("good", "") and f"torch {torch.__version__.split('+')[0]}" in found.seen


def _needing(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(doctor, "requires", lambda package: list(lines))


def test_missing_and_old_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    _needing(monkeypatch, "no-such-package-here>=1", "pillow<=9999,>=9998", "numpy>=1")
    found = check_versions()
    assert found.state == "broken" and found.next_step == "pip install --upgrade leukoscope"
    first, second = found.seen.split("; ")
    assert first == "no-such-package-here is missing"
    assert second.startswith("pillow is ") and second.endswith("needed is <=9999,>=9998")


def test_what_an_extra_brings_is_checked_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    extra = '; extra == "demo"'
    _needing(monkeypatch, "numpy>=1", f"no-such-package-here>=1{extra}", f"leukoscope[demo]{extra}")
    assert check_versions().state == "good"
    _needing(monkeypatch, "numpy>=1", f"pillow[all]>=9999{extra}")
    assert check_versions().state == "broken"


def test_a_source_that_is_not_installed_is_told_how_to_be() -> None:
    found = check_versions("no-such-package-here")
    assert (found.state, found.next_step) == ("advice", 'pip install --editable ".[all]"')


def test_a_package_that_is_missing_ends_the_examination(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _needing(monkeypatch, "no-such-package-here")
    assert [(found.name, found.state) for found in examine(tmp_path)] == [("versions", "broken"), ("device", "good")]


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
    good = check_folder("cache", tmp_path / "new" / "folder", "LEUKOSCOPE_CACHE")
    assert good.state == "good" and "made when first needed; " in good.seen
    assert not (tmp_path / "new").exists(), "a check leaves nothing behind"
    (tmp_path / "file").write_text("")
    bad = check_folder("cache", tmp_path / "file" / "folder", "LEUKOSCOPE_CACHE")
    assert bad.state == "broken" and bad.next_step == "set LEUKOSCOPE_CACHE to a folder of your own"
    assert str(tmp_path / "file") in bad.seen


def test_little_room_on_disk_is_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(doctor, "NEEDED_ON_DISK", 0)
    assert check_folder("cache", tmp_path / "new", "X").state == "good"
    monkeypatch.setattr(doctor, "NEEDED_ON_DISK", 10 * free)
    found = check_folder("cache", tmp_path, "X")
    assert found.state == "advice" and "set X to a folder on another disk" in found.next_step


def test_the_disk_is_measured_where_the_cache_cannot_be_looked_at(tmp_path: Path) -> None:
    """As below a closed folder, the system refuses to say whether this one exists."""
    assert " GB free" in check_folder("cache", tmp_path / ("a" * 300), "X").seen


def test_without_a_network_what_still_works_is_said() -> None:
    found = check_network()
    assert found.state == "advice" and found.seen == "the Hub cannot be reached: HF_HUB_OFFLINE is set"
    assert "--from_scratch" in found.next_step and found.next_step.endswith("for the rest unset HF_HUB_OFFLINE")


def test_a_hub_that_keeps_the_start_weights_back_is_advice(hub: Hub) -> None:
    found = check_network()
    assert found.state == "advice" and found.seen.startswith("the Hub refuses access to timm/densenet121"), found
    assert found.next_step == "run `hf auth login`"


def test_releases_that_come_along_are_whole() -> None:
    findings = list(check_releases(embedded_releases()))
    assert findings and {found.state for found in findings} == {"good"}, findings


def test_no_release_is_advice(tmp_path: Path) -> None:
    (found,) = check_releases(tmp_path)
    assert (found.state, found.seen) == ("advice", f"none in {tmp_path}") and "leukoscope train" in found.next_step


def test_a_wrong_folder_of_releases_is_named_and_a_release_itself_is_checked(tmp_path: Path) -> None:
    with pytest.raises(LeukoscopeError, match=f"^--releases {tmp_path / 'typo'}: no such folder"):
        list(check_releases(tmp_path / "typo"))
    (found,) = check_releases(sorted(embedded_releases().glob("*169*"))[0])
    assert found.state == "good"


def test_a_release_without_an_ood_detector_is_advice(copied: Path) -> None:
    (found,) = check_releases(copied.parent)
    assert found.state == "advice" and "it has no OOD detector" in found.seen
    assert found.next_step.startswith(f"leukoscope release recalibrate {copied}")


def test_damaged_weights_are_broken(copied: Path) -> None:
    with (copied / "model.safetensors").open("r+b") as file:
        file.truncate(1000)
    (found,) = check_releases(copied)
    assert found.state == "broken" and "model.safetensors" in found.seen and str(copied) in found.next_step


def test_weights_that_are_no_numbers_are_broken(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    weights["classifier.bias"].fill_(float("nan"))
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    (found,) = check_releases(copied)
    assert found.state == "broken" and "not finite" in found.seen


def test_metrics_of_another_release_are_broken(copied: Path) -> None:
    metrics = json.loads((copied / "metrics.json").read_text())
    (copied / "metrics.json").write_text(json.dumps(metrics | {"labels": ["HEM", "ALL"]}))
    (found,) = check_releases(copied)
    assert found.state == "broken"
    assert found.seen == "config.json names the classes ALL, HEM, metrics.json HEM, ALL"
