"""``ImageDataModule``: the loaders of a split, for any ``Trainer`` of Lightning."""

from __future__ import annotations

import lightning.pytorch as pl

from medzoo.data.dataset import Rows
from medzoo.data.loader import PlacedLoader
from medzoo.data.pixels import PixelStore
from medzoo.data.split import Split
from medzoo.transforms.augment import Augmenter

__all__ = ["ImageDataModule"]


class ImageDataModule(pl.LightningDataModule):
    """Gives the training and validation loaders of a split.

    Args:
        split: from :func:`medzoo.choose_split` and its like.
        pixels: the preprocessed images of its table.
        batch_size: rows of a batch.
        augmenter: applied in training.
        seed: order and augmentation follow from it.
        workers: processes that prepare batches; the batches are the same for any number.
    """

    def __init__(
        self,
        split: Split,
        pixels: PixelStore,
        *,
        batch_size: int = 16,
        augmenter: Augmenter | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.split, self.pixels = split, pixels
        self.train_loader = PlacedLoader(
            Rows(split.train, pixels, augmenter, seed), batch_size, seed=seed, shuffle=True, workers=workers
        )
        self.valid_loader = PlacedLoader(Rows(split.valid, pixels), batch_size, workers=workers)

    def setup(self, stage: str) -> None:
        """Adapt the loaders to the device and the processes of the trainer.

        Raises:
            ConfigError: the processes cannot share the rows or a batch.
        """
        if self.trainer is None:
            return
        for loader in (self.train_loader, self.valid_loader):
            loader.pin_memory = self.trainer.strategy.root_device.type == "cuda"
            loader.share(self.trainer.global_rank, self.trainer.world_size)

    def teardown(self, stage: str) -> None:
        """End the workers."""
        self.close()

    def close(self) -> None:
        """End the workers; a later iteration starts others."""
        for loader in (self.train_loader, self.valid_loader):
            loader.close()

    def train_dataloader(self) -> PlacedLoader:
        """Return the loader of the training part."""
        return self.train_loader

    def val_dataloader(self) -> PlacedLoader:
        """Return the loader of the validation part."""
        return self.valid_loader
