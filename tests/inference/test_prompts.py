"""Conversations with several media, alone and as rows of one batch."""

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from mmllm.inference.own_prompts import OwnPrompts
from mmllm.inference.prompts import Medium, PromptTooLong, Turn
from mmllm.inference.row_streaming import Row, answer_rows
from mmllm.tokens import VideoClip


@pytest.fixture(scope="module")
def prompts(untrained_qa):
    return OwnPrompts(untrained_qa)


def video(qa, frames, duration_s, seed):
    """A video of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8)
    times_s = np.linspace(0, duration_s, frames, endpoint=False)
    clip = VideoClip(frames=pixels, times_s=times_s, duration_s=duration_s)
    return Medium(kind="video", encoded=qa.encode_video(clip))


def asked(*content):
    return [Turn(role="user", content=content)]


def test_the_prompt_of_one_video_is_that_of_ask(prompts, untrained_qa, short_clip):
    encoded = untrained_qa.encode_video(short_clip)
    prompt = prompts.prompt(asked(Medium(kind="video", encoded=encoded), "When is it at 3.5 s?"))
    expected = untrained_qa.prompt("When is it at <3.5>?", encoded.duration_s)
    assert torch.equal(prompt.encoded.input_ids, expected.input_ids)
    ids = prompts.generate([prompt])[0].tolist()
    assert prompts.answer(prompt, ids) == untrained_qa.ask(encoded, "When is it at <3.5>?")


def test_rows_of_a_batch_have_the_ids_of_one_at_a_time(prompts, untrained_qa):
    first, second = video(untrained_qa, 12, 8.0, 1), video(untrained_qa, 5, 20.0, 2)
    picture = Medium(kind="image", encoded=prompts.picture(np.full((40, 60, 3), 90, dtype=np.uint8)))
    conversations = [
        asked(first, "When?"),
        asked(second, "When does the red circle spin around the blue square?"),
        asked(first, "and", second, "When?"),
        asked(picture, "What?"),
        asked("Who?"),
        asked(second, picture, first, "When is it?"),
    ]
    rows = [prompts.prompt(turns) for turns in conversations]
    together = prompts.generate(rows).tolist()
    pad = untrained_qa.processor.tokenizer.pad_token_id
    for prompt, ids in zip(rows, together, strict=True):
        alone = prompts.generate([prompt])[0].tolist()
        assert ids[: len(alone)] == alone
        assert set(ids[len(alone) :]) <= {pad}


class EagerForTimes(LogitsProcessor):
    """Wants nothing but time tokens."""

    def __init__(self, times):
        self.times = times

    def __call__(self, input_ids, scores):
        scores[:, self.times] += 1e4
        return scores


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_only_rows_with_a_video_get_time_tokens(prompts, untrained_qa, options):
    times = untrained_qa.model.config.time_token_ids
    picture = Medium(kind="image", encoded=prompts.picture(np.full((40, 60, 3), 90, dtype=np.uint8)))
    turns = [asked("Who?"), asked(video(untrained_qa, 5, 20.0, 2), "When?"), asked(picture, "What?")]
    eager = LogitsProcessorList([EagerForTimes(times)])
    ids = prompts.generate(
        [prompts.prompt(each) for each in turns], max_new_tokens=4, logits_processor=eager, **options
    )
    assert [any(token in times for token in row) for row in ids.tolist()] == [False, True, False]


def test_each_row_is_taken_cut_and_ended_by_itself(prompts, untrained_qa):
    medium = video(untrained_qa, 12, 8.0, 3)
    prompt = prompts.prompt(asked(medium, "When?"))
    whole = []  # of the same loop, of as many rows: near ties fall alike
    free = [Row(prompt=prompt, take=lambda _: False, most_tokens=12) for _ in range(3)]
    taken = [[] for _ in range(4)]

    def take(number, most=100):
        def add(token):
            if number == 3 and len(taken[3]) == 2:
                raise ValueError("broken")
            taken[number].append(token)
            return len(taken[number]) >= most

        return add

    rows = [
        Row(prompt=prompt, take=take(0), most_tokens=12),
        Row(prompt=prompt, take=take(1, most=4), most_tokens=12),
        Row(prompt=prompt, take=take(2), most_tokens=12, stopped=lambda: len(taken[2]) >= 3),
        Row(prompt=prompt, take=take(3), most_tokens=12),
    ]
    stops = type(untrained_qa).stop_tokens
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(untrained_qa), "stop_tokens", property(lambda _: []))
        answer_rows(prompts, [Row(prompt=prompt, take=whole.append, most_tokens=12), *free], eos_token_id=-1)
        answer_rows(prompts, rows, eos_token_id=-1)
    assert stops is not None
    assert len(whole) == 12
    assert [len(ids) for ids in taken] == [12, 4, 3, 2]
    assert all(ids == whole[: len(ids)] for ids in taken)
    assert [row.cut for row in rows] == ["tokens", None, "stopped", None]
    assert [type(row.problem) for row in rows] == [type(None)] * 3 + [ValueError]


@pytest.fixture
def passes(untrained_qa):
    """Rows and positions of each pass through the LLM."""
    seen = []
    hook = untrained_qa.model.language_model.base_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    yield seen
    hook.remove()


def answered(prompts, turns, qa, **options):
    """Ids of each conversation, and how many positions of it were kept."""
    asked = [prompts.prompt(each) for each in turns]
    taken = [[] for _ in asked]
    rows = [Row(prompt=prompt, take=ids.append, most_tokens=8) for prompt, ids in zip(asked, taken, strict=True)]
    answer_rows(prompts, rows, **options)
    stops = qa.stop_tokens
    ids = [ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))] for ids in taken]
    return ids, [row.cached for row in rows], asked


def test_a_second_question_about_a_video_reads_the_question_only(prompts, untrained_qa, passes):
    medium = video(untrained_qa, 12, 8.0, 6)
    first, cached, (prompt,) = answered(prompts, [asked(medium, "When?")], untrained_qa)
    assert cached == [0]
    beginning = len(medium.encoded.prefix.kept.ids)
    assert passes[0] == (1, beginning)
    passes.clear()
    again, cached, _ = answered(prompts, [asked(medium, "When?")], untrained_qa)
    assert again == first
    assert cached == [beginning]
    assert passes[0] == (1, prompt.positions - beginning)
    passes.clear()
    untrained_qa.model.generate(  # whole prompts, as without a kept cache
        prompt.encoded.input_ids[None],
        sequences=prompts._seen([prompt])["sequences"],
        **untrained_qa.generation_options({}),
    )
    assert passes[0] == (1, prompt.positions)


def test_a_batch_reads_each_video_once_and_answers_as_one_at_a_time(prompts, untrained_qa, passes, monkeypatch):
    first, second = video(untrained_qa, 12, 8.0, 7), video(untrained_qa, 5, 20.0, 8)
    words = ["When?", "When does the red circle spin around the blue square?", "Is it?"]
    turns = [asked(medium, question) for medium in (first, second) for question in words]
    turns.append(asked(first, "and", second, "When is it?"))  # behind a beginning of its own, kept with the last video
    ids, cached, rows = answered(prompts, turns, untrained_qa)
    assert all(prompts.fits(rows[0], row) for row in rows)
    assert passes[3][0] == len(turns)  # three beginnings, then all questions together
    assert [rows for rows, _ in passes[:3]] == [1, 1, 1]
    assert [count > 0 for count in cached] == [False, True, True, False, True, True, False]
    monkeypatch.setattr(untrained_qa, "keeps_prefix", False)
    for each, own in zip(turns, ids, strict=True):
        assert answered(prompts, [each], untrained_qa)[:2] == ([own], [0])


def test_rows_under_a_policy_of_the_cache_are_answered_as_alone(untrained_qa):
    asking = OwnPrompts(untrained_qa.with_context("h2o:heavy=0.2,recent=0.2"))
    medium = video(asking.qa, 12, 8.0, 9)
    other = video(asking.qa, 12, 8.0, 10)
    turns = [asked(medium, question) for question in ("When?", "When does the red circle spin around the blue square?")]
    ids, _, rows = answered(asking, turns, asking.qa)
    assert asking.fits(*rows)
    assert not asking.fits(rows[0], asking.prompt(asked(other, "When?")))  # what is kept of a video is its own
    for each, own in zip(turns, ids, strict=True):
        assert answered(asking, [each], asking.qa)[0] == [own]


def test_which_conversations_fit_into_one_batch(prompts, untrained_qa):
    first, second = video(untrained_qa, 12, 8.0, 1), video(untrained_qa, 5, 20.0, 2)
    picture = Medium(kind="image", encoded=prompts.picture(np.zeros((40, 60, 3), dtype=np.uint8)))

    def fit(*contents, qa=untrained_qa):
        asking = OwnPrompts(qa)
        one, other = (asking.prompt(asked(*content)) for content in contents)
        return asking.fits(one, other), asking.opens_like(one, other)

    assert fit((first, "When?"), (first, "Who is it?")) == (True, True)
    assert fit((first, "When?"), (second, "When?")) == (True, False)
    assert fit((first, "When?"), (first, second, "When?")) == (True, False)
    assert fit((picture, "When?"), ("When?",)) == (True, False)  # both are read whole
    assert fit((first, "When?"), ("When?",)) == (False, False)
    assert fit((first, picture, "When?"), ("When?",)) == (True, False)
    inside = untrained_qa.with_stages(reducers=["fastv:layer=1"])
    assert fit((first, "When?"), (second, "When?"), qa=inside) == (True, False)


def test_a_beginning_that_is_held_once_counts_once(prompts, untrained_qa, monkeypatch):
    first, second = video(untrained_qa, 12, 8.0, 1), video(untrained_qa, 12, 8.0, 2)
    rows = [prompts.prompt(asked(first, question)) for question in ("When?", "When is it at the left?", "Who?")]
    longest, beginning = max(row.positions for row in rows), rows[0].positions - rows[0].behind
    assert all(row.positions - row.behind == beginning for row in rows)
    assert prompts.size(rows) == 3 * longest  # short: copies cost less
    monkeypatch.setattr("mmllm.inference.prompts.LEAST_SHARED", 3 * beginning)
    assert prompts.size(rows) == beginning + 3 * (longest - beginning)
    assert prompts.size(rows[:1]) == rows[0].positions
    assert prompts.size([*rows, prompts.prompt(asked(second, "When?"))]) == 4 * longest
    assert prompts.size([prompts.prompt(asked("Who?"))] * 2) == 2 * prompts.prompt(asked("Who?")).positions
    evicting = OwnPrompts(untrained_qa.with_context("h2o"))
    assert evicting.size(rows) == 3 * longest


def test_usage_adds_all_videos_and_images(prompts, untrained_qa):
    first, second = video(untrained_qa, 12, 8.0, 1), video(untrained_qa, 5, 20.0, 2)
    picture = Medium(kind="image", encoded=prompts.picture(np.zeros((40, 60, 3), dtype=np.uint8)))
    prompt = prompts.prompt(asked(first, second, picture, "When?"))
    words = len(prompt.encoded.input_ids) - 3
    tokens = {medium: int(next(iter(medium.encoded.sequences.values())).mask.sum()) for medium in prompt.media}
    assert prompt.positions == words + sum(tokens.values())
    assert prompt.usage["video_tokens"] == tokens[first] + tokens[second]
    assert prompt.usage["image_tokens"] == tokens[picture]
    assert prompt.usage["frames"] == 12 + len(second.encoded.times_s)


def test_times_belong_to_the_chosen_video(prompts, untrained_qa):
    first, second = video(untrained_qa, 12, 8.0, 1), video(untrained_qa, 12, 80.0, 2)
    turns = asked(first, second, "When?")
    token = untrained_qa.processor.tokenizer.convert_tokens_to_ids("<t50>")
    times = [prompts.text(prompts.prompt(turns, number), [token]) for number in (0, 1, -1)]
    assert times[1] == times[2] != times[0]
    seconds = [float(text.split()[0]) for text in times]
    assert seconds[1] == pytest.approx(10 * seconds[0], rel=0.01)
    with pytest.raises(IndexError):
        prompts.prompt(turns, 2)


def test_times_without_a_video_are_left_out_and_pairs_are_joined(prompts, untrained_qa):
    ids = untrained_qa.processor.tokenizer.convert_tokens_to_ids(["<t10>", "<t50>", "the", "<t99>"])
    assert prompts.text(prompts.prompt(asked("Who?")), ids) == "the"
    times = prompts.text(prompts.prompt(asked(video(untrained_qa, 12, 8.0, 1), "When?")), ids)
    first, dash, second, unit, word, last, _ = times.replace(" s ", " ", 1).split(" ")
    assert (dash, unit, word) == ("-", "s", "the")
    assert float(first) < float(second) < float(last)


def test_a_conversation_that_is_too_long_is_told(prompts, untrained_qa):
    with pytest.raises(PromptTooLong, match="the LLM can read"):
        prompts.prompt(asked(video(untrained_qa, 12, 8.0, 1), "When? " * 9000))


def test_words_that_spell_a_placeholder_are_words(prompts, untrained_qa):
    prompt = prompts.prompt(asked(video(untrained_qa, 12, 8.0, 1), "When is <video> or <image>?"))
    assert int((prompt.encoded.input_ids == untrained_qa.processor.video_token_id).sum()) == 1
