"""Commands with folders of hosted models as transformers saves them: what they do, and what they refuse by name."""

import json

import pytest
from tiny_models import CASES
from tiny_processors import processor

from mmllm import cli
from mmllm.inference.answering import VideoQA

NAMES = ("qwen3_vl", "llava_onevision")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hosted")
    for name in NAMES:
        CASES[name].fresh().save_pretrained(root / name)
        processor(name).save_pretrained(root / name)
    return {name: root / name for name in NAMES}


def run(capsys, *arguments):
    code = 0
    try:
        cli.main(list(map(str, arguments)))
    except SystemExit as ended:
        code = ended.code or 0
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.mark.parametrize("name", NAMES)
def test_ask(name, folders, short_clip, capsys, tmp_path):
    base = ["ask", short_clip, "When does it spin?", "--model", folders[name], "--frames", 4, "--max-new-tokens", 4]
    picture = tmp_path / "seen.png"
    code, out, _ = run(capsys, *base, "--reducer", "uniform:ratio=0.5", "--plot", picture, "--json")
    assert code == 0
    record = json.loads(out)
    assert record["duration_s"] == pytest.approx(8.0, abs=0.2)
    assert picture.stat().st_size > 1000
    assert (record["note"] is None) == (name == "qwen3_vl")
    code, out, err = run(capsys, *base, "--prompt", "plain", "--chain", 2, "--chain-tokens", 3)
    assert (code, out.count("\n")) == (0, 3)
    if name == "llava_onevision":
        code, out, err = run(capsys, *base, "--times", "text")
        assert code == 0
        assert "not trained so" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--path", "plain"], "path cannot be given for a hosted model"),
        (["--tokenizer", "mqt:tokens=16"], "visual_tokenizer cannot be given for a hosted model"),
        (["--encoder", "flextok:tokens=16"], "encoder cannot be given for a hosted model"),
        (["--times", "text"], "say times: <12.5 seconds>"),
        (["--prompt", "Say when."], "must be grounding, plain, or a text with {}"),
        (["--reducer", "diffrate:keep=8"], "diffrate"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(options, message, folders, short_clip, capsys):
    code, _, err = run(capsys, "ask", short_clip, "When?", "--model", folders["qwen3_vl"], *options)
    assert code == 2
    assert message in " ".join(err.split())


def test_settings_of_hosted_models_are_refused_for_ours(short_clip, capsys):
    for option in (["--times", "own"], ["--positions", "trained"], ["--reader", "timelens"], ["--prompt", "plain"]):
        code, _, err = run(capsys, "ask", short_clip, "When?", *option)
        assert code == 2
        assert f"{option[0][2:]} is a setting of hosted models" in " ".join(err.split())


def test_eval_writes_samples_and_scores_and_goes_on(folders, short_clip, capsys, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "v_one.mp4").symlink_to(short_clip)
    row = {"vid": "one", "question": "When does it spin?", "answer": "<1> <4> It spins.", "duration": 8.0}
    (tmp_path / "val.json").write_text(json.dumps([{**row, "question_id": f"one_{i}"} for i in range(2)]))
    output = tmp_path / "out"
    base = ["eval", folders["qwen3_vl"], tmp_path, "--output", output, "--max-new-tokens", 3, "--no-shuffle", "--json"]
    code, out, err = run(capsys, *base)
    assert code == 0, err
    scores = json.loads(out)
    assert (scores["questions"], scores["failed"]) == (2, 0)
    assert scores["ceiling_miou"] == 1.0
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2
    record = json.loads((output / "answered_by.json").read_text())
    settings = {"positions": "transformers", "times": "own", "reader": "mmllm", "prompt": "grounding"}
    assert record["hosted"] == {**settings, "reducers": [], "stages": []}
    code, _, err = run(capsys, *base, "--times", "transformers")
    assert code == 2
    assert "answers of another model or other settings" in " ".join(err.split())


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_a_prompt(name, folders, short_clip, capsys):
    code, out, _ = run(
        capsys,
        "tokens",
        folders[name],
        "--video",
        short_clip,
        "--frames",
        4,
        "--json",
        "--reducer",
        "uniform:ratio=0.5",
    )
    assert code == 0
    cost = json.loads(out)
    qa = VideoQA.from_pretrained(folders[name], reducers=["uniform:ratio=0.5"])
    video = qa.encode_video(short_clip, num_frames=4)
    counts = {row["stage"].split()[0]: row["tokens"] for row in cost["stages"]}
    assert (counts["tower"], counts["reducer"]) == (video.token_counts["encoder"], video.token_counts["reducers"])
    assert cost["kv_cache_bytes"] > 0
    assert cost["prefill_flops"] > 0
    code, out, _ = run(capsys, "tokens", folders[name])
    assert code == 0
    assert "64 frames of 640 x 360" in " ".join(out.split())
    code, _, err = run(capsys, "tokens", folders[name], "--path", "plain")
    assert (code, "path of a hosted model" in " ".join(err.split())) == (2, True)
    code, _, err = run(capsys, "tokens", folders[name], "--frames", 0)
    assert (code, "--frames 0: must be at least 1" in " ".join(err.split())) == (2, True)


@pytest.mark.parametrize("name", NAMES)
def test_doctor_says_settings_and_finds_faults(name, folders, capsys, tmp_path):
    code, out, _ = run(capsys, "doctor", folders[name], "--json")
    record = json.loads(out)
    assert (code, record["wrong"]) == (0, [])
    told = {"qwen3_vl": "in its prompt, as <12.5 seconds>", "llava_onevision": "told nowhere"}[name]
    assert record["times"] == f"own: the frames' own, {told}"
    assert record["positions"] == "transformers"
    assert set(record["fingerprint"]) == {"visual tokens", "logits"}
    before = tmp_path / "before.json"
    before.write_text(out)
    assert run(capsys, "doctor", folders[name], "--against", before)[0] == 0
    broken = CASES[name].fresh()
    broken.config.video_token_id = 189
    next(broken.parameters()).data.view(-1)[0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    processor(name).save_pretrained(tmp_path / "broken")
    code, out, _ = run(capsys, "doctor", tmp_path / "broken", "--against", before)
    said = " ".join(out.split())
    assert code == 1
    assert "is not finite" in said
    assert "the model's video placeholder is id 189, the processor's is id 191" in said


def test_doctor_names_the_repaired_positions(tmp_path, capsys):
    CASES["qwen2_5_vl"].fresh().save_pretrained(tmp_path)
    processor("qwen2_5_vl").save_pretrained(tmp_path)
    code, out, _ = run(capsys, "doctor", tmp_path, "--json")
    record = json.loads(out)
    assert code == 0
    assert "positions=trained counts them as the training code does" in record["positions"]
    assert record["times"] == "own: the frames' own, in its positions"


def test_the_demo_answers_word_by_word(folders, short_clip):
    from mmllm.app.engine import Engine
    from mmllm.app.limits import DemoLimits
    from mmllm.app.settings import cost_of
    from mmllm.app.sight import sight

    qa = VideoQA.from_pretrained(folders["qwen3_vl"])
    qa.max_new_tokens = 4
    engine = Engine(qa, DemoLimits(frames=8, new_tokens=4))
    *before, last = list(engine.ask(short_clip, "When does it spin?", engine.own_settings))
    assert last.turn.answer == last.partial.answer
    assert last.turn.visual_tokens == last.encoded.token_counts["video"]
    assert len(before) >= last.turn.tokens
    assert last.encoded.clip.frames.shape[0] == 8
    assert "patches kept" in sight(last.turn, last.encoded)
    half = engine.settings(8, "uniform", 0.5, "")
    encoded, seconds = engine.encode_video(short_clip, half)
    assert set(seconds) == {"reduce"}
    assert encoded.token_counts["video"] < last.encoded.token_counts["video"]
    assert engine.shelf.bytes > last.encoded.clip.frames.nbytes
    assert cost_of(qa, half).tokens < cost_of(qa, engine.own_settings).tokens
    with pytest.raises(ValueError, match="stage 'path' cannot be changed in a hosted model"):
        engine.variant(engine.settings(8, "", 1.0, "slowfast"))
