"""What the page asks the server for: its files, answers that go on without it, the end of thinking."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pypdf
import pytest
from serving import Pace, ask, serving

from pyflash.serve import engine, page_jobs, pdf_text
from pyflash.serve.application import Application
from pyflash.serve.page import page_files


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Application]:
    with serving(tiny_model, keys=["secret", "another"]) as made:
        yield made


KEY, OTHER = {"authorization": "Bearer secret"}, {"authorization": "Bearer another"}


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def test_files(server: Application) -> None:
    """Each file is there without a key, compressed where that is taken, kept where its name tells its content."""

    async def look() -> None:
        page = await ask(server, "GET", "/", headers={"accept": "text/html"})
        assert page.status == 200 and page.headers["content-type"].startswith("text/html")
        assert page.headers["cache-control"] == "no-cache" and "script-src 'self'" in page.headers["content-security-policy"]
        names = [name for name in page_files() if name in page.body.decode()]
        assert len(names) == 2  # script and style, by their names of today
        for name, file in page_files().items():
            plain = await ask(server, "GET", f"/{name}")
            small = await ask(server, "GET", f"/{name}", headers={"accept-encoding": "gzip, br"})
            assert plain.body == gzip.decompress(small.body) == file.content and small.headers["content-encoding"] == "gzip"
            known = await ask(server, "GET", f"/{name}", headers={"if-none-match": file.etag})
            assert known.status == 304 and not known.body
            assert ("immutable" in plain.headers["cache-control"]) == name.endswith((".js", ".css"))
        assert sum(len(file.content) for file in page_files().values()) < 600_000
        assert (await ask(server, "GET", "/../serve.key", headers=KEY)).status == 404

    run(look())


def test_info_needs_the_key_and_tells_the_model(server: Application) -> None:
    assert run(ask(server, "GET", "/page/info")).status == 401
    told = run(ask(server, "GET", "/page/info", headers=KEY)).json()
    assert told["state"] == "ready" and told["context"] == 2048 and told["name"] == "test" and told["demo"] is False


def question(**more: Any) -> dict[str, Any]:
    return {"model": "test", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "temperature": 0,
            "stream_options": {"include_usage": True},
            "thinking": {"type": "disabled"}, **more}


def content(events: list[Any], part: str = "content") -> str:
    return "".join(each["choices"][0]["delta"].get(part) or "" for each in events if each.get("choices"))


def test_an_answer_goes_on_without_its_page(server: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client goes after the first bytes; listening again gives the whole answer, the one that is always given."""
    monkeypatch.setattr(engine, "evaluate", Pace(seconds=0.005))

    async def look() -> None:
        whole = await ask(server, "POST", "/v1/chat/completions", question(max_tokens=40), headers=KEY)
        name, leave = str(uuid.uuid4()), asyncio.Event()
        headers = {**KEY, page_jobs.HEADER.decode(): name}
        left = await ask(server, "POST", "/v1/chat/completions", question(max_tokens=40), headers=headers, leave=leave,
                         on_chunk=lambda _: leave.set())
        assert len(left.events()) < len(whole.events())
        assert (await ask(server, "POST", "/v1/chat/completions", question(), headers=headers)).status == 400  # taken
        again = await ask(server, "GET", f"/page/jobs/{name}", headers=KEY)
        assert content(again.events()) == content(whole.events()) != ""
        assert again.events()[-1]["usage"]["completion_tokens"] == 40
        later = await ask(server, "GET", f"/page/jobs/{name}", headers=KEY)
        assert later.body == again.body
        assert (await ask(server, "GET", f"/page/jobs/{uuid.uuid4()}", headers=KEY)).status == 404
        assert (await ask(server, "GET", f"/page/jobs/{name}")).status == 401

    run(look())


