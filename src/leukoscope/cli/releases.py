"""`leukoscope protocol`, `leakage` and `card`: make a release, price a leak, render what people read about them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leukoscope import RESEARCH_NOTICE
from leukoscope.cli.trust import FieldsDir, HealthyDir, OtherDir, assess_on, framed


def protocol(
    ctx: typer.Context,
    release: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the release to write.")],
    fields_dir: FieldsDir = None,
    other_dir: OtherDir = None,
    healthy_dir: HealthyDir = None,
) -> None:
    """Measure a recipe on unseen subjects, then train its release; takes the flags of train.py (--num_folds …) as well.

    Finished runs are kept, so an interrupted protocol goes on where it stopped.
    """
    from accelerate import PartialState

    from leukoscope.hub.card import read_template
    from leukoscope.models.release_files import read_release
    from leukoscope.training.config import parse_config
    from leukoscope.training.protocol import check_release_folder, compose_release, measure_views, run_protocol

    # Asked now rather than after hours of training.
    check_release_folder(release)
    read_template()
    config = parse_config(ctx.args)
    runs = run_protocol(config)
    if PartialState().is_main_process:
        compose_release(runs, release)
        data = config.data
        cells = framed(
            read_release(release).preprocessing,
            data.dataset_name,
            Path(data.train_dir) if data.train_dir else None,
            data.subject_pattern,
            Path(data.subject_csv) if data.subject_csv else None,
        )
        measure_views(runs, release, cells)
        assess_on(cells, release, fields_dir, other_dir, healthy_dir)


def leakage(
    ctx: typer.Context,
    results: Annotated[Path, typer.Option(metavar="FILE", help="JSON file for the comparison.")],
    seeds: Annotated[int, typer.Option(help="How often patients are drawn anew.")] = 3,
) -> None:
    """Measure what splitting by image is worth: the same cells tested with their patients seen and unseen in training.

    Takes the flags of train.py (--recipe, --num_train_epochs, --max_train_samples …) as well. Finished runs are kept.
    """
    from accelerate import PartialState

    from leukoscope.training.config import parse_config
    from leukoscope.training.leakage import measure_leakage

    comparison = measure_leakage(parse_config(ctx.args), range(seeds), results)
    if PartialState().is_main_process:
        for name, spread in comparison["difference"].items():
            typer.echo(f"{name}: {spread['mean']:+.3f} ({spread['smallest']:+.3f} to {spread['largest']:+.3f})")
        typer.echo(f"{results}\n{RESEARCH_NOTICE}")


def card(
    releases: Annotated[list[Path], typer.Argument(metavar="RELEASE", help="Release folders.")],
    hub_model_id: Annotated[
        str, typer.Option("--hub_model_id", metavar="ID", help="Where the release is published, owner/name.")
    ] = "",
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Render the tables of this README, and of docs/ beside it.")
    ] = None,
) -> None:
    """Render model cards, and the tables of the README and of docs/, from committed JSON."""
    from leukoscope.hub.card import write_card
    from leukoscope.hub.tables import update_tables

    for release in releases:
        typer.echo(write_card(release, hub_id=hub_model_id))
    if readme is not None:
        for page in update_tables(readme, releases):
            typer.echo(page)
