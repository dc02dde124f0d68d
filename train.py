"""Train a classifier of white-blood-cell images: `accelerate launch train.py [--dataset_name cnmc2019 --train_dir …]`.

Cells come in, a run folder goes out, holding a release in Hub format. Without arguments it trains a small network on
synthetic phantoms in about a minute, asking no network. `--help` lists every flag.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

from leukoscope import LeukoscopeError
from leukoscope.training.config import TrainingConfig, parse_config
from leukoscope.training.interruption import Interrupted, how_to_go_on


def main() -> int:
    """Read the flags, then run; problems the user can fix end in one line."""
    try:
        run(parse_config())
    except LeukoscopeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(config: TrainingConfig) -> None:
    """Train, write the card, and publish when asked to."""
    from accelerate import PartialState

    from leukoscope.hub.card import write_card
    from leukoscope.hub.publish import Destination, check_can_publish, publish
    from leukoscope.training.loop import train

    flags = config.run
    to = Destination(flags.hub_model_id, flags.hub_revision, flags.hub_private, flags.hub_create_pr, flags.hub_tag)
    if flags.push_to_hub:
        check_can_publish(to)
    try:
        release = train(config) / "release"
    except Interrupted:
        if PartialState().is_main_process:
            print("go on with:", how_to_go_on(config), flush=True)
        PartialState().destroy_process_group()
        raise
    if PartialState().is_main_process:
        write_card(release, hub_id=to.id)
        if flags.push_to_hub:
            print("published:", publish(release, to))
    # Left to the end of the process, it sometimes aborts.
    PartialState().destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
