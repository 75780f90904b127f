"""Generated ids to answers with times in seconds, or to plain text as transformers' processors give it.

B prompts, R generated rows (several for each prompt with `num_return_sequences`), L ids of a row
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmllm.errors import InputError
from mmllm.fields import closest
from mmllm.preprocessing.text_encoding import TextEncoding
from mmllm.times.answers import Answer, parse_answer

_MOST_IDS = 1 << 31
_TEXT_KEYWORDS = ("skip_special_tokens", "clean_up_tokenization_spaces", "spaces_between_special_tokens")


class AnswerDecoding(TextEncoding):
    """What the processor does with generated ids; its options are those of `MmllmProcessor`."""

    last_is_end: bool
    video_token_id: int

    def decode(self, token_ids: Any, duration_s: Any = None, **kwargs: Any) -> Any:
        """The answer in generated ids: its sentence and its spans in seconds. Without a duration, its plain text.

        Args:
            token_ids: int64, L; only the ids that `generate` returns after the prompt. R L is read as `batch_decode`
                reads it.
            duration_s: length of the video, `inputs["video_durations_s"][0]`. None gives the text as the tokenizer
                writes it, with times as the model writes them; streamers of transformers use that.
            kwargs: of the tokenizer's `decode`, for plain text: `skip_special_tokens` and others.

        Returns:
            An `Answer`, or a text if there is no duration.

        Raises:
            InputError: if the duration is no number of seconds, or a keyword is unknown.
        """
        if _is_batch(token_ids):
            return self.batch_decode(token_ids, duration_s, **kwargs)
        _require_known(kwargs, has_duration=duration_s is not None)
        if duration_s is None:
            return self.tokenizer.decode(_listed(token_ids), **kwargs)
        return self._answer(_listed(token_ids), _seconds(duration_s, 1)[0])

    def batch_decode(self, sequences: Any, durations_s: Any = None, *, inputs: Any = None, **kwargs: Any) -> list[Any]:
        """One answer for each row of generated ids (R L), or one text for each row if no length is given.

        Args:
            sequences: the ids.
            durations_s: seconds of the video of each row; None for a row without a video. One number stands for all
                rows.
            inputs: the model inputs, in place of durations: they say which row has a video and how long it is. Rows may
                be several for each prompt, as `num_return_sequences` gives them, and may begin with the prompt.
            kwargs: as in `decode`.

        Returns:
            Answers (without spans for a row without a video), or texts.

        Raises:
            InputError: if the numbers of rows and durations differ, or a row has several videos, so that its times do
                not say which of them they mean.
        """
        rows = [_listed(row) for row in sequences] if _is_batch(sequences) else None
        _require_known(kwargs, has_duration=not (durations_s is None and inputs is None))
        if durations_s is None and inputs is None:
            return self.tokenizer.batch_decode(sequences if rows is None else rows, **kwargs)
        if rows is None:
            raise InputError("batch_decode takes rows of ids; for the ids of one answer call decode")
        if inputs is None:
            return [
                self._answer(row, seconds) for row, seconds in zip(rows, _seconds(durations_s, len(rows)), strict=True)
            ]
        prompts, lengths = self._prompts(inputs)
        times, rest = divmod(len(rows), len(prompts))
        if rest or not times:
            raise InputError(f"{len(rows)} rows of ids are no multiple of the {len(prompts)} prompts of the inputs")
        if durations_s is not None:
            lengths = _seconds(durations_s, len(prompts))
        answers = []
        for number, row in enumerate(rows):
            prompt, seconds = prompts[number // times], lengths[number // times]
            answers.append(self._answer(row[len(prompt) :] if row[: len(prompt)] == prompt else row, seconds))
        return answers

    def _answer(self, ids: list[int], duration_s: float | None) -> Answer:
        """The answer of new ids; without spans if there is no video."""
        if duration_s is None:
            text = self.decode_text(ids)
            return Answer(text=text.strip(), spans=(), raw=text, fallback=True)
        if self.last_is_end and ids and self.time_tokens is not None:
            last = self.tokenizer.convert_ids_to_tokens(ids[-1])
            ids = ids[:-1] if last in self.time_tokens.strings else ids
        return parse_answer(self.decode_text(ids), duration_s, self.time_tokens)

    def _prompts(self, inputs: Any) -> tuple[list[list[int]], list[float | None]]:
        """The ids of each prompt as they were given to the model, and the length of its video, None without one."""
        if not hasattr(inputs, "keys") or "input_ids" not in inputs:
            raise InputError(f"inputs must be what the processor returned, with input_ids; not {type(inputs).__name__}")
        prompts = [_listed(row) for row in inputs["input_ids"]]
        counts = [row.count(self.video_token_id) for row in prompts]
        given = inputs.get("video_durations_s", [])
        durations_s = _seconds(given, sum(counts))
        if several := [row for row, count in enumerate(counts) if count > 1]:
            raise InputError(
                f"row {several[0]} has {counts[several[0]]} videos, and an answer's times do not say which of "
                "them they mean: give durations_s, one length for each row (that of the video that is asked about)"
            )
        remaining = iter(durations_s)
        return prompts, [next(remaining) if count else None for count in counts]


def _is_batch(ids: Any) -> bool:
    """Whether ids are rows of ids."""
    if isinstance(ids, (Tensor, np.ndarray)):
        return ids.ndim == 2
    return isinstance(ids, (list, tuple)) and len(ids) > 0 and isinstance(ids[0], (list, tuple, Tensor, np.ndarray))


def _listed(ids: Any) -> list[int]:
    """Ids as numbers of Python."""
    numbers = ids.tolist() if isinstance(ids, (Tensor, np.ndarray)) else ids
    try:
        whole = [operator.index(number) for number in ([numbers] if isinstance(numbers, int) else numbers)]
    except TypeError:
        raise InputError(f"ids must be a tensor, an array or a list of whole numbers, not {ids!r:.80}") from None
    if wrong := [number for number in whole if not 0 <= number < _MOST_IDS]:
        raise InputError(f"ids are numbers of the vocabulary, zero or more, not {wrong[0]!r:.20}")
    return whole


def _seconds(durations_s: Any, rows: int) -> list[Any]:
    """A length in seconds for each row, None for a row without a video.

    Raises:
        InputError: if their number is another, or they were rounded to half precision.
    """
    if isinstance(durations_s, Tensor) and durations_s.dtype in (torch.bfloat16, torch.float16):
        raise InputError(
            f"durations in {str(durations_s.dtype).removeprefix('torch.')} are off by seconds in half an hour: keep "
            "them in float32, as the processor's inputs do in .to(dtype)"
        )
    if isinstance(durations_s, (Tensor, np.ndarray)):
        durations_s = durations_s.tolist()
    if isinstance(durations_s, (bool, str)):
        raise InputError(
            f"a duration is a number of seconds, not {durations_s!r:.80}; give other options by their names"
        )
    listed = list(durations_s) if isinstance(durations_s, (list, tuple)) else [durations_s] * rows
    if len(listed) != rows:
        raise InputError(
            f"{rows} rows and {len(listed)} durations: give one for each row (None for a row without a video; again "
            "for each of several sequences of a prompt), or the model inputs, batch_decode(ids, inputs=inputs)"
        )
    return listed


def _require_known(keywords: Mapping[str, Any], *, has_duration: bool) -> None:
    """Refuses keywords that would not be read."""
    for name, value in keywords.items():
        if name not in _TEXT_KEYWORDS:
            raise InputError(f"decoding takes no {name!r}; {closest(name, (*_TEXT_KEYWORDS, 'durations_s', 'inputs'))}")
        if has_duration and not (name == "skip_special_tokens" and value):
            raise InputError(
                f"{name}={value!r:.80} is for plain text; with a duration the answer has no special tokens"
            )
