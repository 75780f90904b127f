"""TDC's recipes: small models train on rendered clips, one encoder or two behind the SVA connector, and are asked."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmllm.cli import main
from mmllm.errors import ConfigError
from mmllm.inference.answering import VideoQA
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.tokens import VideoClip
from mmllm.train.building import build_model
from mmllm.train.data import DataConfig
from mmllm.train.model_config import DecoderConfig
from mmllm.train.recipes import recipe
from mmllm.train.run import train

CLIPS = SyntheticConfig(train_videos=4, val_videos=2, world="basic", families=("visible",), max_duration_s=20.0)
DECODER = DecoderConfig(width=32, layers=2, mlp_width=64)
TOWER = "tiny:width=16;heads=2;channels=8+8+16"
CONNECTED = {
    "encoder": f"towers:first={TOWER},second={TOWER},grid=4",
    "visual_tokenizer": "sva:queries=4,width=32,depth=1",
}


def small(**changes):
    start = recipe("tdc-tiny")
    return replace(
        start,
        data=DataConfig(synthetic=CLIPS),
        model=replace(
            start.model,
            **{"encoder": "tiny:width=32,heads=2,channels=16+16+32", "decoder": DECODER, "num_frames": 12, **changes},
        ),
        stages=(replace(start.stage("language"), max_steps=2, batch_size=2, save_steps=2),),
    )


@pytest.fixture(scope="module", params=["linear", "sva"])
def trained(request, tmp_path_factory):
    changes = CONNECTED if request.param == "sva" else {}
    if request.param == "sva":
        changes |= {"path": recipe("tdc-tiny").model.path.replace("frame_tokens=16", "frame_tokens=4")}
    folder = tmp_path_factory.mktemp("tdc") / "run"
    return train(small(**changes), folder, workers=1), folder


def test_a_small_model_is_trained_and_asked(trained):
    model, folder = trained
    qa = VideoQA.from_pretrained(model)
    video = next((folder / "data" / "videos").glob("*.mp4"))
    encoded = qa.encode_video(video)
    assert encoded.sequences == {}  # it depends on the question
    first = qa.for_question(encoded, "When is the red square on screen?")
    second = qa.for_question(encoded, "Which shape is on screen?")
    assert not torch.equal(first.sequences[qa.model.config.video_token_id].embeddings,
                           second.sequences[qa.model.config.video_token_id].embeddings)  # fmt: skip
    assert isinstance(qa.ask(encoded, "When is the red square on screen?").text, str)
    sequence = first.sequences[qa.model.config.video_token_id]
    counted = qa.model.path.token_counts(12, (2, 2) if "queries" in str(qa.model.config.visual_tokenizer) else (4, 4),
                                         qa.model.visual_tokenizer.token_count(16))  # fmt: skip
    assert int(sequence.mask.sum()) <= counted["scenes"]
    norms = [
        sequence.embeddings[0][(sequence.place[0] == -2) & (sequence.frame[0] == frame)].norm(dim=-1)
        for frame in range(12)
    ]
    assert any(len(norm) == 5 for norm in norms)  # 4 context tokens and a separator


def run(capsys, *words):
    """The JSON that a command prints."""
    with pytest.raises(SystemExit) as end:
        main([*map(str, words), "--json"])
    assert end.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_it_is_evaluated_and_its_tokens_are_counted(trained, capsys):
    model, folder = trained
    assert run(capsys, "tokens", model)["stages"][-1]["stage"] == "path tdc"
    scores = run(capsys, "eval", model, folder / "data", "--limit", 1, "--max-new-tokens", 3)
    assert "miou" in str(scores).lower()
    published = run(capsys, "tokens", "--recipe", "tdc-qwen2-7b")["stages"]
    assert [row["tokens"] for row in published[:2]] == [224 * 576, 224 * 144]
    assert 224 * 17 < published[-1]["tokens"] <= 8192 - 16


def test_the_published_settings():
    chosen = recipe("tdc-qwen2-7b")
    stage = chosen.stage("language")
    assert stage.max_steps * stage.batch_size * stage.gradient_accumulation_steps * 8 == 2_000_000
    assert (stage.learning_rate, stage.warmup_fraction, stage.weight_decay) == (5e-6, 0.03, 0.0)
    assert stage.frozen == ("encoder",)


def test_questions_cannot_share_a_row():
    start = small()
    with pytest.raises(ConfigError, match="questions_per_video = 1"):
        replace(start, stages=(replace(start.stage("language"), questions_per_video=4),))


def test_a_projector_without_a_grid_gives_frames_without_row_ends():
    model, _ = build_model(small(visual_tokenizer="mqt:tokens=9,queries=9,heads=4").model)
    pixels = torch.rand(1, 12, 3, 64, 64)
    tokens = model.encode(pixels).replace(question=torch.tensor([[4, 5]]))
    sequence = model.arrange(tokens)
    windows = len(model.path.scenes(model.reduce(tokens), 0).windows)
    assert int(sequence.mask.sum()) == windows * 9 + (12 - windows) * 4 + 12


def test_a_reducer_stands_in_front():
    model, _ = build_model(small(reducers=("fastervlm:keep=6",)).model)
    tokens = model.encode(torch.rand(1, 12, 3, 64, 64)).replace(question=torch.tensor([[4, 5]]))
    whole = build_model(small().model)[0]
    assert int(model.arrange(tokens).mask.sum()) < int(whole.arrange(tokens).mask.sum())


def test_the_connector_refuses_an_encoder_without_a_grid():
    with pytest.raises(ConfigError, match="needs a square grid of patches"):
        build_model(small(encoder="flextok:image_size=32,tokens=4", visual_tokenizer="sva:queries=4,width=32").model)


def test_the_text_of_a_batch_is_counted_row_by_row():
    model, processor = build_model(small().model)
    video, counted = processor.video_token_id, []
    model.path.register_forward_pre_hook(lambda module, given: counted.append(given[0].text_tokens.tolist()))
    ids = torch.tensor([[1, video, 5, 6, 7], [1, video, 5, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    given = {"pixel_values_videos": torch.rand(2, 3, 3, 64, 64), "video_question": torch.tensor([[4], [5]])}
    model(input_ids=ids, attention_mask=mask, **given)
    model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=1, **given)
    assert counted == [[4, 2], [4, 2]]


def test_recipes_are_read_back_as_written():
    for name in ("tdc-tiny", "tdc-qwen2-7b"):
        written = recipe(name)
        assert recipe(name).changed(written.to_mapping()) == written
    assert dataclasses.asdict(recipe("tdc-tiny").model)["path"].startswith("tdc:")


def test_settings_that_need_no_other_weights_can_be_changed():
    model, processor = build_model(small().model)
    qa = VideoQA(model, processor)
    other = qa.with_stages(path="tdc:cuts=2,max_frames=6")
    assert other.model.path.compressor is qa.model.path.compressor
    assert (other.model.path.config.cuts, other.model.path.config.tokens) == (2, 4)
    clip = VideoClip(frames=np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8),
                     times_s=np.arange(12.0), duration_s=12.0)  # fmt: skip
    few = other.encode_video(clip)
    assert int(few.tokens.frame_mask.sum()) == 6
    placeholder = model.config.video_token_id
    assert set(other.for_question(few, "when").sequences[placeholder].frame[0].tolist()) == {0, 2, 4, 6, 8, 10}
    assert qa.needs_frames(few)
    assert not other.needs_frames(qa.encode_video(clip))
    again = qa.for_question(qa.encode_again(few), "when").sequences[placeholder]
    assert set(again.frame[0].tolist()) == set(range(12))
    with pytest.raises(ConfigError, match=r"tdc\.tokens = 8, and the trained model has 4; only cuts, window"):
        qa.with_stages(path="tdc:tokens=8")
    with pytest.raises(ConfigError, match="has weights of its own"):
        VideoQA(*build_model(small(path="plain").model)).with_stages(path="tdc:text_input=false")
    assert qa.with_stages(path="plain").model.path.registered_name == "plain"
