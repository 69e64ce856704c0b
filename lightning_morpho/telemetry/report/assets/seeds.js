"use strict";
// The seeds: timeline, map of each layer, credit.
const SEEDS_A_PAGE = 40;
const MAPS_A_PAGE = 24;

// ------------------------------------------------------------------ timeline
(() => {
  const host = byId("seeds-chart");
  if (!host) return;
  for (const stage of stagesSeen) {
    const swatch = drawn("svg", { width: 22, height: 14, "aria-hidden": "true" }, drawn("rect", { width: 22, height: 14, fill: fill(stage) }));
    byId("stage-legend").append(element("li", {}, swatch, words(stage) + (stage === "FOSSILIZED" ? " (kept)" : "")));
  }

  const layer = byId("seeds-layer"), stage = byId("seeds-stage");
  const option = (value, text) => element("option", { value }, text);
  layer.append(option("", "all"), ...[...new Set(seeds.map((s) => s.layer))].map((name) => option(name, name)));
  stage.append(option("", "anything"), ...stagesSeen.filter((s) => seeds.some((seed) => seed.stage === s)).map((s) => option(s, words(s))));
  const chosen = () => seeds.filter((s) => (!layer.value || s.layer === layer.value) && (!stage.value || s.stage === stage.value));
  let shown = [];

  function timeline(width) {
    if (!shown.length) return empty("No seed matches.");
    const narrow = width < 560;
    const marginLeft = narrow ? 10 : Math.min(230, 24 + 6.8 * Math.max(...shown.map((s) => shortened(s.name, 30).length)));
    const band = narrow ? 40 : 25, scale = (width - marginLeft - 16) / Math.max(1, run.last);
    const spells = shown.flatMap((s) => s.spells.map((spell) => ({
      ...spell, row: s.name, until: Math.max(spell.end, spell.start + 3 / scale), seed: s,
      room: (spell.end - spell.start) * scale,
    })));
    return Plot.plot({
      width, height: shown.length * band + 44, marginLeft, marginRight: 16, marginTop: 4, marginBottom: 38,
      x: xSteps(width, { grid: true }),
      y: { domain: shown.map((s) => s.name), label: null, tickSize: 0, axis: narrow ? null : "left", tickFormat: (name) => shortened(name, 30), padding: narrow ? 0.5 : 0.2 },
      color: { domain: stagesSeen, range: stagesSeen.map(fill) },
      marks: [
        Plot.barX(spells, { x1: "start", x2: "until", y: "row", fill: "stage", insetTop: narrow ? 6 : 0, insetBottom: narrow ? -6 : 0, rx: 2,
          title: (d) => `${d.row}, ${d.seed.blueprint}\n${words(d.stage)}: step ${integer(d.start)} to ${d.open ? "the end" : integer(d.end)}\n${d.seed.reason}`,
          tip: { fill: "var(--ground)", stroke: "var(--edge)" } }),
        Plot.text(spells.filter((d) => d.room > 16), { x: (d) => (d.start + d.until) / 2, y: "row", dy: narrow ? 6 : 0,
          text: (d) => d.room > 7.5 * d.stage.length + 12 ? words(d.stage) : MARKS[family(d.stage)],
          fill: "var(--on-stage)", stroke: (d) => `var(--s-${family(d.stage)})`, strokeWidth: 4, fontWeight: 600, pointerEvents: "none" }),
        narrow ? Plot.text(shown, { frameAnchor: "left", y: "name", dy: -13, text: (s) => shortened(s.name, Math.floor(width / 7)), textAnchor: "start", fill: "var(--ink)" }) : null,
      ],
    });
  }

  const label = () => `Timeline of ${plural(shown.length, "seed")}: the stages that each went through. The table below holds the same.`;
  const redraw = chart(host, label, timeline);
  const turn = pager(byId("seeds-pager"), "seed", SEEDS_A_PAGE, () => chosen().length, (from, to) => { shown = chosen().slice(from, to); redraw(); });
  dataTable("seeds", ["Seed", "Grew", "Stages, with the step at which each began", "Ended as", "Why"], () => chosen().map((s) => [
    s.name, s.blueprint, s.spells.map((spell) => `${words(spell.stage)} ${integer(spell.start)}`).join(", "), words(s.stage), s.reason,
  ]));
  const again = () => { turn(); dataTables.seeds(); };
  layer.addEventListener("change", again);
  stage.addEventListener("change", again);
  byId("seeds-controls").hidden = seeds.length < 6;

  // What is kept lies at the bottom, what goes back to dormancy on top.
  const leaving = (name) => ["culled", "error"].includes(family(name));
  const stacking = [...stagesSeen.filter((name) => !leaving(name)).reverse(), ...stagesSeen.filter(leaving)];

  // Too many rows to look at: first how many were in which stage.
  byId("seeds-overview").hidden = seeds.length <= SEEDS_A_PAGE / 2;
  if (seeds.length > SEEDS_A_PAGE / 2) {
    chart(byId("overview-chart"), "Number of seeds in each stage over the optimizer steps.", (width) => Plot.plot({
      width, height: 240, marginLeft: 52, marginRight: 16, marginTop: 22, marginBottom: 38,
      x: xSteps(width), y: { label: "seeds", grid: true },
      color: { domain: stagesSeen, range: stagesSeen.map(fill) },
      marks: [Plot.areaY(population(), { x: "step", y: "count", fill: "stage", z: "stage", curve: "step-after", order: stacking,
        title: (d) => `step ${integer(d.step)}\n${words(d.stage)}: ${integer(d.count)}`, tip: { fill: "var(--ground)", stroke: "var(--edge)" } }), Plot.ruleY([0], { stroke: "var(--edge)" })],
    }));
  }

  // Seeds in each stage, wherever a number changes.
  function population() {
    const changes = new Map();
    const change = (step, name, by) => {
      if (!changes.has(step)) changes.set(step, {});
      changes.get(step)[name] = (changes.get(step)[name] ?? 0) + by;
    };
    change(0, stagesSeen[0], 0);
    change(run.last, stagesSeen[0], 0);
    for (const { spells } of seeds) for (const spell of spells) {
      change(spell.start, spell.stage, 1);
      if (!spell.open) change(spell.end, spell.stage, -1);
    }
    const count = Object.fromEntries(stagesSeen.map((name) => [name, 0]));
    return [...changes].sort((a, b) => a[0] - b[0]).flatMap(([step, moved]) => {
      for (const [name, by] of Object.entries(moved)) count[name] += by;
      return stagesSeen.map((name) => ({ step, stage: name, count: count[name] }));
    });
  }
})();

