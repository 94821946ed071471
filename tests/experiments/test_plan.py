"""Tests of the plan of a measurement: the rates, a grid's trials and their keys, bisections against
known curves, and pruning."""

import math
from dataclasses import replace

import pytest
import study_driver

from fastfood.experiments.settings.measurement import Settings, complete
from fastfood.experiments.settings.trial import Score
from fastfood.experiments.trials.plan import floor, theta_rates, trials

FACTS = study_driver.facts(counts={"lora": {"1": 120, "4": 420}})
TEXT = {"task": "glue/sst2", "model": "somewhere"}
WRITING = {"task": "gsm8k", "model": "somewhere", "objective": "sft"}


def test_rates_fall_as_the_root_of_d_unless_they_are_given():
    digits, text = complete(Settings()), complete(Settings(**TEXT))
    small, large = theta_rates(text, 10), theta_rates(text, 1000)
    assert [a / b for a, b in zip(small, large, strict=True)] == pytest.approx([10, 10], rel=0.05)
    assert theta_rates(digits, 1000) == large and theta_rates(digits, 10) == small[-1:]
    tensor = complete(Settings(**TEXT, normalization="tensor"))
    assert max(theta_rates(tensor, 10)) == pytest.approx(0.32)
    assert theta_rates(digits.replaced(lrs=(0.5, 0.1, 0.5)), 10) == (0.1, 0.5)
    assert theta_rates(text.replaced(lr_factors=(1.0, 2.0, 3.0)), 100) == (0.1, 0.2, 0.3)


def test_trials_cover_the_sweep_once_with_the_full_runs_first():
    settings = complete(Settings(dims=(10, 100), lrs=(0.1, 0.3), full_lrs=(1e-3,), seeds=2))
    asked = trials(settings, FACTS, {})
    assert [t.method for t in asked[:2]] == ["full", "full"] and asked[0].d == 5000
    assert len({t.key for t in asked}) == len(asked) == 2 + 2 * 2 * 2 * 2
    assert [t.seed for t in asked[2:]] == [0] * 8 + [1] * 8
    assert [t.d for t in asked[2:10]] == [10] * 4 + [100] * 4
    assert {t.lambda_lr for t in asked if t.method == "did"} == {None}


def test_a_sized_method_has_one_trial_a_size_and_rate_with_its_own_count():
    settings = Settings(methods=("lora", "did"), sizes=(4, 1), dims=(10,), lrs=(0.1,), seeds=1)
    asked = trials(complete(settings.replaced(peft_lrs=(0.01, 0.001))), FACTS, {})
    found = [(t.d, t.size, t.learning_rate) for t in asked if t.method == "lora"]
    assert found == [(120, 1, 0.001), (120, 1, 0.01), (420, 4, 0.001), (420, 4, 0.01)]
    assert {t.head for t in asked if t.method == "lora"} == {"inside"}
    assert {t.head for t in asked if t.method != "lora"} == {None}


def test_a_model_that_writes_is_scored_once_before_it_is_trained():
    given = {"dims": (10,), "lrs": (0.1,), "full_lrs": (1e-5,), "methods": ("said",), "seeds": 3}
    asked = trials(complete(Settings(**WRITING, **given)), FACTS, {})
    first = asked[0]
    assert (first.method, first.d, first.seed, first.learning_rate) == ("base", 0, 0, 0.0)
    assert first.head is first.lambda_lr is first.normalization is None
    assert [t.method for t in asked[1:]] == 3 * ["full"] + 3 * ["said"]
    assert "base" not in {t.method for t in trials(complete(Settings(**TEXT)), FACTS, {})}


def test_each_method_has_the_values_of_d_that_it_can_have():
    methods = ("did", "said", "unilora")
    settings = complete(Settings(dims=(1, 3, 4, 5, 30, 100), methods=methods, seeds=1))
    asked = trials(settings, replace(FACTS, unilora=(5, 30)), {})
    dims = {method: sorted({t.d for t in asked if t.method == method}) for method in methods}
    assert dims == {"did": [1, 3, 4, 5, 30, 100], "said": [5, 30, 100], "unilora": [5, 30]}


def test_a_trial_is_known_by_what_its_score_depends_on():
    settings = complete(Settings(**TEXT, dims=(10,), lrs=(0.1,), full_lrs=(1e-5,), seeds=1))
    full, did, said = (t.key for t in trials(settings, FACTS, {}))

    def keys(facts=FACTS, **changes):
        return [t.key for t in trials(settings.replaced(**changes), facts, {})]

    assert keys(model="moved", out="elsewhere", workers=7, prune=True) == [full, did, said]
    assert keys(lambda_lr=0.5)[:2] == [full, did] and keys(lambda_lr=0.5)[2] != said
    changed = ({"max_steps": 7}, {"batch_size": 7}, {"max_length": 77}, {"bf16": True})
    for changes in (*changed, {"eval_rows": 7}, {"metric": "f1"}, {"gap_rows": 7}):
        assert not set(keys(**changes)) & {full, did, said}
    for name in ("model_hash", "data_hash"):
        assert not set(keys(facts=replace(FACTS, **{name: "cc"}))) & {full, did, said}
    # all comparisons share one baseline
    assert keys(normalization="tensor", methods=("did",))[0] == full


# bisection


