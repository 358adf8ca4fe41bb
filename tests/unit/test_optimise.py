"""The pipeline keeps what helps and nothing else: told by a measurer that is no machine."""

from __future__ import annotations

import itertools
import math

import pytest

from infinito.bench.machine import median_interval
from infinito.config.loading import load_config
from infinito.config.schema import Config
from infinito.errors import DivergedError, ResourceError
from infinito.optimise.int8_trial import Int8Trial
from infinito.optimise.optimisations import Alternative, alternatives_of
from infinito.optimise.pipeline import Pipeline, QualityTrial, RefusedError, SpeedRatio

BASE = load_config(None, ["device=cpu", "training.precision=float32", "training.batch_size=16"])
BFLOAT16 = Alternative("precision", {"training.precision": "bfloat16"}, "quality")
FUSED = Alternative("fusion", {"training.fusion": "aggressive"}, "rounding")
HALVED = Alternative(
    "batch split", {"training.batch_size": 8, "training.gradient_accumulation_steps": 2}, "rounding"
)
QUARTERED = Alternative(
    "batch split", {"training.batch_size": 4, "training.gradient_accumulation_steps": 4}, "rounding"
)
EVERY = (BFLOAT16, FUSED, HALVED, QUARTERED)


class Made:
    """Steps as fast, and losses as high, as the test says."""

    noise = 0.02

    def __init__(self) -> None:
        self.pairs: list[tuple[Config, Config]] = []

    def rate(self, config: Config) -> float:
        return 1.0

    def loss(self, config: Config, seed: int) -> float:
        return 3.0 + 0.01 * (seed - BASE.seed)

    def speed(self, before: Config, after: Config, threads: int | None = None) -> SpeedRatio:
        assert before != after or threads is not None
        self.pairs.append((before, after))
        ratio = self.rate(after) / self.rate(before) * {2: 1.5, 8: 0.5}.get(threads or 0, 1.0)
        memory = 100.0, 80.0
        return SpeedRatio(ratio, ratio - self.noise, ratio + self.noise, 1.0, ratio, *memory)


class Fast(Made):
    """bfloat16 doubles the speed, halves add a tenth to it, quarters are slow, fusion is noise."""

    def rate(self, config: Config) -> float:
        training = config.training
        speed = 2.0 if training.precision == "bfloat16" else 1.0
        speed *= {16: 1.0, 8: 1.1, 4: 0.6}[training.batch_size]
        return speed * (1.01 if training.fusion == "aggressive" else 1.0)


def test_what_helps_is_kept_and_the_rest_is_not() -> None:
    result = Pipeline(BASE, Fast()).run(EVERY)
    assert [a.name for a in result.kept] == [BFLOAT16.name, HALVED.name]
    training = result.config.training
    assert (training.precision, training.batch_size, training.fusion) == ("bfloat16", 8, "none")
    assert training.sequences_per_step == BASE.training.sequences_per_step
    assert result.total is not None
    assert result.total.ratio == pytest.approx(2.2)
    reasons = {name: reason.split(",")[0] for name, reason in result.reasons.items()}
    assert reasons == {
        BFLOAT16.name: "kept: faster",
        HALVED.name: "kept: faster",
        QUARTERED.name: "not kept: slower",
        FUSED.name: "not kept: no difference",
    }


def test_each_is_measured_alone_then_combinations_and_each_of_the_best_beside_the_rest() -> None:
    result = Pipeline(BASE, Fast()).run(EVERY)
    tried = [(trial.names, trial.on_top_of) for trial in result.speeds]
    assert tried[: len(EVERY)] == [((a.name,), ()) for a in EVERY]
    assert len(tried) == len(set(tried))
    assert ((BFLOAT16.name, FUSED.name, HALVED.name), ()) in tried
    # What is surely slow alone is in no combination.
    assert [names for names, _ in tried if QUARTERED.name in names] == [(QUARTERED.name,)]
    # Within the noise fusion was in the fastest combination: measured on top, it made nothing.
    assert ((FUSED.name,), (BFLOAT16.name, HALVED.name)) in tried
    assert FUSED.name not in [a.name for a in result.kept]


