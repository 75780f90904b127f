"""Answers of other tools become samples with their scores; every fault of a file is named."""

import io
import json
import zipfile
from xml.sax.saxutils import escape

import pytest

from mmllm.cli import main
from mmllm.errors import InputError
from mmllm.evaluation.imported import read_answers
from mmllm.evaluation.samples import read_samples
from mmllm.evaluation.score import score_file
from mmllm.evaluation.spreadsheets import sheet_rows
from mmllm.times.answers import Span

ANSWERS = [
    ("a cat sleeps", [[2.0, 6.0]], "The event happens in 2.0 - 6.0 seconds."),
    ("a dog barks", [[1.0, 5.0]], "The event happens in 3 - 7 seconds"),
    ("someone waves", [[0.0, 10.0]], "From 00:02 to 00:09."),
    ("a car stops", [[4.5, 9.5]], "starts at 5 seconds and ends at 9.5 seconds"),
    ("it rains", [[10.0, 20.0]], "I cannot tell."),
    ("the door opens", [[3.0, 4.0]], "4 - 3 seconds"),
    ("she laughs", [[12.0, 18.0]], "12 to 16, and again 20 to 22"),
    ("a bird flies", [[7.0, 8.0]], "The 2 birds fly at 7.2 - 8.4 s"),
    ("he sits down", [[0.5, 3.5]], "[0.5, 3.0]"),
]
RELEASED = {
    "timelens": (55.61, 77.78, 66.67, 44.44),
    "lmms-eval": (14.81, 22.22, 11.11, 11.11),
}
"""mIoU and shares at 0.3, 0.5, 0.7 in per cent, as lmms-eval (revision 75571cf) prints them for these answers: by
`tasks/timelens/utils.py` and by `tasks/charades_sta/eval_tvg.py`."""


def lmms_eval_line(number, query, spans, answer):
    return {
        "doc_id": number,
        "target": str(spans),
        "filtered_resps": answer,
        "doc_hash": "0",
        "input": f"Please find '{query}'",
        "timelens_mIOU": {f"clips/v{number}.mp4>>>{query}>>>{spans}": answer},
        "token_counts": [None],
    }


@pytest.fixture
def lmms_eval(tmp_path):
    def write(rows=None):
        file = tmp_path / "20260101_samples_timelens_charades.jsonl"
        lines = [lmms_eval_line(number, *answer) for number, answer in enumerate(ANSWERS)] if rows is None else rows
        file.write_text("\n".join(map(json.dumps, lines)))
        return file

    return write


@pytest.mark.parametrize("reader", RELEASED)
def test_a_released_reader_gives_the_released_scores(lmms_eval, reader):
    file = lmms_eval()
    scores = score_file(file, answers=read_answers(file, "lmms-eval", reader))
    keys = ("miou_per_question", *(f"p_at_{level}_per_question" for level in (0.3, 0.5, 0.7)))
    assert tuple(round(100 * scores[key], 2) for key in keys) == RELEASED[reader]


def test_our_reader_reads_what_the_others_miss(lmms_eval):
    file = lmms_eval()
    samples = read_answers(file, "lmms-eval").samples
    assert [sample.fallback for sample in samples] == [number == 4 for number in range(9)]
    assert samples[6].prediction_spans[0] == Span(12, 16)
    assert (samples[0].family, samples[0].vid, samples[0].question) == ("timelens_charades", "v0", "a cat sleeps")
    scores = score_file(file, answers=read_answers(file, "lmms-eval"))
    assert scores["whole_video_miou"] is None  # nobody says how long the videos are
    assert scores["fallback_rate"] == pytest.approx(1 / 9)


@pytest.mark.parametrize("target", ["[2.0, 6.0]", "[[2.0, 6.0]]", "[(2.0, 6.0)]"])
def test_truths_of_other_tasks_are_read(lmms_eval, target):
    row = lmms_eval_line(0, "a cat >>> a dog", target, ["<think>1 - 2</think> 2 - 6 seconds"])
    (sample,) = read_answers(lmms_eval([row]), "lmms-eval").samples
    assert sample.truth_spans == sample.prediction_spans == (Span(2, 6),)
    assert sample.question == "a cat >>> a dog"


