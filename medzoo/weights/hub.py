"""Download and upload of files and saved models of the Hugging Face Hub, through its own client.

The client compares sizes, not digests, and takes 23 seconds to report that the Hub does not answer. So the file's
metadata is requested first, without the client's retries, and whoever reads the file checks its digest.
"""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from medzoo.errors import ConfigError, WeightsCorrupt, WeightsUnavailable
from medzoo.progress import hide_hub_progress
from medzoo.provenance import IntendedUse
from medzoo.version import __version__
from medzoo.weights.cache import check_room, disk_error, hub_files, hub_folder
from medzoo.weights.config import CONFIG_FILE, ModelConfig, SavedModel, read_folder
from medzoo.weights.formats import WEIGHTS_FILE
from medzoo.weights.http import BUSY_STATUS, CONNECT_TIMEOUT, ServerBusy, is_offline, retry, without_login
from medzoo.weights.record import HubFile
from medzoo.weights.save import save_pretrained

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

__all__ = ["download_from_hub", "is_intact", "push_to_hub", "read_repo", "remove_blob"]

logger = logging.getLogger("medzoo")

# Seconds without a write after which a lock counts as left behind by a process that died.
LOCK_TIMEOUT = 120.0
UPGRADE = "It was removed or renamed after this medzoo was released: upgrade medzoo."
CHECK_NAME = "Check the name and the revision; medzoo loads what push_to_hub or save_pretrained wrote."


def read_repo(name: str) -> SavedModel:
    """Read the config of a repository ``"owner/repo"`` or ``"owner/repo@revision"``; its weights are read at the load.

    A cached commit is used without any request. A branch or tag, ``main`` by default, is requested each time; if the
    Hub does not answer, its last known commit is used. If the Hub answers that it is gone or not accessible, that is an
    error.

    Raises:
        ConfigError: not the name of a repository, or its config is not medzoo's.
        WeightsUnavailable: the Hub does not answer, or does not have or provide it.
    """
    who = f"hf-hub:{name}"
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@\w[\w./-]*)?", name) or ".." in name:
        raise ConfigError(f"{who}: expected 'hf-hub:owner/repo' or 'hf-hub:owner/repo@revision'.")
    repo, _, revision = name.partition("@")
    source = HubFile(repo, CONFIG_FILE, revision or None, listed=False)
    path = next(iter(hub_files(source)), None) if revision else None
    if path is None:
        path = _newest(source, who)
    if not is_intact(path, path.read_bytes()):
        logger.warning("%s: %s was changed after the download; downloading it again", who, path)
        path = download_from_hub(source, who, force=True)
    saved, commit = read_folder(path.parent), path.parent.name
    source = HubFile(repo, WEIGHTS_FILE, commit, listed=False)
    return saved._replace(weights=replace(saved.weights, tag=f"{repo}@{commit[:12]}", source=source))


def push_to_hub(
    tensors: Mapping[str, Tensor],
    model: ModelConfig,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    license: str | None = None,
    trained_on: str | None = None,
    metrics: Mapping[str, float] | None = None,
    intended_use: IntendedUse | None = None,
) -> str:
    """Write a model to a repository on the Hub, which is created if it does not exist, in one commit.

    Args:
        tensors: the state dict of the model.
        model: what the model states about itself.
        repo_id: ``"owner/repo"``.
        private: whether a new repository is private; ``None`` is the owner's default.
        revision: the branch; ``None`` is ``main``.
        token: an access token; ``None`` uses that of ``hf auth login`` or ``HF_TOKEN``.
        license: SPDX identifier of the licence of the weights; ``None`` is that of the weights that were loaded.
        trained_on: the training data, in a sentence; ``None`` likewise.
        metrics: figures to publish with the weights.
        intended_use: the images and patients they are for; ``None`` is that of the weights that were loaded.

    Returns:
        The name for :func:`medzoo.create`: ``"hf-hub:owner/repo@commit"``.

    Raises:
        ConfigError: as :func:`~medzoo.weights.save.save_pretrained`.
        WeightsUnavailable: the Hub does not answer, or denies access.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(
            tensors,
            model,
            folder,
            license=license,
            trained_on=trained_on,
            metrics=metrics,
            intended_use=intended_use,
            name=f"hf-hub:{repo_id}",
        )
        try:
            api = HfApi(token=token, library_name="medzoo", library_version=__version__)
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                commit_message=f"{model.name}, saved by medzoo {__version__}",
            )
        # The client does not catch the errors of its HTTP library, which changes between versions.
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", "no answer")
            raise WeightsUnavailable(
                f"{model.name}: the upload to {repo_id} failed ({type(error).__name__}, {status}). Check the network, "
                "that the repository is yours, and that your token may write: hf auth login."
            ) from error
    return f"hf-hub:{repo_id}@{done.oid}"


def _newest(source: HubFile, who: str) -> Path:
    """Download a file of a branch or tag; if the Hub does not answer, return the last known version."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return download_from_hub(source, who)
    except WeightsUnavailable as error:
        if "unanswered" not in error.__dict__:
            raise
        known = try_to_load_from_cache(source.repo, source.file, revision=source.revision or "main")
        if not isinstance(known, str):
            raise
        logger.warning("%s: using the last version in the cache (%s)", who, error)
        return Path(known)


