"""Shards: what is written is what is read, byte for byte the same after a stop, and damage is told by name."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile

import pytest

from mmllm.cli import main
from mmllm.datasets.check import check_annotations
from mmllm.datasets.formats import dialogues_of, format_of, questions_of, read_annotations
from mmllm.datasets.shard_damage import damage_of
from mmllm.datasets.shard_samples import read_shards, samples_of
from mmllm.datasets.shard_writing import planned, write_shards
from mmllm.datasets.shards import is_shards, shard_set, splits_of, states_of, with_split
from mmllm.errors import InputError
from mmllm.evaluation.run import read_benchmark
from mmllm.runtime.files import this_machine
from mmllm.video.opening import open_video
from mmllm.video.tar_members import members_of

ROWS = [
    {"id": "r1", "video": "a.b.mp4", "question": "When?", "answer": "He chops.", "spans": [[0.25, 1.125], [2, 3]]},
    {"id": "r2", "video": "a.b.mp4", "question": "Snow?", "answer": "Sun.", "spans": [], "family": "absent"},
    {
        "id": "r3",
        "video": "sub/a_b.mp4",
        "question": "Was ist es? ü",
        "answer": "Soup at <1.5>.",
        "system": "Be brief.",
    },
    {
        "id": "r4",
        "video": "sub/c.mp4",
        "duration": 8.0,
        "audio": False,
        "messages": [
            {"role": "user", "content": "Look at <video> and tell."},
            {"role": "assistant", "content": "He stirs.", "spans": [[1, 2]]},
            {"role": "user", "content": "And then?"},
            {"role": "assistant", "content": "Nothing."},
        ],
    },
]


def without_paths(dialogue):
    """What is learned and asked, without where the video lies."""
    messages = [
        [item if item["type"] == "text" else {**item, "video": ""} for item in message["content"]]
        for message in dialogue.messages()
    ]
    return dialogue.record_id, dialogue.family, dialogue.duration_s, messages


@pytest.fixture(scope="module")
def data(tmp_path_factory, short_clip):
    """A file of lines and its three videos, one of them named like another one."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "sub").mkdir()
    for number, name in enumerate(("a.b.mp4", "sub/a_b.mp4", "sub/c.mp4")):
        (folder / name).write_bytes(short_clip.read_bytes() + bytes(number))  # different sums
    (folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def run(*words):
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    return ended.value.code


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    """Shards of one video each."""
    folder = tmp_path_factory.mktemp("shards")
    items = read_annotations(data / "own.jsonl").items
    write_shards({"own": planned(items, "own", 1)}, folder)
    return folder


@pytest.fixture
def copied(written, tmp_path):
    """Shards that a test may damage."""
    for file in written.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_what_is_written_is_read(data, written):
    before = dialogues_of(read_annotations(data / "own.jsonl"))
    after = dialogues_of(read_annotations(written))
    assert list(map(without_paths, after.items)) == list(map(without_paths, before.items))
    assert (after.rows, after.bad, after.repaired, list(after.unused)) == (4, [], [], [])
    asked, stored = (questions_of(read_annotations(path)).items for path in (data / "own.jsonl", written))
    assert [(q.question_id, q.vid, q.truth().spans, q.absent, q.audio) for q in stored] == [
        (q.question_id, q.vid, q.truth().spans, q.absent, q.audio) for q in asked
    ]
    for dialogue, original in zip(after.items, before.items, strict=True):
        with open_video(dialogue.media[0].path) as inside, open_video(original.media[0].path) as alone:
            assert list(inside.times_s) == list(alone.times_s)


def test_the_form_is_that_of_webdataset(data, written):
    assert sorted(file.name for file in written.iterdir()) == [
        "index.json", "own-000000.tar", "own-000001.tar", "own-000002.tar",
    ]  # fmt: skip
    with tarfile.open(written / "own-000000.tar") as archive:
        infos = archive.getmembers()
        assert [info.name for info in infos] == ["a_b.mp4", "a_b.json"]
        assert {(info.mtime, info.uid, info.gid, info.uname, info.gname) for info in infos} == {(0, 0, 0, "", "")}
        video, text = (archive.extractfile(info).read() for info in infos)
    assert video == (data / "a.b.mp4").read_bytes()
    sample = json.loads(text)
    assert sorted(sample) == ["duration_s", "id", "media", "rows", "sha256", "times_s", "version"]
    assert (sample["id"], sample["media"]) == ("a.b", "a.b.mp4")
    assert sample["sha256"] == hashlib.sha256(video).hexdigest()
    with open_video(data / "a.b.mp4") as reader:
        assert sample["times_s"] == pytest.approx(list(reader.times_s), abs=1e-6)
        assert sample["duration_s"] == pytest.approx(reader.info.duration_s, abs=1e-6)
    assert [row["spans"] for row in sample["rows"]] == [[[0.25, 1.125], [2.0, 3.0]], []]
    assert [row["absent"] for row in sample["rows"]] == [False, True]
    assert len({tuple(row) for row in sample["rows"]}) == 1, "every row has every key"
    assert "a_b_2.mp4" in members_of(written / "own-000001.tar"), "a key of its own"


def test_the_index_says_where_everything_lies(written):
    index = json.loads((written / "index.json").read_text())
    entries = index["splits"]["own"]
    assert [(entry["file"], entry["rows"], len(entry["samples"])) for entry in entries] == [
        ("own-000000.tar", 2, 1),
        ("own-000001.tar", 1, 1),
        ("own-000002.tar", 1, 1),
    ]
    for entry in entries:
        data = (written / entry["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
        name, offset, size = entry["samples"][0]["json"]
        assert name.endswith(".json")
        assert json.loads(data[offset : offset + size])["version"] == 1
        _, offset, size = entry["samples"][0]["media"]
        assert b"ftyp" in data[offset : offset + 16]


@pytest.mark.parametrize("missing", [[], ["index.json"], ["own-000001.tar", "index.json"], ["own-000000.tar"]])
def test_written_again_or_after_a_stop_it_has_the_same_bytes(data, written, copied, missing):
    for name in missing:
        (copied / name).unlink()
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    (copied / f".own-000001.{this_machine()}.{killed.pid}-88.part.tar").write_bytes(b"half")  # what it may leave
    items = read_annotations(data / "own.jsonl").items
    write_shards({"own": planned(items, "own", 1)}, copied)
    for file in written.iterdir():
        assert (copied / file.name).read_bytes() == file.read_bytes(), file.name
    assert {file.name for file in copied.iterdir()} == {file.name for file in written.iterdir()}


def test_the_size_of_a_shard_is_kept(data):
    items = read_annotations(data / "own.jsonl").items
    size = (data / "a.b.mp4").stat().st_size
    assert [len(shard) for shard in planned(items, "x", 2 * size + 2).values()] == [2, 1]
    assert [len(shard) for shard in planned(items, "x", 1 << 30).values()] == [3]
    assert [len(shard) for shard in planned(items, "x", 1).values()] == [1, 1, 1]


def test_shards_of_other_data_are_refused(data, copied):
    items = read_annotations(data / "own.jsonl").items
    with pytest.raises(InputError, match=r"holds other videos or questions"):
        write_shards({"own": planned(items[1:], "own", 1)}, copied)
    with pytest.raises(InputError, match=r"has shards of other data \(own-000000\.tar\)"):
        write_shards({"train": planned(items, "train", 1)}, copied)


def changed(tar, change):
    """Writes a tar file again with other members: name -> bytes, or None to leave it out."""
    contents = [(name, member.read()) for name, member in members_of(tar).items()]
    with tarfile.open(tar, "w") as archive:
        for name, data in [(name, change.get(name, data)) for name, data in contents] + [
            (name, data) for name, data in change.items() if name not in dict(contents)
        ]:
            if data is not None:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


DAMAGES = {
    "a_b.json is missing": {"a_b.json": None},
    "a sample has one JSON and one video, not a_b.json": {"a_b.mp4": None},
    "a sample has one JSON and one video, not a_b.mp4, a_b.json, a_b.webm": {"a_b.webm": b"x"},
    "a_b.json is not JSON": {"a_b.json": b"{"},
    "has neither 'rows' nor": {"a_b.json": b"{}"},
    "has version 2": {"a_b.json": b'{"version": 2, "rows": []}'},
    "'rows' is empty": {"a_b.json": b'{"rows": []}'},
    "'rows' must be a list": {"a_b.json": b'{"rows": 3}'},
    "a row must be an object": {"a_b.json": b'{"rows": [3]}'},
    "the key 'question' is missing": {"a_b.json": b'{"rows": [{"answer": "a"}]}'},
    "did you mean 'spans'": {"a_b.json": b'{"rows": [{"question": "q", "answer": "a", "span": [[0, 1]]}]}'},
    "a span must be a start and an end": {"a_b.json": b'{"rows": [{"question": "q", "answer": "a", "spans": [1]}]}'},
    "give one of both": {"a_b.json": b'{"rows": [{"question": "q", "answer": "", "spans": [[0, 1]], "absent": true}]}'},
    "'place' must be": {"a_b.json": b'{"rows": [{"question": "q", "answer": "a", "place": 2}]}'},
    "'absent' must be": {"a_b.json": b'{"rows": [{"question": "q", "answer": "a", "absent": 1}]}'},
    "'audio' must be": {"a_b.json": b'{"rows": [{"question": "q", "answer": "a", "audio": 1}]}'},
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_bad_sample_is_a_bad_row(copied, reason):
    (copied / "index.json").unlink()
    changed(copied / "own-000000.tar", DAMAGES[reason])
    result = read_shards(copied)
    assert [reason in problem.reason for problem in result.bad] == [True], result.bad
    assert result.bad[0].where.startswith("own-000000.tar, a_b")
    assert (len(result.items), result.rows) == (2, 3)
    with pytest.raises(InputError, match=r"own-000000\.tar, a_b"):
        read_shards(copied, policy="raise")


def test_a_plain_row_beside_a_video_is_read(copied):
    (copied / "index.json").unlink()
    row = {"question": "When?", "answer": "Now.", "spans": [[0.5, 1]]}
    changed(copied / "own-000000.tar", {"a_b.json": json.dumps(row).encode()})
    question = read_shards(copied).items[0]
    assert (question.question_id, question.vid, question.answer) == ("a_b", "a_b", "Now.")
    assert question.truth().spans[0].to_json() == [0.5, 1.0]


@pytest.mark.parametrize("folder", ["./", "raw/", "./raw.d/"])
def test_shards_as_tar_writes_them_are_read(data, tmp_path, folder):
    video = (data / "a.b.mp4").read_bytes()
    rows = {name: {"question": "When?", "answer": name, "spans": [[0.5, 1]]} for name in "ab"}
    contents = {f"{folder}{name}.json": json.dumps(row).encode() for name, row in rows.items()}
    contents |= {f"{folder}a.mp4": video, f"{folder}._a.mp4": b"mac", f"{folder}b.mp4": video}
    with tarfile.open(tmp_path / "others.tar", "w") as archive:
        archive.addfile(directory(folder))
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    result = read_shards(tmp_path)
    assert (len(result.items), result.bad) == (2, [])
    assert [question.answer for question in result.items] == ["a", "b"]
    assert [str(sample.key) for _, sample in samples_of(tmp_path / "others.tar")] == [
        f"{folder.removeprefix('./')}{name}" for name in "ab"
    ]
    with open_video(result.items[1].video) as inside:
        assert len(inside.times_s)
    assert run("check", tmp_path) == 0


def directory(name):
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def test_a_key_in_two_shards_is_a_bad_row(copied):
    (copied / "own-000003.tar").write_bytes((copied / "own-000000.tar").read_bytes())
    (copied / "index.json").unlink()
    result = read_shards(copied)
    assert [str(problem) for problem in result.bad] == [
        "own-000003.tar, a_b: the key 'a_b' occurs in own-000000.tar, too"
    ]
    assert result.duplicates == ["a_b"]


def test_shards_that_do_not_fit_their_index_are_refused(copied):
    tar = copied / "own-000001.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=rf"own-000001\.tar: has {len(data) // 2} bytes, and by index"):
        read_annotations(copied)
    (copied / "index.json").rename(copied / "index.old")
    with pytest.raises(InputError, match=r"own-000001\.tar: this is no whole tar file"):
        read_annotations(copied)
    (copied / "index.old").rename(copied / "index.json")
    tar.unlink()
    with pytest.raises(InputError, match="this shard is missing"):
        read_annotations(copied)


@pytest.mark.parametrize("content", ["", "[]", '{"version": 2, "splits": {}}', '{"version": 1}'])
def test_a_damaged_index_is_refused(copied, content):
    (copied / "index.json").write_text(content)
    with pytest.raises(InputError, match=r"index\.json.*delete this file"):
        read_annotations(copied)


def test_a_wrong_sum_is_told_by_check(copied):
    assert damage_of(copied) == []
    tar = copied / "own-000000.tar"
    data = bytearray(tar.read_bytes())
    data[members_of(tar)["a_b.mp4"].offset + 1000] ^= 1
    tar.write_bytes(data)
    told = damage_of(copied)
    assert len(told) == 2
    assert "own-000000.tar has another SHA-256 than index.json says" in told[0]
    assert "own-000000.tar, a_b: a_b.mp4 has another SHA-256 than its JSON says" in told[1]
    summary = check_annotations(copied)
    assert summary["refused"][:2] == told
    assert run("check", copied) == 3


def test_splits(data, tmp_path, capsys):
    for split, rows in (("train", ROWS[:3]), ("val", ROWS[3:])):
        (data / f"{split}.json").write_text(json.dumps(rows))
    try:
        folder = tmp_path / "shards"
        assert run("shard", data, "--output", folder, "--videos", data, "--json") == 0
        record = json.loads(capsys.readouterr().out)
        assert {split: (record[split]["rows"], record[split]["videos"]) for split in ("train", "val")} == {
            "train": (3, 2),
            "val": (1, 1),
        }
    finally:
        for split in ("train", "val"):
            (data / f"{split}.json").unlink()
    assert list(splits_of(folder)) == ["train", "val"]
    assert [len(read_annotations(folder / split).items) for split in ("train", "val")] == [3, 1]
    assert with_split(folder, "train") == folder / "train"
    assert with_split(folder, "test") == folder
    assert len(read_annotations(folder / "val-000000.tar").items) == 1
    benchmark = read_benchmark(folder)
    assert [question.question_id for question in benchmark.questions] == ["r4_turn1", "r4_turn2"]
    assert [question.question_id for question in benchmark.fit] == ["r1", "r2", "r3"]
    with pytest.raises(InputError, match=r"name one of them, as in .*shards/train"):
        read_annotations(folder)
    with pytest.raises(InputError, match=r"there is no split 'vall'.*val"):
        read_annotations(folder / "vall")
    assert run("check", folder / "trian") == 2
    assert "did you mean 'train'" in capsys.readouterr().err


def test_what_are_shards(data, written, tmp_path):
    assert (is_shards(written), is_shards(written / "own"), is_shards(written / "own-000000.tar")) == (True,) * 3
    assert format_of(written) == "shards"
    assert not any(map(is_shards, (data, data / "own.jsonl", written / "own.jsonl", tmp_path / "none")))
    (tmp_path / "videos.tar").touch()
    assert is_shards(tmp_path)
    (tmp_path / "val.json").touch()
    assert not is_shards(tmp_path), "a data set with an archive beside it"
    with pytest.raises(InputError, match="no shard"):
        shard_set(tmp_path / "none")


def test_other_shards_have_another_state(written, copied):
    assert states_of(written).keys() == {str(written / f"own-00000{number}.tar") for number in range(3)}
    assert list(states_of(written).values()) == list(states_of(copied).values())
    (copied / "index.json").unlink()
    assert all(state.endswith(" bytes") for state in states_of(copied).values())


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"image": "a.png", "question": "What?", "answer": "A cat."}], "a.png"),
        ([{"question": "What?", "answer": "Talk."}], "shows nothing"),
        ([{"video": "frames", "question": "What?", "answer": "A."}], "is a folder of frames"),
        ([{"video": "missing.mp4", "question": "What?", "answer": "A."}], "missing.mp4 is not in"),
    ],
)
def test_rows_that_no_shard_can_hold_are_refused(data, tmp_path, capsys, rows, reason):
    from PIL import Image

    (tmp_path / "frames").mkdir()
    for path in (tmp_path / "a.png", *(tmp_path / "frames" / f"{number:06d}.png" for number in range(3))):
        Image.new("RGB", (32, 32)).save(path)
    (tmp_path / "ok.mp4").write_bytes((data / "sub" / "c.mp4").read_bytes())
    good = {"video": "ok.mp4", "question": "What?", "answer": "A."}
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, good]))
    code = run("shard", file, "--output", tmp_path / "out")
    error = capsys.readouterr().err
    if reason == "a.png":
        reason = "shows image"
    assert (code, reason in error) == (2, True), error
    assert not (tmp_path / "out").exists()
    assert run("shard", file, "--output", tmp_path / "out", "--skip-bad") == 0
    assert len(read_annotations(tmp_path / "out").items) == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--shard-mb", "0"], "--shard-mb 0"),
        (["--format", "tacoss"], "tacos"),
    ],
)
def test_wrong_options_are_refused(data, tmp_path, capsys, words, reason):
    assert run("shard", data / "own.jsonl", "--output", tmp_path / "out", *words) == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_sources_are_refused(data, written, tmp_path, capsys):
    for source in (written, written / "own", written / "own-000000.tar"):
        assert run("shard", source, "--output", tmp_path / "out") == 2
        assert "these are shards already" in capsys.readouterr().err
    assert run("shard", data, "--output", tmp_path / "out") == 2
    assert "none of train.json" in capsys.readouterr().err
    assert run("shard", data / "none.jsonl", "--output", tmp_path / "out") == 2


def test_a_full_disk_leaves_no_half_shard(data, tmp_path, monkeypatch):
    from mmllm.errors import MmllmError

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "addfile", full)
    items = read_annotations(data / "own.jsonl").items
    with pytest.raises(MmllmError, match=r"cannot write own-000000\.tar.*No space left"):
        write_shards({"own": planned(items, "own", 1)}, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_the_library_webdataset_reads_them(written):
    webdataset = pytest.importorskip("webdataset", reason="not installed: pip install webdataset")
    urls = [str(tar) for tar in sorted(written.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == ["a_b", "a_b_2", "c"]
    assert [len(json.loads(sample["json"])["rows"]) for sample in samples] == [2, 1, 1]
    assert all(b"ftyp" in sample["mp4"][:16] for sample in samples)
