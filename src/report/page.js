"use strict";
// Draws the charts of the page from the data in it; no library, no network.
const data = JSON.parse(document.getElementById("data").textContent);
const state = { hidden: new Set(), smooth: 0, log: false, axis: "steps" };
const SVG = "http://www.w3.org/2000/svg";
const tip = document.getElementById("tip");
// Width of a digit of the charts' small text, in pixels, rounded up.
const DIGIT = 6.5;
const AXES = { steps: "step", tokens: "tokens", seconds: "time", flops: "FLOPs" };

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (parent) parent.appendChild(made);
  return made;
}

function coloured(name, colour, attributes, parent) {
  const made = element(name, attributes, parent);
  made.style.setProperty("--run", colour);
  return made;
}

function html(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function dot(colour) {
  const made = html("i", "dot");
  made.style.setProperty("--run", colour);
  return made;
}

function format(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  for (const [power, unit] of [[18, "E"], [15, "P"], [12, "T"], [9, "G"], [6, "M"]])
    if (size >= 10 ** power) return +(value / 10 ** power).toPrecision(4) + " " + unit;
  if (size >= 1e4) return +(value / 1e3).toPrecision(4) + " k";
  if (size < 1e-3) return String(+value.toPrecision(3));
  return String(+value.toPrecision(4));
}

// Durations in the largest unit of which there are at least two.
function duration(seconds) {
  for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]])
    if (Math.abs(seconds) >= 2 * length) return +(seconds / length).toPrecision(3) + " " + unit;
  return +seconds.toPrecision(3) + " s";
}

const along = (value) => (state.axis === "seconds" ? duration(value) : format(value));

// Round numbers between low and high, about `count` of them.
function ticks(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high * (1 + 1e-12); i++) found.push(i * step);
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
    for (const f of [1, 2, 5]) {
      const value = f * Math.pow(10, e);
      if (value >= low && value <= high) found.push(value);
    }
  if (found.length > 6) {
    const every = Math.ceil(found.length / 5);
    return found.filter((_, i) => i % every === 0);
  }
  return found.length > 1 ? found : ticks(low, high, 4);
}

// Exponential mean that starts without a bias towards its first value.
function smoothed(points, weight) {
  let sum = 0, norm = 0;
  return points.map(([x, y]) => {
    if (y === null) return [x, y];
    sum = weight * sum + (1 - weight) * y;
    norm = weight * norm + (1 - weight);
    return [x, sum / norm];
  });
}

// The points of a series along the chosen axis: what its run had used at that step.
function placed(series) {
  if (state.axis === "steps" || series.run === null) return series.points;
  const { steps, [state.axis]: used } = data.runs[series.run].axes;
  let at = 1;
  return series.points.map(([step, y]) => {
    while (at < steps.length - 1 && steps[at] < step) at++;
    if (steps.length < 2) return [step, y];
    const share = (step - steps[at - 1]) / (steps[at] - steps[at - 1]);
    return [used[at - 1] + share * (used[at] - used[at - 1]), y];
  });
}

function path(points, x, y) {
  let text = "", pen = "M";
  for (const [a, b] of points) {
    if (b === null || !isFinite(y(b))) { pen = "M"; continue; }
    text += pen + x(a).toFixed(1) + " " + y(b).toFixed(1);
    pen = "L";
  }
  return text;
}

