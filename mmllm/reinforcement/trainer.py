"""TRL's GRPO trainer for prompts with videos.

TRL 1.16 takes images alone, and only as far as it knows the inputs of a processor. Three of its methods are the seam:

| what | how |
|---|---|
| generation | `rollout_func`, TRL's own way to generate elsewhere: here with the media of each prompt |
| log-probabilities | `_get_per_token_logps_and_entropies` is replaced: it asks the policy for logits with media |
| whose completion it is | a column `row`, carried through `_generate_and_score_completions` and the loss |

So TRL sees a model of texts and never a video. Groups, advantages, the loss and its variants, the buffer of completions
and resuming are TRL's. Nothing is sent to anybody, and no model card is written.

B rows, L text positions, K positions of the longest answer, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer

from mmllm.modeling.modes import evaluating
from mmllm.reinforcement.policy import Policy
from mmllm.train.fitting import Scheduled


class VideoGRPO(Scheduled, GRPOTrainer):
    """Learns from rewards of its own answers to questions about videos.

    Args:
        policy: prompts, media and logits of the questions.
        order: number of the question of each prompt, in the order of the training.
        rewards: reward functions in TRL's form, see `mmllm.reinforcement.rewards`, each with its weight.
        model: the policy's model, with adapters if there are some.
        args: settings.
        options: others of TRL's trainer.
    """

    def __init__(
        self,
        policy: Policy,
        order: Sequence[int],
        rewards: Mapping[Callable[..., list[float]], float],
        *,
        model: Any,
        args: GRPOConfig,
        **options: Any,
    ) -> None:
        self.policy = policy
        self.rows: Sequence[int] = ()
        """Rows of the completions that are generated or scored at the moment."""
        args.reward_weights = list(rewards.values())
        super().__init__(
            model=model,
            reward_funcs=list(rewards),
            args=args,
            train_dataset=_table(policy).select(order),
            processing_class=policy.tokenizer,
            rollout_func=_rollout,
            **options,
        )

    def answers(self) -> dict[str, Any]:
        """TRL's fields of generated answers to the prompts of `rows`, and what was read in them."""
        prompts = [torch.tensor(self.policy.prompt(row)) for row in self.rows]
        pad = self.policy.tokenizer.pad_token_id
        ids = pad_sequence(prompts, batch_first=True, padding_value=pad, padding_side="left")
        mask = pad_sequence([torch.ones_like(prompt) for prompt in prompts], batch_first=True, padding_side="left")
        wrapped = self.accelerator.unwrap_model(self.model)
        model = getattr(wrapped, "get_base_model", lambda: wrapped)()
        device = self.accelerator.device
        options = {**self.generation_kwargs, "suppress_tokens": list(self.policy.unsaid) or None}
        with torch.no_grad(), evaluating(model):  # in training it keeps no cache where gradients are recomputed
            new = self.policy.sampled(model, self.rows, ids.to(device), mask.to(device), options)
        completions = [_until_end(row, self.eos_token_ids) for row in new.tolist()]
        said = [self.policy.read(row, answer) for row, answer in zip(self.rows, completions, strict=True)]
        return {
            "prompt_ids": [prompt.tolist() for prompt in prompts],
            "completion_ids": completions,
            "logprobs": None,  # they are computed with the loss
            "answered": [None if one.spans is None else [list(span) for span in one.spans] for one in said],
            "said": [one.text for one in said],
        }

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        inputs = [dict(row) for row in inputs]  # answers are written into them
        self.rows = [row["row"] for row in inputs]
        outputs = super()._generate_and_score_completions(inputs)
        return {**outputs, "rows": torch.tensor(self.rows)}

    def _calculate_rewards(self, inputs: list[dict[str, Any]], prompts: Any, completions: Any, ids: Any) -> Tensor:
        texts = [row.pop("said") for row in inputs]  # with times in seconds, whatever the model's own form is
        return super()._calculate_rewards(inputs, prompts, texts, ids)

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self.rows = inputs["rows"].tolist()
        return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Log-probabilities B K of the answers and, if asked for, the entropy of each prediction."""
        size = batch_size or len(input_ids)
        parts = [
            self._of_answers(model, slice(begin, begin + size), input_ids, attention_mask, logits_to_keep)
            for begin in range(0, len(input_ids), size)
        ]
        log_probabilities, entropies = (torch.cat(part) for part in zip(*parts, strict=True))
        return log_probabilities, entropies if compute_entropy else None, None

    def _of_answers(
        self, model: Any, part: slice, input_ids: Tensor, attention_mask: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies B K of some rows."""
        ids, mask = input_ids[part], attention_mask[part]
        with self.accelerator.autocast():
            logits = self.policy.logits(model, self.rows[part], ids, mask, count)
        every = (logits.float() / self.temperature).log_softmax(dim=-1)
        chosen = every.gather(-1, ids[:, -count:].unsqueeze(-1)).squeeze(-1)
        return chosen, -(every.detach().exp() * every.detach()).sum(dim=-1)

    def _send_telemetry(self) -> None:
        """Sends nothing."""

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        """Writes nothing: the run's folder says what was trained."""


def _rollout(_prompts: list[Any], trainer: VideoGRPO) -> dict[str, Any]:
    """TRL's `rollout_func`; the prompts' rows are the trainer's."""
    return trainer.answers()


def _until_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """Generated ids up to the first that ends an answer, with it."""
    place = next((number for number, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: place + 1]


def _table(policy: Policy) -> Any:
    """The questions as TRL's data: a row for each, with the columns that rewards get."""
    from datasets import Dataset, Features, List, Value

    rows = range(len(policy.questions))
    truths = [question.truth() for question in policy.questions]
    columns = {
        "prompt": [question.question for question in policy.questions],
        "row": list(rows),
        "question_id": [question.question_id for question in policy.questions],
        "spans": [[span.to_json() for span in truth.spans] for truth in truths],
        "duration_s": [policy.duration_s(row) for row in rows],
    }
    features = Features({
        "prompt": Value("string"),
        "row": Value("int64"),
        "question_id": Value("string"),
        "spans": List(List(Value("float64"))),
        "duration_s": Value("float64"),
    })  # fmt: skip
    return Dataset.from_dict(columns, features=features)
