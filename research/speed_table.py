"""The speed table of docs/results.md, from results/benchmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leukoscope.models.release import WEIGHTS_FILE
from leukoscope.reports.formatting import Table, count
from research.external import sha256_of
from research.tables import NOT_MEASURED, read_results


def speed_table(benchmarks: Path, releases: Sequence[Path]) -> str:
    """How fast: one row for each comparison that a benchmark gives; of releases, those of today."""
    weights = {release.name: sha256_of(release) for release in releases if (release / WEIGHTS_FILE).is_file()}
    rows = [
        (what, value, _measured_on(benchmark))
        for benchmark in read_results(benchmarks)
        for what, value in (*_of_recipes(benchmark), *_of_releases(benchmark, weights))
    ]
    return str(Table(("measured", "value", "on"), rows, text_columns=3)) if rows else NOT_MEASURED


def _of_recipes(benchmark: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was compared, and the result, where recipes are trained."""
    times = [
        # What names a row of a benchmark are its texts, in their order.
        f"{', '.join(value for value in row.values() if isinstance(value, str))} **{row['times_faster']['warm']:.2f}**"
        for row in benchmark.get("rows", [])
        if "times_faster" in row
    ]
    if times:
        yield f"training: times as fast as {benchmark['beside']}, after the first epoch", " · ".join(times)


def _of_releases(benchmark: Mapping[str, Any], weights: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The same where releases predict; earlier weights of a network are as fast, and are named so."""

    def named(measured: Mapping[str, Any]) -> str:
        earlier = "" if measured["sha256"] == weights[measured["model"]] else " (earlier weights)"
        return f"`{measured['model']}`{earlier}"

    by_ratio: dict[str, list[str]] = {}
    for release in benchmark.get("releases", []):
        if release["model"] not in weights:
            continue
        # The comparisons that matter; and pipeline at its fastest, beside its batches.
        for ratio in release["ratios"]:
            if "aim" in ratio or ratio["what"].endswith("many: times faster than pipeline"):
                by_ratio.setdefault(ratio["what"], []).append(f"{named(release)} **{ratio['value']:.2f}**")
    yield from ((what, " · ".join(values)) for what, values in by_ratio.items())
    if benchmark.get("model") not in weights:
        return
    if "page" in benchmark:
        what = "demo: seconds to one model's answer, every model's, and all maps and small changes; 95 % within"
        values = [
            f"{level['visitors']} at once **{level['first_row_p95_seconds']:.1f}**, "
            f"**{level['all_rows_p95_seconds']:.1f}** and **{level['complete_p95_seconds']:.1f}**"
            for level in benchmark["page"]
        ]
        yield what, " · ".join(values)
    if "levels" in benchmark:
        what = f"{named(benchmark)}, demo: predictions with Grad-CAM maps per second; 95 % within"
        values = [
            f"{level['clients']} at once **{level['per_second']:.1f}**, {level['p95_seconds']:.2f} s, "
            f"{level['errors']} errors"
            for level in benchmark["levels"]
        ]
        yield what, " · ".join(values)
    if "memory_growth" in benchmark:
        speeds = " and ".join(f"{benchmark[part]['cells_a_second']:.0f}" for part in ("until_killed", "resumed"))
        growth, scored = benchmark["memory_growth"], f"{count(benchmark['cells'])} cells scored"
        memory = f"memory {growth['times_short_run']:.2f} times that of {count(benchmark['short_cells'])} cells"
        yield (f"{named(benchmark)}, {scored}: cells per second until killed, and resumed", f"**{speeds}**; {memory}")
    if "ray" in benchmark:
        rows = [
            f"{row['scored_by']} **{row['cells_a_second']:.1f}**, {row['core_hours_a_million']:,.0f} core-hours a "
            "million"
            for row in benchmark["ray"]["rows"]
        ]
        driver = benchmark["ray"]["driver"]
        rows.append(f"{count(driver['names'])} names: {driver['peak_bytes'] / 1e6:.0f} MB in the command")
        yield f"{named(benchmark)}, scored on Ray: cells per second, with its start", " · ".join(rows)


def _measured_on(benchmark: Mapping[str, Any]) -> str:
    if "hardware" in benchmark:
        return benchmark["hardware"]
    machine = benchmark["machine"]
    # A benchmark of the processor may run on a machine with a GPU.
    gpus = [gpu["name"] for gpu in machine["gpus"]] if benchmark.get("device") != "cpu" else []
    threads = [f"{benchmark['threads']} thread(s)"] if "threads" in benchmark else []
    return ", ".join(gpus or [machine["cpu"], *threads])
