"""Every flag of `train.py`: three frozen dataclasses, which are both the configuration and the command line.

Flags follow the Hugging Face example scripts. What is left unset comes from the recipe; `resolve` tells what that is,
and the run folder's `args.yaml` records the outcome.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_args

from leukoscope import LeukoscopeError
from leukoscope.data.loading import SUBJECT_COLUMNS, LoadedCells, load_cells
from leukoscope.data.registry import DATASETS
from leukoscope.data.splits import STRATEGIES, TRAIN_VAL_SPLIT
from leukoscope.models.build import StartWeights
from leukoscope.models.recipes import RECIPES, Recipe, Schedule, get_recipe, with_overrides, with_values
from leukoscope.training.finetune import follow_model, follow_release

TRACKERS = ("trackio", "tensorboard", "wandb")
_LEAST = {
    "max_train_samples": 1,
    "max_eval_samples": 1,
    "max_train_steps": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "early_stopping_patience": 1,
    "save_total_limit": 1,
    "seed": 0,
}


# Fields of the recipe that flags set.
_RECIPE_FLAGS = {
    "image_size": "image_size",
    "num_train_epochs": "num_train_epochs",
    "train_batch_size": "per_device_train_batch_size",
    "learning_rate": "learning_rate",
    "head_learning_rate": "head_learning_rate",
    "weight_decay": "weight_decay",
    "schedule": "lr_scheduler_type",
    "warmup_steps": "num_warmup_steps",
}


def check_choices(flags: Mapping[str, Any]) -> None:
    """Check every flag that can have a wrong value, but for those of the recipe (`with_values`).

    Args:
        flags: their values by name, all of them.

    Raises:
        LeukoscopeError: names the flag, its value and what to give instead.
    """
    if flags["split"] not in (None, *STRATEGIES):
        raise LeukoscopeError(f"--split {flags['split']}: unknown; choose one of {', '.join(STRATEGIES)}")
    check_one_start(flags)
    if (tracker := flags["report_to"]) not in (None, *TRACKERS):
        raise LeukoscopeError(f"--report_to {tracker}: unknown; choose {' or '.join(TRACKERS)}")
    if tracker and not flags["with_tracking"]:
        raise LeukoscopeError(f"--report_to {tracker}: has no effect alone; add --with_tracking")
    if (space := flags["trackio_space_id"]) and (not flags["with_tracking"] or tracker not in (None, "trackio")):
        raise LeukoscopeError(f"--trackio_space_id {space}: needs --with_tracking and no other tracker than trackio")
    if flags["trackio_public"] and not space:
        raise LeukoscopeError("--trackio_public: has no effect alone; name the Space with --trackio_space_id")
    if (schedule := flags["lr_scheduler_type"]) not in (None, *get_args(Schedule)):
        raise LeukoscopeError(f"--lr_scheduler_type {schedule}: unknown; choose one of {', '.join(get_args(Schedule))}")
    steps = flags["checkpointing_steps"]
    if steps not in ("epoch", "no") and not (steps.isdecimal() and int(steps) > 0):
        raise LeukoscopeError(f"--checkpointing_steps {steps}: give epoch, no, or a number of steps from 1")
    share = flags["train_val_split"]
    if share is not None and not 0 <= share < 1:
        raise LeukoscopeError(f"--train_val_split {share}: give a share of train from 0 to below 1")
    if share is not None and flags["split"] not in (None, "given"):
        raise LeukoscopeError(
            f"--train_val_split {share}: has no effect with --split {flags['split']}, which sets its own share apart; "
            "leave one out"
        )
    if flags["seed"] >= 2**32:
        raise LeukoscopeError(f"--seed {flags['seed']}: give a number below {2**32}")
    for flag, least in _LEAST.items():
        if flags[flag] is not None and flags[flag] < least:
            raise LeukoscopeError(f"--{flag} {flags[flag]}: give {least} or more")
    for flag in ("split_file", "pretrained_weights"):
        if flags[flag] and not Path(flags[flag]).is_file():
            raise LeukoscopeError(f"--{flag} {flags[flag]}: no such file; check the path")
    # Compiled networks are C++ on a CPU, and on a GPU started by it.
    named = os.environ.get("CXX")
    if flags["torch_compile"] and not any(map(shutil.which, [named] if named else ["g++", "clang++", "cl"])):
        raise LeukoscopeError(
            f"--torch_compile: no C++ compiler ({named or 'g++'}) on this machine; install one "
            "(Debian, Ubuntu: apt install g++), name it in CXX, or leave the flag out"
        )


def check_one_start(flags: Mapping[str, Any]) -> None:
    """Refuse flags that name two kinds of start weights."""
    given = [f"--{flag}" for flag in ("from_scratch", "pretrained_weights", "init_from") if flags[flag]]
    if len(given) > 1:
        raise LeukoscopeError(f"{' and '.join(given)} exclude each other; leave one out")


_RECIPE = "densenet121"
# Paths, tracking, checkpoints and publishing do not change what a run computes. What a folder or a file holds does:
# `other_cells` compares the cells, `other_settings` the name of the start weights.
NOT_THE_RESULT = (
    *("output_dir", "train_dir", "validation_dir", "pretrained_weights", "cache_images"),
    *("checkpointing_steps", "save_total_limit", "resume_from_checkpoint", "with_tracking", "report_to", "quiet"),
    *("trackio_space_id", "trackio_public"),
    *("push_to_hub", "hub_model_id", "hub_revision", "hub_private", "hub_create_pr", "hub_tag"),
)
_OF_SPLIT = (
    *("split", "split_file", "fold", "num_folds", "train_folds", "test_folds", "no_validation", "train_val_split"),
)
_PATHS = ("train_dir", "validation_dir", "split_file", "labels", "pretrained_weights")
_NOT_IN_COMMAND = tuple(flag for flag in NOT_THE_RESULT if flag not in _PATHS)


def _flag(default: Any, text: str, **of_parser: Any) -> Any:
    metadata = {"help": text, **of_parser}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataArguments:
    """Which cells, and how they are split."""

    _argument_group_name = "data"

    dataset_name: str = _flag("phantoms", f"{', '.join(DATASETS)}, or a Hub data-set id (owner/name).")
    train_dir: str | None = _flag(None, "Local folder with the cells; without it the data set's Hub copy is used.")
    subject_pattern: str | None = _flag(
        None, "imagefolder: regular expression over the path below train_dir with a group (?P<subject>…)."
    )
    labels: str | None = _flag(None, "imagefolder: table of the cells: file, and label, subject or both.")
    validation_dir: str | None = _flag(None, "imagefolder: class folders of the validation side, beside train_dir.")
    image_column_name: str = _flag("image", "Hub data sets: the column of images.")
    label_column_name: str = _flag("label", "Hub data sets: the column of labels.")
    subject_column: str | None = _flag(
        None, f"Hub data sets: the column of subjects (default: the first of {', '.join(SUBJECT_COLUMNS)})."
    )
    positive_label: str | None = _flag(
        None,
        "Of two classes, the one that sensitivity, operating points and predictions for subjects speak of (default: "
        "the data set's, where it names one).",
    )
    train_split: str | None = _flag(
        None, "The data set's split, or folder below train_dir, to train on (default: train, where it has splits)."
    )
    validation_split: str | None = _flag(None, "The one to validate on (default: validation, valid, val or dev).")
    test_split: str | None = _flag(None, "The one to test on (default: test, testing, eval or evaluation).")
    train_val_split: float | None = _flag(
        None,
        f"given, without a validation split: share of train for validation, 0–1 (default: {TRAIN_VAL_SPLIT}).",
    )
    split: str | None = _flag(
        None,
        f"How cells are dealt out: {', '.join(STRATEGIES)} (default: given, the data set's own splits, where it has "
        "some; else subject).",
    )
    split_file: str | None = _flag(None, "A split.json of an earlier run: use its very cells.")
    fold: int = _flag(0, "subject-cv, block-cv, random-cv: the fold that is tested.")
    num_folds: int = _flag(5, "subject-cv, block-cv, random-cv: number of folds.")
    train_folds: list[str] = _flag(["fold_0"], "official: folds to train on.")
    test_folds: list[str] = _flag(["fold_1"], "official: folds to test on.")
    no_validation: bool = _flag(
        False,
        "Train on the validation cells too and keep the last epoch (subject-cv, block-cv, random-cv, official; given, "
        "where a validation side would be set apart).",
    )
    max_train_samples: int | None = _flag(None, "Train on at most this many cells (drawn at random).")
    max_eval_samples: int | None = _flag(None, "Validate and test on at most this many cells each.")
    cache_images: bool = _flag(
        True,
        "Decode every cell once and keep the pixels on disk. With --no_cache_images nothing is written, and each epoch "
        "decodes.",
    )

    @property
    def source(self) -> dict[str, Any]:
        """The flags that say which cells are loaded, as `load_cells` takes them."""
        names = (
            *("dataset_name", "train_dir", "validation_dir", "subject_pattern", "labels", "subject_column"),
            *("image_column_name", "label_column_name", "train_split", "validation_split", "test_split"),
        )
        return {name: getattr(self, name) for name in names}

    def load(self, image_size: int) -> LoadedCells:
        """Load the cells for pictures of `image_size` pixels.

        Raises:
            LeukoscopeError: as `load_cells`.
        """
        data = load_cells(**self.source, image_size=2 * image_size)
        return data if self.positive_label is None else data.with_positive(self.positive_label)


@dataclass(frozen=True)
class ModelArguments:
    """Which network, and its start weights."""

    _argument_group_name = "model"

    model_name_or_path: str | None = _flag(
        None,
        "What to start from: a model of timm (timm/resnet50.a1_in1k, resnet50), a release or a folder or Hub "
        "repository in timm's format. args.yaml records it as the flags that it stands for: --recipe, --init_from, "
        "--pretrained_weights.",
    )
    recipe: str = _flag(
        _RECIPE,
        f"A recipe: {', '.join(RECIPES)} (default: {_RECIPE}, or the one that made the release of --init_from).",
    )
    image_size: int | None = _flag(None, "Side of the input in pixels (default: the recipe's).")
    pretrained_weights: str | None = _flag(
        None, "Start from this .safetensors file instead of the Hub's pretrained weights."
    )
    pretrained_name: str = _flag("", "What those weights truly are, for the card (default: the file's name).")
    pretrained_may_miss: list[str] = _flag([], "Patterns of tensors that the file is known to lack.", action="extend")
    ignore_mismatched_sizes: bool = _flag(
        False, "Leave out start weights of another shape than the network's, and name them; the head is always new."
    )
    from_scratch: bool = _flag(False, "Start from random weights, without a download.")
    override: list[str] = _flag(
        [], "Single values of the recipe, KEY=VALUE: drop_rate=0.4 sampling=subjects …", action="extend"
    )
    init_from: str | None = _flag(
        None, "Fine-tune this release: a folder, owner/name or owner/name@revision. The same classes keep its head."
    )


@dataclass(frozen=True)
class RunArguments:
    """How the network is trained, and what happens with the result."""

    _argument_group_name = "run"

    output_dir: str | None = _flag(None, "The run folder (default: runs/<dataset>-<recipe>).")
    config: str | None = _flag(None, "A YAML file of flags, such as an earlier run's args.yaml; flags given here win.")
    num_train_epochs: int | None = _flag(None, "Epochs (default: the recipe's).")
    max_train_steps: int | None = _flag(None, "Optimiser steps in all, in place of --num_train_epochs.")
    per_device_train_batch_size: int | None = _flag(None, "Training batch per process (default: the recipe's).")
    per_device_eval_batch_size: int = _flag(64, "Evaluation batch per process.")
    gradient_accumulation_steps: int = _flag(
        1, "Batches that make one optimiser step: one process with N trains as N processes do."
    )
    learning_rate: float | None = _flag(None, "Peak learning rate of the pretrained layers (default: the recipe's).")
    head_learning_rate: float | None = _flag(None, "Peak learning rate of the head (default: the recipe's).")
    weight_decay: float | None = _flag(None, "Weight decay (default: the recipe's).")
    lr_scheduler_type: str | None = _flag(
        None, f"The learning rate's schedule: {', '.join(get_args(Schedule))} (default: the recipe's)."
    )
    num_warmup_steps: int | None = _flag(None, "Optimiser steps of linear warm-up (default: the recipe's share).")
    early_stopping_patience: int = _flag(8, "Stop after this many epochs without a better validation score.")
    mixed_precision: str | None = _flag(
        None,
        "no, fp16 or bf16 (default: that of accelerate launch or its configuration; else bf16 on a GPU, the recipe's "
        "choice on a CPU).",
    )
    torch_compile: bool = _flag(False, "Compile the network: quicker steps after minutes of waiting for the first.")
    seed: int = _flag(0, "Seed of weights, order, augmentation and splits; the same seed repeats the run.")
    checkpointing_steps: str = _flag(
        "epoch", "When to write a checkpoint: epoch, also every so many steps, or no (only when asked to stop)."
    )
    save_total_limit: int = _flag(2, "Checkpoints kept in the run folder; the second is for when the last is damaged.")
    resume_from_checkpoint: str | None = _flag(
        None,
        "Resume an interrupted run: latest (also when nothing is named), or the folder of a checkpoint.",
        nargs="?",
        const="latest",
    )
    with_tracking: bool = _flag(
        False,
        "Log the run's metrics to a tracker; nothing leaves this machine but for --trackio_space_id or wandb.",
    )
    report_to: str | None = _flag(
        None,
        f"The tracker: {', '.join(TRACKERS)} (default with --with_tracking: trackio). wandb sends the metrics to its "
        "server, unless WANDB_MODE=offline is set.",
    )
    trackio_space_id: str | None = _flag(
        None, "Send the metrics to this Space on the Hub, owner/name; made if need be, and private."
    )
    trackio_public: bool = _flag(False, "Let everybody see that Space.")
    quiet: bool = _flag(False, "No progress and no notes; results and errors are still printed.")
    push_to_hub: bool = _flag(False, "Publish the release on the Hugging Face Hub when training ends.")
    hub_model_id: str | None = _flag(None, "Hub repository to publish to, owner/name.")
    hub_token: str | None = _flag(
        None, "Token for the Hub, of this run alone and recorded nowhere; HF_TOKEN keeps it out of the shell's history."
    )
    hub_revision: str = _flag("", "Branch of that repository (default: main).")
    hub_private: bool = _flag(False, "Make that repository private; one that exists must be.")
    hub_create_pr: bool = _flag(False, "Propose the release as a pull request instead of changing the repository.")
    hub_tag: str = _flag("", "Name the published version, like v1.")


@dataclass(frozen=True)
class TrainingConfig:
    """One run, complete: data, model and run arguments."""

    data: DataArguments = field(default_factory=DataArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    run: RunArguments = field(default_factory=RunArguments)

    def resolve(self) -> Recipe:
        """The recipe with this run's overrides; on phantoms, sized for a smoke run.

        Raises:
            LeukoscopeError: an unknown recipe, or a number below or above what a run takes.
        """
        recipe, given = get_recipe(self.model.recipe), self.as_dict()
        check_choices(given)
        if self.is_smoke_run:
            recipe = replace(
                recipe,
                # 112 holds whole patches of 8, 14 and 16 px.
                image_size=96 if recipe.name in RECIPES else 112,
                num_train_epochs=12,
                train_batch_size=16,
                learning_rate=1e-3,
                drop_rate=0.0,
                # From random weights validation jumps from epoch to epoch, and a run may stop early in a trough.
                ema_decay=recipe.ema_decay or 0.9,
            )
        recipe = with_overrides(recipe, self.model.override)
        if self.start_weights.from_scratch:
            recipe = replace(recipe, frozen=())
        flags = {name: flag for name, flag in _RECIPE_FLAGS.items() if given[flag] is not None}
        values = {name: given[flag] for name, flag in flags.items()}
        return with_values(recipe, values, {name: f"--{flag} {given[flag]}" for name, flag in flags.items()})

    @property
    def tracker(self) -> str | None:
        """The tracker that the run logs to; None without one."""
        return (self.run.report_to or TRACKERS[0]) if self.run.with_tracking else None

    @property
    def is_smoke_run(self) -> bool:
        """True on phantoms, which show that everything works, and nothing about patients."""
        return self.data.dataset_name == "phantoms"

    @property
    def output_dir(self) -> Path:
        """The run folder."""
        name = f"{self.data.dataset_name}-{self.model.recipe}".replace("/", "--")
        return Path(self.run.output_dir or Path("runs") / name)

    @property
    def start_weights(self) -> StartWeights:
        """The start weights; a smoke run works offline, from random ones."""
        file = self.model.pretrained_weights
        return StartWeights(
            file=Path(file) if file else None,
            name=self.model.pretrained_name,
            may_miss=tuple(self.model.pretrained_may_miss),
            ignore_mismatched=self.model.ignore_mismatched_sizes,
            from_scratch=self.model.from_scratch or (self.is_smoke_run and not file and not self.model.init_from),
        )

    def as_dict(self) -> dict[str, Any]:
        """Flags as given, for args.yaml."""
        return {**asdict(self.data), **asdict(self.model), **asdict(self.run)}

    def public(self) -> dict[str, Any]:
        """Flags as given, files and folders by their last name only, and without those of the run's own folder."""
        flags = {k: Path(v).name if self._is_path(k, v) else v for k, v in self.as_dict().items()}
        return {k: v for k, v in flags.items() if k not in ("output_dir", "resume_from_checkpoint")}

    def command(self) -> str:
        """The flags that make this run, files and folders by their last name only: where they lay is private."""
        return " ".join(["train.py", *self._arguments(leave_out=_NOT_IN_COMMAND, private=True)])

    def resume_command(self, launched_by: Sequence[str]) -> str:
        """The command that resumes this run on this machine.

        Args:
            launched_by: the parts before the flags, the script's name included.
        """
        flags = self._arguments(leave_out=("resume_from_checkpoint",), private=False)
        return " ".join([*map(shlex.quote, launched_by), *flags, "--resume_from_checkpoint", "latest"])

    def _arguments(self, *, leave_out: Sequence[str], private: bool) -> list[str]:
        """Every flag that is not its default, as parts of a command line."""
        defaults, arguments = TrainingConfig().as_dict(), []
        for flag, value in self.as_dict().items():
            if value == defaults[flag] or flag in leave_out:
                continue
            values = value if isinstance(value, list) else [] if value is True else [value]
            hidden = private and self._is_path(flag, value)
            arguments += [f"--{flag}", *(shlex.quote(Path(v).name if hidden else str(v)) for v in values)]
        return arguments

    @staticmethod
    def _is_path(flag: str, value: Any) -> bool:
        return bool(value) and (flag in _PATHS or (flag in ("dataset_name", "init_from") and Path(value).exists()))


