"""The tiny models say something that depends on their pictures, and a row says the same alone as in a batch."""

import pytest
import torch
from tiny_inputs import PLACEHOLDERS
from tiny_models import CASES, some

GREEDY = {"max_new_tokens": 8, "do_sample": False, "suppress_tokens": PLACEHOLDERS}


@pytest.mark.parametrize("case", some())
def test_pictures_change_what_is_said(case):
    said = case.model.generate(**case.inputs(), **GREEDY)
    other = case.model.generate(**case.inputs(pictures=1), **GREEDY)
    assert (said != other).any(1).all()


@pytest.mark.parametrize("case", some())
def test_a_row_alone_says_the_same(case):
    both = case.model.generate(**case.inputs(), **GREEDY)
    for row in range(2):
        alone = case.inputs([row])
        assert alone["attention_mask"].all()
        assert torch.equal(case.model.generate(**alone, **GREEDY)[0, -8:], both[row, -8:])


def test_cases_have_padding_and_no_name_twice():
    assert len({case.name for case in CASES.values()}) == len(CASES)
    for case in CASES.values():
        assert (case.inputs()["attention_mask"].sum(1) < case.inputs()["input_ids"].shape[1]).any()
