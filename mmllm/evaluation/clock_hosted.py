"""`check-times` of a hosted model: the times in the prompts that it reads, and in the positions of its visual tokens.

N prompt length, T frames, G temporal grids
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmllm.evaluation.clock_faults import Observation
from mmllm.evaluation.clock_prompt import grouped, prompt_observations, prompt_texts
from mmllm.evaluation.clock_situations import Situation
from mmllm.inference.hosted import HostedVideoQA
from mmllm.inference.hosted_video import HostedVideo


def hosted_observations(
    qa: HostedVideoQA, video: HostedVideo, situation: Situation, numbers: Sequence[int]
) -> list[Observation]:
    """What tells a hosted model when its frames are shown.

    Args:
        qa: the model.
        video: as it was encoded.
        situation: what was given.
        numbers: T, those that the frames show.
    """
    family, config = qa.model.family, qa.model.config
    messages = [{"role": "user", "content": qa.prompting.content(len(video.clip), "When does it happen?")}]
    inputs = qa.prompting.inputs(video.prepared, messages)
    placeholders = {token for token in family.token_ids(config).values() if token is not None}
    ids = inputs["input_ids"][0].tolist()
    together = qa.prompting.frames_together
    texts = prompt_texts(ids, placeholders, qa.prompting.tokenizer)
    seen = prompt_observations(situation, numbers, texts, together=together)
    if family.times_in_positions:
        rows = family.positions(qa.model.model, {**inputs, **video.features.facts}, qa.model.position_rule)
        visual = np.isin(ids, list(placeholders))
        units = grouped(numbers, together)
        steps = rows[1, 0].cpu().numpy()[visual].reshape(len(units), -1)[:, 0]
        rate = float(config.vision_config.tokens_per_second)
        seen.append(
            Observation(
                situation=situation,
                kind="position rows",
                units=units,
                fed_s=(steps - steps[0]) / rate,
                tolerance_s=1 / rate,
                relative=True,
            )
        )
    return seen
