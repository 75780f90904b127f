"""The card of a model: the README.md by which the Hugging Face hub and its readers know it.

Its head is the metadata of the hub (library, task, base model, data sets, results); its text says what the model is
made of, how it is asked, and how good its answers were.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmllm.errors import InputError
from mmllm.runtime.files import write_text

FILE = "README.md"
MARK = "<!-- This card was written by mmllm; a card without this line is never overwritten. -->"
PEFTS_FORM = "# Model Card for Model ID"
"""Title of the empty form that peft writes beside adapters; it is replaced."""
TASK, TASK_NAME = "video-text-to-text", "Temporal grounding"
TAGS = ("video", "temporal-grounding")
METRICS = {"miou": "mIoU", "p_at_0.5": "P@0.5", "text_accuracy": "Accuracy of words"}
"""Name in a file of scores -> what the card calls it."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of a model on one data set."""

    data: str
    """Name of the data set, as readers know it."""
    metrics: Mapping[str, Any]
    """The content of the file `metrics.json` that `mmllm eval` wrote."""

    def __post_init__(self) -> None:
        if not any(self.metrics.get(name) is not None for name in METRICS) or "questions" not in self.metrics:
            raise InputError(f"{self.data}: these are no scores of `mmllm eval`; its file is metrics.json")

    @property
    def values(self) -> dict[str, float]:
        """Name of a metric -> its value in per cent, of those that were computed."""
        given = {title: self.metrics.get(name) for name, title in METRICS.items()}
        return {title: round(100 * value, 1) for title, value in given.items() if value is not None}

    @property
    def row(self) -> str:
        """The row of the card's table."""
        interval = self.metrics.get("miou_interval")
        between = "-" if interval is None else " to ".join(f"{100 * end:.1f}" for end in interval)
        constant = self.metrics.get("best_constant_miou")
        guess = "-" if constant is None else f"{100 * constant:.1f}"
        cells = [str(self.values.get(title, "-")) for title in METRICS.values()]
        return f"| {self.data} | {self.metrics['questions']:g} | {' | '.join(cells)} | {between} | {guess} |"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a card says."""

    name: str
    """Name of the model, as a title; on the hub `owner/name`."""
    library: str = "mmllm"
    """The library that loads the model's folder: mmllm, transformers or peft."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Part of the model -> what stands there."""
    base_models: Sequence[str] = ()
    """Hub ids of the models whose weights it began with."""
    datasets: Sequence[str] = ()
    """Hub ids of the data sets that it was trained on."""
    licence: str | None = None
    """Identifier of the licence of the weights on the hub, such as apache-2.0; None where nobody has said it."""
    note: str | None = None
    """What users should know about its training."""
    scores: Sequence[Scores] = ()

    @property
    def text(self) -> str:
        """The whole file: metadata between lines of dashes, then Markdown."""
        return f"---\n{self._metadata}\n---\n{MARK}\n\n" + "\n\n".join(self._sections) + "\n"

    @property
    def _metadata(self) -> str:
        from huggingface_hub import EvalResult, ModelCardData

        results = [
            EvalResult(
                task_type=TASK,
                task_name=TASK_NAME,
                dataset_type=scores.data.lower().replace(" ", "-"),
                dataset_name=scores.data,
                metric_type=title.lower().replace(" ", "-"),
                metric_name=title,
                metric_value=value,
            )
            for scores in self.scores
            for title, value in scores.values.items()
        ]
        return ModelCardData(
            base_model=list(self.base_models) or None,
            datasets=list(self.datasets) or None,
            eval_results=results or None,
            language="en",
            library_name=self.library,
            license=self.licence,
            model_name=self.name.rpartition("/")[-1],
            pipeline_tag=TASK,
            tags=list(TAGS),
        ).to_yaml()

    @property
    def _sections(self) -> list[str]:
        begin = f"# {self.name}\n\nA model that answers questions about videos and says when something happens."
        sections = [begin]
        if self.note:
            sections.append(f"**{self.note[0].upper()}{self.note[1:].rstrip('.')}.**")
        if self.base_models:
            sections.append(f"It began with the weights of {', '.join(self.base_models)}.")
        if self.parts:
            sections.append(_table(("part", "setting"), [f"| {part} | {text} |" for part, text in self.parts.items()]))
        sections.append(USE.format(name=self.name))
        if self.scores:
            columns = ("data", "questions", *METRICS.values(), "95 % of mIoU", "mIoU of the best constant")
            sections.append("## How good it is\n\nIn per cent, as `mmllm eval` measured it.")
            sections.append(_table(columns, [scores.row for scores in self.scores]))
        return sections


USE = """\
## How it is asked

```bash
mmllm ask --model {name} clip.mp4 "When does it happen?"
```

```python
from mmllm.inference.answering import VideoQA

answer = VideoQA.from_pretrained("{name}").ask("clip.mp4", "When does it happen?")
print(answer.text, answer.spans)
```"""


@contextlib.contextmanager
def kept_if_refused(file: Path) -> Iterator[None]:
    """Whatever is raised inside, a card is then as it was before, or not there if there was none."""
    before = file.read_text(encoding="utf-8") if file.exists() else None
    try:
        yield
    except BaseException:
        if before is None:
            file.unlink(missing_ok=True)
        else:
            write_text(file, before)
        raise


def write_card(folder: str | Path, card: ModelCard) -> Path:
    """Writes the card into a model's folder. An earlier card is replaced if mmllm wrote it.

    Raises:
        InputError: if the folder has a card of somebody else.
    """
    file = Path(folder) / FILE
    earlier = file.read_text(encoding="utf-8", errors="replace") if file.exists() else MARK
    if MARK not in earlier and PEFTS_FORM not in earlier:
        raise InputError(f"{file} was not written by mmllm, or its mark was removed: move it away first")
    write_text(file, card.text)
    return file


def _table(columns: Sequence[str], rows: Sequence[str]) -> str:
    """A table of Markdown."""
    return "\n".join([f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *rows])
