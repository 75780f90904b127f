"""Every vision tower at its sizes: time, memory, tokens and parameters, and what our wrapper adds to the bare module.

    python benchmarks/encoders.py                        # towers of up to half a billion parameters, and frames
    python benchmarks/encoders.py --only dinov2-378 convnext-576 --repeats 1
    python benchmarks/encoders.py --only frames          # preparing decoded frames, against transformers

Weights are random, which changes no cost. Times are processor time of the process (all its threads), or device time on
an accelerator, taken in turns (reference, ours, bare, reference, ...), so that a busy machine hits all alike. Told are
medians of the ratios of one turn; for frames, whose turns are short, ratios of the quickest turns. Where a busy machine
moves these by more than what is looked for, the share of a call that is spent outside of the library's modules is told
too, and with a score the share that it takes: both are counted within one call, all of which is slowed down alike.

The reference is CLIP ViT-L/14 at 336 pixels, as LLaVA-1.5 runs it: up to its last layer but one. The bare modules do
the same work: no layer that is not needed, no scores.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmllm import registry
from mmllm.encoders.clip_names import from_transformers
from mmllm.preprocessing.frames import FrameTransform

REFERENCE = "clip-336"
Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Tower:
    """A row of the table."""

    encoder: str
    """Name and settings, as on the command line."""
    score: str | None = None
    """A score that the row's time includes."""
    huge: bool = False
    """Only run when asked for by name."""


TOWERS = {
    REFERENCE: Tower("clip"),
    "clip-336+cls": Tower("clip", score="cls_attention"),
    "clip-224": Tower("clip:image_size=224"),
    "siglip-384": Tower("siglip"),
    "siglip-384+mean": Tower("siglip", score="mean_attention"),
    "dinov2-378": Tower("dinov2", huge=True),
    "convnext-256": Tower("convnext:image_size=256", huge=True),
    "convnext-576": Tower("convnext", huge=True),
    **{
        f"fastvithd-{side}": Tower(f"fastvithd:image_size={side}", huge=side > 768)
        for side in (256, 512, 768, 1024, 1280, 1536)
    },
}


def build(name: str, device: torch.device) -> Any:
    """An encoder with random weights."""
    config = registry.config_of("encoder", name)
    with torch.device("meta"):
        encoder = registry.build("encoder", config)
    encoder = encoder.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for key, value in (*encoder.named_parameters(), *encoder.named_buffers()):
        if value.is_floating_point():
            value.normal_(0, 0.02, generator=generator)
            value.add_(1.0 if value.ndim == 1 and "bias" not in key and "mean" not in key else 0.0)
        else:
            value.copy_(torch.arange(value.numel(), device=device).view(value.shape))
    return encoder


def bare_runs(encoder: Any) -> dict[str, Run]:
    """Library -> the bare module at the same work; those of CLIP hold the same weights."""
    tower, kind = encoder.tower, type(encoder).__name__
    if kind in ("ClipEncoder", "SiglipEncoder"):
        blocks = encoder.config.blocks_run
        before = tower.pre_layrnorm if kind == "ClipEncoder" else torch.nn.Identity()

        def transformers(pixels: Tensor) -> Tensor:
            hidden = before(tower.embeddings(pixels))
            for block in tower.encoder.layers[:blocks]:
                hidden = block(hidden, None)
            return hidden

        return {"transformers": transformers, **(_other_clips(encoder) if kind == "ClipEncoder" else {})}
    return {"timm": tower.forward_features}


def _other_clips(encoder: Any) -> dict[str, Run]:
    import timm
    from open_clip.transformer import QuickGELU, VisionTransformer

    config, state = encoder.config, encoder.tower.state_dict()
    device = next(encoder.parameters()).device
    state["visual_projection.weight"] = torch.zeros(768, config.width, device=device)
    options = {"indices": [-2], "intermediates_only": True, "output_fmt": "NLC"}
    with torch.device("meta"):
        first = timm.create_model(
            f"vit_large_patch14_clip_quickgelu_{config.image_size}", num_classes=768, img_size=config.image_size
        )
        second = VisionTransformer(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            mlp_ratio=config.mlp_width / config.width,
            output_dim=768,
            act_layer=QuickGELU,
        )
    runs: dict[str, Run] = {}
    for library, module in (("timm", first), ("open_clip", second)):
        module.load_state_dict(from_transformers(state, library), assign=True)  # type: ignore[arg-type]
        module = module.eval().requires_grad_(False)
        early: dict[str, Any] = {"stop_early": True, **({"norm": False} if library == "timm" else {})}
        runs[library] = lambda pixels, module=module, early=early: module.forward_intermediates(
            pixels, **options, **early
        )
    return runs


