"""The Hub's repositories, and the part of its API that clients use to list, download and push files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from loopback_faults import Reply

__all__ = ["HubApi", "Repo", "etag_of", "is_large"]

LARGE = frozenset({".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".zip"})


def is_large(path: str) -> bool:
    """Whether the Hub stores a file outside the repository, under its sha256."""
    return PurePosixPath(path).suffix in LARGE


@lru_cache(64)
def etag_of(path: str, data: bytes) -> str:
    """Return the ETag of a file on the Hub: the sha256 of a large file, else git's blob id."""
    if is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """Commits by their 40 hex digits, each with all files, and the branches."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)


class HubApi:
    """The answers under ``/api``, and those for large files that are pushed."""

    def __init__(self, repos: dict[str, Repo], objects: dict[str, bytes]) -> None:
        self.repos = repos
        self.objects = objects

    def commit(self, name: str, files: Mapping[str, bytes], revision: str | None = None, branch: str = "main") -> str:
        """Commit files to a branch, and return the commit."""
        repo = self.repos.setdefault(name, Repo())
        tree = "".join(f"{path} {etag_of(path, data)}\n" for path, data in sorted(files.items()))
        commit = revision or hashlib.sha1(f"{len(repo.commits)}\n{tree}".encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.branches[branch] = commit
        self.objects |= {etag_of(path, data): data for path, data in files.items() if is_large(path)}
        return commit

    def reply(self, method: str, path: str, body: bytes, base: str) -> Reply:
        """Answer a request; ``base`` is the server's own URL."""
        if method == "PUT" and path.startswith("/objects/"):
            return self._store(path.removeprefix("/objects/"), body)
        if method == "POST" and path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body), base)
        if method == "POST" and path == "/api/repos/create":
            return self._create(json.loads(body), base)
        if method == "POST" and path == "/api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if method == "GET" and path == "/api/agent-harnesses":
            return _json({})
        if method == "GET" and path == "/api/whoami-v2":
            return _json({"type": "user", "name": "owner", "orgs": [], "auth": {"type": "access_token"}})
        model = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)/([^/]+)(/.*)?)?", path)
        if model is None:
            return Reply.error(404, None, f"nothing at {path}")
        name, verb, revision = model[1], model[2] or "revision", unquote(model[3] or "main")
        repo = self.repos.get(name)
        if repo is None:
            return Reply.error(404, "RepoNotFound", "Repository not found")
        if verb == "preupload":
            return self._preupload(repo, revision, json.loads(body))
        if verb == "commit":
            return self._commit(name, repo, revision, body, base)
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            return Reply.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        tree = repo.commits[commit]
        return _json(_tree(tree) if verb == "tree" else _info(name, commit, tree))

    def _create(self, asked: dict[str, Any], base: str) -> Reply:
        name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        about = {"url": f"{base}/{name}", "name": name, "id": name}
        if name in self.repos:
            return _json({**about, "error": "You already created this model repo"}, 409)
        self.commit(name, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        return _json(about)

    def _preupload(self, repo: Repo, revision: str, asked: dict[str, Any]) -> Reply:
        tree = repo.commits.get(repo.branches.get(revision, revision), {})
        files = []
        for path in (file["path"] for file in asked["files"]):
            entry = {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False}
            files.append(entry | ({"oid": etag_of(path, tree[path])} if path in tree else {}))
        return _json({"files": files})

    def _batch(self, asked: dict[str, Any], base: str) -> Reply:
        objects = []
        for wanted in asked["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.objects:
                entry["actions"] = {"upload": {"href": f"{base}/objects/{wanted['oid']}", "header": {}}}
            objects.append(entry)
        return _json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str, body: bytes) -> Reply:
        if hashlib.sha256(body).hexdigest() != oid:
            return Reply.error(400, None, f"the bytes are not those of {oid}")
        self.objects[oid] = body
        return Reply(200)

    def _commit(self, name: str, repo: Repo, revision: str, body: bytes, base: str) -> Reply:
        """Apply a commit: one JSON object per line, a header and then an operation per file."""
        tree = dict(repo.commits.get(repo.branches.get(revision, revision), {}))
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            path = value.get("path", "")
            if key == "file":
                tree[path] = base64.b64decode(value["content"])
            elif key == "lfsFile" and value["oid"] in self.objects:
                tree[path] = self.objects[value["oid"]]
            elif key == "deletedFile" and path in tree:
                del tree[path]
            elif key == "deletedFolder":
                tree = {kept: data for kept, data in tree.items() if not kept.startswith(path.rstrip("/") + "/")}
            elif key != "header":
                return Reply.error(400, None, f"cannot {key} {path}")
        commit = self.commit(name, tree, branch=revision)
        return _json({"success": True, "commitOid": commit, "commitUrl": f"{base}/{name}/commit/{commit}"})


def _json(value: Any, status: int = 200) -> Reply:
    return Reply(status, {"Content-Type": "application/json"}, json.dumps(value).encode())


def _info(name: str, commit: str, tree: Mapping[str, bytes]) -> dict[str, Any]:
    files = [{"rfilename": path} for path in sorted(tree)]
    flags = {"private": False, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
    return {"id": name, "modelId": name, "sha": commit, "siblings": files, **flags}


def _tree(tree: Mapping[str, bytes]) -> list[dict[str, Any]]:
    entries = []
    for path, data in sorted(tree.items()):
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": etag_of(path, data)}
        if is_large(path):
            entry["oid"] = hashlib.sha1(data).hexdigest()
            entry["lfs"] = {"oid": etag_of(path, data), "size": len(data), "pointerSize": 134}
        entries.append(entry)
    return entries
