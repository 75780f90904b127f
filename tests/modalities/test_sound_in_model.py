"""A model that hears: the sound of a file goes through processor, model, training rows, evaluation and `ask`."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from nearness import assert_near

from mmllm.commands.ask import ask
from mmllm.commands.flags import FrameChoice
from mmllm.datasets.dialogues import read_dialogues
from mmllm.errors import ConfigError, InputError
from mmllm.evaluation.run import answer_all
from mmllm.inference.answering import VideoQA
from mmllm.inference.costs import stage_costs
from mmllm.modalities.video import VideoInputs, clip_inputs, video_tokens
from mmllm.tokens import HEARD
from mmllm.train.building import build_model
from mmllm.train.features import FeatureCache
from mmllm.train.recipes import DecoderConfig, ModelConfig
from mmllm.train.rows import DialogueRows, MediaLoader, Shuffled

ENCODER = "tiny:width=16,heads=2,channels=8+8+8"
HEARS = ModelConfig(
    encoder=ENCODER,
    audio_encoder="tiny:width=8,bands=16",
    audio_projector="linear",
    path="slowfast:image_frames=12",
    decoder=DecoderConfig(width=32, layers=2, mlp_width=64),
    num_frames=12,
)


@pytest.fixture(scope="module")
def qa():
    return VideoQA(*build_model(HEARS, seed=0), max_new_tokens=6)


def test_the_processor_reads_the_sound_of_a_file(qa, heard_clip, short_clip):
    inputs = qa.processor(videos=[heard_clip, short_clip])
    assert inputs["video_waveform"].shape[0] == 2
    assert inputs["video_waveform_length"][0] > 150_000
    assert inputs["video_waveform_length"][1] == 0
    part = qa.processor(videos=[heard_clip], start_s=2.0, end_s=5.0)
    assert part["video_waveform"].shape == (1, 48_000)
    assert part["video_waveform_start_s"].tolist() == [2.0]
    assert "video_waveform" not in qa.processor(videos=[heard_clip], audio=False)
    assert "video_waveform" not in qa.processor(videos=[short_clip])
    half = inputs.to(torch.bfloat16)
    assert half["video_waveform"].dtype == torch.float32
    assert half["pixel_values_videos"].dtype == torch.bfloat16
    message = [{"role": "user", "content": [{"type": "video", "video": str(heard_clip), "audio": False}]}]
    assert "video_waveform" not in qa.processor.apply_chat_template(message, tokenize=True)


def test_a_model_that_does_not_hear_reads_no_sound(untrained_qa, heard_clip):
    assert "video_waveform" not in untrained_qa.processor(videos=[heard_clip])
    assert "video_waveform" not in untrained_qa.processor.model_input_names
    with pytest.raises(InputError, match="does not hear, because it has no audio encoder"):
        untrained_qa.processor(videos=[heard_clip], audio=True)
    clip_ = dataclasses.replace(untrained_qa.processor.load(heard_clip), waveform=np.zeros(16_000, np.float32))
    assert untrained_qa.processor.load(clip_).waveform is None
    inputs = clip_inputs(untrained_qa.processor, clip_)
    with pytest.raises(InputError, match="has no audio encoder"):
        video_tokens(untrained_qa.model, inputs)


@pytest.mark.parametrize("path", ["plain", "slowfast:image_frames=12", "slowfast:mode=temporal,image_frames=12"])
def test_an_audio_token_follows_each_frame_on_any_path(qa, heard_clip, path):
    other = qa.with_stages(path=path)
    encoded, silent = (other.encode_video(heard_clip, audio=audio) for audio in (None, False))
    sequence = next(iter(encoded.sequences.values()))
    without = next(iter(silent.sequences.values()))
    assert encoded.tokens.audio.shape == (1, 12, 10, 8)
    assert silent.tokens.audio is None
    spoken = sequence.place[0] == HEARD
    # the last frame may stand behind the end of the sound
    count = int(encoded.tokens.audio_mask.sum())
    assert count >= 11
    assert int((spoken & sequence.mask[0]).sum()) == count
    assert_near(sequence.embeddings[0][~spoken], without.embeddings[0], terms=4096)
    assert sequence.frame[0][spoken].tolist() == list(range(12))
    for position in spoken.nonzero().flatten().tolist():
        assert sequence.frame[0][position - 1] == sequence.frame[0][position]
    costs = stage_costs(ENCODER, [], "linear", path, 12, audio_encoder=HEARS.audio_encoder, audio_projector="linear")
    assert costs[-1]["tokens"] == len(spoken)


def test_what_is_heard_changes_the_answer_and_a_batch_is_as_each_alone(qa, heard_clip, short_clip):
    inputs = [qa.processor(videos=[video]) for video in (heard_clip, short_clip)]
    ids = torch.tensor([[qa.model.config.video_token_id, 5, 6]])
    alone = [qa.model(input_ids=ids, **one).logits[0, -1] for one in inputs]
    both = qa.processor(videos=[heard_clip, short_clip])
    logits = qa.model(input_ids=ids.repeat(2, 1), attention_mask=torch.ones(2, 3), **both).logits[:, -1]
    # rows differ in length, so the shorter one is padded: its last position is not the row's
    assert_near(logits[0], alone[0], terms=1 << 16)
    louder = {**inputs[0], "video_waveform": inputs[0]["video_waveform"].flip(1)}
    assert not torch.allclose(qa.model(input_ids=ids, **louder).logits[0, -1], alone[0], atol=1e-4)


def test_cached_features_of_sound_are_those_that_are_computed(qa, heard_clip, short_clip, tmp_path):
    cache = FeatureCache(tmp_path, qa.model, qa.processor)
    assert cache.fill([heard_clip, short_clip], workers=0) == {}
    stored, silent = cache.load(heard_clip), cache.load(short_clip)
    computed = video_tokens(qa.model, qa.processor.media_inputs("video", [heard_clip]))
    torch.testing.assert_close(stored.audio.float(), computed.audio, rtol=1e-2, atol=1e-2)
    assert torch.equal(stored.audio_mask, computed.audio_mask)
    assert silent.audio is None
    assert VideoInputs.stack([silent, stored]).audio_mask.any(1).tolist() == [False, True]
    loader = MediaLoader(qa.processor, cache)
    assert loader.load("video", heard_clip, audio=False).audio is None
    assert loader.load("video", heard_clip, audio=True).audio is not None


def test_rows_say_whether_their_video_is_heard(qa, untrained_qa, heard_clip, tmp_path):
    rows = [
        {"video": heard_clip.name, "question": "When is it?", "answer": "it is", "spans": [[1, 2]], "audio": audio}
        for audio in (True, False)
    ]
    rows.append({key: value for key, value in rows[0].items() if key != "audio"})
    file = heard_clip.parent / "rows.json"
    file.write_text(json.dumps(rows))
    dialogues = read_dialogues(file).items
    assert [dialogue.media[0].audio for dialogue in dialogues] == [True, False, None]
    assert [dialogue.questions()[0].audio for dialogue in dialogues] == [True, False, None]
    assert dialogues[1].questions()[0].dialogue().media[0].audio is False
    assert dialogues[1].messages()[0]["content"][0]["audio"] is False
    heard = [self_row(qa, dialogue) for dialogue in dialogues]
    assert [inputs.waveform is not None for inputs in heard] == [True, False, True]
    with pytest.raises(InputError, match="does not hear"):
        self_row(untrained_qa, dialogues[0])
    assert self_row(untrained_qa, dialogues[2]).waveform is None
    file.write_text(json.dumps([{**rows[0], "audio": "yes"}]))
    with pytest.raises(InputError, match="audio must be true or false"):
        read_dialogues(file, policy="raise")
    questions = [
        dataclasses.replace(dialogue.questions()[0], question_id=str(i)) for i, dialogue in enumerate(dialogues)
    ]
    samples, _ = answer_all(qa, questions, tmp_path / "hears", shuffle=False)
    assert not any(sample.error for sample in samples)
    samples, _ = answer_all(untrained_qa, questions, tmp_path / "deaf", shuffle=False)
    assert ["does not hear" in sample.error for sample in samples] == [True, False, False]


def self_row(qa, dialogue):
    """The inputs of the only video of a dialogue's row."""
    loader = MediaLoader(qa.processor)
    return (
        DialogueRows(Shuffled([dialogue], 0), qa.processor, loader, rows=1, max_text_tokens=99).row(dialogue).media[0]
    )


