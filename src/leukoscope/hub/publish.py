"""Publish a release (or a Space) on the Hugging Face Hub in one commit, and ask beforehand whether that may be done."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from leukoscope import LeukoscopeError
from leukoscope.hub.contents import belongs_to_release, travelling_files
from leukoscope.hub.patience import patiently
from leukoscope.inference.hub_files import HubUnreachable, ask_hub

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, HfApi

_MAY_NOT_WRITE = (
    "your token may not write there; make one that may at https://huggingface.co/settings/tokens, or name a repository "
    "of your own"
)


@dataclass(frozen=True)
class Destination:
    """Where on the Hub a release, or a Space, goes.

    Attributes:
        hub_model_id: the repository, `owner/name`; made where it does not exist.
        revision: the branch, made where it does not exist; "" for the main one.
        private: whether a new repository is private.
        create_pr: propose the release as a pull request to an existing repository instead of changing it.
        tag: a name for the published version that stays with it, like "v1"; "" for none.
        kind: what the repository is.
    """

    hub_model_id: str | None
    revision: str = ""
    private: bool = False
    create_pr: bool = False
    tag: str = ""
    kind: Literal["model", "space"] = "model"

    @property
    def id(self) -> str:
        """The repository, once `require_usable` has seen it."""
        return self.hub_model_id or ""

    def require_usable(self) -> None:
        """Refuse what no Hub needs to be asked about.

        Raises:
            LeukoscopeError: no repository or one that is no Hub id, flags that exclude each other, no token.
        """
        from huggingface_hub import get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            if "/" not in self.id:
                raise HFValidationError
            validate_repo_id(self.id)
        except HFValidationError:
            flag = "--push" if self.kind == "space" else "--hub_model_id"
            raise LeukoscopeError(
                f"{flag} {self.hub_model_id}: give the repository to publish to as owner/name (letters, "
                "digits, - _ and ., at most 96 in all)"
            ) from None
        if self.create_pr and (self.revision or self.tag):
            other = "a revision" if self.revision else "a tag"
            raise LeukoscopeError(
                f"{self.id}: a pull request is made to the main branch and named when it is merged; leave out {other}, "
                "or the pull request"
            )
        if get_token() is None:
            raise LeukoscopeError(f"{self.id}: no Hub token found; run `hf auth login` or set HF_TOKEN")

    def push_command(self, release: Path) -> str:
        """The command that publishes `release` there."""
        words = ["leukoscope", "push", str(release), "--hub_model_id", self.id]
        words += ["--revision", self.revision] * bool(self.revision) + ["--tag", self.tag] * bool(self.tag)
        return shlex.join(words + ["--private"] * self.private + ["--create_pr"] * self.create_pr)


@dataclass(frozen=True)
class Published:
    """What came of publishing.

    Attributes:
        address: of the repository's page, or of the pull request.
        commit: the published version, 40 hexadecimal digits.
        is_new: False where the repository held these very files already, so that nothing was sent.
    """

    address: str
    commit: str
    is_new: bool

    def __str__(self) -> str:
        """One line for the terminal."""
        note = "" if self.is_new else "; these files were there already, nothing was sent"
        return f"{self.address} (commit {self.commit[:12]}{note})"


def check_can_publish(to: Destination) -> None:
    """Refuse early what would fail after hours of training, by making the repository and asking to write there.

    Raises:
        LeukoscopeError: as `Destination.require_usable`; no network, a token that the Hub does not accept or that may
            not write there, no repository to propose to, or a tag that is taken; with the fix.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    to.require_usable()
    if not _hub_answers(to.id):
        raise LeukoscopeError(
            f"{to.id}: the Hub cannot be reached; check the network (and HF_HUB_OFFLINE), or train without "
            "--push_to_hub"
        )
    api = HfApi()
    try:
        patiently(lambda: _ask_to_write(api, to))
        taken = to.tag and to.tag in _tags(api, to.id)
    except (HTTPError, OSError) as error:
        raise LeukoscopeError(f"{to.id}: {_reason(error)}") from None
    if taken:
        raise LeukoscopeError(f"{to.id}: has the tag {to.tag} already, and a tag stays where it is; name another one")


def publish(release: Path, to: Destination) -> Published:
    """Upload a release's files in one commit; what the repository has already is not sent again.

    Raises:
        LeukoscopeError: as `Destination.require_usable`; a folder that is no release; or the Hub refused or could not
            be reached, with the command to go on with. The local release is only read.
    """
    to.require_usable()
    whole = f"The release is whole in {release}; go on with: {to.push_command(release)}"
    return send(travelling_files(release), to, belongs=belongs_to_release, whole=whole)


