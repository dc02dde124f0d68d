"""Publish a release, a data set or a Space on the Hugging Face Hub, and check before training that this will work.

The client repeats requests that read or upload. Where another one fails, the same command goes on: what the Hub has
already is not sent again.
"""

from __future__ import annotations

import re
import shlex
import shutil
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, SpaceHardware, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from leukoscope import ReleaseError
from leukoscope.files import disk_errors
from leukoscope.models.hub_download import HubUnreachable, hub_model_info
from leukoscope.models.metrics import METRICS_FILE
from leukoscope.models.release import (
    CARD_FILE,
    CONFIG_FILE,
    FIGURES_FOLDER,
    OOD_FILE,
    PREDICTIONS_FOLDER,
    WEIGHTS_FILE,
    read_release,
)
from leukoscope.reports.card import CARD_PLOTS, EXAMPLE_PICTURES, draw_examples, render_card

_MAY_NOT_WRITE = (
    "your token may not write there; make one that may at https://huggingface.co/settings/tokens, or name a repository "
    "of your own"
)

DATASET_SUFFIXES = (".csv", ".json", ".md", ".yaml")
"""Of the files that a data set of ours may hold."""


@dataclass(frozen=True)
class Destination:
    """Where on the Hub a release, a data set or a Space goes.

    Attributes:
        id: the repository, `owner/name`; made where it does not exist.
        revision: the branch, made where it does not exist; "" for the main one.
        private: whether a new repository is private.
        tag: a name for the published version that stays with it, like "v1"; "" for none.
        sdk: what runs a Space, "" for what is none; a new one of Gradio runs on ZeroGPU.
    """

    id: str
    revision: str = ""
    private: bool = False
    tag: str = ""
    kind: Literal["model", "dataset", "space"] = "model"
    sdk: Literal["gradio", "static", ""] = ""

    def require_usable(self) -> None:
        """Refuse, without asking the Hub, what is no Hub id, and a missing token."""
        try:
            if "/" not in self.id:
                raise HFValidationError
            validate_repo_id(self.id)
        except HFValidationError:
            raise ReleaseError(
                f"{self.id!r}: give the repository to publish to as owner/name (letters, digits, - _ and ., at most 96 "
                "in all)"
            ) from None
        if get_token() is None:
            raise ReleaseError(f"{self.id}: no Hub token found; run `hf auth login` or set HF_TOKEN")


@dataclass(frozen=True)
class Published:
    """Result of a push: a page, and the commit published there."""

    address: str
    commit: str

    def __str__(self) -> str:
        """One line for the terminal."""
        return f"{self.address} (commit {self.commit[:12]})"


def check_can_publish(to: Destination) -> None:
    """Refuse early what would fail after hours of work, by making the repository and checking write access.

    Raises:
        LeukoscopeError: as `Destination.require_usable`; no network, a token that the Hub does not accept or that may
            not write there, or a tag that is taken; with the fix.
    """
    to.require_usable()
    try:
        with suppress(HfHubHTTPError):  # the repository may not exist yet
            hub_model_info(to.id)  # gives up soon where the Hub is silent
        _require_access(HfApi(), to)
    except (HTTPError, OSError, HubUnreachable) as error:
        raise ReleaseError(f"{to.id}: {reason(error)}") from None


def publish(release: Path, to: Destination, *, licence: str = "") -> Published:
    """Upload a release, with its card and the Hub's example pictures made for that address.

    What the repository has already is not sent again. The local release is only read. `licence` is that of the weights.

    Raises:
        LeukoscopeError: as `Destination.require_usable`; a folder that is no release, or a damaged one; or the Hub
            refused or could not be reached.
    """
    to.require_usable()
    files = release_contents(release)
    read_release(release)
    problem = f"{gettempdir()}: the upload cannot be prepared there"
    with disk_errors(problem, "set TMPDIR to another folder"), TemporaryDirectory(prefix="leukoscope-") as scratch:
        folder = Path(scratch)
        for place, path in files.items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / place)
        draw_examples(folder)
        (folder / CARD_FILE).write_text(render_card(folder, hub_id=to.id, licence=licence), encoding="utf-8")
        again = f"leukoscope release push {shlex.quote(str(release))} --hub_model_id {to.id}"
        hint = f"The release is whole in {release}; go on, with your other flags, by: {again}"
        return upload(folder, to, replaces=(*RELEASE_PATTERNS, EXAMPLE_PICTURES), hint=hint)


def publish_dataset(folder: Path, to: Destination) -> Published:
    """Upload a data set that consists of tables and texts; what the repository has already is not sent again.

    Raises:
        LeukoscopeError: as `Destination.require_usable`; a file of another kind, such as a picture; or the Hub refused
            or could not be reached.
    """
    to.require_usable()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in DATASET_SUFFIXES:
            raise ReleaseError(
                f"{path}: is not a table or text ({', '.join(DATASET_SUFFIXES)}); pictures are not published, remove it"
            )
    patterns = [f"*{suffix}" for suffix in DATASET_SUFFIXES]
    return upload(folder, to, replaces=patterns, hint="Nothing is lost: give the same command again")