def test_a_saved_model_hears_and_ask_can_be_told_not_to(qa, heard_clip, tmp_path, capsys):
    qa.model.save_pretrained(tmp_path)
    qa.processor.save_pretrained(tmp_path)
    again = VideoQA.from_pretrained(tmp_path)
    assert again.processor.sound == qa.processor.sound
    assert again.model.config.audio_projector == {"name": "linear", "tokens": 1}
    first, second = (other.encode_video(heard_clip).tokens.audio for other in (qa, again))
    assert_near(second, first)
    for audio in (True, False):
        ask(
            str(heard_clip),
            "When is the low beep heard?",
            model=str(tmp_path),
            frames=FrameChoice(audio=audio),
            json=True,
        )
        assert json.loads(capsys.readouterr().out)["question"] == "When is the low beep heard?"


def test_sound_that_nobody_reads_is_refused(make_model):
    with pytest.raises(ConfigError, match="path 'slowfast' reads no sound: audio_encoder needs an audio_projector"):
        make_model(audio_encoder="tiny")
    with pytest.raises(ConfigError, match="audio_projector needs an audio_encoder"):
        make_model(audio_projector="linear")
    with pytest.raises(ConfigError, match="unknown audio_encoder 'bets'; did you mean 'beats'"):
        make_model(audio_encoder="bets", audio_projector="linear")


def test_torch_export_says_that_it_cannot_hear(qa, heard_clip):
    inputs = qa.processor(videos=[heard_clip])
    inputs["input_ids"] = torch.tensor([[qa.model.config.video_token_id, 5]])
    with pytest.raises(Exception, match="export without sound"):
        torch.export.export(qa.model, (), dict(inputs), strict=False)


def test_a_long_video_in_pieces_hears_the_same(qa, heard_clip):
    whole = qa.encode_fed(lambda sink: qa.processor.load(heard_clip, sink=sink))
    pieces = qa.encode_fed(lambda sink: qa.processor.load(heard_clip, sink=sink), whole=4)
    assert pieces.long is not None
    assert_near(pieces.tokens.audio, whole.tokens.audio)
    first, second = (next(iter(encoded.sequences.values())) for encoded in (whole, pieces))
    assert_near(second.embeddings, first.embeddings, terms=1 << 14)
    assert torch.equal(first.place, second.place)
