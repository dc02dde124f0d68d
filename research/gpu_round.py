"""Nine minutes on a GPU, the most useful first: its tests, its speed, both networks, two prior systems.

    PYTHONPATH=src python -m research.gpu_round --train_dir C-NMC_Leukemia --weights DIR --output DIR [--hf_script FILE]

Each step is a command of its own with the time that is left. One that is stopped gets SIGTERM, for which a training
writes a checkpoint, so that the same command goes on another time. `round.json` says after each step what it came to.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from leukoscope.models.release import write_json
from research.commands import make_parser, run

ROOT = Path(__file__).parents[1]
# The file of each network's start weights, what they are, and the flags of the network.
B3_WEIGHTS = ("tf_efficientnet_b3-from-b4.safetensors", "channels selected from ImageNet EfficientNet-B4")
NETWORKS = {
    "efficientnet_b3": (*B3_WEIGHTS, ["--recipe", "efficientnet_b3"]),
    "densenet169": (
        *("densenet169.safetensors", "ImageNet DenseNet169 (Keras Applications)"),
        ["--model_name_or_path", "densenet169", "--learning_rate", "2e-4"],
    ),
}
PER_EPOCH = 2000  # draws
SECONDS_TO_STOP = 25  # for a training to write its checkpoint


def main(argv: Sequence[str] | None = None) -> None:
    """Run the steps one after another until the time is over; a step that fails does not end the round."""
    parser = make_parser("gpu_round", __doc__)
    parser.add_argument("--dataset_name", default="cnmc2019")
    parser.add_argument("--train_dir", type=Path, help="the folder of the cells")
    parser.add_argument("--weights", type=Path, required=True, help="folder of the networks' start weights")
    parser.add_argument("--hf_script", type=Path, help="Hugging Face's example script, to measure the speed beside")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--draws", type=int, default=40_000, help="cells that each training of a network sees")
    parser.add_argument("--image_size", type=int, default=300)
    parser.add_argument("--num_folds", type=int, default=5)
    flags = parser.parse_args(argv)
    for name in ("train_dir", "weights", "hf_script", "output"):  # the steps run in the checkout
        if path := getattr(flags, name):
            setattr(flags, name, path.resolve())
    flags.output.mkdir(parents=True, exist_ok=True)
    end, steps = time.monotonic() + flags.seconds, dict[str, dict[str, object]]()
    for name, command in _steps(flags):
        left = end - time.monotonic() - SECONDS_TO_STOP
        steps[name] = _run(command, flags.output / f"{name}.log", left) if left > 0 else {"outcome": "no time left"}
        write_json(flags.output / "round.json", {"device": _device(), "steps": steps})
        print(f"{name}: {steps[name]['outcome']}", flush=True)


def _steps(flags: object) -> Iterator[tuple[str, list[str]]]:
    """Name → command of each step, in order of worth."""
    given = vars(flags)
    data = ["--dataset_name", given["dataset_name"]]
    data += ["--train_dir", str(given["train_dir"])] if given["train_dir"] else []
    yield "tests", ["-m", "pytest", "-q", "-m", "gpu", "tests/training"]
    if given["hf_script"]:
        speed = ["research/benchmarks/training.py", "--hf_script", str(given["hf_script"]), *data, "--cells", "1024"]
        yield "speed", [*speed, "--turns", "1", "--epochs", "2", "--results", f"{given['output']}/training-gpu.json"]
    epochs = max(1, round(given["draws"] / PER_EPOCH))
    own = ["--num_train_epochs", str(epochs), "--image_size", str(given["image_size"])]
    own += ["--num_folds", str(given["num_folds"])]
    own += ["--override", f"epoch_cells={min(PER_EPOCH, given['draws'])}", "sampling=subjects"]
    for name, (file, weights, network) in NETWORKS.items():
        protocol = ["-m", "leukoscope", "protocol", "--output", f"{given['output']}/{name}"]
        yield (
            name,
            [
                *protocol,
                "--output_dir",
                f"{given['output']}/{name}-runs",
                *data,
                *network,
                *own,
                *_start(given["weights"] / file, weights),
            ],
        )
    start = _start(given["weights"] / B3_WEIGHTS[0], B3_WEIGHTS[1])
    for name in ("prior_a_efficientnet_b3", "prior_c_efficientnet_b3"):
        row = ["--recipe", name, "--output", f"{given['output']}/prior", "--output_dir", f"{given['output']}/{name}"]
        yield name, ["-m", "research.prior_systems", *row, *data, *start]


def _start(file: Path, name: str) -> list[str]:
    """The flags of start weights; two tensors of an EfficientNet-B3 are not in its file."""
    missing = ["--pretrained_may_miss", "blocks.6.1.conv_pw*"] if "efficientnet" in file.name else []
    return ["--pretrained_weights", str(file), "--pretrained_name", name, *missing]


def _run(command: list[str], log: Path, seconds: float) -> dict[str, object]:
    """Run a command of this Python for so long at most: its outcome, seconds and last line."""
    started = time.monotonic()
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        outcome = "stopped"
        try:
            outcome = "done" if process.wait(seconds) == 0 else f"failed (exit code {process.returncode})"
        except subprocess.TimeoutExpired:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, number)
                    process.wait(SECONDS_TO_STOP)
                    break
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
    return {"outcome": outcome, "seconds": round(time.monotonic() - started, 1), "last_line": lines[-1][:300]}


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    run(main)
