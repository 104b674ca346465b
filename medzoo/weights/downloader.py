"""The download of one file by pooch: its bytes are counted, limited, and compared with a digest."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from medzoo.errors import ConfigError, WeightsCorrupt, WeightsUnavailable
from medzoo.progress import progress_bar
from medzoo.weights.safetensors import refuse_substitutes

__all__ = ["CHUNK_BYTES", "ByteProgress", "pooch_downloader"]

CHUNK_BYTES = 1 << 20


def pooch_downloader(
    who: str, expected: tuple[str, str] | None, target: Path, login: tuple[str, str] | None, progress: ByteProgress,
    timeout: tuple[float, float],
) -> Any:  # fmt: skip
    """Return pooch's downloader with medzoo's timeouts, certificates, progress bar and error for other bytes.

    pooch compares the digest as well, but its error does not state the digest it got.
    """
    import pooch

    answers: list[Any] = []

    def keep(answer: Any, *_: Any, **__: Any) -> None:
        answers.append(answer)
        to = urljoin(answer.url, answer.headers.get("location", ""))
        if answer.is_redirect and answer.url.startswith("https:") and not to.startswith("https:"):
            raise WeightsUnavailable(
                f"{who}: {answer.url} leads from https to {to.partition(':')[0]}, where the file could be exchanged on "
                "its way. Try another network, or set MEDZOO_MIRROR to your own mirror."
            )

    class Downloader(pooch.HTTPDownloader):  # type: ignore[misc]
        def __call__(self, url: str, output_file: Any, pooch: Any, check_only: bool = False) -> Any:
            self.progressbar.reset()  # of an attempt that failed
            try:
                done = super().__call__(url, output_file, pooch, check_only)
            finally:
                self.progressbar.close()
                while answers:  # a download that was stopped would keep its connection open
                    answers.pop().close()
            with Path(output_file).open("rb") as file:
                refuse_substitutes(file.read(256), url)
                if expected is None:
                    return done
                file.seek(0)
                algorithm = expected[0].partition(":")[0]
                got = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
                received = file.tell()
            if got != expected[0]:
                raise WeightsCorrupt(f"{url}: expected {expected[1]} for {target}, got {got}, {received} bytes.")
            return done

    # requests reads REQUESTS_CA_BUNDLE; the Hub's client and most other tools read SSL_CERT_FILE.
    certificates = os.environ.get("SSL_CERT_FILE")
    if certificates and not Path(certificates).exists():
        raise ConfigError(
            f"{who}: expected SSL_CERT_FILE to be a file of certificates, got {certificates}. Correct or unset it."
        )
    return Downloader(
        progressbar=progress,
        chunk_size=CHUNK_BYTES,
        timeout=timeout,
        verify=certificates or True,
        auth=login,
        hooks={"response": keep},
    )


class ByteProgress:
    """A rich progress bar with the methods that pooch calls; stops a download longer than is stated or allowed."""

    total = 0  # set by pooch

    def __init__(self, who: str, size: int | None, most: int | None) -> None:
        from rich.progress import DownloadColumn, TransferSpeedColumn

        self.who, self.size, self.most, self.count = who, size, most, 0
        self.bar = progress_bar(DownloadColumn(), TransferSpeedColumn())
        self.task = self.bar.add_task(who, total=None)

    def update(self, count: int) -> None:
        """Add ``count`` bytes, up to one chunk more than were received."""
        self.count += count
        if self.most is not None and self.count >= self.most + 2 * CHUNK_BYTES:
            most = f"{self.size} bytes" if self.size is not None else f"at most {self.most:,} bytes"
            raise WeightsCorrupt(f"{self.who}: expected {most}, got more. The file was replaced there.")
        self.bar.start()
        self.bar.update(self.task, total=self.total or None, completed=self.count)

    def reset(self) -> None:
        """Set the count back to zero."""
        self.count = 0
        self.bar.reset(self.task)

    def close(self) -> None:
        """Stop updating the bar."""
        self.bar.stop()
