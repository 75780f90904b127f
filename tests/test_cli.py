"""The command line: what a user sees, exit codes, one line for each error."""

import json
import subprocess
import sys
import types

import av
import numpy as np
import pytest

from mmllm import cli
from mmllm.errors import InputError
from mmllm.registry import parts


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "mmllm", *arguments], capture_output=True, text=True, **options)


def outcome(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


def test_help_names_every_command(capsys):
    code, out, _ = outcome(capsys, "--help")
    assert code == 0
    assert all(name in out for name in cli.VERBS)


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_command_has_help(capsys, verb):
    code, out, _ = outcome(capsys, verb, "--help")
    assert code == 0
    assert f"mmllm {verb}" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["aks"], "unknown command 'aks'; did you mean 'ask'?"),
        (["ask", "nowhere.mp4", "When?", "--model", "nowhere"], "nowhere"),
        (["ask", "a.mp4", "  "], "the question is empty"),
        (["ask", "a.mp4", "When?", "--frames", "9" * 60], "--frames 9999"),
        (["ask", "a.mp4", "When?", "--max-new-tokens", "-5"], "--max-new-tokens -5: must be from 1"),
        (["demo", "--video-minutes", "1e309"], "DemoLimits.video_s = inf: must be"),
        (["train", "smoke", "--seed", "9" * 60], "Recipe.seed"),
        (["train", "quikstart"], "unknown recipe 'quikstart'; did you mean 'quickstart'"),
        (["train", "smoke", "--encoder", "tinny"], "did you mean 'tiny'"),
        (["train", "smoke", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "smoke", "--data-root", "nowhere", "--output", "{tmp}/run"], "it has no train.json"),
        (["train", "smoke", "--reducer", "fastervlm:keep=4", "hird:ratio=1"], "did you mean 'hired'"),
        (["train", "smoke", "--reducer", "atp:depths=0.34+0.67,ratio=0.6"], "set language.questions_per_video = 1"),
        (["tokens", "--recipe", "quickstart", "--plot", "kept.png"], "name a model, not a recipe"),
        (["eval", "nowhere", "nowhere"], "has no annotations"),
        (["score", "nowhere.jsonl"], "nowhere.jsonl"),
        (["tokens", "--recipe", "quickstart", "--path", "slowfast:pool=0"], "SlowFastConfig.pool = 0"),
        (["tokens", "--recipe", "quickstart", "--frames", "0"], "must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = outcome(capsys, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert code == 2
    lines = [line for line in err.strip().splitlines() if line.startswith("mmllm: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in err


YAML = {
    "brackets": "[" * 5000,
    "braces": "model: " + "{a: " * 5000,
    "long": f"seed: {'9' * 5000}",
    "sixty": f"seed: {'9' * 60}",
    "infinite": "language: {learning_rate: 1.0e+309}",
    "text": "language: {learning_rate: 1e309}",
    "list": "- a\n- b",
    "bytes": b"name: caf\xe9",
    "billions": "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
    "itself": "name: &a [*a]",
    "words": f"language: {{learning_rate: {'long ' * 3000}}}",
    "key": f"{'k' * 20_000}: 1",
}


@pytest.mark.parametrize("command", ["train", "finetune"])
@pytest.mark.parametrize("name", YAML)
def test_files_of_settings_that_are_none_are_one_short_line(capsys, tmp_path, command, name):
    text = YAML[name]
    (tmp_path / "a.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    what = ["smoke"] if command == "train" else [str(tmp_path / "rows.jsonl"), "--model", "nowhere"]
    config = ["--config", str(tmp_path / "a.yaml"), "--output", str(tmp_path / "run")]
    code, _, err = outcome(capsys, command, *what, *config)
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("mmllm: ")]
    assert len(line) < 1500
    assert "internal error" not in line


def test_a_number_that_no_library_takes_is_one_line(capsys, tmp_path):
    for flags in (["train", "smoke", "--seed", "9" * 60], ["train", "smoke", "--steps", "9" * 60],
                  ["render", str(tmp_path / "a"), "--seed", "9" * 60],
                  ["render", str(tmp_path / "a"), "--videos", "9" * 60]):  # fmt: skip
        code, _, err = outcome(capsys, *flags)
        assert code == 2
        assert "internal error" not in err


def test_a_long_message_is_cut_in_the_middle(capsys, monkeypatch):
    def fail() -> None:
        raise InputError("begin " + "word " * 3000 + "the end")

    module = types.ModuleType("mmllm_long_message")
    module.fail = fail
    monkeypatch.setitem(sys.modules, "mmllm_long_message", module)
    monkeypatch.setitem(cli.VERBS, "list", cli.Verb("mmllm_long_message:fail", "fails"))
    code, _, err = outcome(capsys, "list")
    assert code == 2
    assert err.startswith("mmllm: begin")
    assert err.endswith("the end\n")
    assert len(err) < 2100


def test_several_reducers_in_a_row(capsys):
    reducers = ["uniform:ratio=0.5", "random:keep=3", "video_budget:total=40"]
    code, out, _ = outcome(
        capsys,
        "tokens",
        "--recipe",
        "quickstart",
        "--path",
        "plain",
        "--frames",
        "20",
        "--json",
        "--reducer",
        *reducers,
    )
    assert code == 0
    assert [row["tokens"] for row in json.loads(out)["stages"]] == [320, 160, 60, 40, 40, 40]


def test_a_wrong_flag_proposes_the_right_one():
    done = run("ask", "a.mp4", "When?", "--modle", "x")
    assert done.returncode == 2
    assert "--model" in done.stderr + done.stdout


def test_a_narrow_terminal_has_whole_names(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = outcome(capsys, "list", "reducers")
    assert code == 0
    assert set(parts("reducer")) <= set(out.split())
    assert "…" not in out


def test_list_and_tokens_speak_json(capsys):
    code, out, _ = outcome(capsys, "list", "--json")
    assert code == 0
    listed = json.loads(out)
    assert {"tiny", "clip"} <= {row["name"] for row in listed["encoders"]}
    assert "lita-13b" in {row["name"] for row in listed["recipes"]}
    code, out, _ = outcome(capsys, "tokens", "--recipe", "lita-13b", "--json")
    assert code == 0
    assert json.loads(out)["stages"][-1]["tokens"] == 356


def test_an_internal_error_is_one_line_too(capsys, monkeypatch):
    monkeypatch.setitem(cli.VERBS, "list", cli.Verb("mmllm.nowhere:nothing", "broken"))
    code, _, err = outcome(capsys, "list")
    assert code == 1
    assert err.startswith("mmllm: internal error: ModuleNotFoundError")
    assert "Traceback" not in err


def test_a_warning_about_a_video_is_one_line(capsys, tmp_path):
    """Two transport streams joined byte by byte: the clock of the second begins again."""
    parts = []
    for number in range(2):
        part = tmp_path / f"{number}.ts"
        with av.open(str(part), "w") as container:
            stream = container.add_stream("mpeg2video", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for index in range(30):
                frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 8 * index, np.uint8), format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        parts.append(part.read_bytes())
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(parts))
    code, _, err = outcome(capsys, "ask", str(joined), "When does the red circle spin?")
    assert code == 0
    lines = [line for line in err.splitlines() if "clock" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"mmllm: {joined}: its clock falls back or jumps at frame 30")
    assert "opening.py" not in err
