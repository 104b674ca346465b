"""What a training costs around its arithmetic: epochs of ``fit`` against a plain loop, waits for data, and features.

``test_overhead`` runs an epoch of :func:`medzoo.training.fit.fit` and one of a plain PyTorch loop in turn, in one
process: images from memory, the same model, loss, optimiser and batch size, a validation with loss and AUROC, and a
checkpoint. What is compared is the whole epoch, with everything that happens between two. The target is a ratio of
1.05 for steps as long as those of real trainings. What ``fit`` adds is a few milliseconds a step and tens an epoch, so
that an epoch of a second on small images has another ratio, which is measured too.

``test_data_wait`` trains on cached 64³ masks, without workers and without augmentation; the target is to wait for data
in less than 10 % of the time. With ``MEDZOO_DATA`` the masks are AdrenalMNIST3D's, otherwise generated ones.

``test_step`` compares a forward and backward pass of the convolutional models with those of the plain modules, as they
are and with channels last. Gradients must be those of the plain modules. With channels last they are not: there
PyTorch's BatchNorm sums up in float32. How far off they are is printed.

``test_frozen_features`` compares an epoch of the frozen model with one of its head on stored features.

The figures are printed, and saved in ``extra_info``.
"""

from __future__ import annotations

import copy
import os
import time
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.profilers import Profiler
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader, TensorDataset

import medzoo
from benchmarks.timing import measure_peak, spread
from medzoo.data.pixels import PixelStore
from medzoo.data.split import split_from_column
from medzoo.data.table import Table
from medzoo.kernels.dispatch import set_fast_paths
from medzoo.training.datamodule import ImageDataModule
from medzoo.training.fit import fit
from medzoo.training.frozen import phase_setup
from medzoo.training.losses import ClassificationLoss
from medzoo.training.recipe import Recipe
from medzoo.training.setup import Setup
from medzoo.training.task import ClassificationTask

OVERHEAD_TARGET, WAIT_TARGET = 1.05, 0.10
# Options of the model, side of its images and training rows.
CASES = {
    "cnn3d_small": ({"size": 32}, 32, 96),
    "xray_cnn": ({"size": 320, "pool": "avg"}, 320, 128),
}
SMALL_CASES = {"xray_cnn": ({"size": 64}, 64, 512)}
BATCH = 16
# Options of the model, shape of its input, largest difference of a gradient relative to the norm of its layer's, and
# targets: times as fast as eager, and as eager with channels last. Where two values of a pooling window differ by less
# than rounding, the gradient of one goes to the other. One such window is a thousandth of the gradient among the few
# that the last stage of cnn3d_base has.
STEPS = {
    "cnn3d_small": ({}, (8, 1, 64, 64, 64), 1e-4, 3.0, 2.0),
    "cnn3d_base": ({}, (2, 1, 64, 128, 128), 3e-3, 2.0, None),
    "xray_cnn": ({"pool": "avg"}, (8, 3, 320, 320), 1e-4, 2.0, None),
}


def adrenal(rows: int) -> np.ndarray:
    """Return masks ``n 64 64 64`` of 0 and 255: real ones where they are, else ellipsoids of the same share."""
    folder = os.environ.get("MEDZOO_DATA")
    file = Path(folder or ".") / "adrenal_ct_3d" / "adrenalmnist3d_64_train_val.npz"
    if folder and file.exists():
        with np.load(file) as arrays:
            return arrays["train_images"][:rows]
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, 64)] * 3, indexing="ij"))
    radii = np.random.default_rng(0).uniform(0.1, 0.3, (rows, 3, 1, 1, 1))
    return np.stack([255 * (((axes / r) ** 2).sum(0) < 1) for r in radii]).astype(np.uint8)


