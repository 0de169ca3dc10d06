"""The page in a real browser, on a real server with the demo model: chats from the first visit on."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from in_browser import opened
from page_browser import LATE, answers, ask, hold, serving, started, streamed, until

pytestmark = pytest.mark.page

GREEDY = "localStorage.setItem('pyflash.options', JSON.stringify({temperature: 0}))"  # random weights then end no answer
GROWS = "(n) => (document.querySelector('.answer:last-of-type .markdown')?.textContent.length ?? 0) > n"
N_WORKING = "(n) => document.querySelectorAll('.answer[aria-busy=true]').length === n"


def length(page: Any) -> int:
    found: int = page.evaluate("document.querySelector('.answer:last-of-type .markdown')?.textContent.length ?? 0")
    return found


def stopped(page: Any) -> None:
    page.locator("text=Stopped.").wait_for()


def test_a_first_visit(page: Any, demo_server: str) -> None:
    """It says what the model is, offers four things, and answers them; a second question knows the first."""
    page.goto(demo_server)
    page.locator(".welcome li").first.wait_for()
    assert "demonstration model" in page.locator(".welcome").inner_text()
    assert "4096 tokens of context" in page.locator(".welcome").inner_text()
    page.click("text=What is 12 + 30?")
    assert answers(page, 1) == ["12 + 30 = 42."]
    ask(page, "What is the capital of France?")
    assert "Paris" in answers(page, 2)[1]
    facts = page.locator(".answer .facts").last.inner_text()
    assert re.search(r"\d+ tokens · [\d.]+ tokens/s · read \d+ tokens? in [\d.]+\sm?s · \d+ reused", facts)
    assert re.search(r"\d+ of 4096 tokens", page.locator(".context").inner_text())
    assert page.title() == "What is 12 + 30? · pyflash"
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.viewport_size["width"], "it scrolls sideways"


def test_the_four_things_can_be_done(desk: Any, demo_server: str) -> None:
    desk.goto(demo_server)
    desk.locator(".welcome li").first.wait_for()
    things = desk.locator(".welcome li button").all_inner_texts()
    assert len(things) == 4
    for thing, answer in zip(things, ("pyflash", "42", "Paris", "small talk|sums|facts"), strict=True):
        desk.keyboard.press("Control+Shift+O")
        desk.click(f"text={thing}")
        assert re.search(answer, answers(desk, 1)[0]), thing


def test_thinking_is_folded_with_its_time(desk: Any, demo_server: str) -> None:
    desk.goto(demo_server)
    desk.select_option("select", "high")
    ask(desk, "What is 25 + 17?")
    assert "42" in answers(desk, 1)[0]
    summary = desk.locator(".thinking summary")
    assert re.match(r"Thought for [\d.]+\sm?s", summary.inner_text())
    assert desk.locator(".thinking .markdown").count() == 0
    summary.click()
    desk.locator(".thinking .markdown .block").first.wait_for()
    assert desk.locator(".thinking .markdown").inner_text().strip()


def test_answer_now_ends_thinking(desk: Any, endless_server: str) -> None:
    """Random weights think on and on; then content comes."""
    desk.add_init_script(GREEDY)
    desk.goto(endless_server)
    desk.select_option("select", "high")
    ask(desk, "Go on for ever")
    desk.locator(".thinking summary >> text=Thinking").wait_for()
    assert length(desk) == 0
    desk.click("text=Answer now")
    until(desk, GROWS, 0)
    desk.locator(".thinking summary >> text=Thought for").wait_for()
    desk.keyboard.press("Escape")
    stopped(desk)


def test_stop_continue_and_again(desk: Any, endless_server: str) -> None:
    desk.add_init_script(GREEDY)
    desk.goto(endless_server)
    ask(desk, "Go on for ever")
    until(desk, GROWS, 20)
    desk.locator(".rate >> text=tokens/s").wait_for()
    desk.keyboard.press("Escape")
    stopped(desk)
    first = answers(desk, 1)[0]
    desk.click("text=Continue")
    until(desk, GROWS, len(first) + 20)
    desk.click(".composer >> text=Stop")
    stopped(desk)
    longer = answers(desk, 1)[0]
    assert longer.startswith(first) and len(longer) > len(first)
    desk.click("text=Again")
    until(desk, N_WORKING, 1)
    desk.keyboard.press("Escape")
    desk.locator(".siblings >> text=2/2").wait_for()
    desk.click("[aria-label='The one before']")
    desk.locator(".siblings >> text=1/2").wait_for()
    assert answers(desk, 1)[0] == longer


def test_an_answer_survives_a_reload(desk: Any, endless_server: str) -> None:
    """Also one that was continued: what it had before stays before what comes."""
    desk.add_init_script(GREEDY)
    desk.goto(endless_server)
    ask(desk, "Go on for ever")
    until(desk, GROWS, 20)
    desk.reload()
    desk.locator(".composer >> text=Stop").wait_for()
    until(desk, GROWS, length(desk) + 20)
    desk.click(".composer >> text=Stop")
    stopped(desk)
    first = answers(desk, 1)[0]
    desk.click("text=Continue")
    until(desk, GROWS, len(first) + 20)
    desk.reload()
    desk.locator(".composer >> text=Stop").wait_for()
    until(desk, GROWS, len(first) + 40)
    desk.click(".composer >> text=Stop")
    stopped(desk)
    whole = answers(desk, 1)[0]
    assert whole.startswith(first) and not whole[len(first) :].startswith(first[:20])
    desk.reload()
    assert answers(desk, 1)[0] == whole
    stopped(desk)


@pytest.fixture
def losing(browser: Any) -> Any:
    """A desk whose console may tell of requests that fail."""
    yield from opened(browser, "desk", allowed="Failed to load resource|net::ERR_")


def test_a_lost_connection_is_taken_up(losing: Any, endless_server: str) -> None:
    """The first try does not reach the server, the second ends early, the third has all of it."""
    tries = []
    release = hold(losing, "**/v1/chat/completions")

    def fail(route: Any) -> None:
        tries.append(route.request.url)
        if len(tries) == 1:
            route.abort()
        elif len(tries) == 2:
            at = {"total": 400, "cache": 100, "processed": 250, "time_ms": 5, "queue_position": None}
            route.fulfill(status=200, content_type="text/event-stream",
                          body=f"data: {json.dumps({'choices': [], 'prompt_progress': at})}\n\n")
        else:
            route.fallback()

    losing.route("**/v1/chat/completions", fail)
    losing.add_init_script(GREEDY)
    losing.goto(endless_server)
    ask(losing, "Go on for ever")
    losing.locator("text=The connection was lost").wait_for()
    release()
    until(losing, GROWS, 20)
    assert len(tries) == 3
    losing.keyboard.press("Escape")
    stopped(losing)


def test_an_answer_that_the_server_has_lost(losing: Any, endless_server: str) -> None:
    """The stream ends early, and the server knows nothing of it: what there is stays, with what to do."""
    streamed(losing, ["Half of an "], finish=None)
    losing.goto(endless_server)
    ask(losing, "Hello")
    losing.locator(".answer .error >> text=ask again").wait_for()
    assert answers(losing, 1) == ["Half of an"]
    assert losing.locator(".answer >> text=Continue").count() == 1


def test_a_refusal_is_shown(losing: Any, demo_server: str) -> None:
    losing.goto(demo_server)
    ask(losing, "word " * 6000)
    losing.locator(".answer .error").wait_for()
    assert "4096" in losing.locator(".answer .error").inner_text()


def test_the_progress_of_a_prompt(desk: Any, endless_server: str) -> None:
    """The bar goes on from what is known already to the end."""
    desk.add_init_script(GREEDY)
    desk.add_init_script("""
        window.seen = [];
        new MutationObserver(() => {
            const bar = document.querySelector('.waiting progress');
            if (bar) seen.push([bar.value, bar.max]);
        }).observe(document, {subtree: true, childList: true, attributes: true, characterData: true});
    """)
    desk.goto(endless_server)
    ask(desk, "word " * 2500)
    until(desk, GROWS, 0)
    desk.keyboard.press("Escape")
    stopped(desk)
    seen = desk.evaluate("seen")
    assert len({value for value, _ in seen}) > 2 and seen == sorted(seen)
    assert {most for _, most in seen} == {desk.evaluate("seen.at(-1)[1]")} and seen[-1][1] > 2000


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_page_waits_for_the_model(losing: Any, tmp_path: Path) -> None:
    """It is there while the model is being loaded, takes a question, which can be stopped, and answers the next one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gate = tmp_path / "gate"
    with started("--ctx", 1024, "--port", port, program=LATE, before=(gate,)):
        end = time.monotonic() + 60
        while not listens(port):
            assert time.monotonic() < end
            time.sleep(0.05)
        losing.goto(f"http://127.0.0.1:{port}")
        losing.locator("text=The model is being loaded").wait_for()
        ask(losing, "Never mind")
        losing.click(".composer >> text=Stop")
        stopped(losing)
        ask(losing, "What is 12 + 30?")
        losing.locator("text=Waiting for the server").wait_for()
        gate.touch()
        assert answers(losing, 2)[1] == "12 + 30 = 42."
        assert losing.locator("text=The model is being loaded").count() == 0


