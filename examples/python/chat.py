"""A chat on the terminal: python chat.py [MODEL.gguf]. Ctrl-C stops an answer or leaves, Ctrl-D leaves."""

import sys

import pyflash
from pyflash import demo

path = sys.argv[1] if len(sys.argv) > 1 else demo.path()
messages = []
with pyflash.Model.open(path) as model, model.session(context=8192) as session:
    while True:
        try:
            messages.append({"role": "user", "content": input("> ")})
        except (EOFError, KeyboardInterrupt):
            break
        reply = session.chat(messages)
        try:
            for piece in reply:
                print(piece.text, end="", flush=True)
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        print()
        messages.append(reply.message)
