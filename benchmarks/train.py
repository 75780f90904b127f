"""A training step against transformers' own Llava with the same weights: processor time and peak memory.

    python benchmarks/train.py [--rounds 5] [--untied] [--json out.json]

Both models have the same CLIP tower (frozen), MLP projector and decoder, get the same row (five images of 576 tokens
and some text, 3,000 positions in all, of which 32 are labelled), and must give the same loss before anything is
timed. The decoder is a narrow Qwen2 with its vocabulary; one table embeds and predicts, as in all Qwen2 of up to 1.5
billion parameters (`--untied`: two tables, as in larger ones). Each model lives in a process of its own, and they take
steps in turns (A B A B ...), so that a busy machine hits both alike. A step is what the Trainer does: forward,
backward, fused AdamW, and gradients are given back. Time is processor time; memory is the highest resident size of the
whole process during a step, and the same above what is held between steps (weights, optimizer, libraries).

The one difference is the LM head: here only the labelled positions reach it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

from mmllm.config import MmllmConfig
from mmllm.model import MmllmForConditionalGeneration

IMAGES, TOKENS_OF_IMAGE, SIDE, PATCH = 5, 576, 336, 14
PLACEHOLDER = 5


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of the models and of the row."""

    vocabulary: int = 151_936
    width: int = 256
    layers: int = 4
    positions: int = 3000
    labelled: int = 32
    tied: bool = True
    threads: int = 1


def llava(setting: Setting) -> Any:
    """transformers' model."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        image_size=SIDE, patch_size=PATCH,
    )  # fmt: skip
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower,
            text_config=decoder(setting),
            image_token_index=PLACEHOLDER,
            tie_word_embeddings=setting.tied,
        )
    )


def decoder(setting: Setting) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=setting.vocabulary,
        hidden_size=setting.width,
        intermediate_size=4 * setting.width,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.width // 64,
        num_key_value_heads=setting.width // 64,
        tie_word_embeddings=setting.tied,
        max_position_embeddings=4096,
    )


def ours(setting: Setting) -> Any:
    """This package's model with the weights of `llava`."""
    theirs = llava(setting)
    model = MmllmForConditionalGeneration(
        MmllmConfig(
            text_config=decoder(setting),
            encoder=f"clip:image_size={SIDE},patch_size={PATCH},width=64,layers=3,heads=4,mlp_width=128",
            visual_tokenizer="mlp",
            path="plain",
            num_time_tokens=0,
            image_token_id=PLACEHOLDER,
        )
    )
    model.language_model.model.load_state_dict(theirs.model.language_model.state_dict())
    model.language_model.lm_head.load_state_dict(theirs.lm_head.state_dict())
    model.encoder.tower.load_state_dict(theirs.model.vision_tower.state_dict())
    projector = theirs.model.multi_modal_projector
    for layer, linear in ((0, projector.linear_1), (2, projector.linear_2)):
        model.visual_tokenizer[layer].load_state_dict(linear.state_dict())
    return model


def row(setting: Setting, tokens_an_image: int) -> dict[str, torch.Tensor]:
    """One row; each image has as many placeholders in the text as the model wants."""
    draw = torch.Generator().manual_seed(0)
    count = setting.positions - IMAGES * TOKENS_OF_IMAGE
    text = torch.randint(PLACEHOLDER + 1, setting.vocabulary, (count,), generator=draw)
    ids = torch.cat([torch.full((IMAGES * tokens_an_image,), PLACEHOLDER), text]).unsqueeze(0)
    labels = torch.full_like(ids, -100)
    labels[:, -setting.labelled :] = ids[:, -setting.labelled :]
    pixels = torch.randn(IMAGES, 3, SIDE, SIDE, generator=draw)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}


def work(which: str, setting: Setting, pipe: Connection) -> None:
    """A process with one of the models, which takes a step whenever it is told to."""
    torch.set_num_threads(setting.threads)
    model, inputs = (
        (llava(setting), row(setting, TOKENS_OF_IMAGE)) if which == "llava" else (ours(setting), row(setting, 1))
    )
    (model.model.vision_tower if which == "llava" else model.encoder).requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    model.train()
    while pipe.recv() == "step":
        held = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        started = time.process_time()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds, peak = time.process_time() - started, status("VmHWM")
        pipe.send({"loss": loss.item(), "seconds": seconds, "peak_gib": peak, "above_gib": peak - held})


def status(name: str) -> float:
    """A line of /proc/self/status, in GiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--untied", action="store_true", help="two tables of token embeddings")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if sys.platform != "linux":
        parser.error("peak memory is read from Linux's /proc")
    setting = Setting(threads=options.threads, tied=not options.untied)
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for which in ("llava", "ours"):
        pipes[which], theirs = context.Pipe()
        context.Process(target=work, args=(which, setting, theirs), daemon=True).start()
    steps: dict[str, list[dict[str, float]]] = {which: [] for which in pipes}
    for _ in range(options.rounds + 1):
        for which, pipe in pipes.items():
            pipe.send("step")
            steps[which].append(pipe.recv())
    first = [steps[which].pop(0) for which in ("llava", "ours")]  # these also make the optimiser's state
    torch.testing.assert_close(first[1]["loss"], first[0]["loss"], rtol=1e-4, atol=0.0)
    for pipe in pipes.values():
        pipe.send("end")
    report(setting, steps, options.json)


def report(setting: Setting, steps: dict[str, list[dict[str, float]]], target: Path | None) -> None:
    """Prints medians and their ratios."""
    medians = {
        which: {name: statistics.median(step[name] for step in taken) for name in ("seconds", "peak_gib", "above_gib")}
        for which, taken in steps.items()
    }
    print(f"{platform.machine()}, {setting.threads} thread, torch {torch.__version__}; {setting}")
    print(f"{'':12}{'transformers':>14}{'mmllm':>10}{'ratio':>8}")
    ratios = {}
    for name, label in (("seconds", "step, CPU-s"), ("peak_gib", "peak, GiB"), ("above_gib", "of it step")):
        theirs, mine = medians["llava"][name], medians["ours"][name]
        ratios[name] = theirs / mine
        print(f"{label:12}{theirs:14.2f}{mine:10.2f}{ratios[name]:8.2f}")
    if target is not None:
        target.write_text(json.dumps({"medians": medians, "ratios": ratios, "steps": steps}, indent=2) + "\n")


if __name__ == "__main__":
    main()
