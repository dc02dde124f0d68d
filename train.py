"""Train a classifier of white-blood-cell images: `accelerate launch --quiet train.py [--dataset_name …]`.

This is `leukoscope train` as a script. Cells come in, a run folder goes out, holding a release in Hub format. Without
arguments it trains a small network on synthetic phantoms in about a minute, without any download. `--help` lists every
flag. --quiet keeps the launcher's own traceback away from an error, which is one line.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

from leukoscope.cli import app

if __name__ == "__main__":
    app(["train", *sys.argv[1:]], prog_name="leukoscope")