def upload(folder: Path, to: Destination, *, replaces: Sequence[str], hint: str) -> Published:
    """Make a repository hold a folder's files; what it has already is not sent again.

    Args:
        folder: nothing but what is to be uploaded.
        replaces: patterns of the paths in the repository that are of the kind uploaded here; those that the folder
            lacks are deleted.
        hint: added to the error where the Hub refuses or cannot be reached: that nothing is lost, and how to go on.
    """
    api = HfApi()
    what = {"model": "release", "dataset": "data set", "space": "Space"}[to.kind]
    revision = to.revision or None
    try:
        _require_access(api, to)
        if to.revision:
            api.create_branch(to.id, branch=to.revision, repo_type=to.kind, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            commit = api.upload_folder(
                repo_id=to.id,
                folder_path=folder,
                commit_message=f"Publish {what}",
                repo_type=to.kind,
                revision=revision,
                delete_patterns=list(replaces),
            )
        if to.tag:
            api.create_tag(to.id, tag=to.tag, revision=commit.oid, repo_type=to.kind)
    # The client wraps what happens to an upload in RuntimeError, and what the Hub minds in a card in ValueError.
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise ReleaseError(f"{to.id}: publishing failed: {reason(error)}. {hint}") from None
    page = str(commit.repo_url)
    if to.revision:
        page += f"/tree/{to.revision}"
    return Published(page, commit.oid)


def _require_access(api: HfApi, to: Destination) -> None:
    """Make the repository where there is none.

    Raises:
        PermissionError: the token may not do what is to be done.
        LeukoscopeError: the tag is taken.
    """
    api.create_repo(
        to.id,
        repo_type=to.kind,
        space_sdk=to.sdk or None,
        space_hardware=SpaceHardware.ZERO_A10G if to.sdk == "gradio" else None,
        private=to.private or None,  # unless a flag says it, an organisation's own default decides who sees it
        exist_ok=True,
    )
    # A repository that exists already is no proof: a token that only reads would have come as far.
    api.auth_check(to.id, repo_type=to.kind, write=True)
    if to.private and not api.repo_info(to.id, repo_type=to.kind).private:
        raise PermissionError(
            f"this {to.kind} is public already; leave out the flag for a private one, or name another repository"
        )
    if to.tag and to.tag in {tag.name for tag in api.list_repo_refs(to.id, repo_type=to.kind).tags}:
        raise ReleaseError(f"{to.id}: has the tag {to.tag} already, and tags are not moved; name another one")


def reason(error: Exception) -> str:
    """What went wrong and what to do about it, in one line."""
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such revision; name another one"
    if isinstance(error, RepositoryNotFoundError):
        return "the Hub has no such repository, or none that your token may see; check the name and the token"
    if isinstance(error, HfHubHTTPError):
        return _reason_of_status(error.response.status_code, (error.server_message or "").strip().partition("\n")[0])
    sentence = (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        return f"{sentence} ({reason(error.__cause__)})"  # an upload names the file, its cause what happened to it
    if isinstance(error, ValueError | PermissionError):
        return sentence
    return f"the Hub does not answer ({sentence}); try again"


def _reason_of_status(status: int, message: str) -> str:
    """An HTTP status of the Hub and its first line, with what to do about it."""
    by_hub = f" (the Hub: {message.rstrip('.')})" if message else ""
    if status == 401:
        return "the Hub does not accept your token; run `hf auth login` or set HF_TOKEN to a valid one"
    if status in (403, 404):
        return f"{_MAY_NOT_WRITE}{by_hub}"
    if status == 429:
        return "the Hub asks for a pause (HTTP 429); try again later"
    if status < 500 and message:
        return f"the Hub refuses it (HTTP {status}: {message.rstrip('.')})"
    return f"the Hub fails (HTTP {status}); try again"


RELEASE_PATTERNS = (
    *(CONFIG_FILE, WEIGHTS_FILE, METRICS_FILE, CARD_FILE, OOD_FILE),
    *(f"{FIGURES_FOLDER}/{name}.png" for name in CARD_PLOTS),
    f"{PREDICTIONS_FOLDER}/*.parquet",
)
# What a column of predictions may be called, and its type.
_COLUMNS = ("(cell_id|subject|label|pixel_hash) string", "(p_.*|area) (halffloat|float|double)", r"fold u?int\d+")


def release_contents(release: Path) -> dict[str, Path]:
    """Path in the repository → file, for all that is published.

    Raises:
        LeukoscopeError: a missing file, or predictions that hold more than predictions.
    """
    paths = {path.relative_to(release).as_posix(): path for path in sorted(release.rglob("*")) if path.is_file()}
    files = {name: path for name, path in paths.items() if is_release_file(name)}
    for name in (CONFIG_FILE, WEIGHTS_FILE, METRICS_FILE):
        if name not in files:
            raise ReleaseError(f"{release}: has no {name}; give the folder of a release")
    for path in files.values():
        if path.suffix == ".parquet":
            _require_predictions_only(path)
    return files


def is_release_file(name: str) -> bool:
    """Whether a path in a repository is one that a release may have; files of other kinds are never deleted."""
    return any(fnmatchcase(name, pattern) for pattern in RELEASE_PATTERNS)


def _require_predictions_only(path: Path) -> None:
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise ReleaseError(f"{path}: cannot be read ({error}); make the release again") from None
    for column in schema:
        is_prediction = any(re.fullmatch(names, f"{column.name} {column.type}") for names in _COLUMNS)
        if is_prediction and column.name == "pixel_hash":
            # Nothing longer than a hash: a column of that name may not hold pixels.
            hashes = pq.read_table(path)["pixel_hash"].to_pylist()
            is_prediction = all(re.fullmatch(r"[0-9a-f]{16}|", text or "") for text in hashes)
        if not is_prediction:
            raise ReleaseError(
                f"{path}: column {column.name} ({column.type}) is not a prediction; only cell ids, subjects, labels, "
                "areas, folds, hashes and probabilities are published — remove it"
            )
