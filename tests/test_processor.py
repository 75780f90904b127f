import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from mmllm.errors import InputError
from mmllm.preprocessing.closed_vocabulary import word_tokenizer
from mmllm.preprocessing.templates import TEMPLATES
from mmllm.processor import MmllmProcessor, add_special_words
from mmllm.tokens import VideoClip
from mmllm.video.opening import open_video
from mmllm.video.sampling import slow_fast

WORDS = "system says user assistant when does the red circle spin ? . , answer : then 4 2".split()


@pytest.fixture
def processor():
    tokenizer = word_tokenizer(WORDS)
    add_special_words(tokenizer, 10)
    return MmllmProcessor(tokenizer, frames={"size": 32, "fit": "pad"}, num_frames=5, num_time_tokens=10)


def clip(frames=5, value=0):
    return VideoClip(
        frames=np.full((frames, 32, 32, 3), value, np.uint8), times_s=np.arange(frames) * 2.0, duration_s=frames * 2.0
    )


def asked(text, *clips):
    items = [{"type": "video", "video": one} for one in clips]
    return {"role": "user", "content": [*items, {"type": "text", "text": text}]}


def test_time_tokens_come_after_all_words_and_are_added_once():
    tokenizer = word_tokenizer(WORDS)
    size = len(tokenizer)
    assert add_special_words(tokenizer, 10) == list(range(size, size + 10))
    assert tokenizer.convert_tokens_to_ids(["<video>", "<image>"]) == [size + 10, size + 11]
    assert add_special_words(tokenizer, 10) == list(range(size, size + 10))
    assert len(tokenizer) == size + 12
    with pytest.raises(InputError, match="10 of 20"):
        add_special_words(tokenizer, 20)


def test_messages_become_model_inputs_with_the_times_of_the_frames(processor):
    messages = [asked("When does the red circle spin?", clip(5), clip(3))]
    inputs = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    assert (inputs["input_ids"] == processor.video_token_id).sum() == 2
    assert inputs["pixel_values_videos"].shape == (2, 5, 3, 32, 32)
    assert inputs["video_frame_mask"].tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert inputs["video_times_s"].tolist() == [[0, 2, 4, 6, 8], [0, 2, 4, 4, 4]]
    assert inputs["video_durations_s"].tolist() == [10, 6]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text.endswith("answer :")


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_labels_cover_exactly_what_the_assistant_says(template):
    tokenizer = word_tokenizer(WORDS)
    add_special_words(tokenizer, 10)
    ends = ["</s>", "<|im_end|>", "<|eot_id|>"]
    marks = ["<|im_start|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [*marks, *ends[1:]]})
    processor = MmllmProcessor(tokenizer, frames={"size": 32}, num_time_tokens=10, chat_template=template)
    messages = [
        {"role": "system", "content": "system says"},
        asked("When does the red circle spin?", clip()),
        {"role": "assistant", "content": "<t1> <t3> The circle spin."},
        {"role": "user", "content": "then?"},
        {"role": "assistant", "content": "<t4> the red."},
    ]
    both = processor.encode_conversation(messages)
    said = both.input_ids[both.labels != -100]
    assert torch.equal(said, both.labels[both.labels != -100])
    words = [word for word in tokenizer.convert_ids_to_tokens(said) if word not in ends]
    assert words == ["<t1>", "<t3>", "the", "circle", "spin", ".", "<t4>", "the", "red", "."]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_labels=True)
    assert torch.equal(inputs["labels"][0], both.labels)
    prompt = processor.apply_chat_template(messages[:2], add_generation_prompt=True)
    start = processor.encode(prompt).input_ids
    assert torch.equal(both.input_ids[: len(start)], start)


def test_batches_are_padded_on_the_right_and_masked(processor):
    batch = [[asked("When?", clip())], [asked("When does the red circle spin?", clip())]]
    inputs = processor.apply_chat_template(batch, tokenize=True, return_labels=True)
    short = int(inputs["attention_mask"][0].sum())
    assert short < inputs["input_ids"].shape[1]
    alone = processor.apply_chat_template(batch[0], tokenize=True)
    assert torch.equal(inputs["input_ids"][0, :short], alone["input_ids"][0])
    assert inputs["labels"].eq(-100).all()  # nobody has answered


