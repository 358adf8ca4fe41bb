"""Tree-structured Parzen estimator of optuna (Bergstra et al., 2011; extra ``search``)."""

from __future__ import annotations

import math
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from infinito.config.yaml_loader import Plain
from infinito.errors import ConfigError
from infinito.search.candidates import Candidates
from infinito.search.space import Assignment, Parameter, key_of

if TYPE_CHECKING:
    from optuna import Trial

#: Proposals in a row that were tried before or are invalid, before one is drawn at random.
_REPEATS = 20


class TpeSearch:
    """optuna's sampler behind ask and tell; what it proposes twice is answered from memory."""

    def __init__(self, candidates: Candidates) -> None:
        if find_spec("optuna") is None:
            raise ConfigError("the method tpe needs optuna", 'pip install "infinito[search]"')
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._candidates = candidates
        sampler = optuna.samplers.TPESampler(seed=candidates.random.randrange(2**32))
        self._study = optuna.create_study(sampler=sampler)
        self._trials: dict[str, Trial] = {}
        self._values: dict[str, float] = {}

    def ask(self) -> Assignment | None:
        """optuna's next proposal that is fresh."""
        for _ in range(_REPEATS):
            trial = self._study.ask()
            assignment = self._candidates.space.build(partial(_suggest, trial))
            if self._candidates.is_fresh(assignment):
                self._trials[key_of(assignment)] = trial
                return self._candidates.take(assignment)
            self._study.tell(trial, self._values.get(key_of(assignment), math.inf))
        return self._candidates.draw()

    def tell(self, assignment: Assignment, value: float) -> None:
        """Pass the value on; of a candidate drawn at random, optuna hears nothing."""
        key = key_of(assignment)
        self._values[key] = value
        if key in self._trials:
            self._study.tell(self._trials[key], value)


def _suggest(trial: Trial, parameter: Parameter) -> Plain:
    """A value of optuna's; choices by their number, since a choice may be of any plain type."""
    if parameter.kind == "choice":
        n = len(parameter.values)
        return parameter.values[trial.suggest_categorical(parameter.key, range(n))]
    low, high = parameter.ends
    log = parameter.kind == "log_range"
    if parameter.is_whole:
        return trial.suggest_int(parameter.key, int(low), int(high), log=log)
    value = trial.suggest_float(parameter.key, low, high, log=log)
    return parameter.at(parameter.position(value))  # as few digits as elsewhere
