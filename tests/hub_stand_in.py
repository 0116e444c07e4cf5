"""A read-only stand-in for the Hugging Face Hub: folders served on the loopback address."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPO = r"(?P<repo>[^/]+(?:/[^/]+)??)"
REVISION = r"(?P<revision>[^/]+)"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"

# The requests that are answered: the method (HEAD goes with GET), the path, still percent-encoded,
# and the name of the method of `HubStandIn` that answers. The first match counts.
ROUTES = [
    ("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.+))?", "tree"),
    ("POST", rf"{API}/paths-info/{REVISION}", "paths_info"),
    ("GET", rf"{API}(?:/revision/{REVISION})?", "info"),
    ("GET", rf"(?:/(?P<kind>datasets))?/{REPO}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
]

OFF = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS")
ON = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_SAFETENSORS_CONVERSION")


@dataclass
class Request:
    """A request as it came, and the named parts of the route it matched; headers in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    parts: dict[str, str] = field(default_factory=dict)


@dataclass
class Reply:
    """An answer: the status, the body, and the headers besides `Content-Length`."""

    status: int
    body: bytes
    headers: dict[str, str]

    @classmethod
    def of(cls, value: Any, status: int = 200, **headers: str) -> Reply:
        """A JSON value as the answer; `X_Name` stands for the header `X-Name`."""
        named = {"Content-Type": "application/json"}
        named |= {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(status, json.dumps(value).encode(), named)


class NotFoundError(Exception):
    """Nothing is there: a 404, with the code that the client turns into its own error."""

    def __init__(self, message: str, **headers: str):
        super().__init__(message)
        self.reply = Reply.of({"error": message}, 404, X_Error_Message=message, **headers)


@dataclass(frozen=True)
class Repository:
    """A folder as one commit of a repository: the commit's hash, and its tree entries by path."""

    folder: Path
    sha: str
    entries: dict[str, dict[str, Any]]

    @classmethod
    def scan(cls, folder: Path) -> Repository:
        """Read a folder: files with their git ids, folders and the commit with a digest."""
        entries: dict[str, dict[str, Any]] = {}
        digests = {".": hashlib.sha1()}
        for file in sorted(folder.rglob("*")):
            path = file.relative_to(folder)
            if file.is_dir() or ".git" in path.parts:
                continue
            data = file.read_bytes()
            oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            entries[path.as_posix()] = {"type": "file", "oid": oid, "size": len(data)}
            for parent in path.parents:
                digest = digests.setdefault(parent.as_posix(), hashlib.sha1())
                digest.update(f"{oid} {path.as_posix()}\n".encode())
        sha = digests.pop(".").hexdigest()
        for name, digest in digests.items():
            entries[name] = {"type": "directory", "oid": digest.hexdigest(), "size": 0}
        return cls(folder, sha, {path: {"path": path, **entries[path]} for path in sorted(entries)})

    def entry(self, path: str, kind: str) -> dict[str, Any]:
        """The entry at a path, which must be of the kind `file` or `directory`."""
        entry = self.entries.get(path)
        if entry is None or entry["type"] != kind:
            codes = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": self.sha}
            raise NotFoundError("Entry not found", **codes)
        return entry


class HubStandIn:
    """Serves folders as Hub repositories on the loopback address.

    The client is the real `huggingface_hub`, pointed here by `HF_ENDPOINT`:

        with HubStandIn({"org/model": folder}) as hub:
            subprocess.run(command, env=os.environ | hub.environment(tmp_path), check=True)

    The folders are read once, on creation. Every request passes through `answer`, and `requests`
    keeps its method, target and status. What no route answers is a 404; nothing is passed on.
    """

    def __init__(self, models: dict[str, Path], datasets: dict[str, Path] | None = None):
        folders = {("models", repo): folder for repo, folder in models.items()}
        folders |= {("datasets", repo): folder for repo, folder in (datasets or {}).items()}
        self.repositories = {key: Repository.scan(folder) for key, folder in folders.items()}
        self.requests: list[tuple[str, str, int]] = []
        self._server = _Server(self)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubStandIn:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environment(self, cache: Path) -> dict[str, str]:
        """The variables that send a process here, to be merged into its own.

        The stand-in is also the proxy to all other hosts, so that a request that strays (`datasets`
        asks a host `datasets-server.127.0.0.1`) ends here, in a 404.
        """
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_DATASETS_CACHE": str(cache / "datasets"),
            "HF_MODULES_CACHE": str(cache / "modules"),
            "HF_TOKEN": "",
            **dict.fromkeys(OFF, "0"),
            **dict.fromkeys(ON, "1"),
            **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), self.endpoint),
            "no_proxy": "127.0.0.1,localhost",
        }

    def answer(self, request: Request) -> Reply:
        """Find the route and the repository, and let the route's method answer."""
        path = request.target.partition("?")[0]
        method = "GET" if request.method == "HEAD" else request.method
        try:
            for verb, pattern, name in ROUTES:
                if verb == method and (match := re.fullmatch(pattern, path)):
                    groups = match.groupdict(default="")
                    request.parts = {key: unquote(text) for key, text in groups.items()}
                    return getattr(self, name)(self.find(**request.parts), request)
            raise NotFoundError("Unknown route")
        except NotFoundError as error:
            return error.reply

    def find(self, repo: str, kind: str = "", revision: str = "", path: str = "") -> Repository:
        """The repository that a route's parts name, at their revision."""
        repository = self.repositories.get((kind or "models", repo))
        if repository is None:
            raise NotFoundError("Repository not found", X_Error_Code="RepoNotFound")
        if revision not in ("", "main", repository.sha):
            raise NotFoundError("Revision not found", X_Error_Code="RevisionNotFound")
        return repository

    def info(self, repository: Repository, request: Request) -> Reply:
        """What `model_info` and `dataset_info` ask for."""
        files = [path for path, entry in repository.entries.items() if entry["type"] == "file"]
        flags = {"private": False, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        names = {"id": request.parts["repo"], "sha": repository.sha, "tags": []}
        return Reply.of({**names, **flags, "siblings": [{"rfilename": path} for path in files]})

    def tree(self, repository: Repository, request: Request) -> Reply:
        """The entries in a folder, or below it if `recursive`, on a single page."""
        path = request.parts["path"]
        prefix = repository.entry(path, "directory")["path"] + "/" if path else ""
        below = [entry for name, entry in repository.entries.items() if name.startswith(prefix)]
        query = parse_qs(urlsplit(request.target).query)
        if query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            below = [entry for entry in below if "/" not in entry["path"][len(prefix) :]]
        return Reply.of(below)

    def paths_info(self, repository: Repository, request: Request) -> Reply:
        """The entries at the paths in the form; those that do not exist are left out."""
        paths = parse_qs(request.body.decode()).get("paths", [])
        return Reply.of([repository.entries[path] for path in paths if path in repository.entries])

    def resolve(self, repository: Repository, request: Request) -> Reply:
        """A file, or one range of its bytes."""
        entry = repository.entry(request.parts["path"], "file")
        data, size = (repository.folder / entry["path"]).read_bytes(), entry["size"]
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{entry["oid"]}"',
            "X-Repo-Commit": repository.sha,
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if not asked or not any(asked.groups()):
            return Reply(200, data, headers)
        first, last = asked.groups()
        start = int(first) if first else max(size - int(last), 0)
        stop = min(int(last) + 1, size) if first and last else size
        if start >= stop:
            return Reply(416, b"", {**headers, "Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return Reply(206, data[start:stop], headers)


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, hub: HubStandIn):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error, unless the client just left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Between HTTP and `HubStandIn.answer`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _answer(self) -> None:
        headers = {name.lower(): text for name, text in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", 0)))
        reply = self.server.hub.answer(Request(self.command, self.path, headers, body))
        self.server.hub.requests.append((self.command, self.path, reply.status))
        self.send_response(reply.status)
        for name, text in reply.headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_CONNECT = _answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet; `HubStandIn.requests` tells what was asked."""
