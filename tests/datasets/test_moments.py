"""Data sets of moments: made-up files of their shapes become questions, and every fault of a row is named."""

import copy
import json

import pytest

from mmllm.datasets.check import check_annotations
from mmllm.datasets.formats import dialogues_of, format_of, questions_of, read_annotations
from mmllm.errors import InputError
from mmllm.evaluation.run import read_benchmark
from mmllm.times.answers import ABSENT, Span

QVHIGHLIGHTS = [
    {
        "qid": 7,
        "query": "A cat sleeps on a roof.",
        "duration": 8,
        "vid": "clip_0.0_8.0",
        "relevant_windows": [[0, 2], [4, 8]],
        "relevant_clip_ids": [0, 2, 3],
        "saliency_scores": [[1, 2, 3], [4, 4, 4], [0, 0, 1]],
    },
    {"qid": 8, "query": "Rain", "duration": 8, "vid": "clip_0.0_8.0", "relevant_windows": []},
]
TIMELENS_BENCH = {
    "v_clip": {
        "duration": 8.0,
        "spans": [[0.5, 2.0], [3.0, 7.5]],
        "queries": ["a cat\n sleeps.", "The cat wakes up"],
    }
}
TIMELENS_TRAINING = [
    {
        "source": "cats",
        "video_path": "more/clip.mp4",
        "duration": 8.0,
        "events": [{"query": "a cat sleeps", "span": [[0.5, 2.0]]}, {"query": "it runs", "span": [[3, 4], [5, 6]]}],
    }
]
VUE_TR = [
    {
        "query_id": 0,
        "video_id": "clip",
        "duration": 8.0,
        "query": "purring",
        "gt": [[1, 2], [5, 7]],
        "task": "temporal_retrieval",
        "duration_category": "ultra-short",
        "query_format": "keyword",
        "query_modality": "audio",
    },
    {"query_id": 1, "video_id": "clip", "duration": 8.0, "query": "barking", "gt": [], "query_modality": "audio"},
]
EGO4D = {
    "version": "v1",
    "videos": [
        {
            "video_uid": "whole",
            "clips": [
                {
                    "clip_uid": "clip",
                    "video_start_sec": 100.0,
                    "video_end_sec": 108.0,
                    "annotations": [
                        {
                            "annotation_uid": "a1",
                            "language_queries": [
                                {"query": "where did I put the cat?", "clip_start_sec": 1.5, "clip_end_sec": 3.0}
                            ],
                        }
                    ],
                }
            ],
        }
    ],
}
MOMENTSEEKER = [
    {
        "src_video_path": "films/clip.mp4",
        "qry_text": "The cat that the dog looks for",
        "qry_img_path": "",
        "qry_video_path": "",
        "answering_time_interval": [[1, 2], [3.5, 4]],
        "task": "search",
        "candidate_video_list": [{"output_path": "cut/1.mp4"}],
        "gt_indices": [0],
    }
]
TACOS = {
    "clip.avi": {
        "timestamps": [[5, 20], [30, 44]],
        "sentences": ["He took out a cat", "He fed it"],
        "fps": 5.0,
        "num_frames": 40,
    }
}
FILES = {
    "qvhighlights": (QVHIGHLIGHTS, "lines"),
    "timelens": (TIMELENS_BENCH, "object"),
    "timelens-training": (TIMELENS_TRAINING, "lines"),
    "vue-tr": (VUE_TR, "object"),
    "ego4d-nlq": (EGO4D, "object"),
    "momentseeker": (MOMENTSEEKER, "object"),
    "tacos": (TACOS, "object"),
}


@pytest.fixture
def written(tmp_path):
    """Writes a file of a format, after a change of its rows."""

    def write(name, change=lambda rows: None):
        rows, shape = copy.deepcopy(FILES[name])
        change(rows)
        text = json.dumps(rows, indent=2) if shape == "object" else "\n".join(map(json.dumps, rows))
        file = tmp_path / f"{'charades-timelens' if name == 'timelens' else name}.json"
        file.write_text(text)
        return file

    return write


