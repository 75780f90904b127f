"""A model's folder on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from mmllm.errors import InputError, MmllmError

LEFT_OUT = ("*.part", "*.part/*", "eval/*", "eval-*/*", ".lock")
"""Files of a model's folder that are not the model: unfinished ones, and answers of `mmllm eval`."""
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w-]*/[\w.-]+")


def checked_repository(name: str) -> str:
    """The name of a model on the hub.

    Raises:
        InputError: if it has another form than `owner/name`.
    """
    if not _REPOSITORY.fullmatch(name):
        raise InputError(f"{name!r} is no name on the hub: write owner/name")
    return name


def upload(folder: str | Path, repository: str, *, private: bool = False) -> str:
    """Puts a model's folder on the hub in one commit, and creates the model there if it is new.

    Args:
        folder: what `save_pretrained` wrote, with its card.
        repository: `owner/name`.
        private: whether a new model is private.

    Returns:
        The address of the commit.

    Raises:
        MmllmError: if the hub refuses, or cannot be reached; the message says why.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    hub = HfApi(library_name="mmllm")
    try:
        hub.create_repo(checked_repository(repository), private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=list(LEFT_OUT),
            commit_message="Model and card, written by mmllm",
        )
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as problem:
        reason = " ".join(str(problem).split())
        raise MmllmError(f"{repository}: the hub has not taken the model: {reason:.300}") from None
    return str(commit.commit_url)
