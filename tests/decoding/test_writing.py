"""The text while it is written: its ids, where it ends, and the choice of its next token."""

import pytest
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, StoppingCriteriaList

from mmllm.decoding.writing import Written

PROMPT = torch.tensor([[5, 9, 11]])


def text_of(processors=(), stops=(), limit=9, **options):
    return Written(PROMPT, LogitsProcessorList(processors), StoppingCriteriaList(stops), limit, **options)


def test_ids_are_the_prompt_and_the_new_tokens():
    text = text_of()
    assert (text.last, text.count, text.room) == (11, 0, 5)
    assert torch.equal(text.ids, PROMPT)
    for token in (4, 7, 8):
        text.add(token)
    assert text.ids.tolist() == [[5, 9, 11, 4, 7, 8]]
    text.add(3)
    assert text.ids.tolist() == [[5, 9, 11, 4, 7, 8, 3]]
    assert (text.last, text.count, text.room, text.new) == (3, 4, 1, [4, 7, 8, 3])


ENDS = {
    "an id": ({"ends": [8, 30]}, [4, 7, 8]),
    "the limit": ({"limit": 6}, [4, 7, 8]),
    "criteria": ({"stops": [lambda ids, _: torch.tensor([ids[0, -2:].tolist() == [7, 8]])]}, [4, 7, 8]),
}


@pytest.mark.parametrize("why", ENDS)
def test_a_text_ends_at_an_id_at_the_limit_and_by_criteria(why):
    options, tokens = ENDS[why]
    for count in range(1, 4):
        text = text_of(**options)
        assert text.ends_with(tokens[:count]) == (count == 3)
        assert text.new == []
        assert [text.add(token) for token in tokens] == [False, False, True]
        assert text.ended


def test_an_end_id_in_the_prompt_or_before_the_last_token_ends_nothing():
    text = text_of(ends=[11, 4])
    assert not text.ends_with([4, 7])
    assert not text.add(7)


@pytest.mark.parametrize("processors", [(), (RepetitionPenaltyLogitsProcessor(50.0),)])
def test_the_choices_of_all_rows_are_those_made_one_by_one(processors):
    generator = torch.Generator().manual_seed(3)
    logits = torch.rand(4, 6, generator=generator)
    logits[:, 2] += 1  # the penalty forbids it twice
    chosen, texts = [], [text_of(processors), text_of(processors)]
    choose = texts[0].chooser(logits)
    for row in range(4):
        chosen.append(choose(row))
        assert chosen[-1] == texts[1].choose(logits[row])
        for text in texts:
            text.add(chosen[-1])
    assert (chosen == [2] * 4) == (not processors)
