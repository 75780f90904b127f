"""Chat templates and tokenizers of others: the same text as before, and an end to those that never end."""

import time

import numpy as np
import pytest

from mmllm.errors import InputError
from mmllm.preprocessing import foreign_code
from mmllm.preprocessing.foreign_code import render_template, within_deadline
from mmllm.preprocessing.templates import TEMPLATES

MESSAGES = [
    {"role": "user", "content": [{"type": "video", "video": np.zeros(3)}, {"type": "text", "text": "Wann? \ud800 é"}]},
    {"role": "assistant", "content": "Now."},
]
VARIABLES = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": False}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_child_process_renders_what_this_process_renders(name):
    ours = render_template(TEMPLATES[name], MESSAGES, VARIABLES)
    assert render_template(TEMPLATES[name] + "{# another's #}", MESSAGES, VARIABLES) == ours


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3, "takes longer than"),
        ("{{ 'a' * 10**10 }}", "MiB of memory"),
        ("{% set n = namespace(t='a') %}{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}", "memory|end"),
        ("{% for i in range(90000) %}{{ 'a' * 1000 }}{% endfor %}", "writes more than"),
        ("{{ raise_exception('only text is allowed') }}", "only text is allowed"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot be used"),
        ("{% for %}", "cannot be used: TemplateSyntaxError"),
        ("{{ messages[9].role }}", "cannot be used: UndefinedError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "cannot be used: RecursionError"),
    ],
)
def test_a_hostile_template_ends_in_one_line(monkeypatch, template, said):
    monkeypatch.setattr(foreign_code, "TEMPLATE_S", 3.0)
    start_s = time.monotonic()
    with pytest.raises(InputError, match=said) as refused:
        render_template(template, MESSAGES, VARIABLES)
    assert time.monotonic() - start_s < 30
    assert len(str(refused.value)) < 700
    assert render_template("{{ bos_token }}.", MESSAGES, VARIABLES) == "<s>."  # the next one is rendered


def test_a_tokenizer_has_a_deadline():
    with pytest.raises(InputError, match=r"takes longer than 0.2 s"):
        within_deadline(lambda: time.sleep(5), 0.2)
    assert within_deadline(lambda: 7) == 7
    with pytest.raises(KeyError):
        within_deadline(lambda: {}[1])


@pytest.mark.parametrize("numbers", [True, False])
def test_only_tokenizers_like_ours_need_no_deadline(numbers):
    from mmllm.preprocessing.closed_vocabulary import is_word_tokenizer, word_tokenizer
    from tokenizers import Regex, pre_tokenizers

    tokenizer = word_tokenizer(["when"], numbers=numbers)
    assert is_word_tokenizer(tokenizer)
    if numbers:
        tokenizer.backend_tokenizer.model.max_input_chars_per_word = 10**6
        assert not is_word_tokenizer(tokenizer)
    tokenizer = word_tokenizer(["when"], numbers=numbers)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(\w+)+!"), behavior="removed", invert=True)
    assert not is_word_tokenizer(tokenizer)
    assert not is_word_tokenizer(object())


def test_a_panic_of_a_library_is_told_in_one_line():
    class PanicException(BaseException):
        pass

    def panic():
        raise PanicException("retry-limit-in-match over")

    with pytest.raises(InputError, match="cannot read this text: retry-limit"):
        within_deadline(panic)
