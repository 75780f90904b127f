"""The training of drafts: on the target's own answers, in stages, resumed, saved with the target's fingerprint."""

import json
import shutil
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from mmllm import cli, registry
from mmllm.datasets.rtl import read_rtl
from mmllm.decoding.draft_files import load_draft, save_draft
from mmllm.decoding.trained_draft import TrainedDraft
from mmllm.inference.answering import VideoQA
from mmllm.tokens import IGNORED
from mmllm.train.draft_recipe import draft_recipe
from mmllm.train.draft_run import train_draft
from mmllm.train.metrics import read_metrics

SHORT = {"max_steps": 6, "batch_size": 2, "save_steps": 3, "logging_steps": 1}


@dataclass(frozen=True, kw_only=True)
class BiasConfig:
    """Where the weights start."""

    start: float = 0.0


class Bias(TrainedDraft):
    """A law of the next token that depends on nothing."""

    pretrains = True
    training_defaults = {"learning_rate": 0.05}  # noqa: RUF012

    def __init__(self, config, *, model):
        super().__init__()
        self.config = config
        self.logits = nn.Parameter(torch.full((model.config.text_config.vocab_size,), config.start))

    def loss(self, rows):
        assert rows.hidden.shape == rows.embeddings.shape
        assert rows.visual.any()
        wanted = rows.following[rows.answered]
        return nn.functional.cross_entropy(self.logits.expand(len(wanted), -1), wanted)


@pytest.fixture(autouse=True)
def bias():
    registry.register("draft", "bias", config=BiasConfig)(Bias)
    yield
    del registry._parts["draft"]["bias"]


@pytest.fixture
def recipe(tiny_base, own_clips):
    made = draft_recipe("bias:start=0.5").changed({"target": str(tiny_base), "data": {"root": str(own_clips)}})
    return made.changed({"training": SHORT, "pretraining": {**SHORT, "max_steps": 2}})


def losses(run, stage):
    return [line["loss"] for line in read_metrics(run / stage / "metrics.jsonl") if "loss" in line]


def test_a_draft_learns_the_targets_answers_and_is_found_again(recipe, tmp_path):
    assert recipe.training.learning_rate == 0.05
    folder = train_draft(recipe, tmp_path, workers=0)
    assert losses(tmp_path, "training")[-1] < losses(tmp_path, "training")[0]
    assert len(losses(tmp_path, "pretraining")) == 2
    qa = VideoQA.from_pretrained(recipe.target)
    draft = load_draft("bias", folder, qa.model)
    assert draft.config == BiasConfig(start=0.5)
    assert not any(weight.requires_grad for weight in draft.parameters())
    record = json.loads((folder / "draft.json").read_text())
    assert record["target_name"] == recipe.target
    # the answers are those that the target gives
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    said = {token for line in lines for token in line["ids"]}
    top = draft.logits.topk(3).indices.tolist()
    assert set(top) <= said
    assert train_draft(recipe, tmp_path, workers=0) == folder


def test_the_targets_weights_stay_and_its_answers_are_greedy(recipe, tmp_path, own_clips):
    qa = VideoQA.from_pretrained(recipe.target)
    before = {name: weight.clone() for name, weight in qa.model.state_dict().items()}
    train_draft(recipe, tmp_path, workers=0)
    after = VideoQA.from_pretrained(recipe.target).model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    lines = {line["id"]: line["ids"] for line in map(json.loads, (tmp_path / "answers.jsonl").open())}
    for question in read_rtl(own_clips / "train.json", own_clips / "videos").items[:3]:
        prompt = qa.prompt(question.question, question.duration_s).input_ids
        assert lines[question.question_id] == qa.generate(qa.encode_video(question.video), prompt[None])[0].tolist()


def test_a_stopped_run_goes_on(recipe, tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train_draft(recipe, whole, workers=0)
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "draft")
    shutil.rmtree(stopped / "training" / "checkpoints" / "checkpoint-6")
    (stopped / "training" / "draft.safetensors").unlink()
    train_draft(recipe, stopped, workers=0)
    assert losses(stopped, "training") == losses(whole, "training")
    ours, theirs = (load_file(run / "draft" / "draft.safetensors") for run in (stopped, whole))
    assert torch.equal(ours["logits"], theirs["logits"])
    with pytest.raises(ValueError, match="seed: 0 -> 1"):
        train_draft(replace(recipe, seed=1), stopped, workers=0)


