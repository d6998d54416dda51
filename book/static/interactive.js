/* Fills every .saema-plot of a page with its figure. plotly is fetched from this site, once, and only by
   pages that have such a figure. Colours follow the theme; arrow keys walk through the points. */
(() => {
  "use strict";
  const plotly = new URL("plotly.min.js", document.currentScript.src).href;
  const ink = () => getComputedStyle(document.body).color;
  const grid = () => getComputedStyle(document.documentElement).getPropertyValue("--pst-color-border").trim() || "#ccc";

  function themed(layout) {
    const axes = {};
    for (const key of Object.keys(layout)) if (/^[xy]axis\d*$/.test(key)) axes[key] = true;
    axes.xaxis = axes.yaxis = true;
    const style = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true,
      font: { ...(layout.font || {}), color: ink(), family: getComputedStyle(document.body).fontFamily },
      margin: { l: 60, r: 16, t: 36, b: 50, ...(layout.margin || {}) },
    };
    for (const key of Object.keys(axes)) {
      style[key] = { automargin: true, ...(layout[key] || {}), gridcolor: grid(), zerolinecolor: grid(), linecolor: grid() };
    }
    return { ...layout, ...style };
  }

  function words(html) {
    const box = document.createElement("template");
    box.innerHTML = String(html).replace(/<br\s*\/?>/gi, ", ");
    return box.content.textContent;
  }

  function describe(trace, i) {
    const label = (trace.hovertext && trace.hovertext[i]) || (Array.isArray(trace.text) && trace.text[i]) || "";
    const x = trace.x && trace.x[i], y = trace.y && trace.y[i];
    const number = (v) => (typeof v === "number" ? String(Number(v.toPrecision(3))).replace(/-/g, "−") : v);
    return [trace.name, words(label), `x ${number(x)}`, `y ${number(y)}`].filter(Boolean).join(", ");
  }

  function walk(box, reading) {
    let curve = 0, point = -1;
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!step || !box._fullData) return;
      event.preventDefault();
      const shown = box._fullData.filter((trace) => trace.visible === true && trace.x && trace.hoverinfo !== "skip");
      if (!shown.length) return;
      curve = (curve + step[0] + shown.length) % shown.length;
      const n = shown[curve].x.length;
      point = step[0] ? Math.min(Math.max(point, 0), n - 1) : (point + step[1] + n) % n;
      window.Plotly.Fx.hover(box, [{ curveNumber: shown[curve].index, pointNumber: point }]);
      reading.textContent = describe(shown[curve], point);
    });
  }

  function draw(holder) {
    const box = holder.querySelector(".saema-plot");
    const figure = JSON.parse(holder.querySelector("script[type='application/json']").textContent);
    const options = { responsive: true, displaylogo: false, scrollZoom: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    box.replaceChildren();
    const height = parseInt(box.style.height, 10);
    return window.Plotly.newPlot(box, figure.data, { ...themed(figure.layout || {}), height }, options).then(() => {
      holder.dataset.drawn = "true";
      walk(box, holder.querySelector(".saema-plot-reading"));
      new MutationObserver(() => window.Plotly.relayout(box, themed(figure.layout || {}))).observe(
        document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    });
  }

  document.addEventListener("DOMContentLoaded", () => {
    const holders = [...document.querySelectorAll(".saema-interactive")];
    if (!holders.length) return;
    const script = document.createElement("script");
    script.src = plotly;
    script.onload = () => holders.forEach(draw);
    document.head.append(script);
  });
})();
