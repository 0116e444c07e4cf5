"""A stand-in for the Hugging Face Hub on the loopback address: repositories to read, to create and to commit to."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

REPO = r"(?P<repo>[^/]+(?:/[^/]+)??)"
REVISION = r"(?P<revision>[^/]+)"
API = rf"/api/(?P<kind>models|datasets)/{REPO}"

# Routes: HTTP method (GET covers HEAD), percent-encoded path, and the method of `HubStandIn` that handles it. The
# first match wins.
ROUTES = [
    ("GET", rf"{API}/tree/{REVISION}(?:/(?P<path>.+))?", "tree"),
    ("POST", rf"{API}/paths-info/{REVISION}", "paths_info"),
    ("GET", rf"{API}(?:/revision/{REVISION})?", "info"),
    ("GET", rf"(?:/(?P<kind>datasets))?/{REPO}/resolve/{REVISION}/(?P<path>.+)", "resolve"),
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", rf"{API}/branch/(?P<branch>.+)", "create_branch"),
    ("POST", rf"{API}/preupload/{REVISION}", "preupload"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
    ("POST", rf"{API}/commit/{REVISION}", "commit"),
]
WITHOUT_REPOSITORY = ("whoami", "create", "validate_yaml", "lfs_upload")
TOKEN = "hf_averysecrettokenindeed"
LARGE = (".safetensors", ".png", ".flac", ".wav")  # stored in LFS regardless of size

OFF = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS")
ON = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "DISABLE_SAFETENSORS_CONVERSION")


@dataclass
class Request:
    """A request and the named parts of its route; header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    parts: dict[str, str] = field(default_factory=dict)


@dataclass
class Reply:
    """A response: status, body, and headers other than `Content-Length`."""

    status: int
    body: bytes
    headers: dict[str, str]

    @classmethod
    def of(cls, value: Any, status: int = 200, **headers: str) -> Reply:
        """A JSON response; the keyword `X_Name` sets the header `X-Name`."""
        named = {"Content-Type": "application/json"}
        named |= {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(status, json.dumps(value).encode(), named)


class RefusedError(Exception):
    """An error response; the client raises an exception of its own for `X_Error_Code`."""

    def __init__(self, status: int, message: str, **headers: str):
        super().__init__(message)
        self.reply = Reply.of({"error": message}, status, X_Error_Message=message, **headers)


@dataclass
class Fault:
    """A fault to inject into the first `times` requests whose method and path match the pattern.

    A status is answered with the headers; `cut` breaks the connection in the middle of the request, or, with `late`,
    where the answer would come; `seconds` is how long all of it takes.
    """

    pattern: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    times: int = sys.maxsize
    cut: bool = False
    late: bool = False
    seconds: float = 0.0


NO_FAULT = Fault("")


@dataclass(frozen=True)
class Snapshot:
    """One commit: its hash, its files, and its tree entries by path."""

    sha: str
    files: dict[str, Path | bytes]
    entries: dict[str, dict[str, Any]]

    @classmethod
    def of(cls, files: dict[str, Path | bytes]) -> Snapshot:
        """Computes the git ids of files, the digests of LFS files, and the ids of folders and of the commit."""
        entries: dict[str, dict[str, Any]] = {}
        digests = {".": hashlib.sha1()}
        for name in sorted(files):
            data = contents(files[name])
            pointer = lfs_pointer(data) if name.endswith(LARGE) else data
            oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
            entries[name] = {"type": "file", "oid": oid, "size": len(data)}
            if name.endswith(LARGE):
                digest = hashlib.sha256(data).hexdigest()
                entries[name]["lfs"] = {"oid": digest, "size": len(data), "pointerSize": len(pointer)}
            for parent in Path(name).parents:
                digests.setdefault(parent.as_posix(), hashlib.sha1()).update(f"{oid} {name}\n".encode())
        sha = digests.pop(".").hexdigest()
        for name, digest in digests.items():
            entries[name] = {"type": "directory", "oid": digest.hexdigest(), "size": 0}
        return cls(sha, files, {path: {"path": path, **entries[path]} for path in sorted(entries)})

    @classmethod
    def scan(cls, folder: Path) -> Snapshot:
        """The files of a folder, read on demand."""
        paths = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts]
        return cls.of({path.relative_to(folder).as_posix(): path for path in paths})

    def entry(self, path: str, kind: str) -> dict[str, Any]:
        """The entry at a path; it must be a `file` or `directory` as requested."""
        entry = self.entries.get(path)
        if entry is None or entry["type"] != kind:
            raise RefusedError(404, "Entry not found", X_Error_Code="EntryNotFound", X_Repo_Commit=self.sha)
        return entry


