"""``fit``: run Lightning's ``Trainer`` on a setup, from its newest checkpoint if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from medzoo.training.checkpoints import CheckpointKeeper, FsyncedFiles, newest
from medzoo.training.setup import Setup

__all__ = ["fit"]


def fit(setup: Setup, folder: Path, *, callbacks: Sequence[pl.Callback] = (), logger: Any = False) -> None:
    """Train; the model of the setup is trained in place."""
    recipe = setup.recipe
    keeper = CheckpointKeeper(folder / "state", setup.data.train_loader, every_steps=recipe.train.checkpoint_steps)
    trainer = pl.Trainer(
        max_epochs=recipe.train.epochs,
        accelerator="cpu",
        logger=logger,
        callbacks=[*callbacks, keeper],
        plugins=[FsyncedFiles()],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(setup.task, datamodule=setup.data, ckpt_path=newest(folder / "state"), weights_only=True)
