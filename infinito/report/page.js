"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const SERIES = 8;
const several = runs.length > 1;
const hidden = new Set();
const drawings = [];
let axis = "steps";

// -- small helpers ---------------------------------------------------------------------------

/** An element with attributes and children; text is never read as markup. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function svg(tag, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

const trim = (value, digits) => String(Number(value.toPrecision(digits)));
const precise = (value) => trim(value, 5);

/** A number on an axis: 0.002, 450, 12k, 3.5M, 2e-5. */
function tick(value) {
  const size = Math.abs(value);
  for (const [unit, letter] of [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= unit) return trim(value / unit, 4) + letter;
  }
  return size > 0 && size < 1e-3 ? Number(value.toPrecision(3)).toExponential() : trim(value, 4);
}

/** Round numbers between low and high, about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((x) => x * power).find((x) => x >= raw * 0.8);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(at * step);
  return found;
}

/** Of a logarithmic axis: 1, 2 and 5 of each power of ten, or the powers alone where they are many. */
function logTicks(low, high) {
  const wide = Math.log10(high / low) > 2.5;
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const digit of wide ? [1] : [1, 2, 5]) {
      const value = digit * 10 ** power;
      if (value >= low * 0.999 && value <= high * 1.001) found.push(value);
    }
  }
  return found.length > 1 ? found : ticks(low, high, 4).filter((value) => value > 0);
}

// -- curves ----------------------------------------------------------------------------------

/** The colour of a curve: its run's, or of inner curves its layer's. */
function colour(panel, curve) {
  const layer = /^layer (\d+)/.exec(curve.label);
  if (!layer) return `var(--s${curve.run % SERIES})`;
  const layers = 1 + Math.max(...panel.curves.map((other) => Number(/^layer (\d+)/.exec(other.label)[1])));
  if (layers <= SERIES) return `var(--s${layer[1]})`;
  return `hsl(${Math.round(225 - (205 * layer[1]) / (layers - 1))} 62% var(--lightness))`;
}

/** Points [x, y, line number] of the curves that are shown against the chosen axis. */
function shownCurves(panel) {
  return panel.curves
    .filter((curve) => !hidden.has(curve.run) && runs[curve.run].axes[axis])
    .map((curve) => {
      const across = runs[curve.run].axes[axis];
      const points = curve.at.map((line, index) => [across[line], curve.values[index]]);
      return { curve, colour: colour(panel, curve), points: points.filter((point) => point[0] !== null) };
    })
    .filter((shown) => shown.points.length);
}

function domain(panel, shown) {
  const xs = shown.flatMap((one) => one.points.map((point) => point[0]));
  const ys = shown.flatMap((one) => one.points.map((point) => point[1]));
  const lowest = (values) => values.reduce((a, b) => Math.min(a, b));
  const highest = (values) => values.reduce((a, b) => Math.max(a, b));
  let [low, high] = [lowest(ys), highest(ys)];
  if (panel.logarithmic) {
    const room = Math.max((high / low) ** 0.04, 1.01);
    return { x: [0, highest(xs)], y: [low / room, high * room] };
  }
  if (panel.from_zero) low = Math.min(0, low);
  const room = (high - low || Math.abs(high) || 1) * 0.05;
  return { x: [0, highest(xs) || 1], y: [panel.from_zero && low === 0 ? 0 : low - room, high + room] };
}

/** "layer 1 head 3" as L1 H3: there is little room beside a picture. */
const short = (text) => text.replace(/layer (\d+)/, "L$1").replace(/head (\d+)/, "H$1").replace(/expert (\d+)/, "E$1");
const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

/** Which curves are named at their end, and how. */
function endLabels(panel, shown, width) {
  if (panel.curves.length === 1 || shown.length > SERIES) return [];
  const strong = new Set(shown.filter((one) => !one.curve.faint).map((one) => one.curve.run));
  return shown
    .filter((one) => !several || !one.curve.faint || !strong.has(one.curve.run))
    .map((one) => ({ one, text: cut(short(one.curve.label), width < 420 ? 12 : 18) }));
}

