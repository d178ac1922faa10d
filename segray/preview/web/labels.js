// Label maps, drawn from run lengths: a canvas may not read pictures of a page that is opened from disk.
"use strict";

segray.labels = (() => {
  /** Decode {size, runs: [value, length, value, length, …]} to one value a pixel. */
  function prepare(data) {
    const values = new Uint8Array(data.size[0] * data.size[1]);
    let at = 0;
    for (let place = 0; place < data.runs.length; place += 2) {
      values.fill(data.runs[place], at, at + data.runs[place + 1]);
      at += data.runs[place + 1];
    }
    return { size: data.size, values, shares: data.shares };
  }

  /** Draw a map, or where it differs from another one, in a canvas of the map's own size. */
  function draw(canvas, map, filter, opacity) {
    [canvas.height, canvas.width] = map.size;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(canvas.width, canvas.height);
    const table = new Uint32Array(256);
    const alpha = Math.round(255 * opacity);
    segray.get("classes").forEach((each, index) => {
      if (filter.classes.size ? !filter.classes.has(index) : each.colour === null) return; // background, unless chosen
      const [red, green, blue] = each.colour || [0, 0, 0];
      table[each.value] = ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    });
    const pixels = new Uint32Array(picture.data.buffer);
    for (let at = 0; at < pixels.length; at += 1) pixels[at] = table[map.values[at]];
    context.putImageData(picture, 0, 0);
  }

  /** The class at a position in shares of the sides; null where there is none. */
  function at(map, x, y) {
    const col = Math.min(map.size[1] - 1, Math.floor(x * map.size[1]));
    const row = Math.min(map.size[0] - 1, Math.floor(y * map.size[0]));
    return segray.get("classes").find((each) => each.value === map.values[row * map.size[1] + col]) || null;
  }

  return { prepare, draw, at };
})();
