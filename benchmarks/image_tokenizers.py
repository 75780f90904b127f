"""Image tokenizers: what an encoder of 1D tokens costs beside its bare modules, FlexTok's sampling beside diffusers'.

    python benchmarks/image_tokenizers.py                      # the published sizes, in some ten minutes
    python benchmarks/image_tokenizers.py --only textok decode --repeats 3
    python benchmarks/image_tokenizers.py --device cuda --json out.json

Weights are random, which changes no cost. Times are processor time of the process (all its threads), or device time on
an accelerator, taken in turns that go there and back, so that a busy machine hits all alike. The tables have medians of
the ratios of one turn, between quartiles.

Encoding: a frame through the encoder as a model calls it, against its modules called one after the other by hand.
Decoding: the Euler steps of FlexTok's sampling against diffusers' FlowMatchEulerDiscreteScheduler in the loop that its
pipelines write, with the same decoder, times and noise. Both end at the same latents; the largest difference is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from benchmarks.intervals import Interval, quartiles
from benchmarks.layouts import head, line
from benchmarks.measuring import Work, in_turns, seconds_on
from benchmarks.memory import extra_bytes_on
from benchmarks.results import Number, Results, command_line, machine, option_parser
from mmllm import registry
from mmllm.tokenizers.autoencoders import rectified_flow
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokDecoderConfig
from mmllm.tokenizers.autoencoders.flextok_decoder import FlexTokDecoder
from mmllm.tokenizers.autoencoders.flextok_encoder import registers_last
from mmllm.tokenizers.autoencoders.patches import to_patches

ENCODERS = {
    "flextok": ("FlexTok d12 with its published VAE, 256 tokens", "flextok:latents=diffusers"),
    "flextok-16": ("the same, 16 tokens", "flextok:latents=diffusers,tokens=16"),
    "flextok-small-vae": ("FlexTok d12 with our small VAE, 256 tokens", "flextok"),
    "textok": ("TexTok, 128 tokens", "textok"),
}
"""Name of a row -> how the table calls it, and the encoder as on the command line."""
DECODER = FlexTokDecoderConfig()
GUIDED = rectified_flow.Guidance(scale=7.5)


def build(name: str, device: torch.device) -> Any:
    """An encoder with random weights."""
    torch.manual_seed(0)
    return registry.build("encoder", name).to(device).eval().requires_grad_(False)


def bare(encoder: Any, pixels: Tensor) -> Callable[[], Tensor]:
    """The modules of an encoder, one after the other: frames F 3 S S to tokens F N C."""
    if encoder.registered_name == "textok":
        return lambda: _bare_textok(encoder.encoder, pixels)
    registers = encoder.encoder
    patches = (encoder.config.image_size // (encoder.config.stride * encoder.config.patch_size)) ** 2
    mask = registers_last(patches, encoder.config.tokens, pixels.device)
    return lambda: _bare_flextok(encoder.latent_encoder, registers, mask, pixels)


def _bare_flextok(latents: Any, encoder: Any, mask: Tensor, pixels: Tensor) -> Tensor:
    mean, _ = latents.net(pixels).chunk(2, dim=1)
    embedded = encoder.patches.project(to_patches(mean * latents.scale, encoder.patches.patch_size))
    hidden = rearrange(embedded + rearrange(encoder.patches.positions, "1 c r s -> r s c"), "f r s c -> f (r s) c")
    count = hidden.shape[1]
    tokens = len(mask) - count
    hidden = torch.cat([hidden, encoder.registers[:tokens].expand(len(pixels), -1, -1)], dim=1)
    for block in encoder.blocks:
        hidden = block(hidden, mask)
    return hidden[:, count:]


def _bare_textok(encoder: Any, pixels: Tensor) -> Tensor:
    patches = rearrange(encoder.patch_embed(pixels), "f c y x -> f (y x) c") + encoder.pos_patch
    tokens = (encoder.image_tokens + encoder.pos_token).expand(len(pixels), -1, -1)
    hidden = torch.cat([patches, tokens, encoder.null_text.expand(len(pixels), 1, -1)], dim=1)
    for block in encoder.blocks:
        hidden = block(hidden)
    return encoder.norm(hidden)[:, patches.shape[1] : -1]


@torch.no_grad()
def encoding(name: str, frames: int, repeats: int, device: torch.device) -> dict[str, Number]:
    """One row of the encoders."""
    encoder = build(name, device)
    side = encoder.config.image_size
    pixels = torch.rand(1, frames, 3, side, side, device=device) * 2 - 1
    runs: dict[str, Work] = {"ours": lambda: encoder(pixels), "bare": bare(encoder, pixels[0])}
    torch.testing.assert_close(encoder(pixels).features[0], runs["bare"](), rtol=1e-3, atol=1e-3)
    taken = in_turns(runs, repeats, take=seconds_on(device), and_back=True)
    numbers: dict[str, Number] = {
        "frame_s": quartiles([seconds / frames for seconds in taken["ours"]]),
        "over_percent": percent_over(taken["ours"], taken["bare"]),
        "tokens": encoder.tokens_per_frame,
        "parameters_millions": sum(weight.numel() for weight in encoder.parameters()) / 1e6,
    }
    with suppress(OSError):  # where the system does not tell the peak, the row has no memory
        extra = in_turns(runs, repeats, take=lambda work: extra_bytes_on(device, work), and_back=True)
        numbers["memory_mib"] = quartiles([count / frames / 2**20 for count in extra["ours"]])
        numbers["memory_over_percent"] = percent_over(extra["ours"], extra["bare"])
    return numbers


def percent_over(of: Sequence[float], to: Sequence[float]) -> Interval:
    """How much more one takes than the other, in %, turn by turn."""
    return quartiles([100 * (a / b - 1) for a, b in zip(of, to, strict=True)])


@torch.no_grad()
def decoding(guided: bool, steps: int, repeats: int, device: torch.device) -> dict[str, Number]:
    """One row of the sampling."""
    torch.manual_seed(0)
    decoder = FlexTokDecoder(DECODER).to(device).eval()
    for weight in decoder.parameters():
        if not weight.any():  # a new decoder gives zeros
            torch.nn.init.normal_(weight, std=0.02)
    side = DECODER.grid[0] * DECODER.patch_size
    noise = torch.randn(1, DECODER.channels, side, side, device=device)
    codes = torch.rand(1, DECODER.registers, DECODER.code_width, device=device) * 2 - 1
    kept = torch.tensor([DECODER.registers // 4], device=device)
    everywhere = torch.ones(1, dtype=torch.bool, device=device)

    def velocity(noised: Tensor, time: Tensor, conditional: bool) -> Tensor:
        return decoder(noised, time, codes, kept=kept, unconditional=None if conditional else everywhere)

    guidance = GUIDED if guided else None
    runs: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: rectified_flow.sample(velocity, noise, steps=steps, guidance=guidance),
        "theirs": lambda: diffusers_loop(velocity, noise, steps, GUIDED.at(1.0) if guided else 1.0),
    }
    largest = (runs["ours"]() - runs["theirs"]()).abs().max()
    taken = in_turns(runs, repeats, take=seconds_on(device), and_back=True)
    return {
        "step_s": quartiles([seconds / steps for seconds in taken["ours"]]),
        "over_percent": percent_over(taken["ours"], taken["theirs"]),
        "largest": float(largest),
    }


def diffusers_loop(velocity: rectified_flow.Velocity, noise: Tensor, steps: int, scale: float) -> Tensor:
    """Latents at the end of the loop of diffusers' pipelines, with times 1, 1 - 1/steps and so on."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=[step / steps for step in range(steps, 0, -1)], device=noise.device)
    latents = noise
    for timestep in scheduler.timesteps:
        time = (timestep / scheduler.config.num_train_timesteps).expand(len(latents))
        towards_noise = velocity(latents, time, True)
        if scale != 1:
            nothing = velocity(latents, time, False)
            towards_noise = nothing + scale * (towards_noise - nothing)
        latents = scheduler.step(towards_noise, timestep, latents, return_dict=False)[0]
    return latents


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints a row after another."""
    parser = option_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=[*ENCODERS, "decode"], default=[*ENCODERS, "decode"])
    parser.add_argument("--repeats", type=int, default=5, help="turns that count")
    parser.add_argument("--frames", type=int, default=1, help="frames of a call")
    parser.add_argument("--steps", type=int, default=2, help="steps of a sampling")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    results = Results(command_line(__file__, arguments), machine("torch", "diffusers", "timm"))
    if names := [name for name in given.only if name != "decode"]:
        print(f"\n{head('encoders')}", flush=True)
        for label, encoder in (ENCODERS[name] for name in names):
            numbers = encoding(encoder, given.frames, given.repeats, device)
            print(line("encoders", results.add("encoders", {"encoder": label}, numbers)), flush=True)
    if "decode" in given.only:
        print(f"\n{head('sampling')}", flush=True)
        for label, guided in (("no guidance", False), ("guidance, twice the passes", True)):
            numbers = decoding(guided, given.steps, given.repeats, device)
            print(line("sampling", results.add("sampling", {"sampling": label}, numbers)), flush=True)
    results.save(given.json)


if __name__ == "__main__":
    main()
