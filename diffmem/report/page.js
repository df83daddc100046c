// --- light and dark ---

const dark = matchMedia("(prefers-color-scheme: dark)");

function recolour() {
  const text = dark.matches ? "#e4e9f0" : "#1c2430", grid = dark.matches ? "#38424f" : "#d7dde5";
  for (const plot of document.querySelectorAll(".plotly-graph-div")) {
    const change = {"font.color": text};
    for (const name of Object.keys(plot.layout)) {
      if (!/^[xy]axis\d*$/.test(name)) continue;
      for (const part of ["gridcolor", "zerolinecolor", "linecolor"]) change[`${name}.${part}`] = grid;
    }
    Plotly.relayout(plot, change);
  }
}

dark.addEventListener("change", recolour);
recolour();

// --- the threshold: everything is computed already, for each of its steps ---

function row(cells) {
  const made = document.createElement("tr");
  for (const [text, style] of cells) {
    const cell = document.createElement("td");
    cell.textContent = text;
    cell.className = style;
    made.append(cell);
  }
  return made;
}

function thresholdText(data, level, isOwn) {
  const threshold = level / data.levels * data.largest;
  const paper = Math.abs(threshold - data.own) < 1e-9 ? ` (${data.ownText})` : "";
  const between = isOwn && Math.abs(threshold - data.threshold) > 1e-9;
  return threshold.toFixed(3) + paper + (between ? ` (the step nearest to the study's ${data.threshold})` : "");
}

function followThreshold(part) {
  const data = JSON.parse(part.querySelector("script[type='application/json']").textContent);
  const slider = part.querySelector("input"), output = part.querySelector("output"), own = slider.value;
  const [histogram, curves] = part.querySelectorAll(".plotly-graph-div");
  const body = part.querySelector(".at-threshold tbody");
  const sizes = new Set(data.curves.flatMap(curve => curve.sizes.map(entry => entry.size)));
  const columns = [...sizes].sort((a, b) => a - b);
  const update = () => {
    const level = Number(slider.value), threshold = level / data.levels * data.largest;
    output.textContent = thresholdText(data, level, slider.value === own);
    slider.setAttribute("aria-valuetext", output.textContent);
    Plotly.relayout(histogram, {"shapes[0].x0": threshold, "shapes[0].x1": threshold});
    const x = data.curves.map(curve => curve.sizes.map(entry => entry.size));
    const y = data.curves.map(curve => curve.sizes.map(entry => entry.ratios[level]));
    if (curves) Plotly.restyle(curves, {x, y}, x.map((_, i) => i));
    body.replaceChildren(...data.curves.map((curve, i) => {
      const at = new Map(x[i].map((size, j) => [size, y[i][j].toFixed(3)]));
      const emm = curves ? [[curve.emms[level], "emm"]] : [];
      return row([[curve.label, ""], ...emm, ...columns.map(size => [at.get(size) ?? "-", "number"])]);
    }));
  };
  slider.addEventListener("input", update);
  part.querySelector("button").addEventListener("click", () => { slider.value = own; update(); });
  update();
}

document.querySelectorAll(".evidence").forEach(followThreshold);

// --- the numbers of a figure, which the page has packed ---

async function unpack(link) {
  const packed = Uint8Array.from(atob(link.href.split(",")[1]), character => character.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const csv = await new Response(unpacked).blob();
  link.href = URL.createObjectURL(new Blob([csv], {type: "text/csv"}));
  link.download = link.download.replace(/\.gz$/, "");
}

for (const link of document.querySelectorAll("a.packed")) {
  link.closest("details").addEventListener("toggle", () => unpack(link), {once: true});
}

// --- galleries ---

const galleryOf = control => control.closest("details").querySelector(".gallery");

for (const select of document.querySelectorAll("select.show")) {
  select.addEventListener("change", () => { galleryOf(select).dataset.show = select.value; });
}
for (const select of document.querySelectorAll("select.sort")) {
  select.addEventListener("change", () => {
    const gallery = galleryOf(select);
    gallery.append(...[...gallery.children].sort((a, b) => a.dataset[select.value] - b.dataset[select.value]));
  });
}

// a click on a training image shows the pictures of what was generated near it
for (const button of document.querySelectorAll("button.near")) {
  button.addEventListener("click", () => showNear(button.closest("details"), button));
}
for (const button of document.querySelectorAll(".about button")) {
  button.addEventListener("click", () => showNear(button.closest("details"), null));
}

function showNear(details, button) {
  const pairs = [...details.querySelectorAll(".pair")], about = details.querySelector(".about");
  const near = pairs.filter(pair => button && pair.dataset.of === button.dataset.of);
  for (const pair of pairs) pair.classList.toggle("elsewhere", Boolean(button) && !near.includes(pair));
  about.hidden = !button;
  if (!button) return;
  const shown = `${near.length} of these ${near.length === 1 ? "is" : "are"} shown`;
  const pictures = near.length ? shown : "No picture of these is here";
  about.querySelector("span").textContent = `${button.dataset.about}. ${pictures}.`;
}

// --- a watched page: what is opened and chosen stays so when it loads itself anew ---

function keepChoices() {
  const place = "diffmem " + location.pathname, controls = [...document.querySelectorAll("[data-keep]")];
  const kept = JSON.parse(sessionStorage.getItem(place) ?? "{}");
  for (const control of controls) {
    const value = kept[control.dataset.keep];
    if (value === undefined) continue;
    if (control.tagName === "DETAILS") {
      control.open = value;
    } else {
      control.value = value;
      control.dispatchEvent(new Event(control.tagName === "INPUT" ? "input" : "change"));
    }
  }
  const chosen = control => control.tagName === "DETAILS" ? control.open : control.value;
  addEventListener("pagehide", () => {
    const values = controls.map(control => [control.dataset.keep, chosen(control)]);
    sessionStorage.setItem(place, JSON.stringify(Object.fromEntries(values)));
  });
}

if ("watched" in document.body.dataset) keepChoices();
