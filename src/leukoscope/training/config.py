"""Every flag of `train.py`: three frozen dataclasses, which are both the configuration and the command line.

Flags follow the Hugging Face example scripts. What is left unset comes from the recipe; `resolve` gives the recipe that
results, and the run folder's `args.yaml` records it.
"""

from __future__ import annotations

import re
import shlex
from argparse import HelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args

import yaml
from pydantic import Field
from transformers import HfArgumentParser

from leukoscope import ConfigError
from leukoscope.data.cells import LoadedCells
from leukoscope.data.loading import load_cells
from leukoscope.data.registry import DATASETS
from leukoscope.data.splits import Strategy
from leukoscope.models.build import StartWeights
from leukoscope.models.recipes import RECIPES, Recipe, checker, get_recipe, with_overrides, with_values
from leukoscope.plain_yaml import read_yaml

_DEFAULT_RECIPE = "densenet121"
_LIST_OF_FLAGS = "`leukoscope train --help` lists all flags"
# Fields of the recipe that flags set.
_RECIPE_FLAGS = {
    "image_size": "image_size",
    "num_train_epochs": "num_train_epochs",
    "train_batch_size": "per_device_train_batch_size",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
}
# Flags that change neither the weights nor what is measured of them on the test side.
NOT_THE_RESULT = (
    "output_dir",
    "checkpointing_steps",
    "resume_from_checkpoint",
    "report_to",
    "quiet",
    "robustness_cells",
    "push_to_hub",
    "hub_model_id",
    "hub_private",
)
SPLIT_FLAGS = ("split", "split_file", "fold", "train_folds", "test_folds", "no_validation")
_COLUMN_FLAGS = ("image_column_name", "file_column", "label_column_name", "subject_column", "split_column")
_SOURCE_FLAGS = ("dataset_name", "train_dir", "subject_pattern", "subject_folders", "labels", *_COLUMN_FLAGS)
_PATH_FLAGS = ("train_dir", "split_file", "labels", "pretrained_weights")

Count = Annotated[int, Field(ge=1)]


def _flag(default: Any, text: str, **parser_options: Any) -> Any:
    metadata = {"help": text, **parser_options}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataArguments:
    """Which cells, and how they are split."""

    _argument_group_name = "data"

    dataset_name: str = _flag(
        "phantoms", f"{', '.join(DATASETS)}, or a Hub data-set id, owner/name (default: phantoms)."
    )
    train_dir: str | None = _flag(None, "Local folder with the cells; without it the data set's Hub copy is used.")
    subject_pattern: str | None = _flag(
        None, "imagefolder: regular expression over the path below train_dir with a group (?P<subject>…)."
    )
    subject_folders: bool = _flag(False, "imagefolder: the innermost folder of a picture is its subject.")
    labels: str | None = _flag(None, "imagefolder: table of the cells: file, and label, subject or both.")
    image_column_name: str = _flag("image", "Column of images of a Hub data set (default: image).")
    file_column: str = _flag("", "Column of file names, in a table or a Hub data set (default: file, image_path, …).")
    label_column_name: str = _flag(
        "label", "Column of classes, in a table or a Hub data set (default: label); none: folders name them."
    )
    subject_column: str = _flag(
        "", "Column of subjects, in a table or a Hub data set (default: subject, patient_id, donor, …)."
    )
    split_column: str = _flag("", "Column of the data set's own split (default: split, subset, …); none leaves it out.")
    positive_label: str | None = _flag(
        None, "The positive class of two, which sensitivity is about (default: the data set's, if it names one)."
    )
    class_frequencies: list[str] = _flag(
        [],
        "The class frequencies that the probabilities assume: equal, data (those of the training cells), or a share "
        "for each class (ALL=0.4 HEM=0.6) (default: equal for two classes, data for more).",
    )
    split: Strategy | None = _flag(
        None,
        f"How cells are divided: {', '.join(get_args(Strategy))} (default: given, the data set's own splits, if it has "
        "some; else subject).",
    )
    split_file: str | None = _flag(None, "Use the split.json of an earlier run.")
    fold: int = _flag(0, "subject-cv, block-cv, random-cv: the fold that is tested (default: 0).")
    num_folds: int = _flag(5, "subject-cv, block-cv, random-cv: number of folds (default: 5).")
    train_folds: list[str] = _flag(["fold_0"], "official: folds to train on (default: fold_0).")
    test_folds: list[str] = _flag(["fold_1"], "official: folds to test on (default: fold_1).")
    no_validation: bool = _flag(
        False,
        "Train on the validation cells, too, and keep the last epoch. For the splits subject-cv, block-cv, random-cv "
        "and official, and for --split given if the data set has no validation split of its own.",
    )
    max_train_samples: Count | None = _flag(None, "Train on at most this many cells (chosen at random).")
    max_eval_samples: Count | None = _flag(None, "Validate and test on at most this many cells each.")

    @property
    def source(self) -> dict[str, Any]:
        """The flags that say which cells are loaded, as `load_cells` takes them."""
        return {name: getattr(self, name) for name in _SOURCE_FLAGS}

    def load(self, image_size: int) -> LoadedCells:
        """Load the cells for images of `image_size` pixels; errors as of `load_cells`."""
        data = load_cells(**self.source, image_size=2 * image_size)
        if self.positive_label is None:
            return data
        return data.with_positive(self.positive_label)


