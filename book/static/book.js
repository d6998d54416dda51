/* Small repairs that keep every page usable by keyboard and screen reader. */
(() => {
  "use strict";

  /* The theme's fold-out marks in the sidebar carry an icon and no name. */
  function nameToggles() {
    for (const summary of document.querySelectorAll(".bd-sidebar summary")) {
      const entry = summary.closest("li")?.querySelector("a");
      summary.setAttribute("aria-label", `Pages under ${entry ? entry.textContent.trim() : "this entry"}`);
    }
  }

  /* What scrolls sideways in its own box must be reachable by keyboard. */
  function reachScrollable() {
    const boxes = ".bd-article pre, .saema-scroll, .pst-scrollable-table-container, .bd-article figure, div.math, mjx-container[display=\"true\"]";
    for (const box of document.querySelectorAll(boxes)) {
      if (box.scrollWidth > box.clientWidth + 1 && !box.hasAttribute("tabindex")) {
        box.tabIndex = 0;
        if (!box.hasAttribute("aria-label") && box.tagName !== "PRE" && box.tagName !== "FIGURE") {
          box.setAttribute("role", "region");
          box.setAttribute("aria-label", "Scrolls sideways");
        }
      }
    }
  }

  /* Paper cannot be unfolded, and has no dark side. The code of figures stays away, as the style sheet says. */
  let unfolded = [], theme = "";
  window.addEventListener("beforeprint", () => {
    unfolded = [...document.querySelectorAll(".bd-article details:not([open], .sd-dropdown)")];
    for (const fold of unfolded) fold.open = true;
    theme = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
  });
  window.addEventListener("afterprint", () => {
    for (const fold of unfolded) fold.open = false;
    document.documentElement.dataset.theme = theme;
  });

  document.addEventListener("DOMContentLoaded", nameToggles);
  /* Formulas take their width only when MathJax has set them, which may be after the page has loaded. */
  window.addEventListener("load", () => {
    reachScrollable();
    window.MathJax?.startup?.promise?.then(reachScrollable);
  });
  window.addEventListener("resize", reachScrollable);
  document.addEventListener("toggle", reachScrollable, true); /* what was folded had no width */
})();
