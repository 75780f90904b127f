"""Own data: the three forms of a row give one dialogue, spans are first-class, every fault of a row is named."""

import json
import shutil

import pytest

from mmllm.datasets.dialogues import read_dialogues
from mmllm.datasets.records import Media
from mmllm.datasets.stored import _from_json, _to_json
from mmllm.errors import InputError
from mmllm.times.answers import Span
from mmllm.times.vocabulary import TimeTokens

LLAVA = {
    "id": "7",
    "video": "clips/a.mp4",
    "conversations": [
        {"from": "human", "value": "<video>\nWhen does it start?"},
        {"from": "gpt", "value": "It starts early.", "spans": [[1, 2.5]]},
        {"from": "human", "value": "And then – é?"},
        {"from": "gpt", "value": "It ends."},
    ],
    "duration": 10,
    "family": "own",
}
ITEMS = {
    "id": "7",
    "messages": [
        {
            "role": "user",
            "content": [{"type": "video", "video": "clips/a.mp4"}, {"type": "text", "text": "When does it start?"}],
        },
        {"role": "assistant", "content": "It starts early.", "spans": [[1, 2.5]]},
        {"role": "user", "content": "And then – é?"},
        {"role": "assistant", "content": [{"type": "text", "text": "It ends."}]},
    ],
    "duration": 10.0,
    "family": "own",
}
TAGS = {
    **ITEMS,
    "messages": [{"role": "user", "content": "<video> When does it start?"}, *ITEMS["messages"][1:]],
    "videos": ["clips/a.mp4"],
}
URLS = {
    **ITEMS,
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "video_url", "video_url": {"url": "clips/a.mp4"}},
                {"type": "text", "text": "When does it start?"},
            ],
        },
        *ITEMS["messages"][1:],
    ],
}
PLAIN = {"id": "8", "video": "clips/a.mp4", "question": "When?", "answer": "Early.", "spans": [[1, 2], [4, 5]]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4", "c.jpg"):
        (tmp_path / "clips" / name).touch()
    return tmp_path


def read(folder, *rows, **options):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return read_dialogues(path, **options)


def test_all_forms_give_the_same_dialogue(folder):
    dialogues = [read(folder, row).items[0] for row in (LLAVA, ITEMS, TAGS, URLS)]
    (folder / "rows.json").write_text(json.dumps([LLAVA], indent=1))
    dialogues.append(read_dialogues(folder / "rows.json").items[0])
    assert all(dialogue == dialogues[0] for dialogue in dialogues)
    write = TimeTokens().write
    messages = [dialogue.messages(lambda text: write(text, 10)) for dialogue in dialogues]
    assert all(message == messages[0] for message in messages)


def test_times_are_written_by_the_reader(folder):
    (dialogue,) = read(folder, LLAVA).items
    assert dialogue.duration_s == 10
    assert dialogue.turns[0].media == (Media(kind="video", path=folder / "clips/a.mp4"),)
    assert dialogue.turns[1].spans == (Span(1.0, 2.5),)
    messages = dialogue.messages(lambda text: TimeTokens().write(text, 10))
    assert messages[1]["content"] == [{"type": "text", "text": "<t10> <t25> It starts early."}]
    assert messages[2]["content"] == [{"type": "text", "text": "And then – é?"}]


def test_a_plain_question_can_be_scored(folder):
    (dialogue,) = read(folder, PLAIN).items
    (question,) = dialogue.questions()
    assert question.truth().spans == (Span(1.0, 2.0), Span(4.0, 5.0))
    assert question.truth().text == "Early."
    assert (question.vid, question.question, question.video) == ("a", "When?", folder / "clips/a.mp4")
    assert question.dialogue().messages() == dialogue.messages()
    assert dialogue.messages()[1]["content"][0]["text"] == "<1.0> <2.0> <4.0> <5.0> Early."


def test_each_turn_of_a_longer_dialogue_is_a_question(folder):
    (dialogue,) = read(folder, {**LLAVA, "system": "Be brief."}).items
    first, second = dialogue.questions()
    assert (first.question_id, second.question_id) == ("7_turn1", "7_turn2")
    assert (first.history, second.history) == (
        (),
        (("When does it start?", "<1.0> <2.5> It starts early."),),
    )
    assert first.system == second.system == "Be brief."
    assert (second.question, second.truth().text) == ("And then – é?", "It ends.")
    assert second.dialogue().messages() == dialogue.messages()


def test_dialogues_about_other_media_cannot_be_scored(folder):
    row = {"image": "clips/c.jpg", "question": "What?", "answer": "A plate."}
    for own in (row, {"question": "Hello?", "answer": "Yes."}, {**PLAIN, "image": "clips/c.jpg"}):
        (dialogue,) = read(folder, own).items
        with pytest.raises(InputError, match="only dialogues about one video"):
            dialogue.questions()


def test_several_media_in_one_turn(folder):
    row = {
        "videos": ["clips/a.mp4", "clips/b.mp4"],
        "image": "clips/c.jpg",
        "conversations": [
            {"from": "human", "value": "<video><image>\nand <video>: same?"},
            {"from": "gpt", "value": "No."},
        ],
    }
    (dialogue,) = read(folder, row).items
    assert [media.path.name for media in dialogue.media] == ["a.mp4", "c.jpg", "b.mp4"]
    assert dialogue.turns[0].text == "and : same?"
    assert dialogue.turns[0].places == (0, 0, 4)
    kinds = [item["type"] for item in dialogue.messages()[0]["content"]]
    assert kinds == ["video", "image", "text", "video", "text"]


TAGGED = "<0.0 seconds> <image> <1.5 seconds> <image> What changes?"


@pytest.mark.parametrize(
    "content",
    [
        TAGGED,
        [{"type": "text", "text": TAGGED}],
        [
            {"type": "text", "text": "<0.0 seconds> "},
            {"type": "image"},
            {"type": "text", "text": " <1.5 seconds> "},
            {"type": "image"},
            {"type": "text", "text": " What changes?"},
        ],
    ],
)
def test_texts_and_media_keep_their_order(folder, content):
    shutil.copy(folder / "clips/c.jpg", folder / "clips/d.jpg")
    answer = {"role": "assistant", "content": "It moves."}
    row = {"messages": [{"role": "user", "content": content}, answer], "images": ["clips/c.jpg", "clips/d.jpg"]}
    llava = {
        "conversations": [{"from": "human", "value": TAGGED}, {"from": "gpt", "value": "It moves."}],
        "images": row["images"],
    }
    plain = {"question": TAGGED, "answer": "It moves.", "images": row["images"]}
    for form in (row, llava, plain):
        (dialogue,) = read(folder, form).items
        assert dialogue.messages()[0]["content"] == [
            {"type": "text", "text": "<0.0 seconds> "},
            {"type": "image", "image": str(folder / "clips/c.jpg")},
            {"type": "text", "text": " <1.5 seconds> "},
            {"type": "image", "image": str(folder / "clips/d.jpg")},
            {"type": "text", "text": " What changes?"},
        ]
        assert _from_json(json.loads(json.dumps(_to_json(dialogue)))) == dialogue


def test_media_stand_in_several_turns_and_after_a_text(folder):
    row = {
        "messages": [
            {"role": "user", "content": "<image>\n<image>\nSame?"},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "And in this video? <video>"},
            {"role": "assistant", "content": "No.", "spans": [[1, 2]]},
        ],
        "images": ["clips/c.jpg", "clips/c.jpg"],
        "video": "clips/a.mp4",
    }
    (dialogue,) = read(folder, row).items
    kinds = [[item["type"] for item in message["content"]] for message in dialogue.messages()]
    assert kinds == [["image", "image", "text"], ["text"], ["text", "video"], ["text"]]
    assert dialogue.messages()[2]["content"][0]["text"] == "And in this video?"
    assert dialogue.messages()[3]["content"][0]["text"] == "<1.0> <2.0> No."


