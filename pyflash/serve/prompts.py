"""A request as tokens: rendered, with the turns that were sampled here as they were sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pyflash.chat import EOS, THINK_END, USER, Segment
from pyflash.chat.encoding import Opening
from pyflash.engine.model import ModelInfo
from pyflash.engine.tokenizer import Tokenizer
from pyflash.serve import rendering
from pyflash.serve.errors import RequestError
from pyflash.serve.request import Request
from pyflash.serve.turns import Turn, TurnStore, chains

_FIM = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")


@dataclass(frozen=True)
class Prompt:
    """What is evaluated before an answer.

    opening: how a conversation's answer begins, None for a completion. begun, begun_tokens: markup of the answer at the
    prompt's end. system_end: tokens of what comes before the first user's turn, which other conversations may share.
    chain: digest of the conversation, see turns.chains().
    """

    tokens: list[int]
    opening: Opening | None = None
    begun: str = ""
    begun_tokens: tuple[int, ...] = ()
    system_end: int = 0
    chain: bytes = b""
    n_replayed: int = 0


class Prompts:
    """Makes the prompts of one model. For any thread."""

    def __init__(self, tokenizer: Tokenizer, info: ModelInfo, release: str, default_think: str, turns: TurnStore) -> None:
        """default_think: the thinking mode of requests that name none."""
        self._tokenizer, self._info = tokenizer, info
        self._release, self._default_think = release, default_think
        self._turns = turns

    def make(self, request: Request, salt: bytes) -> Prompt:
        """The prompt of a request. salt: of whose key it is; only turns of the same are replayed. RequestError."""
        return self._conversation(request, salt) if request.is_conversation else self._completion(request)

    def text(self, request: Request) -> str:
        """The prompt of a conversation as text, rendered from the messages alone."""
        return rendering.render(request, self._release, self._default_think).text

    def _special(self, text: str) -> int:
        token = self._tokenizer.token_id(text)
        if token is None:
            raise RequestError(f"the model has no token {text}: leave out the suffix")
        return token

    def _completion(self, request: Request) -> Prompt:
        given = request.prompt
        assert given is not None
        if isinstance(given, str):
            tokens = self._tokenizer.encode(given)
        else:
            tokens = list(given)
            if any(not 0 <= token < self._info.n_vocab for token in tokens):
                raise RequestError(f"prompt: token ids are from 0 to {self._info.n_vocab - 1}", param="prompt")
        if request.suffix is not None:
            begin, hole, end = map(self._special, _FIM)
            tokens = [begin, *tokens, hole, *self._tokenizer.encode(request.suffix), end]
        bos = self._info.bos_token
        if bos >= 0 and tokens[:1] != [bos]:
            tokens = [bos, *tokens]
        if not tokens:
            raise RequestError("prompt is empty: send some text", param="prompt")
        return Prompt(tokens)

    def _conversation(self, request: Request, salt: bytes) -> Prompt:
        rendered = rendering.render(request, self._release, self._default_think)
        links = chains(salt, request.messages, request.tool_schemas)
        pieces = _Pieces(self._tokenizer)
        n_replayed = 0
        opens_reasoning = False
        for part in rendered.turns:
            if part.kind == "opening":
                opens_reasoning = (THINK_END, True) not in part.segments
            found = self._sampled(request, salt, part, links) if part.kind == "assistant" else None
            if found is None:
                pieces.add(part.segments)
            else:
                n_replayed += 1
                pieces.add_tokens(found.reasoning_tokens if opens_reasoning else ())
                if opens_reasoning:
                    pieces.add([(THINK_END, True)])
                pieces.add_tokens(found.content_tokens)
                pieces.add([(EOS, True)])
        tokens = pieces.tokens()
        user = self._tokenizer.token_id(USER)
        begun_tokens = self._tokenizer.encode_segments(rendered.turns[-1].segments[2:]) if rendered.begun else []
        return Prompt(tokens, Opening(rendered.opens, rendered.given), rendered.begun, tuple(begun_tokens),
                      tokens.index(user) if user in tokens else 0, links[-1], n_replayed)

    def _sampled(self, request: Request, salt: bytes, part: rendering.Turn, links: list[bytes]) -> Turn | None:
        message = request.messages[part.first]
        return None if message.get("prefix") else self._turns.find(salt, message, links[part.first])


class _Pieces:
    """Texts and tokens in a row. Neighbouring texts are tokenised as one, since tokens may reach across their border."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._done: list[int] = []
        self._text: list[Segment] = []

    def add(self, segments: list[Segment]) -> None:
        for text, special in segments:
            if self._text and not special and not self._text[-1][1]:
                self._text[-1] = (self._text[-1][0] + text, False)
            elif text:
                self._text.append((text, special))

    def add_tokens(self, tokens: Sequence[int]) -> None:
        self._flush()
        self._done += tokens

    def _flush(self) -> None:
        self._done += self._tokenizer.encode_segments(self._text)
        self._text = []

    def tokens(self) -> list[int]:
        self._flush()
        return self._done
