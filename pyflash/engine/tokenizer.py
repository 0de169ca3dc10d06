"""Text to tokens and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyflash.native.errors import check
from pyflash.native.library import ffi, lib
from pyflash.native.values import ModelHandle, Tokens, ints, token_array

if TYPE_CHECKING:
    from pyflash.chat import Segment


class Tokenizer:
    """Text to tokens and back, by the vocabulary in the model file. Made by Model.open(); threads may share it."""

    def __init__(self, handle: ModelHandle, made: dict[str, Any] | None = None) -> None:
        """Not for callers: use Model.tokenizer."""
        self._handle = handle
        self.made = {} if made is None else made  # what others have made from this vocabulary, once for all

    def retained(self, share: bool = True) -> Tokenizer:
        """Another one for the same vocabulary, which keeps the native model even when this one's is closed."""
        with self._handle.borrow() as native:
            return Tokenizer(ModelHandle(lib.pf_model_retain(native)), self.made if share else None)

    def close(self) -> None:
        """Lets go of the native model. Not for callers: Model.close() does it."""
        self._handle.close()

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids of text. special: text that spells a special token becomes that token. Adds no BOS."""
        data = text.encode("utf-8", "surrogatepass")
        ids = np.empty(len(data) + 1, dtype=np.int32)  # a token stands for at least one byte
        count, error = ffi.new("int64_t *"), ffi.new("pf_error *")
        flags = lib.PF_TOKENIZE_SPECIAL if special else 0
        with self._handle.borrow() as native:
            check(lib.pf_tokenize(native, data, len(data), flags, ints(ids), len(ids), count, error), error)
        return [int(token) for token in ids[: count[0]]]

    def encode_segments(self, segments: Sequence[Segment]) -> list[int]:
        """Token ids of chat.segments(): only its special pieces may become special tokens."""
        return [token for text, special in segments for token in self.encode(text, special=special)]

    def decode(self, tokens: Tokens, special: bool = False) -> str:
        """Text of tokens; invalid UTF-8 becomes U+FFFD. special: write special tokens as their text."""
        return self.decode_bytes(tokens, special).decode("utf-8", "replace")

    def decode_bytes(self, tokens: Tokens, special: bool = False) -> bytes:
        """Bytes of tokens, which may end within a UTF-8 character."""
        ids = token_array(tokens)
        size, error = ffi.new("size_t *"), ffi.new("pf_error *")
        flags = lib.PF_DETOKENIZE_SPECIAL if special else 0
        with self._handle.borrow() as native:
            capacity = 16 * len(ids) + 256
            while True:
                out = ffi.new("char[]", capacity)
                check(lib.pf_detokenize(native, ints(ids), len(ids), flags, out, capacity, size, error), error)
                if size[0] <= capacity:
                    return bytes(ffi.buffer(out, size[0]))
                capacity = size[0]

    def token_id(self, text: str) -> int | None:
        """Id of the token whose text is exactly this one, special tokens included."""
        data = text.encode("utf-8", "surrogatepass")
        with self._handle.borrow() as native:
            token = lib.pf_token_id(native, data, len(data))
        return None if token < 0 else int(token)

    def vocabulary(self) -> tuple[list[bytes], list[int]]:
        """The bytes of every token, by id, and the ids of the special ones, which ordinary text never gives."""
        texts = []
        special = []
        buffer, one, count = ffi.new("char[]", 4096), ffi.new("int32_t *"), ffi.new("int64_t *")
        size, error, info = ffi.new("size_t *"), ffi.new("pf_error *"), ffi.new("pf_model_info *")
        info.struct_size = ffi.sizeof("pf_model_info")
        with self._handle.borrow() as native:
            check(lib.pf_model_get_info(native, info, error), error)
            for token in range(info.n_vocab):
                one[0] = token
                check(lib.pf_detokenize(native, one, 1, lib.PF_DETOKENIZE_SPECIAL, buffer, 4096, size, error), error)
                length = min(size[0], 4096)
                texts.append(bytes(ffi.buffer(buffer, length)))

                def gives_it(flags: int, length: int = length, token: int = token) -> bool:
                    check(lib.pf_tokenize(native, buffer, length, flags, one, 1, count, error), error)
                    return bool(count[0] == 1 and one[0] == token)

                if not gives_it(0) and gives_it(lib.PF_TOKENIZE_SPECIAL):
                    special.append(token)
        return texts, special
