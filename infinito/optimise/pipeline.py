"""The search for the best combination, and the proof that it trains as well.

Each alternative is measured alone against the config as it is, then combinations are, which a tree
search over all rows of the table picks, since optimisations interact. Of the fastest combination
only those stay that are faster than the rest of it without them. Then a few short trainings, paired
by seed, decide whether the combination learns as well; what does not is dropped, and the search
goes on without it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from infinito.config.schema import Config
from infinito.errors import DivergedError
from infinito.optimise.optimisations import Alternative
from infinito.runtime.events import note
from infinito.search.joint import search_jointly
from infinito.search.space import Assignment, Parameter, Space

#: Seeds of the proof: config.seed and those after it.
SEEDS = 3
#: Combinations that the tree search may measure.
COMBINATIONS = 16
#: What is refused alone, or surely slower than this, is in no combination.
HOPELESS = 0.9
_AS_IT_IS = ""


@dataclass(frozen=True)
class SpeedRatio:
    """Speed of one config over that of another, of rounds in which both took turns.

    Attributes:
        ratio: median over the rounds; ``low`` and ``high``: 95 % interval of that median.
        before, after: median tokens/s of both.
        memory_before, memory_after: counted MB of a step.
        notes: what was said while the second was built.
    """

    ratio: float
    low: float
    high: float
    before: float
    after: float
    memory_before: float
    memory_after: float
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """faster, slower, or no difference: what is within the noise is not a gain."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference"

    @property
    def text(self) -> str:
        """Verdict, ratio and interval for people."""
        return f"{self.verdict}, {self.ratio:.3f}x [{self.low:.3f}, {self.high:.3f}]"


class RefusedError(Exception):
    """An alternative cannot be had here, and why."""


class Measurer(Protocol):
    """What the search learns from; a test has another than the machine."""

    def speed(self, before: Config, after: Config, threads: int | None = None) -> SpeedRatio:
        """Measure both in turns, the second with so many threads.

        Raises RefusedError where the second cannot be had, InfinitoError where the first cannot.
        """

    def loss(self, config: Config, seed: int) -> float:
        """Validation loss, nats a token, after a short training. Raises DivergedError."""


@dataclass(frozen=True)
class SpeedTrial:
    """Alternatives, measured on top of others; ``speed`` is None where they were refused."""

    names: tuple[str, ...]
    on_top_of: tuple[str, ...]
    speed: SpeedRatio | None
    refusal: str = ""

    @property
    def name(self) -> str:
        """All of them, for people."""
        return " + ".join(self.names)

    @property
    def verdict(self) -> str:
        """What came of it, in a word or two."""
        return "refused" if self.speed is None else self.speed.verdict


@dataclass(frozen=True)
class QualityTrial:
    """Paired short trainings: validation losses by seed, without and with the alternatives.

    ``losses`` is empty where one diverged. The rule: with them the mean loss may not be higher by
    more than ``spread``, the standard deviation of the losses without them over the seeds.
    """

    names: tuple[str, ...]
    baseline: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def spread(self) -> float:
        """Standard deviation of the baseline's losses over the seeds."""
        return statistics.stdev(self.baseline)

    @property
    def difference(self) -> float | None:
        """Mean of the paired differences; None where a training diverged."""
        if not self.losses:
            return None
        return statistics.mean(self.losses) - statistics.mean(self.baseline)

    @property
    def is_unchanged(self) -> bool:
        """Whether quality is what it was, by the rule."""
        return self.difference is not None and self.difference <= self.spread


@dataclass
class Optimised:
    """What came of it: the config, and everything that was measured on the way."""

    config: Config
    kept: list[Alternative] = field(default_factory=list)
    total: SpeedRatio | None = None  # of all that was selected, against the config as it was
    speeds: list[SpeedTrial] = field(default_factory=list)
    qualities: list[QualityTrial] = field(default_factory=list)
    threads: dict[int, SpeedRatio] = field(default_factory=dict)  # on top of all that is kept
    reasons: dict[str, str] = field(default_factory=dict)  # of every alternative: why (not) kept


def combined(config: Config, alternatives: Sequence[Alternative]) -> Config:
    """``config`` with all of them in it, the later on top."""
    for alternative in alternatives:
        config = alternative.applied(config)
    return config