def test_rows_have_labels_on_the_answer_alone(recipe, tmp_path):
    seen = []

    def loss(self, rows):
        seen.append(rows)
        return self.logits.sum()

    original, Bias.loss = Bias.loss, loss
    try:
        train_draft(recipe.changed({"pretraining": None}), tmp_path, workers=0)
    finally:
        Bias.loss = original
    lines = {tuple(json.loads(line)["ids"]) for line in (tmp_path / "answers.jsonl").open()}
    for rows in seen:
        for row in range(len(rows.ids)):
            assert tuple(rows.labels[row][rows.labels[row] != IGNORED].tolist()) in lines
        assert int(rows.positions.max()) == int(rows.mask.sum(1).max()) - 1


def test_a_draft_of_other_weights_or_of_another_kind_is_refused(make_model, tmp_path):
    model, folder = make_model(), tmp_path / "draft"
    folder.mkdir()
    with pytest.raises(ValueError, match="no trained draft is there"):
        load_draft("bias", folder, model)
    save_draft(Bias(BiasConfig(), model=model), folder, model, name="mine")
    load_draft("bias", folder, model)
    with pytest.raises(ValueError, match="holds a draft of 'bias', not of 'other'"):
        load_draft("other", folder, model)
    other = make_model(decoder={"vocab_size": 110})
    with pytest.raises(ValueError, match=r"trained for other weights \(those of mine\)"):
        load_draft("bias", folder, other)
    model.language_model.model.norm.weight.data += 1
    with pytest.raises(ValueError, match="trained for other weights"):
        load_draft("bias", folder, model)
    model.language_model.model.norm.weight.data -= 1
    (folder / "draft.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="weights cannot be loaded"):
        load_draft("bias", folder, model)
    (folder / "draft.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say which draft"):
        load_draft("bias", folder, model)


def test_loading_a_draft_does_not_move_the_random_numbers(make_model, tmp_path):
    model = make_model()
    save_draft(Bias(BiasConfig(), model=model), tmp_path, model)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_draft("bias", tmp_path, model)
    assert torch.equal(torch.rand(3), expected)


def test_what_a_draft_cannot_be_trained_with_is_refused(recipe, make_model, tmp_path):
    with pytest.raises(ValueError, match="questions_per_video"):
        recipe.changed({"training": {"questions_per_video": 2}})
    with pytest.raises(ValueError, match="without a mixture"):
        recipe.changed({"data": {"talk": 0.5}})
    with pytest.raises(ValueError, match="unknown draft"):
        draft_recipe("flesh")
    stage = registry.build("training", "draft")
    with pytest.raises(ValueError, match="mmllm train-draft"):
        stage.check(make_model())


def test_the_command(tiny_base, own_clips, tmp_path, capsys):
    settings = tmp_path / "short.yaml"
    settings.write_text(json.dumps({"training": SHORT, "pretraining": None}))
    arguments = ["train", "draft", "bias", "--model", tiny_base, "--data-root", own_clips, "--output", tmp_path / "run",
                 "--config", settings, "--steps", 2, "--workers", 0]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        cli.main(list(map(str, arguments)))
    assert not ended.value.code
    assert f"draft: {tmp_path / 'run' / 'draft'}" in capsys.readouterr().out
    assert len(losses(tmp_path / "run", "training")) == 2


def test_targets_that_cannot_have_a_draft_are_refused_before_anything_is_trained(
    recipe, untrained_qa, monkeypatch, tmp_path
):
    inside = untrained_qa.with_stages(reducers=["fastv:layer=1,ratio=0.5"])
    for target, message in ((object(), "is a hosted model of transformers"), (inside, "fastv works inside the LLM")):
        monkeypatch.setattr(VideoQA, "from_pretrained", classmethod(lambda cls, source, target=target: target))
        with pytest.raises(ValueError, match=message):
            train_draft(recipe, tmp_path, workers=0)
        assert not (tmp_path / "recipe.json").exists()
