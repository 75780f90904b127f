"""Streams of the Hugging Face library: every sample once an epoch, exact resuming, and what cannot be read."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest

from mmllm.datasets.annotations import RowReader
from mmllm.datasets.formats import dialogues_of, read_annotations
from mmllm.datasets.shard_writing import planned, write_shards
from mmllm.datasets.streams import VideoStream, is_stream, items_of
from mmllm.errors import ConfigError, InputError
from mmllm.runtime import processes
from mmllm.train.data import DataConfig
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune
from mmllm.train.metrics import read_metrics
from mmllm.train.recipe import Recipe
from mmllm.train.run import train
from mmllm.train.stages.language import LanguageTraining
from mmllm.train.streamed import StreamDraws
from mmllm.video.tar_members import members_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch, tmp_path_factory):
    """The library keeps its files here and asks nobody."""
    from datasets import config

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "hf")


@pytest.fixture(scope="module")
def folder(own_clips, tmp_path_factory):
    """Six clips with seven questions in six shards for training; two of them for validation."""
    folder = tmp_path_factory.mktemp("stream")
    rows = [json.loads(line) for line in (own_clips / "clips.jsonl").read_text().splitlines()]
    text = {"id": "text", "video": rows[2]["video"], "question": "What is it?", "answer": "A clip.", "family": "text"}
    none = {"id": "none", "video": rows[0]["video"], "question": "When does it snow?", "answer": "No.", "spans": []}
    file = own_clips / "seven.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [none, *rows, text]))
    items = read_annotations(file).items
    write_shards({"train": planned(items, "train", 1), "val": planned(items[:3], "val", 1)}, folder)
    return folder


@pytest.fixture
def name(folder):
    return f"hf:{folder}"


QUESTIONS = 8


def draws_of(name, folder, batch=2, seed=0):
    return StreamDraws(VideoStream(name, "train"), seed, batch, folder)


def told(dialogue):
    return dialogue.record_id, [(turn.role, turn.stamped) for turn in dialogue.turns]


def test_a_stream_has_the_questions_and_the_videos_of_its_shards(folder, name, tmp_path):
    assert is_stream(name)
    assert not is_stream(folder)
    stored = dialogues_of(read_annotations(folder / "train")).items
    reader = RowReader(folder, "raise")
    for sample in VideoStream(name, "train").samples():
        for item in items_of(sample, tmp_path / sample.key, reader):
            dialogue = item if hasattr(item, "turns") else item.dialogue()
            original = next(other for other in stored if other.record_id == dialogue.record_id)
            assert told(dialogue) == told(original)
            assert sample.video[4:8] == b"ftyp"
    assert len(reader.result.items) == len(stored) == QUESTIONS
    evaluated = [sample.key for sample in VideoStream(name, "eval").samples()]
    assert len(evaluated) == 2


def test_every_question_comes_once_an_epoch_and_epochs_differ(name, tmp_path):
    draws = draws_of(name, tmp_path)
    ids = [draws.dialogue(number).record_id for number in range(4 * QUESTIONS)]
    epochs = [ids[start : start + QUESTIONS] for start in range(0, len(ids), QUESTIONS)]
    assert all(len(set(epoch)) == QUESTIONS for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert [draws_of(name, tmp_path / "b").dialogue(number).record_id for number in range(3)] == ids[:3]


@pytest.mark.parametrize("noted", [1, 5, 1000])
def test_it_goes_on_anywhere(name, tmp_path, monkeypatch, noted):
    monkeypatch.setattr("mmllm.train.streamed.NOTED", noted)
    draws = draws_of(name, tmp_path)
    expected = [told(draws.dialogue(number)) for number in range(30)]
    with draws.notes.open("a") as file:
        file.write('{"next": 1')  # a process that was killed
    for begin in (29, 17, 16, 8, 1):
        again = draws_of(name, tmp_path)
        assert [told(again.dialogue(number)) for number in range(begin, 30)] == expected[begin:]
    assert told(again.dialogue(3)) == expected[3], "also back"


def test_notes_spare_what_came_before(name, tmp_path, monkeypatch):
    monkeypatch.setattr("mmllm.train.streamed.NOTED", 4)
    draws = draws_of(name, tmp_path)
    for number in range(24):
        draws.dialogue(number)
    again, read = draws_of(name, tmp_path), []
    take = again._file
    monkeypatch.setattr(again, "_file", lambda sample: read.append(sample.key) or take(sample))
    again.dialogue(23)
    assert len(read) <= 4


def test_a_replacement_is_one_that_follows(name, tmp_path):
    draws = draws_of(name, tmp_path)
    ids = [draws.dialogue(number).record_id for number in range(6)]
    again = draws_of(name, tmp_path / "b")
    assert [again.dialogue(2, attempt).record_id for attempt in range(3)] == ids[2:5]
    assert [again.dialogue(number).record_id for number in (3, 4)] == ids[3:5]


@pytest.mark.parametrize(("ranks", "batch"), [(2, 1), (2, 3), (3, 2), (4, 1)])
def test_processes_share_the_samples(name, tmp_path, monkeypatch, ranks, batch):
    monkeypatch.setattr(processes, "count", lambda: ranks)
    keys, ids = [], []
    for rank in range(ranks):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        epoch = list(VideoStream(name, "train").samples(seed=0, rank=rank, ranks=ranks))
        keys += [sample.key for sample in epoch]
        first = [row["id"] for sample in epoch for row in sample.text["rows"]]
        draws, own = draws_of(name, tmp_path / str(rank), batch), []
        for number in range(60):
            if number // batch % ranks == rank:
                own.append(draws.dialogue(number).record_id)
            else:
                with pytest.raises(InputError, match="another process"):
                    draws.dialogue(number)
        assert own[: len(first)] == first
        ids += first
    assert len(keys) == len(set(keys)) == 6
    assert len(ids) == len(set(ids)) == QUESTIONS


def settings(base, **fields):
    fields = {"max_steps": 4, "batch_size": 2, "save_steps": 2, "logging_steps": 1, "lora_rank": 4, **fields}
    return FinetuneConfig(model=str(base), training=FinetuneTraining(**fields))


def losses(run):
    return [line["loss"] for line in read_metrics(run / "language" / "metrics.jsonl") if "loss" in line]


def test_a_stopped_training_goes_on(name, tiny_base, tmp_path):
    config = settings(tiny_base)
    finetune(config, name, tmp_path / "one", workers=0)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "language" / "checkpoints" / "checkpoint-4")
    shutil.rmtree(tmp_path / "two" / "model")
    finetune(config, name, tmp_path / "two", workers=0)
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    with pytest.raises(ConfigError, match="stream"):
        finetune(config, f"{name}#val", tmp_path / "two", workers=0)


def shared(config, name, output):
    finetune(config, name, output, workers=0)


def test_two_processes_train_from_a_stream(together, name, tiny_base, tmp_path):
    together(2, shared, settings(tiny_base, max_steps=2), name, tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 2
    left = {file.name for file in (tmp_path / "run" / "stream").iterdir()}
    assert all(name.startswith("state-") for name in left), "videos of a stream are kept nowhere"
    with pytest.raises(ConfigError, match="processes: 2 -> 1"):
        finetune(settings(tiny_base, max_steps=2), name, tmp_path / "run", workers=0)


def test_the_current_video_is_removed_at_the_end(name, tmp_path):
    draws = draws_of(name, tmp_path)
    draws.dialogue(0)
    (tmp_path / "0.mov").write_bytes(b"of a killed process")
    (tmp_path / "11.mp4").write_bytes(b"of another process")
    assert (tmp_path / "0.mp4").exists()
    draws.end()
    assert [file.name for file in tmp_path.iterdir() if not file.name.startswith("state-")] == ["11.mp4"]
    assert draws.dialogue(0).media[0].path.exists()


def test_a_recipe_trains_from_a_stream(name, tiny_parts, tmp_path):
    recipe = Recipe(
        name="stream",
        data=DataConfig(root=name),
        model=tiny_parts,
        stages=(LanguageTraining(batch_size=2, questions_per_video=1, max_steps=2, save_steps=2, logging_steps=1),),
    )
    train(recipe, tmp_path / "run", workers=0)
    assert len(losses(tmp_path / "run")) == 2
    with pytest.raises(ConfigError, match="talk"):
        DataConfig(root=name, talk=0.1)


def test_a_bad_video_is_set_aside_and_the_next_one_comes_twice(folder, tiny_base, tmp_path, caplog):
    copied = tmp_path / "copied"
    copied.mkdir()
    for tar in folder.glob("train-*.tar"):
        shutil.copy(tar, copied)
    tar = copied / "train-000001.tar"
    contents = [(name, member.read()) for name, member in members_of(tar).items()]
    with tarfile.open(tar, "w") as archive:
        for member, data in contents:
            info = tarfile.TarInfo(member)
            data = b"no video" if member.endswith(".mp4") else data
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    finetune(settings(tiny_base), f"hf:{copied}", tmp_path / "run", workers=0)
    assert len(losses(tmp_path / "run")) == 4
    assert "set aside" in caplog.text


def test_an_evaluation_of_a_stream(name, folder, tiny_base, tmp_path):
    from mmllm.commands.evaluate import evaluate

    for kind, data in (("stream", name), ("shards", folder / "val")):
        assert evaluate(str(tiny_base), Path(data), output=tmp_path / kind, max_new_tokens=6, json=True) == 0
    texts = [(tmp_path / kind / "samples.jsonl").read_text() for kind in ("stream", "shards")]
    assert texts[0] == texts[1]
    assert evaluate(str(tiny_base), Path(name), output=tmp_path / "one", limit=1, max_new_tokens=6, json=True) == 0
    assert len((tmp_path / "one" / "samples.jsonl").read_text().splitlines()) == 2
    with pytest.raises(InputError, match="--videos: cannot be used with hf:"):
        evaluate(str(tiny_base), Path(name), videos=tmp_path)


def test_what_is_no_stream_of_videos_is_refused(name, folder, own_clips, tiny_base, tmp_path):
    for wrong, reason in (
        (f"{name}#tset", "there is no split 'tset'"),
        (f"hf:{tmp_path / 'none'}", "cannot be opened"),
        ("hf:nobody/none", "cannot be opened"),
        ("hf:", "write the name"),
    ):
        with pytest.raises(InputError, match=reason):
            VideoStream(wrong, "train")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "train.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(InputError, match=r"has no column with videos.*it has question, answer"):
        VideoStream(f"hf:{tmp_path / 'texts'}", "train")
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "train.jsonl").write_text('{"question": "a", "answer": "b", "video": "a.mp4"}\n')
    with pytest.raises(InputError, match="'video' must hold bytes, not str"):
        next(VideoStream(f"hf:{tmp_path / 'names'}", "train").samples())
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "train.jsonl").write_text('{"video": "a.mp4"}\n')
    with pytest.raises(InputError, match="neither a column 'json' nor 'question'"):
        VideoStream(f"hf:{tmp_path / 'videos'}", "train")
    with pytest.raises(InputError, match="leave --media and --fps out"):
        finetune(settings(tiny_base), name, tmp_path / "run", fps=2.0)


def test_a_stream_that_breaks_off_is_told(folder, tmp_path):
    for tar in folder.glob("train-*.tar"):
        (tmp_path / tar.name).write_bytes(tar.read_bytes())
    last = tmp_path / "train-000005.tar"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    with pytest.raises(InputError, match=r"the stream broke off: .*train-000005\.tar: this is no whole tar file"):
        list(VideoStream(f"hf:{tmp_path}", "train").samples())


def test_a_video_without_json_is_a_bad_row(folder, tmp_path):
    (tmp_path / "train-000000.tar").write_bytes((folder / "train-000000.tar").read_bytes())
    damaged = (folder / "train-000001.tar").read_bytes().replace(b".json", b".jsoX")
    (tmp_path / "train-000001.tar").write_bytes(damaged)
    reader = RowReader(tmp_path, "skip")
    for sample in VideoStream(f"hf:{tmp_path}", "train").samples():
        items_of(sample, tmp_path / "a.mp4", reader)
    (problem,) = reader.result.bad
    assert problem.reason.endswith(".json is missing")
    assert len(reader.result.items) == 2


@pytest.mark.parametrize("suffixes", [["mp4"] * 5 + ["mov"], ["mkv", "mp4"] * 3])
def test_videos_of_several_suffixes_are_streamed(folder, tmp_path, suffixes):
    for tar, suffix in zip(sorted(folder.glob("train-*.tar")), suffixes, strict=True):
        renamed(tar, tmp_path / tar.name, lambda name, suffix=suffix: name.replace(".mp4", f".{suffix}"))
    reader, samples = RowReader(tmp_path, "raise"), list(VideoStream(f"hf:{tmp_path}", "train").samples())
    assert [sample.suffix for sample in samples] == [f".{suffix}" for suffix in suffixes]
    for sample in samples:
        items_of(sample, tmp_path / "a", reader)
    assert len(reader.result.items) == QUESTIONS


def test_suffixes_that_the_library_refuses_come_with_a_remedy(monkeypatch):
    def load_dataset(*name, **options):
        raise ValueError("the files in the archive don't share the same prefix or the same types.")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"the same types\.; .*rename them, or download the folder"):
        VideoStream("hf:somebody/clips", "train")


def test_shards_as_tar_writes_them_are_streamed(folder, tmp_path):
    for tar in folder.glob("train-*.tar"):
        renamed(tar, tmp_path / tar.name, lambda name: f"./raw/{name}")
    expected = [(sample.key, sample.video, sample.text) for sample in VideoStream(f"hf:{folder}", "train").samples()]
    samples = VideoStream(f"hf:{tmp_path}", "train").samples()
    assert [(sample.key.removeprefix("raw/"), sample.video, sample.text) for sample in samples] == expected
    (one,) = VideoStream(f"hf:{tmp_path / 'train-000000.tar'}", "train").samples()
    assert one.video == expected[0][1]


def renamed(tar, to, rename):
    """Writes the files of a tar file to another one, under other names and in the order of these."""
    with tarfile.open(to, "w") as archive:
        for name, member in sorted(members_of(tar).items()):
            info = tarfile.TarInfo(rename(name))
            info.size = member.size
            archive.addfile(info, member.open())


def test_rows_of_other_readers_have_their_video_in_any_column(own_clips, tmp_path):
    from datasets import Dataset

    clip = next((own_clips / "videos").glob("*.mp4")).read_bytes()
    asked = {"question": "When?", "answer": "Now.", "spans": [[1.0, 2.0]]}
    rows = [{**asked, "id": column or "none", "mp4": None, "mov": None} | ({column: clip} if column else {})
            for column in ("mp4", "", "mov")]  # fmt: skip
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    reader, samples = RowReader(tmp_path, "skip"), list(VideoStream(f"hf:{tmp_path}", "train").samples())
    assert [(sample.suffix, sample.video) for sample in samples] == [(".mp4", clip), ("", b""), (".mov", clip)]
    for sample in samples:
        items_of(sample, tmp_path / "a", reader)
    assert [str(problem) for problem in reader.result.bad] == ["none: has no video: nothing in mp4 or mov"]
    assert len(reader.result.items) == 2


def test_parquet_with_bytes_is_read(own_clips, tmp_path):
    from datasets import Dataset

    clip = next((own_clips / "videos").glob("*.mp4"))
    rows = [{"video": clip.read_bytes(), "question": "When?", "answer": "Now.", "spans": [[1.0, 2.0]], "id": "a"}]
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    (sample,) = VideoStream(f"hf:{tmp_path / 'data'}", "train").samples()
    (item,) = items_of(sample, tmp_path / "a.mp4", RowReader(tmp_path, "raise"))
    assert (sample.key, item.truth().spans[0].to_json(), sample.video) == ("a", [1.0, 2.0], clip.read_bytes())
