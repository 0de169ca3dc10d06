"""Drafts change no bit: neither what is generated nor the session, wherever it stands and whatever is drafted; and the
comparison that says so finds what may go wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from pyflash.engine import generation, session as session_module, speculation
from pyflash.engine.drafts import DsparkDrafter, MtpDrafter, NgramDrafter
from pyflash.engine.speculation import Choosing, Speculation
from spark_models import make_spark_model
from tiny_models import TinyModel, make_tiny_model

N_VOCAB = 512
CACHES = ("reference", "f16", "f32")
LENGTHS = (1, 2, 5, 16, 31)
EDGES = (255, 256, 257, 383, 384, 385, 511, 512, 513)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(
        tmp_path_factory.mktemp("speculation"), seed=81, dense="q8_0", mtp=True, hidden_size=64, num_attention_heads=2,
        o_groups=1, o_lora_rank=32, q_lora_rank=32, n_routed_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=32, vocab_size=N_VOCAB, sliding_window=48, index_topk=20, index_n_heads=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tiny: TinyModel) -> Iterator[pyflash.Model]:
    with pyflash.Model.open(tiny.path, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def with_mtp(tiny: TinyModel) -> Iterator[pyflash.Model]:
    with pyflash.Model.open(tiny.path, mtp=tiny.mtp_path, threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def with_dspark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pyflash.Model]:
    spark = make_spark_model(
        tmp_path_factory.mktemp("dspark"), seed=82, dense="q8_0", hidden_size=64, num_attention_heads=2, o_groups=1,
        o_lora_rank=32, q_lora_rank=32, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32,
        vocab_size=N_VOCAB, sliding_window=48, index_topk=20, index_n_heads=2,
    )  # fmt: skip
    with spark.open(threads=1) as opened:
        yield opened


class Wrong:
    """Proposes k tokens of a known continuation, that at place j of each draft replaced by another one; j = k: none."""

    def __init__(self, known: Sequence[int], start: int, k: int, j: int) -> None:
        self.known, self.start, self.k, self.j = list(known), start, k, j

    def __call__(self, tokens: Sequence[int], most: int) -> list[int]:
        at = len(tokens) - self.start
        drafted = self.known[at : at + min(self.k, most)]
        if self.j < len(drafted):
            drafted[self.j] = (drafted[self.j] + 1) % N_VOCAB
        return drafted


@dataclass
class Drafted:
    """What drafting did in a whole test: one in which nothing is kept, or nothing dropped, has tested nothing."""

    kept: int = 0
    dropped: int = 0

    def add(self, stats: speculation.DraftStats) -> None:
        self.kept += stats.n_kept
        self.dropped += stats.n_drafted - stats.n_kept

    def check(self) -> None:
        assert self.kept > 20 and self.dropped > 20, self


@dataclass
class Outcome:
    """All that a generation gives and leaves behind."""

    pieces: list[Any]
    positions: list[int]
    tokens: bytes
    limit: int
    state: bytes
    after: bytes
    error: str = ""


def state_of(session: pyflash.Session, file: Path) -> bytes:
    file = file.with_name(f"{file.name}{id(session)}")  # each saves to its own
    session.save(file)
    return file.read_bytes()


def outcome(session: pyflash.Session, pieces: generation.Generation, file: Path, stop_after: int | None = None) -> Outcome:
    """Takes pieces, at most stop_after of them, and then looks at the session, and at the logits of a further token."""
    seen, positions, error = [], [], ""
    try:
        for piece in pieces:
            seen.append((piece.token, piece.text, np.float32(piece.logprob).tobytes(), piece.finish, piece.top))
            positions.append(session.position)
            assert len(session.tokens) == session.position
            if stop_after is not None and len(seen) == stop_after:
                break
    except pyflash.Error as caught:
        error = f"{type(caught).__name__}: {caught}"
    pieces.close()
    tokens, limit = session.tokens.tobytes(), session.rollback_limit
    state = state_of(session, file)
    after = session.eval([3]).tobytes() if session.position < session.capacity else b""
    return Outcome(seen, positions, tokens, limit, state, after, error)


def same(drafted: Outcome, plain: Outcome) -> None:
    assert drafted.pieces == plain.pieces and drafted.error == plain.error
    assert drafted.positions == plain.positions and drafted.tokens == plain.tokens and drafted.limit == plain.limit
    assert drafted.after == plain.after, "the next logits are others"
    assert drafted.state == plain.state, "the session is another"


# -- forced drafts ------------------------------------------------------------------------------------------------------


def test_forced_drafts_at_every_residue(model: pyflash.Model, tiny: TinyModel, tmp_path: Path) -> None:
    """Each length, each place of the wrong token, from each position of a window and of a compressed row, over the ends of
    the rings, for each type of cache."""
    chance = random.Random(1)
    text = tiny.tokens(640, seed=5)
    drafted, n_undrafted = Drafted(), 0
    cases = [(k, j) for k in LENGTHS for j in range(k + 1)]
    starts = [*range(1, 129), *EDGES]
    chance.shuffle(starts)
    assert len(starts) >= 2 * len(cases)  # so that each case comes twice, and more
    sessions = {cache: model.session(context=640, chunk=40, cache=cache, poison=True) for cache in CACHES}
    for number, start in enumerate(starts):
        k, j = cases[number % len(cases)]
        session = sessions[CACHES[number % 3]]
        options = {"max_tokens": min(k + 4, 24) if number % 4 else k + 2, "seed": number, "temperature": 1.0}
        session.rollback(session.position)
        session.eval(text[: start - 1]) if start > 1 else None
        plain = outcome(session, session.generate(text[start - 1 : start], draft="off", **options), tmp_path / "a")
        known = [piece[0] for piece in plain.pieces]
        session.rollback(session.position)
        session.eval(text[: start - 1]) if start > 1 else None
        pieces = session.generate(text[start - 1 : start], draft=Wrong(known, start, k, j), draft_max=k, **options)
        same(outcome(session, pieces, tmp_path / "a"), plain)
        n_undrafted += pieces.drafts.n_drafted == 0  # where the end token comes at once
        drafted.add(pieces.drafts)
    drafted.check()
    assert n_undrafted < 5
    for session in sessions.values():
        session.close()


def test_drafts_up_to_the_context_end(model: pyflash.Model, tiny: TinyModel, tmp_path: Path) -> None:
    text = tiny.tokens(90, seed=6)
    drafted = Drafted()
    for k in LENGTHS:
        with model.session(context=100, chunk=40, poison=True) as session:
            plain = outcome(session, session.generate(text, draft="off", seed=k), tmp_path / "a")
            known = [piece[0] for piece in plain.pieces]
            for j in range(0, k + 1, 2):
                session.rollback(session.position)
                pieces = session.generate(text, draft=Wrong(known, 90, k, j), seed=k)
                same(outcome(session, pieces, tmp_path / "a"), plain)
                drafted.add(pieces.drafts)
    assert plain.pieces[-1][3] == "length"
    drafted.check()


def test_generation_that_is_left_at_any_place(model: pyflash.Model, tiny: TinyModel, tmp_path: Path) -> None:
    """Closed between the tokens of a step: the session has what was yielded; what goes on from there is the same."""
    text = tiny.tokens(130, seed=7)
    with model.session(context=300, chunk=64, poison=True) as session:
        known = [piece.token for piece in session.generate(text, max_tokens=20, draft="off", seed=4)]
        for n in range(1, 14):
            both = []
            for draft in ("off", Wrong(known, 130, 5, 4)):
                session.rollback(session.position)
                pieces = session.generate(text, max_tokens=20, draft=draft, seed=4)
                both.append(outcome(session, pieces, tmp_path / "a", stop_after=n))
            same(both[1], both[0])


def test_a_step_survives_being_looked_at_and_nothing_else(model: pyflash.Model, tiny: TinyModel, tmp_path: Path) -> None:
    """Between tokens of one step the session may be saved and checkpointed; whoever moves it ends the generation."""
    text = tiny.tokens(40, seed=8)
    with model.session(context=200, chunk=64, poison=True) as session:
        known = [piece.token for piece in session.generate(text, max_tokens=12, draft="off", seed=4)]
        session.rollback(session.position)
        tokens = []
        pieces = session.generate(text, max_tokens=12, draft=Wrong(known, 40, 5, 5), seed=4)
        for piece in pieces:
            tokens.append(piece.token)
            session.checkpoint()
            session.save(tmp_path / "a")
            session.align(text)
        assert tokens == known and pieces.drafts.n_steps == 2
        for move in (lambda: session.rollback(1), lambda: session.load(tmp_path / "a"), lambda: session.eval([1])):
            session.rollback(session.position)
            pieces = session.generate(text, max_tokens=12, draft=Wrong(known, 40, 5, 5), seed=4)
            assert [next(pieces).token for _ in range(3)] == known[:3]
            move()
            with pytest.raises(pyflash.BusyError):
                next(pieces)


def test_cancelled_between_tokens_and_within_a_step(model: pyflash.Model, tiny: TinyModel, tmp_path: Path) -> None:
    text = tiny.tokens(40, seed=9)
    with model.session(context=200, chunk=64, poison=True) as session:
        known = [piece.token for piece in session.generate(text, max_tokens=12, draft="off", seed=4)]
        for n in range(1, 8):
            both = []
            for draft in ("off", Wrong(known, 40, 4, 4)):
                session.rollback(session.position)
                pieces = session.generate(text, max_tokens=12, draft=draft, seed=4)
                for _ in range(n):
                    next(pieces)
                pieces.cancel()
                with pytest.raises(pyflash.CancelledError):
                    next(pieces)
                assert session.position == 40 + n - 1
                both.append(outcome(session, pieces, tmp_path / "a"))
            same(both[1], both[0])


def test_watched_sessions_see_no_drafts(model: pyflash.Model, tiny: TinyModel) -> None:
    text = tiny.tokens(20, seed=10)
    with model.session(context=100) as session:
        known = [piece.token for piece in session.generate(text, max_tokens=6, draft="off", seed=4)]
        session.rollback(session.position)
        seen: list[int] = []
        session.set_tap(lambda name, layer, position, value: seen.append(position) if name == "embed" else None)
        pieces = session.generate(text, max_tokens=6, draft=Wrong(known, 20, 5, 2), seed=4)
        assert [piece.token for piece in pieces] == known and seen == list(range(25))


# -- streams ------------------------------------------------------------------------------------------------------------


class Forced:
    """A drafter's proposals as they come, whatever they are worth."""

    def __init__(self, drafter: Any, k: int) -> None:
        self._drafter, self._k = drafter, k
        self.begin, self.feed = drafter.begin, drafter.feed

    def propose(self, most: int) -> Sequence[int]:
        return self._drafter.propose(min(most, self._k)).tokens

    def took(self, n_rows: int, seconds: float) -> None:
        pass


