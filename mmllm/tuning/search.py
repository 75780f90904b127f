"""The search itself: rungs of clips, a trial of optuna for each setting, and what came of them.

A killed search goes on. Answers are in `trials.jsonl`; which trials have stopped is in optuna's storage, `study.db`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from mmllm.errors import ConfigError
from mmllm.inference.prompt_costs import experts
from mmllm.tuning.answers import UNREDUCED, ReducerAnswers
from mmllm.tuning.config import TuneConfig
from mmllm.tuning.halving import Standing, TargetPruner, rungs, standing
from mmllm.tuning.settings import Setting


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one setting."""

    setting: Setting
    standing: Standing | None
    """After its last rung; None if it cannot work."""
    end: Literal["measured", "under the target", "set aside", "refused"]
    """Measured on all clips; surely under the target after fewer; not among the best of a rung; or not possible."""
    reason: str = ""
    """Why it is not possible."""


@dataclass
class ReducerSearch:
    """A search for the cheapest setting that is within the target.

    Args:
        answers: of the model.
        settings: the candidates.
        clips: names of all clips, in the order in which they are taken.
        config: all settings.
        folder: where `study.db` is.
    """

    answers: ReducerAnswers
    settings: Sequence[Setting]
    clips: Sequence[str]
    config: TuneConfig
    folder: Path

    def __post_init__(self) -> None:
        if self.config.cost == "operations" and experts(self.answers.settings.qa.decoder.config):
            raise ConfigError("--cost operations: those of an LLM of experts are not counted; use --cost tokens")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        database = self.folder / "study.db"
        # `creator`, because a path may hold signs that mean something in an address
        storage = optuna.storages.RDBStorage("sqlite://", engine_kwargs={"creator": lambda: _connected(database)})
        self.study = optuna.create_study(
            study_name="reducers",
            storage=storage,
            load_if_exists=True,
            sampler=optuna.samplers.RandomSampler(seed=self.config.seed),
            pruner=TargetPruner(self.config.target_miou, self.config.halving),
        )
        self.sizes = rungs(self.config.first_clips, len(self.clips), self.config.halving)

    def run(self) -> list[Outcome]:
        """Searches, or goes on searching. Every setting has an outcome, in the order of the settings.

        If none of the last rung is within the target, settings that were set aside get their turn, so that nothing is
        said to be out of reach that was not measured or surely is.
        """
        self._drop_stale()
        self._halve([setting for setting in self.settings if self._finished(setting) is None])
        for setting in self._set_aside():
            if self.cheapest() is not None:
                break
            self._measure_alone(setting)
        return self.outcomes()

    def outcomes(self) -> list[Outcome]:
        """What has come of each setting."""
        outcomes = []
        for setting in self.settings:
            trial = self._finished(setting)
            assert trial is not None
            rows = trial.user_attrs["rungs"]
            last = Standing(**rows[max(rows, key=int)]) if rows else None
            reason = trial.user_attrs.get("reason", "")
            outcomes.append(Outcome(setting=setting, standing=last, end=trial.user_attrs["end"], reason=reason))
        return outcomes

    def cheapest(self) -> Outcome | None:
        """The cheapest setting that is within the target on all clips, of equals the best."""
        within = [
            ((outcome.standing.cost, -outcome.standing.share), outcome)
            for outcome in self.outcomes()
            if outcome.standing and outcome.end == "measured" and outcome.standing.share >= self.config.target_miou
        ]
        return min(within, key=lambda pair: pair[0])[1] if within else None

    # --- rungs ------------------------------------------------------------------------------------------------

    def _halve(self, settings: Sequence[Setting]) -> None:
        """Takes settings from rung to rung."""
        going = {setting: self._trial(setting) for setting in settings}
        for number, size in enumerate(self.sizes, start=1):
            if not going:
                return
            what = f"rung {number} of {len(self.sizes)}: {len(going)} settings"
            self.answers.measure(list(going), self.clips[:size], what)
            for setting, trial in list(going.items()):
                if not self._report(setting, trial, size):
                    going.pop(setting)
            if size < len(self.clips):
                going = {setting: trial for setting, trial in going.items() if not self._stopped(trial, size)}
        for trial in going.values():
            self._finish(trial, "measured")

    def _measure_alone(self, setting: Setting) -> None:
        """Takes a setting that was set aside through all rungs, unless it turns out to be under the target."""
        trial = self._trial(setting)
        for size in self.sizes:
            self.answers.measure([setting], self.clips[:size], f"once more: {setting.flag}")
            if not self._report(setting, trial, size):
                return
            if self._is_under(trial, size) and size < len(self.clips):
                self._finish(trial, "under the target")
                return
        self._finish(trial, "measured")

    def _stopped(self, trial: Trial, size: int) -> bool:
        """Whether a trial stops after so many clips; then it is finished."""
        if not trial.should_prune():
            return False
        self._finish(trial, "under the target" if self._is_under(trial, size) else "set aside")
        return True

    def _is_under(self, trial: Trial, size: int) -> bool:
        return bool(trial.user_attrs["rungs"][str(size)]["high"] < self.config.target_miou)

    def _report(self, setting: Setting, trial: Trial, size: int) -> bool:
        """Tells optuna how a setting stands after `size` clips; False if it has turned out not to work."""
        if (reason := self.answers.refused.get(setting.flag)) is not None:
            trial.set_user_attr("reason", reason)
            self._finish(trial, "refused")
            return False
        clips = self.clips[:size]
        own, whole = self.answers.of(setting.flag, clips), self.answers.of(UNREDUCED, clips)
        costs = [sum(float(getattr(result, self.config.cost)) for result in results) for results in (own, whole)]
        stands = standing([result.miou for result in own], [result.miou for result in whole], *costs)
        trial.set_user_attr("rungs", {**trial.user_attrs["rungs"], str(size): stands.to_json()})
        trial.report(stands.value(self.config.target_miou), size)
        return True

    # --- trials of optuna -------------------------------------------------------------------------------------

    def _trial(self, setting: Setting) -> Trial:
        """A new trial of a setting."""
        attributes = {"setting": setting.flag, "order": self.settings.index(setting), "rungs": {}}
        self.study.enqueue_trial({"reducer": setting.reducer, "budget": setting.share}, user_attrs=attributes)
        return self._next()

    def _next(self) -> Trial:
        """The trial that waits."""
        return self.study.ask(
            {
                "reducer": CategoricalDistribution(list(dict.fromkeys(each.reducer for each in self.settings))),
                "budget": CategoricalDistribution(list(dict.fromkeys(each.share for each in self.settings))),
            }
        )

    def _finish(self, trial: Trial, end: str) -> None:
        """Ends a trial."""
        trial.set_user_attr("end", end)
        if end == "measured":
            values: dict[int, float] = self.study.trials[trial.number].intermediate_values
            self.study.tell(trial, values[max(values)])
        else:
            self.study.tell(trial, state=TrialState.FAIL if end == "refused" else TrialState.PRUNED)

    def _drop_stale(self) -> None:
        """Ends the trials that were under way when a search was killed; their settings get new ones."""
        for _ in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._next()
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.study.tell(trial.number, state=TrialState.FAIL)

    def _finished(self, setting: Setting) -> FrozenTrial | None:
        """The last finished trial of a setting; None if it has none."""
        trials = [
            trial
            for trial in self.study.get_trials(deepcopy=False)
            if trial.state.is_finished() and trial.user_attrs.get("setting") == setting.flag and self._has_ended(trial)
        ]
        return trials[-1] if trials else None

    @staticmethod
    def _has_ended(trial: FrozenTrial) -> bool:
        """Whether a finished trial came to an end of its own, and was not killed."""
        return trial.state != TrialState.FAIL or trial.user_attrs.get("end") == "refused"

    def _set_aside(self) -> list[Setting]:
        """The settings that were set aside, the most promising first."""
        values: dict[Setting, Any] = {
            outcome.setting: outcome.standing.value(self.config.target_miou)
            for outcome in self.outcomes()
            if outcome.standing is not None and outcome.end == "set aside"
        }
        return sorted(values, key=lambda setting: float(values[setting]))


def _connected(database: Path) -> sqlite3.Connection:
    """A connection that writes ahead: a kill leaves the database whole, and no commit waits for the disk."""
    connection = sqlite3.connect(database, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection
