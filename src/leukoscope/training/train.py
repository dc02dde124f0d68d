"""One training run in four stages, top to bottom: `plan`, `prepare`, `Trainer.fit`, `finish`.

`plan` knows recipe, device, cells and split, and so which run this is. `prepare` makes the network with its start
weights. `Trainer.fit` trains epoch by epoch; just before, `begin` removes what an unfinished run left in the folder.
`finish` tests the network and writes the release. `run_folder` says what the run folder holds; the model card is
written by `api.run`, because reports stand above training.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

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
from leukoscope.evaluation.assess import SUBJECTS_OF_VALIDATION, fit_on_validation
from leukoscope.evaluation.calibration import too_few_subjects
from leukoscope.evaluation.metrics import headline, measure
from leukoscope.evaluation.robustness import add_robustness
from leukoscope.evaluation.subjects import why_no_rule
from leukoscope.models.build import NetworkStart, build_network, load_start_weights, model_args, rewrite_for_timm
from leukoscope.models.metrics import Metrics, Training
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
from leukoscope.training.identity import RunIdentity, plain, start_sha256
from leukoscope.training.run_folder import RunFolder
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
    recipe = config.resolve()
    check_tracking(config.run.report_to)
    accelerator = make_accelerator(config, recipe)
    folder = RunFolder(Path(accelerator.project_dir))
    # One lock for all processes of a launched run.
    with folder.locked() if accelerator.is_main_process else nullcontext():
        planned = plan(config, recipe, accelerator, folder)
        if folder.is_finished:
            if accelerator.is_main_process:
                folder.remove_checkpoints()
            note(f"{folder.path}: this run is finished, and is not trained again")
            return folder.path
        start, trainer = prepare(planned, build, trainer_class)
        begin(planned, trainer)
        for row in trainer.fit():
            if accelerator.is_main_process:
                folder.append_row(row)
            track_epoch(accelerator, row)
        finish(planned, start, trainer)
    return folder.path


# Plan


@dataclass(frozen=True)
class Plan:
    """What a training is, before there is a network.

    Attributes:
        folder: the run folder, which may hold this run, unfinished or finished.
        split: as it was drawn or read; split.json holds it.
    """

    config: TrainingConfig
    recipe: Recipe
    accelerator: Accelerator
    folder: RunFolder
    cells: FramedCells
    preprocessing: Preprocessing
    split: Split
    identity: RunIdentity


def plan(config: TrainingConfig, recipe: Recipe, accelerator: Accelerator, folder: RunFolder) -> Plan:
    """Load cells and split, and check that this run may begin in its folder, where nothing is changed.

    Raises:
        LeukoscopeError: cells or start weights that cannot be had, a split that cannot be drawn, or a folder that holds
            another run.
    """
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    with accelerator.main_process_first():
        data = config.data.load(recipe.image_size)
        start = start_sha256(config, recipe)
        preprocessing = preprocessing_for(recipe, data)
        cells = frame_cells(data, preprocessing)
    split = choose_split(config, cells.data)
    identity = RunIdentity.of(
        config,
        recipe,
        start=start,
        data=cells.data.fingerprint,
        split=split.fingerprint,
        precision=accelerator.mixed_precision,
        processes=accelerator.num_processes,
    )
    folder.check(identity, resume=bool(config.run.resume_from_checkpoint))
    # Every process has looked at the folder before the first one changes it.
    accelerator.wait_for_everyone()
    return Plan(config, recipe, accelerator, folder, cells, preprocessing, split, identity)


# Prepare


def prepare(
    planned: Plan, build: Callable[[Recipe, int], nn.Module], trainer_class: type[Trainer]
) -> tuple[NetworkStart, Trainer]:
    """Make the network with its start weights, and its trainer; nothing in the run folder is changed.

    The trainer's split is that of the plan, with notes on what weakens this run's metrics.

    Raises:
        LeukoscopeError: start weights that do not fit, or too few training cells.
    """
    config = planned.config
    recipe = planned.recipe
    cells = planned.cells
    set_seed(config.run.seed)
    network = build(recipe, len(cells.data.info.labels))
    release = config.model.model_name_or_path
    if release:
        start = start_from_release(network, recipe, release, cells, planned.split)
    else:
        start = NetworkStart(load_start_weights(network, recipe, config.start_weights))
    notes = (*planned.split.notes, *start.notes, *missing_classes(cells, planned.split))
    split = replace(planned.split, notes=notes)
    _print_preparation(config, recipe, cells, split, start)
    checkpoints = Checkpoints(planned.folder, steps=config.run.checkpointing_steps)
    if config.run.resume_from_checkpoint:
        checkpoints.resume()
    seed = config.run.seed
    return start, trainer_class(planned.accelerator, network, cells, split, recipe, seed=seed, checkpoints=checkpoints)


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
        note("  no positive class: no sensitivity (name it with --positive_label)")
    for line in missing_fits(cells, split):
        note(f"  {line}")
    if config.is_smoke_run:
        note("Smoke run on synthetic phantoms: it shows that everything works, and nothing about patients.")
    note(f"{recipe.architecture} at {recipe.image_size} px, starting from {start.name}")
    for line in start.remarks:
        note(f"  {line}")


def _why_no_rule(cells: FramedCells, split: Split) -> str:
    """Why no rule for subjects can be fitted on the validation side; "" where it can."""
    if split.group == "cell":
        return BY_IMAGE
    info = cells.data.info
    rows = cells.rows(split.validation)
    subjects = [cells.subjects[row] for row in rows]
    return why_no_rule(subjects, cells.labels[rows], info.labels, info.positive_label)


def missing_fits(cells: FramedCells, split: Split) -> list[str]:
    """One line for thresholds and for the rule for subjects each, where the validation side has too few subjects."""
    lines = []
    info = cells.data.info
    pairs = {(cells.labels[row], cells.subjects[row]) for row in cells.rows(split.validation)}
    counts = Counter(label for label, _ in pairs)
    subjects_of_class = {name: counts[number] for number, name in enumerate(info.labels)}
    reason = too_few_subjects(subjects_of_class, SUBJECTS_OF_VALIDATION)
    if split.validation and reason:
        lines.append(f"the release will never abstain: {reason}")
    reason = _why_no_rule(cells, split)
    if reason and (split.validation or info.positive_label):
        lines.append(f"no rule for subjects will be fitted: {reason}")
    return lines


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
    is_cv = split.strategy.endswith("-cv") and not args.split_file
    is_official = split.strategy == "official" and not args.split_file
    effects = {"fold": is_cv, "num_folds": is_cv, "train_folds": is_official, "test_folds": is_official}
    effects["no_validation"] = not split.validation
    for flag, has_effect in effects.items():
        setting = getattr(args, flag)
        if setting != getattr(DataArguments(), flag) and not has_effect:
            raise ConfigError(
                f"--{flag}: has no effect on split {split.strategy} ({split.detail}); leave it out, or choose another "
                "--split"
            )
    return split.at_most(args.max_train_samples, args.max_eval_samples)


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


def begin(planned: Plan, trainer: Trainer) -> None:
    """Write into the run folder which run this is, and remove an earlier run's results; start the tracker.

    Raises:
        LeukoscopeError: a wrong --class_frequencies, or a folder that cannot be written.
    """
    _output_frequencies(planned, trainer)  # raises here, not after the epochs
    # Nothing is removed before every process has found everything in order.
    planned.accelerator.wait_for_everyone()
    start_tracking(planned.accelerator, planned.config, planned.recipe)
    if planned.accelerator.is_main_process:
        flags = planned.config.as_dict()
        resumed = bool(planned.config.run.resume_from_checkpoint)
        planned.folder.begin(planned.identity, flags, planned.split, keep_checkpoints=resumed)


# Finish


def finish(planned: Plan, start: NetworkStart, trainer: Trainer) -> None:
    """Test the network of the epoch that was kept, write the release and, with a validation side, fit what decides.

    Every process takes part in predicting; the main one writes.

    Raises:
        LeukoscopeError: a folder that cannot be written.
    """
    accelerator = planned.accelerator
    folder = planned.folder
    split = trainer.split
    network = ready_for_release(planned, trainer)
    tested = trainer.predict(split.test) if split.test else None
    validated = trainer.predict(split.validation) if split.validation else None
    if accelerator.is_main_process:
        with folder.writing():
            metrics = _training_metrics(planned, start, trainer)
            if tested is not None:
                baseline = size_only_baseline(planned.cells, split, tested)
                folder.save_predictions(tested, baseline)
                size_only = headline(measure(baseline)) if baseline else None
                block = evaluation_block(measure(tested), split, size_only)
                metrics.evaluations.append(block)
                accelerator.print(result_lines(block), flush=True)
                training = metrics.training
                track_test(accelerator, block, epochs_run=training.epochs_run, kept_epoch=training.kept_epoch)
            if is_timm_model(network):
                _write_release(planned, network, metrics)
                if validated is not None:
                    # What decides: temperature, thresholds and OOD detector, written into the release.
                    fit_on_validation(folder.release, validated, planned.cells, split)
                    add_robustness(folder.release, planned.cells, split, planned.config.run.robustness_cells)
                    metrics = read_metrics(folder.release)
            folder.draw_learning_curve(trainer.state.rows, trainer.select_epoch().epoch)
            folder.finish(metrics)
            accelerator.print(f"run folder: {folder.path}", flush=True)
    finish_tracking(accelerator)
    accelerator.wait_for_everyone()


def ready_for_release(planned: Plan, trainer: Trainer) -> nn.Module:
    """Turn the trained network into the one that is tested and released.

    In place, its probabilities get the class priors that the release states, and its weights are rounded to what the
    release will hold.

    Returns:
        that network, or the plain one of timm that predicts the same where the recipe has a head of its own.
    """
    recipe = planned.recipe
    network = trainer.network
    trained_for = training_frequencies(recipe, trainer.class_counts)
    shift_class_frequencies(network, trained_for, _output_frequencies(planned, trainer))
    round_as_stored(network)
    if not recipe.pooled_norm:
        return network
    cells = planned.cells
    rows = np.sort(evenly_spread(cells.rows(planned.split.train), _MEASURED_CELLS))
    pixels = torch.from_numpy(np.ascontiguousarray(cells.pixels[rows].transpose(0, 3, 1, 2)))
    plain = build_network(replace(recipe, pooled_norm=False), len(cells.data.info.labels))
    return rewrite_for_timm(network, plain, planned.preprocessing.normalise(pixels))


def _output_frequencies(planned: Plan, trainer: Trainer) -> torch.Tensor:
    """(K,) class priors of the release's probabilities."""
    labels = planned.cells.data.info.labels
    return output_frequencies(planned.config.data.class_frequencies, labels, trainer.class_counts)


