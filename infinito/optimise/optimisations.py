"""The table of optimisations: what each sets otherwise, where it can be had, what it may cost.

Whether one helps is not said here: that is measured (:mod:`infinito.optimise.pipeline`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from infinito.config.schema import Config
from infinito.config.training_config import TrainingConfig
from infinito.config.yaml_loader import Plain
from infinito.kernels.fusion import COMPILED, TORCH, Plan, make_plan
from infinito.runtime.precision import unsupported_reason
from infinito.search.space import configured
from infinito.train.automatic import step_shape

#: exact: the same numbers; rounding: the same mathematics (dropout may draw other masks);
#: quality: fewer digits in the arithmetic itself.
Cost = Literal["exact", "rounding", "quality"]
Changes = Mapping[str, Plain]


@dataclass(frozen=True)
class Alternative:
    """One value of one optimisation.

    Attributes:
        optimisation: the row of the table; of one row at most one alternative is in force.
        changes: ``{config key: value}``.
        obstacle: why it cannot be had here; empty where it can.
    """

    optimisation: str
    changes: Changes
    cost: Cost
    obstacle: str = ""

    @property
    def name(self) -> str:
        """As people read it: ``precision=bfloat16``."""
        return " ".join(setting.rpartition(".")[2] for setting in self.settings)

    @property
    def settings(self) -> list[str]:
        """The changes as values of ``--set``."""
        return [f"{key}={_text(value)}" for key, value in self.changes.items()]

    def applied(self, config: Config) -> Config:
        """``config`` with the changes in it."""
        return configured(config, dict(self.changes))


@dataclass(frozen=True)
class Optimisation:
    """A row: its name, what it may cost, and what else could be set for a resolved config."""

    name: str
    cost: Cost
    changes: Callable[[Config], Iterable[Changes]]
    obstacle: Callable[[Config, Changes], str] = lambda config, changes: ""

    def alternatives(self, config: Config) -> Iterator[Alternative]:
        """Everything but what is set already."""
        for changes in self.changes(config):
            yield Alternative(self.name, changes, self.cost, self.obstacle(config, changes))


def _precisions(config: Config) -> Iterator[Changes]:
    for precision in ("float32", "bfloat16"):
        if precision != config.training.precision:
            yield {"training.precision": precision}


def _no_such_precision(config: Config, changes: Changes) -> str:
    return unsupported_reason(str(changes["training.precision"]), config.device)


def _fusion_levels(config: Config) -> Iterator[Changes]:
    for level in get_args(TrainingConfig.model_fields["fusion"].annotation):
        if level not in (config.training.fusion, "auto"):
            yield {"training.fusion": level}


def _nothing_fused(config: Config, changes: Changes) -> str:
    """A level by plain torch alone is no other."""
    level = str(changes["training.fusion"])
    variants = make_plan(level, step_shape(config), Plan())[0].variants.values()
    is_plain = level not in COMPILED and set(variants) <= {TORCH}
    return "no fused operation of this level serves this machine" if is_plain else ""


def _splits(config: Config) -> Iterator[Changes]:
    """The same sequences a step in parts of a quarter to four times the size."""
    training = config.training
    for numerator, denominator in ((1, 4), (1, 2), (2, 1), (4, 1)):
        size, rest = divmod(training.batch_size * numerator, denominator)
        if size and not rest and training.sequences_per_step % size == 0:
            steps = training.sequences_per_step // size
            yield {"training.batch_size": size, "training.gradient_accumulation_steps": steps}


def _checkpointing(config: Config) -> Iterator[Changes]:
    yield {"training.activation_checkpointing": not config.training.activation_checkpointing}


OPTIMISATIONS = (
    Optimisation("precision", "quality", _precisions, _no_such_precision),
    Optimisation("fusion", "rounding", _fusion_levels, _nothing_fused),
    Optimisation("batch split", "rounding", _splits),
    Optimisation("activation checkpointing", "exact", _checkpointing),
)


def alternatives_of(config: Config) -> list[Alternative]:
    """All rows' alternatives to a resolved config, those that cannot be had here among them."""
    return [found for row in OPTIMISATIONS for found in row.alternatives(config)]


def _text(value: Plain) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
