"""What a run came to, in a few lines at its end."""

from __future__ import annotations

from infinito.checkpoint.discover import BEST_FILE, LAST_FILE
from infinito.checkpoint.run_directory import RunDirectory
from infinito.runtime.paths import command, shown
from infinito.telemetry.console import seconds_text
from infinito.train.run import RunResult
from infinito.train.trainer import Trainer


def summary_lines(trainer: Trainer, result: RunResult, directory: RunDirectory) -> list[str]:
    """The end of a run in a few lines, with what to type next."""
    report = trainer.performance_report()
    run = shown(directory.path)
    reason = f" ({result.stopped})" if result.stopped else ""
    lines = [
        f"done:       step {result.step} of {trainer.total_steps}{reason}, "
        f"{result.tokens} tokens, {trainer.epoch:.2f} epochs",
        f"speed:      {report['tokens_per_second']:.0f} tokens/s "
        f"({report['seconds_per_step']:.3f} s a step without warm-up), "
        f"training time {seconds_text(trainer.speed.training_seconds)}",
        f"memory:     {report['peak_memory_mb']:.0f} MB at the peak",
    ]
    if (best := result.best) is not None:
        figure = (
            f"bits per byte {trainer.bits_per_byte(best['valid_loss']):.4f}"
            if trainer.bits_lead
            else f"word perplexity {best['valid_word_perplexity']:.2f}"
        )
        lines.append(
            f"best:       valid loss {best['valid_loss']:.4f}, {figure} at step {best['step']}"
        )
        saved = [run / name for name in (BEST_FILE, LAST_FILE) if (run / name).exists()]
        lines.append(f"saved:      {', '.join(map(str, saved))}")
    lines.append(f"next:       {command('evaluate', run)}")
    lines.append(f'            {command("generate", run, "--prompt")} "..."')
    lines.append(f"report:     {command('report', run)}")
    return lines
