"""The folder of a run: the only place that names, locks, writes and removes its files.

args.yaml holds the flags, the resolved recipe and the run's identity; split.json the cells of each side; summary.csv a
row per epoch; checkpoints/ what a resumed run continues from; predictions.parquet a row per test cell; metrics.json the
metrics; release/ the model in Hub format. A folder with metrics.json holds a finished run.
"""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from torch import nn

from leukoscope import ConfigError, __version__
from leukoscope.data.splits import Split
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.files import disk_errors, first_line, require_space, write_atomic
from leukoscope.models.recipes import Recipe
from leukoscope.models.release import METRICS_FILE, write_json
from leukoscope.progress import note
from leukoscope.training.identity import RunIdentity

ARGS = "args.yaml"
CHECKPOINT_STATE = "state.json"
CHECKPOINT_TENSORS = "tensors.safetensors"
CHECKPOINTS_KEPT = 2  # the second is for when the last is damaged
RESUME_LATEST = "latest"
"""The value of --resume_from_checkpoint that stands for the last whole checkpoint."""
_CHECKPOINT_NAME = re.compile(r"(\d{5})-epoch-\d+-step-\d+")
# Tables and logs; measured on runs of several thousand cells, generously rounded.
_BYTES_BESIDES_WEIGHTS = 50_000_000


