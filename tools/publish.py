"""Publish all of Leukoscope on the Hub: `make publish OWNER=name`, after `hf auth login`.

The releases, each tagged with the version; the benchmark; a static page of one; with
SPACE=1 the demo, on ZeroGPU; and a collection of these. Repeated, it changes nothing: what has the version's tag
already is left as it is. `make publish REPOSITORY=https://…` writes the source's address into the files that name it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError
from repository_address import write_address

from leukoscope import LeukoscopeError, __version__
from leukoscope.hub.publish import Destination, publish, publish_dataset, reason
from leukoscope.hub.space import find_model, push_space, write_space, write_static_space
from leukoscope.models.hub_download import find_release
from leukoscope.models.release import read_release
from research.benchmark import CELLS, FOLDER, NAME, write_repository

RELEASES = sorted(path.parent for path in (ROOT / "model_card").glob("*/metrics.json"))
ON_THE_PAGE = "leukoscope-densenet169-cnmc"
TAG = f"v{__version__}"
TITLE = "Leukoscope"
Member = tuple[str, Literal["model", "dataset", "space"]]
"""Of a collection: its id, and what it is."""
ABOUT = "Classifiers of white blood cells for research on leukaemia, measured on people they never saw. No diagnosis."


def plan(owner: str, releases: Sequence[Path], *, space: bool) -> Iterator[str]:
    """What would be made, a line each."""
    for release in releases:
        yield f"model {owner}/{release.name}, tag {TAG}: {release}, its card with this id"
    yield f"data set {owner}/{NAME}: {FOLDER}, names and folds without a picture"
    yield f"static Space {owner}/leukoscope-page: {ON_THE_PAGE}, computed in the visitor's browser"
    if space:
        yield f"Gradio Space {owner}/leukoscope, on ZeroGPU: the demo with these models"
    yield f"collection {owner}/{TITLE}: all of these"


def publish_releases(owner: str, releases: Sequence[Path]) -> Iterator[str]:
    """Publish what lacks the version's tag; yields the id of each."""
    for release in releases:
        to = Destination(f"{owner}/{release.name}", tag=TAG)
        to.require_usable()
        try:
            tags = [tag.name for tag in HfApi().list_repo_refs(to.id).tags]
        except RepositoryNotFoundError:
            tags = []
        except (HTTPError, OSError) as error:
            raise LeukoscopeError(f"{to.id}: {reason(error)}") from None
        if TAG in tags:
            print(f"{HfApi().endpoint}/{to.id} (has the tag {TAG} already; to publish changes, raise the version)")
        else:
            print(publish(release, to))
        yield to.id


def publish_benchmark(owner: str) -> str:
    """Publish the benchmark's repository, rendered with its own address; its id."""
    to = Destination(f"{owner}/{NAME}", kind="dataset")
    with TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copyfile(FOLDER / CELLS, folder / CELLS)
        write_repository(folder, hub_id=to.id, url=f"{HfApi().endpoint}/datasets/{to.id}")
        print(publish_dataset(folder, to))
    return to.id


def publish_spaces(owner: str, models: Sequence[str], runtime: Path | None, *, demo: bool) -> list[str]:
    """Put the static page of a published release, and the demo of all, on the Hub; their ids."""
    ids = [f"{owner}/leukoscope-page", *([f"{owner}/leukoscope"] if demo else [])]
    with TemporaryDirectory() as name:
        folder, hub_id, commit = find_release(f"{owner}/{ON_THE_PAGE}@{TAG}")
        release = read_release(folder, name=hub_id, revision=commit)
        write_static_space(release, Path(name) / ids[0], runtime=runtime)
        if demo:
            write_space([find_model(f"{model}@{TAG}") for model in models], Path(name) / ids[1])
        for id in ids:
            print(push_space(Path(name) / id, id))
    return ids


def collect(owner: str, members: Sequence[Member]) -> None:
    """Make a collection hold these, and leave what else is in it."""
    try:
        collection = HfApi().create_collection(TITLE, namespace=owner, description=ABOUT, exists_ok=True)
        there = {(member.item_type, member.item_id) for member in collection.items}
        for id, kind in members:
            if (kind, id) not in there:
                HfApi().add_collection_item(collection.slug, id, kind, exists_ok=True)
    except (HTTPError, OSError) as error:
        raise LeukoscopeError(f"collection {owner}/{TITLE}: {reason(error)}") from None
    print(collection.url)


def main() -> None:
    """Publish, or print what would be published; a problem that the user can fix is one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("owner", nargs="?", help="your account on the Hub, or an organisation's")
    parser.add_argument("releases", nargs="*", type=Path, help="these alone, without page, Space and collection")
    parser.add_argument("--space", action="store_true", help="the demo as a Space, too")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done; asks and sends nothing")
    parser.add_argument("--onnxruntime_web", type=Path, help="npm's onnxruntime-web (default: two files downloaded)")
    parser.add_argument("--repository", metavar="URL", help="the source's public address, for the files that name it")
    flags = parser.parse_args()
    if not flags.owner and not flags.repository:
        parser.error("give the account to publish to, or --repository")
    if flags.dry_run:
        if flags.repository:
            print(
                f"address of the source: {flags.repository}, in pyproject.toml, CITATION.cff, README.md and notebooks"
            )
        if flags.owner:
            print("\n".join(plan(flags.owner, flags.releases or RELEASES, space=flags.space)))
        return
    try:
        if flags.repository:
            for path in write_address(ROOT, flags.repository):
                print(f"{path.relative_to(ROOT)}: names {flags.repository}; commit it")
        if not flags.owner:
            return
        models = list(publish_releases(flags.owner, flags.releases or RELEASES))
        if not flags.releases:
            benchmark = publish_benchmark(flags.owner)
            spaces = publish_spaces(flags.owner, models, flags.onnxruntime_web, demo=flags.space)
            members: list[Member] = [(id, "model") for id in models]
            members.append((benchmark, "dataset"))
            members += [(id, "space") for id in spaces]
            collect(flags.owner, members)
    except LeukoscopeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
