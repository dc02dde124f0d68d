"""The folder of a run: the only place that names, locks, writes and removes its files.

args.yaml holds the flags, the resolved recipe and the run's identity; split.json the cells of each side; summary.csv a
row per epoch, learning_curve.png a drawing of it; checkpoints/ what a resumed run continues from; predictions.parquet a
row per test cell; metrics.json the metrics; release/ the model in Hub format. A folder with metrics.json holds a
finished run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from filelock import FileLock, Timeout
from matplotlib.figure import Figure

from leukoscope import ConfigError, __version__
from leukoscope.data.splits import Split
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.files import atomic_file, disk_errors, first_line, write_atomic
from leukoscope.models.metrics import METRICS_FILE, Metrics
from leukoscope.models.release import write_json
from leukoscope.progress import note
from leukoscope.training.identity import RunIdentity, plain

ARGS = "args.yaml"
CHECKPOINT_STATE = "state.json"
CHECKPOINT_TENSORS = "tensors.safetensors"


class RunFolder:
    """The folder of one run. In a run of several processes only the main one writes into it.

    Attributes:
        path: the folder itself, --output_dir.
        args, split, summary, learning_curve, predictions, size_only_predictions, metrics: its files.
        release, checkpoints: its sub-folders.
    """

    def __init__(self, path: Path):
        self.path = path
        self.args = path / ARGS
        self.split = path / "split.json"
        self.summary = path / "summary.csv"
        self.learning_curve = path / "learning_curve.png"
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
        return sorted(self.checkpoints.glob("[0-9]*-epoch-*-step-*"))

    def differences(self, identity: RunIdentity) -> list[str]:
        """What differs between the run here and the one that is to begin, as `RunIdentity.differences` names it."""
        if not self.args.is_file():
            return [f"no {ARGS} names them"]
        content = yaml.safe_load(self.args.read_text(encoding="utf-8"))
        return RunIdentity(content["flags"], content["resolved_recipe"], **content["identity"]).differences(identity)

    # What may begin here

    def check(self, identity: RunIdentity, *, resume: bool) -> None:
        """Refuse to overwrite an unfinished run, unless it is to be resumed, and another one whatever its state.

        Raises:
            ConfigError: the folder holds such a run.
        """
        unfinished = self.checkpoint_folders()
        if not self.is_finished and not unfinished:
            return
        different = self.differences(identity)
        if different:
            raise ConfigError(
                f"--output_dir {self.path}: holds a run with other settings ({', '.join(different)}); give "
                "another folder or remove it"
            )
        if not self.is_finished and not resume:
            raise ConfigError(
                f"--output_dir {self.path}: holds an unfinished run ({unfinished[-1].name}); resume it with "
                f"--resume_from_checkpoint latest, or remove {self.checkpoints} to start again"
            )

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
            with suppress(OSError):  # it holds a run, or the beginning of one
                self.path.rmdir()

    # What a run writes, in the order that it writes it

    def writing(self) -> AbstractContextManager[None]:
        """Turn the disk's errors within a `with` block into a `LeukoscopeError` that names the folder."""
        return disk_errors(f"--output_dir {self.path}: cannot be written", "give another folder")

    def begin(self, identity: RunIdentity, flags: Mapping[str, Any], split: Split, *, keep_checkpoints: bool) -> None:
        """Write which run this is, and the `flags` that started it; remove what an unfinished one left."""
        with self.writing():
            split.save(self.split)
            shutil.rmtree(self.release, ignore_errors=True)
            if not keep_checkpoints:
                self.remove_checkpoints()
            for file in (self.predictions, self.size_only_predictions, self.summary, self.learning_curve):
                file.unlink(missing_ok=True)
            self.save_identity(identity, flags)

    def save_identity(self, identity: RunIdentity, flags: Mapping[str, Any]) -> None:
        """Write args.yaml."""
        content = {
            "flags": plain(flags),
            "resolved_recipe": identity.recipe,
            "identity": identity.facts(),
            "leukoscope": __version__,
        }
        write_atomic(self.args, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def append_row(self, row: dict[str, Any]) -> None:
        """Add one epoch to summary.csv; the first begins the file."""
        is_first = row["epoch"] == 1
        with self.writing():
            pd.DataFrame([row]).to_csv(self.summary, mode="w" if is_first else "a", header=is_first, index=False)

    def draw_learning_curve(self, rows: Sequence[Mapping[str, Any]], kept_epoch: int) -> None:
        """Draw losses and validation metrics of `rows` of summary.csv, with a line at the epoch that was kept."""
        summary = pd.DataFrame(rows).set_index("epoch")
        figure = Figure(figsize=(8, 3), layout="constrained")
        for axes, columns in zip(figure.subplots(1, 2), ("_loss$", "accuracy|auroc"), strict=True):
            summary.filter(regex=columns).plot(ax=axes, marker=".").legend(fontsize=7)
            axes.axvline(kept_epoch, color="0.6", linestyle="--")
        with self.writing(), atomic_file(self.learning_curve) as temporary:
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})

    def save_predictions(self, predictions: CellPredictions, size_only: CellPredictions | None) -> None:
        """Write the predictions on the test side and, where there are some, those from the cells' size alone."""
        predictions.save(self.predictions)
        if size_only is not None:
            size_only.save(self.size_only_predictions)

    def finish(self, metrics: Metrics) -> None:
        """Write metrics.json, the last of the results: a run that has it is finished and needs no checkpoints."""
        write_json(self.metrics, metrics.content())
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
