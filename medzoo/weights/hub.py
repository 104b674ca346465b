"""Files of the Hugging Face Hub, through its own client, and what its errors mean.

The client compares sizes, not digests, and takes 23 seconds to find that nobody answers. So it is asked first whether
the file is there, which is not retried, and whoever reads the file holds it to its digest.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medzoo.errors import WeightsCorrupt, WeightsUnavailable
from medzoo.version import __version__
from medzoo.weights.record import HubFile
from medzoo.weights.retry import BUSY, CONNECT_TIMEOUT, Busy, check_room, disk_error, offline, patiently, shown

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

__all__ = ["cached", "discard", "download", "gives_no_answer", "is_sound"]

logger = logging.getLogger("medzoo")

# Seconds without any sign of life after which a lock counts as left behind by a process that died.
LOCK_TIMEOUT = 120.0
UPGRADE = "It was removed or renamed after this medzoo was made: upgrade medzoo."
CHECK = "Check the name and the revision; what medzoo loads was written by push_to_hub or save_pretrained."


def cached(source: HubFile) -> list[Path]:
    """Return where the client's cache has the file: at the pinned commit, or, without one, at any.

    Asks no network.
    """
    from huggingface_hub import constants

    # The layout of the cache is documented: models--owner--name/snapshots/<commit>/<file>.
    snapshots = Path(constants.HF_HUB_CACHE) / f"models--{source.repo.replace('/', '--')}" / "snapshots"
    found = [snapshots / source.revision] if source.revision else sorted(snapshots.glob("*"))
    return [path for folder in found if (path := folder / source.file).exists()]


def is_sound(path: Path, data: bytes) -> bool:
    """Whether a cached file is whole: its bytes are what its blob's name says, or there is no blob to tell by.

    Large files are named by SHA-256, others by git's SHA-1. Where the system has no links, the file lies in the
    snapshot itself, under its own name.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs":
        return True
    if len(blob.name) == 64:
        return hashlib.sha256(data).hexdigest() == blob.name
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return git.hexdigest() == blob.name


def discard(path: Path) -> None:
    """Remove a link of the client's cache and the damaged blob that it points to; anything else is the user's."""
    blob = path.resolve()
    if blob.parent.name == "blobs":
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)


def download(source: HubFile, who: str, *, size: int | None = None, force: bool = False) -> Path:
    """Download a file into the client's cache.

    Args:
        source: what to get.
        who: for messages.
        size: bytes it should have, to see that there is room.
        force: download although the cache has it.

    Raises:
        WeightsUnavailable: the Hub does not answer, or does not have or give it; no room; no permission.
        WeightsCorrupt: less or more came than the Hub said.
    """
    from huggingface_hub import constants

    metadata = _probe(source, who)
    check_room(who, Path(constants.HF_HUB_CACHE), size if size is not None else metadata.size)
    try:
        return patiently(lambda: _take(source, who, str(metadata.etag), size, force), f"{who}: {source}")
    except WeightsUnavailable as error:
        if isinstance(error.__cause__, Busy):
            raise _no_answer(f"{error} {_ways_out()}") from error
        raise


def _take(source: HubFile, who: str, etag: str, size: int | None, force: bool) -> Path:
    """Let the client download, once."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    cache = Path(constants.HF_HUB_CACHE)
    try:
        _wait_for_lock(cache, source, etag, who)
        return Path(
            hf_hub_download(
                source.repo,
                source.file,
                revision=source.revision,  # None is main, and remembered as such
                force_download=force,
                library_name="medzoo",
                library_version=__version__,
            )
        )
    except WeightsUnavailable:
        raise
    except HfHubHTTPError as error:
        # The client itself tries again when it asked too often, and goes by what the Hub says of how long to wait.
        if error.response.status_code in BUSY - {429}:
            raise Busy(f"{error.response.status_code} from the Hub") from error
        raise _told(error, source, who, size=size) from error
    except OSError as error:
        # The client compares the size, and says so in words alone.
        if type(error) is OSError and "Consistency check" in str(error):
            reason = str(error).partition("\n")[0]
            raise WeightsCorrupt(f"{source}: {reason}") from error
        raise _told(error, source, who, size=size) from error
    # The client lets its HTTP library's errors through, whatever that is today.
    except Exception as error:
        raise _told(error, source, who, size=size) from error


def _probe(source: HubFile, who: str) -> HfFileMetadata:
    """Ask for the file's commit, digest and size; quick to fail."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if offline():
        raise _no_answer(
            f"{who}: {source} cannot be asked for, because HF_HUB_OFFLINE is set. Looked in {constants.HF_HUB_CACHE}. "
            "Run medzoo fetch where there is a network, or unset HF_HUB_OFFLINE."
        )

    def attempt() -> HfFileMetadata:
        url = hf_hub_url(source.repo, source.file, revision=source.revision, endpoint=constants.ENDPOINT)
        try:
            return get_hf_file_metadata(url, timeout=CONNECT_TIMEOUT)
        except HfHubHTTPError as error:
            if error.response.status_code in BUSY:
                raise Busy(
                    f"{error.response.status_code} from the Hub", error.response.headers.get("Retry-After")
                ) from error
            raise

    try:
        found = patiently(attempt, f"{who}: {source}")
    except WeightsUnavailable as error:
        raise _no_answer(f"{error} {_ways_out()}") from error
    except Exception as error:
        raise _told(error, source, who) from error
    if found.commit_hash is None or found.etag is None:
        raise WeightsUnavailable(
            f"{who}: {shown(constants.ENDPOINT)} gave not a Hub response for {source}: a login page or a proxy stands "
            "between. Log in to the network, or set HF_ENDPOINT."
        )
    return found


