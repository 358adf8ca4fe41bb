"""What a run came to: the report at its end, and the same as data for the API."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from infinito.checkpoint.discover import BEST_FILE, LAST_FILE
from infinito.checkpoint.run_directory import RunDirectory
from infinito.model.count import count_parameters
from infinito.runtime.memory import peak_memory_mb
from infinito.runtime.paths import command, shown
from infinito.telemetry.console import seconds_text

if TYPE_CHECKING:
    from infinito.train.trainer import Trainer

_BYTES_PER_NUMBER = {"float32": 4, "bfloat16": 2, "int8": 1}


def performance_report(trainer: Trainer) -> dict[str, Any]:
    """Speed without the first steps, peak memory, parameters by part, model size by dtype."""
    model = trainer.model
    parts = count_parameters(model.config, model.vocab_size, model.max_positions)
    return {
        "steps": trainer.progress.step,
        "tokens": trainer.progress.tokens,
        "tokens_per_second": trainer.speed.tokens_per_second,
        "seconds_per_step": trainer.speed.seconds_per_step,
        "peak_memory_mb": peak_memory_mb(trainer.config.device),
        "parameters": {**asdict(parts), "total": parts.total},
        "model_bytes": {name: parts.total * size for name, size in _BYTES_PER_NUMBER.items()},
        "device": str(trainer.device),
        "precision": trainer.precision,
    }


def summary_lines(trainer: Trainer, directory: RunDirectory) -> list[str]:
    """The end of a run in a few lines, with what to type next."""
    report, progress = performance_report(trainer), trainer.progress
    run = shown(directory.path)
    reason = " (early stopping)" if progress.step < trainer.total_steps else ""
    lines = [
        f"done:       step {progress.step} of {trainer.total_steps}{reason}, "
        f"{progress.tokens} tokens, {trainer.epoch:.2f} epochs",
        f"speed:      {report['tokens_per_second']:.0f} tokens/s "
        f"({report['seconds_per_step']:.3f} s a step without warm-up), "
        f"training time {seconds_text(trainer.speed.training_seconds)}",
        f"memory:     {report['peak_memory_mb']:.0f} MB at the peak",
    ]
    if progress.best is not None:
        best = progress.best
        lines.append(
            f"best:       valid loss {best['valid_loss']:.4f}, word perplexity "
            f"{best['valid_word_perplexity']:.2f} at step {best['step']}"
        )
        saved = [run / name for name in (BEST_FILE, LAST_FILE) if (run / name).exists()]
        lines.append(f"saved:      {', '.join(map(str, saved))}")
    lines.append(f"next:       {command('evaluate', run)}")
    lines.append(f'            {command("generate", run, "--prompt")} "..."')
    return lines
