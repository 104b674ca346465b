"""A process that has imported all it needs and forks a child for every fetch, so that children are cheap to kill.

Run as a program it reads jobs, a line of JSON each, and answers with a line each; :class:`Nursery` talks to it.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Nursery"]


class Nursery:
    """The test's side: start children, wait for them, and read what they have to say."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.communicate()

    def start(self, environment: Mapping[str, str], out: Path, job: Mapping[str, Any], **how: Any) -> Child:
        """Start a child that fetches, with an environment of its own and with the switches of :func:`_work`."""
        return Child(self, self.ask({**job, **how, "environment": dict(environment), "out": str(out)}), out)

    def ask(self, job: Mapping[str, Any]) -> int:
        """Send a line, and return the number that comes back."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


class Child:
    """One fetch in a process of its own."""

    def __init__(self, nursery: Nursery, pid: int, out: Path) -> None:
        self.nursery, self.pid, self.out = nursery, pid, out

    def wait(self) -> int:
        """Wait for its end and return its exit status, negative for a signal."""
        return self.nursery.ask({"wait": self.pid})

    def result(self) -> dict[str, Any]:
        """Wait, and return what it says: path and digest, or error and message; and its connections."""
        assert self.wait() == 0
        said: dict[str, Any] = json.loads(self.out.read_text())
        return said


def _work(job: Mapping[str, Any]) -> dict[str, Any]:
    """Fetch, in the child: the file of ``repo`` or that at ``url``, to be held to ``digest`` and ``size``.

    ``flock=False`` makes locks of files hold nothing, ``limit`` is the largest file that may be written,
    ``powerless`` gives up what lets root write anywhere, and ``create`` builds the model from the fetched file.
    """
    import fcntl
    import resource

    os.environ.update(job["environment"])
    from records import FILE, REVISION, WHO, digest_of, publish, record_of
    from tensors import TINY

    import medzoo
    from medzoo.errors import MedzooError
    from medzoo.weights.fetch_file import verified
    from medzoo.weights.record import HubFile, UrlFile

    connections: list[str] = []

    def notice(event: str, args: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.getaddrinfo"):
            connections.append(repr(args))

    sys.addaudithook(notice)
    if not job.get("flock", True):
        fcntl.flock = lambda *_: None
    if job.get("limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    if job.get("powerless"):
        _give_up_capabilities()
    source = UrlFile(url=job["url"]) if "url" in job else HubFile(repo=job["repo"], file=FILE, revision=REVISION)
    record = record_of(source, b"", digest=job["digest"], size=job["size"])
    try:
        path, data = verified(record, who=WHO)
        if job.get("create"):
            publish("cnn3d_small", record)
            medzoo.create("cnn3d_small", pretrained="test", **TINY)
    except MedzooError as error:
        said = {"error": type(error).__name__, "message": str(error)}
    else:
        said = {"path": str(path), "digest": digest_of(data)}
    return {**said, "connections": connections}


def _give_up_capabilities() -> None:
    """Make root a user like others for files: only what their modes allow."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the call, and this process
    none = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def _answer(job: Mapping[str, Any]) -> int:
    """Fork a child for a job and return its id; or wait for one and return its status."""
    if "wait" in job:
        return os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1])
    pid = os.fork()
    if pid:
        return pid
    code = 9
    try:
        said = _work(job)
        written = os.open(job["out"], os.O_WRONLY | os.O_CREAT)
        os.write(written, json.dumps(said).encode())
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    """Answer jobs until there are no more."""
    for name in ("torch", "safetensors.torch", "pooch", "requests", "records"):
        import_module(name)
    # It reads its variables when it is imported, so each child does that for itself.
    assert "huggingface_hub" not in sys.modules
    for line in sys.stdin:
        sys.stdout.write(f"{_answer(json.loads(line))}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
