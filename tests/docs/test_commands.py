"""Every fenced `sh` and `python` block of the documentation runs, page by page, in a folder of phantoms.

What a page names lies there: `C-NMC_Leukemia`, `ball4`, `my_cells`, `cell.bmp`, `smear.jpg`, and a Hub on this machine
on which `owner` is a user. Blocks of a page run in order and find what earlier ones left. Four things differ from what
a reader types: commands that train get `TINY` appended and `recalibrate` a release so trained, so that they take
seconds; `owner` goes by the name of that Hub's user; and `make` verbs are only looked up. A block whose first line is
`# not run by the tests: <reason>` has its flags held against the parsers instead.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from hub_server import WRITE_TOKEN, serving
from hub_server.api import USER
from leukoscope.cli import app
from leukoscope.training.config import DataArguments, ModelArguments, RunArguments
from scratch import ROOT, lay_out
from warm import warm_python

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "# not run by the tests: "
ADDED = ("# into ", "# a new file, ")  # pieces of a walk-through: test_walkthroughs.py puts them where they belong
TINY = "--image_size 32 --num_train_epochs 1 --max_train_samples 32 --max_eval_samples 16 --mixed_precision no"
TINY_ARGUMENTS = "image_size=32, num_train_epochs=1, max_train_samples=32, max_eval_samples=16, mixed_precision='no'"
TRAINING_FLAGS = {
    f"--{field.name}" for group in (DataArguments, ModelArguments, RunArguments) for field in fields(group)
}
SECONDS = 600


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, its text."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def runs(self) -> bool:
        return not self.text.startswith((NOT_RUN, *ADDED))

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command line, comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [Block(page, text[: found.start()].count("\n") + 1, found[1], found[2]) for found in BLOCK.finditer(text)]


def unknown_words(words: list[str]) -> Iterator[str]:
    """Flags, subcommands and verbs of a command line that nothing here knows."""
    if words[0] == "make":
        verbs = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        yield from (word for word in words[1:] if "=" not in word and word not in verbs)
    if "train.py" in words:
        start = words.index("train.py")
        yield from _unknown_to_launcher(words[:start])
        yield from (word for word in words[start:] if word.startswith("--") and word not in TRAINING_FLAGS)
    elif words[:2] == ["python", "-m"] and words[2].startswith("research."):
        known = set(import_module(words[2]).parser()._option_string_actions) | TRAINING_FLAGS
        yield from (word for word in words[3:] if word.startswith("--") and word not in known)
    elif words[0] in ("leukoscope", "accelerate") and "leukoscope" in words:
        start = words.index("leukoscope")
        yield from _unknown_to_launcher(words[:start])
        command: Any = get_command(app)
        rest = words[start + 1 :]
        while getattr(command, "commands", None) and rest:
            name, *rest = rest
            if name not in command.commands:
                yield name
                return
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        known |= TRAINING_FLAGS if command.context_settings.get("ignore_unknown_options") else set()
        yield from (word for word in rest if word.startswith("--") and word not in known)


def _unknown_to_launcher(words: list[str]) -> Iterator[str]:
    if words[:2] == ["accelerate", "launch"]:
        from accelerate.commands.launch import launch_command_parser

        known = launch_command_parser()._option_string_actions
        yield from (word for word in words[2:] if word.startswith("--") and word not in known)


# The flags of transformers' examples/pytorch/image-classification/run_image_classification_no_trainer.py.
HF_FLAGS = (
    *("dataset_name", "train_dir", "validation_dir", "max_train_samples", "max_eval_samples", "train_val_split"),
    *("model_name_or_path", "per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate"),
    *("weight_decay", "num_train_epochs", "max_train_steps", "gradient_accumulation_steps", "lr_scheduler_type"),
    *("num_warmup_steps", "output_dir", "seed", "push_to_hub", "hub_model_id", "hub_token", "trust_remote_code"),
    *("checkpointing_steps", "resume_from_checkpoint", "with_tracking", "report_to", "ignore_mismatched_sizes"),
    *("image_column_name", "label_column_name"),
)


def test_every_flag_of_hugging_faces_script_is_there_or_named_as_missing() -> None:
    page = (ROOT / "docs" / "train.md").read_text()
    missing = [f"--{flag}" for flag in HF_FLAGS if f"--{flag}" not in TRAINING_FLAGS]
    assert missing and all(f"`{flag}`" in page for flag in missing)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_and_verb_is_known(page: Path) -> None:
    for block in blocks(page):
        if block.language == "sh":
            for words in block.commands:
                assert not list(unknown_words(words)), f"{page.name}:{block.line}: {shlex.join(words)}"


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ("leukoscope predict --modell x", ["--modell"]),
        ("leukoscope predicts", ["predicts"]),
        ("leukoscope audit --json x", []),
        ("leukoscope release look", ["look"]),
        ("leukoscope data", ["data"]),
        ("leukoscope protocol --num_folds 1 --recipe x --foo", ["--foo"]),
        ("python -m research.leakage --seeds 1 --recipe x --foo", ["--foo"]),
        ("accelerate launch --multi_gpus train.py --recipes x", ["--multi_gpus", "--recipes"]),
        ("make demos", ["demos"]),
    ],
)
def test_a_misspelt_command_is_found(line: str, unknown: list[str]) -> None:
    assert list(unknown_words(shlex.split(line))) == unknown


def test_a_block_that_is_not_run_says_why() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.text.startswith(NOT_RUN):
                assert len(block.text.splitlines()[0]) > len(NOT_RUN) + 5, f"{page.name}:{block.line}: no reason"


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("laid-out"))


@pytest.fixture
def place(laid_out: Path, tmp_path: Path) -> Path:
    """A page's own folder; what lies there is linked, not copied: a file that a command changes is written anew."""
    return shutil.copytree(laid_out, tmp_path / "scratch", symlinks=True, copy_function=os.link)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Iterator[dict[str, str]]:
    """A machine with a Hub of its own, and `leukoscope`, `accelerate`, `torchrun` and `python` of this source."""
    folder, bin = tmp_path_factory.mktemp("machine"), tmp_path_factory.mktemp("bin")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE", "PYTEST"))}
    with serving(folder / "hub") as hub:
        own = kept | {
            "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}",
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "home"),
            "HF_TOKEN": WRITE_TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "NO_PROXY": "127.0.0.1,localhost",
            "LEUKOSCOPE_CACHE": str(shared_cache),
        }
        with warm_python(bin, own) as python:
            for name, module in {
                "leukoscope": f"exec {python} -m leukoscope",
                "accelerate": f"exec {python} -m accelerate.commands.accelerate_cli",
                "torchrun": f"exec {python} -m torch.distributed.run",
                "make": "exit 0 #",  # its verbs are looked up elsewhere
            }.items():
                (bin / name).write_text(f'#!/bin/sh\n{module} "$@"\n')
                (bin / name).chmod(0o755)
            yield own


