// The sections of the page about one run. Each function takes the data of a run and returns elements, or null without data.

const section = (id, title, note, ...content) => {
  content = content.flat(Infinity).filter(Boolean);
  if (!content.length) return null;
  return el("section", { id, "aria-labelledby": `${id}-title` },
    el("div", { class: "head" }, el("h2", { id: `${id}-title` }, title), note && el("p", { class: "note" }, note)), content);
};
// A region that scrolls sideways. Its edges are shaded where there is more to see.
const scrolling = (label, ...content) => el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, content);
const table = (head, rows, numeric = []) => scrolling(head.join(", "),
  el("table", {}, el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col", class: numeric.includes(name) ? "num" : null }, name)))), el("tbody", {}, rows)));
const grid = (kind, ...children) => children.some(Boolean) && el("div", { class: kind }, children);
const className = (run, label) => (run.classes[label] ? String(run.classes[label].name) || "(no name)" : `class ${label}`);
const plural = (count, word) => `${integer(count)} ${word}${count === 1 ? "" : word.endsWith("s") ? "es" : "s"}`;
const are = (count) => (count === 1 ? "is" : "are");

const KINDS = {
  train: "training", test: "validation", test_ema: "averaged weights", test_bnps: "result", test_ema_bnps: "averaged result",
  test_best_bnps: "best",
};
const interval = (run) => (run.interval ? `${percent(run.interval[0])} to ${percent(run.interval[1])}` : "–");
const bestOf = (run) => {
  const rows = run.validations.filter((row) => isNumber(row.top1_error));
  return rows.reduce((best, row) => (!best || row.top1_error < best.top1_error ? row : best), null);
};

function resultSection(run) {
  const { summary, speed } = run, best = bestOf(run);
  const accuracy = isNumber(summary.top1) ? summary.top1 : best ? 1 - best.top1_error : null;
  const share = run.total_iters ? Math.min(1, run.iteration / run.total_iters) : 0;
  const isOver = run.state === "finished";
  const rest = (run.total_iters - run.iteration) * speed.iteration_time;
  const about = summary.final
    ? `of ${plural(summary.images, "validation image")} ${are(summary.images)} classified correctly by ${[run.validations.length && "the best weights", summary.weights].filter(Boolean).join(", ")}.`
    : isNumber(summary.images)
      ? `of ${plural(summary.images, "validation image")} ${are(summary.images)} classified correctly after iteration ${integer(summary.iteration)}.`
      : accuracy === null ? "There is no validation result yet." : "of the validation images are classified correctly.";
  const tiles = [
    ["Top-5 accuracy", percent, summary.top5], ["Loss", decimal, summary.loss], ["Balanced accuracy", percent, summary.balanced_accuracy],
    ["Macro F1", decimal, summary.macro_f1], ["Calibration error", percent, summary.calibration_error],
    ["Best validation", percent, best && 1 - best.top1_error, best && `iteration ${integer(best.iteration)}`],
    ["Training time", duration, speed.duration || null], ["Images per second", integer, speed.images_per_second],
    ["Waiting for images", percent0, speed.waiting],
  ].filter(([, , value]) => isNumber(value));
  return el("section", { id: "result", class: "hero", "aria-label": "Result" },
    el("div", { class: "title" }, el("h1", {}, run.name), el("span", { class: `pill ${run.state}` }, run.state),
      el("span", { class: "muted small" }, [
        run.options_size, run.classes.length && plural(run.classes.length, "class"),
        run.total_iters && `${integer(run.iteration)} of ${integer(run.total_iters)} iterations`,
        !isOver && rest > 0 && run.state === "running" && `about ${duration(rest)} left`,
      ].filter(Boolean).join(" · "))),
    run.reason && el("p", { class: `reason ${run.state}` }, run.state === "failed" ? el("b", {}, "Ended by an error: ") : null, run.reason),
    el("div", { class: "headline" },
      accuracy !== null && el("div", { class: "big" }, (100 * accuracy).toFixed(accuracy === 1 ? 0 : 2), el("span", { class: "unit" }, "%")),
      el("p", { class: "muted" }, about, run.interval && ` 95 % interval: ${interval(run)}.`)),
    !isOver && share > 0 && el("div", { class: "progress", role: "progressbar", "aria-label": "progress", "aria-valuenow": Math.round(100 * share), "aria-valuemin": 0, "aria-valuemax": 100 },
      el("div", { style: { width: `${100 * share}%` } })),
    tiles.length > 0 && el("dl", { class: "tiles" }, tiles.map(([name, format, value, more]) =>
      el("div", { class: "tile" }, el("dt", {}, name), el("dd", {}, format(value), more && el("small", {}, more))))));
}

function curvesSection(run) {
  const points = (kind, name) => (run.curves[kind] && run.curves[kind][name]) || [];
  const inverted = (list) => list.map(([x, y]) => [x, 1 - y]);
  const lines = (name, map, training) => [
    { name: training, points: map(points("train", name)), color: "var(--faint)", thin: true },
    { name: KINDS.test_ema, points: map(points("test_ema", name)), color: "var(--s1)", dots: true, dashed: true },
    { name: KINDS.test, points: map(points("test", name)), color: "var(--accent)", dots: true },
  ];
  const single = (title, name, format, options) => lineChart({
    title, series: [{ name: title.toLowerCase(), points: points("train", name), color: "var(--accent)", thin: points("train", name).length > 200 }], format, low: true, ...options,
  });
  return section("curves", "Learning curves", "Training accuracy is measured on augmented images while the weights change, and may lie below that of validation. The training loss and the gradient norm are those of single batches.",
    grid("grid2",
      lineChart({ title: "Accuracy", series: lines("top1_error", inverted, KINDS.train), format: percent, axis: percent0, ceiling: 1, floor: 0 }),
      lineChart({ title: "Loss", series: lines("loss", (list) => list, "training, single batches"), format: decimal, axis: significant, floor: 0 })),
    grid("grid3",
      single("Learning rate", "learning_rate", significant, { floor: 0 }),
      single("Images per second", "images_per_second", integer, { floor: 0, axis: compact }),
      single("Waiting for images", "waiting", percent, { floor: 0, axis: percent0 }),
      single("Gradient norm", "grad_norm", significant, { floor: 0 }),
      single("Memory in MB", "memory_mb", integer, { floor: 0, axis: compact })));
}

function imageGrid(run, rows) {
  return el("ul", { class: "images" }, rows.map(([name, label, prediction, probability, ofLabel, source]) => {
    const isRight = label === prediction;
    const picture = source
      ? el("img", { src: source, alt: `image of ${className(run, label)}`, class: source.startsWith("data:image/png") ? "tiny" : null })
      : el("span", {}, "no preview");
    return el("li", { title: name },
      el("div", { class: "frame" }, picture, el("b", {}, percent0(probability))),
      el("div", { class: isRight ? "right" : "wrong" }, `${isRight ? "✓" : "✗"} ${className(run, prediction)}`),
      el("div", { class: "muted" }, isRight ? "correct" : `is ${className(run, label)} (${percent0(ofLabel)})`),
      el("div", { class: "file" }, el("bdi", {}, name)));
  }));
}

function confusionSection(run) {
  const size = run.classes.length;
  if (!size || !run.confusion.length) return null;
  const mistakes = run.confusion.filter(([label, prediction]) => label !== prediction);
  const detail = el("div", { class: "card detail", "aria-live": "polite" });
  const listed = mistakes.slice(0, 40);
  const buttons = listed.map(([label, prediction, count]) => el("button", { type: "button", "aria-pressed": "false", click: () => select(label, prediction) },
    el("span", {}, className(run, label), el("span", { class: "arrow" }, "→"), className(run, prediction)), el("b", {}, integer(count))));
  const matrix = size <= MAX_MATRIX ? cellMatrix(run, (label, prediction) => select(label, prediction)) : overviewMatrix(run, (label, prediction) => select(label, prediction));

  function select(label, prediction) {
    const count = matrix.count(label, prediction), support = run.classes[label].support;
    const rows = run.images.filter(([, l, p]) => l === label && p === prediction);
    matrix.mark(label, prediction);
    buttons.forEach((button, number) => button.setAttribute("aria-pressed", String(listed[number][0] === label && listed[number][1] === prediction)));
    const hidden = count - Math.min(rows.length, 8);
    const note = hidden > 0 ? (rows.length ? `and ${integer(hidden)} more in predictions.csv` : "The images are listed in predictions.csv.") : count ? "" : "No such image.";
    detail.replaceChildren(
      el("h3", {}, className(run, label), label === prediction ? " recognized" : [el("span", { class: "arrow" }, "→"), className(run, prediction)]),
      el("p", { class: "muted small" }, `${integer(count)} of ${plural(support, "image")} of ${className(run, label)}${support ? ` (${percent0(count / support)})` : ""}` +
        (count < 2 ? "" : label === prediction ? ", the least certain first" : ", the most confident first")),
      imageGrid(run, rows.slice(0, 8)), el("p", { class: "note" }, note));
  }
  const [label, prediction] = mistakes[0] || run.confusion[0];
  select(label, prediction);
  return section("confusion", "Confusion", "Rows are true classes, columns are predictions. Select a cell to see its images; arrow keys move between cells.",
    el("div", { class: "confusion" },
      el("div", { class: "card" }, el("div", { class: "scroll" }, matrix.element), el("p", { class: "axis" }, "↓ true class, → predicted class")),
      el("div", {}, detail, listed.length > 0 && el("div", { class: "card", style: { "margin-top": "20px" } },
        el("h3", {}, "Most frequent confusions"), el("ol", { class: "pairs" }, buttons.map((button) => el("li", {}, button)))))));
}

function mistakesSection(run) {
  const rows = (name) => run[name].map((number) => run.images[number]);
  return [
    section("mistakes", "Worst mistakes", "Look here for wrong labels: the images whose label has the lowest probability come first. Below each image is the prediction, then the label with its probability.",
      run.mistakes.length > 0 && imageGrid(run, rows("mistakes"))),
    section("uncertain", "Least certain images", "The predictions with the lowest probability, right or wrong.",
      run.uncertain.length > 0 && imageGrid(run, rows("uncertain"))),
  ];
}

function badImagesSection(run) {
  const rows = run.bad_images.map(([split, name, reason]) => el("tr", {}, el("td", {}, split), el("td", { class: "wrap" }, name), el("td", { class: "wrap" }, reason)));
  const more = run.bad_image_count > rows.length ? `The first ${rows.length} of ${integer(run.bad_image_count)}; bad_images.csv lists all.` : "They cannot be decoded.";
  return section("left-out", "Images left out", more, rows.length > 0 && el("div", { class: "card flush" }, table(["Split", "Image", "Reason"], rows)));
}

function calibrationSection(run) {
  if (!run.calibration.length) return null;
  const ideal = run.calibration.map(([x]) => [x, x]);
  const counts = run.calibration.map(([x, , count]) => [x, count]);
  const common = { formatX: percent0, axisX: percent0, nameX: "probability", domainX: [0, 1] };
  const error = isNumber(run.summary.calibration_error) ? ` The expected calibration error is ${percent(run.summary.calibration_error)}.` : "";
  return section("calibration", "Calibration", `Of the predictions with a probability of 80\u00a0%, 80\u00a0% should be right.${error}`,
    el("div", { class: "grid2" },
      lineChart({
        title: "Fraction right by probability", format: percent, axis: percent0, floor: 0, ceiling: 1, ...common,
        series: [{ name: "ideal", points: ideal, color: "var(--faint)", dashed: true, thin: true }, { name: "this model", points: run.calibration.map(([x, y]) => [x, y]), color: "var(--accent)", dots: true }],
      }),
      lineChart({ title: "Images by probability", format: integer, axis: compact, floor: 0, ...common, series: [{ name: "images", points: counts, color: "var(--accent)", dots: true }] })));
}

function classesSection(run) {
  if (!run.classes.length) return null;
  const confused = new Map();
  for (const [label, prediction, count] of run.confusion) if (label !== prediction && !confused.has(label)) confused.set(label, [prediction, count]);
  const train = run.train_counts || [], counts = train.length ? train : run.classes.map((entry) => entry.support);
  const positive = counts.filter((count) => count > 0), largest = Math.max(...counts);
  const bar = (share) => el("span", { class: "bar", "aria-hidden": "true" }, el("i", { style: { width: `${100 * (share || 0)}%` } }));
  const columns = [
    ["Class", (entry) => String(entry.name), (entry) => String(entry.name), ""],
    ["Recall", (entry) => entry.recall, (entry) => [percent0(entry.recall), bar(entry.recall)], "num"],
    ["Precision", (entry) => entry.precision, (entry) => percent0(entry.precision), "num"],
    ["F1", (entry) => entry.f1, (entry) => percent0(entry.f1), "num"],
    train.length && ["Training images", (entry) => train[entry.label], (entry) => [integer(train[entry.label]), bar(train[entry.label] / largest)], "num"],
    ["Validation images", (entry) => entry.support, (entry) => integer(entry.support), "num"],
    ["Most often taken for", (entry) => (confused.get(entry.label) || [0, 0])[1], (entry) => (confused.has(entry.label) ? `${className(run, confused.get(entry.label)[0])} (${integer(confused.get(entry.label)[1])})` : "–"), "wrap"],
  ].filter(Boolean);
  const entries = run.classes.map((entry, label) => ({ ...entry, label }));
  const body = el("tbody", {}), more = el("button", { type: "button", class: "button", click: () => { shown = Infinity; fill(); } });
  const search = el("input", { type: "search", placeholder: "Find a class", "aria-label": "Find a class", input: () => fill() });
  let order = 1, ascending = true, shown = 20;
  const heads = columns.map(([name, , , kind], number) => el("th", { scope: "col", class: kind || null }, el("button", { type: "button", click: () => { ascending = order === number ? !ascending : number === 0 || number > 0; order = number; fill(); } }, name)));

  function fill() {
    const [, value] = columns[order], words = search.value.toLowerCase();
    const rows = entries.filter((entry) => String(entry.name).toLowerCase().includes(words));
    const missing = (x) => x === null || x === undefined;
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      return (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y) * (ascending ? 1 : -1);
    });
    heads.forEach((head, number) => (number === order ? head.setAttribute("aria-sort", ascending ? "ascending" : "descending") : head.removeAttribute("aria-sort")));
    body.replaceChildren(...rows.slice(0, shown).map((entry) => el("tr", {}, columns.map(([, , cell, kind], number) =>
      number ? el("td", { class: kind || null }, cell(entry)) : el("th", { scope: "row", title: String(entry.name) }, cell(entry))))));
    more.textContent = `Show all ${integer(rows.length)}`;
    more.style.display = rows.length > shown ? "" : "none";
  }
  fill();
  const note = positive.length
    ? `${plural(run.classes.length, "class")}, ${Math.min(...positive) < largest ? `${integer(Math.min(...positive))} to ` : ""}${plural(largest, `${train.length ? "training" : "validation"} image`)} each` +
      (largest >= 10 * Math.min(...positive) ? "; the largest has ten times as many images as the smallest, or more: see balanced sampling and class weights." : ".")
    : "";
  return section("classes", "Classes", note, entries.length > 20 && el("div", { class: "toolbar" }, search),
    el("div", { class: "card flush" }, scrolling("Accuracy by class", el("table", {}, el("thead", {}, el("tr", {}, heads)), body))),
    el("div", { class: "toolbar", style: { "margin-top": "12px" } }, more));
}

