"""`leukoscope evaluate`: what a model's answers are worth on labelled cells, whether it is ours or anyone's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError

if TYPE_CHECKING:
    from leukoscope.evaluation.answering import Answered, AskedCells
    from leukoscope.inference.foreign import Classifier


def _option(text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, **more)


_Model = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="Release or transformers image classifier: folder or Hub id.")
]
_DatasetName = Annotated[str | None, _option("The data set, as for train.py.", "--dataset_name")]
_TrainDir = Annotated[Path | None, _option("Its local folder.", "--train_dir", metavar="DIR")]
_SubjectPattern = Annotated[str | None, _option("imagefolder: as for train.py.", "--subject_pattern")]
_SubjectCsv = Annotated[Path | None, _option("imagefolder: as for train.py.", "--subject_csv", metavar="FILE")]
_Split = Annotated[str | None, _option("Ask about the test side of this split (default: every cell).")]
_SplitFile = Annotated[Path | None, _option("Ask about the test side of this split.json.", "--split_file")]
_Fold = Annotated[int, _option("subject-cv: the fold to ask about.")]
_NumFolds = Annotated[int, _option("subject-cv: number of folds.", "--num_folds")]
_TestFold = Annotated[str, _option("official: the fold to ask about.", "--test_fold")]
_Seed = Annotated[int, _option("Of the split, of --max_eval_samples and of the intervals.", min=0)]
_Predictions = Annotated[Path | None, _option("Judge the answers in this predictions.parquet.", metavar="FILE")]
_Compare = Annotated[str | None, _option("A second model or .parquet, judged on the same cells.", metavar="OTHER")]
_LabelMap = Annotated[
    list[str] | None,
    _option("The model's name of a class, and ours; repeatable.", "--label_map", metavar="THEIRS=OURS"),
]
_OutputDir = Annotated[
    Path | None, _option("Report folder (default: evaluations/<model>).", "--output_dir", metavar="DIR")
]
_MaxSamples = Annotated[int | None, _option("Ask about at most so many cells, at random.", "--max_eval_samples", min=1)]
_TrustRemoteCode = Annotated[bool, _option("Run Python code that a model brings along.", "--trust_remote_code")]
_BatchSize = Annotated[int, _option("Cells answered at once.", "--batch_size", min=1)]


def evaluate(
    model: _Model = None,
    dataset_name: _DatasetName = None,
    train_dir: _TrainDir = None,
    subject_pattern: _SubjectPattern = None,
    subject_csv: _SubjectCsv = None,
    split: _Split = None,
    split_file: _SplitFile = None,
    fold: _Fold = 0,
    num_folds: _NumFolds = 5,
    test_fold: _TestFold = "fold_1",
    seed: _Seed = 0,
    predictions: _Predictions = None,
    compare: _Compare = None,
    label_map: _LabelMap = None,
    output_dir: _OutputDir = None,
    max_eval_samples: _MaxSamples = None,
    batch_size: _BatchSize = 16,
    trust_remote_code: _TrustRemoteCode = False,
) -> None:
    """Measure a model on labelled cells: figures with intervals by subject, worst subjects, a page to read."""
    _check_asked_for(model, predictions)
    if dataset_name is None and (train_dir or split or split_file or max_eval_samples):
        raise LeukoscopeError("--train_dir, --split, --split_file and --max_eval_samples need --dataset_name")
    if dataset_name is None and (model or (compare and not compare.endswith(".parquet"))):
        raise LeukoscopeError("leukoscope evaluate: name the labelled cells, with --dataset_name NAME --train_dir DIR")
    names = _label_map(label_map or ())
    from leukoscope.cells.loading import load_cells
    from leukoscope.evaluation.answering import FoldChoice, answers_in_file, ask_about
    from leukoscope.evaluation.evaluation_page import judge_answers, write_evaluation

    # Models first: one that cannot be had is said at once, not after the data set is read.
    asked, other = _open(model, trust_remote_code), _open(compare, trust_remote_code)
    cells = None
    if dataset_name is not None:
        data = load_cells(dataset_name, train_dir, subject_pattern=subject_pattern, subject_csv=subject_csv)
        typer.echo(data.report(), err=True)
        which = FoldChoice(fold, num_folds, test_fold)
        cells = ask_about(data, split, split_file, which=which, seed=seed, at_most=max_eval_samples)
    first = answers_in_file(predictions, cells) if predictions else _ask(asked, cells, names, batch_size)
    second = _second(other or compare, cells, first, names, batch_size)
    evaluation = judge_answers(first, cells, compared=second, seed=seed)
    out = output_dir or Path("evaluations") / re.sub(r"[^\w.-]+", "-", first.name.removesuffix(".parquet"))
    page = write_evaluation(out, evaluation, first.answers)
    _print_summary(evaluation)
    typer.echo(f"page: {page}\n{RESEARCH_NOTICE}")


def _check_asked_for(model: str | None, predictions: Path | None) -> None:
    if (model is None) == (predictions is None):
        raise LeukoscopeError("leukoscope evaluate: give a MODEL, or --predictions FILE.parquet; one of the two")
    if model and model.endswith(".parquet"):
        raise LeukoscopeError(f"{model}: is no model; give a file of answers as --predictions {model}")


def _label_map(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise LeukoscopeError(f"--label_map {pair}: write the model's class, =, and ours, like blast=ALL")
    return {theirs: ours for theirs, _, ours in (pair.rpartition("=") for pair in pairs)}


def _open(model: str | None, trust_remote_code: bool) -> Classifier | None:
    """The model; None for none, and for a file of answers."""
    if model is None or model.endswith(".parquet"):
        return None
    import torch

    from leukoscope.inference.foreign import open_classifier

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return open_classifier(model, device=device, trust_remote_code=trust_remote_code)


def _ask(
    classifier: Classifier | None, cells: AskedCells | None, names: Mapping[str, str], batch_size: int
) -> Answered:
    from rich.console import Console
    from rich.progress import track

    from leukoscope.evaluation.answering import answers_of_model

    assert classifier is not None and cells is not None
    console = Console(stderr=True)

    def progress(stream: Iterable[Any], total: int) -> Iterable[Any]:
        return track(stream, f"asking {classifier.name}", total=total, console=console)

    return answers_of_model(classifier, cells, label_map=names, batch_size=batch_size, progress=progress)


def _second(
    other: Classifier | str | None,
    cells: AskedCells | None,
    first: Answered,
    names: Mapping[str, str],
    batch_size: int,
) -> Answered | None:
    """What to compare with, a model or a file of answers, on the cells that the first one answered."""
    from leukoscope.evaluation.answering import answers_in_file, only

    asked = first.answers.cell_ids
    if other is None:
        return None
    if isinstance(other, str):
        answered = answers_in_file(Path(other))
        return replace(answered, answers=only(answered.answers, asked))
    return _ask(other, cells and replace(cells, split=replace(cells.split, test=asked)), names, batch_size)


def _print_summary(evaluation: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from leukoscope.evaluation.evaluation_page import figure_rows, worst_subjects

    console, overlap = Console(highlight=False), evaluation["training_overlap"]
    table = Table("figure", "value", "95 % by subject", "naive, by cell")
    for row in figure_rows(evaluation):
        table.add_row(*map(Text, row))
    console.print(table)
    style = {"good": "green", "warning": "yellow", "bad": "bold white on red"}[overlap["verdict"]]
    console.print(Text(f"estimates: {evaluation['estimates']}"))
    console.print(Text(overlap["statement"], style))
    for line in evaluation["left_out"]:
        console.print(Text(f"left out: {line}"))
    if other := evaluation["comparison"]:
        console.print(Text(f"beside {other['model']['name']}: {_difference(other['figures'])}"))
    if worst := worst_subjects(evaluation, 3):
        named = ", ".join(f"{name} ({s['label']}, {s['accuracy']:.0%} of {s['cells']})" for name, s in worst)
        console.print(Text(f"worst subjects: {named}"))


def _difference(figures: Mapping[str, Mapping[str, float]]) -> str:
    found = figures["balanced_accuracy"]
    return (
        f"balanced accuracy {found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f} by subject), "
        f"better in {found['share_a_better']:.0%} of draws"
    )