def _training_metrics(planned: Plan, start: NetworkStart, trainer: Trainer) -> Metrics:
    """The metrics.json of the run, before anything is evaluated."""
    cells = planned.cells
    device = planned.accelerator.device
    # The trainer's recipe: its batch is smaller than asked for where an epoch has fewer cells.
    identity = replace(planned.identity, recipe=plain(asdict(trainer.recipe)))
    metrics = describe_run(planned.config, identity, cells, trainer.split, start.name, device)
    reason = _why_no_rule(cells, trainer.split)
    if reason:
        metrics.subject_rule_missing = reason
    frequencies = _output_frequencies(planned, trainer).tolist()
    training = {
        **metrics.training.content(),
        **start.provenance,
        "output_frequencies": dict(zip(cells.data.info.labels, frequencies, strict=True)),
        "processes": planned.accelerator.num_processes,
        "seconds": trainer.seconds,
        "epochs_run": len(trainer.state.rows),
        "kept_epoch": trainer.select_epoch().epoch,
    }
    return metrics.model_copy(update={"training": Training.model_validate(training)})


def _write_release(planned: Plan, network: nn.Module, metrics: Metrics) -> None:
    recipe = planned.recipe
    info = planned.cells.data.info
    save_release(
        planned.folder.release,
        network,
        architecture=recipe.architecture,
        model_args=model_args(recipe),
        labels=info.labels,
        preprocessing=planned.preprocessing,
        metrics=metrics,
        description=f"{recipe.name} on {info.title}; research only",
    )
