"""The argument MODEL of the commands: NAME, NAME:TAG, local-dir:FOLDER or hf-hub:OWNER/REPO."""

from __future__ import annotations

from typing import TYPE_CHECKING

import medzoo

if TYPE_CHECKING:
    from medzoo.classifier import Classifier

__all__ = ["create_model"]


def create_model(model: str) -> Classifier:
    """Create the model of the argument; without a tag it is untrained."""
    # "local-dir:" and "hf-hub:" are part of the name; any other colon precedes a tag.
    name, tag = (model, "") if model.startswith(("hf-hub:", "local-dir:")) else model.partition(":")[::2]
    built: Classifier = medzoo.create(name, pretrained=tag or False)
    return built
