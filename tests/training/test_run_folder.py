"""A run folder belongs to one training at a time."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from leukoscope import LeukoscopeError
from leukoscope.training.run_folder import RunFolder

# Trains, as far as a lock can tell, until it is killed; importing `RunFolder` would take ten seconds.
_TRAINING = """
import sys
from filelock import FileLock
with FileLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_run_folder_is_locked_while_a_process_trains_into_it_and_no_longer(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TRAINING, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stdout.readline()
        with pytest.raises(LeukoscopeError) as error, RunFolder(tmp_path).locked():
            pass
        assert str(error.value) == (
            f"--output_dir {tmp_path}: another training is writing there; wait until it has ended, or give another "
            "folder"
        )
        running.kill()
        running.wait()
        for _ in range(2):  # one training after another
            with RunFolder(tmp_path).locked():
                pass
        assert not tmp_path.exists(), "nothing was written"


def test_a_disk_without_locks_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refused)
    with RunFolder(tmp_path).locked():
        said = capsys.readouterr().out
    assert said == (
        f"--output_dir {tmp_path}: cannot be locked (No locks available); start no other training into it\n"
    )