@dataclass(frozen=True)
class ModelArguments:
    """Which network, and its start weights."""

    _argument_group_name = "model"

    model_name_or_path: str | None = _flag(
        None,
        "What to start from: a model of timm (timm/resnet50.a1_in1k, resnet50); or a release to fine-tune (a folder, "
        "owner/name or owner/name@revision; the same classes keep its head).",
    )
    recipe: str = _flag(
        _DEFAULT_RECIPE,
        f"A recipe: {', '.join(RECIPES)} (default: {_DEFAULT_RECIPE}, or the one that follows from "
        "--model_name_or_path).",
    )
    image_size: int | None = _flag(None, "Side of the input in pixels (default: the recipe's).")
    pretrained_weights: str | None = _flag(
        None, "Start from this .safetensors file instead of the Hub's pretrained weights."
    )
    pretrained_name: str = _flag("", "Name of these weights, for the card (default: the file's name).")
    pretrained_may_miss: list[str] = _flag([], "Patterns of tensors that the file may lack.", action="extend")
    from_scratch: bool = _flag(False, "Start from random weights, without a download.")
    override: list[str] = _flag(
        [], "Single values of the recipe, KEY=VALUE: drop_rate=0.4 sampling=subjects …", action="extend"
    )


@dataclass(frozen=True)
class RunArguments:
    """How the network is trained, and what happens with the result."""

    _argument_group_name = "run"

    output_dir: str | None = _flag(None, "The run folder (default: runs/<dataset>-<recipe>).")
    config: str | None = _flag(None, "A YAML file of flags, such as an earlier run's args.yaml; flags given here win.")
    num_train_epochs: int | None = _flag(None, "Epochs (default: the recipe's).")
    per_device_train_batch_size: int | None = _flag(None, "Training batch per process (default: the recipe's).")
    gradient_accumulation_steps: Count = _flag(
        1, "Batches per optimiser step; one process with N trains like N processes with 1 (default: 1)."
    )
    learning_rate: float | None = _flag(None, "Peak learning rate of the pretrained layers (default: the recipe's).")
    weight_decay: float | None = _flag(None, "Weight decay (default: the recipe's).")
    mixed_precision: str | None = _flag(
        None,
        "no, fp16 or bf16 (default: the precision of accelerate launch or its configuration; without it bf16 on a GPU "
        "and the recipe's choice on a CPU).",
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = _flag(
        0,
        "Seed of weights, order, augmentation and splits (default: 0); on a CPU the same seed repeats the run bit by "
        "bit.",
    )
    deterministic: bool = _flag(False, "Repeat the run bit by bit on a GPU, too, with slower algorithms.")
    checkpointing_steps: Annotated[str, Field(pattern="^(epoch|no|[1-9][0-9]*)$")] = _flag(
        "epoch",
        "When to write a checkpoint: epoch (the default); N: every N steps, too; no: only when a signal stops it.",
    )
    resume_from_checkpoint: Literal["latest"] | None = _flag(
        None,
        "Resume an interrupted run from its last whole checkpoint, latest (the default after this flag).",
        nargs="?",
        const="latest",
    )
    report_to: Literal["trackio", "tensorboard", "wandb"] | None = _flag(
        None,
        "Log the run's metrics to a tracker: trackio, tensorboard, wandb. wandb sends them to its server, unless "
        "WANDB_MODE=offline is set; trackio sends them to a Space if its own settings name one. Otherwise they stay on "
        "this machine.",
    )
    robustness_cells: Annotated[int, Field(ge=0)] = _flag(
        300,
        "Measure how many classes change when a picture is a little brighter, larger, blurred …, on this many cells of "
        "the validation side (in protocol: of the tested folds); predicts each cell 23 times (default: 300; 0: none).",
    )
    quiet: bool = _flag(False, "No progress and no notes; results and errors are still printed.")
    push_to_hub: bool = _flag(
        False,
        "Publish the release on the Hugging Face Hub when training ends; `leukoscope release push` does so later.",
    )
    hub_model_id: str | None = _flag(None, "Hub repository to publish to, owner/name.")
    hub_private: bool = _flag(False, "Make the repository private; an existing one must be private.")


_FLAG_GROUPS: tuple[Any, ...] = (DataArguments, ModelArguments, RunArguments)
for _group in _FLAG_GROUPS:
    checker(_group)  # made now: HfArgumentParser takes the ranges out of the types of the fields that it reads


@dataclass(frozen=True)
class TrainingConfig:
    """One run, complete: data, model and run arguments."""

    data: DataArguments = field(default_factory=DataArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    run: RunArguments = field(default_factory=RunArguments)

    def check(self) -> None:
        """Raise `ConfigError` for a wrong flag, but for those of the recipe, which `resolve` checks."""
        for group in (self.data, self.model, self.run):
            with_values(group, {}, {name: f"--{name} {setting}" for name, setting in vars(group).items()})
        if self.model.from_scratch and self.model.pretrained_weights:
            raise ConfigError("--from_scratch and --pretrained_weights exclude each other; leave one out")
        _require_file("split_file", self.data.split_file)
        _require_file("pretrained_weights", self.model.pretrained_weights)

    def resolve(self) -> Recipe:
        """The recipe with this run's overrides; on phantoms, sized for a smoke run.

        Raises:
            ConfigError: a wrong flag, an unknown recipe, or a value out of range.
        """
        self.check()
        recipe = get_recipe(self.model.recipe)
        if self.is_smoke_run:
            recipe = self._sized_for_smoke_run(recipe)
        recipe = with_overrides(recipe, self.model.override)
        if self.start_weights.from_scratch:
            recipe = replace(recipe, frozen=())
        flags = self.as_dict()
        settings = {name: flags[flag] for name, flag in _RECIPE_FLAGS.items() if flags[flag] is not None}
        return with_values(recipe, settings, {name: f"--{_RECIPE_FLAGS[name]} {settings[name]}" for name in settings})

    def _sized_for_smoke_run(self, recipe: Recipe) -> Recipe:
        """The recipe in small, so that a run on phantoms takes a minute."""
        block_config = recipe.block_config
        if recipe.name == _DEFAULT_RECIPE and self.start_weights.from_scratch:
            # Two layers of each block learn phantoms as all 58 do, in a fifth of the time.
            block_config = (2, 2, 2, 2)
        return replace(
            recipe,
            # 112 holds whole patches of 8, 14 and 16 px.
            image_size=96 if recipe.name in RECIPES else 112,
            block_config=block_config,
            num_train_epochs=8,
            train_batch_size=16,
            learning_rate=1e-3,
            drop_rate=0.0,
            # From random weights validation jumps from epoch to epoch: averaged, and never stopped in a trough.
            ema_decay=recipe.ema_decay or 0.9,
            early_stopping_patience=8,
        )

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
        model = self.model
        names_weights = model.pretrained_weights or model.model_name_or_path
        return StartWeights(
            file=Path(model.pretrained_weights) if model.pretrained_weights else None,
            name=model.pretrained_name,
            may_miss=tuple(model.pretrained_may_miss),
            from_scratch=model.from_scratch or (self.is_smoke_run and not names_weights),
        )

    def as_dict(self) -> dict[str, Any]:
        """Flags as given, for args.yaml."""
        return {**asdict(self.data), **asdict(self.model), **asdict(self.run)}

    def public(self) -> dict[str, Any]:
        """Flags as given, but nothing private: not the run's own folder, and of other paths only the last name."""
        flags = self.as_dict()
        del flags["output_dir"], flags["resume_from_checkpoint"]
        for flag in (*_PATH_FLAGS, "dataset_name", "model_name_or_path"):
            path = Path(flags[flag] or "")
            if path.name and (flag in _PATH_FLAGS or path.exists()):
                flags[flag] = path.name
        return flags

    def command(self) -> str:
        """The flags that make this run, as `public` gives them."""
        defaults = TrainingConfig().as_dict()
        words = ["train.py"]
        for flag, setting in self.public().items():
            if setting == defaults[flag] or flag in NOT_THE_RESULT:
                continue
            words.append(f"--{flag}")
            if isinstance(setting, list):
                words += [shlex.quote(str(part)) for part in setting]
            elif setting is not True:
                words.append(shlex.quote(str(setting)))
        return " ".join(words)


def _require_file(flag: str, path: str | None) -> None:
    if path and not Path(path).is_file():
        raise ConfigError(f"--{flag} {path}: no such file; check the path")


# The command line, a file and Python


class _Parser(HfArgumentParser):
    """Raises `ConfigError` with one line, where argparse prints a usage of 45 lines and ends the process."""

    def error(self, message: str) -> NoReturn:
        named = re.sub(r"^argument (--\w+)\S*:", r"\1:", message)
        raise ConfigError(f"{named}; {_LIST_OF_FLAGS}")


def parse_config(argv: Sequence[str], flags: Mapping[str, Any] | None = None) -> TrainingConfig:
    """Read a command line into a `TrainingConfig`; what it leaves out is taken from `flags`, by name.

    A release that --model_name_or_path names is opened: it gives what the flags leave open.

    Raises:
        ConfigError: no such flag, a value of another type, or a release that cannot be fine-tuned.
    """
    parser = _Parser(
        _FLAG_GROUPS,
        usage="leukoscope train [flags]",
        description="Train a classifier of white-blood-cell images; without flags, a small one on synthetic cells. "
        "Where a flag of the network or the run is left out, the recipe decides.",
        formatter_class=HelpFormatter,  # the help of each flag names its default
        allow_abbrev=False,
    )
    # "" differs from a recipe that was named.
    parser.set_defaults(**{"recipe": "", **_defaults_of(flags or {})})
    file = parser.parse_known_args(argv)[0].config
    if file is not None:
        try:
            parser.set_defaults(**_defaults_of(_flags_of_file(Path(file))))
            parser.parse_known_args([])
        except ConfigError as error:
            raise ConfigError(f"--config {file}: {error}") from None
    data, model, run, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise ConfigError(f"{' '.join(unknown)}: no such flag; {_LIST_OF_FLAGS}")
    if model.model_name_or_path:
        from leukoscope.training.finetune import follow_model

        model = replace(model, **follow_model(model))
    return TrainingConfig(data, replace(model, recipe=model.recipe or _DEFAULT_RECIPE), replace(run, config=None))


def _flags_of_file(file: Path) -> dict[str, Any]:
    """The flags of a YAML file, by name or, as in args.yaml, under `flags`; values are the text that is written.

    Raises:
        ConfigError: no such file, no YAML, or a flag that is set twice.
    """
    try:
        content = read_yaml(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error).replace("\n", " ")
        raise ConfigError(f"cannot be read as YAML ({reason}); give a file of flags") from None
    flags = content.get("flags", content) if isinstance(content, dict) else None
    if not isinstance(flags, dict):
        raise ConfigError("holds no flags; write one per line, like `learning_rate: 1e-4`")
    return flags


def _defaults_of(flags: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Flags by name, but for those that are None, as defaults of the parser, which converts text to a flag's type.

    Raises:
        ConfigError: no such flag.
    """
    names = TrainingConfig().as_dict()
    defaults: dict[str, str | list[str]] = {}
    for name, setting in flags.items():
        if name not in names or (name == "config" and setting is not None):
            raise ConfigError(f"{name}: no such flag; {_LIST_OF_FLAGS}")
        if isinstance(names[name], list) and setting is not None:
            defaults[name] = [str(text) for text in (setting if isinstance(setting, list | tuple) else [setting])]
        elif setting is not None:
            defaults[name] = str(setting)
    return defaults