class RunFolder:
    """The folder of one run. In a run of several processes only the main one writes into it.

    Attributes:
        path: the folder itself, --output_dir.
        args, split, summary, predictions, size_only_predictions, metrics: its files.
        release, checkpoints: its sub-folders.
    """

    def __init__(self, path: Path):
        self.path = path
        self.args = path / ARGS
        self.split = path / "split.json"
        self.summary = path / "summary.csv"
        self.predictions = path / "predictions.parquet"
        self.size_only_predictions = path / "size_only_predictions.parquet"
        self.metrics = path / METRICS_FILE
        self.release = path / "release"
        self.checkpoints = path / "checkpoints"

    # What it holds

    @property
    def is_finished(self) -> bool:
        """Whether it holds a run that was trained, tested and released."""
        return self.metrics.exists()

    def checkpoint_folders(self) -> list[Path]:
        """The checkpoints, oldest first; unfinished ones are not among them."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(path for path in self.checkpoints.iterdir() if _CHECKPOINT_NAME.fullmatch(path.name))

    def differences(self, identity: RunIdentity) -> list[str]:
        """What differs between the run here and the one that is to begin, as `RunIdentity.differences` names it."""
        if not self.args.is_file():
            return [f"no {ARGS} names them"]
        content = yaml.safe_load(self.args.read_text(encoding="utf-8"))
        here = RunIdentity(content["flags"], content["resolved_recipe"], **content.get("identity", {}))
        return here.differences(identity)

    # What may begin here

    def check(self, resume: str | None, identity: RunIdentity) -> None:
        """Refuse to overwrite an unfinished run or a finished one of other settings.

        Args:
            resume: the value of --resume_from_checkpoint.
            identity: of the run that is to begin.

        Raises:
            ConfigError: the folder holds such a run, or `resume` names no checkpoint.
        """
        if resume not in (None, RESUME_LATEST) and not Path(str(resume), CHECKPOINT_STATE).exists():
            raise ConfigError(
                f"--resume_from_checkpoint {resume}: no checkpoint; give latest, or one of the folders in "
                f"{self.checkpoints}"
            )
        if self.is_finished:
            different = self.differences(identity)
            if different:
                raise ConfigError(
                    f"--output_dir {self.path}: holds a finished run with other settings ({', '.join(different)}); "
                    "give another folder or remove it"
                )
            return
        unfinished = self.checkpoint_folders()
        if resume is None and unfinished:
            raise ConfigError(
                f"--output_dir {self.path}: holds an unfinished run ({unfinished[-1].name}); resume it with "
                f"--resume_from_checkpoint latest, or remove {self.checkpoints} to start again"
            )

    def require_space_for(self, network: nn.Module, recipe: Recipe) -> None:
        """Refuse a disk that cannot hold the release and the checkpoints, before an earlier run is replaced."""
        weights = 4 * sum(tensor.numel() for tensor in network.state_dict().values())
        trained = 4 * sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        # The weights, those of the best epoch, perhaps their average; AdamW's two numbers for each trained parameter.
        networks = 3 if recipe.ema_decay else 2
        checkpoint = networks * weights + 2 * trained
        # The checkpoints that lie here are resumed from, or removed first.
        freed = sum(file.stat().st_size for file in self.checkpoints.rglob("*") if file.is_file())
        needed = max(0, weights + (CHECKPOINTS_KEPT + 1) * checkpoint + _BYTES_BESIDES_WEIGHTS - freed)
        problem = f"--output_dir {self.path}: no space for the results"
        with disk_errors(problem, "give a folder on another disk", needed=needed):
            require_space(self.path, needed)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other processes' trainings out of it within the block.

        What a killed process left half-written is removed. The system drops the lock of a process that ends.

        Raises:
            LeukoscopeError: the folder cannot be made, or another process trains there.
        """
        with self.writing():
            self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(
                f"--output_dir {self.path}: another training is writing there; wait until it has ended, or give "
                "another folder"
            ) from None
        except (NotImplementedError, OSError) as error:
            note(f"--output_dir {self.path}: cannot be locked ({first_line(error)}); start no other training into it")
        try:
            remove_half_written(self.path)
            remove_half_written(self.release)
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file; it stays, and locks nothing
                (self.path / ".lock").unlink(missing_ok=True)
            lock.release()

    # What a run writes, in the order that it writes it

    def writing(self) -> AbstractContextManager[None]:
        """Turn the disk's errors within a `with` block into a `LeukoscopeError` that names the folder."""
        return disk_errors(f"--output_dir {self.path}: cannot be written", "give another folder")

    def begin(self, identity: RunIdentity, split: Split, *, keep_checkpoints: bool) -> None:
        """Write which run this is, and remove the results of an earlier one.

        Should the run end early, they would be taken for its own.
        """
        with self.writing():
            split.save(self.split)
            shutil.rmtree(self.release, ignore_errors=True)
            if not keep_checkpoints:
                self.remove_checkpoints()
            for file in (self.metrics, self.predictions, self.size_only_predictions, self.summary):
                file.unlink(missing_ok=True)
            self.save_identity(identity)

    def save_identity(self, identity: RunIdentity) -> None:
        """Write args.yaml."""
        content = {
            "flags": identity.flags,
            "resolved_recipe": identity.recipe,
            "identity": identity.facts(),
            "leukoscope": __version__,
        }
        write_atomic(self.args, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def append_row(self, row: dict[str, Any]) -> None:
        """Add one epoch to summary.csv; the first begins the file."""
        is_first = row["epoch"] == 1
        with self.writing(), self.summary.open("w" if is_first else "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(row))
            if is_first:
                writer.writeheader()
            writer.writerow(row)

    def next_checkpoint(self, epoch: int, step: int) -> Path:
        """The folder of the next checkpoint: of the `epoch` under way, from 1, after so many steps of it."""
        earlier = self.checkpoint_folders()
        number = 1
        if earlier:
            number = int(earlier[-1].name[:5]) + 1
        return self.checkpoints / f"{number:05d}-epoch-{epoch}-step-{step}"

    def remove_old_checkpoints(self) -> None:
        """Keep the last `CHECKPOINTS_KEPT` checkpoints."""
        for folder in self.checkpoint_folders()[:-CHECKPOINTS_KEPT]:
            shutil.rmtree(folder)

    def save_predictions(self, predictions: CellPredictions, size_only: CellPredictions | None) -> None:
        """Write the predictions on the test side and, where there are some, those from the cells' size alone."""
        predictions.save(self.predictions)
        if size_only is not None:
            size_only.save(self.size_only_predictions)

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write metrics.json, the last of the results: a run that has it is finished and needs no checkpoints."""
        write_json(self.metrics, metrics)
        self.remove_checkpoints()

    def remove_checkpoints(self) -> None:
        """Remove all checkpoints."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def remove_half_written(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder; nobody else may be writing there."""
    for path in folder.glob(".*.tmp"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
