"""Publish a release directory to the Hugging Face Hub, in one commit."""

from __future__ import annotations

from pathlib import Path

from leukoscope import LeukoscopeError
from leukoscope.inference.hub_files import hub_answers


def check_can_publish(hub_model_id: str | None, *, private: bool = False) -> None:
    """Refuse early what would fail after hours of training, by making the repository and asking to write there.

    Args:
        hub_model_id: `owner/name`; created empty on the Hub where it does not exist yet.
        private: whether a new repository is private.

    Raises:
        LeukoscopeError: no repository named, no Hub id, no token, no network, a token that the Hub does not accept or
            that may not write there; with the fix.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    hub_model_id = _require_id_and_token(hub_model_id)
    if not hub_answers(hub_model_id):
        raise LeukoscopeError(
            f"{hub_model_id}: the Hub cannot be reached; check the network (and HF_HUB_OFFLINE), or train without "
            "--push_to_hub"
        )
    try:
        HfApi().create_repo(hub_model_id, private=private, exist_ok=True)
        # A repository that exists already is no proof: a token that only reads would have come as far.
        HfApi().auth_check(hub_model_id, write=True)
    except HfHubHTTPError as error:
        raise LeukoscopeError(f"{hub_model_id}: {_refusal(error.response.status_code)}") from None
    except (HTTPError, OSError) as error:
        raise LeukoscopeError(f"{hub_model_id}: the Hub does not answer ({_reason(error)}); try again") from None


def publish(release: Path, hub_model_id: str | None, *, private: bool = False) -> str:
    """Upload every file of a release and return the repository's address.

    Raises:
        LeukoscopeError: the Hub refused or could not be reached; the local release is untouched.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    hub_model_id = _require_id_and_token(hub_model_id)
    api = HfApi()
    try:
        url = api.create_repo(hub_model_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=hub_model_id, folder_path=release, commit_message="Publish release")
    except (HTTPError, OSError) as error:
        raise LeukoscopeError(
            f"{hub_model_id}: publishing failed ({type(error).__name__}: {_reason(error)}); the release is whole in "
            f"{release}, publish it again when the Hub answers"
        ) from None
    return str(url)


def _require_id_and_token(hub_model_id: str | None) -> str:
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if not hub_model_id or "/" not in hub_model_id:
            raise HFValidationError
        validate_repo_id(hub_model_id)
    except HFValidationError:
        raise LeukoscopeError(
            f"--hub_model_id {hub_model_id}: give the repository to publish to as owner/name (letters, digits, "
            "- _ and ., at most 96 in all)"
        ) from None
    if get_token() is None:
        raise LeukoscopeError("--push_to_hub: no Hub token found; run `hf auth login` or set HF_TOKEN")
    return hub_model_id


def _refusal(status: int) -> str:
    if status == 401:
        return "the Hub does not accept your token; run `hf auth login` or set HF_TOKEN to a valid one"
    if status in (403, 404):
        return (
            "your token may not write there; make one that may at https://huggingface.co/settings/tokens, or name a "
            "repository of your own"
        )
    return f"the Hub refuses to make this repository (HTTP {status}); try again, or name another one"


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
