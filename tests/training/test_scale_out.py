"""Two processes learn what one learns from the same batches, count every cell once, and leave one run folder.

Launched by itself this file is one of those processes: `torchrun … test_scale_out.py CELLS OUT`. (What `accelerate
launch` does for several GPUs; for several processes on a CPU it wants MPI, and without it starts one.)
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

from leukoscope.data.loading import load_cells
from leukoscope.data.pixel_cache import frame_cells
from leukoscope.data.preprocessing import Preprocessing
from leukoscope.data.splits import Split, make_split
from leukoscope.evaluation.metrics import measure
from leukoscope.evaluation.predictions import CellPredictions
from leukoscope.models.build import build_network
from leukoscope.models.recipes import Recipe
from leukoscope.training.accelerator import close_connection, make_accelerator
from leukoscope.training.config import RunArguments, TrainingConfig
from leukoscope.training.trainer import Trainer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 20
RECIPE = Recipe(
    name="small",
    architecture="densenet121",
    base_model="",
    image_size=32,
    num_train_epochs=5,
    train_batch_size=3,
    learning_rate=1e-2,
    head_learning_rate=1e-2,
    drop_rate=0.0,
    # Batch normalisation in the head too: a batch of one process is normalised by itself, on two processes as on one.
    block_config=(1, 1),
    pooled_norm=True,
)


def _learn(cells: Path, processes_batches: int) -> dict[str, Any]:
    """Loss of every optimiser step of 20 and more, and the cells answered; alike in all processes."""
    run = RunArguments(mixed_precision="no", gradient_accumulation_steps=processes_batches)
    set_seed(0)
    accelerator = make_accelerator(TrainingConfig(run=run), RECIPE)
    data = load_cells("imagefolder", str(cells), subject_pattern=r"/(?P<subject>\w+)_", image_size=64)
    with accelerator.main_process_first():
        framed = frame_cells(data, Preprocessing(32, 1.0))
    everything = make_split(data, "all").train
    # 27 cells to learn from in batches of 3 leave one batch of nine without a partner; 7 to predict are uneven too.
    split = Split("all", "cell", 0, data.fingerprint, everything[5:], (), everything[:7], "")
    trainer = Trainer(accelerator, build_network(RECIPE, 2), framed, split, RECIPE)
    step, losses = trainer._step, []

    def noted(*batch: Any) -> torch.Tensor:
        metrics = step(*batch)
        losses.append(accelerator.reduce(metrics, "mean")[0].item())
        return metrics

    trainer._step = noted  # type: ignore[method-assign, assignment]
    rows = list(trainer.fit())
    answers = trainer.predict(split.test)
    return {
        "losses": np.reshape(losses, (-1, processes_batches)).mean(axis=1).tolist(),
        "epochs": [row["train_loss"] for row in rows],
        "images": len(losses) * accelerator.num_processes * RECIPE.train_batch_size,
        "answered": sorted(answers.cell_ids),
        "asked": sorted(split.test),
        "metrics": measure(answers),
        "main": accelerator.is_main_process,
    }


def _environment(folder: Path, device: str = "cpu") -> dict[str, str]:
    own = {"HF_HUB_OFFLINE": "1", "LEUKOSCOPE_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT / "src")}
    return os.environ | own | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true" if device == "cpu" else "false"}


LAUNCH = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_two_processes_follow_one_that_accumulates_the_same_batches(
    warm: str, own_cells: Path, tmp_path: Path, device: str
) -> None:
    if device == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    out, allowed = tmp_path / "out", 1e-4 if device == "cpu" else 1e-3
    ended = subprocess.run(
        [warm, *LAUNCH, __file__, str(own_cells), str(out)],
        env=_environment(tmp_path, device),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    first, second = (json.loads(out.with_suffix(f".{process}.json").read_text()) for process in (0, 1))
    assert (first["main"], second["main"]) == (True, False)
    threads = torch.get_num_threads()
    # As many as each of the two has: batches of three let the last digit of a sum grow into the first of a loss.
    torch.set_num_threads(1)
    alone = _learn(own_cells, 2)
    torch.set_num_threads(threads)
    assert len(alone["losses"]) == STEPS
    assert np.std(alone["losses"]) > 100 * allowed, "they must differ from step to step to be compared"
    assert first["losses"] == second["losses"], "both know the loss of the whole"
    assert first["losses"] == pytest.approx(alone["losses"], abs=allowed)
    assert first["epochs"] == pytest.approx(alone["epochs"], abs=allowed)
    assert first["images"] == alone["images"] == STEPS * 6
    assert not [name for name in first["threads"] + second["threads"] if "gloo" in name], "the connection is closed"
    assert first["answered"] == second["answered"] == first["asked"], "each cell once, uneven as they are"
    assert first["metrics"] == second["metrics"], "both measure all cells"
    assert first["metrics"]["cells"] == len(first["asked"]) and "accuracy_by_subject" in first["metrics"]


TINY = (
    *("--image_size", "32", "--max_train_samples", "64", "--max_eval_samples", "37", "--num_train_epochs", "10"),
    *("--per_device_train_batch_size", "8", "--mixed_precision", "no", "--override", "block_config=[2,2,2,2]"),
)


def test_two_processes_leave_one_run_and_resume_together(warm: str, tmp_path: Path) -> None:
    from warm import Warm  # which a process of this file does not find

    def start(*flags: str) -> Warm:
        words = [warm, *LAUNCH, str(ROOT / "train.py"), *TINY, *flags]
        pipe = subprocess.PIPE
        return Warm(words, _environment(tmp_path), cwd=tmp_path, stdout=pipe, stderr=pipe)

    whole = start("--output_dir", "whole")
    said, problems = whole.communicate(timeout=900)
    assert whole.returncode == 0, problems
    assert said.splitlines().count("run folder: whole") == 1
    answers = CellPredictions.load(tmp_path / "whole" / "predictions.parquet")
    assert len(set(answers.cell_ids)) == len(answers.cell_ids) == 37
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["training"]["processes"] == 2

    stopped, until = start("--output_dir", "run"), time.monotonic() + 600
    while not any((tmp_path / "run" / "checkpoints").glob("0*")):
        assert stopped.poll() is None, stopped.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    stopped.terminate()
    said, problems = stopped.communicate(timeout=300)
    assert said.count("asked to stop: checkpoint written at epoch ") == 1, problems
    assert said.count("resume with the same command and --resume_from_checkpoint latest") == 1
    ended = start("--output_dir", "run", "--resume_from_checkpoint", "latest")
    _, problems = ended.communicate(timeout=900)
    assert ended.returncode == 0, problems
    one, other = (load_file(tmp_path / name / "release" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    again = CellPredictions.load(tmp_path / "run" / "predictions.parquet")
    assert np.array_equal(again.probabilities, answers.probabilities)
    assert {p.name for p in (tmp_path / "run").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}


_NOTEBOOK = """
import sys
from accelerate import notebook_launcher
from leukoscope.api import train

flags = dict(image_size=32, max_train_samples=64, max_eval_samples=16, num_train_epochs=1, mixed_precision="no",
             per_device_train_batch_size=8)
notebook_launcher(lambda: train(output_dir="run", **flags), num_processes=2, use_port=sys.argv[1])
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="on GPUs processes find each other")
def test_two_processes_of_a_notebook_are_refused_unless_they_find_each_other(warm: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        words = [warm, "-c", _NOTEBOOK, str(free.getsockname()[1])]
    environment = _environment(tmp_path)
    options: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 600}
    alone = {name: value for name, value in environment.items() if name != "ACCELERATE_USE_CPU"}
    ended = subprocess.run(words, env=alone, **options)
    assert ended.returncode != 0
    assert "2 processes were started and each would train alone into --output_dir run: " in ended.stderr
    assert not (tmp_path / "run").exists()
    ended = subprocess.run(words, env=environment, **options)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["training"]["processes"] == 2


if __name__ == "__main__":
    _cells, _out = map(Path, sys.argv[1:])
    _result = _learn(_cells, 1)
    _process = os.environ["RANK"]
    close_connection()
    _result["threads"] = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
    _out.with_suffix(f".{_process}.json").write_text(json.dumps(_result))
