// The page that compares several runs: a table of results, curves over each other, and the options that differ.

function compareSections(runs, winner, verdict) {
  const color = (number) => `var(--s${number % 6})`;
  const names = runs.map((run) => (runs.filter((other) => other.name === run.name).length > 1 ? run.folder : run.name));
  const best = runs.map(bestOf);
  const columns = [
    ["Top-1", (run, n) => (isNumber(run.summary.top1) ? run.summary.top1 : best[n] && 1 - best[n].top1_error), (value, run) => [percent(value), run.interval && el("small", { class: "interval" }, interval(run))]],
    ["Top-5", (run, n) => (isNumber(run.summary.top5) ? run.summary.top5 : best[n] && 1 - best[n].top5_error), percent],
    ["Loss", (run, n) => (isNumber(run.summary.loss) ? run.summary.loss : best[n] && best[n].loss), decimal],
    ["Balanced accuracy", (run) => run.summary.balanced_accuracy, percent], ["Macro F1", (run) => run.summary.macro_f1, decimal],
    ["Calibration error", (run) => run.summary.calibration_error, percent],
    ["Iterations", (run) => run.iteration, integer], ["Training time", (run) => run.speed.duration || null, duration], ["Images per second", (run) => run.speed.images_per_second, integer],
  ].filter(([, value]) => runs.some((run, number) => isNumber(value(run, number))));
  const rows = runs.map((run, number) => el("tr", {}, el("th", { scope: "row", title: run.folder }, el("i", { class: "key", style: { "--c": color(number), display: "inline-block", "margin-right": "10px", "vertical-align": "middle" } }), names[number]),
    el("td", {}, el("span", { class: `pill ${run.state}` }, run.state)),
    columns.map(([name, value, format]) => el("td", { class: name === "Top-1" && number === winner ? "num best" : "num" }, format(value(run, number), run)))));
  const curve = (title, kinds, name, options, map = (y) => y) => lineChart({
    title, ...options,
    series: runs.map((run, number) => ({
      name: names[number], color: color(number), dashed: number >= 6, thin: kinds[0] === "train", dots: kinds[0] !== "train",
      points: ((kinds.map((kind) => run.curves[kind]).find((curves) => curves && curves[name]) || {})[name] || []).map(([x, y]) => [x, map(y)]),
    })),
  });
  const keys = [...new Set(runs.flatMap((run) => Object.keys(run.all_options)))].filter((key) => !["save", "log-dir", "experiment"].includes(key) && new Set(runs.map((run) => run.all_options[key] || "")).size > 1);
  const environments = ["device", "processor", "host", "torch", "shufflenetv2"].filter((key) => new Set(runs.map((run) => String(run.environment[key] || ""))).size > 1);
  const optionRows = [
    ...keys.map((key) => [key, runs.map((run) => run.all_options[key])]),
    ...environments.map((key) => [key === "device" ? "device used" : key, runs.map((run) => run.environment[key])]),
  ].map(([key, values]) => el("tr", {}, el("th", { scope: "row", class: "mono" }, key), values.map((value) => el("td", { class: "wrap" }, value ? String(value) : "–"))));
  return [
    el("section", { class: "hero", id: "result" }, el("h2", {}, `Comparison of ${runs.length} runs`),
      runs.some((run) => run.interval) && el("p", { class: "note" }, `${verdict} Below each top-1 accuracy is its 95 % interval.`),
      el("div", { class: "card flush", style: { "margin-top": "20px" } }, table(["Run", "State", ...columns.map(([name]) => name)], rows, columns.map(([name]) => name)))),
    section("curves", "Learning curves", "", el("div", { class: "grid2" },
      curve("Validation accuracy", ["test"], "top1_error", { format: percent, axis: percent0, ceiling: 1, floor: 0 }, (y) => 1 - y),
      curve("Validation loss", ["test"], "loss", { format: decimal, axis: significant, floor: 0 }),
      curve("Training loss of single batches", ["train"], "loss", { format: decimal, axis: significant, floor: 0 }),
      curve("Learning rate", ["train"], "learning_rate", { format: significant, floor: 0 }))),
    section("options", "Options that differ", optionRows.length ? "" : "The runs have the same options.",
      optionRows.length ? el("div", { class: "card flush" }, table(["Option", ...names], optionRows)) : el("p", {}, "")),
  ];
}
