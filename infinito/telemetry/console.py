"""What a person sees of a run: a live panel on a terminal, plain lines anywhere else."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from typing import Any

from rich.console import Console, ConsoleRenderable, RenderableType, RenderHook
from rich.constrain import Constrain
from rich.control import Control
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import ControlType
from rich.table import Table
from rich.text import Text

from infinito.config.explain import printable
from infinito.runtime.events import Event, Metrics, Work
from infinito.telemetry.sinks import Record

_REDRAW_SECONDS = 0.5
_KEY_COLUMNS = 3  # beside the panel: the terminal's own ^C must not wrap
_SAMPLE_CHARACTERS = 400
_BARS = "▁▂▃▄▅▆▇█"


def seconds_text(seconds: float) -> str:
    """90 -> '1:30', 3700 -> '1:01:40'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def record_line(record: Record, total_steps: int, bits_lead: bool = False) -> str:
    """A record as one plain line; ``bits_lead`` has bits per byte for word perplexity."""
    parts = [f"step {record['step']}/{total_steps}", f"epoch {record['epoch']:.2f}"]
    formats = {
        "loss": "loss {:.4f}",
        "learning_rate": "lr {:.2e}",
        "grad_norm": "grad {:.2f}",
        "tokens_per_second": "{:.0f} tok/s",
        "memory_mb": "{:.0f} MB",
        "valid_loss": "valid loss {:.4f}",
    }
    if bits_lead:
        formats["valid_bits_per_byte"] = "valid bits/byte {:.4f}"
    else:
        formats["valid_word_perplexity"] = "valid word ppl {:.2f}"
    parts += [text.format(record[name]) for name, text in formats.items() if name in record]
    if "eta_seconds" in record:
        parts.append(f"eta {seconds_text(record['eta_seconds'])}")
    return "  ".join(parts)


def sample_line(text: str) -> str:
    """What the model wrote, in one line that prints."""
    return "sample: " + printable(" ".join(text.split()), _SAMPLE_CHARACTERS)


class PlainConsole:
    """One line a record on stderr, no control codes."""

    def __init__(self, total_steps: int, bits_lead: bool = False) -> None:
        self.total_steps, self.bits_lead = total_steps, bits_lead

    def __call__(self, event: Event) -> None:
        """Print the metrics."""
        if isinstance(event, Metrics):
            line = record_line(event.values, self.total_steps, self.bits_lead)
            print(line, file=sys.stderr, flush=True)
            if "sample" in event.values:
                print(sample_line(event.values["sample"]), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Nothing to finish."""


class LiveConsole(RenderHook):
    """A panel that is redrawn in place: progress, losses, speed, memory, and a curve."""

    def __init__(
        self,
        title: str,
        total_steps: int,
        known: Record | None = None,
        bits_lead: bool = False,
    ) -> None:
        self.title = title
        self.total_steps, self.bits_lead = total_steps, bits_lead
        self.latest: dict[str, Any] = dict(known or {})
        self.busy, self._drawn = "", time.monotonic()
        self.losses: deque[float] = deque(maxlen=48)
        self.live = Live(console=Console(stderr=True), auto_refresh=False)
        self.live.console.push_render_hook(self)
        self.live.start()

    def __call__(self, event: Event) -> None:
        """Take metrics into the panel, and how far a long piece of work is."""
        if isinstance(event, Metrics):
            self.latest.update(event.values)
            if "sample" in event.values:
                self.live.console.print(Text(sample_line(event.values["sample"]), style="dim"))
            if "loss" in event.values:
                self.losses.append(float(event.values["loss"]))
            self._draw()
        elif isinstance(event, Work):
            self._show_work(event)

    def _show_work(self, work: Work) -> None:
        """Redraw twice a second during work such as an evaluation."""
        self.busy = "" if work.ended else f"{work.what} {work.done / work.total:.0%}"
        if self.busy and time.monotonic() - self._drawn > _REDRAW_SECONDS:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if "step" in self.latest:
            self.live.update(self._panel(), refresh=True)

    def close(self) -> None:
        """Leave the last panel on the screen."""
        self.live.stop()

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Before anything is drawn: erase the rows that rich does not know of.

        Most terminals wrap the lines of the last panel when their window becomes narrower; and
        before the first panel, the cursor may stand behind the notice of a signal.
        """
        shape, erase = self.live._live_render._shape, (ControlType.ERASE_IN_LINE, 2)
        if shape is None:
            return [Control(ControlType.CARRIAGE_RETURN, erase), *renderables]
        width, height = shape
        wrapped = height * ((width - 1) // self.live.console.width) if _wraps_anew() else 0
        return [Control(*((ControlType.CURSOR_UP, 1), erase) * wrapped), *renderables]

    def _panel(self) -> RenderableType:
        latest = self.latest
        done = Table.grid(padding=(0, 2))
        done.add_row(
            ProgressBar(total=self.total_steps, completed=latest["step"], width=40),
            f"step {latest['step']}/{self.total_steps}  epoch {latest['epoch']:.2f}",
        )
        grid = Table.grid(padding=(0, 3))
        for row in self._cells():
            grid.add_row(*row)
        whole = Table.grid()
        whole.add_row(done)
        whole.add_row(grid)
        curve = f"[dim]loss curve[/] {sparkline(list(self.losses))}"
        whole.add_row(f"{curve}  [dim]{self.busy}[/]" if self.busy else curve)
        panel = Panel(whole, title=self.title, title_align="left", expand=False)
        return Constrain(panel, max(self.live.console.width - _KEY_COLUMNS, 1))

    def _cells(self) -> list[list[str]]:
        latest = self.latest

        def cell(label: str, name: str, text: str) -> str:
            value = latest.get(name)
            return f"[dim]{label}[/] {text.format(value) if value is not None else '-'}"

        eta = latest.get("eta_seconds")
        return [
            [
                cell("train loss", "loss", "{:.4f}"),
                cell("valid loss", "valid_loss", "{:.4f}"),
                cell("valid bits per byte", "valid_bits_per_byte", "{:.4f}")
                if self.bits_lead
                else cell("valid word perplexity", "valid_word_perplexity", "{:.2f}"),
            ],
            [
                cell("tokens/s", "tokens_per_second", "{:.0f}"),
                cell("lr", "learning_rate", "{:.2e}"),
                cell("grad norm", "grad_norm", "{:.2f}"),
            ],
            [
                cell("memory", "memory_mb", "{:.0f} MB"),
                f"[dim]elapsed[/] {seconds_text(latest.get('seconds', 0.0))}",
                f"[dim]eta[/] {seconds_text(eta) if eta is not None else '-'}",
            ],
        ]


def _wraps_anew() -> bool:
    """Whether a narrower window wraps long lines; those of xterm, screen and Linux cut them."""
    cuts = {"XTERM_VERSION", "STY"} & os.environ.keys() or os.environ.get("TERM") == "linux"
    return "TMUX" in os.environ or not cuts


def sparkline(values: list[float]) -> str:
    """A curve in one row of block characters, scaled to its own range."""
    if not values:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    return "".join(_BARS[round((v - low) / span * (len(_BARS) - 1))] for v in values)


def console_sink(
    title: str, total_steps: int, known: Record | None = None, bits_lead: bool = False
) -> LiveConsole | PlainConsole:
    """The live panel if stderr is a terminal that can show it, else plain lines.

    ``known`` is what the panel shows before its first record: the evaluation of a resumed run.
    With ``bits_lead``, bits per byte stand in the place of the word perplexity.
    """
    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveConsole(title, total_steps, known, bits_lead)
    return PlainConsole(total_steps, bits_lead)
