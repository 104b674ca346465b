"""A Hugging Face Hub and a file server on 127.0.0.1, with faults on request: real sockets, no mocks.

``with Loopback() as server`` answers on three ports: the second is another origin, like that of a content delivery
network, and the third uses TLS with the certificate ``loopback.pem``, which no client trusts by default. ``server.add``
publishes a repository, ``server.put`` a plain file, ``server.fail`` plans a fault, and ``server.requests`` lists all
requests. Every answer closes its connection.
"""

from __future__ import annotations

import hashlib
import ssl
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

from loopback_faults import Fault, Reply
from loopback_hub import HubApi, Repo, etag_of, is_large

__all__ = ["CERTIFICATE", "Loopback", "Request", "client_environment"]

# Made for these tests: for 127.0.0.1, valid for a hundred years, with its key.
CERTIFICATE = Path(__file__).with_name("loopback.pem")


@dataclass(frozen=True)
class Request:
    """A request of a client.

    Attributes:
        method: such as ``"HEAD"``.
        path: the path with its query, still quoted.
        headers: by lower-case name.
        port: the port that was addressed.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    port: int

    @property
    def token(self) -> str | None:
        """The token that was sent, or ``None``."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None


@dataclass
class _Planned:
    pattern: str
    fault: Fault
    times: int | None
    method: str | None

    def meets(self, method: str, path: str) -> bool:
        methods = (self.method,) if self.method else self.fault.methods
        return self.times != 0 and method in methods and fnmatchcase(path, self.pattern)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    loopback: Loopback

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        # The tests are about clients that give up or are killed; any other error is a bug of this server.
        if error is not None and not isinstance(error, OSError):
            self.loopback.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the requests are recorded."""

    def answer(self) -> None:
        loopback = self.server.loopback
        port = self.server.server_address[1]
        headers = {name.lower(): value for name, value in self.headers.items()}
        path = unquote(urlsplit(self.path).path)
        body = self._sent()
        loopback.requests.append(Request(self.command, self.path, headers, port))
        fault = loopback.planned(self.command, path)
        self.close_connection = True
        if fault and fault.hang:
            loopback.stall()
            return
        instead = fault is not None and fault.instead
        reply = Reply(200) if instead else loopback.reply(self.command, path, headers, body)
        self._send(fault.change(reply) if fault else reply, fault or Fault())

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def _sent(self) -> bytes:
        """Read the body of the request, chunked or not."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, reply: Reply, fault: Fault) -> None:
        status, body, headers = reply.status, reply.body, dict(reply.headers)
        first = self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-")
        if status == 200 and first.isdecimal() and 0 < int(first) < len(body):
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            status, body = 206, body[int(first) :]
        self.send_response(status)
        self.send_header("Connection", "close")
        if not fault.unsized:
            self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        loopback = self.server.loopback
        body = body if fault.cut is None else body[: fault.cut]
        chunk, pause = fault.pace or (len(body) or 1, 0.0)
        for at in range(0, len(body), chunk):
            if at and loopback.closing.wait(pause):
                return
            self.wfile.write(body[at : at + chunk])
        if fault.stall:
            self.wfile.flush()
            loopback.stall()


