// The confusion matrix: a table of cells for few classes, and a picture for many.

const MAX_MATRIX = 30; // classes

function countsByCell(run) {
  const counts = new Map(run.confusion.map(([label, prediction, count]) => [label * run.classes.length + prediction, count]));
  return (label, prediction) => counts.get(label * run.classes.length + prediction) || 0;
}

function cellMatrix(run, select) {
  const size = run.classes.length, count = countsByCell(run), cells = [];
  const isShort = run.classes.every((entry) => String(entry.name).length <= 2);
  const side = Math.max(26, Math.min(46, Math.floor(560 / size)));
  const body = run.classes.map((entry, label) => el("tr", {},
    el("th", { scope: "row", title: String(entry.name) }, String(entry.name)),
    run.classes.map((other, prediction) => {
      const number = count(label, prediction), share = entry.support ? number / entry.support : 0;
      const strength = number ? 0.12 + 0.88 * Math.sqrt(share) : 0, channel = label === prediction ? "--accent-rgb" : "--bad-rgb";
      const cell = el("td", {
        tabindex: "-1", "aria-selected": "false", class: strength > 0.6 ? "dark" : strength ? "mid" : null,
        "aria-label": `${entry.name} predicted as ${other.name}: ${number}`, title: `${entry.name} → ${other.name}: ${number}`,
        style: strength ? { background: `rgb(var(${channel}) / ${strength.toFixed(3)})` } : {},
        click: () => { cell.focus(); select(label, prediction); },
      }, number ? compact(number) : label === prediction ? "0" : "");
      cells.push(cell);
      return cell;
    })));
  const head = el("tr", {}, el("td", { style: { background: "none" } }), run.classes.map((entry) => el("th", { scope: "col", title: String(entry.name) }, el("span", {}, String(entry.name)))));
  const element = el("table", { class: isShort ? "matrix short" : "matrix", role: "grid", "aria-label": "Confusion matrix", style: { "--cell": `clamp(23px, calc((100vw - 150px) / ${size}), ${side}px)` } }, el("thead", {}, head), el("tbody", {}, body));
  element.addEventListener("keydown", (event) => {
    const at = cells.indexOf(document.activeElement), row = Math.floor(at / size), column = at % size;
    const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0], Home: [0, -column], End: [0, size - 1 - column] }[event.key];
    if (at < 0 || (!move && event.key !== "Enter" && event.key !== " ")) return;
    event.preventDefault();
    const [newRow, newColumn] = move ? [row + move[0], column + move[1]] : [row, column];
    if (newRow < 0 || newRow >= size || newColumn < 0 || newColumn >= size) return;
    cells[newRow * size + newColumn].focus();
    select(newRow, newColumn);
  });
  return {
    element, count,
    mark(label, prediction) {
      cells.forEach((cell, number) => {
        const isMarked = number === label * size + prediction;
        cell.setAttribute("aria-selected", String(isMarked));
        cell.tabIndex = isMarked ? 0 : -1;
      });
    },
  };
}

function overviewMatrix(run, select) {
  const size = run.classes.length, count = countsByCell(run), block = Math.ceil(size / 500), side = Math.ceil(size / block);
  const canvas = el("canvas", { class: "overview", width: side, height: side, tabindex: "0", role: "application", "aria-label": `Confusion of ${size} classes. Arrow keys move between confusions.` });
  const where = el("p", { class: "axis", role: "status" }, "Point at a cell, or use the arrow keys.");
  const found = run.confusion.filter(([label, prediction]) => label !== prediction).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  let marked = [0, 0];

  function draw() {
    const context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const rgb = (name) => style.getPropertyValue(name).trim().split(" ").map(Number);
    const [good, bad] = [rgb("--accent-rgb"), rgb("--bad-rgb")];
    const picture = context.createImageData(side, side);
    for (const [label, prediction, number] of run.confusion) {
      const at = 4 * (Math.floor(label / block) * side + Math.floor(prediction / block));
      const alpha = 255 * Math.min(1, 0.25 + 0.75 * Math.sqrt(number / (run.classes[label].support || 1)));
      if (alpha <= picture.data[at + 3]) continue;
      picture.data.set([...(label === prediction ? good : bad), alpha], at);
    }
    context.putImageData(picture, 0, 0);
    const [x, y] = [marked[1] / block, marked[0] / block], arm = Math.max(4, side / 60);
    context.strokeStyle = style.getPropertyValue("--ink");
    context.strokeRect(Math.floor(x) - arm + 0.5, Math.floor(y) - arm + 0.5, 2 * arm, 2 * arm);
  }
  const tell = ([label, prediction, number]) => (where.textContent = `${className(run, label)} → ${className(run, prediction)}: ${number}`);

  function closest(event) {
    const box = canvas.getBoundingClientRect(), scale = size / box.width;
    const row = (event.clientY - box.top) * scale, column = (event.clientX - box.left) * scale, reach = 14 * scale;
    let best = null, least = reach * reach;
    for (const cell of run.confusion) {
      const distance = (cell[0] + 0.5 - row) ** 2 + (cell[1] + 0.5 - column) ** 2 + (cell[0] === cell[1] ? 1 : 0);
      if (distance < least) [best, least] = [cell, distance];
    }
    return best;
  }
  canvas.addEventListener("pointermove", (event) => { const cell = closest(event); if (cell) tell(cell); });
  canvas.addEventListener("click", (event) => { const cell = closest(event); if (cell) select(cell[0], cell[1]); });
  canvas.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], turn = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if ((!step && !turn) || !found.length) return;
    event.preventDefault();
    let at = found.findIndex(([label, prediction]) => label > marked[0] || (label === marked[0] && prediction >= marked[1]));
    if (at < 0) at = found.length - 1;
    if (step) at = Math.max(0, Math.min(found.length - 1, at + step));
    else {
      const row = found[at][0];
      while (at + turn >= 0 && at + turn < found.length && found[at][0] === row) at += turn;
    }
    select(found[at][0], found[at][1]);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  return {
    element: el("div", {}, canvas, where), count,
    mark(label, prediction) {
      marked = [label, prediction];
      tell([label, prediction, count(label, prediction)]);
      draw();
    },
  };
}
