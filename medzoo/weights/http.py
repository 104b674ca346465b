"""Files behind URLs, in zip archives and on a mirror, through pooch; and the retries that every download shares."""

from __future__ import annotations

import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from medzoo.atomic import new_file_mode, write_atomically
from medzoo.errors import ConfigError, WeightsCorrupt, WeightsUnavailable
from medzoo.weights.cache import check_room, digest_of, download_lock, home, stored_file, wrap_disk_errors
from medzoo.weights.downloader import ByteProgress, pooch_downloader
from medzoo.weights.record import UrlFile, Weights, ZipMember

__all__ = [
    "BUSY_STATUS",
    "CONNECT_TIMEOUT",
    "ServerBusy",
    "download_unlisted",
    "download_url",
    "is_offline",
    "mirror_url",
    "retry",
    "without_login",
]

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 15.0
# Seconds between attempts at a busy server; an error comes after ten seconds at most.
WAITS = (1.0, 2.0)
LONGEST_WAIT = 4.0
# Too many requests, or a temporary failure of the server.
BUSY_STATUS = frozenset({408, 429, 500, 502, 503, 504})

T = TypeVar("T")
ELSEWHERE = (
    "run medzoo fetch --to DIR on another machine, copy that folder here and set MEDZOO_HOME to it",
    "run medzoo fetch --to DIR on another machine",
)
"""What to do without a network, for weights: in full, and where the server was reached."""


class ServerBusy(Exception):
    """The server is busy for the moment; never leaves this package.

    Attributes:
        wait: seconds that the server asks to wait, or ``None``.
    """

    def __init__(self, reason: str, wait: str | None = None) -> None:
        super().__init__(reason)
        self.wait = float(wait) if wait is not None and wait.isdigit() else None


def retry(attempt: Callable[[], T], who: str) -> T:
    """Call ``attempt`` until it does not raise :class:`ServerBusy`, three times at most.

    Raises:
        WeightsUnavailable: it was busy every time.
    """
    waits = iter(WAITS)
    while True:
        try:
            return attempt()
        except ServerBusy as busy:
            wait = next(waits, None)
            if wait is None:
                raise WeightsUnavailable(
                    f"{who}: the server is busy or drops the connection ({busy}), {len(WAITS) + 1} times in a row. Try "
                    "again later."
                ) from busy
            time.sleep(min(busy.wait if busy.wait is not None else wait, LONGEST_WAIT))


