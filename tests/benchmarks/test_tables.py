"""The docs' tables are what follows from docs/results, and `python -m benchmarks.tables` writes them."""

import shlex
import shutil
from pathlib import Path

import pytest

from benchmarks.layouts import LAYOUTS
from benchmarks.results import Results
from benchmarks.tables import DOCS, filled, main, marked
from mmllm.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = DOCS / "results"


def shown() -> dict[str, str]:
    """Every marked table of the docs, and the file that shows it."""
    return {name: file.name for file in sorted(DOCS.glob("*.md")) for name, _, _ in marked(file.read_text())}


@pytest.mark.parametrize("file", sorted(set(shown().values())))
def test_docs_and_results_agree(file):
    text = (DOCS / file).read_text()
    assert filled(text, RESULTS) == text, "`python -m benchmarks.tables` writes the docs' tables from docs/results"


def test_every_file_of_results_is_shown():
    assert {name.split("/")[0] for name in shown()} == {file.stem for file in RESULTS.glob("*.json")}


def test_every_table_of_results_has_a_layout_and_every_column_something_to_show():
    for file in sorted(RESULTS.glob("*.json")):
        for table, rows in Results.read(file).tables.items():
            for column in LAYOUTS[table]:
                assert any(column.cell(row) for row in rows), f"{file.name}, {table}: {column.head}"


def test_commands_are_of_scripts_that_are_there_and_name_no_place_of_one_machine():
    for file in sorted(RESULTS.glob("*.json")):
        kept = Results.read(file)
        for command in [kept.command, *(row.command for rows in kept.tables.values() for row in rows if row.command)]:
            words = [word for word in shlex.split(command) if "=" not in word]
            assert words[0] == "python"
            assert (ROOT / words[1]).is_file()
            assert not any(word.startswith(("/", "~")) for word in words), command


def test_a_changed_number_is_written_into_the_docs(tmp_path, capsys):
    shutil.copytree(RESULTS, tmp_path / "results")
    shutil.copy(DOCS / "demo.md", tmp_path)
    main(["--docs", str(tmp_path)])
    assert capsys.readouterr().out == ""
    kept = tmp_path / "results" / "demo.json"
    kept.write_text(kept.read_text().replace('"decode_s": 0.076', '"decode_s": 0.5'))
    main(["--docs", str(tmp_path)])
    assert "demo.md" in capsys.readouterr().out
    before, after = (DOCS / "demo.md").read_text(), (tmp_path / "demo.md").read_text()
    assert after == before.replace("| first question | 0.076 s |", "| first question | 0.500 s |") != before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<!-- results: demo/stages -->\n| a |\n", "no <!-- end -->"),
        ("<!-- results: demo/stages -->\n<!-- results: demo/stages -->\n<!-- end -->\n", "no <!-- end -->"),
        ("<!-- results: demo/stage -->\n<!-- end -->\n", "has the tables at-once, sooner, stages"),
        ("<!-- results: demos/stages -->\n<!-- end -->\n", r"demos\.json"),
    ],
)
def test_a_marker_that_means_nothing_is_refused(text, reason):
    with pytest.raises(InputError, match=reason):
        filled(text, RESULTS)