def test_edit_makes_a_branch(desk: Any, demo_server: str) -> None:
    desk.goto(demo_server)
    ask(desk, "What is 1 + 1?")
    assert answers(desk, 1) == ["1 + 1 = 2."]
    desk.click(".question >> text=Edit")
    desk.fill(".edit textarea", "What is 12 + 30?")
    desk.click(".edit >> text=Send")
    desk.locator(".question >> text=2/2").wait_for()
    assert answers(desk, 1) == ["12 + 30 = 42."]
    desk.reload()
    desk.click(".question [aria-label='The one before']")
    assert answers(desk, 1) == ["1 + 1 = 2."]


def test_the_list_of_chats(desk: Any, demo_server: str) -> None:
    """Search, rename, delete, the time of each; kept over a reload."""
    desk.goto(demo_server)
    ask(desk, "What is 1 + 1?")
    answers(desk, 1)
    desk.keyboard.press("Control+Shift+O")
    desk.locator(".welcome").wait_for()
    ask(desk, "What is 12 + 30?")
    answers(desk, 1)
    items = desk.locator(".sidebar li")
    assert items.count() == desk.locator(".sidebar li time[datetime]").count() == 2
    desk.keyboard.press("Control+K")
    desk.locator("[type=search]:focus").wait_for()
    desk.keyboard.type("1 + 1 = 2")  # what was answered is found, too
    until(desk, "document.querySelectorAll('.sidebar li').length === 1")
    desk.fill("[type=search]", "nothing of the kind")
    desk.locator("text=No chat has these words").wait_for()
    desk.fill("[type=search]", "")
    desk.locator("li.current").hover()
    desk.click("li.current [aria-label^=Rename]")
    desk.fill(".rename", "Sums <b>of mine</b>")
    desk.keyboard.press("Enter")
    desk.locator(".sidebar >> text=Sums <b>of mine</b>").wait_for()
    desk.reload()
    desk.locator(".sidebar >> text=Sums <b>of mine</b>").wait_for()
    desk.locator("li.current").hover()
    desk.click("li.current [aria-label^=Delete]")
    until(desk, "document.querySelectorAll('.sidebar li').length === 1")
    desk.locator(".welcome").wait_for()
    desk.reload()
    desk.locator(".sidebar li >> text=What is 1 + 1?").wait_for()
    assert items.count() == 1