function optionsSection(run) {
  const all = Object.entries(run.all_options);
  if (!all.length) return null;
  const rows = run.options.map(([name, value, published]) => el("tr", {}, el("th", { scope: "row", class: "mono" }, name), el("td", { class: "wrap" }, value || "–"), el("td", { class: "wrap muted" }, published || "–")));
  return section("options", "Options", rows.length ? "What differs from the published recipe." : "The published recipe, without changes.",
    rows.length > 0 && el("div", { class: "card flush" }, table(["Option", "This run", "Published recipe"], rows)),
    el("details", {}, el("summary", {}, `All ${all.length} options`), el("div", { class: "card flush" },
      table(["Option", "Value"], all.map(([name, value]) => el("tr", {}, el("th", { scope: "row", class: "mono" }, name), el("td", { class: "wrap" }, value || "–")))))));
}

const facts = (pairs) => el("dl", { class: "facts" }, pairs.filter(([, value]) => value).map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));

function runSection(run) {
  const { environment, sessions, speed } = run, resumes = sessions.slice(1).filter((session) => session.first > 0);
  const repeated = resumes.reduce((sum, session) => sum + session.repeated, 0), pause = resumes.reduce((sum, session) => sum + session.pause, 0);
  const cost = resumes.length
    ? `${plural(resumes.length, "interruption")}: ${plural(repeated, "iteration")} performed again${speed.iteration_time && repeated ? ` (${duration(repeated * speed.iteration_time)})` : ""}, ${duration(pause)} without training.`
    : sessions.length ? "Never interrupted." : "";
  const rows = sessions.map((session, number) => el("tr", {}, el("td", { class: "num" }, number + 1), el("td", {}, moment(session.start)), el("td", { class: "num" }, duration(session.end - session.start)),
    el("td", { class: "num" }, `${integer(session.first)} – ${integer(session.last)}`), el("td", { class: "num" }, integer(session.repeated)), el("td", { class: "wrap" }, session.reason || (number === sessions.length - 1 && run.state === "running" ? "running" : "killed, or no sign of life"))));
  const hardware = facts([
    ["Device", environment.device], ["Processor", environment.processor && `${environment.processor}${environment.cores ? `, ${environment.cores} cores` : ""}`],
    ["Host", environment.host], ["System", environment.platform],
    ["Software", ["python", "torch", "numpy", "opencv", "timm", "shufflenetv2"].filter((name) => environment[name]).map((name) => `${name} ${environment[name]}`).join(", ")],
  ]);
  const times = facts([
    ["Training time", speed.duration ? duration(speed.duration) : ""], ["of which validation", speed.validation_time ? duration(speed.validation_time) : ""],
    ["Iteration", isNumber(speed.iteration_time) ? `${duration(speed.iteration_time)}, of which ${percent0(speed.waiting)} waiting for images` : ""],
    ["Throughput", isNumber(speed.images_per_second) ? `${integer(speed.images_per_second)} images per second` : ""],
    ["Peak memory", isNumber(speed.memory_mb) ? `${integer(speed.memory_mb)} MB` : ""],
  ]);
  const cards = [["Hardware and software", hardware], ["Time", times]].filter(([, list]) => list.children.length);
  return section("run", "Run", cost,
    cards.length > 0 && el("div", { class: "grid2" }, cards.map(([title, list]) => el("div", { class: "card" }, el("h3", { style: { "margin-bottom": "12px" } }, title), list))),
    rows.length > 0 && el("div", { class: "card flush", style: { "margin-top": "20px" } }, table(["Session", "Start", "Duration", "Iterations", "Repeated", "End"], rows, ["Session", "Duration", "Iterations", "Repeated"])),
    run.command.length > 0 && el("details", {}, el("summary", {}, "Command"), el("div", { class: "card flush" }, el("pre", { tabindex: "0" }, run.command.join(" ")))));
}

function modelSection(run) {
  if (!run.model && !run.layers) return null;
  return section("model", "Model", "", el("p", {}, run.model), run.layers && el("details", {}, el("summary", {}, "Layers"),
    el("div", { class: "card flush" }, el("pre", { tabindex: "0", role: "region", "aria-label": "Layers of the network" }, run.layers))));
}

function copy(text, button) {
  const area = el("textarea", { style: { position: "fixed", opacity: "0" } });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy"); // works without a secure context, which a page opened as a file lacks
  area.remove();
  button.textContent = "Copied";
  button.focus();
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function nextSection(run) {
  return section("next", "Next", "", run.next.length > 0 && el("ul", { class: "commands" }, run.next.map(([purpose, command]) =>
    el("li", {}, el("span", { class: "muted small" }, purpose), el("div", { class: "row" }, el("code", { tabindex: "0" }, command),
      el("button", { type: "button", class: "button", "aria-label": `Copy: ${command}`, click: (event) => copy(command, event.currentTarget) }, "Copy"))))));
}
