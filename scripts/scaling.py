"""Estimates on paper how training scales over 1 to 1,024 cards; prints what it assumes.

    python scripts/scaling.py CONFIG.yaml [--rows N] [--teraflops F] [--links A,B] ...

Nothing is measured: compute is counted FLOPs over an assumed rate, communication is counted bytes
over an assumed bandwidth plus the latency of each hop of a ring. ddp: one all-reduce of the
gradients a step, 2 (n - 1) hops, 2 (n - 1) / n of the bytes past each card (Patarasuk and Yuan
2009). fsdp2: weights are gathered in the forward and in the backward pass and gradients reduced
and scattered, (n - 1) hops and (n - 1) / n of the bytes each (Rajbhandari et al. 2020, stage 3).
Of it, what the backward pass (ddp) or the whole pass (fsdp2) can hide costs nothing. Read the
figures as an upper bound of the truth: no stragglers, no contention, no time for the optimizer.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from infinito.config.loading import load_config
from infinito.config.schema import Config
from infinito.model.count import count_flops, count_parameters

_BYTES = 4  # weights and gradients travel in float32, whatever the products compute in
_STATE_BYTES = 16  # weights, gradients and two moments
_LARGEST = 1024


@dataclass(frozen=True)
class Machine:
    """What is assumed of the cards and of what lies between them."""

    flops: float  # that a card reaches in training, a second
    cards: int  # of one machine
    inside: float  # bytes a second and card within a machine, one way
    between: float  # bytes a second and card from machine to machine, one way
    hop: float  # seconds until a message arrives
    hidden: float  # share of the work in whose shadow bytes travel freely


@dataclass(frozen=True)
class Work:
    """One step on one card, of so many forward passes."""

    parameters: int
    flops: float
    passes: int = 1


@dataclass(frozen=True)
class Estimate:
    """Seconds of a step: of computing, of communication, and what of that is not hidden."""

    compute: float
    communication: float
    exposed: float

    @property
    def efficiency(self) -> float:
        """Speed over that of cards that need not communicate."""
        return self.compute / (self.compute + self.exposed)


def estimate(strategy: str, cards: int, work: Work, machine: Machine) -> Estimate:
    """A step of ``work`` on each of ``cards``."""
    compute = work.flops / machine.flops
    bandwidth = machine.inside if cards <= machine.cards else machine.between
    # Each forward pass gathers twice; gradients are exchanged in the step's last one only.
    rings = 2 if strategy == "ddp" else 2 * work.passes + 1
    share = (cards - 1) / cards * _BYTES * work.parameters / bandwidth
    communication = rings * (share + (cards - 1) * machine.hop)
    last = compute / work.passes * 2 / 3  # the backward pass costs twice the forward pass
    shadow = machine.hidden * (last if strategy == "ddp" else compute)
    return Estimate(compute, communication, max(0.0, communication - shadow))


def table(config: Config, rows: int, vocab_size: int, machine: Machine) -> list[str]:
    """A line for each number of cards; each computes ``rows`` sequences a forward pass."""
    length, passes = config.data.sequence_length, config.training.gradient_accumulation_steps
    parameters = count_parameters(config.model, vocab_size, length).total
    flops = passes * count_flops(config.model, vocab_size, rows, length).training
    work, tokens = Work(parameters, flops, passes), passes * rows * length
    lines = [f"{'cards':>6} {'tokens/step':>12}" + "".join(
        f" | {name:>5}: {'comm ms':>8} {'exposed':>8} {'eff.':>5} {'tokens/s':>10} {'state GB':>8}"
        for name in ("ddp", "fsdp2")
    )]  # fmt: skip
    cards = 1
    while cards <= _LARGEST:
        line = f"{cards:>6} {cards * tokens:>12}"
        for strategy in ("ddp", "fsdp2"):
            cost = estimate(strategy, cards, work, machine)
            speed = cards * tokens / (cost.compute + cost.exposed)
            held = _STATE_BYTES * parameters / (cards if strategy == "fsdp2" else 1) / 1e9
            line += (
                f" | {'':>6} {1e3 * cost.communication:>8.2f} {1e3 * cost.exposed:>8.2f}"
                f" {cost.efficiency:>5.0%} {speed:>10.3g} {held:>8.2f}"
            )
        lines.append(line)
        cards *= 2
    milliseconds = 1e3 * flops / machine.flops
    head = f"model: {parameters} parameters, a step of {milliseconds:.2f} ms of compute a card"
    return [head, *lines]


def main() -> None:
    """Print the assumptions and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rows", type=int, help="sequences a pass and card; else batch_size")
    parser.add_argument("--teraflops", type=float, default=989.0, help="peak of a card")
    parser.add_argument("--reached", type=float, default=0.4, help="share of the peak reached")
    parser.add_argument("--cards", type=int, default=8, help="cards of one machine")
    parser.add_argument("--links", default="450,50", help="GB/s a card: in a machine, between")
    parser.add_argument("--hop-us", type=float, default=5.0, help="microseconds of a hop")
    parser.add_argument("--hidden", type=float, default=0.9, help="share of work that hides comm.")
    given = parser.parse_args()
    config = load_config(given.config, given.set)
    inside, between = (1e9 * float(link) for link in given.links.split(","))
    machine = Machine(1e12 * given.teraflops * given.reached, given.cards, inside, between,
                      1e-6 * given.hop_us, given.hidden)  # fmt: skip
    rows, vocab_size = given.rows or config.training.batch_size, config.tokenizer.vocab_size or 8192
    print(
        f"assumed, not measured: {given.teraflops:g} TFLOP/s a card, {given.reached:.0%} of it "
        f"reached; {given.cards} cards a machine; {inside / 1e9:g} GB/s a card inside it, "
        f"{between / 1e9:g} GB/s between machines; {given.hop_us:g} us a hop of the ring; "
        f"{given.hidden:.0%} of the work hides communication; {_BYTES} bytes a number; "
        f"{rows} sequences a pass and card (the batch grows with the cards); "
        f"vocabulary {vocab_size}"
    )
    for line in table(config, rows, vocab_size, machine):
        print(line)


if __name__ == "__main__":
    main()
