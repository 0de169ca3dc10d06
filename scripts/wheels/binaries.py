"""What a built library is, read from the file itself: ELF, Mach-O and PE, by LIEF."""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass, field

import lief

from wheels.targets import Arch, Format

lief.logging.disable()

_ARCHS: dict[str, Arch] = {"X86_64": "x86_64", "AMD64": "x86_64", "AARCH64": "arm64", "ARM64": "arm64"}


@dataclass
class Binary:
    """A shared library. Names of exports are as C writes them."""

    format: Format
    arch: Arch | None  # None: another one
    exports: set[str]
    needed: list[str]
    code: bytes  # the instructions
    data: bytes  # the whole file
    versions: dict[str, tuple[int, ...]] = field(default_factory=dict)  # ELF: "GLIBC": the newest that it needs
    run_paths: list[str] = field(default_factory=list)
    install_name: str | None = None  # ELF: the soname
    minimum: tuple[int, ...] | None = None  # Mach-O: the first macOS
    faults: list[str] = field(default_factory=list)  # of the format itself, in words


def read(data: bytes) -> Binary:
    """Raises ValueError where it is none of the three formats."""
    parsed = lief.parse(list(data))
    if isinstance(parsed, lief.ELF.Binary):
        return _elf(parsed, data)
    if isinstance(parsed, lief.MachO.Binary):
        return _macho(parsed, data)
    if isinstance(parsed, lief.PE.Binary):
        return _pe(parsed, data)
    raise ValueError("it is neither ELF nor Mach-O nor PE")


def _arch(machine: object) -> Arch | None:
    return _ARCHS.get(str(machine).rpartition(".")[2].upper())


def _text(parsed: lief.ELF.Binary | lief.MachO.Binary | lief.PE.Binary, name: str) -> bytes:
    section = parsed.get_section(name)
    return bytes(section.content) if section is not None else b""


def _elf(parsed: lief.ELF.Binary, data: bytes) -> Binary:
    faults = []
    tags = {entry.tag for entry in parsed.dynamic_entries}
    if not parsed.has_nx:
        faults.append("its stack is executable")
    if lief.ELF.DynamicEntry.TAG.TEXTREL in tags:
        faults.append("its code has to be changed when it is loaded (TEXTREL)")
    if lief.ELF.Segment.TYPE.GNU_RELRO not in {segment.type for segment in parsed.segments}:
        faults.append("its relocated data stay writable (no RELRO)")
    if any(section.name.startswith(".debug") for section in parsed.sections):
        faults.append("it holds notes for a debugger")
    names: dict[str, tuple[int, ...]] = {}
    for requirement in parsed.symbols_version_requirement:
        for auxiliary in requirement.get_auxiliary_symbols():
            family, _, number = auxiliary.name.partition("_")
            version = tuple(int(part) for part in re.findall(r"\d+", number))
            names[family] = max(names.get(family, ()), version)
    exported = {symbol.name for symbol in parsed.exported_symbols}
    soname = parsed.get(lief.ELF.DynamicEntry.TAG.SONAME)
    run_paths = [entry for tag in (lief.ELF.DynamicEntry.TAG.RPATH, lief.ELF.DynamicEntry.TAG.RUNPATH)
                 if (found := parsed.get(tag)) is not None for entry in found.paths]  # fmt: skip
    needed = [str(name) for name in parsed.libraries]
    return Binary("elf", _arch(parsed.header.machine_type), exported, needed, _text(parsed, ".text"), data, names, run_paths,
                  soname.name if soname is not None else None, None, faults)  # fmt: skip


def _macho(parsed: lief.MachO.Binary, data: bytes) -> Binary:
    minimum = None
    if parsed.build_version is not None:
        minimum = tuple(parsed.build_version.minos)
    elif parsed.version_min is not None:
        minimum = tuple(parsed.version_min.version)
    own = [library.name for library in parsed.libraries if library.command == lief.MachO.LoadCommand.TYPE.ID_DYLIB]
    needed = [library.name for library in parsed.libraries if library.command != lief.MachO.LoadCommand.TYPE.ID_DYLIB]
    faults = []
    if parsed.header.file_type != lief.MachO.Header.FILE_TYPE.DYLIB:
        faults.append("it is no dynamic library")
    told = signature_fault(parsed, data)
    if told is not None:
        faults.append(told)
    trie = parsed.dyld_exports_trie or parsed.dyld_info
    exported = {export.symbol.name.removeprefix("_") for export in trie.exports if export.has_symbol} if trie is not None else set()
    exported -= {"__dso_handle", "_mh_dylib_header"}  # zig's linker gives them to every library
    return Binary("macho", _arch(parsed.header.cpu_type), exported, needed, _text(parsed, "__text"), data, {},
                  [path.path for path in parsed.rpaths], own[0] if own else None, minimum, faults)  # fmt: skip


