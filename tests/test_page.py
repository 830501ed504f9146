"""The page of `pibench report --html`: whole, self-contained, harmless; read in a browser at two widths."""

import json
import shutil
from html.parser import HTMLParser
from io import StringIO

import pandas as pd
import pytest
from results_factory import case_id, make_accuracy_row, make_row, remember

from pibench import figures, report
from pibench.figures import drawing
from pibench.page import content
from pibench.page.markdown import to_html
from pibench.report import statistics
from pibench.report.command import main
from pibench.store.results import Store

EVIL = (
    '<img src="https://example.org/a.png" onerror="alert(1)">',
    "</script><script>alert(2)</script>",
    "a`<b>[x](javascript:alert(3)) ![y](https://example.org/b.png)",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report of a few cases, some of hostile names, and its page with one figure."""
    folder = tmp_path_factory.mktemp("page")
    results = folder / "results"
    store = Store(results / "bench.json")
    for engine in ("stock", "lean"):
        for variant in ("baseline", "senet-0.09", "joint-0.052"):
            store.add(make_row(variant, engine))
        store.add(make_row("joint-0.052", engine, link="wan", role="link", count=2))
        for evil in EVIL:
            store.add(make_row("senet-0.18", engine) | {"variant": evil, "case": f"{engine}/{evil}"})
    store.add(make_row("senet-0.36", "lean", machine=make_row()["machine"] | {"cpu": EVIL[1]}))
    trained = [make_accuracy_row(variant) for variant in ("baseline", "senet-0.09", "joint-0.052")]
    (results / "accuracy.json").write_text(json.dumps(trained))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "interval_of_median", remember(report.interval_of_median))
        one_by_one = lambda function, names: [function(name) for name in names]  # noqa: E731
        patch.setattr(drawing, "on_all_cores", one_by_one)
        for name in set(figures.FIGURES) - {"latency_vs_relus"}:
            patch.delitem(figures.FIGURES, name)
        assert main(["--results", str(results), "--quiet", "--html"]) == 0
    return results


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text in each script and cell."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.cells, self.inside = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "td"):
            self.inside = self.scripts if tag == "script" else self.cells
            self.inside.append("")

    def handle_endtag(self, tag):
        if tag in ("script", "td"):
            self.inside = None

    def handle_data(self, data):
        if self.inside is not None:
            self.inside[-1] += data


def test_the_page_holds_every_number_of_the_tables(folder, text):
    tags = Tags(text)
    held = {table["name"]: table["csv"] for table in json.loads(tags.scripts[0])}
    assert set(held) == set(content.TABLES) == set(report.TABLES)
    for name, csv in held.items():
        assert csv == (folder / f"{name}.csv").read_text()
    summary = pd.read_csv(StringIO(held["summary"]))
    shown = [float(attrs["data-value"]) for tag, attrs in tags.tags if "data-value" in attrs]
    usual = summary[(summary["timing"] == "measured") & (summary["role"] == "headline")]
    for column in ("relus", "macs", "rounds", "online_median_s", "online_speedup"):
        values = usual.loc[usual["variant"] != "baseline", column]
        assert values.notna().all()
        assert all(any(value == pytest.approx(other) for other in shown) for value in values), column


def test_the_page_asks_for_nothing_and_runs_nothing_of_the_rows(text):
    tags = Tags(text)
    for tag, attrs in tags.tags:
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if name in attrs:
                assert attrs[name].startswith(("#", "data:")), (tag, attrs)
    assert len(tags.scripts) == 3
    assert [tag for tag, _ in tags.tags].count("img") == 1  # the figure
    assert "url(" not in text
    assert "@import" not in text
    policy = next(attrs["content"] for _, attrs in tags.tags if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'")
    for evil in EVIL:
        assert evil not in text.replace(tags.scripts[0], "")
        assert any(evil in cell for cell in tags.cells)


def test_the_headline_leaves_ratios_of_two_engines_out(folder):
    """A case whose rounds are paired with those of another engine has no speed-up by its redesign."""
    summary = pd.read_csv(folder / "summary.csv")
    (paired,) = summary.loc[summary["case"] == case_id("baseline", "lean"), "online_speedup"]
    assert paired > 1
    grid = content.headline(summary)
    shown = {(line[0].text, line[1].text[:4]): line for line in grid.lines}
    place = grid.heads.index("Speed-up online")
    assert shown["baseline", "lean"][place].text == "–"
    assert "[" in shown["joint-0.052", "lean"][place].text
    assert all(0 <= share <= 1 for share in shown["joint-0.052", "lean"][place].interval)
    assert content.fastest(summary)["lean"]["variant"] != "baseline"


def test_markdown_becomes_text_and_tables_alone():
    made = to_html(
        "**a** <b>c</b> [d](https://example.org)\n\n![e](plots/e.svg)\n\n"
        "<details><summary>f & g</summary>\n\n| h |\n| --: |\n| 1 |\n\n</details>"
    )
    assert "<strong>a</strong> &lt;b&gt;c&lt;/b&gt; d" in made
    assert "href" not in made
    assert "plots" not in made
    assert "<details><summary>f &amp; g</summary>" in made
    assert made.count("<table") == made.count("</table></div>") == 1


# In a browser

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def chromium(folder, tmp_path_factory):
    """The system's own Chromium with the page in it."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no chromium and chromedriver here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options=options, service=Service(driver)) as running:
        running.set_page_load_timeout(120)
        yield running


@pytest.fixture(params=WIDTHS)
def page(request, chromium, folder):
    wide, high = WIDTHS[request.param]
    setting = {"width": wide, "height": high, "deviceScaleFactor": 1, "mobile": request.param == "phone"}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", setting)
    chromium.get((folder / "report.html").as_uri())
    yield chromium
    assert chromium.get_log("browser") == []  # no error, and nothing that the page's policy forbids


def fits(page):
    return page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def column(page, table, place):
    script = (
        "return [...document.querySelector(arguments[0]).tBodies[0].rows]"
        ".map((row) => row.cells[arguments[1]].dataset.value ?? row.cells[arguments[1]].textContent)"
    )
    return page.execute_script(script, table, place)


def test_only_tables_and_figures_scroll_sideways(page):
    assert fits(page)
    page.execute_script("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    page.execute_async_script("setTimeout(arguments[0], 100)")  # opening is told in a task of its own
    lines = page.execute_script("return document.querySelectorAll('details.table tbody tr').length")
    assert lines > 1000
    assert fits(page)
    assert page.execute_script("return document.images[0].complete && document.images[0].naturalWidth > 100")


def test_a_head_sorts_by_mouse_and_by_key(page):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    heads = page.find_elements(By.CSS_SELECTOR, "table.headline th")
    place = [head.text.split("\n")[0].strip() for head in heads].index("Speed-up online")
    button = heads[place].find_element(By.TAG_NAME, "button")
    page.execute_script("arguments[0].click()", button)
    assert heads[place].get_attribute("aria-sort") == "ascending"

    def split():
        values = column(page, "table.headline", place)
        return [float(value) for value in values if value != "–"], values

    numbers, values = split()
    assert numbers == sorted(numbers)
    assert set(values[len(numbers) :]) == {"–"}  # what is missing comes last
    button.send_keys(Keys.ENTER)
    assert heads[place].get_attribute("aria-sort") == "descending"
    numbers, values = split()
    assert numbers == sorted(numbers, reverse=True)
    assert set(values[len(numbers) :]) == {"–"}
    heads[0].find_element(By.TAG_NAME, "button").send_keys(Keys.SPACE)
    assert heads[place].get_attribute("aria-sort") is None
    names = column(page, "table.headline", 0)
    assert names.index("baseline") < names.index("joint-0.052") < names.index("senet-0.09")


def test_the_profile_shows_the_chosen_case(page, folder):
    layers = pd.read_csv(folder / "layers.csv")
    choose = (
        "const form = document.getElementById('profile-choices'); form.elements[arguments[0]].value ="
        " arguments[1]; form.dispatchEvent(new Event('change'));"
    )
    for name, value in (("variant", EVIL[1]), ("engine", "lean"), ("beside", "baseline")):
        page.execute_script(choose, name, value)
    wanted = layers[layers["case"] == f"lean/{EVIL[1]}"]["seconds"].sum()
    shown = [float(value) for value in column(page, "#profile-table", 2) if value != "–"]
    assert sum(shown) == pytest.approx(1e3 * wanted)
    assert EVIL[1] in page.execute_script("return document.getElementById('profile-total').textContent")


def test_light_and_dark(page):
    grounds = set()
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        grounds.add(page.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
