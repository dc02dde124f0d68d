"""One training run, top to bottom: cells → split → network → epochs → answers on the test side → release folder.

The run folder explains itself: args.yaml (flags and resolved recipe), split.json (which cells), summary.csv (one row
an epoch), predictions.parquet (one row a test cell), metrics.json, figures/, and release/ in Hub format.
"""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, set_seed

from leukoscope import LeukoscopeError
from leukoscope.cells.cache import FramedCells, frame_cells
from leukoscope.cells.loading import LoadedCells, load_cells
from leukoscope.cells.preprocessing import Preprocessing
from leukoscope.cells.splits import Split, load_split, make_split
from leukoscope.models.build import build_network
from leukoscope.models.recipes import Recipe
from leukoscope.models.release import round_as_stored, save_release
from leukoscope.models.release_files import METRICS, write_json
from leukoscope.training.checkpoints import FOLDER, Checkpoints, check_resume, run_settings
from leukoscope.training.config import TrainingConfig
from leukoscope.training.divergence import BAD_BATCH, LossWatch
from leukoscope.training.engine import Engine
from leukoscope.training.environment import complete_environment, write_environment
from leukoscope.training.figures import draw_run
from leukoscope.training.init_from import start_network
from leukoscope.training.inputs import shows_progress
from leukoscope.training.memory import keep_freed_memory
from leukoscope.training.preflight import check_before_training
from leukoscope.training.record import append_row, describe_run, record_answers, result_lines, write_args
from leukoscope.training.tracking import check_tracking, finish_tracking, start_tracking, track_epoch, track_result


def train(config: TrainingConfig) -> Path:
    """Run one training and return its run folder.

    Raises:
        LeukoscopeError: anything the user can fix, before the first step where possible.
    """
    recipe = config.resolve()
    check_tracking(config)
    accelerator = make_accelerator(config, recipe)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    say = partial(accelerator.print, flush=True)
    check_resume(config.output_dir, config.run.resume_from_checkpoint)
    out = _make_output_dir(config, accelerator)
    set_seed(config.run.seed)

    cells = load_framed_cells(config, recipe, accelerator)
    say(cells.data.report())
    split = choose_split(config, cells.data)
    say(
        f"split {split.strategy} ({split.detail}): {len(split.train):,} train, {len(split.validation):,} validation, "
        f"{len(split.test):,} test; no {split.group} on two sides"
    )
    for note in split.notes:
        say(f"  {note}")
    if config.is_smoke_run:
        say("Smoke run on synthetic phantoms: it shows that everything works, and nothing about patients.")

    network = build_network(recipe, len(cells.data.info.labels))
    started = start_network(network, recipe, config, cells, split)
    say(f"{recipe.architecture} at {recipe.image_size} px, starting from {started.name}")
    notes = check_before_training(
        out if accelerator.is_main_process else None,
        cells,
        split,
        recipe,
        network,
        processes=accelerator.num_processes,
        batches=config.run.gradient_accumulation_steps,
        checkpoints=config.run.save_total_limit,
    )
    split = replace(split, notes=(*split.notes, *started.notes, *notes))
    for line in (*started.remarks, *started.notes, *notes):
        say(f"  {line}")
    preprocessing = preprocessing_for(recipe, cells.data)
    checkpoints = _checkpoints(config, recipe, cells, split, accelerator)
    if config.run.resume_from_checkpoint:
        checkpoints.resume(config.run.resume_from_checkpoint, say)
    watch = LossWatch(accelerator, {row: cell for cell, row in cells.row_of.items()}, out)
    engine = Engine(accelerator, cells, split, recipe, preprocessing, config.run, checkpoints=checkpoints, watch=watch)

    # Nothing is removed before every process has found all of it in order.
    accelerator.wait_for_everyone()
    resumed = config.run.resume_from_checkpoint is not None
    if accelerator.is_main_process:
        _clear(out, keep_checkpoints=resumed)
    write_environment(out, accelerator, config, cells.data, resumed=resumed)
    start_tracking(accelerator, config, recipe)
    if accelerator.is_main_process:
        split.save(out / "split.json")
        write_args(out / "args.yaml", config, recipe)
    with (out / "summary.csv").open("w", newline="") if accelerator.is_main_process else nullcontext() as file:
        for epoch_row in engine.fit(network):
            if file is not None:
                append_row(file, epoch_row)
            track_epoch(accelerator, epoch_row)

    round_as_stored(engine.network)
    answers = engine.answer(split.test) if split.test else None
    if accelerator.is_main_process:
        metrics = describe_run(config, recipe, cells, split, started.name)
        metrics["training"] |= {
            **started.provenance,
            "processes": accelerator.num_processes,
            "seconds": engine.seconds,
            "epochs_run": engine.epochs_run,
            "kept_epoch": engine.kept_epoch,
        }
        if answers is not None:
            block = record_answers(out, answers, cells, split)
            metrics["evaluations"].append(block)
            say(result_lines(block))
            track_result(accelerator, block, epoch=engine.kept_epoch)
        write_json(out / METRICS, metrics)
        save_release(
            out / "release",
            engine.network,
            architecture=recipe.architecture,
            labels=cells.data.info.labels,
            preprocessing=preprocessing,
            metrics=metrics,
            description=f"{recipe.name} on {cells.data.info.title}; research only",
        )
        draw_run(out, engine.network, cells)
        checkpoints.remove()
        say(f"run folder: {out}\nrelease:    {out / 'release'}")
    complete_environment(out, accelerator, engine.seconds, batch_size=engine.batch_size)
    finish_tracking(accelerator)
    accelerator.wait_for_everyone()
    return out


