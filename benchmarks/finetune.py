"""Fine-tuning on 20 clips that the model has not seen: does it learn them?

    python benchmarks/finetune.py --model runs/quickstart/model [--clips 20] [--steps 300] [--output runs/own-clips]

Renders the clips, writes one question about each to clips.jsonl (as a user would), runs `mmllm finetune` and
`mmllm eval` on them, and prints mIoU before and after with the processor time of the training.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--output", type=Path, default=Path("runs/own-clips"))
    options = parser.parse_args()
    data = own_data(options.output / "data", options.clips)
    before = miou(options.model, data, options.output / "before")
    started = time.process_time()
    training = FinetuneTraining(max_steps=options.steps)
    tuned = finetune(FinetuneConfig(model=options.model, training=training), data, options.output / "run", workers=0)
    seconds = time.process_time() - started
    after = miou(tuned, data, options.output / "after")
    print(f"{options.clips} clips, {options.steps} steps, {seconds:.0f} CPU-s: mIoU {before:.1f} -> {after:.1f}")


if __name__ == "__main__":
    main()