def file_name(path: str | None) -> str | None:
    """The last part of a path; None of None."""
    return Path(path).name if path else None


class _HelpFormatter(ArgumentDefaultsHelpFormatter):
    """Help without the second spelling of each flag (--image-size) and without defaults that say nothing."""

    def _format_action_invocation(self, action: Action) -> str:
        names = [name for name in action.option_strings if "-" not in name[2:]]
        value = "" if action.nargs == 0 or action.const is True else self._format_args(action, action.dest.upper())
        return f"{', '.join(names)} {value}".rstrip()

    def _get_help_string(self, action: Action) -> str | None:
        unsaid = action.default in (None, "", []) or isinstance(action.default, bool)
        return action.help if unsaid or "(default" in (action.help or "") else super()._get_help_string(action)


def parse_config(argv: Sequence[str] | None = None, *, command: str = "train.py") -> TrainingConfig:
    """Read the command line (`sys.argv` when None) into a `TrainingConfig`.

    With --init_from the release is opened: it gives what the flags leave open.

    Args:
        command: what the help calls the program.

    Raises:
        LeukoscopeError: a flag that does not exist, a value of another type, or a release that cannot be fine-tuned.
    """
    from transformers import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            # argparse prints a usage of 45 lines and ends the process.
            named = re.sub(r"^argument (--\w+)\S*:", r"\1:", message)
            raise LeukoscopeError(f"{named}; `leukoscope train --help` lists all flags")

    kinds: list[Any] = [DataArguments, ModelArguments, RunArguments]
    parser = Parser(
        kinds,
        prog=command,
        usage="%(prog)s [flags]",
        description="Train a classifier of white-blood-cell images; without flags, a small one on synthetic cells. "
        "Where a flag of the network or the run is left out, the recipe decides.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    # Only so can a recipe that was given be told from the default.
    parser.set_defaults(recipe=None)
    arguments = list(sys.argv[1:] if argv is None else argv)
    files = ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config")
    if (file := files.parse_known_args(arguments)[0].config) is not None:
        given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in arguments if word.startswith("--")}
        # A split that is named beside the file takes the place of all that the file says of its own.
        other_split = given & {"split", "split_file"}
        arguments = [*_arguments_of(Path(file), kinds, _OF_SPLIT if other_split else ()), *arguments]
    data, model, run, unknown = parser.parse_args_into_dataclasses(args=arguments, return_remaining_strings=True)
    if unknown:
        raise LeukoscopeError(f"{' '.join(unknown)}: no such flag; {_known_flags(unknown[0], kinds)}")
    return complete(TrainingConfig(data, model, replace(run, config=None)))


