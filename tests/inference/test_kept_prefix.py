"""Questions about an encoded video start from the LLM's cache of it, and are answered as without."""

import dataclasses

import pytest
import torch

from mmllm.hub.sources import DEFAULT
from mmllm.inference.answering import VideoQA
from mmllm.inference.kept_prefix import grouped
from mmllm.inference.streaming import stream
from mmllm.llm.prefix import Prefix

QUESTIONS = [
    "When does the red circle spin?",
    "When is the blue square on screen?",
    "When?",
    "When does the red circle spin after <2.5>?",
]
HISTORIES = [(), [("When?", "<t3> <t9> it is")], (), [("When is it?", "<t1> <t2> it is"), ("Why?", "it spins")]]


@pytest.fixture(scope="module")
def qa():
    """The model that comes with mmllm, whose answers are not all the same."""
    loaded = VideoQA.from_pretrained(DEFAULT)
    loaded.max_new_tokens = 16
    return loaded


@pytest.fixture
def encoded(qa, short_clip):
    return qa.encode_video(short_clip)


@pytest.fixture
def without(qa):
    """The same model, which reads the video again for each question."""
    qa = qa.with_stages()
    qa.keeps_prefix = False
    return qa


@pytest.fixture
def passes(qa):
    """Positions of each pass through the LLM, as rows and lengths."""
    seen = []
    hook = qa.model.language_model.base_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    yield seen
    hook.remove()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 2.0}])
def test_answers_with_and_without_are_the_same(qa, without, encoded, options):
    def asked(qa):
        torch.manual_seed(3)
        return qa.ask_all(encoded, QUESTIONS, histories=HISTORIES, **options)

    expected = asked(without)
    assert encoded.prefix.kept is None
    assert asked(qa) == expected
    assert isinstance(encoded.prefix.kept, Prefix)
    assert asked(qa) == expected  # now from what was kept
    assert len({answer.raw for answer in expected}) > 1


def test_one_by_one_in_a_batch_and_in_a_stream_are_the_same(qa, without, encoded):
    together = qa.ask_all(encoded, QUESTIONS, histories=HISTORIES)
    for question, history, answer in zip(QUESTIONS, HISTORIES, together, strict=True):
        assert qa.ask_all(encoded, [question], histories=[history]) == [answer]
        assert list(stream(qa, encoded, question, history=history))[-1].answer == answer
        assert list(stream(without, encoded, question, history=history))[-1].answer == answer


def test_the_video_is_read_once(qa, encoded, passes):
    qa.ask_all(encoded, QUESTIONS)
    count = len(encoded.prefix.kept.ids)
    assert passes[0] == (1, count)
    assert passes[1][0] == len(QUESTIONS)
    assert all(length < count for _, length in passes[1:])
    passes.clear()
    qa.ask(encoded, QUESTIONS[0])
    list(stream(qa, encoded, QUESTIONS[1]))
    assert max(length for _, length in passes) < count


def test_system_prompts_are_prefixes_of_their_own(qa, without, encoded, passes):
    systems = ["", "Be short.", "", "Be short."]
    expected = without.ask_all(encoded, QUESTIONS, systems=systems)
    passes.clear()
    assert qa.ask_all(encoded, QUESTIONS, systems=systems) == expected
    long = [rows for rows, length in passes if length > len(encoded.prefix.kept.ids) // 2]
    assert long == [1, 1]  # each of the two openings is read once


def test_chains_keep_the_prefix_of_the_whole_video(qa, without, encoded):
    first = without.ask(encoded, QUESTIONS[0], chain=2)
    assert qa.ask(encoded, QUESTIONS[0], chain=2) == first
    assert encoded.prefix.kept is not None


def test_changed_weights_read_the_video_again(qa, encoded):
    qa.ask(encoded, QUESTIONS[0])
    kept = encoded.prefix.kept
    qa.ask(encoded, QUESTIONS[1])
    assert encoded.prefix.kept is kept
    with torch.no_grad():
        next(qa.model.language_model.parameters()).mul_(1.0)  # a step of training, whatever it changes
    qa.ask(encoded, QUESTIONS[0])
    assert encoded.prefix.kept is not kept


def test_other_visual_tokens_are_read_anew(qa, without, encoded):
    qa.ask(encoded, QUESTIONS[0])
    word, sequence = next(iter(encoded.sequences.items()))
    changed = dataclasses.replace(sequence, embeddings=-sequence.embeddings)
    other = dataclasses.replace(encoded, sequences={word: changed})  # shares the kept prefix
    assert qa.ask_all(other, QUESTIONS) == without.ask_all(other, QUESTIONS)


@pytest.mark.parametrize("options", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_options_that_need_a_cache_of_their_own_read_the_whole_prompt(qa, without, encoded, options):
    assert qa.ask(encoded, QUESTIONS[0], **options) == without.ask(encoded, QUESTIONS[0], **options)
    assert encoded.prefix.kept is None


def test_stages_inside_the_llm_that_read_the_question_keep_nothing(qa, encoded):
    pruned = qa.with_stages(["fastv:layer=1"], "plain")
    assert "'fastv' decides inside the LLM" in pruned.prefix_problem
    again = pruned.encode_again(encoded)
    pruned.ask_all(again, QUESTIONS)
    assert again.prefix.kept is None
    assert qa.prefix_problem is None


def test_a_model_in_training_keeps_nothing(qa, encoded):
    qa.model.train()
    try:
        assert qa.prefix_problem == "the model is being trained"
        qa.ask(encoded, QUESTIONS[0])
    finally:
        qa.model.eval()
    assert encoded.prefix.kept is None


def test_equal_keys_are_together():
    assert grouped("abac") == [[0, 2], [1], [3]]
    assert grouped([]) == []