// ------------------------------------------------------------------ map
(() => {
  const host = byId("map-cards");
  if (!host) return;
  const slider = byId("map-step");
  slider.max = Math.max(1, run.last);
  slider.value = slider.max;
  const perLayer = run.layers.map(() => []);
  for (const seed of seeds) perLayer[seed.place].push(seed);
  const layers = run.layers.map((layer, place) => ({ ...layer, place })).filter((layer) => layer.chunks);

  // Stage of each chunk at a step: that of its newest seed.
  function stagesAt(layer, step) {
    const stages = new Array(layer.chunks).fill("DORMANT"), newest = new Array(layer.chunks).fill(-1);
    for (const seed of perLayer[layer.place]) {
      if (seed.spells[0].start > step || seed.generation < newest[seed.chunk]) continue;
      newest[seed.chunk] = seed.generation;
      const now = seed.spells.filter((spell) => spell.start <= step).pop();
      stages[seed.chunk] = now.open || step < now.end ? now.stage : "DORMANT";
    }
    return stages;
  }

  function counted(stages) {
    const count = new Map();
    for (const stage of stages) count.set(stage, (count.get(stage) ?? 0) + 1);
    return [...count].sort((a, b) => stageOrder.indexOf(a[0]) - stageOrder.indexOf(b[0]));
  }
  const told = (stages) => counted(stages).map(([stage, n]) => `${integer(n)} ${words(stage).toLowerCase()}`).join(", ");

  function card(layer, step) {
    const stages = stagesAt(layer, step);
    const cell = layer.chunks <= 96 ? 22 : layer.chunks <= 600 ? 12 : 6;
    const columns = Math.min(layer.chunks, Math.floor(240 / cell)), gap = cell > 8 ? 2 : 1;
    const corner = (i) => [(i % columns) * cell, Math.floor(i / columns) * cell];
    const picture = drawn("svg", { width: columns * cell, height: Math.ceil(layer.chunks / columns) * cell, role: "img", "aria-label": `${layer.name}: ${told(stages)}` });
    picture.setAttribute("viewBox", `0 0 ${picture.getAttribute("width")} ${picture.getAttribute("height")}`);
    // One path a stage: thousands of cells stay a handful of elements.
    for (const [stage] of counted(stages)) {
      const side = cell - gap;
      const d = stages.flatMap((s, i) => s === stage ? [`M${corner(i)}h${side}v${side}h${-side}z`] : []).join("");
      picture.append(drawn("path", { d, fill: fill(stage), class: stage === "DORMANT" ? "outlined" : "" }));
    }
    if (cell === 22) {
      stages.forEach((stage, i) => {
        const [x, y] = corner(i);
        const mark = drawn("text", { x: x + 10, y: y + 10.5, "font-size": 12, class: stage === "DORMANT" ? "on-dormant" : "" }, MARKS[family(stage)]);
        picture.append(mark);
      });
    }
    return element("div", {}, element("h3", {}, element("code", {}, layer.name)), picture, element("p", {}, told(stages)));
  }

  let range = [0, 0];
  function show() {
    const step = Number(slider.value);
    byId("map-step-text").textContent = integer(step);
    slider.setAttribute("aria-valuetext", `step ${integer(step)}`);
    host.replaceChildren(...layers.slice(...range).map((layer) => card(layer, step)));
    dataTables.map?.();
  }
  dataTable("map", ["Layer", "Chunks#", "Stages"], () => layers.map((layer) => [layer.name, integer(layer.chunks), told(stagesAt(layer, Number(slider.value)))]));
  pager(byId("map-pager"), "layer", MAPS_A_PAGE, () => layers.length, (from, to) => { range = [from, to]; show(); });
  slider.addEventListener("input", show);
})();

