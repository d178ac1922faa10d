// One image, large: outlines or label map, hover for class, score and id, the list of its instances.
"use strict";

segray.viewer = (() => {
  const { el, number, score, short } = segray;
  let dialog = null;
  let stage = null;
  let side = null;
  let tip = null;
  let now = null;

  function build() {
    tip = el("div", { class: "tip", hidden: true });
    stage = el("div", { class: "stage" });
    side = el("aside", {});
    dialog = el("dialog", { class: "viewer", "aria-label": "Image", onclose: closed, onkeydown: key },
      el("div", { class: "bar" },
        el("h2", {}),
        button("Previous", "‹", "←", () => go(-1)), button("Next", "›", "→", () => go(1)),
        button("Smaller", "−", "-", () => zoom(1 / 1.5)), button("Larger", "+", "+", () => zoom(1.5)),
        button("Outlines on or off", "◪", "o", toggle), button("Close", "✕", "Esc", () => dialog.close())),
      el("div", { class: "body" }, stage, side), tip);
    document.body.append(dialog);
    new ResizeObserver(() => now && paint()).observe(stage);
  }

  const button = (title, sign, keys, act) => el("button", { type: "button", title: `${title} (${keys})`, "aria-label": title, onclick: act }, sign);

  /** Keep the image in the address; a browser that refuses that for a page from disk does without. */
  function address(text) {
    try { history.replaceState(null, "", text); } catch { /* not allowed there */ }
  }

  async function open(image) {
    if (!dialog) build();
    now = { image, zoom: 1, shown: true, chosen: null, split: 0.5 };
    dialog.querySelector("h2").textContent = short(image.address);
    dialog.classList.toggle("compares", Boolean(segray.get("page").kind.endsWith("+")));
    stage.replaceChildren();
    side.replaceChildren(about(image));
    if (!dialog.open) dialog.showModal();
    address(`#image/${image.number}`);
    const mine = now;
    const first = await segray.image(image.number);
    const second = segray.get("page").kind.endsWith("+") ? await segray.image(image.number, "2") : null;
    if (now !== mine) return;
    now.layers = [first, second].filter(Boolean).map(layer);
    if (image.scene && !second && first.rings) await segray.map.show(stage, image, now.layers[0].instances);
    else flat();
    if (now === mine) list();
  }

  const layer = (data) => (data.runs ? { map: segray.labels.prepare(data) } : { instances: segray.outlines.prepare(data) });

  /** The picture with a canvas for each run over it, and the slider between two runs. */
  function flat() {
    const { image } = now;
    const picture = image.picture ? el("img", { src: image.picture, alt: image.address, draggable: "false" })
      : el("p", { class: "lost" }, image.error);
    now.canvases = now.layers.map(() => el("canvas", { "aria-hidden": "true" }));
    now.sheet = el("div", { class: "sheet", onpointermove: hover, onpointerleave: () => point(null) }, picture, ...now.canvases);
    if (now.layers.length === 2) now.sheet.append(slider());
    stage.replaceChildren(now.sheet);
    paint();
  }

  function slider() {
    const move = (event) => { now.split = Number(event.target.value) / 100; divide(); };
    const runs = segray.get("page").runs;
    now.line = el("div", { class: "line" });
    return el("div", { class: "split" }, now.line,
      el("span", { class: "left" }, runs[0].name), el("span", { class: "right" }, runs[1].name),
      el("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "Left: the first run, right: the second", oninput: move }));
  }

  function divide() {
    const share = now.split * 100;
    now.canvases[0].style.clipPath = `inset(0 ${100 - share}% 0 0)`;
    now.canvases[1].style.clipPath = `inset(0 0 0 ${share}%)`;
    now.line.style.left = `${share}%`;
  }

  function fit() {
    const [height, width] = now.image.size;
    const room = stage.getBoundingClientRect();
    const scale = Math.min((room.width - 2) / width, (room.height - 2) / height) * now.zoom;
    now.sheet.style.width = `${Math.max(1, width * scale)}px`;
    now.sheet.style.height = `${Math.max(1, height * scale)}px`;
    now.sheet.classList.toggle("coarse", scale > 2.5);
  }

  const passing = (each) => segray.outlines.passes(each, segray.gallery.filter);

  function paint() {
    if (!now.sheet) { segray.map.paint(now); return; }
    fit();
    const { filter } = segray.gallery;
    now.layers.forEach((each, place) => {
      const canvas = now.canvases[place];
      canvas.hidden = !now.shown;
      if (each.map) segray.labels.draw(canvas, each.map, filter, filter.fill);
      else segray.outlines.draw(canvas, now.image.size, each.instances.filter(passing), { fill: filter.fill, chosen: now.chosen });
    });
    if (now.line) divide();
  }

  function hover(event) {
    const box = now.sheet.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    const place = now.layers.length === 2 && x > now.split ? 1 : 0;
    const each = now.layers[place];
    if (each.map) {
      const found = segray.labels.at(each.map, x, y);
      point(found && now.shown ? found.name : null, event);
    } else {
      const found = now.shown ? segray.outlines.at(now.canvases[place], now.image.size, each.instances.filter(passing), x, y) : null;
      choose(found, event);
    }
  }

  function choose(found, event) {
    if (now.chosen !== found) { now.chosen = found; paint(); mark(); }
    point(found ? words(found) : null, event);
  }

  const words = (each) => [segray.get("classes")[each.class].name, each.score === null ? "from a person" : score(each.score),
    `${number(each.area)} px`, each.id ? `#${each.id}` : null, each.mark].filter(Boolean).join(" · ");

  function point(text, event) {
    tip.hidden = !text;
    if (!text || !event) return;
    tip.textContent = text;
    const box = dialog.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY - box.top + 16, box.height - tip.offsetHeight - 8)}px`;
  }

  function about(image) {
    const rows = [["Address", image.address], ["Image id", image.id], ["Size", `${number(image.width)} × ${number(image.height)} px`],
      ["In the sample for", image.why], ["Difference", "difference" in image ? score(image.difference) : null], ["Note", image.note], ["Picture", image.error]];
    return el("dl", {}, ...rows.filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, String(value))]));
  }

  /** The instances under the picture, the least sure first; or the shares of the classes. */
  function list() {
    const classes = segray.get("classes");
    const swatch = (each) => el("i", { class: "swatch", style: { background: segray.colour(each.colour) } });
    now.layers.forEach((each, place) => {
      const name = now.layers.length === 2 ? segray.get("page").runs[place].name : null;
      if (name) side.append(el("h3", {}, name));
      if (each.map) {
        const rows = classes.map((one) => [one, each.map.shares[one.value] || 0]).filter(([, share]) => share > 0).sort((a, b) => b[1] - a[1]);
        side.append(el("table", {}, el("tbody", {}, ...rows.map(([one, share]) => el("tr", {}, el("td", {}, swatch(one), one.name), el("td", { class: "number" }, `${(100 * share).toFixed(share < 0.1 ? 2 : 1)} %`))))));
        return;
      }
      const drawn = each.instances.filter(passing).sort((a, b) => (a.score ?? 2) - (b.score ?? 2));
      const all = now.image[place ? "instances2" : "instances"];
      side.append(el("p", { class: "muted" }, `${number(drawn.length)} of ${number(all)} instances, the least sure first`));
      const body = el("tbody", {}, ...drawn.slice(0, 500).map((one) => {
        const row = el("tr", { tabindex: 0, onpointerenter: () => choose(one), onfocus: () => choose(one) },
          el("td", {}, swatch(classes[one.class]), classes[one.class].name), el("td", { class: "number" }, score(one.score)),
          el("td", { class: "number" }, number(one.area)), el("td", { class: "id" }, one.id));
        row.instance = one;
        return row;
      }));
      const head = ["class", "score", "area", "id"].map((title) => el("th", { class: ["score", "area"].includes(title) ? "number" : null }, title));
      side.append(el("table", { class: "instances" }, el("thead", {}, el("tr", {}, ...head)), body));
      if (drawn.length > 500) side.append(el("p", { class: "muted" }, "The table ends after 500."));
    });
  }

  const mark = () => side.querySelectorAll("tr[tabindex]").forEach((row) => row.classList.toggle("chosen", row.instance === now.chosen));

  function zoom(factor) {
    if (!now.sheet) { segray.map.zoom(factor); return; }
    now.zoom = Math.min(16, Math.max(1, now.zoom * factor));
    paint();
  }

  function toggle() { now.shown = !now.shown; paint(); }

  function go(step) {
    const further = segray.gallery.neighbour(now.image, step);
    if (further) open(further);
  }

  function key(event) {
    if (event.target.matches("input") && event.key.startsWith("Arrow")) return;
    const act = { ArrowLeft: () => go(-1), ArrowRight: () => go(1), "+": () => zoom(1.5), "-": () => zoom(1 / 1.5), o: toggle }[event.key];
    if (act && !event.ctrlKey && !event.metaKey) { event.preventDefault(); act(); }
  }

  function closed() {
    address(location.pathname + location.search);
    segray.map.close();
    const { image } = now;
    now = null;
    tip.hidden = true;
    segray.gallery.focus(image);
  }

  return { open, choose, words };
})();
