// Elements, number formats, and line charts. Text from the data only ever becomes a text node or an attribute value.

const SVG = "http://www.w3.org/2000/svg";

function create(namespace, tag, attributes, children) {
  const element = namespace ? document.createElementNS(namespace, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "style") for (const [key, item] of Object.entries(value)) element.style.setProperty(key, item);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}
const el = (tag, attributes, ...children) => create(null, tag, attributes, children);
const svg = (tag, attributes, ...children) => create(SVG, tag, attributes, children);

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const orDash = (format) => (value) => (isNumber(value) ? format(value) : "–");
const percent = orDash((value) => (100 * value).toFixed(value === 1 ? 0 : 2) + " %");
const percent0 = orDash((value) => +(100 * value).toFixed(1) + " %");
const integer = orDash((value) => Math.round(value).toLocaleString("en-US"));
const decimal = orDash((value) => (Math.abs(value) >= 1000 ? integer(value) : value.toFixed(4)));
const significant = orDash((value) => String(+value.toPrecision(4)));
const compact = orDash((value) =>
  Math.abs(value) >= 1e6 ? +(value / 1e6).toFixed(2) + "M" : Math.abs(value) >= 1e4 ? +(value / 1e3).toFixed(1) + "k" : integer(value),
);
const duration = orDash((seconds) => {
  if (seconds < 1) return (seconds * 1000).toFixed(0) + " ms";
  if (seconds < 90) return (seconds < 10 ? seconds.toFixed(1) : seconds.toFixed(0)) + " s";
  const minutes = Math.round(seconds / 60);
  if (minutes < 90) return minutes + " min";
  const hours = Math.floor(minutes / 60);
  return hours < 72 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
});
const moment = orDash((seconds) =>
  new Date(seconds * 1000).toLocaleString("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit" }),
);

// About `count` round numbers, fewer where their texts would repeat each other.
function ticks(low, high, count, format) {
  const step = 10 ** Math.floor(Math.log10((high - low) / count || 1));
  const error = (high - low) / count / step;
  const size = step * (error >= 7.5 ? 10 : error >= 3.5 ? 5 : error >= 1.5 ? 2 : 1);
  const result = [];
  for (let tick = Math.ceil(low / size - 1e-9); tick * size <= high + size * 1e-9; tick++) result.push(+(tick * size).toPrecision(12));
  const isRepeated = new Set(result.map(format)).size < result.length;
  return isRepeated && count > 0.1 ? ticks(low, high, count / 2, format) : result;
}

function range(values, floor, ceiling) {
  let low = Math.min(...values), high = Math.max(...values);
  const pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
  low = low >= 0 && low < 0.35 * high ? 0 : low - pad;
  high += pad;
  return [isNumber(floor) ? Math.max(low, floor) : low, isNumber(ceiling) ? Math.min(high, ceiling) : high];
}

function nearest(points, x) {
  let low = 0, high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle][0] < x) low = middle + 1;
    else high = middle;
  }
  return low > 0 && x - points[low - 1][0] <= points[low][0] - x ? points[low - 1] : points[low];
}

/**
 * Draw a line chart that shows its values under the pointer, and under a cursor that the arrow keys move.
 * series: [{name, points: [[x, y]], color, thin, dashed, dots}]; format, axis: of y and its ticks; floor, ceiling: limits of y.
 */
