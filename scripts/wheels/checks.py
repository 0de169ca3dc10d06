"""What is wrong with a file that is to be released. Every rule is a function from what it looks at to sentences; none: good."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from packaging.metadata import ExceptionGroup, Metadata
from packaging.utils import parse_wheel_filename

from wheels import binaries
from wheels.targets import CUDA_PLATFORM, GLIBC, MACOS, TARGETS, Target, of_platforms

_NEEDED = {
    "glibc": re.compile(r"lib(c\.so\.6|m\.so\.6|pthread\.so\.0|dl\.so\.2|rt\.so\.1)|ld-linux-(x86-64\.so\.2|aarch64\.so\.1)"),
    "musl": re.compile(r"libc\.so|libc\.musl-(x86_64|aarch64)\.so\.1"),
    "macos": re.compile(r"/usr/lib/libSystem\.B\.dylib"),
    "windows": re.compile(r"(kernel32|ntdll|api-ms-win-(crt|core)-[a-z0-9-]+)\.dll", re.IGNORECASE),
}
_KERNELS = {"x86_64": {"avx2", "avxvnni", "avx512", "avx512 vbmi"}, "arm64": {"dotprod", "i8mm"}}
# Folders of a machine that builds; /proc, /sys and /dev are the library's own business, and two files are macOS'.
_PLACE = re.compile(rb"(?<![\w./%@-])/(?!usr/lib/(?:dyld|libSystem\.B\.dylib)\b)"
                    rb"(?:home|root|tmp|work|build|opt|src|usr|var|Users|mnt|media|private|github)/[\w.+@-]+[!-~]*")  # fmt: skip
_BUNDLED = {"pyflash/include/pyflash.h", "pyflash/include/pyflash_base.h", "pyflash/lib/cmake/pyflash/pyflashConfig.cmake",
            "pyflash/lib/cmake/pyflash/pyflashConfigVersion.cmake", "pyflash/lib/cmake/pyflash/pyflashTargets.cmake",
            "pyflash/lib/pkgconfig/pyflash.pc", "pyflash/native/_pyflash_cffi.py", "pyflash/native/build.json",
            "pyflash/py.typed", "pyflash/demo/model/config.json", "pyflash/serve/page/built/index.html",
            "pyflash/serve/page/built/LICENSES.txt"}  # fmt: skip

Files = Mapping[str, bytes]


def places(name: str, data: bytes) -> Iterator[str]:
    """Paths of the machine that built it."""
    for found in dict.fromkeys(_PLACE.findall(data)):
        yield f"{name} names {found.decode()}, a place on the machine that built it"


# ---- A library ----


def declared(files: Files) -> set[str]:
    """What the headers among the files declare for export."""
    text = b"".join(data for name, data in files.items() if name.endswith(".h")).decode()
    return set(re.findall(r"^PF_API\b[^;{]*?\b(pf_\w+)\s*\(", text, flags=re.MULTILINE))


def library(name: str, data: bytes, target: Target, exports: set[str], version: str) -> Iterator[str]:
    """libpyflash for a target."""
    try:
        binary = binaries.read(data)
    except ValueError as error:
        yield f"{name} is no library: {error}"
        return
    if (binary.format, binary.arch) != (target.format, target.arch):
        yield f"{name} is {binary.format} for {binary.arch}, and has to be {target.format} for {target.arch}"
        return
    yield from _interface(name, binary, exports)
    yield from _system(name, binary, target.libc, GLIBC)
    yield from (f"{name}: {fault}" for fault in binary.faults)
    yield from places(name, data)
    wanted = _KERNELS[target.arch] | ({"amx"} if target.arch == "x86_64" and target.system == "Linux" else set())
    for missing in sorted(wanted - binaries.kernel_sets(binary)):
        yield f"{name} has no instruction of the {missing} kernels"
    if version.encode() + b"\0" not in data:
        yield f"{name} does not hold its version, {version}"
    installed_as = {"elf": "libpyflash.so", "macho": "@rpath/libpyflash.dylib", "pe": None}[target.format]
    if binary.install_name != installed_as:
        yield f"{name} calls itself {binary.install_name}, and programs need {installed_as}"


def _interface(name: str, binary: binaries.Binary, exports: set[str]) -> Iterator[str]:
    if not exports:
        yield f"no header declares what {name} has to export"
    if missing := sorted(exports - binary.exports):
        yield f"{name} does not export {', '.join(missing)}"
    if more := sorted(binary.exports - exports):
        yield f"{name} exports {', '.join(more)}, which no header declares"


def _system(name: str, binary: binaries.Binary, libc: str, glibc: tuple[int, ...]) -> Iterator[str]:
    for needed in binary.needed:
        if not _NEEDED[libc].fullmatch(needed):
            yield f"{name} needs {needed}, which a {libc} system may not have"
    for path in binary.run_paths:
        yield f"{name} looks for libraries in {path}"
    for family, newest in binary.versions.items():
        allowed = glibc if family == "GLIBC" and libc == "glibc" else ()
        if newest > allowed:
            written = ".".join(map(str, newest))
            yield f"{name} needs {family}_{written}, and its tag allows {'.'.join(map(str, allowed)) or 'none'}"
    if binary.format == "macho" and (binary.minimum is None or binary.minimum[:2] != MACOS):
        own = ".".join(map(str, binary.minimum or ())) or "of no version"
        yield f"{name} is for macOS {own}, and its tag says {MACOS[0]}.{MACOS[1]}"


# ---- Texts beside it ----


def relocatable(name: str, data: bytes, version: str) -> Iterator[str]:
    """CMake's and pkg-config's files: they may be anywhere, and know the version."""
    text = data.decode()
    yield from places(name, data)
    if name.endswith("ConfigVersion.cmake") and f'"{version}"' not in text:
        yield f"{name} is not of version {version}"
    if name.endswith(".pc") and f"Version: {version}\n" not in text:
        yield f"{name} is not of version {version}"
    if name.endswith(".pc") and "prefix=${pcfiledir}" not in text:
        yield f"{name} does not find its files from its own place"
    if name.endswith("Targets.cmake") and "_IMPORT_PREFIX" not in text:
        yield f"{name} does not find its files from its own place"


# ---- A wheel ----


def wheel(path: Path, version: str) -> Iterator[str]:
    """pyflash's wheel, or the CUDA plugin's."""
    with zipfile.ZipFile(path) as archive:
        files = {item.filename: archive.read(item) for item in archive.infolist() if not item.is_dir()}
    name, own_version, build, tags = parse_wheel_filename(path.name)
    info = f"{path.name.split('-')[0]}-{path.name.split('-')[1]}.dist-info"
    if missing := [
        f"{info}/{part}" for part in ("METADATA", "WHEEL", "RECORD", "licenses/LICENSE") if f"{info}/{part}" not in files
    ]:
        yield f"it has no {', no '.join(missing)}"
        return
    if str(own_version) != version:
        yield f"it is of version {own_version}, and the tree of {version}"
    if build:
        yield f"it has a build number, {build}"
    yield from _record(info, files)
    yield from _metadata(files[f"{info}/METADATA"], str(name), version)
    written = set(re.findall(r"^Tag: (.+)$", files[f"{info}/WHEEL"].decode(), flags=re.MULTILINE))
    if written != {str(tag) for tag in tags}:
        yield f"its name says {', '.join(sorted(map(str, tags)))}, and its WHEEL {', '.join(sorted(written))}"
    if {(tag.interpreter, tag.abi) for tag in tags} != {("py3", "none")}:
        yield "it is not for py3-none: one wheel is for every Python"
    if "Root-Is-Purelib: false" not in files[f"{info}/WHEEL"].decode():
        yield "it says that it is pure Python"
    platforms = tuple(sorted(tag.platform for tag in tags))
    contents = {file: data for file, data in files.items() if not file.startswith(f"{info}/")}
    if name == "pyflash-llm-cuda":
        yield from _plugin(contents, platforms)
    else:
        yield from _package(contents, platforms, version)


def _record(info: str, files: Files) -> Iterator[str]:
    rows = {row[0]: row[1] for row in csv.reader(io.StringIO(files[f"{info}/RECORD"].decode())) if row}
    if differing := sorted(rows.keys() ^ files.keys()):
        yield f"RECORD and contents differ in {', '.join(differing)}"
    for file, digest in rows.items():
        if file in files and file != f"{info}/RECORD":
            kind, _, value = digest.partition("=")
            known = kind in hashlib.algorithms_guaranteed and hashlib.new(kind, files[file]).digest()
            if not known or base64.urlsafe_b64encode(known).rstrip(b"=").decode() != value:
                yield f"RECORD has another digest of {file}"


def _metadata(data: bytes, name: str, version: str) -> Iterator[str]:
    try:
        metadata = Metadata.from_email(data, validate=True)
    except ExceptionGroup as errors:
        yield from (f"METADATA: {error}" for error in errors.exceptions)
        return
    if (metadata.name, str(metadata.version)) != (name, version):
        yield f"METADATA is of {metadata.name} {metadata.version}"
    if metadata.license_expression != "MIT":
        yield f"METADATA has the licence {metadata.license_expression}"
    if metadata.requires_python is None or "3.10" not in metadata.requires_python or "3.9" in metadata.requires_python:
        yield "METADATA does not ask for Python 3.10 or newer"
    always = {requirement.name for requirement in metadata.requires_dist or () if "extra" not in str(requirement.marker or "")}
    wanted = {"pyflash-llm"} if name == "pyflash-llm-cuda" else {"numpy", "cffi", "click"}
    if always != wanted:
        yield f"METADATA requires {', '.join(sorted(always))}, and not {', '.join(sorted(wanted))}"


def _package(files: Files, platforms: tuple[str, ...], version: str) -> Iterator[str]:
    target = of_platforms(platforms)
    if target is None:
        yield f"nothing is made for {', '.join(platforms)}"
        return
    own = f"pyflash/{target.library}"
    if missing := sorted({*_BUNDLED, own} - files.keys()):
        yield f"it has no {', no '.join(missing)}"
    libraries = [name for name in files if re.search(r"\.(so|dylib|dll|pyd|a|lib|o|obj|exe)(\.|$)", name)]
    if more := sorted(set(libraries) - {own, "pyflash/lib/libpyflash.dll.a"}):
        yield f"it has {', '.join(more)}, too"
    if stray := sorted(name for name in files if re.search(r"(^|/)(tests?|__pycache__|node_modules)/|\.(c|o|orig|log)$", name)):
        yield f"it has {', '.join(stray)}, which nobody needs"
    if top := sorted({name.split("/")[0] for name in files} - {"pyflash", "quantize", "gguf_export"}):
        yield f"it installs {', '.join(top)}"
    yield from _built(files, "pyflash/", target, version)
    if f'"version": "{version}"'.encode() not in files.get("pyflash/native/build.json", b""):
        yield f"pyflash/native/build.json is not of version {version}"


def _built(files: Files, prefix: str, target: Target, version: str) -> Iterator[str]:
    """The library and what stands beside it for programs, under a prefix."""
    own = f"{prefix}{target.library}"
    if own in files:
        yield from library(own, files[own], target, declared(files), version)
    if target.format == "pe" and f"{prefix}lib/libpyflash.dll.a" not in files:
        yield "it has no import library, without which nothing links"
    for name, data in files.items():
        if name.startswith((f"{prefix}lib/cmake/", f"{prefix}lib/pkgconfig/")):
            yield from relocatable(name, data, version)
        elif name.startswith(f"{prefix}native/"):
            yield from places(name, data)


def _plugin(files: Files, platforms: tuple[str, ...]) -> Iterator[str]:
    own = "pyflash/lib/libpyflash_cuda.so"
    if set(files) != {own}:
        yield f"it has to hold {own} alone, and holds {', '.join(sorted(files))}"
        return
    if platforms != (CUDA_PLATFORM,):
        yield f"it is for {', '.join(platforms)}, and has to be for {CUDA_PLATFORM}"
    glibc = tuple(int(part) for part in re.findall(r"\d+", CUDA_PLATFORM)[:2])
    binary = binaries.read(files[own])
    if (binary.format, binary.arch) != ("elf", "x86_64"):
        yield f"{own} is {binary.format} for {binary.arch}"
        return
    yield from _interface(own, binary, {"pf_plugin_query"})
    yield from _system(own, binary, "glibc", glibc)
    yield from (f"{own}: {fault}" for fault in binary.faults)
    yield from places(own, files[own])


# ---- A zip for programs ----


def bundle(path: Path, version: str) -> Iterator[str]:
    """pyflash-VERSION-PLATFORM.zip."""
    found = re.fullmatch(rf"pyflash-{re.escape(version)}-([\w-]+)\.zip", path.name)
    target = TARGETS.get(found[1]) if found else None
    if target is None:
        yield f"its name is not pyflash-{version}-PLATFORM.zip of a platform that is made"
        return
    prefix = f"{path.stem}/"
    with zipfile.ZipFile(path) as archive:
        files = {item.filename: archive.read(item) for item in archive.infolist() if not item.is_dir()}
    if stray := sorted(name for name in files if not name.startswith(prefix) or ".." in PurePosixPath(name).parts):
        yield f"{', '.join(stray)} would be laid outside {prefix}"
    wanted = {name.replace("pyflash/", "", 1) for name in _BUNDLED if name.startswith(("pyflash/include/", "pyflash/lib/"))}
    wanted |= {target.library, "share/doc/pyflash/LICENSE"}
    if missing := sorted(name for name in wanted if prefix + name not in files):
        yield f"it has no {', no '.join(missing)}"
    if top := sorted({name.removeprefix(prefix).split("/")[0] for name in files} - {"include", "lib", "bin", "share"}):
        yield f"it has {', '.join(top)} beside include, lib, bin and share"
    yield from _built(files, prefix, target, version)


# ---- A source distribution ----


def sdist(path: Path, version: str) -> Iterator[str]:
    """pyflash_llm-VERSION.tar.gz."""
    prefix = f"pyflash_llm-{version}/"
    if path.name != f"{prefix[:-1]}.tar.gz":
        yield f"its name is not {prefix[:-1]}.tar.gz"
        return
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        information = (
            archive.extractfile(f"{prefix}PKG-INFO") if f"{prefix}PKG-INFO" in {member.name for member in members} else None
        )
        text = information.read() if information is not None else b""
    names = {member.name.removeprefix(prefix) for member in members}
    if stray := sorted(member.name for member in members if not member.name.startswith(prefix) or ".." in member.name.split("/")):
        yield f"{', '.join(stray)} would be laid outside {prefix}"
    if links := sorted(member.name for member in members if not (member.isfile() or member.isdir())):
        yield f"{', '.join(links)}: only files are wanted"
    wanted = {"PKG-INFO", "pyproject.toml", "CMakeLists.txt", "LICENSE", "README.md", "csrc/include/pyflash.h",
              "pyflash/__init__.py", "cmake/pyflashConfig.cmake.in", "packaging/cuda/pyproject.toml", "tests/conftest.py"}  # fmt: skip
    if missing := sorted(wanted - names):
        yield f"it has no {', no '.join(missing)}"
    if made := sorted(
        name for name in names if re.search(r"(^|/)(build|dist|__pycache__|node_modules|\.git)/|\.(so|o|pyc|gguf)$", name)
    ):
        yield f"it has {', '.join(made[:5])}, which builds make"
    if text:
        yield from _metadata(text, "pyflash-llm", version)


def check(path: Path, version: str) -> list[str]:
    """What is wrong with a file of dist/, by the kind that its name says. SHA256SUMS and the SBOM: wheels.release."""
    rules = {".whl": wheel, ".zip": bundle, ".gz": sdist}
    rule = rules.get(path.suffix)
    return list(rule(path, version)) if rule is not None else ["it is no wheel, no zip and no source distribution"]
