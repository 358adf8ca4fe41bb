"""Pictures of a search."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, count
from pathlib import Path
from typing import TYPE_CHECKING

from infinito.config.explain import show_value
from infinito.search.method import Method, ranks
from infinito.search.space import Space
from infinito.search.study import Study
from infinito.search.tree import Node, TreeSearch
from infinito.telemetry.figures import new_figure, save_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NODES = 120
_MOST_TICKS = 8  # values of a choice with their names
_INACTIVE = -0.1  # height of a parameter that is not there


def write_plots(study: Study, space: Space, metric: str, method: Method) -> list[Path]:
    """Write ``best.png``, ``parameters.png`` and, of a tree search, ``tree.png``; their paths.

    Raises ResourceError where a file cannot be written.
    """
    figures = {"best.png": best_figure(study, metric)}
    figures["parameters.png"] = parameters_figure(study, space, metric)
    if isinstance(method, TreeSearch):
        figures["tree.png"] = tree_figure(method)
    return save_figures(figures, study.directory)


def best_figure(study: Study, metric: str) -> Figure:
    """Every trial and the best so far against what they have cost, in full trials."""
    figure, axes = new_figure(6.4, 4.0, "constrained")
    costs = list(accumulate(trial.fraction for trial in study.trials))
    best, bests = (math.inf, math.nan), []
    for cost, trial in zip(costs, study.trials, strict=True):
        if trial.objective is None:
            axes.axvline(cost, ymax=0.03, color="C3")
        else:
            best = min(best, (study.number(trial), trial.objective))
            axes.plot(cost, trial.objective, "o", color="C0", alpha=0.2 + 0.6 * trial.fraction)
        bests.append(best[1])
    axes.step(costs, bests, where="post", color="C1")
    axes.set_xlabel("cost, in full trials (short trials are paler; a red mark: no figure)")
    axes.set_ylabel(f"{metric}; the line is the best so far")
    return figure


def parameters_figure(study: Study, space: Space, metric: str) -> Figure:
    """Parallel coordinates: a line through the values of each of the longest trials."""
    names = [p.key.replace(".", ".\n") for p in space.parameters]
    figure, axes = new_figure(1.6 * (len(names) + 1), 4.4, "constrained")
    longest = max((trial.fraction for trial in study.trials), default=1.0)
    trials = [trial for trial in study.trials if trial.fraction == longest]
    for rank, trial in zip(ranks([study.number(trial) for trial in trials]), trials, strict=True):
        values = trial.values
        there = {p.key: p.position(values[p.key]) for p in space.parameters if p.key in values}
        heights = [there.get(p.key, _INACTIVE) for p in space.parameters]
        axes.plot([*heights, 1 - rank], "-o", color=_colour(1 - rank), ms=3, zorder=3 - rank)
    for at, parameter in enumerate(space.parameters):
        axes.axvline(at, color="0.85", linewidth=0.8, zorder=0)
        for value in parameter.values if len(parameter.values) <= _MOST_TICKS else ():
            text = show_value(value).strip("'")
            axes.text(at + 0.04, parameter.position(value), text, fontsize=6, va="center")
    ticks = [*names, f"{metric}\n(rank, best above)"]
    axes.set_xticks(range(len(ticks)), ticks, fontsize=7)
    axes.set_yticks([_INACTIVE], ["not active"], fontsize=7)
    axes.spines[:].set_visible(False)
    return figure


def tree_figure(tree: TreeSearch) -> Figure:
    """The most visited nodes: a parameter a level, size by visits, colour by mean reward."""
    nodes = sorted(_below(tree.root, 0), key=lambda pair: (-pair[1].visits, pair[0]))
    drawn = {id(node) for _, node in nodes[:_MOST_NODES]}
    figure, axes = new_figure(9.0, 3.0 + 0.09 * len(drawn), "constrained")
    free = count()

    def draw(node: Node, depth: int) -> float:
        """Draw what is below and then the node; its height."""
        below = [draw(child, depth + 1) for child in node.children.values() if id(child) in drawn]
        here = (below[0] + below[-1]) / 2 if below else float(next(free))
        for height in below:
            axes.plot((depth, depth + 1), (here, height), color="0.8", linewidth=0.6, zorder=0)
        size = 8 + 120 * node.visits / max(tree.root.visits, 1)
        axes.scatter(depth, here, s=size, color=_colour(tree.mean_reward(node)))
        if depth:
            axes.text(depth + 0.02, here, show_value(node.value).strip("'"), fontsize=5)
        return here

    draw(tree.root, 0)
    axes.set_title(f"{len(drawn)} of {len(nodes)} nodes, by visits; colour: mean reward")
    axes.set_axis_off()
    return figure


def _below(node: Node, depth: int) -> Iterator[tuple[int, Node]]:
    yield depth, node
    for child in node.children.values():
        yield from _below(child, depth + 1)


def _colour(goodness: float) -> tuple[float, ...]:
    from matplotlib import colormaps

    return tuple(colormaps["viridis_r"](goodness))
