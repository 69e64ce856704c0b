"use strict";
// Tables: the data behind each chart, made when it is opened, and the filter and order of the table of modules.
const ROWS_A_PAGE = 200;
const MODULES_A_PAGE = 40;

const dataTables = {};

// `rows()` gives arrays in the order of `columns`; a column that ends in "#" holds numbers.
function dataTable(id, columns, rows) {
  const details = document.querySelector(`[data-table="${id}"]`);
  if (!details) return;
  const host = details.querySelector(".table-host");
  const body = element("tbody");
  const turn = element("div", { class: "pager" });
  let shown = null;
  function open() {
    const all = rows();
    pager(turn, "row", ROWS_A_PAGE, () => all.length, (from, to) => {
      body.replaceChildren(...all.slice(from, to).map((row) => element("tr", {}, ...row.map((value, i) => element(
        i ? "td" : "th", { class: columns[i].endsWith("#") ? "number" : null, scope: i ? null : "row" }, String(value ?? ""),
      )))));
    });
  }
  details.addEventListener("toggle", () => {
    if (!details.open) return;
    if (!shown) {
      const head = columns.map((column) => element("th", { scope: "col", class: column.endsWith("#") ? "number" : null }, column.replace("#", "")));
      const name = details.querySelector("summary").textContent;
      shown = element("table", { "aria-label": name }, element("thead", {}, element("tr", {}, ...head)), body);
      host.setAttribute("tabindex", "0");
      host.setAttribute("role", "region");
      host.setAttribute("aria-label", name);
      host.replaceChildren(shown);
      host.after(turn);
    }
    open();
  });
  dataTables[id] = () => { if (details.open) open(); };
}

// ------------------------------------------------------------------ modules
(() => {
  const table = byId("modules-table");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  let order = rows;
  const find = byId("modules-filter"), taken = byId("modules-taken"), count = byId("modules-count");

  const wanted = () => {
    const sought = find.value.trim().toLowerCase();
    return order.filter((row) => row.textContent.toLowerCase().includes(sought) && (!taken.value || row.dataset.taken === taken.value));
  };
  const turn = pager(byId("modules-pager"), "module", MODULES_A_PAGE, () => wanted().length, (from, to) => {
    body.replaceChildren(...wanted().slice(from, to));
  });

  function filter() {
    turn();
    const visible = wanted().length;
    count.textContent = visible === rows.length ? plural(visible, "module") : `${integer(visible)} of ${plural(rows.length, "module")}`;
  }

  const key = (row, column) => {
    const shown = row.cells[column].textContent.trim();
    const number = Number(shown.replace(/,/g, "") || "0");
    return column >= 4 && Number.isFinite(number) ? number : shown;
  };
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of headers) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const compare = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
    order = [...rows].sort((a, b) => compare(key(a, column), key(b, column)) * (descending ? -1 : 1));
    turn();
  }));
  find.addEventListener("input", filter);
  taken.addEventListener("change", filter);
})();