def test_time_tokens_swallow_the_space_around_them_only_if_asked_to(processor):
    stripped = processor.encode("spin . <t1> <t2> the").input_ids
    assert processor.tokenizer.convert_ids_to_tokens(stripped) == ["spin", ".", "<t1>", "<t2>", "the"]
    pieces = list(processor._pieces("spin . <t1> <t2> the"))
    assert [piece for _, piece in pieces] == ["spin .", "<t1>", "<t2>", "the"]
    processor.strip_time_tokens = False
    pieces = list(processor._pieces("spin . <t1> <t2> the"))
    assert [piece for _, piece in pieces] == ["spin . ", "<t1>", " ", "<t2>", " the"]
    processor.strip_time_tokens = "spaces"
    pieces = list(processor._pieces("spin\n <t1> <t2> the\n"))
    assert [piece for _, piece in pieces] == ["spin\n", "<t1>", "<t2>", "the\n"]


def test_placeholders_that_somebody_types_stay_words(processor):
    inputs = processor.apply_chat_template([asked("the <video> and <image>", clip())], tokenize=True)
    assert (inputs["input_ids"] == processor.video_token_id).sum() == 1
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 0


def test_generated_ids_become_an_answer_in_seconds(processor):
    words = ["<t9>", "<t3>", "the", "circle", "spin", ".", "</s>", "<pad>"]
    ids = torch.tensor(processor.tokenizer.convert_tokens_to_ids(words))
    answer = processor.decode(ids, 9.0)
    assert answer.text == "the circle spin."
    assert [span.to_json() for span in answer.spans] == [[3.0, 9.0]]
    assert not answer.fallback
    assert processor.decode(ids[2:], 9.0).fallback
    two = processor.batch_decode(torch.stack([ids, ids]), torch.tensor([9.0, 18.0]))
    assert two[1].spans[0].to_json() == [6.0, 18.0]


def test_a_processor_is_saved_and_found_by_auto_processor(processor, tmp_path, make_model):
    make_model().config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is MmllmProcessor
    messages = [asked("When does <t1> the red circle spin?", clip()), {"role": "assistant", "content": "<t1> <t2>"}]
    ours = processor.apply_chat_template(messages, tokenize=True, return_labels=True)
    theirs = loaded.apply_chat_template(messages, tokenize=True, return_labels=True)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_images_become_pixels(processor, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "red.png")
    messages = [{"role": "user", "content": [{"type": "image", "path": str(tmp_path / "red.png")}]}]
    inputs = processor.apply_chat_template(messages, tokenize=True)
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == 1
    called = processor(text="<image> the", images=np.asarray(Image.open(tmp_path / "red.png")))
    assert torch.equal(called["pixel_values"], inputs["pixel_values"])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "robot", "content": "hello"}], "needs a role"),
        ([{"role": "user", "content": [{"type": "sound"}]}], "needs a type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "needs its text"),
        ([{"role": "user", "content": [{"type": "video"}]}], "needs its video, path or url"),
        ([{"role": "user", "content": [{"type": "image", "path": "nowhere.png"}]}], "cannot read image nowhere.png"),
        ([{"role": "user", "content": [{"type": "video", "path": "nowhere.mp4"}]}], "nowhere.mp4"),
        ([{"role": "user", "content": 3}], "content must be text or a list"),
    ],
)
def test_bad_messages_are_named(processor, messages, message):
    with pytest.raises(InputError, match=message):
        processor.apply_chat_template(messages, tokenize=True)


def test_a_tokenizer_without_placeholders_is_refused():
    with pytest.raises(InputError, match="add_special_words"):
        MmllmProcessor(word_tokenizer(WORDS))


