// Tables: classes, rejects, figures of an evaluation, a confusion matrix.
"use strict";

segray.tables = (() => {
  const { el, number } = segray;

  /** Bars for a name -> number object. */
  function bars(title, values) {
    const entries = Object.entries(values);
    const most = Math.max(1, ...entries.map(([, value]) => value));
    const rows = entries.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name || "(no name)"),
      el("td", { class: "number" }, number(value)), el("td", { class: "wide" }, el("i", { class: "bar", style: { width: `${(100 * value) / most}%` } }))));
    return el("figure", { class: "bars" }, el("figcaption", {}, title), el("div", { class: "scroll" }, el("table", {}, el("tbody", {}, ...rows))));
  }

  /** A table of rows, each an object; columns: [[key, title, format]]. */
  function table(columns, rows, { limit = 1000 } = {}) {
    const cell = (row, [key, , format]) => {
      const value = row[key];
      const numeric = typeof value === "number";
      return el("td", { class: numeric ? "number" : null }, (format || (numeric ? number : String))(value ?? "–"));
    };
    const numeric = (key) => rows.length > 0 && rows.every((row) => typeof row[key] === "number" || row[key] === null || row[key] === undefined);
    const head = columns.map(([key, title]) => el("th", { scope: "col", class: numeric(key) ? "number" : null }, title));
    const body = rows.slice(0, limit).map((row) => el("tr", {}, ...columns.map((column) => cell(row, column))));
    return el("div", { class: "scroll" }, el("table", { class: "listing" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...body)));
  }

  /** Rejected images by type, with their reasons. */
  function rejects(panel, found) {
    const listed = el("div", {});
    const total = Object.values(found.types).reduce((sum, each) => sum + each, 0);
    const show = (type) => {
      const rows = found.rows.filter((row) => !type || row.type === type);
      listed.replaceChildren(el("p", { class: "muted" }, `${number(rows.length)} of ${number(type ? found.types[type] : total)} are listed`),
        table([["name", "image"], ["type", "type"], ["reason", "reason"]], rows));
    };
    const choose = el("select", { name: "type", onchange: (event) => show(event.target.value) }, el("option", { value: "" }, "all types"),
      ...Object.entries(found.types).map(([type, count]) => el("option", { value: type }, `${type} (${number(count)})`)));
    panel.append(bars("Rejected images by type", found.types), el("label", {}, "Type", choose), listed);
    show("");
  }

  /** A confusion matrix {names, rows}: rows are truth, each coloured by its share. */
  function confusion(matrix) {
    const head = el("tr", {}, el("th", {}, "truth \\ predicted"), ...matrix.columns.map((name) => el("th", { scope: "col" }, el("span", {}, name))));
    const rows = matrix.rows.map((row, index) => {
      const total = row.reduce((sum, each) => sum + each, 0);
      return el("tr", {}, el("th", { scope: "row" }, matrix.names[index]), ...row.map((value, column) => {
        const share = total ? value / total : 0;
        return el("td", { class: column === index ? "cell right" : "cell", title: number(value), style: { "--share": share.toFixed(3) } }, share ? `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}` : "");
      }));
    });
    return el("figure", { class: "confusion" }, el("figcaption", {}, "Confusion matrix: per cent of the true pixels of each class"), el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))));
  }

  return { bars, table, rejects, confusion };
})();
