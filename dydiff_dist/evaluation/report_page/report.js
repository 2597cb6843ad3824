"use strict";
/* Draws the report from the JSON in #data. Text is only ever set through textContent. */
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const HIGHER_IS_BETTER = /^(psnr|ssim|csi|pod|hss|fss|brier_skill)/;
const NO_ORDER = /^(spread|bias|share_with_event|relative_divergence_truth|blockiness_truth|coverage|width)/;
const BASELINE_DASH = { persistence: "6 4", climatology: "2 4", optical_flow: "9 3 2 3", seasonal_naive: "9 3 2 3" };

function element(tag, parent, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  if (parent) parent.append(node);
  return node;
}

function shape(tag, parent, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

function format(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2);
  return String(Number(value.toPrecision(digits)));
}

function plain(name) { return name.replaceAll("_", " "); }

/* Every line of every chart: the runs' forecasts, then the first run's baselines. */
function forecasters() {
  const runs = data.runs.map((run, index) => ({
    label: run.label, color: `var(--run${index % 4})`, dash: "", summary: run.summary, name: "forecast", isRun: true,
  }));
  const first = data.runs[0].summary;
  const baselines = Object.keys(first.scores).filter((name) => name !== "forecast").map((name) => ({
    label: plain(name), color: name in BASELINE_DASH ? `var(--${name})` : "var(--other)", dash: BASELINE_DASH[name] || "2 4", summary: first, name,
  }));
  return [...runs, ...baselines];
}
const LINES = forecasters();
const scoresOf = (line) => line.summary.scores[line.name] || {};
/* Scores of whole clips have no lead times. */
const hasLeads = (line, name) => Boolean(scoresOf(line)[name] && scoresOf(line)[name].by_lead && scoresOf(line)[name].overall !== null);

/* -- charts ------------------------------------------------------------------------------------------------------ */

function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(Number(t.toPrecision(12)));
  return found;
}

function legend(parent, series) {
  const row = element("div", parent, undefined, "legend");
  for (const line of series) {
    const item = element("span", row);
    const mark = element("i", item);
    mark.style.borderTopColor = line.color;
    if (line.dash) mark.style.borderTopStyle = line.dash.startsWith("2") ? "dotted" : "dashed";
    item.append(line.label);
  }
}