def test_pieces_around_time_tokens_are_those_that_the_published_model_was_trained_with():
    from transformers import PreTrainedTokenizerFast

    from tokenizers import Tokenizer, models, pre_tokenizers

    pieces = ("<unk>", "▁A", ":", "▁First", "▁", ".", "<s>", "</s>")
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    llama_like = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    add_special_words(llama_like, 100)
    expected = {
        "A: <t1> <t24> First": ["▁A", ":", "<t1>", "<t24>", "▁First"],
        "<t1>.": ["<t1>", "▁", "."],
        "A: <t1>  <t24>  ": ["▁A", ":", "<t1>", "<t24>"],
    }
    as_published = MmllmProcessor(llama_like, frames={"size": 32})
    for text, words in expected.items():
        assert llama_like.convert_ids_to_tokens(as_published.encode(text).input_ids) == words
    plain = MmllmProcessor(llama_like, frames={"size": 32}, strip_time_tokens=False)
    spaced = llama_like.convert_ids_to_tokens(plain.encode("A: <t1> <t24> First").input_ids)
    assert [word for word in spaced if word != "▁"] == expected["A: <t1> <t24> First"]
    assert len(spaced) > len(expected["A: <t1> <t24> First"])


def test_the_last_id_can_be_taken_for_the_end_as_released(processor):
    ids = processor.tokenizer.convert_tokens_to_ids(["<t2>", "<t4>", "<t9>"])
    released = MmllmProcessor(processor.tokenizer, frames={"size": 32}, num_time_tokens=10, last_is_end=True)
    end = processor.tokenizer.eos_token_id
    for cut, spans in ((ids[:2], [[0, 9]]), ([*ids[:2], end], [[2, 4]]), (ids[:1], [[0, 9]]), ([], [[0, 9]])):
        assert [span.to_json() for span in released.decode(cut, 9.0).spans] == spans
    assert [span.to_json() for span in processor.decode(torch.tensor(ids[:2]), 9.0).spans] == [[2, 4]]
    assert [span.to_json() for span in released.decode(torch.tensor(ids), 9.0).spans] == [[2, 4]]


PICTURES = [np.full((40, 60, 3), value, np.uint8) for value in (0, 128, 255)]


def brightness(inputs):
    return [round(float(image[0, 16, 16]), 3) for image in inputs["pixel_values"]]


def test_media_come_in_one_list_or_in_a_list_for_each_text(processor):
    dark, grey, light = PICTURES
    texts = ["<image> the", "then <image> <image>"]
    expected = processor(text=texts, images=PICTURES)
    assert len(set(brightness(expected))) == 3
    for images in ([[dark], [grey, light]], [dark, [grey, light]], [(dark,), (grey, light)], np.stack(PICTURES)):
        assert torch.equal(processor(text=texts, images=images)["pixel_values"], expected["pixel_values"])
    assert brightness(processor(text=["the", texts[0]], images=[None, [grey]])) == brightness(expected)[1:2]
    assert brightness(processor(text=["the", texts[0]], images=[[], grey])) == brightness(expected)[1:2]
    assert "pixel_values" not in processor(text="the", images=[])
    frames = [np.zeros((4, 32, 32, 3), np.uint8), np.zeros((2, 32, 32, 3), np.uint8)]
    for videos in (frames, [[frames[0]], [frames[1]]], [[list(frames[0])], list(frames[1])]):
        inputs = processor(text=["<video> the", "<video> then"], videos=videos, fps=[2.0, 1.0])
        assert inputs["video_durations_s"].tolist() == [2, 2]
    inputs = processor(text=["<video> the", "<video> then"], videos=np.zeros((2, 4, 32, 32, 3), np.uint8), fps=2)
    assert inputs["video_durations_s"].tolist() == [2, 2]
    inputs = processor(
        text=["<video> <image> the"],
        images=[[dark]],
        videos=[[clip()]],
        images_kwargs={"max_pixels": 10**6},
        videos_kwargs={"min_pixels": 1},
        common_kwargs={"return_tensors": "np"},
    )
    assert inputs["pixel_values_videos"].shape == (1, 5, 3, 32, 32)


