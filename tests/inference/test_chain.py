"""Asking in a chain: what the model is given in each pass, and how times of parts become times of the video."""

import numpy as np
import pytest
import torch

from mmllm.errors import ConfigError, InputError
from mmllm.inference.answering import VideoQA
from mmllm.inference.chain import parts_of, thought
from mmllm.inference.chain_config import ChainConfig
from mmllm.times.answers import Answer, Span, Step
from mmllm.tokens import VideoClip

QUESTION = "When does the red circle spin?"
FRAMES, SECONDS = 14, 140.0


@pytest.fixture(scope="module")
def clip():
    """A frame every ten seconds."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (FRAMES, 64, 64, 3), dtype=np.uint8)
    return VideoClip(frames=frames, times_s=np.arange(FRAMES) * 10.0, duration_s=SECONDS)


class Passes:
    """Stands for the LLM: says given texts, and keeps what it was given."""

    def __init__(self, qa, said):
        self.qa, self.said, self.given = qa, list(said), []

    def __call__(self, *, input_ids, sequences, **options):
        texts = self.qa.processor.tokenizer.batch_decode(input_ids)
        self.given.append({"texts": texts, "sequence": next(iter(sequences.values())), **options})
        ids = [self.qa.processor.tokenizer(self.said.pop(0), add_special_tokens=False)["input_ids"] for _ in texts]
        longest = max(map(len, ids))
        end = self.qa.processor.tokenizer.eos_token_id
        return torch.cat([input_ids, torch.tensor([row + [end] * (longest - len(row)) for row in ids])], dim=1)


@pytest.fixture
def asked(untrained_qa, clip, monkeypatch):
    """Asks with a model that says given texts; returns the answers and the passes."""

    def ask(said, chain, questions=(QUESTION,), qa=untrained_qa, video=clip, **options):
        passes = Passes(qa, said)
        encoded = qa.encode_video(video)
        monkeypatch.setattr(qa.model, "generate", passes, raising=False)
        monkeypatch.setattr(qa, "keeps_prefix", False)  # so that every pass is given the whole prompt
        try:
            return qa.ask_all(encoded, list(questions), chain=chain, **options), passes.given
        finally:
            monkeypatch.undo()

    return ask


def test_three_parts_take_four_passes_over_equal_runs_of_frames(asked, untrained_qa, clip):
    said = ["red circle", "blue square", "green circle", "<t10> <t20> it spins"]
    (answer,), passes = asked(said, 3, max_new_tokens=40, do_sample=True)
    assert len(passes) == 4
    times_s = clip.times_s
    for number, part in enumerate(passes[:3]):
        run = slice(4 * number, 4 * number + 4)  # the last two of 14 frames fill no run
        alone = VideoClip(frames=clip.frames[run], times_s=times_s[run] - times_s[run][0], duration_s=40.0)
        expected = next(iter(untrained_qa.encode_video(alone).sequences.values()))
        assert part["sequence"].frame.tolist() == expected.frame.tolist()
        # the first and the last frame of a run have neighbours outside of it, which this encoder sees
        assert torch.equal(part["sequence"].embeddings[0, 1:3], expected.embeddings[0, 1:3])
        assert part["max_new_tokens"] == 128
        assert part["do_sample"] is False
        assert "spin" not in part["texts"][0]
    whole = next(iter(untrained_qa.encode_video(clip).sequences.values()))
    assert torch.equal(passes[3]["sequence"].embeddings, whole.embeddings)
    assert passes[3]["max_new_tokens"] == 40
    assert passes[3]["do_sample"] is True
    last = passes[3]["texts"][0]
    order = [last.index(word) for word in ("red circle", "blue square", "green circle", "when")]
    assert order == sorted(order)
    assert [step.text for step in answer.steps] == said[:3]
    assert [step.span for step in answer.steps] == [Span(0, 40), Span(40, 80), Span(80, 120)]


def test_the_last_pass_has_the_descriptions_in_a_block_before_the_question():
    steps = [Step(span=Span(i * 10.0, i * 10.0 + 10), text=text, spans=(), raw=text) for i, text in enumerate("ab")]
    described = thought(steps, "When? A) now B) then", ChainConfig(parts=2))
    assert described == "<think>a b</think>When? A) now B) then"
    answered = thought(steps, "When?", ChainConfig(parts=2, steps="answer"))
    assert answered == "<think><0.0> - <10.0>: a\n<10.0> - <20.0>: b</think>When?"
    assert thought([], "When?", ChainConfig()) == "When?"


def test_times_of_a_part_become_times_of_the_video(asked):
    said = ["it spins", "<t0> <t99> it spins", "<t99> it grows <t99> , <t0> to <t33>", "<t0> <t99> it spins"]
    (answer,), passes = asked(said, ChainConfig(parts=3, steps="answer"))
    assert answer.steps[0].spans == ()
    assert answer.steps[1].spans == (Span(40.0, 80.0),)
    assert answer.steps[1].text == "<40.0> <80.0> it spins"
    assert answer.steps[1].raw.split()[:2] == ["<t0>", "<t99>"]
    first, second = answer.steps[2].spans
    assert first == Span(120.0, 120.0)
    assert second.start_s == 80.0
    assert second.end_s == pytest.approx(80 + 40 / 3, abs=0.3)
    assert answer.spans == (Span(0.0, SECONDS),)
    for part in passes[:3]:
        assert "red circle spin" in part["texts"][0]  # each part answers the question
    # the model reads the ranges as it reads all times: 40 and 80 of 140 seconds are the tokens 28 and 57
    assert "<t28>" in passes[3]["texts"][0]
    assert "<t57>" in passes[3]["texts"][0]


def test_a_time_in_the_question_is_moved_to_the_clock_of_a_part(asked):
    _, passes = asked(["it"] * 4, ChainConfig(parts=3, steps="answer"), ["What does the red circle do at <50>?"])
    times = [next(word for word in given["texts"][0].replace("?", " ").split() if "<t" in word) for given in passes[:3]]
    assert times == ["<t99>", "<t25>", "<t0>"]  # after the first part, 10 s into the second, before the third


def test_descriptions_serve_all_questions_and_answers_their_own(asked):
    questions = [QUESTION, "When is the blue square on screen?"]
    answers, passes = asked(["a red circle"] * 2 + ["it"] * 2, 2, questions)
    assert [len(given["texts"]) for given in passes] == [1, 1, 2]
    assert answers[0].steps == answers[1].steps
    answers, passes = asked(["it"] * 6, ChainConfig(parts=2, steps="answer"), questions)
    assert [len(given["texts"]) for given in passes] == [2, 2, 2]
    assert all(len(answer.steps) == 2 for answer in answers)


def test_parts_that_were_encoded_in_pieces_are_the_same(untrained_qa, clip):
    for reducers in ([], ["fastervlm:keep=4"], ["video_budget:ratio=0.5"]):
        qa = untrained_qa.with_stages(reducers)
        whole = qa.encode_video(clip)
        pieces = qa.encode_fed(lambda sink, qa=qa: qa.processor.load(clip, sink=sink), whole=2)
        for part in parts_of(whole.times_s, SECONDS, 3):
            first, second = (qa.part_of(video, part.frames, part.span) for video in (whole, pieces))
            for placeholder, sequence in first.sequences.items():
                assert torch.equal(second.sequences[placeholder].embeddings, sequence.embeddings)
            np.testing.assert_array_equal(first.times_s, second.times_s)
            np.testing.assert_array_equal(first.kept, second.kept)
            assert first.token_counts["reducers"] == second.token_counts["reducers"]
        chain = ChainConfig(parts=3, steps="answer")
        assert qa.ask(pieces, QUESTION, chain=chain) == qa.ask(whole, QUESTION, chain=chain)


def test_one_part_is_the_whole_video(untrained_qa, clip):
    encoded = untrained_qa.encode_video(clip)
    answer = untrained_qa.ask(encoded, QUESTION, chain=ChainConfig(parts=1, steps="answer"), max_new_tokens=12)
    (step,) = answer.steps
    assert step.span == Span(0.0, SECONDS)
    assert step.raw == untrained_qa.ask(encoded, QUESTION, max_new_tokens=128).raw


def test_an_annotated_length_is_the_clock_of_parts_and_answers(asked):
    (answer,), _ = asked(["<t0> <t99>", "it", "it"], 2, duration_s=280.0)
    assert [step.span for step in answer.steps] == [Span(0, 140), Span(140, 280)]
    assert answer.steps[0].spans == (Span(0, 140),)


@pytest.mark.parametrize(
    ("seconds", "parts"), [(599.0, 0), (599.5, 2), (600.0, 2), (899.0, 2), (900.0, 3), (7200.0, 3), (30.0, 0)]
)
def test_auto_follows_the_published_lengths(seconds, parts):
    assert ChainConfig().parts_of(3600, seconds) == parts


def test_a_short_video_has_no_steps_with_auto(untrained_qa, clip):
    encoded = untrained_qa.encode_video(clip)
    answer = untrained_qa.ask(encoded, QUESTION, chain="auto")
    assert answer == untrained_qa.ask(encoded, QUESTION)
    assert "steps" not in answer.to_json()


def test_steps_are_in_the_json(asked):
    (answer,), _ = asked(["<t0> <t99> it spins", "<t0> it"], 1)
    assert answer.to_json()["steps"] == [
        {
            "part": [0.0, SECONDS],
            "text": "<0.0> <140.0> it spins",
            "spans": [[0.0, SECONDS]],
            "raw": answer.steps[0].raw,
        }
    ]


@pytest.mark.parametrize("chain", [0, -1, "0", "three", "2.5", True, 2.5, [2], ""])
def test_wrong_numbers_of_parts_are_refused_by_name(untrained_qa, clip, chain):
    with pytest.raises(InputError, match="chain must be a number of parts, 1 or more, or auto"):
        untrained_qa.ask(clip, QUESTION, chain=chain)


def test_more_parts_than_frames_are_refused(untrained_qa, clip):
    with pytest.raises(InputError, match="a chain of 15 parts needs as many frames, and 14 are sampled"):
        untrained_qa.ask(clip, QUESTION, chain=15)


def test_parts_of_repeated_frames_are_refused(untrained_qa, clip):
    still = VideoClip(frames=clip.frames[:1].repeat(6, 0), times_s=np.zeros(6), duration_s=1.0)
    with pytest.raises(InputError, match="too few different frames"):
        untrained_qa.ask(still, QUESTION, chain=3)


@pytest.mark.parametrize(
    ("field", "value"),
    [("parts", 0), ("parts", True), ("steps", "think"), ("request", " "), ("max_new_tokens", 0), ("read", "all")],
)
def test_wrong_settings_are_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"ChainConfig.{field}"):
        ChainConfig(**{field: value})


def test_visual_parts_that_read_questions_get_the_request_and_the_bare_question(untrained_qa, clip, monkeypatch):
    qa = VideoQA(untrained_qa.model, untrained_qa.processor)
    looked = []

    def for_question(encoded, question, text_tokens=None):
        looked.append(question)
        return encoded

    monkeypatch.setattr(qa, "for_question", for_question)
    encoded = qa.encode_video(clip)
    chain = ChainConfig(parts=2, request="Describe this part.", max_new_tokens=2)
    qa.ask(encoded, QUESTION, chain=chain, max_new_tokens=2)
    assert looked == ["Describe this part.", "Describe this part.", QUESTION]
    looked.clear()
    answer = qa.ask(encoded, QUESTION, chain=ChainConfig(parts=1, read="prompt", max_new_tokens=2), max_new_tokens=2)
    assert isinstance(answer, Answer)
    assert looked[-1].startswith("<think>")
    assert looked[-1].endswith(f"</think>{QUESTION}")