def send(files: Mapping[str, Path], to: Destination, *, belongs: Callable[[str], bool], whole: str) -> Published:
    """Make a repository hold these files, in one commit; what it has already is not sent again.

    Args:
        files: path in the repository → file.
        to: as `Destination.require_usable` leaves it.
        belongs: whether a path in the repository is of the kind sent here, and goes when it is not among `files`.
        whole: what to add to the message when it fails: that nothing is lost, and how to go on.

    Raises:
        LeukoscopeError: the Hub refused or could not be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api = HfApi()
    try:
        patiently(lambda: _ask_to_write(api, to))
        if to.revision and not to.revision.startswith("refs/pr/"):
            patiently(lambda: api.create_branch(to.id, branch=to.revision, repo_type=to.kind, exist_ok=True))
        before = patiently(lambda: api.repo_info(to.id, revision=to.revision or None, repo_type=to.kind)).sha
        commit = patiently(lambda: _commit(api, to, files, belongs), repeatable=not to.create_pr)
        if to.tag:
            patiently(lambda: _tag(api, to, commit.oid))
    # The client wraps what happens to an upload in RuntimeError, and what the Hub minds in a card in ValueError.
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise LeukoscopeError(f"{to.id}: publishing failed: {_reason(error)}. {whole}") from None
    page = f"{api.endpoint}/{'spaces/' * (to.kind == 'space')}{to.id}" + (f"/tree/{to.revision}" if to.revision else "")
    return Published(commit.pr_url or page, commit.oid, is_new=commit.oid != before)


def _hub_answers(hub_model_id: str) -> bool:
    """Whether the Hub can be asked at all; a refusal is an answer, too."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        ask_hub(hub_model_id)
    except HfHubHTTPError:
        return True
    except HubUnreachable:
        return False
    return True


def _ask_to_write(api: HfApi, to: Destination) -> None:
    """Make the repository where there is none; raise where the token may not do what is to be done."""
    if to.create_pr:
        # Whoever may read a repository may propose a change to it, but not with a token that only reads.
        api.auth_check(to.id, repo_type=to.kind)
        if api.whoami().get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise PermissionError(_MAY_NOT_WRITE)
        return
    sdk = "gradio" if to.kind == "space" else None
    api.create_repo(to.id, repo_type=to.kind, space_sdk=sdk, private=to.private, exist_ok=True)
    # A repository that exists already is no proof: a token that only reads would have come as far.
    api.auth_check(to.id, repo_type=to.kind, write=True)


def _commit(api: HfApi, to: Destination, files: Mapping[str, Path], belongs: Callable[[str], bool]) -> CommitInfo:
    """One commit that makes the repository hold these files.

    Prepared anew for each try: after one whose answer was lost, the Hub says that nothing is left to be done.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    there = api.list_repo_files(to.id, revision=to.revision or None, repo_type=to.kind)
    outdated = sorted({name for name in there if belongs(name)} - set(files))
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()
    ]
    operations += [CommitOperationDelete(path_in_repo=name) for name in outdated]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
        return api.create_commit(
            to.id,
            operations,
            commit_message=f"Publish {'Space' if to.kind == 'space' else 'release'}",
            repo_type=to.kind,
            revision=to.revision or None,
            create_pr=to.create_pr,
        )


def _tag(api: HfApi, to: Destination, commit: str) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api.create_tag(to.id, tag=to.tag, revision=commit, repo_type=to.kind)
    except HfHubHTTPError as error:
        if error.response.status_code != 409:
            raise
        named = _tags(api, to.id).get(to.tag, "")
        if named != commit:
            raise ValueError(
                f"the files are there (commit {commit[:12]}), but the tag {to.tag} names commit {named[:12]} and a tag "
                "stays where it is; name another one"
            ) from None


def _tags(api: HfApi, hub_model_id: str) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(hub_model_id).tags}


def _reason(error: Exception) -> str:
    """What went wrong and what to do about it, in one line."""
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    # An upload's own error names the file, what happened to it is its cause.
    cause = error.__cause__ if isinstance(error, RuntimeError) else None
    if isinstance(cause, Exception):
        return f"{str(error).rstrip('.')} ({_reason(cause)})"
    if not isinstance(error, HfHubHTTPError):
        text = (str(error) or type(error).__name__).strip().splitlines()[0].rstrip(".")
        return (
            text if isinstance(error, ValueError | PermissionError) else f"the Hub does not answer ({text}); try again"
        )
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such branch or pull request; name another one"
    status = error.response.status_code
    if status == 401:
        return "the Hub does not accept your token; run `hf auth login` or set HF_TOKEN to a valid one"
    if status in (403, 404):
        return _MAY_NOT_WRITE
    if status == 429:
        return "the Hub asks for a pause (HTTP 429); try again later"
    return f"the Hub fails (HTTP {status}); try again"
