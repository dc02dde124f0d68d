"""Publish a release directory to the Hugging Face Hub, in one commit."""

from __future__ import annotations

from pathlib import Path

from leukoscope import LeukoscopeError


def check_can_publish(hub_model_id: str | None) -> None:
    """Refuse early what would fail after hours of training: no repository named, or no token.

    Raises:
        LeukoscopeError: saying which of the two, and the fix.
    """
    from huggingface_hub import get_token

    if not hub_model_id or hub_model_id.count("/") != 1:
        raise LeukoscopeError(f"--hub_model_id {hub_model_id}: give the repository to publish to as owner/name")
    if get_token() is None:
        raise LeukoscopeError("--push_to_hub: no Hub token found; run `hf auth login` or set HF_TOKEN")


def publish(release: Path, hub_model_id: str | None, *, private: bool = False) -> str:
    """Upload every file of a release and return the repository's address.

    Raises:
        LeukoscopeError: the Hub refused or could not be reached; the local release is untouched.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_can_publish(hub_model_id)
    assert hub_model_id is not None
    api = HfApi()
    try:
        url = api.create_repo(hub_model_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=hub_model_id, folder_path=release, commit_message="Publish release")
    except (HfHubHTTPError, OSError) as error:
        raise LeukoscopeError(
            f"{hub_model_id}: publishing failed ({type(error).__name__}: {str(error).splitlines()[0]}); the release "
            f"is whole in {release}, publish it again when the Hub answers"
        ) from None
    return str(url)