def test_an_optimisation_that_helps_only_beside_another_is_found() -> None:
    class Together(Made):
        def rate(self, config: Config) -> float:
            both = config.training.fusion == "aggressive" and config.training.precision != "float32"
            return (1.5 if config.training.precision == "bfloat16" else 1.0) * (1.3 if both else 1)

    result = Pipeline(BASE, Together()).run(EVERY)
    assert [a.name for a in result.kept] == [BFLOAT16.name, FUSED.name]


def test_of_one_optimisation_one_value_is_in_force() -> None:
    class Smaller(Made):
        def rate(self, config: Config) -> float:
            # Alone halves are best, beside bfloat16 quarters are.
            half = config.training.precision == "bfloat16"
            rates = {16: 1.0, 8: 1.5, 4: 2.0 if half else 1.2}
            return rates[config.training.batch_size] * (1.2 if half else 1.0)

    result = Pipeline(BASE, Smaller()).run(EVERY)
    assert {a.name for a in result.kept} == {BFLOAT16.name, QUARTERED.name}
    assert result.config.training.sequences_per_step == 16


def test_noise_beside_it_does_not_lose_what_surely_helps() -> None:
    class Noisy(Made):
        """Fusion is 1.1 times as fast; bfloat16, now and then, anything."""

        def speed(self, before: Config, after: Config, threads: int | None = None) -> SpeedRatio:
            if after.training.precision == "bfloat16":
                return SpeedRatio(1.2, 0.7, 1.6, 1.0, 1.2, 1.0, 1.0)
            return SpeedRatio(1.1, 1.08, 1.12, 1.0, 1.1, 1.0, 1.0)

    result = Pipeline(BASE, Noisy()).run([BFLOAT16, FUSED])
    assert [a.name for a in result.kept] == [FUSED.name]
    assert result.reasons[FUSED.name].startswith("kept: faster")


def test_nothing_helps_and_nothing_changes() -> None:
    measurer = Made()
    result = Pipeline(BASE, measurer).run(EVERY)
    assert (result.kept, result.config, result.total, result.qualities) == ([], BASE, None, [])


def test_what_hurts_quality_is_dropped_and_the_rest_stays() -> None:
    class Lossy(Fast):
        def loss(self, config: Config, seed: int) -> float:
            lossy = 0.05 if config.training.precision == "bfloat16" else 0.0
            return super().loss(config, seed) + lossy

    result = Pipeline(BASE, Lossy()).run(EVERY)
    assert [a.name for a in result.kept] == [HALVED.name]
    assert result.reasons[BFLOAT16.name].startswith("dropped for quality: validation loss +0.0500")
    assert result.reasons[HALVED.name].startswith("kept")
    assert result.qualities[-1].names == (HALVED.name,)
    assert result.qualities[-1].is_unchanged


def test_what_hurts_together_only_loses_one_of_both() -> None:
    class Clash(Fast):
        def loss(self, config: Config, seed: int) -> float:
            both = config.training.precision == "bfloat16" and config.training.batch_size == 8
            slight = 0.001 if config.training.precision == "bfloat16" else 0.0
            return super().loss(config, seed) + slight + (1.0 if both else 0.0)

    result = Pipeline(BASE, Clash()).run(EVERY)
    assert [a.name for a in result.kept] == [HALVED.name]


def test_a_training_that_diverges_is_no_optimisation() -> None:
    class Diverging(Fast):
        def loss(self, config: Config, seed: int) -> float:
            if config.training.precision == "bfloat16":
                raise DivergedError("the loss is not finite")
            return super().loss(config, seed)

    result = Pipeline(BASE, Diverging()).run(EVERY)
    assert [a.name for a in result.kept] == [HALVED.name]
    assert result.reasons[BFLOAT16.name] == "dropped for quality: a training diverged"


def test_a_baseline_that_diverges_is_an_error() -> None:
    class Broken(Fast):
        def loss(self, config: Config, seed: int) -> float:
            raise DivergedError("the loss is not finite")

    with pytest.raises(DivergedError):
        Pipeline(BASE, Broken()).run(EVERY)


