"""A modality that no file of mmllm knows: one class and its inputs, registered here, go through everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
import torch
from nearness import assert_near
from torch import Tensor, nn

from mmllm import registry
from mmllm.datasets.records import Dialogue, Media, Turn
from mmllm.errors import ConfigError, InputError
from mmllm.modalities.border import from_flat, modalities
from mmllm.modalities.inputs import ModalityInputs
from mmllm.modalities.modality import Modality
from mmllm.model import MmllmForConditionalGeneration
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.preprocessing.templates import TEMPLATES
from mmllm.processor import MmllmProcessor, add_special_words
from mmllm.tokens import VideoClip, VisualSequence
from mmllm.train.building import build_model
from mmllm.train.packing import NAMES, RowCollator
from mmllm.train.recipes import DecoderConfig, ModelConfig
from mmllm.train.rows import DialogueRows, MediaLoader, Shuffled

GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


@dataclass(frozen=True, kw_only=True, eq=False)
class BeepInputs(ModalityInputs):
    """Beeps: how loud each second is."""

    loudness: Tensor | None = None
    """float, M S."""
    mask: Tensor | None = None
    """bool, M S. False behind the last second."""

    modality: ClassVar[str] = "beeps"
    flat_names: ClassVar[Mapping[str, str]] = {"loudness": "beep_loudness", "mask": "beep_mask"}

    @classmethod
    def padded(cls, inputs: Sequence[Self]) -> list[Self]:
        longest = max(one.loudness.shape[1] for one in inputs)
        return [one.mapped(lambda value: nn.functional.pad(value, (0, longest - value.shape[1]))) for one in inputs]

    @property
    def lengths_s(self) -> list[float]:
        return self.mask.sum(1).tolist()


@dataclass(frozen=True, kw_only=True)
class BeepConfig:
    """Nothing to choose."""


class Beeps(Modality[BeepInputs]):
    """Beeps, a token a second."""

    inputs = BeepInputs
    argument: ClassVar[str] = "beeps"
    options: ClassVar[tuple[str, ...]] = ("volume",)

    def __init__(self, config: BeepConfig) -> None:
        self.config = config

    def load(self, processor: Any, source: Any, *, volume: float = 1.0, **options: Any) -> BeepInputs:
        if isinstance(source, (str, Path)):
            source = [float(number) for number in Path(source).read_text().split()]
        loudness = torch.tensor([source]) * volume
        return BeepInputs(loudness=loudness, mask=torch.ones_like(loudness, dtype=torch.bool))

    def encode(self, model: Any, inputs: BeepInputs) -> VisualSequence:
        embeddings = model.modality_parts["beeps"](inputs.loudness.unsqueeze(-1))
        seconds = torch.arange(inputs.loudness.shape[1]).expand(inputs.loudness.shape)
        return VisualSequence(
            embeddings=embeddings, mask=inputs.mask, frame=seconds, blocks=(("seconds", seconds.shape[1]),)
        )

    def part(self, config: Any) -> nn.Module:
        return nn.Linear(1, config.text_config.hidden_size)


@pytest.fixture(autouse=True)
def _registered():
    registry.parts("modality")  # the room's own are there
    registry.register("modality", "beeps", config=BeepConfig)(Beeps)
    yield
    del registry._parts["modality"]["beeps"]


@pytest.fixture
def processor():
    tokenizer = word_tokenizer("when does it beep ? answer : loud and".split())
    add_special_words(tokenizer, 10)
    return MmllmProcessor(tokenizer, frames={"size": 64}, num_frames=4, num_time_tokens=10)


@pytest.fixture
def make(make_model, processor):
    def model():
        return make_model(
            decoder={"vocab_size": len(processor.tokenizer)},
            time_token_ids=processor.tokenizer.convert_tokens_to_ids(list(processor.time_tokens.strings)),
            video_token_id=processor.video_token_id,
            image_token_id=processor.image_token_id,
            beeps_token_id=processor.beeps_token_id,
        )

    return model


def clip(frames=4):
    pixels = np.random.default_rng(0).integers(0, 255, (frames, 64, 64, 3), dtype=np.uint8)
    return VideoClip(frames=pixels, times_s=np.arange(frames) * 1.0, duration_s=float(frames))


def asked(*beeps, video=None, answer="loud", **options):
    shown = [] if video is None else [{"type": "video", "video": video}]
    shown += [{"type": "beeps", "beeps": one, **options} for one in beeps]
    said = [] if answer is None else [{"role": "assistant", "content": answer}]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": "when does it beep ?"}]}, *said]


BATCH = [asked([0.1, 0.9, 0.5], [1.0], video=clip()), asked([0.3, 0.2])]


def test_messages_and_calls_make_inputs_under_its_own_names(processor):
    inputs = processor.apply_chat_template(BATCH, tokenize=True)
    torch.testing.assert_close(inputs["beep_loudness"], torch.tensor([[0.1, 0.9, 0.5], [1, 0, 0], [0.3, 0.2, 0]]))
    assert inputs["beep_mask"].sum(1).tolist() == [3, 1, 2]
    assert (inputs["input_ids"] == processor.beeps_token_id).sum(1).tolist() == [2, 1]
    assert (inputs["input_ids"] == processor.video_token_id).sum(1).tolist() == [1, 0]
    assert {"beep_loudness", "beep_mask"} <= set(processor.model_input_names)
    louder = processor.apply_chat_template(asked([0.3, 0.2], volume=2.0), tokenize=True)
    called = processor(text=processor.apply_chat_template(BATCH[1]), beeps=[[0.3, 0.2]], volume=2.0)
    torch.testing.assert_close(called["beep_loudness"], torch.tensor([[0.6, 0.4]]))
    assert all(torch.equal(louder[name], value) for name, value in called.items())


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_templates_that_do_not_know_it_keep_its_place_among_images(processor, name):
    processor.chat_template = TEMPLATES[name]
    image = {"type": "image", "image": np.zeros((64, 64, 3), np.uint8)}
    content = [image, *asked([0.5])[0]["content"], {**image}]
    text = processor.apply_chat_template([{"role": "user", "content": content}])
    words = [word for word in ("<image>", "<beeps>", "<video>") for _ in range(text.count(word))]
    assert sorted(words) == ["<beeps>", "<image>", "<image>"]
    assert text.index("<image>") < text.index("<beeps>") < text.rindex("<image>")
    typed = processor.apply_chat_template([{"role": "user", "content": "the <beeps> here"}])
    assert "<beeps>" not in typed


def test_loss_reaches_its_weights_and_rows_do_not_mix(make, processor):
    model = make()
    inputs = processor.apply_chat_template(BATCH, tokenize=True, return_labels=True)
    model(**inputs).loss.backward()
    assert model.modality_parts["beeps"].weight.grad.abs().sum() > 0
    del inputs["labels"]
    together = model(**inputs).logits
    for row, messages in enumerate(BATCH):
        alone = model(**processor.apply_chat_template(messages, tokenize=True)).logits[0]
        assert_near(together[row, : len(alone)], alone)
    louder = replace(from_flat(inputs)["beeps"], loudness=inputs["beep_loudness"] * 5)
    assert not torch.allclose(model(**{**inputs, **louder.flat()}).logits[0, -1], together[0, -1])


def test_answers_are_generated_with_and_without_a_cache(make, processor):
    model = make()
    prompt = [asked(*beeps, answer=None) for beeps in ([[0.1, 0.9, 0.5], [1.0]], [[0.3, 0.2]])]
    inputs = processor.apply_chat_template(prompt, tokenize=True, add_generation_prompt=True)
    ids = model.generate(**inputs, **GREEDY)
    assert ids.shape == (2, inputs["input_ids"].shape[1] + 6)
    assert torch.equal(ids, model.generate(**inputs, **GREEDY, use_cache=False))
    alone = processor.apply_chat_template(prompt[1], tokenize=True, add_generation_prompt=True)
    assert torch.equal(model.generate(**alone, **GREEDY)[0, -6:], ids[1, -6:])
    assert isinstance(processor.decode_text(ids[0, -6:]), str)


def test_training_rows_hold_it(make, processor, tmp_path):
    for name, text in (("a", "0.1 0.9"), ("b", "0.4")):
        (tmp_path / name).write_text(text)
    dialogues = [
        Dialogue(
            record_id=name,
            family="",
            turns=(
                Turn(role="user", text="when does it beep ?", media=(Media(kind="beeps", path=tmp_path / name),)),
                Turn(role="assistant", text="loud"),
            ),
        )
        for name in "ab"
    ]
    rows = DialogueRows(Shuffled(dialogues, 0), processor, MediaLoader(processor), rows=2, max_text_tokens=50)
    batch = RowCollator(pad_token_id=processor.tokenizer.pad_token_id)([rows[0], rows[1]])
    assert sorted(batch["beep_mask"].sum(1).tolist()) == [1, 2]
    assert set(batch.pop(NAMES)) == {"a", "b"}
    assert make()(**batch).loss.isfinite()


def test_its_weights_are_saved_and_loaded(make, processor, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = MmllmForConditionalGeneration.from_pretrained(tmp_path)
    again = MmllmProcessor.from_pretrained(tmp_path)
    inputs = again.apply_chat_template(BATCH, tokenize=True)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.config.beeps_token_id == processor.beeps_token_id


def test_models_that_training_starts_with_have_its_placeholder_and_weights():
    encoder = "tiny:width=16,heads=2,channels=8+8+8"
    model, processor = build_model(
        ModelConfig(encoder=encoder, decoder=DecoderConfig(width=32, layers=2, mlp_width=64))
    )
    assert model.config.beeps_token_id == processor.beeps_token_id not in (None, processor.image_token_id)
    assert list(model.modality_parts) == ["beeps"]


def test_a_name_that_its_inputs_do_not_have_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class OtherConfig:
        """Nothing to choose."""

    registry.register("modality", "other", config=OtherConfig)(type("Other", (Beeps,), {}))
    try:
        with pytest.raises(ConfigError, match="the modality 'other' has inputs of 'beeps'"):
            modalities()
    finally:
        del registry._parts["modality"]["other"]


def test_models_and_processors_from_before_go_on_without_it(make_model):
    tokenizer = word_tokenizer(["when", "?"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<video>", "<image>"]})
    processor = MmllmProcessor(tokenizer, frames={"size": 64}, num_time_tokens=0)
    assert "beep_mask" not in processor.model_input_names
    with pytest.raises(InputError, match=r"needs a type \(image, video or text\)"):
        processor.apply_chat_template(asked([0.1]), tokenize=True)
    with pytest.raises(InputError, match="the tokenizer does not know '<beeps>'"):
        processor(text="when ?", beeps=[[0.1]])
    model = make_model()
    assert not model.modality_parts
    with pytest.raises(InputError, match="no beeps_token_id"):
        model(torch.tensor([[5, 6]]), beep_loudness=torch.zeros(1, 2), beep_mask=torch.ones(1, 2, dtype=torch.bool))
