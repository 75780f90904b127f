"""Writes the tables of the docs from docs/results.

    python -m benchmarks.tables

A table stands between two markers, which say the file and the table in it:

    <!-- results: video/clips -->
    <!-- end -->
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.layouts import LAYOUTS, markdown
from benchmarks.results import Results
from mmllm.errors import InputError

DOCS = Path(__file__).resolve().parents[1] / "docs"
OPENING, CLOSING = re.compile(r"<!-- results: (.*?) -->\n"), "<!-- end -->"


def marked(text: str) -> Iterator[tuple[str, int, int]]:
    """Name of each marked table, with the place where it begins and the one where it ends.

    Raises:
        InputError: A table has no end.
    """
    for opening in OPENING.finditer(text):
        ends, following = text.find(CLOSING, opening.end()), OPENING.search(text, opening.end())
        if ends < 0 or (following is not None and following.start() < ends):
            raise InputError(f"the table {opening[1]} has no {CLOSING} behind it")
        yield opening[1], opening.end(), ends


def table_of(name: str, results: Path) -> str:
    """A table as Markdown.

    Args:
        name: file and table, as `video/clips`.
        results: the folder of results.

    Raises:
        InputError: There is no such file or table.
    """
    file, _, table = name.partition("/")
    kept = Results.read(results / f"{file}.json")
    if table not in kept.tables or table not in LAYOUTS:
        raise InputError(f"{name}: {file}.json has the tables {', '.join(sorted(kept.tables.keys() & LAYOUTS.keys()))}")
    return markdown(table, kept.tables[table]) + "\n"


def filled(text: str, results: Path) -> str:
    """A text of the docs with its marked tables as they follow from the results."""
    place, parts = 0, []
    for name, begins, ends in marked(text):
        parts += [text[place:begins], table_of(name, results)]
        place = ends
    return "".join([*parts, text[place:]])


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrites the docs whose tables have changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the texts, with the results in it")
    given = parser.parse_args(arguments)
    for file in sorted(given.docs.glob("*.md")):
        text = file.read_text()
        new = filled(text, given.docs / "results")
        if new != text:
            file.write_text(new)
            print(f"{file.name}: written anew")


if __name__ == "__main__":
    main()
