"""What is counted while a model is asked is what its LLM reads, layer by layer."""

import pytest
import torch
from torch import nn

from mmllm.errors import ConfigError
from mmllm.inference.costs import prefill_flops
from mmllm.inference.prompt_costs import ReadPrompts, prompts_read

QUESTION = "When does the red circle spin?"


def prompt_length(qa, encoded):
    """Positions of a question's prompt, counted apart: its text without the placeholder, and the visual tokens."""
    text = len(qa.prompt(QUESTION, encoded.duration_s).input_ids) - 1
    return text + sum(int(sequence.mask.sum()) for sequence in encoded.sequences.values())


def test_every_layer_reads_the_whole_prompt(untrained_qa, short_clip):
    qa = untrained_qa.with_stages()
    qa.keeps_prefix = False  # as in a search for reducers
    encoded = qa.encode_video(short_clip)
    with prompts_read(untrained_qa.decoder) as read:
        answers = qa.ask_all(encoded, [QUESTION, QUESTION])
    assert len(answers) == 2
    length = prompt_length(untrained_qa, encoded)
    assert read.passes == [(2, [length, length])]  # and not the words of the answers
    config = untrained_qa.decoder.config
    assert read.operations(config) == 2 * prefill_flops(config, length)
    assert read.tokens == 2 * length
    untrained_qa.ask_all(encoded, [QUESTION])
    assert len(read.passes) == 1, "counting ended with the block"


def test_a_reducer_inside_the_llm_saves_in_the_layers_behind_it(untrained_qa, short_clip):
    plain = untrained_qa.with_stages(path="plain", reducers=[])
    encoded = plain.encode_video(short_clip)
    length = prompt_length(plain, encoded)
    for reducer in ("fastv:layer=1,ratio=0.25", "pyramiddrop:layers=1,ratios=0.25"):
        with prompts_read(plain.decoder) as read:
            plain.with_stages(reducers=[reducer]).ask(encoded, QUESTION)
        visual = encoded.token_counts["encoder"]
        assert read.passes == [(1, [length, length - visual + visual // 4])]
        config = plain.decoder.config
        assert prefill_flops(config, read.passes[0][1]) == read.operations(config) < prefill_flops(config, length)


def test_a_number_for_each_layer_is_that_number_for_all(untrained_qa):
    config = untrained_qa.decoder.config
    for causal in (True, False):
        assert prefill_flops(config, [70, 70], causal=causal) == prefill_flops(config, 70, causal=causal)


def test_what_cannot_be_counted_is_refused(untrained_qa):
    with pytest.raises(ConfigError, match="Linear has no list of layers"), prompts_read(nn.Linear(2, 2)):
        pass
    config = type(untrained_qa.decoder.config)(**untrained_qa.decoder.config.to_dict())
    config.num_experts = 4
    with pytest.raises(ConfigError, match="LLM of experts"):
        ReadPrompts().operations(config)


def test_hooks_are_gone_after_an_error(untrained_qa):
    before = [len(layer._forward_hooks) for layer in untrained_qa.decoder.layers]
    with pytest.raises(ZeroDivisionError), prompts_read(untrained_qa.decoder):
        torch.tensor(1 / 0)
    assert [len(layer._forward_hooks) for layer in untrained_qa.decoder.layers] == before
