"""Write a data set as the Hub lays it out — parquet files and a card with what the audit found — and publish it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukoscope import LeukoscopeError
from leukoscope.audit import ScannedCells
from leukoscope.data.images import open_encoded
from leukoscope.data.inspection import recognise
from leukoscope.data.loading import PRELIMINARY_TEST
from leukoscope.data.registry import DATASETS, DatasetInfo
from leukoscope.files import resource_file
from leukoscope.hub.publish import Destination, Published, scratch_folder, upload
from leukoscope.models.release import CARD
from leukoscope.reports.card import FRONT_AND_TEXT
from leukoscope.reports.formatting import Table, count, encoded, rendered
from leukoscope.reports.release_tables import copies_table, shortcuts_table

if TYPE_CHECKING:
    from datasets import Dataset

TEMPLATE = "model_card/dataset.md"
LICENCES = "https://huggingface.co/docs/hub/repositories-licenses"
PARQUET = "data/*.parquet"
SHARD_BYTES = 500_000_000  # of pictures in one parquet file, as `datasets` does it


def described(folder: Path, *, licence: str = "", citation: str = "", own_subjects: bool = False) -> DatasetInfo:
    """The entry of `DATASETS` that a folder's cells belong to, with their licence and citation, or an error without.

    The licence is given as the Hub names it: "cc-by-4.0". `own_subjects`: the owner names the subjects, as only class
    folders need.
    """
    info = DATASETS["imagefolder"] if own_subjects else recognise(folder)
    if not (licence := licence or info.licence_id):
        raise LeukoscopeError(
            f"{folder}: under which licence may others use these cells? Give it with --licence, such as cc-by-4.0 "
            f"({LICENCES})"
        )
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise LeukoscopeError(
            f"--licence {licence}: not as the Hub names licences; give one such as cc-by-4.0, or other ({LICENCES})"
        )
    if not (citation := citation or info.citation):
        raise LeukoscopeError(
            f"{folder}: how are these cells to be cited? Give it with --citation, such as 'Doe, J. (2026). Our cells.'"
        )
    terms = info.licence if licence == info.licence_id else licence
    return replace(info, licence_id=licence, licence=terms, citation=citation)


def train_command(seen: ScannedCells, hub_id: str) -> str:
    """The command that trains on the cells once they are published, with the most honest split that they allow."""
    without_subjects = {"subject": " --split random", "block": " --split block"}[seen.data.info.group]
    default = any(seen.data.rows["subject"][:]) or seen.data.own_splits
    return f"leukoscope train --dataset_name {hub_id}{'' if default else without_subjects}"


def push_data_set(seen: ScannedCells, findings: Mapping[str, Any], info: DatasetInfo, to: Destination) -> Published:
    """Publish cells as a Hub data set, in one commit; the folder they came from is only read.

    `findings` of `audit_cells` stand on the card; `info` is as `described` gives it. Errors are those of
    `Destination.require_usable` and `upload`.
    """
    to.require_usable()
    with scratch_folder() as scratch:
        folder = scratch / "repository"
        _write_parquet(seen, folder, scratch=scratch)
        (folder / CARD).write_text(render_data_card(seen, findings, info, hub_id=to.id), encoding="utf-8")
        return upload(folder, to, replaces=(PARQUET,), hint="Nothing here was changed; the same command goes on")


def _write_parquet(seen: ScannedCells, folder: Path, *, scratch: Path) -> None:
    """One or more parquet files a split; pictures become PNG, so that no metadata of their files travels."""
    from datasets import Image

    def as_png(row: Mapping[str, Any]) -> dict[str, Any]:
        picture = open_encoded(row["image"], row["cell_id"])
        return {"image": {"bytes": encoded(picture, "PNG"), "path": None}}

    (folder / PARQUET).parent.mkdir(parents=True)
    for split, cells in _splits(seen).items():
        undecoded = cells.cast_column("image", Image(decode=False))
        rows = undecoded.map(as_png, cache_file_name=str(scratch / f"{split}.arrow")).cast_column("image", Image())
        shards = rows.data.nbytes // SHARD_BYTES + 1
        for shard in range(shards):
            path = (folder / PARQUET).with_name(f"{split}-{shard:05d}-of-{shards:05d}.parquet")
            rows.shard(shards, shard, contiguous=True).to_parquet(path)


def _splits(seen: ScannedCells) -> dict[str, Dataset]:
    """The cells by the Hub's splits, without the columns that say nothing there."""
    parts, own_splits, folds = dict(seen.data.cells), seen.data.own_splits, seen.data.train["fold"][:]
    for side in own_splits:
        parts[side] = seen.data.train.select([row for row, fold in enumerate(folds) if fold == side])
    empty = {name for name in ("subject", "fold") if not any(seen.data.rows[name][:])}
    left_out = sorted(empty | ({"fold"} if own_splits else set()))
    return {name: cells.remove_columns(left_out) for name, cells in parts.items()}


def render_data_card(seen: ScannedCells, findings: Mapping[str, Any], info: DatasetInfo, *, hub_id: str) -> str:
    """Render the card of a data set, to be published at `hub_id`, as Markdown with the Hub's YAML front matter."""
    from huggingface_hub import DatasetCard, DatasetCardData

    splits = _splits(seen)
    title = info.title if info.url else hub_id.split("/")[1]
    labels, subjects = seen.data.rows["label"][:], seen.data.rows["subject"][:]
    named = {(label, subject) for label, subject in zip(labels, subjects, strict=True) if subject}
    classes = [
        (name, count(of["cells"]), count(sum(label == number for label, _ in named)) if named else "–")
        for number, (name, of) in enumerate(findings["classes"].items())
    ]
    # The findings count subjects as published, hence an alias and whom it stands for.
    aliases = {alias: of for alias, of in info.subject_aliases.items() if alias in findings["subjects"]}
    text = rendered(
        resource_file(TEMPLATE),
        title=title,
        hub_id=hub_id,
        train_command=train_command(seen, hub_id),
        info=info,
        findings=findings,
        subjects=len({subject for _, subject in named}),
        aliases=aliases,
        own_test=PRELIMINARY_TEST if PRELIMINARY_TEST in seen.data.cells else "",
        has_folds="fold" in splits["train"].column_names,
        classes=Table(("class", "cells", "subjects"), classes),
        copies=copies_table(findings),
        shortcuts=shortcuts_table(findings),
    )
    files = [{"split": name, "path": f"data/{name}-*"} for name in splits]
    data = DatasetCardData(
        license=info.licence_id,
        task_categories=["image-classification"],
        tags=["leukoscope", "leukaemia", "blood-cells"],
        pretty_name=title,
        configs=[{"config_name": "default", "data_files": files}],
        leukoscope={"dataset_name": info.name, "citation": info.citation, "subject_aliases": aliases},
    )
    # What does not concern a data set leaves empty lines behind.
    text = re.sub(r"\n{3,}", "\n\n", text)
    return str(DatasetCard.from_template(data, template_str=FRONT_AND_TEXT, body=text))