def make_setup(name: str, options: dict, images: np.ndarray, epochs: int, freeze: str = "none") -> Setup:
    """Return a setup of images ``n c *s``, a quarter of which is for validation."""
    n = len(images)
    groups = {"split": np.where(np.arange(n) % 4, "train", "valid")}
    table = Table.from_arrays(images, np.arange(n) // 2 % 2, groups=groups)
    recipe = Recipe(
        model={"name": name, "options": options},
        optimizer={"lr": 1e-4},
        train={"epochs": epochs, "batch": BATCH, "freeze": freeze, "device": "cpu", "precision": "float32"},
    )
    model = medzoo.create(name, labels=table.labels, task=table.task, in_chans=images.shape[1], **options)
    pixels = PixelStore(table, medzoo.transform(model), cache="memory")
    split = split_from_column(table, "split", patient_groups=False)
    data = ImageDataModule(split, pixels, batch_size=BATCH)
    task = ClassificationTask(model, optimizer=recipe.optimizer, freeze=freeze)
    return Setup(recipe, table, model, pixels, split, data, task, split.how)


def random_images(name: str, options: dict, side: int, rows: int) -> np.ndarray:
    model = medzoo.create(name, **options)
    shape = (rows, 1, *[side] * model.input_spec.dims)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class PlainLoop:
    """The loop that a user would write."""

    def __init__(self, setup: Setup, file: Path) -> None:
        name, options = setup.recipe.model.name, setup.recipe.model.options
        self.model = medzoo.create(name, num_classes=1, in_chans=setup.table.arrays.shape[1], **options)
        self.loss = ClassificationLoss("bce")
        self.optimizer = torch.optim.AdamW(self.model.param_groups(1e-4, 0.05), 1e-4)
        self.file = file
        self.train, self.valid = (
            DataLoader(
                TensorDataset(
                    torch.stack([setup.pixels.transform.normalise(setup.pixels.read(int(i))) for i in part.rows]),
                    torch.from_numpy(setup.table.targets[part.rows]),
                ),
                BATCH,
                shuffle=part.name == "train",
            )
            for part in (setup.split.train, setup.split.valid)
        )

    def epoch(self) -> float:
        """Train, validate and save once; return the seconds."""
        start = time.perf_counter()
        self.model.train()
        total = 0.0
        for images, targets in self.train:
            self.optimizer.zero_grad()
            loss = self.loss(self.model(images), targets)
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(images)
        self.model.eval()
        with torch.inference_mode():
            found = [(self.model(images), targets) for images, targets in self.valid]
        logits, targets = (torch.cat(part) for part in zip(*found, strict=True))
        self.loss(logits, targets).item()
        roc_auc_score(targets.numpy(), logits.numpy())
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, self.file)
        return time.perf_counter() - start


class Interleave(pl.Callback):
    """Runs the plain loop's epoch before each epoch of Lightning's, and times both."""

    def __init__(self, plain: PlainLoop) -> None:
        self.plain = plain
        self.times: list[tuple[float, float]] = []
        self._mark = self._theirs = 0.0

    def on_train_epoch_start(self, trainer, pl_module):
        self._end()
        self._theirs = self.plain.epoch()
        self._mark = time.perf_counter()

    def on_train_end(self, trainer, pl_module):
        self._end()

    def _end(self):
        if self._mark:
            self.times.append((time.perf_counter() - self._mark, self._theirs))


class Waits(Profiler):
    """Adds up the seconds of the loader."""

    seconds = 0.0

    def start(self, action_name):
        self.since = time.perf_counter()

    def stop(self, action_name):
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.perf_counter() - self.since


class Watch(pl.Callback):
    """Times the training part of each epoch, and the wait in it."""

    def __init__(self) -> None:
        self.waits, self.epochs = Waits(), []

    def setup(self, trainer, pl_module, stage):
        trainer.profiler = self.waits

    def on_train_epoch_start(self, trainer, pl_module):
        self.mark, self.before = time.perf_counter(), self.waits.seconds

    def on_validation_start(self, trainer, pl_module):
        self.epochs.append((time.perf_counter() - self.mark, self.waits.seconds - self.before))