function summary(panel, shown) {
  const parts = shown.slice(0, 6).map(({ curve, points }) => {
    const [first, last] = [points[0][1], points[points.length - 1][1]];
    return `${curve.label} from ${precise(first)} to ${precise(last)}`;
  });
  if (shown.length > 6) parts.push(`and ${shown.length - 6} more`);
  return `${panel.title} against ${axis}: ${parts.join("; ")}`;
}

class Chart {
  constructor(panel) {
    this.panel = panel;
    this.picked = 0;
    this.readout = el("p", { class: "readout", "aria-live": "polite" });
    this.picture = svg("svg", { tabindex: "0", role: "img" });
    const unit = panel.unit ? el("span", { class: "unit" }, panel.unit) : null;
    this.figure = el("figure", { class: "chart" }, el("h3", {}, panel.title, unit), this.readout,
      this.picture, el("figcaption", {}, panel.hint));
    this.picture.addEventListener("pointermove", (event) => this.follow(event));
    this.picture.addEventListener("pointerdown", (event) => this.follow(event));
    this.picture.addEventListener("pointerleave", () => this.leave());
    this.picture.addEventListener("blur", () => this.leave());
    this.picture.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => requestAnimationFrame(() => {
      if (Math.abs(this.figure.clientWidth - this.width) > 4) this.draw();
    })).observe(this.figure);
  }

  draw() {
    this.width = this.figure.clientWidth;
    const width = Math.max(240, this.width - 28);
    const height = Math.round(Math.min(250, Math.max(190, width * 0.5)));
    this.shown = shownCurves(this.panel);
    this.picture.replaceChildren();
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.readout.textContent = "";
    if (!this.shown.length) {
      const why = hidden.size === runs.length ? "every run is switched off" : `${axis}: not known here`;
      this.picture.append(svg("text", { x: 8, y: 24 }, why));
      this.picture.setAttribute("aria-label", `${this.panel.title}: ${why}`);
      return;
    }
    this.picture.setAttribute("aria-label", summary(this.panel, this.shown));
    const labels = endLabels(this.panel, this.shown, width);
    const longest = Math.max(0, ...labels.map((label) => label.text.length));
    const box = { left: 46, right: width - 12 - longest * 6.4, top: 8, bottom: height - 24 };
    const { x, y } = domain(this.panel, this.shown);
    const across = (value) => box.left + ((value - x[0]) / (x[1] - x[0])) * (box.right - box.left);
    const rise = this.panel.logarithmic ? Math.log : (value) => value;
    const up = (value) =>
      box.bottom - ((rise(value) - rise(y[0])) / (rise(y[1]) - rise(y[0]))) * (box.bottom - box.top);
    this.scale = { across, up, box };
    this.grid(x, y);
    this.lines();
    this.names(labels);
    this.mark = svg("g");
    this.picture.append(this.mark);
  }

  grid(x, y) {
    const { across, up, box } = this.scale;
    const heights = this.panel.logarithmic ? logTicks(...y) : ticks(...y, 4);
    for (const value of heights) {
      const at = up(value);
      this.picture.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: at, y2: at }),
        svg("text", { x: box.left - 6, y: at + 4, "text-anchor": "end" }, tick(value)));
    }
    this.picture.append(
      svg("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }));
    for (const value of ticks(...x, Math.max(2, Math.floor((box.right - box.left) / 64)))) {
      this.picture.append(
        svg("text", { x: across(value), y: box.bottom + 16, "text-anchor": "middle" }, tick(value)));
    }
  }

  lines() {
    const { across, up } = this.scale;
    this.paths = this.shown.map(({ curve, colour: stroke, points }) => {
      const faint = curve.faint && this.shown.some((one) => !one.curve.faint && one.curve.run === curve.run);
      const kind = this.shown.length > SERIES ? " many" : faint ? " faint" : "";
      const path = points.map(([a, b], i) => `${i ? "L" : "M"}${across(a).toFixed(1)} ${up(b).toFixed(1)}`);
      const drawn = svg("path", { class: `curve${kind}`, d: path.join("") });
      drawn.style.stroke = stroke;
      this.picture.append(drawn);
      if (points.length < 30 && this.shown.length <= SERIES && !faint) {
        for (const [a, b] of points) this.dot(this.picture, across(a), up(b), stroke, 2.4);
      }
      return drawn;
    });
  }

  dot(parent, cx, cy, fill, r) {
    const made = svg("circle", { cx, cy, r });
    made.style.fill = fill;
    parent.append(made);
  }

  /** Names at the ends of their curves, moved apart where they would lie on each other. */
  names(labels) {
    const { up, box } = this.scale;
    const placed = labels.map(({ one, text }) => ({
      text, fill: one.colour, kind: one.curve.faint && labels.length > 1 ? "label pale" : "label",
      at: up(one.points[one.points.length - 1][1]),
    })).sort((a, b) => a.at - b.at);
    const gap = Math.min(13, (box.bottom - box.top) / Math.max(1, placed.length));
    placed.forEach((label, i) => { if (i) label.at = Math.max(label.at, placed[i - 1].at + gap); });
    let limit = box.bottom;
    for (const label of placed.reverse()) {
      label.at = Math.min(label.at, limit);
      limit = label.at - gap;
      const made = svg("text", { class: label.kind, x: box.right + 7, y: label.at + 4 }, label.text);
      made.style.fill = label.fill;
      this.picture.append(made);
    }
  }

  follow(event) {
    if (!this.shown.length) return;
    const place = this.picture.getBoundingClientRect();
    const ratio = this.picture.viewBox.baseVal.width / place.width;
    const [px, py] = [(event.clientX - place.left) * ratio, (event.clientY - place.top) * ratio];
    const { across, up } = this.scale;
    const near = this.shown.map(({ points }) => points.reduce((best, point) =>
      Math.abs(across(point[0]) - px) < Math.abs(across(best[0]) - px) ? point : best));
    const away = near.map((point) => Math.abs(up(point[1]) - py));
    this.picked = away.indexOf(Math.min(...away));
    this.show(near[this.picked][0]);
  }

  key(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    const turns = { ArrowUp: -1, ArrowDown: 1 };
    if (!this.shown.length || !(event.key in moves || event.key in turns)) return;
    event.preventDefault();
    const count = this.shown.length;
    this.picked = (this.picked + (turns[event.key] || 0) + count) % count;
    const { points } = this.shown[this.picked];
    const here = this.at === undefined ? points.length - 1 : this.nearest(points, this.at);
    const next = here + (this.at === undefined ? 0 : moves[event.key] || 0);
    this.show(points[Math.min(points.length - 1, Math.max(0, next))][0]);
  }

  nearest(points, x) {
    return points.reduce((best, point, i) => (Math.abs(point[0] - x) < Math.abs(points[best][0] - x) ? i : best), 0);
  }

  /** Values at x, of all curves where they are few, else of the picked one. */
  show(x) {
    this.at = x;
    const { across, up, box } = this.scale;
    const at = across(x);
    this.mark.replaceChildren(svg("line", { class: "cursor", x1: at, x2: at, y1: box.top, y2: box.bottom }));
    const many = this.shown.length > 4;
    const parts = [`${axis} ${precise(x)}`];
    this.shown.forEach((one, i) => {
      this.paths[i].classList.toggle("chosen", many && i === this.picked);
      if (many && i !== this.picked) return;
      const point = one.points[this.nearest(one.points, x)];
      this.dot(this.mark, across(point[0]), up(point[1]), one.colour, 4);
      parts.push(`${one.curve.label} ${precise(point[1])}`);
    });
    this.readout.textContent = parts.join("  ·  ");
    this.readout.title = this.readout.textContent;
  }

  leave() {
    if (this.mark) this.mark.replaceChildren();
    if (this.paths) this.paths.forEach((path) => path.classList.remove("chosen"));
    this.readout.textContent = "";
    this.at = undefined;
  }
}

