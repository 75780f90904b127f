"""Do the reducers go the way their papers say? A task that can be trained in a minute a seed.

    python benchmarks/directions.py [--seeds 0 1 2] [--steps 200] [--json out.json]

An image of 64 x 64 pixels shows one coloured square of 8 x 8 on noise, with one of four fine textures. The image is
read as LLaVA-NeXT does, whole at half the resolution, where every texture looks alike, and as 2 x 2 tiles, one of which
tells it. A small vision transformer learns from its class token what a crop shows; then a reader learns the texture
from all patch tokens of the five partitions, and answers from what reducers leave of them. Chance is 25 %.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.intervals import student
from benchmarks.layouts import markdown
from benchmarks.results import Results, command_line, machine, option_parser
from mmllm import registry
from mmllm.encoders.clip import ClipConfig, ClipEncoder
from mmllm.pruning.diffrate_schedule import CompressionSchedule, flops
from mmllm.pruning.fastervlm import FasterVlmConfig, FasterVlmReducer
from mmllm.tokens import Tiling, VisualTokens

TOWER = ClipConfig(image_size=32, patch_size=4, width=48, layers=4, heads=4, mlp_width=192, select_layer=-1)
TILING = Tiling(rows=2, cols=2, height=64, width=64)
TEXTURES, PATCHES = 4, 64
TESTED, CROPPED = 200, 12
ROWS = {
    "most attended (`fastervlm`)": "attended",
    "`random`": "random",
    "`uniform`": "uniform",
    "least attended": "least attended",
    "`hired`, tiles by first-layer attention": "hired attention",
    "`hired:split=even`": "hired even",
    "`hired`, tiles by late attention": "hired by the late layer",
}
"""How the table calls what is done to tokens."""
INSIDE = {"drop": "prune", "merge": "merge", "drop half, merge half": "prune + merge"}
"""The same for DiffRate."""
PAIRS = {
    (2, 4, 8): (
        ("attended", "random"),
        ("random", "least attended"),
        ("hired attention", "hired even"),
        ("hired attention", "hired by the late layer"),
    ),
    (20, 10): (("prune + merge", "merge"), ("merge", "prune")),
}
"""Budgets, and what is compared at each."""


class LeastAttended(FasterVlmReducer):
    """FasterVLM upside down."""

    def ranking(self, tokens: VisualTokens) -> Tensor:
        return -super().ranking(tokens)


def pictures(seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (F 3 64 64), textures (F) and the tile (F) that shows the square."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 64, 64, generator=generator) * 0.5
    texture, tile = (torch.randint(0, TEXTURES, (count,), generator=generator) for _ in range(2))
    y, x = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    light = torch.stack([y // 2 % 2, x // 2 % 2, (x + y) // 2 % 2, (x // 2 + y // 2) % 2]).float() * 2  # mean 1 each
    colours = torch.rand(count, 3, generator=generator) * 1.5 + 0.75
    for image, kind, where, colour in zip(images, texture, tile, colours, strict=True):
        top, left = (4 * torch.randint(0, 7, (2,), generator=generator)).tolist()
        top, left = top + 32 * int(where // 2), left + 32 * int(where % 2)
        image[:, top : top + 8, left : left + 8] += light[kind] * colour[:, None, None]
    return images, texture, tile


def partitions(images: Tensor) -> Tensor:
    """F 5 3 32 32: the whole image at half the resolution, and its tiles row by row."""
    tiles = rearrange(images, "f c (r y) (q x) -> f (r q) c y x", r=2, q=2)
    return torch.cat([F.avg_pool2d(images, 2).unsqueeze(1), tiles], dim=1)


class Reader(nn.Module):
    """A question that attends to all tokens that are left, like a token of an LLM."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(2, width) * width**-0.5)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, TEXTURES))

    def forward(self, tokens: VisualTokens) -> Tensor:
        """Logits B K."""
        features = rearrange(tokens.features, "b t n d -> b (t n) d")
        mask = rearrange(tokens.mask, "b t n -> b 1 (t n)")
        logits = torch.einsum("qd,bnd->bqn", self.query, self.key(features)).masked_fill(~mask, -torch.inf)
        return self.out(torch.einsum("bqn,bnd->bqd", logits.softmax(-1), self.value(features)).flatten(1))


