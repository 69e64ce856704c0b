"""The report in a real browser: what a colleague who gets the file sees, clicks and types."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from browser import Page, chromium
from lightning_morpho.telemetry import read_run, write_report
from logs import FULL, PHASE1, fit_start, grown_run, life, start, transition, write, write_metrics

pytestmark = pytest.mark.slow

DARK, LIGHT = "rgb(18, 22, 19)", "rgb(253, 253, 251)"


@pytest.fixture(scope="module")
def driver():
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> Path:
    """A run with every stage and every end that there are."""
    return grown_run(tmp_path_factory.mktemp("grown"), layers=6, chunks=4, path=FULL)


@pytest.fixture(scope="module")
def report(driver, grown) -> Page:
    return Page(driver, write_report(grown))


@pytest.fixture(scope="module")
def thousands(driver, tmp_path_factory) -> Page:
    """4,096 seeds, as many modules as a large transformer has."""
    folder = tmp_path_factory.mktemp("thousands")
    rng = random.Random(0)
    layers = {f"blocks.{i}.mlp.fc": 64 for i in range(64)}
    lives = [
        event for name in layers for c in range(64) for event in life(rng, name, c, 40 * rng.randrange(100), PHASE1)
    ]
    write_metrics(folder, 8000)
    return Page(driver, write_report(write(folder, [fit_start(), start(layers), *lives])))


# ---------------------------------------------------------------------------------------- offline, quiet
@pytest.mark.parametrize("kind", ["grown", "nothing grew", "empty log"])
def test_page_asks_for_nothing_but_itself_and_logs_no_error(kind, driver, report, tmp_path):
    entries = {"nothing grew": [fit_start(), start({"net.0": 2})], "empty log": [fit_start()]}
    page = report if kind == "grown" else Page(driver, write_report(write(tmp_path, entries[kind])))
    page.open().open_tables()
    said, asked = page.logs()
    assert said == []
    assert set(asked) == {page.path.as_uri()}


def test_names_from_the_log_can_do_no_harm(driver, tmp_path):
    name = "<img src=x onerror=\"document.title='harm'\"></script><script>document.title='harm'</script>"
    entries = [fit_start(), start({name: 1}, host=name), transition(name, 0, "DORMANT", "LOADING", 40, reason=name)]
    page = Page(driver, write_report(write(tmp_path, entries))).open()
    page.open_tables()
    assert page.run("return document.title") != "harm" and page.logs()[0] == []
    assert name in page.texts("#modules-table tbody th")


# ---------------------------------------------------------------------------------------- for everybody
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (375, "dark")])
def test_axe_finds_nothing_to_object_to(width, scheme, driver, tmp_path):
    axe = pytest.importorskip("axe_core_python.selenium").Axe()
    page = Page(driver, write_report(grown_run(tmp_path, layers=2, chunks=2))).open(width, scheme)
    page.open_tables()
    found = axe.run(driver)["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:120], v["nodes"][0]["failureSummary"]) for v in found] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_of_the_charts_have_contrast_in_both_schemes(scheme, report):
    """WCAG 2.1, 1.4.3 and 1.4.11: 4.5 for text, 3 for what a chart consists of. axe does not look into SVG."""
    report.open(scheme=scheme)
    names = "ground raised ink soft edge accent focus curve warn warn-ink on-stage on-dormant"
    stages = "new graft active kept culled error"
    values = report.run(
        """const probe = document.body.appendChild(document.createElement("i"));
        return arguments[0].map((name) => {
          probe.style.color = `var(--${name})`;
          return getComputedStyle(probe).color;
        });""",
        [*names.split(), *(f"s-{name}" for name in stages.split()), "s-dormant"],
    )
    colour = dict(zip([*names.split(), *stages.split(), "dormant"], map(luminance, values), strict=True))
    text = [(a, b) for a in ("ink", "soft", "accent") for b in ("ground", "raised")] + [("warn-ink", "warn")]
    text += [("on-stage", stage) for stage in stages.split()] + [("on-dormant", "dormant"), ("ground", "ink")]
    graphics = [(name, "ground") for name in [*stages.split(), "edge", "focus", "curve"]]
    assert {pair: c for pair in text if (c := contrast(*(colour[n] for n in pair))) < 4.5} == {}
    assert {pair: c for pair in graphics if (c := contrast(*(colour[n] for n in pair))) < 3} == {}


def luminance(css: str) -> float:
    channels = [int(c) / 255 for c in css[css.index("(") + 1 : -1].split(",")[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


@pytest.mark.parametrize("width", [375, 320])
def test_a_phone_never_scrolls_sideways(width, report, thousands):
    for page in (report, thousands):
        page.open(width).open_tables()
        assert page.run("return document.documentElement.scrollWidth") <= width


def test_every_control_is_reached_by_tab_shows_its_focus_and_has_a_name(report):
    report.open()
    first = report.run("return document.querySelectorAll('a, button:not(:disabled), select, input, summary').length")
    seen = []
    for _ in range(first + 5):
        report.driver.switch_to.active_element.send_keys("\ue004")
        focused = report.run(
            """const e = document.activeElement, s = getComputedStyle(e);
            if (e === document.body) return null;
            return [e.outerHTML.slice(0, 90), s.outlineStyle, parseFloat(s.outlineWidth)];"""
        )
        if focused is None or (seen and focused == seen[0]):
            break
        seen.append(focused)
    assert "skip" in seen[0][0]
    assert len(seen) == first, "a control is out of reach, or the focus is caught"
    assert [html for html, style, width in seen if style == "none" or width < 2] == []
    controls = report.driver.find_elements("css selector", "a, button, select, input, summary")
    assert [c.get_attribute("outerHTML") for c in controls if c.is_displayed() and not c.accessible_name] == []


# ---------------------------------------------------------------------------------------- by clicking
@pytest.mark.parametrize(("scheme", "button", "ground"), [("light", "dark", DARK), ("dark", "light", LIGHT)])
def test_colours_follow_the_system_until_a_button_is_pressed_and_stay(scheme, button, ground, report):
    def shown():
        return report.run("return getComputedStyle(document.body).backgroundColor")

    report.open(scheme=scheme)
    report.run("localStorage.clear()")
    report.open(scheme=scheme)
    assert shown() == {"light": LIGHT, "dark": DARK}[scheme]
    report.click(f"[data-theme-choice={button}]")
    assert shown() == ground and report.find(f"[data-theme-choice={button}]").get_attribute("aria-pressed") == "true"
    assert report.open(scheme=scheme) and shown() == ground
    report.click("[data-theme-choice=auto]")
    assert shown() == {"light": LIGHT, "dark": DARK}[scheme]


def test_table_of_modules_is_filtered_and_sorted(report):
    report.open()
    assert len(report.texts("#modules-table tbody tr")) == 7
    report.find("#modules-filter").send_keys("LAYERS.3")
    assert report.texts("#modules-table tbody th") == ["encoder.layers.3.mlp.fc2"]
    assert report.find("#modules-count").text == "1 of 7 modules"
    report.find("#modules-filter").clear()
    report.click("#modules-taken option[value=left]")
    assert report.texts("#modules-table tbody th") == ["(the model)"]
    report.click("#modules-taken option[value='']")
    report.click("#modules-table thead th:nth-child(5) button")
    report.click("#modules-table thead th:nth-child(5) button")
    assert report.find("#modules-table thead th:nth-child(5)").get_attribute("aria-sort") == "descending"
    assert report.texts("#modules-table tbody td:nth-child(5)") == ["4"] * 6 + [""]


def test_every_chart_has_its_data_in_a_table(report, grown):
    log = read_run(grown)
    report.open().open_tables()
    assert report.texts("[data-table]:has(table) summary") == report.texts("[data-table] summary")
    judged = [life for life in log.lives if life.figures]
    assert len(report.texts("[data-table=credit] tbody tr")) == len(judged) > 5
    assert set(report.texts("[data-table=seeds] tbody th")) == {life.name for life in log.lives}
    rises = {life.name: life.figures["rise"] for life in judged}
    for name, shown in zip(
        report.texts("[data-table=credit] tbody th"), report.texts("[data-table=credit] td:nth-child(3)"), strict=True
    ):
        assert float(shown) == pytest.approx(rises[name], rel=1e-3)
    labels = report.run("return [...document.querySelectorAll('.chart svg[role=img]')].map((s) => s.ariaLabel)")
    assert len(labels) == 6 and all(labels)


def test_timeline_has_a_bar_for_each_stage_and_follows_its_filters(report, grown):
    lives = read_run(grown).lives
    report.open()
    bars = "return document.querySelectorAll('#seeds-chart [data-mark=bar] rect').length"
    assert report.run(bars) == sum(len(life.spells) for life in lives)
    report.click("#seeds-stage option[value=FOSSILIZED]")
    kept = [life for life in lives if life.stage == "FOSSILIZED"]
    assert report.run(bars) == sum(len(life.spells) for life in kept)
    report.open_tables()
    assert len(report.texts("[data-table=seeds] tbody tr")) == len(kept)


def test_another_metric_is_drawn_when_it_is_chosen(report):
    report.open()
    path = "return document.querySelector('#metrics-chart [data-mark=line] path').getAttribute('d')"
    before = report.run(path)
    report.click("#metric-choice option[value=val_loss]")
    assert report.run(path) != before
    assert "val_loss" in report.find("#metrics-chart svg").get_attribute("aria-label")


def test_map_goes_back_in_time_by_keyboard(report):
    report.open()
    slider = report.find("#map-step")
    assert any("fossilized" in text for text in report.texts("#map-cards p"))
    slider.send_keys("\ue011")  # Home
    report.settle()
    assert set(report.texts("#map-cards p")) == {"4 dormant"}
    assert slider.get_attribute("aria-valuetext") == "step 0"


# ---------------------------------------------------------------------------------------- many
def test_thousands_of_seeds_are_aggregated_and_paged(thousands):
    thousands.open()
    assert thousands.path.stat().st_size < 2_000_000
    assert thousands.run("return document.querySelectorAll('*').length") < 10_000
    assert not thousands.find("#seeds-overview").get_attribute("hidden")
    assert "1 to 40 of" in thousands.find("#seeds-pager").text
    thousands.click("#seeds-pager button:last-of-type")
    assert "41 to 80 of" in thousands.find("#seeds-pager").text
    counts = thousands.texts("#map-cards p")
    assert len(counts) == 24 and sum(int(n) for n in counts[0].replace(",", "").split() if n.isdigit()) == 64
    assert "65 modules" in thousands.find("#modules-count").text
    assert len(thousands.texts("#modules-table tbody tr")) == 40
