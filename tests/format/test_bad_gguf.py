"""GGUF files as they should and should not be: what is read from good ones, and that each kind of damage is refused
with its own status and message, without a crash under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import native_build
import numpy as np
import pytest

from . import build_gguf as b
from .build_gguf import Gguf
from .programs import run

OK, FILE, FORMAT, UNSUPPORTED = 0, 2, 3, 4
SEED = 20240607


@pytest.fixture(scope="module")
def driver() -> Path:
    return native_build.build("sanitized", "gguf_driver") / "gguf_driver"


def check(driver: Path, path: Path) -> tuple[int, str, list[str]]:
    """Status, message and the directory's lines of opening path."""
    done = run(driver, "check", path)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    status, _, message = first.partition(" ")
    return int(status), message, lines


# --- good files ---


def test_valid_file(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    for version in (2, 3):
        path.write_bytes(Gguf(version=version).build())
        status, message, lines = check(driver, path)
        assert status == OK, message
        assert lines[0] == "keys 5"
        assert [line.split()[1:5] for line in lines[1:]] == [
            ["output_norm.weight", "0", "32,1,1,1", "128"],
            ["blk.0.attn_kv.weight", "8", "32,2,1,1", "68"],
            ["blk.0.ffn_up_exps.weight", "39", "32,1,2,1", "34"],
        ]


def test_no_tensors_and_trailing_bytes(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    for file in (
        Gguf(tensors=[], data=b"").build(),
        Gguf(tensors=[], keys=[], data=b"").build(),
        Gguf(data=bytes(4096)).build(),
        Gguf(alignment=4096, keys=[b.key("general.alignment", b.U32, 4096)], tensors=[
            b.tensor("a", [8], b.GGML_F32, 4096), b.tensor("b", [8], b.GGML_F32, 0)], data=bytes(4128)).build(),
    ):
        path.write_bytes(file)
        assert check(driver, path)[0] == OK


def write_with_gguf(path: Path, **options: object) -> dict[str, np.ndarray]:
    """A file, or its shards, by the gguf package's own writer."""
    rng = np.random.default_rng(SEED)
    tensors: dict[str, np.ndarray] = {
        "token_embd.weight": rng.standard_normal((5, 64)).astype(np.float32),
        "blk.0.norm.weight": rng.standard_normal(7).astype(np.float32),
        "blk.0.half.weight": rng.standard_normal((3, 2, 32)).astype(np.float16),
        "blk.0.ids": rng.integers(0, 99, (4, 6), dtype=np.int32),
        "blk.0.bytes": rng.integers(-9, 9, (3, 3), dtype=np.int8),
    }
    writer = gguf.GGUFWriter(str(path), "deepseek4", **options)  # type: ignore[arg-type]
    writer.add_uint32("deepseek4.block_count", 2)
    writer.add_array("deepseek4.swiglu_clamp_exp", [10.0, 10.0])
    writer.add_token_list(["a", "b", "\u0120the"])
    writer.add_bool("flag", False)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def words_hash(data: bytes) -> int:
    """pf_gguf_hash of data with seed 0."""
    mask, m = (1 << 64) - 1, 0x9E3779B97F4A7C15
    h = len(data) * m & mask
    whole = len(data) // 8 * 8
    for (word,) in struct.iter_unpack("<Q", data[:whole]):
        h = (h ^ word) * m & mask
        h ^= h >> 29
    h = (h ^ int.from_bytes(data[whole:], "little")) * m & mask
    h = (h ^ h >> 32) * m & mask
    return h ^ h >> 29


def assert_holds(lines: list[str], tensors: dict[str, np.ndarray]) -> None:
    seen = {line.split()[1]: line.split()[2:] for line in lines if line.startswith("tensor")}
    assert seen.keys() == tensors.keys()
    for name, array in tensors.items():
        kind = {"float32": 0, "float16": 1, "int32": 26, "int8": 24}[str(array.dtype)]
        shape = [*reversed(array.shape), 1, 1, 1][:4]
        expected = [str(kind), ",".join(map(str, shape)), str(array.nbytes), f"{words_hash(array.tobytes()):x}"]
        assert seen[name] == expected


def test_reads_what_gguf_writes(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "written.gguf"
    tensors = write_with_gguf(path)
    status, message, lines = check(driver, path)
    assert status == OK, message
    assert_holds(lines, tensors)


def test_reads_shards_that_gguf_writes(driver: Path, tmp_path: Path) -> None:
    tensors = write_with_gguf(tmp_path / "split.gguf", split_max_tensors=2)
    names = sorted(p.name for p in tmp_path.glob("*.gguf"))
    assert names == [f"split-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    status, message, lines = check(driver, tmp_path / names[0])
    assert status == OK, message
    assert_holds(lines, tensors)


# --- damage: one field at a time ---


def with_key(*extra: bytes) -> Gguf:
    return Gguf(keys=[*b.default_keys(), *extra])


def with_tensor(*extra: bytes, data: int = 512) -> Gguf:
    return Gguf(tensors=[*b.default_tensors(), *extra], data=bytes(data))


def many_dims(n: int) -> bytes:
    return b.tensor("x", [1] * min(n, 8), b.GGML_F32, 288, n_dims=n)


BIG = 1 << 63
F32_END = b.tensor("x", [8], b.GGML_F32, 288)
BAD: list[tuple[str, Callable[[], bytes], int, str]] = [
    # not what it claims to be
    ("empty", lambda: b"", FORMAT, "is empty"),
    ("magic", lambda: Gguf(magic=b"GGML").build(), FORMAT, "not a GGUF file"),
    ("one_byte", lambda: b"x", FORMAT, "not a GGUF file"),
    ("zip", lambda: b"PK\3\4" + bytes(100), FORMAT, "not a GGUF file"),
    ("lfs", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0", FORMAT, "git lfs pull"),
    ("version_0", lambda: Gguf(version=0).build(), UNSUPPORTED, "GGUF version 0"),
    ("version_1", lambda: Gguf(version=1).build(), UNSUPPORTED, "GGUF version 1"),
    ("version_4", lambda: Gguf(version=4).build(), UNSUPPORTED, "update pyflash"),
    ("big_endian", lambda: Gguf(version=3 << 24).build(), UNSUPPORTED, "big-endian"),
    # truncated
    ("cut_magic", lambda: b"GGU", FORMAT, "truncated: the file has 3 bytes"),
    ("cut_header", lambda: Gguf().build()[:23], FORMAT, "ends within its header"),
    ("cut_data", lambda: Gguf().build()[:-1], FORMAT, "tensor 'blk.0.ffn_up_exps.weight' needs"),
    ("cut_most_data", lambda: Gguf(data=b"").build(), FORMAT, "needs"),
    ("cut_keys", lambda: Gguf(tensors=[], data=b"").build()[:-3], FORMAT, "truncated"),
    ("fewer_keys", lambda: Gguf(n_keys=6, tensors=[], data=b"").build(), FORMAT, "truncated"),
    # oversized
    ("key_count", lambda: Gguf(n_keys=1 << 62).build(), FORMAT, "claims 4611686018427387904 keys"),
    ("key_count_max", lambda: Gguf(n_keys=2**64 - 1).build(), FORMAT, "keys"),
    ("key_count_by_size", lambda: Gguf(n_keys=50).build(), FORMAT, "claims 50 keys"),
    ("tensor_count_by_size", lambda: Gguf(n_tensors=20).build(), FORMAT, "20 tensors"),
    ("tensor_count", lambda: Gguf(n_tensors=1 << 40).build(), FORMAT, "1099511627776 tensors"),
    ("tensor_count_max", lambda: Gguf(n_tensors=2**64 - 1).build(), FORMAT, "tensors"),
    ("key_name_length", lambda: Gguf(keys=[b.string("k", BIG)]).build(), FORMAT, "claims 9223372036854775808"),
    ("key_name_long", lambda: with_key(b.key("k" * 65536, b.U8, 1)).build(), FORMAT, "65536 bytes"),
    ("key_name_empty", lambda: with_key(b.key("", b.U32, 1)).build(), FORMAT, "0 bytes"),
    ("key_name_zero", lambda: with_key(b.key(b"a\0b", b.U32, 1)).build(), FORMAT, "control character"),
    ("string_length", lambda: with_key(b.string("k") + struct.pack("<IQ", b.STRING, 2**64 - 8)).build(), FORMAT,
     "key 'k' needs more bytes"),
    ("array_count", lambda: with_key(b.array("k", b.F32, [], 1 << 62)).build(), FORMAT, "key 'k' needs more bytes"),
    ("array_count_64", lambda: with_key(b.array("k", b.F64, [], 1 << 61)).build(), FORMAT, "key 'k' needs more bytes"),
    ("array_strings", lambda: with_key(b.array("k", b.STRING, ["a"], 1 << 61)).build(), FORMAT, "key 'k' needs more"),
    ("array_string_length", lambda: with_key(
        b.array("k", b.STRING, [], 2) + b.string("a") + b.string("b", BIG)).build(), FORMAT, "key 'k' needs more"),
    ("tensor_name_long", lambda: with_tensor(b.tensor("n" * 65, [8], 0, 288)).build(), FORMAT, "65 bytes"),
    ("tensor_name_empty", lambda: with_tensor(b.tensor("", [8], 0, 288)).build(), FORMAT, "0 bytes"),
    ("tensor_name_newline", lambda: with_tensor(b.tensor("a\nb", [8], 0, 288)).build(), FORMAT, "control character"),
    # overflowing
    ("dims_product", lambda: with_tensor(b.tensor("x", [1 << 32, 1 << 32], 0, 288)).build(), FORMAT, "too many in all"),
    ("dims_wrap", lambda: with_tensor(b.tensor("x", [32, 1 << 59, 1 << 5], 0, 288)).build(), FORMAT, "too many"),
    ("dims_negative", lambda: with_tensor(b.tensor("x", [2**64 - 32], 0, 288)).build(), FORMAT, "too many in all"),
    ("bytes_wrap", lambda: with_tensor(b.tensor("x", [1 << 62], 0, 288)).build(), FORMAT, "too large to exist"),
    ("rows_wrap", lambda: with_tensor(b.tensor("x", [32, 1 << 57], 0, 288)).build(), FORMAT, "too large to exist"),
    ("offset_wrap", lambda: with_tensor(b.tensor("x", [8], 0, 2**64 - 32)).build(), FORMAT, "impossible offset"),
    ("offset_end", lambda: with_tensor(b.tensor("x", [1 << 60], 0, BIG + (1 << 62))).build(), FORMAT, "impossible"),
    ("offset_far", lambda: with_tensor(b.tensor("x", [8], 0, 1 << 40)).build(), FORMAT, "truncated"),
    ("unknown_type_far", lambda: with_tensor(b.tensor("x", [256], b.GGML_UNKNOWN, 1 << 40)).build(), FORMAT, "at least"),
    # overlapping
    ("overlap_same", lambda: with_tensor(b.tensor("x", [8], 0, 0)).build(), FORMAT, "overlap"),
    ("overlap_inside", lambda: with_tensor(b.tensor("x", [8], 0, 64)).build(), FORMAT, "overlap"),
    ("overlap_end", lambda: with_tensor(b.tensor("x", [8], 0, 256)).build(), FORMAT, "'x' overlap"),
    ("overlap_unknown", lambda: with_tensor(b.tensor("x", [256], b.GGML_UNKNOWN, 288),
                                            b.tensor("y", [256], b.GGML_UNKNOWN, 288)).build(), FORMAT, "overlap"),
    # duplicate
    ("key_twice", lambda: with_key(b.key("deepseek4.block_count", b.U32, 43)).build(), FORMAT,
     "key 'deepseek4.block_count' is there twice"),
    ("key_twice_other_type", lambda: with_key(b.key("deepseek4.block_count", b.STRING, "x")).build(), FORMAT, "twice"),
    ("alignment_twice", lambda: with_key(*2 * [b.key("general.alignment", b.U32, 32)]).build(), FORMAT, "twice"),
    ("tensor_twice", lambda: with_tensor(b.tensor("output_norm.weight", [8], 0, 288)).build(), FORMAT,
     "tensor 'output_norm.weight' is there twice"),
    # cyclic or nested
    ("array_of_arrays", lambda: with_key(
        b.string("k") + struct.pack("<IIQ", b.ARRAY, b.ARRAY, 1) + struct.pack("<IQ", b.U8, 0)).build(), UNSUPPORTED,
     "array of arrays"),
    ("shard_of_itself", lambda: with_key(b.key("split.no", b.U16, 3), b.key("split.count", b.U16, 3)).build(), FORMAT,
     "split.no is 3"),
    # mistyped
    ("key_type", lambda: with_key(b.string("k") + struct.pack("<IQ", 13, 0)).build(), FORMAT, "unknown type 13"),
    ("array_type", lambda: with_key(b.string("k") + struct.pack("<IIQ", b.ARRAY, 99, 0)).build(), FORMAT, "type 99"),
    ("bool_value", lambda: with_key(b.key("k", b.BOOL, 2)).build(), FORMAT, "bool of value 2"),
    ("bool_array", lambda: with_key(b.array("k", b.BOOL, [0, 1, 255])).build(), FORMAT, "bool of value 255"),
    ("alignment_type", lambda: with_key(b.key("general.alignment", b.STRING, "32")).build(), FORMAT, "whole number"),
    ("alignment_array", lambda: with_key(b.array("general.alignment", b.U32, [32])).build(), FORMAT, "whole number"),
    ("alignment_0", lambda: with_key(b.key("general.alignment", b.U32, 0)).build(), FORMAT, "alignment is 0"),
    ("alignment_4", lambda: with_key(b.key("general.alignment", b.U32, 4)).build(), FORMAT, "alignment is 4"),
    ("alignment_48", lambda: with_key(b.key("general.alignment", b.U32, 48)).build(), FORMAT, "alignment is 48"),
    ("alignment_huge", lambda: with_key(b.key("general.alignment", b.U64, 1 << 62)).build(), FORMAT, "alignment is"),
    ("alignment_large", lambda: with_key(b.key("general.alignment", b.U32, 1 << 31)).build(), FORMAT, "alignment"),
    ("split_type", lambda: with_key(b.key("split.count", b.F32, 3.0)).build(), FORMAT, "split.count"),
    ("split_negative", lambda: with_key(b.key("split.no", b.I32, -1)).build(), FORMAT, "split.no"),
    ("split_total", lambda: with_key(b.key("split.tensors.count", b.I32, 4)).build(), FORMAT, "hold 3"),
    ("dims_0", lambda: with_tensor(many_dims(0)).build(), FORMAT, "0 dimensions"),
    ("dims_5", lambda: with_tensor(many_dims(5)).build(), FORMAT, "5 dimensions"),
    ("dims_max", lambda: with_tensor(many_dims(2**32 - 1)).build(), FORMAT, "4294967295 dimensions"),
    ("dim_zero", lambda: with_tensor(b.tensor("x", [8, 0], 0, 288)).build(), FORMAT, "dimension 1 of 0 elements"),
    ("block_rows", lambda: with_tensor(b.tensor("x", [33], b.GGML_Q8_0, 288)).build(), FORMAT, "no multiple of 32"),
    ("block_rows_mxfp4", lambda: with_tensor(b.tensor("x", [16, 2], b.GGML_MXFP4, 288)).build(), FORMAT, "MXFP4"),
    ("misaligned", lambda: with_tensor(b.tensor("x", [8], 0, 292)).build(), FORMAT, "no multiple of the alignment 32"),
]


@pytest.mark.parametrize(("name", "make", "code", "says"), BAD, ids=[case[0] for case in BAD])
def test_refused(
    driver: Path, tmp_path: Path, name: str, make: Callable[[], bytes], code: int, says: str
) -> None:
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(make())
    status, message, _ = check(driver, path)
    assert (status, says in message) == (code, True), message
    assert str(path)[-80:] in message


def test_the_cases_above_stand_on_a_valid_file(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    for file in (with_key(b.key("k", b.U8, 1)), with_tensor(F32_END), with_tensor(many_dims(4)),
                 with_tensor(b.tensor("n" * 64, [8], 0, 288)), with_key(b.key("k" * 65535, b.U8, 1)),
                 with_tensor(b.tensor("x", [256], b.GGML_UNKNOWN, 288)), with_key(b.key("split.count", b.U16, 1))):
        path.write_bytes(file.build())
        status, message, _ = check(driver, path)
        assert status == OK, message


def test_every_truncation_is_refused(driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "good.gguf"
    path.write_bytes(Gguf().build())
    done = run(driver, "prefixes", path)
    assert done.returncode == 0, done.stderr
    assert [int(x) for x in done.stdout.split()] == [path.stat().st_size, 1]


# --- shards ---


def split_keys(no: int, count: int, total: int = 3) -> list[bytes]:
    numbers = {"split.no": (b.U16, no), "split.count": (b.U16, count), "split.tensors.count": (b.I32, total)}
    return [b.key(name, kind, value) for name, (kind, value) in numbers.items()]


def write_shards(folder: Path, **changes: Gguf) -> list[Path]:
    """Three shards of one tensor each; `s1`, `s2`, `s3` replace one."""
    paths = []
    for no in range(3):
        keys = split_keys(no, 3) + (b.default_keys() if no == 0 else [])
        shard = Gguf(keys=keys, tensors=[b.tensor(f"t{no}", [8], b.GGML_F32, 0)], data=bytes(32))
        paths.append(folder / f"m-{no + 1:05}-of-00003.gguf")
        paths[-1].write_bytes(changes.get(f"s{no + 1}", shard).build())
    return paths


def shard(no: int, keys: list[bytes], name: str = "x") -> Gguf:
    return Gguf(keys=keys, tensors=[b.tensor(name, [8], b.GGML_F32, 0)], data=bytes(32))


BAD_SHARDS: list[tuple[str, dict[str, Gguf], int, str]] = [
    ("tensor_twice", {"s3": shard(2, split_keys(2, 3), "t0")}, FORMAT, "tensor 't0' is there twice"),
    ("key_twice", {"s2": shard(1, [*split_keys(1, 3), b.key("general.architecture", b.STRING, "x")])}, FORMAT,
     "key 'general.architecture' is there twice"),
    ("own_key_twice", {"s2": shard(1, split_keys(1, 3) + split_keys(1, 3))}, FORMAT, "key 'split.no' is there twice"),
    ("first_again", {"s2": shard(0, split_keys(0, 3))}, FORMAT, "says it is shard 1 of 3, expected 2 of 3"),
    ("other_count", {"s2": shard(1, split_keys(1, 4))}, FORMAT, "says it is shard 2 of 4"),
    ("no_split_keys", {"s2": shard(1, [])}, FORMAT, "says it is shard 1 of 0"),
    ("total", {"s1": shard(0, split_keys(0, 3, 7))}, FORMAT, "split.tensors.count is 7 but the shards hold 3"),
    ("damaged", {"s3": Gguf(magic=b"GGML")}, FORMAT, "m-00003-of-00003.gguf: is not a GGUF file"),
]


@pytest.mark.parametrize(("name", "changes", "code", "says"), BAD_SHARDS, ids=[case[0] for case in BAD_SHARDS])
def test_bad_shards(driver: Path, tmp_path: Path, name: str, changes: dict[str, Gguf], code: int, says: str) -> None:
    status, message, _ = check(driver, write_shards(tmp_path, **changes)[0])
    assert (status, says in message) == (code, True), message


def test_shard_files(driver: Path, tmp_path: Path) -> None:
    """The right set, extra keys in a later shard, a later shard named, a missing one, and a wrong name."""
    own = [b.key("general.alignment", b.U32, 64), b.key("extra", b.U8, 1)]
    aligned = Gguf(keys=split_keys(1, 3) + own, tensors=[b.tensor("t1", [8], 0, 64)], data=bytes(96), alignment=64)
    paths = write_shards(tmp_path, s2=aligned)
    status, message, lines = check(driver, paths[0])
    assert status == OK, message
    assert lines[0] == "keys 9" and len(lines) == 4
    status, message, _ = check(driver, paths[1])
    assert status == FILE and "is shard 2 of 3: open the first, '...-00001-of-00003.gguf'" in message
    paths[2].unlink()
    status, message, _ = check(driver, paths[0])
    assert status == FILE and "shard 3 of 3 is missing" in message and paths[2].name in message
    renamed = paths[0].rename(tmp_path / "model.gguf")
    status, message, _ = check(driver, renamed)
    assert status == FILE and "must end with '-00001-of-00003.gguf'" in message


# --- mutations ---


def seeds(folder: Path) -> list[Path]:
    """Small valid files that together hold every value type, several alignments and tensor types."""
    every = [b.key(f"k{kind}", kind, 1) for kind in b.PACK] + [b.array(f"a{kind}", kind, [1, 0]) for kind in b.PACK]
    files = [
        Gguf(),
        Gguf(keys=every, tensors=[b.tensor("x", [8, 1, 1, 2], b.GGML_F16, 0)], data=bytes(32)),
        Gguf(keys=[b.key("general.alignment", b.U32, 8), *split_keys(0, 2)], alignment=8, data=bytes(300)),
        Gguf(keys=[], tensors=[b.tensor(f"t{i}", [1], b.GGML_I8, 32 * i) for i in range(20)], data=bytes(640)),
    ]
    paths = [folder / f"seed{i}.gguf" for i in range(len(files) + 1)]
    for path, file in zip(paths, files):
        path.write_bytes(file.build())
    write_with_gguf(paths[-1])
    return paths


def test_mutations(driver: Path, tmp_path: Path) -> None:
    totals = np.zeros(16, np.int64)
    for i, path in enumerate(seeds(tmp_path)):
        done = run(driver, "mutate", path, SEED + i, 5000)
        assert done.returncode == 0, done.stderr
        totals += np.array(done.stdout.split(), np.int64)
    assert totals.sum() == 25000
    assert totals[[OK, FORMAT, UNSUPPORTED]].sum() == 25000, totals  # and nothing else
    assert totals[OK] > 1000 and totals[FORMAT] > 10000 and totals[UNSUPPORTED] > 50, totals


def test_shard_mutations(driver: Path, tmp_path: Path) -> None:
    paths = write_shards(tmp_path)
    done = run(driver, "shards", paths[0], paths[1], SEED, 1500)
    assert done.returncode == 0, done.stderr
    counts = np.array(done.stdout.split(), np.int64)
    assert counts[[OK, FORMAT, UNSUPPORTED]].sum() == 1500, counts
    assert counts[OK] > 50 and counts[FORMAT] > 500, counts
