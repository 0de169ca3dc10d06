"""What the page makes of a model's text: safe, as Markdown, and in line with its length; and that its built files are those
of its sources."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile_texts import HOSTILE
from in_browser import opened
from page_browser import SOURCES, answers, ask, streamed

from pyflash.serve.page import SECURITY_POLICY

pytestmark = pytest.mark.page


def npm_run(folder: Path, *command: str) -> None:
    subprocess.run([shutil.which("npm") or "npm", *command], cwd=folder, check=True, timeout=300)


def test_built_files_are_those_of_the_sources(node_folder: Path) -> None:
    for command in ("check", "build"):
        npm_run(node_folder, "run", "--silent", command)
    made, kept = ({path.name: path.read_bytes() for path in (folder / "built").iterdir()} for folder in (node_folder, SOURCES))
    assert sorted(made) == sorted(kept)
    assert all(made[name] == kept[name] for name in made), "run `npm run build` in pyflash/serve/page and commit built/"


@pytest.fixture(scope="module")
def view_script(node_folder: Path) -> str:
    """The page's view of a growing text, as a script of its own."""
    (node_folder / "view.ts").write_text("""
        import { MarkdownView } from "./src/growing";
        Object.assign(globalThis, { MarkdownView });
    """, encoding="utf-8")
    npm_run(node_folder, "exec", "--", "esbuild", "view.ts", "--bundle", "--format=iife", "--outfile=view.js",
            "--log-level=error")
    return (node_folder / "view.js").read_text(encoding="utf-8")


@pytest.fixture
def view(browser: Any, view_script: str) -> Iterator[Any]:
    """An empty page with that script, under the page's own security policy."""
    for page in opened(browser, "desk"):
        html = "<!doctype html><meta charset=utf-8><link rel=icon href=data:,><body><script src=/view.js></script>"
        policy = {"content-security-policy": SECURITY_POLICY}
        page.route("**/view.js", lambda route: route.fulfill(status=200, content_type="text/javascript", body=view_script))
        page.route("**/view", lambda route: route.fulfill(status=200, content_type="text/html", headers=policy, body=html))
        page.goto("http://127.0.0.1:9/view")
        page.wait_for_function("() => 'MarkdownView' in window")
        yield page


# Shows each text as far as every split, then whole; and once character by character. Tells what of it could run or load.
SHOW_ALL = """(texts) => {
    const KNOWN = new RegExp("^(div|span|button|pre|code|a|p|br|hr|em|strong|del|ul|ol|li|blockquote|table|thead|tbody|tr|th|"
        + "td|h[1-6]|math|semantics|annotation|m[a-z]+)$", "i");
    window.hits = [];
    window.hit = () => hits.push(now);
    let now = "", renderings = 0;
    const found = new Set();
    const look = (host) => {
        renderings++;
        for (const each of host.querySelectorAll("*")) {
            if (!KNOWN.test(each.tagName)) found.add(`${now}: <${each.tagName}>`);
            for (const { name, value } of each.attributes) {
                if (/^on|^src|^style$|^action$|^formaction$|^xlink|^is$|^id$|^name$/i.test(name)
                    || (name === "href" && !/^(https?:|mailto:)/.test(value))) found.add(`${now}: ${name}=${value}`);
            }
            for (const type of ["mouseover", "pointerenter", "focus"]) each.dispatchEvent(new Event(type));
        }
    };
    const host = document.createElement("div");
    document.body.append(host);
    for (now of texts) {
        for (let split = 1; split < now.length; split++) {
            const view = new MarkdownView(host, undefined, () => 0);
            view.update(now.slice(0, split), false);
            look(host);
            view.update(now, false);
            look(host);
            host.replaceChildren();
        }
        const view = new MarkdownView(host, undefined, () => 0);
        for (let end = 1; end <= now.length; end++) view.update(now.slice(0, end), false);
        view.update(now, true);
        look(host);
        host.replaceChildren();
    }
    return { found: [...found], renderings };
}"""


def test_nothing_that_a_model_writes_runs(view: Any) -> None:
    """Every hostile text, cut at every place: nothing runs, nothing that could is made, the security policy has no work."""
    assert len(HOSTILE) == len(set(HOSTILE)) >= 200
    told = view.evaluate(SHOW_ALL, HOSTILE)
    view.wait_for_timeout(500)  # for what would load first
    assert told["found"] == [] and view.evaluate("hits") == []
    assert told["renderings"] > 2 * sum(len(text) - 1 for text in HOSTILE)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_hostile_answers_are_shown(desk: Any, demo_server: str, step: int) -> None:
    """As an answer and as reasoning: nothing runs, nothing is loaded, the text is there."""
    text = "\n\n".join(HOSTILE[:: 5]) + "\n\nThe end."
    desk.add_init_script("window.hits = 0; window.hit = () => { hits++; }")
    for kind in ("content", "reasoning_content"):
        desk.unroute_all()
        streamed(desk, [text[at : at + step] for at in range(0, len(text), step)], kind)
        desk.goto(demo_server)
        desk.keyboard.press("Control+Shift+O")
        ask(desk, "<img src=x onerror=hit()>")
        answers(desk, 1)
        if kind == "reasoning_content":
            desk.click(".thinking summary")
        desk.locator(".answer .markdown >> text=The end.").wait_for()
        assert "<img src=x onerror=hit()>" in desk.locator(".answer .markdown").first.inner_text()
        assert desk.evaluate("hits") == 0
        assert desk.locator(".markdown :is(script, img, iframe, style, svg, form, input)").count() == 0


