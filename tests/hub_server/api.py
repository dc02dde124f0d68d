"""The part of the Hub's HTTP API that its clients speak to create, commit to, list and read repositories.

Each handler takes the request and the parts of its path. The rules enforced here (who may write, what a tag may name)
are this server's own; the client checks none of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hub_server.storage import Commit, File, Refused, Repository, Storage, is_large

USER = "lab"
WRITE_TOKEN, READ_TOKEN = "hf_may_write", "hf_may_read"
_ROLES = {WRITE_TOKEN: "write", READ_TOKEN: "read"}


class Api:
    """The handlers, over one storage."""

    def __init__(self, storage: Storage):
        self.storage = storage

    # --- who asks ---------------------------------------------------------------------------------------------------

    async def whoami(self, request: Request) -> Response:
        role = _role(request)
        if not role:
            raise Refused(401, "", "Invalid username or password.")
        token = {"displayName": "test", "role": role}
        return JSONResponse({"name": USER, "type": "user", "orgs": [], "auth": {"accessToken": token}})

    async def auth_check(self, request: Request, id: str, write: str | None) -> Response:
        self._repository(request, id)
        if write:
            _require_write(request, id)
        return JSONResponse({})

    def _repository(self, request: Request, id: str) -> Repository:
        repository = self.storage.repositories.get(id)
        if repository is None or (repository.private and not (_role(request) and _is_ours(id))):
            raise Refused(404 if _role(request) else 401, "RepoNotFound", "Repository not found")
        return repository

    # --- repositories and their names for commits -------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        asked = await request.json()
        id = f"{asked.get('organization') or USER}/{asked['name']}"
        if asked.get("type") == "space":
            if asked.get("sdk") not in ("gradio", "docker", "static"):
                raise Refused(400, "", "a Space needs an sdk")
            id = f"spaces/{id}"
        if asked.get("type") == "dataset":
            id = f"datasets/{id}"
        _require_write(request, id)
        body = {"url": f"{_base(request)}/{id}", "name": id, "id": id}
        if id in self.storage.repositories:
            return JSONResponse(body | {"error": "You already created this model repo"}, 409)
        default = "private" if self.storage.private_by_default else "public"
        self.storage.create(id, asked.get("visibility", default) == "private").hardware = asked.get("hardware", "")
        return JSONResponse(body)

    async def info(self, request: Request, id: str, revision: str | None) -> Response:
        repository = self._repository(request, id)
        commit = repository.at(revision or "main")
        card = self._front_matter(commit)
        # The Hub tells sizes only to who asks for them.
        blobs = "blobs" in request.query_params
        return JSONResponse(
            {
                "id": id.removeprefix("datasets/"),
                "modelId": id,
                "sha": commit.oid,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "tags": card.get("tags", []),
                "pipeline_tag": card.get("pipeline_tag"),
                "library_name": card.get("library_name"),
                "cardData": json.loads(json.dumps(card, default=str)),
                "siblings": [
                    {"rfilename": path} | ({"size": file.size} if blobs else {}) for path, file in commit.files.items()
                ],
                "lastModified": "2026-01-01T00:00:00.000Z",
            }
        )

    def _front_matter(self, commit: Commit) -> dict[str, Any]:
        card = commit.files.get("README.md")
        text = self.storage.content(card.sha256).decode() if card else ""
        return yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}

    async def refs(self, request: Request, id: str) -> Response:
        repository = self._repository(request, id)

        def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"{prefix}{n}", "targetCommit": oid} for n, oid in names.items()]

        found = {"branches": listed(repository.branches, "refs/heads/"), "tags": listed(repository.tags, "refs/tags/")}
        return JSONResponse(found | {"converts": [], "pullRequests": []})

    async def tag(self, request: Request, id: str, revision: str) -> Response:
        repository, name = self._writable(request, id), (await request.json())["tag"]
        if name in repository.tags:
            raise Refused(409, "", "Tag reference exists already")
        repository.tags[name] = repository.at(revision).oid
        return JSONResponse({})

    async def branch(self, request: Request, id: str, name: str) -> Response:
        repository = self._writable(request, id)
        if name in repository.branches:
            raise Refused(409, "", "Reference already exists")
        start = json.loads(await request.body() or b"{}").get("startingPoint") or "main"
        repository.branches[name] = repository.at(start).oid
        return JSONResponse({})

    def _writable(self, request: Request, id: str) -> Repository:
        repository = self._repository(request, id)
        _require_write(request, id)
        return repository

    async def new_collection(self, request: Request) -> Response:
        asked = await request.json()
        slug = f"{asked['namespace']}/{asked['title'].lower()}-{24 * '0'}"
        _require_write(request, slug)
        if slug in self.storage.collections:
            return JSONResponse({"error": "You already created this collection", "slug": slug}, 409)
        self.storage.collections[slug] = asked | {"items": []}
        return await self.collection(request, slug)

    async def collection(self, request: Request, slug: str) -> Response:
        kept = self.storage.collections[slug]
        known = {"slug": slug, "owner": {"name": USER}, "lastUpdated": "2026-01-01T00:00:00.000Z"}
        return JSONResponse(kept | known | {"position": 0, "theme": "green", "upvotes": 0})

    async def new_item(self, request: Request, slug: str) -> Response:
        _require_write(request, slug)
        item = (await request.json())["item"]
        folder = {"model": "", "dataset": "datasets/", "space": "spaces/"}[item["type"]]
        self._repository(request, folder + item["id"])
        items = self.storage.collections[slug]["items"]
        items.append(item | {"_id": f"{len(items)}", "position": len(items)})
        return await self.collection(request, slug)

    # --- putting files in -------------------------------------------------------------------------------------------

    async def validate_yaml(self, request: Request) -> Response:
        content = (await request.json())["content"]
        try:
            card = yaml.safe_load(content.split("---")[1]) if content.startswith("---") else {}
        except yaml.YAMLError as error:
            return JSONResponse({"errors": [{"message": str(error)}], "warnings": []}, 400)
        ok = isinstance(card, dict)
        errors = [] if ok else [{"message": "the front matter is no mapping"}]
        return JSONResponse({"errors": errors, "warnings": []}, 200 if ok else 400)

    async def preupload(self, request: Request, id: str, revision: str) -> Response:
        repository = self._addressed(request, id, revision)
        there = repository.at(revision).files
        answers = []
        for file in (await request.json())["files"]:
            answer = {"path": file["path"], "shouldIgnore": False}
            answer["uploadMode"] = "lfs" if is_large(file["path"], file["size"]) else "regular"
            if file["path"] in there:
                answer["oid"] = there[file["path"]].etag
            answers.append(answer)
        return JSONResponse({"files": answers})

    async def lfs_batch(self, request: Request, id: str) -> Response:
        self._repository(request, id)
        if _role(request) != "write":
            raise Refused(403, "", "Your token may not write to this repository")
        objects = []
        for wanted in (await request.json())["objects"]:
            oid = wanted["oid"]
            upload = {"upload": {"href": f"{_base(request)}/lfs/{oid}"}}
            objects.append(wanted if self.storage.holds(oid) else wanted | {"actions": upload})
        return JSONResponse({"transfer": "basic", "objects": objects}, media_type="application/vnd.git-lfs+json")

    async def lfs_put(self, request: Request, oid: str) -> Response:
        content = await request.body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "", "the content is not that of its name")
        self.storage.keep(content, large=True)
        return Response()

    async def commit(self, request: Request, id: str, revision: str) -> Response:
        repository = self._addressed(request, id, revision)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        header = lines[0]["value"]
        parent = repository.at(revision)
        if header.get("parentCommit") and not parent.oid.startswith(header["parentCommit"]):
            raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines[1:]:
            self._change(files, line["key"], line["value"])
        made = repository.add(files, header["summary"], parent.oid)
        answer = {"commitOid": made.oid, "commitUrl": f"{_base(request)}/{id}/commit/{made.oid}"}
        repository.branches[revision] = made.oid
        return JSONResponse(answer)

    def _addressed(self, request: Request, id: str, revision: str) -> Repository:
        """The repository of a commit to come."""
        repository = self._writable(request, id)
        if revision not in repository.branches:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository

    def _change(self, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
        if key == "file":
            files[value["path"]] = self.storage.keep(base64.b64decode(value["content"]), large=False)
        elif key == "lfsFile":
            files[value["path"]] = self.storage.large_file(value["oid"])
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Refused(404, "EntryNotFound", f"{value['path']}: no such file")
        else:
            raise Refused(400, "", f"{key}: not known here")

    # --- getting files out ------------------------------------------------------------------------------------------

    async def tree(self, request: Request, id: str, revision: str, path: str | None) -> Response:
        within = f"{path}/" if path else ""
        files = self._repository(request, id).at(revision).files
        found = {name: file for name, file in files.items() if name.startswith(within)}
        if path and not found:
            raise Refused(404, "EntryNotFound", f"{path}: no such folder")
        folders = {folder.as_posix() for name in found for folder in PurePosixPath(name).parents} - {".", path}
        folders = {name for name in folders if name.startswith(within)}
        if request.query_params.get("recursive") != "true":
            folders = {name for name in folders if "/" not in name.removeprefix(within)}
            found = {name: file for name, file in found.items() if "/" not in name.removeprefix(within)}
        entries = [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)]
        return JSONResponse(entries + [_entry(name, file) for name, file in found.items()])

    async def paths_info(self, request: Request, id: str, revision: str) -> Response:
        files = self._repository(request, id).at(revision).files
        asked = parse_qs((await request.body()).decode()).get("paths", [])
        return JSONResponse([_entry(name, files[name]) for name in asked if name in files])

    async def resolve(self, request: Request, id: str, revision: str, path: str) -> Response:
        commit = self._repository(request, id).at(revision)
        file = commit.files.get(path)
        if file is None:
            raise Refused(404, "EntryNotFound", f"{path}: no such file")
        etag = request.state.wrong_etag or file.etag
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if file.large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(file.size)}
        content, status = self.storage.content(file.sha256), 200
        if asked := request.headers.get("range"):
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{file.size - 1}/{file.size}"
            content, status = content[start:], 206
        return Response(content, status, headers, media_type="application/octet-stream")

    async def nothing(self, request: Request) -> Response:
        """What the client asks for on the side and takes any answer to."""
        return JSONResponse({})


def _role(request: Request) -> str:
    """What the asker's token allows: "read", "write", or "" without a token known here."""
    return _ROLES.get(request.headers.get("authorization", "").removeprefix("Bearer "), "")


def _entry(path: str, file: File) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
    return entry | ({"lfs": {"oid": file.sha256, "size": file.size, "pointerSize": 134}} if file.large else {})


def _is_ours(id: str) -> bool:
    return id.removeprefix("spaces/").removeprefix("datasets/").startswith(f"{USER}/")


def _require_write(request: Request, id: str) -> None:
    if not _role(request):
        raise Refused(401, "", "Invalid username or password.")
    if _role(request) != "write" or not _is_ours(id):
        raise Refused(403, "", f"You don't have the rights to write to {id}")


def _base(request: Request) -> str:
    # The client refuses addresses on another host than the one it asked.
    return f"http://{request.headers['host']}"