@pytest.mark.parametrize(
    ("name", "case", "target"),
    [*((name, case, OVERHEAD_TARGET) for name, case in CASES.items()), *((*i, None) for i in SMALL_CASES.items())],
    ids=[*CASES, *(f"{name}-small" for name in SMALL_CASES)],
)
def test_overhead(benchmark, name, case, target, tmp_path):
    options, side, rows = case
    epochs = 8
    if benchmark.disabled:
        options, side, rows, epochs = dict(medzoo.describe(name).tiny), medzoo.describe(name).tiny_size[0], 32, 2
    setup = make_setup(name, options, random_images(name, options, side, rows * 4 // 3), epochs)
    turns = Interleave(PlainLoop(setup, tmp_path / "plain.pt"))
    benchmark.pedantic(fit, (setup, tmp_path / "run"), {"callbacks": [turns]}, rounds=1)
    assert len(turns.times) == epochs
    assert setup.task.predictions is not None
    if benchmark.stats:
        measured = turns.times[2:]  # the first two warm up
        ratio = spread([ours / theirs for ours, theirs in measured])
        benchmark.extra_info |= {"ratio": ratio, "target": target, "threads": torch.get_num_threads()}
        ours, theirs = (spread(list(times))["median"] for times in zip(*measured, strict=True))
        print(
            f"\n{name} {side}: an epoch of {len(setup.data.train_loader)} steps takes {ours:.3f} s in fit, "
            f"{theirs:.3f} s in a plain loop; the ratio is {ratio['median']:.3f} "
            f"({ratio['low']:.3f} to {ratio['high']:.3f}), target {target or 'none'}"
        )


def test_data_wait(benchmark, tmp_path):
    rows, epochs, options = (16, 1, {"widths": (4, 8, 8), "hidden": 8}) if benchmark.disabled else (160, 4, {})
    setup = make_setup("cnn3d_small", {"size": 64, **options}, adrenal(rows)[:, None], epochs)
    watch = Watch()
    benchmark.pedantic(fit, (setup, tmp_path), {"callbacks": [watch]}, rounds=1)
    assert len(watch.epochs) == epochs
    if benchmark.stats:
        shares = spread([waited / seconds for seconds, waited in watch.epochs[1:]])
        benchmark.extra_info |= {"data_wait_share": shares, "target": WAIT_TARGET, "threads": torch.get_num_threads()}
        print(f"\n64³, batch {BATCH}, no workers: {shares['median']:.1%} of the training time waits for data")


@pytest.mark.parametrize("name", CASES)
def test_frozen_features(benchmark, name, tmp_path):
    options, side, rows = CASES[name]
    epochs = 5
    if benchmark.disabled:
        options, side, rows, epochs = dict(medzoo.describe(name).tiny), medzoo.describe(name).tiny_size[0], 16, 1
    images = random_images(name, options, side, rows * 4 // 3)
    seconds, computing = {}, 0.0
    for freeze in ("encoder", "features"):
        setup = make_setup(name, options, images, epochs, freeze)
        start = time.perf_counter()
        if freeze == "features":
            setup = phase_setup(setup, setup.recipe)
            computing = time.perf_counter() - start
            size = setup.data.pixels.nbytes
            benchmark.pedantic(fit, (setup, tmp_path / freeze), {"callbacks": [watch := Watch()]}, rounds=1)
        else:
            fit(setup, tmp_path / freeze, callbacks=[watch := Watch()])
        seconds[freeze] = spread([epoch for epoch, _ in watch.epochs[1:] or watch.epochs])["median"]
    assert size > 0
    if benchmark.stats:
        factor = seconds["encoder"] / seconds["features"]
        benchmark.extra_info |= {"factor": factor, "computing_s": computing, "bytes": size}
        print(
            f"\n{name}: an epoch takes {seconds['encoder']:.3f} s frozen, {seconds['features']:.3f} s on features, "
            f"{factor:.1f} times less; computing them {computing:.2f} s, {size / 1e6:.2f} MB"
        )


class Step:
    """A forward and backward pass of one of the models that are compared."""

    def __init__(self, model: torch.nn.Module, x: torch.Tensor, fast: bool, channels_last: bool = False) -> None:
        self.model, self.x, self.fast = copy.deepcopy(model), x, fast
        if channels_last:
            layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
            self.model, self.x = self.model.to(memory_format=layout), x.contiguous(memory_format=layout)

    def __call__(self) -> float:
        """Run and return the seconds."""
        start = time.perf_counter()
        self.model.zero_grad(set_to_none=True)
        with set_fast_paths(self.fast):
            torch.nn.functional.softplus(self.model(self.x)).mean().backward()
        return time.perf_counter() - start

    def far_from(self, other: Step) -> float:
        """Return the largest difference of a gradient, relative to the norm of its layer's."""
        mine, theirs = (dict(step.model.named_parameters()) for step in (self, other))
        norms: dict[str, float] = {}
        for name, parameter in theirs.items():
            layer = name.rpartition(".")[0]
            norms[layer] = max(norms.get(layer, 0.0), float(parameter.grad.norm()))
        return max(float((mine[n].grad - p.grad).norm()) / norms[n.rpartition(".")[0]] for n, p in theirs.items())


@pytest.mark.parametrize("name", STEPS)
def test_step(benchmark, name):
    options, shape, tolerance, *targets = STEPS[name]
    rounds = 9
    if benchmark.disabled:
        spec = medzoo.describe(name)
        options, shape, rounds = dict(spec.tiny), (2, spec.input_spec.channels, *spec.tiny_size), 1
    torch.manual_seed(0)
    model, x = medzoo.create(name, **options, dropout=0.0).train(), torch.randn(shape)
    ours, plain = Step(model, x, fast=True), Step(model, x, fast=False)
    steps = {"medzoo": ours, "eager": plain, "channels last": Step(model, x, fast=False, channels_last=True)}
    for step in steps.values():
        step()
    difference = ours.far_from(plain)
    assert difference <= tolerance
    peaks = {}
    for key, step in steps.items():
        step.model.zero_grad(set_to_none=True)
        peaks[key] = measure_peak(step, x.device)
    times = [{key: step() for key, step in steps.items()} for _ in range(rounds)]
    benchmark.pedantic(ours, rounds=rounds)
    if benchmark.stats:
        info = {"gradient_difference": difference, "peaks": peaks, "threads": torch.get_num_threads()}
        for key, target in zip(("eager", "channels last"), targets, strict=True):
            ratio = spread([took[key] / took["medzoo"] for took in times])
            apart = steps[key].far_from(ours)
            info[key] = {"ratio": ratio, "target": target, "gradient_difference": apart}
            print(
                f"\n{name} {shape}: {ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) times as fast as "
                f"{key}, target {target or 'none'}; gradients differ by {apart:.1e}; "
                f"peaks {(peaks['medzoo'] or 0) / 2**20:.0f} and {(peaks[key] or 0) / 2**20:.0f} MiB"
            )
        benchmark.extra_info |= info
