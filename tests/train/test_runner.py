"""The runner on stages of a few numbers: order, skipping, handing on, and weights that training has spread."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmllm.errors import ConfigError
from mmllm.train import runner
from mmllm.train.runner import check_stages, run_stages
from mmllm.train.stage import TrainingRun


class Pair(nn.Module):
    """A model with two parts of one weight each."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        for part in (self.first, self.second):
            nn.init.zeros_(part.weight)

    @property
    def weights(self):
        return [float(part.weight.detach()) for part in (self.first, self.second)]


class Adding:
    """Adds to the weight of a part, or of the whole model, and freezes everything on its way."""

    rows_needed = 0
    goes_first = False
    weights = "added.safetensors"

    def __init__(self, name, amount, *, whole=False, done=None):
        self.folder, self.name, self.amount, self.whole = f"{name}-{amount}", name, amount, whole
        self.done = [] if done is None else done

    def check(self, model):
        if self.amount < 0:
            raise ConfigError("nothing is taken away")

    def part(self, model):
        return model if self.whole else getattr(model, self.name)

    def train(self, run, folder):
        folder.mkdir(parents=True, exist_ok=True)
        assert any(weight.requires_grad for weight in run.model.parameters())
        run.model.requires_grad_(False)
        getattr(run.model, self.name).weight.add_(self.amount)
        self.done.append(self.folder)
        return run.model


@pytest.fixture
def make_run(tmp_path):
    """Makes a run in the same folder, with a new model."""
    return lambda: TrainingRun(folder=tmp_path, model=Pair(), processor=None, build=Pair, source=None)


def test_stages_are_run_in_order_and_each_hands_on_its_part(make_run, tmp_path):
    done = []
    run = make_run()
    trained = run_stages([Adding("first", 1, done=done), Adding("second", 2, done=done)], run)
    assert trained is run.model
    assert (done, trained.weights) == (["first-1", "second-2"], [1.0, 2.0])
    assert load_file(tmp_path / "first-1" / "added.safetensors")["weight"].item() == 1.0
    assert all(weight.requires_grad for weight in trained.parameters())
    assert not list(tmp_path.rglob("*.part"))


def test_finished_stages_are_skipped_and_what_they_learned_is_loaded(make_run):
    done = []
    stages = [Adding("first", 1, done=done), Adding("second", 2, whole=True, done=done)]
    run_stages(stages, make_run())
    again = run_stages([*stages, Adding("first", 5, whole=True, done=done)], make_run())
    assert done == ["first-1", "second-2", "second-2", "first-5"]
    assert again.weights == [6.0, 2.0]


def test_the_last_stage_writes_no_second_copy_of_the_whole_model(make_run, tmp_path):
    stages = [Adding("first", 1, whole=True), Adding("second", 2, whole=True)]
    run_stages(stages, make_run())
    assert (tmp_path / "first-1" / "added.safetensors").exists()
    assert not (tmp_path / "second-2" / "added.safetensors").exists()


def test_every_stage_looks_at_the_model_before_the_first_begins():
    check_stages([Adding("first", 1), Adding("second", 2)], Pair())
    with pytest.raises(ConfigError, match="nothing is taken away"):
        check_stages([Adding("first", 1), Adding("second", -2)], Pair())


def test_a_model_whose_weights_are_spread_is_built_again_for_the_next_stage(make_run, monkeypatch):
    """What FSDP leaves: the pieces of this process. The weights of all stages so far come from their files."""
    run = make_run()
    spread = run.model
    monkeypatch.setattr(runner, "is_spread", lambda model: model is spread)
    trained = run_stages([Adding("first", 1), Adding("second", 2), Adding("first", 4)], run)
    assert trained is run.model
    assert trained is not spread
    assert trained.weights == [5.0, 2.0]


def test_spread_weights_are_told_from_whole_ones():
    model = Pair()
    assert not runner.is_spread(model)
    model.first.weight.ds_id = 3  # as DeepSpeed marks it
    assert runner.is_spread(model)
    assert torch.equal(model.second.weight, torch.zeros(1, 1))
