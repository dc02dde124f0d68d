"""`leukoscope evaluate` measures a model, `leukoscope protocol` a recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from leukoscope import RESEARCH_NOTICE, LeukoscopeError
from leukoscope.cli import options
from leukoscope.cli.options import load_reported, print_table, require_writable
from leukoscope.cli.release import assess_on
from leukoscope.progress import progress

if TYPE_CHECKING:
    from leukoscope.evaluation.evaluate import ModelPredictions
    from leukoscope.inference.foreign import Classifier


def evaluate(
    model: Annotated[
        str | None, Argument(metavar="MODEL", help="Release, or image classifier of transformers: folder or Hub id.")
    ] = None,
    dataset_name: options.DatasetName = "",
    train_dir: options.TrainDir = None,
    subject_pattern: options.SubjectPattern = None,
    labels: options.Labels = None,
    split: Annotated[str | None, Option(help="Test on the test side of this split (default: on every cell).")] = None,
    split_file: Annotated[
        Path | None, Option("--split_file", metavar="FILE", help="Test on the test side of this split.json.")
    ] = None,
    seed: Annotated[int, Option(min=0, help="Of the split, of --max_eval_samples and of the bootstrap samples.")] = 0,
    predictions: Annotated[Path | None, Option(metavar="FILE", help="Evaluate this predictions.parquet.")] = None,
    compare: Annotated[
        str | None, Option(metavar="OTHER", help="A second model or .parquet, evaluated on the same cells.")
    ] = None,
    label_map: Annotated[
        list[str] | None,
        Option("--label_map", metavar="THEIRS=OURS", help="The model's name of a class, and ours; repeatable."),
    ] = None,
    output: Annotated[Path | None, Option(metavar="DIR", help="Of the report (default: evaluations/<model>).")] = None,
    max_eval_samples: Annotated[
        int | None, Option("--max_eval_samples", min=1, help="Test on at most so many cells, chosen at random.")
    ] = None,
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a model on labelled cells: metrics with intervals by subject, worst subjects, a page to read."""
    from leukoscope.evaluation.evaluate import predictions_in_file, predictions_of_model, select_cells
    from leukoscope.inference.foreign import open_classifier
    from leukoscope.reports.html import build_evaluation, write_evaluation

    of_data = (train_dir, subject_pattern, labels, split, split_file, max_eval_samples)
    _check_sources(model, predictions, compare, dataset_name, any(of_data))
    names = _label_names(label_map or ())
    require_writable(output or Path("evaluations"))

    # Models first: an error about one is shown at once, not after the data set is read.
    classifier, other = (
        open_classifier(name, device=device) if name and not name.endswith(".parquet") else None
        for name in (model, compare)
    )
    _check_label_names(names, [label for one in (classifier, other) if one for label in one.labels])
    cells = None
    if dataset_name:
        data = load_reported(dataset_name, train_dir, subject_pattern, labels)
        cells = select_cells(data, split, split_file, seed=seed, at_most=max_eval_samples)

    def predicted(classifier: Classifier | None, file: str | Path) -> ModelPredictions:
        if classifier is None or cells is None:  # a model is given with a data set only
            return predictions_in_file(Path(file), cells)
        return predictions_of_model(classifier, cells, label_map=names, batch_size=batch_size)

    first = predicted(classifier, predictions or "")
    second = None if compare is None else predicted(other, compare)
    with progress("computing metrics and intervals"):
        evaluation = build_evaluation(first, cells, compared=second, seed=seed)
    folder = output or Path("evaluations") / re.sub(r"[^\w.-]+", "-", first.name.removesuffix(".parquet"))
    page = write_evaluation(folder, evaluation, first.predictions)
    if as_json:
        typer.echo((folder / "evaluation.json").read_text(encoding="utf-8"))
    else:
        _print_evaluation(evaluation)
        typer.echo(f"page: {page}\n{RESEARCH_NOTICE}")


def _check_sources(
    model: str | None, predictions: Path | None, compare: str | None, dataset_name: str, flags_of_data: bool
) -> None:
    if (model is None) == (predictions is None):
        raise LeukoscopeError("leukoscope evaluate: give a MODEL, or --predictions FILE.parquet; one of the two")
    if model and model.endswith(".parquet"):
        raise LeukoscopeError(f"{model}: is no model; give a file of predictions as --predictions {model}")
    if not dataset_name and flags_of_data:
        raise LeukoscopeError(
            "--train_dir, --subject_pattern, --labels, --split, --split_file and --max_eval_samples need --dataset_name"
        )
    if not dataset_name and (model or (compare and not compare.endswith(".parquet"))):
        raise LeukoscopeError("leukoscope evaluate: name the labelled cells, with --dataset_name NAME --train_dir DIR")


