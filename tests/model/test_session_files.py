"""Session files that were damaged or made up: they are refused and change nothing, or make a session that works."""

from __future__ import annotations

import contextlib
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyflash
import pytest
from tiny_models import TinyModel, make_tiny_model

HEADER = struct.Struct("<8sIiQqqiiQQ")  # magic, version, precision, identity, position, floor, mtp, rows, n, note bytes
ORIGIN = struct.Struct("<32siiq")  # kernels, arithmetic, reserved, foreign tokens
POSITION, FLOOR, N_CHECKPOINT, NOTE_BYTES, N_FOREIGN = 24, 32, 48, 56, 104  # offsets of 8-byte fields
FIELDS = (POSITION, FLOOR, N_CHECKPOINT, NOTE_BYTES, N_FOREIGN)
NUMBERS = (
    -(2**63), -(2**62), -257, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 16, 17, 24, 25, 40, 41, 256, 257, 2**31 - 1, 2**31, 2**32,
    2**40, 2**61, 2**62, 2**63 - 1,
)  # fmt: skip
CONTEXT = 40
ORIGIN_BYTES = 56  # from the name of the kernel set, past the layers, to the first token
NOTE = b"a note of 24 bytes......"
MASK = 2**64 - 1


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(
        tmp_path_factory.mktemp("files"), seed=61, mtp=True, hidden_size=64, num_attention_heads=2, o_groups=1,
        o_lora_rank=32, q_lora_rank=32, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32,
        vocab_size=512, sliding_window=4, index_topk=1, index_n_heads=1, num_hidden_layers=3,
        compress_ratios=[0, 4, 128, 0], num_hash_layers=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny: TinyModel) -> Iterator[Any]:
    """float32 rows: every piece of the file is whole 8-byte words, so the checksum runs over them."""
    with pyflash.Model.open(tiny.path, mtp=tiny.mtp_path, precision="exact", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def good(model: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("good") / "session"
    with model.session(context=CONTEXT) as session:
        for end in (2, 6, 8):
            session.eval(range(session.position, end))
            if end < 8:
                session.checkpoint()
        session.note = NOTE
        session.save(file)
    data = file.read_bytes()
    assert HEADER.unpack_from(data)[4:6] == (8, 0) and HEADER.unpack_from(data)[8:] == (2, len(NOTE))
    assert signed(data[:-8]) == data
    return data


def signed(body: bytes) -> bytes:
    """With the checksum that pf_session_save would write after these words."""
    total = 0
    for word in struct.unpack(f"<{len(body) // 8}Q", body[: len(body) // 8 * 8]):
        total = ((total ^ word) * 0x100000001B3) & MASK
        total ^= total >> 32
    return body + struct.pack("<Q", total)


def load(session: Any, file: Path, data: bytes) -> bool:
    """True when the file was taken; where it was not, nothing has changed."""
    file.write_bytes(data)
    before = (session.position, session.rollback_limit, session.note, session.tokens.tolist())
    try:
        session.load(file)
    except pyflash.Error as error:
        assert not isinstance(error, pyflash.InternalError)
        assert (session.position, session.rollback_limit, session.note, session.tokens.tolist()) == before
        return False
    return True


def use(session: Any) -> None:
    """Goes everywhere that a loaded session can go."""
    assert 0 <= session.rollback_limit <= session.position <= CONTEXT
    assert all(0 <= token < 512 for token in session.tokens)
    if session.position:
        with contextlib.suppress(pyflash.ArgumentError):  # what drafting keeps may be another drafter's
            session.draft(1)
    if session.position < CONTEXT:
        session.eval([1])
    for back in range(1, session.position + 1):
        try:
            session.rollback(back)
        except pyflash.RebuildError:
            continue
        session.eval([2])
        session.checkpoint()
        break
    session.reuse(session.tokens.tolist()[:3] + [4])


def test_any_changed_byte_is_noticed(model: Any, good: bytes, tmp_path: Path) -> None:
    rng = random.Random(1)
    with model.session(context=CONTEXT) as session:
        session.eval([5, 6, 7])
        session.note = b"mine"
        for _ in range(600):
            data = bytearray(good)
            data[rng.choice([rng.randrange(64), rng.randrange(len(data))])] ^= 1 << rng.randrange(8)
            assert not load(session, tmp_path / "session", bytes(data))
        for length in (0, 1, 63, 64, 71, 72, 96, *(rng.randrange(len(good)) for _ in range(100))):
            assert not load(session, tmp_path / "session", good[:length])
        assert load(session, tmp_path / "session", good)


@pytest.mark.parametrize("seed", range(4))
def test_files_with_a_right_checksum_can_do_no_harm(model: Any, good: bytes, tmp_path: Path, seed: int) -> None:
    """Numbers in the header and anywhere else, pieces cut out and doubled, always signed anew."""
    rng = random.Random(seed)
    taken = 0
    with model.session(context=CONTEXT, poison=True, checkpoints=rng.choice([1, 2, 8])) as session:
        for _ in range(300):
            body = bytearray(good[:-8])
            for _ in range(rng.choice([1, 1, 2, 3])):
                kind = rng.randrange(5)
                at = rng.randrange(8, len(body) // 8) * 8
                if kind < 2:
                    struct.pack_into("<q", body, rng.choice(FIELDS), rng.choice(NUMBERS))
                elif kind == 2:
                    struct.pack_into("<q", body, at, rng.choice(NUMBERS))
                elif kind == 3:
                    struct.pack_into("<f", body, at, rng.choice([float("nan"), float("inf"), -1e38, 0.0]))
                else:
                    piece = body[at : at + 8 * rng.randrange(1, 100)]
                    body[at : at + rng.choice([0, len(piece)])] = rng.choice([piece, b""])
            if load(session, tmp_path / "session", signed(bytes(body))):
                taken += 1
                use(session)
    assert 20 < taken < 280


def test_positions_of_checkpoints_are_checked(model: Any, good: bytes, tmp_path: Path) -> None:
    """Both headers of the good file, found as the only places that hold their two numbers."""
    first, second = struct.pack("<qq", 2, 0), struct.pack("<qq", 6, 0)
    at = good.index(model.info.cpu_isa.encode()) + ORIGIN_BYTES  # before it small numbers stand too
    assert good.count(first, at) == 1 and good.count(second, at) == 1
    with model.session(context=CONTEXT) as session:
        for header, (position, floor) in (
            (first, (6, 0)), (second, (2, 0)), (second, (9, 0)), (second, (6, 7)), (second, (6, -1)),
            (second, (-1, -1)), (second, (2**62, 2**62 - 1)), (second, (2**63 - 1, -(2**63))),
        ):  # fmt: skip
            changed = good[:at] + good[at:-8].replace(header, struct.pack("<qq", position, floor))
            assert not load(session, tmp_path / "session", signed(changed))
        assert load(session, tmp_path / "session", good)


def test_files_of_earlier_formats_are_read(tiny: TinyModel, tmp_path: Path) -> None:
    """Format 3 names no layers and has no part for a drafter, and format 2 not what computed it either: both are of whole
    models."""
    with pyflash.Model.open(tiny.path, precision="exact", threads=1) as model, model.session(context=CONTEXT) as session:
        session.eval(range(8))
        session.note = NOTE
        session.save(tmp_path / "saved")
        data = (tmp_path / "saved").read_bytes()
        layers, note = HEADER.size + ORIGIN.size, len(data) - 8 - len(NOTE)
        drafts = struct.pack("<Qqq", 0, 0, 0)
        assert data[note - len(drafts) : note] == drafts
        for version, end, begin in ((4, layers + 8, note), (3, layers, note - len(drafts)), (2, HEADER.size, note - len(drafts))):
            body = bytearray(data[:end] + data[layers + 8 : begin] + data[note:-8])
            struct.pack_into("<I", body, 8, version)
            assert load(session, tmp_path / "session", signed(bytes(body))), version
            assert (session.position, session.note) == (8, NOTE)
            session.eval([1, 2])
            session.rollback(2)


def test_files_of_other_layers_are_refused(model: Any, good: bytes, tmp_path: Path) -> None:
    with model.session(context=CONTEXT) as session:
        for first, end in ((0, 2), (1, 3), (0, 4), (-1, 3), (2**31 - 1, -(2**31))):
            body = bytearray(good[:-8])
            struct.pack_into("<ii", body, HEADER.size + ORIGIN.size, first, end)
            (tmp_path / "session").write_bytes(signed(bytes(body)))
            with pytest.raises(pyflash.ArgumentError, match=r"this session \[0, 3\)"):
                session.load(tmp_path / "session")
            assert session.position == 0