def make_accelerator(config: TrainingConfig, recipe: Recipe) -> Accelerator:
    """One code path for CPU, GPU and many of them; precision as asked for, else what suits the device."""
    precision = config.run.mixed_precision or ("bf16" if torch.cuda.is_available() else recipe.cpu_precision)
    if precision not in ("no", "bf16"):
        raise LeukoscopeError(f"--mixed_precision {precision}: give no or bf16")
    # One process may train several recipes in turn, each in its own precision.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=config.tracker,
        project_dir=config.output_dir,
        # Said here, it is not taken from the environment, which a checkpoint would know nothing of.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.run.gradient_accumulation_steps),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.run.seed),
    )
    # `accelerate launch` without a configuration sets OMP_NUM_THREADS=1, which would leave all cores but one idle.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and accelerator.device.type == "cpu" and torch.get_num_threads() == 1:
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_processes))
    return accelerator


def preprocessing_for(recipe: Recipe, data: LoadedCells) -> Preprocessing:
    """How this recipe sees this data set."""
    return Preprocessing(
        recipe.image_size, data.info.crop_pct, mean=recipe.mean, std=recipe.std, framing=recipe.framing
    )


def load_framed_cells(config: TrainingConfig, recipe: Recipe, accelerator: Accelerator) -> FramedCells:
    """Load the data set and decode it once; the main process does it first, the others read its cache."""
    from datasets import disable_progress_bars
    from tqdm.auto import tqdm

    disable_progress_bars()
    args = config.data
    with accelerator.main_process_first(), tqdm(disable=not shows_progress(accelerator), leave=False) as bar:
        data = load_cells(
            args.dataset_name,
            args.train_dir,
            subject_pattern=args.subject_pattern,
            subject_csv=args.subject_csv,
            image_size=2 * recipe.image_size,
        )

        def progress(done: int, total: int) -> None:
            bar.desc, bar.total = "decoding", total
            bar.update(done - bar.n)

        return frame_cells(data, preprocessing_for(recipe, data), keep=args.cache_images, progress=progress)


def choose_split(config: TrainingConfig, data: LoadedCells) -> Split:
    """The split asked for: drawn, or given back from a file."""
    args = config.data
    if args.split_file:
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
    return split.at_most(args.max_train_samples, args.max_eval_samples)


def _checkpoints(
    config: TrainingConfig, recipe: Recipe, cells: FramedCells, split: Split, accelerator: Accelerator
) -> Checkpoints:
    """The run's checkpoints; what makes its result beside the flags is named as a person would look for it."""
    settings = run_settings(
        config,
        recipe,
        **{
            "processes (accelerate launch --num_processes)": accelerator.num_processes,
            "--mixed_precision": accelerator.mixed_precision,
            "the data's fingerprint": cells.data.fingerprint,
            "the split's fingerprint": split.fingerprint,
        },
    )
    run = config.run
    return Checkpoints(config.output_dir, settings, steps=run.checkpointing_steps, limit=run.save_total_limit)


def _make_output_dir(config: TrainingConfig, accelerator: Accelerator) -> Path:
    """The run folder, which can be written to; what an earlier run left there is untouched."""
    out = config.output_dir
    try:
        if accelerator.is_main_process:
            out.mkdir(parents=True, exist_ok=True)
            (out / ".writable").write_text("")
            (out / ".writable").unlink()
    except OSError as error:
        raise _unwritable(out, error) from None
    return out


def _clear(out: Path, *, keep_checkpoints: bool) -> None:
    """Remove what an earlier run left: it would be taken for this one's, should it end early."""
    try:
        for name in ("release", "figures", *([] if keep_checkpoints else [FOLDER])):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (METRICS, BAD_BATCH, "predictions.parquet", "size_only_predictions.parquet", "summary.csv"):
            (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(out, error) from None


def _unwritable(out: Path, error: OSError) -> LeukoscopeError:
    return LeukoscopeError(f"--output_dir {out}: cannot be written ({error.strerror}); give another folder")