def _searched(score, dead=(), facts=FACTS, **changes):
    """Runs a bisection whose scores are `score(method, d, rate)`; returns dims by method, in the
    order in which they were asked, and the number of rounds."""
    settings = complete(
        Settings(
            **{"search": "bisect", "lrs": (0.1, 0.3), "seeds": 2, "methods": ("did",)} | changes
        )
    )
    known, order, rounds = {}, {}, 0
    while True:
        asked = trials(settings, replace(facts, D=10**6), known)
        missing = [t for t in asked if t.key not in known]
        if not missing:
            return order, rounds
        rounds += 1
        for t in missing:
            if t.d not in order.setdefault(t.method, []):
                order[t.method].append(t.d)
            value = score(t.method, t.d, t.learning_rate)
            gone = t.learning_rate in dead
            known[t.key] = None if gone else Score(value, value)


def _step_at(d90):
    return lambda method, d, rate: 0.95 if method == "full" or d >= d90 else 0.5


@pytest.mark.parametrize("d90", [101, 150, 999, 1000, 1001, 3000, 70_000, 999_999])
def test_a_bisection_closes_in_on_d90(d90):
    order, _ = _searched(_step_at(d90))
    reached = [d for d in order["did"] if d >= d90]
    below = [d for d in order["did"] if d < d90]
    assert max(below) < d90 <= min(reached) and min(reached) <= 1.25 * max(below)
    assert len(order["did"]) <= 2 + math.log(10**4, 8) + math.log2(math.log(8) / math.log(1.25))


def test_a_bisection_goes_by_strides_and_then_halves():
    assert _searched(_step_at(3000))[0]["did"] == [1000, 8000, 2828, 4756, 3667, 3220]


def test_a_bisection_stays_in_its_bracket_and_above_the_scales_of_said():
    assert _searched(_step_at(1))[0]["did"][-1] == 100
    assert _searched(_step_at(10**7))[0]["did"][-1] == 10**6  # D
    assert _searched(_step_at(10**7), bracket=(100, 5000))[0]["did"] == [1000, 5000]
    assert _searched(_step_at(1), methods=("said",), bracket=(1, 5000))[0]["said"][-1] == 5  # m + 1


def test_a_bisection_stays_within_what_unilora_can_have():
    facts = replace(FACTS, unilora=(200, 3000))
    given = {"methods": ("unilora",), "facts": facts}
    assert _searched(_step_at(1), **given)[0]["unilora"][-1] == 200
    assert _searched(_step_at(10**7), **given)[0]["unilora"] == [1000, 3000]


def _above_base(base, d90, full=0.95):
    """Scores of which 0.9 full is reached at any d, and 0.9 of the gain over 0.5 at `d90`."""
    levels = {"base": base, "full": full}
    return lambda method, d, rate: levels.get(method, 0.906 if d >= d90 else 0.9)


def test_a_bisection_of_a_model_that_writes_searches_90_percent_of_its_gain():
    order, rounds = _searched(_above_base(0.5, 3000), **WRITING)
    assert list(order) == ["base", "full", "did"]
    assert order["did"] == _searched(_step_at(3000))[0]["did"]
    assert rounds == 1 + len(order["did"])
    # the line is 0.855 above a base model that scores nothing
    assert _searched(_above_base(0.0, 3000), **WRITING)[0]["did"] == [1000, 125, 100]


def test_a_bisection_has_no_line_without_a_gain():
    for base, full in ((0.95, 0.95), (0.96, 0.95)):
        order, rounds = _searched(_above_base(base, 3000, full), **WRITING)
        assert list(order) == ["base", "full"] and rounds == 1
    order, _ = _searched(_above_base(0.5, 3000), dead=(0.0,), **WRITING)
    assert list(order) == ["base", "full"]


def test_a_bisection_asks_for_the_baseline_first_and_for_one_d_at_a_time():
    order, rounds = _searched(_step_at(3000), methods=("did", "said"))
    assert list(order) == ["full", "did", "said"]
    assert rounds == 1 + max(len(order["did"]), len(order["said"]))


def test_a_rate_without_scores_does_not_hold_a_bisection_up():
    assert min(d for d in _searched(_step_at(3000), dead=(0.3,))[0]["did"] if d >= 3000) < 3750
    # without any score no d is on the line, and without a baseline there is none
    order, _ = _searched(_step_at(1), dead=(0.1, 0.3))
    assert order["did"][-1] == 10**6
    assert "did" not in _searched(_step_at(1), dead=(1e-3,))[0]


# pruning


def test_the_floor_is_what_other_rates_had_at_half_of_the_same_seed():
    settings = complete(Settings(dims=(10,), lrs=(0.1, 0.3, 0.5), methods=("did",), prune=True))
    asked = trials(settings, FACTS, {})
    did = [t for t in asked if t.method == "did"]
    first, second, third = did[:3]  # the rates of seed 0
    known = {}
    assert floor(settings, third, asked, known) is None
    known[first.key] = Score(0.9, 0.9, halfway=0.8)
    assert floor(settings, third, asked, known) == pytest.approx(0.7)
    assert floor(settings.replaced(prune=False), third, asked, known) is None
    assert floor(settings, did[4], asked, known) is None  # of seed 1
    known[second.key] = Score(0.9, 0.9, halfway=0.9)
    assert floor(settings, third, asked, known) == pytest.approx(0.8)
    known[did[4].key] = None  # rate 0.3 was stopped at seed 1: it stops no other
    assert floor(settings, third, asked, known) == pytest.approx(0.7)


def test_the_other_seeds_of_a_pruned_rate_are_not_run():
    settings = complete(Settings(dims=(10,), lrs=(0.1, 0.3), methods=("did",), prune=True))
    asked = trials(settings, FACTS, {})
    stopped = next(t for t in asked if t.learning_rate == 0.3)
    left = trials(settings, FACTS, {stopped.key: None})
    assert [t for t in asked if t not in left] == [replace(stopped, seed=1)]
    assert trials(settings.replaced(prune=False), FACTS, {stopped.key: None}) == asked
