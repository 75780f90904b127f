"""LITA's recipe on clips laid out as its five data sets are: frame folders, video files, images, real schemas."""

import json
import shutil
from dataclasses import replace

import pytest
from PIL import Image

from mmllm.errors import ConfigError, InputError
from mmllm.inference.answering import VideoQA
from mmllm.preprocessing.templates import SYSTEM_PROMPTS
from mmllm.train.metrics import read_metrics
from mmllm.train.recipes import recipe
from mmllm.train.run import train


@pytest.fixture(scope="module")
def lita_root(own_clips, tmp_path_factory):
    """Three clips as ActivityNet (one of them as frames), one as YouCook2 frames, two as NExT-QA, and an image."""
    from mmllm.video.opening import open_video

    root = tmp_path_factory.mktemp("lita")
    entries = json.loads((own_clips / "train.json").read_text())
    vids = sorted(entries)

    def frames_of(vid, folder):
        folder.mkdir(parents=True)
        with open_video(own_clips / "videos" / f"{vid}.mp4") as video:
            seconds = [number / 5 for number in range(int(5 * video.info.duration_s))]
            for number, frame in enumerate(video.frames_at(seconds).frames, start=1):
                Image.fromarray(frame).save(folder / f"{number:06d}.jpg")

    def write(name, data):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(data))

    def events(vid):
        duration_s = entries.get(vid, {"duration": 9.0})["duration"]
        timestamps = [[0.5, duration_s / 2], [duration_s / 3, duration_s]]
        return {"duration": duration_s, "timestamps": timestamps, "sentences": [" The circle spins.", "It stops."]}

    frames = root / "activitynet-captions" / "activitynet_frames"
    frames_of(vids[0], frames / vids[0])
    for vid in vids[1:3]:
        shutil.copy(own_clips / "videos" / f"{vid}.mp4", frames / f"{vid}.mp4")
    frames_of(vids[3], root / "youcook2" / "youcook2_frames" / vids[3].removeprefix("v_"))
    write("activitynet-captions/train.json", {vid: events(vid) for vid in [*vids[:3], "v_absent"]})
    write("VidChapters/YouCook2/train.json", {vids[3].removeprefix("v_"): events(vids[3])})
    write("temporal_reasoning/activitynet_train_gpt-4-0613_temp_6_f10009.json", {v: entries[v] for v in vids[:3]})
    (root / "nextqa" / "NExTVideo" / "7").mkdir(parents=True)
    for vid in vids[4:]:
        shutil.copy(own_clips / "videos" / f"{vid}.mp4", root / "nextqa" / "NExTVideo" / "7" / f"{vid}.mp4")
    entries = [{"video": f"7/{vid}.mp4", "QA": [{"q": "what spins", "a": "the circle"}]} for vid in vids[4:]]
    write("nextqa/train_processed.json", entries)
    (root / "coco" / "train2017").mkdir(parents=True)
    Image.new("RGB", (70, 50), (200, 30, 30)).save(root / "coco" / "train2017" / "one.jpg")
    turns = [{"from": "human", "value": "What colour is it?\n<image>"}, {"from": "gpt", "value": "It is red."}]
    turns += [{"from": "human", "value": "Really?"}, {"from": "gpt", "value": "Yes, red."}]
    rows = [{"id": "1", "image": "one.jpg", "conversations": turns}]
    write("LLaVA-Instruct-150K/llava_instruct_150k.json", rows)
    return root


def tiny(parts, root, **changes):
    start = recipe("lita-tiny").without("frame_encoder")
    start = start.with_stage("language", max_steps=4, batch_size=6, logging_steps=1, save_steps=2, **changes)
    model = replace(parts, template="vicuna", system_prompt="vicuna-human")
    return replace(start, data=replace(start.data, root=str(root)), model=model)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [True, False])
def test_the_five_tasks_train_a_tiny_model(tiny_parts, lita_root, tmp_path, keep):
    model = train(tiny(tiny_parts, lita_root, keep_features=keep), tmp_path, workers=0)
    losses = [line["loss"] for line in read_metrics(tmp_path / "language" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    assert "v_absent" in (tmp_path / "left_out.txt").read_text()
    qa = VideoQA.from_pretrained(model)
    prompt = qa.processor.apply_chat_template([{"role": "user", "content": "When?"}], add_generation_prompt=True)
    assert prompt == f"<s>{SYSTEM_PROMPTS['vicuna-human']} USER: When? ASSISTANT:"
    assert "circle" in qa.processor.tokenizer.get_vocab()
    folder = next((lita_root / "youcook2" / "youcook2_frames").iterdir())
    assert 0 < qa.ask(folder, "When?").spans[0].end_s <= 10


def test_the_published_settings(tmp_path):
    chosen = recipe("lita-13b")
    language = chosen.stage("language")
    rows = language.max_steps * language.batch_size * 8
    assert rows == pytest.approx(500_000, abs=128)
    assert (language.system_prompt, chosen.model.system_prompt) == ("vicuna", "vicuna-human")
    assert set(chosen.data.mixture.task_rates.values()) == {1.0}
    assert chosen.data.mixture.dataset_rates == {"activitynet": 5.0, "youcook2": 1.0}
    with pytest.raises(InputError, match="coco/train2017/, nextqa/train_processed"):
        train(replace(chosen, data=replace(chosen.data, root=str(tmp_path))), tmp_path / "run")
    with pytest.raises(InputError, match="--data-root"):
        train(replace(chosen, data=replace(chosen.data, root=None)), tmp_path / "other")


def test_changed_annotations_are_refused(tiny_parts, lita_root, tmp_path):
    from mmllm.train.record import claim
    from mmllm.train.run import record_of

    chosen, file = tiny(tiny_parts, lita_root), lita_root / "nextqa" / "train_processed.json"
    claim(tmp_path / "recipe.json", record_of(chosen))
    before = file.read_text()
    file.write_text(before + "\n")
    try:
        with pytest.raises(ConfigError, match=r"annotations\.\S+train_processed\.json: '\w+' -> '\w+'"):
            claim(tmp_path / "recipe.json", record_of(chosen))
    finally:
        file.write_text(before)
