// Instances drawn over a picture. Rings are x, y, x, y, … in quarters of a picture's pixel.
"use strict";

segray.outlines = (() => {
  const UNIT = 4;

  /** Instances as objects, with a path each; the largest first. */
  function prepare(data) {
    return data.class.map((place, index) => {
      const path = new Path2D();
      for (const ring of data.rings[index]) {
        path.moveTo(ring[0], ring[1]);
        for (let at = 2; at < ring.length; at += 2) path.lineTo(ring[at], ring[at + 1]);
        path.closePath();
      }
      return {
        class: place, score: data.score[index], area: data.area[index], id: data.id[index],
        rings: data.rings[index], path, mark: data.mark ? data.mark[index] : null,
      };
    });
  }

  /** Whether an instance passes the filter {classes: Set, low, high}; no class chosen means all. */
  function passes(each, filter) {
    if (filter.classes.size && !filter.classes.has(each.class)) return false;
    if (each.score === null) return filter.people;
    return each.score >= filter.low - 1e-9 && each.score <= filter.high + 1e-9;
  }

  /** Draw on a canvas that covers a picture of `size` [height, width]; fill: opacity of the inside. */
  function draw(canvas, size, instances, { fill = 0.25, chosen = null } = {}) {
    const box = canvas.getBoundingClientRect();
    const density = Math.min(window.devicePixelRatio || 1, 4096 / Math.max(box.width, box.height, 1));
    canvas.width = Math.round(box.width * density);
    canvas.height = Math.round(box.height * density);
    const context = canvas.getContext("2d");
    const scale = canvas.width / size[1] / UNIT;
    if (!scale) return;
    context.setTransform(scale, 0, 0, canvas.height / size[0] / UNIT, 0, 0);
    context.lineJoin = "round";
    const classes = segray.get("classes");
    const width = density / scale;
    for (const each of instances) {
      const rgb = classes[each.class].colour;
      const strong = each === chosen;
      context.fillStyle = segray.colour(rgb, strong ? Math.min(1, fill + 0.3) : fill);
      context.fill(each.path, "evenodd");
      context.strokeStyle = "rgb(0 0 0 / .5)";
      context.lineWidth = (strong ? 5 : 2.8) * width;
      context.stroke(each.path);
      context.strokeStyle = strong ? "#fff" : segray.colour(rgb);
      context.lineWidth = (strong ? 2.4 : 1.5) * width;
      context.setLineDash(each.mark === "unmatched" ? [6 * width, 4 * width] : []);
      context.stroke(each.path);
      context.setLineDash([]);
    }
  }

  /** The topmost instance at a position of the canvas, in shares of its sides. */
  function at(canvas, size, instances, x, y) {
    const context = canvas.getContext("2d");
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    let found = null;
    for (const each of instances) {
      if (context.isPointInPath(each.path, x * size[1] * UNIT, y * size[0] * UNIT, "evenodd")) found = each;
    }
    context.restore();
    return found;
  }

  return { prepare, passes, draw, at, UNIT };
})();
