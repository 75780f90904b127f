"""Rows shared out over a ring of gloo processes: the training of one process, and what a ring is refused with."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from same_training import assert_same_training
from torch import nn

from mmllm.config import LossConfig
from mmllm.datasets.formats import read_annotations
from mmllm.datasets.shard_writing import planned, write_shards
from mmllm.errors import ConfigError
from mmllm.fields import merged
from mmllm.inference.answering import VideoQA
from mmllm.runtime import processes
from mmllm.train.building import build_model
from mmllm.train.data import DataConfig
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.long_rows import Repeated, check_ring, check_source
from mmllm.train.metrics import read_metrics
from mmllm.train.recipe import Recipe
from mmllm.train.run import train
from mmllm.train.stages.language import LanguageTraining
from mmllm.train.streamed import StreamedDialogues

STEPS = 3
TOKENS_ONLY = LossConfig(time_sigma=1.0)
SHORT = {"max_steps": STEPS, "batch_size": 2, "save_steps": 2, "logging_steps": 1}


def recipe(parts, clips, loss=TOKENS_ONLY, **fields):
    """Trains all that a row goes through; questions share rows if `questions_per_video` says so."""
    parts = replace(parts, path="plain", num_frames=3, loss=loss)
    stage = LanguageTraining(**{**SHORT, **fields})
    return Recipe(name="ring", data=DataConfig(root=str(clips)), model=parts, stages=(stage,))


def in_this_folder(settings, output):
    train(settings, output, workers=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"questions_per_video": 1},
        {"questions_per_video": 3, "ring_sends": "queries"},
        {"questions_per_video": 1, "lora_rank": 2, "gradient_checkpointing": True},
        {"questions_per_video": 1, "frozen": ("encoder", "visual_tokenizer"), "ring_sends": "queries"},
    ],
)
def test_two_processes_that_share_rows_train_as_one(together, tiny_parts, own_clips, tmp_path, fields):
    one, two = tmp_path / "one", tmp_path / "two"
    alone = {name: value for name, value in fields.items() if name != "ring_sends"}
    train(recipe(tiny_parts, own_clips, **alone), one, workers=0)
    together(2, in_this_folder, recipe(tiny_parts, own_clips, ring=2, **fields), two)
    assert_same_training(one, two, STEPS)


@pytest.mark.slow
def test_two_rings_train_as_one_process_with_twice_the_accumulation(together, tiny_parts, own_clips, tmp_path):
    one, four = tmp_path / "one", tmp_path / "four"
    train(recipe(tiny_parts, own_clips, gradient_accumulation_steps=2), one, workers=0)
    together(4, in_this_folder, recipe(tiny_parts, own_clips, ring=2), four)
    assert_same_training(one, four, STEPS)


@pytest.mark.slow
def test_own_dialogues_are_trained_on_in_a_ring(together, own_clips, tiny_base, tmp_path):
    def settings(**fields):
        return FinetuneConfig(model=str(tiny_base), training=FinetuneTraining(**SHORT, lora_rank=2, **fields))

    file, one, two = own_clips / "clips.jsonl", tmp_path / "one", tmp_path / "two"
    finetune(settings(), file, one, workers=0)
    together(2, finetune, settings(ring=2), file, two)
    assert_same_training(one, two, STEPS)
    stored = tmp_path / "shards"
    write_shards({"train": planned(read_annotations(file).items, "train", 1)}, stored)
    together(2, finetune, settings(ring=2), stored, tmp_path / "stored")
    finetune(settings(), stored, tmp_path / "alone", workers=0)
    assert_same_training(tmp_path / "alone", tmp_path / "stored", STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("field", ["ring", "chunks"])
def test_a_model_with_a_grounding_loss_is_trained_without_it(together, own_clips, grounded_base, tmp_path, field):
    def settings(**fields):
        return FinetuneConfig(model=str(grounded_base), training=FinetuneTraining(**SHORT, lora_rank=2, **fields))

    file, one, two = own_clips / "clips.jsonl", tmp_path / "one", tmp_path / "two"
    with pytest.raises(ConfigError, match=r"grounding_weight.*training: \{grounding: false\}"):
        finetune(settings(**{field: 2}), file, two, workers=0)
    finetune(settings(grounding=False), file, one, workers=0)
    together(2 if field == "ring" else 1, finetune, settings(grounding=False, **{field: 2}), file, two)
    assert_same_training(one, two, STEPS)
    assert VideoQA.from_pretrained(one / "model").model.grounding is None


@pytest.fixture(scope="module")
def grounded_base(tiny_parts, tmp_path_factory):
    """Folder of a tiny model that was made with a grounding loss, as the packaged one."""
    folder = tmp_path_factory.mktemp("grounded")
    for part in build_model(replace(tiny_parts, loss=LossConfig(grounding_weight=1.0))):
        part.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_in_bfloat16_a_ring_differs_by_its_rounding(together, tiny_parts, own_clips, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "multiplies_bfloat16", lambda: True)
    one, two, exact = (tmp_path / name for name in ("one", "two", "exact"))
    train(recipe(tiny_parts, own_clips, bfloat16=True, questions_per_video=1), one, workers=0)
    together(2, in_this_folder, recipe(tiny_parts, own_clips, bfloat16=True, questions_per_video=1, ring=2), two)
    train(recipe(tiny_parts, own_clips, questions_per_video=1), exact, workers=0)
    first = [read_metrics(run / "language" / "metrics.jsonl")[0]["loss"] for run in (one, two, exact)]
    assert first[0] != first[2]
    assert first[1] == pytest.approx(first[0], rel=0.005)


def test_batches_are_repeated_for_the_processes_of_a_ring():
    rows = Repeated(list(range(12)), batch=2, times=3)
    assert len(rows) == 36
    batches = [[rows[turn * 2 + slot] for slot in range(2)] for turn in range(18)]
    for process in range(6):  # accelerate gives process r every sixth batch, beginning with the r-th
        ring = process // 3
        assert batches[process::6] == [[2 * turn, 2 * turn + 1] for turn in (ring, ring + 2, ring + 4)]


@pytest.mark.parametrize(
    ("reducers", "loss", "reason"),
    [
        ((), LossConfig(grounding_weight=1.0), "grounding_weight"),
        (("atp:depths=0.3+0.6,ratio=0.5",), LossConfig(), "stages inside the LLM"),
    ],
)
def test_a_model_whose_rows_cannot_be_shared_is_refused(tiny_parts, own_clips, tmp_path, reducers, loss, reason):
    settings = recipe(tiny_parts, own_clips, loss=loss, ring=2, questions_per_video=1)
    deep = replace(settings.model, reducers=reducers, decoder=replace(tiny_parts.decoder, layers=4))
    with pytest.raises(ConfigError, match=f"ring above 1 does not go with .*{reason}"):
        train(replace(settings, model=deep), tmp_path, workers=0)


def test_processes_that_fill_no_ring_are_refused(tiny_parts, own_clips, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"ring = 2: 1 process does not fill rings of 2; .*--nproc_per_node 2"):
        train(recipe(tiny_parts, own_clips, ring=2), tmp_path, workers=0)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="3 processes do not fill rings of 2"):
        check_ring(build_model(replace(tiny_parts, loss=LossConfig()))[0], 2)


def test_a_stream_is_refused():
    with pytest.raises(ConfigError, match="does not go with the stream hf:videos"):
        check_source(StreamedDialogues(SimpleNamespace(name="hf:videos"), 0))
    check_source(None)


def test_llms_with_another_attention_are_refused(tiny_parts, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    plain = replace(tiny_parts, loss=LossConfig())

    def refused(reason, change):
        model = build_model(plain)[0]
        change(model)
        with pytest.raises(ConfigError, match=f"ring above 1.*{reason}"):
            check_ring(model, 2)

    def slides(model):
        model.config.text_config.sliding_window = 8

    def caps(model):
        model.config.text_config.attn_logit_softcapping = 50.0

    def drops(model):
        model.language_model.extra = nn.Dropout(0.1)

    def flash(model):
        model.language_model.config._attn_implementation = "flash_attention_2"

    refused("sliding window", slides)
    refused("capped attention scores", caps)
    refused("dropout in the LLM", drops)
    refused("eager or with sdpa attention, not 'flash_attention_2'", flash)


@pytest.mark.parametrize(
    "fields",
    [
        {"ring": 0},
        {"ring": 2, "chunks": 2},
        {"ring": 2, "packed_attention": True},
        {"ring_sends": "queries"},
        {"ring": 2, "ring_sends": "values"},
    ],
)
def test_settings_of_a_ring(fields):
    with pytest.raises(ConfigError, match="ring"):
        merged(LanguageTraining(), fields, "language")
