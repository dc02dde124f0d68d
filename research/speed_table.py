"""The speed table of docs/results.md, from results/benchmarks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leukoscope.reports.tables import Table, count
from research.tables import NOT_MEASURED, read_results


def speed_table(benchmarks: Path, releases: Sequence[Path]) -> str:
    """How fast: one row for each comparison that a benchmark gives; of models, those that are a release today.

    Other weights of the same network are as fast.
    """
    names = {release.name for release in releases}
    rows = []
    machines = set()
    for benchmark in read_results(benchmarks):
        compared = [*_of_recipes(benchmark), *_of_releases(benchmark, names)]
        rows += compared
        if compared:
            machines.add(_measured_on(benchmark))
    if not rows:
        return NOT_MEASURED
    return f"{Table(('measured', 'value'), rows, text_columns=2)}\n\nMeasured on {'; '.join(sorted(machines))}."


def _of_recipes(benchmark: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was compared, and the result, where recipes are trained."""
    times = [
        f"{row['recipe']}, {row['setting']} **{row['times_faster']['warm']:.2f}**"
        for row in benchmark.get("rows", [])
        if "times_faster" in row
    ]
    if times:
        yield f"training: times as fast as {benchmark['beside']}, after the first epoch", " · ".join(times)


def _of_releases(benchmark: Mapping[str, Any], names: Collection[str]) -> Iterator[tuple[str, str]]:
    """The same where releases predict."""
    by_ratio: dict[str, list[str]] = {}
    for release in benchmark.get("releases", []):
        # The comparisons that have an aim.
        for ratio in release["ratios"]:
            if release["model"] in names and "aim" in ratio:
                by_ratio.setdefault(ratio["what"], []).append(f"`{release['model']}` **{ratio['value']:.2f}**")
    yield from ((what, " · ".join(values)) for what, values in by_ratio.items())
    if benchmark.get("model") not in names:
        return
    model = f"`{benchmark['model']}`"
    if "levels" in benchmark:
        levels = [
            f"{level['clients']} at once **{level['per_second']:.1f}**, {level['p95_seconds']:.2f} s"
            for level in benchmark["levels"]
        ]
        yield f"{model}, demo: predictions with maps per second; 95 % within", " · ".join(levels)
    if "until_killed" in benchmark:
        speeds = " and ".join(f"{benchmark[part]['cells_a_second']:.0f}" for part in ("until_killed", "resumed"))
        what = f"{model}, {count(benchmark['cells'])} cells scored: per second until killed, and resumed"
        yield what, f"**{speeds}**"
    if "ray" in benchmark:
        rows = [f"{row['scored_by']} **{row['cells_a_second']:.1f}**" for row in benchmark["ray"]["rows"]]
        yield f"{model}, scored on Ray: cells per second, with its start", " · ".join(rows)


def _measured_on(benchmark: Mapping[str, Any]) -> str:
    if "hardware" in benchmark:
        return benchmark["hardware"]
    machine = benchmark["machine"]
    # A benchmark of the processor may run on a machine with a GPU.
    gpus = [gpu["name"] for gpu in machine["gpus"]] if benchmark.get("device") != "cpu" else []
    return ", ".join(gpus or [machine["cpu"], f"{benchmark['threads']} thread(s)"])
