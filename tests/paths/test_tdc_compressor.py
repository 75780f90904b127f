"""TDC's compressor: the published numbers, and what may and may not change them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mmllm.errors import InputError
from mmllm.paths.qformer import QFormerSizes
from mmllm.paths.tdc_compressor import Compressor

GOLDEN = Path(__file__).parents[1] / "data" / "tdc-compressor.safetensors"
SMALL = QFormerSizes(width=12, layers=3, heads=2, mlp_width=16, vocabulary=20, positions=8)


def golden():
    with safe_open(GOLDEN, "pt") as file:
        return json.loads(file.metadata()["config"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def published(queries):
    config, tensors = golden()
    sizes = QFormerSizes(
        width=config["q_hidden"],
        layers=config["q_layers"],
        heads=config["q_heads"],
        mlp_width=config["q_inter"],
        vocabulary=config["q_vocab"],
        positions=config["q_maxpos"],
    )
    compressor = Compressor(sizes, width=config["hidden_size"], tokens=config["context_token_num"], queries=queries)
    state = {
        name.removeprefix("state.model.").removeprefix("Qformer."): value
        for name, value in tensors.items()
        if name.startswith("state.") and not name.endswith(("position_ids", "frame_seg"))
    }
    compressor.load_state_dict(state)
    return compressor, tensors


@pytest.mark.parametrize("window", range(3))
@pytest.mark.parametrize(
    ("queries", "text", "suffix"),
    [("pooled", True, ""), ("pooled", False, "_notext"), ("learned", True, "_learned")],
)
def test_tokens_are_the_published_ones(window, queries, text, suffix):
    compressor, tensors = published(queries)
    first, later = tensors[f"in.chunk{window}.key_frame"], tensors[f"in.chunk{window}.frames"]
    asked = compressor.queries_of(first).expand(len(later), -1, -1)
    words = tensors["in.text_ids"][0] if text else None
    compressed = compressor(asked, later, text=words)
    torch.testing.assert_close(compressed, tensors[f"out.chunk{window}.compressed{suffix}"], rtol=0, atol=2e-5)
    if not suffix:
        torch.testing.assert_close(asked, tensors[f"out.chunk{window}.query_embeds"], rtol=0, atol=2e-5)
        read = compressor.bert(asked, later, text=words)
        torch.testing.assert_close(read, tensors[f"out.chunk{window}.qformer"], rtol=0, atol=2e-5)


def test_tokens_have_length_one_and_masked_tokens_are_not_seen():
    torch.manual_seed(0)
    compressor = Compressor(SMALL, width=10, tokens=3)
    frames, queries = torch.randn(70, 7, 10), torch.randn(70, 3, 12)  # more than one chunk
    tokens = compressor(queries, frames)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(70, 3))
    padded = torch.cat([frames, torch.full((70, 2, 10), 9.0)], dim=1)
    mask = torch.ones(70, 9, dtype=torch.bool)
    mask[:, 7:] = False
    torch.testing.assert_close(compressor(queries, padded, mask), tokens, rtol=0, atol=1e-5)


def test_text_changes_tokens_and_no_text_is_like_an_empty_one():
    torch.manual_seed(0)
    compressor = Compressor(SMALL, width=10, tokens=3)
    frames, queries = torch.randn(2, 7, 10), torch.randn(2, 3, 12)
    without = compressor(queries, frames)
    assert torch.equal(compressor(queries, frames, text=torch.zeros(0, dtype=torch.long)), without)
    assert not torch.allclose(compressor(queries, frames, text=torch.tensor([3, 4])), without, atol=1e-3)


def test_what_does_not_fit_is_refused():
    compressor = Compressor(SMALL, width=10, tokens=3)
    with pytest.raises(InputError, match="2 tokens cannot be pooled to 3 queries"):
        compressor.queries_of(torch.randn(2, 10))
    frames, queries = torch.randn(1, 7, 10), torch.randn(1, 3, 12)
    with pytest.raises(InputError, match="at most 8 ids, not 9"):
        compressor(queries, frames, text=torch.zeros(9, dtype=torch.long))
    with pytest.raises(InputError, match="ids from 0 to 19; the text has 20"):
        compressor(queries, frames, text=torch.tensor([20]))


def test_only_the_queries_that_are_used_are_trained():
    pooled, learned = (Compressor(SMALL, width=10, tokens=3, queries=kind) for kind in ("pooled", "learned"))
    assert not pooled.query_tokens.requires_grad
    assert pooled.query_proj.weight.requires_grad
    assert learned.query_tokens.requires_grad
    assert not learned.query_proj.weight.requires_grad
