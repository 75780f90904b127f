"""Rows of a target with answers at their ends, as the training of a draft makes them."""

import torch

from mmllm.decoding.trained_draft import TargetRows
from mmllm.tokens import IGNORED


def rows_of(model, texts, answers):
    """Texts as rows padded on the right; the last so many tokens of each are its answer."""
    longest = max(map(len, texts))
    ids = torch.tensor([[*text, *[0] * (longest - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    labels = torch.full_like(ids, IGNORED)
    for row, (text, count) in enumerate(zip(texts, answers, strict=True)):
        labels[row, len(text) - count : len(text)] = torch.tensor(text[len(text) - count :])
    return TargetRows(
        model=model, ids=ids, embeddings=model.get_input_embeddings()(ids), mask=mask, labels=labels,
        visual=torch.zeros_like(mask, dtype=torch.bool), positions=torch.arange(longest).expand(len(ids), -1), batch={},
    )  # fmt: skip


def train(draft, make_rows, steps=100, rate=0.01):
    """The losses of so many steps."""
    optimizer, losses = torch.optim.Adam(draft.parameters(), lr=rate), []
    for _ in range(steps):
        loss = draft.loss(make_rows())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