@pytest.mark.parametrize(
    ("text", "media", "message"),
    [
        ("<video> the", {}, "the text has 1 <video>, and 0 videos are given"),
        ("<image> the", {"images": []}, "the text has 1 <image>, and 0 images are given"),
        ("the", {"images": PICTURES[0]}, "the text has 0 <image>, and 1 images are given"),
        ("<image> the", {"images": PICTURES}, "the text has 1 <image>, and 3 images are given"),
        ("<image> <image>", {"images": PICTURES[:1]}, "the text has 2 <image>, and 1 images are given"),
        ("<image> the", {"videos": [clip()]}, "the text has 1 <image>, and 0 images are given"),
        (
            ["<image> a", "<image> <image>"],
            {"images": [PICTURES[:2], PICTURES[2:]]},
            "text 0 has 1 <image> for 2 images",
        ),
        (["<image> a", "<image>"], {"images": [PICTURES[:2]]}, "images has lists for 1 texts, and there are 2"),
        (
            ["<video> a", "<video>"],
            {"videos": [clip(), clip()], "num_frames": [1]},
            "num_frames has 1 values for 2 vid",
        ),
        (
            ["<video>"] * 2,
            {"videos": [np.zeros((2, 8, 8, 3), np.uint8)] * 2, "video_metadata": {"fps": 1}},
            "must be a list",
        ),
    ],
)
def test_placeholders_and_media_need_each_other(processor, text, media, message):
    with pytest.raises(InputError, match=message):
        processor(text=text, **media)


def test_templates_that_drop_a_medium_are_found_out(processor):
    messages = [{"role": "user", "content": [{"type": "image", "image": PICTURES[0]}]}]
    with pytest.raises(InputError, match="the text has 0 <image>, and 1 images are given"):
        processor.apply_chat_template(messages, "{{ messages[0]['role'] }} image video", tokenize=True)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            {"type": "video", "video": "a.mp4", "nframes": 8},
            "video items have no key 'nframes'; did you mean 'num_frames'",
        ),
        ({"type": "image", "image": "a.png", "fps": 8}, "image items have no key 'fps'; known:"),
        (
            {"type": "text", "text": "the", "cache_control": {}},
            "text items have no key 'cache_control'; known: text, type",
        ),
        ({"type": "image", "image": "a.png", "url": "b.png"}, "image item with image and url: give one of them"),
        ({"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}, "image items have no key 'detail'"),
        ({"type": "image_url"}, "an item of type image_url needs image_url"),
        ({"type": "audio", "audio": "a.wav"}, "an item needs a type"),
        ({"type": "image", "base64": 3}, "base64 must be a text, not int"),
        ("the", "an item needs a type"),
    ],
)
def test_items_are_read_whole_or_refused_by_name(processor, item, message):
    with pytest.raises(InputError, match=message):
        processor.apply_chat_template([{"role": "user", "content": [item]}], tokenize=True)


def test_items_of_openai_and_keys_without_a_value_are_read(processor, tmp_path):
    from PIL import Image

    path = str(tmp_path / "grey.png")
    Image.fromarray(PICTURES[1]).save(path)
    expected = processor(text="<image> the", images=path)
    for item in (
        {"type": "image_url", "image_url": {"url": path, "detail": "auto"}},
        {"type": "image_url", "image_url": path},
        {"type": "image", "image": path, "text": None, "video": None},
    ):
        content = [item, {"type": "text", "text": "the", "image": None}]
        inputs = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=True)
        assert torch.equal(inputs["pixel_values"], expected["pixel_values"])


def test_keywords_are_for_all_items_and_an_items_own_options_come_first(processor):
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    items = [{"type": "video", "video": frames}, {"type": "video", "video": frames, "fps": 4, "num_frames": 2}]
    messages = [{"role": "user", "content": items}]
    inputs = processor.apply_chat_template(messages, tokenize=True, fps=2.0, num_frames=3)
    assert inputs["video_durations_s"].tolist() == [4, 2]
    assert inputs["video_frame_mask"].sum(1).tolist() == [3, 2]
    grouped = {"videos_kwargs": {"fps": [2.0, 1.0], "num_frames": 3}}
    assert torch.equal(
        processor.apply_chat_template(messages, tokenize=True, processor_kwargs=grouped)["video_times_s"],
        inputs["video_times_s"],
    )
    with pytest.raises(InputError, match="videos stand in the messages"):
        processor.apply_chat_template(messages, tokenize=True, videos=[frames])