def test_stop_ends_the_stream_and_the_work(server: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "evaluate", Pace(seconds=0.01))

    async def look() -> None:
        name = str(uuid.uuid4())
        headers = {**KEY, page_jobs.HEADER.decode(): name}
        begun = asyncio.Event()
        asking = asyncio.ensure_future(ask(server, "POST", "/v1/chat/completions", question(max_tokens=1000), headers=headers,
                                           on_chunk=lambda _: begun.set()))
        await begun.wait()
        await asyncio.sleep(0.5)
        assert (await ask(server, "POST", f"/page/jobs/{name}/stop", {}, headers=KEY)).status == 200
        stopped = await asyncio.wait_for(asking, 5)
        finish = [each["choices"][0]["finish_reason"] for each in stopped.events() if each.get("choices")]
        assert finish[-1] == "stop" and 0 < stopped.events()[-1]["usage"]["completion_tokens"] < 200
        end = time.monotonic() + 5
        while server.engine.waiting_and_running() != (0, 0):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)

    run(look())


def test_stop_may_come_before_its_answer(server: Application) -> None:
    """A browser's requests overtake each other. Another key's stop is not meant."""

    async def look(stopped_by: dict[str, str]) -> int:
        name = str(uuid.uuid4())
        assert (await ask(server, "POST", f"/page/jobs/{name}/stop", {}, headers=stopped_by)).status == 200
        headers = {**KEY, page_jobs.HEADER.decode(): name}
        answered = await ask(server, "POST", "/v1/chat/completions", question(max_tokens=1000), headers=headers)
        assert answered.status == 200
        return int(answered.events()[-1]["usage"]["completion_tokens"])

    assert run(look(KEY)) < 500 < run(look(OTHER)) == 1000


def test_answer_now(server: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thinking of a random model goes on and on; asked to, it ends and content follows."""
    monkeypatch.setattr(engine, "evaluate", Pace(seconds=0.01))

    async def look() -> None:
        name = str(uuid.uuid4())
        headers = {**KEY, page_jobs.HEADER.decode(): name}
        body = question(max_tokens=1200, thinking={"type": "enabled"})
        asking = asyncio.ensure_future(ask(server, "POST", "/v1/chat/completions", body, headers=headers))
        await asyncio.sleep(0.5)
        assert (await ask(server, "POST", f"/page/jobs/{name}/answer", {}, headers=KEY)).status == 200
        await asyncio.sleep(0.5)
        await ask(server, "POST", f"/page/jobs/{name}/stop", {}, headers=KEY)
        events = (await asyncio.wait_for(asking, 10)).events()
        assert content(events, "reasoning_content") and content(events)
        assert 0 < events[-1]["usage"]["completion_tokens_details"]["reasoning_tokens"] < 150

    run(look())


def test_an_abandoned_answer_ends(server: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "evaluate", Pace(seconds=0.01))
    monkeypatch.setattr(page_jobs, "_ALONE_SECONDS", 0.3)

    async def look() -> None:
        leave = asyncio.Event()
        headers = {**KEY, page_jobs.HEADER.decode(): str(uuid.uuid4())}
        await ask(server, "POST", "/v1/chat/completions", question(max_tokens=1500), headers=headers, leave=leave,
                  on_chunk=lambda _: leave.set())
        end = time.monotonic() + 10
        while server.engine.waiting_and_running() != (0, 0):
            assert time.monotonic() < end
            await asyncio.sleep(0.02)

    run(look())


def test_a_name_is_taken_at_once(server: Application) -> None:
    """Of two requests of the same name at the same time one is answered."""

    async def look() -> None:
        headers = {**KEY, page_jobs.HEADER.decode(): str(uuid.uuid4())}
        asked = (ask(server, "POST", "/v1/chat/completions", question(max_tokens=3), headers=headers) for _ in range(2))
        assert sorted(answered.status for answered in await asyncio.gather(*asked)) == [200, 400]

    run(look())


def test_an_unforeseen_end_is_told(server: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the page would listen again and again. What cannot begin is refused."""
    stream = page_jobs.Exchange.stream

    async def broken(exchange: Any, writer: Any) -> None:
        await exchange._write(writer.feed(exchange._started()))
        raise ZeroDivisionError

    async def look() -> None:
        headers = {**KEY, page_jobs.HEADER.decode(): str(uuid.uuid4())}
        monkeypatch.setattr(page_jobs.Exchange, "stream", broken)
        events = (await ask(server, "POST", "/v1/chat/completions", question(), headers=headers)).events()
        assert "broke off" in events[-1]["error"]["message"]
        monkeypatch.setattr(page_jobs.Exchange, "stream", stream)
        monkeypatch.setattr(page_jobs.Exchange, "__aenter__", lambda exchange: 1 // 0)
        headers = {**KEY, page_jobs.HEADER.decode(): str(uuid.uuid4())}
        assert (await ask(server, "POST", "/v1/chat/completions", question(), headers=headers)).status == 503

    run(look())


def pdf(*texts: str) -> bytes:
    """A PDF with these pages, by hand: a catalog, the pages, a font, a content stream each."""
    pages = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(texts)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{pages}] /Count {len(texts)} >>",
               "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]  # fmt: skip
    for i, text in enumerate(texts):
        stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
        objects.append(f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R"
                       " /Resources << /Font << /F1 3 0 R >> >> >>")  # fmt: skip
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, places = b"%PDF-1.4\n", []
    for i, each in enumerate(objects):
        places.append(len(out))
        out += f"{i + 1} 0 obj\n{each}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
    return out + f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}{trailer}".encode()