function charts(panels) {
  const made = panels.map((panel) => new Chart(panel));
  drawings.push(...made);
  return el("div", { class: "charts" }, ...made.map((chart) => chart.figure));
}

const redraw = () => drawings.forEach((chart) => chart.draw());

function axisChoice() {
  const names = ["steps", "tokens", "FLOPs", "minutes"];
  const choices = names.map((name) => {
    const known = runs.some((run) => run.axes[name]);
    const input = el("input", { type: "radio", name: "axis", value: name, disabled: known ? null : "" });
    input.checked = name === axis;
    input.addEventListener("change", () => { axis = name; redraw(); });
    const why = name === "FLOPs" ? "needs a checkpoint" : "not in the metrics";
    return el("label", { class: "choice", title: known ? null : why }, input, el("span", {}, name));
  });
  return el("fieldset", {}, el("legend", {}, "against"), ...choices);
}

function runChoice() {
  const buttons = runs.map((run, number) => {
    const swatch = el("span", { class: "swatch" });
    swatch.style.background = `var(--s${number % SERIES})`;
    const button = el("button", { type: "button", "aria-pressed": "true" }, swatch, run.name);
    button.addEventListener("click", () => {
      if (!hidden.delete(number)) hidden.add(number);
      button.setAttribute("aria-pressed", String(!hidden.has(number)));
      redraw();
    });
    return button;
  });
  return el("div", { class: "runs", role: "group", "aria-label": "runs that are shown" }, ...buttons);
}

