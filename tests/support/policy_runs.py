"""Tiny LLMs of three families and prompts with visual tokens, to run policies of the cache in them."""

import functools

import torch
from transformers import (
    DynamicCache,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from mmllm import registry
from mmllm.llm.counters import ContextCounts
from mmllm.llm.harness import decoder_layers, install
from mmllm.llm.values import GatheredKeys, LlmPass, Reweighed

WIDTH, LAYERS, HEADS, KEY_HEADS = 32, 5, 4, 2
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config),
    "gemma": (GemmaForCausalLM, GemmaConfig),
}


@functools.cache
def llm(family="llama"):
    """An LLM of a family with the harness in it, always the same; its attention is not flat."""
    torch.manual_seed(0)
    cls, config = FAMILIES[family]
    model = cls(
        config(
            hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=KEY_HEADS, vocab_size=60, max_position_embeddings=128, head_dim=8, pad_token_id=0,
            bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip
    for weight in model.parameters():
        weight.data.mul_(3.0)
    install(model.model)
    return model


def built(description, family="llama"):
    """A policy, checked against an LLM."""
    policy = registry.build("context", description)
    layers = list(decoder_layers(llm(family).model))
    policy.check(len(layers))
    policy.check_layers(layers)
    return policy


def prompt(*policies, rows=2, pad=(0, 0), lead=3, visual=24, tail=5):
    """The pass of a prompt: text, visual tokens of frames of four, a question; `pad` is in front of each row."""
    length, most = lead + visual + tail, max(pad[:rows])
    number = (torch.arange(most + length) - most).expand(rows, -1)
    valid = torch.arange(most + length) >= torch.tensor(pad[:rows]).unsqueeze(1)
    is_visual = (number >= lead) & (number < lead + visual)
    return LlmPass(
        visual=is_visual, question=number >= lead + visual, prompt=valid, place=(number - lead) % 4,
        frame=(number - lead).div(4, rounding_mode="floor"), valid=valid, stages=policies, counts=ContextCounts(),
    )  # fmt: skip


def embeddings(current, seed=1):
    """Embeddings B P WIDTH of a prompt; the same at the same place from the end, and 0 at padding."""
    rows, length = current.visual.shape
    drawn = torch.randn(rows, 64, WIDTH, generator=torch.Generator().manual_seed(seed))[:, -length:]
    return drawn * current.valid.unsqueeze(-1)


@torch.no_grad()
def answer(model, current, steps=8, embeds=None, beams=None, question=0):
    """Ids (B steps), logits (steps + 1, B V) and cache of a greedy answer; rows are exchanged by `beams` at each step.

    The last `question` positions of the prompt are read in a pass of their own.
    """
    embeds = embeddings(current) if embeds is None else embeds
    cache, mask = DynamicCache(config=model.config), current.valid.long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    first = embeds.shape[1] - question
    out = model(
        inputs_embeds=embeds[:, :first], attention_mask=mask[:, :first], position_ids=positions[:, :first],
        past_key_values=cache, llm_pass=current if not question else _beginning(current, first),
    )  # fmt: skip
    if question:
        out = model(
            inputs_embeds=embeds[:, first:], attention_mask=mask, position_ids=positions[:, first:],
            past_key_values=cache,
        )  # fmt: skip
    ids, logits = [], [out.logits[:, -1]]
    for _ in range(steps):
        token = logits[-1].argmax(-1)
        ids.append(token)
        mask, positions = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), positions[:, -1:] + 1
        if beams is not None:
            cache.reorder_cache(beams)
            token, mask, positions = token[beams], mask[beams], positions[beams]
        out = model(token.unsqueeze(1), attention_mask=mask, position_ids=positions, past_key_values=cache)
        logits.append(out.logits[:, -1])
    return torch.stack(ids, 1) if ids else mask[:, :0], torch.stack(logits), cache


def _beginning(current, length):
    """The pass of the first positions of a prompt."""
    names = ("visual", "question", "prompt", "place", "frame", "valid")
    return LlmPass(**{name: getattr(current, name)[:, :length] for name in names}, stages=current.stages)


def dense(family="llama", **shape):
    """Ids and logits of the plain LLM."""
    ids, logits, _ = answer(llm(family), prompt(**shape))
    return ids, logits


def texts(count, longest=40, seed=1):
    """Prompts of varied length, padded in front, and their mask."""
    drawn = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, longest, (count,), generator=drawn)
    ids = torch.randint(3, 99, (count, int(lengths.max())), generator=drawn)
    mask = (torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None]).long()
    return ids * mask, mask


def written(model, ids, mask, policies=(), tokens=8, **options):
    """The new ids, and the logits B N V behind which they were chosen."""
    model.context = list(policies)
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
        output_logits=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    return out.sequences[:, ids.shape[1] :], torch.stack(out.logits, 1)


def slots_seen(chosen, count):
    """bool, B h K: the slots, of so many, that gathered keys are of."""
    valid = torch.ones_like(chosen.index) if chosen.valid is None else chosen.valid.long()
    seen = torch.zeros(*chosen.index.shape[:2], count, dtype=torch.long)
    return seen.scatter_reduce(-1, chosen.index, valid.expand_as(chosen.index), "amax").bool()


def hiding(policy):
    """A selecting policy's twin that hides the other keys, where the policy gathers its own.

    By numbers that are added to the logits: a mask always shows a token its own key, and a policy may not.
    """

    class Hiding(type(policy)):
        seen = None

        def select(self, view):
            chosen = super().select(view)
            if not isinstance(chosen, GatheredKeys):
                return chosen
            self.seen = slots_seen(chosen, view.keys.shape[2])
            return None

        def reweigh(self, view):
            if self.seen is None:
                return super().reweigh(view)
            bias = torch.where(self.seen, 0.0, -1e9).unsqueeze(2)
            self.seen = None
            return Reweighed(keys=view.keys, values=view.values, bias=bias.repeat_interleave(HEADS // bias.shape[1], 1))

    return Hiding(policy.config)