def contents(file: Path | bytes) -> bytes:
    """The bytes of a file of a `Snapshot`."""
    return file if isinstance(file, bytes) else file.read_bytes()


def lfs_pointer(data: bytes) -> bytes:
    """The LFS pointer that git stores for a large file."""
    digest = hashlib.sha256(data).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()


@dataclass
class Repository:
    """The commits of a repository by their hashes, and the hashes by the names of branches and pull requests."""

    commits: dict[str, Snapshot]
    branches: dict[str, str]
    private: bool = False

    @classmethod
    def of(cls, snapshot: Snapshot, private: bool = False) -> Repository:
        return cls({snapshot.sha: snapshot}, {"main": snapshot.sha}, private)

    @property
    def main(self) -> Snapshot:
        """The head of the main branch."""
        return self.at("main")

    def at(self, revision: str) -> Snapshot:
        """The commit named by a branch, a pull request or a hash."""
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise RefusedError(404, "Revision not found", X_Error_Code="RevisionNotFound")
        return self.commits[sha]


class HubStandIn:
    """Serves Hub repositories on the loopback address.

    The client is the real `huggingface_hub`, pointed here by `HF_ENDPOINT`:

        with HubStandIn({"org/model": folder}, tokens={"hf_abc": "write"}) as hub:
            subprocess.run(command, env=os.environ | hub.environment(tmp_path, "hf_abc"), check=True)

    Folders are listed once, on creation; what is committed is kept in memory. Every request passes
    through `answer`, and `requests` keeps its method, target and status. What no route answers is a
    404; nothing is passed on. `faults` make requests fail. Writing needs a token with the role
    "write", as on the Hub; files that go by LFS are taken by the basic transfer.
    """

    def __init__(
        self,
        models: dict[str, Path],
        datasets: dict[str, Path] | None = None,
        tokens: dict[str, str] | None = None,
    ):
        folders = {("models", repo): folder for repo, folder in models.items()}
        folders |= {("datasets", repo): folder for repo, folder in (datasets or {}).items()}
        self.repositories = {key: Repository.of(Snapshot.scan(folder)) for key, folder in folders.items()}
        self.tokens = tokens or {}
        self.faults: list[Fault] = []
        self.objects: dict[str, bytes] = {}
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

    def environment(self, cache: Path, token: str = "") -> dict[str, str]:
        """The environment variables that point a process to this server.

        The stand-in is also the proxy to all other hosts, so that a request that strays (`datasets`
        asks a host `datasets-server.127.0.0.1`) ends here, in a 404.
        """
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_DATASETS_CACHE": str(cache / "datasets"),
            "HF_MODULES_CACHE": str(cache / "modules"),
            "HF_TOKEN": token,
            **dict.fromkeys(OFF, "0"),
            **dict.fromkeys(ON, "1"),
            **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), self.endpoint),
            "no_proxy": "127.0.0.1,localhost",
        }

    def answer(self, request: Request) -> Reply:
        """Find the route and the repository, and call the route's handler."""
        path = request.target.partition("?")[0]
        method = "GET" if request.method == "HEAD" else request.method
        try:
            for verb, pattern, name in ROUTES:
                if verb == method and (match := re.fullmatch(pattern, path)):
                    groups = match.groupdict(default="")
                    request.parts = {key: unquote(text) for key, text in groups.items()}
                    if name in WITHOUT_REPOSITORY:
                        return getattr(self, name)(request)
                    return getattr(self, name)(self.find(request), request)
            raise RefusedError(404, "Unknown route")
        except RefusedError as error:
            return error.reply

    def fault(self, request: Request) -> Fault | None:
        """The first fault that matches a request; its count is decremented."""
        asked = f"{request.method} {request.target.partition('?')[0]}"
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, asked):
                fault.times -= 1
                return fault
        return None

    def find(self, request: Request) -> Repository:
        """The repository named in a route, if the reader has access."""
        repository = self.repositories.get((request.parts.get("kind") or "models", request.parts["repo"]))
        if repository is None or (repository.private and self.role(request) is None):
            raise RefusedError(404, "Repository not found", X_Error_Code="RepoNotFound")
        return repository

    def role(self, request: Request) -> str | None:
        """The permissions of the request's token."""
        return self.tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "))

    def check_write(self, request: Request) -> None:
        """Reject a request whose token has no write permission."""
        role = self.role(request)
        if role is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        if role != "write":
            raise RefusedError(403, "this token may only read")

    def info(self, repository: Repository, request: Request) -> Reply:
        """Handles `model_info` and `dataset_info`."""
        snapshot = repository.at(request.parts["revision"] or "main")
        files = [path for path, entry in snapshot.entries.items() if entry["type"] == "file"]
        flags = {"private": repository.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0}
        names = {"id": request.parts["repo"], "sha": snapshot.sha, "tags": []}
        return Reply.of({**names, **flags, "siblings": [{"rfilename": path} for path in files]})

    def tree(self, repository: Repository, request: Request) -> Reply:
        """The entries in a folder, or below it if `recursive`, on a single page."""
        snapshot, path = repository.at(request.parts["revision"]), request.parts["path"]
        prefix = snapshot.entry(path, "directory")["path"] + "/" if path else ""
        below = [entry for name, entry in snapshot.entries.items() if name.startswith(prefix)]
        query = parse_qs(urlsplit(request.target).query)
        if query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            below = [entry for entry in below if "/" not in entry["path"][len(prefix) :]]
        return Reply.of(below)

    def paths_info(self, repository: Repository, request: Request) -> Reply:
        """The entries at the requested paths that exist."""
        entries = repository.at(request.parts["revision"]).entries
        paths = parse_qs(request.body.decode()).get("paths", [])
        return Reply.of([entries[path] for path in paths if path in entries])

    def resolve(self, repository: Repository, request: Request) -> Reply:
        """A file, or one range of its bytes."""
        snapshot = repository.at(request.parts["revision"])
        entry = snapshot.entry(request.parts["path"], "file")
        data, size = contents(snapshot.files[entry["path"]]), entry["size"]
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{entry.get("lfs", entry)["oid"]}"',
            "X-Repo-Commit": snapshot.sha,
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

    def whoami(self, request: Request) -> Reply:
        """The owner and the permissions of the token."""
        if self.role(request) is None:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        token = {"displayName": "test", "role": self.role(request)}
        return Reply.of({"type": "user", "name": "user", "orgs": [{"name": "org"}], "auth": {"accessToken": token}})

    def create(self, request: Request) -> Reply:
        """A new repository with an empty commit."""
        self.check_write(request)
        asked = json.loads(request.body)
        kind, repo = f"{asked.get('type') or 'model'}s", "/".join(filter(None, (asked["organization"], asked["name"])))
        url = f"{self.endpoint}/{repo}"
        if (kind, repo) in self.repositories:
            return Reply.of({"error": "You already created this model repo", "url": url}, 409)
        private = asked.get("visibility") == "private"
        self.repositories[kind, repo] = Repository.of(Snapshot.of({".gitattributes": b""}), private)
        return Reply.of({"url": url})

    def validate_yaml(self, request: Request) -> Reply:
        """Checks that a card begins with valid metadata."""
        errors = []
        front = re.match(r"---\r?\n(.*?)\r?\n---\r?\n", json.loads(request.body)["content"], flags=re.DOTALL)
        try:
            if front and not isinstance(yaml.safe_load(front[1]), dict):
                errors.append({"message": "the metadata is no mapping"})
        except yaml.YAMLError as error:
            errors.append({"message": str(error)})
        return Reply.of({"errors": errors, "warnings": []}, 400 if errors else 200)

    def create_branch(self, repository: Repository, request: Request) -> Reply:
        """Creates a branch at the head of main."""
        self.check_write(request)
        if request.parts["branch"] in repository.branches:
            raise RefusedError(409, "Reference already exists")
        repository.branches[request.parts["branch"]] = repository.branches["main"]
        return Reply.of({})

    def preupload(self, repository: Repository, request: Request) -> Reply:
        """Tells which files go to LFS, and the current ids under their names."""
        self.check_write(request)
        entries = repository.at(request.parts["revision"]).entries
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": entries[file["path"]].get("lfs", entries[file["path"]])["oid"]
                if file["path"] in entries
                else None,
            }
            for file in json.loads(request.body)["files"]
        ]
        return Reply.of({"files": files})

    def lfs_batch(self, repository: Repository, request: Request) -> Reply:
        """The upload URLs of large files that are not yet stored."""
        self.check_write(request)
        objects = [
            {"oid": wanted["oid"], "size": wanted["size"]}
            | (
                {}
                if wanted["oid"] in self.objects
                else {"actions": {"upload": {"href": f"{self.endpoint}/lfs/{wanted['oid']}"}}}
            )
            for wanted in json.loads(request.body)["objects"]
        ]
        return Reply.of({"transfer": "basic", "objects": objects})

    def lfs_upload(self, request: Request) -> Reply:
        """Stores a large file; as with cloud storage, the URL itself is the permission."""
        if hashlib.sha256(request.body).hexdigest() != request.parts["oid"]:
            raise RefusedError(400, "the contents do not have this digest")
        self.objects[request.parts["oid"]] = request.body
        return Reply.of({})

    def commit(self, repository: Repository, request: Request) -> Reply:
        """Creates a commit on a branch or as a pull request."""
        self.check_write(request)
        files = dict(repository.at(request.parts["revision"]).files)
        for line in map(json.loads, request.body.splitlines()):
            self.apply(line["key"], line["value"], files)
        snapshot = Snapshot.of(files)
        repository.commits[snapshot.sha] = snapshot
        answer = {"commitUrl": f"{self.endpoint}/{request.parts['repo']}/commit/{snapshot.sha}"}
        branch = request.parts["revision"]
        if "create_pr=1" in request.target:
            number = sum(name.startswith("refs/pr/") for name in repository.branches) + 1
            branch = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.endpoint}/{request.parts['repo']}/discussions/{number}"
        repository.branches[branch] = snapshot.sha
        return Reply.of({**answer, "commitOid": snapshot.sha})

    def apply(self, key: str, value: dict[str, Any], files: dict[str, Path | bytes]) -> None:
        """Applies one line of a commit request."""
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in self.objects:
                raise RefusedError(400, f"{value['path']} was not uploaded")
            files[value["path"]] = self.objects[value["oid"]]
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise RefusedError(404, "A file with this name doesn't exist", X_Error_Code="EntryNotFound")
        elif key != "header":
            raise RefusedError(400, f"unknown operation {key}")


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def __init__(self, hub: HubStandIn):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report an error, unless the client disconnected."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Adapts HTTP requests to `HubStandIn.answer`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _answer(self) -> None:
        headers = {name.lower(): text for name, text in self.headers.items()}
        request = Request(self.command, self.path, headers, b"")
        hub = self.server.hub
        fault = hub.fault(request) or NO_FAULT
        if fault.cut and not fault.late:
            self.rfile.read(int(headers.get("content-length", 2)) // 2)
            return self._hang_up()
        request.body = b"".join(self._body(headers))
        time.sleep(fault.seconds)
        if fault.status:
            reply = Reply.of({"error": "so it was ordered"}, fault.status)
            reply.headers |= fault.headers
        else:
            reply = hub.answer(request)
        if fault.cut:
            return self._hang_up()
        hub.requests.append((self.command, self.path, reply.status))
        self.send_response(reply.status)
        for name, text in reply.headers.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _hang_up(self) -> None:
        self.server.hub.requests.append((self.command, self.path, 0))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self, headers: dict[str, str]) -> Iterable[bytes]:
        """The body of a request, chunked or not."""
        if headers.get("transfer-encoding") != "chunked":
            yield self.rfile.read(int(headers.get("content-length", 0)))
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_CONNECT = _answer  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing; `HubStandIn.requests` records the requests."""
