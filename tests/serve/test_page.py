"""The page in a real browser, on a real server with the demo model; and that its built files are those of its sources."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.page

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "pyflash" / "serve" / "page"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = {"desk": {"width": 1280, "height": 800}, "phone": {"width": 360, "height": 640}}


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the page's sources with the packages that its lock file names."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm")
    folder = tmp_path_factory.mktemp("page") / "page"
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("node_modules", "built", "__pycache__"))
    subprocess.run([npm, "ci", "--ignore-scripts", "--silent"], cwd=folder, check=True, timeout=300)
    return folder


def test_built_files_are_those_of_the_sources(node_folder: Path) -> None:
    for command in ("check", "build"):
        subprocess.run([shutil.which("npm") or "npm", "run", "--silent", command], cwd=node_folder, check=True, timeout=300)
    made, kept = ({path.name: path.read_bytes() for path in (folder / "built").iterdir()} for folder in (node_folder, SOURCES))
    assert sorted(made) == sorted(kept)
    assert all(made[name] == kept[name] for name in made), "run `npm run build` in pyflash/serve/page and commit built/"


# A server that takes its time: random weights end most answers some day, and these have to be stopped before.
SLOW = """
import sys, time
from pyflash.serve import engine

evaluate = engine.evaluate

def slow(*arguments, **options):
    time.sleep(0.02)
    return evaluate(*arguments, **options)

engine.evaluate = slow
from pyflash.cli.main import main

