"""The rules of scripts/wheels/checks.py: each refuses what breaks it, in a sentence that says what is wrong."""

from __future__ import annotations

import struct
import subprocess
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from .changed import Change, add, changed_wheel, contents, edit, remove, replace, with_record, write

pytestmark = [pytest.mark.wheels]
VERSION = "0.1.0"
SHOWN = '-Dpf_plugin_query=__attribute__((visibility("default")))pf_plugin_query'
SO, DLL = "lib/libpyflash.so", "libpyflash.dll"


def told(path: Path) -> str:
    from wheels import checks

    return "\n".join(checks.check(path, VERSION))


@pytest.fixture(scope="module")
def linux(dist: Path) -> Path:
    return next(dist.glob("*manylinux_2_17_x86_64*.whl"))


@pytest.fixture(scope="module")
def windows(dist: Path) -> Path:
    return next(dist.glob("*win_amd64.whl"))


def _newer_glibc(data: bytes) -> bytes:
    from wheels import binaries

    newest = ".".join(map(str, binaries.read(data).versions["GLIBC"])).encode()
    return data.replace(b"GLIBC_" + newest + b"\0", b"GLIBC_" + b"2.99".ljust(len(newest), b"\0") + b"\0")


def _executable_stack(data: bytes) -> bytes:
    """PT_GNU_STACK with the right to execute."""
    start, size, count = struct.unpack_from("<Q", data, 32)[0], *struct.unpack_from("<HH", data, 54)
    changed = bytearray(data)
    for offset in range(start, start + size * count, size):
        if struct.unpack_from("<I", data, offset)[0] == 0x6474E551:
            struct.pack_into("<I", changed, offset + 4, 7)
    return bytes(changed)


def _without(kernels: str, data: bytes) -> bytes:
    """Every instruction by which the kernels are known, with another operation in its place."""
    from wheels import binaries

    return binaries._X86[kernels].sub(lambda found: found[0][:-1] + b"\x00", data)


WHEEL_RULES: dict[str, tuple[Change, str]] = {
    "no licence": (remove("licenses/LICENSE"), "it has no pyflash_llm-0.1.0.dist-info/licenses/LICENSE"),
    "no header": (remove("include/pyflash_base.h"), "it has no pyflash/include/pyflash_base.h"),
    "no config": (remove("pyflashConfig.cmake"), "it has no pyflash/lib/cmake/pyflash/pyflashConfig.cmake"),
    "no pkg-config": (remove("pyflash.pc"), "it has no pyflash/lib/pkgconfig/pyflash.pc"),
    "no declarations": (remove("_pyflash_cffi.py"), "it has no pyflash/native/_pyflash_cffi.py"),
    "no licences of the page": (remove("built/LICENSES.txt"), "it has no pyflash/serve/page/built/LICENSES.txt"),
    "no library": (remove(SO), "it has no pyflash/lib/libpyflash.so"),
    "another library": (add("pyflash/lib/libgomp.so.1"), "it has pyflash/lib/libgomp.so.1, too"),
    "tests": (add("pyflash/tests/test_a.py"), "it has pyflash/tests/test_a.py, which nobody needs"),
    "another package": (add("scripts/a.py"), "it installs scripts"),
    "tag": (replace("/WHEEL", b"manylinux2014_x86_64", b"manylinux2010_x86_64"), "and its WHEEL "),
    "pure": (replace("/WHEEL", b"Root-Is-Purelib: false", b"Root-Is-Purelib: true"), "it says that it is pure Python"),
    "version": (replace("/METADATA", b"\nVersion: 0.1.0", b"\nVersion: 0.1.1"), "METADATA is of pyflash-llm 0.1.1"),
    "metadata": (replace("/METADATA", b"\nName: pyflash-llm", b"\nName: -"), "METADATA: "),
    "licence": (replace("/METADATA", b"License-Expression: MIT", b"License-Expression: 0BSD"), "has the licence 0BSD"),
    "python": (replace("/METADATA", b"Requires-Python: >=3.10", b"Requires-Python: >=3.9"), "does not ask for Python 3.10"),
    "requires": (replace("/METADATA", b"Requires-Dist: numpy", b"Requires-Dist: scipy"), "METADATA requires cffi, click, scipy"),
    "build of another": (replace("build.json", b'"0.1.0"', b'"0.0.9"'), "build.json is not of version 0.1.0"),
    "config of another": (replace("ConfigVersion.cmake", b'"0.1.0"', b'"0.0.9"'), "ConfigVersion.cmake is not of version 0.1.0"),
    "pc of another": (replace(".pc", b"Version: 0.1.0", b"Version: 0.0.9"), "pyflash.pc is not of version 0.1.0"),
    "fixed pc": (replace(".pc", b"prefix=${pcfiledir}", b"prefix=/usr/local"), "does not find its files from its own place"),
    "fixed targets": (replace("Targets.cmake", b"_IMPORT_PREFIX", b"_FIXED"), "Targets.cmake does not find its files"),
    "place": (replace(".pc", b"Name:", b"# /home/someone/pyflash\nName:"), "names /home/someone/pyflash, a place on the machine"),
    "declared": (replace("pyflash_base.h", b"pf_version(void)", b"pf_edition(void)"), "does not export pf_edition"),
    "not declared": (replace("pyflash_base.h", b"PF_API const char *pf_version(void);", b""),
                     "exports pf_version, which no header declares"),
    "place in the library": (edit(SO, lambda data: data + b"\0/root/pyflash/a.c\0"), "names /root/pyflash/a.c, a place"),
    "no version in it": (replace(SO, b"0.1.0\0", b"0.1.x\0"), "does not hold its version, 0.1.0"),
    "needs": (replace(SO, b"libm.so.6\0", b"libx.so.6\0"), "needs libx.so.6, which a glibc system may not have"),
    "no library at all": (edit(SO, lambda data: b"#!/bin/sh\n"), "is no library: it is neither ELF nor Mach-O nor PE"),
    "newer glibc": (edit(SO, _newer_glibc), "needs GLIBC_2.99, and its tag allows 2.17"),
    "stack": (edit(SO, _executable_stack), "its stack is executable"),
    "name": (replace(SO, b"libpyflash.so\0", b"libqyflash.so\0"), "calls itself libqyflash.so, and programs need libpyflash.so"),
    **{f"without {kernels}": (edit(SO, partial(_without, kernels)), f"has no instruction of the {kernels} kernels")
       for kernels in ("avx2", "avxvnni", "avx512", "avx512 vbmi", "amx")},
}  # fmt: skip