@pytest.fixture
def videos(tmp_path, short_clip):
    """A folder that has the video of each file."""
    for name in ("clip.mp4", "clip_0.0_8.0.mp4", "more/clip.mp4"):
        place = tmp_path / "videos" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(short_clip)
    return tmp_path / "videos"


EXPECTED = {
    "qvhighlights": [
        ("7", 'Which parts of the video show "a cat sleeps on a roof"?', [[0, 2], [4, 8]], 8, "qvhighlights"),
        ("8", 'Which parts of the video show "rain"?', [], 8, "qvhighlights"),
    ],
    "timelens": [
        ("clip_0", 'When does "a cat sleeps" happen?', [[0.5, 2]], 8, "charades-timelens"),
        ("clip_1", 'When does "the cat wakes up" happen?', [[3, 7.5]], 8, "charades-timelens"),
    ],
    "timelens-training": [
        ("clip_1_0", 'When does "a cat sleeps" happen?', [[0.5, 2]], 8, "cats"),
        ("clip_1_1", 'When does "it runs" happen?', [[3, 4], [5, 6]], 8, "cats"),
    ],
    "vue-tr": [
        ("0", 'Which parts of the video show "purring"?', [[1, 2], [5, 7]], 8, "vue_tr audio"),
        ("1", 'Which parts of the video show "barking"?', [], 8, "vue_tr audio"),
    ],
    "ego4d-nlq": [
        ("a1_0", "Where did I put the cat? Which part of the video shows it?", [[1.5, 3]], 8, "ego4d_nlq"),
    ],
    "momentseeker": [
        (
            *("0", 'Which parts of the video show "the cat that the dog looks for"?'),
            *([[1, 2], [3.5, 4]], None, "momentseeker search"),
        ),
    ],
    "tacos": [
        ("clip_0", 'When does "he took out a cat" happen?', [[1, 4]], 8, "tacos"),
        ("clip_1", 'When does "he fed it" happen?', [[6, 8]], 8, "tacos"),
    ],
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_recognised_and_becomes_questions(written, name):
    file = written(name)
    assert format_of(file) == name.removesuffix("-training")
    annotations = read_annotations(file)
    assert (annotations.bad, list(annotations.unused)) == ([], [])
    questions = questions_of(annotations).items
    assert len(questions) == len(EXPECTED[name])
    for question, (question_id, asked, spans, duration_s, family) in zip(questions, EXPECTED[name], strict=True):
        assert (question.question_id, question.duration_s, question.family) == (question_id, duration_s, family)
        assert question.question.startswith(asked)
        assert [span.to_json() for span in question.truth().spans] == spans
        assert question.absent == (not spans)
        assert question.video is None


@pytest.mark.parametrize("name", FILES)
def test_it_can_be_evaluated_and_trained_on(written, videos, name):
    from mmllm.train.own_dialogues import checked_dialogues

    file = written(name)
    benchmark = read_benchmark(file)  # the folder `videos` lies beside the file
    assert benchmark.bad_rows == []
    assert all(question.video.exists() and question.video.is_relative_to(videos) for question in benchmark.questions)
    dialogues = checked_dialogues(file, videos, skip_bad=False)
    learnt = [dialogue.turns[1].stamped for dialogue in dialogues]
    assert learnt == [
        " ".join(f"<{float(start)}> <{float(end)}>" for start, end in spans) or ABSENT
        for _, _, spans, _, _ in EXPECTED[name]
    ]
    assert dialogues == dialogues_of(read_annotations(file, videos)).items


@pytest.mark.parametrize("name", FILES)
def test_check_counts_its_rows_and_names_a_missing_video(written, videos, name):
    summary = check_annotations(written(name), videos)
    assert (summary["questions"], summary["refused"]) == (len(EXPECTED[name]), [])
    assert summary["events"] == sum(len(spans) for _, _, spans, _, _ in EXPECTED[name])
    (videos / "nothing").mkdir()
    without = check_annotations(written(name), videos / "nothing")
    assert without["missing_videos"] == 1
    assert any(problem.startswith("missing: ") for problem in without["refused"])


def put(*path, value):
    """A change of the rows: the value at a path of keys and positions."""

    def change(rows):
        for step in path[:-1]:
            rows = rows[step]
        if value is KeyError:
            del rows[path[-1]]
        else:
            rows[path[-1]] = value

    return change


EGO4D_QUERY = ("videos", 0, "clips", 0, "annotations", 0, "language_queries", 0)
FAULTS = [
    ("qvhighlights", put(0, "qid", value=None), "line 1: 'qid' must be a number or a text, not None"),
    ("qvhighlights", put(1, "qid", value=7), "line 2: '7' occurs a second time"),
    ("qvhighlights", put(1, value=3), "line 2: expected an object with the key 'qid', not 3"),
    ("qvhighlights", put(0, "vid", value=3), "line 1: 'vid' must be a text, not 3"),
    ("qvhighlights", put(0, "query", value=" "), "line 1: 'query' must be a text, not ' '"),
    ("qvhighlights", put(0, "duration", value=0), "line 1: 'duration' must be a positive number of seconds, not 0"),
    (
        *("qvhighlights", put(0, "relevant_windows", value=KeyError)),
        "line 1: the key 'relevant_windows' is missing: is this the test split without its truth?",
    ),
    (
        *("qvhighlights", put(0, "relevant_windows", value=[[0, 2], 4])),
        "line 1: a span must be a start and an end in seconds, not 4",
    ),
    (
        *("qvhighlights", put(0, "relevant_windows", value={})),
        "line 1: spans must be a list of [start, end] in seconds, not {}",
    ),
    (
        *("qvhighlights", put(0, "relevant_windows", value=[[4, 4]])),
        "line 1: the interval [4, 4] has no length (the video lasts 8 s by its annotation): give it a start and an end",
    ),
    ("timelens", put("v_clip", "queries", value=["a cat"]), "record 1 (v_clip), query 1: 1 queries but 2 spans"),
    ("timelens", put("v_clip", "queries", 1, value=" . "), "query 2: a query must be a text, not ' . '"),
    ("timelens", put("v_clip", "spans", value=KeyError), "query 1: the key 'spans' is missing"),
    ("timelens", put("v_clip", "spans", 0, value=[2, 0.5]), "query 1: the interval [2, 0.5] ends before it starts"),
    ("timelens", put("v_clip", "spans", 0, value=[20, 30]), "query 1: the interval [20, 30] is outside of the video"),
    ("timelens-training", put(0, "video_path", value=""), "line 1, event 1: 'video_path' must be a text, not ''"),
    ("timelens-training", put(0, "events", value={}), "line 1, event 1: 'events' must be a list, not {}"),
    (
        *("timelens-training", put(0, "events", 0, "span", value=KeyError)),
        "line 1, event 1: an event must have 'query' and 'span', not {'query': 'a cat sleeps'}",
    ),
    (
        *("timelens-training", put(0, "events", 0, "span", value=[1, 2])),
        "line 1, event 1: a span must be a start and an end in seconds, not 1",
    ),
    ("vue-tr", put(0, "query_id", value=1.5), "record 1: 'query_id' must be a number or a text, not 1.5"),
    ("vue-tr", put(0, "gt", value="1-2"), "record 1: 'gt' must be a list, not '1-2'"),
    (
        *("vue-tr", put(0, "task", value="highlight")),
        "record 1: only the task 'temporal_retrieval' is read, not 'highlight'",
    ),
    ("vue-tr", put(0, "gt", value=[["0:01", "0:02"]]), "record 1: a start must be a number of seconds, not '0:01'"),
    (
        *("ego4d-nlq", put(*EGO4D_QUERY, "query", value=None)),
        "video 1, clip 1, annotation 1, query 1: 'query' must be a text, not None",
    ),
    (
        *("ego4d-nlq", put(*EGO4D_QUERY, value={"query": "where is the cat?"})),
        "a query must have 'clip_start_sec' and 'clip_end_sec': is this the test split, without times?",
    ),
    ("ego4d-nlq", put(*EGO4D_QUERY, "clip_end_sec", value=KeyError), "an end must be a number of seconds, not None"),
    (
        *("ego4d-nlq", put("videos", 0, "clips", 0, "video_end_sec", value=99.0)),
        "the clip ends at 99 s of its video, which is not after its start at 100 s",
    ),
    (
        *("ego4d-nlq", put("videos", 0, "clips", 0, "annotations", value=KeyError)),
        "video 1, clip 1: the key 'annotations' is missing",
    ),
    (
        *("momentseeker", put(0, "qry_img_path", value="cat.png")),
        "record 1: the request shows an image ('cat.png'): only words are read",
    ),
    (
        *("momentseeker", put(0, "qry_video_path", value="cat.mp4")),
        "record 1: the request shows a video ('cat.mp4'): only words are read",
    ),
    (
        *("momentseeker", put(0, "answering_time_interval", value=KeyError)),
        "record 1: the key 'answering_time_interval' is missing",
    ),
    ("momentseeker", put(0, "answering_time_interval", value=[[3, 1]]), "the interval [3, 1] ends before it starts"),
    ("tacos", put("clip.avi", "timestamps", value=[[5, 20]]), "sentence 1: 1 timestamps but 2 sentences"),
    ("tacos", put("clip.avi", "timestamps", 0, value=[5]), "a span must be a start and an end in seconds, not [5]"),
    ("tacos", put("clip.avi", "timestamps", 0, 1, value="x"), "a time must be the number of a frame, not 'x'"),
    ("tacos", put("clip.avi", "fps", value=0), "'fps' and 'num_frames' must be positive, not 0 and 40"),
    ("tacos", put("clip.avi", "num_frames", value=None), "'num_frames' must be a number, not None"),
    ("tacos", put("clip.avi", "sentences", 0, value=3), "sentence 1: a sentence must be a text, not 3"),
    (
        *("tacos", put("clip.avi", "exact_times", value=[[1, 4], [6, 8]])),
        "'exact_times': these frames are feature steps of a converted Ego4D; give Ego4D's own file",
    ),
]


@pytest.mark.parametrize(("name", "change", "reason"), FAULTS, ids=[reason[:60] for *_, reason in FAULTS])
def test_a_bad_row_is_named(written, name, change, reason):
    file = written(name, change)
    form = name.removesuffix("-training")
    annotations = read_annotations(file, format=form)
    assert any(reason in str(problem) for problem in annotations.bad), annotations.bad
    with pytest.raises(InputError) as refusal:
        read_annotations(file, format=form, policy="raise")
    assert str(file) in str(refusal.value)
    assert reason in str(refusal.value)
    assert any(reason in problem for problem in check_annotations(file, format=form, probe=False)["refused"])


def test_an_end_a_little_over_the_video_is_clipped(written):
    annotations = read_annotations(written("tacos", put("clip.avi", "timestamps", 1, 1, value=42)))
    assert annotations.items[1].spans == (Span(6, 8),)
    assert "record 1 (clip.avi), sentence 2: the interval [6, 8.4] is not inside" in str(annotations.repaired[0])


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("ego4d-nlq", '{"videos": []}', "not an object with 'videos' that have 'clips'"),
        ("tacos", "[]", "not an object of videos"),
        ("timelens", "[1, 2]", "neither an object of videos nor lines with 'video_path' and 'events'"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, text, reason):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_annotations(tmp_path / "file.json", format=name)


def test_a_line_that_is_no_json_is_one_bad_row(written):
    file = written("qvhighlights")
    file.write_text(file.read_text() + "\n{broken")
    annotations = read_annotations(file, format="qvhighlights")
    assert (len(annotations.items), len(annotations.bad)) == (2, 1)
    assert "line 3: not JSON" in str(annotations.bad[0])


def test_answers_are_no_annotations(tmp_path):
    for row, reason in (
        ({"qid": 7, "vid": "a", "query": "b", "pred_relevant_windows": []}, "--from qvhighlights scores them"),
        ({"doc_id": 7, "filtered_resps": "0 - 1", "target": "[]"}, "--from lmms-eval scores them"),
        ({"query_id": 7, "video_id": "a", "answer": []}, "VUE-TR's form, not annotations"),
    ):
        (tmp_path / "answers.jsonl").write_text(json.dumps(row))
        with pytest.raises(InputError, match=reason):
            format_of(tmp_path / "answers.jsonl")
