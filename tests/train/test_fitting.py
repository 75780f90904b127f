"""The training loop when things go wrong: what is not a number, a full disk, too little memory."""

import errno
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmllm.errors import MmllmError
from mmllm.train.fitting import InOrder, fit, latest_checkpoint
from mmllm.train.metrics import read_metrics
from mmllm.train.packing import NAMES
from mmllm.train.schedule import TrainingSchedule


class Line(nn.Module):
    """y = w x, whose loss is whatever the row says."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0]))

    def forward(self, x, labels=None):
        return {"loss": ((self.weight * x - 2 * x) ** 2).mean()}


class Numbers(torch.utils.data.Dataset):
    """Row i is 1, unless it is poisoned."""

    def __init__(self, rows, poisoned=()):
        self.rows, self.poisoned = rows, set(poisoned)

    def __len__(self):
        return self.rows

    def __getitem__(self, i):
        return i, float("nan") if i in self.poisoned else 1.0


def collate(rows):
    return {"x": torch.tensor([value for _, value in rows]), NAMES: [f"row {i}" for i, _ in rows]}


def trained(output, poisoned=(), **schedule):
    fields = {"max_steps": 8, "batch_size": 1, "learning_rate": 0.1, "logging_steps": 1, "save_steps": 2, **schedule}
    fields["weight_decay"] = 0.0
    training = TrainingSchedule(**fields)
    model = Line()
    trainer = fit(model, Numbers(fields["max_steps"], poisoned), collate, training, output, what="draw a line", seed=0)
    return trainer, model


def test_a_step_that_is_not_a_number_is_skipped_counted_and_its_row_named(tmp_path, caplog):
    _, model = trained(tmp_path / "a", poisoned=[2, 5])
    assert torch.isfinite(model.weight).all()
    assert 1.0 < float(model.weight) < 2.5
    assert "its rows: row 2" in caplog.text
    assert "its rows: row 5" in caplog.text
    assert "step 3 is skipped" in caplog.text
    lines = [line for line in read_metrics(tmp_path / "a" / "metrics.jsonl") if "loss" in line]
    assert [line.get("skipped_steps", 0) for line in lines] == [0, 0, 1, 1, 1, 2, 2, 2]
    before = torch.load(tmp_path / "a" / "checkpoints" / "checkpoint-8" / "optimizer.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in before["state"][0].values())


def test_too_many_of_them_in_a_row_end_the_training_and_keep_the_checkpoint(tmp_path):
    with pytest.raises(MmllmError, match="3 steps in a row had no finite gradient"):
        trained(tmp_path, poisoned=range(2, 8), max_bad_steps=3)
    newest = latest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.name in ("checkpoint-2", "checkpoint-4")


def test_a_full_disk_is_told_and_the_last_good_checkpoint_kept(tmp_path, monkeypatch):
    save = InOrder._save_optimizer_and_scheduler

    def full(self, folder):
        if self.state.global_step >= 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, folder)

    monkeypatch.setattr(InOrder, "_save_optimizer_and_scheduler", full)
    with pytest.raises(MmllmError, match=r"checkpoint-6 .*No space left.*last good checkpoint is .*checkpoint-4"):
        trained(tmp_path)
    assert not (tmp_path / "checkpoints" / "checkpoint-6").exists()
    monkeypatch.undo()
    trained(tmp_path)
    lines = [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert lines == list(range(1, 9))


def test_too_little_memory_is_told_with_what_to_lower(tmp_path, monkeypatch):
    def greedy(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(Line, "forward", greedy)
    with pytest.raises(MmllmError, match=r"out of memory in draw a line, with rows row 0: lower batch_size"):
        trained(tmp_path)


def test_another_fault_is_not_taken_for_one_of_these(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Line, "forward", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trained(tmp_path)


def test_checkpoints_of_several_processes_are_complete_with_the_state_of_all(tmp_path):
    folder = tmp_path / "checkpoint-4"
    folder.mkdir()
    for name in ("optimizer.pt", "rng_state_0.pth", "rng_state_1.pth"):
        (folder / name).touch()
    assert latest_checkpoint(tmp_path) is None  # the trainer's state is written last
    folder.mkdir()
    (folder / "rng_state_0.pth").touch()
    (folder / "trainer_state.json").write_text("{}")
    assert latest_checkpoint(tmp_path) is None
    folder.mkdir()
    for name in ("rng_state_0.pth", "trainer_state.json"):
        (folder / name).write_text("{}")
    (folder / "optimizer_0").mkdir()
    assert latest_checkpoint(tmp_path) == folder


def test_the_model_is_whole_where_it_was_never_spread(tmp_path):
    from mmllm.train.fitting import trained_model

    model = Line()
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(unwrap_model=lambda wrapped: wrapped),
        model=model,
        is_deepspeed_enabled=False,
        is_fsdp_enabled=False,
    )
    assert trained_model(trainer, Line) is model


class Rivals(nn.Module):
    """Two weights of which one has a gradient a thousand times as large."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x, labels=None):
        return {"loss": (0.5 * self.small + 500 * self.large).sum()}


def test_a_group_that_is_clipped_apart_does_not_shrink_the_others(tmp_path):
    moved = {}
    for apart in (True, False):
        model = Rivals()
        groups = [{"params": [model.small]}, {"params": [model.large], "clipped_apart": apart}]
        training = TrainingSchedule(max_steps=1, batch_size=1, learning_rate=1.0, warmup_fraction=0.0)
        optimizer = torch.optim.SGD(groups, lr=1.0)
        fit(
            model, Numbers(1), collate, training, tmp_path / str(apart), what="pull", seed=0, optimizer=optimizer
        )  # fmt: skip
        moved[apart] = -model.small.item(), -model.large.item()
    assert moved[True] == pytest.approx((0.5, 1.0), rel=1e-4)
    assert moved[False] == pytest.approx((1e-3, 1.0), rel=1e-3)
