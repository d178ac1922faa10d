// The head, the tabs and what is in them, by what data/page.js holds.
"use strict";

(() => {
  const { el, get, number } = segray;
  const page = get("page");

  function head() {
    const [first, second] = page.runs;
    const title = second ? `${first.name} against ${second.name}` : first.name;
    document.title = `${title}: segray preview`;
    const facts = (page.facts || []).map(([value, what]) => el("span", { class: "fact" }, el("b", {}, number(value)), ` ${what}`));
    const theme = el("button", { type: "button", id: "theme", title: "Dark or light", "aria-label": "Dark or light", onclick: turn }, "◐");
    document.getElementById("head").append(el("h1", {}, title), el("span", { class: "verb" }, first.verb), ...facts, theme);
    for (const note of page.notes || []) document.getElementById("head").append(el("p", { class: "note" }, note));
  }

  function turn() {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const root = document.documentElement;
    root.dataset.theme = (root.dataset.theme || (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
    segray.charts.redraw();
  }

  /** [name, whether it is there, what builds it]; each is built when it is first shown. */
  const PARTS = [
    ["Pictures", get("images"), (panel) => segray.gallery.build(panel)],
    ["Curves", get("curves"), plots(() => get("curves").map(segray.charts.curves))],
    ["Scores", get("scores"), scores],
    ["Samples", get("samples"), (panel) => panel.append(...get("samples").map(sample))],
    ["Confusion", get("confusion"), (panel) => panel.append(segray.tables.confusion(get("confusion")))],
    ["Figures", get("figures"), figures],
    ["Rejected", rejected(), (panel) => segray.tables.rejects(panel, get("rejects"))],
    ["Run", true, about],
  ].filter(([, there]) => there && there.length !== 0).sort((a, b) => (b[0] === page.first) - (a[0] === page.first));

  function rejected() {
    const rejects = get("rejects");
    return rejects && Object.keys(rejects.types).length > 0;
  }

  function plots(make) {
    return async (panel) => {
      await segray.charts.ready();
      const grid = el("div", { class: "plots" });
      panel.append(grid);
      grid.append(...make());
    };
  }

  async function figures(panel) {
    const classes = (get("classes") || []).filter((each) => each.count);
    await plots(() => get("figures").map(segray.charts.histogram))(panel);
    if (classes.length) panel.querySelector(".plots").append(segray.tables.bars("Instances of each class", Object.fromEntries(classes.map((each) => [each.name, each.count]))));
    panel.append(el("p", { class: "muted" }, "Counted over all rows of the run, not over the pictures shown."));
  }

  async function scores(panel) {
    for (const [name, address] of page.links || []) panel.append(el("p", {}, el("a", { href: address }, name)));
    for (const each of get("scores")) {
      panel.append(el("h2", {}, each.title));
      if (each.note) panel.append(el("p", { class: "muted" }, each.note));
      if (each.curves) await plots(() => each.curves.map(segray.charts.curves))(panel);
      if (each.rows) panel.append(segray.tables.table(each.columns, each.rows));
    }
  }

  const sample = (each) => el("figure", { class: "sample" }, el("img", { src: each.picture, alt: each.name, loading: "lazy", width: each.size[1], height: each.size[0] }), el("figcaption", {}, each.name));

  function about(panel) {
    for (const run of page.runs) {
      panel.append(el("h2", {}, run.name), el("dl", {}, ...[["Address", run.url], ["Verb", run.verb], ["Finished", run.finished]].filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])));
      for (const [name, value] of run.more || []) panel.append(el("h3", {}, name), el("pre", {}, value));
      panel.append(el("h3", {}, "Settings"), el("pre", {}, run.settings));
      if (Object.keys(run.versions).length) panel.append(el("h3", {}, "Versions"), el("pre", {}, Object.entries(run.versions).map(([name, value]) => `${name} ${value}`).join("\n")));
    }
  }

  function tabs() {
    const bar = document.getElementById("tabs");
    PARTS.forEach(([name, , build], index) => {
      const panel = el("section", { id: `panel-${index}`, role: "tabpanel", "aria-label": name, hidden: true });
      const tab = el("button", { type: "button", role: "tab", id: `tab-${index}`, "aria-controls": panel.id, onclick: () => select(index) }, name);
      panel.build = () => { panel.build = () => {}; return build(panel); };
      bar.append(tab);
      document.getElementById("panels").append(panel);
    });
    bar.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const at = [...bar.children].indexOf(document.activeElement);
      if (step && at >= 0) bar.children[(at + step + PARTS.length) % PARTS.length].click();
    });
    select(0, false);
  }

  function select(index, focus = true) {
    [...document.getElementById("tabs").children].forEach((tab, place) => {
      tab.setAttribute("aria-selected", place === index);
      tab.tabIndex = place === index ? 0 : -1;
      const panel = document.getElementById(`panel-${place}`);
      panel.hidden = place !== index;
      if (place === index) { panel.build(); if (focus) tab.focus(); }
    });
  }

  head();
  tabs();
  const [, kind, place] = location.hash.match(/^#(image)\/(\d+)$/) || [];
  if (kind && get("images", [])[place]) segray.viewer.open(get("images")[place]);
})();
