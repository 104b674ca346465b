"""The task in a plain Trainer: what is trained, what is frozen, what validation computes, and what stops it."""

from __future__ import annotations

import copy
import os
import socket
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from sklearn.metrics import accuracy_score, roc_auc_score
from torch import nn
from torch.testing import assert_close
from training_data import data_module, image_split, trainer

import medzoo
from medzoo import ClassificationTask
from medzoo.errors import ConfigError, TrainError
from medzoo.training.losses import ClassificationLoss
from medzoo.training.recipe import OptimizerSection, ScheduleSection
from medzoo.training.schedule import per_step, rate_factor
from medzoo.training.validation import ValidationPredictions, check_monitor, merge_shards, metrics

NAN = float("nan")
pytestmark = [
    # Lightning 2.6 with PyTorch 2.14.
    pytest.mark.filterwarnings(r"ignore:.isinstance\(treespec, LeafSpec\):FutureWarning"),
    # Frozen encoders are in eval mode on purpose.
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),
]


def fitted(name="xray_cnn", *, labels=None, callbacks=(), epochs=2, options=None, **task):
    model, split, pixels = image_split(name, labels=labels)
    module = ClassificationTask(model, **task)
    run = trainer(callbacks=list(callbacks), max_epochs=epochs, **options or {})
    run.fit(module, datamodule=data_module(split, pixels))
    return module, run, split


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


# --- validation ---


def test_validation_is_of_all_rows_and_equals_scikit_learn():
    module, run, split = fitted()
    rows, logits, targets = module.predictions
    assert rows.tolist() == split.valid.rows.tolist()
    assert torch.equal(targets, torch.from_numpy(split.table.targets[split.valid.rows]))
    images = data_module(split, run.datamodule.pixels, batch_size=100).val_dataloader()
    with torch.inference_mode():
        expected = module.model.eval()(next(iter(images)).image)
    assert_close(logits, expected, rtol=1e-5, atol=1e-6)
    found = {name: float(value) for name, value in run.callback_metrics.items()}
    assert found["valid_loss"] == pytest.approx(float(ClassificationLoss("bce")(logits, targets)))
    assert found["valid_auroc"] == pytest.approx(roc_auc_score(targets.numpy(), logits.numpy()))
    assert found["valid_accuracy"] == pytest.approx(accuracy_score(targets[:, 0].numpy(), (logits[:, 0] >= 0).numpy()))
    assert found["valid_n_auroc"] == 1


def test_the_loss_of_validation_is_no_mean_of_batches():
    """The last batch is smaller, and labels are unknown in some rows alone."""
    labels = np.arange(48).reshape(24, 2) % 3 % 2.0
    labels[-3:, 0] = NAN
    module, run, _ = fitted(labels=labels)
    _, logits, targets = module.predictions
    expected = ClassificationLoss("bce")(logits, targets)
    batches = [ClassificationLoss("bce")(logits[i : i + 4], targets[i : i + 4]) for i in (0, 4)]
    assert run.callback_metrics["valid_loss"].item() == pytest.approx(expected.item())
    assert run.callback_metrics["valid_loss"].item() != pytest.approx(sum(batches).item() / 2, rel=1e-6)


def predictions(logits, targets, rows=None):
    n = len(logits)
    return ValidationPredictions(
        torch.arange(n) if rows is None else torch.tensor(rows),
        torch.as_tensor(logits, dtype=torch.float32),
        torch.as_tensor(targets, dtype=torch.float32),
    )


def test_metrics_of_multilabel_and_multiclass_equal_scikit_learn():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 3)).astype(np.float32)
    targets = (rng.random((60, 3)) < 0.4).astype(np.float32)
    found = metrics(predictions(logits, targets), "multilabel")
    assert found.auroc == pytest.approx(roc_auc_score(targets, logits, average="macro"))
    assert found.accuracy == pytest.approx(accuracy_score(targets, logits >= 0))
    classes = rng.integers(3, size=60)
    probabilities = torch.from_numpy(logits).double().softmax(1).numpy()
    found = metrics(predictions(logits, np.eye(3)[classes]), "multiclass")
    assert found.auroc == pytest.approx(roc_auc_score(classes, probabilities, multi_class="ovr", average="macro"))
    assert found.accuracy == pytest.approx(accuracy_score(classes, logits.argmax(1)))
    assert (found.n_auroc, found.constant) == (3, False)