# What somebody does, and in the same moment the page goes.
RENAMED = """(title) => {
    const field = document.querySelector(".rename");
    field.value = title;
    field.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true }));
    location.reload();
}"""
DELETED = "() => { document.querySelector('.sidebar li [aria-label^=Delete]').click(); location.reload(); }"
SENT = "() => { document.querySelector('.composer [type=submit]').click(); location.reload(); }"


def and_goes(page: Any, what: str, argument: Any = None) -> None:
    with page.expect_navigation():
        page.evaluate(f"([argument]) => {{ setTimeout({what}, 0, argument); }}", [argument])


def test_what_is_done_is_kept_though_the_page_goes_at_once(desk: Any, demo_server: str) -> None:
    """A question, a title, a deletion: all that IndexedDB has. Each several times, since it is luck without a commit."""
    desk.goto(demo_server)
    for n in range(1, 7):
        desk.keyboard.press("Control+Shift+O")
        desk.locator(".welcome").wait_for()
        desk.fill("#question", "What is 12 + 30?")
        and_goes(desk, SENT)
        desk.locator(".sidebar li").nth(n - 1).wait_for()
    assert answers(desk, 1) == ["12 + 30 = 42."]  # it is asked again where the request did not come there
    for n in range(6):
        desk.locator("li.current").hover()
        desk.click("li.current [aria-label^=Rename]")
        desk.locator(".rename").wait_for()
        and_goes(desk, RENAMED, f"Title {n}")
        desk.locator(f"li.current >> text=Title {n}").wait_for()
    for n in range(5, 0, -1):
        and_goes(desk, DELETED)
        desk.locator(".sidebar li").first.wait_for()
        assert desk.locator(".sidebar li").count() == n


