"""environment.json says where and with what a run was made."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from leukoscope import __version__
from leukoscope.data.cells import LoadedCells
from leukoscope.data.loading import load_cells
from leukoscope.models.recipes import get_recipe
from leukoscope.training import run_folder as environment
from leukoscope.training.config import TrainingConfig, parse_config
from leukoscope.training.run_folder import hardware, write_environment
from leukoscope.training.train import make_accelerator


@pytest.fixture
def data(own_cells: Path) -> LoadedCells:
    return load_cells("imagefolder", str(own_cells), subject_pattern=r"/(?P<subject>\w+)_")


@pytest.fixture
def config(own_cells: Path, tmp_path: Path) -> TrainingConfig:
    flags = ("--train_dir", str(own_cells), "--mixed_precision", "bf16", "--output_dir", str(tmp_path))
    return parse_config(["--dataset_name", "imagefolder", *flags])


@pytest.fixture
def accelerator(config: TrainingConfig) -> Accelerator:
    return make_accelerator(config, get_recipe("densenet121"))


def _written(out: Path) -> dict[str, Any]:
    return json.loads((out / "environment.json").read_text())


def test_it_holds_what_a_repetition_depends_on(
    tmp_path: Path, accelerator: Accelerator, config: TrainingConfig, data: LoadedCells
) -> None:
    write_environment(tmp_path, accelerator, config, data)
    written = _written(tmp_path)
    assert written["packages"]["torch"] == version("torch")
    assert {"timm", "numpy", "pillow", "safetensors"} <= written["packages"].keys(), "all packages, not a choice"
    assert written["python"] == platform.python_version()
    assert written["data"] == {"name": "imagefolder", "fingerprint": data.fingerprint}
    assert written["compute"]["precision"] == "bf16"
    assert (written["compute"]["processes"], written["compute"]["threads"]) == (1, torch.get_num_threads())
    assert written["compute"]["hardware"] == hardware(accelerator.device)
    assert written["cores"] == os.cpu_count()
    assert written["command"].startswith("train.py --dataset_name imagefolder")
    assert str(tmp_path) not in json.dumps(written), "folders are private"


def test_a_package_whose_installation_was_interrupted_is_left_out(
    tmp_path: Path, accelerator: Accelerator, config: TrainingConfig, data: LoadedCells, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packages" / "broken-1.0.dist-info").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    write_environment(tmp_path, accelerator, config, data)
    assert "torch" in _written(tmp_path)["packages"]


@pytest.mark.slow
def test_peak_memory_counts_what_is_held() -> None:
    """In a process of its own: in this one, other tests' threads return memory in the meantime."""
    code = """
import numpy as np
from leukoscope.training.run_folder import peak_memory
peaks = [peak_memory()[0]]
held = np.ones(2**26)
peaks.append(peak_memory()[0])
del held
peaks.append(peak_memory()[0])
print(*peaks)
"""
    started_by = np.ones(2**27)
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    del started_by
    before, after, freed = map(int, printed.split())
    assert before < 2**30, "not the memory of the process that started it"
    assert before + 2**28 <= after < before + 2**30, "512 MiB were held, of which some replaced earlier memory"
    assert freed > after - 2**24, "a peak does not fall; the kernel counts in batches of pages"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A repository of its own with this package's layout, as the module would find itself in."""
    root = tmp_path / "checkout"
    home = root / "src" / "leukoscope" / "training"
    home.mkdir(parents=True)
    shutil.copy(environment.__file__, home)
    monkeypatch.setattr(environment, "__file__", str(home / "environment.py"))
    # No settings of the person who runs the tests, and no repository around this one.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "first")):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    yield root


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_named_and_whether_the_code_is_still_of_it(
    checkout: Path, tmp_path: Path, accelerator: Accelerator, config: TrainingConfig, data: LoadedCells
) -> None:
    def said() -> dict[str, Any]:
        write_environment(tmp_path, accelerator, config, data)
        return _written(tmp_path)["leukoscope"]

    clean = said()
    assert len(clean["commit"]) == 40
    assert clean == {"version": __version__, "commit": clean["commit"], "changed_since": False}
    (checkout / "runs").mkdir()
    (checkout / "runs" / "summary.csv").touch()
    assert said()["changed_since"] is False, "a run folder is no change of the code"
    (checkout / "src" / "leukoscope" / "new.py").touch()
    assert said()["changed_since"] is True
    shutil.rmtree(checkout / ".git")
    assert said() == {"version": __version__}, "an installed package has no commit"