def test_fault_95_outputs_of_one_class_are_left_out_of_the_mean():
    targets = [[0, 0, NAN, 1], [1, 0, NAN, NAN], [0, 0, NAN, 0], [1, 0, NAN, 1]]
    logits = [[-1, 3, 0, 2], [1, -3, 0, 0], [0.5, 0, 0, 1], [0.25, 0, 0, 2]]
    found = metrics(predictions(logits, targets), "multilabel")
    assert found.n_auroc == 2
    assert found.auroc == pytest.approx((0.75 + 1.0) / 2)
    alone = metrics(predictions([[1.0], [2.0]], [[0.0], [0.0]]), "binary")
    assert (np.isnan(alone.auroc), alone.n_auroc, alone.accuracy) == (True, 0, 0.0)
    nothing = metrics(predictions([[1.0, 0.0]], [[NAN, NAN]]), "multilabel")
    assert (np.isnan(nothing.auroc), np.isnan(nothing.accuracy)) == (True, True)


def test_fault_95_a_label_that_is_never_known_does_not_stop_a_training():
    labels = np.stack([np.arange(24) % 2.0, np.full(24, NAN)], 1)
    _module, run, _ = fitted(labels=labels, epochs=1)
    assert run.callback_metrics["valid_n_auroc"] == 1
    assert torch.isfinite(run.callback_metrics["valid_loss"])


def test_accuracy_is_of_the_known_labels():
    found = metrics(predictions([[1, 1], [1, -1], [-1, 1]], [[1, NAN], [NAN, NAN], [0, 0]]), "multilabel")
    assert found.accuracy == 0.5


def test_rows_that_pad_a_shard_count_once():
    shards = [predictions([[2.0], [0.0]], [[1], [0]], [5, 0]), predictions([[9.0], [1.0]], [[0], [1]], [3, 5])]
    found = merge_shards(shards)
    assert (found.rows.tolist(), found.logits[:, 0].tolist()) == ([0, 3, 5], [0.0, 9.0, 2.0])


def test_logits_that_are_not_finite_stop_the_training():
    with pytest.raises(TrainError, match=r"1 of 2 rows have a logit that is NaN or infinite.*optimizer\.lr"):
        metrics(predictions([[NAN], [1.0]], [[0], [1]]), "binary")


def test_a_model_that_predicts_one_class_is_warned_of_at_the_end():
    model, split, pixels = image_split(n=60, valid=24)
    nn.init.constant_(model.head.classifier.bias, -50.0)
    with pytest.warns(UserWarning, match="predicts one class for all 24 rows") as caught:
        trainer().fit(ClassificationTask(model), datamodule=data_module(split, pixels))
    assert sum("one class" in str(warning.message) for warning in caught) == 1


# --- monitors ---


def test_a_monitor_that_validation_cannot_give_stops_before_the_first_step():
    labels = np.array([0, 1] * 8 + [0] * 8)
    before = {}
    model, split, pixels = image_split(labels=labels)
    before = state(model)
    run = trainer(callbacks=[EarlyStopping("valid_auroc", mode="max")])
    with pytest.raises(ConfigError, match="valid_auroc needs an output with positives and negatives"):
        run.fit(ClassificationTask(model), datamodule=data_module(split, pixels))
    assert run.global_step == 0
    assert_same(before, state(model))


def test_monitors():
    check_monitor("valid_auroc", np.array([[0.0, 1.0], [0.0, 0.0]], np.float32))
    check_monitor("loss", np.full((2, 1), NAN, np.float32))
    with pytest.raises(ConfigError, match="none is known in the validation part"):
        check_monitor("valid_loss", np.full((2, 1), NAN, np.float32))