main(sys.argv[1:])
"""


def serving(*arguments: object, slow: bool = False) -> Iterator[str]:
    start = [sys.executable, "-c", SLOW] if slow else [sys.executable, "-m", "pyflash"]
    command = [*start, "serve", *map(str, arguments), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            lines = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"answers at (http://\S+)", line):
                    yield found[1]
                    break
            else:
                raise AssertionError(lines)
        finally:
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture(scope="module")
def demo_server() -> Iterator[str]:
    yield from serving("--ctx", 4096)


@pytest.fixture(scope="module")
def endless_server(tiny_model: Path) -> Iterator[str]:
    """Random weights, slowly: its answers go on until they are stopped."""
    yield from serving(tiny_model, "--ctx", 4000, slow=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian: chromium)")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=list(SIZES))
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    yield from opened(browser, request.param)


@pytest.fixture
def desk(browser: Any) -> Iterator[Any]:
    yield from opened(browser, "desk")


def opened(browser: Any, size: str) -> Iterator[Any]:
    """A page of its own, without anything kept. Nothing of what it does may be an error or against its security policy."""
    context = browser.new_context(viewport=SIZES[size], accept_downloads=True)
    found, problems = context.new_page(), []
    found.set_default_timeout(30_000)
    found.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: problems.append(str(error)))
    found.on("dialog", lambda dialog: dialog.accept())
    found.on("request", lambda sent: None if re.match(r"http://127\.0\.0\.1:|data:|blob:", sent.url) else problems.append(sent.url))
    yield found
    context.close()
    assert problems == []


GREEDY = "localStorage.setItem('pyflash.options', JSON.stringify({temperature: 0}))"  # random weights then end no answer


def ask(page: Any, text: str) -> None:
    page.fill("#question", text)
    page.click("text=Send")


def answers(page: Any, n: int) -> list[str]:
    """The texts of n complete answers."""
    page.locator(".answer .actions").nth(n - 1).wait_for()
    return [text.strip() for text in page.locator(".answer .markdown").all_inner_texts()]


def test_a_first_visit(page: Any, demo_server: str) -> None:
    """It says what the model is, offers four things, and answers them; a second question knows the first."""
    page.goto(demo_server)
    page.locator(".welcome").wait_for()
    assert "demonstration model" in page.locator(".welcome").inner_text()
    things = page.locator(".welcome li button")
    assert things.count() == 4
    page.screenshot()
    things.nth(1).click()
    assert answers(page, 1) == ["12 + 30 = 42."]
    ask(page, "What is the capital of France?")
    assert "Paris" in answers(page, 2)[1]
    assert "tokens/s" in page.locator(".answer").last.inner_text()
    assert page.locator(".context").inner_text().endswith("tokens of context")
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"], "it scrolls sideways"


def test_thinking_is_folded_with_its_time(desk: Any, demo_server: str) -> None:
    desk.goto(demo_server)
    desk.select_option("select", "high")
    ask(desk, "What is 25 + 17?")
    assert "42" in answers(desk, 1)[0]
    summary = desk.locator(".thinking summary")
    assert re.match(r"Thought for \d+\.\d s", summary.inner_text())
    assert desk.locator(".thinking .markdown").count() == 0
    summary.click()
    desk.locator(".thinking .markdown .block").first.wait_for()
    assert desk.locator(".thinking .markdown").inner_text().strip()


def test_stop_continue_and_again(desk: Any, endless_server: str) -> None:
    desk.add_init_script(GREEDY)
    desk.goto(endless_server)
    ask(desk, "Go on for ever")
    desk.wait_for_timeout(800)
    desk.keyboard.press("Escape")
    desk.locator("text=Stopped.").wait_for()
    first = answers(desk, 1)[0]
    assert first
    desk.click("text=Continue")
    desk.wait_for_timeout(800)
    desk.click("main >> text=Stop")
    desk.locator("text=Stopped.").wait_for()
    longer = answers(desk, 1)[0]
    assert len(longer) > len(first)
    desk.click("text=Again")
    desk.wait_for_timeout(300)
    desk.keyboard.press("Escape")
    desk.locator("text=2/2").wait_for()
    desk.click("[aria-label='The one before']")
    desk.locator("text=1/2").wait_for()
    assert answers(desk, 1)[0] == longer


def test_an_answer_survives_a_reload(desk: Any, endless_server: str) -> None:
    desk.add_init_script(GREEDY)
    desk.goto(endless_server)
    ask(desk, "Go on for ever")
    desk.locator(".answer .markdown .block").first.wait_for()
    desk.wait_for_timeout(300)
    desk.reload()
    desk.locator("main >> text=Stop").wait_for()
    desk.wait_for_timeout(500)
    desk.click("main >> text=Stop")
    desk.locator("text=Stopped.").wait_for()
    assert answers(desk, 1)[0]
    desk.reload()
    assert answers(desk, 1)[0] and desk.locator("text=Stopped.").count() == 1


def test_edit_makes_a_branch(desk: Any, demo_server: str) -> None:
    desk.goto(demo_server)
    ask(desk, "What is 1 + 1?")
    assert answers(desk, 1) == ["1 + 1 = 2."]
    desk.click(".question >> text=Edit")
    desk.fill(".edit textarea", "What is 12 + 30?")
    desk.click(".edit >> text=Send")
    desk.locator(".question >> text=2/2").wait_for()
    assert answers(desk, 1) == ["12 + 30 = 42."]
    desk.click(".question [aria-label='The one before']")
    assert answers(desk, 1) == ["1 + 1 = 2."]


def test_the_list_of_chats(desk: Any, demo_server: str, tmp_path: Path) -> None:
    """Search, rename, export, import, delete; kept over a reload."""
    desk.goto(demo_server)
    ask(desk, "What is 1 + 1?")
    answers(desk, 1)
    desk.keyboard.press("Control+Shift+O")
    desk.locator(".welcome").wait_for()
    ask(desk, "What is 12 + 30?")
    answers(desk, 1)
    items = desk.locator(".sidebar li")
    assert items.count() == 2
    desk.keyboard.press("Control+K")
    desk.keyboard.type("1 + 1")
    desk.wait_for_timeout(100)
    assert items.count() == 1
    desk.fill("[type=search]", "")
    desk.click("li.current [aria-label^=Rename]")
    desk.fill(".rename", "Sums <b>of mine</b>")
    desk.keyboard.press("Enter")
    desk.locator("text=Sums <b>of mine</b>").first.wait_for()
    with desk.expect_download() as download:
        desk.click("text=Export all")
    kept = tmp_path / "chats.json"
    download.value.save_as(kept)
    assert len(json.loads(kept.read_text())["conversations"]) == 2
    desk.click("li.current [aria-label^=Delete]")
    desk.wait_for_timeout(200)
    assert items.count() == 1
    desk.set_input_files(".sidebar input[type=file]", kept)
    desk.wait_for_timeout(300)
    assert items.count() == 3
    broken = tmp_path / "broken.json"
    broken.write_text('{"title": 1}')
    desk.set_input_files(".sidebar input[type=file]", broken)
    desk.wait_for_timeout(300)  # it is told
    desk.reload()
    desk.locator(".sidebar li").first.wait_for()
    assert items.count() == 3


def test_attached_texts_are_sent(desk: Any, demo_server: str) -> None:
    sent: list[str] = []
    desk.on("request", lambda request: sent.append(request.post_data) if "completions" in request.url else None)
    desk.goto(demo_server)
    desk.set_input_files(".composer input[type=file]", [
        {"name": "note.txt", "mimeType": "text/plain", "buffer": "The word is ahoy.".encode()},
        {"name": "picture.png", "mimeType": "image/png", "buffer": b"\x89PNG\xff\xfe"},
    ])
    desk.locator(".composer .files >> text=note.txt").wait_for()
    assert desk.locator(".composer .files li").count() == 1  # the other is no text
    ask(desk, "Hello")
    answers(desk, 1)
    assert "The word is ahoy." in json.loads(sent[0])["messages"][-1]["content"]


def test_settings_reach_the_model(desk: Any, demo_server: str) -> None:
    sent: list[dict[str, Any]] = []
    desk.on("request", lambda request: sent.append(json.loads(request.post_data)) if "completions" in request.url else None)
    desk.goto(demo_server)
    desk.click("[aria-label=Settings]")
    desk.fill("#system", "Be brief.")
    desk.get_by_label("Temperature").fill("0")
    desk.get_by_label("Most tokens of an answer").fill("5")
    desk.keyboard.press("Escape")
    ask(desk, "Hello")
    answers(desk, 1)
    assert sent[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (sent[0]["temperature"], sent[0]["max_tokens"]) == (0, 5)
    desk.locator("text=longest length").wait_for()
    desk.click(".tally")
    assert "would have charged" in desk.locator("#prices").inner_text()


HOSTILE = [
    "<script>window.hit=1</script>", "<img src=x onerror='window.hit=1'>", "[x](javascript:window.hit=1)", "<svg onload=window.hit=1>",
    "<iframe src='javascript:parent.hit=1'></iframe>", "![x](https://example.org/a.png)", "<a href='javascript:hit=1'>x</a>",
    "<math><mtext><script>window.hit=1</script></mtext></math>", "$\\href{javascript:window.hit=1}{x}$", "```html\n<script>window.hit=1</script>\n```",
    "| a |\n|---|\n| <b onclick='window.hit=1'>x</b> |", "<style>*{display:none}</style>", "&lt;script&gt;window.hit=1&lt;/script&gt;",
    "[x](data:text/html,<script>opener.hit=1</script>)", "<https://example.org/\"onmouseover=\"window.hit=1>",
]


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_nothing_that_a_model_writes_runs(desk: Any, demo_server: str, step: int) -> None:
    """Hostile answers, streamed in pieces: nothing runs, nothing is loaded, all is shown."""
    text = "\n\n".join(HOSTILE) + "\n\nThe end."

    def answer(route: Any) -> None:
        chunks = [{"choices": [{"index": 0, "delta": {"content": text[at:at + step]}}]} for at in range(0, len(text), step)]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    desk.route("**/v1/chat/completions", answer)
    desk.goto(demo_server)
    ask(desk, "Hello")
    shown = answers(desk, 1)[0]
    assert "The end." in shown and "<script>window.hit=1</script>" in shown
    for link in desk.locator(".answer .markdown a").all():
        link.hover(force=True)
        assert re.match(r"https://example\.org/", link.get_attribute("href") or "https://example.org/")
    desk.wait_for_timeout(200)
    assert desk.evaluate("typeof window.hit") == "undefined"
    assert desk.locator(".markdown script, .markdown img, .markdown iframe, .markdown style").count() == 0


def test_a_connection_that_ends_early(desk: Any, demo_server: str) -> None:
    def answer(route: Any) -> None:
        at = {"total": 400, "cache": 100, "processed": 250, "time_ms": 5, "queue_position": None}
        route.fulfill(status=200, content_type="text/event-stream",
                      body=f"data: {json.dumps({'choices': [], 'prompt_progress': at})}\n\n")

    desk.route("**/v1/chat/completions", answer)
    desk.goto(demo_server)
    with desk.expect_request("**/v1/chat/completions"):
        ask(desk, "Hello")
    assert desk.locator(".answer .error").inner_text() == "the connection ended before the answer did"


def test_a_server_that_wants_a_key(browser: Any, tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("open sesame\n")
    for address in serving(tiny_model, "--ctx", 512, "--api-key-file", keys):
        page = browser.new_context().new_page()
        page.goto(address)
        page.locator("#key").wait_for()
        page.fill("#key", "open sesame")
        page.click("text=Go on")
        page.locator(".welcome").wait_for()
        page.context.close()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_accessible(page: Any, demo_server: str, node_folder: Path, colours: str) -> None:
    """axe finds nothing: names, contrast, order; on the first screen, in a chat, in the settings."""
    axe = (node_folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    page.emulate_media(color_scheme=colours)
    page.goto(demo_server)
    page.locator(".welcome li button").first.wait_for()
    tools = page.context.new_cdp_session(page)

    def violations() -> Any:
        run = axe + ";axe.run().then(r => JSON.stringify(r.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 90))])))"
        found = tools.send("Runtime.evaluate", {"expression": run, "awaitPromise": True, "returnByValue": True})
        return json.loads(found["result"]["value"])

    assert violations() == []
    page.locator(".welcome li button").first.click()
    answers(page, 1)
    assert violations() == []
    page.click("[aria-label=Settings]")
    page.wait_for_timeout(100)
    assert violations() == []


def test_keys_alone_are_enough(desk: Any, demo_server: str) -> None:
    """Everything of a first answer can be reached and used with the keyboard."""
    desk.goto(demo_server)
    desk.locator("#question:focus").wait_for()
    desk.keyboard.type("What is 12 + 30?")
    desk.keyboard.press("Enter")
    assert answers(desk, 1) == ["12 + 30 = 42."]
    desk.keyboard.press("Control+B")
    assert desk.locator(".sidebar").count() == 0
    desk.keyboard.press("Control+B")
    reached = set()
    for _ in range(25):
        desk.keyboard.press("Tab")
        reached.add(desk.evaluate("document.activeElement.textContent || document.activeElement.getAttribute('aria-label')"))
    assert {"New chat", "Edit", "Copy", "Again", "Export all"} <= {text.strip() for text in reached if text}