def is_intact(path: Path, data: bytes) -> bool:
    """Whether the bytes of a cached file match the name of its blob, or there is no blob to compare with.

    Large files are named by SHA-256, others by git's SHA-1. On systems without symbolic links the file is in the
    snapshot itself, under its own name.
    """
    blob = path.resolve()
    if blob.parent.name != "blobs":
        return True
    if len(blob.name) == 64:
        return hashlib.sha256(data).hexdigest() == blob.name
    git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
    return git.hexdigest() == blob.name


def remove_blob(path: Path) -> None:
    """Remove a link in the client's cache and the damaged blob it points to; any other file is the user's and stays."""
    blob = path.resolve()
    if blob.parent.name == "blobs":
        path.unlink(missing_ok=True)
        blob.unlink(missing_ok=True)


def download_from_hub(source: HubFile, who: str, *, size: int | None = None, force: bool = False) -> Path:
    """Download a file into the client's cache.

    Args:
        source: the file.
        who: for messages.
        size: its bytes, to check the free space.
        force: download it even if it is cached.

    Raises:
        WeightsUnavailable: the Hub does not answer, or does not have or provide it; no room; no permission.
        WeightsCorrupt: fewer or more bytes arrived than the Hub announced.
    """
    from huggingface_hub import constants

    hide_hub_progress()
    metadata = _probe(source, who)
    check_room(who, Path(constants.HF_HUB_CACHE), size if size is not None else metadata.size)
    try:
        return retry(lambda: _download_once(source, who, str(metadata.etag), size, force), f"{who}: {source}")
    except WeightsUnavailable as error:
        if isinstance(error.__cause__, ServerBusy):
            raise _unanswered(f"{error} {_alternatives()}") from error
        raise


