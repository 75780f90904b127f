"""What pruning does to *when*, asked of other models on other data, in the forms of the published benchmarks."""

import json

import pytest
from own_clips import own_clips, own_rows

from benchmarks import when
from benchmarks.layouts import markdown
from benchmarks.results import Results
from mmllm.errors import InputError
from mmllm.inference.answering import VideoQA

__all__ = ["own_clips"]  # a fixture


@pytest.fixture(scope="module")
def rows(own_clips):
    """A question with its interval for each of six rendered clips."""
    return [{**row, "vid": row["id"], "length": 11.0} for row in own_rows(own_clips)]


def charades(rows, folder):
    """Charades-STA's lines beside its table of lengths."""
    (folder / "lengths.csv").write_text("id,length\n" + "".join(f"{row['vid']},{row['length']}\n" for row in rows))
    lines = [f"{row['vid']} {row['spans'][0][0]} {row['spans'][0][1]}##a circle spins.\n" for row in rows]
    (folder / "charades.txt").write_text("".join(lines))
    return [folder / "charades.txt", "--durations", folder / "lengths.csv"]


def activitynet(rows, folder):
    """ActivityNet Captions' object of videos."""
    videos = {
        row["vid"]: {"duration": row["length"], "timestamps": row["spans"], "sentences": [row["question"]]}
        for row in rows
    }
    (folder / "captions.json").write_text(json.dumps(videos))
    return [folder / "captions.json"]


def qvhighlights(rows, folder):
    """QVHighlights' rows."""
    lines = [
        {"qid": number, "query": row["question"], "vid": row["vid"], "duration": row["length"],
         "relevant_windows": [[span[0] // 2 * 2, span[1] // 2 * 2 + 2] for span in row["spans"]]}
        for number, row in enumerate(rows)
    ]  # fmt: skip
    (folder / "val.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return [folder / "val.jsonl"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, untrained_qa):
    folder = tmp_path_factory.mktemp("model")
    for part in (untrained_qa.model, untrained_qa.processor):
        part.save_pretrained(folder)
    return folder


def tables(folder, *arguments):
    """The tables that the script writes; they can be shown."""
    when.main([*map(str, arguments), "--rounds", "1", "--json", str(folder / "out.json")])
    kept = Results.read(folder / "out.json").tables
    assert all(len(markdown(name, rows).splitlines()) == len(rows) + 2 for name, rows in kept.items())
    return kept


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(when, "BUDGETS", {"25": 0.25})
    monkeypatch.setattr(when, "REDUCERS", ("uniform", "random", "prefix", "fastv"))


@pytest.mark.slow
@pytest.mark.parametrize("form", [charades, activitynet, qvhighlights])
def test_tables_of_own_data(form, rows, own_clips, model, few, tmp_path):
    data = ["--data", *form(rows, tmp_path), "--videos-dir", own_clips / "videos"]
    kept = tables(tmp_path, "--model", model, *data, "--seeds", 0, 1)
    table = kept["when-budgets"]
    assert [row.labels["reducer"] for row in table] == ["none taken away", "`uniform`", "`random`", "`fastv`"]
    assert all(0 <= row.numbers["whole_25_percent"].middle <= 100 for row in table)
    assert len(table[0].numbers["whole_25_percent"].values) == 2, "a mean for each seed"
    groups = kept["when-groups"]
    assert groups[1].numbers["read_tokens"] <= groups[0].numbers["read_tokens"]
    assert groups[0].numbers["first_token_ratio"].middle == 1
    memory = kept["when-memory"]
    assert [row.labels for row in memory] == [row.labels for row in table]
    assert all(row.numbers["memory_25_mib"] > 0 for row in memory)


def test_memory_alone_asks_no_question(rows, own_clips, model, few, monkeypatch, tmp_path):
    monkeypatch.setattr(when, "answers", None)
    monkeypatch.setattr(when, "extra_bytes_on", lambda device, work: work() or 3 * 2**20)
    data = ["--data", *activitynet(rows[:2], tmp_path), "--videos-dir", own_clips / "videos"]
    kept = tables(tmp_path, "--model", model, *data, "--seeds", 0, "--only", "memory")
    assert list(kept) == ["when-memory"]
    assert [row.numbers for row in kept["when-memory"]] == [{"memory_25_mib": 3.0}] * 4


@pytest.mark.slow
def test_tables_of_a_hosted_model(rows, own_clips, few, monkeypatch, tmp_path):
    from tiny_models import CASES
    from tiny_processors import processor

    monkeypatch.setattr(when, "REDUCERS", ("evs", "fastv"))
    CASES["qwen3_vl"].fresh().save_pretrained(tmp_path / "model")
    processor("qwen3_vl").save_pretrained(tmp_path / "model")
    data = ["--data", *activitynet(rows[:2], tmp_path), "--videos-dir", own_clips / "videos"]
    kept = tables(tmp_path, "--model", tmp_path / "model", *data, "--seeds", 0)
    whole, evs, fastv = kept["when-groups"]
    assert evs.numbers["read_tokens"] < fastv.numbers["read_tokens"] == whole.numbers["read_tokens"]


def test_every_reducer_of_the_tables_has_a_setting_on_the_packaged_model():
    from mmllm.tuning.settings import ReducerSettings

    made = when.variants(ReducerSettings(VideoQA.from_pretrained("default")), seed=3)
    missing = {f"{name} {budget}" for name in when.REDUCERS for budget in when.BUDGETS} - set(made)
    assert missing == {"pool 50", "pool 12_5"}
    assert made["random 25"].model.reducers[0].config.seed == 3


def test_too_few_clips_are_refused(rows, own_clips, model, few, tmp_path):
    arguments = ["--model", model, "--data", *activitynet(rows[:2], tmp_path), "--videos-dir", own_clips / "videos"]
    with pytest.raises(InputError, match="2 clips with questions about time are too few for 3 seeds"):
        when.main(list(map(str, arguments)))
