"""The built site, every page of it, in a real browser with the network refused."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import nbformat
import pytest

from saema_utils.notebook import CHAPTERS
from saema_utils.publishing import address

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.browser, pytest.mark.model, pytest.mark.slow]
CHROMIUM = os.environ.get("SAEMA_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
PHONE = {"width": 390, "height": 844}
DESK = {"width": 1280, "height": 900}
LETTERS = """async () => {
  const found = [];
  for (const image of document.querySelectorAll('.bd-article img[src$=".svg"]')) {
    image.loading = "eager";
    await image.decode();
    const drawing = await (await fetch(image.src)).text();
    const width = Number(drawing.match(/viewBox="\\S+ \\S+ (\\S+)/)[1]);
    const points = [...drawing.matchAll(/scale\\(([\\d.]+) -/g)].map((scale) => 100 * scale[1]);
    const pixels = Math.min(...points) * image.getBoundingClientRect().width / width;
    found.push([image.src.split("/").pop(), Math.round(10 * pixels) / 10]);
  }
  return found;
}"""
SEARCHES = {
    "how to cite": "book/cite",
    "limitations": "book/limitations",
    "covariance_spectrum": "book/api/stratification",
    "attention sink": "book/glossary",
    "train sparse dictionary": "notebooks/02",
    "merging": "notebooks/04",
    "own model": "book/your_own",
}
FACTS = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  const content = document.querySelector(".bd-article") || document.body;
  const seen = content.cloneNode(true);
  seen.querySelectorAll("pre, code, script").forEach((e) => e.remove());
  const prose = seen.cloneNode(true);
  prose.querySelectorAll("style, svg, mjx-container, .math, dl.py dt").forEach((e) => e.remove());
  const images = [...document.images];
  await Promise.all(images.map((i) => { i.loading = "eager"; return i.decode().catch(() => {}); }));
  const weight = performance.getEntriesByType("resource").reduce((sum, e) => sum + e.encodedBodySize, 0);
  return {
    broken: images.filter((i) => !i.naturalWidth).map((i) => i.src),
    unnamed: images.filter((i) => !(i.getAttribute("alt") || "").trim()).map((i) => i.src),
    formulas: content.querySelectorAll(".math").length,
    drawn: content.querySelectorAll("mjx-container svg").length,
    math_errors: [...content.querySelectorAll('mjx-container [fill="red"], mjx-merror, mjx-container [data-mjx-error]')]
      .map((e) => e.textContent),
    raw: (seen.textContent.match(
      /\\{(ref|doc|term|numref|eq|cite|glue|func|download)[^}]*\\}`|\\{\\{ ?\\w+ ?\\}\\}|<!-- \\w+ -->/g) || []),
    ids: [...document.querySelectorAll("[id], a[name]")].map((e) => e.id || e.name),
    links: [...document.querySelectorAll("a[href]")].map((a) => a.getAttribute("href")),
    title: document.title,
    prose: prose.textContent,
    weight: weight + performance.getEntriesByType("navigation")[0].encodedBodySize,
  };
}"""
# Colours that are still fading from one theme to the other would be measured half way.
STILL = "*, *::before, *::after { transition: none !important; animation: none !important; }"
# What an interactive figure draws now, and on which axes.
SHOWN = """plot => JSON.stringify(
  plot._fullData.filter((trace) => trace.visible === true).map(({ x, y, name }) => [x, y, name]))"""
RANGES = """plot => JSON.stringify(
  Object.keys(plot._fullLayout).filter((key) => /^[xy]axis/.test(key)).map((key) => plot._fullLayout[key].range))"""
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass
class Visit:
    """What one page did and what stands on it."""

    complaints: list[str] = field(default_factory=list)
    remote: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    facts: dict = field(default_factory=dict)
    wider_on_phone: int = 0
    faults: dict[str, list[str]] = field(default_factory=dict)


def audited(name: str) -> bool:
    """Every page that somebody wrote, and one of each kind that is generated alike from source code."""
    alike = name.startswith(("_modules/", "book/api/")) or name == "genindex.html"
    return not alike or name in ("_modules/saema_utils/errors.html", "book/api/stratification.html")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def base(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        message = "no Chromium on this machine (Debian: apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{message}; CI must run the browser tests")
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, base):
    """A page that reaches the site and nothing else."""
    context = browser.new_context(viewport=DESK)
    context.route(lambda url: not url.startswith(base), lambda route: route.abort())
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def pages(site: Path) -> list[str]:
    """Every page of the site but its index, which only leads on to the first page."""
    found = {path.relative_to(site).as_posix() for path in site.rglob("*.html") if "_static" not in path.parts}
    return sorted(found - {"index.html"})


@pytest.fixture(scope="module")
def visits(browser, base, pages) -> dict[str, Visit]:
    """Every page opened once: what it asked for, what it complained about, what stands on it."""
    axe = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
    context = browser.new_context(viewport=DESK)
    found: dict[str, Visit] = {}
    now, given_up = Visit(), []

    def refuse(route) -> None:
        now.remote.append(route.request.url)
        route.abort()

    context.route(lambda url: not url.startswith(base), refuse)
    tab = context.new_page()
    tab.on("console", lambda m: now.complaints.append(m.text) if m.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: now.complaints.append(str(error)))
    tab.on("requestfailed", lambda r: (given_up if r.failure == "net::ERR_ABORTED" else now.failed).append(r.url))
    tab.on("response", lambda r: now.failed.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    for name in pages:
        now = found[name] = Visit()
        tab.set_viewport_size(DESK)
        tab.emulate_media(color_scheme="light")
        tab.goto(base + name, wait_until="load")
        now.facts = tab.evaluate(FACTS)
        for scheme in ("light", "dark") if audited(name) else ():
            tab.emulate_media(color_scheme=scheme)
            tab.add_style_tag(content=STILL)
            tab.add_script_tag(content=axe)
            rules = ", runOnly: ['color-contrast']" if scheme == "dark" else ""
            result = tab.evaluate(f"axe.run(document, {{resultTypes: ['violations'], preload: false{rules}}})")
            for fault in result["violations"]:
                if fault["impact"] in ("serious", "critical"):
                    where = [" ".join(map(str, node["target"])) for node in fault["nodes"][:4]]
                    now.faults[f"{fault['id']} ({scheme})"] = where
        tab.set_viewport_size(PHONE)
        now.wider_on_phone = tab.evaluate(WIDER)
    # A request is given up when the tab moves on before the answer; whether there is one is asked here.
    found[pages[-1]].failed += [url for url in dict.fromkeys(given_up) if not context.request.get(url).ok]
    context.close()
    return found


def test_the_index_leads_to_the_first_page(page, base):
    page.goto(f"{base}index.html")
    page.wait_for_url("**/book/intro.html")
    assert "sparse coding" in page.title()


def test_no_page_complains(visits):
    assert {name: v.complaints for name, v in visits.items() if v.complaints} == {}


def test_no_page_asks_another_site_for_anything(visits):
    assert {name: v.remote for name, v in visits.items() if v.remote} == {}


def test_no_request_fails(visits):
    assert {name: v.failed for name, v in visits.items() if v.failed} == {}


def test_all_images_load_and_have_a_description(visits):
    assert {name: v.facts["broken"] for name, v in visits.items() if v.facts["broken"]} == {}
    assert {name: v.facts["unnamed"] for name, v in visits.items() if v.facts["unnamed"]} == {}


def test_every_formula_is_drawn_without_an_error(visits):
    assert {n: v.facts["math_errors"] for n, v in visits.items() if v.facts["math_errors"]} == {}
    short = {n: v.facts for n, v in visits.items() if v.facts["drawn"] < v.facts["formulas"]}
    assert not short, {n: (f["drawn"], f["formulas"]) for n, f in short.items()}
    assert visits["book/method.html"].facts["drawn"] > 20


def test_no_markup_is_left_raw(visits):
    assert {name: v.facts["raw"] for name, v in visits.items() if v.facts["raw"]} == {}


def test_nothing_scrolls_sideways_on_a_phone(visits):
    assert {name: v.wider_on_phone for name, v in visits.items() if v.wider_on_phone > 0} == {}


def test_every_number_in_prose_is_written_in_one_way(visits):
    """A true minus, no signed nothing, powers of ten, and no line may end between a number and its unit."""
    other_way = r"(?<![\w.\-–/])-\.?\d|\d[eE][-+]\d|(?<![\w.])[-−+]0(?:\.0+)?(?![\w.])|\d ?%|\d (?:ms|s|min|GiB|MB)\b"
    found = {name: re.findall(f".{{,20}}(?:{other_way}).{{,10}}", v.facts["prose"]) for name, v in visits.items()}
    assert {name: faults for name, faults in found.items() if faults} == {}


BOXES = """() => {
  document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
  return [...document.querySelectorAll(".saema-scroll")].map((box) => {
    const rows = [...box.querySelectorAll("tbody tr")];
    return {
      cut: box.scrollWidth - box.clientWidth,
      folded: !!box.closest(".saema-table-wrap > details"),
      rows: rows.length,
      cards: rows.length > 0 && rows.every((row) => {
        const cells = [...row.children].map((cell) => cell.getBoundingClientRect());
        return cells.every((cell, i) => i === 0 || cell.top >= cells[i - 1].bottom - 1);
      }),
      labelled: [...box.querySelectorAll("td")].every((cell) => {
        const label = getComputedStyle(cell, "::before");
        return label.content.length > 2 && label.whiteSpace === "normal"; // else it runs into what the cell holds
      }),
      empty: [...box.querySelectorAll("thead th")]
        .filter((_, i) => rows.every((row) => /^[–\\s]*$/.test(row.children[i].textContent)))
        .map((cell) => cell.textContent),
      shadows: getComputedStyle(box).backgroundAttachment,
    };
  });
}"""


def test_tables_of_chapters_are_whole_on_a_desk_and_a_card_a_row_on_a_phone(page, base, pages):
    for name in (name for name in pages if name.startswith("notebooks/")):
        page.set_viewport_size(DESK)
        page.goto(base + name)
        boxes = page.evaluate(BOXES)
        assert boxes, name
        assert [box for box in boxes if box["cut"] > 1] == [], f"{name}: cut at {DESK['width']} px"
        assert max(box["rows"] for box in boxes if not box["folded"]) <= 12, name
        page.set_viewport_size(PHONE)
        small = page.evaluate(BOXES)
        assert [box for box in small if box["cut"] > 1] == [], f"{name}: cut on a phone"
        assert all(box["cards"] and box["labelled"] for box in small if box["rows"]), name
        assert page.evaluate(WIDER) <= 0, name


def test_a_box_that_scrolls_has_a_shadow(page, base):
    page.goto(f"{base}book/results.html")
    cut = [box for box in page.evaluate(BOXES) if box["cut"] > 1]
    assert cut, "no preview is wider than the page"
    assert {box["shadows"] for box in cut} == {"local, local, scroll, scroll"}


CARDS = """() => {
  document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
  return [...document.querySelectorAll(".bd-article table.table")].map((table) => ({
    begins: table.textContent.trim().slice(0, 40),
    cut: table.scrollWidth - table.parentElement.clientWidth,
    cards: [...table.tBodies[0].rows].every((row) => {
      const cells = [...row.cells].filter((cell) => cell.checkVisibility()).map((cell) => cell.getBoundingClientRect());
      return cells.length > 0 && cells.every((box, i) => i === 0 || box.top >= cells[i - 1].bottom - 1);
    }),
  }));
}"""


def test_tables_of_other_pages_are_a_card_a_row_on_a_phone(page, base, pages):
    page.set_viewport_size(PHONE)
    seen = 0
    for name in (name for name in pages if re.match(r"book/\w+\.html", name)):
        page.goto(base + name)
        tables = page.evaluate(CARDS)
        seen += len(tables)
        assert [table for table in tables if table["cut"] > 1 or not table["cards"]] == [], name
    assert seen > 20


PANS = """() => [...document.querySelectorAll('.saema-pan, .bd-article mjx-container[display="true"]')]
  .filter((box) => box.clientWidth).map((box) => {
    const sides = () => ["left", "right"].filter((side) => box.classList.contains(`saema-more-${side}`)).join();
    const wide = box.scrollWidth > box.clientWidth + 1, image = box.classList.contains("saema-pan");
    return { wide, image, sides: sides(), reached: !wide || box.tabIndex === 0 };
  })"""


def test_what_moves_under_a_finger_fades_on_the_side_where_there_is_more(page, base, pages):
    kinds = set()
    page.set_viewport_size(PHONE)
    for name in (name for name in pages if name.startswith("notebooks/")):
        page.goto(base + name)
        page.wait_for_function("document.querySelector('.saema-pan.saema-more-right')")
        boxes = page.evaluate(PANS)
        assert all(box["sides"] == ("right" if box["wide"] else "") and box["reached"] for box in boxes), name
        kinds |= {(box["image"], box["wide"]) for box in boxes}
    assert {(True, True), (False, True), (False, False)} <= kinds
    page.evaluate("document.querySelector('.saema-pan').scrollTo(1e4, 0)")
    page.wait_for_function("document.querySelector('.saema-pan').className === 'saema-pan saema-more-left'")
    page.set_viewport_size(DESK)
    page.wait_for_function("!document.querySelector('.saema-more-left, .saema-more-right')")


def test_every_table_of_the_results_has_a_description_a_preview_and_a_link_in_one_piece(page, base, site):
    page.goto(f"{base}book/results.html")
    tables = page.evaluate("""() => [...document.querySelectorAll("section:has(> p > a.download)")].map((part) => {
      part.querySelectorAll("details").forEach((fold) => { fold.open = true; });
      const link = part.querySelector("a.download");
      return {
        name: part.querySelector("h3").firstChild.textContent, says: part.querySelector("p").textContent,
        pieces: link.getClientRects().length + link.querySelector("code").getClientRects().length,
        previews: part.querySelectorAll(".saema-table tbody tr").length,
      };
    })""")
    names = {path.stem for path in (site / "_downloads").rglob("[0-9][0-9]_*.csv")}
    assert {table["name"] for table in tables} == names
    assert [t["name"] for t in tables if not re.match(r"[A-Z].{15,}\. [\d,]+ rows", t["says"], re.S)] == []
    assert [t["name"] for t in tables if t["pieces"] != 2] == []
    assert [t["name"] for t in tables if not 1 <= t["previews"] <= 8] == []
    boxes = page.evaluate(BOXES)
    assert [box["empty"] for box in boxes if box["empty"]] == []


def test_no_serious_accessibility_fault(visits):
    assert {name: v.faults for name, v in visits.items() if v.faults} == {}


def test_every_link_and_anchor_inside_the_site_resolves(visits, site):
    dangling = []
    ids = {name: set(v.facts["ids"]) for name, v in visits.items()}
    for name, visit in visits.items():
        for link in set(visit.facts["links"]):
            if re.match(r"[a-z]+:|//", link):
                continue
            target, fragment = urldefrag(urljoin(f"/{name}", link))
            target = unquote(target.split("?")[0]).lstrip("/") or "index.html"
            if target.endswith("/"):
                target += "index.html"
            if not (site / target).is_file():
                dangling.append(f"{name} -> {link}")
            elif fragment and target in ids and unquote(fragment) not in ids[target]:
                dangling.append(f"{name} -> {link} (no such anchor)")
    assert not dangling


def test_no_link_leads_to_an_address_that_the_book_does_not_have(visits):
    links = [(name, link) for name, visit in visits.items() for link in visit.facts["links"]]
    assert [(name, link) for name, link in links if "OWNER" in link] == []
    if not address.is_set():
        assert [(name, link) for name, link in links if "colab.research" in link] == []


@pytest.mark.skipif(not address.is_set(), reason="the book has no address")
def test_every_chapter_links_its_source_notebook_in_colab(visits):
    chapters = [name for name in visits if name.startswith("notebooks/")]
    assert len(chapters) == len(CHAPTERS)
    for name in chapters:
        source = name.replace(".html", ".ipynb")
        assert (ROOT / source).exists()
        assert address.colab_url(source) in visits[name].facts["links"]


def test_every_page_is_taken_along_and_a_chapter_as_the_notebook_that_it_shows(page, base, pages, site):
    for name in (name for name in pages if name.startswith(("notebooks/", "book/intro"))):
        page.goto(base + name)
        page.locator(".dropdown-take-along > button").click()
        assert page.locator(".btn-print-button").is_visible(), name
        if name.startswith("book/"):
            continue
        link = page.locator(".btn-notebook-button")
        assert link.is_visible(), name
        handed_out = site / unquote(urljoin(name, link.get_attribute("href")))
        notebook = nbformat.read(handed_out, as_version=4)
        told = [o.get("data", {}).get("text/markdown", "") for c in notebook.cells for o in c.get("outputs", [])]
        numbers = [found[0] for found in map(re.compile(r"Fig\. [\d.]+").search, told) if found]
        on_page = page.eval_on_selector_all("figcaption .caption-number", "all => all.map(e => e.textContent.trim())")
        assert numbers == on_page, name
        assert len(numbers) >= 3, name


PAPER = {"width": 680, "height": 960}  # what margins leave of a sheet, in pixels
ON_PAPER = """() => {
  const shown = (e) => e.checkVisibility({opacityProperty: true, visibilityProperty: true});
  const article = document.querySelector(".bd-article");
  const wide = "pre, .saema-scroll, .pst-scrollable-table-container, mjx-container[display=true]";
  const boxes = [...article.querySelectorAll(wide)].filter(shown);
  return {
    to_press: [...document.querySelectorAll("button, nav, input, .copybtn")].filter(shown).map((e) => e.className),
    cut: boxes.filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent.slice(0, 40)),
    hidden: [...article.querySelectorAll(".tag_solution pre, .saema-table, section > details > p")]
      .filter((e) => !shown(e)).map((e) => e.textContent.slice(0, 40)),
    blank: [...article.querySelectorAll(".saema-plot")].filter((e) => !e.querySelector("svg .point, svg path")).length,
    ground: getComputedStyle(document.documentElement).getPropertyValue("--pst-color-text-base"),
  };
}"""


def test_on_paper_folds_are_open_and_nothing_is_cut_or_to_be_pressed(page, base, pages):
    page.emulate_media(color_scheme="light")
    page.goto(f"{base}book/intro.html")
    light = page.evaluate(ON_PAPER)["ground"]
    folded = "document.querySelectorAll('.bd-article details:not([open])').length"
    for name in (name for name in pages if name.startswith("notebooks/")):
        page.emulate_media(color_scheme="dark", media="screen")
        page.set_viewport_size(DESK)
        page.goto(base + name)
        page.wait_for_function("document.querySelectorAll('.saema-interactive:not([data-drawn=true])').length === 0")
        before = page.evaluate(folded)
        assert before, name
        page.emulate_media(color_scheme="dark", media="print")
        page.set_viewport_size(PAPER)
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        paper = page.evaluate(ON_PAPER)
        assert paper == {"to_press": [], "cut": [], "hidden": [], "blank": 0, "ground": light}, name
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(folded) == before, name
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


@pytest.mark.parametrize(("size", "pixels"), [(DESK, 9), (PHONE, 7)])
def test_letters_of_every_figure_can_be_read(page, base, pages, size, pixels):
    """On a phone a figure keeps the width at which they can, and is moved under the finger."""
    page.set_viewport_size(size)
    small, figures = {}, 0
    for name in (name for name in pages if name.startswith(("notebooks/", "book/intro"))):
        page.goto(base + name)
        found = page.evaluate(LETTERS)
        figures += len(found)
        small |= {f"{name}: {figure}": letters for figure, letters in found if letters < pixels}
    assert figures > 40
    assert small == {}


def test_a_term_is_explained_to_a_keyboard_and_to_a_finger(browser, base):
    chapter = f"{base}notebooks/04_local_and_global_geometry.html"
    context = browser.new_context(viewport=PHONE, has_touch=True)
    page = context.new_page()
    page.goto(chapter)
    box = page.locator(".saema-meaning")
    terms = page.locator('.bd-article a[href*="#term-"]')
    assert terms.count() > 5
    assert box.is_hidden()
    for i in (0, terms.count() - 1):
        term = terms.nth(i)
        term.tap()
        assert box.inner_text() == term.get_attribute("title")
        assert page.url == chapter
        place, word = box.bounding_box(), term.bounding_box()
        assert place["y"] >= word["y"] + 10
        assert 0 <= place["x"] <= PHONE["width"] - place["width"]
    page.locator(".bd-article h1").tap()
    assert box.is_hidden()
    term.tap()
    term.tap()
    page.wait_for_url("**/glossary.html#term-*")
    page.set_viewport_size(DESK)
    page.goto(chapter)
    page.keyboard.press("Tab")
    while not page.evaluate("document.activeElement.matches('.bd-article a[href*=\"#term-\"]')"):
        page.keyboard.press("Tab")
    assert box.inner_text() == terms.first.get_attribute("title")
    page.keyboard.press("Escape")
    assert box.is_hidden()
    page.keyboard.press("Enter")
    page.wait_for_url("**/glossary.html#term-*")
    context.close()


def test_weight_of_every_page_is_known_and_bounded(visits):
    heaviest = sorted(((v.facts["weight"], name) for name, v in visits.items()), reverse=True)
    print("\n".join(f"{weight / 1e6:6.2f} MB {name}" for weight, name in heaviest[:8]))
    assert heaviest[0][0] < 15e6


@pytest.mark.parametrize("query", SEARCHES)
def test_search_finds_the_right_page(page, base, query):
    page.goto(f"{base}search.html?q={query.replace(' ', '+')}")
    page.wait_for_selector("#search-results ul.search li a", timeout=20_000)
    page.wait_for_function("document.querySelectorAll('#search-results ul.search li a').length > 0")
    page.wait_for_timeout(500)
    links = page.eval_on_selector_all(
        "#search-results ul.search > li > a", "all => all.map(a => a.getAttribute('href'))"
    )
    assert urldefrag(links[0])[0].lstrip("./").startswith(SEARCHES[query]), links[:5]


def test_dark_mode_toggles_and_stays(page, base):
    page.emulate_media(color_scheme="light")
    page.goto(f"{base}book/intro.html")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    button = page.locator("button.theme-switch-button:visible").first
    for _ in range(3):
        button.click()
        if page.evaluate("document.documentElement.dataset.theme") == "dark":
            break
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.wait_for_function(f"{ground} !== '{light}'")
    page.goto(f"{base}book/method.html")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark", "the choice is kept"


@pytest.fixture(scope="module")
def holders(pages, site) -> list[str]:
    """The pages that have an interactive figure."""
    return [name for name in pages if 'class="saema-interactive"' in (site / name).read_text(encoding="utf-8")]


def opened(page, address: str) -> int:
    """Open a page, wait until its interactive figures are drawn, and say how many these are."""
    page.goto(address)
    count = page.locator(".saema-interactive").count()
    page.wait_for_function(
        f"document.querySelectorAll('.saema-interactive[data-drawn=true]').length === {count}", timeout=30_000
    )
    return count


def test_interactive_figures_answer_mouse_and_keyboard_offline(page, base, holders, site):
    scripts = [p for p in site.rglob("plotly*.js")]
    assert len(scripts) == 1, "plotly's script is in the site once"
    drawn = 0
    for name in holders:
        for i in range(opened(page, base + name)):
            holder = page.locator(".saema-interactive").nth(i)
            plot = holder.locator(".saema-plot")
            caption = holder.locator("xpath=ancestor::figure[1]/figcaption")
            assert re.match(r"Fig\. \d+\.\d+ \S", caption.inner_text()), (
                f"{name}: an interactive figure without caption"
            )
            plot.scroll_into_view_if_needed()
            plot.focus()
            page.keyboard.press("ArrowRight")
            page.wait_for_function(
                "i => document.querySelectorAll('.saema-plot-reading')[i].textContent.trim().length > 3", arg=i
            )
            assert holder.locator(".hoverlayer .hovertext").count() >= 1, f"{name}: no label at the point"
            box = plot.locator(".nsewdrag").first.bounding_box()
            page.mouse.move(5, 5)
            steps = [(x, y) for y in range(20, int(box["height"]), 12) for x in range(20, int(box["width"]), 12)]
            for x, y in steps:
                page.mouse.move(box["x"] + x, box["y"] + y)
                if holder.locator(".hoverlayer .hovertext").count():
                    break
            assert holder.locator(".hoverlayer .hovertext").count() >= 1, f"{name}: nothing under the mouse"
            drawn += 1
    assert drawn >= 2, f"at least two interactive figures in the book; found {drawn}"


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_every_control_of_a_figure_is_moved_by_key_and_says_what_it_changed(page, base, holders, size):
    page.set_viewport_size(size)
    kinds = []
    for name in holders:
        opened(page, base + name)
        for figure in page.locator(".saema-interactive:has(.saema-controls)").all():
            says, plot = figure.locator(".saema-says"), figure.locator(".saema-plot")
            assert says.get_attribute("aria-live") == "polite"
            for group in figure.locator(".saema-controls > :has(input, select)").all():
                control = group.locator("select, [type=range], :checked:not(option)")
                where = f"{name}, {figure.get_attribute('id')}, {control.get_attribute('id') or 'radio'}"
                before, told, axes = plot.evaluate(SHOWN), says.inner_text(), plot.evaluate(RANGES)
                assert told.strip(), where
                assert group.aria_snapshot().count('"') >= 2, f"{where} has no name"
                control.focus()
                page.keyboard.press("ArrowRight" if control.get_attribute("type") == "range" else "ArrowDown")
                page.wait_for_function("([e, told]) => e.innerText !== told", arg=[says.element_handle(), told])
                focused = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert focused != "none", f"{where}: nobody sees where the focus is"
                assert plot.evaluate(SHOWN) != before, f"{where} moves nothing"
                assert plot.evaluate(RANGES) == axes, f"{where} moves the axes"
                kinds.append(control.evaluate("e => e.type"))
        assert page.evaluate(WIDER) <= 0, name
    assert {"range", "radio", "select-one"} <= set(kinds)


def test_a_figure_without_its_script_is_its_description(browser, base, holders):
    context = browser.new_context(viewport=DESK, java_script_enabled=False)
    tab = context.new_page()
    for name in holders:
        tab.goto(base + name)
        for figure in tab.locator(".saema-interactive").all():
            assert len(figure.locator(".saema-plot-fallback").inner_text().split()) > 8
            assert not figure.locator(".saema-controls").is_visible()
    context.close()


def test_another_theme_or_width_keeps_what_was_chosen_on_the_same_axes(page, base, holders):
    steered = 0
    for name in holders:
        page.set_viewport_size(DESK)
        opened(page, base + name)
        for figure in page.locator(".saema-interactive:has([type=range])").all():
            plot = figure.locator(".saema-plot")
            figure.locator("[type=range]").press("End")
            shown, ranges = plot.evaluate(SHOWN), plot.evaluate(RANGES)
            ink = plot.evaluate("plot => plot._fullLayout.font.color")
            page.evaluate("document.documentElement.dataset.theme = 'dark'")
            page.wait_for_function("([e, ink]) => e._fullLayout.font.color !== ink", arg=[plot.element_handle(), ink])
            for size, drawn in ((PHONE, "< 390"), (DESK, "> 390")):
                page.set_viewport_size(size)
                page.wait_for_function(f"plot => plot._fullLayout.width {drawn}", arg=plot.element_handle())
                assert plot.evaluate(SHOWN) == shown, name
                assert plot.evaluate(RANGES) == ranges, f"{name}: the picture is another"
            page.evaluate("document.documentElement.dataset.theme = 'light'")
            steered += 1
    assert steered >= 2
