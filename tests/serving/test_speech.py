"""The text of an answer while it comes."""

import re

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