/* A line chart as wide as its parent. series: {label, color, dash, values, lower?, upper?}; x: positions; names: of them. */
function lineChart(parent, { x, series, xLabel, names = x, log = false, bars = false, marker = null, zero = false }) {
  parent.replaceChildren();
  legend(parent, series);
  const width = Math.max(260, parent.clientWidth - 16), height = 270;
  const box = { left: 58, right: width - 12, top: 8, bottom: height - 40 };
  const svg = shape("svg", parent, { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": series.map((s) => s.label).join(", ") + " by " + xLabel });
  const known = series.flatMap((s) => [...s.values, ...(s.lower || []), ...(s.upper || [])])
    .filter((v) => v !== null && Number.isFinite(v) && (!log || v > 0));
  if (!known.length) { shape("text", svg, { x: width / 2, y: height / 2, "text-anchor": "middle" }, "nothing to show"); return; }
  const scale = log ? Math.log10 : (v) => v;
  let low = Math.min(...known.map(scale)), high = Math.max(...known.map(scale));
  if (log) { low = Math.max(low, high - 10); } else if (zero || low > 0 && low < 0.5 * high) low = Math.min(0, low);
  if (high === low) { high += Math.abs(high) * 0.1 || 1; low -= Math.abs(low) * 0.1; }
  if (!log) high += (high - low) * 0.04;
  const xLow = x[0] - (bars ? 0.5 : 0), xHigh = x[x.length - 1] + (bars ? 0.5 : 0);
  const toX = (v) => box.left + (v - xLow) / (xHigh - xLow || 1) * (box.right - box.left);
  const toY = (v) => box.bottom - (Math.max(scale(v), low) - low) / (high - low) * (box.bottom - box.top);

  const yTicks = log ? ticks(low, high, 5).filter(Number.isInteger) : ticks(low, high, 5);
  for (const tick of yTicks) {
    const y = toY(log ? 10 ** tick : tick);
    shape("line", svg, { x1: box.left, x2: box.right, y1: y, y2: y, class: "grid" });
    shape("text", svg, { x: box.left - 8, y: y + 4, "text-anchor": "end" }, log ? `1e${tick}` : format(tick));
  }
  const stride = Math.max(1, Math.ceil(x.length / Math.floor((box.right - box.left) / 42)));
  x.forEach((v, index) => {
    const anchor = index === x.length - 1 && String(names[index]).length > 3 ? "end" : "middle";
    if (index % stride === 0) shape("text", svg, { x: toX(v) + (anchor === "end" ? 10 : 0), y: box.bottom + 18, "text-anchor": anchor }, names[index]);
  });
  shape("text", svg, { x: (box.left + box.right) / 2, y: height - 4, "text-anchor": "middle" }, xLabel);
  if (marker !== null) shape("line", svg, { x1: toX(marker), x2: toX(marker), y1: box.top, y2: box.bottom, stroke: "var(--faint)", "stroke-dasharray": "3 3" });

  series.forEach((line, number) => {
    const drawn = x.map((v, index) => [v, line.values[index], index])
      .filter(([, v]) => v !== null && Number.isFinite(v) && (!log || v > 0));
    if (bars) {
      const space = (box.right - box.left) / x.length, thick = space * 0.8 / series.length;
      for (const [v, value] of drawn) {
        const left = toX(v) - space * 0.4 + number * thick;
        shape("rect", svg, { x: left, width: Math.max(1, thick - 1), y: toY(value), height: Math.max(0, box.bottom - toY(value)), fill: line.color, opacity: 0.85 });
      }
      return;
    }
    if (line.lower) {
      const up = drawn.map(([v, , i]) => `${toX(v)},${toY(line.upper[i] ?? line.values[i])}`);
      const down = drawn.map(([v, , i]) => `${toX(v)},${toY(line.lower[i] ?? line.values[i])}`).reverse();
      shape("polygon", svg, { points: [...up, ...down].join(" "), fill: line.color, opacity: 0.16 });
    }
    shape("polyline", svg, { points: drawn.map(([v, value]) => `${toX(v)},${toY(value)}`).join(" "), fill: "none", stroke: line.color, "stroke-width": 2.2, "stroke-dasharray": line.dash || "none", "stroke-linejoin": "round" });
    if (drawn.length === 1) shape("circle", svg, { cx: toX(drawn[0][0]), cy: toY(drawn[0][1]), r: 4, fill: line.color });
  });
  addTip(parent, svg, { x, series, xLabel, names, width, toX, inverse: (px) => xLow + (px - box.left) / (box.right - box.left) * (xHigh - xLow) });
}

function addTip(parent, svg, { x, series, xLabel, names, width, toX, inverse }) {
  const tip = element("div", parent, undefined, "tip");
  svg.addEventListener("pointermove", (event) => {
    const bounds = svg.getBoundingClientRect();
    const position = inverse((event.clientX - bounds.left) * width / bounds.width);
    const nearest = x.reduce((best, v, index) => Math.abs(v - position) < Math.abs(x[best] - position) ? index : best, 0);
    tip.textContent = [`${xLabel} ${names[nearest]}`, ...series.map((s) => `${s.label}: ${format(s.values[nearest])}`)].join("\n");
    tip.style.visibility = "visible";
    const left = svg.offsetLeft + toX(x[nearest]) * bounds.width / width;
    tip.style.top = "40px";
    tip.style.left = `${Math.max(4, Math.min(left + 12, parent.clientWidth - tip.offsetWidth - 4))}px`;
  });
  svg.addEventListener("pointerleave", () => { tip.style.visibility = "hidden"; });
}

/* -- sections ---------------------------------------------------------------------------------------------------- */

function drawHeader() {
  const protocol = data.runs[0].summary.protocol;
  byId("title").textContent = data.title;
  document.title = data.title;
  const members = [...new Set(data.runs.map((run) => run.summary.protocol.num_members))].join(" and ");
  byId("subtitle").textContent = `${protocol.num_cases} cases, ${members} members, ${data.runs[0].summary.scores.forecast.crps.by_lead.length} forecast frames after ${protocol.num_history_frames} given ones`;
  byId("bands").textContent = `Bands are intervals: ${protocol.intervals}.`;
  for (const text of data.warnings) element("p", byId("warnings"), text);
  if (data.runs.length > 1) { drawHeadlineTable(); return; }
  for (const [text, value] of headline(data.runs[0])) {
    const box = element("div", byId("tiles"), undefined, "tile");
    element("b", box, value);
    element("span", box, text);
  }
}

/* The few numbers that a reader wants first, by what they are. */
function headline(run) {
  const scores = run.summary.scores.forecast;
  const found = [];
  if (scores.crps_sum) found.push(["CRPS-sum", format(scores.crps_sum.overall)]);
  found.push(["CRPS", format(scores.crps.overall)]);
  for (const [name, ratio] of Object.entries(run.summary.skill.crps)) found.push([`of the CRPS of ${plain(name)}`, ratio === null ? "–" : ratio.toFixed(3)]);
  if (scores.csi_mean && scores.csi_mean.overall !== null) found.push(["mean CSI", format(scores.csi_mean.overall)]);
  if (scores.fvd && scores.fvd.overall !== null) found.push(["FVD", format(scores.fvd.overall)]);
  const spread = scores.spread_skill_ratio;
  if (spread && spread.overall !== null) found.push(["spread over error (1 is ideal)", spread.overall.toFixed(2)]);
  return found;
}

const percent = (share) => `${share > 0 ? "+" : ""}${(100 * share).toFixed(1)}`;

/* How far a run's first score is above (+) or below (-) the first run's, with its interval, in percent. */
function againstFirst(index) {
  const shown = data.comparisons[index - 1];
  const score = shown && ["crps_sum", "crps"].map((name) => shown.scores.find((s) => s.score === name)).find(Boolean);
  if (!score) return null;
  const [middle, low, high] = [score.difference, score.lower, score.upper].map((value) => percent(value / score.first));
  const verdict = score.is_significant ? (score.difference < 0 ? "good" : "bad") : "";
  return { text: `${middle}\u00a0% [${low},\u00a0${high}]`, verdict };
}

/* Several runs: one column each, which fits a phone. */
function drawHeadlineTable() {
  const columns = data.runs.map((run) => new Map(headline(run)));
  const labels = [...new Set(columns.flatMap((column) => [...column.keys()]))];
  const box = byId("tiles");
  box.className = "scroll";
  const table = element("table", box), head = element("tr", table);
  element("th", head, "");
  data.runs.forEach((run, index) => { element("th", head, run.label).style.borderBottom = `4px solid var(--run${index % 4})`; });
  const addRow = (label, cells) => {
    const row = element("tr", table);
    element("td", row, label);
    for (const { text, verdict = "" } of cells) element("td", row, text, `headline ${verdict}`);
  };
  const differences = data.runs.map((_, index) => againstFirst(index) || { text: "–" });
  labels.forEach((label, place) => {
    addRow(label, columns.map((column) => ({ text: column.get(label) || "–" })));
    if (place === 0 && differences.some((found) => found.verdict !== undefined)) addRow(`${label} against ${data.runs[0].label}`, differences);
  });
}

const images = new Map();
function imageOf(source) {
  if (!images.has(source)) {
    const image = new Image();
    image.addEventListener("load", drawFrame);
    image.src = source;
    images.set(source, image);
  }
  return images.get(source);
}

const currentCase = () => data.cases[Number(byId("case").value)];

function showCase() {
  const shown = currentCase();
  byId("panels").replaceChildren();
  const truth = shown.rows.filter((row) => row.run === null);
  for (const label of data.runs.length > 1 ? data.runs.map((run) => run.label) : [null]) {
    if (label !== null) element("h3", byId("panels"), label);
    const own = shown.rows.filter((row) => row.run !== null && (label === null || row.run === label));
    showPanels(element("div", byId("panels"), undefined, "panels"), shown, [...truth, ...own]);
  }
  byId("lead").max = shown.num_frames - 1;
  byId("lead").value = Math.min(shown.num_frames - 1, Math.max(Number(byId("lead").value), 0));
  drawFrame();
}

function showPanels(parent, shown, rows) {
  for (const row of rows) {
    const figure = element("figure", parent);
    element("figcaption", figure, row.label).title = row.label;
    const canvas = element("canvas", figure);
    canvas.width = shown.width;
    canvas.height = shown.height;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", row.run === null ? row.label : `${row.run}: ${row.label}`);
    canvas.source = row.src;
  }
}

function drawFrame() {
  if (!data.cases.length) return;
  const shown = currentCase(), frame = Number(byId("lead").value), lead = frame - shown.num_given + 1;
  byId("lead-label").textContent = lead > 0 ? `forecast +${lead}` : `given ${lead}`;
  [...byId("panels").querySelectorAll("canvas")].forEach((canvas) => {
    const image = imageOf(canvas.source);
    if (image.complete && image.naturalWidth) canvas.getContext("2d").drawImage(image, frame * shown.width, 0, shown.width, shown.height, 0, 0, shown.width, shown.height);
  });
}

function drawSeries() {
  const shown = data.series[Number(byId("series-case").value)];
  byId("series").replaceChildren();
  // all boxes first: a chart takes the width that its box has once all of them stand
  const charts = shown.channels.map((channel) => {
    const box = element("div", byId("series"));
    element("h3", box, channel.name);
    return element("div", box, undefined, "chart");
  });
  shown.channels.forEach((channel, place) => {
    const x = channel.actual.map((_, index) => index - shown.num_given + 1);
    const after = (values) => [...Array(shown.num_given).fill(null), ...values];
    const lines = channel.runs.map((run, index) => ({
      label: data.runs[index].label, color: `var(--run${index % 4})`, dash: "", values: after(run.median), lower: after(run.lower), upper: after(run.upper),
    }));
    const truth = { label: "truth", color: "var(--truth)", dash: "", values: channel.actual };
    lineChart(charts[place], { x, series: [...lines, truth], xLabel: "time (frames)", marker: 0 });
  });
}

let timer = null;
function togglePlay() {
  const button = byId("play");
  if (timer) { clearInterval(timer); timer = null; }
  else timer = setInterval(() => { byId("lead").value = (Number(byId("lead").value) + 1) % currentCase().num_frames; drawFrame(); drawCurve(); }, 260);
  button.textContent = timer ? "Pause" : "Play";
  button.setAttribute("aria-pressed", String(Boolean(timer)));
}

/* A score by lead time of every line that has it. */
const linesOf = (score) => LINES.filter((line) => hasLeads(line, score)).map((line) => {
  const found = scoresOf(line)[score];
  return { ...line, values: found.by_lead, lower: found.interval_95[0], upper: found.interval_95[1] };
});

function drawCurve() {
  const series = linesOf(byId("score").value);
  const count = series.length ? series[0].values.length : 0;
  const lead = data.cases.length ? Number(byId("lead").value) - currentCase().num_given + 1 : 0;
  const x = Array.from({ length: count }, (_, index) => index + 1);
  lineChart(byId("curve"), { x, series, xLabel: "lead time (frames)", marker: lead > 0 ? lead : null });
  const table = byId("lead-table");
  table.replaceChildren();
  const head = element("tr", table);
  for (const label of ["lead", ...series.map((s) => s.label)]) element("th", head, label);
  x.forEach((lead, index) => { const row = element("tr", table); element("td", row, `+${lead}`); for (const s of series) element("td", row, format(s.values[index])); });
}

/* A profile over all lead times, or at one, counted from 0. */
function profile(line, name, lead = null) {
  const found = (line.summary.profiles[line.name] || {})[name];
  return !found ? null : lead === null ? found.overall : found.by_lead[lead];
}

const RUNS = LINES.filter((line) => line.isRun);
const GUIDE = { label: "right", color: "var(--truth)", dash: "6 4" };
const numbers = (count, first = 0) => Array.from({ length: count }, (_, index) => index + first);

function fillSelect(id, options, onChange) {
  for (const [value, text] of options) element("option", byId(id), text).value = value;
  byId(id).addEventListener("change", onChange);
}

function prepareCalibration() {
  const first = scoresOf(LINES[0]), names = Object.keys(first).filter((name) => /^coverage_/.test(name) && first[name].overall !== null);
  byId("calibration-section").hidden = !names.length;
  fillSelect("level", names.map((name) => [name, name === "coverage_range" ? "all members" : `${name.slice(9)} %`]), drawCoverage);
  if (names.includes("coverage_80")) byId("level").value = "coverage_80";
  data.runs.forEach((run, index) => { if (data.calibration[index]) element("p", byId("calibration-words"), data.runs.length > 1 ? `${run.label}: ${data.calibration[index]}` : data.calibration[index]); });
  const suites = data.runs[0].summary.protocol.scores || {};
  const events = (suites.calibration || {}).events || { thresholds: [], rule: "" };
  fillSelect("event", events.thresholds.map((threshold, index) => [index, `${events.rule} ${threshold}`]), drawReliability);
  const bins = profile(LINES[0], "rank_histogram_by_intensity") || [];
  const kinds = [["rank_histogram", "ranks"], ["pit_histogram", "shares (PIT)"], ...bins.map((_, index) => [`${index}`, `ranks, forecast values ${index + 1} of ${bins.length}`])];
  fillSelect("rank-kind", kinds.filter(([name]) => /^\d/.test(name) || profile(LINES[0], name)), drawRanks);
  fillSelect("rank-lead", [["", "all lead times"], ...first.crps.by_lead.map((_, index) => [index, `+${index + 1}`])], drawRanks);
}

function drawCoverage() {
  const name = byId("level").value, series = linesOf(name);
  if (!series.length) return;
  const members = data.runs[0].summary.protocol.num_members, count = series[0].values.length;
  const right = name === "coverage_range" ? (members - 1) / (members + 1) : Number(name.slice(9)) / 100;
  lineChart(byId("coverage"), { x: numbers(count, 1), series: [...series, { ...GUIDE, values: Array(count).fill(right) }], xLabel: "lead time (frames)" });
}

function drawSpreadSkill() {
  const shown = RUNS.filter((line) => profile(line, "spread_skill_bins"));
  byId("spread-skill").parentElement.hidden = !shown.length;
  if (!shown.length) return;
  const names = ["< 0.05", "< 0.1", "< 0.2", "< 0.4", "< 0.8", "more"];
  const series = shown.flatMap((line) => [["error", 2, ""], ["spread", 1, "6 4"]].map(([what, column, dash]) => ({
    ...line, label: `${line.label}: ${what}`, dash, values: profile(line, "spread_skill_bins").map((bin) => bin[column]),
  })));
  lineChart(byId("spread-skill"), { x: numbers(names.length), names, series, xLabel: "spread", zero: true });
}

function drawReliability() {
  const shown = RUNS.filter((line) => profile(line, "reliability"));
  byId("reliability").parentElement.hidden = !shown.length;
  if (!shown.length) return;
  const x = numbers(11).map((index) => index / 10);
  const series = shown.map((line) => ({ ...line, values: profile(line, "reliability")[Number(byId("event").value)].map((bin) => bin[2]) }));
  lineChart(byId("reliability"), { x, series: [...series, { ...GUIDE, values: x }], xLabel: "forecast probability", zero: true });
}

function drawRanks() {
  const kind = byId("rank-kind").value, lead = byId("rank-lead").value === "" ? null : Number(byId("rank-lead").value);
  const histogram = (line) => /^\d/.test(kind) ? (profile(line, "rank_histogram_by_intensity", lead) || [])[Number(kind)] : profile(line, kind, lead);
  const ranked = RUNS.filter(histogram).map((line) => ({ ...line, values: histogram(line) }));
  byId("ranks").parentElement.hidden = !ranked.length;
  if (!ranked.length) return;
  const count = Math.max(...ranked.map((line) => line.values.length)), isShare = kind === "pit_histogram";
  const names = numbers(count).map((index) => isShare ? `${index * 10} %` : index);
  lineChart(byId("ranks"), { x: numbers(count), names, series: ranked, xLabel: isShare ? "of the forecast distribution below the truth" : "members below the truth", bars: true, zero: true });
}

function drawProfiles() {
  drawCoverage();
  drawSpreadSkill();
  drawReliability();
  drawRanks();
  const runs = RUNS.filter((line) => profile(line, "spectrum_members"));
  if (runs.length) {
    const lines = runs.flatMap((line) => [
      { ...line, label: `${line.label}: members`, values: profile(line, "spectrum_members").slice(1) },
      { ...line, label: `${line.label}: ensemble mean`, dash: "6 4", values: profile(line, "spectrum_mean").slice(1) },
    ]);
    const truth = { label: "truth", color: "var(--truth)", dash: "", values: profile(runs[0], "spectrum_truth").slice(1) };
    lineChart(byId("spectrum"), { x: truth.values.map((_, i) => i + 1), series: [truth, ...lines], xLabel: "wavenumber", log: true });
  }
  byId("spectrum").parentElement.hidden = !runs.length;
}

function drawScoreTable() {
  const table = byId("score-table");
  const head = element("tr", table);
  for (const label of ["", ...LINES.map((line) => line.label)]) element("th", head, label);
  for (const [group, names] of Object.entries(data.groups)) {
    const present = names.filter((name) => LINES.some((line) => scoresOf(line)[name] && scoresOf(line)[name].overall !== null));
    if (!present.length) continue;
    element("td", element("tr", table, undefined, "group"), group);
    for (const name of present) {
      const row = element("tr", table);
      const higher = HIGHER_IS_BETTER.test(name);
      element("td", row, higher ? `${name} ↑` : name);
      const values = LINES.map((line) => scoresOf(line)[name] ? scoresOf(line)[name].overall : null);
      const known = values.filter((v) => v !== null);
      const best = NO_ORDER.test(name) ? null : higher ? Math.max(...known) : Math.min(...known);
      for (const value of values) element(value !== null && value === best ? "th" : "td", row, format(value)).style.color = "var(--ink)";
    }
  }
}

function drawComparison() {
  const table = byId("comparison-table"), shown = data.comparisons[Number(byId("comparison").value)];
  table.replaceChildren();
  byId("caution").textContent = shown.caution && `Here ${shown.caution}.`;
  if (shown.objections.length) {
    for (const text of [`${shown.first} and ${shown.second} are not compared`, ...shown.objections]) element("td", element("tr", table), text);
    return;
  }
  const head = element("tr", table);
  for (const label of ["", "difference", "95 % interval", "", shown.first, shown.second]) element("th", head, label);
  for (const score of shown.scores) {
    const row = element("tr", table), higher = HIGHER_IS_BETTER.test(score.score);
    element("td", row, higher ? `${score.score} ↑` : score.score);
    const better = higher === score.difference > 0;
    const known = score.is_significant && !NO_ORDER.test(score.score);
    element("td", row, (score.difference > 0 ? "+" : "") + format(score.difference, 3), known ? (better ? "good" : "bad") : "");
    element("td", row, `${format(score.lower, 2)} … ${format(score.upper, 2)}`);
    element("td", row, known ? (better ? "better" : "worse") : "");
    element("td", row, format(score.first));
    element("td", row, format(score.second));
  }
}

function drawProtocols() {
  for (const run of data.runs) {
    const details = element("details", byId("protocols"));
    element("summary", details, run.label);
    element("p", details, `Intervals: ${run.summary.protocol.intervals}.`, "note");
    element("pre", details, JSON.stringify(run.summary.protocol, null, 2));
    const errors = Object.values(run.summary.errors);
    if (errors.length) element("pre", details, `not scored:\n${errors.join("\n")}`);
  }
}

function start() {
  drawHeader();
  data.cases.forEach((shown, index) => { element("option", byId("case"), shown.key).value = index; });
  byId("cases-section").hidden = !data.cases.length;
  for (const [group, names] of Object.entries(data.groups)) {
    const box = element("optgroup", byId("score"));
    box.label = group;
    for (const name of names) if (hasLeads(LINES[0], name)) element("option", box, name).value = name;
  }
  byId("comparison-section").hidden = !data.comparisons.length;
  data.comparisons.forEach((shown, index) => { element("option", byId("comparison"), `${shown.second} against ${shown.first}`).value = index; });
  if (data.comparisons.length) { drawComparison(); byId("comparison").addEventListener("change", drawComparison); }
  if (hasLeads(LINES[0], "crps_sum")) byId("score").value = "crps_sum";
  byId("case").addEventListener("change", showCase);
  byId("series-section").hidden = !data.series.length;
  data.series.forEach((shown, index) => { element("option", byId("series-case"), shown.key).value = index; });
  byId("series-case").addEventListener("change", drawSeries);
  if (data.series.length) drawSeries();
  byId("lead").addEventListener("input", () => { drawFrame(); drawCurve(); });
  byId("play").addEventListener("click", togglePlay);
  byId("score").addEventListener("change", drawCurve);
  window.addEventListener("resize", () => { drawCurve(); drawProfiles(); if (data.series.length) drawSeries(); });
  if (data.cases.length) { byId("lead").value = data.cases[0].num_frames; showCase(); byId("lead").value = Math.floor((data.cases[0].num_frames + data.cases[0].num_given) / 2); drawFrame(); }
  drawCurve();
  prepareCalibration();
  drawProfiles();
  drawScoreTable();
  drawProtocols();
}
start();