def test_what_does_not_happen_is_an_answer_there_too(lmms_eval):
    rows = [
        lmms_eval_line(0, "snow", [], "It does not happen."),
        lmms_eval_line(1, "rain", [[1, 2]], "Not shown. None"),
    ]
    never, rain = read_answers(lmms_eval(rows), "lmms-eval").samples
    assert (never.absent, never.denied) == (True, True)
    assert not rain.absent


def test_lengths_come_from_annotations(lmms_eval, tmp_path):
    file = lmms_eval()
    bench = {f"v{n}": {"duration": 30.0, "spans": s, "queries": [q]} for n, (q, s, _) in enumerate(ANSWERS)}
    (tmp_path / "timelens.json").write_text(json.dumps(bench))
    (tmp_path / "lengths.csv").write_text("id,length\n" + "".join(f"v{n},30.0\n" for n in range(9)))
    for annotations in ("timelens.json", "lengths.csv"):
        answers = read_answers(file, "lmms-eval", annotations=tmp_path / annotations)
        assert {sample.duration_s for sample in answers.samples} == {30.0}
        assert score_file(file, answers=answers)["whole_video_miou"] > 0
    row = {"src_video_path": "a", "qry_text": "b", "answering_time_interval": [[1, 2]]}
    (tmp_path / "clips.json").write_text(json.dumps([row]))
    with pytest.raises(InputError, match="does not say how long its videos are"):
        read_answers(file, "lmms-eval", annotations=tmp_path / "clips.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"filtered_resps": None}, "line 1: 'filtered_resps' must be a text or a list of texts, not None"),
        ({"filtered_resps": []}, "line 1: 'filtered_resps' must be a text or a list of texts"),
        ({"timelens_mIOU": 0.5}, "line 1: no metric names video, query and truth"),
        ({"timelens_mIOU": {"a>>>b>>>soon": ""}}, "line 1: the truth must be a list of spans such as .*, not 'soon'"),
        ({"timelens_mIOU": {'a>>>b>>>[["1", "2"]]': ""}}, "line 1: the truth must be a list of spans"),
        ({"timelens_mIOU": {"a>>>b>>>[[2, 1]]": ""}}, "line 1: a span needs finite seconds with start <= end"),
    ],
)
def test_a_bad_line_of_lmms_eval_is_named(lmms_eval, change, reason):
    file = lmms_eval([{**lmms_eval_line(0, *ANSWERS[0]), **change}])
    with pytest.raises(InputError, match=reason):
        read_answers(file, "lmms-eval")


def test_a_line_that_is_none_is_named(lmms_eval):
    for row in (3, {"doc_id": 1}):
        with pytest.raises(InputError, match="line 1: not an answer of lmms-eval"):
            read_answers(lmms_eval([row]), "lmms-eval")
    file = lmms_eval()
    file.write_text(file.read_text() + '\n{"doc')
    with pytest.raises(InputError, match="line 10: not JSON"):
        read_answers(file, "lmms-eval")


ROWS = [
    ["index", "video", "duration", "question", "answer", "gt_start", "gt_end", "prediction"],
    [0, "v0", 30.0, "a cat sleeps", "[[2.0, 6.0]]", 2.0, 6.0, "It happens\nin 2 - 6 seconds, <b> & so on"],
    [1, "v1", 30.0, "it rains", "[[10, 20]]", 10, 20, "Failed to obtain answer via API."],
    [2, "v2", 30.0, "it snows", "[[10, 20]]", 10, 20, None],
]


