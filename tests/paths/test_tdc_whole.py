"""TDC from the features of both towers to what the LLM reads, against its rules written out token by token."""

import pytest
import torch
from torch import nn

from mmllm import registry
from mmllm.modeling.scenes import frame_similarity
from mmllm.paths.tdc import TdcConfig, TdcPath
from mmllm.tokens import VisualTokens

WIDTHS, D, SIDE, QUERIES = (5, 7), 10, 6, 9
QUESTION = [4, 5, 7]
SETTINGS = {
    "tokens": 4, "cuts": 3, "window": 8, "width": 12, "layers": 3, "heads": 2, "mlp_width": 16, "frame_tokens": QUERIES,
    "question_words": ("when", "is", "the", "red"), "most_words": 8, "positions": 16,
}  # fmt: skip


def parts(**changes):
    torch.manual_seed(3)
    settings = {"name": "sva", "queries": QUERIES, "width": 32, "depth": 2, "correct_unpad": False}
    connector = registry.build(
        "tokenizer", settings, in_width=sum(WIDTHS), out_width=D, grid=(SIDE, SIDE), tower_widths=WIDTHS
    )
    path = TdcPath(TdcConfig(**{**SETTINGS, **changes}), width=D, audio_width=6)
    return connector.eval(), path.eval()


def margins(width, height, side):
    """Rows and columns that are left out at each end, by the released rule."""
    if width > height:
        return (side - int(height * side / width)) // 2, 0
    return 0, (side - int(width * side / height)) // 2


def connected(part, features, width, height):
    """Tokens of one frame (N D) with row ends given as None, by the released rule for a size read as width, height."""
    towers = [
        projector(own) for projector, own in zip(part.aux_projectors, features.split(list(WIDTHS), dim=-1), strict=True)
    ]
    context, block = towers[0].mean(0), SIDE // 3
    rows_off, columns_off = margins(width, height, SIDE)
    tokens = []
    for row in range(3):
        for column in range(3):
            cells = [(row * block + i, column * block + j) for i in range(block) for j in range(block)]
            shown = [rows_off <= r < SIDE - rows_off and columns_off <= c < SIDE - columns_off for r, c in cells]
            seen = [cell for cell, real in enumerate(shown) if real] or list(range(len(cells)))
            query = part.query[0]
            for layer in part.layers:
                hidden = layer.proj_in(torch.cat([query, layer.proj_context(context)]))
                attention, keys, values = layer.cross_attn, [], []
                for i, tower in enumerate(towers):
                    for cell in seen:
                        token = tower[cells[cell][0] * SIDE + cells[cell][1]] + getattr(layer, f"pos_embed_{i}")[cell]
                        keys.append(getattr(attention, f"k_proj_{i}")(token))
                        values.append(getattr(attention, f"v_proj_{i}")(token))
                asked = attention.q_proj(hidden).view(16, 1, 2)
                keys, values = (torch.stack(part_of).view(-1, 16, 2).transpose(0, 1) for part_of in (keys, values))
                weights = (asked @ keys.transpose(1, 2) / 2**0.5).softmax(-1)
                hidden = hidden + attention.o_proj((weights @ values).flatten())
                query = query + layer.proj_out.linear_2(nn.functional.gelu(layer.proj_out.linear_1(layer.norm(hidden))))
            tokens.append(part.projector(query))
    rows_off, columns_off = margins(width, height, 3)
    out = []
    for row in range(rows_off, 3 - rows_off):
        out += [tokens[3 * row + column] for column in range(columns_off, 3 - columns_off)] + [None]
    return out


