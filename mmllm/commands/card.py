"""`mmllm card MODEL`: writes the card of a model, and puts model and card on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from mmllm.errors import InputError

if TYPE_CHECKING:
    from mmllm.hub.model_card import Scores


def card(
    model: Annotated[Path, tyro.conf.Positional],
    scores: tuple[str, ...] = (),
    base_model: tuple[str, ...] = (),
    dataset: tuple[str, ...] = (),
    licence: str | None = None,
    push: str | None = None,
    private: bool = False,
) -> None:
    """Write the card of a model (README.md) into its folder, with the hub's metadata; --push puts both on the hub.

    What an earlier card says stays unless it is given anew; scores stay those of data that are not given.

    Args:
        model: folder of a model or of adapters.
        scores: results of `mmllm eval`, as the data's name and its file: "ActivityNet-RTL=runs/a/eval/metrics.json".
        base_model: hub ids of the models whose weights it began with; by default those that its run has recorded.
        dataset: hub ids of the data sets that it was trained on.
        licence: of the weights, as the hub writes it: apache-2.0, mit, llama2, ...
        push: owner/name on the hub; needs the login of `hf auth login`, or HF_TOKEN.
        private: create it as a private model.
    """
    from mmllm.checkpoints.cards import card_of
    from mmllm.hub.earlier_card import earlier_card
    from mmllm.hub.model_card import FILE, kept_if_refused, write_card
    from mmllm.hub.publishing import checked_repository, upload

    if not model.is_dir():
        raise InputError(f"{model}: there is no such folder")
    if private and push is None:
        raise InputError("--private belongs to --push, which is not given")
    repository = None if push is None else checked_repository(push)
    earlier, given = earlier_card(model), _scores(scores)
    made = card_of(
        model,
        name=repository or earlier.name,
        base_models=base_model or earlier.base_models,
        datasets=dataset or earlier.datasets,
        licence=licence or earlier.licence,
        scores=earlier.with_scores(given),
    )
    with kept_if_refused(model / FILE):
        written = write_card(model, made)
        commit = None if repository is None else upload(model, repository, private=private)
    print(written)
    if commit is not None:
        print(commit)


def _scores(given: tuple[str, ...]) -> list[Scores]:
    """The scores of `NAME=FILE` each.

    Raises:
        InputError: for another form, or a file that `mmllm eval` did not write.
    """
    from mmllm.hub.model_card import Scores
    from mmllm.runtime.files import read_json

    pairs = [text.rpartition("=") for text in given]
    for text, (name, _, file) in zip(given, pairs, strict=True):
        if not name or not file:
            raise InputError(f"--scores {text!r}: write the data's name and its file, such as RTL=eval/metrics.json")
    remedy = "give the file metrics.json that `mmllm eval` wrote"
    return [Scores(data=name, metrics=read_json(Path(file), remedy)) for name, _, file in pairs]
