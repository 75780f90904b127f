"""Every vision tower at its sizes: time, memory, tokens and parameters, and what our wrapper adds to the bare module.

    python benchmarks/encoders.py                        # towers of up to half a billion parameters, and frames
    python benchmarks/encoders.py --only dinov2-378 convnext-576 --repeats 1
    python benchmarks/encoders.py --only frames          # preparing decoded frames, against transformers
    python benchmarks/encoders.py --json out.json

Weights are random, which changes no cost. Times are processor time of the process (all its threads), or device time on
an accelerator, taken in turns that go there and back, so that a busy machine hits all alike. The table has medians of
the ratios of one turn; for frames, whose turns are short, ratios of the quickest turns. A busy machine may move these
by more than what is looked for, so there is also the share of a call that is spent outside of the library's modules,
and with a score the share that it takes: both are counted within one call, all of which is slowed down alike.

The reference is CLIP ViT-L/14 at 336 pixels, as LLaVA-1.5 runs it: up to its last layer but one. The bare modules do
the same work: no layer that is not needed, no scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.intervals import quartiles, turn_ratio
from benchmarks.layouts import head, line
from benchmarks.measuring import Work, in_turns, processor_s, seconds_on
from benchmarks.memory import extra_bytes_on
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm import registry
from mmllm.encoders.clip_names import from_transformers
from mmllm.preprocessing.frames import FrameTransform

REFERENCE = "clip-336"
Run = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Tower:
    """A row of the table."""

    label: str
    """How the table calls it."""
    encoder: str
    """Name and settings, as on the command line."""
    score: str | None = None
    """A score that the row's time includes."""
    huge: bool = False
    """Only run when asked for by name."""


