"""A process that has imported everything and forks a child for every job, so that children start quickly.

As a program it reads jobs, one line of JSON each, and answers each with a line; :class:`ForkServer` is its client.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Child", "ForkServer", "serve"]


class ForkServer:
    """The client: starts children, waits for them, and reads their results.

    Args:
        program: calls :func:`serve`; this file serves downloads.
    """

    def __init__(self, program: str = __file__) -> None:
        self.process = subprocess.Popen(
            [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.communicate()

    def start(self, environment: Mapping[str, str], out: Path, job: Mapping[str, Any], **how: Any) -> Child:
        """Start a child that downloads, with its own environment and the options of :func:`_download`."""
        return Child(self, self.ask({**job, **how, "environment": dict(environment), "out": str(out)}), out)

    def ask(self, job: Mapping[str, Any]) -> int:
        """Send a job, and return the int of the answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


class Child:
    """One job in its own process."""

    def __init__(self, fork_server: ForkServer, pid: int, out: Path) -> None:
        self.fork_server, self.pid, self.out = fork_server, pid, out

    def wait(self) -> int:
        """Wait for the process and return its exit status, negative for a signal."""
        return self.fork_server.ask({"wait": self.pid})

    def result(self) -> dict[str, Any]:
        """Wait, and return the result: path and digest, or error and message; and the connections."""
        assert self.wait() == 0
        result: dict[str, Any] = json.loads(self.out.read_text())
        return result


def _download(job: Mapping[str, Any]) -> dict[str, Any]:
    """Download, in the child, the file of ``repo`` or that at ``url``, with its ``digest`` and ``size``.

    ``flock=False`` makes file locks ineffective, ``limit`` is the largest file that may be written, ``powerless`` drops
    the capabilities that let root write anywhere, and ``create`` builds the model from the file.
    """
    import fcntl
    import resource

    # It reads its environment variables when it is imported, so each child imports it itself.
    assert "huggingface_hub" not in sys.modules
    os.environ.update(job["environment"])
    from records import FILE, REVISION, WHO, digest_of, publish, record_of
    from tensors import TINY

    import medzoo
    from medzoo.errors import MedzooError
    from medzoo.weights.download import fetch_file
    from medzoo.weights.record import HubFile, UrlFile

    connections: list[str] = []

    def record_connection(event: str, args: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            connections.append(repr(args))

    sys.addaudithook(record_connection)
    if not job.get("flock", True):
        fcntl.flock = lambda *_: None
    if job.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    if job.get("powerless"):
        _give_up_capabilities()
    source = UrlFile(url=job["url"]) if "url" in job else HubFile(repo=job["repo"], file=FILE, revision=REVISION)
    record = record_of(source, b"", digest=job["digest"], size=job["size"])
    try:
        path, data = fetch_file(record, who=WHO)
        if job.get("create"):
            publish("cnn3d_small", record)
            medzoo.create("cnn3d_small", pretrained="test", **TINY)
    except MedzooError as error:
        result = {"error": type(error).__name__, "message": str(error)}
    else:
        result = {"path": str(path), "digest": digest_of(data)}
    return {**result, "connections": connections}


def _give_up_capabilities() -> None:
    """Make file modes apply to root as to any other user."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the call, and this process
    none = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def _answer(job: Mapping[str, Any], work: Callable[[Mapping[str, Any]], Any]) -> int:
    """Fork a child for a job and return its id; or wait for one and return its status."""
    if "wait" in job:
        return os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1])
    pid = os.fork()
    if pid:
        return pid
    code = 9
    try:
        result = work(job)
        written = os.open(job["out"], os.O_WRONLY | os.O_CREAT)
        os.write(written, json.dumps(result).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def serve(work: Callable[[Mapping[str, Any]], Any], modules: Sequence[str]) -> None:
    """Import the modules, and answer jobs until the input ends."""
    for name in modules:
        import_module(name)
    for line in sys.stdin:
        sys.stdout.write(f"{_answer(json.loads(line), work)}\n")
        sys.stdout.flush()


def main() -> None:
    """Serve downloads."""
    serve(_download, ("torch", "safetensors.torch", "pooch", "requests", "records"))


if __name__ == "__main__":
    main()