def trained(seed: int, steps: int) -> tuple[ClipEncoder, Reader]:
    """A tower that tells texture and place apart, and a reader of its patch tokens."""
    torch.manual_seed(seed)
    encoder, head = ClipEncoder(TOWER), nn.Linear(TOWER.width, TEXTURES + 1 + 4)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=2e-3, weight_decay=0.01)
    falling = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for step in range(steps):
        images, texture, tile = pictures(1_000_000 * seed + step, CROPPED)
        cut = partitions(images)
        # of each image: the whole (where is the square?), the tile with it (which texture?) and one without it
        other = (tile + 1 + torch.randint(0, 3, (CROPPED,))) % 4
        rows = torch.arange(CROPPED)
        crops = torch.cat([cut[:, 0], cut[rows, 1 + tile], cut[rows, 1 + other]])
        wanted = torch.cat([TEXTURES + 1 + tile, texture, torch.full((CROPPED,), TEXTURES)])
        logits = head(encoder.tower(crops).pooler_output)
        loss = F.cross_entropy(logits, wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        falling.step()
        if step % 50 == 49:
            print(f"seed {seed}, step {step + 1}: {(logits.argmax(-1) == wanted).float().mean():.0%}", flush=True)
    encoder.eval().requires_grad_(False)
    reader = Reader(TOWER.width)
    optimiser = torch.optim.AdamW(reader.parameters(), lr=3e-3)
    images, texture, _ = pictures(1_000_000 * seed + 500_000, 500)
    whole = torch.cat([encoder(partitions(part)).features for part in images.split(50)])
    for step in range(steps):
        rows = torch.randint(0, len(whole), (32,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(reader(VisualTokens(features=whole[rows], grid=encoder.grid)), texture[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return encoder, reader.eval()


@torch.no_grad()
def accuracies(encoder: ClipEncoder, reader: Reader, seed: int) -> dict[str, float]:
    """Share of right textures by what was done to the tokens."""
    images, texture, _ = pictures(1_000_000 * seed + 900_000, TESTED)
    cut = partitions(images)
    scored = [encoder(part, scores=("cls_attention", "cls_attention@0")) for part in cut.split(50)]
    tokens = VisualTokens(
        features=torch.cat([part.features for part in scored]),
        grid=encoder.grid,
        scores={name: torch.cat([part.scores[name] for part in scored]) for name in scored[0].scores},
        tiling=(TILING,) * TESTED,
    )

    def right(left: VisualTokens) -> float:
        return (reader(left).argmax(-1) == texture).float().mean().item()

    shares = {"everything": right(tokens)}
    for keep in (2, 4, 8):
        budgets = {
            "attended": f"fastervlm:keep={keep}",
            "random": f"random:keep={keep}",
            "uniform": f"uniform:keep={keep}",
        }
        for name, reducer in budgets.items():
            shares[f"{name} {keep}"] = right(registry.build("reducer", reducer)(tokens))
        shares[f"least attended {keep}"] = right(LeastAttended(FasterVlmConfig(keep=keep))(tokens))
        for split in ("attention", "even"):
            reducer = registry.build("reducer", f"hired:total={5 * keep},split={split}")
            shares[f"hired {split} {keep}"] = right(reducer(tokens))
        late = tokens.scores["cls_attention"]
        by_late = tokens.replace(scores={"cls_attention": late, "cls_attention@0": late})
        shares[f"hired by the late layer {keep}"] = right(registry.build("reducer", f"hired:total={5 * keep}")(by_late))
    for left in (20, 10):
        for name, schedule in schedules(left).items():
            config = {"name": "diffrate", "prune": list(schedule.prune), "merge": list(schedule.merge)}
            reducer = registry.build("reducer", {**config, "clamp_size": True})
            shares[f"{name} {left}"] = right(
                VisualTokens(**joined(encoder(part, inside=reducer) for part in cut.split(50)))
            )
    return shares


def joined(parts: Sequence[VisualTokens]) -> dict[str, object]:
    """Features, index, mask and grid of batches of images as those of one."""
    parts = list(parts)
    names = ("features", "index", "mask")
    return {"grid": parts[0].grid, **{name: torch.cat([getattr(part, name) for part in parts]) for name in names}}


def schedules(left: int) -> dict[str, CompressionSchedule]:
    """The same numbers of tokens behind each block, so the same cost, dropped, merged, or half of each."""
    counts = [65, *(round(65 - (65 - left) * block / 3) for block in (1, 2, 3))]
    before = [65, *counts[:-1]]
    half = tuple(now + (earlier - now) // 2 for earlier, now in zip(before, counts, strict=True))
    whole, counts_ = (65,) * 4, tuple(counts)
    return {
        "prune": CompressionSchedule(prune=counts_, merge=whole),
        "merge": CompressionSchedule(prune=whole, merge=counts_),
        "prune + merge": CompressionSchedule(prune=half, merge=counts_),
    }


def fill(results: Results, runs: Sequence[dict[str, float]]) -> None:
    """The tables of all seeds: right answers in %, and their differences paired by seed."""
    for label, kind in ROWS.items():
        shares = {keep: student([100 * run[f"{kind} {keep}"] for run in runs]) for keep in (2, 4, 8)}
        results.add("kept", {"tokens": label}, {f"keep_{keep}_percent": share for keep, share in shares.items()})
    for label, kind in INSIDE.items():
        shares = {left: student([100 * run[f"{kind} {left}"] for run in runs]) for left in (20, 10)}
        results.add("diffrate", {"tokens": label}, {f"left_{left}_percent": share for left, share in shares.items()})
    for budgets, pairs in PAIRS.items():
        for first, second in pairs:
            for budget in budgets:
                names = {"first": f"{first} {budget}", "second": f"{second} {budget}"}
                points = [100 * (run[names["first"]] - run[names["second"]]) for run in runs]
                results.add("differences", names, {"points": student(points)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains a model for each seed and prints what is answered with what reducers leave."""
    parser = option_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="no tile is attended to")
    results = Results(command_line(__file__, arguments), machine("torch"))
    runs = []
    for seed in options.seeds:
        encoder, reader = trained(seed, options.steps)
        runs.append(accuracies(encoder, reader, seed))
        results.add("everything", {"seed": str(seed)}, {"right_percent": 100 * runs[-1]["everything"]})
        print(f"seed {seed}: {runs[-1]['everything']:.1%} right with all tokens", flush=True)
    fill(results, runs)
    costs = {
        left: flops(schedules(left)["merge"].live(65), tokens=65, width=TOWER.width, patch=4) for left in (65, 20, 10)
    }
    for left, cost in costs.items():
        results.add("diffrate-cost", {}, {"tokens": left, "cost_percent": 100 * cost / costs[65]})
    print(*(markdown(table, rows) for table, rows in results.tables.items()), sep="\n\n")
    results.save(options.json)


if __name__ == "__main__":
    main()
