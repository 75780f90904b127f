"""benchmarks/layouts.py: cells of rows that have everything, something or nothing for them."""

from benchmarks.intervals import Interval
from benchmarks.layouts import head, line, markdown
from benchmarks.results import Row


def test_a_table_of_ablations():
    rows = [
        Row({"group": "path", "name": "fast"}, {"miou_percent": Interval(35.1, 29.5, 42.0), "cpu_s": 94.2}),
        Row({"group": "path", "name": "slow"}, {"miou_percent": 5.8}),
    ]
    assert markdown("ablations", rows).splitlines() == [
        "| | | mIoU | 95 % | CPU seconds of training |",
        "|---|---|---|---|---|",
        "| path | fast | 35.1 | 29.5 to 42.0 | 94 |",
        "| path | slow | 5.8 | | - |",
    ]


def test_the_first_cell_is_taken_that_a_row_has_everything_for():
    numbers = {"time_ratio": 1.0, "timm_percent": 1.2, "tokens": 64, "width": 8, "parameters_millions": 1135.2}
    text = line("towers", Row({"tower": "ours", "score": "not told"}, numbers))
    assert text == "| ours | 1.00 | timm +1 % | - | not told | 64 x 8 | 1,135 M | - |"
    everything = {**numbers, "transformers_percent": -2, "open_clip_percent": 0, "around_percent": 0.25}
    text = line("towers", Row({"tower": "ours"}, {**everything, "score_percent": 0.5, "memory_mib": 1253}))
    assert "| transformers -2 %, timm +1 %, open_clip +0 % | 0.2 % | 0.5 % |" in text


def test_head_and_rows_have_the_same_number_of_columns():
    assert head("frames").splitlines()[1].count("|") == line("frames", Row({}, {})).count("|") == 6
