"""The functions of `import leukoscope`: each does from Python what a command does from a shell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukoscope import DataError

if TYPE_CHECKING:
    from leukoscope.data.cells import LoadedCells
    from leukoscope.inference.scoring import Scored
    from leukoscope.training.config import TrainingConfig


def train(**flags: Any) -> Path:
    """Train a classifier and return its run folder; the release, with its card, is in its sub-folder `release`.

    Args:
        flags: the flags of `leukoscope train`, without dashes: `dataset_name="phantoms", num_train_epochs=3`. Paths
            may be `Path` objects; several values are a list.

    Raises:
        LeukoscopeError: an unknown flag, a wrong value, or anything else the user can fix.
        SystemExit: Ctrl-C or SIGTERM stopped training after writing a checkpoint; the same call with
            `resume_from_checkpoint="latest"` resumes the run.
    """
    from leukoscope.training.config import parse_config

    return run(parse_config([], flags))


def run(config: TrainingConfig) -> Path:
    """Train, write the model card, and publish the release if the flags say so; returns the run folder.

    `train.py`, `leukoscope train` and `leukoscope.train` all end here. Errors are those of `train`.
    """
    from accelerate import PartialState

    from leukoscope.hub.publish import Destination, check_can_publish, publish
    from leukoscope.progress import quiet
    from leukoscope.reports.card import write_card
    from leukoscope.training.checkpoint import Interrupted
    from leukoscope.training.run_folder import RunFolder
    from leukoscope.training.train import train as train_network

    flags = config.run
    to = Destination(flags.hub_model_id or "", private=flags.hub_private)
    if flags.push_to_hub:
        check_can_publish(to)
    try:
        with quiet(flags.quiet):
            folder = train_network(config)
    except Interrupted:
        if PartialState().is_main_process:
            print("resume with the same command and --resume_from_checkpoint latest", flush=True)
        raise
    if PartialState().is_main_process:
        release = RunFolder(folder).release
        write_card(release, hub_id=flags.hub_model_id or "")
        print("release:   ", release, flush=True)
        if flags.push_to_hub:
            print("published:", publish(release, to))
    return folder


def evaluate(
    model: str | Path,
    data: LoadedCells,
    split: str | None = None,
    *,
    seed: int = 0,
    label_map: Mapping[str, str] | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a model on labelled cells.

    Args:
        model: release folder or Hub id.
        data: from `load_dataset`.
        split: test on the test side of this split; None tests on every cell.
        seed: of the split and of the bootstrap samples.
        label_map: the model's name of a class → the data set's.
        device: a torch device such as "cpu" or "cuda"; "auto" takes the GPU where torch finds one, else the CPU.

    Returns:
        The content of evaluation.json: metrics, intervals by subject, confusion matrix, and whether the model was
        trained on tested subjects.

    Raises:
        LeukoscopeError: classes that do not match, a split without a test side, or a model that cannot be opened.
    """
    from leukoscope.data.cells import LoadedCells
    from leukoscope.evaluation.evaluate import build_evaluation, select_cells
    from leukoscope.evaluation.predict import open_model, predict_cells

    if not isinstance(data, LoadedCells):
        raise DataError(f"evaluate: {data!r}: is not a data set; give what `load_dataset` returns")
    cells = select_cells(data, split, seed=seed)
    predictor = open_model(model, device)
    predictions = predict_cells(predictor, cells.data, cells.split.test, label_map=label_map)
    return build_evaluation(predictor.release, predictions, cells, label_map=label_map, seed=seed)


def score(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    subject_pattern: str | None = None,
    subject_folders: bool = False,
    backend: str = "",
    device: str = "auto",
    precision: str = "float32",
) -> Scored:
    """Predict for every image of a folder or a table, and write one row per cell.

    Args:
        model, backend, device, precision: as for `Predictor.from_pretrained`.
        source: a folder of images, or a CSV or Parquet file with a column of paths.
        output: the table to write: .parquet or .csv.
        subject_pattern: a regular expression that finds the subject in an image's path.
        subject_folders: the innermost folder of an image is its subject.

    Raises:
        LeukoscopeError: a table that exists already or cannot be written, or a source without images.
    """
    from leukoscope.data.reading import Reading
    from leukoscope.inference.predictor import Predictor
    from leukoscope.inference.scoring import check_output, open_source, score_cells
    from leukoscope.progress import note

    check_output(Path(output))
    reading = Reading(subject_pattern=subject_pattern, subject_folders=subject_folders)
    cells = open_source(str(source), reading)
    note(cells.report, err=True)
    predictor = Predictor.from_pretrained(model, backend=backend, device=device, precision=precision)
    return score_cells(predictor, cells, Path(output))
