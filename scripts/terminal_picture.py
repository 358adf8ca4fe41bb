"""A picture (SVG) of what a terminal showed: its text with colours on stdin, as tmux captures it.

tmux capture-pane -e -p | python scripts/terminal_picture.py docs/first-run.svg "infinito train"
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text


def main() -> None:
    """Read all of stdin and write the file named first, titled as the second says."""
    shown = Text.from_ansi(sys.stdin.read().rstrip())
    console = Console(record=True, width=max(map(len, shown.plain.split("\n"))), file=sys.stderr)
    console.print(shown)
    picture = console.export_svg(title=sys.argv[2], unique_id="infinito")
    # rich names a font on the web; the reader's own monospaced one will do.
    picture = re.sub(r"@font-face {.*?}\n", "", picture, flags=re.DOTALL)
    Path(sys.argv[1]).write_text(picture.replace("Fira Code, ", ""), encoding="utf-8")


if __name__ == "__main__":
    main()