@pytest.mark.parametrize("conversation", [[], [[]], "when", {"role": "user", "content": "when"}, [[], []]])
def test_a_conversation_needs_a_message(processor, conversation):
    with pytest.raises(InputError, match="a conversation"):
        processor.apply_chat_template(conversation)


def test_parts_of_the_processor_prepare_media_alone(processor):
    expected = processor(text="<image> the", images=PICTURES[1])
    alone = processor.image_processor(PICTURES[1], return_tensors="pt")
    assert alone.keys() == {"pixel_values"}
    assert torch.equal(alone["pixel_values"], expected["pixel_values"])
    assert processor.image_processor.preprocess([PICTURES[0]] * 2)["pixel_values"].shape == (2, 3, 32, 32)
    assert processor.video_processor([clip()])["pixel_values_videos"].shape == (1, 5, 3, 32, 32)
    assert processor.image_processor.size == {"height": 32, "width": 32}
    assert len(processor.image_processor.image_mean) == len(processor.image_processor.image_std) == 3
    assert processor.image_processor.model_input_names == ["pixel_values", "image_tiling"]
    assert "video_times_s" in processor.video_processor.model_input_names
    with pytest.raises(InputError, match="no option 'num_frames'; known: max_pixels, min_pixels"):
        processor.media_inputs("image", PICTURES, num_frames=3)


def test_a_cast_of_the_inputs_shifts_no_time(processor):
    late = VideoClip(frames=np.zeros((2, 32, 32, 3), np.uint8), times_s=np.array([0.0, 1795.3]), duration_s=1799.3)
    ids = processor.tokenizer.convert_tokens_to_ids(["<t3>", "<t9>"])
    called = processor(text="<video> the", videos=[late])
    for inputs in (called, processor.apply_chat_template([asked("When?", late)], tokenize=True)):
        cast = inputs.to("cpu", torch.bfloat16)
        assert cast["pixel_values_videos"].dtype == torch.bfloat16
        assert cast["video_times_s"].tolist() == [[0, pytest.approx(1795.3, abs=1e-3)]]
        span = processor.decode(ids, cast["video_durations_s"][0]).spans[0]
        assert span.to_json() == pytest.approx([599.77, 1799.3], abs=0.01)


def test_frames_are_chosen_by_the_processors_rule_or_by_that_of_an_item(short_clip, tmp_path):
    tokenizer = word_tokenizer(WORDS)
    add_special_words(tokenizer, 10)
    settings = {"frames": {"size": 32}, "num_frames": 6, "num_time_tokens": 10, "sampling": "slow-fast:fps=2"}
    MmllmProcessor(tokenizer, **settings).save_pretrained(tmp_path)
    made = MmllmProcessor.from_pretrained(tmp_path)
    rate = open_video(short_clip).info.average_fps
    step = round(rate / 2)
    assert made.load(short_clip, num_frames=100).metadata["indices"][:3] == [0, step, 2 * step]  # fewer than 100
    clip = made.load(short_clip)
    assert clip.metadata["indices"] == slow_fast(len(open_video(short_clip)), rate, 6, 2.0).tolist()
    even = made.media_inputs("video", [short_clip], sampling="uniform")
    assert even.times_s[0, -1] > clip.times_s[-1] - 1 / rate
    frames = np.zeros((40, 8, 8, 3), dtype=np.uint8)
    in_memory = made.load(frames, fps=10.0)
    assert (in_memory.times_s * 10).round().astype(int).tolist() == slow_fast(40, 10.0, 6, 2.0).tolist()
    with pytest.raises(InputError, match=r"sampling=.* and fps=2\.0 both say how many frames"):
        made.load(short_clip, sampling="slow-fast", fps=2.0)
    with pytest.raises(InputError, match="sampling cannot be honoured"):
        made.load(clip, sampling="slow-fast")