class Pipeline:
    """Measures, selects and proves."""

    def __init__(self, config: Config, measurer: Measurer) -> None:
        self._config, self._measurer = config, measurer
        self._result = Optimised(config)
        self._known: dict[tuple[tuple[str, ...], ...], SpeedTrial] = {}
        self._baseline: tuple[float, ...] = ()

    def run(self, alternatives: Sequence[Alternative], threads: Sequence[int] = ()) -> Optimised:
        """Find the fastest combination of ``alternatives`` at unchanged quality.

        Then other numbers of ``threads`` are tried, which are no part of a config.
        """
        result = self._result
        left = []
        for alternative in alternatives:
            result.reasons[alternative.name] = alternative.obstacle
            left += [] if alternative.obstacle else [alternative]
        kept = self._select(left)
        while kept and (worse := self._worse(kept)):
            left = [alternative for alternative in left if alternative not in worse]
            kept = self._select(left)
        for alternative in left:
            result.reasons[alternative.name] = self._reason(alternative, kept)
        if kept:
            self._confirm(kept)
        for count in threads:
            result.threads[count] = speed = self._measurer.speed(
                result.config, result.config, count
            )
            note(f"{count} threads: {speed.text}")
        return result

    def _confirm(self, kept: list[Alternative]) -> None:
        """Measure all that is kept anew: who wins a selection had luck, too."""
        config, result = combined(self._config, kept), self._result
        result.total = self._measurer.speed(self._config, config)
        note(f"all that is kept: {result.total.text}")
        if result.total.verdict == "faster":
            result.kept, result.config = kept, config
            return
        for alternative in kept:
            why = f"not kept: measured again, all together were {result.total.text}"
            result.reasons[alternative.name] = why

    def _select(self, left: Sequence[Alternative]) -> list[Alternative]:
        """The fastest combination of ``left``, each of which helps in it.

        Where none of the fastest does, the next that is surely faster than the config.
        """
        rows: dict[str, dict[str, Alternative]] = {}
        for alternative in left:
            speed = self._trial([alternative]).speed
            if speed and speed.high > HOPELESS:
                rows.setdefault(alternative.optimisation, {})[alternative.name] = alternative
        space = Space(Parameter(row, "choice", (_AS_IT_IS, *named)) for row, named in rows.items())

        def chosen(values: Assignment) -> list[Alternative]:
            return [named[str(values[row])] for row, named in rows.items() if values[row]]

        def seconds(values: Assignment) -> float:
            return self._seconds(chosen(values))

        found = search_jointly(
            space, seconds, COMBINATIONS, lambda values: combined(self._config, chosen(values))
        )
        for place, (_, values) in enumerate(found):
            if not (kept := chosen(values)):  # the config as it is: what follows is slower
                break
            # Where noise alone made the best, what was surely faster than the config has its turn.
            if place and self._trial(kept).verdict != "faster":
                continue
            for alternative in list(kept):
                rest = [other for other in kept if other is not alternative]
                if self._trial([alternative], rest).verdict != "faster":
                    kept = rest
            if kept:
                return kept
        return []

    def _seconds(self, chosen: Sequence[Alternative]) -> float:
        """Logarithm of a step's time over that of the config as it is."""
        speed = self._trial(chosen).speed if chosen else None
        return -math.log(speed.ratio) if speed else math.inf if chosen else 0.0

    def _trial(self, added: Sequence[Alternative], under: Sequence[Alternative] = ()) -> SpeedTrial:
        names, on_top_of = (tuple(a.name for a in some) for some in (added, under))
        if (names, on_top_of) not in self._known:
            before, speed, refusal = combined(self._config, under), None, ""
            try:
                speed = self._measurer.speed(before, combined(before, added))
            except RefusedError as error:
                refusal = str(error)
            trial = SpeedTrial(names, on_top_of, speed, refusal)
            self._known[names, on_top_of] = trial
            self._result.speeds.append(trial)
            note(_line(trial))
        return self._known[names, on_top_of]

    def _worse(self, kept: Sequence[Alternative]) -> list[Alternative]:
        """Of ``kept``, what must go for quality's sake; empty where all may stay."""
        if self._quality(kept).is_unchanged:
            return []
        trials = [(self._quality([a]) if len(kept) > 1 else self._result.qualities[-1], a)
                  for a in kept]  # fmt: skip
        worse = [a for t, a in trials if not t.is_unchanged]
        if not worse:  # each alone is good: the one that costs most goes
            worse = [max(trials, key=lambda trial: trial[0].difference or 0.0)[1]]
        for alternative in worse:
            trial = next(t for t, a in trials if a is alternative)
            self._result.reasons[alternative.name] = f"dropped for quality: {_loss_text(trial)}"
        return worse

    def _quality(self, kept: Sequence[Alternative]) -> QualityTrial:
        seeds = [self._config.seed + number for number in range(SEEDS)]
        if not self._baseline:
            self._baseline = tuple(self._measurer.loss(self._config, seed) for seed in seeds)
        config, losses = combined(self._config, kept), tuple[float, ...]()
        try:
            losses = tuple(self._measurer.loss(config, seed) for seed in seeds)
        except DivergedError as error:
            note(error.message)
        trial = QualityTrial(tuple(a.name for a in kept), self._baseline, losses)
        self._result.qualities.append(trial)
        note(f"{' + '.join(trial.names)}: {_loss_text(trial)}")
        return trial

    def _reason(self, alternative: Alternative, kept: Sequence[Alternative]) -> str:
        """Why an alternative that quality did not rule out was kept or not."""
        trials = [t for t in self._result.speeds if t.names == (alternative.name,)]
        if alternative in kept:
            rest = [other for other in kept if other is not alternative]
            return f"kept: {_line(self._trial([alternative], rest), with_name=False)}"
        passed = "; the best combination is without" if trials[-1].verdict == "faster" else ""
        return f"not kept: {_line(trials[-1], with_name=False)}{passed}"


def _line(trial: SpeedTrial, with_name: bool = True) -> str:
    where = f" on top of {', '.join(trial.on_top_of)}" if trial.on_top_of else ""
    head = f"{trial.name}{where}: " if with_name else ""
    tail = "" if with_name else where
    if trial.speed is None:
        return f"{head}refused: {trial.refusal}{tail}"
    said = f" ({'; '.join(trial.speed.notes)})" if trial.speed.notes else ""
    return f"{head}{trial.speed.text}{tail}{said}"


def _loss_text(trial: QualityTrial) -> str:
    if trial.difference is None:
        return "a training diverged"
    word = "unchanged" if trial.is_unchanged else "worse"
    return (
        f"validation loss {trial.difference:+.4f} nats over {len(trial.losses)} seeds, {word} "
        f"(seeds alone: +-{trial.spread:.4f})"
    )