# --- measuring ----------------------------------------------------------------------------------------------


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Processor time on a CPU, elapsed time on an accelerator."""
    if device.type == "cpu":
        begun = time.process_time()
        run()
        return time.process_time() - begun
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    run()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def in_turns(runs: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each, each turn, after one turn that does not count; every other turn goes backwards."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            spent = seconds(runs[name], device)
            if turn:
                taken[name].append(spent)
    return taken


def ratio(of: list[float], to: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def extra_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """Most memory that a run takes beside the weights; None where the system does not tell."""
    if device.type != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return _status("VmHWM") - before
    except (OSError, KeyError):
        return None


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


class Clock:
    """Adds up the processor time of functions, counted once where they call each other."""

    def __init__(self) -> None:
        self.spent, self._depth, self._begun = 0.0, 0, 0.0

    def begin(self, *_: Any) -> None:
        if not self._depth:
            self._begun = time.process_time()
        self._depth += 1

    def end(self, *_: Any) -> None:
        self._depth -= 1
        if not self._depth:
            self.spent += time.process_time() - self._begun


def shares(encoder: Any, run: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Which share of a call our code takes around the library's modules, and which one a score takes."""
    around, scoring = [], []
    for _ in range(repeats):
        modules, score = Clock(), Clock()
        hooks = [hook for module in encoder.tower.modules() for hook in (
            module.register_forward_pre_hook(modules.begin), module.register_forward_hook(modules.end),
        )]  # fmt: skip
        if hasattr(encoder, "_score"):
            encoder._score = timed(type(encoder)._score.__get__(encoder), score, modules)
        begun = time.process_time()
        run()
        total = time.process_time() - begun
        for hook in hooks:
            hook.remove()
        around.append((total - modules.spent) / (total - score.spent))
        scoring.append(score.spent / (total - score.spent))
    return {"around": statistics.median(around), "scoring": statistics.median(scoring)}


def timed(call: Callable[..., Any], *clocks: Clock) -> Callable[..., Any]:
    """`call`, with its time added to the clocks."""

    def call_timed(*arguments: Any) -> Any:
        for clock in clocks:
            clock.begin()
        result = call(*arguments)
        for clock in clocks:
            clock.end()
        return result

    return call_timed


@torch.no_grad()
def measure(name: str, reference: Any, repeats: int, device: torch.device) -> dict[str, Any]:
    """One row: a frame at a time, as ratios to the reference."""
    tower = TOWERS[name]
    encoder = reference if tower.encoder == TOWERS[REFERENCE].encoder else build(tower.encoder, device)
    pixels, small = (
        torch.rand(1, 1, 3, one.config.image_size, one.config.image_size, device=device) for one in (encoder, reference)
    )
    scores = [tower.score] if tower.score else []
    runs: dict[str, Callable[[], Any]] = {
        "reference": lambda: reference(small),
        "ours": lambda: encoder(pixels, scores=scores),
    }
    plain = {} if scores else bare_runs(encoder)
    runs |= {library: lambda run=run: run(pixels[:, 0]) for library, run in plain.items()}
    taken = in_turns(runs, repeats, device)
    features = encoder(pixels).features
    return {
        "tower": name,
        "seconds": statistics.median(taken["ours"]),
        "time": ratio(taken["ours"], taken["reference"]),
        **({} if device.type != "cpu" else shares(encoder, runs["ours"], repeats)),
        "over": {library: ratio(taken["ours"], taken[library]) - 1 for library in plain},
        "tokens": features.shape[2],
        "width": features.shape[3],
        "parameters": sum(weight.numel() for weight in encoder.parameters()),
        "memory": extra_bytes(runs["ours"], device),
        "repeats": repeats,
    }


# --- frames -------------------------------------------------------------------------------------------------


