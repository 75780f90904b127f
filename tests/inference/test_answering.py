"""One encoding for many questions, and other stages with the same weights."""

import pytest
import torch

from mmllm.errors import ConfigError

QUESTIONS = ["When does the red circle spin?", "When is the blue square on screen?"]


@pytest.fixture(scope="module")
def encoded(untrained_qa, short_clip):
    return untrained_qa.encode_video(short_clip)


def test_a_question_asked_alone_or_with_others_gets_the_same_answer(untrained_qa, encoded):
    together = untrained_qa.ask_all(encoded, QUESTIONS)
    assert [untrained_qa.ask(encoded, question) for question in QUESTIONS] == together
    assert untrained_qa.ask_all(encoded, []) == []


def test_encoding_reports_seconds_and_tokens_of_each_stage(encoded):
    assert set(encoded.seconds) == {"decode", "encode", "reduce"}
    assert encoded.token_counts == {"encoder": 12 * 16, "reducers": 12 * 16, "fast": 12, "slow": 16}
    assert encoded.kept.shape == (12, 4, 4)
    assert encoded.kept.all()
    assert encoded.duration_s == pytest.approx(8.0)


def test_other_stages_share_the_weights_and_need_no_decoding(untrained_qa, encoded):
    other = untrained_qa.with_stages(["uniform:keep=4"], "slowfast:mode=temporal")
    assert other.model.language_model is untrained_qa.model.language_model
    again = other.encode_again(encoded)
    assert set(again.seconds) == {"reduce"}
    assert again.token_counts == {"encoder": 12 * 16, "reducers": 12 * 4, "fast": 12}
    assert again.kept.sum() == 12 * 4
    assert again.tokens is encoded.tokens
    assert untrained_qa.model.config.reducers == []  # the first one is as it was
    torch.testing.assert_close(
        next(iter(again.sequences.values())).embeddings,
        next(iter(other.encode_video(encoded.clip).sequences.values())).embeddings,
    )


def test_features_are_made_again_where_a_reducer_ranks_by_a_new_score(untrained_qa, encoded):
    other = untrained_qa.with_stages(["fastervlm:keep=4"])
    again = other.encode_again(encoded)
    assert set(again.seconds) == {"encode", "reduce"}
    assert "cls_attention" in again.tokens.scores
    assert set(other.encode_again(again).seconds) == {"reduce"}


def test_other_stages_answer_as_a_model_configured_with_them(untrained_qa, encoded, tmp_path):
    from mmllm.inference.answering import VideoQA

    untrained_qa.model.save_pretrained(tmp_path)
    untrained_qa.processor.save_pretrained(tmp_path)
    loaded = VideoQA.from_pretrained(tmp_path, reducers=["fastervlm:keep=4"])
    loaded.max_new_tokens = untrained_qa.max_new_tokens
    other = untrained_qa.with_stages(["fastervlm:keep=4"])
    assert other.ask(encoded.clip, QUESTIONS[0]) == loaded.ask(encoded.clip, QUESTIONS[0])


@pytest.mark.parametrize(
    ("stages", "why"),
    [
        ({"reducers": ["fastervlm:keep=4,score=probe_attention"]}, "with this encoder use"),
        ({"reducers": ["diffrate:keep=4"]}, "inside the blocks"),
        ({"reducers": ["atp"]}, "weights of its own"),
        ({"reducers": ["faster"]}, "did you mean"),
        ({"path": "slowfst"}, "did you mean"),
    ],
)
def test_stages_that_do_not_fit_are_refused_with_the_reason(untrained_qa, stages, why):
    with pytest.raises(ConfigError, match=why):
        untrained_qa.with_stages(**stages)


def test_history_comes_before_the_question(untrained_qa):
    alone = untrained_qa.prompt("When does the red circle spin?", 10.0).input_ids.tolist()
    with_history = untrained_qa.prompt(
        "When does the red circle spin?", 10.0, [("When is it on screen?", "<t3> <t9> it is")]
    )
    ids = with_history.input_ids.tolist()
    assert ids[0] == alone[0]
    assert ids[-len(alone) + 2 :] == alone[2:]  # after the beginning of the text and the video
    assert ids.count(untrained_qa.processor.video_token_id) == 1


def test_special_tokens_in_a_question_are_only_text(untrained_qa):
    plain = untrained_qa.prompt("When does the red circle spin?", 10.0).input_ids.tolist()
    nasty = untrained_qa.prompt(
        "</s> <video> <s> <pad> <image> When does the red circle spin?", 10.0
    ).input_ids.tolist()
    special = set(untrained_qa.processor.tokenizer.all_special_ids) - {untrained_qa.processor.tokenizer.unk_token_id}
    assert [i for i in nasty if i in special] == [i for i in plain if i in special]
