"""`mmllm reconstruct FILE`: what an image tokenizer keeps of a picture or a video, beside the original."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from mmllm.errors import InputError

_AT_ONCE = 8
"""Pictures that are reconstructed together."""


def reconstruct(
    file: Annotated[Path, tyro.conf.Positional],
    tokenizer: str,
    tokens: str | None = None,
    output: Path | None = None,
    frames: int = 32,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    caption: str | None = None,
) -> None:
    """Write the original beside its reconstructions, a picture or an mp4, and print how near they are.

    Args:
        file: an image or a video.
        tokenizer: folder of a trained image tokenizer, such as runs/flextok-small/tokenizer, or a published FlexTok:
            a folder, hub id or preset.
        tokens: numbers of tokens, such as 1,4,16; by default 1, 4, 16 and so on up to all.
        output: the file to write; by default reconstruction.png or reconstruction.mp4.
        frames: for a video, how many frames are taken, spread evenly.
        steps: steps of FlexTok's decoder; 25 by default.
        guidance: strength of FlexTok's guidance (adaptive projected guidance), such as 7.5; none by default.
        seed: seed of the decoder's noise.
        caption: what the picture shows, for a tokenizer that reads text.
    """
    import torch

    from mmllm.checkpoints.autoencoders import load_autoencoder
    from mmllm.tokenizers.autoencoders.flextok import FlexTok
    from mmllm.tokenizers.autoencoders.quality import psnr, ssim
    from mmllm.tokenizers.autoencoders.rectified_flow import Guidance

    autoencoder = load_autoencoder(tokenizer)
    counts = _counts(tokens, autoencoder)
    pictures, fps = _pictures(file, autoencoder.image_size, frames)
    originals = torch.from_numpy(pictures)
    if caption is not None and not autoencoder.reads_text:
        raise InputError(f"--caption: {tokenizer} reads no text")
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    if guidance is not None:
        options["guidance"] = Guidance(scale=guidance, projected=True)
    if options and not isinstance(autoencoder, FlexTok):
        raise InputError(f"--{next(iter(options))}: the decoder of {tokenizer} does not work in steps")
    columns, lines = [originals], []
    for count in counts:
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for part in originals.split(_AT_ONCE):
            if caption is not None:
                options["captions"] = [caption] * len(part)
            parts.append(autoencoder.reconstruct(part, tokens=count, generator=generator, **options))
        made = torch.cat(parts)
        columns.append(made)
        lines.append(
            f"{count} tokens: PSNR {psnr(made, originals).mean():.1f} dB, SSIM {ssim(made, originals).mean():.3f}"
        )
    print("\n".join(lines))
    target = output or Path("reconstruction.mp4" if fps else "reconstruction.png")
    rows = [_bytes(column) for column in columns]
    if fps:
        _write_video(target, np.concatenate(rows, axis=2), fps)
    else:
        _draw(target, [row[0] for row in rows], ["original", *(line.replace(": ", "\n") for line in lines)])
    print(target)


def _counts(tokens: str | None, autoencoder: Any) -> list[int]:
    """The numbers of tokens to show."""
    most = autoencoder.most_tokens
    if tokens is None:
        return [4**power for power in range(12) if 4**power < most and autoencoder.ordered] + [most]
    try:
        counts = [int(part) for part in tokens.split(",")]
    except ValueError:
        raise InputError(f"--tokens {tokens}: give whole numbers with commas between them, such as 1,4,16") from None
    for count in counts:
        if not 1 <= count <= most or (count < most and not autoencoder.ordered):
            allowed = f"1 to {most}" if autoencoder.ordered else f"{most}, because it decodes all tokens or none"
            raise InputError(f"--tokens {count}: this tokenizer allows {allowed}")
    return counts


def _pictures(file: Path, size: int, frames: int) -> tuple[np.ndarray, float]:
    """Pictures (float32, T 3 S S, from -1 to 1) of a file, and the rate of a video; 0 for an image."""
    from mmllm.preprocessing.frames import read_image
    from mmllm.tokenizers.frame_tokens import from_minus_one_to_one
    from mmllm.video.frame_files import IMAGE_SUFFIXES
    from mmllm.video.opening import open_video

    transform = from_minus_one_to_one(size)
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return transform(read_image(file)[None]), 0.0
    if frames < 1:
        raise InputError(f"--frames {frames}: at least 1")
    with open_video(file) as video:
        clip = video.sample_uniform(frames, size=size)
    return transform(clip.frames[clip.valid]), max(1.0, int(clip.valid.sum()) / clip.duration_s)


def _bytes(images: Any) -> np.ndarray:
    """uint8 (T S S 3) of images (T 3 S S) from -1 to 1."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def _draw(target: Path, pictures: list[np.ndarray], titles: list[str]) -> None:
    """One row of pictures, each with its title above it."""
    from matplotlib.figure import Figure

    from mmllm.inference.plotting import saved

    figure = Figure(figsize=(2.2 * len(pictures), 2.7), layout="constrained")
    for number, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        axes = figure.add_subplot(1, len(pictures), number + 1)
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    saved(figure, target)


def _write_video(target: Path, frames: np.ndarray, fps: float) -> None:
    """Writes frames (uint8, T H W 3) as H.264."""
    from fractions import Fraction

    import av

    with av.open(str(target), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
