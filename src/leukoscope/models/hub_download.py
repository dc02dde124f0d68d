"""Models named by Hub id: parse the name, look the repository up, download its files or use the cached copy."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Sequence
from multiprocessing import TimeoutError
from multiprocessing.pool import ThreadPool
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import disable_progress_bars, validate_repo_id
from huggingface_hub.utils.sha import git_hash

from leukoscope import ReleaseError
from leukoscope.files import file_sha256, first_line
from leukoscope.models.metrics import METRICS_FILE
from leukoscope.models.release import (
    CARD_FILE,
    CONFIG_FILE,
    DEFAULT_RELEASE,
    OOD_FILE,
    PREDICTIONS_FOLDER,
    WEIGHTS_FILE,
    local_release,
)
from leukoscope.progress import is_quiet

# The part before the @ is checked by the Hub client's own rule, in `parse_hub_id`.
_HUB_ID = re.compile(r"(?P<id>[^/@\s]+/[^/@\s]+)(@(?P<revision>\w[\w./-]*))?")
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA256_LETTERS = 64
HUB_TIMEOUT = 4.0  # seconds until the Hub counts as unreachable
RELEASE_FILES = (CONFIG_FILE, WEIGHTS_FILE, METRICS_FILE, CARD_FILE, OOD_FILE)
# The predictions of a release name its training cells, so that these are not taken for a test.
KNOWN_CELLS = (*RELEASE_FILES, f"{PREDICTIONS_FOLDER}/*.parquet")
_NOT_OPEN = "not a public model on the Hub; check the name, or ask whoever runs this to offer it"
_log = logging.getLogger("leukoscope")


class HubUnreachable(Exception):
    """The Hub cannot be reached or has an error of its own; the text is the reason."""


def find_release(model: str, patterns: Sequence[str] = RELEASE_FILES) -> tuple[Path, str, str]:
    """Find a release, or download it if `model` is a Hub id; names and errors as of `Predictor.from_pretrained`.

    Returns:
        its folder; its name, without the revision if it is a Hub id; and its Hub commit, "" for a local folder.
    """
    local = local_release(model)
    if local is not None:
        return local, model, ""
    hub_id, revision = parse_hub_id(model)
    folder = fetch_files(hub_id, revision, patterns)
    return folder, hub_id, folder.name


def parse_hub_id(model: str) -> tuple[str, str | None]:
    """Split `owner/name[@revision]` into repository and revision; an error if it is not a Hub id."""
    match = _HUB_ID.fullmatch(model)
    try:
        # The client looks revisions up as file names in its cache.
        if match is None or ".." in model:
            raise HFValidationError
        validate_repo_id(match["id"])
    except HFValidationError:
        raise ReleaseError(
            f"{model}: is neither a folder nor a Hub id; give a release folder, a name that `leukoscope release "
            "list` shows, owner/name or owner/name@revision (a wheel contains only "
            f"{DEFAULT_RELEASE}: for other releases clone the repository, or use the Hub)"
        ) from None
    return match["id"], match["revision"]


def fetch_files(
    hub_id: str, revision: str | None, patterns: Sequence[str] = RELEASE_FILES, *, anonymous: bool = False
) -> Path:
    """Download a Hub repository's files, or find them in the cache: the folder, whose name is the commit.

    Where the Hub cannot be reached, the cached copy is used, with a warning.

    Args:
        hub_id: `owner/name`.
        revision: branch, tag or commit; None for the main branch.
        patterns: names of the files, as of `fnmatch`.
        anonymous: open only public models. No token is sent, a gated model is refused, and so is the cached
            copy while the Hub cannot be reached: this machine's owner may have downloaded it with a token.

    Raises:
        ReleaseError: no such repository or revision, no access to it, no safetensors in it, no network and no
            whole cached copy, or a file whose content is not the one that the Hub names.
    """
    wanted = _with_revision(hub_id, revision)
    try:
        try:
            info = hub_model_info(hub_id, revision, anonymous=anonymous)
        except HubUnreachable as reason:
            if anonymous:
                raise ReleaseError(
                    f"{wanted}: the Hub cannot be reached ({reason}) to ask whether this model is public; try again "
                    "later, or ask whoever runs this to offer the model"
                ) from None
            folder = _cached_copy(hub_id, revision, patterns, reason)
        else:
            if anonymous and info.gated:
                raise ReleaseError(f"{wanted}: {_NOT_OPEN}")
            # Before anything is downloaded.
            if not any(file.rfilename.endswith(".safetensors") for file in info.siblings or ()):
                raise ReleaseError(
                    f"{wanted}: holds no .safetensors file; name a repository with some, or convert its weights: "
                    "pickled ones can run code and are never loaded"
                )
            folder = _snapshot(hub_id, revision, patterns, anonymous=anonymous)
    except (HTTPError, OSError) as error:
        raise ReleaseError(f"{wanted}: {_refusal(error, hub_id, anonymous)}") from None
    _require_intact(folder, wanted)
    return folder


def _with_revision(hub_id: str, revision: str | None) -> str:
    """A repository as a person names it, for messages."""
    return f"{hub_id}@{revision}" if revision else hub_id


def _cached_copy(hub_id: str, revision: str | None, patterns: Sequence[str], reason: HubUnreachable) -> Path:
    """Find the cached copy of a repository, and warn that it is used; an error where a file of it is missing."""
    wanted = _with_revision(hub_id, revision)
    try:
        folder = _snapshot(hub_id, revision, patterns, cached_only=True)
        _require_whole(folder, patterns)
    except LocalEntryNotFoundError:
        raise ReleaseError(
            f"{wanted}: the Hub cannot be reached and no whole copy is cached ({reason}); check the network, "
            "or give a release folder"
        ) from None
    commit = folder.name[:12]
    _log.warning("%s: the Hub cannot be reached (%s); using the copy cached here, %s", wanted, reason, commit)
    return folder


def cached_repository(hub_id: str) -> Path:
    """Where the Hub's client keeps the files of a model repository on this machine, whether or not it has any."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=hub_id, repo_type="model")


