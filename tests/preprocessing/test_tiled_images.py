"""Images in tiles through the whole pipeline: processor, encoder, reducers, path, loss and generation."""

import numpy as np
import pytest
import torch

from mmllm.errors import InputError
from mmllm.modalities.border import from_flat
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.preprocessing.tiles import tilings_of
from mmllm.processor import MmllmProcessor, add_special_words

SIDE = 28
CLIP = f"clip:image_size={SIDE},patch_size=7,width=16,layers=2,heads=2,mlp_width=32"
PINPOINTS = [(28, 56), (56, 28), (56, 56), (84, 28), (28, 84)]


@pytest.fixture(scope="module")
def processor():
    tokenizer = word_tokenizer(["what", "is", "this", "?", "answer", ":", "dog"])
    add_special_words(tokenizer, 0)
    return MmllmProcessor(tokenizer, frames={"size": SIDE}, num_time_tokens=0, pinpoints=PINPOINTS)


@pytest.fixture(scope="module")
def make(make_model, processor):
    def model(**fields):
        ids = {"image_token_id": processor.image_token_id, "video_token_id": processor.video_token_id}
        settings = {"encoder": CLIP, "path": "anyres", "num_time_tokens": 0, "time_token_ids": None, **ids}
        return make_model(**{**settings, **fields})

    return model


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def asked(image, answer=None):
    content = [{"type": "image", "image": image}, {"type": "text", "text": "what is this ?"}]
    said = [] if answer is None else [{"role": "assistant", "content": answer}]
    return [{"role": "user", "content": content}, *said]


IMAGES = [picture(30, 90, 0), picture(60, 50, 1)]


def test_the_processor_cuts_images_and_says_how(processor):
    inputs = processor.media_inputs("image", IMAGES).flat()
    first, second = tilings_of(inputs["image_tiling"])
    assert (first.rows, first.cols, first.height, first.width) == (1, 3, 30, 90)
    assert inputs["pixel_values"].shape == (2, max(first.partitions, second.partitions), 3, SIDE, SIDE)
    assert not inputs["pixel_values"][0, first.partitions :].any()
    saved = MmllmProcessor(processor.tokenizer, **{"frames": {"size": SIDE}, "pinpoints": processor.pinpoints})
    assert torch.equal(saved.media_inputs("image", IMAGES).pixels, inputs["pixel_values"])


@pytest.mark.parametrize("reducers", [[], ["uniform:keep=3"], ["fastervlm:keep=3"], ["hired:ratio=0.3"]])
@pytest.mark.parametrize("path", ["anyres", "plain"])
def test_a_batch_of_differently_cut_images_equals_each_alone(make, processor, reducers, path):
    model = make(reducers=reducers, path=path)
    batch = processor.apply_chat_template([asked(one) for one in IMAGES], tokenize=True, add_generation_prompt=True)
    greedy = {"min_new_tokens": 6, "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    together = model.generate(**batch, **greedy)
    for row, image in enumerate(IMAGES):
        alone = processor.apply_chat_template(asked(image), tokenize=True, add_generation_prompt=True)
        one = model.generate(**alone, **greedy)
        assert torch.equal(together[row, -6:], one[0, -6:])
        seen = model.visual_sequences(from_flat(alone))[processor.image_token_id]
        with torch.no_grad():
            logits = model(**alone).logits
        assert logits.shape[1] == alone["input_ids"].shape[1] - 1 + int(seen.mask.sum())


def test_labels_cover_the_answer_and_the_newline_is_trained(make, processor):
    model = make()
    inputs = processor.apply_chat_template(asked(IMAGES[0], "dog"), tokenize=True, return_labels=True)
    out = model(**inputs)
    out.loss.backward()
    assert model.path.newline.grad.abs().sum() > 0
    with torch.no_grad():
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
    labels = inputs["labels"][0]
    said = labels[labels != -100]
    expected = torch.nn.functional.cross_entropy(logits[0, -len(said) - 1 : -1], said)
    torch.testing.assert_close(out.loss, expected)


def test_tiles_without_their_tiling_are_refused(make, processor):
    model = make()
    inputs = processor.apply_chat_template(asked(IMAGES[0]), tokenize=True)
    del inputs["image_tiling"]
    with pytest.raises(InputError, match="image_tiling"):
        model(**inputs)


def test_saved_and_loaded_the_model_says_the_same(make, processor, tmp_path):
    from mmllm.model import MmllmForConditionalGeneration

    model = make()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = MmllmForConditionalGeneration.from_pretrained(tmp_path)
    again = MmllmProcessor.from_pretrained(tmp_path)
    inputs = processor.apply_chat_template(asked(IMAGES[0]), tokenize=True)
    same = again.apply_chat_template(asked(IMAGES[0]), tokenize=True)
    with torch.no_grad():
        assert torch.equal(loaded(**same).logits, model(**inputs).logits)


def test_training_batches_hold_differently_cut_images(make, processor):
    from mmllm.train.packing import Row, RowCollator
    from mmllm.train.rows import MediaLoader

    media = MediaLoader(processor)
    rows = []
    for image in IMAGES:
        encoded = processor.encode_conversation(asked(image, "dog"))
        text = {"input_ids": encoded.input_ids, "labels": encoded.labels}
        rows.append(Row(name="row", text=text, media=(media.load("image", image),)))
    batch = RowCollator(pad_token_id=0)(rows)
    expected = processor.media_inputs("image", IMAGES).flat()
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    taken = ("input_ids", "labels", "attention_mask", *expected)
    assert make()(**{name: batch[name] for name in taken}).loss.isfinite()
