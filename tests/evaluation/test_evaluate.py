"""Whole evaluations of a tiny model: benchmarks of any form, missing videos, trials, what is kept and continued."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mmllm.commands.evaluate import evaluate, evaluate_into
from mmllm.errors import ConfigError, InputError
from mmllm.evaluation.run import read_benchmark
from mmllm.evaluation.samples import read_samples
from mmllm.evaluation.trials import Trials, averaged
from mmllm.times.answers import parse_answer


@pytest.fixture
def data(tmp_path, short_clip):
    """A folder of two videos with three questions, and one question about a missing video."""
    (tmp_path / "videos").mkdir()
    rows = []
    for vid, count in (("one", 2), ("two", 1), ("gone", 1)):
        if vid != "gone":
            (tmp_path / "videos" / f"v_{vid}.mp4").symlink_to(short_clip)
        for number in range(count):
            rows.append(
                {
                    "vid": vid,
                    "question_id": f"{vid}_{number}",
                    "question": f"When does the {('red', 'blue')[number]} circle spin?",
                    "answer": "<1> <4> It spins.",
                    "duration": 8.0,
                }
            )
    (tmp_path / "val.json").write_text(json.dumps(rows))
    return tmp_path


def test_a_question_whose_video_is_missing_counts_as_zero(data, untrained_qa):
    benchmark = read_benchmark(data)
    assert [question.video is None for question in benchmark.questions] == [False, False, False, True]
    scores = evaluate_into(data / "eval", untrained_qa, benchmark)
    assert (scores["questions"], scores["scored"], scores["failed"], scores["bad_rows"]) == (4, 3, 1, 0)
    failed = [sample for sample in read_samples(data / "eval" / "samples.jsonl") if sample.error]
    assert [(sample.question_id, sample.error) for sample in failed] == [("gone_0", "video gone is missing")]
    assert json.loads((data / "eval" / "metrics.json").read_text()) == scores


def test_events_and_dialogues_are_benchmarks_too(data, short_clip):
    events = {"v_one": {"duration": 8, "timestamps": [[1, 4], [2, 3]], "sentences": ["It spins.", "It grows."]}}
    (data / "events.json").write_text(json.dumps(events))
    asked = read_benchmark(data / "events.json").questions
    assert [question.truth().spans[0].to_json() for question in asked] == [[1, 4], [2, 3]]
    assert all(question.video == data / "videos" / "v_one.mp4" for question in asked)
    rows = [
        {"video": f"videos/v_{vid}.mp4", "question": "When?", "answer": "Then.", "spans": [[1, 4]], "duration": 8}
        for vid in ("one", "gone")
    ]
    (data / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = read_benchmark(data / "own.jsonl")
    assert len(own.questions) == len(own.bad_rows) == 1
    (data / "charades.txt").write_text("one 1.0 4.0##a circle spins.\n")
    (data / "lengths.csv").write_text("id,length\none,8.0\n")
    charades = read_benchmark(data / "charades.txt", durations=data / "lengths.csv")
    assert charades.questions[0].truth().spans[0].to_json() == [1, 4]


def test_a_folder_with_none_of_the_videos_is_refused(data, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has none of the videos"):
        read_benchmark(data, tmp_path / "empty")


def test_trials_are_repeatable_and_go_on_where_they_were_stopped(data, untrained_qa):
    benchmark, three = read_benchmark(data), Trials(count=3, temperature=2.0, seed=5)
    scores = evaluate_into(data / "eval", untrained_qa, benchmark, trials=three)
    trials = scores["trials"]
    assert (trials["count"], trials["temperature"], trials["seed"]) == (3, 2.0, 5)
    each = [trial["explanation_f1"] for trial in trials["each"]]
    assert scores["explanation_f1"] == pytest.approx(np.mean(each))
    assert trials["spread"]["explanation_f1"] == pytest.approx(np.std(each, ddof=1))
    answers = [[sample.prediction_raw for sample in read_samples(data / "eval" / f"trial-{i}" / "samples.jsonl")]
               for i in (1, 2, 3)]  # fmt: skip
    assert answers[0] != answers[1] != answers[2]
    for name in ("samples.jsonl", "shuffled.jsonl"):
        stopped = data / "eval" / "trial-2" / name
        stopped.write_text("".join(line + "\n" for line in stopped.read_text().splitlines() if '"two' not in line))
    again = evaluate_into(data / "eval", untrained_qa, benchmark, trials=three)
    assert {**again, "seconds": 0} == {**scores, "seconds": 0}
    with pytest.raises(InputError, match="other settings"):
        evaluate_into(data / "eval", untrained_qa, benchmark, trials=replace(three, seed=6))


def test_greedy_trials_would_be_the_same():
    assert (Trials.of(1, None, 0).temperature, Trials.of(3, None, 0).temperature) == (0.0, 0.2)
    with pytest.raises(ConfigError, match="greedy answers are the same each time"):
        Trials.of(3, 0.0, 0)
    for wrong in ({"count": 0}, {"temperature": -1.0}, {"seed": -1}):
        with pytest.raises(ConfigError):
            Trials(**wrong)


def test_means_of_scores():
    trials = [
        {"miou": 0.2, "questions": 4, "text": None, "families": {"a": {"miou": 0.1}}, "miou_interval": [0.0, 0.4]},
        {"miou": 0.4, "questions": 4, "text": None, "families": {"a": {"miou": 0.3}}, "miou_interval": [0.2, 0.8]},
    ]
    mean = averaged(trials, Trials(count=2, temperature=1.0))
    assert mean["miou"] == pytest.approx(0.3)
    assert (mean["questions"], mean["text"]) == (4, None)
    assert mean["families"]["a"]["miou"] == pytest.approx(0.2)
    assert mean["miou_interval"] == pytest.approx([0.1, 0.6])
    assert mean["trials"]["spread"] == {"miou": pytest.approx(0.02**0.5)}
    assert averaged(trials[:1], Trials()) == trials[0]


def test_the_command(data, untrained_qa, capsys):
    for part in (untrained_qa.model, untrained_qa.processor):
        part.save_pretrained(data / "model")
    assert evaluate(str(data / "model"), data, limit=1, trials=2, max_new_tokens=8) == 3  # the first video is missing
    out = " ".join(capsys.readouterr().out.split())
    assert "Mean of 2 trials at temperature 0.2; spread: mIoU" in out
    assert "not judged" in out
    assert evaluate(str(data / "model"), data, output=data / "own", max_new_tokens=8, json=True) == 3
    assert json.loads(capsys.readouterr().out)["questions"] == 4


def own_rows(data, *rows):
    """A file of own rows about the videos of `data`."""
    (data / "own.jsonl").write_text("".join(json.dumps({"video": "videos/v_one.mp4", **row}) + "\n" for row in rows))
    return data / "own.jsonl"


CHAT = [
    {"role": "user", "content": "<video> What spins?"},
    {"role": "assistant", "content": "The red circle."},
    {"role": "user", "content": "When?"},
    {"role": "assistant", "content": "Then.", "spans": [[1, 4]]},
    {"role": "user", "content": "And the blue one?"},
    {"role": "assistant", "content": "Never."},
]


def test_each_turn_of_a_dialogue_is_asked_after_the_annotated_ones(data, untrained_qa, monkeypatch):
    benchmark = read_benchmark(own_rows(data, {"id": "chat", "messages": CHAT, "system": "it is a circle ."}))
    prompts = []
    prompt = type(untrained_qa).prompt
    monkeypatch.setattr(
        type(untrained_qa), "prompt", lambda self, *given: prompts.append(prompt(self, *given)) or prompts[-1]
    )
    scores = evaluate_into(data / "eval", untrained_qa, benchmark, shuffle=False)
    assert (scores["questions"], scores["scored"], scores["temporal_questions"]) == (3, 3, 1)
    samples = read_samples(data / "eval" / "samples.jsonl")
    assert [sample.question_id for sample in samples] == ["chat_turn1", "chat_turn2", "chat_turn3"]
    assert [sample.of for sample in samples] == [3, 3, 3]
    texts = [untrained_qa.processor.tokenizer.convert_ids_to_tokens(one.input_ids) for one in prompts]
    assert texts[2][: len(texts[0]) - 2] == texts[0][:-2]  # the same beginning, up to `answer :`
    assert "<t12>" in texts[2]  # of 8 seconds: the first second, in the annotated second answer
    assert "<t12>" not in texts[1]
    assert texts[0][1:3] == ["it", "is"]  # the row's own system prompt


def test_a_row_that_cannot_be_scored_is_listed_and_the_rest_is_scored(data, untrained_qa, capsys):
    good = {"question": "When?", "answer": "Then.", "spans": [[1, 4]]}
    rows = (good, {"video": None, "question": "Hello?", "answer": "Yes."}, {**good, "spans": [[90, 150]]})
    for part in (untrained_qa.model, untrained_qa.processor):
        part.save_pretrained(data / "model")
    options = {"output": data / "eval", "max_new_tokens": 4, "shuffle": False}
    assert evaluate(str(data / "model"), own_rows(data, *rows), **options) == 3
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 1 questions were answered. 2 rows of the annotations cannot be scored." in out
    assert "Left out: line 2: only dialogues about one video" in out
    assert "Left out: line 3: the interval [90, 150] is outside of the video, which lasts 8 s" in out
    assert len(json.loads((data / "eval" / "metrics.json").read_text())["left_out"]) == 2


def test_videos_of_one_name_in_two_folders_are_two_videos(data, short_clip):
    rows = []
    for folder in ("a", "b"):
        (data / folder).mkdir()
        (data / folder / "1.mp4").symlink_to(short_clip)
        rows.append({"video": f"{folder}/1.mp4", "question": "When?", "answer": "Then.", "spans": [[1, 4]]})
    questions = read_benchmark(own_rows(data, *rows)).questions
    assert [question.vid for question in questions] == ["a/1", "b/1"]


def test_the_same_model_and_data_by_another_path_go_on(data, untrained_qa, monkeypatch):
    rows = [{"id": name, "question": f"When {name}?", "answer": "Then.", "spans": [[1, 4]]} for name in "ab"]
    own_rows(data, *rows)
    for part in (untrained_qa.model, untrained_qa.processor):
        part.save_pretrained(data / "model")
    (data / "elsewhere").symlink_to(data)
    options = {"output": data / "eval", "max_new_tokens": 4, "shuffle": False}
    assert evaluate(str(data / "model"), data / "own.jsonl", **options) == 0
    answers = (data / "eval" / "samples.jsonl").read_text()
    monkeypatch.setattr("mmllm.inference.answering.VideoQA.ask_all", None)  # nothing is asked again
    monkeypatch.chdir(data)
    assert evaluate("elsewhere/model", data / "elsewhere" / "own.jsonl", **options) == 0
    assert (data / "eval" / "samples.jsonl").read_text() == answers
    own_rows(data, {**rows[0], "question": "When else?"})
    with pytest.raises(InputError, match="another question named 'a'"):
        evaluate("elsewhere/model", data / "own.jsonl", **options)


def test_answers_in_a_chain_have_their_steps_and_are_not_mixed_with_others(data, untrained_qa):
    from mmllm.inference.chain_config import ChainConfig

    benchmark = read_benchmark(data)
    chain = ChainConfig(parts=2, steps="answer", max_new_tokens=4)
    evaluate_into(data / "chain", untrained_qa, benchmark, chain=chain)
    samples = [sample for sample in read_samples(data / "chain" / "samples.jsonl") if not sample.error]
    assert all(len(sample.steps) == 2 for sample in samples)
    assert samples[0].steps[1]["part"][1] == 8.0
    assert json.loads((data / "chain" / "answered_by.json").read_text())["chain"]["parts"] == 2
    with pytest.raises(InputError, match="holds answers of another model or other settings"):
        evaluate_into(data / "chain", untrained_qa, benchmark)


def test_many_frames_a_video_are_decoded_where_they_are_encoded(data, untrained_qa, monkeypatch):
    from mmllm.evaluation import run

    evaluate_into(data / "whole", untrained_qa, read_benchmark(data), shuffle=False)
    (data / "videos" / "v_two.mp4").unlink()
    (data / "videos" / "v_two.mp4").write_bytes(b"no video")
    monkeypatch.setattr(run, "WHOLE_FRAMES", 4)
    evaluate_into(data / "pieces", untrained_qa, read_benchmark(data), shuffle=False)
    whole, pieces = (
        {sample.question_id: sample for sample in read_samples(data / name / "samples.jsonl")}
        for name in ("whole", "pieces")
    )
    assert pieces["one_0"] == whole["one_0"]
    assert pieces["two_0"].error.startswith("VideoOpenError: ")


def test_what_does_not_happen_is_evaluated(data, untrained_qa, monkeypatch):
    rows = [
        {
            "id": name,
            "video": f"videos/v_{vid}.mp4",
            "question": f"When does it snow, {name}?",
            "answer": "",
            "spans": [],
        }
        for name, vid in (("a", "one"), ("b", "two"))
    ]
    rows.append({"id": "c", "video": "videos/v_one.mp4", "question": "When?", "answer": "", "spans": [[1, 4]]})
    (data / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = {"When does it snow, a?": "It does not happen.", "When does it snow, b?": "<1> <2>", "When?": "<1> <4>"}

    def ask_all(self, encoded, questions, duration_s, **_):
        return [parse_answer(said[question], duration_s) for question in questions]

    monkeypatch.setattr(type(untrained_qa), "ask_all", ask_all)
    scores = evaluate_into(data / "never", untrained_qa, read_benchmark(data / "own.jsonl"), shuffle=False)
    assert (scores["absent_questions"], scores["false_alarm_rate"], scores["miss_rate"]) == (2, 0.5, 0)
    assert (scores["miou"], scores["temporal_questions"], scores["text_questions"]) == (1, 1, 0)
    assert scores["set_miou"] == pytest.approx((1 + 0) / 2)
    samples = {sample.question_id: sample for sample in read_samples(data / "never" / "samples.jsonl")}
    assert (samples["a"].absent, samples["a"].denied, samples["a"].duration_s) == (True, True, pytest.approx(8, abs=1))
    assert (samples["b"].absent, samples["b"].denied) == (True, False)
    # the same answers again; but not for another truth
    assert evaluate_into(data / "never", untrained_qa, read_benchmark(data / "own.jsonl"), shuffle=False) == scores
    rows[0]["spans"] = [[1, 2]]
    (data / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="answer to another question named 'a'"):
        evaluate_into(data / "never", untrained_qa, read_benchmark(data / "own.jsonl"), shuffle=False)
