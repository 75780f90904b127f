"""Each benchmark explains itself and runs at its smallest, and its results can be read and shown."""

import os
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from benchmarks.layouts import LAYOUTS, markdown
from benchmarks.results import Results
from mmllm.registry import build, parts
from mmllm.times.answers import Span
from mmllm.tokenizers.autoencoders.flextok_config import FlexTokDecoderConfig

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = (
    "ablations", "context", "decoding", "demo", "directions", "drafts", "encoders", "finetune", "gpu", "hosting",
    "image_tokenizers", "llm", "long_video", "other_laws", "paths", "prefix", "reducer_costs", "reducers", "reinforce",
    "ring", "serving", "shared_prefix", "speak_ablations", "speaks", "tokenizer_training", "train", "video", "watch",
    "when",
)  # fmt: skip


def run(script: str, arguments: list[str], folder: Path) -> Results:
    """The results of a script, which can all be shown."""
    import_module(f"benchmarks.{script}").main([*arguments, "--json", str(folder / "out.json")])
    kept = Results.read(folder / "out.json")
    assert kept.command.startswith(f"python benchmarks/{script}.py ")
    for table, rows in kept.tables.items():
        assert len(markdown(table, rows).splitlines()) == len(rows) + 2
    return kept


def filled_columns(kept: Results, table: str) -> int:
    """Columns that say something in every row."""
    return sum(all(column.cell(row) for row in kept.tables[table]) for column in LAYOUTS[table])


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_printed_by_the_file_itself(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "benchmarks" / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert f"python benchmarks/{script}.py" in printed
    assert "--json FILE" in printed


def test_every_script_is_in_the_list():
    assert set(SCRIPTS) == {
        file.stem for file in (ROOT / "benchmarks").glob("*.py") if "option_parser(__doc__)" in file.read_text()
    }


def test_a_script_runs_as_a_file():
    command = [sys.executable, "benchmarks/directions.py", "--help"]
    assert "--json FILE" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_frames_are_prepared(tmp_path):
    kept = run("encoders", ["--only", "frames", "--count", "1", "--repeats", "1"], tmp_path)
    assert len(kept.tables["frames"]) == 8
    assert filled_columns(kept, "frames") == 5
    assert all(row.numbers["largest"] <= 2 for row in kept.tables["frames"])


def test_towers_are_measured(tmp_path, monkeypatch):
    from benchmarks import encoders

    small = "image_size=28,width=32,layers=2,heads=2,mlp_width=64"
    towers = {
        "clip-336": encoders.Tower("a small SigLIP", f"siglip:{small}"),
        "clip-336+cls": encoders.Tower("a small CLIP with a score", f"clip:{small}", score="cls_attention"),
        "siglip-384+mean": encoders.Tower("SigLIP with a score", f"siglip:{small}", score="mean_attention"),
    }
    for name, tower in towers.items():
        monkeypatch.setitem(encoders.TOWERS, name, tower)
    kept = run("encoders", ["--only", *towers, "--repeats", "2"], tmp_path)
    plain, *scored = kept.tables["towers"]
    assert "transformers_percent" in plain.numbers
    assert plain.labels["score"] == "-"
    assert all(0 < row.numbers["score_percent"].middle < 100 for row in scored)
    assert plain.numbers["tokens"] == 4


def test_encoders_of_1d_tokens_and_the_sampling_beside_diffusers(tmp_path, monkeypatch):
    from benchmarks import image_tokenizers

    small = "image_size=16,width=32,layers=1"
    encoders = {
        "flextok": ("a", f"flextok:{small},head_width=16,stride=2,channels=4,latent_width=8,registers=8,tokens=4"),
        "textok": ("b", f"textok:{small},patch_size=4,tokens=4,heads=2,text_width=16"),
    }
    monkeypatch.setattr(image_tokenizers, "ENCODERS", encoders)
    half = {"channels": 4, "grid": (4, 4), "registers": 8, "layers": 1, "width": 32, "head_width": 16}
    monkeypatch.setattr(image_tokenizers, "DECODER", FlexTokDecoderConfig(**half))
    kept = run("image_tokenizers", ["--repeats", "2", "--frames", "3", "--steps", "3"], tmp_path)
    assert [row.numbers["tokens"] for row in kept.tables["encoders"]] == [4, 4]
    assert filled_columns(kept, "encoders") >= 5  # the memory is told on Linux only
    assert [row.numbers["largest"] <= 1e-4 for row in kept.tables["sampling"]] == [True, True]
    assert filled_columns(kept, "sampling") == 4


def test_a_kept_prefix_and_its_codecs(tmp_path):
    kept = run("prefix", ["--frames", "4", "--rounds", "1", "--videos", "1"], tmp_path)
    assert [row.numbers["same"] for row in kept.tables["prefix-times"]] == 2 * [8, 8, 7]
    assert filled_columns(kept, "prefix-times") == 8
    plain, *coded = kept.tables["prefix-codecs"]
    assert plain.numbers["same_percent"] == 100
    assert all(row.numbers["bits"] < plain.numbers["bits"] for row in coded)
    assert filled_columns(kept, "prefix-codecs") == 7


def test_a_kept_prefix_of_a_pretrained_llm(tmp_path, decoder_configs):
    save_llm(tmp_path / "llm", decoder_configs["llama"]())
    kept = run("prefix", ["--llm", str(tmp_path / "llm"), "--frames", "4", "--rounds", "1"], tmp_path)
    rows = kept.tables.pop("prefix-times")
    assert not kept.tables
    assert [row.numbers["same"] for row in rows] == [8, 8, 7]
    assert {row.labels["llm"] for row in rows} == {"llm"}
    batch, *_ = rows
    assert batch.numbers["without_s"] > 0 < batch.numbers["with_s"]


def test_directions_of_two_seeds(tmp_path):
    kept = run("directions", ["--seeds", "0", "1", "--steps", "2"], tmp_path)
    assert filled_columns(kept, "kept") == 4
    assert filled_columns(kept, "diffrate") == 3
    assert len(kept.tables["differences"]) == 16
    assert len(kept.tables["kept"][0].numbers["keep_2_percent"].values) == 2


@pytest.mark.slow
def test_costs_of_reducers(tmp_path):
    kept = run("reducers", ["--seeds", "--rounds", "1"], tmp_path)
    assert [row.numbers["tokens"] for row in kept.tables["reading"]] == [720, 180, 72]
    assert filled_columns(kept, "reading") == 5
    assert set(kept.tables) == {"selection", "reading"}


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_costs_beside_an_encoder_and_against_transformers(tmp_path):
    from benchmarks import selection_costs
    from benchmarks.stage_costs import LLMS

    kept = run("reducer_costs", ["--short"], tmp_path)
    images, video = kept.tables["selection-images"], kept.tables["selection-video"]
    places = dict.fromkeys(selection_costs.IMAGE_REDUCERS, ())
    for row in images:
        places[row.labels["reducer"].strip("`")] += (row.labels["where"],)
    inside = {text for text, where in places.items() if where == tuple(LLMS)}
    assert {text.partition(":")[0] for text in inside} == {"fastv", "pyramiddrop", "sparsevlm", "dart"}
    assert all(len(where) == 1 for text, where in places.items() if text not in inside)
    assert [row.labels["reducer"] for row in video] == [f"`{reducer}`" for reducer in selection_costs.VIDEO_REDUCERS]
    assert filled_columns(kept, "selection-images") == 6
    assert filled_columns(kept, "selection-video") == 5
    assert all(row.numbers["encoder_percent"].middle > 0 for row in (*images, *video))
    rows = kept.tables["reducer-reading"]
    assert filled_columns(kept, "reducer-reading") == 11
    assert [row.numbers["positions"] for row in rows[:5]] == [640, 128, 128, 128, 849]
    assert all(row.numbers["operations_ratio"] > 5 for row in rows[5:])
    layers = rows[3].numbers  # one of two layers reads everything
    assert 1.5 < layers["operations_ratio"] < 2
    by_same = [row.numbers["of_same_percent"] for row in rows if "of_same_percent" in row.numbers]
    assert len(by_same) == 7
    assert all(20 < percent < 130 for percent in by_same)


@pytest.mark.slow
def test_answers_behind_reducers(tmp_path, monkeypatch):
    from benchmarks import reducers

    monkeypatch.setattr(reducers, "selection_shares", lambda rounds: {})
    monkeypatch.setattr(reducers, "prefill", lambda rounds: [])
    monkeypatch.setattr(reducers, "KEPT", (4,))
    kept = run("reducers", ["--seeds", "0", "--videos", "2"], tmp_path)
    whole, *others = kept.tables["answers"]
    assert 0 <= whole.numbers["miou_percent"].middle <= 100
    assert [row.labels["reducer"] for row in others] == list(reducers.ROWS)
    assert all("miou_4_percent" in row.numbers for row in others)
    assert "miou_percent" in kept.tables["without-looking"][0].numbers


@pytest.mark.slow
def test_the_demo_is_asked(tmp_path):
    kept = run("demo", ["--rounds", "1", "--at-once", "2"], tmp_path)
    assert filled_columns(kept, "stages") == 3  # a second question is neither decoded, encoded nor reduced
    assert kept.tables["at-once"][0].labels["outcomes"] == "2 answered"
    assert kept.tables["sooner"][0].numbers["sooner_ratio"].middle > 1


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_a_long_row_is_shared_out(tmp_path):
    kept = run("ring", ["--positions", "700", "--rounds", "1"], tmp_path)
    assert [row.labels["recipe"] for row in kept.tables["ring"]][::3] == ["whole", "ring: 2"]
    assert filled_columns(kept, "ring") == 4


@pytest.mark.long
def test_the_server_is_asked_by_several_clients(tmp_path):
    kept = run("serving", ["--clients", "3", "--seconds", "2", "--video-s", "8"], tmp_path)
    assert [row.labels["videos"] for row in kept.tables["serving"]] == ["one video", "a new video each"]
    assert all(row.numbers["lost"] == 0 < row.numbers["clients_per_s"] for row in kept.tables["serving"])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the peak of a process is not told there")
@pytest.mark.parametrize("minutes", [(3, 18), pytest.param((10, 60), marks=pytest.mark.long)])
def test_a_long_video_takes_little_more_memory_than_a_sixth_of_it(minutes, tmp_path, monkeypatch):
    from benchmarks import long_video

    way = "one token of each place, over all frames"
    monkeypatch.setattr(long_video, "WAYS", {way: long_video.WAYS[way]})
    kept = run("long_video", ["--minutes", *map(str, minutes)], tmp_path)
    assert filled_columns(kept, "long-video") == 6
    assert [row.numbers["frames"] for row in kept.tables["long-video"]] == [60 * count for count in minutes]
    assert all(row.numbers["ratio"] <= 1.5 for row in kept.tables["long-video"])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_hosted_models_read_shortened_prompts(tmp_path):
    small = ["--layers", "2", "--width", "64", "--grids", "2", "--side", "4", "--rounds", "2"]
    kept = run("hosting", [*small, "--shares", "0.25"], tmp_path)
    assert filled_columns(kept, "hosted-reading") == 9
    whole, quarter = kept.tables["hosted-reading"]
    assert whole.numbers["positions"] - quarter.numbers["positions"] == 24
    assert quarter.numbers["operations_ratio"] > 1
    assert filled_columns(kept, "hosted-untouched") == 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_passes_of_the_llm(tmp_path):
    small = ["--layers", "1", "--width", "128", "--rounds", "1", "--images", "1", "--videos", "1"]
    kept = run("llm", small, tmp_path)
    assert [row.labels["pass"] for row in kept.tables["llm-writing"]] == [
        "transformers, float32",
        "transformers, bfloat16",
        "int8",
    ]
    *whole, pruned, tiles, hired = kept.tables["llm-reading"]
    assert {row.numbers["positions"] for row in whole} == {608}
    assert pruned.numbers["positions"] == 608 - 576 + 144
    ends_of_rows = 48
    assert tiles.numbers["positions"] == 32 + 5 * 576 + ends_of_rows
    assert 0 <= 32 + 576 + ends_of_rows - hired.numbers["positions"] <= 5  # a share of each partition is rounded down
    assert hired.numbers["of_ideal_percent"] > 0
    exact, int8 = kept.tables["llm-answers"]
    assert exact.numbers["same_percent"] == 100
    assert abs(exact.numbers["miou_percent"] - int8.numbers["miou_percent"]) < 10


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_the_script_for_accelerators_on_the_processor(tmp_path, monkeypatch):
    from benchmarks import gpu

    small = ("--shares", "0.25", "--layers", "2", "--width", "64", "--grids", "2", "--side", "4", "--rounds", "1")
    monkeypatch.setattr(gpu, "PARTS", {"hosting": small, "image_tokenizers": ("--only", "nothing")})
    kept = run("gpu", ["--device", "cpu", "--short", "--rounds", "1"], tmp_path)
    assert set(kept.tables) == {"step", "hosted-reading", "hosted-untouched"}
    assert kept.tables["step"][-1].numbers["step_ratio"].middle > 0
    assert kept.note.startswith("image_tokenizers: ended with code 2")


@pytest.mark.slow
def test_own_clips_are_learned_from(tmp_path):
    arguments = ["--model", "default", "--clips", "2", "--steps", "1", "--output", str(tmp_path / "run")]
    kept = run("finetune", arguments, tmp_path)
    assert filled_columns(kept, "finetune") == 5


@pytest.mark.long
def test_rewards_after_answers(tmp_path):
    kept = run("reinforce", ["--short", "--seeds", "1", "--output", str(tmp_path / "runs")], tmp_path)
    assert filled_columns(kept, "reinforce") == 4
    before, *after = kept.tables["reinforce"]
    assert [row.labels["way"] for row in after] == ["rewards", "answers", "rewards of other clips"]
    for row in after:
        gained = row.numbers["miou_percent"].middle - before.numbers["miou_percent"]
        assert row.numbers["more_points"].middle == pytest.approx(gained, abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_steps_of_two_models_in_turns():
    from benchmarks import train

    kept = Results("python benchmarks/train.py", {})
    train.measure(train.Setting(vocabulary=64, width=64, layers=1, positions=600, images=1, labelled=4), 2, kept)
    assert [row.labels["model"] for row in kept.tables["step"]] == ["mmllm", "transformers' Llava", "better by"]
    assert filled_columns(kept, "step") == 4
    ours = kept.tables["step"][0].numbers
    assert 0 < ours["above_gib"].middle < ours["peak_gib"].middle < 8
    assert len(ours["step_s"].values) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_a_clip_is_read_in_turns(short_clip, tmp_path):
    from benchmarks import video

    kept = Results("python benchmarks/video.py", {})
    peers = {"plain PyAV": video.plain_pyav}
    longer = video.made(short_clip, tmp_path / "longer.mp4", 120, (64, 64))
    video.fill_clips(kept, [longer], peers, rounds=2)
    video.fill_eight(kept, longer, 120, peers, rounds=2)
    video.fill_large(kept, longer, 120, ["mmllm"])
    clip, medians = kept.tables["clips"]
    assert 100 <= clip.numbers["needed"] <= clip.numbers["frames"] == 120
    assert medians.numbers["median_ratio"] == clip.numbers["fastest_ratio"].middle
    assert "plain_pyav_ratio" in kept.tables["eight"][1].numbers
    assert 0 < kept.tables["large"][0].numbers["extra_mib"] < 1000


@pytest.mark.long
def test_tokenizers_are_trained(tmp_path):
    kept = run("tokenizer_training", ["--short", "--output", str(tmp_path)], tmp_path)
    assert len(kept.tables["flextok-errors"]) == 2
    assert filled_columns(kept, "flextok-errors") == 5
    assert len(kept.tables["textok-errors"]) == 4
    assert filled_columns(kept, "textok-errors") == 4
    assert (tmp_path / "flextok-tokens.png").exists()


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process forget its peak")
def test_paths_are_measured_trained_and_not_trained_again(tmp_path):
    encoder = tmp_path / "encoder.safetensors"
    save_file(build("encoder", "tiny").state_dict(), encoder)
    arguments = ["--short", "--output", str(tmp_path / "run"), "--encoder", str(encoder)]
    kept = run("paths", [*arguments, "--only", "costs", "claims", "hybrid", "sound"], tmp_path)
    assert filled_columns(kept, "path-costs") == 10
    assert filled_columns(kept, "path-claims") == 7
    rows = {(row.labels["group"], row.labels["name"]): row.numbers for row in kept.tables["path-answers"]}
    assert rows["hybrid", "fast and slow tokens"]["beside"] == 8 * 4
    for name in ("its twin without cross-attention", "the same, asked without its slow tokens"):
        assert (rows["hybrid", name]["tokens"], rows["hybrid", name]["beside"]) == (8 * 4, 0)
    assert "miou_percent" in rows["sound", "the best constant answer"]
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("run/*/runs/*/model/config.json")}
    assert len(trained) == 5
    again = run("paths", [*arguments, "--only", "hybrid", "sound"], tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("run/*/runs/*/model/config.json")} == trained
    assert all(row.numbers == rows[row.labels["group"], row.labels["name"]] for row in again.tables["path-answers"])


def test_a_prefix_read_once_for_all_rows(tmp_path):
    kept = run("shared_prefix", ["--frames", "4", "--rows", "2", "--rounds", "1"], tmp_path)
    assert [row.numbers["same"] for row in kept.tables["shared-prefix"]] == [2, 2]
    assert filled_columns(kept, "shared-prefix") == 8


@pytest.mark.slow
def test_other_laws_before_and_after_training(tmp_path):
    options = ["--seeds", "1", "--videos", "2", "--steps", "2", "--rows", "2", "--held-out", "1",
               "--work", str(tmp_path / "runs")]  # fmt: skip
    kept = run("other_laws", options, tmp_path)
    rows = {(row.labels["method"], row.labels["training"]): row.numbers for row in kept.tables["other_laws"]}
    assert list(rows) == [
        (name, state)
        for name in ("hamburger", "skip-decode:tokens=4", "duo-llm:random_steps=100")
        for state in ("untrained", "trained")
    ] + [("one token a pass", "-")]
    assert all(0 <= numbers["work_percent"].middle <= 100 for numbers in rows.values())
    assert rows["hamburger", "trained"]["tokens_per_pass"].middle >= 1
    losses = {name: number.middle for name, number in kept.tables["routes"][0].numbers.items()}
    assert losses["oracle_nats"] <= losses["oracle_one_big_nats"]
    assert losses["oracle_nats"] <= min(losses["router_nats"], losses["all_big_nats"]) + 1e-5
    assert losses["oracle_nats"] <= losses["best_drawn_nats"] <= losses["mean_drawn_nats"]


def test_decoding_methods_beside_greedy(tmp_path):
    from benchmarks.asked import Asked, add_row
    from mmllm.errors import MmllmError

    options = ["--videos", "2", "--methods", "token-recycling:tree=13", "bild:layers=1"]
    kept = run("decoding", options, tmp_path)
    greedy, recycled, bild, again = kept.tables["decoding"]
    assert greedy.numbers["same_percent"] == recycled.numbers["same_percent"] == 100
    assert recycled.numbers["passes_ratio"] < 0.7
    assert again.numbers["passes_ratio"] < recycled.numbers["passes_ratio"]
    assert bild.labels["law"] == "another"
    wrong = Asked(answers=["other"] * 2)
    with pytest.raises(MmllmError, match="changed 2 answers"):
        add_row(kept, "decoding", "x", None, wrong, Asked(answers=["right"] * 2, seconds=1.0))


def save_llm(folder: Path, config: Any) -> None:
    """Saves a plain LLM with random weights and a tokenizer of few words."""
    from transformers import AutoModelForCausalLM

    from mmllm.preprocessing.closed_vocabulary import word_tokenizer

    tokenizer = word_tokenizer(["write", "a", "the", "of"])
    tokenizer.chat_template = "{% for message in messages %}<s> {{ message.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def test_decoding_methods_of_a_plain_llm(tmp_path, decoder_configs):
    save_llm(tmp_path / "llm", decoder_configs["llama"]())
    options = ["--llm", str(tmp_path / "llm"), "--texts", "3", "--tokens", "12"]
    kept = run("decoding", [*options, "--methods", "token-recycling", "prompt-lookup", "spectr:layers=1"], tmp_path)
    greedy, *others = kept.tables["decoding-text"]
    assert {row.numbers["same_percent"] for row in others} == {100}
    assert all(row.numbers["passes_ratio"] <= 1 for row in others)
    assert "passes" not in greedy.numbers
    assert "miou_percent" not in greedy.numbers


@pytest.mark.slow
def test_drafts_before_and_after_their_training(tmp_path):
    options = ["--videos", "2", "--held-out", "1", "--seeds", "1", "--steps", "2", "--rows", "4",
               "--drafts", "flash", "fastdraft", "ppd"]  # fmt: skip
    kept = run("drafts", [*options, "--work", str(tmp_path / "work")], tmp_path)
    states = [(row.labels["draft"], row.labels["state"]) for row in kept.tables["drafts"]]
    assert states == [
        ("flash", "untrained"), ("flash", "trained"), ("fastdraft", "untrained"),
        ("fastdraft", "answers of the data"), ("fastdraft", "trained"), ("ppd", "untrained"), ("ppd", "trained"),
    ]  # fmt: skip
    assert [(row.labels["draft"], row.labels["state"]) for row in kept.tables["ahead"]] == states[-2:]
    assert all(row.numbers["top1_at2_percent"] <= row.numbers["top10_at2_percent"] for row in kept.tables["ahead"])
    assert all(row.numbers["tokens_per_pass"] >= 1 for row in kept.tables["drafts"])


@pytest.mark.long
def test_what_pruning_does_to_when(tmp_path, monkeypatch):
    from benchmarks import when

    monkeypatch.setattr(when, "BUDGETS", {"25": 0.25})
    kept = run("when", ["--seeds", "0", "--videos", "4", "--rounds", "1"], tmp_path)
    whole, *others = kept.tables["when-budgets"]
    assert 0 <= whole.numbers["whole_25_percent"].middle <= 100
    assert [row.labels["reducer"] for row in others] == [f"`{name}`" for name in when.REDUCERS]
    assert filled_columns(kept, "when-groups") == 9


@pytest.mark.long
def test_every_policy_of_the_cache_has_settings_or_a_reason(tmp_path):
    context = import_module("benchmarks.context")
    assert set(parts("context")) <= set(context.SETTINGS) | set(context.LEFT_OUT)
    kept = run("context", ["--seeds", "0", "1", "--videos", "1", "--rounds", "1"], tmp_path)
    everything, *policies = kept.tables["context-budgets"]
    assert everything.numbers["held_25_percent"] == 100
    assert {row.labels["policy"] for row in policies} >= {"`random`", "`window`", "`streaming`", "`h2o`", "`keyformer`"}
    assert filled_columns(kept, "context-budgets") == 9
    (window,) = [row for row in policies if row.labels["policy"] == "`window`"]
    held = [window.numbers[f"held_{budget}_percent"] for budget in context.BUDGETS]
    assert held == sorted(held, reverse=True)
    assert held[-1] < 50


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_stream_is_watched_and_scored(tmp_path):
    kept = run("watch", ["--hours", "0.02", "--seed", "5", "--idle", "1"], tmp_path)
    (events,) = kept.tables["watch-events"]
    assert events.numbers["recall_percent"] >= 50
    (memory,) = kept.tables["watch-memory"]
    # in so short a stream the allocator still grows; tests/watch/test_watcher.py counts what is held
    halves = [memory.numbers[name] for name in ("first_mib", "second_mib")]
    assert memory.numbers["growth_percent"] == pytest.approx(100 * (halves[1] / halves[0] - 1), abs=0.01)
    assert min(halves) > 100
    assert memory.numbers["hours"] == pytest.approx(0.02, rel=0.05)


def test_reports_are_scored_by_overlap_and_by_when_they_come():
    watch = import_module("benchmarks.watch")
    truth = [Span(10.0, 14.0), Span(30.0, 34.0), Span(50.0, 54.0)]
    reports = [(Span(10.0, 14.5), 15.0), (Span(30.0, 34.0), 37.0), (Span(80.0, 84.0), 85.0)]
    scores = watch.event_scores(truth, reports)
    assert scores.recall == pytest.approx(1 / 3)
    assert scores.precision == pytest.approx(2 / 3)
    assert (scores.median_after_s, scores.longest_after_s) == (2.0, 3.0)
    assert watch.event_scores([], []).recall == 1
