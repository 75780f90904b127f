"""Wordings: varied, seeded, never losing what is asked for."""

import random

from hypothesis import given
from hypothesis import strategies as st

from mmllm.datasets.prompts import dense_caption_prompt, event_prompt, short_answer_prompt


def test_every_wording_is_drawn():
    draw = random.Random(0)
    assert len({dense_caption_prompt(draw) for _ in range(500)}) == 12
    assert len({event_prompt("A man runs.", draw) for _ in range(500)}) == 12
    assert dense_caption_prompt() == dense_caption_prompt()
    assert dense_caption_prompt(random.Random(3)) == dense_caption_prompt(random.Random(3))


def test_an_event_is_quoted():
    assert '"a man runs"' in event_prompt("  A man runs. ")
    assert '"{event} 100 % {}"' in event_prompt("{event} 100 % {}")


@given(st.text(), st.randoms(use_true_random=False))
def test_any_sentence_can_be_asked_for(sentence, draw):
    event_prompt(sentence, draw)
    short_answer_prompt(sentence)


def test_questions_end_in_a_question_mark():
    assert short_answer_prompt(" what is it").startswith("What is it? ")
    assert short_answer_prompt("Éh?").startswith("Éh? ")
