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
    const boxes = ".bd-article pre, .saema-scroll, .pst-scrollable-table-container, .saema-pan, div.math, mjx-container[display=\"true\"]";
    for (const box of document.querySelectorAll(boxes)) {
      if (box.scrollWidth > box.clientWidth + 1 && !box.hasAttribute("tabindex")) {
        box.tabIndex = 0;
        if (!box.hasAttribute("aria-label") && box.tagName !== "PRE") {
          box.setAttribute("role", "region");
          box.setAttribute("aria-label", "Scrolls sideways");
        }
      }
    }
  }

  /* On a phone a row is a card, in which each cell says what it holds. */
  function nameCells() {
    for (const table of document.querySelectorAll(".bd-article table.table:has(> thead)")) {
      const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
      for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, i) => { cell.dataset.label = names[i] ?? ""; });
      table.classList.add("saema-cards");
    }
  }

  /* On a phone a figure moves under the finger, above its caption; it and a long formula fade where there is more. */
  function panWide() {
    for (const image of document.querySelectorAll(".bd-article :is(figure, .cell_output) img")) {
      if (image.closest(".saema-pan")) continue;
      const box = document.createElement("div"), whole = image.closest("a") ?? image;
      box.className = "saema-pan";
      whole.replaceWith(box);
      box.append(whole);
      watch(box);
    }
    document.querySelectorAll('.bd-article mjx-container[display="true"]').forEach(watch);
  }

  const watched = new WeakSet();
  function watch(box) {
    fade(box);
    if (watched.has(box)) return;
    watched.add(box);
    box.addEventListener("scroll", () => fade(box), {passive: true});
    new ResizeObserver(() => fade(box)).observe(box); /* it may come out of a fold, or its image late */
  }

  function fade(box) {
    box.classList.toggle("saema-more-left", box.scrollLeft > 1);
    box.classList.toggle("saema-more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
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

  /* What a term means stands in its title, which only a mouse brings up (and a screen reader says): here it comes up
     under the term for the keyboard too, and at a first touch; the second follows the link. */
  function explainTerms() {
    const box = document.createElement("div");
    box.className = "saema-meaning";
    box.setAttribute("aria-hidden", "true");
    box.hidden = true;
    document.body.append(box);
    let shown = null, before = null;
    const hide = () => { box.hidden = true; shown = null; };
    function show(link) {
      shown = link;
      box.textContent = link.title;
      box.hidden = false;
      const [place] = link.getClientRects(), room = document.documentElement.clientWidth - box.offsetWidth - 8;
      box.style.left = `${window.scrollX + Math.max(8, Math.min(place.left, room))}px`;
      box.style.top = `${window.scrollY + place.bottom + 4}px`;
    }
    for (const link of document.querySelectorAll('.bd-article a[href*="#term-"][title]:not(.headerlink)')) {
      link.addEventListener("focus", () => { if (link.matches(":focus-visible")) show(link); });
      link.addEventListener("blur", hide);
      link.addEventListener("click", (event) => {
        if (event.pointerType !== "touch" || before === link) return;
        event.preventDefault();
        show(link);
      });
    }
    document.addEventListener("pointerdown", () => { before = shown; hide(); }, true);
    document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
    window.addEventListener("resize", hide);
  }

  document.addEventListener("DOMContentLoaded", nameToggles);
  document.addEventListener("DOMContentLoaded", explainTerms);
  document.addEventListener("DOMContentLoaded", nameCells);
  /* Formulas take their width only when MathJax has set them, which may be after the page has loaded. */
  window.addEventListener("load", () => {
    panWide();
    reachScrollable();
    window.MathJax?.startup?.promise?.then(() => { panWide(); reachScrollable(); });
  });
  window.addEventListener("resize", reachScrollable);
  document.addEventListener("toggle", reachScrollable, true); /* what was folded had no width */
})();
