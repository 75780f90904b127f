"""The text of an answer while it comes."""

import dataclasses
import json
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmllm.serving.speech import Speech


def spoken(texts, stops=()):
    """Pieces of an answer whose text after each id is given."""
    speech = Speech(lambda ids: texts[len(ids) - 1], stops)
    pieces = []
    for number in range(len(texts)):
        pieces.append(speech.add(number))
        if speech.ended:
            break
    return [*pieces, speech.end()]


def test_a_stamp_is_held_back_until_it_is_a_time():
    texts = ["at", "at <", "at <1", "at <12", "at 12.0 s", "at 12.0 s ."]
    assert spoken(texts) == ["at", " ", "", "", "12.0 s", " .", ""]


def test_a_bracket_that_is_no_stamp_is_told_after_a_while():
    pieces = spoken(["a < b", "a < b and c and more and more"])
    assert pieces == ["a ", "< b and c and more and more", ""]
    assert spoken(["a <"]) == ["a ", "<"]


def test_half_letters_are_held_back():
    assert spoken(["caf", "caf\ufffd", "café"]) == ["caf", "", "é", ""]


def test_a_tokenizer_that_changes_its_mind_never_takes_back_what_was_told():
    assert "".join(spoken(["do", "do n", "don't", "don't go"])) == "do n"


words = st.lists(st.sampled_from(["a", "<", ">", " ", "STOP", "S", "T", "O", "P", "1.5", "\ufffd"]), max_size=30)


@given(words, st.lists(st.sampled_from(["STOP", "a<", ">>", "OP"]), max_size=2))
def test_joined_pieces_are_the_text_before_the_first_stop(pieces, stops):
    texts = ["".join(pieces[: number + 1]) for number in range(len(pieces))]
    text = "".join(spoken(texts, stops))
    whole = texts[-1] if texts else ""
    first = re.search("|".join(map(re.escape, stops)), whole) if stops else None
    ends = [whole.find(stop) for stop in stops if stop in whole]
    if first is None:
        assert text == whole
    else:
        assert whole.startswith(text)
        assert not any(stop in text for stop in stops)
        assert len(text) >= min(ends) - max(map(len, stops))


@pytest.mark.parametrize("stop", ["b c", "c"])
def test_a_stop_that_comes_in_parts(stop):
    texts = ["a", "a b", "a b c", "a b c d"]
    assert "".join(spoken(texts, [stop])) == "a b c d"[: "a b c d".index(stop)]


@given(words, st.lists(st.sampled_from(["STOP", "a<", ">>", "OP"]), max_size=2))
def test_the_ids_before_a_stop_and_the_rest_are_what_was_told(pieces, stops):
    def read(ids):
        return "".join(pieces[: len(ids)])

    speech = Speech(read, stops)
    for number in range(len(pieces)):
        speech.add(number)
        if speech.ended:
            break
    speech.end()
    ids, rest = speech.kept()
    assert list(ids) == list(range(len(ids)))
    if speech.ended:
        assert read(ids).rstrip() + rest == speech.text
        assert not any(stop in read(ids) for stop in stops)
    else:
        assert (list(ids), rest) == (list(range(len(pieces))), "")


@pytest.fixture(scope="module")
def ended(untrained_qa, short_clip):
    """The end of an answer of two times and words, with some stops and settings."""
    from mmllm.inference.conversations import prompts_of
    from mmllm.inference.prompts import Medium, Turn
    from mmllm.serving.jobs import Job
    from mmllm.serving.question import Question

    prompts, encoded = prompts_of(untrained_qa), untrained_qa.encode_video(short_clip)
    prompt = prompts.prompt([Turn(role="user", content=(Medium(kind="video", encoded=encoded), "When?"))])
    times = untrained_qa.model.config.time_token_ids
    ids = [times[len(times) // 4], times[len(times) // 2]]
    ids += untrained_qa.processor.tokenizer(" the red circle spins", add_special_tokens=False).input_ids

    def end(*stops, keys=None):
        said = []
        job = Job(
            question=Question(model="tiny", sayings=(), stops=stops, keys=keys),
            prompts=prompts,
            prompt=prompt,
            speech=Speech(lambda ids: prompts.text(prompt, ids), stops),
            most_tokens=99,
            gone=threading.Event(),
            emit=said.append,
        )
        next((token for token in ids if job.take(token)), None)
        job.end(None, len(job.speech.ids), 0)
        pieces = [*said[:-1], said[-1].piece]
        return "".join(pieces), said[-1].answer

    return end


def test_spans_and_sentence_end_before_a_stop(ended):
    from mmllm.serving.answer_forms import sentence_of, spans_of

    content, answer = ended()
    first, _ = re.findall(r"[\d.]+ s", content)
    assert len(spans_of(answer)) == 1
    assert sentence_of(answer) == "the red circle spins"
    expected = {
        " - ": (first, [], first),
        " s": (first.removesuffix(" s"), [], first.removesuffix(" s")),
        first[:2]: ("", [], ""),
        "circle": (content.split("circle")[0], spans_of(answer), "the red"),
        "rcle": (content.split("rcle")[0], spans_of(answer), "the red ci"),
        "square": (content, spans_of(answer), "the red circle spins"),
    }
    for stop, said in expected.items():
        content, answer = ended(stop)
        assert (content, spans_of(answer), sentence_of(answer)) == said, stop


def test_a_json_object_ends_before_a_stop(ended):
    content, answer = ended("circle", keys=("answer", "spans"))
    assert json.loads(content)["answer"] == "the red"
    assert dataclasses.replace(answer, raw="") == dataclasses.replace(ended("circle")[1], raw="")
    assert json.loads(ended(" - ", keys=("answer", "spans"))[0])["spans"] == []
