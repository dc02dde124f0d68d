"""One training run, top to bottom: cells → split → network → epochs → predictions on the test side → release folder.

The run folder explains itself: args.yaml (flags and resolved recipe), split.json (which cells), summary.csv (one row
per epoch), predictions.parquet (one row per test cell), metrics.json, and release/ in Hub format.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, GradientAccumulationPlugin, InitProcessGroupKwargs, set_seed
from torch import nn

from leukoscope import LeukoscopeError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.pixel_cache import FramedCells, frame_cells
from leukoscope.data.splits import BY_IMAGE, Split, load_split, make_split
from leukoscope.evaluation.assess import fit_on_validation
from leukoscope.files import disk_errors, first_line
from leukoscope.inference.runtime import forbid_tf32, must_use_cpu, usable_cores
from leukoscope.models.build import NetworkStart, build_network, load_start_weights, model_args, rewrite_for_timm
from leukoscope.models.recipes import Recipe
from leukoscope.models.release import METRICS, read_metrics, write_json
from leukoscope.models.weights import (
    is_timm_model,
    output_frequencies,
    round_as_stored,
    save_release,
    shift_class_frequencies,
    training_frequencies,
)
from leukoscope.progress import note
from leukoscope.training import run_folder
from leukoscope.training.checkpoint import LATEST, Checkpoints, check_resume, remove_checkpoints, remove_temporary
from leukoscope.training.config import DataArguments, TrainingConfig
from leukoscope.training.data import evenly_spread, preprocessing_for
from leukoscope.training.finetune import start_from_release
from leukoscope.training.run_folder import RunIdentity
from leukoscope.training.trainer import Trainer

PRECISIONS = ("no", "fp16", "bf16")
# From these a network's channel statistics are measured before it is rewritten for timm.
_MEASURED_CELLS = 64
# How torchrun, `accelerate launch` and three kinds of MPI tell a process how many they started.
_LAUNCHED = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LAUNCHED_PRECISION = "ACCELERATE_MIXED_PRECISION"
# glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


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
    recipe, out, resume = config.resolve(), config.output_dir, config.run.resume_from_checkpoint
    run_folder.check_tracking(config.run.report_to)
    accelerator = make_accelerator(config, recipe)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    identity = RunIdentity.of(config, recipe)
    check_resume(out, resume, identity)
    complete = resume == LATEST and (out / METRICS).exists()
    accelerator.wait_for_everyone()
    written = partial(disk_errors, f"--output_dir {out}: cannot be written", "give another folder")
    with ExitStack() as held:
        if accelerator.is_main_process:
            with written():
                out.mkdir(parents=True, exist_ok=True)
            held.enter_context(run_folder.locked(out))  # for all processes of a launched run
            remove_temporary(out)
            if complete:
                remove_checkpoints(out)
        if complete:
            note(f"{out}: the run is complete, and is not trained again")
            return out

        # Cells, split and network
        set_seed(config.run.seed)
        with accelerator.main_process_first():
            data = config.data.load(recipe.image_size)
        # Before the cells are decoded, which may take minutes: start weights may be missing.
        network = build(recipe, len(data.info.labels))
        fine_tuned = config.model.model_name_or_path
        start = NetworkStart("" if fine_tuned else load_start_weights(network, recipe, config.start_weights))
        preprocessing = preprocessing_for(recipe, data)
        with accelerator.main_process_first():
            cells = frame_cells(data, preprocessing)
        split = choose_split(config, cells.data)
        if fine_tuned:
            start = start_from_release(network, recipe, fine_tuned, cells, split)
        notes = (*start.notes, *missing_classes(cells, split))
        drawn, split = split, replace(split, notes=(*split.notes, *notes))
        _report(config, recipe, cells, split, start)
        if accelerator.is_main_process:
            run_folder.require_disk_space(out, network, recipe)

        # Checkpoints and the trainer
        known: dict[str, Any] = {"data": cells.data.fingerprint, "split": split.fingerprint}
        known |= {"precision": accelerator.mixed_precision, "processes": accelerator.num_processes}
        identity = replace(identity, **known)
        check_resume(out, resume, identity)
        checkpoints = Checkpoints(out, identity, steps=config.run.checkpointing_steps)
        if resume:
            checkpoints.resume(resume)
        seed = config.run.seed
        trainer = trainer_class(accelerator, network, cells, split, recipe, seed=seed, checkpoints=checkpoints)
        counts, labels = trainer.class_counts, cells.data.info.labels
        frequencies = output_frequencies(config.data.class_frequencies, labels, counts)

        # Nothing is removed before every process has found everything in order.
        accelerator.wait_for_everyone()
        run_folder.start_tracking(accelerator, config, recipe)
        with written():
            if accelerator.is_main_process:
                drawn.save(out / "split.json")
                # The results of an earlier run would be taken for this one's, should it end early.
                shutil.rmtree(out / "release", ignore_errors=True)
                if not resume:
                    remove_checkpoints(out)
                for name in (METRICS, "predictions.parquet", "size_only_predictions.parquet", "summary.csv"):
                    (out / name).unlink(missing_ok=True)
                identity.save(out)

        # Epochs
        for epoch_row in trainer.fit():
            if accelerator.is_main_process:
                with written():
                    run_folder.append_row(out / "summary.csv", epoch_row)
            run_folder.track_epoch(accelerator, epoch_row)

        # Test side and release
        shift_class_frequencies(network, training_frequencies(recipe, counts), frequencies)
        round_as_stored(network)
        predictions = trainer.predict(split.test) if split.test else None
        validated = trainer.predict(split.validation) if split.validation else None
        rows, kept_epoch = trainer.state.rows, trainer.select_epoch().epoch
        if accelerator.is_main_process:
            with written():
                metrics = run_folder.describe_run(config, identity, cells, split, start.name, accelerator.device)
                metrics["training"] |= {
                    **start.provenance,
                    "output_frequencies": dict(zip(labels, frequencies.tolist(), strict=True)),
                    "processes": accelerator.num_processes,
                    "seconds": trainer.seconds,
                    "epochs_run": len(rows),
                    "kept_epoch": kept_epoch,
                }
                if predictions is not None:
                    block = run_folder.evaluate_predictions(out, predictions, cells, split)
                    metrics["evaluations"].append(block)
                    accelerator.print(run_folder.result_lines(block), flush=True)
                    run_folder.track_result(accelerator, block, epochs_run=len(rows), kept_epoch=kept_epoch)
                released = network
                if recipe.pooled_norm:
                    measured = np.sort(evenly_spread(cells.rows(split.train), _MEASURED_CELLS))
                    pixels = torch.from_numpy(np.ascontiguousarray(cells.pixels[measured].transpose(0, 3, 1, 2)))
                    plain = build_network(replace(recipe, pooled_norm=False), len(labels))
                    released = rewrite_for_timm(network, plain, preprocessing.normalise(pixels))
                if is_timm_model(released):
                    save_release(
                        out / "release",
                        released,
                        architecture=recipe.architecture,
                        model_args=model_args(recipe),
                        labels=labels,
                        preprocessing=preprocessing,
                        metrics=metrics,
                        description=f"{recipe.name} on {cells.data.info.title}; research only",
                    )
                    if validated is not None:
                        fit_on_validation(out / "release", validated, cells, split)
                        metrics = read_metrics(out / "release")
                # Last of the results: a run that has it is finished.
                write_json(out / METRICS, metrics)
                remove_checkpoints(out)
                accelerator.print(f"run folder: {out}", flush=True)
        run_folder.finish_tracking(accelerator)
        accelerator.wait_for_everyone()
    return out


def _report(config: TrainingConfig, recipe: Recipe, cells: FramedCells, split: Split, start: NetworkStart) -> None:
    """Print what a run trains on and starts from."""
    note(cells.data.report())
    note(
        f"split {split.strategy} ({split.detail}): {len(split.train):,} train, {len(split.validation):,} validation, "
        f"{len(split.test):,} test; no {split.group} on two sides"
    )
    for line in (*split.notes, *([BY_IMAGE] if split.group == "cell" and split.strategy != "all" else [])):
        note(f"  {line}")
    if not split.test:
        note("  nothing is tested: no test metrics, and a validation side, where there is one, chooses the epoch")
    if len(cells.data.info.labels) == 2 and not cells.data.info.positive_label:
        note("  no class is the positive one: no sensitivity and no rule for subjects (--positive_label names it)")
    if config.is_smoke_run:
        note("Smoke run on synthetic phantoms: it shows that everything works, and nothing about patients.")
    note(f"{recipe.architecture} at {recipe.image_size} px, starting from {start.name}")
    for line in start.remarks:
        note(f"  {line}")


def cpu_has_bf16() -> bool:
    """Whether PyTorch convolves in bf16 on this processor; elsewhere it emulates bf16, far slower than float32."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def choose_precision(config: TrainingConfig, recipe: Recipe, on_gpu: bool) -> tuple[str, str, bool]:
    """Return the precision of training, what chose it, and whether this device only emulates bf16.

    Raises:
        LeukoscopeError: an unknown precision, or one that this device does not have.
    """
    # `accelerate launch` always sets it: to "no" where neither its flag nor its configuration names one.
    launched = os.environ.get(_LAUNCHED_PRECISION)
    # Convolutions in bf16 need a GPU of compute capability 8.0; older ones are slow in it or fail.
    emulated = not (torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else cpu_has_bf16())
    if on_gpu:
        default = ("fp16", "this GPU has no bf16 units", "") if emulated else ("bf16", "the default on a GPU", "")
    elif emulated and recipe.cpu_precision == "bf16":
        default = ("no", "this processor has no bf16 units", "")
    else:
        default = (recipe.cpu_precision, "the recipe's default on a CPU", "")
    choices = (
        (config.run.mixed_precision, "--mixed_precision", "--mixed_precision"),
        (launched, "accelerate launch", "accelerate launch --mixed_precision"),
        default,
    )
    precision, why, flag = next(choice for choice in choices if choice[0])
    if precision not in PRECISIONS:
        raise LeukoscopeError(f"{flag} {precision}: unknown here; give one of {', '.join(PRECISIONS)}")
    if precision == "fp16" and not on_gpu:
        raise LeukoscopeError(f"{flag} fp16: needs a GPU, and this run has none; give bf16 or no")
    return precision, why, emulated


