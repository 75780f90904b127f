"""`mmllm encode DATA --output DIR`: many videos, shard by shard, in one process, in several and with Ray Data."""

import json
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from mmllm.cli import main
from mmllm.commands.encode_many import encode_many
from mmllm.datasets.formats import read_annotations
from mmllm.datasets.shard_writing import planned, write_shards
from mmllm.errors import InputError
from mmllm.evaluation.answering_many import AnswerQuestions
from mmllm.evaluation.samples import read_samples
from mmllm.train.encoding import EncodeFeatures
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.metrics import read_metrics

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(own_clips, tmp_path_factory):
    """The own clips in two shards and more."""
    folder = tmp_path_factory.mktemp("shards")
    items = read_annotations(own_clips / "clips.jsonl").items
    size = max(path.stat().st_size for path in (own_clips / "videos").iterdir())
    write_shards({"train": planned(items, "train", 3 * size)}, folder)
    return folder


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    return ended.value.code


def batch_of(data):
    questions = read_annotations(data).items
    return {
        "video": np.array([str(question.video) for question in questions], dtype=object),
        "question": np.array([question.question for question in questions], dtype=object),
    }


def test_a_training_reads_the_features(shards, tiny_base, tmp_path, capsys, monkeypatch):
    assert run("encode", shards, "--model", tiny_base, "--output", tmp_path / "run" / "features", "--json") == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["videos"], done["failed"]) == (6, {})
    assert done["shards"] == len(list(shards.glob("*.tar"))) > 1
    config = FinetuneConfig(model=str(tiny_base), training=FinetuneTraining(max_steps=2, batch_size=2, logging_steps=1))
    finetune(config, shards, tmp_path / "fresh", workers=1)

    def encoded_again(*arguments):
        raise AssertionError("it has features of this video")

    monkeypatch.setattr("mmllm.train.features.FeatureCache._encode", encoded_again)
    finetune(config, shards, tmp_path / "run", workers=1)
    losses = [[line["loss"] for line in read_metrics(tmp_path / name / "language" / "metrics.jsonl") if "loss" in line]
              for name in ("fresh", "run")]  # fmt: skip
    assert losses[0] == losses[1]


def test_a_stopped_encoding_goes_on_with_the_next_shard(shards, tiny_base, tmp_path, monkeypatch):
    asked = []
    take = EncodeFeatures.__call__

    def stopped(self, batch):
        asked.append({str(video).rpartition("/")[0] for video in batch["video"]})
        if len(asked) == 2:
            raise KeyboardInterrupt
        return take(self, batch)

    monkeypatch.setattr(EncodeFeatures, "__call__", stopped)
    with pytest.raises(KeyboardInterrupt):
        encode_many(shards, tmp_path, str(tiny_base))
    count = encode_many(shards, tmp_path, str(tiny_base))["shards"]
    assert asked[1] == asked[2], "the shard that was not done"
    assert len(asked) == count + 1
    encode_many(shards, tmp_path, str(tiny_base))
    assert len(asked) == count + 1, "nothing is left to do"


def test_answers_are_those_of_an_evaluation(shards, tiny_base, tmp_path, monkeypatch):
    from mmllm.commands.evaluate import evaluate

    words = ["encode", shards, "--model", tiny_base, "--answers", "--max-new-tokens", "6", "--output", tmp_path / "a"]
    assert run(*words) == 0
    evaluate(str(tiny_base), shards, output=tmp_path / "eval", max_new_tokens=6, json=True)
    ours, theirs = (
        {sample.question_id: sample for sample in read_samples(tmp_path / name / "samples.jsonl")}
        for name in ("a", "eval")
    )
    assert ours == theirs
    assert run("score", tmp_path / "a" / "samples.jsonl") == 0
    # going on: only what is missing is asked
    parts = sorted((tmp_path / "a" / "parts").iterdir())
    before = (tmp_path / "a" / "samples.jsonl").read_bytes()
    parts[0].unlink()
    (tmp_path / "a" / "samples.jsonl").unlink()
    asked, take = [], AnswerQuestions.__call__

    def spied(self, batch):
        asked.extend(batch["video"])
        return take(self, batch)

    monkeypatch.setattr(AnswerQuestions, "__call__", spied)
    assert run(*words) == 0
    assert (tmp_path / "a" / "samples.jsonl").read_bytes() == before
    assert {str(video).rpartition("/")[0] for video in asked} == {str(shards / f"{parts[0].stem}.tar")}


def test_answers_of_another_model_or_other_data_are_refused(shards, own_clips, tiny_base, tmp_path):
    encode_many(shards, tmp_path, str(tiny_base), answers=True, max_new_tokens=2)
    with pytest.raises(InputError, match="another model or other settings"):
        encode_many(shards, tmp_path, str(tiny_base), answers=True, max_new_tokens=3)
    file = sorted((tmp_path / "parts").iterdir())[0]
    file.write_text(file.read_text().replace('"question": "', '"question": "So, '))
    with pytest.raises(InputError, match="has answers to other questions"):
        encode_many(shards, tmp_path, str(tiny_base), answers=True, max_new_tokens=2)


def together_encode(data, folder, model):
    encode_many(data, folder / "features", model)
    encode_many(data, folder / "answers", model, answers=True, max_new_tokens=2)