def test_export_and_import(desk: Any, demo_server: str, tmp_path: Path) -> None:
    """All of it comes back, with branches and times; what is there already is not doubled, what is no chat is told."""
    desk.goto(demo_server)
    ask(desk, "What is 1 + 1?")
    answers(desk, 1)
    desk.click("text=Again")
    desk.locator(".siblings >> text=2/2").wait_for()
    desk.keyboard.press("Control+Shift+O")
    ask(desk, "What is 12 + 30?")
    answers(desk, 1)
    with desk.expect_download() as download:
        desk.click("text=Export all")
    kept = tmp_path / "chats.json"
    download.value.save_as(kept)
    before = json.loads(kept.read_text(encoding="utf-8"))["conversations"]
    assert len(before) == 2
    desk.set_input_files(".sidebar input[type=file]", kept)
    desk.locator("text=No chats added; 2 chats of chats.json were here already.").wait_for()
    desk.keyboard.press("Control+Shift+Backspace")
    until(desk, "document.querySelectorAll('.sidebar li').length === 1")
    desk.set_input_files(".sidebar input[type=file]", kept)
    desk.locator("text=1 chat added").wait_for()
    until(desk, "document.querySelectorAll('.sidebar li').length === 2")
    with desk.expect_download() as download:
        desk.click("text=Export all")
    download.value.save_as(kept)
    assert json.loads(kept.read_text(encoding="utf-8"))["conversations"] == before
    broken = tmp_path / "broken.json"
    broken.write_text('{"title": 1}', encoding="utf-8")
    desk.set_input_files(".sidebar input[type=file]", broken)
    desk.locator("text=broken.json holds no chats").wait_for()


def test_stop_from_the_list(desk: Any, endless_server: str) -> None:
    desk.add_init_script(GREEDY)
    desk.goto(endless_server)
    ask(desk, "Go on for ever")
    until(desk, GROWS, 0)
    desk.keyboard.press("Control+Shift+O")
    desk.locator(".welcome").wait_for()
    desk.locator(".sidebar li >> text=working").hover()
    desk.click("[aria-label='Stop Go on for ever']")
    until(desk, "!document.querySelector('.sidebar').textContent.includes('working')")
    desk.click(".sidebar li >> text=Go on for ever")
    stopped(desk)


def test_attached_texts_are_sent(losing: Any, demo_server: str) -> None:
    """From the file dialog, dropped and pasted, and those of PDFs; what is no text is refused by name."""
    desk = losing
    desk.set_content("<p>The printed word is avast.</p>")
    printed = desk.pdf()
    sent: list[str] = []
    desk.on("request", lambda request: sent.append(request.post_data) if "completions" in request.url else None)
    desk.goto(demo_server)
    desk.set_input_files(".composer input[type=file]", [
        {"name": "note.txt", "mimeType": "text/plain", "buffer": b"The word is ahoy. ```"},
        {"name": "wide.txt", "mimeType": "text/plain", "buffer": "\ufeffcaf\u00e9".encode("utf-16-le")},
        {"name": "picture.png", "mimeType": "image/png", "buffer": b"\x89PNG\xff\xfe"},
        {"name": "cut.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.7\n\xff\xfe"},
    ])
    attached = desk.locator(".composer .files")
    attached.locator("text=wide.txt").wait_for()
    notice = desk.locator(".trouble[role=alert]").inner_text()
    assert "picture.png: neither a text" in notice and "cut.pdf: this PDF cannot be read" in notice
    for event, key in (("drop", "dataTransfer"), ("paste", "clipboardData")):
        desk.evaluate("""([event, key]) => {
            const data = new DataTransfer();
            data.items.add(new File([`It came by ${event}.`], `${event}.txt`));
            const made = event === "drop" ? new DragEvent(event, {[key]: data, bubbles: true, cancelable: true})
                : new ClipboardEvent(event, {[key]: data, bubbles: true, cancelable: true});
            document.querySelector(event === "drop" ? ".welcome" : "#question").dispatchEvent(made);
        }""", [event, key])
        attached.locator(f"text={event}.txt").wait_for()
    attached.locator("[aria-label='Remove wide.txt']").click()
    desk.set_input_files(".composer input[type=file]", {"name": "paper.pdf", "mimeType": "application/pdf", "buffer": printed})
    attached.locator("text=paper.pdf").wait_for()
    assert desk.locator(".composer .files li").count() == 4
    ask(desk, "Hello")
    answers(desk, 1)
    content = json.loads(sent[0])["messages"][-1]["content"]
    assert "File note.txt:\n````\nThe word is ahoy. ```\n````" in content  # in a fence that it does not end
    assert "File paper.pdf:\n```\nThe printed word is avast." in content
    assert "It came by drop." in content and "It came by paste." in content
    assert "caf" not in content and content.endswith("Hello")
    desk.click(".question summary >> text=note.txt")
    desk.locator(".question pre >> text=The word is ahoy.").wait_for()


