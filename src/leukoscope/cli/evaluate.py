"""`leukoscope evaluate`: how well a model classifies labelled cells, whether it is one of our releases or not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli.options import (
    AsJson,
    BatchSize,
    Device,
    Quiet,
    SubjectCsv,
    SubjectPattern,
    TrainDir,
    computing_device,
)

if TYPE_CHECKING:
    from leukoscope.evaluation.evaluate import ModelPredictions, SelectedCells
    from leukoscope.inference.foreign import Classifier


def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Release, or image classifier of transformers: folder or Hub id; --model MODEL means the same.",
        ),
    ] = None,
    dataset_name: Annotated[
        str | None, typer.Option("--dataset_name", metavar="NAME", help="Data set, as for train.")
    ] = None,
    train_dir: TrainDir = None,
    subject_pattern: SubjectPattern = None,
    subject_csv: SubjectCsv = None,
    split: Annotated[
        str | None, typer.Option(help="Test on the test side of this split (default: on every cell).")
    ] = None,
    split_file: Annotated[
        Path | None, typer.Option("--split_file", metavar="FILE", help="Test on the test side of this split.json.")
    ] = None,
    fold: Annotated[int, typer.Option(help="subject-cv: the fold to test on.")] = 0,
    num_folds: Annotated[int, typer.Option("--num_folds", help="subject-cv: number of folds.")] = 5,
    test_fold: Annotated[str, typer.Option("--test_fold", help="official: the fold to test on.")] = "fold_1",
    seed: Annotated[
        int, typer.Option(min=0, help="Of the split, of --max_eval_samples and of the bootstrap samples.")
    ] = 0,
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Evaluate the predictions in this predictions.parquet.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="OTHER", help="A second model or .parquet, evaluated on the same cells.")
    ] = None,
    label_map: Annotated[
        list[str] | None,
        typer.Option("--label_map", metavar="THEIRS=OURS", help="The model's name of a class, and ours; repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the report (default: evaluations/<model>).")
    ] = None,
    max_eval_samples: Annotated[
        int | None, typer.Option("--max_eval_samples", min=1, help="Test on at most so many cells, chosen at random.")
    ] = None,
    batch_size: BatchSize = 16,
    device: Device = "auto",
    trust_remote_code: Annotated[
        bool, typer.Option("--trust_remote_code", help="Run Python code that a model brings along.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Measure a model on labelled cells: metrics with intervals by subject, worst subjects, a page to read."""
    if (model is None) == (predictions is None):
        raise LeukoscopeError("leukoscope evaluate: give a MODEL, or --predictions FILE.parquet; one of the two")
    if model and model.endswith(".parquet"):
        raise LeukoscopeError(f"{model}: is no model; give a file of predictions as --predictions {model}")
    if dataset_name is None and (train_dir or split or split_file or max_eval_samples):
        raise LeukoscopeError("--train_dir, --split, --split_file and --max_eval_samples need --dataset_name")
    if dataset_name is None and (model or (compare and not compare.endswith(".parquet"))):
        raise LeukoscopeError("leukoscope evaluate: name the labelled cells, with --dataset_name NAME --train_dir DIR")
    for pair in label_map or ():
        if "=" not in pair:
            raise LeukoscopeError(f"--label_map {pair}: write the model's class, =, and ours, like blast=ALL")
    names = {theirs: ours for theirs, _, ours in (pair.rpartition("=") for pair in label_map or ())}
    from leukoscope.data.loading import load_cells
    from leukoscope.evaluation.evaluate import keep_cells, predictions_in_file, select_cells
    from leukoscope.inference.foreign import open_classifier
    from leukoscope.reports.html import build_evaluation, write_evaluation

    # Models first: an error about one is shown at once, not after the data set is read.
    device = computing_device("torch") if device == "auto" else device
    classifiers = [
        open_classifier(one, device=device, trust_remote_code=trust_remote_code)
        if one is not None and not one.endswith(".parquet")
        else None
        for one in (model, compare)
    ]
    cells = None
    if dataset_name is not None:
        data = load_cells(dataset_name, train_dir, subject_pattern=subject_pattern, subject_csv=subject_csv)
        if not quiet:
            typer.echo(data.report(), err=True)
        which = (fold, num_folds, test_fold)
        cells = select_cells(data, split, split_file, which=which, seed=seed, at_most=max_eval_samples)
    first = (
        predictions_in_file(predictions, cells)
        if predictions
        else _predict(classifiers[0], cells, names, batch_size, quiet)
    )
    second = None
    if compare is not None:
        # The second model is compared on the cells that the first one could classify.
        ids = first.predictions.cell_ids
        if classifiers[1] is None:
            second = predictions_in_file(Path(compare))
            second = replace(second, predictions=keep_cells(second.predictions, ids))
        else:
            same = cells and replace(cells, split=replace(cells.split, test=ids))
            second = _predict(classifiers[1], same, names, batch_size, quiet)
    evaluation = build_evaluation(first, cells, compared=second, seed=seed)
    folder = output or Path("evaluations") / re.sub(r"[^\w.-]+", "-", first.name.removesuffix(".parquet"))
    page = write_evaluation(folder, evaluation, first.predictions)
    if as_json:
        typer.echo((folder / "evaluation.json").read_text())
        return
    _print_summary(evaluation)
    typer.echo(f"page: {page}\n{RESEARCH_NOTICE}")


def _predict(
    classifier: Classifier | None, cells: SelectedCells | None, names: Mapping[str, str], batch_size: int, quiet: bool
) -> ModelPredictions:
    from rich.console import Console
    from rich.progress import track

    from leukoscope.evaluation.evaluate import predictions_of_model

    assert classifier is not None and cells is not None
    console = Console(stderr=True)

    def progress(stream: Iterable[Any], total: int) -> Iterable[Any]:
        return track(stream, f"predicting with {classifier.name}", total=total, console=console, disable=quiet)

    return predictions_of_model(classifier, cells, label_map=names, batch_size=batch_size, progress=progress)


def _print_summary(evaluation: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from leukoscope.reports.release_tables import metrics_table, worst_first

    console, overlap = Console(highlight=False), evaluation["training_overlap"]
    table = Table("metric", "value", "95 % by subject", "naive, by cell")
    for row in metrics_table(evaluation["figures"], evaluation["intervals"]).rows:
        table.add_row(*map(Text, row))
    console.print(table)
    style = {"good": "green", "warning": "yellow", "bad": "bold white on red"}[overlap["verdict"]]
    console.print(Text(f"estimates: {evaluation['estimates']}"))
    console.print(Text(overlap["statement"], style))
    for line in evaluation["left_out"]:
        console.print(Text(f"left out: {line}"))
    if other := evaluation["comparison"]:
        found = other["figures"]["balanced_accuracy"]
        console.print(
            Text(
                f"compared with {other['model']['name']}: balanced accuracy {found['difference']:+.3f} "
                f"({found['low']:+.3f} to {found['high']:+.3f} by subject), "
                f"better in {found['share_a_better']:.0%} of bootstrap samples"
            )
        )
    if worst := worst_first(evaluation["metrics"]["subjects"])[:3]:
        named = ", ".join(f"{name} ({s['label']}, {s['accuracy']:.0%} of {s['cells']})" for name, s in worst)
        console.print(Text(f"worst subjects: {named}"))
