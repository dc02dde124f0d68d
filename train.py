"""Train a classifier of white-blood-cell images: `accelerate launch --quiet train.py [--dataset_name …]`.

Cells come in, a run folder goes out, holding a release in Hub format. Without arguments it trains a small network on
synthetic phantoms in about a minute, without any download. `--help` lists every flag. --quiet keeps the launcher's own
traceback away from an error, which is one line.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

from leukoscope import LeukoscopeError
from leukoscope.cli import run
from leukoscope.training.config import parse_config


def main() -> int:
    """Read the flags, then run; problems the user can fix end in one line."""
    try:
        run(parse_config())
    except LeukoscopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
