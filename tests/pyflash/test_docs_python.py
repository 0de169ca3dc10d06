"""The code of docs/python.md and docs/stages.md runs, from top to bottom, and does what it says."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyflash
import pytest

pytest.importorskip("llguidance")

from docs.blocks import ROOT, blocks
from docs.shell import Place, make_place, run_page

DOCS = ROOT / "docs"
PAGE = DOCS / "python.md"

Say = Callable[..., list[int]]  # the fixture's


def run(page: str, folder: Path) -> dict[str, Any]:
    """What the page's blocks define, all run in order."""
    with pytest.MonkeyPatch.context() as patch:
        (folder / "temporary").mkdir()
        patch.setattr("tempfile.tempdir", str(folder / "temporary"))
        place: Place = make_place(folder)
        run_page(page, place)
    return place.names


@pytest.fixture(scope="module")
def namespace(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run("docs/python.md", tmp_path_factory.mktemp("page"))


def test_page_runs(namespace: dict[str, Any]) -> None:
    assert len(blocks("docs/python.md")) >= 14
    saved, resumed = namespace["messages"], namespace["resumed"]
    assert resumed[:-1] == saved
    assert namespace["reply"].n_reused > namespace["reply"].n_prompt / 2  # after load()
    assert namespace["known"] > 5
    assert namespace["shown"][-1]["role"] == "assistant"


def test_page_of_stages_runs(demo_model: Path, tmp_path: Path) -> None:
    names = run("docs/stages.md", tmp_path)
    with pyflash.Model.open(demo_model) as model, model.session(context=4096) as session:
        assert (session.eval(names["tokens"]) == names["logits"]).all()
    assert names["a"].position == names["b"].position == 3
    for name in ("a", "b", "first", "last"):
        names[name].close()


def test_page_names_every_error_and_option() -> None:
    page = PAGE.read_text(encoding="utf-8")
    errors = [name for name in pyflash.__all__ if isinstance(getattr(pyflash, name), type)
              and issubclass(getattr(pyflash, name), pyflash.Error)]  # fmt: skip
    assert len(errors) > 10 and all(f"`{'pyflash.' * (name == 'Error')}{name}`" in page for name in errors)
    assert all(f"`{name}`" in page for name in pyflash.SamplingOptions.__annotations__)
    anchors = re.findall(r"\]\(#([a-z-]+)\)", page)
    titles = [re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^## (.*)$", page, re.M)]
    assert anchors == titles


def test_tool_loop_of_the_page(namespace: dict[str, Any], session: pyflash.Session, say: Say) -> None:
    """With a model that calls its tools, once rightly and once wrongly, and then answers."""
    call = ('\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weather">\n<｜DSML｜parameter name="city" string="true">{}'
            "</｜DSML｜parameter>\n{}</｜DSML｜invoke>\n</｜DSML｜tool_calls>")  # fmt: skip
    wrong = '<｜DSML｜parameter name="hour" string="false">5</｜DSML｜parameter>\n'
    say(session, "hm</think>" + call.format("Rome", ""))
    others = iter(["so</think>" + call.format("Rome", wrong), "</think>Yes."])
    chat = session.chat

    def scripted(*arguments: Any, **options: Any) -> pyflash.Reply:
        if len(arguments[0]) > 1:
            say(session, next(others))
        return chat(*arguments, **options)

    session.chat = scripted  # type: ignore[method-assign]
    messages = namespace["ask"](session, [{"role": "user", "content": "Is it warm in Rome?"}], think="high")
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert messages[2]["content"] == "sunny in Rome, for 1 days"
    assert messages[4]["content"].startswith("error: TypeError")
    assert messages[5]["content"] == "Yes."
    assert json.loads(messages[3]["tool_calls"][0]["function"]["arguments"]) == {"city": "Rome", "hour": 5}
