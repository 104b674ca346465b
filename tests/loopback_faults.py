"""Faults between a client and a server: one function per fault, for ``Loopback.fail``."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

__all__ = [
    "LFS_POINTER",
    "WEB_PAGE",
    "Fault",
    "Reply",
    "bare",
    "cut",
    "gzipped",
    "hang",
    "lfs_pointer",
    "portal",
    "redirect",
    "slow",
    "stall",
    "status",
    "truncated",
    "unsized",
    "web_page",
    "wrong_bytes",
]

WEB_PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in to the guest network</title></head><body>Sign in</body></html>"
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n"
HUB_HEADERS = frozenset({"x-repo-commit", "etag", "x-linked-etag", "x-linked-size"})


@dataclass(frozen=True)
class Reply:
    """An answer before it is sent."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @staticmethod
    def error(status: int, code: str | None = None, message: str | None = None) -> Reply:
        """Return an error answer with the Hub's headers, or without them."""
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        return Reply(status, {name: value for name, value in headers.items() if value}, (message or "").encode())


@dataclass(frozen=True)
class Fault:
    """A fault of an answer.

    Attributes:
        change: maps the answer to another.
        instead: whether that replaces the server's answer, and the server does nothing.
        cut: number of bytes of the body that are sent before the connection closes.
        pace: bytes per write, and seconds between writes.
        stall: whether the connection stays open and silent after the bytes.
        hang: whether there is no answer at all.
        unsized: whether the Content-Length is left out, so that the body ends with the connection.
        methods: the methods that are affected.
    """

    change: Callable[[Reply], Reply] = field(default=lambda reply: reply)
    instead: bool = False
    cut: int | None = None
    pace: tuple[int, float] | None = None
    stall: bool = False
    hang: bool = False
    unsized: bool = False
    methods: tuple[str, ...] = ("HEAD", "GET", "POST", "PUT")


def status(
    number: int, code: str | None = None, message: str | None = None, headers: Mapping[str, str] | None = None
) -> Fault:
    """Answer with an error status, with or without the Hub's error code; ``Retry-After`` goes into the headers."""
    refusal = Reply.error(number, code, message)
    refusal = replace(refusal, headers={**refusal.headers, **(headers or {})})
    return Fault(lambda reply: refusal, instead=True)


def cut(after: int) -> Fault:
    """Close the connection after so many bytes of the body, fewer than announced."""
    return Fault(cut=after, methods=("GET",))


def stall(after: int) -> Fault:
    """Send so many bytes of the body and then no more, with the connection open."""
    return Fault(cut=after, stall=True, methods=("GET",))


def unsized(cut: int | None = None) -> Fault:
    """Leave out the length of the body, which may be cut after so many bytes: no client can detect that."""
    return Fault(unsized=True, cut=cut)


def slow(chunk: int, pause: float) -> Fault:
    """Send so many bytes at a time, with a pause in seconds."""
    return Fault(pace=(chunk, pause), methods=("GET",))


def hang() -> Fault:
    """Accept the connection and never answer."""
    return Fault(hang=True)


def wrong_bytes() -> Fault:
    """Send other bytes of the right size under the right headers."""
    return Fault(lambda reply: replace(reply, body=bytes(byte ^ 0x55 for byte in reply.body)), methods=("GET",))


def truncated(by: int = 1) -> Fault:
    """Send a complete answer whose body lacks its last bytes; the Hub's headers still state the full size."""
    return Fault(lambda reply: replace(reply, body=reply.body[:-by]), methods=("GET",))


def web_page() -> Fault:
    """Answer everything with a web page, as the login page of a guest network does."""
    return Fault(lambda reply: Reply(200, {"Content-Type": "text/html; charset=utf-8"}, WEB_PAGE), instead=True)


def lfs_pointer() -> Fault:
    """Send a Git LFS pointer instead of a large file."""

    def change(reply: Reply) -> Reply:
        return replace(reply, body=LFS_POINTER % (hashlib.sha256(reply.body).hexdigest().encode(), len(reply.body)))

    return Fault(change, methods=("GET",))


def bare() -> Fault:
    """Leave out every header of the Hub."""

    def change(reply: Reply) -> Reply:
        left = {name: value for name, value in reply.headers.items() if name.lower() not in HUB_HEADERS}
        return replace(reply, headers=left)

    return Fault(change)


def gzipped() -> Fault:
    """Send the body compressed with gzip."""

    def change(reply: Reply) -> Reply:
        return replace(reply, headers={**reply.headers, "Content-Encoding": "gzip"}, body=gzip.compress(reply.body))

    return Fault(change, methods=("GET",))


def portal(to: str) -> Fault:
    """Redirect to a login page, without any header of the Hub."""
    return Fault(lambda reply: Reply(302, {"Location": to}), instead=True)


def redirect(to: str, number: int = 302) -> Fault:
    """Redirect to a path of this server or to a URL; redirecting a path to itself is a loop."""
    return Fault(lambda reply: Reply(number, {**reply.headers, "Location": to}))