function curvesSection() {
  if (!data.panels.length) return [el("p", {}, "No line of metrics has been written yet.")];
  const thinned = runs.filter((run) => run.thinning > 1)
    .map((run) => `of ${run.name}, one line of metrics in ${run.thinning} is drawn`);
  const words = ["Point at a curve, or focus it and use the arrow keys, to read values."];
  if (several) words.push("The faint lines are training losses.");
  if (thinned.length) words.push(`${thinned.join("; ")}, and every evaluation.`);
  const bar = el("div", { class: "bar" }, axisChoice(), several ? runChoice() : null);
  return [el("p", {}, words.join(" ")), bar, charts(data.panels)];
}

// -- inside the model ------------------------------------------------------------------------

const visible = (text) => (text === "" ? "end of document" : text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/^ | $/g, "␣"));

function map(weights, layer, head, of, readout) {
  const bytes = Uint8Array.from(atob(weights), (letter) => letter.charCodeAt(0));
  const name = `layer ${layer}, head ${head}`;
  const canvas = el("canvas", { width: of.size, height: of.size, tabindex: "0", role: "img", "aria-label":
    `Attention of ${name}: entropy ${precise(of.heads.find((h) => h.layer === layer && h.head === head).normalised_entropy)} of the largest` });
  const paint = () => {
    const [red, green, blue] = getComputedStyle(canvas).getPropertyValue("--map").match(/[\da-f]{2}/g)
      .map((part) => parseInt(part, 16));
    const image = new ImageData(of.size, of.size);
    bytes.forEach((value, i) => image.data.set([red, green, blue, value], 4 * i));
    canvas.getContext("2d").putImageData(image, 0, 0);
  };
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", paint);
  setTimeout(paint);
  let [query, key] = [of.size - 1, 0];
  const show = () => {
    const seen = `${name}: “${visible(of.tokens[query])}” (${query}) looks at “${visible(of.tokens[key])}” (${key})`;
    const weight = of.faintest ** (1 - bytes[query * of.size + key] / 255);
    readout.textContent = key > query ? `${name}: a later token, never seen`
      : `${seen} with weight ${weight <= of.faintest ? "below " : ""}${weight.toPrecision(2)}`;
  };
  const within = (at) => Math.min(of.size - 1, Math.max(0, at));
  const point = (event) => {
    const place = canvas.getBoundingClientRect();
    query = within(Math.floor(((event.clientY - place.top) / place.height) * of.size));
    key = within(Math.floor(((event.clientX - place.left) / place.width) * of.size));
    show();
  };
  for (const kind of ["pointerdown", "pointermove"]) canvas.addEventListener(kind, point);
  canvas.addEventListener("focus", show);
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const ends = { Home: [0, -of.size], End: [0, of.size] };
    const move = moves[event.key] || ends[event.key];
    if (!move) return;
    event.preventDefault();
    query = within(query + move[0]);
    key = Math.min(query, within(key + move[1]));
    show();
  });
  return canvas;
}

