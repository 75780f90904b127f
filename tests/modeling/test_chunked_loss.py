"""Chunk by chunk: the gradient of the whole row, also behind padding and in packed rows, and right in the mean."""

import functools
import itertools
import math

import pytest
import torch
from transformers import AutoModel, LlamaConfig, Qwen2Config

from mmllm.modeling import chunked_loss as module
from mmllm.modeling.chunked_loss import chunked_loss
from mmllm.modeling.placeholders import block_mask

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 40,
}  # fmt: skip
POSITIONS = 23


def rows(packed=False):
    torch.manual_seed(1)
    embeddings = torch.randn(2, POSITIONS, 32, dtype=torch.float64)
    mask = torch.ones(2, POSITIONS, dtype=torch.long)
    mask[1, -5:] = 0
    position = torch.arange(POSITIONS).expand(2, -1)
    if packed:
        segments = torch.zeros(2, POSITIONS, dtype=torch.long)
        segments[0, 8:15], segments[0, 15:] = 1, 2
        segments[1, -5:] = -1
        mask = block_mask(mask, segments, torch.float64)
    return {"inputs_embeds": embeddings, "attention_mask": mask, "position_ids": position}


def case(config_class, packed=False):
    torch.manual_seed(0)
    decoder = AutoModel.from_config(config_class(**SIZES), dtype=torch.float64).train()
    for part in list(decoder.modules()):
        for name, child in part.named_children():
            if type(child).__name__.endswith("RMSNorm"):  # transformers' own rounds to float32
                setattr(part, name, torch.nn.RMSNorm(32, eps=1e-6, dtype=torch.float64))
    head = torch.nn.Linear(32, 40, dtype=torch.float64)
    targets = torch.randint(0, 40, (2, POSITIONS))
    counted = torch.rand(2, POSITIONS) < 0.6
    counted[1, -5:] = False

    def loss_of(hidden, where):
        logits = head(hidden)[counted[:, where]]
        return torch.nn.functional.cross_entropy(logits, targets[:, where][counted[:, where]], reduction="sum") / 10

    return decoder, head, loss_of, rows(packed)


def _next(coming, _):
    return torch.tensor(next(coming))


def gradients(decoder, head, loss, embeddings):
    for weight in (*decoder.parameters(), *head.parameters()):
        weight.grad = None
    embeddings.grad = None
    (3 * loss()).backward()  # whatever factor comes from behind
    return [
        weight.grad.clone() for weight in (*decoder.parameters(), *head.parameters()) if weight.grad is not None
    ] + [embeddings.grad.clone()]


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunks", [1, 2, 3, 7, POSITIONS])
def test_the_gradient_is_that_of_the_whole_row(config_class, packed, chunks):
    decoder, head, loss_of, arguments = case(config_class, packed)
    embeddings = arguments["inputs_embeds"].requires_grad_()
    whole = gradients(decoder, head, lambda: loss_of(decoder(**arguments).last_hidden_state, slice(None)), embeddings)
    by_chunk = gradients(decoder, head, lambda: chunked_loss(decoder, arguments, loss_of, chunks=chunks), embeddings)
    assert len(whole) == len(by_chunk)
    for wanted, got in zip(whole, by_chunk, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)


def test_the_loss_is_that_of_the_whole_row_also_without_gradients():
    decoder, _, loss_of, arguments = case(LlamaConfig)
    wanted = loss_of(decoder(**arguments).last_hidden_state, slice(None))
    assert chunked_loss(decoder, arguments, loss_of, chunks=4).item() == pytest.approx(wanted.item())
    with torch.no_grad():
        assert chunked_loss(decoder, arguments, loss_of, chunks=4).item() == pytest.approx(wanted.item())


def test_weights_learn_although_embeddings_do_not():
    decoder, _, loss_of, arguments = case(LlamaConfig)
    chunked_loss(decoder, arguments, loss_of, chunks=3).backward()
    assert all(weight.grad is not None for name, weight in decoder.named_parameters() if "embed" not in name)


def test_the_mean_over_all_coins_is_the_whole_gradient(monkeypatch):
    decoder, head, loss_of, arguments = case(LlamaConfig)
    embeddings, share, chunks = arguments["inputs_embeds"].requires_grad_(), 0.4, 3
    whole = gradients(decoder, head, lambda: chunked_loss(decoder, arguments, loss_of, chunks=chunks), embeddings)
    mean = [torch.zeros_like(gradient) for gradient in whole]
    for coins in itertools.product([0.0, 1.0], repeat=chunks):  # 0: the chunk is computed again
        monkeypatch.setattr(module.torch, "rand", functools.partial(_next, iter(coins)))
        probability = math.prod(share if coin == 0 else 1 - share for coin in coins)
        for weight in (*decoder.parameters(), *head.parameters()):
            weight.grad = torch.zeros_like(weight)
        embeddings.grad = None
        (3 * chunked_loss(decoder, arguments, loss_of, chunks=chunks, share=share)).backward()
        got = [
            weight.grad
            for name, weight in (*decoder.named_parameters(), *head.named_parameters())
            if "embed" not in name
        ]
        for total, gradient in zip(mean, [*got, embeddings.grad], strict=True):
            total += probability * gradient
    for wanted, total in zip(whole, mean, strict=True):
        torch.testing.assert_close(total, wanted, rtol=0, atol=1e-9)