def read_pdf(server: Application, data: bytes) -> Any:
    return run(ask(server, "POST", "/page/pdf", {"data": base64.b64encode(data).decode()}, headers=KEY))


def test_the_text_of_a_pdf(server: Application) -> None:
    answered = read_pdf(server, pdf("The word is ahoy.", "Page two."))
    assert (answered.status, answered.json()) == (200, {"text": "The word is ahoy.\n\nPage two."})


def locked() -> bytes:
    writer = pypdf.PdfWriter(clone_from=io.BytesIO(pdf("Secret.")))
    writer.encrypt("open sesame", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


@pytest.mark.parametrize(("make", "says"), [
    (lambda: b"", "cannot be read"), (lambda: b"%PDF-1.7\n\xff\xfe", "cannot be read"),
    (lambda: pdf("x")[:200], "cannot be read"),
    (lambda: pdf("", ""), "no text"), (locked, "password"),
], ids=["empty", "damaged", "cut", "pictures", "locked"])  # fmt: skip
def test_pdfs_without_a_text_are_refused(server: Application, make: Any, says: str) -> None:
    answered = read_pdf(server, make())
    assert answered.status == 400 and says in answered.json()["error"]["message"]


def test_pdfs_are_read_apart(server: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes too long is given up, one that ends its process is told, and the server goes on."""
    monkeypatch.setattr(pdf_text, "SECONDS", 0.001)
    assert "more than 0 s" in read_pdf(server, pdf("x")).json()["error"]["message"]
    monkeypatch.setattr(pdf_text, "SECONDS", 60)
    monkeypatch.setattr(pdf_text.sys, "executable", "false")
    assert "cannot be read" in read_pdf(server, pdf("x")).json()["error"]["message"]


def test_a_pdf_needs_the_key_and_its_package(server: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(ask(server, "POST", "/page/pdf", {"data": ""})).status == 401
    assert run(ask(server, "POST", "/page/pdf", {"data": 5}, headers=KEY)).status == 400
    assert run(ask(server, "POST", "/page/pdf", {"data": "?"}, headers=KEY)).status == 400
    monkeypatch.setattr(pdf_text.importlib.util, "find_spec", lambda name: None)
    refused = read_pdf(server, pdf("x"))
    assert refused.status == 501 and "pip install pypdf" in refused.json()["error"]["message"]


@pytest.mark.parametrize("name", ["x", "", "../../etc", "00000000-0000-0000-0000-00000000000A"])
def test_odd_names_are_refused(server: Application, name: str) -> None:
    headers = {**KEY, page_jobs.HEADER.decode(): name}
    answered = run(ask(server, "POST", "/v1/chat/completions", question(max_tokens=1), headers=headers))
    assert answered.status == (400 if name else 200)
