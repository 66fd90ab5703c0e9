"""Traces as pages and pictures: what is in them, and what a browser makes of them."""

from __future__ import annotations

import html.parser
import io
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from unmask import EntropyBound, FullDenoiser, Result, Rule, Sampler
from unmask.cli import app
from unmask.models.registry import load
from unmask.rules import Entropy, LeftToRight, One
from unmask.rules.named import named_rule
from unmask.tasks.music import MusicTask, pitch_name
from unmask.tasks.named import named_task
from unmask.tasks.sudoku import demo_puzzles
from unmask.viewing import COLORS, Layout, Viewable, trace_gif, trace_html, trace_png
from unmask.viewing.layout import EAST, NORTH, SOUTH, WEST
from unmask.viewing.scene import Scene, visible

TOKENS = ["</script><script>alert(1)</script>", " and", "&amp;\n", "\t", "", "ü", "<!--"]
MASK = len(TOKENS)


def fixed(logits: Tensor, mask: int) -> FullDenoiser:
    """A denoiser that always says the same."""
    return FullDenoiser(lambda x: logits.expand(len(x), -1, -1), logits.shape[1], mask)


@pytest.fixture(scope="module")
def text() -> Result:
    """Nine tokens, the first of them given, two more never unmasked."""
    logits = torch.randn(9, MASK + 1, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(fixed(logits, MASK), Rule(LeftToRight(), One()))
    return sampler.run(sampler.start([[0] + [MASK] * 8], seed=0), max_steps=6, trace=True, candidates=3)


@pytest.fixture(scope="module")
def grid() -> Result:
    puzzle = next(puzzle for puzzle in demo_puzzles() if puzzle.columns["grade"] == "17 clues")
    sampler = Sampler(load("sudoku"), Rule(Entropy(), EntropyBound(0.01)))
    state = sampler.start([puzzle.cells, puzzle.cells], seed=0, temperature=torch.tensor([0.0, 1.0]))
    return sampler.run(state, trace=True, candidates=4)


def decode(token: int) -> str:
    return TOKENS[token]


def page(result: Result, **more: Any) -> str:
    return trace_html(result, 0, decode, Layout.text(), "A <title>", "caption & more", **more)


class Parser(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.data: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.data.setdefault(self.open[-1] if self.open else "", []).append(data)


def embedded(text: str) -> dict[str, Any]:
    return json.loads(next(data for data in Parser(text).data["script"] if data.startswith("{")))


def test_a_page_holds_the_trace_and_no_token_gets_out_of_it(text: Result):
    parsed = Parser(page(text))
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    assert parsed.data["title"] == ["A <title>"]
    data = embedded(page(text))
    assert (data["title"], data["caption"], data["columns"]) == ("A <title>", "caption & more", None)
    assert len(data["bounds"]) == 7
    assert data["bounds"][-1] == pytest.approx(float(text.bound[0]))
    assert data["cells"][0] == {"position": 0, "text": visible(TOKENS[0]), "step": 0, "ends": False}
    assert [cell["step"] for cell in data["cells"]] == [0, 1, 2, 3, 4, 5, 6, None, None]
    assert [cell["text"] for cell in data["cells"][7:]] == ["", ""]
    for cell, event in zip(data["cells"][1:7], text.trace(0), strict=True):
        assert cell["text"] == visible(decode(event.token))
        assert cell["ends"] == ("\n" in decode(event.token))
        assert (cell["probability"], cell["entropy"]) == (event.probability, event.entropy)
        assert cell["candidates"] == [[visible(decode(token)), p] for token, p in event.candidates]
        tokens = [token for token, _ in event.candidates]
        assert cell["drawn"] == (tokens.index(event.token) if event.token in tokens else None)
        assert set(cell["paint"]) == set(COLORS)


def test_a_page_loads_nothing_from_elsewhere(text: Result):
    shown = page(text)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", shown)
    assert not re.search(r"@import|url\(", shown)
    for tag, attributes in Parser(shown).elements:
        assert "src" not in attributes, tag
        assert attributes.get("href", "data:,") == "data:,"
    policy = next(attributes for _, attributes in Parser(shown).elements if "http-equiv" in attributes)
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_everything_in_a_token_can_be_seen():
    assert visible(" the\n\t") == "␣the↵⇥"
    assert visible("") == "∅"
    assert visible("\x00\u200b\u00a0") == "U+0000U+200BU+00A0"
    assert visible("naïve 数") == "naïve␣数"


def test_a_gif_has_a_frame_per_evaluation_and_one_for_the_prompt(text: Result, grid: Result):
    from PIL import Image

    for result, symbol, layout in ((text, decode, Layout.text()), (grid, str, Layout.grid(9, 9, box=(3, 3)))):
        image = Image.open(io.BytesIO(trace_gif(result, 0, symbol, layout, "Title", color="entropy")))
        assert getattr(image, "n_frames", 1) == int(result.nfe[0]) + 1
        frames, durations = set(), []
        for number in range(int(result.nfe[0]) + 1):
            image.seek(number)
            frames.add(image.convert("RGB").tobytes())
            durations.append(image.info["duration"])
        assert len(frames) == int(result.nfe[0]) + 1
        assert durations[-1] == 3 * durations[0]


def test_a_png_shows_steps_in_rows(grid: Result):
    from PIL import Image

    drawn = (grid, 0, str, Layout.grid(9, 9, box=(3, 3)), "Title")
    frame = Image.open(io.BytesIO(trace_gif(*drawn))).size
    two, four, eight = (Image.open(io.BytesIO(trace_png(*drawn, frames=frames))).size for frames in (2, 4, 8))
    assert two[0] == 2 * frame[0]
    assert two[1] == frame[1]
    assert four == (4 * frame[0], frame[1])
    assert eight[0] == four[0]  # a second row
    assert four[1] + 9 * 40 < eight[1] < 2 * four[1]
    assert trace_png(*drawn) == trace_png(*drawn)
    with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
        trace_png(*drawn, frames=1)


def test_cells_are_painted_from_the_low_end_of_a_scale_to_the_high_end(grid: Result):
    scene = Scene.of(grid, 0, str, Layout.grid(9, 9), "", "", "when")
    assert scene.steps == int(grid.nfe[0])
    known = [cell for cell in scene.cells if cell.event is not None]
    for name, value in (
        ("when", lambda cell: cell.event.step),
        ("entropy", lambda cell: cell.event.entropy),
        ("probability", lambda cell: cell.event.probability),
    ):
        shares = [scene.share(cell, name) for cell in sorted(known, key=value)]
        assert shares == sorted(shares)
        assert 0 <= shares[0] <= shares[-1] <= 1
    first, last = (next(cell for cell in known if cell.step == step) for step in (1, scene.steps))
    assert [bytes(scene.paint(cell, "when")[0]).hex() for cell in (first, last)] == ["46327e", "fde725"]
    assert scene.paint(first, "when")[1] == (255, 255, 255)  # white on dark
    assert scene.paint(last, "when")[1] != (255, 255, 255)
    assert scene.bounds[0] == 0
    assert scene.bounds[-1] == pytest.approx(float(grid.bound[0]))


def test_a_prompt_without_masks_is_a_page_and_a_picture_too():
    from PIL import Image

    sampler = Sampler(fixed(torch.zeros(2, MASK + 1), MASK), Rule(LeftToRight(), One()))
    result = sampler.run(sampler.start([[0, 1]], seed=0), trace=True)
    assert embedded(page(result))["bounds"] == [0]
    image = Image.open(io.BytesIO(trace_gif(result, 0, decode, Layout.text(), "")))
    assert getattr(image, "n_frames", 1) == 1
    assert Image.open(io.BytesIO(trace_png(result, 0, decode, Layout.text(), ""))).size == image.size


def test_walls_of_a_grid_are_lines_that_appear_once():
    layout = Layout.grid(9, 9, box=(3, 3))
    assert len(layout.lines()) == 2 * 4 * 9
    assert layout.walls[0] == NORTH + WEST
    assert layout.walls[40] == 0
    assert layout.walls[80] == SOUTH + EAST
    assert len(Layout.grid(2, 5).lines()) == 2 * (2 + 5)
    assert Layout.text().lines() == set()


def test_a_maze_shows_its_answer_between_its_walls():
    task = named_task("maze")
    assert isinstance(task, Viewable)
    prompt = task.prompts("test", 1)
    layout = task.layout(prompt.tokens[0])
    logits = torch.zeros(task.length, task.vocab_size).scatter(1, prompt.answers[0].unsqueeze(1), 9.0)
    sampler = Sampler(fixed(logits, task.mask_id), named_rule("entropy-bound", gamma=0.1).rule)
    result = sampler.run(sampler.start(prompt.tokens, seed=0, temperature=0.0), trace=True)
    scene = Scene.of(result, 0, task.symbol, layout, "", "", "when")
    assert len(scene.cells) == 36
    assert set("".join(cell.text for cell in scene.cells)) <= set("↑→↓←")
    # The arrows lead from S to E and never through a wall.
    place = next(cell for cell, mark in layout.marks.items() if mark == "S")
    for _ in range(36):
        if layout.marks.get(place) == "E":
            break
        side, step = {"↑": (NORTH, -6), "→": (EAST, 1), "↓": (SOUTH, 6), "←": (WEST, -1)}[scene.cells[place].text]
        assert not layout.walls[place] & side
        place += step
    assert layout.marks[place] == "E"


def test_a_chorale_has_a_row_per_voice():
    task = MusicTask()
    assert isinstance(task, Viewable)
    prompt = task.prompts("validation", 1)
    layout = task.layout(prompt.tokens[0])
    assert (layout.columns, layout.rows) == (64, ("soprano", "alto", "tenor", "bass"))
    assert len(layout.lines()) == 2 * 64 + 5 * 4  # above and below, and between stretches of 16 steps
    logits = torch.zeros(256, 47).scatter(1, prompt.answers[0].unsqueeze(1), 9.0)
    sampler = Sampler(fixed(logits, 46), named_rule("topk", k=96).rule)
    result = sampler.run(sampler.start(prompt.tokens, seed=0, temperature=0.0), trace=True)
    data = embedded(trace_html(result, 0, task.symbol, layout, "Chorale"))
    assert data["rows"] == list(layout.rows)
    assert len(data["bounds"]) == 3
    assert [cell["step"] for cell in data["cells"][:64]] == [0] * 64
    assert data["cells"][255]["text"] == pitch_name(36 + int(prompt.answers[0, 255]))


def test_wrong_settings_are_refused(text: Result):
    for layout, message in (
        (Layout(3, positions=(0, 9)), "position 9 of a sequence of 9 tokens"),
        (Layout.grid(2, 2), "walls for 4 cells and shows 9"),
        (Layout(3, marks={9: "S"}), "marks cell 9 of 9"),
        (replace(Layout.grid(3, 3), rows=("a", "b")), "names 2 rows and has 3"),
        (Layout(0), "at least one column"),
    ):
        with pytest.raises(ValueError, match=message):
            trace_html(text, 0, decode, layout, "")
    with pytest.raises(ValueError, match=r"unknown color 'red'; choose one of when, entropy, probability"):
        page(text, color="red")
    with pytest.raises(ValueError, match="at least one row"):
        Layout.grid(0, 3)
    with pytest.raises(IndexError, match="no sequence 1"):
        trace_html(text, 1, decode, Layout.text(), "")
    with pytest.raises(ValueError, match="trace=True"):
        trace_html(replace(text, steps=None), 0, decode, Layout.text(), "")


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["trace", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_writes_what_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from PIL import Image

    paths = [tmp_path / name for name in ("a.html", "b.gif", "c.png")]
    report = json.loads(run("--index", 7, "--html", paths[0], "--gif", paths[1], "--png", paths[2], "--json"))
    assert report["files"] == [str(path) for path in paths]
    assert embedded(paths[0].read_text())["columns"] == 9
    assert getattr(Image.open(paths[1]), "n_frames", 1) == report["nfe"] + 1
    assert Image.open(paths[2]).format == "PNG"
    cells = named_task("sudoku").prompts("test", 8).tokens[7].tolist()
    assert report["trace"]["initial"] == cells
    assert report["masks"] == cells.count(0) == len(report["trace"]["events"])
    assert report["quality"] == 1
    assert len(report["trace"]["events"][0]["candidates"]) == 5
    assert report["bound"] == pytest.approx(sum(report["trace"]["bounds"]))
    text = "".join(map(str, cells))
    same = json.loads(run("--puzzle", text.replace("0", "."), "--candidates", 0, "--json"))
    assert same["trace"]["tokens"] == report["trace"]["tokens"]
    assert same["trace"]["stream"] == report["trace"]["stream"]
    assert same["files"] == []
    monkeypatch.chdir(tmp_path)
    assert "wrote trace.html" in run("--rule", "topk", "--k", 30)
    assert embedded(Path("trace.html").read_text())["bounds"]


def test_the_command_gives_the_same_tokens_as_solve(tmp_path: Path):
    cells = named_task("sudoku").prompts("test", 4).tokens[3].tolist()
    file, out = tmp_path / "puzzle.csv", tmp_path / "answer.csv"
    file.write_text("puzzle\n" + "".join(map(str, cells)) + "\n")
    options = ["--temperature", "1", "--seed", "5", "--gamma", "1"]
    assert CliRunner().invoke(app, ["solve", str(file), *options, "--output", str(out)]).exit_code == 0
    report = json.loads(run("--index", 3, *options, "--json"))
    assert "".join(map(str, report["trace"]["tokens"])) in out.read_text()


def test_the_command_shows_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, columns in (("maze", 6), ("text:length=20,span=2", None)):
        task = named_task(name.split(":")[0], **({"length": 20, "span": 2} if ":" in name else {}))
        logits = torch.randn(task.length, task.vocab_size, generator=torch.Generator().manual_seed(0))
        denoiser = fixed(logits, task.mask_id)
        monkeypatch.setattr("unmask.cli.trace.load", lambda model, denoiser=denoiser: denoiser)
        path = tmp_path / "trace.html"
        report = json.loads(run("--task", name, "--index", 2, "--split", "validation", "--html", path, "--json"))
        assert report["trace"]["initial"] == task.prompts("validation", 3).tokens[2].tolist()
        assert report["quality_is"] == task.quality
        data = embedded(path.read_text())
        assert data["columns"] == columns
        assert len(data["cells"]) == (36 if columns else 20)
        assert 0 <= report["quality"] <= 1
        assert json.loads(run("--task", name, "--no-score", "--json"))["quality"] is None


def test_what_a_user_gets_wrong_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("unmask.cli.trace.Sampler", None)  # nothing may be sampled
    for arguments, error, message in (
        (["--index", 200], ValueError, "there is no prompt 200: the test split of sudoku has 200"),
        (["--split", "dev"], ValueError, "dev"),
        (["--puzzle", "12"], ValueError, "81 characters, got 2"),
        (["--puzzle", "." * 81, "--index", 1], ValueError, "either --puzzle"),
        (["--task", "chess"], ValueError, "unknown task 'chess'"),
        (["--task", "maze", "--puzzle", "." * 81], ValueError, "--puzzle goes with --task sudoku"),
        (
            ["--task", "text", "--index", 10**6],
            ValueError,
            "there is no prompt 1000000: the test split of text has",
        ),
        (["--task", "text:span"], ValueError, "expected key=value, got 'span'"),
        (["--task", "maze", "--model", "sudoku"], ValueError, "they do not belong together"),
        (["--model", "/nowhere"], ValueError, "no model at '/nowhere'"),
        (["--html", tmp_path / "none" / "x.html"], ValueError, "there is no such folder"),
        (["--png", tmp_path], ValueError, "it is a folder"),
        (["--color", "red"], ValueError, "unknown color 'red'"),
        (["--rule", "topk"], ValueError, "topk needs a value for k"),
    ):
        with pytest.raises(error, match=message):
            run(*arguments)
    monkeypatch.setattr("unmask.viewing.pictures.find_spec", lambda name: None if name == "PIL" else name)
    with pytest.raises(ImportError, match=r"need pillow: pip install"):
        run("--gif", tmp_path / "x.gif")
    assert list(tmp_path.iterdir()) == []


def test_pages_need_no_drawing_library(text: Result, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert embedded(page(text))["cells"]
    with pytest.raises(ImportError):
        trace_png(text, 0, decode, Layout.text(), "")


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: install chromium, or open a page by hand")
def test_a_browser_steps_through_a_page(grid: Result, text: Result, tmp_path: Path):
    def dom(shown: str, fragment: str, script: str = "") -> Parser:
        path = tmp_path / "page.html"
        path.write_text(shown.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=4000"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{path}#{fragment}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return Parser(done.stdout)

    def cells(parsed: Parser, state: str) -> list[int]:
        named = [(attributes.get("class") or "").split() for _, attributes in parsed.elements]
        found = [classes for classes in named if classes[:1] == ["cell"]]
        return [number for number, classes in enumerate(found) if state in classes]

    def press(*keys: str) -> str:
        return "".join(f"dispatchEvent(new KeyboardEvent('keydown', {{key: {key!r}}}));" for key in keys)

    shown = trace_html(grid, 0, str, Layout.grid(9, 9, box=(3, 3)), "Sudoku")
    steps = {step: [e.position for e in grid.trace(0) if e.step == step] for step in range(int(grid.nfe[0]) + 1)}
    last = len(steps) - 1
    for fragment, script, step in (
        ("", "", last),
        ("step=2", "", 2),
        ("step=999", "", last),
        ("step=2", press("ArrowRight", "ArrowRight", "ArrowLeft"), 3),
        ("step=2", press("Home", "ArrowLeft"), 0),
        ("step=2", press("End"), last),
        ("step=0", press(" "), min(5, last)),  # plays: 4 seconds of 0.7
        ("", "slider.value = 1; slider.dispatchEvent(new Event('input'));", 1),
    ):
        parsed = dom(shown, fragment, script)
        assert cells(parsed, "fresh") == steps[step]
        assert len(cells(parsed, "masked")) == sum(len(steps[later]) for later in range(step + 1, last + 1))
        where = f"evaluation {step} of {last}" if step else f"before evaluation 1 of {last}"
        assert parsed.data["output"] == [where]
    parsed = dom(shown, f"step=1&color=entropy&theme=dark&cell={steps[1][0]}")
    assert parsed.elements[0] == ("html", {"lang": "en", "data-theme": "dark"})
    assert [a["data-color"] for _, a in parsed.elements if a.get("aria-pressed") == "true"] == ["entropy"]
    assert len(parsed.data["td"]) == 2 * 4  # four candidates: token and probability
    # Tokens that look like markup stay text.
    parsed = dom(page(text), "cell=1")
    assert len([tag for tag, _ in parsed.elements if tag == "script"]) == 3
    assert "alert(1)" in "".join(parsed.data["div"])
    assert cells(parsed, "masked") == [7, 8]
