"""The page for everybody: keyboard, screen reader, touch, small screens, colours, little motion."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from in_browser import SIZES, opened
from page_browser import answers, ask, hold, streamed, until

pytestmark = pytest.mark.page


@pytest.fixture(params=["light", "dark"])
def coloured(page: Any, request: pytest.FixtureRequest) -> Any:
    page.emulate_media(color_scheme=request.param)
    return page


def violations(page: Any, axe: str) -> Any:
    tools = page.context.new_cdp_session(page)
    run = axe + ";axe.run().then(r => JSON.stringify(r.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 90))])))"
    found = tools.send("Runtime.evaluate", {"expression": run, "awaitPromise": True, "returnByValue": True})
    return json.loads(found["result"]["value"])


def show_list(page: Any) -> None:
    if not page.locator(".sidebar").count():
        page.click("[aria-label=Chats]")
    page.locator(".sidebar").wait_for()


def test_axe_finds_nothing(coloured: Any, demo_server: str, node_folder: Path) -> None:
    """Names, contrast, order; on the first screen, in a chat of all sorts, in its question's edit, the list, the dialogs."""
    page, axe = coloured, (node_folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    page.goto(demo_server)
    page.locator(".welcome li button").first.wait_for()
    assert violations(page, axe) == []
    page.set_input_files(".composer input[type=file]", [
        {"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"},
        {"name": "b.png", "mimeType": "image/png", "buffer": b"\xff"},
    ])
    page.locator(".composer .files li").wait_for()
    assert violations(page, axe) == []
    streamed(page, ["# Title\n\n- [x] done\n\n> quoted `code`\n\n", "```python\nprint('a', 1)  # b\n```\n\n",
                    "| a |\n|---|\n| $x$ |\n"])
    ask(page, "Hello")
    answers(page, 1)
    page.locator(".markdown math").wait_for()
    page.click("text=Again")
    page.locator(".siblings >> text=2/2").wait_for()
    assert violations(page, axe) == []
    page.click(".question >> text=Edit")
    page.locator(".edit").wait_for()
    assert violations(page, axe) == []
    show_list(page)
    assert violations(page, axe) == []
    page.keyboard.press("Control+B")
    for dialog in ("Keyboard", "Settings"):
        page.click(f"[aria-label={dialog}]")
        page.locator("dialog[open]").wait_for()
        assert violations(page, axe) == []
        page.keyboard.press("Escape")


def test_keys_alone_are_enough(desk: Any, demo_server: str) -> None:
    """Everything of a first answer can be reached and used with the keyboard, and the focus is never lost."""
    desk.goto(demo_server)
    desk.locator("#question:focus").wait_for()
    desk.keyboard.type("What is 12 + 30?")
    desk.keyboard.press("Shift+Enter")
    assert desk.locator("#question").input_value().endswith("?\n")
    desk.keyboard.press("Backspace")
    desk.keyboard.press("Enter")
    assert answers(desk, 1) == ["12 + 30 = 42."]
    reached = set()
    for _ in range(30):
        desk.keyboard.press("Tab")
        reached.add(desk.evaluate("document.activeElement.textContent || document.activeElement.getAttribute('aria-label')"))
    assert {"New chat", "Edit", "Copy", "Again", "Export all"} <= {text.strip() for text in reached if text}
    desk.locator(".answer >> text=Again").focus()
    desk.keyboard.press("Enter")
    desk.locator(".siblings >> text=2/2").wait_for()
    desk.locator("#question:focus").wait_for()
    desk.keyboard.press("ArrowUp")  # in the empty field: changes the last question
    desk.locator(".edit textarea:focus").wait_for()
    desk.keyboard.press("Escape")
    desk.locator("#question:focus").wait_for()
    desk.keyboard.press("ArrowUp")
    desk.locator(".edit textarea:focus").wait_for()
    desk.keyboard.press("Control+A")
    desk.keyboard.type("What is 1 + 1?")
    desk.keyboard.press("Control+Enter")
    desk.locator(".question >> text=2/2").wait_for()
    assert answers(desk, 1) == ["1 + 1 = 2."]


def test_shortcuts(desk: Any, demo_server: str) -> None:
    """Those that the help names, which Ctrl+/ and ? show."""
    desk.goto(demo_server)
    ask(desk, "What is 1 + 1?")
    answers(desk, 1)
    desk.keyboard.press("Control+/")
    desk.locator("dialog[open] h1 >> text=Keyboard").wait_for()
    names = set(desk.locator("dialog[open] kbd").all_inner_texts())
    assert {"Enter", "Shift+Enter", "Esc", "Ctrl+Shift+O", "Ctrl+K", "Ctrl+B", "Ctrl+Shift+⌫", "Ctrl+,", "Ctrl+/"} <= names
    desk.keyboard.press("Escape")
    until(desk, "!document.querySelector('dialog[open]')")
    desk.keyboard.press("Control+B")
    until(desk, "!document.querySelector('.sidebar')")
    desk.keyboard.press("Control+K")
    desk.locator("[type=search]:focus").wait_for()
    desk.keyboard.press("Control+,")
    desk.locator("dialog[open] h1 >> text=Settings").wait_for()
    desk.keyboard.press("Control+/")  # one dialog at a time
    desk.keyboard.press("Escape")
    until(desk, "!document.querySelector('dialog[open]')")
    desk.evaluate("document.activeElement.blur()")
    desk.keyboard.press("?")
    desk.locator("dialog[open] h1 >> text=Keyboard").wait_for()
    desk.keyboard.press("Escape")
    desk.keyboard.press("Control+Shift+O")
    desk.locator(".welcome").wait_for()
    desk.fill("#question", "")
    desk.locator("#question").press("?")
    assert desk.locator("#question").input_value() == "?" and not desk.locator("dialog[open]").count()


def test_an_answer_is_read_out_in_batches(desk: Any, demo_server: str) -> None:
    """The live region tells all of it, and far less often than it grows; code is not spelled."""
    words = [f"word{i} " for i in range(300)]
    text = "".join(word + ("\n\n" if i % 20 == 19 else "") for i, word in enumerate(words))
    pieces = [*text.split(" "), "\n\n```python\nsecret = 1\nmore = 2\n```\n\nThe end."]
    streamed(desk, [piece + " " for piece in pieces])
    desk.add_init_script("""
        window.spoken = [];
        new MutationObserver(() => {
            const text = document.querySelector('[aria-live=polite]')?.textContent;
            if (text && text !== spoken.at(-1)) spoken.push(text);
        }).observe(document, {subtree: true, childList: true, characterData: true});
    """)
    desk.goto(demo_server)
    ask(desk, "Hello")
    until(desk, "spoken.at(-1)?.includes('The answer is complete.')")
    spoken = desk.evaluate("spoken")
    said = " ".join(spoken)
    assert len(spoken) < 20 and all(word.strip() in said for word in words) and "The end." in said
    assert "Code, 2 lines." in said and "secret" not in said
    assert desk.locator(".turns").get_attribute("aria-live") == "off"  # it is not read twice


@pytest.fixture
def touched(browser: Any) -> Iterator[Any]:
    yield from opened(browser, "phone")


SMALL = """() => [...document.querySelectorAll('button, select, input:not([type=file]), label.button, summary, a[href]')]
    .filter((each) => each.checkVisibility() && !each.matches('.skip, .shade, .markdown a'))
    .map((each) => [each, each.getBoundingClientRect()])
    .filter(([, { width, height }]) => width && (width < 44 || height < 44))
    .map(([each, { width, height }]) => `${each.outerHTML.slice(0, 80)} ${width}x${height}`)"""


def test_targets_of_a_finger_are_large_enough(touched: Any, demo_server: str) -> None:
    """44 pixels each way, in all places; and nothing scrolls sideways."""
    touched.goto(demo_server)
    touched.locator(".welcome li button").first.wait_for()
    assert touched.evaluate(SMALL) == []
    streamed(touched, ["Think.\n\n"], "reasoning_content")
    touched.set_input_files(".composer input[type=file]", [{"name": "a.txt", "mimeType": "text/plain", "buffer": b"text"}])
    touched.locator(".composer .files li").wait_for()
    ask(touched, "Hello")
    answers(touched, 1)
    touched.unroute_all()
    long = "x" * 300
    streamed(touched, [f"```python\n{long}\n```\n\n| {long} | b |\n|---|---|\n| 1 | 2 |\n\n$${'x + ' * 60}y$$\n\nhttps://example.org/{long}\n"])
    touched.click("text=Again")
    touched.locator(".siblings >> text=2/2").wait_for()
    touched.locator(".markdown math").wait_for()
    assert touched.evaluate(SMALL) == []
    assert touched.evaluate("document.documentElement.scrollWidth") <= SIZES["phone"]["viewport"]["width"]
    assert touched.evaluate("document.querySelector('.scroller').scrollWidth") <= SIZES["phone"]["viewport"]["width"]
    touched.click(".question >> text=Edit")
    touched.locator(".edit").wait_for()
    assert touched.evaluate(SMALL) == []
    touched.click(".edit >> text=Cancel")
    touched.click("[aria-label=Chats]")
    touched.click("[aria-label^='More for']")
    touched.locator(".tools.open").wait_for()
    assert touched.evaluate(SMALL) == []
    touched.click("[aria-label^='Rename']")
    touched.fill(".rename", "Mine")
    touched.keyboard.press("Enter")
    touched.click(".sidebar li >> text=Mine")
    until(touched, "!document.querySelector('.sidebar')")  # it makes room for the chat
    touched.click("[aria-label=Settings]")
    touched.locator("dialog[open]").wait_for()
    assert touched.evaluate(SMALL) == []


def test_enter_is_a_new_line_on_a_touch_screen(touched: Any, demo_server: str) -> None:
    touched.goto(demo_server)
    touched.locator(".welcome").wait_for()
    touched.locator("#question").press("Enter")
    touched.locator("#question").type("What is 1 + 1?")
    assert touched.locator("#question").input_value() == "\nWhat is 1 + 1?" and not touched.locator(".answer").count()
    touched.tap(".composer >> text=Send")
    assert answers(touched, 1) == ["1 + 1 = 2."]


def test_colours_are_chosen_and_kept(desk: Any, demo_server: str) -> None:
    """Those of the system, until somebody chooses."""
    def is_dark() -> bool:
        red, green, blue = map(int, re.findall(r"\d+", desk.evaluate("getComputedStyle(document.body).backgroundColor"))[:3])
        return red + green + blue < 200

    desk.emulate_media(color_scheme="dark")
    desk.goto(demo_server)
    desk.locator(".welcome").wait_for()
    assert is_dark()
    desk.click("[aria-label='Colours: Automatic']")
    desk.locator("[aria-label='Colours: Light']").wait_for()
    assert not is_dark()
    desk.reload()
    desk.click("[aria-label='Colours: Light']")
    desk.locator("[aria-label='Colours: Dark']").wait_for()
    desk.emulate_media(color_scheme="light")
    assert is_dark()


@pytest.mark.parametrize(("motion", "n"), [("reduce", 0), ("no-preference", 1)])
def test_little_motion_where_that_is_wished(desk: Any, demo_server: str, motion: str, n: int) -> None:
    desk.emulate_media(reduced_motion=motion)
    release = hold(desk, "**/v1/chat/completions")
    desk.goto(demo_server)
    ask(desk, "Hello")
    desk.locator(".waiting").wait_for()
    assert desk.evaluate("document.getAnimations().length") == n
    release()
    answers(desk, 1)


AT_END = """(expected) => {
    const { scrollTop, scrollHeight, clientHeight } = document.querySelector(".scroller");
    return (scrollTop > 0 && scrollHeight - scrollTop - clientHeight < 5) === expected;
}"""


def test_the_end_stays_in_sight(page: Any, demo_server: str) -> None:
    """Of a growing answer, until somebody scrolls away; a button leads back."""
    streamed(page, [f"Paragraph {i}.\n\n" for i in range(60)] + ["The end."])
    page.goto(demo_server)
    ask(page, "Hello")
    answers(page, 1)
    until(page, AT_END, True)
    page.evaluate("document.querySelector('.scroller').scrollTop = 0")
    until(page, AT_END, False)
    page.click("[aria-label='To the end']")
    until(page, AT_END, True)
    until(page, "!document.querySelector('.to-end')")