class Guessing:
    """Tokens of the text so far, drawn at random."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def __call__(self, tokens: Sequence[int], most: int) -> list[int]:
        return [self._chance.choice(tokens) for _ in range(self._chance.randint(0, min(most, 6)))]


def random_options(chance: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {"seed": chance.getrandbits(40), "temperature": chance.choice([0, 0, 0.2, 0.5, 1, 1.5])}
    for name, values in (("top_k", [0, 1, 3, 40]), ("top_p", [0.3, 0.8, 1.0]), ("min_p", [0.0, 0.02, 0.3]),
                         ("repetition_penalty", [0.9, 1.0, 1.2]), ("frequency_penalty", [-0.5, 0.3]),
                         ("presence_penalty", [0.5, 2.0]), ("penalty_last_n", [0, 5, 64, -1]),
                         ("logprobs", [0, 1, 5])):
        if chance.random() < 0.4:
            options[name] = chance.choice(values)
    return options


def drafts_of(kind: str, session: pyflash.Session, known: list[int], start: int, chance: random.Random) -> Speculation:
    k = chance.choice([1, 2, 3, 5, 8, 20])
    if kind == "ngram":
        return Speculation(session, Forced(NgramDrafter(), k), 31)  # type: ignore[arg-type]
    if kind == "mtp":
        return Speculation(session, Forced(MtpDrafter(session), 2), 31)  # type: ignore[arg-type]
    if kind == "dspark":
        return Speculation(session, Forced(DsparkDrafter(session), chance.choice([1, 2, 5])), 31)  # type: ignore[arg-type]
    if kind == "auto":
        return speculation.speculation(session, "auto", None)
    if kind == "oracle":
        return speculation.speculation(session, Wrong(known, start, k, chance.randint(0, k)), None)
    return speculation.speculation(session, Guessing(chance.getrandbits(30)), None)


def random_grammar(chance: random.Random) -> pyflash.Grammar | None:
    schema = {"type": "array", "items": {"type": "integer"}, "maxItems": chance.randint(1, 4)}
    return pyflash.Grammar.json_schema(schema) if chance.random() < 0.2 else None


def compare_streams(models: Sequence[pyflash.Model], tiny: TinyModel, folder: Path, n: int, seed: int,
                    kinds: Sequence[str] = ("ngram", "mtp", "oracle", "random", "auto")) -> None:
    chance = random.Random(seed)
    drafted = {kind: Drafted() for kind in kinds}
    sessions = [model.session(context=260, chunk=48, cache=CACHES[i % 3], poison=True) for i, model in enumerate(models)]
    for _ in range(n):
        kind = chance.choice(list(drafted))
        of_kind = [each for each in sessions if each.model.info.drafts == kind]
        session = of_kind[0] if of_kind else chance.choice(sessions)
        start = chance.choice([3, 20, 47, 60, 127])
        prompt = np.tile(tiny.tokens(max(3, start // 3), chance.getrandbits(20)), 3)[:start]
        options = random_options(chance)
        if kind == "ngram":
            options["frequency_penalty"] = chance.choice([-2, -4])  # it repeats itself
        limit, stop = chance.choice([1, 2, 5, 12, 30]), chance.choice([(), (), ["e"], ["12", "st"]])
        stop_after = chance.choice([None, None, None, 3, 6])
        grammar, n_top = random_grammar(chance), options.pop("logprobs", 0)
        grammar_again = grammar

        def run(drafts: Speculation) -> tuple[Outcome, speculation.DraftStats]:
            session.rollback(session.position)
            pieces = generation.generate(session, prompt, limit, stop, n_top, grammar_again, None, drafts, options)
            return outcome(session, pieces, folder / "state", stop_after), pieces.drafts

        plain, _ = run(speculation.speculation(session, "off", None))
        session.rollback(session.position)
        again, stats = run(drafts_of(kind, session, [piece[0] for piece in plain.pieces], len(prompt), chance))
        if session.model.info.has_mtp:  # whose latest row in its block is computed with a guess of the token to come
            again.state = plain.state
        same(again, plain)
        drafted[kind].add(stats)
    print(drafted)
    for kind in kinds:
        if kind in ("ngram", "oracle"):
            drafted[kind].check()
        elif kind != "auto":
            assert drafted[kind].dropped > 20  # at random, or of random weights: hardly ever right
    for session in sessions:
        session.close()


def test_random_streams(model: pyflash.Model, with_mtp: pyflash.Model, tiny: TinyModel, tmp_path: Path) -> None:
    compare_streams([model, model, with_mtp], tiny, tmp_path, 300, seed=1)


def test_random_streams_with_dspark(with_dspark: pyflash.Model, tiny: TinyModel, tmp_path: Path) -> None:
    compare_streams([with_dspark], tiny, tmp_path, 80, seed=3, kinds=("dspark", "oracle"))


@pytest.mark.long
def test_many_random_streams(model: pyflash.Model, with_mtp: pyflash.Model, with_dspark: pyflash.Model, tiny: TinyModel,
                             tmp_path: Path) -> None:
    compare_streams([model, model, with_mtp], tiny, tmp_path, 2000, seed=2)
    compare_streams([with_dspark], tiny, tmp_path, 500, seed=4, kinds=("dspark", "oracle", "random", "auto"))


def test_two_sessions_take_turns(model: pyflash.Model, tiny: TinyModel) -> None:
    texts = [tiny.tokens(50, seed=30 + i) for i in range(2)]
    with model.session(context=120) as one, model.session(context=120) as two:
        sessions = (one, two)
        known = [[piece.token for piece in session.generate(text, max_tokens=30, draft="off", seed=i)]
                 for i, (session, text) in enumerate(zip(sessions, texts))]
        for session in sessions:
            session.rollback(session.position)
        both = [session.generate(text, max_tokens=30, draft=Wrong(known[i], 50, 4, 2 + i), seed=i)
                for i, (session, text) in enumerate(zip(sessions, texts))]
        tokens = [(a.token, b.token) for a, b in zip(*both)]
        assert tokens == list(zip(*known))


# -- the MTP block's chain ----------------------------------------------------------------------------------------------


def test_a_chain_begins_with_the_draft(with_mtp: pyflash.Model, tiny: TinyModel) -> None:
    """Its first token is that of draft(), with its probability; more are the same however many are asked for; the session
    is not moved, and nothing that it drafts later changes."""
    text = tiny.tokens(200, seed=12)
    with with_mtp.session(context=220, chunk=60, poison=True) as session:
        for position in (1, 2, 47, 48, 49, 127, 200):
            session.eval(text[session.position : position])
            logits = session.draft(7).astype(np.float64)
            tokens, chances = session.draft_tokens(7, 4)
            assert tokens[0] == int(np.argmax(logits))
            assert chances[0] == pytest.approx(np.exp(logits.max() - np.log(np.exp(logits).sum())), rel=1e-5)
            assert session.draft_tokens(7, 2) == (tokens[:2], chances[:2]) and session.position == position
            assert np.array_equal(session.draft(7), logits)
        with pytest.raises(pyflash.ArgumentError):
            session.draft_tokens(7, 61)


def test_a_chain_lets_go_of_what_is_ahead(with_mtp: pyflash.Model, tiny: TinyModel) -> None:
    text = tiny.tokens(40, seed=13)
    with with_mtp.session(context=60, poison=True) as session:
        session.eval(text[:20])
        session.eval_ahead(text[20:25])
        assert session.advance() and session.position == 22
        session.draft_tokens(5, 2)
        assert not session.advance() and session.position == 22


# -- faults that the comparison must find -------------------------------------------------------------------------------


def row_off_by_one(patch: pytest.MonkeyPatch) -> None:
    ahead = pyflash.Session.eval_ahead
    patch.setattr(pyflash.Session, "eval_ahead", lambda self, tokens, **rest: np.roll(ahead(self, tokens, **rest), 1, 0))


def nothing_dropped(patch: pytest.MonkeyPatch) -> None:
    """All that was evaluated is kept."""
    ahead = pyflash.Session.eval_ahead

    def keeping(self: pyflash.Session, tokens: Any, **rest: Any) -> Any:
        rows = ahead(self, tokens, **rest)
        for _ in tokens[1:]:
            self.advance()
        return rows

    patch.setattr(pyflash.Session, "eval_ahead", keeping)


def one_too_few_kept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pyflash.Session, "advance", lambda self: True)


def draft_taken_unseen(patch: pytest.MonkeyPatch) -> None:
    """A drafted token that is not the one that is picked is gone on with."""
    class Agreeing(int):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    drafted = Speculation._drafted
    patch.setattr(Speculation, "_drafted", lambda self, left: [Agreeing(each) for each in drafted(self, left)])


def stale_row(patch: pytest.MonkeyPatch) -> None:
    """The first token's rows and what compressors have of it are another token's; all that is told is right."""
    ahead = pyflash.Session.eval_ahead

    def stale(self: pyflash.Session, tokens: Any, **rest: Any) -> Any:
        rows = ahead(self, tokens, **rest)
        self.rollback(1)
        ahead(self, [(tokens[0] + 1) % N_VOCAB, *tokens[1:]], **rest)
        return rows

    patch.setattr(pyflash.Session, "eval_ahead", stale)


def rejected_tokens_drawn(patch: pytest.MonkeyPatch) -> None:
    """The generator of random numbers goes on for tokens that are dropped, too, and the penalties see them."""
    ahead = pyflash.Session.eval_ahead
    samplers: list[Any] = []
    made = generation.Sampler.__init__

    def remember(self: Any, options: Any) -> None:
        made(self, options)
        samplers.append(self)

    def drawing(self: pyflash.Session, tokens: Any, **rest: Any) -> Any:
        rows = ahead(self, tokens, **rest)
        samplers[-1].pick(rows[-1])
        return rows

    patch.setattr(generation.Sampler, "__init__", remember)
    patch.setattr(pyflash.Session, "eval_ahead", drawing)


def rejected_tokens_penalised(patch: pytest.MonkeyPatch) -> None:
    ahead = pyflash.Session.eval_ahead
    samplers: list[Any] = []
    accept = generation.Sampler.accept

    def remember(self: Any, tokens: Any) -> None:
        accept(self, tokens)
        samplers.append(self)

    def accepting(self: pyflash.Session, tokens: Any, **rest: Any) -> Any:
        accept(samplers[-1], tokens[1:])
        return ahead(self, tokens, **rest)

    patch.setattr(generation.Sampler, "accept", remember)
    patch.setattr(pyflash.Session, "eval_ahead", accepting)


def rolled_back_afterwards(patch: pytest.MonkeyPatch) -> None:
    """Everything is evaluated and kept, and what is wrong dropped then: right, but the session can go back less far."""
    ahead = pyflash.Session.eval_ahead

    def rolling(self: pyflash.Session, tokens: Any, **rest: Any) -> Any:
        rows = ahead(self, tokens, **rest)
        advanced = sum(self.advance() for _ in tokens[1:])
        self.rollback(advanced)
        return rows

    patch.setattr(pyflash.Session, "eval_ahead", rolling)


FAULTS = [row_off_by_one, nothing_dropped, one_too_few_kept, draft_taken_unseen, stale_row, rejected_tokens_drawn,
          rejected_tokens_penalised, rolled_back_afterwards]


@pytest.mark.parametrize("fault", [None, *FAULTS], ids=lambda fault: fault.__name__ if fault else "none")
def test_faults_are_found(model: pyflash.Model, tiny: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                          fault: Callable[[pytest.MonkeyPatch], None] | None) -> None:
    text = tiny.tokens(300, seed=20)
    options: dict[str, Any] = {"max_tokens": 14, "seed": 5, "temperature": 1.0, "repetition_penalty": 1.5, "logprobs": 2}
    with model.session(context=360, chunk=64, poison=True) as session:
        known = [piece.token for piece in session.generate(text, draft="off", **options)]
        session.rollback(session.position)
        stop_after = 6 if fault is rolled_back_afterwards else None  # behind a step of which something is dropped
        plain = outcome(session, session.generate(text, draft="off", **options), tmp_path / "a", stop_after)
        session.rollback(session.position)
        if fault is not None:
            fault(monkeypatch)
        pieces = session.generate(text, draft=Wrong(known, 300, 4, 2), **options)
        drafted = outcome(session, pieces, tmp_path / "a", stop_after)
        assert pieces.drafts.n_drafted > 0
        if fault is None:
            same(drafted, plain)
            return
        with pytest.raises(AssertionError):
            same(drafted, plain)


# -- what may be asked for ----------------------------------------------------------------------------------------------


def test_names(model: pyflash.Model, with_mtp: pyflash.Model, with_dspark: pyflash.Model) -> None:
    with (model.session(context=50) as session, with_mtp.session(context=50) as other,
          with_dspark.session(context=50) as third):
        for name in ("eagle", "", 5):
            with pytest.raises(pyflash.ArgumentError, match="auto, off, ngram, mtp, dspark"):
                session.generate([1], draft=name)  # type: ignore[arg-type]
        for length in (0, 32, "x"):
            with pytest.raises(pyflash.ArgumentError, match="draft_max"):
                session.generate([1], draft_max=length)  # type: ignore[arg-type]
        for each, name, told in ((session, "mtp", "no MTP block"), (session, "dspark", "no DSpark stages"),
                                 (other, "dspark", "but MTP block"), (third, "mtp", "but DSpark stages")):
            with pytest.raises(pyflash.UnsupportedError, match=told):
                each.generate([1], draft=name)
        assert session.position == 0
        for each, name in ((session, "ngram"), (session, "auto"), (other, "mtp"), (other, "auto"),
                           (third, "dspark"), (third, "auto")):
            list(each.generate([1], max_tokens=4, draft=name, draft_max=3))


def test_impossible_proposals_are_dropped(model: pyflash.Model) -> None:
    eos = model.info.eos_token
    with model.session(context=50) as session:
        known = [piece.token for piece in session.generate([1, 2, 3], max_tokens=6, draft="off", seed=3)]
        for wrong in (-1, N_VOCAB, 2**40, eos):
            session.rollback(session.position)
            pieces = session.generate([1, 2, 3], max_tokens=6, seed=3, draft=lambda tokens, most: [wrong, 5])
            assert [piece.token for piece in pieces] == known and pieces.drafts.n_drafted == 0
        session.rollback(session.position)
        pieces = session.generate([1, 2, 3], max_tokens=6, seed=3, draft=lambda tokens, most: [5] * (most + 9))
        assert [piece.token for piece in pieces] == known and pieces.drafts.n_drafted > 0


def test_what_a_draft_fails_with_is_not_heard_of(model: pyflash.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: pyflash.Session, tokens: Any, **rest: Any) -> Any:
        raise pyflash.MemoryLimitError("no memory for so many rows")

    with model.session(context=50) as session:
        known = [piece.token for piece in session.generate([1, 2, 3], max_tokens=6, draft="off", seed=3)]
        session.rollback(session.position)
        monkeypatch.setattr(session_module.Session, "eval_ahead", failing)
        pieces = session.generate([1, 2, 3], max_tokens=6, seed=3, draft=lambda tokens, most: [5])
        assert [piece.token for piece in pieces] == known and pieces.drafts.n_drafted == 0


# -- the choice of lengths ----------------------------------------------------------------------------------------------


class Simulated:
    """A drafter that is right with a probability, and takes some time, of a clock that is simulated."""

    name, is_free, longest, priors = "simulated", False, 5, (0.6,)

    def __init__(self, world: World) -> None:
        self._world = world
        self.is_whole = world.is_whole

    def begin(self, tokens: Any) -> None:
        pass

    def feed(self, token: int) -> None:
        pass

    def propose(self, most: int) -> Any:
        self._world.draft(most)
        return speculation.Draft([1] * min(most, 5), [0] * min(most, 5))


class World:
    """Steps of a simulated model: what they take, and whether drafts are right."""

    def __init__(self, chance: float, slope: float, draft_seconds: float, is_whole: bool) -> None:
        """draft_seconds: of a drafted token, or of a draft where it is_whole."""
        self.now, self._draft_seconds, self.is_whole = 0.0, draft_seconds, is_whole
        self._right, self._slope, self._random = chance, slope, random.Random(1)
        self._seconds = lambda rows: (1 + slope * (rows - 1)) * self._random.uniform(0.97, 1.03)

    def draft(self, n: int) -> None:
        self.now += self._draft_seconds * (min(n, 1) if self.is_whole else n)

    def run(self, n: int, monkeypatch: pytest.MonkeyPatch, fixed: int | None = None) -> float:
        """Seconds for n tokens."""
        from pyflash.engine.draft_lengths import DraftLedger

        monkeypatch.setattr(speculation.time, "perf_counter", lambda: self.now)
        ledger = DraftLedger()
        choosing = Choosing([Simulated(self)], ledger)
        done = 0
        while done < n:
            if fixed is None:
                k = len(choosing.propose(5))
            else:
                k = fixed
                self.draft(k)
            seconds = self._seconds(k + 1)
            self.now += seconds
            choosing.took(k + 1, seconds)
            kept = 0
            while kept < k and self._random.random() < self._right:
                kept += 1
                choosing.feed(1)
            # behind what was checked, drafts are right or not as well
            choosing.feed(0 if kept < k else int(self._random.random() < self._right))
            done += kept + 1
        return self.now


@pytest.mark.parametrize("slope", [0.1, 0.3, 0.7, 1.1])
@pytest.mark.parametrize("chance", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("draft", [(0.02, False), (0.3, True)])
def test_lengths_are_nearly_the_best(
    draft: tuple[float, bool], chance: float, slope: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never much slower than without drafts, and never than with the best fixed length."""
    n = 3000
    chosen = World(chance, slope, *draft).run(n, monkeypatch)
    fixed = min(World(chance, slope, *draft).run(n, monkeypatch, fixed=k) for k in range(6))
    print(f"chance {chance}, slope {slope}: {fixed / chosen:.3f} of the best fixed length")
    assert fixed / chosen >= 0.95