@pytest.mark.parametrize("rule", WHEEL_RULES)
def test_a_wheel(linux: Path, tmp_path: Path, rule: str) -> None:
    change, sentence = WHEEL_RULES[rule]
    assert sentence in told(changed_wheel(linux, tmp_path, change))


def test_a_wheel_as_it_is(linux: Path, tmp_path: Path) -> None:
    """Written again by these tests, which are not what is refused."""
    assert told(changed_wheel(linux, tmp_path, lambda files: None)) == ""


def test_a_record(linux: Path, tmp_path: Path) -> None:
    altered = changed_wheel(linux, tmp_path, edit("py.typed", lambda data: b"x"), record=False)
    assert "RECORD has another digest of pyflash/py.typed" in told(altered)
    more = changed_wheel(linux, tmp_path, add("pyflash/more.py"), record=False)
    assert "RECORD and contents differ in pyflash/more.py" in told(more)


def test_another_platform(linux: Path, tmp_path: Path) -> None:
    arm = "manylinux2014_aarch64.manylinux_2_17_aarch64"
    change = edit("/WHEEL", lambda data: data.replace(b"_x86_64", b"_aarch64"))
    name = linux.name.replace("manylinux2014_x86_64.manylinux_2_17_x86_64", arm)
    assert "is elf for x86_64, and has to be elf for arm64" in told(changed_wheel(linux, tmp_path, change, name=name))
    unknown = edit("/WHEEL", lambda data: data.replace(b"_x86_64", b"_riscv64"))
    name = linux.name.replace("x86_64", "riscv64")
    assert "nothing is made for manylinux2014_riscv64" in told(changed_wheel(linux, tmp_path, unknown, name=name))


def test_another_version(linux: Path) -> None:
    from wheels import checks

    assert "it is of version 0.1.0, and the tree of 0.2.0" in checks.check(linux, "0.2.0")


def _characteristics(data: bytes) -> bytes:
    """The DLL characteristics, all off."""
    header = struct.unpack_from("<I", data, 60)[0]
    return data[: header + 24 + 70] + b"\0\0" + data[header + 24 + 72 :]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (remove("libpyflash.dll.a"), "it has no import library, without which nothing links"),
        (
            edit(DLL, lambda data: data.replace(b"KERNEL32.dll", b"KERNEL33.dll")),
            "needs KERNEL33.dll, which a windows system may not have",
        ),
        (edit(DLL, _characteristics), "it lacks DYNAMIC_BASE"),
        (edit(DLL, _characteristics), "it lacks NX_COMPAT"),
    ],
    ids=["import library", "needs", "address", "data"],
)
def test_windows(windows: Path, tmp_path: Path, change: Change, sentence: str) -> None:
    assert sentence in told(changed_wheel(windows, tmp_path, change))


