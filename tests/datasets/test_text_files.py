"""Files as people have them: encodings, packed files, and files that are something else."""

import codecs
import gzip
import io
import json
import resource
import tarfile
import zipfile

import pytest

from mmllm import cli
from mmllm.datasets.check import check_annotations
from mmllm.datasets.dialogues import read_dialogues
from mmllm.datasets.text_files import UNPACKED_BYTES, load_json, load_text
from mmllm.errors import InputError

ROWS = [{"question": "Où – ?", "answer": "là"}, {"question": "いつ?", "answer": "今"}]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
MARKED = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", MARKED)
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding, packed):
    data = MARKED[encoding] + TEXT.encode(encoding)
    (tmp_path / "rows.jsonl").write_bytes(gzip.compress(data) if packed else data)
    dialogues = read_dialogues(tmp_path / "rows.jsonl").items
    assert [[turn.text for turn in dialogue.turns] for dialogue in dialogues] == [list(row.values()) for row in ROWS]
    (tmp_path / "rows.json").write_bytes(MARKED[encoding] + json.dumps(ROWS).encode(encoding))
    assert load_json(tmp_path / "rows.json")[0] == ROWS


def test_marks_and_line_ends_inside_a_file_do_no_harm(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n\ufeff").encode())
    assert len(read_dialogues(tmp_path / "rows.jsonl").items) == 2


def test_one_line_in_another_encoding_is_a_bad_row(tmp_path):
    lines = [TEXT.splitlines()[0].encode(), TEXT.splitlines()[0].encode("cp1252"), TEXT.splitlines()[1].encode()]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    result = read_dialogues(tmp_path / "rows.jsonl")
    assert len(result.items) == 2
    (problem,) = result.bad
    assert problem.where == "line 2"
    assert "byte 0xf9" in problem.reason
    assert "not UTF-8" in problem.reason
    assert "iconv" in problem.reason
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(tmp_path / "rows.jsonl")])
    assert ended.value.code == 3


def test_a_whole_file_in_another_encoding_is_named_with_its_line(tmp_path):
    (tmp_path / "rows.json").write_bytes(
        json.dumps(ROWS[:1], ensure_ascii=False, indent=1).encode("latin-1", "replace")
    )
    with pytest.raises(InputError, match=r"rows\.json: cannot be read: line 3: byte 0xf9.*not UTF-8"):
        load_json(tmp_path / "rows.json")


def archive(kind):
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as zipped:
            zipped.writestr("rows.jsonl", TEXT)
    else:
        with tarfile.open(fileobj=stream, mode=f"w:{kind.removeprefix('tar').removeprefix('.')}") as tarred:
            info = tarfile.TarInfo("rows.jsonl")
            info.size = len(TEXT.encode())
            tarred.addfile(info, io.BytesIO(TEXT.encode()))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "an empty file"),
        (b" \n\n", "an empty file"),
        (b"PAR1\x15\x04\x15\x10PAR1", "a parquet file"),
        (archive("zip"), "a zip archive"),
        (archive("tar"), "a tar archive"),
        (archive("tar.gz"), "a tar archive"),
        (gzip.compress(gzip.compress(b"[]", mtime=0), mtime=0), "a gzipped file in a gzipped file"),
        (b"BZh91AY", "a bzip2 file"),
        (b"\x28\xb5\x2f\xfd\x04", "a zstd file"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"SQLite format 3\x00", "a SQLite database"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"\x00\x00\x00\x20ftypisom", "an mp4 video"),
        (TEXT.encode("utf-16-le"), "without a byte-order mark"),
        (bytes(range(256)), "no text"),
    ],
)
def test_what_is_no_text_is_named_with_what_to_do(tmp_path, data, named):
    (tmp_path / "rows.jsonl").write_bytes(data)
    with pytest.raises(InputError, match=named) as refused:
        check_annotations(tmp_path / "rows.jsonl")
    assert "cannot be read" in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="this is a folder"):
        load_text(tmp_path)


def test_a_packed_file_may_not_fill_the_memory(tmp_path):
    bomb = tmp_path / "bomb.json.gz"
    with gzip.open(bomb, "wb", compresslevel=9) as file:
        file.write(b"[")
        for _ in range(300):
            file.write(b" " * (1 << 20))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="unpacks to more than"):
        check_annotations(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # KiB; unpacked it has 300 MiB
    small = tmp_path / "small.json.gz"
    rows = [{"question": "When?", "answer": "Now."}] * (UNPACKED_BYTES // 100)
    small.write_bytes(gzip.compress(json.dumps(rows).encode()))  # shrinks well and stays below the least limit
    assert len(load_json(small)[0]) == len(rows)


@pytest.mark.parametrize(
    "value", ["1e309", "-1e309", "NaN", "Infinity", "1" * 60 + "e300", "1" * 400, "1" * 5000, '"²"', '"12"']
)
def test_numbers_that_are_none_are_bad_rows(tmp_path, value):
    good = '{"question": "When?", "answer": "Now."}'
    keys = (f'"spans": [[0, {value}]]', f'"duration": {value}')
    bad = [f'{{"question": "When?", "answer": "Now.", {key}}}' for key in keys]
    (tmp_path / "rows.jsonl").write_text("\n".join([good, *bad]))
    result = read_dialogues(tmp_path / "rows.jsonl")
    assert len(result.items) == 1
    assert [problem.where for problem in result.bad] == ["line 2", "line 3"]
    assert all(len(str(problem)) < 300 for problem in result.bad)


def test_a_list_of_objects_may_hold_a_number_that_is_too_long(tmp_path):
    (tmp_path / "rows.json").write_text(f'[{{"question": "When?", "answer": "Now.", "duration": {"9" * 5000}}}]')
    with pytest.raises(InputError, match="not JSON") as refused:
        load_json(tmp_path / "rows.json")
    assert len(str(refused.value)) < 400


def test_half_a_character_is_a_bad_row(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "When \\ud83d?", "answer": "Now."}\n')
    assert "half a character" in read_dialogues(tmp_path / "rows.jsonl").bad[0].reason


def test_objects_over_several_lines_are_rows(tmp_path):
    (tmp_path / "rows.json").write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    assert [problem.where for problem in read_dialogues(tmp_path / "rows.json").bad] == []
    assert len(read_dialogues(tmp_path / "rows.json").items) == 2
