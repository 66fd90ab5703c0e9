"""The page of the server in a real Chromium: `make test-page`. Skipped where there is none."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-page")
axe: Any = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe: make test-page")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]

DESKTOP, PHONE = (1280, 800), (390, 844)
PUZZLE = "000000010400000000020000000000050407008000300001090000300400200050100000000806000"
SOLVED = "693784512487512936125963874932651487568247391741398625319475268856129743274836159"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the shipped models."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = [sys.executable, "-m", "unmask", "serve", "--port", str(port)]
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            for _ in range(300):
                assert process.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            else:
                pytest.fail(f"the server was not ready in a minute: {log.read_text()}")
            yield f"http://127.0.0.1:{port}/"
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser."""
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Visit:
    """The page, opened and ready; at the end nothing may have gone wrong in it or left for another server."""

    def __init__(self, browser: Any, address: str, size: tuple[int, int] = DESKTOP, **options: Any) -> None:
        viewport = {"width": size[0], "height": size[1]}
        self.address, self.wrong = address, []
        self.context = browser.new_context(viewport=viewport, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self._note(message))
        self.page.on("request", lambda request: self._check(request.url))
        self.open()

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _check(self, url: str) -> None:
        if not url.startswith(self.address):
            self.wrong.append(f"asked {url}")

    def open(self) -> None:
        """Opens the page."""
        self.page.goto(self.address)
        self.page.wait_for_selector("#run:not([disabled])")

    def close(self) -> None:
        """Ends the visit."""
        self.context.close()
        assert self.wrong == []

    def run(self) -> str:
        """Runs, waits until all is shown, and returns the sentence that compares."""
        self.page.click("#run")
        self.page.wait_for_selector("#verdict strong")
        return self.page.inner_text("#verdict")

    def choose(self, model: str) -> None:
        """Chooses a model."""
        self.page.select_option("#model", model)

    def setting(self, selector: str, value: str) -> None:
        """Fills a field of the settings, which are folded on a phone."""
        if not self.page.is_visible(selector):
            self.page.click("#how summary")
        self.page.fill(selector, value)

    def masked(self, panel: int = 0) -> int:
        """How many cells of a panel are masked."""
        return self.page.locator(".panel").nth(panel).locator(".cell.masked").count()

    def expect_masked(self, count: int) -> None:
        """Waits for so many masked cells in the first panel: the page draws when the browser next does."""
        sync_api.expect(self.page.locator(".panel").first.locator(".cell.masked")).to_have_count(count)

    def text(self, panel: int = 0) -> str:
        """What stands on the canvas of a panel."""
        return "".join(self.page.locator(".panel").nth(panel).locator(".cell").all_text_contents())

    def number(self, name: str, panel: int = 0) -> int:
        """A number of a panel."""
        return int(self.page.locator(".panel").nth(panel).locator(f".numbers .{name}").inner_text().split()[0])


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Visit]:
    """The page at the size of a desktop."""
    found = Visit(browser, address)
    yield found
    found.close()


def contrast(page: Any) -> float:
    """The least contrast of the text of a written cell with the cell's colour, as WCAG 2 defines it."""
    return page.evaluate("""() => {
      const light = css => {
        const [r, g, b] = css.match(/[\\d.]+/g).map(part => part / 255)
          .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      return Math.min(...[...document.querySelectorAll(".cell.written")].map(cell => {
        const style = getComputedStyle(cell);
        const [a, b] = [light(style.color), light(style.backgroundColor)];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      }));
    }""")


def test_a_prompt_is_typed_and_tokens_appear(visit: Visit):
    page = visit.page
    page.fill("#prompt", "What is 9 plus 4?")
    visit.expect_masked(16)
    page.select_option("#speed", "0.25")
    page.click("#run")
    page.wait_for_selector(".panel:nth-child(2) .cell.written")
    assert 16 > visit.masked(1) > 0
    page.wait_for_selector("#verdict strong")
    assert "13end" in visit.text(0)
    assert visit.text(0) == visit.text(1)
    assert visit.number("nfe", 0) < visit.number("nfe", 1)
    assert "fewer evaluations" in page.inner_text("#verdict")
    assert "Both texts are the same" in page.inner_text("#verdict")


