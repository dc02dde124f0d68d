"""Models named by Hub id: what the name means, whether the Hub can be asked, and where the files lie once fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from leukoscope import LeukoscopeError
from leukoscope.models.release import CARD, CONFIG, GUARD, METRICS, WEIGHTS

# What stands before the @ is judged by the Hub client's own rule, in `parse_hub_id`.
_HUB_ID = re.compile(r"(?P<id>[^/@\s]+/[^/@\s]+)(@(?P<revision>\w[\w./-]*))?")
HUB_TIMEOUT = 5.0  # seconds
RELEASE_FILES = (CONFIG, WEIGHTS, METRICS, CARD, GUARD)


def release_folder(model: str) -> Path:
    """Where the files of a release lie on this machine, downloaded first where it is named by Hub id.

    Args:
        model: a release folder, `owner/name` or `owner/name@revision`; a path that exists wins over a Hub id.

    Raises:
        LeukoscopeError: as `Predictor.from_pretrained`.
    """
    return Path(model) if Path(model).exists() else fetch_files(*parse_hub_id(model))


def parse_hub_id(model: str, revision: str | None = None) -> tuple[str, str | None]:
    """Split `owner/name[@revision]` into repository and revision.

    Raises:
        LeukoscopeError: no Hub id, or two different revisions.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    match = _HUB_ID.fullmatch(model)
    try:
        # The client looks revisions up as file names in its cache.
        if match is None or ".." in model:
            raise HFValidationError
        validate_repo_id(match["id"])
    except HFValidationError:
        raise LeukoscopeError(
            f"{model}: no such folder, and no Hub id either; give a release folder, owner/name or owner/name@revision"
        ) from None
    if revision and match["revision"] and revision != match["revision"]:
        raise LeukoscopeError(f"{model}: names another revision than revision={revision!r}; give only one of them")
    return match["id"], revision or match["revision"]


def fetch_files(hub_id: str, revision: str | None, patterns: Sequence[str] = RELEASE_FILES) -> Path:
    """The folder of a Hub repository's files, downloaded or cached; its name is the commit.

    Args:
        patterns: which files are wanted.

    Raises:
        LeukoscopeError: no such repository or revision, no access to it, or no network and no whole cached copy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    wanted = f"{hub_id}@{revision}" if revision else hub_id
    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=list(patterns),
            etag_timeout=HUB_TIMEOUT,
            local_files_only=not hub_answers(hub_id, revision),
        )
    except GatedRepoError:
        problem = f"access is restricted; accept its terms on https://huggingface.co/{hub_id} and run `hf auth login`"
    except RepositoryNotFoundError:
        problem = "no such folder, and no such model on the Hub; check the name, or `hf auth login` if it is private"
    except RevisionNotFoundError:
        problem = "the Hub has this model but not this revision; name one of its branches, tags or commits"
    except LocalEntryNotFoundError:
        problem = "the Hub cannot be reached and no whole copy is cached; check the network, or give a release folder"
    except (HTTPError, OSError) as error:
        # The full text of a file system's error holds the path of the cache.
        reason = (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0]
        problem = f"cannot be fetched from the Hub ({reason}); try again, or give a release folder"
    else:
        return Path(folder)
    raise LeukoscopeError(f"{wanted}: {problem}")


def hub_answers(hub_id: str, revision: str | None = None) -> bool:
    """Whether the Hub can be asked at all; a refusal is an answer, too."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    # Asked with a limit of its own: on a network that swallows packets the download itself would wait for ever.
    try:
        HfApi().model_info(hub_id, revision=revision, timeout=HUB_TIMEOUT)
    except HfHubHTTPError:
        return True
    except (HTTPError, OSError):
        return False
    return True
