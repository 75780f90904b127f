"""Fine-tuning on 20 clips that the model has not seen: does it learn them?

    python benchmarks/finetune.py --model runs/quickstart/model [--clips 20] [--steps 300] [--json out.json]

Renders the clips, writes one question about each to clips.jsonl (as a user would), runs `mmllm finetune` and
`mmllm eval` on them, and prints mIoU before and after with the processor time of the training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.layouts import markdown
from benchmarks.measuring import timed
from benchmarks.results import Results, command_line, machine, option_parser
from mmllm.commands.evaluate import evaluate_into
from mmllm.evaluation.run import read_benchmark
from mmllm.inference.answering import VideoQA
from mmllm.synthetic.clips import SyntheticConfig
from mmllm.synthetic.rendering import render
from mmllm.times.answers import parse_answer
from mmllm.train.finetune import FinetuneConfig, FinetuneTraining, finetune


def own_data(folder: Path, clips: int) -> Path:
    """Renders clips, and writes the first question about time of each as a line of own data."""
    config = SyntheticConfig(
        seed=77, train_videos=clips, val_videos=0, min_duration_s=8, max_duration_s=12, families=("visible", "direct")
    )
    render(folder, config, workers=1)
    lines = []
    for vid, entry in json.loads((folder / "train.json").read_text()).items():
        answers = [(qa["q"], parse_answer(qa["a"], entry["duration"])) for qa in entry["QA"]]
        question, answer = next((asked, answer) for asked, answer in answers if not answer.fallback)
        row: dict[str, Any] = {"id": vid, "video": f"videos/{vid}.mp4", "question": question, "answer": answer.text}
        lines.append(json.dumps({**row, "spans": [answer.spans[0].to_json()]}) + "\n")
    (folder / "clips.jsonl").write_text("".join(lines))
    return folder / "clips.jsonl"


def miou(model: str | Path, data: Path, output: Path) -> float:
    """mIoU of a model's answers, in per cent."""
    scores = evaluate_into(output, VideoQA.from_pretrained(model), read_benchmark(data), shuffle=False)
    return 100 * scores["miou"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Scores the model, trains it further, and scores it again."""
    parser = option_parser(__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("runs/own-clips"))
    options = parser.parse_args(arguments)
    results = Results(command_line(__file__, arguments), machine("torch"))
    data = own_data(options.output / "data", options.clips)
    before = miou(options.model, data, options.output / "before")
    config = FinetuneConfig(model=options.model, training=FinetuneTraining(max_steps=options.steps))
    tuned, seconds = timed(lambda: finetune(config, data, options.output / "run", workers=0))
    after = miou(tuned, data, options.output / "after")
    sizes = {"clips": options.clips, "steps": options.steps}
    row = results.add("finetune", {}, {**sizes, "before_percent": before, "after_percent": after, "cpu_s": seconds})
    print(markdown("finetune", [row]))
    results.save(options.json)


if __name__ == "__main__":
    main()