def test_a_run_is_replayed_with_the_slider_by_keyboard(visit: Visit):
    visit.run()
    page = visit.page
    evaluations, left = visit.number("nfe", 1), visit.masked(1)
    page.focus("#slider")
    page.keyboard.press("Home")
    page.wait_for_selector(".panel:nth-child(2) .nfe:text-is('0')")
    assert visit.masked(0) == visit.masked(1) == 16
    for number in range(1, evaluations + 1):
        page.keyboard.press("ArrowRight")
        page.wait_for_selector(f".panel:nth-child(2) .nfe:text-is('{number}')")
        assert visit.masked(1) == 16 - number
    assert visit.masked(1) == left
    said = page.get_attribute("#slider", "aria-valuetext")
    assert said.startswith(f"evaluation {evaluations} of {evaluations}, ")
    page.keyboard.press("Home")
    page.keyboard.press("Space")
    page.wait_for_selector("#play[aria-label='Pause']")
    page.wait_for_selector("#verdict strong")
    assert visit.masked(1) == left
    assert page.get_attribute("#play", "aria-label") == "Play"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_change_by_keyboard_and_the_text_on_them_is_clear(browser: Any, address: str, scheme: str):
    visit = Visit(browser, address, color_scheme=scheme, reduced_motion="reduce")
    page = visit.page
    visit.choose("sudoku")
    visit.run()
    shown = []
    page.focus("[name=colour]:checked")
    for _ in range(3):
        page.wait_for_timeout(100)
        cell = page.locator(".panel .cell.written").first
        shown.append((cell.evaluate("cell => getComputedStyle(cell).backgroundColor"), page.inner_text("#legend-text")))
        assert contrast(page) >= 4.5
        page.keyboard.press("ArrowRight")
    assert len({color for color, _ in shown}) == 3
    assert len({legend for _, legend in shown}) == 3
    visit.close()


def test_a_selection_becomes_a_gap_and_is_filled_in(visit: Visit):
    page = visit.page
    page.fill("#prompt", "12+35=47")
    page.focus("#prompt")
    page.keyboard.press("End")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.input_value("#prompt") == "12+35=[MASK:2]"
    assert page.is_disabled("#length")
    visit.expect_masked(2)
    visit.run()
    assert "12+35=47" in visit.text()
    page.focus("#prompt")
    page.keyboard.press("Control+z")
    assert page.input_value("#prompt") == "12+35=47"


def test_a_sudoku_is_typed_and_solved(visit: Visit):
    page = visit.page
    visit.choose("sudoku")
    page.select_option("#examples", label="Empty grid")
    visit.expect_masked(81)
    page.locator("#board input").first.focus()
    for at, digit in enumerate(PUZZLE):
        if digit != "0":
            page.keyboard.press(digit)
        if at % 9 < 8:
            page.keyboard.press("ArrowRight")
        else:
            page.keyboard.press("Home")
            page.keyboard.press("ArrowDown")
    visit.expect_masked(PUZZLE.count("0"))
    sentence = visit.run()
    assert "Both grids are the same" in sentence
    assert visit.text() == SOLVED
    assert page.locator(".detail.remark").first.inner_text().startswith("Solved")
    assert page.locator("#board input").evaluate_all("cells => cells.filter(cell => cell.tabIndex === 0).length") == 1


@pytest.mark.parametrize(
    "rule",
    ["wino", "remdm", "edit", "gibbs", "speculative", "independence-test", "dependence-bound", "left-to-right"],
)
def test_every_kind_of_rule_is_replayed(visit: Visit, rule: str):
    """Also rules that mask again, overwrite, or ask several times: at every place the numbers are the canvas's."""
    page = visit.page
    visit.choose("sudoku")
    page.uncheck("#compare")
    page.select_option("#rule", rule)
    page.click("#run")
    page.wait_for_selector("#run:text-is('Unmask')")
    page.focus("#slider")
    page.keyboard.press("End")
    page.wait_for_selector("#verdict strong")
    evaluations = visit.number("nfe")
    assert visit.number("written") + visit.masked() == 53
    for _ in range(min(evaluations, 12)):
        page.keyboard.press("ArrowLeft")
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert visit.number("written") + visit.masked() == 53
    page.keyboard.press("Home")
    visit.expect_masked(53)
    assert visit.number("written") == visit.number("nfe") == 0


def test_a_masked_molecule_of_a_reaction_is_filled_in(visit: Visit):
    page = visit.page
    visit.choose("rxnmapper")
    assert "SMILES" in page.inner_text("#prompt-help")
    for label in ("A product", "A reactant", "A ring"):
        page.select_option("#examples", label=label)
        sentence = visit.run()
        assert "reactions" in sentence
        assert ">>" in visit.text()
        assert visit.masked(0) == visit.masked(1) == 0
    page.select_option("#examples", label="A reactant")
    assert "fewer evaluations" in visit.run()
    assert "CC(=O)OC(C)=O.NCc1ccccc1>>CC(=O)NCc1ccccc1" in visit.text()


