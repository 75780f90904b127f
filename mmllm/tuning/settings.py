"""The settings of reducers that a model takes: each reducer at each share of the tokens, or why it has none there."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mmllm import registry
from mmllm.errors import ConfigError, InputError
from mmllm.inference.asking import VideoAnswering
from mmllm.interfaces import ProjectedReducer, TokenReducer

_COUNTED_FRAMES = 8
"""Of so many frames the tokens are counted, to know how many one has."""


@dataclass(frozen=True)
class Setting:
    """A reducer at a share of the tokens."""

    reducer: str
    """Its name, with the fields that do not follow from the share."""
    share: float
    """Of the tokens, about so many remain."""
    flag: str
    """What `--reducer` takes."""


class ReducerSettings:
    """What a model's reducers are at each share of its tokens.

    Args:
        qa: the model. Its own reducers play no role.

    Raises:
        ConfigError: if the model does not answer without its own reducers.
    """

    def __init__(self, qa: VideoAnswering) -> None:
        self.qa = qa.with_stages(reducers=[])
        self.qa.keeps_prefix = False  # what it costs to read a video is counted for every question
        self.layers = int(self.qa.decoder.config.num_hidden_layers)  # type: ignore[union-attr,arg-type]
        self.tokens = self.qa.costs(_COUNTED_FRAMES)[0][0]["tokens"] // _COUNTED_FRAMES

    def at(self, reducer: str, share: float) -> Setting:
        """A reducer at a share. If the model lacks the score by which it ranks, it takes another one that it can use.

        Args:
            reducer: its name; fields may follow, such as `fastv:layer=3`, and then they do not follow from the share.
            share: above 0 and at most 1.

        Raises:
            InputError: if the reducer does not fit the model, or has no setting near this share.
        """
        name, given = registry.named("reducer", reducer)
        cls: type[TokenReducer] = registry.find("reducer", name).cls
        fields = cls.settings_at(share, tokens=self.tokens, layers=self.layers)
        if fields is None:
            raise ConfigError(f"reducer {name!r} has no setting that keeps about {share:g} of {self.tokens} tokens")
        fields |= given
        scores = () if "score" in fields else cls.score_choices
        problems = []
        for more in ({}, *({"score": score} for score in scores)):
            flag = registry.text_of(name, {**fields, **more})
            try:
                self.qa.with_stages(reducers=[flag])
            except InputError as problem:
                problems.append(problem)
            else:
                return Setting(reducer, share, flag)
        raise problems[0]

    def all_at(self, reducers: Sequence[str], shares: Sequence[float]) -> tuple[list[Setting], dict[str, str]]:
        """Every reducer at every share, without repetitions; and `reducer at share` -> why there is none."""
        settings: dict[str, Setting] = {}
        refused: dict[str, str] = {}
        for reducer in reducers:
            for share in shares:
                try:
                    setting = self.at(reducer, share)
                except InputError as problem:
                    refused[f"{reducer} at {share:g}"] = str(problem)
                else:
                    settings.setdefault(setting.flag, setting)
        return list(settings.values()), refused

    def scout(self, reducers: Sequence[str]) -> VideoAnswering:
        """The model that encodes a video for all of these: with every token, and every score that they rank by.

        Args:
            reducers: as for `at`; those that do not fit the model are left out.
        """
        ranking: dict[str, bool] = {}  # flag -> whether it acts behind the projector
        for reducer in reducers:
            cls: Any = registry.find("reducer", registry.named("reducer", reducer)[0]).cls
            if cls.score_choices or cls.needs_keys:
                with suppress(InputError):
                    ranking[self.at(reducer, 1.0).flag] = issubclass(cls, ProjectedReducer)
        return self.qa.with_stages(reducers=sorted(ranking, key=lambda flag: ranking[flag]))