def signature_fault(parsed: lief.MachO.Binary, data: bytes) -> str | None:
    """What is wrong with the ad-hoc signature, in which every page has to have its digest. macOS runs nothing without one on arm64."""
    if not parsed.has_code_signature:
        return "it is not signed" if _arch(parsed.header.cpu_type) == "arm64" else None
    command = parsed.code_signature
    blob = data[command.data_offset : command.data_offset + command.data_size]
    magic, _, count = struct.unpack_from(">III", blob)
    offsets = dict(struct.unpack_from(">II", blob, 12 + 8 * index) for index in range(count)) if magic == 0xFADE0CC0 else {}
    if 0 not in offsets:
        return "its signature has no code directory"
    directory = blob[offsets[0] :]
    (magic, _, _, _, hashes, _, _, n_pages, limit, size, kind, _, page) = struct.unpack_from(">9I4B", directory)
    if magic != 0xFADE0C02 or kind != 2 or size != 32:
        return "its signature is none of SHA-256"
    if limit != command.data_offset:
        return "its signature does not cover the file up to itself"
    for index, start in enumerate(range(0, limit, 1 << page)):
        digest = hashlib.sha256(data[start : min(start + (1 << page), limit)]).digest()
        if index >= n_pages or directory[hashes + size * index :][:size] != digest:
            return f"its signature does not fit what is at byte {start}"
    return None


def _pe(parsed: lief.PE.Binary, data: bytes) -> Binary:
    faults = []
    if not parsed.header.has_characteristic(lief.PE.Header.CHARACTERISTICS.DLL):
        faults.append("it is no DLL")
    for name in ("DYNAMIC_BASE", "NX_COMPAT"):
        if not parsed.optional_header.has(getattr(lief.PE.OptionalHeader.DLL_CHARACTERISTICS, name)):
            faults.append(f"it lacks {name}")
    exported = {symbol.name for symbol in parsed.exported_functions}
    needed = [str(name) for name in parsed.libraries]
    return Binary("pe", _arch(parsed.header.machine), exported, needed, _text(parsed, ".text"), data, faults=faults)


# ---- Which kernel sets are in it: the instructions that only they have ----


def _bytes(match: int, mask: int) -> bytes:
    """A class for a pattern: the bytes that are `match` under `mask`."""
    return b"[" + b"".join(re.escape(bytes([value])) for value in range(256) if value & mask == match) + b"]"


def _vex(pp: int, opcodes: bytes, *, is_256: bool) -> re.Pattern[bytes]:
    """An instruction of the map 0F38 with the three-byte VEX prefix, W0."""
    return re.compile(b"\xc4" + _bytes(2, 0x1F) + _bytes(pp | 4 * is_256, 0x87) + b"[" + re.escape(opcodes) + b"]", re.DOTALL)


def _evex_512(opcodes: bytes) -> re.Pattern[bytes]:
    """The same with the EVEX prefix, for 512 bits and the prefix 66."""
    return re.compile(
        b"\x62" + _bytes(2, 0x0F) + _bytes(5, 0x87) + _bytes(0x40, 0x60) + b"[" + re.escape(opcodes) + b"]", re.DOTALL
    )


_X86 = {
    "avx2": _vex(1, b"\xb8", is_256=True),  # vfmadd231ps
    "avxvnni": _vex(1, b"\x50\x52", is_256=True),  # vpdpbusd, vpdpwssd
    "avx512": _evex_512(b"\x50\x52"),
    "avx512 vbmi": _evex_512(b"\x8d\x75\x7d"),  # vpermb, vpermi2b, vpermt2b
    "amx": _vex(3, b"\x5e", is_256=False),  # tdpbssd
}
_ARM = {"dotprod": (0x4E809400, 0xFFE0FC00), "i8mm": (0x4E80A400, 0xFFE0FC00)}  # sdot, smmla: (value, mask)


def kernel_sets(binary: Binary) -> set[str]:
    """Of avx2, avxvnni, avx512, avx512 vbmi, amx or of dotprod, i8mm: those whose instructions are in the file."""
    if binary.arch == "x86_64":
        return {name for name, pattern in _X86.items() if pattern.search(binary.code)}
    words = [word for (word,) in struct.iter_unpack("<I", binary.code[: len(binary.code) // 4 * 4])]
    return {name for name, (value, mask) in _ARM.items() if any(word & mask == value for word in words)}
