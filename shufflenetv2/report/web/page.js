// Put the page together from the embedded data.

function build() {
  const { runs, best, verdict } = JSON.parse(document.getElementById("data").textContent);
  const [run] = runs, isComparison = runs.length > 1;
  const parts = isComparison ? compareSections(runs, best, verdict) : [
    resultSection(run), curvesSection(run), confusionSection(run), mistakesSection(run), calibrationSection(run), classesSection(run), badImagesSection(run),
    optionsSection(run), modelSection(run), runSection(run), nextSection(run),
  ];
  document.title = isComparison ? `Comparison of ${runs.map((item) => item.name).join(", ")}` : `${run.name}: training report`;
  const main = document.getElementById("main");
  main.append(...parts.flat().filter(Boolean));
  const links = [...main.querySelectorAll("section[id]")].map((item) => [item.id, item.id === "result" ? "Result" : item.querySelector("h2").textContent]);
  document.getElementById("nav").append(el("ul", {}, links.map(([id, title]) => el("li", {}, el("a", { href: `#${id}` }, title)))));
  document.getElementById("footer").append(
    `Written ${moment(run.written)} by shufflenetv2 ${run.version}${isComparison ? "" : ` from the files in ${run.folder}`}. ` +
    "The page holds everything it shows and requests nothing." + (run.state === "running" && !isComparison ? " It is written again after each validation: reload it for the newest state." : ""));
}

build();
