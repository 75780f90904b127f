"""Drafts that are whole models: trained in two stages, read by every method with a draft model, exact."""

import json

import pytest
import torch

from mmllm import registry
from mmllm.decoding.choosing import decoding_of
from mmllm.decoding.drafter import own_llm
from mmllm.decoding.trained_draft import TargetRows
from mmllm.inference.answering import VideoQA
from mmllm.train.draft_recipe import draft_recipe
from mmllm.train.draft_run import train_draft
from mmllm.train.metrics import read_metrics
from mmllm.train.packing import NAMES, RowCollator

SHORT = {"max_steps": 8, "batch_size": 4, "save_steps": 4, "logging_steps": 1, "learning_rate": 3e-3}
QUESTION = "When does the red circle spin?"


@pytest.fixture(scope="module")
def folders(own_clips, tiny_base, tmp_path_factory):
    """Name -> folder of a trained draft."""
    trained = {}
    for name in ("fastdraft", "s2d"):
        recipe = draft_recipe(f"{name}:width=16,mlp_width=32").changed(
            {"target": str(tiny_base), "data": {"root": str(own_clips)}, "training": SHORT, "pretraining": SHORT}
        )
        trained[name] = train_draft(recipe, tmp_path_factory.mktemp(name), workers=0)
    return trained


@pytest.fixture(scope="module")
def target(tiny_base):
    qa = VideoQA.from_pretrained(tiny_base)
    qa.max_new_tokens = 10
    return qa


@pytest.mark.parametrize("name", ["fastdraft", "s2d"])
def test_both_stages_learn_and_the_encoder_stays(folders, target, name):
    for stage in ("pretraining", "training"):
        lines = read_metrics(folders[name].parent / stage / "metrics.jsonl")
        losses = [line["loss"] for line in lines if "loss" in line]
        assert losses[-1] < losses[0]
    draft = VideoQA.from_pretrained(folders[name]).model
    assert draft.config.text_config.hidden_size == 16
    own, theirs = draft.encoder.state_dict(), target.model.encoder.state_dict()
    assert all(torch.equal(own[key], theirs[key]) for key in theirs)
    record = json.loads((folders[name] / "draft.json").read_text())
    assert record["draft"]["name"] == name


@pytest.mark.parametrize(
    "description",
    ["fastdraft:draft={fastdraft}", "fastdraft:draft={fastdraft},tokens=2", "spectr:draft={fastdraft},candidates=2",
     "dyspec:draft={fastdraft},nodes=4", "s2d:draft={s2d},threshold=0.05", "s2d:draft={s2d},exits=2",
     "pearl:draft={s2d}", "fastdraft:draft={fastdraft},frames=3"],
)  # fmt: skip
def test_answers_about_a_video_are_those_of_one_token_a_pass(folders, target, own_clips, description):
    method = decoding_of(description.format(**folders))
    video = target.encode_video(next((own_clips / "videos").glob("*.mp4")))
    plain = target.ask(video, QUESTION)
    answer = target.ask(video, QUESTION, decoding=method)
    assert answer == plain
    assert answer.raw == plain.raw
    assert method.total.draft_passes > 0
    assert not method.other_law


def test_a_draft_with_the_targets_encoder_does_not_encode_again(folders, target, own_clips, monkeypatch):
    method = decoding_of(f"fastdraft:draft={folders['fastdraft']}")
    video = target.encode_video(next((own_clips / "videos").glob("*.mp4")))
    target.ask(video, QUESTION, decoding=method)
    monkeypatch.setattr(type(method._loaded.model.encoder), "forward", None)
    target.ask(video, QUESTION, decoding=method)


def test_the_small_llm_is_an_assistant_of_transformers_too(folders, target):
    draft, ids = VideoQA.from_pretrained(folders["fastdraft"]).model.language_model, torch.tensor([[5, 9, 11]])
    llm = target.model.language_model
    options = {"max_new_tokens": 12, "do_sample": False}
    expected = llm.generate(ids, **options)
    assert torch.equal(llm.generate(ids, assistant_model=draft, **options), expected)
    method = registry.build("decoding", "assisted:draft=given", draft_model=draft)
    assert torch.equal(llm.generate(ids, custom_generate=method, **options), expected)


@torch.no_grad()
def test_the_loss_at_an_exit_is_that_of_the_truncated_network(target, own_clips):
    torch.manual_seed(0)
    draft = registry.build("draft", "s2d:width=16,mlp_width=32", model=target.model)
    batch = batch_of(target, own_clips)
    whole = draft.loss(TargetRows.of_batch(target.model, batch))
    parts = []
    for layers in (1, None):
        short = own_llm(draft.model.language_model, layers)
        rows = TargetRows.of_batch(draft.model, batch)
        logits = short(inputs_embeds=rows.embeddings, attention_mask=rows.mask, position_ids=rows.positions).logits
        parts.append(torch.nn.functional.cross_entropy(logits[rows.answered], rows.following[rows.answered]))
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-5)


def batch_of(qa, own_clips):
    """Two rows with answers about videos, as the trainer makes them."""
    from mmllm.datasets.rtl import read_rtl
    from mmllm.train.packing import PackedQuestions

    questions = read_rtl(own_clips / "train.json", own_clips / "videos").items
    rows = PackedQuestions(
        questions, qa.processor, lambda path: qa.processor.media_inputs("video", [path]), rows=2, questions_per_row=1,
        seed=0,
    )  # fmt: skip
    batch = RowCollator(pad_token_id=0)([rows[0], rows[1]])
    del batch[NAMES]
    return batch


def test_what_a_draft_cannot_be_is_refused(target):
    for description, field in (
        ("fastdraft:width=0", "width"), ("fastdraft:width=12", "width"), ("s2d:exits=1", "exits"),
        ("s2d:exits=2+1", "exits"), ("s2d:layers=3", "exits"), ("fastdraft:mlp_width=0", "mlp_width"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=field):
            registry.config_of("draft", description)
    draft = registry.build("draft", "fastdraft:width=16,mlp_width=32", model=target.model)

    class Reading:
        reads_question = True

    with pytest.raises(ValueError, match="reads the question"):
        draft.check(Reading())