def squeezed(path, first, frame):
    """Context tokens K D of one frame, given the first frame's tokens (L D) and its own, with its sound."""
    compressor, length = path.compressor, len(first)
    bins = [(i * length // 4, -(-(i + 1) * length // 4)) for i in range(4)]
    hidden = torch.stack([compressor.query_proj(first[begin:end].mean(0)) for begin, end in bins])
    bert = compressor.bert
    words = [
        bert.embeddings.word_embeddings.weight[word] + bert.embeddings.position_embeddings.weight[i]
        for i, word in enumerate(QUESTION)
    ]
    hidden = bert.embeddings.LayerNorm(torch.cat([hidden, torch.stack(words)]))
    for number, layer in enumerate(bert.encoder.layer):
        hidden = attended(layer.attention, hidden, hidden)
        asking, text = hidden[:4], hidden[4:]
        if number % 2 == 0:
            asking = attended(layer.crossattention, asking, frame)
        asking = layer.output_query(nn.functional.gelu(layer.intermediate_query(asking)), asking)
        hidden = torch.cat([asking, layer.output(nn.functional.gelu(layer.intermediate(text)), text)])
    out = compressor.vision_proj(hidden[:4])
    return out / out.norm(dim=-1, keepdim=True)


def attended(block, hidden, seen):
    mixed = []
    for head in range(2):
        part_of = slice(6 * head, 6 * head + 6)
        asked, key, value = (
            getattr(block.self, kind)(x)[:, part_of] for kind, x in (("query", hidden), ("key", seen), ("value", seen))
        )
        mixed.append((asked @ key.T / 6**0.5).softmax(-1) @ value)
    return block.output.LayerNorm(block.output.dense(torch.cat(mixed, dim=-1)) + hidden)


def whole(connector, path, features, size, audio=None, budget=None):
    """M D: the sequence of a video, window by window."""
    frames = []
    for t in range(len(features)):
        tokens = connected(connector, features[t], *size)
        frames.append(torch.stack([path.newline if token is None else token for token in tokens]))
    scene = features[..., WIDTHS[0] :].flatten(1)
    similarity = [float(nn.functional.cosine_similarity(scene[i], scene[i + 1], dim=0)) for i in range(len(scene) - 1)]
    cuts = sorted(sorted(range(len(similarity)), key=lambda i: (similarity[i], i))[:3])
    starts = [0, *(place + 1 for place in cuts)]
    windows = []
    for start, end in zip(starts, [*starts[1:], len(frames)], strict=True):
        for first in range(start, end, 8):
            sound = [] if audio is None else [path.audio_proj(audio[first])]
            pieces = [frames[first], *sound, path.frame_seg.unsqueeze(0)]
            for later in range(first + 1, min(first + 8, end)):
                own = frames[later] if audio is None else torch.cat([frames[later], path.audio_proj(audio[later])])
                pieces += [squeezed(path, frames[first], own), path.frame_seg.unsqueeze(0)]
            windows.append(torch.cat(pieces))
    total = sum(map(len, windows))
    if budget is not None and total > budget:
        lost = -(-(total - budget) // len(windows))
        windows = [window[: max(0, len(window) - lost)] for window in windows]
    return torch.cat(windows)[:budget]


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "sound", "budget"),
    [((30, 30), False, None), ((20, 36), False, None), ((36, 20), False, None), ((30, 30), True, None),
     ((20, 36), True, None), ((30, 30), False, 61), ((30, 30), True, 20)],
)  # fmt: skip
def test_the_sequence_is_what_the_rules_make_of_the_towers_features(size, sound, budget):
    # the first number of the pair is the height; the released code reads it as the width
    changes = {} if budget is None else {"max_length": budget + 16 + len(QUESTION)}
    connector, path = parts(audio=sound, **changes)
    torch.manual_seed(4)
    features, audio = torch.randn(20, SIDE * SIDE, sum(WIDTHS)), torch.randn(20, 5, 6)
    features[8:12] = features[8] + 0.1 * torch.randn(4, SIDE * SIDE, sum(WIDTHS))
    tokens = VisualTokens(
        features=features.unsqueeze(0),
        grid=(SIDE, SIDE),
        frame_size=torch.tensor([size]),
        question=torch.tensor([QUESTION]),
        text_tokens=torch.tensor([len(QUESTION)]),
        audio=audio.unsqueeze(0) if sound else None,
    )
    tokens = tokens.replace(similarity=frame_similarity(tokens, slice(WIDTHS[0], None)))
    sequence = path(connector(tokens).with_sound_of(tokens))
    expected = whole(connector, path, features, size, audio if sound else None, budget)
    assert sequence.mask.all()
    torch.testing.assert_close(sequence.embeddings[0], expected, rtol=0, atol=2e-5)
