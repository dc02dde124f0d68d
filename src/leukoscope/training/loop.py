"""One training run, top to bottom: cells → split → network → epochs → answers on the test side → release folder.

The run folder explains itself: args.yaml (flags and resolved recipe), split.json (which cells), summary.csv (one row
an epoch), predictions.parquet (one row a test cell), metrics.json, and release/ in Hub format.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, set_seed
from torch import nn
from torch.utils.data import DataLoader, Dataset

from leukoscope import LeukoscopeError
from leukoscope.cells.cache import FramedCells, frame_cells
from leukoscope.cells.loading import LoadedCells, load_cells
from leukoscope.cells.splits import Split, load_split, make_split
from leukoscope.cells.transforms import Augmenter, Preprocessing
from leukoscope.evaluation.metrics import CellPredictions, measure
from leukoscope.models.build import build_network, classifier_parameters, load_start_weights
from leukoscope.models.recipes import Recipe
from leukoscope.models.release import METRICS, save_release, write_json
from leukoscope.training.config import TrainingConfig
from leukoscope.training.memory import keep_freed_memory
from leukoscope.training.record import append_row, describe_run, record_answers, result_lines, write_args
from leukoscope.training.schedule import BestEpoch, cosine_with_warmup


class _Rows(Dataset[tuple[torch.Tensor, int, int]]):
    """Some rows of the framed cells, for a DataLoader: (3, S, S) uint8 pixels, class, row."""

    def __init__(self, cells: FramedCells, rows: np.ndarray):
        self.cells, self.rows = cells, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int, int]:
        row = int(self.rows[index])
        pixels = torch.from_numpy(np.ascontiguousarray(self.cells.pixels[row].transpose(2, 0, 1)))
        return pixels, int(self.cells.labels[row]), row


def train(config: TrainingConfig) -> Path:
    """Run one training and return its run folder.

    Raises:
        LeukoscopeError: anything the user can fix, before the first step where possible.
    """
    recipe = config.resolve()
    accelerator = make_accelerator(config, recipe)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    say = partial(accelerator.print, flush=True)
    out = _make_output_dir(config.output_dir, accelerator)
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
    started_from = load_start_weights(network, recipe, config.start_weights)
    say(f"{recipe.architecture} at {recipe.image_size} px, starting from {started_from}")
    if accelerator.is_main_process:
        split.save(out / "split.json")
        write_args(out / "args.yaml", config, recipe)

    preprocessing = preprocessing_for(recipe, cells.data)
    engine = _Engine(accelerator, cells, split, recipe, preprocessing, config)
    started = time.perf_counter()
    with (out / "summary.csv").open("w", newline="") if accelerator.is_main_process else nullcontext() as file:
        for epoch_row in engine.fit(network):
            if file is not None:
                append_row(file, epoch_row)
    seconds = time.perf_counter() - started

    answers = engine.answer(split.test) if split.test else None
    if accelerator.is_main_process:
        metrics = describe_run(config, recipe, cells, split, started_from)
        metrics["training"] |= {"seconds": seconds, "epochs_run": engine.epochs_run, "kept_epoch": engine.kept_epoch}
        if answers is not None:
            block = record_answers(out, answers, cells, split)
            metrics["evaluations"].append(block)
            say(result_lines(block))
        write_json(out / METRICS, metrics)
        save_release(
            out / "release",
            accelerator.unwrap_model(engine.network),
            architecture=recipe.architecture,
            labels=cells.data.info.labels,
            preprocessing=preprocessing,
            metrics=metrics,
            description=f"{recipe.name} on {cells.data.info.title}; research only",
        )
        say(f"run folder: {out}\nrelease:    {out / 'release'}")
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
        mixed_precision=precision, dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True)
    )
    # `accelerate launch` without a configuration sets OMP_NUM_THREADS=1, which would leave all cores but one idle.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and accelerator.device.type == "cpu" and torch.get_num_threads() == 1:
        local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_processes))
    return accelerator


def preprocessing_for(recipe: Recipe, data: LoadedCells) -> Preprocessing:
    """How this recipe sees this data set."""
    return Preprocessing(recipe.image_size, data.info.crop_pct)


def load_framed_cells(config: TrainingConfig, recipe: Recipe, accelerator: Accelerator) -> FramedCells:
    """Load the data set and decode it once; the main process does it first, the others read its cache."""
    from datasets import disable_progress_bars
    from tqdm.auto import tqdm

    disable_progress_bars()
    args = config.data
    with accelerator.main_process_first(), tqdm(disable=not _shows_progress(accelerator), leave=False) as bar:
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

        return frame_cells(data, preprocessing_for(recipe, data), progress=progress)


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


class _Engine:
    """Fits a network on the training side and answers for any cells; holds what both need."""

    def __init__(
        self,
        accelerator: Accelerator,
        cells: FramedCells,
        split: Split,
        recipe: Recipe,
        preprocessing: Preprocessing,
        config: TrainingConfig,
    ):
        self.accelerator, self.cells, self.split = accelerator, cells, split
        self.recipe, self.preprocessing, self.config = recipe, preprocessing, config
        self.augment = Augmenter(recipe.augmentation, cells.data.info.background, config.run.seed)
        self.train_rows = cells.rows(split.train)
        self.class_counts = self._class_counts()
        # Inverse class frequency, mean 1 over the training cells.
        weights = self.class_counts.sum() / (len(self.class_counts) * self.class_counts)
        self.class_weights = weights.to(accelerator.device)
        self.network: nn.Module
        self.epochs_run = self.kept_epoch = 0

    def _train_mode(self) -> None:
        """Training mode, but for frozen modules: those keep weights and batch statistics."""
        self.network.train()
        unwrapped = self.accelerator.unwrap_model(self.network)
        for name in self.recipe.frozen:
            unwrapped.get_submodule(name).eval()

    def fit(self, network: nn.Module) -> Iterator[dict[str, Any]]:
        """Train epoch by epoch, yielding one summary row each; the best epoch's weights are left in `network`."""
        recipe, accelerator = self.recipe, self.accelerator
        loader = DataLoader(_Rows(self.cells, self.train_rows), recipe.train_batch_size, shuffle=True, drop_last=True)
        if not len(loader):
            raise LeukoscopeError(
                f"--per_device_train_batch_size {recipe.train_batch_size}: larger than the {len(self.train_rows)} "
                "training cells; give a smaller one"
            )
        for name in recipe.frozen:
            network.get_submodule(name).requires_grad_(False)
        optimizer = torch.optim.AdamW(_parameter_groups(network, recipe), fused=True)
        self.network, optimizer, loader = accelerator.prepare(network, optimizer, loader)
        peak_rates = [group["lr"] for group in optimizer.param_groups]
        total_steps = recipe.num_train_epochs * len(loader)
        best, best_state = BestEpoch(self.config.run.early_stopping_patience), None

        for epoch in range(recipe.num_train_epochs):
            started, losses = time.perf_counter(), []
            self._train_mode()
            for step, (pixels, labels, rows) in enumerate(self._progress(loader, epoch)):
                share = cosine_with_warmup(epoch * len(loader) + step, total_steps, recipe.warmup_share)
                for group, peak in zip(optimizer.param_groups, peak_rates, strict=True):
                    group["lr"] = peak * share
                losses.append(self._step(pixels, labels, rows, epoch, optimizer))
            seconds = time.perf_counter() - started
            loss = float(torch.stack(losses).mean())
            if not np.isfinite(loss):
                raise LeukoscopeError(f"epoch {epoch + 1}: the loss is {loss}; lower --learning_rate and start again")
            row = {"epoch": epoch + 1, "train_loss": round(loss, 5), "learning_rate": optimizer.param_groups[0]["lr"]}
            row |= {"seconds": round(seconds, 1), "images_per_second": round(len(self.train_rows) / seconds, 1)}
            if self.split.validation:
                row |= self._validate()
                if best.update(epoch, row["val_balanced_accuracy"]):
                    best_state = {
                        k: v.detach().clone() for k, v in accelerator.unwrap_model(self.network).state_dict().items()
                    }
            shown = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items())
            accelerator.print("  ".join(shown), flush=True)
            yield row
            if self.split.validation and best.should_stop(epoch):
                accelerator.print(f"no better validation score for {best.patience} epochs: stopped")
                break
        self.epochs_run = epoch + 1
        self.kept_epoch = self.epochs_run if best_state is None else best.epoch + 1
        if best_state is not None:
            accelerator.unwrap_model(self.network).load_state_dict(best_state)
            accelerator.print(f"kept epoch {best.epoch + 1}: validation balanced accuracy {best.score:.3f}")
        restore_class_frequencies(accelerator.unwrap_model(self.network), self.class_counts)

    def answer(self, cell_ids: tuple[str, ...]) -> CellPredictions:
        """Probabilities for the given cells, each exactly once however many processes share the work."""
        rows = self.cells.rows(cell_ids)
        loader = DataLoader(_Rows(self.cells, rows), self.config.run.per_device_eval_batch_size)
        loader = self.accelerator.prepare(loader)
        self.network.eval()
        gathered: list[tuple[torch.Tensor, torch.Tensor]] = []
        for pixels, _, row in loader:
            with torch.inference_mode():
                logits = self.network(self.preprocessing.normalise(pixels)).float()
            gathered.append(self.accelerator.gather_for_metrics((logits, row)))
        logits, seen = (torch.cat(parts).cpu() for parts in zip(*gathered, strict=True))
        assert sorted(seen.tolist()) == sorted(rows.tolist()), "a cell was answered twice or not at all"
        ids = {row: cell for cell, row in self.cells.row_of.items()}
        return CellPredictions(
            tuple(ids[row] for row in seen.tolist()),
            tuple(self.cells.subjects[row] for row in seen.tolist()),
            self.cells.labels[seen.numpy()],
            logits.softmax(dim=1).numpy(),
            self.cells.data.info.labels,
        )

    def _step(
        self, pixels: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor, epoch: int, optimizer: Any
    ) -> torch.Tensor:
        inputs = self.preprocessing.normalise(self.augment(pixels, rows.tolist(), epoch))
        with self.accelerator.autocast():
            logits = self.network(inputs)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.recipe.label_smoothing, reduction="none")
        # Divided by the batch size, not by the batch's weights: the same on one process as on many.
        loss = (loss * self.class_weights[labels]).mean()
        self.accelerator.backward(loss)
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self.network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def _validate(self) -> dict[str, float]:
        figures = measure(self.answer(self.split.validation))
        names = ("balanced_accuracy", "f1_weighted", "auroc")
        return {f"val_{name}": round(figures[name], 5) for name in names if figures[name] is not None}

    def _class_counts(self) -> torch.Tensor:
        """Training cells of each class, (K,) float32."""
        names = self.cells.data.info.labels
        counts = np.bincount(self.cells.labels[self.train_rows], minlength=len(names))
        for name, count in zip(names, counts, strict=True):
            if count == 0:
                raise LeukoscopeError(f"split: no training cell of class {name}; use another --split or more cells")
        return torch.tensor(counts, dtype=torch.float32)

    def _progress(self, loader: DataLoader[Any], epoch: int) -> Any:
        from tqdm.auto import tqdm

        return tqdm(loader, desc=f"epoch {epoch + 1}", disable=not _shows_progress(self.accelerator), leave=False)