TOWERS = {
    REFERENCE: Tower("CLIP ViT-L/14, 336 pixels", "clip"),
    "clip-336+cls": Tower("the same with `cls_attention`", "clip", score="cls_attention"),
    "clip-224": Tower("CLIP ViT-L/14, 224", "clip:image_size=224"),
    "siglip-384": Tower("SigLIP so400m, 384", "siglip"),
    "siglip-384+mean": Tower("the same with `mean_attention`", "siglip", score="mean_attention"),
    "dinov2-378": Tower("DINOv2 giant, 378", "dinov2", huge=True),
    "convnext-256": Tower("ConvNeXt-XXL, 256", "convnext:image_size=256", huge=True),
    "convnext-576": Tower("ConvNeXt-XXL, 576", "convnext", huge=True),
    **{
        f"fastvithd-{side}": Tower(f"FastViTHD, {side}", f"fastvithd:image_size={side}", huge=side > 768)
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
        module.eval().requires_grad_(False)
        early: dict[str, Any] = {"stop_early": True, **({"norm": False} if library == "timm" else {})}
        runs[library] = lambda pixels, module=module, early=early: module.forward_intermediates(
            pixels, **options, **early
        )
    return runs


# --- measuring ----------------------------------------------------------------------------------------------


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


def shares(encoder: Any, run: Work, repeats: int) -> dict[str, Number]:
    """In % of a call: what our code takes around the library's modules, and what a score takes if it can be counted."""
    around, scoring = [], []
    counted = hasattr(encoder, "_score")
    for _ in range(repeats):
        modules, score = Clock(), Clock()
        hooks = [hook for module in encoder.tower.modules() for hook in (
            module.register_forward_pre_hook(modules.begin), module.register_forward_hook(modules.end),
        )]  # fmt: skip
        if counted:
            encoder._score = clocked(type(encoder)._score.__get__(encoder), score, modules)
        total = processor_s(run)
        for hook in hooks:
            hook.remove()
        if counted:
            del encoder._score
        around.append(100 * (total - modules.spent) / (total - score.spent))
        scoring.append(100 * score.spent / (total - score.spent))
    return {"around_percent": quartiles(around), **({"score_percent": quartiles(scoring)} if any(scoring) else {})}


def clocked(call: Callable[..., Any], *clocks: Clock) -> Callable[..., Any]:
    """`call`, with its time added to the clocks."""

    def call_clocked(*arguments: Any) -> Any:
        for clock in clocks:
            clock.begin()
        result = call(*arguments)
        for clock in clocks:
            clock.end()
        return result

    return call_clocked


@torch.no_grad()
def measure(tower: Tower, reference: Any, repeats: int, device: torch.device) -> dict[str, Number]:
    """One row: a frame at a time, as ratios to the reference."""
    encoder = reference if tower.encoder == TOWERS[REFERENCE].encoder else build(tower.encoder, device)
    pixels, small = (
        torch.rand(1, 1, 3, measured.config.image_size, measured.config.image_size, device=device)
        for measured in (encoder, reference)
    )
    scores = [tower.score] if tower.score else []
    runs: dict[str, Work] = {"reference": lambda: reference(small), "ours": lambda: encoder(pixels, scores=scores)}
    plain = {} if scores else bare_runs(encoder)
    runs |= {library: lambda run=run: run(pixels[:, 0]) for library, run in plain.items()}
    taken = in_turns(runs, repeats, take=seconds_on(device), and_back=True)
    over = {
        library: [100 * (ours / bare - 1) for ours, bare in zip(taken["ours"], taken[library], strict=True)]
        for library in plain
    }
    features = encoder(pixels).features
    numbers: dict[str, Number] = {
        "call_s": quartiles(taken["ours"]),
        "time_ratio": turn_ratio(taken["ours"], taken["reference"]),
        **({} if device.type != "cpu" else shares(encoder, runs["ours"], repeats)),
        **{f"{library}_percent": quartiles(percents) for library, percents in over.items()},
        "tokens": features.shape[2],
        "width": features.shape[3],
        "parameters_millions": sum(weight.numel() for weight in encoder.parameters()) / 1e6,
    }
    with suppress(OSError):  # where the system does not tell the peak, the row has no memory
        numbers["memory_mib"] = extra_bytes_on(device, runs["ours"]) / 2**20
    return numbers


# --- frames -------------------------------------------------------------------------------------------------


def frame_rows(count: int, repeats: int) -> Iterator[tuple[str, dict[str, Number]]]:
    """Preparing decoded frames: transformers' default processor of the same model against ours, a row after another."""
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
    for height, width in ((360, 640), (720, 1280)):
        for name, (theirs, ours, frames) in cases.items():
            clip = _clip(frames, height, width)
            runs = {
                "theirs": lambda clip=clip, theirs=theirs: theirs(list(clip), return_tensors="pt")["pixel_values"],
                "ours": lambda clip=clip, ours=ours: ours.video(clip),
                "pil": lambda clip=clip, ours=ours: replace(ours, video_resize="pil").video(clip),
            }
            far = np.abs(runs["ours"]() - runs["theirs"]().numpy()) * 255 * np.array(ours.std)[:, None, None]
            taken = in_turns(runs, repeats, and_back=True)
            quickest = {name: min(seconds) for name, seconds in taken.items()}
            yield (
                f"{name}, of {width}x{height}",
                {
                    "frame_ms": 1e3 * quickest["ours"] / frames,
                    "faster_ratio": quickest["theirs"] / quickest["ours"],
                    "pil_ratio": quickest["pil"] / quickest["ours"],
                    "largest": float(far.max()),
                    "mean": float(far.mean()),
                },
            )


def _clip(count: int, height: int, width: int) -> np.ndarray:
    """Smooth content with noise."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, height // 40, width // 40, 3), dtype=np.uint8)
    frames = coarse.repeat(40, axis=1).repeat(40, axis=2)
    return np.clip(frames.astype(np.int16) + generator.integers(-9, 10, frames.shape[1:]), 0, 255).astype(np.uint8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints a row after another."""
    parser = option_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=[*TOWERS, "frames"], help="these rows")
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    parser.add_argument("--count", type=int, default=100, help="frames that are prepared")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    chosen = given.only or [*(name for name, tower in TOWERS.items() if not tower.huge), "frames"]
    results = Results(command_line(__file__, arguments), machine("torch", "torchvision", "transformers"))
    if names := [name for name in chosen if name != "frames"]:
        reference = build(TOWERS[REFERENCE].encoder, device)
        print(f"\n{head('towers')}", flush=True)
        for tower in (TOWERS[name] for name in names):
            numbers = measure(tower, reference, given.repeats, device)
            uncounted = {} if "score_percent" in numbers else {"score": "not told" if tower.score else "-"}
            row = results.add("towers", {"tower": tower.label, **uncounted}, numbers)
            print(line("towers", row), flush=True)
    if "frames" in chosen:
        print(f"\n{head('frames')}", flush=True)
        for frames, numbers in frame_rows(given.count, given.repeats):
            print(line("frames", results.add("frames", {"frames": frames}, numbers)), flush=True)
    results.save(given.json)


if __name__ == "__main__":
    main()
