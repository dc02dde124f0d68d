"""Flags in, one resolved recipe out: what is left unset comes from the recipe, what is set wins."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from drawn import place
from leukoscope import LeukoscopeError
from leukoscope.models.recipes import get_recipe
from leukoscope.training.config import DataArguments, ModelArguments, RunArguments, TrainingConfig, parse_config
from leukoscope.training.identity import RunIdentity
from leukoscope.training.run_folder import RunFolder

REAL = ["--dataset_name", "cnmc2019", "--train_dir", "cells"]


def test_no_flags_is_a_smoke_run_that_asks_no_network() -> None:
    config = parse_config([])
    assert config == TrainingConfig()
    assert config.is_smoke_run
    assert config.start_weights.from_scratch
    assert config.output_dir == Path("runs/phantoms-densenet121")
    assert config.resolve().image_size < get_recipe("densenet121").image_size


@pytest.mark.parametrize("flags", [[], [*REAL, "--from_scratch"]], ids=["phantoms", "real"])
def test_a_network_from_scratch_has_no_early_filters_worth_keeping(flags: list[str]) -> None:
    assert get_recipe("densenet201").frozen and not parse_config(["--recipe", "densenet201", *flags]).resolve().frozen


def test_a_run_on_real_cells_is_the_recipe_unchanged() -> None:
    config = parse_config([*REAL, "--recipe", "efficientnet_b3"])
    assert not config.is_smoke_run
    assert config.resolve() == get_recipe("efficientnet_b3")
    assert not config.start_weights.from_scratch
    assert config.output_dir == Path("runs/cnmc2019-efficientnet_b3")


@pytest.mark.parametrize("dataset", [[], REAL], ids=["phantoms", "real"])
def test_every_override_reaches_the_recipe(dataset: list[str]) -> None:
    flags = {
        "image_size": ("64", 64),
        "num_train_epochs": ("7", 7),
        "per_device_train_batch_size": ("5", 5),
        "learning_rate": ("0.5", 0.5),
        "weight_decay": ("0", 0.0),
    }
    argv = [word for flag, (text, _) in flags.items() for word in (f"--{flag}", text)]
    recipe = parse_config([*dataset, *argv]).resolve()
    values = [getattr(recipe, "train_batch_size" if "batch" in flag else flag) for flag in flags]
    assert values == [value for _, value in flags.values()]


def test_overrides_given_twice_add_up() -> None:
    config = parse_config(["--override", "drop_rate=0.4", "--override", "ema_decay=0.9", "drop_rate=0.5"])
    assert (config.resolve().drop_rate, config.resolve().ema_decay) == (0.5, 0.9)


def test_given_weights_are_used_even_on_phantoms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [
        "--pretrained_weights",
        "w.safetensors",
        "--pretrained_name",
        "twin",
        "--pretrained_may_miss",
        "a.*",
        "b.*",
    ]
    config = parse_config([*flags, "--recipe", "densenet201"])
    start = config.start_weights
    assert (start.file, start.name, start.may_miss) == (Path("w.safetensors"), "twin", ("a.*", "b.*"))
    assert not start.from_scratch
    with pytest.raises(LeukoscopeError, match="^--pretrained_weights w.safetensors: no such file; check the path"):
        config.resolve()
    monkeypatch.chdir(tmp_path)
    Path("w.safetensors").touch()
    assert config.resolve().frozen == get_recipe("densenet201").frozen


def test_hub_data_set_gives_a_run_folder_of_one_name() -> None:
    assert parse_config(["--dataset_name", "owner/cells"]).output_dir == Path("runs/owner--cells-densenet121")
    assert parse_config(["--output_dir", "elsewhere"]).output_dir == Path("elsewhere")


def test_on_phantoms_too_an_override_wins_over_the_smoke_run() -> None:
    recipe = parse_config(["--override", "num_train_epochs=1", "image_size=64", "ema_decay=0"]).resolve()
    assert (recipe.num_train_epochs, recipe.image_size, recipe.ema_decay) == (1, 64, 0.0)
    assert recipe.learning_rate == parse_config([]).resolve().learning_rate, "what is not named stays the smoke run's"


@pytest.mark.parametrize("flag", ["--mixup", "--conf"])  # the second is the beginning of one
def test_an_unknown_flag_is_named(flag: str) -> None:
    with pytest.raises(LeukoscopeError) as refused:
        parse_config([flag, "3"])
    assert str(refused.value) == f"{flag} 3: no such flag; `leukoscope train --help` lists all flags"


@pytest.mark.parametrize("flag", ["--num_train_epochs", "--num-train-epochs"])
def test_a_value_of_another_type_ends_in_one_line(flag: str) -> None:
    with pytest.raises(LeukoscopeError) as refused:
        parse_config([flag, "many"])
    assert str(refused.value) == (
        "--num_train_epochs: invalid int value: 'many'; `leukoscope train --help` lists all flags"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--recipe", "vgg"], "--recipe vgg: unknown; choose one of "),
        (["--split", "patient"], "--split: invalid choice: 'patient' (choose from 'subject', "),
        (["--from_scratch", "--pretrained_weights", "w"], "--from_scratch and --pretrained_weights exclude each other"),
        (["--report_to", "mlflow"], "--report_to: invalid choice: 'mlflow' (choose from 'trackio', 'tensorboard', "),
        (["--resume_from_checkpoint", "runs/a"], "--resume_from_checkpoint: invalid choice: 'runs/a' (choose from "),
        (["--split_file", "nowhere.json"], "--split_file nowhere.json: no such file"),
        (["--checkpointing_steps", "0"], "--checkpointing_steps 0: string should match pattern '^(epoch|no|["),
    ],
)
def test_mistakes_are_found_before_any_cell_is_read(argv: list[str], message: str) -> None:
    with pytest.raises(LeukoscopeError) as refused:
        parse_config(argv).resolve()
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "flag",
    [
        *("--max_train_samples -1", "--gradient_accumulation_steps 0", "--per_device_train_batch_size 0"),
        *("--seed -1", "--seed 5000000000", "--image_size 8", "--image_size 1100"),
        *("--learning_rate -1.0", "--weight_decay -2.0", "--override schedule=step"),
    ],
)
def test_a_value_out_of_range_is_named(flag: str) -> None:
    with pytest.raises(LeukoscopeError, match=f"^{flag}: input should be "):
        parse_config(flag.split()).resolve()


def test_choices_are_checked_where_no_command_line_gave_them() -> None:
    config = TrainingConfig(run=RunArguments(report_to="mlflow"))  # type: ignore[arg-type]
    with pytest.raises(LeukoscopeError, match="^--report_to mlflow: input should be 'trackio', 'tensorboard' or"):
        config.resolve()


def test_command_repeats_the_flags_and_keeps_folders_private() -> None:
    argv = ["--dataset_name", "cnmc2019", "--train_dir", "/data/my cells", "--no_validation", "--seed", "3"]
    assert parse_config([*argv, "--report_to", "tensorboard", "--quiet"]).command() == (
        "train.py --dataset_name cnmc2019 --train_dir 'my cells' --no_validation --seed 3"
    )


def test_command_keeps_the_folder_of_a_data_set_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parquet").mkdir()
    assert parse_config(["--dataset_name", str(tmp_path / "parquet")]).command() == "train.py --dataset_name parquet"
    monkeypatch.chdir(tmp_path)
    assert parse_config(["--dataset_name", "lab/cells"]).command() == "train.py --dataset_name lab/cells"


def test_help_explains_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for group in (DataArguments, ModelArguments, RunArguments):
        for flag in fields(group):
            assert f"--{flag.name}" in shown
            assert " ".join(flag.metadata["help"].split())[:30] in shown, f"--{flag.name} is not explained"
    assert shown.startswith("usage: leukoscope train [flags] Train a classifier")
    assert "(default: None)" not in shown


def test_a_flag_names_the_positive_of_two_classes(tmp_path: Path) -> None:
    place(tmp_path, *(f"{label}/{cell}.png" for label in ("blast", "healthy") for cell in range(4)))
    given = ["--dataset_name", "imagefolder", "--train_dir", str(tmp_path)]
    assert parse_config(given).data.load(32).info.positive_label == ""
    assert parse_config([*given, "--positive_label", "blast"]).data.load(32).info.positive_label == "blast"
    with pytest.raises(
        LeukoscopeError, match="^--positive_label ALL: must be one of two classes; these cells have blast"
    ):
        parse_config([*given, "--positive_label", "ALL"]).data.load(32)


def test_what_trackers_get_names_no_folder(tmp_path: Path) -> None:
    given = ["--train_dir", f"{tmp_path}/Doe/cells", "--labels", f"{tmp_path}/Doe.csv", "--output_dir", f"{tmp_path}/o"]
    public = parse_config(["--dataset_name", "imagefolder", *given]).public()
    assert (public["train_dir"], public["labels"], public["dataset_name"]) == ("cells", "Doe.csv", "imagefolder")
    assert str(tmp_path) not in str(public)


# Flags from a file


def _file(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return ["--config", str(path)]


def test_flags_come_from_a_file_and_those_given_beside_it_win(tmp_path: Path) -> None:
    given = _file(tmp_path / "run.yaml", "seed: 3\nfold:\ntrain_folds: [fold_1]\noverride: drop_rate=0.4\n")
    config = parse_config([*given, "--seed", "4", "--override", "ema_decay=0.9"])
    assert (config.run.seed, config.data.fold, config.data.train_folds) == (4, 0, ["fold_1"])
    assert config.model.override == ["drop_rate=0.4", "ema_decay=0.9"]
    assert config.run.config is None, "its flags are recorded, not its name"


def test_an_earlier_runs_args_yaml_repeats_it(tmp_path: Path) -> None:
    config = parse_config(["--dataset_name", "cnmc2019", "--seed", "7", "--override", "mean=[0.1, 0.2, 0.3]"])
    RunFolder(tmp_path).save_identity(RunIdentity.of(config, config.resolve()), config.as_dict())
    assert parse_config(["--config", str(tmp_path / "args.yaml")]) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "learning_rat: no such flag; "),
        ("seed: 7.5", "--seed: invalid int value: '7.5'; "),
        ("config: other.yaml", "config: no such flag; "),
        ("- seed", "holds no flags; write one per line, like `learning_rate: 1e-4`"),
        ("a: [", "cannot be read as YAML ("),
        ("false", "holds no flags; write one per line, like `learning_rate: 1e-4`"),
        ("0", "holds no flags; write one per line, like `learning_rate: 1e-4`"),
        ("flags: []", "holds no flags; write one per line, like `learning_rate: 1e-4`"),
        ("seed: 1\nfold: 0\nseed: 2", "cannot be read as YAML ('seed' is set twice; leave one out "),
        ("flags:\n  image_size: 1:30", "--image_size: invalid int value: '1:30'; "),
        ("learning_rate: .inf", "--learning_rate: invalid float value: '.inf'; "),
        ("no_validation: maybe", "--no_validation: Truthy value expected: got maybe but expected one of yes/no, "),
        ("yes: 1", "yes: no such flag; "),
        ("override: drop_rate=0.4\nfold: [1, 2]", "--fold: invalid int value: "),
    ],
)
def test_a_file_that_holds_no_flags_is_refused(tmp_path: Path, text: str, message: str) -> None:
    given = _file(tmp_path / "run.yaml", text)
    with pytest.raises(LeukoscopeError) as refused:
        parse_config(given)
    assert str(refused.value).startswith(f"--config {tmp_path / 'run.yaml'}: {message}")
    with pytest.raises(LeukoscopeError, match="none.yaml: cannot be read as YAML \\(No such file"):
        parse_config(["--config", str(tmp_path / "none.yaml")])


@pytest.mark.parametrize(
    ("line", "setting"),
    [
        ("positive_label: Yes", "Yes"),
        ('positive_label: "off"', "off"),
        ("positive_label: 0", "0"),
        ("label_column_name: 010", "010"),
        ("train_dir: 2024-05-06", "2024-05-06"),
        ("train_folds: [fold_1, 2]", ["fold_1", "2"]),
        ("checkpointing_steps: no", "no"),
        ("mixed_precision: no", "no"),
        ("flags:\n  positive_label: NO", "NO"),
        ("fold: 010", 10),
        ("no_validation: no", False),
        ("labels: ~", None),
        ("# seed: nothing", 0),
        ("seed: 1_000", 1000),
        ("weight_decay: 1.0e-2", 0.01),
        ("learning_rate: 1e-4", 1e-4),
        ("override: drop_rate=0.4", ["drop_rate=0.4"]),
    ],
)
def test_the_type_of_a_flag_says_what_is_written(tmp_path: Path, line: str, setting: object) -> None:
    flag = line.removeprefix("flags:\n  ").removeprefix("# ").partition(":")[0]
    assert parse_config(_file(tmp_path / "run.yaml", f"{line}\n")).as_dict()[flag] == setting
