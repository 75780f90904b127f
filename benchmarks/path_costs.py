"""What reading a video costs on each path: tokens, operations, seconds, memory, with an LLM of random weights.

The LLM has the layers of Qwen2-7B and a fourteenth of its width; a frame has a fourteenth of the tokens. So attention
has the same share of all operations as there. Features of frames are random, too: an encoder costs the same on all
paths.

T frames, D LLM width
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import Qwen2Config

from benchmarks.intervals import median_ratio, quartiles
from benchmarks.layouts import line
from benchmarks.measuring import in_turns, operations
from benchmarks.memory import peak_memory
from benchmarks.results import Number, Results
from mmllm.config import MmllmConfig
from mmllm.inference.costs import prefill_flops
from mmllm.llm.stages.slow_cross_attention import SlowCrossAttention, SlowCrossAttentionConfig
from mmllm.model import MmllmForConditionalGeneration
from mmllm.modeling.placeholders import place
from mmllm.tokens import VisualSequence, VisualTokens

FRAMES = (8, 16, 32, 64, 128, 224)
BUDGET = 252
"""Most tokens of a video in the sequence."""
GRID = (4, 6)
"""Patches of a frame, of which 2 x 2 are averaged to one of 6 tokens."""
TEXT = 8
"""Tokens of the question."""
PLACEHOLDER = 5
QWEN2_7B = Qwen2Config(
    hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
    vocab_size=152064,
)  # fmt: skip
SMALL_LLM: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 1352, "num_hidden_layers": 28, "num_attention_heads": 8,
    "num_key_value_heads": 1, "vocab_size": 1000,
}  # fmt: skip
Way = Mapping[str, Any]


def hybrid(fast_frames: int) -> Way:
    """Stages of the hybrid with so many fast frames, or all if there are fewer."""
    path = f"slowfast-hybrid:temporal_stride=1000,min_fast_frames={fast_frames}"
    return {"decoder_stages": ("slow-cross-attention",), "path": path}


WHOLE: Way = {"reducers": ("pool:stride=2",), "path": "plain"}
TDC = (
    "tdc:cuts=7,window=64,max_frames=100,tokens=1,frame_tokens=6,newline=false,width=56,layers=12,heads=4,"
    "mlp_width=224,question_words=when+does+it+spin,most_words=32,positions=32,"
    f"text_tokens={TEXT},max_length={BUDGET + TEXT + 16}"
)
WAYS: dict[str, Way] = {
    "plain, all tokens": WHOLE,
    "plain, each frame thinned out": {"reducers": (f"uniform:total={BUDGET}",), "path": "plain"},
    "LITA SlowFast": {"path": "slowfast"},
    "TDC": {"reducers": ("pool:stride=2",), "path": TDC},
    "Slow-Fast hybrid": hybrid(BUDGET // 6),
}
"""How frames are read; all but the first in at most `BUDGET` tokens."""
CLAIMS = {
    ("hybrid 128", "hybrid 16"): "at most 1.04",
    ("hybrid 128", "plain 16"): "at most 1.05",
    ("plain 128", "hybrid 128"): "at least 6",
}
"""What is compared with what, and what the ratio of operations has to be."""


@dataclass(frozen=True)
class Read:
    """What the LLM is given of a video."""

    sequence: VisualSequence

    @property
    def tokens(self) -> int:
        """In the sequence."""
        return int(self.sequence.mask.sum())

    @property
    def beside(self) -> int:
        """Beside it."""
        mask = self.sequence.cross_attention_mask
        return 0 if mask is None else int(mask.sum())

    @property
    def frames(self) -> int:
        """Frames of which there is a token."""
        shown = [self.sequence.frame[self.sequence.mask]]
        if self.sequence.cross_attention_frame is not None:
            shown.append(self.sequence.cross_attention_frame[self.sequence.cross_attention_mask])
        return len(torch.cat(shown).clamp(min=-1).unique())


class Reader:
    """A model of random weights that reads features of frames on one path."""

    def __init__(self, way: Way, sizes: Mapping[str, Any]) -> None:
        torch.manual_seed(0)
        self.config = Qwen2Config(**sizes)
        self.way = way
        self.model: Any = MmllmForConditionalGeneration(
            MmllmConfig(
                text_config=self.config,
                encoder="tiny",
                visual_tokenizer="linear",
                num_time_tokens=0,
                video_token_id=PLACEHOLDER,
                **way,
            )
        ).eval()

    def arranged(self, frames: int) -> Read:
        """Features of so many frames as the LLM is given them."""
        features = torch.randn(1, frames, GRID[0] * GRID[1], 192, generator=torch.Generator().manual_seed(frames))
        question = torch.tensor([[1, 2, 3, 4]]) if self.model.path.reads_question else None
        return Read(self.model.arrange(VisualTokens(features=features, grid=GRID, question=question)))

    @torch.no_grad()
    def read(self, frames: int) -> None:
        """From features of frames to the first token's logits."""
        self.prefill(self.arranged(frames))

    @torch.no_grad()
    def prefill(self, read: Read) -> None:
        """The LLM's part of it."""
        ids = torch.full((1, TEXT + 1), PLACEHOLDER + 1)
        ids[0, 0] = PLACEHOLDER
        placed = place(ids, torch.ones_like(ids), {PLACEHOLDER: read.sequence})
        self.model.language_model(**self.model._decoder_inputs(placed), use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def operations(self, frames: int) -> float:
        """Operations from features of frames to the first token's logits, as PyTorch counts them."""
        return float(operations(lambda: self.read(frames)))

    def counted(self, read: Read) -> float:
        """Operations of the LLM's part of it."""
        return float(operations(lambda: self.prefill(read)))


def by_formula(config: Qwen2Config, tokens: int, beside: int) -> float:
    """Operations of a prefill of so many visual tokens in the sequence, and beside it, by the package's formulas."""
    text = TEXT if config is not QWEN2_7B else TEXT * 14
    operations = prefill_flops(config, tokens + text)
    if beside:
        with torch.device("meta"):
            stage = SlowCrossAttention(SlowCrossAttentionConfig(), decoder=config)
        operations += stage.prompt_flops(beside, text)
    return operations


def fill_costs(results: Results, frames: Sequence[int], rounds: int, sizes: Mapping[str, Any]) -> None:
    """The table of all paths: what they put into the sequence, and what its prefill costs beside that of all tokens."""
    readers = {name: Reader(way, sizes) for name, way in WAYS.items()}
    for count in frames:
        works = {name: partial(reader.read, count) for name, reader in readers.items()}
        seconds = in_turns(works, rounds)
        memory = {name: peak_memory(work)[1].extra / 2**20 for name, work in works.items()}
        operations = {name: reader.operations(count) for name, reader in readers.items()}
        whole = next(iter(WAYS))
        for name, reader in readers.items():
            read = reader.arranged(count)
            numbers: dict[str, Number] = {
                "frames": count,
                "read_frames": read.frames,
                "tokens": read.tokens,
                "beside": read.beside,
                "gflop": operations[name] / 1e9,
                "operations_ratio": operations[whole] / operations[name],
                "prefill_s": quartiles(seconds[name]),
                "time_ratio": median_ratio(seconds[whole], seconds[name]),
                "memory_mib": memory[name],
            }
            print(line("path-costs", results.add("path-costs", {"way": name}, numbers)), flush=True)


def fill_claims(results: Results, rounds: int, sizes: Mapping[str, Any]) -> None:
    """The table of claims about a hybrid of 16 fast frames: ratios of prefills of the LLM."""
    plain, own = Reader(WHOLE, sizes), Reader(hybrid(16), sizes)
    reads = {
        "hybrid 16": (own, own.arranged(16)),
        "hybrid 128": (own, own.arranged(128)),
        "plain 16": (plain, plain.arranged(16)),
        "plain 128": (plain, plain.arranged(128)),
    }
    seconds = in_turns({name: partial(reader.prefill, read) for name, (reader, read) in reads.items()}, rounds)
    counted = {name: reader.counted(read) for name, (reader, read) in reads.items()}
    formula = {name: by_formula(own.config, read.tokens, read.beside) for name, (_, read) in reads.items()}
    large = {
        name: by_formula(QWEN2_7B, read.tokens * 81 // 6, read.beside * 81 // 6) for name, (_, read) in reads.items()
    }
    for (of, to), demanded in CLAIMS.items():
        numbers: dict[str, Number] = {
            "counted_ratio": counted[of] / counted[to],
            "formula_ratio": formula[of] / formula[to],
            "large_ratio": large[of] / large[to],
            "time_ratio": median_ratio(seconds[of], seconds[to]),
        }
        results.add("path-claims", {"of": f"{of} frames", "to": f"{to} frames", "demanded": demanded}, numbers)