def test_what_cannot_be_had_says_why() -> None:
    class Small(Fast):
        def speed(self, before: Config, after: Config, threads: int | None = None) -> SpeedRatio:
            if after.training.fusion != "none":
                raise RefusedError("this run needs about 9 TB")
            return super().speed(before, after, threads)

    absent = Alternative("precision", {"training.precision": "float16"}, "quality", "no such unit")
    result = Pipeline(BASE, Small()).run([*EVERY, absent])
    assert result.reasons[FUSED.name] == "not kept: refused: this run needs about 9 TB"
    assert result.reasons[absent.name] == "no such unit"


def test_a_config_that_cannot_be_had_itself_is_an_error() -> None:
    class Full(Fast):
        def speed(self, before: Config, after: Config, threads: int | None = None) -> SpeedRatio:
            raise ResourceError("memory does not suffice")

    with pytest.raises(ResourceError):
        Pipeline(BASE, Full()).run(EVERY)


def test_a_gain_that_is_not_there_again_is_not_kept() -> None:
    class Lucky(Made):
        def speed(self, before: Config, after: Config, threads: int | None = None) -> SpeedRatio:
            again = (before, after) in self.pairs
            self.pairs.append((before, after))
            low, high = (0.97, 1.03) if again or after.training.fusion == "none" else (1.1, 1.3)
            return SpeedRatio((low + high) / 2, low, high, 1.0, 1.0, 1.0, 1.0)

    result = Pipeline(BASE, Lucky()).run([FUSED])
    assert (result.kept, result.config) == ([], BASE)
    assert result.reasons[FUSED.name].startswith("not kept: measured again")


def test_int8_is_kept_where_it_is_as_good_and_no_slower() -> None:
    def kept(high: float = 1.1, perplexity: float = 0.004, after: int = 30) -> bool:
        return Int8Trial(100, after, 1.0, 0.9, high, 0.001, 0.001, perplexity).is_kept

    assert kept()
    assert not kept(high=0.95)
    assert not kept(perplexity=0.006)
    assert not kept(after=100)


def test_threads_are_tried_on_top_and_change_no_config() -> None:
    result = Pipeline(BASE, Fast()).run(EVERY, threads=[2, 8])
    assert {c: s.verdict for c, s in result.threads.items()} == {2: "faster", 8: "slower"}
    assert result.config.training.batch_size == 8


def test_quality_is_judged_by_the_spread_of_the_seeds() -> None:
    baseline = (3.0, 3.1, 3.2)
    assert QualityTrial((), baseline, (3.05, 3.15, 3.25)).is_unchanged
    assert QualityTrial((), baseline, (2.0, 2.0, 2.0)).is_unchanged
    assert not QualityTrial((), baseline, (3.11, 3.21, 3.31)).is_unchanged
    assert not QualityTrial((), baseline, ()).is_unchanged


def test_the_table_changes_no_step() -> None:
    for settings in ([], ["training.batch_size=6", "training.gradient_accumulation_steps=2"]):
        config = load_config(None, ["device=cpu", "training.precision=float32", *settings])
        found = alternatives_of(config)
        assert {a.optimisation for a in found} >= {"precision", "fusion", "batch split"}
        for alternative in found:
            changed = alternative.applied(config)
            assert changed != config
            step = changed.training.sequences_per_step
            assert step == config.training.sequences_per_step
        assert len({a.name for a in found}) == len(found)


def test_the_interval_of_a_median_is_that_of_the_sign_test() -> None:
    # Of 12 values the third and the tenth: P(fewer than 3 below) twice is 0.0386.
    assert median_interval([float(x) for x in range(12)]) == (2.0, 9.0)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    # Counted over all ways in which 9 values can fall to either side of the median.
    low, high = (int(end) for end in median_interval([float(x) for x in range(9)]))
    covers = sum(low + 1 <= sum(ways) <= high for ways in itertools.product((0, 1), repeat=9))
    assert covers / 2**9 >= 0.95
    narrower = sum(low + 2 <= sum(ways) <= high - 1 for ways in itertools.product((0, 1), repeat=9))
    assert narrower / 2**9 < 0.95
    assert math.isfinite(low)
