"""One encoding serves many questions, and unusable videos are refused."""

from dataclasses import replace

import pytest

from mmllm.app.engine import stamped
from mmllm.errors import InputError
from mmllm.times.answers import Span

QUESTION = "When does the red circle spin?"


def test_a_second_question_decodes_and_encodes_nothing_and_starts_sooner(engine, short_clip):
    first = engine.answer(short_clip, QUESTION, engine.own_settings)
    second = engine.answer(short_clip, "When is the blue square on screen?", engine.own_settings)
    assert set(first.stage_s) == {"decode", "encode", "reduce", "prefill"}
    assert set(second.stage_s) == {"prefill"}
    saved_s = sum(first.stage_s[name] for name in ("decode", "encode", "reduce"))
    assert first.first_token_s >= saved_s + first.stage_s["prefill"]
    assert second.first_token_s < first.first_token_s


def test_the_llm_reads_a_video_once_and_the_shelf_counts_its_cache(engine, short_clip, monkeypatch):
    encoded, _ = engine.encode_video(short_clip, engine.own_settings)
    encoded.prefix.kept = None
    before = engine.shelf.bytes
    first = engine.answer(short_clip, QUESTION, engine.own_settings)
    kept = encoded.prefix.kept
    assert engine.shelf.bytes == before + kept.nbytes
    assert engine.answer(short_clip, QUESTION, engine.own_settings).answer == first.answer
    assert encoded.prefix.kept is kept
    monkeypatch.setattr(engine.shelf, "size", before)
    engine.answer(short_clip, QUESTION, engine.own_settings)
    assert engine.shelf.bytes <= before
    assert engine.encode_video(short_clip, engine.own_settings)[0] is encoded  # the video has stayed


def test_the_last_reply_has_the_turn_and_the_others_what_was_said(engine, short_clip):
    *before, last = list(engine.ask(short_clip, QUESTION, engine.own_settings, truth=Span(1.0, 2.0)))
    assert [reply.turn for reply in before] == [None] * len(before)
    assert last.turn.truth == Span(1.0, 2.0)
    assert last.turn.answer == last.partial.answer
    assert last.turn.visual_tokens == 12 + 16
    assert len(before) >= last.turn.tokens


def test_other_settings_start_from_what_is_there(engine, short_clip):
    engine.encode_video(short_clip, engine.own_settings)
    chosen = replace(engine.own_settings, reducer="uniform", share=0.5)
    _, seconds = engine.encode_video(short_clip, chosen)
    assert set(seconds) == {"reduce"}
    _, seconds = engine.encode_video(short_clip, chosen)
    assert seconds == {}
    _, seconds = engine.encode_video(short_clip, replace(chosen, frames=6))
    assert set(seconds) == {"decode", "encode", "reduce"}


def test_two_settings_are_compared_on_one_question(engine, short_clip):
    choices = [engine.own_settings, replace(engine.own_settings, path="slowfast:mode=temporal")]
    a, b = engine.compare(short_clip, QUESTION, choices)
    assert (a.visual_tokens, b.visual_tokens) == (28, 12)
    with pytest.raises(InputError, match=r"settings B: .*did you mean"):
        engine.compare(short_clip, QUESTION, [engine.own_settings, replace(engine.own_settings, reducer="unifrm")])


def test_the_same_file_under_two_names_is_encoded_once(engine, short_clip, tmp_path):
    copy = tmp_path / "other.mp4"
    engine.encode_video(short_clip, engine.own_settings)
    copy.write_bytes(short_clip.read_bytes())
    assert engine.encode_video(copy, engine.own_settings)[1] == {}


@pytest.mark.parametrize("name", ["text.mp4", "empty.mp4", "cut.mp4", "list.mp4", "sound.mp4", "long.mp4", "huge.mp4"])
def test_bad_files_are_refused_in_one_line_and_the_engine_goes_on(engine, bad_videos, short_clip, name):
    with pytest.raises(InputError) as refused:
        engine.encode_video(bad_videos[name], engine.own_settings)
    assert "\n" not in str(refused.value)
    assert len(engine.shelf) == 0
    assert engine.encode_video(short_clip, engine.own_settings)[0].duration_s == pytest.approx(8.0)


