"""`mmllm encode` and `mmllm ask FILE.kv`."""

import json

import pytest

from mmllm.cli import main
from mmllm.inference.costs import cache_bytes

QUESTION = "When is the green square on screen?"


def run(capsys, *words):
    """Exit code and what was printed."""
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_a_written_video_is_asked(short_clip, tmp_path, capsys):
    file = tmp_path / "clip.kv"
    code, out, _ = run(capsys, "encode", short_clip, "--output", file, "--frames", 20, "--json", "--compare", QUESTION)
    record = json.loads(out)
    assert (code, record["compared"], record["answers_changed"]) == (0, 1, 0)
    assert record["file_bytes"] == file.stat().st_size > record["kv_cache_bytes"]
    from mmllm.checkpoints.loading import describe
    from mmllm.hub.sources import DEFAULT, local_folder

    text = describe(local_folder(DEFAULT))[0].text_config
    assert record["kv_cache_bytes"] == cache_bytes(text, record["positions"], 4)
    _, from_file, _ = run(capsys, "ask", file, QUESTION, "--json")
    _, from_video, _ = run(capsys, "ask", short_clip, QUESTION, "--frames", 20, "--json")
    assert {**json.loads(from_file), "video": ""} == {**json.loads(from_video), "video": ""}


def test_a_codec_makes_it_smaller_and_the_line_says_so(short_clip, tmp_path, capsys):
    file, codec = tmp_path / "clip.kv", "kvcode:keys=64,values=64,later=64,coder=zlib"
    code, out, _ = run(capsys, "encode", short_clip, "--output", file, "--codec", codec, "--compare", QUESTION, "When?")
    assert code == 0
    assert "67 positions, 0.15 MiB of key-value cache in 0.0" in out
    assert "of 2 answers changed" in out
    assert run(capsys, "ask", file, QUESTION)[0] == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--output", "clip.mp4"], "must end in .kv"),
        (["--output", "clip.kv", "--codec", "kvcod"], "did you mean 'kvcode'"),
        (["--output", "clip.kv", "--codec", "kvcode:keys=1"], "from 4 to 256"),
        (["--output", "clip.kv", "--frames", "0"], "--frames 0"),
        (["--output", "clip.kv", "--reducer", "fastv:layer=1"], "cannot be written: 'fastv'"),
    ],
)
def test_what_cannot_be_written_is_refused(short_clip, tmp_path, capsys, monkeypatch, words, why):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "encode", short_clip, *words)
    assert code == 2
    assert why in err
    assert not list(tmp_path.iterdir())


def test_a_file_has_no_frames(short_clip, tmp_path, capsys):
    file = tmp_path / "clip.kv"
    run(capsys, "encode", short_clip, "--output", file)
    assert "without frames" in run(capsys, "ask", file, QUESTION, "--plot", tmp_path / "a.png")[2]
    assert "leave num_frames out" in run(capsys, "ask", file, QUESTION, "--frames", 5)[2]
    assert "is written already" in run(capsys, "encode", file, "--output", tmp_path / "b.kv")[2]
    file.write_bytes(file.read_bytes()[:500])
    assert "only the start of one" in run(capsys, "ask", file, QUESTION)[2]