function attentionOf(run) {
  const of = run.attention;
  const readout = el("p", { class: "readout weight", "aria-live": "polite" });
  const heads = of.maps[0].map((_, head) => el("th", { scope: "col" }, `head ${head}`));
  const rows = of.maps.map((layer, number) => el("tr", {}, el("th", { scope: "row" }, `layer ${number}`),
    ...layer.map((weights, head) => {
      const facts = of.heads.find((one) => one.layer === number && one.head === head);
      const title = `max weight ${precise(facts.max_weight)}, mean distance ${precise(facts.mean_distance)} tokens, `
        + `first token ${precise(facts.first_token_mass)}, itself ${precise(facts.self_mass)}, λ ${precise(facts.lambda)}`;
      return el("td", { title }, map(weights, number, head, of, readout), facts.normalised_entropy.toFixed(2));
    })));
  return [
    el("p", {}, `The first ${of.size} tokens of the validation text (${run.source}): queries downwards, keys to `
      + `the right, weights on a logarithmic scale from ${of.faintest} to 1. Below each map: entropy as a part of `
      + `the largest possible (1: all tokens alike; near 0: one token), over ${of.windows}. Point at a map, tap it, `
      + "or focus it and use the arrow keys, to read a weight."),
    readout,
    el("div", { class: "maps", tabindex: "0", role: "region", "aria-label": "attention maps" },
      el("table", {}, el("thead", {}, el("tr", {}, el("td"), ...heads)), el("tbody", {}, ...rows))),
  ];
}

function insideSection() {
  const found = data.inner.length ? [charts(data.inner)] : [];
  for (const run of runs) {
    if (run.attention) found.push(el("h3", { class: "run-title" }, title("Attention", run)), ...attentionOf(run));
  }
  return found;
}

// -- text coloured by surprise -----------------------------------------------------------------

const title = (text, run) => (several ? `${text}: ${run.name}` : text);

function surpriseOf(run) {
  const worst = Math.log(run.vocabulary);
  const expected = el("div", { class: "expected", role: "status" },
    el("p", { class: "quiet" }, "Point at a piece of the text, tap it, or focus the text and use the arrow keys."));
  const text = el("div", { class: "text", tabindex: "0", role: "group", "aria-label":
    "Validation text; the left and right arrow keys go from token to token" });
  const spans = run.pieces.map((piece) => {
    const ends = piece.text === "";
    const span = el("span", ends ? { class: "end" } : {}, ends ? "⊣" : piece.text.replace(/\n/g, "↵\n"));
    span.style.setProperty("--level", Math.min(1, piece.nats / worst).toFixed(3));
    return span;
  });
  let at = -1;
  const choose = (index) => {
    if (at >= 0) spans[at].classList.remove("on");
    at = index;
    spans[at].classList.add("on");
    expected.replaceChildren(...expectation(run.pieces[at]));
  };
  const pick = (event) => { const index = spans.indexOf(event.target); if (index >= 0) choose(index); };
  text.addEventListener("pointerover", pick);
  text.addEventListener("pointerdown", pick);
  text.addEventListener("focus", () => { if (at < 0) choose(0); });
  text.addEventListener("keydown", (event) => {
    const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: spans.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    choose(Math.min(spans.length - 1, Math.max(0, next)));
    spans[at].scrollIntoView({ block: "nearest" });
  });
  text.append(...spans);
  const mean = run.pieces.reduce((sum, piece) => sum + piece.nats, 0) / run.n_tokens;
  return [
    el("div", { class: "scale" }, "0 nats: as expected", el("i"),
      `${precise(Number(worst.toFixed(1)))} nats or more: as surprising as a blind guess among ${run.vocabulary} tokens`),
    el("div", { class: "reading" }, text, expected),
    el("p", { class: "quiet" }, `${run.source}; mean of this excerpt ${mean.toFixed(2)} nats a token.`),
  ];
}

function expectation(piece) {
  const share = Math.exp(-piece.nats);
  const rows = piece.likeliest.map(([text, chance]) => {
    const bar = el("i");
    bar.style.width = `${(100 * chance).toFixed(1)}%`;
    return el("li", text === piece.text ? { class: "right" } : {}, el("span", { class: "name" }, visible(text)),
      el("span", { class: "meter" }, bar), el("span", { class: "share" }, `${(100 * chance).toFixed(1)} %`));
  });
  return [
    el("div", { class: "token" }, `“${visible(piece.text)}”`),
    el("div", { class: "quiet" }, `${piece.nats.toFixed(2)} nats, probability ${trim(100 * share, 2)} %`),
    el("div", { class: "quiet wide" }, "Likeliest here:"),
    el("ol", {}, ...rows),
  ];
}

