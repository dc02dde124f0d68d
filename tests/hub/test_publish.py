"""Publishing refuses early what would fail after hours of training."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from leukoscope import LeukoscopeError
from leukoscope.hub.publish import check_can_publish, publish

MAY_NOT_WRITE = (
    "your token may not write there; make one that may at https://huggingface.co/settings/tokens, or name a repository "
    "of your own"
)


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No Hub token, neither in the environment nor on disk."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))


@pytest.mark.parametrize(
    "hub_model_id", [None, "", "only-a-name", "one/two/three", "lab/", "lab/a b", "lab/a--b", "lab/a.git"]
)
def test_refuses_a_missing_or_malformed_repository(hub_model_id: str | None) -> None:
    with pytest.raises(LeukoscopeError, match="give the repository to publish to as owner/name"):
        check_can_publish(hub_model_id)


@pytest.mark.usefixtures("no_token")
def test_refuses_without_a_token() -> None:
    with pytest.raises(LeukoscopeError, match="no Hub token found; run `hf auth login` or set HF_TOKEN"):
        check_can_publish("lab/cells")


class _Hub(BaseHTTPRequestHandler):
    """Lets through, or refuses, as the Hub does for the token: create, look up, ask to write."""

    # repository → answers to creating it, to looking it up and to the question whether the token may write there
    answers: ClassVar = {
        "new": (200, 200, 200),
        "mine": (409, 200, 200),
        "bad-token": (401, 401, 401),
        "reads-only": (403, 404, 403),
        "reads-only-there-already": (403, 200, 403),
        "busy": (503, 200, 200),
    }
    created: ClassVar[list[dict[str, object]]] = []

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.created.append(asked)
        if asked["name"] == "hangs-up":
            self.close_connection = True
        else:
            self._answer(self.answers[asked["name"]][0])

    def do_GET(self) -> None:
        name = self.path.split("/")[4]
        _, looked_up, write = self.answers.get(name, (0, 404, 0))
        self._answer(write if self.path.endswith("/auth-check/write") else looked_up)

    def _answer(self, status: int) -> None:
        body = json.dumps({"id": "lab/new", "url": "https://huggingface.co/lab/new"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, object]]]:
    """A Hub on this machine's loopback and a token for it; the repositories it was asked to create."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    _Hub.created.clear()
    yield _Hub.created
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["new", "mine"])
@pytest.mark.parametrize(("private", "visibility"), [(True, "private"), (False, "public")])
def test_the_repository_is_made_before_training(
    hub: list[dict[str, object]], name: str, private: bool, visibility: str
) -> None:
    check_can_publish(f"lab/{name}", private=private)
    assert [(repo["organization"], repo["name"], repo["visibility"]) for repo in hub] == [("lab", name, visibility)]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("bad-token", "the Hub does not accept your token; run `hf auth login` or set HF_TOKEN to a valid one"),
        ("reads-only", MAY_NOT_WRITE),
        ("reads-only-there-already", MAY_NOT_WRITE),
        ("busy", "the Hub refuses to make this repository (HTTP 503); try again, or name another one"),
    ],
)
def test_what_the_hub_refuses_is_said_before_training(name: str, problem: str) -> None:
    with pytest.raises(LeukoscopeError) as refused:
        check_can_publish(f"lab/{name}")
    assert str(refused.value) == f"lab/{name}: {problem}"


@pytest.mark.usefixtures("hub")
def test_a_hub_that_hangs_up_is_one_clear_message(tiny_release: Path) -> None:
    with pytest.raises(LeukoscopeError, match=r"^lab/hangs-up: the Hub does not answer \(.+\); try again$"):
        check_can_publish("lab/hangs-up")
    with pytest.raises(LeukoscopeError, match=r"^lab/hangs-up: publishing failed \(RemoteProtocolError: .+\); the rel"):
        publish(tiny_release, "lab/hangs-up")


def test_without_a_network_training_does_not_start(
    hub: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch, tiny_release: Path
) -> None:
    # Nobody listens on the discard port.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LeukoscopeError) as refused:
        check_can_publish("lab/new")
    assert str(refused.value) == (
        "lab/new: the Hub cannot be reached; check the network (and HF_HUB_OFFLINE), or train without --push_to_hub"
    )
    with pytest.raises(
        LeukoscopeError, match=r"^lab/new: publishing failed \(ConnectError: .+\); the release is whole"
    ):
        publish(tiny_release, "lab/new")
    assert hub == []


def test_unreachable_hub_leaves_the_release_whole(monkeypatch: pytest.MonkeyPatch, tiny_release: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    before = sorted(path.name for path in tiny_release.iterdir())
    with pytest.raises(LeukoscopeError, match=r"lab/cells: publishing failed .* the release is whole in"):
        publish(tiny_release, "lab/cells")
    assert sorted(path.name for path in tiny_release.iterdir()) == before