// ------------------------------------------------------------------ credit
(() => {
  const host = byId("credit-chart");
  if (!host) return;
  const known = (value) => value !== null && value !== undefined;
  const judged = seeds.filter((s) => known(s.rise)).sort((a, b) => b.rise - a.rise);
  let shown = [];

  function forest(width) {
    if (!judged.length) return empty("No seed was measured: there was no held-out loss, or none was judged yet.");
    const narrow = width < 560;
    const marginLeft = narrow ? 8 : Math.min(230, 24 + 6.8 * Math.max(...shown.map((s) => shortened(s.name, 30).length)));
    const reach = Math.max(...shown.map((s) => Math.max(Math.abs(s.rise), Math.abs(s.upper ?? 0), Math.abs(s.lower ?? 0)))) || 1;
    const least = Math.min(0, ...shown.flatMap((s) => [s.rise, s.lower ?? s.rise])), most = Math.max(0, ...shown.flatMap((s) => [s.rise, s.upper ?? s.rise]));
    const pad = 0.08 * (most - least || reach);
    const colour = (s) => `var(--s-${family(s.stage)})`;
    const bounded = shown.filter((s) => known(s.lower));
    return Plot.plot({
      width, height: shown.length * (narrow ? 38 : 25) + 48, marginLeft, marginRight: 20, marginTop: 8, marginBottom: 40,
      x: { domain: [least - pad, most + pad], label: "rise of the held-out loss without the seed →", grid: true, ticks: narrow ? 4 : 8 },
      y: { domain: shown.map((s) => s.name), label: null, tickSize: 0, axis: narrow ? null : "left", tickFormat: (name) => shortened(name, 30) },
      marks: [
        narrow ? Plot.tickX(shown, { x: 0, y: "name", stroke: "var(--ink)", insetTop: 11, insetBottom: 2 }) : Plot.ruleX([0], { stroke: "var(--ink)" }),
        Plot.ruleY(bounded, { x1: "lower", x2: (s) => s.upper ?? s.rise, y: "name", stroke: colour, strokeWidth: 2 }),
        Plot.tickX(bounded, { x: "lower", y: "name", stroke: colour, strokeWidth: 2, insetTop: narrow ? 12 : 6, insetBottom: narrow ? 12 : 6 }),
        Plot.tickX(bounded.filter((s) => known(s.upper)), { x: "upper", y: "name", stroke: colour, strokeWidth: 2, insetTop: 6, insetBottom: 6 }),
        Plot.vector(bounded.filter((s) => !known(s.upper)), { x: "rise", y: "name", rotate: 90, length: 16, anchor: "start", stroke: colour, strokeWidth: 2 }),
        Plot.dot(shown, { x: "rise", y: "name", r: 5, fill: colour, stroke: colour, strokeWidth: 2,
          symbol: (s) => ({ kept: "square", culled: "times" })[family(s.stage)] ?? "circle",
          title: (s) => `${s.name}, ${s.blueprint}: ${words(s.stage)}\nrise ${signed(s.rise)}${known(s.lower) ? `, more than ${signed(s.lower)}` : ", no bound"}${known(s.upper) ? `, less than ${signed(s.upper)}` : ""}`
            + `${s.others ? `\nleft out together with ${plural(s.others, "other")}` : ""}${known(s.joint) ? `\nthe whole group: ${signed(s.joint)}` : ""}\n${s.reason}`,
          tip: { fill: "var(--ground)", stroke: "var(--edge)" } }),
        narrow ? Plot.text(shown, { frameAnchor: "left", y: "name", dy: -13, text: (s) => shortened(s.name, Math.floor(width / 7)), textAnchor: "start", fill: "var(--ink)", stroke: "var(--ground)", strokeWidth: 4 }) : null,
      ],
      symbol: { type: "identity" }, color: { type: "identity" },
    });
  }

  const redraw = chart(host, () => `Credit of ${plural(shown.length, "seed")} with bounds. The table below holds the same.`, forest);
  pager(byId("credit-pager"), "seed", SEEDS_A_PAGE, () => judged.length, (from, to) => { shown = judged.slice(from, to); redraw(); });
  dataTable("credit", ["Seed", "Grew", "Rise without it#", "Lower bound#", "Upper bound#", "Batches#", "Left out with#", "Rise without the group#", "Verdict", "Why"], () => judged.map((s) => [
    s.name, s.blueprint, signed(s.rise), signed(s.lower), signed(s.upper), s.batches ?? "",
    s.others ? plural(s.others, "other") : "", signed(s.joint), words(s.stage), s.reason,
  ]));
})();
