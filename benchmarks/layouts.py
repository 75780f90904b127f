"""How the tables look, for the scripts that print them and for the docs: their columns, and what a cell says.

A cell is a text for `str.format` over a row's labels and numbers; `low`, `high` and `half` belong to an interval.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.results import Row


@dataclass(frozen=True)
class Column:
    """A column: its head, and cells of which the first is taken that the row has everything for."""

    head: str
    cells: tuple[str, ...]

    def cell(self, row: Row) -> str:
        """What stands in the row; nothing where it has nothing for this column."""
        for text in self.cells:
            try:
                return text.format(**row.labels, **row.numbers)
            except (KeyError, AttributeError):  # another number, or one without an interval
                continue
        return ""


def _columns(*columns: tuple[str, ...]) -> tuple[Column, ...]:
    return tuple(Column(head, tuple(cells)) for head, *cells in columns)


def _mean(name: str) -> tuple[str, str]:
    return f"{{{name}:.1f}} ± {{{name}.half:.1f}}", f"{{{name}:.1f}}"


def _over(library: str) -> str:
    return f"{library} {{{library}_percent:+.0f}} %"


def _median(name: str) -> str:
    return f"{{{name}:.3f}} ({{{name}.low:.3f}}-{{{name}.high:.3f}})"


def _between(name: str) -> tuple[str, ...]:
    percent = f"{name}_percent"
    return (f"{{{percent}:+.1f}} % ({{{percent}.low:+.1f}} to {{{percent}.high:+.1f}})",)


def _faster(name: str) -> tuple[str, str]:
    return _median(f"{name}_s"), f"x{{{name}_ratio:.2f}}"


LAYOUTS: dict[str, tuple[Column, ...]] = {
    "decoding": _columns(
        ("decoding", "`{method}`", "{method}"),
        ("law", "{law}"),
        ("the same answers", "{same_percent:.0f} %"),
        ("mIoU", "{miou_percent:.1f}"),
        ("passes, of greedy's", "{passes_ratio:.2f}", "1"),
        ("tokens a pass", "{tokens_per_pass:.2f}", "1"),
        ("drafts accepted", "{acceptance_percent:.0f} %", "-"),
        ("drafter's passes", "{draft_passes}", "-"),
        ("processor time, of greedy's", "{time_ratio:.2f}"),
    ),
    "decoding-text": _columns(
        ("decoding", "`{method}`", "{method}"),
        ("the same texts", "{same_percent:.0f} %"),
        ("passes, of greedy's", "{passes_ratio:.2f}", "1"),
        ("tokens a pass", "{tokens_per_pass:.2f}", "1"),
        ("drafts accepted", "{acceptance_percent:.0f} %", "-"),
        ("drafter's passes", "{draft_passes}", "-"),
        ("processor time, of greedy's", "{time_ratio:.2f}"),
    ),
    "llm-limits": _columns(("limit", "{limit}"), ("", "{gflops:.0f} GFLOP/s", "{gb_per_s:.1f} GB/s")),
    "llm-reading": _columns(
        ("prompt", "{prompt}"),
        ("pass", "`{pass}`"),
        ("positions", "{positions:,}"),
        ("seconds", _median("reading_s")),
        ("than transformers in float32", "{time_ratio:.2f} x"),
        ("at most", "{ideal_ratio:.2f} x"),
        ("of that", "{of_ideal_percent:.0f} %"),
        ("memory", "{memory_mib:.0f} MiB"),
    ),
    "llm-writing": _columns(
        ("behind", "{prompt}"),
        ("pass", "`{pass}`"),
        ("seconds a token", "{token_s:.4f} ({token_s.low:.4f}-{token_s.high:.4f})"),
        ("than transformers in float32", "{time_ratio:.2f} x"),
    ),
    "llm-answers": _columns(
        ("weights", "{pass}"),
        ("questions", "{questions}"),
        ("mIoU", "{miou_percent:.1f}"),
        ("the same answers", "{same_percent:.0f} %"),
    ),
    "drafts": _columns(
        ("draft", "`{draft}`"),
        ("state", "{state}"),
        (
            "tokens a pass",
            "{tokens_per_pass:.2f} ({tokens_per_pass.low:.2f} to {tokens_per_pass.high:.2f})",
            "{tokens_per_pass:.2f}",
        ),
        ("drafts accepted", "{acceptance_percent:.0f} %"),
        ("positions that the draft computed", "{draft_positions:,.0f}"),
        ("over all its layers", "{layer_positions:,.0f}", "-"),
    ),
    "ahead": _columns(
        ("draft", "`{draft}`"),
        ("trained on", "{state}"),
        *(
            (f"{what}, {words} ahead", f"{{top{most}_at{words}_percent:.0f}} %", "-")
            for words in (2, 3, 4)
            for most, what in ((1, "first guess right"), (10, "among ten"))
        ),
    ),
    "other_laws": _columns(
        ("decoding", "`{method}`"),
        ("training", "{training}"),
        ("the same answers", "{same_percent:.0f} %"),
        ("mIoU", "{miou_percent:.1f}"),
        ("tokens a pass", "{tokens_per_pass:.2f}"),
        ("computed, of the model's", "{work_percent:.0f} %"),
    ),
    "routes": _columns(
        ("all big", "{all_big_nats:.3f}"),
        ("oracle", "{oracle_nats:.3f}"),
        ("oracle, one big part at most", "{oracle_one_big_nats:.3f}"),
        ("routers", "{router_nats:.3f}"),
        ("best of 100 drawn", "{best_drawn_nats:.3f}"),
        ("mean of 100 drawn", "{mean_drawn_nats:.3f}"),
    ),
    "ablations": _columns(
        ("", "{group}"),
        ("", "{name}"),
        ("mIoU", "{miou_percent:.1f}"),
        ("95 %", "{miou_percent.low:.1f} to {miou_percent.high:.1f}"),
        ("CPU seconds of training", "{cpu_s:.0f}", "-"),
    ),
    "speaks": _columns(
        ("clips", "{clips}"),
        ("questions", "{questions}"),
        ("mIoU", "{miou_percent:.1f} ({miou_percent.low:.1f} to {miou_percent.high:.1f})", "-"),
        ("constant", "{constant_percent:.1f}", "-"),
        ("another video", "{shuffled_percent:.1f}", "-"),
        ("several spans", "{several_percent:.1f}", "-"),
        ("no time given", "{fallback_percent:.1f} %", "-"),
        ("missed", "{miss_percent:.1f} %", "-"),
        ("false alarms", "{false_alarm_percent:.1f} %", "-"),
    ),
    "speaks_kinds": _columns(
        ("family", "{family}"),
        ("questions", "{questions}"),
        ("mIoU, or right", "{score_percent:.1f} ({score_percent.low:.1f} to {score_percent.high:.1f})"),
        ("constant", "{constant_percent:.1f}"),
    ),
    "speaks_facts": _columns(("", "{model}"), ("facts", "{facts}"), ("right", "{right_percent:.0f} %")),
    "speaks_cost": _columns(
        ("clip", "{clip}"),
        ("first token of a second question after", "{first_token_s:.2f} s"),
        ("memory at its peak", "{peak_gib:.2f} GiB"),
    ),
    "reinforce": _columns(
        ("then trained with", "{way}"),
        ("mIoU", "{miou_percent:.1f} ({miou_percent.low:.1f} to {miou_percent.high:.1f})", "{miou_percent:.1f}"),
        ("points more", "{more_points:+.1f} ({more_points.low:+.1f} to {more_points.high:+.1f})", "-"),
        ("CPU seconds of training", "{cpu_s:.0f}", "-"),
    ),
    "stages": _columns(
        ("", "{question}"),
        *((stage, f"{{{stage}_s:.3f}} s") for stage in ("decode", "encode", "reduce", "prefill")),
        ("first token after", "{first_token_s:.3f} s"),
    ),
    "sooner": _columns(
        ("second question", "{sooner_ratio:.1f} times sooner"),
        ("quartiles", "{sooner_ratio.low:.1f} to {sooner_ratio.high:.1f}"),
    ),
    "context-budgets": _columns(
        ("policy", "{policy}"),
        ("mIoU at 50 %", *_mean("iou_50_percent")),
        ("25 %", *_mean("iou_25_percent")),
        ("12.5 %", *_mean("iou_12_5_percent")),
        ("bytes held at 50 %", "{held_50_percent:.0f} %"),
        ("25 %", "{held_25_percent:.0f} %"),
        ("12.5 %", "{held_12_5_percent:.0f} %"),
        ("tokens a second at 25 %", "{tokens_s:.0f}"),
        ("of those without", "{speed_ratio:.2f} x"),
    ),
    "watch-events": _columns(
        ("question", "{question}"),
        ("events", "{events:.0f}"),
        ("reported within 2 s", "{recall_percent:.0f} %"),
        ("reports", "{reports:.0f}"),
        ("right", "{precision_percent:.0f} %"),
        ("after the end, median", "{median_after_s:.1f} s"),
        ("longest", "{longest_after_s:.1f} s"),
    ),
    "watch-memory": _columns(
        ("stream", "{hours:.2f} h, {stream}"),
        ("memory in the first half", "{first_mib:.0f} MiB"),
        ("in the second", "{second_mib:.0f} MiB"),
        ("growth", "{growth_percent:+.1f} %"),
        ("rounds", "{rounds:,.0f}"),
        ("a round, median", "{round_ms:.0f} ms"),
        ("95 %", "{round_95_ms:.0f} ms"),
        ("speed", "{real_time:.1f} x real time"),
    ),
    "prefix-times": _columns(
        ("LLM", "{llm}"),
        ("", "{asked}"),
        ("positions kept", "{positions:,}"),
        ("without", "{without_s:.2f} s"),
        ("with", "{with_s:.2f} s"),
        ("sooner", "{sooner_ratio:.1f} times ({sooner_ratio.low:.1f} to {sooner_ratio.high:.1f})"),
        ("same answers", "{same}"),
        ("the cache", "{cache_mib:.1f} MiB"),
    ),
    "prefix-codecs": _columns(
        ("codec", "{codec}"),
        ("as", "{setting}"),
        ("bits a number, 67 positions", "{bits:.2f}"),
        ("1,441 positions", "{long_bits:.2f}"),
        ("of half precision", "{half_percent:.0f} %"),
        ("same answers", "{same_percent:.0f} %"),
        ("opened in", "{open_ms:.0f} ms"),
    ),
    "at-once": _columns(
        ("questions at once", "{questions}"), ("what became of them", "{outcomes}"), ("process", "{process_mb:,.0f} MB")
    ),
    "ring": _columns(
        ("`language: {...}`", "`{recipe}`"),
        ("memory of a process", "{extra_mib:,.0f} MiB"),
        ("of the whole row's", "{whole_percent:.0f} %"),
        ("processor seconds, all processes", "{step_s:.1f}"),
    ),
    "serving": _columns(
        ("batching", "{batching}"),
        ("clients", "{clients}"),
        ("ask about", "{videos}"),
        ("one at a time", "{alone_per_s:.1f} a second"),
        ("all at once", "{clients_per_s:.1f} a second"),
        ("", "{faster_ratio:.1f} times"),
        ("lost", "{lost}"),
        ("memory after each half", "{first_half_mb:,.0f} MB, {second_half_mb:,.0f} MB"),
        ("processor of an answer", "{alone_cpu_ms:.0f} ms, {clients_cpu_ms:.0f} ms", "-"),
    ),
    "shared-prefix": _columns(
        ("LLM", "{llm}"),
        ("positions", "{positions}"),
        ("rows", "{rows}"),
        ("a copy for each", "{copied_s:.2f} s"),
        ("read once", "{shared_s:.2f} s"),
        ("sooner", "{sooner_ratio:.1f} times ({sooner_ratio.low:.1f} to {sooner_ratio.high:.1f})"),
        ("what is done", "{done}"),
        ("same answers", "{same} of {rows}"),
    ),
    "everything": _columns(("seed", "{seed}"), ("right with all tokens", "{right_percent:.1f} %")),
    "kept": _columns(
        ("tokens of each partition", "{tokens}"),
        *((f"{keep} of 64", *_mean(f"keep_{keep}_percent")) for keep in (2, 4, 8)),
    ),
    "diffrate": _columns(
        ("DiffRate, the same tokens behind each block", "{tokens}"),
        *((f"{left} left of 65", *_mean(f"left_{left}_percent")) for left in (20, 10)),
    ),
    "differences": _columns(
        ("differences, paired by seed", "{first} - {second}"),
        ("points", "{points:+.1f} ± {points.half:.1f}", "{points:+.1f}"),
    ),
    "diffrate-cost": _columns(("tokens left", "{tokens}"), ("cost", "{cost_percent:.0f} %")),
    "frames": _columns(
        ("frames", "{frames}"),
        ("ms a frame", "{frame_ms:.2f}"),
        ("faster than transformers' default", "{faster_ratio:.1f} x"),
        ("faster than PIL", "{pil_ratio:.1f} x"),
        ("largest, mean difference of 255", "{largest:.2f}, {mean:.4f}"),
    ),
    "towers": _columns(
        ("tower", "{tower}"),
        ("time, of CLIP's at 336", "{time_ratio:.2f}"),
        (
            "over the bare module",
            ", ".join([_over("transformers"), _over("timm"), _over("open_clip")]),
            _over("transformers"),
            _over("timm"),
            "-",
        ),
        ("around its modules", "{around_percent:.1f} %", "-"),
        ("score", "{score_percent:.1f} %", "{score}"),
        ("tokens", "{tokens} x {width}"),
        ("parameters", "{parameters_millions:,.0f} M"),
        ("memory", "{memory_mib:,.0f} MiB", "-"),
    ),
    "flextok-errors": _columns(
        ("error with the first", "{training}"),
        *((f"{tokens} of 8", *_mean(f"tokens_{tokens}_percent")) for tokens in (1, 2, 4, 8)),
    ),
    "textok-errors": _columns(
        ("the caption is read by", "{caption}"),
        ("error with its own caption", *_mean("own_percent")),
        ("without", *_mean("null_percent"), "-"),
        ("with that of another picture", *_mean("other_percent"), "-"),
    ),
    "encoders": _columns(
        ("encoder", "{encoder}"),
        ("seconds a frame", "{frame_s:.2f}"),
        ("over the bare modules", *_between("over")),
        ("memory a frame", "{memory_mib:,.0f} MiB", "-"),
        ("over the bare modules", *_between("memory_over"), "-"),
        ("tokens", "{tokens}"),
        ("parameters", "{parameters_millions:,.0f} M"),
    ),
    "sampling": _columns(
        ("FlexTok d12's sampling", "{sampling}"),
        ("seconds a step", "{step_s:.2f}"),
        ("over diffusers' loop", *_between("over")),
        ("largest difference of the latents", "{largest:.1e}"),
    ),
    "finetune": _columns(
        ("clips", "{clips}"),
        ("steps", "{steps}"),
        ("mIoU before", "{before_percent:.1f}"),
        ("after", "{after_percent:.1f}"),
        ("CPU seconds of training", "{cpu_s:.0f}"),
    ),
    "answers": _columns(
        ("left of 16 tokens a frame", "{reducer}"),
        ("8: mIoU", *_mean("miou_8_percent"), *_mean("miou_percent")),
        *((f"{keep}", *_mean(f"miou_{keep}_percent")) for keep in (4, 2)),
        ("8: place", *_mean("place_8_percent"), *_mean("place_percent")),
        *((f"{keep}", *_mean(f"place_{keep}_percent")) for keep in (4, 2)),
    ),
    "without-looking": _columns(("without looking: mIoU", "{miou_percent:.1f}"), ("place", "{place_percent:.1f}")),
    "selection": _columns(("reducer", "{reducer}"), ("share of the encoder's time", "{encoder_share:.1%}")),
    "reading": _columns(
        ("visual tokens", "{tokens}"),
        ("operations of the LLM's reading fall", "{operations_ratio:.2f} x"),
        ("its time falls", "{time_ratio:.2f} x"),
        ("peak memory", "{memory_percent:.0f} %"),
        ("bytes of the cache", "{cache_bytes:,}"),
    ),
    "step": _columns(
        ("", "{model}"),
        ("processor seconds", "{step_s:.3g}", "{step_ratio:.1f}"),
        ("whole process at its peak", "{peak_gib:.2f} GiB", "{peak_ratio:.1f}"),
        ("above what is held between steps", "{above_gib:.2f} GiB", "{above_ratio:.1f}"),
    ),
    "clips": _columns(
        ("clip", "{clip}"),
        ("must be decoded", "{needed} of {frames}"),
        ("mmllm", _median("mmllm_s")),
        ("plain PyAV", _median("plain_pyav_s")),
        ("decord", _median("decord_s")),
        ("torchcodec", _median("torchcodec_s")),
        ("of the allowed", "{allowed_share:.0%}", "**{median_share:.0%}**"),
        ("times the fastest", "{fastest_ratio:.2f}", "**{median_ratio:.2f}**"),
    ),
    "eight": _columns(
        ("workload", "{workload}"),
        ("mmllm", _median("mmllm_s")),
        ("plain PyAV", *_faster("plain_pyav")),
        ("decord", *_faster("decord")),
        ("torchcodec", *_faster("torchcodec")),
        ("transformers' default loader", *_faster("transformers")),
    ),
    "large": _columns(
        ("100 of 1200 frames of 1080p, each reader in its own process", "{reader}"),
        ("extra memory", "{extra_mib:.0f} MiB"),
        ("processor seconds", "{reading_s:.2f}"),
    ),
    "long-video": _columns(
        ("what the LLM reads", "{way}"),
        ("minutes", "{minutes:g}"),
        ("frames", "{frames:,}"),
        ("whole process at its peak", "{peak_mib:,.0f} MiB"),
        ("of the first", "{ratio:.2f}"),
        ("seconds", "{asking_s:.0f}"),
    ),
    "hosted-reading": _columns(
        ("visual tokens kept", "{kept}"),
        ("positions", "{positions:,}"),
        ("seconds of reading", _median("reading_s")),
        ("operations fall", "{operations_ratio:.2f} x", "-"),
        ("time falls", "{time_ratio:.2f} x", "-"),
        ("of what operations say", "{of_operations_percent:.0f} %", "-"),
        ("of it for reducing and shortening", "{shortening_percent:+.1f} %", "-"),
        ("memory", "{memory_mib:,.0f} MiB"),
        ("of that of all", "{memory_percent:.0f} %", "-"),
    ),
    "hosted-untouched": _columns(
        ("without a stage", "{call}"),
        ("transformers alone", _median("bare_s")),
        ("hosted", _median("hosted_s")),
        ("over transformers", *_between("over")),
    ),
    "selection-images": _columns(
        ("one image of 576 tokens", "{reducer}"),
        ("where", "{where}"),
        ("of the encoder's time", "{encoder_percent:.2f} %"),
        ("95 %", "{encoder_percent.low:.2f} to {encoder_percent.high:.2f}"),
        ("of its operations", "{operations_percent:.2f} %"),
        ("allowed", "{allowed_percent:.0f} %", "-"),
    ),
    "selection-video": _columns(
        ("100 frames of 196 tokens", "{reducer}"),
        ("where", "{where}"),
        ("of the encoder's time", "{encoder_percent:.2f} %"),
        ("95 %", "{encoder_percent.low:.2f} to {encoder_percent.high:.2f}"),
        ("allowed", "{allowed_percent:.0f} %", "-"),
    ),
    "reducer-reading": _columns(
        ("", "{model}"),
        ("", "{reducer}"),
        ("positions in the last layer", "{positions:,}"),
        ("seconds of reading", _median("reading_s")),
        ("operations fall", "{operations_ratio:.2f} x", "-"),
        ("time falls", "{time_ratio:.2f} x", "-"),
        ("of what operations say", "{of_operations_percent:.0f} %", "-"),
        ("of what transformers gains on as many positions", "{of_same_percent:.0f} %", "-"),
        ("memory", "{memory_mib:,.0f} MiB"),
        ("of that of all", "{memory_percent:.0f} %", "-"),
        ("by the formula", "{formula_percent:.0f} %", "-"),
    ),
    "path-costs": _columns(
        ("path", "{way}"),
        ("frames", "{frames}"),
        ("of which it has a token", "{read_frames}"),
        ("tokens in the sequence", "{tokens:,}"),
        ("beside it", "{beside:,}"),
        ("operations", "{gflop:,.0f} G"),
        ("fewer", "{operations_ratio:.2f} x"),
        ("prefill", "{prefill_s:.2f} s"),
        ("faster", "{time_ratio:.2f} x"),
        ("memory", "{memory_mib:,.0f} MiB"),
    ),
    "path-claims": _columns(
        ("prefill of", "{of}"),
        ("to that of", "{to}"),
        ("demanded", "{demanded}"),
        ("operations, counted", "{counted_ratio:.3f}"),
        ("by formula", "{formula_ratio:.3f}"),
        ("Qwen2-7B by formula", "{large_ratio:.3f}"),
        ("processor time", "{time_ratio:.3f}"),
    ),
    "path-answers": _columns(
        ("", "{group}"),
        ("", "{name}"),
        ("tokens in the sequence", "{tokens}", "-"),
        ("beside it", "{beside}", "-"),
        ("mIoU", "{miou_percent:.1f}"),
        ("95 %", "{miou_percent.low:.1f} to {miou_percent.high:.1f}", "-"),
        ("short events", "{short_percent:.1f}", "-"),
        ("95 %", "{short_percent.low:.1f} to {short_percent.high:.1f}", "-"),
    ),
    "when-budgets": _columns(
        ("left of all tokens", "{reducer}"),
        ("50 %", *_mean("whole_50_percent")),
        ("25 %", *_mean("whole_25_percent")),
        ("12.5 %", *_mean("whole_12_5_percent")),
        ("5 %", *_mean("whole_5_percent")),
    ),
    "when-groups": _columns(
        ("a quarter left", "{reducer}"),
        ("short events", *_mean("short_percent")),
        ("middle", *_mean("middle_percent")),
        ("long", *_mean("long_percent")),
        ("still clips", *_mean("still_percent")),
        ("moving", *_mean("moving_percent")),
        ("place", *_mean("place_percent")),
        ("tokens read by the LLM", "{read_tokens}"),
        ("time to the first word", "{first_token_ratio:.2f} x"),
    ),
    "when-memory": _columns(
        ("left of all tokens", "{reducer}"),
        ("50 %", "{memory_50_mib:.1f} MiB"),
        ("25 %", "{memory_25_mib:.1f} MiB"),
        ("12.5 %", "{memory_12_5_mib:.1f} MiB"),
        ("5 %", "{memory_5_mib:.1f} MiB"),
    ),
    "large-against": _columns(
        ("mmllm against", "{reader}"),
        ("times less memory", "{memory_ratio:.0f}"),
        ("times less processor time", "{time_ratio:.1f}"),
    ),
}


def head(table: str) -> str:
    """The first two lines of a Markdown table."""
    columns = LAYOUTS[table]
    return _line(column.head for column in columns) + "\n" + "|---" * len(columns) + "|"


def line(table: str, row: Row) -> str:
    """A row as a line of Markdown."""
    return _line(column.cell(row) for column in LAYOUTS[table])


def markdown(table: str, rows: Iterable[Row]) -> str:
    """A whole table, without a line break at its end."""
    return "\n".join([head(table), *(line(table, row) for row in rows)])


def _line(cells: Iterable[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
