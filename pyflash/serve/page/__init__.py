"""The page: built files of a small application, which the server hands out as they are.

src/ has its TypeScript, build.mjs makes built/ from it (`npm ci && npm run build`); what is built is committed, so that
nobody who installs pyflash needs node. built/LICENSES.txt has the licences of the packages that are in it.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

# No script, style or picture but the page's own; nothing from elsewhere, and nowhere else inside a frame.
SECURITY_POLICY = "; ".join((
    "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data: blob:", "connect-src 'self'",
    "font-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'",
))  # fmt: skip
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".html": "text/html; charset=utf-8",
          ".txt": "text/plain; charset=utf-8"}  # fmt: skip


@dataclass(frozen=True)
class PageFile:
    """A file of the page. compressed: by gzip. immutable: its name changes with what is in it."""

    content: bytes
    compressed: bytes
    content_type: str
    etag: str
    immutable: bool


@cache
def page_files() -> dict[str, PageFile]:
    """By name, "index.html" among them; {} where this installation has none."""
    folder = files(__name__) / "built"
    if not folder.is_dir():
        return {}
    return {entry.name: _page_file(entry.name, entry.read_bytes()) for entry in folder.iterdir() if entry.is_file()}


def _page_file(name: str, content: bytes) -> PageFile:
    suffix = name[name.rfind("."):]
    kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    digest = hashlib.sha256(content).hexdigest()[:32]
    return PageFile(content, gzip.compress(content, 9, mtime=0), kind, f'"{digest}"', suffix in (".js", ".css"))
