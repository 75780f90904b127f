"""The training mixture: published shares, and draws that depend on the seed and their number alone."""

import json
from collections import Counter

import pytest

from mmllm.datasets.captions import CaptionedEvent, CaptionedVideo
from mmllm.datasets.mixture import (
    IMAGE_QA,
    REASONING,
    TASKS,
    VIDEO_QA,
    Mixture,
    MixtureConfig,
    caption_sources,
    dialogue_source,
    lita_mixture,
    question_source,
)
from mmllm.datasets.records import Dialogue, Question, Turn
from mmllm.errors import ConfigError, InputError
from mmllm.times.answers import Span


def captioned(name, tmp_path, count):
    events = (
        CaptionedEvent(span=Span(5.0, 9.0), sentence="Someone stops."),
        CaptionedEvent(span=Span(0.0, 4.0), sentence="Someone starts."),
    )
    return [
        CaptionedVideo(vid=f"{name}{i}", duration_s=10.0, events=events, video=tmp_path / f"{name}{i}.mp4")
        for i in range(count)
    ]


def sources(tmp_path, config):
    questions = [
        Question(
            question_id=str(i), vid=str(i), question="Why?", answer="So.", duration_s=None, video=tmp_path / "a.mp4"
        )
        for i in range(7)
    ]
    chat = [
        Dialogue(
            record_id=str(i), family="", turns=(Turn(role="user", text="Hi?"), Turn(role="assistant", text=str(i)))
        )
        for i in range(3)
    ]
    empty = CaptionedVideo(vid="empty", duration_s=5.0, events=())
    return [
        *caption_sources("activitynet", [*captioned("a", tmp_path, 5), empty], config),
        *caption_sources("youcook2", captioned("y", tmp_path, 2), config),
        question_source(VIDEO_QA, "nextqa", questions),
        question_source(REASONING, "activitynet_rtl", questions),
        dialogue_source(IMAGE_QA, "llava_instruct", chat),
    ]


def mixture(tmp_path, **fields):
    config = MixtureConfig(**fields)
    return Mixture(sources(tmp_path, config), config)


def test_published_shares(tmp_path):
    mixed = mixture(tmp_path, draws=50_000)
    drawn = [mixed.draw(number) for number in range(50_000)]
    tasks = Counter(draw.task for draw in drawn)
    assert set(tasks) == set(TASKS)
    for count in tasks.values():
        assert count / 50_000 == pytest.approx(1 / 5, abs=0.01)
    for task in TASKS[:2]:
        inside = Counter(draw.dataset for draw in drawn if draw.task == task)
        assert inside["activitynet"] / inside.total() == pytest.approx(5 / 6, abs=0.01)
    records = Counter(draw.record for draw in drawn if draw.dataset == "nextqa")
    assert set(records) == set(range(7))
    assert max(records.values()) < 1.2 * min(records.values())


def test_a_draw_depends_on_seed_and_number_alone(tmp_path):
    some, again, other = (mixture(tmp_path, seed=seed, draws=200) for seed in (3, 3, 4))
    backwards = [again[number] for number in reversed(range(200))][::-1]
    assert [some[number] for number in range(200)] == backwards
    assert list(some) == backwards
    assert list(other) != backwards
    assert some[-1] == some[199]
    with pytest.raises(IndexError):
        some[200]


def test_a_draw_is_known_forever(tmp_path):
    drawn = [mixture(tmp_path).draw(number) for number in range(6)]
    assert [(draw.task, draw.dataset, draw.record) for draw in drawn] == KNOWN


