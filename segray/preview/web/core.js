// Values that scripts in data/ put, scripts that are loaded when they are needed, and elements.
// Text always becomes a text node: names of files and classes are never read as HTML.
"use strict";

const segray = (() => {
  const values = new Map();
  const scripts = new Map();

  const put = (name, value) => values.set(name, value);
  const get = (name, otherwise) => (values.has(name) ? values.get(name) : otherwise);

  /** Run a script once; browsers refuse fetch and modules for pages opened from disk. */
  function load(address) {
    if (!scripts.has(address)) {
      scripts.set(address, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = address;
        script.onload = () => { script.remove(); resolve(); };
        script.onerror = () => reject(new Error(`${address} cannot be loaded`));
        document.head.append(script);
      }));
    }
    return scripts.get(address);
  }

  function style(address) {
    if (!document.querySelector(`link[href="${address}"]`)) {
      document.head.append(el("link", { rel: "stylesheet", href: address }));
    }
  }

  /** The outlines or the label map of an image, from its own script. */
  async function image(number, side = "") {
    await load(`data/images${side}/${number}.js`);
    return get(`image${side}/${number}`);
  }

  /** An element; attributes that begin with "on" are listeners, null and false leave out. */
  function el(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (name === "style") Object.entries(value).forEach(([key, each]) => made.style.setProperty(key, each));
      else made.setAttribute(name, value === true ? "" : value);
    }
    made.append(...children.filter((each) => each !== null && each !== undefined));
    return made;
  }

  const number = (value) => (typeof value !== "number" ? "–" : value.toLocaleString("en-US",
    Number.isInteger(value) ? {} : { minimumFractionDigits: 4, maximumFractionDigits: 4 }));
  const score = (value) => (typeof value === "number" ? value.toFixed(2) : "–");
  const colour = (rgb, alpha = 1) => (rgb ? `rgb(${rgb[0]} ${rgb[1]} ${rgb[2]} / ${alpha})` : "#000");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  /** The last part of an address, which tells images of one folder apart. */
  function short(address) {
    return address.split("/").pop() || address;
  }

  return { put, get, load, style, image, el, number, score, colour, css, short };
})();
