"""``infinito tune``: search the settings of a run, by short real runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from infinito.cli.options import Json, Settings, output_directory

if TYPE_CHECKING:
    from infinito.search.study import Study

MethodName = Literal["mcts", "annealing", "random", "tpe"]


def tune(
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="Config that the search starts from.")
    ],
    space: Annotated[
        Path, typer.Option("--space", metavar="FILE", help="Objective and parameters (YAML).")
    ],
    method: Annotated[
        MethodName,
        typer.Option(
            "--method",
            help="mcts (UCT), annealing (simulated quantum annealing), random, tpe (optuna).",
        ),
    ] = "mcts",
    budget: Annotated[
        float, typer.Option("--budget", metavar="N", min=1, help="Full trials to spend.")
    ] = 20,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", min=0, help="Seed of the search.")
    ] = 0,
    settings: Settings = None,
    output_dir: Annotated[
        Path | None,
        output_directory("The search's own directory; absent: checkpoints/tune-<space>-<method>."),
    ] = None,
    json: Json = False,
) -> None:
    """Search settings by short runs and write the best config.

    The directory gets trials.jsonl (one line a trial), best.yaml (ready to train) and plots. The
    same command on it goes on where it stood, also after a kill. It stops early when the best has
    stopped improving.
    """
    from infinito.checkpoint.discover import RUNS_DIRECTORY
    from infinito.config.loading import load_config
    from infinito.search.tuning import tune as search

    base = load_config(config, settings or ())
    place = output_dir or RUNS_DIRECTORY / f"tune-{space.stem}-{method}"
    study, why, plots = search(base, space, method, budget, seed, place)
    _show(study, why, plots, place, json)


def _show(study: Study, why: str, plots: list[Path], place: Path, json: bool) -> None:
    from infinito.cli.output import print_json, say, table
    from infinito.runtime.paths import command

    best, config = study.best, place / "best.yaml"
    if json:
        from dataclasses import asdict

        found: dict[str, Any] = {"directory": str(place), "trials": len(study.trials), "ended": why}
        print_json(found | {"best": asdict(best) if best else None, "config": str(config)})
        return
    if best is None:
        say(f"{why}; no trial came to a figure: {place / 'trials.jsonl'} says why")
        return
    table(("parameter", "best value"), [[key, value] for key, value in best.values.items()])
    print(f"objective: {best.objective:.6g} (trial {best.trial} of {len(study.trials)}; {why})")
    for path in plots:
        say(f"wrote {path}")
    say(f"next: {command('train', '--config', config)}")
