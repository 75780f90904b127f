"""Measurements behind the numbers of the docs. Each script runs by itself, `python benchmarks/video.py --help`.

`--json docs/results/NAME.json` keeps what a script measured; `python -m benchmarks.tables` writes it into the docs.
"""