def test_what_a_file_is_called_does_not_matter(engine, bad_videos):
    assert engine.encode_video(bad_videos["good.jpg"], engine.own_settings)[0].duration_s == pytest.approx(8.0)


def test_a_removed_file_is_reported(engine, tmp_path):
    with pytest.raises(InputError, match="upload it again"):
        engine.encode_video(tmp_path / "gone.mp4", engine.own_settings)


def test_the_demo_asks_under_a_policy_of_the_cache(engine, short_clip):
    settings = engine.settings(12, "none", 0.5, "as trained", " h2o:heavy=4,recent=4 ")
    turn = engine.answer(short_clip, QUESTION, settings)
    assert turn.settings.endswith("context h2o:heavy=4,recent=4")
    assert engine.settings(12, "none", 0.5, "as trained", "") == engine.settings(12, "none", 0.5, "as trained")
    plain = engine.answer(short_clip, QUESTION, engine.settings(12, "none", 0.5, "as trained"))
    assert engine.answer(short_clip, QUESTION, engine.settings(12, "none", 0.5, "as trained", "full")).answer == (
        plain.answer
    )
    with pytest.raises(InputError, match=r"needs heads=FILE.*cannot give heads: set razor when the server starts"):
        engine.answer(short_clip, QUESTION, engine.settings(12, "none", 0.5, "as trained", "razor"))


@pytest.mark.parametrize(
    ("reducer", "path", "context"),
    [
        ("none", "as trained", "razor:heads=FILE"),
        ("none", "as trained", "h2o doublesparse:channels=FILE"),
        ("cdpruner:keep=4,source=FILE", "as trained", ""),
        ("none", "tdc:question_source=FILE", ""),
    ],
)
def test_no_stage_opens_a_file_that_a_visitor_names(engine, tmp_path, reducer, path, context):
    file = tmp_path / "file"
    file.write_text("no calibration")
    reducer, path, context = (text.replace("FILE", str(file)) for text in (reducer, path, context))
    with pytest.raises(InputError, match="opens no other files"):
        engine.settings(12, reducer, 0.5, path, context)


@pytest.mark.parametrize(("question", "why"), [("  ", "is empty"), ("x" * 501, "501 characters")])
def test_questions_are_checked(engine, short_clip, question, why):
    with pytest.raises(InputError, match=why):
        engine.answer(short_clip, question, engine.own_settings)


@pytest.mark.parametrize(
    ("frames", "reducer", "why"), [(41, "none", "from 1 to 40"), (2.5, "none", "whole"), (4, "x" * 300, "at most 200")]
)
def test_settings_are_checked(engine, frames, reducer, why):
    with pytest.raises(InputError, match=why):
        engine.settings(frames, reducer, 0.5, "as trained")


def test_the_model_may_read_earlier_turns(engine, short_clip, monkeypatch):
    from mmllm.inference.answering import VideoQA

    lengths, generate = [], VideoQA.generate
    monkeypatch.setattr(
        VideoQA,
        "generate",
        lambda self, *arguments, **options: (
            lengths.append(arguments[1].shape[1]) or generate(self, *arguments, **options)
        ),
    )
    turn = engine.answer(short_clip, QUESTION, engine.own_settings)
    engine.answer(short_clip, QUESTION, engine.own_settings, earlier=[turn])
    assert lengths[1] > 2 * lengths[0] - 4


def test_words_that_the_model_does_not_know(engine):
    assert engine.unknown_words("When does the penguin spin at 12.4 s?") == ["penguin"]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("What happens at 12.4 s?", "What happens at <12.4>?"),
        ("from 3 seconds to 5 sec", "from <3> to <5>"),
        ("at <7.5> and 3 shapes", "at <7.5> and 3 shapes"),
    ],
)
def test_seconds_in_a_question_become_stamps(typed, read):
    assert stamped(typed) == read


def test_a_chain_replies_after_each_part_and_the_turn_has_the_steps(engine, short_clip):
    replies = list(engine.ask(short_clip, QUESTION, engine.own_settings, chain=engine.chain("3")))
    counts = [len(reply.steps) for reply in replies if reply.steps]
    assert counts == [1, 2, 3]
    turn = replies[-1].turn
    assert len(turn.answer.steps) == 3
    assert turn.settings.endswith("3 parts first")
    assert [step["part"] for step in turn.to_json()["steps"]] == [step.span.to_json() for step in turn.answer.steps]
    assert engine.chain("off") is None
    assert "steps" not in engine.answer(short_clip, QUESTION, engine.own_settings, chain=engine.chain("auto")).to_json()


