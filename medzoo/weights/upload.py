"""Saved models on the Hub: ``create("hf-hub:owner/repo@revision")`` and ``model.push_to_hub("owner/repo")``."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from medzoo.errors import ConfigError, WeightsUnavailable
from medzoo.version import __version__
from medzoo.weights import hub
from medzoo.weights.record import HubFile
from medzoo.weights.save import CONFIG, WEIGHTS, Saved, read_folder, save_pretrained

if TYPE_CHECKING:
    from medzoo.classifier import Classifier

__all__ = ["pull", "push_to_hub"]

logger = logging.getLogger("medzoo")


def pull(place: str) -> Saved:
    """Read the config of a repository ``"owner/repo"`` or ``"owner/repo@revision"``; its weights come with the load.

    A commit that is in the cache is used without asking the Hub. A branch or tag, ``main`` by default, is asked for
    each time, and is what it was last time where the Hub does not answer; where the Hub answers that it is gone or
    closed, that is an error.

    Raises:
        ConfigError: not a repository's name, or its config is not medzoo's.
        WeightsUnavailable: the Hub does not answer, or does not have or give it.
    """
    repo, at, revision = place.partition("@")
    named = re.fullmatch(r"[\w.-]+/[\w.-]+", repo) and (not at or re.fullmatch(r"\w[\w./-]*", revision))
    if not named or ".." in place:
        raise ConfigError(f"hf-hub:{place}: expected 'hf-hub:owner/repo' or 'hf-hub:owner/repo@revision'.")
    who = f"hf-hub:{place}"
    source = HubFile(repo, CONFIG, revision or None, listed=False)
    path = next(iter(hub.cached(source)), None) if revision else None
    if path is None:
        path = _newest(source, who)
    if not hub.is_sound(path, path.read_bytes()):
        logger.warning("%s: %s was changed after it was fetched; fetching it again", who, path)
        path = hub.download(source, who, force=True)
    saved = read_folder(path.parent)
    commit = path.parent.name
    weights = HubFile(repo, WEIGHTS, commit, listed=False)
    saved.record = replace(saved.record, tag=f"{repo}@{commit[:12]}", source=weights)
    return saved


def _newest(source: HubFile, who: str) -> Path:
    """Ask the Hub for a branch or tag; where it does not answer, return what the branch was last time."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return hub.download(source, who)
    except WeightsUnavailable as error:
        if not hub.gives_no_answer(error):
            raise
        known = try_to_load_from_cache(source.repo, source.file, revision=source.revision or "main")
        if not isinstance(known, str):
            raise
        logger.warning("%s: taken from the cache, as it was last time (%s)", who, error)
        return Path(known)


def push_to_hub(
    model: Classifier,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
    license: str | None = None,
    trained_on: str | None = None,
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Write the model to a repository of the Hub, which is made if it is not there, in one commit.

    Args:
        model: made by :func:`medzoo.create`.
        repo_id: ``"owner/repo"``.
        private: whether a new repository is private; ``None`` is the owner's default.
        revision: the branch; ``None`` is ``main``.
        token: an access token; ``None`` takes that of ``hf auth login`` or ``HF_TOKEN``.
        license: SPDX identifier of the licence you give the weights; ``None`` is that of the weights it came from.
        trained_on: the data, in a sentence; ``None`` likewise.
        metrics: figures to publish with them.

    Returns:
        What :func:`medzoo.create` takes: ``"hf-hub:owner/repo@commit"``.

    Raises:
        ConfigError: not a registered model.
        WeightsUnavailable: the Hub does not answer, or does not let you.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(
            model, folder, license=license, trained_on=trained_on, metrics=metrics, place=f"hf-hub:{repo_id}"
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
        # The client lets its HTTP library's errors through, whatever that is today.
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", "no answer")
            raise WeightsUnavailable(
                f"{model.name}: {repo_id} does not take the model ({type(error).__name__}, {status}). Check the "
                "network, that the repository is yours, and that your token may write: hf auth login."
            ) from error
    return f"hf-hub:{repo_id}@{done.oid}"
