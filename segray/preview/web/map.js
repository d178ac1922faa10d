// A scene: its picture on a map in pixels (Leaflet, CRS.Simple) with the footprints over it.
"use strict";

segray.map = (() => {
  let map = null;
  let shapes = [];

  async function show(stage, image, instances) {
    segray.style("web/libraries/leaflet.css");
    await segray.load("web/libraries/leaflet.js");
    close();
    const place = segray.el("div", { class: "map" });
    stage.replaceChildren(place);
    const [height, width] = image.size;
    const bounds = [[-height, 0], [0, width]];
    map = L.map(place, { crs: L.CRS.Simple, minZoom: -8, maxZoom: 6, zoomSnap: 0.25, preferCanvas: true, keyboard: false });
    map.attributionControl.setPrefix(false);
    if (image.picture) L.imageOverlay(image.picture, bounds).addTo(map);
    map.fitBounds(bounds);
    shapes = instances.map((each) => footprint(each).addTo(map));
    paint({ shown: true });
    if (image.corners) corners(place, image);
  }

  function footprint(each) {
    const { UNIT } = segray.outlines;
    const rings = each.rings.map((ring) => {
      const points = [];
      for (let at = 0; at < ring.length; at += 2) points.push([-ring[at + 1] / UNIT, ring[at] / UNIT]);
      return points;
    });
    const colour = segray.colour(segray.get("classes")[each.class].colour);
    const shape = L.polygon(rings, { color: colour, weight: 2, fillColor: colour, fillRule: "evenodd" });
    shape.instance = each;
    shape.bindTooltip(() => segray.el("span", {}, segray.viewer.words(each)), { sticky: true });
    shape.on("mouseover", () => segray.viewer.choose(each));
    shape.on("mouseout", () => segray.viewer.choose(null));
    return shape;
  }

  /** Longitude and latitude under the pointer, between those of the four corners. */
  function corners(place, image) {
    const told = segray.el("output", { class: "position" });
    place.append(told);
    const [[a, b], [c, d]] = image.corners;
    map.on("mousemove", (event) => {
      const [x, y] = [event.latlng.lng / image.size[1], -event.latlng.lat / image.size[0]];
      const mix = (part) => (1 - y) * ((1 - x) * a[part] + x * b[part]) + y * ((1 - x) * c[part] + x * d[part]);
      told.value = `${mix(1).toFixed(6)}, ${mix(0).toFixed(6)}`;
    });
  }

  function paint(now) {
    for (const shape of shapes) {
      const seen = now.shown && segray.outlines.passes(shape.instance, segray.gallery.filter);
      const chosen = now.chosen === shape.instance;
      shape.setStyle({ opacity: seen ? 1 : 0, fillOpacity: seen ? segray.gallery.filter.fill + (chosen ? 0.3 : 0) : 0, weight: chosen ? 4 : 2 });
    }
    if (map) map.invalidateSize();
  }

  const zoom = (factor) => map && map.setZoom(map.getZoom() + (factor > 1 ? 0.5 : -0.5));

  function close() {
    if (map) map.remove();
    map = null;
    shapes = [];
  }

  return { show, paint, zoom, close };
})();
