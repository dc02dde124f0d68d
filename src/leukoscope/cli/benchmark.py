"""`leukoscope evaluate --benchmark`: measure a model, or a table of predictions, on a benchmark's folds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leukoscope import RESEARCH_NOTICE, ConfigError, LeukoscopeError
from leukoscope.cli.options import load_reported, print_table, require_writable
from leukoscope.files import disk_errors, write_atomic
from leukoscope.progress import progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from leukoscope.benchmark import Benchmark, BenchmarkPredictions

_TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SHOWN_METRICS = ("balanced_accuracy_by_subject", "accuracy", "auroc_equal_size")


def refuse_beside_benchmark(**flags: Any) -> None:
    """An error where a flag would change which cells a benchmark tests, or how their subjects are called."""
    for name, setting in flags.items():
        if setting:
            raise ConfigError(f"--{name}: the benchmark defines the tested cells; leave this flag out with --benchmark")


def predict_or_read(
    name: str,
    model: str,
    *,
    dataset_name: str,
    train_dir: Path | None,
    label_map: Mapping[str, str],
    batch_size: int,
    device: str,
) -> tuple[Benchmark, BenchmarkPredictions]:
    """Read the table of predictions that `model` is, or predict the reader's cells with the model.

    Without a `dataset_name`, the cells are those of the benchmark's data set.
    """
    from leukoscope.benchmark import predict_benchmark, read_benchmark, read_table

    benchmark = read_benchmark(name)
    if Path(model).suffix.lower() in _TABLE_SUFFIXES:
        return benchmark, read_table(benchmark, Path(model))
    data = load_reported(dataset_name or benchmark.dataset, train_dir)
    predicted = predict_benchmark(benchmark, model, data, label_map=label_map, batch_size=batch_size, device=device)
    return benchmark, predicted


def report_benchmark(
    name: str, benchmark: Benchmark, predicted: BenchmarkPredictions, output: Path | None, *, as_json: bool
) -> None:
    """Measure predictions, write benchmark.json, predictions and the entry for the Hub, and print them."""
    from leukoscope.benchmark import benchmark_result, eval_results
    from leukoscope.models.metrics import Interval
    from leukoscope.models.release import write_json
    from leukoscope.reports.tables import metric_name, share, span

    folder = output or Path("evaluations") / re.sub(r"[^\w.-]+", "-", f"{benchmark.name}-{predicted.source}")
    require_writable(folder.parent)
    with progress("computing metrics and intervals"):
        result = benchmark_result(benchmark, predicted)
    entry = ""
    why_none = f"give --benchmark OWNER/{benchmark.name}, the benchmark's repository, for its .eval_results entry"
    if "/" in name:
        try:
            entry = eval_results(result, name)
        except LeukoscopeError as error:
            why_none = f"no .eval_results entry: {error}"
    place = folder / ".eval_results" / f"{benchmark.name}.yaml"
    with disk_errors(f"{folder}: the result cannot be written there", "name another --output"):
        folder.mkdir(parents=True, exist_ok=True)
        predicted.predictions.save(folder / "predictions.parquet")
        write_json(folder / "benchmark.json", result)
        if entry:
            place.parent.mkdir(exist_ok=True)
            write_atomic(place, entry)
        else:
            place.unlink(missing_ok=True)  # of an earlier result
    if as_json:
        typer.echo((folder / "benchmark.json").read_text(encoding="utf-8"))
        return
    typer.echo(f"{benchmark.title}, version {benchmark.version}: {result['model']}")
    rows = [
        [metric_name(key), share(result["metrics"][key]), span(Interval(**result["intervals"].get(key, {})))]
        for key in (benchmark.metric, *SHOWN_METRICS)
        if result["metrics"].get(key) is not None
    ]
    print_table(["metric", "value", "95 % interval by subject"], rows)
    missing = result["of_cells"] - result["cells"]
    typer.echo(
        f"{result['cells']:,} of {result['of_cells']:,} cells, {result['subjects']} of {result['of_subjects']} subjects"
    )
    if missing:
        typer.secho(f"{missing:,} cells are missing: do not compare this with a result on all cells", fg="yellow")
    typer.echo(result["training_overlap"]["statement"])
    if entry:
        typer.echo(f"upload this file to the model's repository: {place}")
    else:
        typer.secho(why_none, fg="yellow")
    typer.echo(f"{folder / 'benchmark.json'}\n{RESEARCH_NOTICE}")
