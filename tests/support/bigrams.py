"""A language model that is a table of logits, for comparisons with other loops and for enumerations."""

import torch
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from mmllm.llm.cache import CACHE


class BigramConfig(PretrainedConfig):
    model_type = "bigrams"
    num_hidden_layers, num_attention_heads, hidden_size, is_encoder_decoder = 1, 1, 1, False


class Bigrams(PreTrainedModel, GenerationMixin):
    """Logits of the next token depend on the last token only; the cache holds one zero for each position."""

    config_class = BigramConfig
    _supports_sdpa = True

    def __init__(self, table, eos_token_id=None):
        config = BigramConfig(vocab_size=len(table), eos_token_id=eos_token_id, pad_token_id=0)
        config._attn_implementation = "eager"
        super().__init__(config)
        self.table, self.words = table, torch.nn.Embedding(len(table), 1)
        self.words.weight.data = torch.arange(len(table), dtype=torch.float32)[:, None]
        self.generation_config.eos_token_id, self.generation_config.pad_token_id = eos_token_id, 0

    def get_input_embeddings(self):
        return self.words

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, cache=None,
                inputs_embeds=None, use_cache=True, logits_to_keep=0, **kwargs):  # fmt: skip
        ids = inputs_embeds[..., 0].round().long() if input_ids is None else input_ids
        stored = cache if past_key_values is None else past_key_values
        stored = DynamicCache() if stored is None else stored
        zeros = torch.zeros(1, 1, ids.shape[1], 1)
        stored.update(zeros, zeros, 0)
        return CausalLMOutputWithPast(logits=self.table[ids], **{CACHE: stored})