# ---- macOS: of a library of one function ----


@pytest.fixture(scope="module")
def dylib(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """Compiles it with further options of the linker."""
    from wheels import zig

    folder = tmp_path_factory.mktemp("dylib")
    (folder / "a.c").write_text('const char *pf_version(void) { return "0.1.0"; }\n')

    def made(*options: str, target: str = "aarch64-macos.11.0", name: str = "@rpath/libpyflash.dylib") -> bytes:
        command = [
            zig.program(),
            "cc",
            "-target",
            target,
            "-shared",
            "-g0",
            f"-Wl,-install_name,{name}",
            *options,
            "a.c",
            "-o",
            "a.dylib",
        ]
        subprocess.run(command, cwd=folder, check=True)
        return (folder / "a.dylib").read_bytes()

    return made


def of_macos(data: bytes, platform: str = "macos-arm64") -> set[str]:
    """What is wrong beside the kernels that it lacks."""
    from wheels import checks
    from wheels.targets import TARGETS

    found = checks.library("libpyflash.dylib", data, TARGETS[platform], {"pf_version"}, VERSION)
    return {sentence for sentence in found if "kernels" not in sentence}


def test_macos(dylib: Callable[..., bytes]) -> None:
    good = dylib()
    assert of_macos(good) == set()
    assert of_macos(dylib(target="aarch64-macos.13.0")) == {"libpyflash.dylib is for macOS 13.0.0, and its tag says 11.0"}
    assert of_macos(dylib(name="libpyflash.dylib")) == {
        "libpyflash.dylib calls itself libpyflash.dylib, and programs need @rpath/libpyflash.dylib"
    }
    assert of_macos(good.replace(b"0.1.0\0", b"0.1.1\0")) == {
        "libpyflash.dylib does not hold its version, 0.1.0",
        "libpyflash.dylib: its signature does not fit what is at byte 0",
    }
    signature, other = struct.pack("<II", 0x1D, 16), struct.pack("<II", 0x29, 16)  # LC_CODE_SIGNATURE, LC_DATA_IN_CODE
    assert good.count(signature) == 1
    assert of_macos(good.replace(signature, other)) == {"libpyflash.dylib: it is not signed"}
    assert of_macos(dylib(target="x86_64-macos.11.0"), "macos-x86_64") == set()  # Intel's runs what is not
    assert "libpyflash.dylib looks for libraries in /opt/lib" in of_macos(dylib("-Wl,-rpath,/opt/lib"))


# ---- Zips, the source distribution, the plugin, sums and the bill ----


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (remove("include/pyflash.h"), "it has no include/pyflash.h"),
        (remove("pyflashTargets.cmake"), "it has no lib/cmake/pyflash/pyflashTargets.cmake"),
        (remove("doc/pyflash/LICENSE"), "it has no share/doc/pyflash/LICENSE"),
        (remove(SO), "it has no lib/libpyflash.so"),
        (add("etc/passwd"), "etc/passwd would be laid outside pyflash-0.1.0-linux-x86_64/"),
        (add("pyflash-0.1.0-linux-x86_64/../a"), "would be laid outside"),
        (add("pyflash-0.1.0-linux-x86_64/notes.txt"), "it has notes.txt beside include, lib, bin and share"),
        (edit(SO, lambda data: data + b"\0/home/a/b.c\0"), "names /home/a/b.c"),
    ],
    ids=["header", "targets", "licence", "library", "outside", "above", "beside", "place"],
)
def test_a_zip(dist: Path, tmp_path: Path, change: Change, sentence: str) -> None:
    name = "pyflash-0.1.0-linux-x86_64.zip"
    files = contents(dist / name)
    change(files)
    assert sentence in told(write(tmp_path / name, files))


def test_names(dist: Path, tmp_path: Path) -> None:
    data = (dist / "pyflash-0.1.0-linux-x86_64.zip").read_bytes()
    (tmp_path / "pyflash-0.1.0-beos.zip").write_bytes(data)
    assert "of a platform that is made" in told(tmp_path / "pyflash-0.1.0-beos.zip")
    (tmp_path / "pyflash.tgz").write_bytes(b"")
    assert told(tmp_path / "pyflash.tgz") == "it is no wheel, no zip and no source distribution"


