"""The page: whole or not at all, closed to the world, and true to its numbers."""

from __future__ import annotations

import base64
import csv
import errno
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest

from lrsearch.analysis import summarise, wording
from lrsearch.analysis.compare import Method
from lrsearch.analysis.document import study_document
from lrsearch.analysis.exported import read_trials
from lrsearch.analysis.table import columns, row_cells
from lrsearch.config import load_study
from lrsearch.errors import StorageError
from lrsearch.figures import FIGURES
from lrsearch.page import content_security_policy
from lrsearch.range_test_run import run_range_test, write_page
from lrsearch.report import render, write_report
from lrsearch.trial import Event, StudyRecord
from lrsearch.web import SANDBOX
from tests.analysis.test_confirm import with_confirmations
from tests.records import CPU, GPU, SEVEN_WAYS, make_record, some, unfinished

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page, Request

PAYLOADS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "</script><script>alert(1)</script>",
    "{{ 7 * 7 }}",
    '<a href="https://example.org">a</a> <b>%{x}</b>',
    "javascript:alert(1)",
)


class Reader(HTMLParser):
    """Collects what a browser would see: elements, text outside scripts, and the addresses that elements name."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._hidden = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.text += data


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return make_record()


@pytest.fixture(scope="module")
def page(record: StudyRecord) -> str:
    return render(record)


@pytest.fixture(scope="module")
def seen(page: str) -> Reader:
    return Reader(page)


def hostile() -> StudyRecord:
    """A study in which everything that a user can write is an attack."""
    ways = {f"{payload} {way}": SEVEN_WAYS[way] for payload, way in zip(PAYLOADS, SEVEN_WAYS, strict=True)}
    record = make_record(ways, name=" ".join(PAYLOADS), seeds=[0, 1])
    evil = " ".join(PAYLOADS)
    trials = tuple(
        replace(t, result=replace(some(t.result), error=evil)) if t.status in ("diverged", "failed") else t
        for t in record.trials
    )
    device = replace(CPU, name=evil)
    trials = tuple(
        replace(t, attempts=tuple(replace(one, device=device, versions={evil: evil}) for one in t.attempts))
        for t in trials
    )
    events = tuple(replace(event, kind=evil, data={evil: evil}) for event in record.events)
    facts = replace(some(record.facts), description=evil, metric=evil)
    return replace(record, trials=trials, events=events, facts=facts)


def test_the_page_has_every_cell_of_the_summary(record: StudyRecord, seen: Reader) -> None:
    summary = summarise(record)
    shown = columns(summary)
    for way in summary.ways:
        for cell in row_cells(shown, way):
            assert cell.text in seen.text
            assert all(note in seen.text for note in cell.notes)
    assert summary.verdict.headline in seen.text
    assert summary.verdict.grade in seen.text
    assert all(sentence in seen.text for sentence in summary.verdict.sentences)


def test_where_no_search_reached_the_target_there_is_no_range_of_costs(seen: Reader) -> None:
    assert "never to never" not in seen.text


def test_misses_are_shown_as_misses(seen: Reader) -> None:
    assert "0/5" in seen.text
    assert "4/5" in seen.text
    assert "never" in seen.text


def test_the_page_explains_each_interval_of_a_ratio(seen: Reader) -> None:
    words = {"welch": "Welch's t", "bootstrap": "draws of whole searches", "permutation": "a permutation test"}
    assert {*words, "never_reached", "too_few"} == set(get_args(Method))
    assert all(word in seen.text for word in words.values())


def test_processor_seconds_carry_a_banner_and_gpu_seconds_do_not(seen: Reader) -> None:
    assert "Processor seconds, not GPU time." in seen.text
    assert "Processor seconds" not in Reader(render(make_record(seeds=[0], device=GPU))).text


def test_every_failed_and_diverged_trial_is_listed_with_its_line(record: StudyRecord, seen: Reader) -> None:
    assert "mat1 and mat2 shapes cannot be multiplied" in seen.text
    ended_badly = [trial for trial in record.trials if trial.status in ("diverged", "failed")]
    assert seen.text.count("The loss became non-finite") == sum(trial.status == "diverged" for trial in ended_badly)
    assert f"{len(ended_badly)} of {len(record.trials)} trials. Each was paid for" in " ".join(seen.text.split())


def test_the_time_that_the_device_was_held_is_accounted_for(seen: Reader) -> None:
    assert "99.6 % accounted for" in seen.text  # the factory's run held the device 0.4 % longer than its phases say


def test_what_was_trained_again_is_accounted_for_too(record: StudyRecord) -> None:
    once = record.trials[0]
    again = replace(once, proposal=replace(once.proposal, confirmation_seed=1_000_000))
    [run] = [event for event in record.events if "held_seconds" in event.data]
    held = {**run.data, "held_seconds": run.data["held_seconds"] + sum(again.phase_seconds.values())}
    confirmed = replace(record, confirmations=(again,), events=(replace(run, data=held),))
    text = " ".join(Reader(render(confirmed)).text.split())
    assert f"{wording.significant(again.charged_device_seconds)} s went into training again what was chosen" in text
    assert "99.6 % accounted for" in text


def test_a_page_with_confirmed_values_says_how_their_interval_is_computed() -> None:
    record = make_record(failures=False)
    assert "Satterthwaite" not in render(record)
    assert "Satterthwaite" in render(with_confirmations(record, 2, {}))


def test_a_killed_process_leaves_no_account_of_the_time_that_it_held_the_device(record: StudyRecord) -> None:
    *others, last = record.trials
    attempts = tuple(replace(attempt, owner="another:1:1:1") for attempt in last.attempts)
    killed = replace(record, trials=(*others, replace(last, attempts=attempts)))
    assert "accounted for" not in Reader(render(killed)).text


def test_the_strip_says_what_is_known_of_the_surroundings_and_what_is_not(record: StudyRecord, seen: Reader) -> None:
    assert seen.text.count("not recorded") >= 2
    runs = [(30.0, 0.02, "abc"), (10.0, 1.98, "abc"), (5.0, None, None)]
    events = tuple(
        Event(record.created_at, "surroundings", {"processors": 4, "seconds": s, "busy_with_others": b, "commit": c})
        for s, b, c in runs
    )
    text = Reader(render(replace(record, events=events))).text
    assert "shared: other programs kept 0.51 of 4 processors busy" in text
    assert "Other programs kept 0.51 processors busy while it ran" in text
    assert "abc" in text
    assert "not recorded" not in text


def test_the_downloads_are_the_exported_tables_and_the_numbers(record: StudyRecord, seen: Reader) -> None:
    files = {some(a["download"]): some(a["href"]).split(",")[1] for tag, a in seen.tags if "download" in a}
    packed = {name: base64.b64decode(content) for name, content in files.items()}
    text = {
        name.removesuffix(".gz"): (gzip.decompress(content) if name.endswith(".gz") else content).decode()
        for name, content in packed.items()
    }
    assert set(text) == {"digits-trials.csv", "digits-curves.csv", "digits-numbers.json"}
    rows = list(csv.DictReader(io.StringIO(text["digits-trials.csv"])))
    charged = sum(float(row["charged_device_seconds"]) for row in rows if row["strategy"] == "grid")
    numbers = json.loads(text["digits-numbers.json"])
    assert charged / 5 == pytest.approx(numbers["ways"]["grid"]["charged"]["value"])
    assert numbers["verdict"]["headline"] == summarise(record).verdict.headline
    points = sum(len(some(trial.result).curve) for trial in record.trials)
    assert len(text["digits-curves.csv"].splitlines()) == 1 + points
    again = study_document(read_trials(io.StringIO(text["digits-trials.csv"])))
    assert again["ways"]["grid"]["speed_up"] == pytest.approx(numbers["ways"]["grid"]["speed_up"])
    assert [entry["way"] for entry in again["leaderboard"]] == [entry["way"] for entry in numbers["leaderboard"]]


def test_energy_is_unknown_or_measured_and_never_nothing(record: StudyRecord) -> None:
    assert all(way.energy is None for way in summarise(record).ways)
    assert "Energy per search" not in {column.title for column in columns(summarise(record))}
    trials = [replace(t, result=replace(some(t.result), energy_joules=10.0)) for t in record.trials]
    measured = summarise(replace(record, trials=tuple(trials)))
    ways = {way.key: way for way in measured.ways}
    assert "Energy per search" in {column.title for column in columns(measured)}
    assert some(ways["clr"].energy).value == 20.0
    assert ways["grid"].energy is None, "one of its attempts was killed: nobody knows its energy"


def test_the_study_file_is_on_the_page(seen: Reader) -> None:
    assert "weight_decay: 0.0005" in seen.text


def test_the_page_is_an_accessible_document(seen: Reader) -> None:
    tags = seen.tags
    assert ("html", {"lang": "en"}) in tags
    assert "digits: what each way" in seen.text
    headings = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = {attributes["aria-labelledby"] for _, attributes in tags if "aria-labelledby" in attributes}
    assert labels <= set(ids)
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")


def test_the_page_names_no_address_to_load(seen: Reader) -> None:
    loading = {"src", "srcset", "data", "poster", "action", "background"}
    assert [(tag, a) for tag, a in seen.tags if loading & set(a)] == []
    assert [a for tag, a in seen.tags if tag in ("link", "iframe", "object", "embed", "form", "base")] == []
    addresses = [some(a["href"]) for tag, a in seen.tags if tag == "a"]
    ids = {a["id"] for _, a in seen.tags if "id" in a}
    assert {address[1:] for address in addresses if address.startswith("#")} <= ids
    assert all(address.startswith(("#", "data:")) for address in addresses)


def test_the_policy_allows_the_pages_own_scripts_and_nothing_else(page: str, seen: Reader) -> None:
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    [policy] = [a["content"] for tag, a in seen.tags if a.get("http-equiv") == "Content-Security-Policy"]
    styles = re.findall(r"<style>(.*?)</style>", page, flags=re.DOTALL)
    assert (len(scripts), len(styles)) == (2, 1)
    assert policy == content_security_policy(scripts, styles)
    assert "default-src 'none'" in some(policy)
    assert "unsafe" not in some(policy)
    assert not any("style" in attributes for _, attributes in seen.tags)


def test_a_study_of_fourteen_ways_with_long_names_stays_under_two_megabytes() -> None:
    ways = {f"a_rather_long_name_of_a_way_{i}_{key}": way for i in range(2) for key, way in SEVEN_WAYS.items()}
    assert len(render(make_record(ways)).encode()) < 2_000_000


def test_text_of_users_stays_text() -> None:
    page = render(hostile())
    reader = Reader(page)
    assert all(payload in reader.text for payload in PAYLOADS)
    assert not {"img", "svg", "b"} & {tag for tag, _ in reader.tags}
    assert page.count("<script") == page.count("</script>")
    assert all(some(a["href"]).startswith(("#", "data:")) for tag, a in reader.tags if tag == "a")


@pytest.mark.parametrize(
    "study",
    [
        unfinished(make_record(), 60),
        make_record(seeds=[3], target=None, usd_per_device_hour=None),
        replace(make_record(), trials=(), events=(), facts=None, finished=False),
        make_record({"grid": SEVEN_WAYS["grid"]}, seeds=[0]),
    ],
    ids=["unfinished", "one seed", "just created", "one way"],
)
def test_studies_with_gaps_have_a_page_that_shows_nothing(study: StudyRecord) -> None:
    assert "not shown" in Reader(render(study)).text


def test_the_file_is_written_and_its_folder_made(record: StudyRecord, tmp_path: Path) -> None:
    path = tmp_path / "reports" / "digits.html"
    assert write_report(record, path) == path
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [file.name for file in path.parent.iterdir()] == ["digits.html"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(errno.ENOSPC, "No space left on device"), StorageError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_an_old_report_survives_a_full_disk_and_an_interrupt(
    error: BaseException,
    raised: type[BaseException],
    record: StudyRecord,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "digits.html"
    path.write_text("the old report")

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(raised):
        write_report(record, path)
    assert path.read_text() == "the old report"
    assert [file.name for file in tmp_path.iterdir()] == ["digits.html"]


def test_a_place_that_cannot_be_written_is_named_with_a_way_out(record: StudyRecord, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "digits.html"
    with pytest.raises(StorageError, match=re.escape(str(path))) as caught:
        write_report(record, path)
    assert "free space, or name a file" in str(caught.value)
    assert "\n" not in str(caught.value)


RANGE_TEST = """\
version: 1
name: tiny
workload: {name: digits, batch_size: 32}
training: {epochs: 1, optimizer: {name: sgd, momentum: 0.9}, device: cpu}
seeds: [3]
rates: {low: 1e-5, high: 10}
strategies: {clr: {name: range_tested}}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = next((path for path in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(path).exists()), None)
    if chromium is None:
        pytest.skip("needs the system's chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser: Browser, path: Path, *, width: int = 1280, dark: bool = False) -> tuple[Page, list[str]]:
    """Open a page from disk; return it with all that went wrong: errors, messages, dialogs, requests."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light")
    page = context.new_page()
    trouble: list[str] = []

    def on_dialog(dialog: Dialog) -> None:
        trouble.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def on_request(request: Request) -> None:
        if request.url.startswith(("http", "ws")):
            trouble.append(f"request: {request.url}")

    page.on("console", lambda message: trouble.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("dialog", on_dialog)
    page.on("request", on_request)
    page.goto(path.as_uri())
    page.wait_for_selector(".plot .main-svg")
    return page, trouble


def wait_until(page: Page, reached: Callable[[], bool]) -> None:
    for _ in range(300):
        if reached():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it was not reached")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (380, False)])
def test_a_browser_draws_all_figures_in_silence(
    browser: Browser, record: StudyRecord, tmp_path: Path, width: int, dark: bool
) -> None:
    page, trouble = opened(browser, write_report(record, tmp_path / "page.html"), width=width, dark=dark)
    drawn = sum(drawing(record) is not None for drawing in FIGURES.values())
    assert page.locator(".plot .main-svg:first-child").count() == drawn >= 6
    assert trouble == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.title().startswith("digits: ")


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 380])
def test_no_long_word_passes_the_end_of_its_column(browser: Browser, tmp_path: Path, width: int) -> None:
    """Such as the SHA-256 of the weights that a study starts from."""
    made = make_record({way: SEVEN_WAYS[way] for way in ("grid", "clr")})
    words = f"digits, model mlp, starting from weights.pt (sha256 {'9f86d081' * 8}, new: head.*)"
    record = replace(made, facts=replace(some(made.facts), description=words, metric="multiclass_" * 6))
    page, _ = opened(browser, write_report(record, tmp_path / "page.html"), width=width)
    beyond = """[...document.querySelectorAll('.facts dd, h1, .headline, .sentences li, figcaption')].filter(
        one => one.scrollWidth > one.clientWidth).map(one => one.textContent)"""
    assert page.evaluate(beyond) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_on_a_telephone_no_legend_scrolls_however_few_ways_there_are(browser: Browser, tmp_path: Path) -> None:
    record = make_record({way: SEVEN_WAYS[way] for way in ("grid", "clr")})
    page, _ = opened(browser, write_report(record, tmp_path / "page.html"), width=380)
    bars = "[...document.querySelectorAll('.plot .legend .scrollbar')].map(bar => bar.getBoundingClientRect().height)"
    assert page.locator(".plot .legend").count() >= 6
    assert max(page.evaluate(bars)) == 0


@pytest.mark.slow
def test_on_a_telephone_the_bounds_of_a_range_test_are_not_cut_at_the_top(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(RANGE_TEST)
    write_page(run_range_test(load_study(tmp_path / "study.yaml"), repeats=2), tmp_path / "page.html")
    page, _ = opened(browser, tmp_path / "page.html", width=390)
    tops = """[...document.querySelectorAll('.plot')].flatMap(plot => [...plot.querySelectorAll('.annotation')].map(
        name => name.getBoundingClientRect().top - plot.getBoundingClientRect().top))"""
    found = page.evaluate(tops)
    assert len(found) == 4
    assert min(found) >= 0


@pytest.mark.slow
def test_no_button_sends_data_anywhere(browser: Browser, record: StudyRecord, tmp_path: Path) -> None:
    """plotly.js 4 has a "Share chart" button that uploads the figure: no policy of a page can forbid that."""
    page, _ = opened(browser, write_report(record, tmp_path / "page.html"))
    buttons = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)")
    assert set(buttons) == {"Download plot as a PNG", "Zoom", "Pan", "Reset axes"}


@pytest.mark.slow
def test_figures_take_the_ink_of_the_theme_and_change_with_it(
    browser: Browser, record: StudyRecord, tmp_path: Path
) -> None:
    page, _ = opened(browser, write_report(record, tmp_path / "page.html"))
    ink = "getComputedStyle(document.querySelector('.plot .xtick text')).fill"
    light = page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    wait_until(page, lambda: page.evaluate(ink) != light)


@pytest.mark.slow
def test_a_browser_runs_nothing_that_a_user_wrote(browser: Browser, tmp_path: Path) -> None:
    page, trouble = opened(browser, write_report(hostile(), tmp_path / "page.html"))
    page.locator("summary").first.click()
    page.locator(".plot").first.hover(position={"x": 300, "y": 200})
    page.wait_for_timeout(300)
    assert trouble == []
    assert page.locator(".plot a[href*=example]").count() == 0
    assert page.locator(".plot tspan[style*=bold]").count() == 0


@pytest.mark.slow
def test_the_policy_forbids_the_network(browser: Browser, record: StudyRecord, tmp_path: Path) -> None:
    page, trouble = opened(browser, write_report(record, tmp_path / "page.html"))
    page.evaluate("new Image().src = 'https://example.org/a.png'; fetch('https://example.org').catch(() => 0)")
    wait_until(page, lambda: any("Content Security Policy" in line for line in trouble))


AXE = ("axe-core", "4.14.1", "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c")
"""The checker of accessibility rules: its npm package, version and the SHA-256 of its script."""


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, taken from npm for this test: it is no part of lrsearch."""
    name, version, digest = AXE
    folder = tmp_path_factory.mktemp("axe")
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    packed = subprocess.run(["npm", "pack", f"{name}@{version}"], cwd=folder, capture_output=True, timeout=120)
    if packed.returncode:
        pytest.skip("needs a network in which npm finds its packages")
    with tarfile.open(folder / f"{name}-{version}.tgz") as archive:
        script = some(archive.extractfile("package/axe.min.js")).read()
    assert hashlib.sha256(script).hexdigest() == digest
    return script.decode()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_axe_finds_nothing_to_complain_of(
    browser: Browser, axe: str, record: StudyRecord, tmp_path: Path, width: int, dark: bool
) -> None:
    page, _ = opened(browser, write_report(record, tmp_path / "page.html"), width=width, dark=dark)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.evaluate(axe)  # not subject to the page's policy, which forbids it to the page itself
    found = page.evaluate("axe.run().then(found => found.violations)")
    assert [(one["impact"], one["id"], [node["target"] for node in one["nodes"]][:3]) for one in found] == []


@pytest.mark.slow
def test_every_control_is_reached_by_keyboard_in_the_order_of_the_page(
    browser: Browser, record: StudyRecord, tmp_path: Path
) -> None:
    page, _ = opened(browser, write_report(record, tmp_path / "page.html"))
    place = "(() => { const one = document.activeElement; return one.textContent.trim().slice(0, 20); })()"
    page.keyboard.press("Tab")
    assert page.evaluate(place) == "Skip to the verdict"
    heights = []
    for _ in range(30):
        page.keyboard.press("Tab")
        heights.append(page.evaluate("document.activeElement.getBoundingClientRect().top + window.scrollY"))
    assert max(heights) > 1500
    summary = page.locator("#ways summary")
    summary.focus()
    page.keyboard.press("Enter")
    assert page.locator("#ways details").get_attribute("open") is not None


@pytest.mark.slow
def test_on_paper_all_but_long_tables_are_open_and_figures_fit(
    browser: Browser, record: StudyRecord, tmp_path: Path
) -> None:
    page, trouble = opened(browser, write_report(record, tmp_path / "page.html"), dark=True)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    closed = page.locator("details:not([open])")
    assert all(one.locator("tr").count() > 60 for one in closed.all())
    assert 0 < closed.count() < page.locator("details[open]").count()
    widths = page.evaluate("[...document.querySelectorAll('.main-svg')].map(one => one.getBoundingClientRect().width)")
    assert max(widths) <= 680
    assert page.evaluate("getComputedStyle(document.querySelector('.plot .xtick text')).fill") == "rgb(68, 68, 68)"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() < page.locator("details").count()
    assert page.pdf()[:5] == b"%PDF-"
    assert trouble == []


@pytest.mark.slow
def test_downloads_work_where_the_dashboard_serves_the_page(browser: Browser, record: StudyRecord) -> None:
    headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": SANDBOX}
    page = browser.new_context(accept_downloads=True).new_page()
    page.route("http://127.0.0.1/reports/1", lambda route: route.fulfill(body=render(record), headers=headers))
    page.goto("http://127.0.0.1/reports/1")
    page.wait_for_selector(".plot .main-svg")
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    with page.expect_download(timeout=60_000) as begun:
        page.locator("a[download$='-trials.csv.gz']").click()
    assert gzip.decompress(Path(begun.value.path()).read_bytes()).startswith(b"study,version,")
    with page.expect_download(timeout=60_000) as begun:
        page.locator(".plot .modebar-btn[data-title='Download plot as a PNG']").first.dispatch_event("click")
    assert Path(begun.value.path()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_downloads_work_under_the_policy(browser: Browser, record: StudyRecord, tmp_path: Path) -> None:
    page, trouble = opened(browser, write_report(record, tmp_path / "page.html"))
    with page.expect_download() as begun:
        page.locator("#downloads a").first.click()
    assert begun.value.suggested_filename.startswith("digits-trials.csv")
    with page.expect_download() as begun:
        page.locator("[data-title*=PNG]").first.click()
    assert begun.value.suggested_filename.endswith(".png")
    assert trouble == []
