"use strict";
// Curves of the metrics with the events of growth, size and time.
const EVENT_ROWS = [
  { kind: "born", label: "germinated", symbol: "triangle", family: "new", is: (e) => e.what.startsWith("DORMANT ->") },
  { kind: "kept", label: "kept", symbol: "square", family: "kept", is: (e) => e.kind === "FOSSILIZED" },
  { kind: "culled", label: "culled", symbol: "times", family: "culled", is: (e) => e.kind === "CULLED" || e.kind === "CANCELLED" },
  { kind: "error", label: "error", symbol: "star", family: "error", is: (e) => e.kind === "ERROR_RECOVERY" || e.kind === "ROLLED_BACK" },
  { kind: "other", label: "other", symbol: "diamond", family: "active", is: (e) => !e.what.includes("->") },
];

// More dotted lines than this hide the curve: then only germinations have one, or nothing has.
const MOST_LINES = 24;

// Events of one kind at (nearly) one place are one marker with their number.
function markers(width) {
  const digits = String(Math.max(1, ...events.map((e) => e.count))).length;
  const apart = Math.max(1, run.last) * (26 + 8 * digits) / width;
  return EVENT_ROWS.flatMap((row) => {
    const found = [];
    for (const event of events.filter(row.is).sort((a, b) => a.step - b.step)) {
      const last = found[found.length - 1];
      if (last && event.step - last.step < apart) {
        last.count += event.count;
        last.events.push(event);
      } else found.push({ ...row, step: event.step, count: event.count, events: [event] });
    }
    return found;
  });
}

const markerTitle = (marker) => [
  `${marker.label}: ${marker.count} at step ${integer(marker.step)}`,
  ...marker.events.slice(0, 8).map((e) => `${e.layer || e.what}${e.count > 1 ? ` × ${e.count}` : ""}: ${e.why}`),
  ...(marker.events.length > 8 ? [`and ${marker.events.length - 8} more`] : []),
].join("\n");

const xSteps = (width, more = {}) => ({ domain: [0, Math.max(1, run.last)], label: "optimizer steps", ticks: width < 500 ? 4 : 8, tickFormat: "~s", ...more });