def restore_class_frequencies(network: nn.Module, class_counts: torch.Tensor) -> None:
    """Make the probabilities speak for the training data's class frequencies again.

    A class-weighted loss teaches a network to answer as if all classes were equally frequent. Adding the logarithm of
    the true frequencies to the head's bias undoes that exactly (Saerens et al. 2002, doi:10.1162/089976602753284446).

    Args:
        class_counts: (K,) training cells of each class.
    """
    bias = next(p for p in classifier_parameters(network) if p.ndim == 1)
    shift = torch.log(class_counts / class_counts.sum())
    with torch.no_grad():
        bias.add_((shift - shift.mean()).to(bias.device))


def _shows_progress(accelerator: Accelerator) -> bool:
    """Bars are for a person at a terminal; a log file keeps one line an epoch."""
    return accelerator.is_main_process and sys.stderr.isatty()


def _parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Backbone and head at their own rates; no weight decay on biases and norms."""
    head = {id(p) for p in classifier_parameters(network)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in filter(lambda p: p.requires_grad, network.parameters()):
        groups.setdefault((id(parameter) in head, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": recipe.head_learning_rate if in_head else recipe.learning_rate,
            "weight_decay": recipe.weight_decay if decayed else 0.0,
        }
        for (in_head, decayed), parameters in groups.items()
    ]


def _make_output_dir(out: Path, accelerator: Accelerator) -> Path:
    try:
        if accelerator.is_main_process:
            out.mkdir(parents=True, exist_ok=True)
            (out / ".writable").write_text("")
            (out / ".writable").unlink()
            # What an earlier run left there would be taken for this one's, should it end early.
            shutil.rmtree(out / "release", ignore_errors=True)
            for name in (METRICS, "predictions.parquet", "size_only_predictions.parquet", "summary.csv"):
                (out / name).unlink(missing_ok=True)
    except OSError as error:
        raise LeukoscopeError(
            f"--output_dir {out}: cannot be written ({error.strerror}); give another folder"
        ) from None
    return out