def hub_model_info(
    hub_id: str, revision: str | None = None, *, sizes: bool = False, anonymous: bool = False
) -> ModelInfo:
    """Look up a repository within `HUB_TIMEOUT`; `sizes` adds the sizes of its files, `anonymous` sends no token.

    Raises:
        HubUnreachable: no response, or an error of the Hub's own.
        HfHubHTTPError: the Hub refuses: no such repository or revision, no access.
    """
    api = HfApi(token=False if anonymous else None)
    options = {"revision": revision, "timeout": HUB_TIMEOUT, "files_metadata": sizes}
    try:
        # In a thread: the client's own timeout restarts for every address of a host.
        with ThreadPool(1) as pool:
            return pool.apply_async(api.model_info, (hub_id,), options).get(HUB_TIMEOUT)
    except HfHubHTTPError as error:
        if error.response.status_code == 429 or error.response.status_code >= 500:
            raise HubUnreachable(f"it answers HTTP {error.response.status_code}") from None
        raise
    except TimeoutError:
        raise HubUnreachable(f"no answer within {HUB_TIMEOUT:g} s") from None
    except OfflineModeIsEnabled:
        raise HubUnreachable("HF_HUB_OFFLINE is set") from None
    except (HTTPError, OSError) as error:
        raise HubUnreachable(first_line(error)) from None


def _snapshot(
    hub_id: str, revision: str | None, patterns: Sequence[str], *, cached_only: bool = False, anonymous: bool = False
) -> Path:
    # On a terminal the client shows bars, elsewhere nothing.
    if is_quiet() or not sys.stderr.isatty():
        disable_progress_bars()
    folder = snapshot_download(
        hub_id,
        revision=revision,
        allow_patterns=list(patterns),
        etag_timeout=HUB_TIMEOUT,
        local_files_only=cached_only,
        token=False if anonymous else None,
    )
    return Path(folder)


def _require_whole(folder: Path, patterns: Sequence[str]) -> None:
    """Raise `LocalEntryNotFoundError` where a cached copy lacks a file of a release: timm fetches two of them."""
    needed = {CONFIG_FILE}
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        if config["pretrained_cfg"]["tag"] == "leukoscope":
            needed |= {WEIGHTS_FILE, METRICS_FILE}
    except (OSError, ValueError, LookupError, TypeError):
        pass  # missing, damaged, which `_require_intact` tells, or another project's
    missing = [name for name in needed.intersection(patterns) if not (folder / name).is_file()]
    if missing:
        raise LocalEntryNotFoundError(missing[0])


def _require_intact(folder: Path, wanted: str) -> None:
    """Compare cached files with their names, which are checksums: the client itself compares sizes only."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = file.resolve()
        if not _CHECKSUM.fullmatch(blob.name) or blob.name == _checksum(blob):
            continue
        # Otherwise every later download would take it for whole.
        file.unlink()
        blob.unlink(missing_ok=True)
        raise ReleaseError(
            f"{wanted}: {file.relative_to(folder)} is damaged (its checksum is not the one the Hub names); it was "
            "removed from the cache, try again"
        )


def _checksum(blob: Path) -> str:
    """What the Hub names a file by: SHA-256 for a large one, git's own hash for the others."""
    if len(blob.name) == _SHA256_LETTERS:
        return file_sha256(blob)
    return git_hash(blob.read_bytes())


def _refusal(error: Exception, hub_id: str, anonymous: bool) -> str:
    if anonymous and isinstance(error, RepositoryNotFoundError):  # a gated one is of this kind, too
        return _NOT_OPEN
    if isinstance(error, GatedRepoError):
        return f"access is restricted; accept its terms on https://huggingface.co/{hub_id} and run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return "no such folder, and no such model on the Hub; check the name, or `hf auth login` if it is private"
    if isinstance(error, RevisionNotFoundError):
        return "the Hub has this model but not this revision; name one of its branches, tags or commits"
    return f"cannot be fetched from the Hub ({first_line(error)}); try again, or give a release folder"