@pytest.mark.parametrize(
    ("left_out", "more", "sentence"),
    [
        ("/LICENSE", None, "it has no LICENSE"),
        ("/PKG-INFO", None, "it has no PKG-INFO"),
        (None, tarfile.TarInfo("pyflash_llm-0.1.0/build/a.o"), "it has build/a.o, which builds make"),
        (None, tarfile.TarInfo("elsewhere/a"), "elsewhere/a would be laid outside"),
    ],
    ids=["licence", "metadata", "built", "outside"],
)
def test_a_source_distribution(
    dist: Path, tmp_path: Path, left_out: str | None, more: tarfile.TarInfo | None, sentence: str
) -> None:
    name = "pyflash_llm-0.1.0.tar.gz"
    with tarfile.open(dist / name) as old, tarfile.open(tmp_path / name, "w:gz", compresslevel=1) as new:
        for member in old.getmembers():
            if left_out is None or member.name != f"pyflash_llm-0.1.0{left_out}":
                new.addfile(member, old.extractfile(member) if member.isfile() else None)
        if more is not None:
            new.addfile(more)
    assert sentence in told(tmp_path / name)


def test_a_link_in_a_source_distribution(dist: Path, tmp_path: Path) -> None:
    name = "pyflash_llm-0.1.0.tar.gz"
    link = tarfile.TarInfo("pyflash_llm-0.1.0/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / name, "w:gz") as new:
        new.addfile(link)
    assert "link: only files are wanted" in told(tmp_path / name)


def test_the_plugin(tools: None, tmp_path: Path) -> None:
    """Of a library of one function, in place of what nvcc makes."""
    from wheels import zig

    info, name = "pyflash_llm_cuda-0.1.0.dist-info", "pyflash_llm_cuda-0.1.0-py3-none-manylinux_2_28_x86_64.whl"
    (tmp_path / "a.c").write_text("const void *pf_plugin_query(void) { return 0; }\nint other(void) { return 1; }\n")

    def made(*options: str) -> Path:
        command = [zig.program(), "cc", "-target", "x86_64-linux-gnu.2.28", "-shared", "-s", *options, "a.c", "-o", "a.so"]
        subprocess.run(command, cwd=tmp_path, check=True)
        files = {
            "pyflash/lib/libpyflash_cuda.so": (tmp_path / "a.so").read_bytes(),
            f"{info}/METADATA": b"Metadata-Version: 2.4\nName: pyflash-llm-cuda\nVersion: 0.1.0\nLicense-Expression: MIT\n"
                                b"Requires-Python: >=3.10\nRequires-Dist: pyflash-llm\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-manylinux_2_28_x86_64\n",
            f"{info}/licenses/LICENSE": b"MIT", f"{info}/RECORD": b"",
        }  # fmt: skip
        return write(tmp_path / name, with_record(files))

    assert told(made("-Dother=static_other", "-fvisibility=hidden", SHOWN)) == ""
    assert "exports other, which no header declares" in told(made())
    assert "does not export pf_plugin_query" in told(made("-fvisibility=hidden"))
    more = changed_wheel(tmp_path / name, tmp_path, add("pyflash/lib/libcudart.so.13"))
    assert "it has to hold pyflash/lib/libpyflash_cuda.so alone" in told(more)


def test_sums_and_the_bill(tools: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wheels import release

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    one, two = tmp_path / "one.whl", tmp_path / "two.zip"
    one.write_text("1")
    two.write_text("2")
    bill, sums = release.complete(tmp_path, [one, two])
    text = bill.read_text()

    def both() -> list[list[str]]:
        return [release.check(path, tmp_path.iterdir(), VERSION) for path in (sums, bill)]

    assert both() == [[], []] and "pkg:npm/katex@" in text and "pkg:pypi/numpy" in text
    assert release.complete(tmp_path, [one, two]) and bill.read_text() == text
    assert subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path).returncode == 0
    two.write_text("3")
    assert both() == [["it has another digest of two.zip"]] * 2
    two.unlink()
    assert both() == [["it names two.zip, which is not there"]] * 2
    (tmp_path / "three.zip").touch()
    assert both()[0] == ["it does not name three.zip", "it names two.zip, which is not there"]
    assert release.check(bill, tmp_path.iterdir(), "0.2.0")[0] == "it is of version 0.1.0, and the tree of 0.2.0"
    bill.write_text(text.replace('"bomFormat": "CycloneDX"', '"bomFormat": "SPDX"'))
    assert release.check(bill, tmp_path.iterdir(), VERSION)[0].startswith("it is no CycloneDX")
    sums.write_text("no sums\n")
    assert release.check(sums, tmp_path.iterdir(), VERSION) == ["its lines are not those of sha256sum"]