function surpriseSection() {
  const found = [el("p", {}, "The beginning of the validation text, read by the best checkpoint. The stronger the "
    + "colour, the less the model expected that piece; beside it, the five tokens that it held likeliest there.")];
  for (const run of runs) {
    if (several) found.push(el("h3", { class: "run-title" }, run.name));
    found.push(...(run.pieces.length ? surpriseOf(run) : [el("p", {}, `Left out: ${run.missing}.`)]));
  }
  return found;
}

// -- samples, settings, environment, commands ---------------------------------------------------

function samplesSection() {
  const found = [];
  for (const run of runs.filter((one) => one.samples.length)) {
    if (several) found.push(el("h3", { class: "run-title" }, run.name));
    [...run.samples].reverse().forEach(([step, text], index) => {
      const block = el("details", {}, el("summary", {}, `step ${step}`), el("pre", { class: "sample" }, text));
      block.open = index === 0 || index === run.samples.length - 1;
      found.push(block);
    });
  }
  return found;
}

function table(headers, rows, label) {
  const head = el("thead", {}, el("tr", {}, ...headers.map((text) => el("th", { scope: "col" }, text))));
  const body = rows.map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row" }, first),
    ...rest.map((cell) => el("td", {}, cell ?? "-"))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    el("table", { class: "plain" }, head, el("tbody", {}, ...body)));
}

/** Rows of all keys that any of the records has, a column a record. */
function merged(records) {
  const keys = [...new Set(records.flatMap((record) => Object.keys(record)))];
  return keys.map((key) => [key, ...records.map((record) => record[key])]);
}

const names = runs.map((run) => run.name);

function settingsSection() {
  const what = several ? "Where the runs differ." : "What differs from the defaults.";
  const headers = several ? ["setting", ...names] : ["setting", "value", "default"];
  const found = data.differences.length
    ? [el("p", {}, what), table(headers, data.differences, "differences of settings")]
    : [el("p", {}, several ? "The settings are equal, or not all are known." : "All settings are the defaults, or not known.")];
  const all = el("details", {}, el("summary", {}, "All settings"),
    table(["setting", ...names], merged(runs.map((run) => run.config)), "all settings"));
  addEventListener("beforeprint", () => { all.open = true; });  // paper cannot be clicked
  return [...found, all];
}

const environmentSection = () => [
  table(["", ...names], merged(runs.map((run) => run.environment)), "environment"),
];

function commandsSection() {
  return runs.flatMap((run) => [
    several ? el("h3", { class: "run-title" }, run.name) : null,
    ...(run.commands.typed.length ? [el("p", { class: "quiet" }, "Typed so far:"), el("pre", {}, run.commands.typed.join("\n"))] : []),
    el("p", { class: "quiet" }, "To go on, to measure, to try:"), el("pre", {}, run.commands.next.join("\n")),
  ]).filter((part) => part !== null);
}

// -- the page ----------------------------------------------------------------------------------

function head() {
  const lead = ["best validation loss", "word perplexity", "bits per byte"];
  const figures = several
    ? table(["", ...names], merged(runs.map((run) => run.figures)), "figures")
    : el("dl", { class: "figures" }, ...Object.entries(runs[0].figures).map(([name, cell]) =>
      el("div", lead.includes(name) ? { class: "lead" } : {}, el("dt", {}, name), el("dd", {}, cell))));
  const heading = several ? `${runs.length} runs side by side` : runs[0].name;
  return [el("p", { class: "over" }, "infinito report"), el("h1", {}, heading), figures];
}

const sections = [
  ["Curves", curvesSection()],
  ["Inside the model", insideSection()],
  ["Text, coloured by surprise", surpriseSection()],
  ["Samples over training", samplesSection()],
  ["Settings", settingsSection()],
  ["Environment", environmentSection()],
  ["Commands", commandsSection()],
].filter(([, content]) => content.length);

const links = sections.map(([name], i) => el("a", { href: `#part-${i}` }, name));
document.getElementById("top").append(...head(), el("nav", { "aria-label": "parts of the report" }, ...links));
document.getElementById("main").append(...sections.map(([name, content], i) =>
  el("section", { id: `part-${i}`, "aria-labelledby": `name-${i}` }, el("h2", { id: `name-${i}` }, name), ...content)));
redraw();