def make_accelerator(config: TrainingConfig, recipe: Recipe) -> Accelerator:
    """Make the accelerator for CPU, GPU or several, and print its precision and what chose it.

    Raises:
        LeukoscopeError: as `choose_precision`; or processes that a launcher started and that do not know of each other.
    """
    on_gpu = torch.cuda.is_available() and not must_use_cpu()
    precision, why, emulated = choose_precision(config, recipe, on_gpu)
    forbid_tf32()  # validation and prediction are to be a release's
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(config.run.deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not config.run.deterministic  # batches of training all have one shape
    # One process may train several recipes in turn, each in its own precision.
    AcceleratorState._reset_state()
    if torch.distributed.is_available():
        # Imported after the connection is made, as DistributedDataParallel does, it would keep that open for good.
        from torch.distributed.nn import functional  # noqa: F401

    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=config.run.report_to,
        project_dir=config.output_dir,
        # Given here, it is not taken from the environment, which a checkpoint does not record.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.run.gradient_accumulation_steps),
        dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=config.run.seed),
        # While the first process downloads, decodes or computes features, the others wait.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    # Without a GPU, Accelerate ignores a launcher unless it is told to use the CPU: each process would train alone.
    launched_processes = max(int(os.environ.get(name) or 1) for name in _LAUNCHED)
    if accelerator.num_processes < launched_processes:
        raise LeukoscopeError(
            f"{launched_processes} processes were started and each would train alone into --output_dir "
            f"{config.output_dir}: Accelerate found no GPU for them; set ACCELERATE_USE_CPU=true before the command "
            "(in a notebook os.environ['ACCELERATE_USE_CPU'] = 'true' before notebook_launcher), or start one process"
        )
    other = "" if why.startswith("--") else "; --mixed_precision chooses another"
    note(f"{accelerator.num_processes} process(es) on {accelerator.device.type}")
    note(f"precision {precision}: {why}{other}")
    if precision == "bf16" and emulated:
        what, faster = ("GPU", "fp16") if on_gpu else ("processor", "no")
        note(
            f"  this {what} has no bf16 units, so a step takes several times as long as with --mixed_precision {faster}"
        )
    try:
        torch.ones(1, device=accelerator.device).add_(1)
    except RuntimeError as error:  # of a GPU that is older than those this PyTorch was built for
        raise LeukoscopeError(
            f"{accelerator.device}: PyTorch {torch.__version__} cannot compute on it ({first_line(error)}); install a "
            "build for this GPU, or set ACCELERATE_USE_CPU=true"
        ) from None
    # `accelerate launch` without a configuration sets OMP_NUM_THREADS=1, which would leave all cores but one idle.
    if os.environ.get(_LAUNCHED_PRECISION) and accelerator.device.type == "cpu" and torch.get_num_threads() == 1:
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, usable_cores() // local_processes))
    return accelerator