def test_an_image_placeholder_may_stand_for_a_video(folder):
    row = {**LLAVA, "conversations": [{"from": "human", "value": "<image>\nWhen?"}, *LLAVA["conversations"][1:]]}
    assert read(folder, row).items[0].media[0].kind == "video"


def test_text_alone_and_a_system_turn(folder):
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello?"},
            {"role": "assistant", "content": "Yes."},
        ]
    }
    (dialogue,) = read(folder, row).items
    assert [turn.role for turn in dialogue.turns] == ["system", "user", "assistant"]
    assert dialogue.record_id == "line_1"


def conversation(*turns, **fields):
    return {**LLAVA, "conversations": [{"from": who, "value": text} for who, text in turns], **fields}


ASKED = ("human", "<video>\nWhen?")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object"),
        ('"text"', "expected an object"),
        ({}, "a row needs 'messages'"),
        ({**PLAIN, "video": "clips/missing.mp4"}, "clips/missing.mp4 is not in"),
        ({**PLAIN, "video": "https://example.org/a.mp4"}, "only local files"),
        ({**PLAIN, "video": 7}, "must be the path of a file"),
        ({**PLAIN, "video": [["f1.jpg", "f2.jpg"]]}, "must be the path of a file"),
        ({**PLAIN, "answer": 7}, "'answer' must be a text"),
        ({**PLAIN, "answer": "", "spans": None}, "a turn of the assistant is empty"),
        ({**PLAIN, "spans": [[2, 1]]}, "ends before it starts"),
        ({**PLAIN, "spans": [[2, 2]]}, "has no length"),
        ({**PLAIN, "spans": [[-2, 1]]}, "is outside of the video"),
        ({**PLAIN, "spans": [[float("nan"), 1]]}, "a start must be a number"),
        ({**PLAIN, "spans": [[0, float("inf")]]}, "an end must be a number"),
        ({**PLAIN, "spans": [1, 2]}, "a start and an end in seconds"),
        ({**PLAIN, "spans": {}}, "'spans' must be a list"),
        ({**PLAIN, "duration": 0}, "positive number of seconds"),
        ({**PLAIN, "family": ""}, "'family' must be a text"),
        ({**LLAVA, "spans": [[1, 2]]}, "put them on its turns"),
        (conversation(ASKED, ("gpt", "<video> Now.")), "only user turns may have placeholders"),
        (conversation(("human", "When?"), ("gpt", "Now.")), "no placeholder stands for clips/a.mp4"),
        (conversation(("human", "<video><video> When?"), ("gpt", "Now.")), "more placeholders than media"),
        (conversation(("human", "<image> When?"), ("gpt", "Now."), video=None), "more placeholders than media"),
        (conversation(ASKED), "must take turns"),
        (conversation(("gpt", "Now."), ("human", "When?")), "must take turns"),
        (conversation(), "no turns"),
        (conversation(ASKED, ("robot", "Now.")), "'from' must be one of"),
        (conversation(ASKED, ("gpt", " ")), "'value' must be a text"),
        (conversation(ASKED, ("gpt", "Now."), ("system", "Stop.")), "only the first turn"),
        ({"messages": [{"role": "user"}]}, "must have 'role' and 'content'"),
        ({"messages": [{"role": [], "content": "a"}]}, "'role' must be one of"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "an item's type must be one of text"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "'text' is missing"),
        ({"messages": [{"role": "user", "content": 3}]}, "'text' must be a text"),
        ({"messages": [{"role": "user", "content": [{"type": "video", "video": ["f.jpg"]}]}]}, "must be the path"),
        ({"messages": [{"role": "user", "content": "Hi", "spans": [[0, 1]]}, *TAGS["messages"][1:]]}, "only answers"),
    ],
)
def test_bad_rows(folder, row, reason):
    result = read(folder, PLAIN, row, {**PLAIN, "id": "9"})
    assert [dialogue.record_id for dialogue in result.items] == ["8", "9"]
    assert [problem.where for problem in result.bad] == ["line 2"]
    assert reason in result.bad[0].reason
    with pytest.raises(InputError, match=r"rows\.jsonl, line 2: "):
        read(folder, PLAIN, row, policy="raise")


def test_spans_after_the_end_are_clipped(folder):
    row = {**PLAIN, "duration": 4.5}
    result = read(folder, row)
    assert result.items[0].turns[1].spans == (Span(1.0, 2.0), Span(4.0, 4.5))
    assert "[4, 5] is not inside the video, which lasts 4.5 s" in str(result.repaired[0])
    assert read(folder, row, policy="skip").items == []


def test_names_that_occur_twice_are_reported_and_made_different(folder):
    result = read(folder, PLAIN, PLAIN, PLAIN)
    assert [dialogue.record_id for dialogue in result.items] == ["8", "8#2", "8#3"]
    assert result.duplicates == ["8", "8"]


def test_missing_media_are_listed(folder):
    result = read(folder, PLAIN, {**PLAIN, "video": "b.mp4"}, media=folder)
    assert result.missing == ["b.mp4"]
    assert read(folder, {**PLAIN, "video": "b.mp4"}, media=folder / "clips").missing == []
