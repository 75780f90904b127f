"""What `mmllm ask` prints of an answer without spans."""

import pytest

from mmllm.commands.ask import _say
from mmllm.times.answers import parse_answer


@pytest.mark.parametrize(
    ("raw", "printed"),
    [
        ("It does not happen. The sun shines.", "(does not happen) The sun shines."),
        ("The sun shines.", "(no time given) The sun shines."),
        ("<1> <2.5> It snows.", "1.0 s to 2.5 s: It snows."),
    ],
)
def test_an_answer_says_whether_it_happens(raw, printed, capsys):
    _say(parse_answer(raw, 10.0))
    assert capsys.readouterr().out.strip() == printed