@dataclass
class Loopback:
    """The server; see the module's docstring.

    Attributes:
        repos: repositories by name.
        objects: large files by sha256, those of the repositories and those that were pushed.
        files: plain files by path.
        requests: all requests, in order.
        errors: errors of the server itself, on which a test fails.
        stalled: released once for every answer that will never be completed.
        closing: set when the server stops, which ends all waiting.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    stalled: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    closing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._plans: list[_Planned] = []
        self._lock = threading.Lock()
        self._api = HubApi(self.repos, self.objects)
        self._servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(3)]
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(CERTIFICATE)
        self._servers[2].socket = tls.wrap_socket(
            self._servers[2].socket, server_side=True, do_handshake_on_connect=False
        )
        for server in self._servers:
            server.loopback = self
        self._threads = [threading.Thread(target=s.serve_forever, args=(0.02,), daemon=True) for s in self._servers]

    def __enter__(self) -> Loopback:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the server; connections are refused from now on."""
        if self.closing.is_set():
            return
        self.closing.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def url(self, path: str = "") -> str:
        """Return the URL of a path."""
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}{path}"

    def elsewhere(self, path: str = "") -> str:
        """Return the URL of a path on the other port, which is another origin."""
        return f"http://127.0.0.1:{self._servers[1].server_address[1]}{path}"

    def secure(self, path: str = "") -> str:
        """Return the URL of a path on the port with TLS."""
        return f"https://127.0.0.1:{self._servers[2].server_address[1]}{path}"

    def add(self, repo: str, files: Mapping[str, bytes], revision: str | None = None) -> str:
        """Publish files as the newest commit of a repository, which is created if needed, and return the commit."""
        return self._api.commit(repo, files, revision)

    def put(self, path: str, data: bytes) -> str:
        """Publish a plain file, and return its URL."""
        self.files[path] = data
        return self.url(path)

    def mirror(self, data: bytes, algorithm: str = "sha256", under: str = "") -> str:
        """Publish a file as on a mirror, ``/{algorithm}/{hex digest}``, and return the mirror's URL."""
        self.put(f"{under}/{algorithm}/{hashlib.new(algorithm, data).hexdigest()}", data)
        return self.url(under)

    def fail(self, pattern: str, fault: Fault, times: int | None = None, method: str | None = None) -> None:
        """Plan a fault for matching paths, for some or all answers; faults are used in the order they were planned.

        Args:
            pattern: pattern of the unquoted path, with ``*``.
            fault: a fault of ``loopback_faults``.
            times: number of answers; ``None`` for all.
            method: the only method that fails; ``None`` for those of the fault.
        """
        self._plans.append(_Planned(pattern, fault, times, method))

    def clear_faults(self) -> None:
        """Remove every planned fault."""
        with self._lock:
            self._plans.clear()

    def asked(self, method: str, pattern: str = "*") -> list[Request]:
        """Return the requests of a method, ``*`` for any, whose unquoted path matches."""
        wanted = [r for r in self.requests if method in (r.method, "*")]
        return [r for r in wanted if fnmatchcase(unquote(urlsplit(r.path).path), pattern)]

    def planned(self, method: str, path: str) -> Fault | None:
        """Take the next fault for a request."""
        with self._lock:
            plan = next((p for p in self._plans if p.meets(method, path)), None)
            if plan is None:
                return None
            if plan.times is not None:
                plan.times -= 1
            return plan.fault

    def stall(self) -> None:
        """Block an answer until the server stops."""
        self.stalled.release()
        self.closing.wait()

    def reply(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        """Answer a request without any fault."""
        if path in self.files and method in ("GET", "HEAD"):
            data = self.files[path]
            return Reply(200, {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}, data)
        if "/resolve/" in path:
            return self._resolve(path, "authorization" in headers)
        with self._lock:
            return self._api.reply(method, path, body, self.url())

    def _resolve(self, path: str, signed_in: bool) -> Reply:
        """Answer for a file of a repository: ``/{repo}/resolve/{revision}/{file}``."""
        name, _, rest = path.removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        repo = self.repos.get(name)
        if repo is None:
            # Like the Hub: without a login, a missing repository looks like a private one.
            return Reply.error(404 if signed_in else 401, "RepoNotFound", "Repository not found")
        commit = repo.branches.get(revision, revision)
        if commit not in repo.commits:
            return Reply.error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if file not in repo.commits[commit]:
            missing = Reply.error(404, "EntryNotFound", "Entry not found")
            return Reply(404, {**missing.headers, "X-Repo-Commit": commit}, missing.body)
        data = repo.commits[commit][file]
        found = {"X-Repo-Commit": commit, "ETag": f'"{etag_of(file, data)}"', "Accept-Ranges": "bytes"}
        if is_large(file):
            found |= {"X-Linked-Etag": found["ETag"], "X-Linked-Size": str(len(data))}
        return Reply(200, found, data)


def client_environment(server: Loopback, folder: Path) -> dict[str, str]:
    """Return the environment that points a new process at the server, with its own caches in a folder.

    The caller adds the rest of the environment; ``HF_TOKEN``, ``HF_HUB_OFFLINE`` and similar variables are empty.
    """
    return {
        "HF_ENDPOINT": server.url(),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_CACHE": str(folder / "hf" / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_OFFLINE": "",
        "TRANSFORMERS_OFFLINE": "",
        "HF_TOKEN": "",
        "HUGGING_FACE_HUB_TOKEN": "",
        "HF_TOKEN_PATH": str(folder / "hf" / "token"),
        # Every client reads all certificates when it starts, and one is read faster than the system's.
        "SSL_CERT_FILE": str(CERTIFICATE),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "MEDZOO_HOME": str(folder / "medzoo"),
        "MEDZOO_MIRROR": "",
    }
