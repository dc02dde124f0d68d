"""`leukoscope evaluate` measures a model, `leukoscope protocol` a recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from leukoscope import RESEARCH_NOTICE, ConfigError
from leukoscope.cli import options
from leukoscope.cli.benchmark import predict_or_read, refuse_beside_benchmark, report_benchmark
from leukoscope.cli.options import load_reported, require_writable
from leukoscope.data.reading import NO_FLAGS, Reading
from leukoscope.files import disk_errors, write_atomic
from leukoscope.progress import progress


@options.takes_reading
def evaluate(
    model: options.Model,
    dataset_name: options.DatasetName = "",
    train_dir: options.TrainDir = None,
    reading: Reading = NO_FLAGS,
    split: options.Split = None,
    split_file: options.SplitFile = None,
    seed: Annotated[int, Option(min=0, help="Seed of the split, of --max_eval_samples and of the bootstrap.")] = 0,
    label_map: Annotated[
        list[str] | None,
        Option(
            "--label_map", metavar="THEIRS=OURS", help="A class of the model, and its name in the data; repeatable."
        ),
    ] = None,
    output: Annotated[Path | None, Option(metavar="DIR", help="Results (default: evaluations/<model>).")] = None,
    max_eval_samples: Annotated[
        int | None, Option("--max_eval_samples", min=1, help="Test at most this many cells, chosen at random.")
    ] = None,
    robustness: Annotated[
        bool,
        Option(
            "--robustness",
            help="Predict 300 cells again under 22 small changes of the picture, and count the classes that change.",
        ),
    ] = False,
    benchmark: Annotated[
        str,
        Option(
            "--benchmark",
            metavar="NAME",
            help="Test on the folds of this benchmark: cnmc2019-subjects, or its Hub id OWNER/cnmc2019-subjects.",
        ),
    ] = "",
    batch_size: options.BatchSize = 16,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure a model on labelled cells, by default on all: metrics with intervals by subject, worst subjects.

    Writes evaluation.json, the same as a page of Markdown, and the predictions.

    With --benchmark, MODEL may also be any model that transformers' pipeline loads, a name with {fold} for one model
    each fold, or a table of predictions. Writes benchmark.json and, where NAME has an owner, the .eval_results entry.
    """
    names = _label_names(label_map or ())
    if benchmark:
        refuse_beside_benchmark(
            split=split,
            split_file=split_file,
            **reading.given(),
            max_eval_samples=max_eval_samples,
            robustness=robustness,
        )
        folds, predicted_folds = predict_or_read(
            benchmark,
            model,
            dataset_name=dataset_name,
            train_dir=train_dir,
            label_map=names,
            batch_size=batch_size,
            device=device,
        )
        report_benchmark(benchmark, folds, predicted_folds, output, as_json=as_json)
        return
    if not dataset_name:
        raise ConfigError("--dataset_name: missing; name the labelled cells, or give --benchmark")
    from leukoscope.evaluation.evaluate import build_evaluation, select_cells
    from leukoscope.evaluation.predict import open_model, predict_cells, public_name_of
    from leukoscope.evaluation.robustness import measure_robustness
    from leukoscope.models.release import write_json
    from leukoscope.reports.card import evaluation_text

    require_writable(output or Path("evaluations"))
    # The model first: an error about it is shown at once, not after the data set is read.
    predictor = open_model(model, device)
    data = load_reported(dataset_name, train_dir, reading)
    cells = select_cells(data, split, split_file, seed=seed, at_most=max_eval_samples)
    predictions = predict_cells(predictor, cells.data, cells.split.test, label_map=names, batch_size=batch_size)
    release = predictor.release
    with progress("computing metrics and intervals"):
        evaluation = build_evaluation(release, predictions, cells, label_map=names, seed=seed)
    if robustness:
        parts = [(predictor, predictions.cell_ids)]
        block = measure_robustness(parts, cells.data, estimates="these weights", label_map=names)
        evaluation["robustness"] = block.content()
    folder = output or Path("evaluations") / re.sub(r"[^\w.-]+", "-", public_name_of(release))
    text = evaluation_text(evaluation)
    with disk_errors(f"{folder}: the evaluation cannot be written there", "name another --output"):
        folder.mkdir(parents=True, exist_ok=True)
        predictions.save(folder / "predictions.parquet")
        write_json(folder / "evaluation.json", evaluation)
        write_atomic(folder / "evaluation.md", text)
    typer.echo((folder / "evaluation.json").read_text(encoding="utf-8") if as_json else text)


def _label_names(label_map: Sequence[str]) -> dict[str, str]:
    """Class of the model → class of the data set."""
    names: dict[str, str] = {}
    for pair in label_map:
        if "=" not in pair:
            raise ConfigError(f"--label_map {pair}: write the model's class, =, and ours, like blast=ALL")
        theirs, _, ours = pair.rpartition("=")
        other = names.setdefault(theirs, ours)
        if other != ours:
            raise ConfigError(f"--label_map {pair}: {theirs} is already mapped to {other}; leave one out")
    return names


def protocol(
    ctx: typer.Context,
    output: Annotated[Path, Option(metavar="DIR", help="Folder of the release to write.")],
    quiet: options.Quiet = False,
) -> None:
    """Measure a recipe on unseen subjects, then train its release. Takes the flags of train (--num_folds …) as well.

    Finished runs are kept, so the same command resumes an interrupted protocol.
    """
    from accelerate import PartialState

    from leukoscope.data.pixel_cache import frame_cells
    from leukoscope.evaluation.assess import assess
    from leukoscope.files import resource_file
    from leukoscope.models.release import read_release
    from leukoscope.protocol import add_robustness, check_release_folder, compose_release, run_protocol
    from leukoscope.reports.card import CARD_TEMPLATE, write_card
    from leukoscope.training.accelerator import close_connection
    from leukoscope.training.config import parse_config

    # Checked now rather than after hours of training.
    check_release_folder(output)
    require_writable(output.parent)
    resource_file(CARD_TEMPLATE)
    config = parse_config(ctx.args)
    runs = run_protocol(config)
    if PartialState().is_main_process:
        compose_release(runs, output)
        preprocessing = read_release(output).preprocessing
        data = config.data.load(preprocessing.image_size)
        cells = frame_cells(data, preprocessing)
        assess(output, cells)
        add_robustness(runs, output, cells, config.run.robustness_cells)
        typer.echo(f"{write_card(output)}\n{RESEARCH_NOTICE}")
    close_connection()