def _tiny(line: str) -> str:
    """A command line that trains or recalibrates, made to take seconds."""
    if line.startswith("leukoscope release recalibrate "):
        trained = "leukoscope train --dataset_name phantoms --output_dir trained"
        return f"{_tiny(trained)}\n{re.sub('leukoscope-[^ ]+', 'trained/release', line)}"
    code, hash_, comment = line.partition("    #")
    if "train.py" not in code and not code.startswith("leukoscope train"):
        return line
    start = "" if "--model_name_or_path leukoscope" in code or "--help" in code else " --from_scratch"
    return f"{code} {TINY}{start}{hash_}{comment}"


def _label(place: Path) -> None:
    """Annotate the crops as a person does in Label Studio, whose CSV export this is: every other one is ALL."""
    tasks = json.loads((place / "crops" / "label_studio.json").read_text(encoding="utf-8"))
    rows = [[*task["data"].values(), ("ALL", "HEM")[number % 2]] for number, task in enumerate(tasks)]
    lines = [[*tasks[0]["data"], "choice"], *rows]
    (place / "labels.csv").write_text("".join(",".join(line) + "\n" for line in lines), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(b.runs for b in blocks(page))], ids=lambda p: p.name)
def test_every_block_runs(page: Path, place: Path, environment: dict[str, str]) -> None:
    if "recalibrate" not in page.read_text():  # which needs them all
        for cell in (place / "my_cells").glob("*/*_00[2-7].png"):
            cell.unlink()
    for block in blocks(page):
        if "labelling is work for people" in block.text:
            _label(place)
        if not block.runs:
            continue
        script = block.text.replace("owner/", f"{USER}/")
        if block.language == "sh":
            script = "\n".join(map(_tiny, script.replace("\\\n", " ").splitlines()))
        else:
            script = script.replace("lk.train(", f"lk.train({TINY_ARGUMENTS}, ")
        command = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else ["python", "-c"]
        started = time.monotonic()
        done = subprocess.run(
            [*command, script], cwd=place, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
        print(f"{page.name}:{block.line}: {time.monotonic() - started:.1f} s")
        said = f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        assert done.returncode == 0, f"{page.name}:{block.line}:\n{script}\n{said}"
