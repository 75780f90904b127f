"""CNTP: several trials where the model is unsure."""

import math

import pytest
import torch
from bigrams import Bigrams

from mmllm.decoding.cntp import Cntp, CntpConfig, Trial, entropy_of, marks_of, trials_for

MARKS = tuple(range(60, 90))


def test_one_trial_is_plain_sampling_with_the_same_seed(make_decoder, prompts, check_counts):
    model, method = make_decoder(), Cntp(CntpConfig(trials=1), marks=MARKS)
    options = {"do_sample": True, "temperature": 0.9, "max_new_tokens": 12}
    for seed, ids in enumerate(prompts(6)):
        torch.manual_seed(seed)
        expected = model.generate(ids, **options)
        torch.manual_seed(seed)
        assert torch.equal(model.generate(ids, custom_generate=method, **options), expected)
        check_counts(method.last, expected.shape[1] - ids.shape[1])


def test_the_trial_with_the_lowest_perplexity_stays(make_decoder, prompts, check_counts, monkeypatch):
    model, method = make_decoder(), Cntp(CntpConfig(trials=5, low=0.0, high=0.001), marks=MARKS)
    made = []
    init = Trial.__init__
    monkeypatch.setattr(Trial, "__init__", lambda self, **fields: (init(self, **fields), made.append(self))[0])
    for ids in prompts(4):
        made.clear()
        out = model.generate(ids, custom_generate=method, do_sample=True, top_k=0, max_new_tokens=12)[0].tolist()
        check_counts(method.last, len(out) - ids.shape[1])
        text, place = out, ids.shape[1]
        for first in range(0, len(made) - len(made) % 5, 5):
            group = made[first : first + 5]
            best = min(group, key=lambda trial: trial.mean_nll)
            assert text[place : place + len(best.tokens)] == best.tokens[: len(text) - place]
            logits = model(torch.tensor([text[:place] + best.tokens])).logits[0].detach().log_softmax(-1)
            nll = -sum(float(logits[place - 1 + i, token]) for i, token in enumerate(best.tokens))
            assert best.nll == pytest.approx(nll, abs=1e-3)
            place += len(best.tokens)
            if place >= len(text):
                break


def test_trials_end_at_marks_at_the_end_token_and_at_the_limit():
    table = torch.full((4, 4), -30.0)
    table[0, 1], table[1, 2], table[2, 1], table[3, 3] = 9.0, 9.0, 9.0, 9.0
    method = Cntp(CntpConfig(trials=3, low=0.0, high=1e-30), marks=(2,))
    model = Bigrams(table)
    model.generate(torch.tensor([[0]]), custom_generate=method, do_sample=True, max_new_tokens=5)
    assert method.last.extra["trials"] > 0
    assert method.last.extra["discarded_tokens"] == 2 * method.last.new_tokens  # three equal trials a step
    method.generate = model.generate(torch.tensor([[0]]), custom_generate=method, do_sample=True, eos_token_id=1,
                                     max_new_tokens=5)  # fmt: skip
    assert method.generate.tolist() == [[0, 1]]


def test_how_many_trials_an_entropy_gives():
    config = CntpConfig()
    assert [trials_for(entropy, config) for entropy in (0.0, 0.01, 1.5, 9.0)] == [1, 1, 10, 10]
    assert trials_for(0.755, config) == 5
    assert entropy_of(torch.tensor([0.5, 0.5, 0.0])) == pytest.approx(math.log(2))


@pytest.mark.parametrize("settings", [{"trials": 0}, {"low": 2.0}, {"low": -1.0}, {"tokens": 0}, {"temperature": 0.0}])
def test_settings_outside_their_range_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CntpConfig(**settings)


def test_it_needs_sampling_and_punctuation(make_decoder):
    model, ids = make_decoder(), torch.tensor([[5]])
    with pytest.raises(ValueError, match="cntp samples"):
        model.generate(ids, custom_generate=Cntp(CntpConfig(), marks=MARKS), do_sample=False, max_new_tokens=3)
    with pytest.raises(ValueError, match="punctuation"):
        model.generate(ids, custom_generate=Cntp(CntpConfig()), do_sample=True, max_new_tokens=3)


def test_marks_are_words_of_the_tokenizer_and_never_time_tokens(untrained_qa):
    tokenizer = untrained_qa.processor.tokenizer
    marks = marks_of(tokenizer)
    assert {tokenizer.decode([token]).strip() for token in marks} <= set(".,?!:;)]}\n")
    assert not set(marks) & set(untrained_qa.model.config.time_token_ids)
