"""docs/speed.svg shows the figures of docs/performance.md."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ElementTree

import pytest

from .blocks import ROOT

pytestmark = pytest.mark.quick

SCRIPT = "scripts/make_speed_picture.py"
PAGE = """<!-- compare_llama.py writes from here -->
| depth | test | llama.cpp | pyflash | ratio |
|---|---|---|---|---|
| 0 | decode 32 | 5.00 (4.00 to 6.00) | 10.00 (9.00 to 11.00) | **2.00** |
<!-- to here -->
"""


def test_it_is_up_to_date() -> None:
    script = runpy.run_path(str(ROOT / SCRIPT))
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    if (ROOT / "docs" / "speed.svg").read_text(encoding="utf-8") != script["draw"](page):
        pytest.fail(f"docs/speed.svg shows other figures than docs/performance.md: python {SCRIPT}")


def test_bars_are_as_long_as_the_figures() -> None:
    script = runpy.run_path(str(ROOT / SCRIPT))
    assert script["read"](PAGE) == (["llama.cpp", "pyflash"], [("decode 32", [5.0, 10.0])])
    bars = ElementTree.fromstring(script["draw"](PAGE)).findall("{http://www.w3.org/2000/svg}rect")
    widths = {bar.attrib["class"]: float(bar.attrib["width"]) for bar in bars}
    assert widths["own"] == pytest.approx(2 * widths["rival"], abs=0.2)
    with pytest.raises(ValueError, match="no table"):
        script["draw"]("nothing")
