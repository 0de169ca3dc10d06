"""Questions about a long text: python ask_document.py TEXT.txt [MODEL.gguf]. Ctrl-D leaves.

The text is evaluated once. The conversation is kept in TEXT.txt.session after every answer, and goes on there the next time.
"""

import json
import sys
from pathlib import Path

import pyflash
from pyflash import demo

text, model_path = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else demo.path()
kept = text.with_name(text.name + ".session")
messages = [{"role": "system", "content": "Read this text.\n\n" + text.read_text(encoding="utf-8")}]


def show_progress(done: int, total: int) -> None:
    if total > 512:
        print(f"\rreading: {done:,} of {total:,} tokens", end="\n" if done == total else "", file=sys.stderr)


with pyflash.Model.open(model_path) as model, model.session(context=min(model.info.n_ctx_train, 65_536)) as session:
    if kept.exists():
        session.load(kept)
        before = json.loads(session.note)
        if before[0] == messages[0]:  # else the text has changed: it is read again
            messages = before
    while True:
        try:
            question = input("> ")
        except (EOFError, KeyboardInterrupt):
            break
        reply = session.chat([*messages, {"role": "user", "content": question}], progress=show_progress)
        for piece in reply:
            print(piece.text, end="", flush=True)
        print()
        messages += [{"role": "user", "content": question}, reply.message]
        session.note = json.dumps(messages).encode()
        session.save(kept)