def test_a_digit_that_is_twice_is_said(visit: Visit):
    visit.choose("sudoku")
    visit.page.select_option("#examples", label="Empty grid")
    visit.page.locator("#board input").nth(0).focus()
    visit.page.keyboard.press("5")
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("5")
    assert visit.page.inner_text("#board-problem") == "A digit is twice in box 1, row 1."
    assert visit.page.locator("#board [aria-invalid=true]").count() == 2
    visit.page.keyboard.press("Delete")
    assert visit.page.inner_text("#board-problem") == ""


def test_what_the_server_refuses_is_shown_at_the_field(visit: Visit):
    page = visit.page
    page.fill("#setting-loss", "-1")
    page.click("#run")
    page.wait_for_selector("#error:visible")
    assert "loss" in page.inner_text("#error")
    assert page.locator("#setting-loss").evaluate("field => document.activeElement === field")
    assert page.get_attribute("#setting-loss", "aria-invalid") == "true"
    assert visit.wrong  # the browser notes the status on its console
    visit.wrong.clear()
    page.fill("#setting-loss", "0.01")
    assert "fewer" in visit.run()
    assert not page.is_visible("#error")
    assert page.get_attribute("#setting-loss", "aria-invalid") is None


def test_a_server_that_is_gone_is_said(visit: Visit):
    visit.page.route("**/v1/unmask", lambda route: route.abort())
    visit.page.click("#run")
    visit.page.wait_for_selector("#error:visible")
    assert "cannot be reached" in visit.page.inner_text("#error")
    assert visit.page.inner_text("#run") == "Unmask"
    visit.wrong.clear()


def test_the_key_of_the_server_is_asked_for(visit: Visit):
    refusal = {"error": {"message": "this server needs a key", "type": "authentication_error", "param": None}}

    def guard(route: Any) -> None:
        if route.request.headers.get("authorization") == "Bearer secret":
            route.continue_()
        else:
            route.fulfill(status=401, json=refusal)

    page = visit.page
    page.route("**/v1/*", guard)
    page.goto(visit.address)
    page.wait_for_selector("#key:visible")
    assert page.inner_text("#error") == "this server needs a key"
    page.keyboard.type("secret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#run:not([disabled])")
    assert "fewer" in visit.run()
    visit.wrong.clear()


def test_a_run_is_stopped(visit: Visit):
    page = visit.page
    visit.choose("sudoku")
    page.select_option("#examples", label="Empty grid")
    # As soon as a token is there: a puzzle takes the server but half a second.
    page.evaluate("""() => {
      document.querySelector("#run").click();
      const look = () => {
        if (!document.querySelector(".cell.written")) requestAnimationFrame(look);
        else document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}));
      };
      look();
    }""")
    page.wait_for_selector(".cell.written")
    page.wait_for_selector("#run:text-is('Unmask')")
    page.wait_for_function("() => !document.querySelector('#slider').disabled")
    page.focus("#slider")
    page.keyboard.press("End")
    sync_api.expect(page.locator("#verdict")).to_contain_text("Stopped after")
    assert visit.masked(1) > 0
    page.select_option("#examples", label="Easy")
    assert "fewer" in visit.run()


def test_a_refused_setting_is_shown_on_a_phone_too(browser: Any, address: str):
    visit = Visit(browser, address, PHONE)
    visit.setting("#setting-loss", "-1")
    visit.page.click("#how summary")
    visit.page.click("#run")
    visit.page.wait_for_selector("#setting-loss:focus")
    visit.wrong.clear()
    visit.close()


def test_a_phone_is_brought_to_the_canvas(browser: Any, address: str):
    visit = Visit(browser, address, PHONE, reduced_motion="reduce")
    visit.choose("sudoku")
    visit.run()
    assert 0 <= visit.page.locator("#verdict").bounding_box()["y"] < 50
    visit.close()


def test_one_run_alone(visit: Visit):
    visit.page.uncheck("#compare")
    visit.page.click("#run")
    visit.page.wait_for_selector("#verdict strong")
    assert visit.page.locator(".panel").count() == 1
    assert "of the model" in visit.page.inner_text("#verdict")


def test_cells_are_visited_by_keyboard(visit: Visit):
    visit.page.uncheck("#chat")
    visit.page.fill("#prompt", "12+35=")
    visit.run()
    canvas = visit.page.locator(".canvas").first
    canvas.focus()
    visit.page.keyboard.press("Home")
    for _ in range(6):
        visit.page.keyboard.press("ArrowRight")
    active = canvas.get_attribute("aria-activedescendant")
    label = visit.page.get_attribute(f"#{active}", "aria-label")
    assert re.fullmatch(r"position 7: 4, evaluation \d+, probability \S+ ?\S*, entropy \S+ nats", label)
    assert visit.page.locator(".detail").first.inner_text() == label


