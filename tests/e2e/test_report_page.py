"""The report in a real browser, headless: no complaint, no request, and it does what it offers."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.command_support import infinito, write_config

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no chromium is installed")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom",
    "--enable-logging=stderr", "--disable-background-networking", "--virtual-time-budget=20000",
)  # fmt: skip
# Runs after the page's own script; what it returns is found in the dumped document.
PROBE = """
<script>
addEventListener("load", () => setTimeout(() => {
  const seen = {errors: window.seenErrors};
  const chart = document.querySelector(".chart svg");
  const ends = () => [...chart.querySelectorAll("text")].map((text) => text.textContent).join(" ");
  const press = (on, key) => on.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.width = innerWidth;
  seen.small = [3 * 2e-4, 2.5e-5].map(tick);
  const figure = document.querySelector(".figures .lead dd")
    ?? document.createElement("dd");  // several runs have a table
  figure.textContent = "3637064.32";  // a word perplexity of the first steps
  seen.cut = figure.scrollWidth - figure.clientWidth;
  seen.axes = {};
  for (const input of document.querySelectorAll("input[name=axis]")) {
    input.click();
    seen.axes[input.value] = {label: chart.getAttribute("aria-label"), ticks: ends()};
  }
  press(chart, "ArrowLeft");
  seen.readout = chart.previousElementSibling.textContent;
  const text = document.querySelector(".text");
  text.focus();
  press(text, "ArrowRight");
  seen.token = document.querySelector(".text .on").textContent;
  seen.expected = [...document.querySelectorAll(".expected li")].map((row) => row.textContent);
  seen.maps = document.querySelectorAll("canvas").length;
  const pixels = document.querySelector("canvas").getContext("2d").getImageData(0, 0, 1, 1).data;
  seen.first = pixels[3];
  const map = document.querySelector("canvas");
  const weight = document.querySelector(".weight");
  const said = [weight.textContent];
  map.focus();
  said.push(weight.textContent);
  for (const key of ["End", "ArrowUp", "ArrowLeft", "ArrowDown", "Home"]) {
    press(map, key);
    said.push(weight.textContent);
  }
  const place = map.getBoundingClientRect();
  const corner = {clientX: place.left + 1, clientY: place.top + 1};
  map.dispatchEvent(new PointerEvent("pointerdown", corner));
  said.push(weight.textContent);
  const places = /\\((\\d+)\\).*\\((\\d+)\\) with weight/;
  seen.weights = said.map((text) => text.match(places)?.slice(1).join() ?? text);
  seen.weightCut = weight.scrollWidth - weight.clientWidth;
  dispatchEvent(new Event("beforeprint"));
  seen.closed = document.querySelectorAll("details:not([open])").length;
  seen.parted = [...document.querySelectorAll(".plain tbody th")].filter((one) => {
    const range = document.createRange();
    range.selectNodeContents(one);
    return range.getClientRects().length > 1;
  }).map((one) => one.textContent);
  const titles = [...document.querySelectorAll("h2,h3,h2 + p,h3 + p,pre")];
  seen.alone = titles.filter((one) => one.matches("pre")
    ? one.previousElementSibling?.matches("p")
      && getComputedStyle(one.previousElementSibling).breakAfter !== "avoid"
    : getComputedStyle(one).breakAfter !== "avoid").map((one) => one.textContent);
  seen.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  const reached = document.querySelectorAll("[tabindex]:not(main),input,button,canvas,svg");
  seen.nameless = [...reached].filter((one) => !one.getAttribute("aria-label")
    && !one.textContent.trim() && !one.closest("label")).map((one) => one.outerHTML.slice(0, 80));
  const found = document.createElement("pre");
  found.id = "seen";
  found.textContent = JSON.stringify(seen);
  document.body.append(found);
}, 300));
</script>
"""
OUTER = """<script>const waiting = setInterval(() => {
  const seen = document.querySelector("iframe").contentDocument.querySelector("#seen");
  if (!seen) return;
  clearInterval(waiting);
  const out = document.body.appendChild(document.createElement("pre"));
  out.id = "out";
  out.textContent = seen.textContent;
}, 100);</script>"""
EARLY = (
    "<script>window.seenErrors = []; addEventListener('error', (e) => seenErrors.push(e.message));"
    "addEventListener('securitypolicyviolation', (e) => seenErrors.push(e.blockedURI));</script>"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("page")
    changes = {"model__attention__learnable_lambda": True, "model__moe__n_experts": 3}
    prompt = {"training__sample_prompt": "the <b>cat</b>"}
    assert infinito("train", "--config", write_config(place, **changes, **prompt)).code == 0
    assert infinito("report", place / "run").code == 0
    return place / "run" / "report.html"


def browse(page: Path, place: Path, width: int = 1200) -> tuple[dict[str, Any], str]:
    """What the probe saw of ``page``, and the browser's complaints.

    The page is in a frame: a headless window is never narrower than 500 pixels.
    """
    text = page.read_text(encoding="utf-8").replace("<meta name", EARLY + "<meta name", 1)
    text = html.escape(text.replace("</body>", PROBE + "</body>"))
    frame = place / "frame.html"
    frame.write_text(
        f'<iframe width={width} height=900 frameborder=0 srcdoc="{text}"></iframe>{OUTER}'
    )
    done = subprocess.run(
        [BROWSER, *FLAGS, f"--user-data-dir={place / 'profile'}", frame.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_it_works_and_asks_for_nothing(page: Path, tmp_path: Path) -> None:
    seen, complaints = browse(page, tmp_path)
    assert (complaints, seen["errors"], seen["requests"], seen["nameless"]) == ("", [], [], [])
    labels = [axis["label"] for axis in seen["axes"].values()]
    assert [label.partition(":")[0] for label in labels] == [
        f"Loss against {name}" for name in ("steps", "tokens", "FLOPs", "minutes")
    ]
    assert seen["small"] == ["6e-4", "2.5e-5"]
    assert len({axis["ticks"] for axis in seen["axes"].values()}) == 4
    assert "minutes" in seen["readout"]
    assert "training" in seen["readout"]
    assert len(seen["expected"]) == 5
    assert seen["maps"] == 4
    assert seen["first"] == 255  # the first token sees itself alone
    moves = ["15,0", "15,15", "14,14", "14,13", "15,13", "15,0", "0,0"]
    assert seen["weights"] == ["", *moves]  # before, on focus, by five keys, by a tap


def test_a_phone_scrolls_in_one_direction_only(page: Path, tmp_path: Path) -> None:
    seen, _ = browse(page, tmp_path, 390)
    assert seen["width"] == 390
    assert seen["overflow"] <= 0
    assert seen["cut"] <= 0
    assert seen["weightCut"] <= 0


def test_on_paper_nothing_is_hidden_and_no_word_is_parted(page: Path, tmp_path: Path) -> None:
    """As printed: the rules for paper, on a page of its width, of three runs side by side."""
    runs = [tmp_path / name for name in "abc"]
    for run in runs:
        shutil.copytree(page.parent, run)
    assert infinito("report", *runs, "--output-dir", tmp_path / "all").code == 0
    paper = tmp_path / "paper.html"
    text = (tmp_path / "all" / "report.html").read_text(encoding="utf-8")
    assert "@media print" in text
    paper.write_text(text.replace("@media print", "@media all"), encoding="utf-8")
    seen, _ = browse(paper, tmp_path, 718)
    assert (seen["closed"], seen["parted"], seen["alone"]) == (0, [], [])


def test_the_probe_can_fail(page: Path, tmp_path: Path) -> None:
    wrong = (
        '<p style="width:900px">x</p><img src="https://example.org/x.png">'
        "<script>nothing()</script>"
    )
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace('<main id="main"', f'{wrong}<main id="main"'))
    seen, complaints = browse(broken, tmp_path, 390)
    assert seen["overflow"] > 300
    assert any("nothing" in error for error in seen["errors"])
    assert any("example.org" in error for error in seen["errors"])
    assert complaints
