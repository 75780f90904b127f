"""Tiny decoders, prompts, and methods that know the answer."""

import pytest
import torch

from mmllm.decoding.draft import Draft
from mmllm.decoding.tree import DraftSource, TreeDecoding


@pytest.fixture(scope="session")
def make_decoder(decoder_configs):
    """Makes a tiny causal LM of a family, always the same."""
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    def make(family="llama", attention="sdpa", seed=0, **fields):
        torch.manual_seed(seed)
        if family == "gemma3":
            sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
                     "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 120, "sliding_window": 6,
                     "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                     "pad_token_id": 0, "eos_token_id": 2, "initializer_range": 0.3}  # fmt: skip
            config = Gemma3TextConfig(**{**sizes, **fields})
        else:
            config = decoder_configs[family](**fields)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()

    return make


@pytest.fixture
def prompts():
    """Random prompts of 1 to 12 tokens."""
    generator = torch.Generator().manual_seed(7)

    def make(count, vocabulary=120):
        lengths = torch.randint(1, 13, (count,), generator=generator).tolist()
        return [torch.randint(3, vocabulary, (1, length), generator=generator) for length in lengths]

    return make


@pytest.fixture
def visual_prompt(prompts):
    """Makes arguments of `generate` with so many visual tokens in front of a random prompt; width 32."""
    from mmllm.tokens import VisualSequence

    def make(count, ids=None):
        video = VisualSequence(
            embeddings=torch.randn(1, count, 32), mask=torch.ones(1, count, dtype=torch.bool),
            frame=torch.arange(count)[None], blocks=(("frames", count),),
        )  # fmt: skip
        ids = prompts(1, vocabulary=100)[0] if ids is None else ids
        return {"input_ids": torch.cat([torch.tensor([[200]]), ids], dim=1), "sequences": {200: video}}

    return make


class _Fixed(DraftSource):
    def __init__(self, request, answer, depth, shift):
        self.text, self.answer, self.depth, self.shift = request.text, answer, depth, shift

    def propose(self, root, room):
        done = self.text.count
        words = [
            (word + self.shift) % 120 if self.shift else word
            for word in self.answer[done : done + min(self.depth, room)]
        ]
        return Draft.chain([root, *words])

    def observe(self, draft, logits, path):
        pass


class Oracle(TreeDecoding):
    """Drafts the answer that it was given: right with shift 0, else wrong at every token."""

    registered_name = "oracle"

    def __init__(self, answer, depth=4, shift=0):
        self.answer, self.depth, self.shift = answer, depth, shift

    def start(self, request):
        return _Fixed(request, self.answer, self.depth, self.shift)


@pytest.fixture
def oracle():
    return Oracle


@pytest.fixture
def greedy():
    """The new ids that one token a pass gives."""

    def answer(model, ids, **options):
        return model.generate(ids, do_sample=False, **options)[0, ids.shape[1] :].tolist()

    return answer


@pytest.fixture
def check_counts():
    """The identities that every method's counters keep."""

    def check(counts, new):
        assert counts.new_tokens == new == counts.first_tokens + sum(counts.emitted_per_round)
        assert counts.target_passes == 1 + counts.rounds
        assert len(counts.emitted_per_round) == counts.rounds
        assert 0 <= counts.matched <= counts.drafted

    return check