function lineChart({ title, series, format, axis, formatX, axisX, nameX = "iteration", floor, ceiling, domainX, low }) {
  series = series.filter((line) => line.points.length);
  formatX = formatX || integer;
  const xs = [...new Set(series.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
  const last = (line) => format(line.points[line.points.length - 1][1]);
  const label = `${title}. ${series.map((line) => `${line.name}: ${last(line)}`).join(", ")}. Arrow keys show values.`;
  const drawing = svg("svg", { role: "img", tabindex: "0", "aria-label": label });
  const tip = el("div", { class: "tip", role: "status" });
  const plot = el("div", { class: low ? "plot low" : "plot" }, drawing, tip);
  const color = (line) => ({ "--c": line.color });
  const key = (line) => el("i", { class: `key${line.dashed ? " dashed" : ""}${line.thin ? " thin" : ""}`, style: color(line) });
  const figure = el("figure", { class: "chart card" },
    el("figcaption", {}, el("h3", {}, title),
      series.length > 1 && el("ul", { class: "legend" }, series.map((line) => el("li", {}, key(line), line.name)))),
    plot);
  if (!xs.length) return null;
  const [bottomY, topY] = range(series.flatMap((line) => line.points.map(([, y]) => y)), floor, ceiling);
  const [firstX, lastX] = domainX || (xs.length > 1 ? [xs[0], xs[xs.length - 1]] : [xs[0] - 1, xs[0] + 1]);
  const marks = svg("g", {}), bottom = 40;
  let cursor = -1, toX, toY, width, height;

  function draw() {
    [width, height] = [plot.clientWidth, plot.clientHeight];
    if (!width) return;
    const formatY = axis || format, yTicks = ticks(bottomY, topY, Math.max(2, Math.floor(height / 56)), formatY);
    const left = 10 + 6.6 * Math.max(...yTicks.map((tick) => formatY(tick).length)), right = 12, top = 8;
    toX = (x) => left + ((x - firstX) / (lastX - firstX)) * (width - left - right);
    toY = (y) => top + (1 - (y - bottomY) / (topY - bottomY || 1)) * (height - top - bottom);
    const xTicks = ticks(firstX, lastX, Math.max(3, Math.floor(width / 90)), axisX || compact);
    drawing.replaceChildren(
      svg("g", {}, yTicks.map((tick) => [
        svg("line", { class: "gridline", x1: left, x2: width - right, y1: toY(tick), y2: toY(tick) }),
        svg("text", { x: left - 8, y: toY(tick) + 4, "text-anchor": "end" }, formatY(tick)),
      ])),
      svg("g", {}, xTicks.map((tick) => svg("text", { x: toX(tick), y: height - bottom + 18, "text-anchor": "middle" }, (axisX || compact)(tick)))),
      svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, nameX),
      svg("g", {}, series.map((line) => [
        svg("path", {
          class: `line${line.thin ? " thin" : ""}${line.dashed ? " dashed" : ""}`, style: color(line),
          d: line.points.map(([x, y], number) => `${number ? "L" : "M"}${toX(x).toFixed(1)} ${toY(y).toFixed(1)}`).join(""),
        }),
        (line.dots || line.points.length === 1) && line.points.length <= 40 &&
          line.points.map(([x, y]) => svg("circle", { class: "dot", style: color(line), cx: toX(x), cy: toY(y), r: 3.5 })),
      ])),
      marks);
    if (cursor >= 0) show(cursor);
  }

  function show(number) {
    cursor = Math.max(0, Math.min(xs.length - 1, number));
    const x = xs[cursor], values = series.map((line) => [line, nearest(line.points, x)]);
    marks.replaceChildren(
      svg("line", { class: "cursor", x1: toX(x), x2: toX(x), y1: 8, y2: height - bottom }),
      ...values.map(([line, [px, py]]) => svg("circle", { class: "dot", style: color(line), cx: toX(px), cy: toY(py), r: 4.5 })));
    tip.replaceChildren(
      el("div", { class: "x" }, `${nameX} ${formatX(x)}`),
      ...values.map(([line, [, y]]) => el("div", {}, key(line), line.name, el("b", {}, format(y)))));
    tip.style.visibility = "visible";
    const side = toX(x) + tip.offsetWidth + 16 > width ? toX(x) - tip.offsetWidth - 12 : toX(x) + 12;
    tip.style.transform = `translate(${Math.max(0, Math.min(side, width - tip.offsetWidth))}px, 6px)`;
  }

  function hide() {
    cursor = -1;
    marks.replaceChildren();
    tip.style.visibility = "hidden";
  }

  function follow(event) {
    const x = firstX + ((event.clientX - plot.getBoundingClientRect().left - toX(firstX)) / (toX(lastX) - toX(firstX))) * (lastX - firstX);
    show(xs.indexOf(nearest(xs.map((item) => [item]), x)[0]));
  }

  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", () => document.activeElement !== drawing && hide());
  drawing.addEventListener("focus", () => drawing.matches(":focus-visible") && cursor < 0 && show(xs.length - 1));
  drawing.addEventListener("blur", hide);
  drawing.addEventListener("keydown", (event) => {
    const start = cursor < 0 ? xs.length - 1 : cursor;
    const target = {
      ArrowLeft: start - 1, ArrowRight: start + 1, PageUp: start - 10, PageDown: start + 10, Home: 0, End: xs.length - 1,
    }[event.key];
    if (event.key === "Escape") hide();
    if (target === undefined) return;
    event.preventDefault();
    show(target);
  });
  new ResizeObserver(draw).observe(plot);
  return figure;
}