def _known_flags(unknown: str, kinds: Sequence[type[Any]]) -> str:
    """Where the flags are listed, and which of them are most like one that does not exist."""
    name = unknown.partition("=")[0].lstrip("-").replace("-", "_")
    names = [one.name for kind in kinds for one in fields(kind)]
    # What contains it, such as num_train_epochs for epochs, is likelier than what is spelt like it.
    alike = [one for one in names if len(name) > 3 and name in one] or get_close_matches(name, names, 2)
    guess = f"did you mean {' or '.join(f'--{one}' for one in alike[:2])}? " if alike else ""
    return f"{guess}`leukoscope train --help` lists them all"


def _arguments_of(file: Path, kinds: Sequence[type[Any]], without: Sequence[str] = ()) -> list[str]:
    """The flags that a YAML file holds, by name or under `flags` as in args.yaml, as parts of a command line.

    Args:
        without: flags that are left out.

    Raises:
        LeukoscopeError: no such file, no YAML, or a name that is no flag.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).replace("\n", " ")
        raise LeukoscopeError(f"--config {file}: cannot be read as YAML ({reason}); give a file of flags") from None
    content = content.get("flags", content) if isinstance(content, dict) else None
    if not isinstance(content, dict):
        raise LeukoscopeError(f"--config {file}: holds no flags; write one per line, like `learning_rate: 1e-4`")
    defaults = {f.name: f.default for kind in kinds for f in fields(kind)}
    arguments = []
    for name, value in content.items():
        if name not in defaults or (name == "config" and value is not None):
            raise LeukoscopeError(f"--config {file}: {name} is no flag; {_known_flags(name, kinds)}")
        if name in without:
            continue
        if isinstance(defaults[name], bool):
            arguments += [f"--{name}={value}"]
        elif isinstance(value, list):
            arguments += [f"--{name}", *map(str, value)] if value else []
        elif value is not None:
            # YAML reads a plain `no` as false.
            arguments += [f"--{name}={'no' if value is False else value}"]
    return arguments


def complete(config: TrainingConfig) -> TrainingConfig:
    """Fill in what follows from the start that is named, and take the token for the Hub out.

    Args:
        config: `model.recipe` is None where none was given.

    Raises:
        LeukoscopeError: a model or a release that cannot be started from, or flags that name two starts.
    """
    model, run = config.model, config.run
    if run.hub_token:
        # Where the Hub's client looks for it, and nowhere that a run records; wandb records the command line.
        os.environ["HF_TOKEN"] = run.hub_token
        sys.argv[1:] = [word for word in sys.argv[1:] if run.hub_token not in word]
    if model.model_name_or_path:
        model = replace(model, model_name_or_path=None, **follow_model(model.model_name_or_path, asdict(model)))
    if model.init_from:
        check_one_start(asdict(model))
        model = replace(model, **follow_release(model.init_from, model.recipe, model.image_size))
    recipe = vars(model)["recipe"]
    model = replace(model, recipe=_RECIPE if recipe is None else recipe)
    return replace(config, model=model, run=replace(run, hub_token=None))


def resume_hint(config: TrainingConfig) -> str:
    """The command that resumes this run; on several machines a sentence, because each has a command of its own."""
    if os.environ.get("WORLD_SIZE") != os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE")):
        return "the same command on each machine, plus --resume_from_checkpoint latest"
    return config.resume_command(launch_command())


def launch_command() -> list[str]:
    """How this process was started, up to the flags of training: by python, or by a launcher with as many others."""
    script = ["-m", "leukoscope", "train"] if sys.argv[1:2] == ["train"] else [sys.argv[0]]
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    # What `accelerate launch` always sets for what it starts; and torchrun.
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        processes = os.environ.get("WORLD_SIZE", "1")
        precision = ["--mixed_precision", os.environ["ACCELERATE_MIXED_PRECISION"]]
        return ["accelerate", "launch", *["--cpu"] * on_cpu, *precision, "--num_processes", processes, *script]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        processes = os.environ["LOCAL_WORLD_SIZE"]
        return [*["ACCELERATE_USE_CPU=true"] * on_cpu, "torchrun", "--nproc_per_node", processes, *script]
    return [sys.executable, *script]