def _download_once(source: HubFile, who: str, etag: str, size: int | None, force: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        _wait_for_lock(source, etag, who)
        return Path(
            hf_hub_download(
                source.repo,
                source.file,
                revision=source.revision,  # None means main, and is remembered as such
                force_download=force,
                library_name="medzoo",
                library_version=__version__,
            )
        )
    except WeightsUnavailable:
        raise
    # The client does not catch the errors of its HTTP library, which changes between versions.
    except Exception as error:
        # After 429 the client itself retries, and waits as long as the Hub asks.
        if isinstance(error, HfHubHTTPError) and error.response.status_code in BUSY_STATUS - {429}:
            raise ServerBusy(f"{error.response.status_code} from the Hub") from error
        # The client reports a wrong size as a plain OSError with this text.
        if type(error) is OSError and "Consistency check" in str(error):
            reason = str(error).partition("\n")[0]
            raise WeightsCorrupt(f"{source}: {reason}") from error
        raise _translate(error, source, who, size=size) from error


def _probe(source: HubFile, who: str) -> HfFileMetadata:
    """Request the file's commit, digest and size; fails quickly."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    if is_offline():
        raise _unanswered(
            f"{who}: {source} is not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids "
            "network access. Run medzoo fetch on a machine with a network, or unset it."
        )

    def attempt() -> HfFileMetadata:
        url = hf_hub_url(source.repo, source.file, revision=source.revision, endpoint=constants.ENDPOINT)
        try:
            return get_hf_file_metadata(url, timeout=CONNECT_TIMEOUT)
        except HfHubHTTPError as error:
            status, wait = error.response.status_code, error.response.headers.get("Retry-After")
            if status in BUSY_STATUS:
                raise ServerBusy(f"{status} from the Hub", wait) from error
            raise

    try:
        found = retry(attempt, f"{who}: {source}")
    except WeightsUnavailable as error:
        raise _unanswered(f"{error} {_alternatives()}") from error
    except Exception as error:
        raise _translate(error, source, who) from error
    if found.commit_hash is None or found.etag is None:
        raise WeightsUnavailable(
            f"{who}: {without_login(constants.ENDPOINT)} gave not a Hub response for {source}: a login page or a proxy "
            "answers instead. Log in to the network, or set HF_ENDPOINT."
        )
    return found


def _alternatives() -> str:
    from huggingface_hub import constants

    return (
        f"{constants.HF_HUB_CACHE} has no valid copy. Run medzoo fetch once with a network, after which "
        "HF_HUB_OFFLINE=1 uses the cached file without any request; or set MEDZOO_MIRROR to your own server."
    )


def _translate(error: Exception, source: HubFile, who: str, *, size: int | None = None) -> WeightsUnavailable:
    """Return medzoo's error for one of the client's, without the token, which the client's texts do not contain."""
    from huggingface_hub import constants, errors

    endpoint, advice = without_login(constants.ENDPOINT), UPGRADE if source.listed else CHECK_NAME
    status = getattr(getattr(error, "response", None), "status_code", None)
    gated = f"the Hub denies access to {source}: request access at {endpoint}/{source.repo}, then hf auth login."
    known: list[tuple[bool, str]] = [
        (isinstance(error, errors.GatedRepoError), gated),
        (
            isinstance(error, errors.RepositoryNotFoundError),
            f"the Hub has no {source}: no such repository, or a private one, which needs hf auth login. {advice}",
        ),
        (isinstance(error, errors.RevisionNotFoundError), f"the Hub has no {source}: no such revision. {advice}"),
        (
            isinstance(error, errors.RemoteEntryNotFoundError) or status == 404,
            f"the Hub has no {source}: no such file. {advice}",
        ),
        (status in (401, 403), gated),
        (isinstance(error, errors.HFValidationError), f"{source} is not a valid repository and file ({error})."),
        (status is not None, f"the Hub answers {status} for {source}. {_alternatives()}"),
    ]
    for matches, message in known:
        if matches:
            return WeightsUnavailable(f"{who}: {message}")
    if isinstance(error, OSError) and error.errno is not None:
        disk = disk_error(who, error, Path(constants.HF_HUB_CACHE), size)
        if disk is not None:
            return disk
    cause: Any = error.__cause__ or error
    return _unanswered(
        f"{who}: {source} could not be downloaded from {endpoint} ({type(cause).__name__}). {_alternatives()}"
    )


def _unanswered(message: str) -> WeightsUnavailable:
    """Return the error for a Hub that is unreachable, busy or not to be asked; :func:`_newest` then uses its cache."""
    error = WeightsUnavailable(message)
    error.__dict__["unanswered"] = True
    return error


def _wait_for_lock(source: HubFile, etag: str, who: str) -> None:
    """Wait while another process downloads the same file, but not for a lock whose owner died.

    On a filesystem without locks, the client's lock is a file, which remains after its owner is killed.
    """
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    folder = hub_folder(source)
    lock = folder.parent / ".locks" / folder.name / f"{etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            with WeakFileLock(lock, timeout=LOCK_TIMEOUT):
                return
        except Timeout as error:
            if _is_growing((folder / "blobs").glob(f"{etag}*.incomplete")):
                logger.info("%s: waiting for another process that downloads %s", who, source)
                continue
            raise WeightsUnavailable(
                f"{who}: {lock} was locked for {LOCK_TIMEOUT:g} s and nothing was downloaded: its process probably "
                "died. Delete that file and try again."
            ) from error


def _is_growing(parts: Iterable[Path]) -> bool:
    """Whether any of the files was written within the lock timeout, or was finished meanwhile."""
    for path in parts:
        try:
            if time.time() - path.stat().st_mtime < LOCK_TIMEOUT:
                return True
        except FileNotFoundError:
            return True
    return False
