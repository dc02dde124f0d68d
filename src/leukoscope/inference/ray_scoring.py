"""Bulk scoring on Ray: actors predict shards, this process writes them, with the columns and the resuming of `score`.

Ray schedules, retries and holds memory. It starts on loopback unless it has an address, and sends no usage statistics.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leukoscope import ConfigError, ReleaseError
from leukoscope.files import atomic_file, first_line
from leukoscope.inference.scoring import CellSource, SourceCell, missing_shards, release_digest, shard_bytes
from leukoscope.progress import progress

if TYPE_CHECKING:
    from leukoscope.inference.predictor import Predictor

LOCAL = "local"


class Scorer:
    """An actor: one predictor, which predicts a shard at a time."""

    def __init__(self, model: str, digest: str, batch_size: int, settings: dict[str, str]) -> None:
        from leukoscope.inference.predictor import Predictor

        self.predictor = Predictor.from_pretrained(model, **settings)
        self.batch_size = batch_size
        if release_digest(self.predictor.release.folder) != digest:
            raise ReleaseError(f"{model}: a worker has other files of this release; give all machines the same files")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A shard's path, cells and identity → its path, its number of cells and its file."""
        cells = [SourceCell(*cell) for cell in zip(row["ids"], row["subjects"], row["files"], strict=True)]
        files = (cell.file for cell in cells)
        predictions = list(self.predictor.iter_predictions(files, batch_size=self.batch_size))
        file = shard_bytes(list(zip(cells, predictions, strict=True)), self.predictor, row["identity"])
        return {"shard": row["shard"], "cells": len(cells), "file": file}


def score_missing(
    predictor: Predictor,
    source: CellSource,
    shards: Sequence[Path],
    batch_size: int,
    *,
    address: str,
    model: str,
    settings: dict[str, str],
) -> None:
    """Predict every missing shard on Ray; `address` is that of a cluster, or "local"."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError:
        raise ConfigError("--ray: Ray is not installed; pip install 'leukoscope[ray]'") from None
    loopback = {}
    if address == LOCAL:
        loopback = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **loopback)
    except (ConnectionError, ValueError) as error:
        reason = first_line(error)
        raise ConfigError(f"--ray {address}: no cluster answers ({reason}); start it, or give --ray local") from None
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        with progress("scoring cells", len(source.cells)) as advance:
            rows = []
            for shard, cells, identity in missing_shards(predictor, source, shards, advance):
                ids, subjects, files = map(list, zip(*cells, strict=True))
                rows.append(
                    {"shard": str(shard), "identity": identity, "ids": ids, "subjects": subjects, "files": files}
                )
            if not rows:
                return
            scored = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
                Scorer,
                fn_constructor_args=(model, release_digest(predictor.release.folder), batch_size, settings),
                num_cpus=1,
                concurrency=min(int(ray.cluster_resources().get("CPU", 1)), len(rows)),
            )
            for row in scored.iter_rows():
                with atomic_file(Path(row["shard"])) as temporary:
                    temporary.write_bytes(row["file"])
                advance(row["cells"])
    finally:
        ray.shutdown()
