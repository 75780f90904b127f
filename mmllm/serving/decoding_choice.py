"""The decoding method that a request names."""

from __future__ import annotations

from mmllm.decoding.choosing import require_model
from mmllm.errors import InputError
from mmllm.inference.asking import VideoAnswering
from mmllm.inference.prompts import Prompt
from mmllm.interfaces import Decoding
from mmllm.serving.models import LoadedModel
from mmllm.serving.refusals import Refused


def method_of(choice: str, model: LoadedModel, qa: VideoAnswering) -> Decoding:
    """How an answer is written.

    Raises:
        Refused: if there is no such method, or it does not work with the model.
    """
    try:
        method = model.methods.of(choice)
        require_model(method, qa)
    except InputError as problem:
        raise Refused(400, str(problem), "bad_settings", "decoding") from None
    return method


def require_one_video(method: Decoding, prompt: Prompt) -> None:
    """Refuses conversations in which a drafter cannot look at the video.

    Raises:
        Refused: if there is another medium, or no video.
    """
    if len(prompt.media) != 1 or prompt.watched is None:
        message = f"decoding {method.registered_name} writes answers about one video, and no other media"
        raise Refused(400, message, "bad_settings", "decoding")
