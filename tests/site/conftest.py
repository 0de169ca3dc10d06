from __future__ import annotations

from in_browser import browser as browser
from in_browser import page as page
