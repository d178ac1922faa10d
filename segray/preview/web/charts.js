// Histograms and curves by uPlot, which is loaded when the first of them is shown.
"use strict";

segray.charts = (() => {
  const { el, number, css } = segray;
  const HEIGHT = 220;
  const LINES = ["#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#ec4899", "#14b8a6", "#a16207", "#64748b", "#84cc16"];
  const drawn = [];

  async function ready() {
    segray.style("web/libraries/uPlot.min.css");
    await segray.load("web/libraries/uPlot.iife.min.js");
  }

  const axis = (more = {}) => ({ stroke: () => css("--ink"), grid: { stroke: () => css("--line"), width: 1 }, ticks: { stroke: () => css("--line") }, font: "12px system-ui", ...more });

  /** A plot that is as wide as its figure and drawn again when the figure or the colours change. */
  function plot(title, options, data) {
    const place = el("div", {});
    const figure = el("figure", { class: "plot" }, el("figcaption", {}, title), place);
    const made = new uPlot({ width: 320, height: HEIGHT, ...options }, data, place);
    const resize = () => { if (place.clientWidth) made.setSize({ width: place.clientWidth, height: HEIGHT }); };
    new ResizeObserver(resize).observe(place);
    drawn.push(made);
    return figure;
  }

  const redraw = () => drawn.forEach((each) => each.redraw(false, true));

  const short = (value) => (value === null ? "more" : Math.abs(value) >= 1e4 ? Intl.NumberFormat("en", { notation: "compact" }).format(value)
    : String(Number(value.toPrecision(3))));

  /** A histogram {title, edges, counts}, or of two runs [edges shared]; bars of equal width. */
  function histogram(each) {
    const places = each.counts.map((_, index) => index);
    const name = (place) => `${short(each.edges[place])} to ${short(each.edges[place + 1])}`;
    const series = (label, colour) => ({ label, stroke: colour, fill: `${colour}88`, width: 1, points: { show: false }, value: (_, value) => number(value) });
    const other = each.counts2;
    const all = [{ value: (_, place) => (place === null ? "–" : name(place)), label: "from" }];
    const bars = uPlot.paths.bars({ size: [other ? 0.4 : 0.86, 64], align: other ? -1 : 0 });
    all.push({ ...series(other ? each.names[0] : "number", LINES[0]), paths: bars });
    if (other) all.push({ ...series(each.names[1], LINES[1]), paths: uPlot.paths.bars({ size: [0.4, 64], align: 1 }) });
    return plot(each.title, {
      scales: { x: { time: false, range: [-0.6, places.length - 0.4] }, y: { range: (_, low, high) => [0, Math.max(1, high * 1.05)] } },
      axes: [axis({ values: (_, splits) => splits.map((place) => (Number.isInteger(place) && each.edges[place] !== undefined ? short(each.edges[place]) : "")), incrs: [1, 2, 4, 5, 10, 20], space: 44 }),
        axis({ size: 56, values: (_, splits) => splits.map((value) => short(value)) })],
      series: all,
    }, [places, each.counts, ...(other ? [other] : [])]);
  }

  /** Curves over x: {title, x, xlabel, curves: [{name, values}], logarithmic, low, high}. */
  function curves(each) {
    const range = each.low === undefined ? {} : { range: [each.low, each.high] };
    const distribution = each.logarithmic ? { distr: 3 } : {};
    const points = { show: each.x.length <= 40, size: 5 };
    return plot(each.title, {
      scales: { x: { time: false, ...(each.x.length === 1 ? { range: [each.x[0] - 1, each.x[0] + 1] } : {}) }, y: { ...range, ...distribution } },
      axes: [axis({ label: each.xlabel, ...(each.x.every(Number.isInteger) ? { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 5000] } : {}), labelSize: 18, labelFont: "12px system-ui", space: 44 }), axis({ size: 64, values: (_, splits) => splits.map((value) => (value === null ? "" : short(value))) })],
      series: [{ label: each.xlabel }, ...each.curves.map((curve, index) => ({
        label: curve.name, stroke: LINES[index % LINES.length], width: 2, points, spanGaps: false, dash: index >= LINES.length ? [6, 4] : undefined,
        value: (_, value) => (value === null ? "–" : Number(value.toPrecision(4))),
      }))],
    }, [each.x, ...each.curves.map((curve) => curve.values)]);
  }

  return { ready, histogram, curves, redraw };
})();