def test_other_metrics_of_one_class_are_monitored():
    labels = np.array([0, 1] * 8 + [0] * 8)
    _module, run, _ = fitted(labels=labels, callbacks=[EarlyStopping("valid_loss")], epochs=1)
    assert torch.isnan(run.callback_metrics["valid_auroc"])


# --- freezing ---


def test_a_frozen_encoder_does_not_change_by_a_bit():
    model, split, pixels = image_split("cnn3d_small")
    assert any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.encoder.modules())
    before = state(model)
    module = ClassificationTask(model, freeze="encoder", optimizer=OptimizerSection(lr=0.1))
    modes = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            modes.append((pl_module.model.encoder.training, pl_module.model.head.training))

    trainer(callbacks=[Watch()]).fit(module, datamodule=data_module(split, pixels))
    after = state(model)
    encoder = {k: v for k, v in before.items() if k.startswith("encoder.")}
    assert_same(encoder, {k: v for k, v in after.items() if k in encoder})
    assert not torch.equal(before["head.classifier.weight"], after["head.classifier.weight"])
    assert set(modes) == {(False, True)}
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert all(not m.training for m in model.encoder.modules())


def test_nothing_frozen_trains_every_parameter_though_the_model_came_in_eval_mode():
    model, split, pixels = image_split("cnn3d_small")
    before = state(model.eval())
    trainer(max_epochs=1).fit(ClassificationTask(model), datamodule=data_module(split, pixels))
    same = [name for name, value in state(model).items() if torch.equal(value, before[name])]
    assert same == []


def test_frozen_batchnorm_keeps_its_statistics_and_trains_its_scale():
    model, split, pixels = image_split("cnn3d_small")
    before = state(model)
    task = ClassificationTask(model, batchnorm="frozen")
    trainer(max_epochs=2).fit(task, datamodule=data_module(split, pixels))
    after = state(model)
    same = {name.rpartition(".")[2] for name in before if torch.equal(before[name], after[name])}
    assert same == {"running_mean", "running_var", "num_batches_tracked"}


def test_an_encoder_frozen_by_hand_stays_so():
    model, split, pixels = image_split("cnn3d_small")
    model.freeze_encoder()
    before = state(model.encoder)
    trainer(max_epochs=1).fit(ClassificationTask(model), datamodule=data_module(split, pixels))
    assert_same(before, state(model.encoder))


def test_lightnings_own_freeze_still_works():
    module = ClassificationTask(image_split()[0])
    module.freeze()
    assert not any(parameter.requires_grad for parameter in module.parameters())


# --- state ---


def test_only_the_model_is_in_the_state_dict():
    loss = ClassificationLoss("bce", torch.tensor([3.0]))
    module = ClassificationTask(image_split()[0], loss=loss)
    assert {name.partition(".")[0] for name in module.state_dict()} == {"model"}
    assert copy.deepcopy(module).loss.positive_weight.tolist() == [3.0]


@pytest.mark.parametrize("kind", ["constant", "exponential", "cosine"])
def test_a_checkpoint_is_read_without_unpickling_code_and_continues_bit_for_bit(tmp_path, kind):
    how = {"schedule": ScheduleSection(kind=kind, gamma=0.9 if kind == "exponential" else 1.0, warmup=0.25)}

    class Keep(Checkpoint):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    def run(ckpt_path=None):
        torch.manual_seed(1)
        model, split, pixels = image_split(seeded=True)
        model.head.dropout.p = 0.0  # random numbers are the checkpoint keeper's matter
        module = ClassificationTask(model, loss=ClassificationLoss("bce", torch.tensor([2.0])), **how)
        data = data_module(split, pixels)
        if ckpt_path:
            data.train_loader.epoch = 1
        once = trainer(callbacks=[Keep()], enable_checkpointing=True, num_sanity_val_steps=0)
        once.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
        return state(model)

    whole = run()
    assert_same(whole, run(tmp_path / "0.ckpt"))


