"""The text of PDFs that are attached in the page. A process of its own reads each, since strangers may have made them:
python -m pyflash.serve.pdf_text takes one on its standard input and writes JSON."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import json
import logging
import subprocess
import sys

from pyflash.serve.errors import RequestError

SECONDS = 60.0  # that one may take
_MEMORY = 2 << 30  # bytes of address space
_MOST_TEXT = 4 << 20  # characters
_PASTE = "copy its text and paste it"


class PdfReader:
    """Reads one PDF at a time."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)

    async def text_of(self, data: bytes) -> str:
        """The text of a PDF, its pages with an empty line between them. RequestError where there is none."""
        if importlib.util.find_spec("pypdf") is None:
            what = "reading PDFs needs one more package where the server runs: pip install pypdf"
            raise RequestError(what, code="not_implemented")
        async with self._turn:
            return await asyncio.to_thread(_read_apart, data)


def _read_apart(data: bytes) -> str:
    flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # of Windows
    try:
        done = subprocess.run([sys.executable, "-m", __name__], input=data, capture_output=True, timeout=SECONDS,
                              creationflags=flags)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise RequestError(f"this PDF takes more than {SECONDS:.0f} s to read: {_PASTE}") from None
    if done.returncode:
        raise RequestError(f"this PDF cannot be read: {_PASTE}")
    told: dict[str, str] = json.loads(done.stdout)
    if "error" in told:
        raise RequestError(told["error"])
    return told["text"]


def read(data: bytes) -> dict[str, str]:
    """{"text": ...} or {"error": why not}, of the bytes of a PDF."""
    import pypdf

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            return {"error": f"this PDF is locked by a password: unlock it, or {_PASTE}"}
        pages = [page.extract_text().strip() for page in reader.pages]
    except Exception:  # whatever a damaged file brings a parser to
        return {"error": f"this PDF cannot be read: {_PASTE}"}
    text = "\n\n".join(pages)
    if not text.strip():
        return {"error": "this PDF holds pictures of pages and no text: have its text recognised first"}
    if len(text) > _MOST_TEXT:
        return {"error": "this PDF has more than four million characters: attach a part of it"}
    return {"text": text.encode("utf-8", "replace").decode()}


def _limit() -> None:
    """Of memory, where the system has limits."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))


if __name__ == "__main__":
    logging.disable()  # what it thinks of the file
    _limit()
    with open(0, "rb") as source, open(1, "wb") as target:
        target.write(json.dumps(read(source.read())).encode())