// The axes and the places of values; `xs` are the ends of the axis.
function frame(chart, size, xs, low, high, log) {
  const [width, height] = [size.width, size.small ? 150 : 230];
  const rows = log ? logTicks(low, high) : ticks(low, high, size.small ? 3 : 5);
  const longest = Math.max(...rows.map((tick) => format(tick).length));
  const [left, right, top, bottom] = [Math.max(30, longest * DIGIT + 10), 12, 8, 20];
  const svg = element("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  svg.setAttribute("aria-label", chart.title);
  let [first, last] = xs;
  if (first === last) { first -= 1; last += 1; }
  const x = (value) => left + ((value - first) / (last - first)) * (width - left - right);
  const scale = log ? Math.log : (value) => value;
  const y = (value) => top + ((scale(high) - scale(value)) / (scale(high) - scale(low))) * (height - top - bottom);
  for (const tick of rows) {
    element("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }, svg);
    element("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, svg).textContent = format(tick);
  }
  return { svg, x, y, left, right, top, bottom, width, height, first, last };
}

// Labels below the axis; those at its ends stay inside the chart.
function below(plot, labels) {
  for (const [at, text] of labels) {
    const half = (text.length * DIGIT) / 2;
    const anchor = at + half > plot.width ? "end" : at - half < 0 ? "start" : "middle";
    const place = anchor === "end" ? plot.width - 1 : anchor === "start" ? 1 : at;
    element("text", { x: place, y: plot.height - 5, "text-anchor": anchor }, plot.svg).textContent = text;
  }
}

function ends(values) {
  return [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
}

function lines(chart, size) {
  const shown = chart.series.filter((series) => !state.hidden.has(series.run));
  const raw = shown.map(placed);
  const drawn = raw.map((points) => (chart.noisy && state.smooth > 0 ? smoothed(points, state.smooth) : points));
  const all = raw.flat().filter(([, y]) => y !== null);
  if (all.length === 0) return null;
  const log = (chart.log || state.log) && all.every(([, y]) => y > 0);
  const values = drawn.flat().concat(state.smooth > 0 ? [] : all).map(([, y]) => y).filter((y) => y !== null);
  let [low, high] = ends(values);
  if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
  else if (log) { const room = Math.pow(high / low, 0.04); low /= room; high *= room; }
  else { const room = (high - low) * 0.05; low = low >= 0 && low < room ? 0 : low - room; high += room; }
  const plot = frame(chart, size, ends(all.map(([x]) => x)), low, high, log);
  below(plot, ticks(plot.first, plot.last, size.small ? 3 : 6).map((tick) => [plot.x(tick), along(tick)]));
  const clip = "clip" + size.id;
  const box = element("clipPath", { id: clip }, plot.svg);
  element("rect", { x: plot.left, y: plot.top - 2, width: plot.width - plot.left - plot.right, height: plot.height - plot.top - plot.bottom + 4 }, box);
  const inside = element("g", { "clip-path": `url(#${clip})` }, plot.svg);
  shown.forEach((series, i) => {
    if (drawn[i] !== raw[i]) coloured("path", series.colour, { class: "line faint", d: path(raw[i], plot.x, plot.y) }, inside);
    coloured("path", series.colour, { class: "line", d: path(drawn[i], plot.x, plot.y) }, inside);
    if (raw[i].length === 1) coloured("circle", series.colour, { class: "point", cx: plot.x(raw[i][0][0]), cy: plot.y(raw[i][0][1]), r: 3 }, inside);
  });
  return { plot, rows: shown.map((series, i) => ({ series, points: drawn[i] })) };
}

function shares(chart, size) {
  if (state.hidden.has(chart.series[0].run)) return null;
  const raw = chart.series.map(placed);
  const plot = frame(chart, size, ends(raw[0].map(([x]) => x)), 0, 1, false);
  below(plot, ticks(plot.first, plot.last, 3).map((tick) => [plot.x(tick), along(tick)]));
  let under = raw[0].map(() => 0);
  raw.forEach((points, expert) => {
    const above = points.map(([, y], i) => under[i] + (y || 0));
    const up = points.map(([x], i) => plot.x(x).toFixed(1) + " " + plot.y(Math.min(1, above[i])).toFixed(1));
    const down = points.map(([x], i) => plot.x(x).toFixed(1) + " " + plot.y(Math.min(1, under[i])).toFixed(1)).reverse();
    coloured("path", chart.series[expert].colour, { class: "area", d: "M" + up.concat(down).join("L") + "Z" }, plot.svg);
    under = above;
  });
  return { plot, keys: true, rows: chart.series.map((series, i) => ({ series, points: raw[i] })) };
}

function bars(chart, size) {
  const shown = chart.series.filter((series) => !state.hidden.has(series.run));
  const values = shown.flatMap((series) => series.points.map(([, y]) => y)).filter((y) => y !== null);
  if (values.length === 0) return null;
  const count = chart.labels.length;
  const plot = frame(chart, size, [-0.5, count - 0.5], 0, ends(values)[1] * 1.12, false);
  const group = (plot.width - plot.left - plot.right) / count;
  const bar = Math.min(48, (group * 0.86) / shown.length);
  const fitting = Math.floor(group / DIGIT);
  const short = (text) => (text.length > fitting ? text.slice(0, Math.max(1, fitting - 1)) + "…" : text);
  below(plot, chart.labels.map((label, i) => [plot.x(i), short(label)]));
  shown.forEach((series, i) =>
    series.points.forEach(([place, y]) => {
      if (y === null) return;
      const x = plot.x(place) + (i - shown.length / 2) * bar, top = plot.y(y);
      coloured("rect", series.colour, { class: "bar", x: x + 1, y: top, width: Math.max(1, bar - 2), height: plot.y(0) - top }, plot.svg);
      const text = y < 99.95 ? y.toFixed(2) : format(y);
      if (text.length * DIGIT <= bar)
        element("text", { x: x + bar / 2, y: top - 4, "text-anchor": "middle" }, plot.svg).textContent = text;
    }));
  return { plot, keys: true, rows: shown.map((series) => ({ series, points: series.points })) };
}

const KINDS = { lines, shares, bars };

function nearest(points, x) {
  let best = null;
  for (const point of points) if (best === null || Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
  return best;
}

function hover(chart, made) {
  const { plot, rows } = made;
  const rule = element("line", { class: "rule", y1: plot.top, y2: plot.height - plot.bottom, visibility: "hidden" }, plot.svg);
  plot.svg.addEventListener("pointermove", (event) => {
    const box = plot.svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * plot.width;
    const value = plot.first + ((at - plot.left) / (plot.width - plot.left - plot.right)) * (plot.last - plot.first);
    const found = rows.map((row) => ({ ...row, point: nearest(row.points, value) })).filter((row) => row.point);
    const centre = nearest(found.map((row) => row.point), value);
    if (!centre) return;
    rule.setAttribute("x1", plot.x(centre[0]));
    rule.setAttribute("x2", plot.x(centre[0]));
    rule.setAttribute("visibility", "visible");
    const table = html("table");
    for (const { series, point } of found) {
      const line = html("tr"), name = html("td");
      name.append(dot(series.colour), series.name);
      line.append(name, html("td", "number", format(point[1])));
      table.append(line);
    }
    const place = chart.labels.length > 0 ? chart.labels[centre[0]] : AXES[state.axis] + " " + along(centre[0]);
    tip.replaceChildren(html("div", "note", place), table);
    tip.hidden = false;
    const room = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - room.width - 8)) + "px";
    tip.style.top = Math.max(4, Math.min(event.clientY + 14, innerHeight - room.height - 8)) + "px";
  });
  plot.svg.addEventListener("pointerleave", () => {
    rule.setAttribute("visibility", "hidden");
    tip.hidden = true;
  });
}

// A field of a CSV file. A spreadsheet would run a text that begins like a formula.
function field(value) {
  if (typeof value === "number") return String(value);
  if (value === null || value === undefined) return "";
  const text = /^[=+\-@\t\r]/.test(value) ? "'" + value : value;
  return /[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text;
}

function csv(chart) {
  const named = chart.labels.length > 0;
  const head = ["name", named ? "place" : AXES[state.axis], chart.title + (chart.unit ? ` (${chart.unit})` : "")];
  const rows = chart.series.flatMap((series) =>
    (named ? series.points : placed(series)).map(([x, y]) => [series.name, named ? chart.labels[x] : x, y]));
  return [head, ...rows].map((row) => row.map(field).join(",") + "\r\n").join("");
}

// What the style of the page says of a shape. Programs that draw SVG files know neither style sheets nor variables.
const LOOK = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity", "font-family",
  "font-size", "font-weight"];

// The text of a drawing whose shapes say themselves how they look.
function standalone(file) {
  document.body.append(file);
  const shapes = [...file.querySelectorAll("*")];
  for (const shape of shapes) {
    const style = getComputedStyle(shape);
    for (const name of LOOK) shape.setAttribute(name, style.getPropertyValue(name));
  }
  file.remove();
  for (const shape of [file, ...shapes]) {
    shape.removeAttribute("class");
    shape.removeAttribute("style");
  }
  return new XMLSerializer().serializeToString(file);
}

// The chart as a file of its own: with its title, its names and the colours of this page, light or dark.
function drawing(chart, id) {
  const made = KINDS[chart.kind](chart, { width: 760, small: false, id: "file" + id });
  if (made === null) return "";
  const { svg, height, width } = made.plot;
  const place = element("g", { transform: "translate(0 26)" });
  place.append(...svg.childNodes);
  const total = height + 36 + 16 * made.rows.length;
  const file = element("svg", { class: "plot", viewBox: `0 0 ${width} ${total}`, width, height: total });
  element("rect", { class: "back", width, height: total }, file);
  element("text", { class: "title", x: 8, y: 18 }, file).textContent = chart.title + (chart.unit ? ", " + chart.unit : "");
  file.append(place);
  made.rows.forEach(({ series }, i) => {
    const y = height + 40 + 16 * i;
    coloured("rect", series.colour, { class: "bar", x: 12, y: y - 9, width: 10, height: 10, rx: 3 }, file);
    element("text", { x: 28, y }, file).textContent = series.name;
  });
  return standalone(file);
}

function save(figure, chart) {
  const place = html("span", "save");
  const name = chart.title.replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "").toLowerCase() || "chart";
  for (const [kind, type, content] of [
    ["SVG", "image/svg+xml", () => drawing(chart, figure.dataset.chart)],
    ["CSV", "text/csv", () => csv(chart)],
  ]) {
    const link = html("a", "", kind);
    link.href = "#";
    link.download = name + "." + kind.toLowerCase();
    link.setAttribute("aria-label", `${chart.title} as ${kind}`);
    link.addEventListener("click", () => { link.href = `data:${type};charset=utf-8,` + encodeURIComponent(content()); });
    place.append(link);
  }
  figure.querySelector("figcaption").append(place);
}

function draw(figure) {
  const chart = data.charts[figure.dataset.chart];
  figure.hidden = false;
  // A chart in a closed section has no width; it is drawn when the section opens.
  if (figure.clientWidth === 0) return;
  figure.querySelectorAll("svg, .keys").forEach((old) => old.remove());
  const small = figure.parentElement.classList.contains("small");
  const made = KINDS[chart.kind](chart, { width: Math.max(200, figure.clientWidth - 18), small, id: figure.dataset.chart });
  figure.hidden = made === null;
  if (made === null) return;
  if (made.keys) {
    const keys = html("div", "keys");
    for (const { series } of made.rows) {
      const key = html("span");
      key.append(dot(series.colour), series.name);
      keys.append(key);
    }
    figure.append(keys);
  }
  figure.append(made.plot.svg);
  hover(chart, made);
}

const figures = [...document.querySelectorAll("figure[data-chart]")];
const drawAll = () => figures.forEach(draw);

function legend() {
  const used = new Set(data.charts.flatMap((chart) => chart.series.map((series) => series.run)));
  const place = document.getElementById("legend");
  data.runs.forEach((run, number) => {
    if (!used.has(number)) return;
    const button = html("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.append(dot(run.colour), run.name);
    button.addEventListener("click", () => {
      if (!state.hidden.delete(number)) state.hidden.add(number);
      button.setAttribute("aria-pressed", String(!state.hidden.has(number)));
      drawAll();
    });
    place.append(button);
  });
}

// A link of the contents opens the section that it leads to.
function open() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "DETAILS") target.open = true;
}

for (const section of document.querySelectorAll("details"))
  section.addEventListener("toggle", () => section.querySelectorAll("figure[data-chart]").forEach(draw));
addEventListener("hashchange", open);
open();
figures.forEach((figure) => save(figure, data.charts[figure.dataset.chart]));
if (document.getElementById("controls")) {
  legend();
  const on = (id, event, change) => document.getElementById(id).addEventListener(event, (e) => { change(e.target); drawAll(); });
  on("smooth", "input", (input) => (state.smooth = +input.value));
  on("log", "change", (input) => (state.log = input.checked));
  on("axis", "change", (input) => (state.axis = input.value));
}
let waiting = 0;
addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawAll, 120); });
drawAll();
