"""A Hugging Face Hub of one process: the requests that its client makes for small files."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

INFO = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?")
RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


@dataclass
class FakeHub:
    """Repositories {name: {path: bytes}}; `gated` ones need a token, `private` were made so."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    gated: set[str] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def commit(self, name: str) -> str:
        content = sorted((path, data) for path, data in self.repositories[name].items())
        return hashlib.sha1(repr(content).encode()).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[FakeHub]:
    """A hub at `url` until the block ends; no connection outlives a request (HTTP/1.0)."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""

    def do_HEAD(self) -> None:
        self._resolve(with_body=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            self._info()
        else:
            self._resolve(with_body=True)

    def do_POST(self) -> None:
        self.hub.requests.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer secret":
            return self._answer(401, {"error": "Invalid credentials"})
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path == "/api/validate-yaml":
            return self._answer(200, {"errors": [], "warnings": []})
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        if match is None or match[1] not in self.hub.repositories:
            return self._answer(404, {"error": "Not found"})
        if match[2] == "preupload":
            files = json.loads(body)["files"]
            answers = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for one in files
            ]
            return self._answer(200, {"files": answers})
        return self._commit(match[1], [json.loads(line) for line in body.splitlines()])

    def _create(self, wanted: dict) -> None:
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        known = name in self.hub.repositories
        self.hub.repositories.setdefault(name, {})
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.hub.private.add(name)
        self._answer(409 if known else 200, {"url": f"{self.hub.url}/{name}", "id": name})

    def _commit(self, name: str, lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.hub.messages.append(value["summary"])
            elif line["key"] == "file":
                assert value["encoding"] == "base64"
                content = base64.b64decode(value["content"])
                self.hub.repositories[name][value["path"]] = content
        commit = self.hub.commit(name)
        url = f"{self.hub.url}/{name}/commit/{commit}"
        self._answer(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def _info(self) -> None:
        self.hub.requests.append(f"GET {self.path}")
        match = INFO.fullmatch(self.path)
        if match is None or match[1] not in self.hub.repositories:
            return self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        name, commit = match[1], self.hub.commit(match[1])
        if match[2] not in (None, "main", commit):
            return self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": path} for path in self.hub.repositories[name]]
        self._answer(200, {"id": name, "sha": commit, "siblings": siblings})

    def _resolve(self, *, with_body: bool) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        match = RESOLVE.fullmatch(self.path)
        if match is None or match[1] not in self.hub.repositories:
            return self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        name, revision, path = match.groups()
        if name in self.hub.gated and self.headers.get("Authorization") != "Bearer secret":
            return self._answer(403, {}, {"X-Error-Code": "GatedRepo"})
        commit, files = self.hub.commit(name), self.hub.repositories[name]
        if revision not in ("main", commit):
            return self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
        if path not in files:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
            return self._answer(404, {}, headers)
        etag = hashlib.sha1(files[path]).hexdigest()
        self._send(200, files[path], {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, with_body)

    def _answer(self, status: int, content: dict, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        headers = {"Content-Type": "application/json", **(headers or {})}
        self._send(status, body, headers, self.command != "HEAD")

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)