def _label_names(label_map: Sequence[str]) -> dict[str, str]:
    """The model's name of a class → ours."""
    names: dict[str, str] = {}
    for pair in label_map:
        if "=" not in pair:
            raise LeukoscopeError(f"--label_map {pair}: write the model's class, =, and ours, like blast=ALL")
        theirs, _, ours = pair.rpartition("=")
        if (other := names.setdefault(theirs, ours)) != ours:
            raise LeukoscopeError(f"--label_map {pair}: {theirs} is already {other}; give one of the two")
    return names


def _check_label_names(names: Mapping[str, str], known: Sequence[str]) -> None:
    for theirs, ours in names.items():
        if theirs.casefold() not in {label.casefold() for label in known}:
            problem = "without effect: no model is run"
            if known:
                problem = f"no class of the model, which has {', '.join(known)}"
            raise LeukoscopeError(f"--label_map {theirs}={ours}: {theirs!r} is {problem}; correct or leave it out")


def _print_evaluation(evaluation: Mapping[str, Any]) -> None:
    from leukoscope.reports.html import decisions_line
    from leukoscope.reports.release_tables import metrics_table, worst_first

    overlap, unit = evaluation["training_overlap"], evaluation["unit"]
    rows = metrics_table(evaluation["figures"], evaluation["intervals"], unit).rows
    print_table(["metric", "value", f"95 % by {unit}", "naive, by cell"], rows)
    typer.echo(f"estimates: {evaluation['estimates']}")
    if evaluation["decisions"]:
        typer.echo(f"decisions: {decisions_line(evaluation['decisions'])}")
    typer.secho(overlap["statement"], fg={"good": "green", "warning": "yellow", "bad": "red"}[overlap["verdict"]])
    for line in evaluation["left_out"]:
        typer.echo(f"left out: {line}")
    if comparison := evaluation["comparison"]:
        found = comparison["figures"]["balanced_accuracy"]
        resampled = unit if comparison["resampled"] == "subjects" else "cell"
        typer.echo(
            f"compared with {comparison['model']['name']}: balanced accuracy {found['difference']:+.3f} "
            f"({found['low']:+.3f} to {found['high']:+.3f} by {resampled}), "
            f"better in {found['share_a_better']:.0%} of bootstrap samples"
        )
    if worst := worst_first(evaluation["metrics"]["subjects"])[:3]:
        named = ", ".join(f"{name} ({s['label']}, {s['accuracy']:.0%} of {s['cells']})" for name, s in worst)
        typer.echo(f"worst {unit}s: {named}")


def protocol(
    ctx: typer.Context,
    output: Annotated[Path, Option(metavar="DIR", help="Folder of the release to write.")],
    fields_dir: options.FieldsDir = None,
    other_dir: options.OtherDir = None,
    healthy_dir: options.HealthyDir = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure a recipe on unseen subjects, then train its release. Takes the flags of train (--num_folds …) as well.

    Finished runs are kept, so the same command resumes an interrupted protocol.
    """
    from accelerate import PartialState

    from leukoscope.data.pixel_cache import frame_cells
    from leukoscope.files import resource_file
    from leukoscope.models.release import read_release
    from leukoscope.protocol import check_release_folder, compose_release, measure_on_folds, run_protocol
    from leukoscope.reports.card import TEMPLATE, write_card
    from leukoscope.training.config import parse_config
    from leukoscope.training.train import close_connection

    # Checked now rather than after hours of training.
    check_release_folder(output)
    require_writable(output.parent)
    resource_file(TEMPLATE)
    config = parse_config(ctx.args)
    runs = run_protocol(config)
    if PartialState().is_main_process:
        compose_release(runs, output)
        preprocessing = read_release(output).preprocessing
        data = config.data.load(preprocessing.image_size)
        cells = frame_cells(data, preprocessing)
        assess_on(cells, output, fields_dir, other_dir, healthy_dir)
        measure_on_folds(runs, output, cells)
        write_card(output)
    close_connection()