def frame_rows(count: int, repeats: int) -> list[dict[str, Any]]:
    """Preparing decoded frames: transformers' default processor of the same model against ours."""
    from transformers import CLIPImageProcessor, LlavaImageProcessor, SiglipImageProcessor

    def square(side: int) -> dict[str, Any]:
        return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}

    half, bare = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    grey, plain = (0.5, 0.5, 0.5), FrameTransform(size=1024, fit="pad", mean=(0, 0, 0), std=(1, 1, 1))
    siglip = FrameTransform(size=384, fit="squash", mean=grey, std=grey)
    cases: dict[str, tuple[Any, FrameTransform, int]] = {
        "CLIP 336, crop": (CLIPImageProcessor(**square(336)), FrameTransform(size=336), count),
        "LLaVA 336, pad": (LlavaImageProcessor(do_pad=True, **square(336)), FrameTransform(size=336, fit="pad"), count),
        "SigLIP 384": (
            SiglipImageProcessor(size={"height": 384, "width": 384}, resample=3, **half),  # type: ignore[arg-type]
            siglip,
            count,
        ),
        "FastVLM 1024, pad": (LlavaImageProcessor(do_pad=True, **square(1024), **bare), plain, max(1, count // 5)),
    }
    rows = []
    for height, width in ((360, 640), (720, 1280)):
        for name, (theirs, ours, frames) in cases.items():
            clip = _clip(frames, height, width)
            runs = {
                "theirs": lambda clip=clip, theirs=theirs: theirs(list(clip), return_tensors="pt")["pixel_values"],
                "ours": lambda clip=clip, ours=ours: ours.video(clip),
                "pil": lambda clip=clip, ours=ours: replace(ours, video_resize="pil").video(clip),
            }
            far = np.abs(runs["ours"]() - runs["theirs"]().numpy()) * 255 * np.array(ours.std)[:, None, None]
            taken = in_turns(runs, repeats, torch.device("cpu"))
            rows.append(
                {
                    "frames": f"{name}, of {width}x{height}",
                    "milliseconds": 1e3 * min(taken["ours"]) / frames,
                    "faster": min(taken["theirs"]) / min(taken["ours"]),
                    "faster_than_pil": min(taken["pil"]) / min(taken["ours"]),
                    "largest": float(far.max()),
                    "mean": float(far.mean()),
                }
            )
            print(_frame_line(rows[-1]), flush=True)
    return rows


def _clip(count: int, height: int, width: int) -> np.ndarray:
    """Smooth content with noise."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, height // 40, width // 40, 3), dtype=np.uint8)
    frames = coarse.repeat(40, axis=1).repeat(40, axis=2)
    return np.clip(frames.astype(np.int16) + generator.integers(-9, 10, frames.shape[1:]), 0, 255).astype(np.uint8)


# --- telling ------------------------------------------------------------------------------------------------

TOWER_HEAD = (
    "| tower | time / CLIP ViT-L/14-336 | ours over the bare module | of a call: around its modules, scores "
    "| tokens | width | parameters | memory |\n"
    "|---|---|---|---|---|---|---|---|"
)
FRAME_HEAD = (
    "| frames | ms a frame | faster than transformers' default | faster than PIL | largest, mean difference of 255 |\n"
    "|---|---|---|---|---|"
)


def _tower_line(row: dict[str, Any]) -> str:
    over = ", ".join(f"{library} {100 * share:+.1f} %" for library, share in row["over"].items())
    memory = "-" if row["memory"] is None else f"{row['memory'] / 2**20:,.0f} MiB"
    count = f"{row['parameters'] / 1e6:,.1f} M"
    share = f"{row['around']:.2%}, {row['scoring']:.2%}" if "around" in row else "-"
    size = f"{row['tokens']} | {row['width']} | {count} | {memory}"
    return f"| {row['tower']} | {row['time']:.2f} | {over or '-'} | {share} | {size} |"


def _frame_line(row: dict[str, Any]) -> str:
    faster = f"{row['faster']:.1f} x | {row['faster_than_pil']:.1f} x"
    return f"| {row['frames']} | {row['milliseconds']:.2f} | {faster} | {row['largest']:.2f}, {row['mean']:.4f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=[*TOWERS, "frames"], help="these rows")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    parser.add_argument("--count", type=int, default=100, help="frames that are prepared")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the rows into this file")
    given = parser.parse_args()
    device = torch.device(given.device)
    chosen = given.only or [*(name for name, tower in TOWERS.items() if not tower.huge), "frames"]
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    rows: list[dict[str, Any]] = []
    if names := [name for name in chosen if name != "frames"]:
        reference = build(TOWERS[REFERENCE].encoder, device)
        print(f"\n{TOWER_HEAD}", flush=True)
        for name in names:
            rows.append(measure(name, reference, given.repeats, device))
            print(_tower_line(rows[-1]), flush=True)
    if "frames" in chosen:
        print(f"\n{FRAME_HEAD}", flush=True)
        rows += frame_rows(given.count, given.repeats)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
