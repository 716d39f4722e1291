"""The page in a real browser: Chromium without a window."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mocomp.report.page import write
from tests.report import samples

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (apt-get install chromium)")
browsing = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")

DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
FIRST_SCREEN = ("#verdict", "#tile-error", "#tile-speed", "#tile-size", "#tile-memory", ".model")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with browsing.sync_playwright() as driver:
        # the sandbox of Chromium does not start for root, which is who runs CI
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser) -> Iterator[Callable]:
    """opened(file, viewport, scheme): the page, which may neither complain nor ask for anything but itself."""
    pages, complaints, asked = [], [], []

    def visit(path: Path, viewport: dict = DESKTOP, scheme: str = "light"):
        page = browser.new_page(viewport=viewport, color_scheme=scheme)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url) if request.url != path.as_uri() else None)
        page.goto(path.as_uri())
        pages.append(page)
        return page

    yield visit
    for page in pages:
        page.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == []


def test_complaints_and_requests_would_be_seen(browser, tmp_path):
    (tmp_path / "bad.html").write_text("<script>console.error('no')</script><img src='http://127.0.0.1:9/x.png'>")
    page, complaints, asked = browser.new_page(), [], []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "bad.html").as_uri())
    page.close()
    assert "no" in complaints and "http://127.0.0.1:9/x.png" in asked


def below_the_fold(page) -> list[str]:
    """What of the first screen is not wholly on it."""
    boxes = {name: page.locator(name).bounding_box() for name in FIRST_SCREEN}
    return [name for name, box in boxes.items() if box is None or box["y"] < 0 or box["y"] + box["height"] > 800]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_digits_show_the_five_numbers_on_the_first_screen(opened, digits, scheme, tmp_path):
    assert below_the_fold(opened(write(digits, tmp_path / "page.html"), DESKTOP, scheme)) == []


def test_first_screen_holds_when_there_is_much_to_say(opened, full, edit):
    """Failures, a warning, notes, quality: the numbers stay above the fold."""
    import json

    parity = json.loads((full / "mocomp.json").read_text())["parity"]
    failures = [
        f"model.layers.{i}.mlp.experts: experts off by 3.1e-01 (tolerance 1e-05), expert 3 the worst" for i in range(40)
    ]
    edit("mocomp.json", parity=parity | {"failures": failures, "passed": False, "worst": 0.31}, notes=["a note"] * 12)
    edit("bisect.json", **samples.bisect())
    assert below_the_fold(opened(write(full))) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_page_never_scrolls_sideways(opened, full, edit, width, scheme):
    edit("usage.json", **samples.usage(layers=24, experts=128))
    edit("mocomp.json", source="/a/very/long/path" * 12, notes=["unbroken" * 60])
    page = opened(write(full), PHONE | {"width": width}, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    clipped = """[...document.querySelectorAll('h1, h2, h3, .value, .pairs dd, .missing, .sentence')]
        .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"""
    assert page.evaluate(clipped) == []


def test_colours_follow_the_system_until_the_button_says_otherwise(opened, full):
    path = write(full)
    background = "getComputedStyle(document.body).backgroundColor"
    light, dark = opened(path), opened(path, scheme="dark")
    shades = [page.evaluate(background) for page in (light, dark)]
    assert shades[0] != shades[1]
    light.get_by_role("button", name="Switch between light and dark").click()
    assert light.evaluate(background) == shades[1]
    light.reload()
    assert light.evaluate(background) == shades[1], "it is remembered"


def test_all_that_scrolls_and_folds_is_reached_by_keyboard(opened, full):
    page = opened(write(full), PHONE)
    unreachable = (
        """[...document.querySelectorAll('.scroll')].filter(e => e.tabIndex < 0 || !e.getAttribute('aria-label')).length"""
    )
    assert page.evaluate(unreachable) == 0
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_command_is_copied_whole(opened, full):
    page = opened(write(full))
    page.evaluate("navigator.clipboard && (navigator.clipboard.writeText = async text => { window.copied = text; })")
    page.get_by_role("button", name="Copy").click()
    page.wait_for_function("document.querySelector('[data-copies]').textContent != 'Copy'")
    copied = page.evaluate("window.copied ?? getSelection().toString()")
    assert " ".join(copied.split()) == " ".join(page.locator("#command").text_content().split())


def test_print_shows_every_section_and_no_menu(opened, full):
    page = opened(write(full), scheme="dark")
    page.emulate_media(media="print")
    assert (
        page.locator("header").is_hidden()
        and page.locator(".strip .bar").first.is_visible()
        and page.locator("#repeat").is_visible()
    )
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light"
