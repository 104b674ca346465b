"""``fit``: run Lightning's ``Trainer`` on a setup, from its newest checkpoint if there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping

from medzoo.data.loader import explain_lost_workers
from medzoo.training.checkpoints import CheckpointKeeper, FsyncedFiles, Saved, clean, find_checkpoint
from medzoo.training.ema import AveragedWeights
from medzoo.training.environment import Environment, numeric_environment, resolve_environment
from medzoo.training.facts import check_facts, facts_of
from medzoo.training.lock import lock_state
from medzoo.training.numerics import FiniteGuard, TrainFailed
from medzoo.training.quiet import quiet_lightning
from medzoo.training.setup import Setup
from medzoo.training.signals import Interrupts, TrainInterrupted
from medzoo.transforms.augment import row_seed

__all__ = ["fit"]


def fit(
    setup: Setup,
    folder: Path,
    *,
    callbacks: Sequence[pl.Callback] = (),
    logger: Any = False,
    inexact: bool = False,
    threads: int | None = None,
    run: Path | None = None,
) -> None:
    """Train the model of a setup in place, for the epochs of its recipe.

    If ``folder/state`` has a checkpoint, the training continues from the newest one that is whole. On a CPU the weights
    at the end are then equal, bit for bit, to those of a training that was never stopped. With ``train.ema`` they are
    the average; they are those of the last epoch in any case.

    It sets PyTorch's seed, threads and deterministic algorithms for the process and, in the main thread, handlers of
    SIGINT and SIGTERM; all are restored at the end.

    Args:
        setup: from :func:`medzoo.training.setup.set_up`.
        folder: of the run; gets ``state/``.
        callbacks: of Lightning, called before medzoo's. What changes the model's numbers must be in its state.
        logger: of Lightning; ``False`` for none.
        threads: of PyTorch, where the recipe leaves them open and there is no checkpoint yet; ``None`` are the present.
        run: what a message names to continue; ``None`` is ``folder``.
        inexact: whether to continue under other numeric choices than before, such as another number of threads.

    Raises:
        ConfigError: the device is absent, or the checkpoint is of another training.
        TrainInterrupted: a signal; a checkpoint is written.
        TrainError: another process trains in the folder, no checkpoint is whole or can be written, a value is not
            finite, or the memory ends.
    """
    state = folder / "state"
    with lock_state(state), Interrupts(run or folder) as interrupts:
        clean(state)
        saved = find_checkpoint(state)
        threads = saved.facts["numeric"]["threads"] if saved else threads
        environment = resolve_environment(setup.recipe.train, setup.model.input_spec.dims, threads=threads)
        facts = facts_of(setup, environment)
        if saved:
            check_facts(saved.facts, facts, folder=folder, inexact=inexact)
        keeper = _keeper(setup, state, interrupts, facts)
        own = [*_callbacks(setup, folder, environment), keeper]
        seed = row_seed(setup.recipe.train.seed, 0, "training")
        with quiet_lightning(), numeric_environment(environment, seed), _memory_format(setup, environment):
            trainer = _trainer(setup, environment, state, saved, callbacks=[*callbacks, *own], logger=logger)
            with _explained(setup, interrupts), explain_lost_workers(setup.recipe.train.workers), _closed(setup):
                trainer.fit(
                    setup.task, datamodule=setup.data, ckpt_path=saved.path if saved else None, weights_only=True
                )
        if interrupts.received is not None:  # after the last place for a checkpoint
            raise interrupts.error(trainer.global_step)


def _keeper(setup: Setup, state: Path, interrupts: Interrupts, facts: dict[str, Any]) -> CheckpointKeeper:
    how = setup.recipe.train
    return CheckpointKeeper(
        state,
        setup.data.train_loader,
        interrupts,
        facts=facts,
        every_steps=how.checkpoint_steps,
        every_minutes=how.checkpoint_minutes,
    )


def _callbacks(setup: Setup, folder: Path, environment: Environment) -> list[pl.Callback]:
    """Return medzoo's callbacks but the keeper, which has to be the last."""
    how = setup.recipe.train
    monitor = how.monitor if how.stop_after is not None else None
    found: list[pl.Callback] = [
        FiniteGuard(setup.table, folder, scaled=environment.precision == "fp16", monitor=monitor)
    ]
    if how.ema:
        found.append(AveragedWeights(how.ema))
    if monitor is not None and how.stop_after is not None:
        mode = "min" if monitor == "valid_loss" else "max"
        # FiniteGuard reports a metric that is not finite, which this would take for a reason to stop.
        found.append(EarlyStopping(monitor, patience=how.stop_after, mode=mode, check_finite=False))
    return found


def _trainer(setup: Setup, environment: Environment, state: Path, saved: Saved | None, **given: Any) -> pl.Trainer:
    how = setup.recipe.train
    return pl.Trainer(
        **environment.accelerator,
        max_epochs=how.epochs,
        accumulate_grad_batches=how.accumulate,
        gradient_clip_val=setup.recipe.optimizer.clip,
        **given,
        plugins=[FsyncedFiles(saved)],
        log_every_n_steps=min(50, len(setup.data.train_loader)),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=state,
    )


@contextmanager
def _closed(setup: Setup) -> Iterator[None]:
    """End the workers, also after an error, whose traceback would keep them."""
    try:
        yield
    finally:
        setup.data.close()


@contextmanager
def _memory_format(setup: Setup, environment: Environment) -> Iterator[None]:
    """Lay out the weights of 2D convolutions channels last, while the training runs."""
    if not environment.channels_last:
        yield
        return
    setup.model.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        setup.model.to(memory_format=torch.contiguous_format)


@contextmanager
def _explained(setup: Setup, interrupts: Interrupts) -> Iterator[None]:
    """Turn what ends a training into medzoo's errors."""
    try:
        yield
    except SystemExit as error:
        # Lightning exits the process on a KeyboardInterrupt, which a callback or a handler of the caller has raised.
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    except TrainInterrupted:
        raise
    except Exception as error:
        if interrupts.received is not None:  # the signal has ended a worker first
            raise interrupts.error(None) from error
        if _out_of_memory(error):
            how = setup.recipe.train
            reason = f"out of memory with batches of {how.batch} images"
            raise TrainFailed.because(
                reason,
                f"{reason} ({str(error).splitlines()[0]}). The last checkpoint "
                f"is kept. Train with train.batch={max(1, how.batch // 2)} and train.accumulate={2 * how.accumulate}, "
                "which make steps of the same size, or with a smaller data.size, in another folder.",
            ) from error
        raise


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