def test_a_chain_is_stopped_between_its_parts(engine, short_clip):
    turn = engine.answer(short_clip, QUESTION, engine.own_settings, chain=engine.chain("3"), stopped=lambda: True)
    assert len(turn.answer.steps) == 1
    assert turn.cut == "stopped"


@pytest.mark.parametrize(("choice", "why"), [("9", "8 parts at most"), ("0", "1 or more"), ("two", "not 'two'")])
def test_chains_are_checked(engine, choice, why):
    with pytest.raises(InputError, match=why):
        engine.chain(choice)


def test_a_long_video_is_encoded_in_pieces_and_read_again_only_for_its_frames(untrained_qa, demo_limits, short_clip):
    from mmllm.app.engine import Engine
    from mmllm.app.session import Visit
    from mmllm.app.sight import sight
    from mmllm.app.timeline import timeline

    engine = Engine(untrained_qa, replace(demo_limits, frames=600))
    settings = replace(engine.own_settings, frames=600)
    turn = engine.answer(short_clip, QUESTION, settings)
    encoded, seconds = engine.encode_video(short_clip, settings)
    assert seconds == {}
    assert len(encoded.times_s) == 600
    assert len(encoded.clip) == 96
    assert encoded.clip.metadata["codec"] == "h264"
    assert "24 of 600 frames are shown" in sight(turn, encoded)
    visit = Visit(name="clip", path=short_clip, duration_s=encoded.duration_s, turns=(turn,))
    assert timeline(visit, encoded.clip).count("mm-frame") == 12
    assert set(engine.encode_video(short_clip, replace(settings, reducer="uniform"))[1]) == {"reduce"}
    ranked, seconds = engine.encode_video(short_clip, replace(settings, reducer="fastervlm"))
    assert set(seconds) == {"decode", "encode", "reduce"}
    assert ranked.long.reduced.shape[1:3] == (600, 4)
    assert ranked.kept.sum() == 600 * 4


def test_the_demo_writes_through_a_method_and_loads_no_model_that_a_visitor_names(engine, short_clip):
    method = engine.decoding("token-recycling")
    assert engine.decoding("token-recycling") is method
    assert engine.decoding("one by one") is None
    plain = engine.answer(short_clip, QUESTION, engine.own_settings)
    turn = engine.answer(short_clip, QUESTION, engine.own_settings, decoding=method)
    assert turn.answer == plain.answer
    assert turn.settings.endswith("decoding token-recycling")
    other = engine.answer(short_clip, QUESTION, engine.own_settings, decoding=engine.decoding("bild:layers=1"))
    assert "(tokens of a small model" in other.settings
    with pytest.raises(InputError, match="loads no other models"):
        engine.decoding("spectr:draft=/etc")
    with pytest.raises(InputError, match="at most"):
        engine.decoding("a" * 300)
    with pytest.raises(InputError, match="unknown decoding"):
        engine.decoding("telepathy")


def test_methods_of_the_owner_are_found_by_their_names(untrained_qa, demo_limits, short_clip, tmp_path):
    from mmllm import registry
    from mmllm.app.engine import Engine
    from mmllm.app.settings import decoding_choices
    from mmllm.decoding.draft_files import save_draft

    save_draft(registry.build("draft", "flash", model=untrained_qa.model), tmp_path, untrained_qa.model)
    engine = Engine(untrained_qa, demo_limits, decodings=[f"flash:draft={tmp_path}"])
    assert decoding_choices(engine.own_methods)[1] == "flash"
    assert "flash" not in decoding_choices()
    method = engine.decoding("flash")
    turn = engine.answer(short_clip, QUESTION, engine.own_settings, decoding=method)
    assert turn.answer == engine.answer(short_clip, QUESTION, engine.own_settings).answer
    assert method.last.draft_passes > 0
    with pytest.raises(InputError, match="loads no other models"):
        engine.decoding("flash:draft=/etc")
