"""What may use what: docs/architecture.md says it, and the sources keep to it."""

from __future__ import annotations

import ast
import itertools
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import pyflash
from pyflash.cli.advice import OPTIONS, in_options

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("pyflash", "gguf_export", "quantize")
NAME = re.compile(r"`([\w./-]+)`")

# The terminal is the command line's: modules that only it uses, and what else touches a terminal.
TERMINAL_MODULES = {"click", "readline", "curses", "getpass", "termios", "tty"}
STREAMS = {"stdin", "stdout", "stderr"}
# What a sentence for a person at a terminal says: an option or a chat's command, but for whole commands of some program.
TYPED = re.compile(r"(?<![\w-])--[a-z]|(?:^|\s)/(?:undo|clear|save|load|read|set|regen|think)\b")
COMMAND = re.compile(r"\b(?:pyflash \w+|llama-\w+)\b")


class Part(NamedTuple):
    """A row of the page: paths of a folder, of modules or of headers, and the paths that these may use."""

    paths: tuple[str, ...]
    allowed: tuple[str, ...]


def table(title: str) -> list[Part]:
    """The rows of the table below a heading, top to bottom."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    return [Part(tuple(NAME.findall(cells[0])), tuple(NAME.findall(cells[-1]))) for cells in rows]


def exceptions() -> set[tuple[str, str]]:
    """(user, used): the lines "- `a` → `b`: why"."""
    return {(a, b) for a, b in re.findall(r"^- `([\w./]+)` → `([\w./]+)`: \w", PAGE, re.MULTILINE)}


PYTHON, C = table("Python: what may import what"), table("C: what may include what")


def within(path: str, part: str) -> bool:
    return path == part or path.startswith(f"{part}/")


def part_of(path: str, parts: list[Part]) -> Part:
    """The row with the longest path that this one is, or lies in."""
    fitting = [(len(each), part) for part in parts for each in part.paths if within(path, each)]
    assert fitting, f"docs/architecture.md has no row for {path}"
    return max(fitting)[1]


class Use(NamedTuple):
    user: str
    used: str
    line: int


def going_up(uses: Iterator[Use], parts: list[Part]) -> list[str]:
    """Uses that the page does not allow."""
    wrong = []
    for use in uses:
        own = part_of(use.user, parts)
        theirs = part_of(use.used, parts)
        allowed = own is theirs or any(each in theirs.paths or within(use.used, each) for each in own.allowed)
        if not allowed and (use.user, use.used) not in exceptions():
            wrong.append(f"{use.user}:{use.line} uses {use.used}")
    return wrong


# -- the tables --


@pytest.mark.parametrize("parts", [PYTHON, C])
def test_the_tables_go_downwards(parts: list[Part]) -> None:
    assert len(parts) > 8
    for n, part in enumerate(parts):
        lower = [path for other in parts[n + 1 :] for path in other.paths]
        for name in part.allowed:
            assert any(within(name, path) for path in lower), f"{part.paths[0]} may use {name}, which is not below it"


def test_the_tables_name_what_is_there() -> None:
    for part in PYTHON:
        for path in part.paths:
            assert (ROOT / path).is_dir() or (ROOT / f"{path}.py").is_file(), path
    for path in (path for part in C for path in (*part.paths, *part.allowed)):
        assert (ROOT / "csrc" / path).exists(), path


def test_the_picture_shows_the_tables() -> None:
    """Each part in a band of its own or beside parts that it does not use, everything that it uses further down."""
    namespace = runpy.run_path(str(ROOT / "scripts" / "make_architecture_picture.py"))
    assert (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8") == namespace["draw"]()
    band_of = {name: n for n, band in enumerate(namespace["BANDS"]) if band for name, _ in band}
    shown = {name: part for part in (*PYTHON, *C) for path in part.paths for name in band_of if within(path, name)}
    assert set(shown) == set(band_of)
    for part in (*PYTHON, *C):
        for user, used in itertools.product(part.paths, part.allowed):
            if user in band_of and used in band_of:
                assert band_of[user] < band_of[used], f"{user} uses {used}"


def test_pages_name_files_that_there_are() -> None:
    for page in ("architecture", "bits"):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        named = set(re.findall(r"`((?:csrc|docs|gguf_export|pyflash|quantize|scripts|tests)/[\w./-]+)`", text))
        assert len(named) >= 5
        assert [name for name in sorted(named) if not any(ROOT.glob(f"{name}*"))] == []


# -- Python --


class Imports(ast.NodeVisitor):
    """The modules that a file imports, those for types alone left out but for the command line's."""

    def __init__(self, path: Path) -> None:
        self.user = path.relative_to(ROOT).with_suffix("").as_posix()
        self.found: list[Use] = []
        self.outside: list[tuple[str, int]] = []  # modules of others
        self._for_types = False
        self.visit(ast.parse(path.read_text(encoding="utf-8")))

    def visit_If(self, node: ast.If) -> None:
        before = self._for_types
        self._for_types = before or ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for child in node.body:
            self.visit(child)
        self._for_types = before
        for child in node.orelse:
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            self._add(name.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        assert node.module and not node.level, f"{self.user}: a relative import"
        for name in node.names:
            self._add(f"{node.module}.{name.name}", node.lineno)

    def _add(self, dotted: str, line: int) -> None:
        names = dotted.split(".")
        if names[0] not in PACKAGES:
            self.outside.append((names[0], line))
            return
        while not ((path := ROOT.joinpath(*names)).is_dir() or path.with_suffix(".py").is_file()):
            if names == ["pyflash", "native", "_pyflash_cffi"]:
                return  # the build makes it
            names.pop()
        used = "/".join([*names, "__init__"] if path.is_dir() else names)
        if not self._for_types or used.startswith("pyflash/cli"):
            self.found.append(Use(self.user, used, line))


def python_files() -> list[Path]:
    found = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return [path for path in found if "node_modules" not in path.parts]


def test_python_imports_go_downwards() -> None:
    found = [Imports(path) for path in python_files()]
    assert len(found) > 60 and sum(len(each.found) for each in found) > 200
    assert going_up(itertools.chain.from_iterable(each.found for each in found), PYTHON) == []
    used = {(use.user, use.used) for each in found for use in each.found}
    assert exceptions() and exceptions() <= used  # none that is no longer needed


def test_only_the_command_line_knows_a_terminal() -> None:
    wrong = []
    for path in python_files():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("pyflash/cli/") or name in ("pyflash/__main__.py", "gguf_export/synthetic.py"):
            continue
        outside = Imports(path).outside
        wrong += [f"{name}:{line} imports {module}" for module, line in outside if module in TERMINAL_MODULES]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ast.unparse(node) if isinstance(node, (ast.Attribute, ast.Call)) else ""
            if text in {f"sys.{stream}" for stream in STREAMS} or re.match(r"print\(|input\(|.*\.isatty\(\)$", text):
                wrong.append(f"{name}:{node.lineno} {text:.40}")  # type: ignore[attr-defined]
    assert wrong == []


def sentences(path: Path) -> Iterator[tuple[int, str]]:
    """The strings of a file with their lines: not its documentation."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            yield node.lineno, "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (documentation | inner):
            yield node.lineno, node.value


def test_nothing_below_the_command_line_names_its_options() -> None:
    """The Python API's words there: whoever calls it has no command line. Whole commands may be named."""
    wrong = []
    for path in python_files():
        name = path.relative_to(ROOT).as_posix()
        if name.startswith("pyflash/cli/") or name in ("pyflash/__main__.py", "gguf_export/synthetic.py"):
            continue
        for line, text in sentences(path):
            typed = TYPED.search(text)
            if typed and not COMMAND.search(text[: typed.start()]):
                wrong.append(f"{name}:{line} {text:.80}")
    assert wrong == []


def test_the_library_names_no_options_either() -> None:
    wrong = []
    for path in sorted((ROOT / "csrc").rglob("*")):
        if path.suffix in (".c", ".h", ".cu", ".cuh") and "tools" not in path.parts:
            for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                for text in re.findall(r'"((?:[^"\\]|\\.)*)"', line):
                    typed = TYPED.search(text)
                    if typed and not COMMAND.search(text[: typed.start()]):
                        wrong.append(f"{path.relative_to(ROOT)}:{n} {text}")
    assert wrong == []


# -- names that stay what they are --


def test_the_command_line_knows_the_arguments_that_are_named() -> None:
    """What gguf_export calls its arguments, and no more, is replaced by options."""
    texts = "\n".join(text for path in python_files() if path.parts[-2] == "gguf_export" for _, text in sentences(path))
    assert [argument for argument in OPTIONS if argument not in texts] == []
    named = set(re.findall(r"\b(?:dense|experts|force|mtp|place|profile)=[\w\"']+", texts))
    assert {in_options(argument)[:2] for argument in named} == {"--"}


def test_no_module_has_the_name_of_what_its_package_offers() -> None:
    for package in (pyflash, pyflash.chat, pyflash.demo):
        assert isinstance(package, ModuleType) and package.__file__
        modules = {path.stem for path in Path(package.__file__).parent.iterdir() if path.name != "__pycache__"}
        offered = {name for name in dir(package) if not isinstance(getattr(package, name), ModuleType)}
        assert offered & modules == set()


NAMES = ("pyflash.chat.encode", "pyflash.chat.parse", "pyflash.chat.segments", "pyflash.demo.path", "pyflash.demo.file",
         "pyflash.Model.open", "pyflash.Session.chat", "pyflash.Reply.close", "pyflash.Worker.ask")  # fmt: skip


@pytest.mark.parametrize("modules", [
    ("pyflash",),
    ("pyflash.chat.parsing", "pyflash.chat.encoding", "pyflash.chat.reply"),
    ("pyflash.chat.conversation", "pyflash.chat"),
    ("pyflash.engine.session", "pyflash.chat"),
    ("pyflash.engine.worker", "pyflash.demo"),
    ("pyflash.cli.main", "pyflash.chat"),
    ("quantize.native", "gguf_export.convert", "pyflash.native.errors", "pyflash.demo"),
    ("pyflash.machine.doctor", "pyflash.eval.measure", "pyflash.bench.measure", "pyflash.engine.model"),
])  # fmt: skip
def test_names_in_every_order_of_imports(modules: tuple[str, ...]) -> None:
    lines = [f"import {name}" for name in modules] + ["import pyflash"]
    lines += [f"assert callable({name}) and type({name}).__name__ != 'module', {name!r}" for name in NAMES]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_texts_of_chats_need_nothing_of_the_engine() -> None:
    code = "import pyflash.chat, sys; print(*(name for name in sys.modules if name.startswith('pyflash.engine')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


# A name may stand in prose or in code; what follows a slash or ends as a file does is a file.
DOTTED = re.compile(r"(?<![\w/.-])((?:pyflash|gguf_export|quantize)(?:\.[A-Za-z_]\w*)+)(?![\w/-])")
FILES = ("h", "fish", "svg", "py", "toml", "gguf", "md", "so", "dylib", "dll", "pc")
FROM = re.compile(r"^\s*from ((?:pyflash|gguf_export|quantize)[\w.]*) import ([\w, ]+)", re.MULTILINE)


def keys_of_files() -> set[str]:
    """Keys of GGUF files, which look like names of modules."""
    files = (path for path in python_files() if path.parts[-2] == "gguf_export")
    return {text for path in files for _, text in sentences(path) if text.startswith("pyflash.")}


def named_in_docs() -> set[str]:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("examples/**/*.py")]
    found = set()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        found |= {name for name in DOTTED.findall(text) if name.rpartition(".")[2] not in FILES}
        for module, names in FROM.findall(text):
            found |= {f"{module}.{name.split(' as ')[0].strip()}" for name in names.split(",") if name.strip()}
    return found - keys_of_files()


def test_every_import_path_of_the_docs_works() -> None:
    named = named_in_docs()
    assert {"pyflash.Model.open", "pyflash.demo.path", "pyflash.engine.worker.Finished"} <= named
    missing = []
    for name in sorted(named):
        parts = name.split(".")
        at = len(parts)
        while at:
            try:
                value: object = import_module(".".join(parts[:at]))
                break
            except ModuleNotFoundError:
                at -= 1
        try:
            for part in parts[at:]:
                value = getattr(value, part)
        except AttributeError:
            missing.append(name)
    assert missing == []


# -- C --


def includes() -> Iterator[Use]:
    source = ROOT / "csrc"
    for path in sorted(source.rglob("*")):
        if path.suffix not in (".c", ".h", ".cu", ".cuh"):
            continue
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            match = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
            places = (source, source / "include", path.parent)
            header = match and next((each / match[1] for each in places if (each / match[1]).is_file()), None)
            if header:  # else it is the tests', which compile the kernels for a machine that is not there
                yield Use(path.relative_to(source).as_posix(), header.relative_to(source).as_posix(), n)


def test_c_includes_go_downwards() -> None:
    assert len(list(includes())) > 300
    assert going_up(includes(), C) == []