def test_code_and_answers_are_copied(browser: Any, demo_server: str) -> None:
    for page in opened(browser, "desk", permissions=["clipboard-read", "clipboard-write"]):
        streamed(page, ["See:\n\n```python\nprint(1)\n```\n"])
        page.goto(demo_server)
        ask(page, "Hello")
        answers(page, 1)
        page.click(".code .copy")
        page.locator(".code >> text=Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == "print(1)"
        page.click(".answer .actions >> text=Copy")
        page.locator(".answer .actions >> text=Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == "See:\n\n```python\nprint(1)\n```\n"


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
    assert (sent[0]["temperature"], sent[0]["max_tokens"], sent[0]["thinking"]) == (0, 5, {"type": "disabled"})
    desk.locator("text=longest length").wait_for()
    desk.select_option("select", "max")
    ask(desk, "And now?")
    answers(desk, 2)
    assert (sent[1]["thinking"], sent[1]["reasoning_effort"]) == ({"type": "enabled"}, "max")


def test_the_tally_and_its_prices(desk: Any, demo_server: str) -> None:
    """The sum is that of the counts; prices can be changed, and come back; kept over a reload."""
    desk.goto(demo_server)
    ask(desk, "What is 1 + 1?")
    answers(desk, 1)
    ask(desk, "What is 12 + 30?")
    answers(desk, 2)
    fresh, reused, out = (int(each) for each in re.findall(r"(\d+) (?:in|reused|out)", desk.locator(".tally").inner_text()))
    assert fresh > 0 and reused > 0 and out > 0
    desk.click(".tally")
    prices = desk.locator("#prices")
    assert "until August 2026" in prices.inner_text()
    assert f"${(fresh * 0.14 + reused * 0.0028 + out * 0.28) / 1e6:.5f}" in prices.inner_text()
    desk.get_by_label("Price of a million tokens: Out").fill("1000000")
    desk.keyboard.press("Tab")
    prices.locator("text=your own").wait_for()
    assert float(re.findall(r"charged \$([\d.]+)", prices.inner_text())[0]) == pytest.approx(out, abs=0.01)
    desk.reload()
    desk.click(".tally")
    prices.locator("text=your own").wait_for()
    desk.click("text=Prices until August 2026")
    assert desk.get_by_label("Price of a million tokens: Out").input_value() == "0.28"
    desk.click("text=Count from zero")
    assert "$0.00000" in prices.inner_text()


def test_a_server_that_wants_a_key(losing: Any, tiny_model: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("open sesame\n")
    for address in serving(tiny_model, "--ctx", 512, "--api-key-file", keys):
        losing.goto(address)
        losing.fill("#key", "wrong")
        losing.click("text=Go on")
        losing.locator("text=does not know this key").wait_for()
        losing.fill("#key", "open sesame")
        losing.click("text=Go on")
        losing.locator(".welcome").wait_for()


def test_over_plain_http_from_another_machine(browser: Any) -> None:
    """A browser then has no crypto.randomUUID and no clipboard: chatting and copying work all the same."""
    for address in serving("--ctx", 1024, "--allowed-host", "page.test"):
        for page in opened(browser, "desk", allowed="Cross-Origin-Opener-Policy header has been ignored"):
            page.goto(address.replace("127.0.0.1", "page.test"))
            assert page.evaluate("[isSecureContext, typeof crypto.randomUUID, typeof navigator.clipboard]") == [
                False, "undefined", "undefined"]
            ask(page, "What is 12 + 30?")
            assert answers(page, 1) == ["12 + 30 = 42."]
            page.click(".answer .actions >> text=Copy")
            page.locator("text=Copied").wait_for()
