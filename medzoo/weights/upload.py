"""Upload of models to the Hugging Face Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping

from torch import Tensor

from medzoo.errors import WeightsUnavailable
from medzoo.version import __version__
from medzoo.weights.save import ModelConfig, save_pretrained

__all__ = ["push_to_hub"]


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

    Returns:
        The name for :func:`medzoo.create`: ``"hf-hub:owner/repo@commit"``.

    Raises:
        ConfigError: as :func:`~medzoo.weights.save.save_pretrained`.
        WeightsUnavailable: the Hub does not answer, or denies access.
    """
    from huggingface_hub import HfApi

    stated = {"license": license, "trained_on": trained_on}
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(tensors, model, folder, metrics=metrics, name=f"hf-hub:{repo_id}", **stated)
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
