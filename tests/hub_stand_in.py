"""A stand-in of the Hub on the loopback address: as much of its HTTP API as pushing and loading a
model asks for, with what it refuses."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

TOKEN = "hf_stand_in"
Answer = tuple[int, Any, dict[str, str]]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Hub:
    """Repositories, each with its branches' files, and the large files that were uploaded."""

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}  # repository → branch → files
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.commits: list[str] = []  # what each commit was called
        self.asked: list[str] = []
        self.refuse: dict[str, int] = {}  # a part of a URL → the status that it is answered with
        self.cut: str | None = None  # a part of a URL at which the connection ends

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """The status, the body and the headers that a request is answered with."""
        self.asked.append(f"{method} {path}")
        for part, status in self.refuse.items():
            if part in path:
                return status, {"error": "refused"}, {}
        if path == "/api/validate-yaml":
            return self._validated(json.loads(body)["content"])
        if path == "/api/repos/create":
            return self._created(json.loads(body))
        if method == "PUT" and (oid := path.removeprefix("/large/")):
            assert oid == sha(body)
            self.large[oid] = body
            return 200, {}, {}
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            wanted = json.loads(body)["objects"]
            for one in wanted:
                if one["oid"] not in self.large:
                    one["actions"] = {"upload": {"href": f"{self.url}/large/{one['oid']}"}}
            return 200, {"transfer": "basic", "objects": wanted}, {}
        match = re.fullmatch(
            r"(?:/api/models)?/([\w.-]+/[\w.-]+)(?:/(\w+)/([^/]+))?(?:/(.+))?", path
        )
        if match is None or match[1] not in self.files:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        return self._of_repository(match[1], match[2], match[3] or "main", match[4], body)

    def _validated(self, card: str) -> Answer:
        """The Hub knows no base model and no data set but by an id, and wants a licence named."""
        import yaml

        data = yaml.safe_load(card.split("---")[1])
        ids = [data.get("base_model", "a/b"), *data.get("datasets", [])]
        wrong = [one for one in ids if one.count("/") != 1]
        named = data.get("license") != "other" or data.get("license_name")
        errors = [
            {"message": f"{one} is not valid"} for one in wrong + ([] if named else ["other"])
        ]
        return 400 if errors else 200, {"errors": errors, "warnings": []}, {}

    def _created(self, asked: dict[str, Any]) -> Answer:
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "someone":
            return 403, {"error": "You don't have the rights"}, {}
        if name in self.files:
            there = {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            return 409, there, {}
        self.files[name], self.private[name] = {"main": {}}, asked.get("visibility") == "private"
        return 200, {"url": f"{self.url}/{name}"}, {}

    def _of_repository(
        self, name: str, what: str | None, revision: str, file: str | None, body: bytes
    ) -> Answer:
        branches = self.files[name]
        if what == "branch":
            if revision in branches:
                return 409, {"error": "Reference already exists"}, {}
            branches[revision] = dict(branches["main"])
            return 200, {}, {}
        heads = {self.head(files): files for files in branches.values()} | branches
        if revision not in heads:
            return 404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"}
        files = heads[revision]
        if what == "preupload":
            modes = [{"path": one["path"], "shouldIgnore": False,
                      "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular"}
                     for one in json.loads(body)["files"]]  # fmt: skip
            return 200, {"files": modes}, {}
        if what == "commit":
            return self._committed(name, files, [json.loads(line) for line in body.splitlines()])
        if what == "resolve":
            if file not in files:
                return 404, {"error": "no file"}, {"X-Error-Code": "EntryNotFound"}
            data = files[file]
            return 200, data, {"ETag": f'"{sha(data)}"', "X-Repo-Commit": self.head(files)}
        if what == "tree":
            rows = [
                {"type": "file", "path": k, "size": len(v), "oid": sha(v)[:40]}
                for k, v in files.items()
            ]
            return 200, rows, {}
        siblings = [{"rfilename": key, "size": len(data)} for key, data in files.items()]
        facts = {"id": name, "sha": self.head(files), "private": self.private[name]}
        return 200, facts | {"siblings": siblings}, {}

    def _committed(self, name: str, files: dict[str, bytes], lines: list[Any]) -> Answer:
        after = dict(files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                after[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                after[value["path"]] = self.large[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del after[value["path"]]
        files.clear()
        files.update(after)
        self.commits.append(lines[0]["value"]["summary"])
        head = self.head(files)
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{head}", "commitOid": head}, {}

    @staticmethod
    def head(files: dict[str, bytes]) -> str:
        return sha(repr(sorted((name, sha(data)) for name, data in files.items())).encode())[:40]


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Serve a stand-in, which huggingface_hub takes for the Hub, with an empty cache."""
    from huggingface_hub import constants

    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.partition("?")[0]
            if hub.cut and hub.cut in path:
                self.close_connection = True
                return
            uploads = path.startswith("/large/")
            if not uploads and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, content, headers = 401, {"error": "Invalid user token."}, {}
            else:
                status, content, headers = hub.answer(self.command, path, body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(data))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = respond

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