def test_every_control_is_reached_in_the_order_of_the_page_and_shows_the_focus(visit: Visit):
    visit.run()
    page = visit.page
    page.focus(".skip")
    reached = []
    for _ in range(45):
        found = page.evaluate("""() => {
          const node = document.activeElement;
          if (node === document.body) return null;
          const style = getComputedStyle(node.matches("[name=colour]") ? node.nextElementSibling : node);
          const seen = style.outlineStyle !== "none" || style.boxShadow !== "none" || node.className === "skip";
          return [node.id || node.className || node.name || node.tagName.toLowerCase(), seen];
        }""")
        if found is None:
            break
        assert found[1], f"the focus of {found[0]} is not to be seen"
        reached.append(found[0])
        page.keyboard.press("Tab")
    order = ["skip", "theme", "model", "examples", "prompt", "mask-size", "run", "summary", "rule", "setting-loss"]
    order += ["temperature", "seed", "new-seed", "length", "block", "chat", "compare", "colour"]
    order += ["quiet copy", "canvas", "back", "play", "slider", "speed"]
    assert [name for name in reached if name in order and reached.count(name) == 1] == [
        name for name in order if reached.count(name) == 1
    ]
    assert set(order) <= set(reached)


def test_a_screen_reader_is_told_little_and_what_matters(visit: Visit):
    page = visit.page
    page.evaluate("""() => {
      window.said = [];
      const status = document.querySelector("#status");
      new MutationObserver(() => said.push(status.textContent)).observe(status, {childList: true, characterData: true});
    }""")
    visit.choose("sudoku")
    visit.run()
    said = page.evaluate("() => said")
    assert said[0] == "Running."
    assert re.match(r"Done: \d+ evaluations?, [\d.]+ seconds, \d+ tokens written. One at a time: \d+ ", said[-1])
    assert len(said) <= 4
    assert page.get_attribute("#status", "aria-live") == "polite"


def test_reduced_motion_moves_nothing(browser: Any, address: str):
    visit = Visit(browser, address, reduced_motion="reduce")
    visit.page.evaluate("""() => {
      window.moving = 0;
      const look = () => { moving = Math.max(moving, document.getAnimations().length); requestAnimationFrame(look); };
      look();
    }""")
    visit.choose("sudoku")
    visit.run()
    assert visit.page.evaluate("() => moving") == 0
    visit.close()


def test_the_theme_is_the_systems_until_one_is_chosen_and_then_stays(browser: Any, address: str):
    visit = Visit(browser, address, color_scheme="dark")
    page = visit.page

    def background() -> str:
        return page.evaluate("() => getComputedStyle(document.body).backgroundColor")

    dark = background()
    page.emulate_media(color_scheme="light")
    light = background()
    assert light != dark
    page.click("#theme")
    assert page.get_attribute("#theme", "aria-label") == "Theme: dark"
    assert background() == dark
    visit.open()
    assert background() == dark
    page.click("#theme")
    assert background() == light
    visit.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing(browser: Any, address: str, scheme: str, size: tuple[int, int]):
    """Not only nothing serious: nothing at all, before a run and after it, in every colouring, of text and puzzle."""
    visit = Visit(browser, address, size, color_scheme=scheme, reduced_motion="reduce")

    def check() -> None:
        violations = axe.Axe().run(visit.page).response["violations"]
        assert [(found["id"], found["impact"], found["nodes"][0]["html"]) for found in violations] == []

    check()
    for model in ("chat", "sudoku", "rxnmapper"):
        visit.choose(model)
        visit.run()
        for colour in ("evaluation", "entropy", "probability"):
            visit.page.check(f"[name=colour][value={colour}]", force=True)
            check()
    visit.setting("#setting-loss", "-1")
    visit.page.click("#run")
    visit.page.wait_for_selector("#error:visible")
    check()
    visit.wrong.clear()
    visit.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE, (320, 640)], ids=["desktop", "phone", "narrow"])
def test_the_page_fits(browser: Any, address: str, scheme: str, size: tuple[int, int], tmp_path: Path):
    """Nothing is wider than the window, and pictures are left to be looked at (`--basetemp` says where)."""
    visit = Visit(browser, address, size, color_scheme=scheme, reduced_motion="reduce")
    for model in ("chat", "sudoku", "rxnmapper"):
        visit.choose(model)
        visit.run()
        assert visit.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        for part in visit.page.locator(".numbers, .player, .toolbar").all():
            assert part.evaluate("part => part.scrollWidth <= part.clientWidth")
        panels = [panel.bounding_box() for panel in visit.page.locator(".panel").all()]
        assert (panels[0]["y"] == panels[1]["y"]) == (size == DESKTOP)
        picture = tmp_path / f"{model}-{size[0]}-{scheme}.png"
        visit.page.screenshot(path=picture, full_page=True)
        assert picture.stat().st_size > 10_000
    visit.close()
