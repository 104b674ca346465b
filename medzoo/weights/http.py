"""Files behind URLs, members of zip archives, and a mirror of one's own, through pooch."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from medzoo.atomic import new_file_mode, write_atomically
from medzoo.errors import ConfigError, WeightsCorrupt, WeightsUnavailable
from medzoo.weights.cache import digest_of, home, stored_file
from medzoo.weights.record import UrlFile, Weights, ZipMember
from medzoo.weights.retry import (
    BUSY,
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    Busy,
    check_room,
    patiently,
    shown,
    telling_of_the_disk,
)
from medzoo.weights.safetensors import refuse_substitutes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["download", "from_mirror", "mirror"]

CHUNK = 1 << 20


def mirror() -> str | None:
    """Return ``MEDZOO_MIRROR``, where every file with a digest is had by ``GET {mirror}/{algorithm}/{hex digest}``.

    Raises:
        ConfigError: not a URL of http or https; it is not repeated, because it may hold a password.
    """
    given = os.environ.get("MEDZOO_MIRROR", "").rstrip("/")
    if given and not given.startswith(("http://", "https://")):
        raise ConfigError(
            "MEDZOO_MIRROR: expected a URL that begins with http:// or https://, got another. Correct it."
        )
    return given or None


def from_mirror(record: Weights, who: str) -> Path:
    """Get a file from the mirror, which takes the place of its publisher's server."""
    url = f"{mirror()}/{record.digest.replace(':', '/')}"
    return _get(url, record.digest, record.size, stored_file(record.digest), who)


def download(record: Weights, who: str) -> Path:
    """Get the file of a URL or of an archive's member into :func:`~medzoo.weights.cache.home`.

    Raises:
        WeightsUnavailable: it cannot be had.
        WeightsCorrupt: other bytes came.
    """
    source = record.source
    target = stored_file(record.digest)
    if isinstance(source, UrlFile):
        return _get(source.url, record.digest, record.size, target, who)
    if not isinstance(source, ZipMember):
        raise TypeError(f"{source} has no URL")
    # A folder of this process alone, so that no other takes the archive away from under it.
    with telling_of_the_disk(who, target.parent, source.size):
        home().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home(), prefix="archive-") as folder:
            archive = _get(source.url, source.digest, source.size, Path(folder) / "archive.zip", who)
            return _extract(archive, source, record, target, who)


def _get(url: str, digest: str, size: int | None, target: Path, who: str) -> Path:
    """Download one file, held to its digest before it takes its place."""
    import pooch
    import requests

    check_room(who, target.parent, size)
    # A password of a mirror is used, and shown nowhere.
    parts = urlsplit(url)
    login = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    url = shown(url)
    downloader = _downloader(who, digest, size, target, login)

    def attempt() -> Path:
        try:
            pooch.retrieve(
                url,
                known_hash=digest,
                fname=target.name,
                path=target.parent,
                downloader=downloader,
            )
        except requests.HTTPError as error:
            response: Any = error.response
            response.close()
            status = response.status_code
            if status in BUSY:
                raise Busy(f"{status} from {url}", response.headers.get("Retry-After")) from error
            raise WeightsUnavailable(f"{who}: {url} answers {status}. {_advice(status)}") from error
        except requests.exceptions.SSLError as error:
            raise WeightsUnavailable(
                f"{who}: the certificate of {url} cannot be trusted. Where a proxy has its own, set SSL_CERT_FILE to "
                "it."
            ) from error
        except requests.ConnectionError as error:
            raise WeightsUnavailable(
                f"{who}: it is not in {home()}, and {url} cannot be reached ({type(error).__name__}). Check the "
                "network and its proxies, set MEDZOO_MIRROR to a mirror of your own, or copy the folder that medzoo "
                "fetch --to DIR writes elsewhere, and set MEDZOO_HOME to it."
            ) from error
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.MissingSchema,
        ) as error:
            raise ConfigError(
                f"{who}: expected a URL of http or https, got {url!r}. Check it, MEDZOO_MIRROR and the proxies."
            ) from error
        except requests.Timeout as error:
            raise WeightsUnavailable(
                f"{who}: {url} sends nothing for {READ_TIMEOUT:g} s. It is not in {home()} either. Try again later, "
                "set MEDZOO_MIRROR to a mirror of your own, or use medzoo fetch --to DIR on another machine."
            ) from error
        except requests.RequestException as error:
            raise Busy(f"{type(error).__name__} from {url}") from error
        # A temporary file is its owner's alone; this one may be shared as far as the umask lets others read.
        target.chmod(new_file_mode(target.parent))
        return target

    with telling_of_the_disk(who, target.parent, size):
        return patiently(attempt, who)


def _advice(status: int) -> str:
    if status in (401, 403):
        return "It is not open to everyone, or a proxy is in the way: ask for access, or set MEDZOO_MIRROR."
    return "The file is gone from there: upgrade medzoo, or set MEDZOO_MIRROR to a mirror of your own."


def _downloader(who: str, digest: str, size: int | None, target: Path, login: tuple[str, str] | None) -> Any:
    """Return pooch's downloader with our timeouts, certificates and progress bar, and our words for other bytes.

    pooch compares the digest, too, but its error does not tell what came instead.
    """
    import pooch

    class Downloader(pooch.HTTPDownloader):  # type: ignore[misc]
        def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> Any:
            done = super().__call__(url, output_file, pooch, check_only)
            with Path(output_file).open("rb") as file:
                refuse_substitutes(file.read(256), url)
                file.seek(0)
                algorithm = digest.partition(":")[0]
                got = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
                came = file.tell()
            if got != digest:
                expected = f"{digest}, {size} bytes" if size is not None else digest
                raise WeightsCorrupt(f"{url}: expected {expected} for {target}, got {got}, {came} bytes.")
            return done

    # requests knows REQUESTS_CA_BUNDLE; SSL_CERT_FILE is what the Hub's client and most other tools read.
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates and not Path(certificates).exists():
        raise ConfigError(
            f"{who}: expected SSL_CERT_FILE to be a file of certificates, got {certificates}. Correct or unset it."
        )
    return Downloader(
        progressbar=_Bar(who, size),
        chunk_size=CHUNK,
        timeout=(CONNECT_TIMEOUT, READ_TIMEOUT),
        verify=certificates or True,
        auth=login,
    )


class _Bar:
    """A rich progress bar with the four verbs that pooch knows, which stops what is longer than it should be."""

    total = 0

    def __init__(self, who: str, size: int | None) -> None:
        self.who, self.size, self.count = who, size, 0
        self.bar: Progress | None = None
        self.task: TaskID | None = None

    def update(self, count: int) -> None:
        """Count ``count`` more bytes, or a chunk that is not quite so long."""
        self.count += count
        if self.size is not None and self.count >= self.size + 2 * CHUNK:
            raise WeightsCorrupt(f"{self.who}: expected {self.size} bytes, got more. The file was replaced there.")
        if not sys.stderr.isatty():
            return
        if self.bar is None or self.task is None:
            from rich.console import Console
            from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

            columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task(self.who, total=self.total or None)
            self.bar.start()
        self.bar.update(self.task, advance=count)

    def reset(self) -> None:
        """Start again from nothing."""
        self.count = 0
        if self.bar is not None and self.task is not None:
            self.bar.reset(self.task)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.stop()


def _extract(archive: Path, source: ZipMember, record: Weights, target: Path, who: str) -> Path:
    """Take one member out of an archive, held to its digest; never more bytes than the record says."""
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
