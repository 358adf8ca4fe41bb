"""What all tests share: a cache of their own, and ``--catalogue``, the rows that held."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator

import pytest

from infinito.runtime.events import Event, Note, reading
from tests.catalogue import summarise

_PROPERTY = "catalogue row"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--catalogue", action="store_true", help="after the run, print the reliability catalogue"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep prepared text out of the user's cache; parallel workers inherit the first one's.

    A shell starts what it puts in the background with Ctrl-C ignored, which tests are about.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        directory = tempfile.TemporaryDirectory("", "infinito-tests-", ignore_cleanup_errors=True)
        config.add_cleanup(directory.cleanup)
        os.environ["INFINITO_CACHE"] = os.path.join(directory.name, "cache")


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What the program tells people during the test, a line each."""
    said = list[str]()

    def keep(event: Event) -> None:
        if isinstance(event, Note):
            said.append(event.text)

    with reading(keep, alone=True):
        yield said


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Write the rows into the reports, which is what parallel workers send home."""
    for item in items:
        rows = {name for marker in item.iter_markers("row") for name in marker.args}
        item.user_properties.extend((_PROPERTY, row) for row in sorted(rows))


def _outcomes(reporter: pytest.TerminalReporter) -> list[tuple[str, str]]:
    """(row, outcome) of every marked test; an error while setting up or tearing down is a failure.

    A test that passes and then fails to tear down is reported twice: the failure counts.
    """
    names = {"passed": "passed", "failed": "failed", "error": "failed", "skipped": "skipped",
             "xfailed": "failed", "xpassed": "failed"}  # fmt: skip
    return [
        (row, outcome)
        for stat, outcome in names.items()
        for report in reporter.stats.get(stat, [])
        for name, row in getattr(report, "user_properties", [])
        if name == _PROPERTY
    ]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if not config.getoption("--catalogue"):
        return
    terminalreporter.section("reliability catalogue")
    for line in summarise(_outcomes(terminalreporter))[0]:
        terminalreporter.write_line(line)
