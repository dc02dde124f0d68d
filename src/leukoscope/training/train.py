"""One training run in four stages, top to bottom: `plan`, `prepare`, `Trainer.fit`, `finish`.

`plan` knows the recipe, the device and which run this is, and no cells. `prepare` loads cells, split, network and start
weights. `Trainer.fit` trains epoch by epoch; just before, `begin` removes what an earlier run left in the folder.
`finish` tests the network and writes the release. `run_folder` says what the run folder holds; the model card is
written by `api.run`, because reports stand above training.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from leukoscope import ConfigError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.splits import BY_IMAGE, Split, load_split, make_split
from leukoscope.evaluation.assess import fit_on_validation
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.evaluation.robustness import add_robustness
from leukoscope.models.build import NetworkStart, build_network, load_start_weights, model_args, rewrite_for_timm
from leukoscope.models.recipes import Recipe
from leukoscope.models.release import read_metrics
from leukoscope.models.weights import (
    is_timm_model,
    output_frequencies,
    round_as_stored,
    save_release,
    shift_class_frequencies,
    training_frequencies,
)
from leukoscope.progress import note
from leukoscope.training.accelerator import keep_freed_memory, make_accelerator
from leukoscope.training.checkpoint import Checkpoints
from leukoscope.training.config import DataArguments, TrainingConfig
from leukoscope.training.data import evenly_spread, preprocessing_for
from leukoscope.training.finetune import start_from_release
from leukoscope.training.identity import RunIdentity
from leukoscope.training.run_folder import RESUME_LATEST, RunFolder
from leukoscope.training.run_metrics import describe_run, evaluation_block, result_lines, size_only_baseline
from leukoscope.training.tracking import check_tracking, finish_tracking, start_tracking, track_epoch, track_test
from leukoscope.training.trainer import Trainer

# From these a network's channel statistics are measured before it is rewritten for timm.
_MEASURED_CELLS = 64


def train(
    config: TrainingConfig,
    *,
    build: Callable[[Recipe, int], nn.Module] = build_network,
    trainer_class: type[Trainer] = Trainer,
) -> Path:
    """Run one training and return its run folder.

    Args:
        build: makes the network of a recipe and a number of classes; one that is no timm model leaves no release.
        trainer_class: trains it.

    Raises:
        LeukoscopeError: anything the user can fix, before the first step where possible.
        Interrupted: Ctrl-C or SIGTERM came, and a checkpoint was written.
    """
    planned = plan(config)
    accelerator = planned.accelerator
    folder = planned.folder
    # One lock for all processes of a launched run.
    with folder.locked() if accelerator.is_main_process else nullcontext():
        if planned.is_finished:
            if accelerator.is_main_process:
                folder.remove_checkpoints()
            note(f"{folder.path}: the run is complete, and is not trained again")
            return folder.path
        prepared = prepare(planned, build)
        trainer = trainer_class(
            accelerator,
            prepared.network,
            prepared.cells,
            prepared.split,
            planned.recipe,
            seed=config.run.seed,
            checkpoints=prepared.checkpoints,
        )
        begin(prepared, trainer)
        for row in trainer.fit():
            if accelerator.is_main_process:
                folder.append_row(row)
            track_epoch(accelerator, row)
        finish(prepared, trainer)
    return folder.path


# Plan


@dataclass(frozen=True)
class Plan:
    """What a training is, before its cells are loaded.

    Attributes:
        identity: of the run; its data and split are not known yet.
        folder: the run folder, which may hold this run, unfinished or finished.
        is_finished: the run to be resumed is finished, and is not trained again.
    """

    config: TrainingConfig
    recipe: Recipe
    accelerator: Accelerator
    identity: RunIdentity
    folder: RunFolder
    is_finished: bool


def plan(config: TrainingConfig) -> Plan:
    """Resolve the recipe, start the accelerator, and check that the run may begin in its folder.

    Raises:
        ConfigError: a wrong flag, a device or tracker that is not there, or a folder that holds another run.
    """
    recipe = config.resolve()
    check_tracking(config.run.report_to)
    accelerator = make_accelerator(config, recipe)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    identity = RunIdentity.of(config, recipe)
    folder = RunFolder(config.output_dir)
    resume = config.run.resume_from_checkpoint
    folder.check(resume, identity)
    is_finished = resume == RESUME_LATEST and folder.is_finished
    # Every process has looked at the folder before the first one changes it.
    accelerator.wait_for_everyone()
    return Plan(config, recipe, accelerator, identity, folder, is_finished)


# Prepare


@dataclass(frozen=True)
class Prepared:
    """All that a trainer needs.

    Attributes:
        identity: of the run, complete.
        drawn_split: as it was drawn or read; split.json holds it.
        split: the same cells, with notes on what weakens this run's metrics.
        network: with its start weights.
        start: what the network starts from.
        checkpoints: the run's, with the one that it resumes from.
    """

    plan: Plan
    identity: RunIdentity
    cells: FramedCells
    preprocessing: Preprocessing
    drawn_split: Split
    split: Split
    network: nn.Module
    start: NetworkStart
    checkpoints: Checkpoints


def prepare(planned: Plan, build: Callable[[Recipe, int], nn.Module] = build_network) -> Prepared:
    """Load cells, split, network and start weights, and print them; nothing in the run folder is changed.

    Raises:
        LeukoscopeError: cells or start weights that cannot be had, a split that cannot be drawn, no space on the disk,
            or a checkpoint of another run.
    """
    config = planned.config
    recipe = planned.recipe
    accelerator = planned.accelerator
    set_seed(config.run.seed)
    with accelerator.main_process_first():
        data = config.data.load(recipe.image_size)
    # Before the cells are decoded, which may take minutes: start weights may be missing.
    network = build(recipe, len(data.info.labels))
    release = config.model.model_name_or_path
    start = NetworkStart("") if release else NetworkStart(load_start_weights(network, recipe, config.start_weights))
    preprocessing = preprocessing_for(recipe, data)
    with accelerator.main_process_first():
        cells = frame_cells(data, preprocessing)
    drawn_split = choose_split(config, cells.data)
    if release:
        start = start_from_release(network, recipe, release, cells, drawn_split)
    split = replace(drawn_split, notes=(*drawn_split.notes, *start.notes, *missing_classes(cells, drawn_split)))
    _print_preparation(config, recipe, cells, split, start)
    if accelerator.is_main_process:
        planned.folder.require_space_for(network, recipe)
    identity = replace(
        planned.identity,
        data=cells.data.fingerprint,
        split=split.fingerprint,
        precision=accelerator.mixed_precision,
        processes=accelerator.num_processes,
    )
    # Again, now that cells and split are known.
    resume = config.run.resume_from_checkpoint
    planned.folder.check(resume, identity)
    checkpoints = Checkpoints(planned.folder, identity, steps=config.run.checkpointing_steps)
    if resume:
        checkpoints.resume(resume)
    return Prepared(planned, identity, cells, preprocessing, drawn_split, split, network, start, checkpoints)


def _print_preparation(
    config: TrainingConfig, recipe: Recipe, cells: FramedCells, split: Split, start: NetworkStart
) -> None:
    """Print what a run trains on and starts from."""
    info = cells.data.info
    note(cells.data.report())
    note(
        f"split {split.strategy} ({split.detail}): {len(split.train):,} train, {len(split.validation):,} validation, "
        f"{len(split.test):,} test; no {split.group} on two sides"
    )
    for line in split.notes:
        note(f"  {line}")
    if split.group == "cell" and split.strategy != "all":
        note(f"  {BY_IMAGE}")
    if not split.test:
        note("  no cell is tested, so there are no test metrics; a validation side, if there is one, chooses the epoch")
    if len(info.labels) == 2 and not info.positive_label:
        note("  no positive class: no sensitivity and no rule for subjects (name it with --positive_label)")
    if config.is_smoke_run:
        note("Smoke run on synthetic phantoms: it shows that everything works, and nothing about patients.")
    note(f"{recipe.architecture} at {recipe.image_size} px, starting from {start.name}")
    for line in start.remarks:
        note(f"  {line}")


def choose_split(config: TrainingConfig, data: LoadedCells) -> Split:
    """The split that the flags name, made or read from a file.

    Raises:
        ConfigError: a flag that has no effect on it.
    """
    args = config.data
    if args.split_file:
        if args.split:
            raise ConfigError(
                f"--split {args.split} --split_file {args.split_file}: both say which cells are tested; give one"
            )
        split = load_split(args.split_file, data)
    else:
        split = make_split(
            data,
            args.split,
            seed=config.run.seed,
            fold=args.fold,
            num_folds=args.num_folds,
            validation=not args.no_validation,
            train_folds=args.train_folds,
            test_folds=args.test_folds,
        )
    drawn = f"split {split.strategy} ({split.detail})"
    if args.no_validation and split.validation:
        raise ConfigError(
            f"--no_validation: has no effect on {drawn}, which has validation cells; leave it out, or choose "
            "--split subject-cv, block-cv or random-cv"
        )
    used = _flags_with_effect(split) if not args.split_file else ()
    defaults = DataArguments()
    for flag in ("fold", "num_folds", "train_folds", "test_folds"):
        setting = getattr(args, flag)
        if setting != getattr(defaults, flag) and flag not in used:
            words = " ".join(setting) if isinstance(setting, list) else setting
            raise ConfigError(f"--{flag} {words}: has no effect on {drawn}; leave it out, or choose another --split")
    return split.at_most(args.max_train_samples, args.max_eval_samples)


def _flags_with_effect(split: Split) -> tuple[str, ...]:
    """The flags of folds that a strategy reads."""
    if split.strategy.endswith("-cv"):
        return ("fold", "num_folds")
    if split.strategy == "official":
        return ("train_folds", "test_folds")
    return ()


def missing_classes(cells: FramedCells, split: Split) -> tuple[str, ...]:
    """One line for validation and test each, where they lack cells of a class."""
    lines = []
    for side in ("validation", "test"):
        ids = getattr(split, side)
        if not ids:
            continue
        present = set(cells.labels[cells.rows(ids)].tolist())
        missing = [name for k, name in enumerate(cells.data.info.labels) if k not in present]
        if missing:
            lines.append(
                f"{side} side: no cell of class {', '.join(missing)}; its metrics cover the other classes only"
            )
    return tuple(lines)


# Fit: `Trainer.fit`, between `begin` and `finish`


def begin(prepared: Prepared, trainer: Trainer) -> None:
    """Write into the run folder which run this is, and remove an earlier run's results; start the tracker.

    Raises:
        LeukoscopeError: a wrong --class_frequencies, or a folder that cannot be written.
    """
    planned = prepared.plan
    _output_frequencies(prepared, trainer)  # raises here, not after the epochs
    # Nothing is removed before every process has found everything in order.
    planned.accelerator.wait_for_everyone()
    start_tracking(planned.accelerator, planned.config, planned.recipe)
    if planned.accelerator.is_main_process:
        resumed = bool(planned.config.run.resume_from_checkpoint)
        planned.folder.begin(prepared.identity, prepared.drawn_split, keep_checkpoints=resumed)


# Finish


def finish(prepared: Prepared, trainer: Trainer) -> None:
    """Test the network of the epoch that was kept, write the release and, with a validation side, fit what decides.

    Every process takes part in predicting; the main one writes.

    Raises:
        LeukoscopeError: a folder that cannot be written.
    """
    planned = prepared.plan
    accelerator = planned.accelerator
    folder = planned.folder
    split = prepared.split
    network = ready_for_release(prepared, trainer)
    tested = trainer.evaluate(split.test) if split.test else None
    validated = trainer.predict(split.validation) if split.validation else None
    if accelerator.is_main_process:
        with folder.writing():
            metrics = _training_metrics(prepared, trainer)
            if tested is not None:
                block = _test_block(prepared, *tested)
                metrics["evaluations"].append(block)
                accelerator.print(result_lines(block), flush=True)
                training = metrics["training"]
                track_test(accelerator, block, epochs_run=training["epochs_run"], kept_epoch=training["kept_epoch"])
            if is_timm_model(network):
                _write_release(prepared, network, metrics)
                if validated is not None:
                    # What decides: temperature, thresholds and OOD detector, written into the release.
                    fit_on_validation(folder.release, validated, prepared.cells, split)
                    add_robustness(folder.release, prepared.cells, split, prepared.plan.config.run.robustness_cells)
                    metrics = read_metrics(folder.release)
            folder.finish(metrics)
            accelerator.print(f"run folder: {folder.path}", flush=True)
    finish_tracking(accelerator)
    accelerator.wait_for_everyone()


def ready_for_release(prepared: Prepared, trainer: Trainer) -> nn.Module:
    """Turn the trained network into the one that is tested and released.

    In place, its probabilities get the class priors that the release states, and its weights are rounded to what the
    release will hold.

    Returns:
        that network, or the plain one of timm that predicts the same where the recipe has a head of its own.
    """
    recipe = prepared.plan.recipe
    network = prepared.network
    trained_for = training_frequencies(recipe, trainer.class_counts)
    shift_class_frequencies(network, trained_for, _output_frequencies(prepared, trainer))
    round_as_stored(network)
    if not recipe.pooled_norm:
        return network
    cells = prepared.cells
    rows = np.sort(evenly_spread(cells.rows(prepared.split.train), _MEASURED_CELLS))
    pixels = torch.from_numpy(np.ascontiguousarray(cells.pixels[rows].transpose(0, 3, 1, 2)))
    plain = build_network(replace(recipe, pooled_norm=False), len(cells.data.info.labels))
    return rewrite_for_timm(network, plain, prepared.preprocessing.normalise(pixels))


def _output_frequencies(prepared: Prepared, trainer: Trainer) -> torch.Tensor:
    """(K,) class priors of the release's probabilities."""
    labels = prepared.cells.data.info.labels
    return output_frequencies(prepared.plan.config.data.class_frequencies, labels, trainer.class_counts)


