/* Fills every .saema-plot of a page with its figure. plotly is fetched from this site, once, and only by
   pages that have such a figure. Colours follow the theme; arrow keys walk through the points; native controls take the
   steps that plotly's own sliders and menus would take. */
(() => {
  "use strict";
  const plotly = new URL("plotly.min.js", document.currentScript.src).href;
  const ink = () => getComputedStyle(document.body).color;
  const grid = () => getComputedStyle(document.documentElement).getPropertyValue("--pst-color-border").trim() || "#ccc";

  const phone = window.matchMedia("(max-width: 480px)");

  // Panels that stand beside each other on a desk stand below each other on a phone.
  function stacked(layout, height) {
    if (!phone.matches || !layout.xaxis2) return { ...layout, height };
    const part = (axis, domain) => ({ ...(layout[axis] || {}), domain });
    return { ...layout, height: Math.round(1.6 * height), xaxis: part("xaxis", [0, 1]), xaxis2: part("xaxis2", [0, 1]),
      yaxis: part("yaxis", [0.5, 1]), yaxis2: part("yaxis2", [0, 0.4]) };
  }

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

  // A point in words: its trace if there are several, its text, and its place if axes say what that means.
  function describe(box, trace, i, several) {
    const label = (trace.hovertext && trace.hovertext[i]) || (Array.isArray(trace.text) && trace.text[i]) || "";
    const number = (v) => (typeof v === "number" ? String(Number(v.toPrecision(3))).replace(/-/g, "−") : v);
    const at = (axis) => box._fullLayout[trace[`${axis}axis`].replace(axis, `${axis}axis`)].visible &&
      `${axis} ${number(trace[axis][i])}`;
    return [several && trace.name, words(label), at("x"), at("y")].filter(Boolean).join(", ");
  }

  function walk(box, reading) {
    let curve = 0, point = -1;
    box.addEventListener("keydown", (event) => {
      const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
      if (!step || !box._fullData) return;
      event.preventDefault();
      const known = (x) => x !== null; // lines are broken where nothing is
      const shown = box._fullData.filter(
        (trace) => trace.visible === true && trace.x && trace.x.some(known) && trace.hoverinfo !== "skip");
      if (!shown.length) return;
      curve = (curve + step[0] + shown.length) % shown.length;
      const trace = shown[curve], n = trace.x.length;
      if (step[0]) point = Math.min(Math.max(point, 0), n - 1);
      else do point = (point + step[1] + n) % n; while (!known(trace.x[point]));
      window.Plotly.Fx.hover(box, [{ curveNumber: trace.index, pointNumber: point }], trace.xaxis + trace.yaxis);
      reading.textContent = describe(box, trace, point, shown.length > 1);
    });
  }

  // The traces that are shown say by their names what a control has changed: for the eye a legend, else read out.
  function say(box, says) {
    says.replaceChildren(...box._fullData.filter((trace) => trace.visible === true && trace.showlegend).map((trace) => {
      const line = document.createElement("p"), color = (trace.line && trace.line.color) || trace.marker.color;
      line.textContent = trace.name;
      if (typeof color === "string") line.style.setProperty("--trace", color);
      return line;
    }));
  }

  function steer(holder, box, controls) {
    const says = holder.querySelector(".saema-says");
    holder.querySelectorAll(".saema-controls > *").forEach((control, number) => {
      control.addEventListener("input", ({ target }) => {
        const step = controls[number][target.value];
        if (target.type === "range") {
          target.setAttribute("aria-valuetext", step.label);
          target.nextElementSibling.value = step.label;
        }
        window.Plotly[step.method](box, ...step.args).then(() => say(box, says));
      });
    });
    say(box, says);
    says.setAttribute("aria-live", "polite"); // from now on: what stands there at first is not news
    says.setAttribute("aria-atomic", "true");
    holder.querySelector(".saema-controls").hidden = false;
  }

  function draw(holder) {
    const box = holder.querySelector(".saema-plot");
    const figure = JSON.parse(holder.querySelector("script[type='application/json']").textContent);
    const options = { responsive: true, displaylogo: false, scrollZoom: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    const height = parseInt(box.style.height, 10), { updatemenus = [], sliders = [] } = figure.controls;
    const controls = [...updatemenus, ...sliders].map((control) => control.steps || control.buttons);
    if (controls.length) figure.layout.showlegend = false; // what the traces say stands beside the controls
    const layout = () => {
      const found = themed(stacked(figure.layout, height));
      box.style.height = `${found.height}px`;
      return found;
    };
    box.replaceChildren();
    return window.Plotly.newPlot(box, figure.data, layout(), options).then(() => {
      holder.dataset.drawn = "true";
      walk(box, holder.querySelector(".saema-plot-reading"));
      if (controls.length) steer(holder, box, controls);
      const again = () => window.Plotly.react(box, box.data, layout(), options);
      new MutationObserver(again).observe(
        document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
      phone.addEventListener("change", again);
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