def close_connection() -> None:
    """Close the connection between the processes of a run, if there is one; nothing may be trained afterwards.

    A process that ends with it open is sometimes aborted: a thread of the connection frees a tensor when Python cannot.
    """
    gc.collect()  # a trainer refers to itself, and its network to the connection
    PartialState().destroy_process_group()


def choose_split(config: TrainingConfig, data: LoadedCells) -> Split:
    """The split that the flags name, made or read from a file.

    Raises:
        LeukoscopeError: a flag that has no effect on it.
    """
    args, defaults = config.data, DataArguments()
    if args.split_file:
        if args.split:
            raise LeukoscopeError(
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
        raise LeukoscopeError(
            f"--no_validation: has no effect on {drawn}, which has validation cells; leave it out, or choose "
            "--split subject-cv, block-cv or random-cv"
        )
    crossed, official = split.strategy.endswith("-cv"), split.strategy == "official"
    used = {"fold": crossed, "num_folds": crossed, "train_folds": official, "test_folds": official}
    for flag, has_effect in used.items():
        value = getattr(args, flag)
        if value != getattr(defaults, flag) and (args.split_file or not has_effect):
            shown = " ".join(value) if isinstance(value, list) else value
            raise LeukoscopeError(
                f"--{flag} {shown}: has no effect on {drawn}; leave it out, or choose another --split"
            )
    return split.at_most(args.max_train_samples, args.max_eval_samples)


def missing_classes(cells: FramedCells, split: Split) -> tuple[str, ...]:
    """One line for validation and test each, where they lack cells of a class."""
    lines = []
    for side in ("validation", "test"):
        ids = getattr(split, side)
        there = set(cells.labels[cells.rows(ids)].tolist())
        missing = [name for k, name in enumerate(cells.data.info.labels) if ids and k not in there]
        if missing:
            lines.append(
                f"{side} side: no cell of class {', '.join(missing)}; its metrics cover the other classes only"
            )
    return tuple(lines)


def keep_freed_memory() -> None:
    """Let glibc keep the memory that this process frees; does nothing without glibc.

    It returns every large block to the system at once. A training step on a CPU asks for the same blocks again, and the
    page faults that this costs take between a tenth and nearly half of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**31 - 1)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never: large pictures take more than any limit it could be given
