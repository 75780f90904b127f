"""Ways to write an answer.

L text positions
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from mmllm.interfaces.part import Part


class Decoding(Part):
    """How an answer is written, in place of one pass for each token. It has to write `options`, or be callable."""

    hosted: ClassVar[bool] = True
    """Whether it works with video LLMs that transformers runs."""
    samples: ClassVar[bool] = False
    """Whether it cannot write greedily. Its configuration then has the `temperature` for callers that do not sample."""
    writes_alone: ClassVar[bool] = False
    """Whether it has `greedy_ids`, a loop of its own for plain greedy answers of our models; see
    `mmllm.decoding.tree.MachineDecoding`. All others go through transformers' `generate`."""
    last: Any = None
    """The counters of its last answer, a `mmllm.decoding.counts.DecodingCounts`; None before the first."""
    total: Any = None
    """Those of all its answers."""

    @property
    def other_law(self) -> str:
        """What it writes in place of the model's own answers, in a few words; empty if it writes the same greedy ids,
        and samples of the same law. It is said beside every answer."""
        return ""

    @property
    def said(self) -> dict[str, Any]:
        """What is said beside an answer: the method, the law that it writes if it is another one, and the counters."""
        counts = None if self.last is None else self.last.to_json()
        return {"name": self.registered_name, "other_law": self.other_law, "counts": counts}

    def options(self, qa: Any, encoded: Any, input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        """Options of transformers' `generate` for an answer about a video.

        Args:
            qa: the model that is asked.
            encoded: the video.
            input_ids: int64, 1 L, with the video's placeholder.
            attention_mask: 1 L; None for no padding.

        Raises:
            ConfigError: if it does not work with this model.
        """
        return {"custom_generate": self}
