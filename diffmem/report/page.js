// --- light, dark and paper ---

const dark = matchMedia("(prefers-color-scheme: dark)"), paper = matchMedia("print");

function recolour() {
  const isDark = dark.matches && !paper.matches;
  const text = isDark ? "#e4e9f0" : "#1c2430", grid = isDark ? "#38424f" : "#d7dde5";
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
paper.addEventListener("change", recolour);
recolour();

// --- names at the ends of lines: where a figure is too narrow for them, a legend ---

function fitNames(plot) {
  const names = (plot.layout.annotations ?? []).filter(each => each.name === "end");
  if (!names.length) return;
  plot.wide ??= {right: plot.layout.margin.r, bottom: plot.layout.margin.b, height: plot.layout.height};
  const narrow = plot.clientWidth < 3.5 * plot.wide.right, more = narrow ? 24 * Math.ceil(names.length / 2) + 10 : 0;
  if (plot.narrow === narrow) return;
  plot.narrow = narrow;
  plot.style.height = `${plot.wide.height + more}px`;
  const annotations = plot.layout.annotations.map(each => each.name === "end" ? {...each, visible: !narrow} : each);
  Plotly.relayout(plot, {
    annotations, showlegend: narrow,
    "margin.r": narrow ? 20 : plot.wide.right, "margin.b": plot.wide.bottom + more,
  });
  Plotly.Plots.resize(plot);  // to the height above: one that is set would fix the width too
}

const widths = new ResizeObserver(entries => entries.forEach(entry => fitNames(entry.target)));
document.querySelectorAll(".plotly-graph-div").forEach(plot => widths.observe(plot));

for (const folded of document.querySelectorAll("details.method")) {  // what is in it was drawn without a width
  folded.addEventListener("toggle", () => folded.querySelectorAll(".plotly-graph-div").forEach(plot => {
    if (folded.open) Plotly.Plots.resize(plot);
  }));
}

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

function tracesAt(curve, level) {
  const of = name => curve.sizes.map(entry => entry[name][level]);
  const x = curve.sizes.map(entry => entry.size), name = curve.label, reversed = values => [...values].reverse();
  const band = {
    x: [...x, ...reversed(x)], y: [...of("low"), ...reversed(of("high"))], fill: "toself", mode: "lines",
    line: {width: 0}, fillcolor: curve.colour + "2e", legendgroup: name, showlegend: false, hoverinfo: "skip",
  };
  return [band, {x, y: of("ratios"), name, legendgroup: name, mode: "lines+markers", line: {color: curve.colour}}];
}

function followThreshold(part) {
  const data = JSON.parse(part.querySelector("script[type='application/json']").textContent);
  const slider = part.querySelector("input"), output = part.querySelector("output"), own = slider.value;
  const histogram = part.querySelector("figure .plotly-graph-div");
  const curves = part.querySelector(".ratios .plotly-graph-div");
  const body = part.querySelector(".at-threshold tbody");
  const sizes = new Set(data.curves.flatMap(curve => curve.sizes.map(entry => entry.size)));
  const columns = [...sizes].sort((a, b) => a - b);
  const study = part.dataset.outlines && document.getElementById(part.dataset.outlines);
  const pairs = study ? [...study.querySelectorAll(".pair[data-alike]")] : [];
  const update = () => {
    const level = Number(slider.value), threshold = level / data.levels * data.largest;
    output.textContent = thresholdText(data, level, slider.value === own);
    slider.setAttribute("aria-valuetext", output.textContent);
    Plotly.relayout(histogram, {
      "shapes[0].x0": threshold, "shapes[0].x1": threshold,
      "annotations[0].x": threshold, "annotations[0].text": `threshold ${threshold.toFixed(3)}`,
    });
    if (curves) Plotly.react(curves, data.curves.flatMap(curve => tracesAt(curve, level)), curves.layout);
    body.replaceChildren(...data.curves.map(curve => {
      const at = new Map(curve.sizes.map(entry => [entry.size, entry.ratios[level].toFixed(3)]));
      const emm = curves ? [[curve.emms[level], "emm"]] : [];
      return row([[curve.label, ""], ...emm, ...columns.map(size => [at.get(size) ?? "-", "number"])]);
    }));
    const reached = slider.value === own ? data.threshold : threshold;
    for (const pair of pairs) pair.classList.toggle("memorized", Number(pair.dataset.alike) < reached);
  };
  slider.addEventListener("input", update);
  part.querySelector(".controls button").addEventListener("click", () => { slider.value = own; update(); });
  update();
}

document.querySelectorAll(".evidence").forEach(followThreshold);

// --- the numbers of a figure, which the page has packed, and its drawing ---

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
for (const button of document.querySelectorAll("button.svg")) {
  button.addEventListener("click", () => {
    const plots = [...button.closest("figure").querySelectorAll(".plotly-graph-div")];
    plots.forEach((plot, i) => Plotly.downloadImage(plot, {
      format: "svg", width: plot.clientWidth, height: plot.clientHeight,
      filename: button.dataset.name + (plots.length > 1 ? `_${i + 1}` : ""),
    }));
  });
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

// a training image that is copied often, or of an enlarged pair: the pictures of what was generated near it
for (const button of document.querySelectorAll("button.near")) {
  button.addEventListener("click", () => showNear(button.closest("details"), button));
}
for (const button of document.querySelectorAll("details .about button")) {
  button.addEventListener("click", () => showNear(button.closest("details"), null));
}

function showNear(details, of) {
  const pairs = [...details.querySelectorAll(".pair")], about = details.querySelector(".about");
  const near = pairs.filter(pair => of && pair.dataset.of === of.dataset.of);
  for (const pair of pairs) pair.classList.toggle("elsewhere", Boolean(of) && !near.includes(pair));
  about.hidden = !of;
  if (!of) return;
  const shown = `${near.length} of these ${near.length === 1 ? "is" : "are"} shown`;
  const pictures = near.length ? shown : "No picture of these is here";
  about.querySelector("span").textContent = `${of.dataset.about}. ${pictures}.`;
}

// --- one pair, enlarged ---

const dialog = document.getElementById("enlarged");
let enlarged = null;

function pictured(element, label) {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  caption.textContent = label;
  figure.append(element, caption);
  return figure;
}

function picture(source, alt) {
  const image = new Image();
  image.src = source;
  image.alt = alt;
  return image;
}

async function difference(one, other) {
  await Promise.all([one.decode(), other.decode()]);
  const canvas = document.createElement("canvas"), draw = canvas.getContext("2d");
  [canvas.width, canvas.height] = [one.naturalWidth, one.naturalHeight];
  draw.drawImage(one, 0, 0);
  draw.globalCompositeOperation = "difference";
  draw.drawImage(other, 0, 0, canvas.width, canvas.height);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "difference of the two");
  return canvas;
}

async function enlarge(pair) {
  enlarged = pair;
  const [generated, nearest] = [...pair.querySelectorAll("img")].map(image => picture(image.src, image.alt));
  const between = await difference(generated, nearest);
  if (enlarged !== pair) return;
  const {called, copyOf, second, secondCalled, side} = pair.dataset, reduced = generated.naturalWidth < side;
  dialog.querySelector("h3").textContent = called;
  dialog.querySelector(".enlarged").replaceChildren(
    pictured(generated, "generated"), pictured(nearest, "nearest training image"), pictured(between, "difference"),
    ...(second ? [pictured(picture(second, secondCalled), secondCalled)] : []));
  dialog.querySelector(".about").textContent =
    `${pair.parentElement.dataset.axis}: ${pair.textContent.trim()}.`
    + (copyOf ? ` A ${copyOf}.` : "") + ` ${pair.dataset.about}.`
    + (reduced ? ` Reduced from ${side} pixels.` : ` ${generated.naturalWidth} pixels wide, as stored.`);
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  const seen = [...enlarged.closest(".gallery").children].filter(pair => pair.checkVisibility());
  const next = seen[seen.indexOf(enlarged) + by];
  if (next) enlarge(next);
}

for (const button of document.querySelectorAll("button.enlarge")) {
  button.addEventListener("click", () => enlarge(button.closest(".pair")));
}
dialog?.querySelector(".previous").addEventListener("click", () => step(-1));
dialog?.querySelector(".next").addEventListener("click", () => step(1));
dialog?.querySelector(".close").addEventListener("click", () => dialog.close());
dialog?.querySelector(".others").addEventListener("click", () => {
  dialog.close();
  showNear(enlarged.closest("details"), enlarged);
});
dialog?.addEventListener("keydown", event => {
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
});

// --- from a ratio to the copies behind it: `#STUDY-copies-CURVE-SIZE`, which a link or a click on a point asks for ---

function showCopies() {
  const [, anchor, curve, size] = decodeURIComponent(location.hash).match(/^#(.*)-copies-(\d+)-(\d+)$/) ?? [];
  const study = anchor && document.getElementById(anchor);
  const found = study?.querySelector(`.copies-of[data-curve="${curve}"][data-size="${size}"]`);
  if (found) {
    found.open = true;
    found.scrollIntoView();
    return;
  }
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const folded = target?.nextElementSibling;
  if (folded?.matches("details.method")) folded.open = true;
}

addEventListener("hashchange", showCopies);
showCopies();

for (const plot of document.querySelectorAll(".opens .plotly-graph-div")) {
  plot.on("plotly_click", event => {
    const [point] = event.points, curve = point.customdata?.[2];
    const study = plot.closest("section.study").id;
    if (curve !== undefined) location.hash = `#${study}-copies-${curve}-${point.x}`;
  });
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