def is_offline() -> bool:
    """Whether no network may be accessed: ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` is set."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def without_login(url: str) -> str:
    """Return a URL without the user name and password it may contain.

    >>> without_login("https://user:secret@host/x")
    'https://host/x'
    """
    scheme, slashes, rest = url.rpartition("://")
    host, slash, path = rest.partition("/")
    return scheme + slashes + host.rpartition("@")[2] + slash + path


def mirror_url() -> str | None:
    """Return ``MEDZOO_MIRROR``, a server that has every file at ``{mirror}/{algorithm}/{hex digest}``.

    Raises:
        ConfigError: not an http or https URL; the message does not repeat it, because it may contain a password.
    """
    given = os.environ.get("MEDZOO_MIRROR", "").rstrip("/")
    if given and not given.startswith(("http://", "https://")):
        raise ConfigError(
            "MEDZOO_MIRROR: expected a URL that begins with http:// or https://, got another. Correct it."
        )
    return given or None


def download_url(record: Weights, who: str, mirror: str | None) -> Path:
    """Download a file, or extract it from a downloaded archive, into :func:`~medzoo.weights.cache.home`.

    Args:
        record: the weights.
        who: the weights, for messages.
        mirror: the server that replaces the publisher's; ``None`` for the publisher's.

    Raises:
        WeightsUnavailable: the server does not provide it, or it cannot be stored.
        WeightsCorrupt: the server provides other bytes.
    """
    source, target = record.source, stored_file(record.digest)
    with download_lock(record.digest):
        if mirror:
            return _download(f"{mirror}/{record.digest.replace(':', '/')}", record.digest, record.size, target, who)
        if isinstance(source, UrlFile):
            return _download(source.url, record.digest, record.size, target, who)
        if isinstance(source, ZipMember):
            return _download_member(source, record, target, who)
    raise TypeError(f"{source} has no URL")


def download_unlisted(url: str, who: str, *, most_bytes: int, elsewhere: str) -> bytes:
    """Return a file of which no digest is known; whoever calls compares it with something else.

    On a mirror it is at ``{mirror}/data/{name}``, with the name that ends the URL.

    Args:
        url: of the publisher.
        who: the file, for messages.
        most_bytes: more is refused before it is complete.
        elsewhere: how a person gets the file without this network.

    Raises:
        WeightsUnavailable: no network may be accessed, the server does not provide it, or it cannot be stored.
        WeightsCorrupt: it is larger, or a web page.
    """
    mirror = mirror_url()
    if is_offline():
        raise WeightsUnavailable(
            f"{who}: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids network access. Unset it, or {elsewhere}."
        )
    url = f"{mirror}/data/{url.rpartition('/')[2]}" if mirror else url
    with wrap_disk_errors(who, home(), None):
        home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home(), prefix="archive-") as folder:
            target = Path(folder) / "archive.zip"  # a name that the cache knows as left over, should this be killed
            limit = partial(ByteProgress, who, None, most_bytes)
            return _retrieve(url, None, target, who, limit, (elsewhere, elsewhere)).read_bytes()


def _download_member(source: ZipMember, record: Weights, target: Path, who: str) -> Path:
    """Download an archive, in a folder of this process alone, and extract the file."""
    if target.is_file() and digest_of(target.read_bytes(), record.digest.partition(":")[0]) == record.digest:
        return target  # another process extracted it while this one waited
    with wrap_disk_errors(who, target.parent, source.size):
        home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home(), prefix="archive-") as folder:
            archive = _download(source.url, source.digest, source.size, Path(folder) / "archive.zip", who)
            return _extract(archive, source, record, target, who)


def _download(url: str, digest: str, size: int | None, target: Path, who: str) -> Path:
    """Download one file, and check its digest before it is moved to ``target``."""
    check_room(who, target.parent, size)
    stated = f"{digest}, {size} bytes" if size is not None else digest
    return _retrieve(url, (digest, stated), target, who, partial(ByteProgress, who, size, size), ELSEWHERE, size)


def _retrieve(
    url: str, expected: tuple[str, str] | None, target: Path, who: str, progress: Callable[[], ByteProgress],
    elsewhere: tuple[str, str], size: int | None = None,
) -> Path:  # fmt: skip
    """Download one file through pooch; ``expected`` is its digest, and how a message states it."""
    import pooch
    from requests import exceptions

    # The password of a mirror is sent, but never shown.
    parts = urlsplit(url)
    login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    url = without_login(url)
    digest = expected[0] if expected else None
    downloader = pooch_downloader(who, expected, target, login, progress(), (CONNECT_TIMEOUT, READ_TIMEOUT))
    pooch.get_logger().setLevel("WARNING")  # it logs every download to stderr, which the progress bar shows

    def attempt() -> Path:
        try:
            pooch.retrieve(url, known_hash=digest, fname=target.name, path=target.parent, downloader=downloader)
        except exceptions.HTTPError as error:
            response: Any = error.response
            response.close()
            status = response.status_code
            if status in BUSY_STATUS:
                raise ServerBusy(f"{status} from {url}", response.headers.get("Retry-After")) from error
            advice = "The file is no longer there: upgrade medzoo, or set MEDZOO_MIRROR to your own mirror."
            if status in (401, 403):
                advice = "It is not public, or a proxy blocks it: ask for access, or set MEDZOO_MIRROR."
            raise WeightsUnavailable(f"{who}: {url} answers {status}. {advice}") from error
        except exceptions.SSLError as error:
            raise WeightsUnavailable(
                f"{who}: the certificate of {url} is not trusted. If a proxy has its own, set SSL_CERT_FILE to it."
            ) from error
        except exceptions.ConnectionError as error:
            raise WeightsUnavailable(
                f"{who}: {_absent(digest)}{url} cannot be reached ({type(error).__name__}). Check the network and its "
                f"proxies, set MEDZOO_MIRROR to your own mirror, or {elsewhere[0]}."
            ) from error
        except (exceptions.InvalidURL, exceptions.InvalidSchema, exceptions.MissingSchema) as error:
            raise ConfigError(
                f"{who}: expected an http or https URL, got {url!r}. Check it, MEDZOO_MIRROR and the proxies."
            ) from error
        except exceptions.Timeout as error:
            raise WeightsUnavailable(
                f"{who}: {_absent(digest)}{url} sends nothing for {READ_TIMEOUT:g} s. Try again later, set "
                f"MEDZOO_MIRROR to your own mirror, or {elsewhere[1]}."
            ) from error
        except exceptions.RequestException as error:
            raise ServerBusy(f"{type(error).__name__} from {url}") from error
        # pooch's temporary file is private to its owner; this one may be read by others as far as the umask allows.
        target.chmod(new_file_mode(target.parent))
        return target

    with wrap_disk_errors(who, target.parent, size):
        return retry(attempt, who)


def _absent(digest: str | None) -> str:
    """Return that a file is not in the cache, where it would be if a digest is known."""
    return "" if digest is None else f"it is not in {home()}, and "


def _extract(archive: Path, source: ZipMember, record: Weights, target: Path, who: str) -> Path:
    """Extract one member of an archive after checking its digest; reads no more bytes than the record states."""
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(source.member) as member:
            data = member.read() if record.size is None else member.read(record.size + 1)
    except (KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise WeightsCorrupt(
            f"{who}: expected {source.member} in {source.url}, got another archive ({error})."
        ) from error
    if digest_of(data, record.digest.partition(":")[0]) != record.digest:
        raise WeightsCorrupt(f"{source}: expected {record.digest}, got other bytes.")
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, data)
    return target
