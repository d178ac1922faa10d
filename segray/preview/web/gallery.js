// The list of pictures: filtered by class, score and name, sorted; what is visible is drawn.
"use strict";

segray.gallery = (() => {
  const { el, number, score, short } = segray;
  const STEPS = 20;
  const SORTS = {
    sampled: ["as sampled", () => 0],
    difference: ["differ most", (a, b) => b.difference - a.difference],
    errors: ["most errors", (a, b) => b.errors - a.errors],
    unsure: ["least sure", (a, b) => (a.sureness ?? 2) - (b.sureness ?? 2)],
    sure: ["surest", (a, b) => (b.sureness ?? -1) - (a.sureness ?? -1)],
    most: ["most instances", (a, b) => b.instances - a.instances],
    fewest: ["fewest instances", (a, b) => a.instances - b.instances],
    name: ["by name", (a, b) => (a.address < b.address ? -1 : 1)],
  };
  const filter = { classes: new Set(), low: 0, high: 1, people: true, text: "", sort: "sampled", fill: 0.25 };
  let images = [];
  let grid = null;
  let count = null;
  let observer = null;
  let visible = [];

  function build(panel) {
    images = segray.get("images");
    images.forEach((each, index) => { each.number = index; });
    const kind = segray.get("page").kind;
    filter.labels = kind.startsWith("labels");
    filter.two = kind.endsWith("+");
    filter.fill = filter.labels ? 0.5 : 0.25;
    filter.sort = images.some((each) => "difference" in each) ? "difference" : images.some((each) => "errors" in each) ? "errors" : filter.labels ? "sampled" : "unsure";
    count = el("output", { class: "count", "aria-live": "polite" });
    grid = el("div", { class: "grid", onkeydown: move });
    observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) { observer.unobserve(entry.target); entry.target.shown = true; wait(entry.target); }
      }
    }, { rootMargin: "300px" });
    panel.append(tools(), grid);
    show();
  }

  function tools() {
    const bar = el("form", { class: "tools", "aria-label": "Filter", onsubmit: (event) => event.preventDefault() });
    bar.append(classes());
    if (!filter.labels) {
      bar.append(range("low", "Score from", 0), range("high", "to", 1));
      if (images.some((each) => bins(each).some(([, place]) => place === STEPS))) bar.append(people());
    }
    const sorts = Object.entries(SORTS).filter(([name]) => (["difference", "errors"].includes(name) ? images.some((each) => name in each)
      : !filter.labels || ["sampled", "name"].includes(name)));
    bar.append(
      el("label", {}, "Sort", el("select", { name: "sort", onchange: (event) => { filter.sort = event.target.value; show(); } },
        ...sorts.map(([name, [title]]) => el("option", { value: name, selected: name === filter.sort }, title)))),
      el("label", {}, "Name", el("input", { type: "search", name: "text", size: 12, placeholder: "part of it", oninput: (event) => { filter.text = event.target.value.toLowerCase(); show(); } })),
      el("label", {}, filter.labels ? "Opacity" : "Fill", el("input", { type: "range", name: "fill", min: 0, max: 1, step: 0.05, value: filter.fill, oninput: (event) => { filter.fill = Number(event.target.value); repaint(); } })),
      count,
    );
    return bar;
  }

  function classes() {
    const chips = segray.get("classes").map((each, index) => el("button", {
      type: "button", class: "chip", "aria-pressed": "false", title: each.name,
      onclick: (event) => {
        const on = !filter.classes.has(index);
        filter.classes[on ? "add" : "delete"](index);
        event.currentTarget.setAttribute("aria-pressed", on);
        show();
      },
    }, el("i", { style: { background: segray.colour(each.colour) } }), el("span", {}, each.name || "(no name)"), each.count ? el("small", {}, number(each.count)) : null));
    return el("div", { class: "chips", role: "group", "aria-label": "Classes" }, ...chips);
  }

  function range(name, title, value) {
    const told = el("output", {}, value.toFixed(2));
    return el("label", {}, title, el("input", {
      type: "range", name, min: 0, max: 1, step: 1 / STEPS, value,
      oninput: (event) => { filter[name] = Number(event.target.value); told.value = filter[name].toFixed(2); show(); },
    }), told);
  }

  function people() {
    return el("label", {}, el("input", { type: "checkbox", name: "people", checked: true, onchange: (event) => { filter.people = event.target.checked; show(); } }), "without a score");
  }

  /** [class, bin of the score, instances] of an image. */
  function bins(each) {
    const found = [];
    const flat = each.bins || [];
    for (let at = 0; at < flat.length; at += 3) found.push([flat[at], flat[at + 1], flat[at + 2]]);
    return found;
  }

  function passes(each) {
    if (filter.text && !each.address.toLowerCase().includes(filter.text)) return false;
    if (filter.labels) return !filter.classes.size || each.present.some((place) => filter.classes.has(place));
    const open = filter.low > 0 || filter.high < 1 || filter.classes.size || !filter.people;
    if (!open) return true;
    return bins(each).some(([place, bin]) => (!filter.classes.size || filter.classes.has(place))
      && (bin === STEPS ? filter.people : bin >= Math.round(filter.low * STEPS) && (bin < Math.round(filter.high * STEPS) || filter.high === 1)));
  }

  function show() {
    const [, order] = SORTS[filter.sort];
    visible = images.filter(passes).sort((a, b) => order(a, b) || a.number - b.number);
    count.value = `${number(visible.length)} of ${number(images.length)} images`;
    observer.disconnect();
    grid.replaceChildren(...visible.map(card));
    if (!visible.length) grid.append(el("p", { class: "muted" }, "No image matches the filter."));
    grid.querySelectorAll(".card").forEach((each) => observer.observe(each));
  }

  const instances = (each) => (filter.two ? `${number(each.instances)} and ${number(each.instances2)} instances`
    : `${number(each.instances)} ${each.instances === 1 ? "instance" : "instances"}`);

  function card(each) {
    const [height, width] = each.size;
    const picture = each.thumbnail
      ? el("img", { src: each.thumbnail, alt: "", loading: "lazy", width, height, onload: first })
      : el("span", { class: "lost" }, each.error);
    const words = filter.labels ? `${each.present.length} ${each.present.length === 1 ? "class" : "classes"}` : instances(each);
    const sure = !filter.two && typeof each.sureness === "number" ? `mean score ${score(each.sureness)}` : "";
    const told = [words, sure, "difference" in each ? `difference ${score(each.difference)}` : "", each.note].filter(Boolean);
    const made = el("button", { type: "button", class: "card", title: each.address, onclick: () => segray.viewer.open(each) },
      el("span", { class: "frame", style: { "aspect-ratio": `${width} / ${height}` } }, picture,
        el("canvas", { "aria-hidden": "true", class: filter.two ? "half left" : null }),
        filter.two ? el("canvas", { "aria-hidden": "true", class: "half right" }) : null),
      el("span", { class: "name" }, short(each.address)),
      el("span", { class: "about" }, ...told.map((words) => el("span", {}, words))));
    made.image = each;
    return made;
  }

  /** Draw over a card; of two runs the first on the left half, the second on the right. */
  async function paint(made) {
    const { image } = made;
    const canvases = [...made.querySelectorAll("canvas")];
    const data = await Promise.all(canvases.map((_, place) => segray.image(image.number, place ? "2" : "")));
    image.layers ??= data.map((each) => (filter.labels ? segray.labels : segray.outlines).prepare(each));
    if (!made.isConnected) return;
    canvases.forEach((canvas, place) => {
      const layer = image.layers[place];
      if (filter.labels) segray.labels.draw(canvas, layer, filter, filter.fill);
      else segray.outlines.draw(canvas, image.size, layer.filter((each) => segray.outlines.passes(each, filter)), { fill: filter.fill });
    });
  }

  const repaint = () => grid.querySelectorAll(".card").forEach((each) => { if (each.shown) wait(each); });

  /** Outlines are drawn one card after the other, when nothing else is to do: pictures come first. */
  const waiting = new Set();
  let working = false;
  const idle = () => new Promise((resolve) => {
    if (window.requestIdleCallback) requestIdleCallback(resolve, { timeout: 500 }); else setTimeout(resolve, 10);
  });

  async function wait(made) {
    waiting.add(made);
    if (working) return;
    working = true;
    for (const next of waiting) { // a set also gives what is added meanwhile
      await idle();
      waiting.delete(next);
      if (next.isConnected) await paint(next);
    }
    working = false;
  }

  /** When the first picture was there, for who measures it. */
  function first() {
    if (!performance.getEntriesByName("first picture").length) performance.mark("first picture");
  }

  /** Arrow keys move between the cards. */
  function move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const cards = [...grid.querySelectorAll(".card")];
    const place = cards.indexOf(document.activeElement);
    if (place < 0) return;
    const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
    const further = step ?? { ArrowDown: columns, ArrowUp: -columns }[event.key];
    if (further && cards[place + further]) { event.preventDefault(); cards[place + further].focus(); }
  }

  /** The image before or after one, in the order of the list. */
  const neighbour = (each, step) => visible[visible.indexOf(each) + step] || null;
  const focus = (each) => [...grid.querySelectorAll(".card")].find((made) => made.image === each)?.focus();

  return { build, filter, neighbour, focus, repaint };
})();