def spreadsheet(rows, shared=True, sheet="xl/worksheets/sheet1.xml", head=""):
    """The bytes of a spreadsheet, as xlsxwriter lays it out."""
    texts, lines = [], []
    for number, row in enumerate(rows, start=1):
        cells = []
        for column, value in zip("ABCDEFGH", row, strict=False):
            place = f'r="{column}{number}"'
            if isinstance(value, str) and shared:
                texts.append(value)
                cells.append(f'<c {place} t="s"><v>{len(texts) - 1}</v></c>')
            elif isinstance(value, str):
                cells.append(f'<c {place} t="inlineStr"><is><t>{escape(value)}</t></is></c>')
            elif value is not None:
                cells.append(f"<c {place}><v>{value}</v></c>")
        lines.append(f'<row r="{number}">{"".join(cells)}</row>')
    namespace = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
        archive.writestr(sheet, f"{head}<worksheet {namespace}><sheetData>{''.join(lines)}</sheetData></worksheet>")
        if shared:
            items = "".join(f"<si><t>{escape(text)}</t></si>" for text in texts)
            archive.writestr("xl/sharedStrings.xml", f"<sst {namespace}>{items}</sst>")
    return data.getvalue()


def written(tmp_path, kind, rows):
    """A prediction file of VLMEvalKit."""
    file = tmp_path / f"model_Charades.{kind}"
    if kind == "xlsx":
        file.write_bytes(spreadsheet(rows))
    elif kind == "json":
        file.write_text(json.dumps([dict(zip(rows[0], row, strict=True)) for row in rows[1:]]))
    else:
        quoted = [['"' + str("" if cell is None else cell).replace('"', '""') + '"' for cell in row] for row in rows]
        file.write_text("\n".join(("\t" if kind == "tsv" else ",").join(row) for row in quoted))
    return file


@pytest.mark.parametrize("kind", ["xlsx", "tsv", "csv", "json"])
def test_predictions_of_vlmevalkit_in_each_form(tmp_path, kind):
    file = written(tmp_path, kind, ROWS)
    right, failed, empty = read_answers(file, "vlmevalkit").samples
    assert (right.question_id, right.vid, right.question, right.duration_s) == ("0", "v0", "a cat sleeps", 30.0)
    assert right.truth_spans == right.prediction_spans == (Span(2, 6),)
    assert right.prediction_raw == ROWS[1][-1]
    assert failed.error == "Failed to obtain answer via API."
    assert empty.fallback
    scores = score_file(file, answers=read_answers(file, "vlmevalkit"))
    assert (scores["questions"], scores["failed"]) == (3, 1)
    assert scores["miou_per_question"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        (("gt", "video_id"), ("[[1, 2], [4.5, 6]]", "v0")),
        (("answer", "video"), ("<time>1 - 2 seconds</time> and <time>4.5 - 6 seconds</time>", "v0.mp4")),
        (("answer", "video"), ("[(1, 2), (4.5, 6)]", "v0.mp4")),
    ],
)
def test_each_column_of_the_truth(tmp_path, columns, values):
    rows = [["index", *columns, "prediction"], [0, *values, "[[1, 2], [4.5, 6]]"]]
    (sample,) = read_answers(written(tmp_path, "tsv", rows), "vlmevalkit").samples
    assert sample.truth_spans == sample.prediction_spans == (Span(1, 2), Span(4.5, 6))
    assert (sample.vid, sample.duration_s) == ("v0", None)


@pytest.mark.parametrize(
    ("columns", "values", "reason"),
    [
        (("video", "prediction"), ("a", "b"), "row 1: no true times: 'gt', 'gt_start' and 'gt_end', or 'answer'"),
        (("video", "answer"), ("a", "B"), "row 1: no true times in 'answer': 'B'"),
        (("question", "gt"), ("a", "[]"), "row 1: the column 'video' is missing; there are question, gt"),
        (("video", "gt"), ("a", "[1, 2, 3]"), "row 1: a span must be a start and an end in seconds, not 1"),
        (("video", "gt", "duration"), ("a", "[[1, 2]]", "long"), "row 1: 'duration' must be a number of seconds"),
        (("video", "gt", "duration"), ("a", "[[1, 2]]", "0"), "row 1: a duration must be a positive number"),
    ],
)
def test_a_bad_row_of_vlmevalkit_is_named(tmp_path, columns, values, reason):
    with pytest.raises(InputError, match=reason):
        read_answers(written(tmp_path, "tsv", [columns, values]), "vlmevalkit")