def _training_metrics(prepared: Prepared, trainer: Trainer) -> dict[str, Any]:
    """The metrics.json of the run, before anything is evaluated."""
    planned = prepared.plan
    cells = prepared.cells
    metrics = describe_run(
        planned.config, prepared.identity, cells, prepared.split, prepared.start.name, planned.accelerator.device
    )
    frequencies = _output_frequencies(prepared, trainer).tolist()
    metrics["training"] |= {
        **prepared.start.provenance,
        "output_frequencies": dict(zip(cells.data.info.labels, frequencies, strict=True)),
        "processes": planned.accelerator.num_processes,
        "seconds": trainer.seconds,
        "epochs_run": len(trainer.state.rows),
        "kept_epoch": trainer.select_epoch().epoch,
    }
    return metrics


def _test_block(prepared: Prepared, predictions: CellPredictions, figures: dict[str, Any]) -> dict[str, Any]:
    """The block of metrics.json of the test side, beside predictions from cell size alone; writes both predictions."""
    block = evaluation_block(figures, prepared.split)
    baseline = size_only_baseline(prepared.cells, prepared.split, predictions)
    if baseline is not None:
        block["size_only_baseline"] = headline(measure(baseline))
    prepared.plan.folder.save_predictions(predictions, baseline)
    return block


def _write_release(prepared: Prepared, network: nn.Module, metrics: dict[str, Any]) -> None:
    recipe = prepared.plan.recipe
    info = prepared.cells.data.info
    save_release(
        prepared.plan.folder.release,
        network,
        architecture=recipe.architecture,
        model_args=model_args(recipe),
        labels=info.labels,
        preprocessing=prepared.preprocessing,
        metrics=metrics,
        description=f"{recipe.name} on {info.title}; research only",
    )
