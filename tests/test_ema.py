"""The average of weights: right where a step changes something, and the same bits where none does."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from training_data import data_module, image_split, trainer

from medzoo import ClassificationTask
from medzoo.training.ema import AveragedWeights

pytestmark = pytest.mark.filterwarnings(
    r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning", r"ignore:Found \d+ module\(s\) in eval mode"
)


def test_frozen_weights_and_buffers_keep_every_bit():
    model, split, pixels = image_split("cnn3d_small", seeded=True)
    for module in model.encoder.modules():  # statistics that rounding changes
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 3)
            module.num_batches_tracked.fill_(1009)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run = trainer(max_epochs=10, callbacks=[AveragedWeights(0.9)])
    run.fit(ClassificationTask(model, freeze="encoder"), datamodule=data_module(split, pixels))
    assert run.global_step == 40
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {name for name in before if name.startswith("head.")}


def test_the_average_is_exponential_and_counts_are_copied():
    model, split, pixels = image_split("cnn3d_small", seeded=True)
    states = []

    class Keep(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            states.append({name: value.clone() for name, value in pl_module.model.state_dict().items()})

    run = trainer(max_epochs=2, callbacks=[Keep(), AveragedWeights(0.75)])
    run.fit(ClassificationTask(model), datamodule=data_module(split, pixels))
    expected = {name: value.double() for name, value in states[0].items()}
    for each in states[1:]:
        expected = {name: 0.75 * value + 0.25 * each[name] for name, value in expected.items()}
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert value == states[-1][name] == len(states)


def test_infinite_buffers_stay_so():
    given = torch.tensor([-torch.inf, 0.0, 3.0])
    new = AveragedWeights(0.5)._average(given, torch.tensor([-torch.inf, 0.0, 5.0]), torch.tensor(1))
    assert new.tolist() == [-torch.inf, 0.0, 4.0]