RICH = """# Merging

Here is **how**, in *two* steps, with `code` and ~~mistakes~~:

1. Sort them.
2. Merge:
   - while the next begins before the last one ends,
   - and else not.
3. Done, in $O(n \\log n)$.

```python
def merge(intervals):
    return sorted(intervals)  # `not` all
```

$$\\sum_{i=1}^{n} i = \\frac{n(n+1)}{2}$$

| a | b |
|---|--:|
| 1 | **2** |

> A quotation,
> of two lines.

- [x] sorted
- [ ] merged

~~~
a fence with ``` in it
~~~

See https://example.org/ or [this](https://example.org/a "A title").
"""

STREAM = """async ([text, step, counted]) => {
    const [streamed, whole] = [0, 1].map(() => document.body.appendChild(document.createElement("div")));
    const told = [];
    const view = new MarkdownView(streamed, (part) => told.push(part.textContent), () => 0);
    for (let end = step; end < text.length; end += step) view.update(text.slice(0, end), false);
    view.update(text, true);
    new MarkdownView(whole).update(text, true);
    const plain = (element) => element.textContent.replace(/\\s+/g, " ");
    while (document.querySelector(".math:not([data-done])")) await new Promise((go) => setTimeout(go, 20));
    const counts = (element) => Object.fromEntries(counted.map((each) => [each, element.querySelectorAll(each).length]));
    return { same: plain(streamed) === plain(whole), counts: counts(streamed), whole: counts(whole), told: told.length };
}"""


COUNTS = {"h1": 1, "strong": 2, "em": 1, "del": 1, "ol > li": 3, "ul > li": 4, "pre": 2, "table": 1, "td": 2, "blockquote": 1,
          "math": 2, ".hljs-keyword": 2, "a[target=_blank][rel~=noopener]": 2}  # fmt: skip


@pytest.mark.parametrize("step", [1, 2, 5, 64, 10_000])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_streamed_markdown_is_that_of_the_whole(view: Any, step: int, line_end: str) -> None:
    told = view.evaluate(STREAM, [RICH.replace("\n", line_end), step, list(COUNTS)])
    assert told["same"] and told["counts"] == told["whole"] == COUNTS
    assert told["told"] >= 10  # parts that are read out


WORK = """([head, unit, n, step]) => {
    const text = head + unit.repeat(n), host = document.body.appendChild(document.createElement("div"));
    const view = new MarkdownView(host, undefined, () => 0);
    for (let end = step; end < text.length; end += step) view.update(text.slice(0, end), false);
    const shown = host.textContent.length;
    host.remove();
    return [view.lexed, shown];
}"""
UNITS = {
    "paragraphs": "A paragraph with *some* words, of two lines\nor so.\n\n",
    "list": "- an item of a long list, with `code`\n",
    "code": "x = compute(x)  # a line of a code block that does not end\n",
    "mixed": RICH,
}


@pytest.mark.parametrize("kind", list(UNITS))
def test_the_work_grows_in_line_with_the_text(view: Any, kind: str) -> None:
    """Four times the text is four times the characters read by the Markdown parser, not sixteen times."""
    unit = UNITS[kind]
    n = max(4, 2000 // len(unit))
    head = "```\n" if kind == "code" else ""
    (few, short), (many, long) = (view.evaluate(WORK, [head, unit, times, 5]) for times in (n, 4 * n))
    assert long > 3.5 * short and many < 5 * few


def test_a_block_that_cannot_be_split_takes_a_fifth_of_the_time_at_most(view: Any) -> None:
    """One endless paragraph: by a clock that goes on with what is read and with what comes."""
    clock = """(pieces) => {
        let came = 0;
        const view = new MarkdownView(document.body, undefined, () => came * 10 + view.lexed);
        let text = "";
        for (const piece of pieces) { text += piece; came += piece.length; view.update(text, false); }
        const longest = text.length;
        return [view.lexed, came * 10 + view.lexed, longest];
    }"""
    worked, took, longest = view.evaluate(clock, ["word *by* "] * 3000)
    assert longest < worked < took / 5 + longest


ODD = [">" * 5000 + " deep", "- " * 3000, "[" * 5000, "*a " * 3000, "<" * 5000, "$a " * 3000, "\\[" * 3000, "`" * 5000]


@pytest.mark.parametrize("text", ODD, ids=lambda text: text[:3])
def test_odd_texts_neither_break_nor_stop_it(view: Any, text: str) -> None:
    shown = view.evaluate("""(text) => {
        const view = new MarkdownView(document.body);
        view.update(text.slice(0, text.length / 2), false);
        view.update(text, true);
        return document.body.textContent;
    }""", text + "\n\nThe end.")
    assert "The end." in shown
