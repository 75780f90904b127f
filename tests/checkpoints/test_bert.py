"""A published BERT as the start of a path's Q-Former."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

from mmllm import registry
from mmllm.checkpoints.bert import load_bert
from mmllm.errors import CheckpointError, ConfigError

SIZES = "width=24,layers=2,heads=2,mlp_width=32,vocabulary=40,positions=16,most_words=16,tokens=3,frame_tokens=9"


def bert(cls=BertForMaskedLM, **changes):
    torch.manual_seed(0)
    fields = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "vocab_size": 40, "max_position_embeddings": 16,
    }  # fmt: skip
    return cls(BertConfig(**{**fields, **changes})).eval()


def saved(state, folder):
    (folder / "config.json").write_text("{}")
    save_file({name: value.clone() for name, value in state.items()}, folder / "model.safetensors")
    return folder


def tdc_path():
    torch.manual_seed(1)
    return registry.build("path", f"tdc:{SIZES}", width=10).eval()


@torch.no_grad()
@pytest.mark.parametrize("cls", [BertForMaskedLM, BertModel])
def test_text_goes_through_the_q_former_as_through_bert(cls, tmp_path):
    theirs, path = bert(cls), tdc_path()
    load_bert(path, saved(theirs.state_dict(), tmp_path))
    former, text = path.compressor.bert, torch.tensor([[3, 7, 11]])
    base = theirs.bert if cls is BertForMaskedLM else theirs
    # BERT adds the embedding of a first segment, which a Q-Former does not have
    base.embeddings.token_type_embeddings.weight.zero_()
    hidden = former.embeddings(torch.zeros(1, 0, 24), text[0])
    for layer in former.encoder.layer:
        attended = layer.attention(hidden, hidden)
        hidden = layer.output(torch.nn.functional.gelu(layer.intermediate(attended)), attended)
    torch.testing.assert_close(hidden, base(text).last_hidden_state, rtol=0, atol=1e-5)


def test_old_names_are_read_and_queries_keep_their_own_weights(tmp_path):
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in bert().state_dict().items()
    }
    path, untouched = tdc_path(), tdc_path()
    load_bert(path, saved(state, tmp_path))
    for (name, ours), before in zip(path.named_parameters(), untouched.parameters(), strict=True):
        read = name.startswith("compressor.bert") and "crossattention" not in name and "_query." not in name
        drawn = not (name.endswith("LayerNorm.weight") or name.endswith("bias"))
        assert torch.equal(ours, before) == (not (read and drawn)) or not drawn


def test_another_model_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"misshaped: embeddings\.word_embeddings\.weight"):
        load_bert(tdc_path(), saved(bert(vocab_size=41).state_dict(), tmp_path))
    with pytest.raises(ConfigError, match="the path 'plain' has no Q-Former"):
        load_bert(registry.build("path", "plain"), tmp_path)