(() => {
  const choice = byId("metric-choice");
  if (!choice) return;
  const names = Object.keys(run.metrics);
  const groups = [["This run's metrics", names.filter((n) => !n.startsWith("morpho/"))], ["Growth", names.filter((n) => n.startsWith("morpho/"))]];
  for (const [label, members] of groups) {
    if (members.length) choice.append(element("optgroup", { label }, ...members.map((name) => element("option", { value: name }, name))));
  }
  if (run.more) choice.after(element("span", {}, `and ${plural(run.more, "curve")} of layers more, in the loggers' files`));
  choice.value = run.main ?? names[0];
  const points = () => run.metrics[choice.value].x.map((x, i) => ({ step: x, value: run.metrics[choice.value].y[i] }));

  function curve(width) {
    const shown = markers(width), data = points();
    const rows = EVENT_ROWS.filter((row) => shown.some((marker) => marker.kind === row.kind)).map((row) => row.label);
    const marginLeft = 84;
    const lines = shown.length <= MOST_LINES ? shown : shown.filter((marker) => marker.kind === "born");
    const rules = Plot.ruleX(lines.length <= MOST_LINES ? lines : [], { x: "step", stroke: "var(--edge)", strokeDasharray: "2 4" });
    const top = Plot.plot({
      width, height: Math.min(360, Math.max(240, width * 0.42)), marginLeft, marginRight: 24, marginTop: 26, marginBottom: rows.length ? 12 : 40,
      x: xSteps(width, rows.length ? { axis: null } : {}), y: { label: choice.value, nice: true, grid: true, ticks: 6 },
      marks: [
        rules,
        data.length > 1 ? Plot.lineY(data, { x: "step", y: "value", stroke: "var(--curve)", strokeWidth: 2 }) : Plot.dot(data, { x: "step", y: "value", fill: "var(--curve)", r: 4 }),
        Plot.tip(data, Plot.pointerX({ x: "step", y: "value", fill: "var(--ground)", stroke: "var(--edge)",
          title: (d) => `step ${integer(d.step)}\n${choice.value} ${decimal(d.value)}` })),
      ],
    });
    if (!rows.length) return top;
    const bottom = Plot.plot({
      width, height: rows.length * 26 + 42, marginLeft, marginRight: 24, marginTop: 4, marginBottom: 38,
      x: xSteps(width), y: { domain: rows, label: null, tickSize: 0 },
      marks: [
        rules,
        Plot.dot(shown, { x: "step", y: "label", symbol: "symbol", r: 6, strokeWidth: 2,
          stroke: (d) => `var(--s-${d.family})`, fill: (d) => `var(--s-${d.family})`, title: markerTitle, tip: { fill: "var(--ground)", stroke: "var(--edge)" } }),
        Plot.text(shown, { x: "step", y: "label", text: (d) => integer(d.count), dx: 11, textAnchor: "start", fill: "var(--ink)", stroke: "var(--ground)", strokeWidth: 4 }),
      ],
      symbol: { type: "identity" }, color: { type: "identity" },
    });
    return stacked(top, bottom, width);
  }

  // Two plots with one axis, as one picture.
  function stacked(top, bottom, width) {
    const first = Number(top.getAttribute("height")), second = Number(bottom.getAttribute("height"));
    bottom.setAttribute("y", first);
    top.setAttribute("y", 0);
    return drawn("svg", { width, height: first + second, viewBox: `0 0 ${width} ${first + second}` }, top, bottom);
  }

  const label = () => `${choice.value} over ${plural(run.last, "optimizer step")}, with the events of growth. The tables below hold the same values.`;
  const redraw = chart(byId("metrics-chart"), label, curve);
  dataTable("metrics", ["Step", "Value#"], () => points().map((p) => [integer(p.step), decimal(p.value)]));
  dataTable("events", ["Step", "Layer", "Seeds#", "What", "Why"], () => events.map((e) => [integer(e.step), e.layer, e.layer ? e.count : "", e.what, e.why]));
  choice.addEventListener("change", () => { redraw(); dataTables.metrics(); });
})();

(() => {
  const host = byId("cost-charts");
  if (!host) return;
  const logged = run.costs.filter(({ metric }) => run.metrics[metric]);
  // Of two of one unit the first says more.
  const wanted = logged.filter(({ unit }, i) => logged.findIndex((cost) => cost.unit === unit) === i);
  if (!wanted.length) host.append(empty("Nothing of this was logged."));
  for (const { metric, title, unit } of wanted) {
    const { x, y } = run.metrics[metric];
    const data = x.map((step, i) => ({ step, value: y[i] }));
    const area = element("div", { class: "chart" });
    host.append(element("figure", {}, element("h3", {}, title), area));
    const text = `${title}: from ${decimal(y[0])} to ${decimal(y[y.length - 1])} ${unit}.`;
    chart(area, text, (width) => Plot.plot({
      width, height: 190, marginLeft: 60, marginRight: 16, marginTop: 24, marginBottom: 38,
      x: xSteps(Math.min(width, 499)), y: { label: unit, zero: true, nice: true, grid: true, ticks: 4, tickFormat: unit === "parameters" ? "~s" : undefined },
      marks: [
        Plot.areaY(data, { x: "step", y: "value", curve: "step-after", fill: "var(--accent)", fillOpacity: 0.15 }),
        Plot.lineY(data, { x: "step", y: "value", curve: "step-after", stroke: "var(--accent)", strokeWidth: 2 }),
        Plot.tip(data, Plot.pointerX({ x: "step", y: "value", fill: "var(--ground)", stroke: "var(--edge)",
          title: (d) => `step ${integer(d.step)}\n${decimal(d.value)} ${unit}` })),
      ],
    }));
  }
  dataTable("cost", ["What", "Step#", "Value#"], () => wanted.flatMap(({ metric, title }) =>
    run.metrics[metric].x.map((step, i) => [title, integer(step), decimal(run.metrics[metric].y[i])])));
})();
