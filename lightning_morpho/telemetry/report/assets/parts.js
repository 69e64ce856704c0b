"use strict";
// What charts and tables share: the data, elements, numbers, stages, pages of long lists.
const run = JSON.parse(document.getElementById("run-data").textContent);

const byId = (id) => document.getElementById(id);

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function drawn(name, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const integer = (value) => value.toLocaleString("en-US");
const decimal = (value) => value === null || value === undefined ? "" : String(Number(value.toPrecision(4)));
const signed = (value) => value === null || value === undefined ? "" : (value > 0 ? "+" : "") + decimal(value);
const plural = (count, noun) => `${integer(count)} ${noun}${count === 1 ? "" : "s"}`;

// ------------------------------------------------------------------ stages
// In the order in which a seed goes through them. A stage has the colour of its family, a texture of its own, so that
// colour alone never has to tell stages apart, and in small places the mark of its family.
const FAMILIES = {
  DORMANT: "dormant", GERMINATED: "new", LOADING: "new", TRAINING: "new", GRAFTING: "graft", STABILIZATION: "graft",
  ACTIVE: "active", EVALUATING: "active", FINE_TUNING: "active", FOSSILIZED: "kept",
  CULLED: "culled", CANCELLED: "culled", ROLLED_BACK: "error", ERROR_RECOVERY: "error",
};
const MARKS = { dormant: "·", new: "▲", graft: "◆", active: "●", kept: "✓", culled: "✕", error: "!" };
const lines = (d, thickness) => () => drawn("path", { class: "texture", d, "stroke-width": thickness });
const dots = (radius) => () => drawn("circle", { class: "texture dots", cx: 4, cy: 4, r: radius });
const TEXTURES = {
  GERMINATED: lines("M-2 2 L2 -2 M0 8 L8 0 M6 10 L10 6", 3),
  LOADING: lines("M-2 2 L2 -2 M0 8 L8 0 M6 10 L10 6", 2),
  TRAINING: lines("M-2 6 L2 10 M0 0 L8 8 M6 -2 L10 2", 1.5),
  GRAFTING: dots(1.4), STABILIZATION: dots(2.2),
  EVALUATING: lines("M4 0 V8", 2), FINE_TUNING: lines("M4 0 V8", 0.75),
  CULLED: lines("M0 0 L8 8 M8 0 L0 8", 1), CANCELLED: lines("M0 4 H8 M4 0 V8", 1),
  ROLLED_BACK: lines("M0 4 H8", 1), ERROR_RECOVERY: lines("M0 4 H8", 2.5),
};
const family = (stage) => FAMILIES[stage] ?? "active";
const fill = (stage) => `url(#p-${stage})`;
const words = (stage) => stage.charAt(0) + stage.slice(1).toLowerCase().replace(/_/g, " ");

for (const stage of Object.keys(FAMILIES)) {
  const pattern = drawn("pattern", { id: `p-${stage}`, width: 8, height: 8, patternUnits: "userSpaceOnUse" });
  pattern.append(drawn("rect", { class: `f-${family(stage)}`, width: 8, height: 8 }));
  if (TEXTURES[stage]) pattern.append(TEXTURES[stage]());
  document.querySelector("#patterns defs").append(pattern);
}

// ------------------------------------------------------------------ seeds
const text = (index) => run.texts[index];
const events = run.events.map(([step, kind, layer, what, why, count]) => (
  { step, kind: text(kind), layer: text(layer), what: text(what), why: text(why), count }));
const seeds = run.lives.map(([layer, chunk, generation, blueprint, spells, reason, [rise, lower, upper, batches, others, joint, jointLower]]) => ({
  layer: run.layers[layer].name, place: layer, chunk, generation, blueprint: text(blueprint), reason: text(reason),
  rise, lower, upper, batches, others, joint, jointLower,
  name: `${run.layers[layer].name}[${chunk}]${generation ? ` #${generation}` : ""}`,
  spells: spells.map(([stage, start, end]) => ({ stage: run.stages[stage], start, end: end ?? run.last, open: end === null })),
  get stage() { return this.spells[this.spells.length - 1].stage; },
}));
const stageOrder = Object.keys(FAMILIES);
const stagesSeen = stageOrder.filter((stage) => seeds.some((seed) => seed.spells.some((spell) => spell.stage === stage)));

// ------------------------------------------------------------------ charts, pages
// A chart is drawn again when its width changes, or when `redraw()` asks for it.
function chart(host, label, draw) {
  let width = 0;
  function redraw() {
    if (width <= 0) return;
    const svg = draw(width);
    if (svg instanceof SVGElement) {
      // One picture with one name: the library's names of its groups mean nothing to a screen reader.
      for (const group of svg.querySelectorAll("[aria-label]")) {
        group.dataset.mark = group.getAttribute("aria-label");
        group.removeAttribute("aria-label");
      }
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", typeof label === "function" ? label() : label);
    }
    host.replaceChildren(svg);
  }
  new ResizeObserver(() => {
    if (host.clientWidth !== width) { width = host.clientWidth; redraw(); }
  }).observe(host);
  return redraw;
}

const empty = (text) => element("p", { class: "empty" }, text);

// Buttons to page through `count()` things, `size` at a time; calls `show(from, to)`.
function pager(host, noun, size, count, show) {
  let page = 0;
  const back = element("button", { type: "button", onclick: () => turn(page - 1) }, "Previous");
  const next = element("button", { type: "button", onclick: () => turn(page + 1) }, "Next");
  const said = element("span", { "aria-live": "polite" });
  function turn(to) {
    const total = count();
    page = Math.max(0, Math.min(to, Math.ceil(total / size) - 1));
    const from = page * size, until = Math.min(total, from + size);
    back.disabled = page === 0;
    next.disabled = until >= total;
    said.textContent = `${integer(Math.min(from + 1, until))} to ${integer(until)} of ${plural(total, noun)}`;
    host.replaceChildren(...(total > size ? [back, next, said] : []));
    show(from, until);
  }
  turn(0);
  return () => turn(0);
}

// A label for narrow places: the middle is left out.
function shortened(label, most) {
  if (label.length <= most) return label;
  const tail = Math.ceil((most - 1) * 0.6);
  return `${label.slice(0, most - 1 - tail)}…${label.slice(-tail)}`;
}
