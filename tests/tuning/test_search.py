"""The whole search against brute force, with answers that are drawn in place of a model's; killed, and going on."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mmllm.errors import ConfigError, InputError
from mmllm.tuning.answers import UNREDUCED, ReducerAnswers
from mmllm.tuning.config import TuneConfig
from mmllm.tuning.report import results_of, summary_of, table_of
from mmllm.tuning.search import ReducerSearch
from mmllm.tuning.settings import Setting

CLIPS = [f"clip{number:02}" for number in range(40)]
DECODER = SimpleNamespace(config=SimpleNamespace())


class Killed(BaseException):
    """In place of SIGKILL: nobody catches it."""


class DrawnAnswers(ReducerAnswers):
    """Scores around a quality that each setting has, for clips that are more or less hard."""

    def __init__(self, file, quality, cost, *, spread=0.1, broken=(), life=10**9):
        self.quality, self.cost, self.spread, self.broken, self.life = quality, cost, spread, broken, life
        self.asked = []
        super().__init__(SimpleNamespace(qa=SimpleNamespace(decoder=DECODER)), None, {}, file)

    def measure(self, settings, clips, what):
        for vid in clips:
            for flag in [UNREDUCED, *(setting.flag for setting in settings)]:
                if (flag, vid) not in self.results and flag not in self.refused:
                    if len(self.asked) >= self.life:
                        raise Killed
                    self.asked.append((flag, vid))
                    if flag in self.broken:
                        self._write(flag, vid, refused="it does not work")
                    else:
                        self._write(flag, vid, **self.drawn(flag, vid))

    def drawn(self, flag, vid):
        clip = np.random.default_rng(CLIPS.index(vid))
        level = clip.uniform(0.4, 1.0)
        own = np.random.default_rng([CLIPS.index(vid), *flag.encode()])
        miou = level * (self.quality.get(flag, 1.0) + (own.normal(0, self.spread) if flag else 0.0))
        return {"ious": {"0": miou}, "tokens": 100 * self.cost.get(flag, 1.0), "operations": 1.0}


def settings(quality):
    return [Setting(flag, 0.5, flag) for flag in quality]


def searched(folder, quality, cost, *, clips=CLIPS, target=0.9, **options):
    answers = DrawnAnswers(folder / "trials.jsonl", quality, cost, **options)
    config = TuneConfig(target_miou=target, cost="tokens", first_clips=4)
    search = ReducerSearch(answers, settings(quality), clips, config, folder)
    outcomes = search.run()
    return search, {outcome.setting.flag: outcome for outcome in outcomes}


def by_brute_force(answers, quality, cost, target):
    """The cheapest of those that are within the target on all clips; None if there is none."""
    whole = np.mean([answers.drawn(UNREDUCED, vid)["ious"]["0"] for vid in CLIPS])
    within = {
        flag: cost[flag]
        for flag in quality
        if np.mean([answers.drawn(flag, vid)["ious"]["0"] for vid in CLIPS]) >= target * whole
    }
    return min(within, key=within.get) if within else None


@pytest.mark.parametrize("seed", range(4))
def test_the_cheapest_within_the_target_is_found_with_a_part_of_the_work(tmp_path, seed):
    generator = np.random.default_rng(seed)
    quality = {f"r{number}": float(generator.uniform(0.4, 1.0)) for number in range(12)}
    cost = {flag: float(share) ** 2 for flag, share in quality.items()}  # what keeps more costs more
    search, outcomes = searched(tmp_path, quality, cost, spread=0.02)
    cheapest = search.cheapest()
    assert (cheapest and cheapest.setting.flag) == by_brute_force(search.answers, quality, cost, 0.9)
    assert len(search.answers.asked) < 0.6 * 13 * len(CLIPS)
    surely = [flag for flag, outcome in outcomes.items() if outcome.end == "under the target"]
    assert surely
    assert all(quality[flag] < 0.9 for flag in surely)


def test_nothing_is_said_to_be_out_of_reach_that_was_only_set_aside(tmp_path):
    # the cheap ones look good on the first clips and are not; the one that is within is dear and set aside at first
    quality, cost = {"a": 0.85, "b": 0.84, "c": 0.83, "dear": 0.97}, {"a": 0.1, "b": 0.1, "c": 0.1, "dear": 0.9}

    class Flattering(DrawnAnswers):
        def drawn(self, flag, vid):
            row = super().drawn(flag, vid)
            if flag == "dear":
                row["ious"]["0"] = super().drawn(UNREDUCED, vid)["ious"]["0"] * (0.97 + 0.2 * (-1) ** CLIPS.index(vid))
            elif flag and CLIPS.index(vid) < 8:
                row["ious"]["0"] *= 1.3
            return row

    answers = Flattering(tmp_path / "trials.jsonl", quality, cost, spread=0.02)
    config = TuneConfig(target_miou=0.93, cost="tokens", first_clips=4)
    search = ReducerSearch(answers, settings(quality), CLIPS, config, tmp_path)
    outcomes = {outcome.setting.flag: outcome for outcome in search.run()}
    ends = [trial.user_attrs["end"] for trial in search.study.trials if trial.user_attrs["setting"] == "dear"]
    assert ends == ["set aside", "measured"]
    assert search.cheapest().setting.flag == "dear"
    assert outcomes["dear"].standing.clips == len(CLIPS)


def test_nothing_within_the_target_names_the_nearest(tmp_path):
    quality, cost = {"a": 0.5, "b": 0.8, "c": 0.6}, {"a": 0.1, "b": 0.5, "c": 0.2}
    search, outcomes = searched(tmp_path, quality, cost, spread=0.01)
    assert search.cheapest() is None
    assert {outcome.end for outcome in outcomes.values()} == {"under the target"}
    results = results_of(search, list(outcomes.values()), {"x at 0.5": "does not fit"}, [])
    assert (results["cheapest"], results["nearest"]["flag"]) == (None, "b")
    summary = summary_of(results, tmp_path)
    assert "nothing within the target: no setting keeps 90 % of the unreduced mIoU" in summary
    assert "the nearest keeps 80." in summary
    assert "--reducer b" in summary
    assert f"1 do not work with this model, and why: {tmp_path / 'results.json'}" in summary
    assert table_of(results).row_count == 3


def test_a_setting_that_cannot_work_is_refused_with_its_reason(tmp_path):
    search, outcomes = searched(tmp_path, {"good": 1.0, "bad": 1.0}, {"good": 0.5, "bad": 0.1}, broken=("bad",))
    assert (outcomes["bad"].end, outcomes["bad"].reason, outcomes["bad"].standing) == (
        "refused", "it does not work", None
    )  # fmt: skip
    assert search.cheapest().setting.flag == "good"
    assert results_of(search, list(outcomes.values()), {}, [])["refused"] == {"bad": "it does not work"}
    lone = tmp_path / "lone"
    lone.mkdir()
    search, outcomes = searched(lone, {"bad": 1.0}, {"bad": 0.1}, broken=("bad",))
    results = results_of(search, list(outcomes.values()), {}, [])
    assert (results["cheapest"], results["nearest"], results["settings"]) == (None, None, [])
    assert "nothing within the target" in summary_of(results, lone)


def test_killed_anywhere_it_goes_on_to_the_same_end_and_asks_nothing_twice(tmp_path):
    # equal costs and equal scores: what is decided by order must not change after a kill
    quality = {"a": 1.0, "b": 1.0, "c": 0.95, "d": 0.93, "e": 0.7, "f": 0.92}
    cost = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.3, "e": 0.1, "f": 0.2}
    whole = tmp_path / "whole"
    whole.mkdir()
    search, expected = searched(whole, quality, cost, spread=0.05)
    work = search.answers.asked
    for life in (30, 71):
        folder = tmp_path / str(life)
        folder.mkdir()
        asked = []
        for _ in range(1000):
            try:
                answers = DrawnAnswers(folder / "trials.jsonl", quality, cost, spread=0.05, life=life)
                config = TuneConfig(target_miou=0.9, cost="tokens", first_clips=4)
                outcomes = ReducerSearch(answers, settings(quality), CLIPS, config, folder).run()
            except Killed:
                asked += answers.asked
                with (folder / "trials.jsonl").open("a") as file:
                    file.write('{"reducer": "a", "cl')  # it was killed while it wrote
                continue
            asked += answers.asked
            break
        assert sorted(asked) == sorted(work)
        assert {outcome.setting.flag: outcome for outcome in outcomes} == expected


def test_a_finished_search_is_not_repeated(tmp_path):
    quality, cost = {"a": 0.95, "b": 0.6}, {"a": 0.5, "b": 0.1}
    search, first = searched(tmp_path, quality, cost)
    trials = len(search.study.trials)
    again, second = searched(tmp_path, quality, cost, life=0)
    assert (first, len(again.study.trials)) == (second, trials)


def test_every_trial_of_a_clip_is_a_line(tmp_path):
    search, _ = searched(tmp_path, {"a": 0.95}, {"a": 0.5}, clips=CLIPS[:5])
    rows = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * 5
    assert {"reducer": "a", "clip": "clip00", **vars(search.answers.results["a", "clip00"])} == rows[1]


def test_a_folder_of_any_name_will_do(tmp_path):
    folder = tmp_path / "what? {x} 50% #1"
    folder.mkdir()
    searched(folder, {"a": 0.95}, {"a": 0.5}, clips=CLIPS[:5])
    assert (folder / "study.db").stat().st_size


def test_an_unreduced_model_that_scores_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="the unreduced model has mIoU 0"):
        searched(tmp_path, {"a": 0.0, UNREDUCED: 0.0}, {"a": 0.5}, spread=0.0)


def test_operations_of_an_llm_of_experts_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(DECODER.config, "num_experts", 8, raising=False)
    answers = DrawnAnswers(tmp_path / "trials.jsonl", {}, {})
    with pytest.raises(ConfigError, match="use --cost tokens"):
        ReducerSearch(answers, [], CLIPS, TuneConfig(), tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_miou", 0), ("target_miou", 1.2), ("target_miou", float("nan")), ("budgets", ()),
        ("budgets", (0.5, 1.0)), ("budgets", (0.0,)), ("budgets", (float("nan"),)),
        ("first_clips", 1), ("halving", 1), ("seed", -1),
    ],
)  # fmt: skip
def test_values_that_are_not_allowed(field, value):
    with pytest.raises(ConfigError, match=field):
        TuneConfig(**{field: value})