def _ways_out() -> str:
    from huggingface_hub import constants

    return (
        f"Looked in {constants.HF_HUB_CACHE}. With a network once, medzoo fetch keeps the file; then HF_HUB_OFFLINE=1 "
        "asks none. MEDZOO_MIRROR takes it from a server of your own."
    )


def _told(error: Exception, source: HubFile, who: str, *, size: int | None = None) -> WeightsUnavailable:
    """Turn an error of the client into ours. The token, which its texts do not hold either, is never told."""
    from huggingface_hub import constants, errors

    endpoint, mend = shown(constants.ENDPOINT), UPGRADE if source.listed else CHECK
    status = getattr(getattr(error, "response", None), "status_code", None)
    closed = f"the Hub does not give {source}: request access at {endpoint}/{source.repo}, then hf auth login."
    known: list[tuple[bool, str]] = [
        (isinstance(error, errors.GatedRepoError), closed),
        (
            isinstance(error, errors.RepositoryNotFoundError),
            f"the Hub has no {source}: no such repository, or a private one, which hf auth login may open. {mend}",
        ),
        (isinstance(error, errors.RevisionNotFoundError), f"the Hub has no {source}: no such revision. {mend}"),
        (
            isinstance(error, errors.RemoteEntryNotFoundError) or status == 404,
            f"the Hub has no {source}: no such file. {mend}",
        ),
        (status in (401, 403), closed),
        (isinstance(error, errors.HFValidationError), f"{source} is no repository and file ({error})."),
        (status is not None, f"the Hub answers {status} for {source}. {_ways_out()}"),
    ]
    for fits, message in known:
        if fits:
            return WeightsUnavailable(f"{who}: {message}")
    if isinstance(error, OSError) and error.errno is not None:
        disk = disk_error(who, error, Path(constants.HF_HUB_CACHE), size)
        if disk is not None:
            return disk
    cause: Any = error.__cause__ or error
    return _no_answer(f"{who}: {source} could not be had from {endpoint} ({type(cause).__name__}). {_ways_out()}")


def _no_answer(message: str) -> WeightsUnavailable:
    """Return the error for a Hub that says nothing of the file: out of reach, busy, or not to be asked."""
    error = WeightsUnavailable(message)
    error.__dict__["unanswered"] = True
    return error


def gives_no_answer(error: WeightsUnavailable) -> bool:
    """Whether the Hub said nothing of the file, neither that it is gone nor that it is closed."""
    return "unanswered" in error.__dict__


def _wait_for_lock(cache: Path, source: HubFile, etag: str, who: str) -> None:
    """Wait while another process downloads the same file, but not for a lock whose owner died.

    Where a filesystem has no locks of its own, the client's lock is a file, which stays when its owner is killed.
    """
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    folder = f"models--{source.repo.replace('/', '--')}"
    lock = cache / ".locks" / folder / f"{etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            with WeakFileLock(lock, timeout=LOCK_TIMEOUT):
                return
        except Timeout as error:
            if _grows((cache / folder / "blobs").glob(f"{etag}*.incomplete")):
                logger.info("%s: another process downloads %s", who, source)
                continue
            raise WeightsUnavailable(
                f"{who}: {lock} was held for {LOCK_TIMEOUT:g} s and nothing was downloaded: its process probably died. "
                "Delete that file and try again."
            ) from error


def _grows(parts: Iterable[Path]) -> bool:
    """Whether any of the files was written to of late, or has just been finished."""
    for path in parts:
        try:
            if time.time() - path.stat().st_mtime < LOCK_TIMEOUT:
                return True
        except FileNotFoundError:
            return True
    return False