def test_two_processes_share_the_shards(together, shards, tiny_base, tmp_path):
    together_encode(shards, tmp_path / "one", str(tiny_base))
    together(2, together_encode, shards, tmp_path / "two", str(tiny_base))
    files = [
        sorted(path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")) for name in ("one", "two")
    ]
    assert files[0] == files[1]
    texts = [(tmp_path / name / "answers" / "samples.jsonl").read_text() for name in ("one", "two")]
    assert texts[0] == texts[1]


def test_a_bad_video_is_an_error_of_its_own_row(own_clips, tiny_base, tmp_path, capsys):
    data = shutil.copytree(own_clips, tmp_path / "data")
    bad = sorted((data / "videos").iterdir())[2]
    bad.write_bytes(b"no video")
    for flags in ([], ["--answers", "--max-new-tokens", "2"]):
        output = tmp_path / f"out{len(flags)}"
        code = run("encode", data / "clips.jsonl", "--model", tiny_base, "--output", output, "--json", *flags)
        done = json.loads(capsys.readouterr().out)
        assert (code, done["videos"], len(done["failed"])) == (3, 6, 1)
        assert bad.stem in next(iter(done["failed"]))
    samples = read_samples(tmp_path / "out3" / "samples.jsonl")
    assert [bool(sample.error) for sample in samples].count(True) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--output", "clips.kv"], "must be a folder"),
        (["--output", "out", "--codec", "kvcode"], "for one video: leave them out"),
        (["--output", "out", "--frames", "4"], "for one video: leave them out"),
        (["--output", "out", "--answers", "--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--output", "out", "--workers", "0"], "--workers 0: must be from 1"),
        (["--output", "out", "--workers", "-1"], "--workers -1: must be from 1"),
    ],
)
def test_what_does_not_fit_many_videos_is_refused(own_clips, tiny_base, tmp_path, capsys, monkeypatch, words, why):
    monkeypatch.chdir(tmp_path)
    assert run("encode", own_clips / "clips.jsonl", "--model", tiny_base, *words) == 2
    assert why in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_one_video_takes_no_flags_of_many(short_clip, tmp_path, capsys):
    for flag in (["--answers"], ["--workers", "2"]):
        assert run("encode", short_clip, "--output", tmp_path / "a.kv", *flag) == 2
        assert "for annotations and shards, not for one video" in capsys.readouterr().err


def test_annotations_without_questions_are_refused(tmp_path, tiny_base):
    (tmp_path / "talk.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(InputError, match="has no question about a video: line 1"):
        encode_many(tmp_path / "talk.jsonl", tmp_path / "out", str(tiny_base))


def applied(function, batch):
    return function(batch)


@pytest.mark.parametrize("kind", ["features", "answers"])
def test_the_objects_are_sent_to_other_processes(kind, shards, tiny_base, tmp_path):
    batch = batch_of(shards)
    encode = EncodeFeatures(tiny_base, tmp_path) if kind == "features" else AnswerQuestions(tiny_base, 4)
    here = encode(batch)
    assert len(pickle.dumps(encode)) < 2000, "the model does not travel"
    halves = [{name: column[part] for name, column in batch.items()} for part in (slice(0, 3), slice(3, 6))]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(applied, [encode, encode], halves))
    for name, column in here.items():
        assert [*parts[0][name], *parts[1][name]] == list(column), name
    assert list(here["error"]) == [""] * 6
    assert list(here["video"]) == list(batch["video"])


@pytest.mark.parametrize("kind", ["features", "answers"])
def test_a_row_that_names_no_video_has_an_error_and_a_missing_column_is_named(
    kind, short_clip, tiny_base, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write = EncodeFeatures(tiny_base, tmp_path / "out") if kind == "features" else AnswerQuestions(tiny_base, 4)
    videos = np.array(["", str(short_clip), None, np.nan], dtype=object)
    done = write({"video": videos, "question": np.array(["When?"] * 4, dtype=object)})
    assert list(done["error"]) == [
        "video is '': must be the path of a video",
        "",
        "video is None: must be the path of a video",
        "video is nan: must be the path of a video",
    ]
    with pytest.raises(InputError, match=r"the batch has no column video.*; it has path"):
        write({"path": videos})


@pytest.mark.timeout(600)
def test_with_ray_data(shards, tiny_base, tmp_path):
    """Two local workers of Ray, each with its own model."""
    ray = pytest.importorskip("ray", reason="not installed: pip install 'mmllm[ray]'")
    from ray.data import ActorPoolStrategy, from_items

    batch = batch_of(shards)
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        for kind, given in ((EncodeFeatures, [str(tiny_base), str(tmp_path)]), (AnswerQuestions, [str(tiny_base), 4])):
            mapped = from_items(rows, override_num_blocks=3).map_batches(
                kind, fn_constructor_args=given, batch_size=2, compute=ActorPoolStrategy(size=2), num_cpus=1
            )
            done = {row["video"]: row for row in mapped.take_all()}
            here = kind(*given)(batch)
            for number, video in enumerate(batch["video"]):
                assert done[video]["error"] == ""
                if kind is EncodeFeatures:
                    assert done[video]["features"] == here["features"][number]
                else:
                    assert done[video]["text"] == here["text"][number]
                    assert [list(ends) for ends in done[video]["spans"]] == here["spans"][number]
    finally:
        ray.shutdown()