def test_files_that_are_no_predictions(tmp_path):
    for name, content, reason in (
        ("a.pkl", b"\x80", "a pickle can run code when it is read; let VLMEvalKit write .tsv"),
        ("a.parquet", b"PAR1", r"prediction files end in .xlsx, .tsv, .csv, .json, not .parquet"),
        ("a.json", b'{"index": {"0": 0}}', "not a list of objects"),
        ("a.tsv", b'index\tvideo\n0\t"' + b"a" * 200_000 + b'"', "not a table: field larger"),
        ("a.xlsx", b"PK", r"not a spreadsheet \(.xlsx\)"),
        ("empty.xlsx", spreadsheet([]), "its first sheet is empty"),
        ("none.xlsx", spreadsheet(ROWS, sheet="xl/chart.xml"), "it has no sheet"),
        ("bomb.xlsx", spreadsheet(ROWS, head='<!DOCTYPE a [<!ENTITY b "c">]>'), "declares a document type"),
        ("large.xlsx", _packed(40 << 20), "it unpacks to more than 16 MiB"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=reason):
            read_answers(tmp_path / name, "vlmevalkit")
    with pytest.raises(InputError, match=r"not a spreadsheet \(.xlsx\)"):
        sheet_rows(tmp_path / "missing.xlsx")


def _packed(size):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", b" " * size)
    return data.getvalue()


def test_texts_of_a_spreadsheet_without_shared_ones(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(spreadsheet([["a", "b"], ["x_x000D_y_x005F_", 2.5]], shared=False))
    assert sheet_rows(tmp_path / "a.xlsx") == [{"a": "x\ry_", "b": "2.5"}]


def test_the_command_scores_and_writes_samples(lmms_eval, tmp_path, capsys):
    file = lmms_eval()
    with pytest.raises(SystemExit) as done:
        main(["score", str(file), "--from", "lmms-eval", "--reader", "timelens", "--json"])
    assert done.value.code == 0
    assert round(100 * json.loads(capsys.readouterr().out)["miou_per_question"], 2) == RELEASED["timelens"][0]
    with pytest.raises(SystemExit) as done:
        main(["score", str(file), "--from", "lmms-eval", "--samples", str(tmp_path / "samples.jsonl")])
    assert done.value.code == 2
    assert "the length of 9 videos is not known, such as v0" in capsys.readouterr().err
    (tmp_path / "lengths.csv").write_text("id,length\n" + "".join(f"v{n},30.0\n" for n in range(9)))
    arguments = ["--annotations", str(tmp_path / "lengths.csv"), "--samples", str(tmp_path / "samples.jsonl")]
    with pytest.raises(SystemExit) as done:
        main(["score", str(file), "--from", "lmms-eval", *arguments])
    assert done.value.code == 0
    assert "P@0.5" in capsys.readouterr().out
    assert len(read_samples(tmp_path / "samples.jsonl")) == 9
    with pytest.raises(SystemExit) as done:
        main(["score", str(tmp_path / "samples.jsonl")])
    assert done.value.code == 0


def test_options_that_do_not_belong_to_the_tool(lmms_eval, tmp_path):
    file = lmms_eval()
    with pytest.raises(InputError, match="--reader timelens reads answers of lmms-eval and vlmevalkit"):
        read_answers(file, "mmllm", "timelens")
    with pytest.raises(InputError, match="--annotations belongs to --from"):
        read_answers(file, annotations=file)
    with pytest.raises(InputError, match="--from qvhighlights needs --annotations"):
        read_answers(file, "qvhighlights")