KNOWN = [
    ("image_qa", "llava_instruct", 2),
    ("dense_captioning", "activitynet", 4),
    ("image_qa", "llava_instruct", 0),
    ("event_localization", "activitynet", 2),
    ("video_qa", "nextqa", 5),
    ("event_localization", "activitynet", 1),
]


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_workers_and_processes_change_nothing(tmp_path, workers):
    from torch.utils.data import DataLoader, DistributedSampler

    mixed = mixture(tmp_path, draws=24)
    loaded = DataLoader(mixed, batch_size=4, num_workers=workers, collate_fn=list)
    assert [dialogue for batch in loaded for dialogue in batch] == list(mixed)
    for ranks in (1, 2):
        batches_by_worker = [
            DataLoader(
                mixed,
                batch_size=4,
                num_workers=workers,
                collate_fn=list,
                sampler=DistributedSampler(mixed, num_replicas=ranks, rank=rank, shuffle=False),
            )
            for rank in range(ranks)
        ]
        taken = [[dialogue for batch in batches for dialogue in batch] for batches in batches_by_worker]
        assert [taken[number % ranks][number // ranks] for number in range(24)] == list(mixed)


def test_wordings_and_events_vary(tmp_path):
    mixed = mixture(tmp_path, draws=400, task_rates={"dense_captioning": 1, "event_localization": 1})
    wordings = {family: {d.turns[0].text for d in mixed if d.family == family} for family in TASKS[:2]}
    assert len(wordings["dense_captioning"]) == 12
    assert len(wordings["event_localization"]) == 24
    assert all("empty" not in dialogue.record_id for dialogue in mixed)


@pytest.mark.parametrize("sort", [True, False])
def test_the_order_of_events(tmp_path, sort):
    mixed = mixture(tmp_path, draws=1, task_rates={"dense_captioning": 1}, sort_events=sort)
    first, second = "<0.0> <4.0> Someone starts.", "<5.0> <9.0> Someone stops."
    assert mixed[0].turns[1].text == (f"{first} {second}" if sort else f"{second} {first}")


def test_rates_are_checked(tmp_path):
    for fields in ({"draws": 0}, {"task_rates": {"image_qa": -1}}, {"task_rates": {}}, {"dataset_rates": {"a": 0}}):
        with pytest.raises(ConfigError):
            MixtureConfig(**fields)
    config = MixtureConfig()
    with pytest.raises(InputError, match="no data for image_qa"):
        Mixture(sources(tmp_path, config)[:-1], config)
    with pytest.raises(InputError, match="nextqa has no usable record"):
        Mixture([question_source(VIDEO_QA, "nextqa", [])], config)


def test_a_task_can_be_left_out(tmp_path):
    mixed = mixture(tmp_path, task_rates={"video_qa": 1, "image_qa": 0}, draws=20)
    assert set(mixed.describe()["tasks"]) == {"video_qa"}
    assert json.loads(json.dumps(mixed.describe()))["tasks"]["video_qa"]["datasets"]["nextqa"]["records"] == 7


@pytest.fixture
def lita_root(tmp_path):
    event = {"duration": 9, "timestamps": [[1, 2]], "sentences": ["A man runs."]}
    rows = {
        "activitynet-captions/train.json": {"v_a": event, "v_gone": event},
        "VidChapters/YouCook2/train.json": {"b": event},
        "nextqa/train_processed.json": [{"video": "1/c.mp4", "QA": [{"q": "what", "a": "ball"}]}],
        "LLaVA-Instruct-150K/llava_instruct_150k.json": [
            {
                "id": "d",
                "image": "d.jpg",
                "conversations": [{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "A dog."}],
            }
        ],
        "temporal_reasoning/activitynet_train_gpt-4-0613_temp_6_f10009.json": {
            "v_a": {"duration": 9, "QA": [{"q": "When?", "a": "<1> <2> Then."}]}
        },
    }
    for name, data in rows.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(data))
    for folder in ("activitynet-captions/activitynet_frames/v_a", "youcook2/youcook2_frames/b"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("nextqa/NExTVideo/1/c.mp4", "coco/train2017/d.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_laid_out_as_the_published_one(lita_root, caplog):
    mixed = lita_mixture(lita_root, MixtureConfig(draws=100))
    datasets = {task: set(entry["datasets"]) for task, entry in mixed.describe()["tasks"].items()}
    assert datasets["dense_captioning"] == datasets["event_localization"] == {"activitynet", "youcook2"}
    assert datasets["image_qa"] == {"llava_instruct"}
    assert "1 of 2 rows left out" in caplog.text
    media = {dialogue.media[0].path.relative_to(lita_root).as_posix() for dialogue in mixed}
    assert media == {
        "activitynet-captions/activitynet_frames/v_a",
        "youcook2/youcook2_frames/b",
        "nextqa/NExTVideo/1/c.mp4",
        "coco/train2017/d.jpg",
    }


def test_everything_that_is_missing_is_named_at_once(lita_root):
    (lita_root / "nextqa/train_processed.json").unlink()
    (lita_root / "coco/train2017").rename(lita_root / "coco/val2017")
    with pytest.raises(InputError, match=r"train2017/, nextqa/train_processed\.json$"):
        lita_mixture(lita_root, MixtureConfig())
    rates = {"dense_captioning": 1, "temporal_reasoning": 1}
    assert len(lita_mixture(lita_root, MixtureConfig(task_rates=rates, draws=5))) == 5
    with pytest.raises(InputError, match="did you mean 'image_qa'"):
        lita_mixture(lita_root, MixtureConfig(task_rates={"image_q": 1}))
