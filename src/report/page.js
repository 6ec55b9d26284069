"use strict";
// Draws the charts of the page from the data in it; no library, no network.
const data = JSON.parse(document.getElementById("data").textContent);
const state = { hidden: new Set(), smooth: 0, log: false, axis: "steps" };
const SVG = "http://www.w3.org/2000/svg";
const tip = document.getElementById("tip");

function element(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (parent) parent.appendChild(made);
  return made;
}

function html(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function format(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e9) return +(value / 1e9).toPrecision(4) + " G";
  if (size >= 1e6) return +(value / 1e6).toPrecision(4) + " M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(4) + " k";
  if (size < 1e-3) return String(+value.toPrecision(3));
  return String(+value.toPrecision(4));
}

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

function along(series) {
  const factor = state.axis === "tokens" ? data.runs[series.run].tokens_per_step || 1 : 1;
  return series.points.map(([x, y]) => [x * factor, y]);
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

function frame(figure, chart, points, low, high, log) {
  const small = figure.parentElement.classList.contains("small");
  const width = Math.max(200, figure.clientWidth - 18), height = small ? 150 : 230;
  const [left, right, top, bottom] = [46, 10, 8, 20];
  const svg = element("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  svg.setAttribute("aria-label", chart.title);
  const xs = points.map(([x]) => x);
  let first = Math.min(...xs), last = Math.max(...xs);
  if (first === last) { first -= 1; last += 1; }
  const x = (value) => left + ((value - first) / (last - first)) * (width - left - right);
  const scale = log ? Math.log : (value) => value;
  const y = (value) => top + ((scale(high) - scale(value)) / (scale(high) - scale(low))) * (height - top - bottom);
  for (const tick of log ? logTicks(low, high) : ticks(low, high, small ? 3 : 5)) {
    element("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }, svg);
    element("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, svg).textContent = format(tick);
  }
  for (const tick of ticks(first, last, small ? 3 : 6))
    element("text", { x: x(tick), y: height - 5, "text-anchor": "middle" }, svg).textContent = format(tick);
  return { svg, x, y, left, right, top, bottom, width, height, first, last };
}

function lines(figure, chart) {
  const shown = chart.series.filter((series) => !state.hidden.has(series.run));
  const raw = shown.map(along);
  const drawn = raw.map((points) => (chart.noisy && state.smooth > 0 ? smoothed(points, state.smooth) : points));
  const all = raw.flat().filter(([, y]) => y !== null);
  if (all.length === 0) return null;
  const log = (chart.log || state.log) && all.every(([, y]) => y > 0);
  const values = drawn.flat().concat(state.smooth > 0 ? [] : all).map(([, y]) => y).filter((y) => y !== null);
  let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
  else if (log) { const room = Math.pow(high / low, 0.04); low /= room; high *= room; }
  else { const room = (high - low) * 0.05; low = low >= 0 && low < room ? 0 : low - room; high += room; }
  const plot = frame(figure, chart, all, low, high, log);
  const clip = "clip" + figure.dataset.chart;
  const box = element("clipPath", { id: clip }, plot.svg);
  element("rect", { x: plot.left, y: plot.top - 2, width: plot.width - plot.left - plot.right, height: plot.height - plot.top - plot.bottom + 4 }, box);
  const inside = element("g", { "clip-path": `url(#${clip})` }, plot.svg);
  shown.forEach((series, i) => {
    const colour = "c" + (series.run % 8), dash = series.run >= 8 ? "5 3" : "";
    if (drawn[i] !== raw[i]) element("path", { class: "line faint " + colour, d: path(raw[i], plot.x, plot.y) }, inside);
    element("path", { class: "line " + colour, d: path(drawn[i], plot.x, plot.y), "stroke-dasharray": dash }, inside);
    if (raw[i].length === 1) element("circle", { class: "point " + colour, cx: plot.x(raw[i][0][0]), cy: plot.y(raw[i][0][1]), r: 3 }, inside);
  });
  return { plot, rows: shown.map((series, i) => ({ name: series.name, colour: series.run, points: drawn[i] })) };
}

function shares(figure, chart) {
  if (state.hidden.has(chart.series[0].run)) return null;
  const raw = chart.series.map(along);
  const plot = frame(figure, chart, raw[0], 0, 1, false);
  let below = raw[0].map(() => 0);
  raw.forEach((points, expert) => {
    const above = points.map(([, y], i) => below[i] + (y || 0));
    const up = points.map(([x], i) => plot.x(x).toFixed(1) + " " + plot.y(Math.min(1, above[i])).toFixed(1));
    const down = points.map(([x], i) => plot.x(x).toFixed(1) + " " + plot.y(Math.min(1, below[i])).toFixed(1)).reverse();
    element("path", { class: "area c" + (expert % 8), d: "M" + up.concat(down).join("L") + "Z" }, plot.svg);
    below = above;
  });
  const keys = html("div", "keys");
  chart.series.forEach((series, expert) => {
    const key = html("span");
    key.append(html("i", "dot c" + (expert % 8)), series.name);
    keys.append(key);
  });
  return { plot, keys, rows: chart.series.map((series, i) => ({ name: series.name, colour: i, points: raw[i] })) };
}

function nearest(points, x) {
  let best = null;
  for (const point of points) if (best === null || Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
  return best;
}

function hover(figure, chart, made) {
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
    for (const row of found) {
      const line = html("tr"), name = html("td");
      name.append(html("i", "dot c" + (row.colour % 8)), row.name);
      line.append(name, html("td", "number", format(row.point[1])));
      table.append(line);
    }
    const unit = state.axis === "tokens" ? "tokens " : "step ";
    tip.replaceChildren(html("div", "note", unit + format(Math.round(centre[0]))), table);
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

function draw(figure) {
  const chart = data.charts[figure.dataset.chart];
  figure.querySelectorAll("svg, .keys").forEach((old) => old.remove());
  const made = chart.kind === "shares" ? shares(figure, chart) : lines(figure, chart);
  figure.hidden = made === null;
  if (made === null) return;
  if (made.keys) figure.append(made.keys);
  figure.append(made.plot.svg);
  hover(figure, chart, made);
}

const figures = [...document.querySelectorAll("figure[data-chart]")];
function drawAll() {
  // A hidden figure has no width; all are shown first.
  figures.forEach((figure) => (figure.hidden = false));
  figures.forEach(draw);
  for (const group of document.querySelectorAll(".charts"))
    group.parentElement.hidden = [...group.children].every((figure) => figure.hidden);
}

function legend() {
  const used = new Set(data.charts.flatMap((chart) => chart.series.map((series) => series.run)));
  const place = document.getElementById("legend");
  data.runs.forEach((run, number) => {
    if (!used.has(number)) return;
    const button = html("button");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.append(html("i", "dot c" + (number % 8)), run.name);
    button.addEventListener("click", () => {
      if (!state.hidden.delete(number)) state.hidden.add(number);
      button.setAttribute("aria-pressed", String(!state.hidden.has(number)));
      document.querySelectorAll("section").forEach((section) => (section.hidden = false));
      drawAll();
    });
    place.append(button);
  });
}

if (figures.length > 0) {
  legend();
  document.getElementById("smooth").addEventListener("input", (event) => { state.smooth = +event.target.value; drawAll(); });
  document.getElementById("log").addEventListener("change", (event) => { state.log = event.target.checked; drawAll(); });
  document.getElementById("axis").addEventListener("change", (event) => { state.axis = event.target.value; drawAll(); });
  let waiting = 0;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawAll, 120); });
  drawAll();
}
