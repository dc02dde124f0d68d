"""`leukoscope export`: a release as a graph for OpenVINO or ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from leukoscope import RESEARCH_NOTICE, LeukoscopeError


def export(
    release: Annotated[str, typer.Argument(metavar="RELEASE", help="Release folder, or owner/name[@revision].")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; an older export there is replaced.")],
    graph_format: Annotated[
        str, typer.Option("--format", metavar="openvino|onnx", help="Who is to compute it.")
    ] = "openvino",
) -> None:
    """Write a release as one graph: pixels in, logits and the feature map out, compared with torch on 8 pictures."""
    from leukoscope.inference.backends import require_package
    from leukoscope.inference.exported import GRAPHS, REPORT
    from leukoscope.models.release_files import read_release

    if graph_format not in GRAPHS:
        raise LeukoscopeError(f"--format {graph_format}: unknown; give {' or '.join(GRAPHS)}")
    require_package(graph_format)
    if out.exists() and not (out / REPORT).is_file():
        raise LeukoscopeError(f"--out {out}: exists and is no earlier export; name a new folder")
    from leukoscope.inference.export import export_release

    try:
        folder, name, revision = _located(release)
        report = export_release(read_release(folder, name=name, revision=revision), graph_format, out)
    except OSError as error:
        raise LeukoscopeError(
            f"--out {out}: cannot be written ({error.strerror or error}); name another folder"
        ) from None
    typer.echo(
        f"{out / GRAPHS[graph_format]}: at most {report['probability_difference']:.1e} in probability and "
        f"{report['heat_map_difference']:.1e} of a heat map's peak from torch, on {report['compared_on']}"
    )
    if not report["like_torch"]:
        raise LeukoscopeError(f"{out}: that is more than {report['allowed']:g}; use the release with torch")
    typer.echo(RESEARCH_NOTICE)


def _located(release: str) -> tuple[Path, str, str]:
    """Folder of a release, what it is called, and its Hub commit ("" for a local one)."""
    from leukoscope.inference.hub_files import parse_hub_id, release_folder

    folder = release_folder(release)
    if Path(release).exists():
        return folder, release, ""
    # The Hub's snapshots are called by their commit.
    return folder, parse_hub_id(release)[0], folder.name
