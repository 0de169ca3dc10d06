"""Debian's Chromium for tests: pages with nothing kept, whose every error fails the test."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES: dict[str, dict[str, Any]] = {
    "desk": {"viewport": {"width": 1280, "height": 800}},
    "phone": {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True},
}
OURS = re.compile(r"http://(127\.0\.0\.1|page\.test):|data:|blob:")
PATIENCE = 60_000  # milliseconds, on a machine that has more to do


@pytest.fixture(scope="module")  # and no longer: its event loop would be in the way of other tests' own
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian: chromium)")
    with sync_api.sync_playwright() as playwright:
        # page.test: a name under which a browser trusts this machine no more than others.
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP page.test 127.0.0.1"]
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


def opened(browser: Any, size: str, allowed: str = "$^", **options: Any) -> Iterator[Any]:
    """A page of its own, without anything kept. Nothing of what it does may be an error, against its security policy, or
    asked of another machine. allowed: a pattern of messages on its console that are none."""
    context = browser.new_context(accept_downloads=True, **{**SIZES[size], **options})
    found, problems = context.new_page(), []
    found.set_default_timeout(PATIENCE)

    def note(text: str) -> None:
        if not re.search(allowed, text):
            problems.append(text)

    found.on("console", lambda message: note(message.text) if message.type == "error" else None)
    found.on("pageerror", lambda error: note(str(error)))
    found.on("dialog", lambda dialog: dialog.accept())
    found.on("request", lambda sent: None if OURS.match(sent.url) else note(sent.url))
    found.expose_function("violated", note)
    found.add_init_script("addEventListener('securitypolicyviolation', (event) => violated(`CSP ${event.violatedDirective}`))")
    yield found
    context.close()
    assert not problems, problems


@pytest.fixture(params=list(SIZES))
def page(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    yield from opened(browser, request.param)
