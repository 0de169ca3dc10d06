"""What a release has beside its files: SHA256SUMS, and a bill of materials (CycloneDX) that says what is in them."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement

from wheels import build, zig

SUMS = "SHA256SUMS"
_LICENCES = LicenseFactory()


def sbom_name(version: str) -> str:
    return f"pyflash-{version}.cdx.json"


def is_about_others(path: Path) -> bool:
    """Whether it is one of the two files of this module."""
    return path.name == SUMS or path.name.endswith(".cdx.json")


def require_clean(out: Path, *, dirty: bool) -> None:
    """Raises SystemExit where the release would not be the commit's, or would be mixed with other files."""
    if out.is_dir() and any(out.iterdir()):
        raise SystemExit(f"build_wheels: {out} is not empty: a release starts from nothing")
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=build.ROOT, capture_output=True, text=True, check=False).stdout
    if changed and not dirty:
        raise SystemExit(f"build_wheels: commit first, or give --dirty; these differ:\n{changed.rstrip()}")


def complete(out: Path, made: list[Path]) -> list[Path]:
    """Writes both files for those made; returns their paths."""
    version = build.version()
    bill = out / sbom_name(version)
    bill.write_text(_bill(made, version, int(build.time_of_commit())), encoding="utf-8")
    sums = out / SUMS
    sums.write_text("".join(f"{_digest(path)}  {path.name}\n" for path in sorted([*made, bill])), encoding="utf-8")
    return [bill, sums]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- The bill ----


def _bill(made: list[Path], version: str, epoch: int) -> str:
    project = tomllib.loads((build.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = Component(name="pyflash-llm", version=version, type=ComponentType.LIBRARY, bom_ref="pyflash-llm",
                    description=project["description"], licenses=[_LICENCES.make_with_expression("MIT")],
                    purl=PackageURL("pypi", None, "pyflash-llm", version))  # fmt: skip
    bill = Bom()
    bill.metadata.component = own
    bill.metadata.timestamp = datetime.fromtimestamp(epoch, timezone.utc)
    bill.metadata.tools.components.add(Component(name="ziglang", version=zig.version(), type=ComponentType.APPLICATION,
                                                 purl=PackageURL("pypi", None, "ziglang", zig.version())))  # fmt: skip
    files = [_file(path) for path in made]
    parts = [*_page(), *_linked()]
    required = [_requirement(text) for text in project["dependencies"]]
    for component in (*files, *parts, *required):
        bill.components.add(component)
    bill.register_dependency(own, [*parts, *required])
    named = "".join(f"{path.name}={_digest(path)};" for path in sorted(made))
    bill.serial_number = uuid5(NAMESPACE_URL, named)  # the same files, the same bill
    return JsonV1Dot6(bill).output_as_string(indent=2) + "\n"


def _file(path: Path) -> Component:
    return Component(name=path.name, type=ComponentType.FILE, bom_ref=f"file:{path.name}",
                     hashes=[HashType(alg=HashAlgorithm.SHA_256, content=_digest(path))])  # fmt: skip


def _page() -> Iterator[Component]:
    """The packages of npm that the server's page is built of."""
    lock = json.loads((build.ROOT / "pyflash" / "serve" / "page" / "package-lock.json").read_text(encoding="utf-8"))
    for place, facts in lock["packages"].items():
        if place and not facts.get("dev") and not facts.get("optional"):
            group, _, name = place.removeprefix("node_modules/").rpartition("/")
            yield Component(
                name=name, group=group or None, version=facts["version"], type=ComponentType.LIBRARY, scope=ComponentScope.REQUIRED,
                bom_ref=f"npm:{place.removeprefix('node_modules/')}", licenses=[_LICENCES.make_from_string(facts["license"])],
                purl=PackageURL("npm", group or None, name, facts["version"]),
                properties=[Property(name="pyflash:part", value="pyflash/serve/page/built, in wheels")],
            )  # fmt: skip


def _linked() -> Iterator[Component]:
    """What the compilers bring into the libraries."""
    for name, version, licence, where in [
        ("compiler-rt", zig.version(), "MIT", "all libraries, of zig"),
        ("mingw-w64", zig.version(), "ZPL-2.1", "libpyflash.dll: the start of a DLL and the import of the C library, of zig"),
        ("libc++", zig.version(), "Apache-2.0 WITH LLVM-exception", "libpyflash_cuda.so, of zig"),
    ]:
        yield Component(name=name, version=f"of zig {version}", type=ComponentType.LIBRARY, bom_ref=f"zig:{name}",
                        licenses=[_LICENCES.make_from_string(licence)],
                        properties=[Property(name="pyflash:part", value=where)])  # fmt: skip
    yield Component(name="cudart_static", version="13", type=ComponentType.LIBRARY, bom_ref="cuda:cudart_static",
                    licenses=[_LICENCES.make_with_name("NVIDIA CUDA Toolkit End User License Agreement")],
                    properties=[Property(name="pyflash:part", value="libpyflash_cuda.so")])  # fmt: skip


def _requirement(text: str) -> Component:
    requirement = Requirement(text)
    return Component(name=requirement.name, type=ComponentType.LIBRARY, scope=ComponentScope.REQUIRED,
                     bom_ref=f"pypi:{requirement.name}", purl=PackageURL("pypi", None, requirement.name),
                     properties=[Property(name="pyflash:requirement", value=str(requirement.specifier))])  # fmt: skip


# ---- Checks of both ----


def check(path: Path, beside: Iterable[Path], version: str) -> list[str]:
    """What is wrong with SHA256SUMS or the bill, given the files beside it."""
    others = {other.name: other for other in beside}
    return list(_sums(path, others) if path.name == SUMS else _bill_faults(path, others, version))


def _compare(told: dict[str, str], others: dict[str, Path], left_out: set[str]) -> Iterator[str]:
    """Digests by name, against the files."""
    for name in sorted(others.keys() - told.keys() - left_out):
        yield f"it does not name {name}"
    for name, digest in told.items():
        if name not in others:
            yield f"it names {name}, which is not there"
        elif _digest(others[name]) != digest:
            yield f"it has another digest of {name}"


def _sums(path: Path, others: dict[str, Path]) -> Iterator[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [re.fullmatch(r"([0-9a-f]{64})  (\S+)", line) for line in lines]
    if not rows or not all(rows):
        yield "its lines are not those of sha256sum"
        return
    yield from _compare({row[2]: row[1] for row in rows if row}, others, {SUMS})


def _bill_faults(path: Path, others: dict[str, Path], version: str) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    told = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if told is not None:
        yield f"it is no CycloneDX: {told}"
        return
    bill = json.loads(text)
    if bill["metadata"]["component"]["version"] != version:
        yield f"it is of version {bill['metadata']['component']['version']}, and the tree of {version}"
    files = {part["name"]: part["hashes"][0]["content"] for part in bill["components"] if part["type"] == "file"}
    yield from _compare(files, others, {path.name, SUMS})