def test_validation_sees_the_moving_average_and_training_does_not():
    model, split, pixels = image_split()
    loss = ClassificationLoss("bce", torch.tensor([1.7]))
    module = ClassificationTask(model, loss=loss)
    average = EMAWeightAveraging(decay=0.5)
    seen = []

    class Watch(pl.Callback):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            seen.append(pl_module.model.head.classifier.weight.detach().clone())

    before = model.head.classifier.weight.detach().clone()
    trainer(callbacks=[average, Watch()], max_epochs=1).fit(module, datamodule=data_module(split, pixels))
    assert torch.equal(model.head.classifier.weight, seen[-1])  # Lightning copies the average at the end
    assert not torch.equal(before, seen[-1])
    assert torch.equal(loss.positive_weight, torch.tensor([1.7]))
    images = next(iter(data_module(split, pixels, batch_size=100).val_dataloader())).image
    with torch.inference_mode():
        assert_close(module.predictions.logits, model.eval()(images), rtol=1e-5, atol=1e-6)


# --- optimisers and schedules ---


@pytest.mark.parametrize(
    ("kind", "expected"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_optimizers_take_the_groups_of_the_model(kind, expected):
    how = OptimizerSection(kind=kind, lr=0.01, weight_decay=0.1, layer_decay=0.5)
    _module, run, _ = fitted("cnn3d_small", optimizer=how, epochs=1)
    (optimizer,) = run.optimizers
    assert type(optimizer) is expected
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    rates = {group["lr"] for group in optimizer.param_groups}
    assert max(rates) == 0.01
    assert len(rates) > 2


def test_accumulation_counts_steps_of_the_optimiser():
    how = ScheduleSection(kind="cosine", warmup=0.5)
    _module, run, _ = fitted(schedule=how, options={"accumulate_grad_batches": 2})
    scheduler = run.lr_scheduler_configs[0].scheduler
    assert run.global_step == 4  # 4 batches of 4 rows in each of 2 epochs
    assert scheduler.last_epoch == 4
    assert [rate_factor(how, step, 4, 2) for step in range(5)] == pytest.approx([1 / 3, 2 / 3, 1, 0.5, 0])
    assert scheduler.get_last_lr()[0] == pytest.approx(0)


def test_an_exponential_schedule_equals_torch():
    parameter = nn.Parameter(torch.zeros(1))
    ours = per_step(
        torch.optim.SGD([parameter], 0.1),
        ScheduleSection(kind="exponential", gamma=0.9),
        total=float("inf"),
    )
    theirs = torch.optim.lr_scheduler.ExponentialLR(torch.optim.SGD([parameter], 0.1), 0.9)
    for _ in range(20):
        for scheduler in (ours, theirs):
            scheduler.optimizer.step()
            scheduler.step()
        assert ours.get_last_lr() == pytest.approx(theirs.get_last_lr())
    assert "function" not in str(ours.state_dict()["lr_lambdas"])
    assert ours.state_dict()["lr_lambdas"] == [None]


def test_schedules_that_cannot_be():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    for how in (ScheduleSection(kind="cosine"), ScheduleSection(warmup=0.1)):
        with pytest.raises(ConfigError, match="cosine and a warm-up need to know the number of steps"):
            per_step(optimizer, how, total=float("inf"))


# --- faults ---


def test_fault_106_an_image_with_nan_reaches_no_batchnorm():
    model, split, pixels = image_split("cnn3d_small")
    read, bad = pixels.read, int(split.train.rows[3])
    pixels.read = lambda row: read(row) * (NAN if row == bad else 1)
    with pytest.raises(TrainError, match=r"NaN or infinite values in rows \[3\] of the table"):
        trainer().fit(ClassificationTask(model), datamodule=data_module(split, pixels))
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_fault_105_a_loss_that_is_nan_reaches_no_weight():
    class Broken(ClassificationLoss):
        def parts(self, logits, targets):
            total, weight = super().parts(logits, targets)
            return total * NAN, weight

    model, split, pixels = image_split()
    before = state(model)
    with pytest.raises(TrainError, match="the loss is nan at step 0"):
        trainer().fit(ClassificationTask(model, loss=Broken("bce")), datamodule=data_module(split, pixels))
    assert_same(before, state(model))


def test_tasks_that_cannot_be():
    with pytest.raises(ConfigError, match="a model with a head"):
        ClassificationTask(medzoo.create("xray_cnn", num_classes=0))
    model = image_split()[0]
    with pytest.raises(ConfigError, match="freeze to be one of"):
        ClassificationTask(model, freeze="head")
    with pytest.raises(ConfigError, match="batchnorm to be one of"):
        ClassificationTask(model, batchnorm="eval")
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        ClassificationTask(model)


# --- any Trainer ---


class Seen(pl.Callback):
    """Notes the rows of each batch by epoch, and the epochs that were validated."""

    def __init__(self):
        self.rows, self.validated = {}, []

    def on_train_batch_start(self, run, module, batch, index):
        self.rows.setdefault(run.current_epoch, []).append(batch.row.tolist())

    def on_validation_end(self, run, module):
        if not run.sanity_checking:
            self.validated.append(run.current_epoch)


def seen_by(ckpt_path=None, **options):
    model, split, pixels = image_split(seeded=True)
    seen = Seen()
    run = trainer(callbacks=[seen, *options.pop("callbacks", [])], max_epochs=3, **options)
    run.fit(ClassificationTask(model), datamodule=data_module(split, pixels), ckpt_path=ckpt_path)
    return seen, run


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("every", [3, 4, 6])
def test_a_plain_trainer_that_is_resumed_sees_every_batch_and_validates_every_epoch(tmp_path, every):
    """From within an epoch, from its end, and from within a later one."""
    whole, _ = seen_by()
    kept = ModelCheckpoint(tmp_path, every_n_train_steps=every, save_top_k=-1, filename="{step}")
    seen_by(callbacks=[kept], enable_checkpointing=True, default_root_dir=tmp_path)
    found, run = seen_by(
        tmp_path / f"step={every}.ckpt",
        callbacks=[ModelCheckpoint(tmp_path / "b", every_n_train_steps=every, save_top_k=-1)],
        enable_checkpointing=True,
    )
    assert run.global_step == 12
    epoch, done = divmod(every, 4)
    assert found.rows == {e: rows[done if e == epoch else 0 :] for e, rows in whole.rows.items() if e >= epoch}
    assert found.validated[-2:] == [1, 2]


def test_limited_batches_are_those_of_each_epoch():
    whole, limited = seen_by()[0], seen_by(limit_train_batches=2)[0]
    assert limited.rows == {epoch: rows[:2] for epoch, rows in whole.rows.items()}
    assert limited.validated == [0, 1, 2]


# --- several processes ---


def in_one_process(rank: int, world: int, port: int, folder: str) -> None:
    """Train in a process of several, each with every second row of a batch; masked labels are not evenly spread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = np.stack([np.arange(24) % 2.0, np.where(np.arange(24) % 4 == 0, NAN, np.arange(24) // 2 % 2)], 1)
    model, split, pixels = image_split(labels=labels, seeded=True)
    model.head.dropout.p = 0.0
    data = data_module(split, pixels, batch_size=4)
    options = {}
    if world > 1:  # a process that something else has started, as torchrun does
        os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        options = {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": world}
    module = ClassificationTask(model, optimizer=OptimizerSection(kind="sgd", lr=0.1))
    run = trainer(**options)
    run.fit(module, datamodule=data)
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    torch.save((state(model), metrics, tuple(module.predictions)), Path(folder) / f"{world}-{rank}.pt")


@pytest.mark.slow  # half a minute
def test_two_processes_train_as_one_does(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    for world in (1, 2):
        children = [
            context.Process(target=in_one_process, args=(rank, world, port, str(tmp_path))) for rank in range(world)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(120)
            assert child.exitcode == 0
    (weights, values, rows), (first, first_values, first_rows), (second, second_values, second_rows) = (
        torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1")
    )
    for name, value in weights.items():
        assert_close(first[name], value, rtol=1e-6, atol=1e-6)
        assert torch.equal(first[name], second[name])
    assert first_values == second_values == pytest.approx(values, rel=1e-5)
    for ours, theirs, expected in zip(first_rows, second_rows, rows, strict=True):
        assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
        assert_close(ours, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
