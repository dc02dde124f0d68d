"""Measure training and inference on this machine's GPU: one command, the same figures as on the CPU.

    PYTHONPATH=src python research/benchmarks/gpu.py --hf_script run_image_classification_no_trainer.py \
        --models model_card/leukoscope-*-cnmc [--dataset_name cnmc2019 --train_dir …] [--data DIR]

Runs training.py and inference.py and writes results/benchmarks/training-gpu.json and inference-gpu.json, which
`make docs` shows beside those of the CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "results" / "benchmarks"


def main() -> None:
    """Run both; stop at the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hf_script", type=Path, required=True, help="your copy of Hugging Face's example script")
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="release folders")
    parser.add_argument("--dataset_name", default="phantoms", help="the cells to train on")
    parser.add_argument("--train_dir", help="their folder")
    parser.add_argument("--data", type=Path, help="folder with cnmc2019/, whose cells are predicted; default: phantoms")
    parser.add_argument("--recipes", nargs="+", default=["efficientnet_b3", "densenet169_block2"])
    parser.add_argument("--cells", type=int, default=1024, help="training cells, a multiple of the batch size")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the two files")
    flags = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no GPU here; training.py and inference.py measure on the CPU")
    training = ["--hf_script", flags.hf_script, "--dataset_name", flags.dataset_name, "--recipes", *flags.recipes]
    training += ["--train_dir", flags.train_dir] if flags.train_dir else []
    training += ["--cells", flags.cells, "--batch_size", flags.batch_size, "--epochs", 3]
    inference = ["--device", "cuda", "--models", *flags.models, *(["--data", flags.data] if flags.data else [])]
    for script, own in (("training", training), ("inference", inference)):
        words = [sys.executable, HERE / f"{script}.py", *own, "--turns", flags.turns]
        words += ["--results", flags.results / f"{script}-gpu.json"]
        if code := subprocess.run([str(word) for word in words]).returncode:
            sys.exit(code)


if __name__ == "__main__":
    main()
