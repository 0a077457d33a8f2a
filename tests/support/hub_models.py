"""A stand-in of the Hugging Face hub on this machine alone: what its client asks for a file or a commit."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.support.localserver import serving

TOKEN = "hf_writes"
READ_ONLY = "hf_reads"


@dataclass
class Repo:
    """A repository: files by commit, commits by branch or tag."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[oid] = {**self.commits.get(self.refs.get("main", ""), {}), **files}
        self.refs["main"] = oid
        return oid


@dataclass
class Hub:
    """What is there, and every request: method and path.

    broken: a status that every request is answered with.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    broken: int | None = None
    claimed_bytes: int | None = None
    url: str = ""


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        served = hub

    with serving(Handler) as hub.url:
        yield hub


class _Handler(BaseHTTPRequestHandler):
    served: Hub

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)", self.path)
        if not match:
            return self._file()
        self._note()
        repo = self._repo(match[1])
        if repo is None:
            return None
        siblings = [{"rfilename": file} for file in repo.commits.get(repo.refs.get("main", ""), {})]
        return self._answer(200, {"id": match[1], "private": repo.private, "siblings": siblings})

    def do_POST(self) -> None:
        self._note()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.served.broken:
            return self._fail(self.served.broken)
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        if token != TOKEN:
            return self._fail(403 if token == READ_ONLY else 401)
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        repo, kind = re.findall(r"^/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)[0]
        if kind == "preupload":
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": modes})
        lines = [json.loads(line) for line in body.decode().splitlines()]
        assert {line["key"] for line in lines} <= {"header", "file"}
        files = [line["value"] for line in lines if line["key"] == "file"]
        oid = self.served.repos[repo].commit({f["path"]: base64.b64decode(f["content"]) for f in files})
        return self._answer(200, {"commitUrl": f"{self.served.url}/{repo}/commit/{oid}", "commitOid": oid})

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or "me"
        name, url = f"{owner}/{asked['name']}", f"{self.served.url}/{owner}/{asked['name']}"
        if name in self.served.repos:
            return self._answer(409, {"url": url})
        self.served.repos[name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        return self._answer(200, {"url": url, "name": name})

    def _file(self) -> None:
        self._note()
        if self.served.broken:
            return self._fail(self.served.broken)
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        repo = self._repo(match[1]) if match else None
        if not match or repo is None:
            return None
        oid = repo.refs.get(match[2], match[2])
        if oid not in repo.commits:
            return self._fail(404, {"X-Error-Code": "RevisionNotFound"})
        content = repo.commits[oid].get(match[3])
        if content is None:
            return self._fail(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
        self.send_response(200)
        self.send_header("X-Repo-Commit", oid)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(self.served.claimed_bytes or len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    def _repo(self, name: str) -> Repo | None:
        repo = self.served.repos.get(name)
        if repo is None or (repo.private and not self.headers.get("Authorization")):
            self._fail(401, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def _note(self) -> None:
        self.served.requests.append(f"{self.command} {self.path}")

    def _answer(self, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass
