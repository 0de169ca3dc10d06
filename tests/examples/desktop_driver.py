"""Uses examples/desktop as a person does: desktop_driver.py MODEL.gguf BROKEN.gguf SCREEN COPY

Run by test_desktop.py under a virtual display. Types and clicks, and checks what the window shows. Prints a line for
each step; an AssertionError or a callback's exception ends it. Copies the screen's file when there is much to see, or
something went wrong.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
import tkinter as tk
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "desktop"))
import desktop  # noqa: E402

DEADLINE = 60.0  # seconds for anything to happen on a busy machine
QUESTION = "Why is the sky blue?"


class Person:
    def __init__(self, root: tk.Tk, window: desktop.ChatWindow) -> None:
        self.root = root
        self.window = window
        self.problems: list[BaseException] = []
        root.report_callback_exception = lambda _kind, problem, _trace: self.problems.append(problem)

    def until(self, happened: Callable[[], bool], what: str) -> None:
        """Lets the window work until something has happened."""
        end = time.monotonic() + DEADLINE
        while not happened():
            assert time.monotonic() < end, f"{what}: not within {DEADLINE} s; the window shows {self.shown!r}"
            self.root.update()
            if self.problems:
                raise self.problems[0]
            time.sleep(0.002)

    def until_idle(self) -> None:
        self.until(lambda: not self.window.busy, "the end of the work")

    @property
    def shown(self) -> str:
        return self.window.transcript.get("1.0", "end")

    def since(self, mark: int) -> str:
        return self.shown.rstrip("\n")[mark:]

    @property
    def mark(self) -> int:
        return len(self.shown.rstrip("\n"))

    def click(self, widget: tk.Misc, x: int = 5, y: int = 5) -> None:
        for event in ("<Enter>", "<Motion>", "<Button-1>", "<ButtonRelease-1>"):
            widget.event_generate(event, x=x, y=y)
            self.root.update()

    def type(self, text: str) -> None:
        self.window.entry.focus_force()
        self.root.update()
        names = {" ": "space", "?": "question", "\n": "Return"}
        for character in text:
            self.window.entry.event_generate("<KeyPress>", keysym=names.get(character, character))
        self.root.update()

    def ask_at_length(self, n_words: int) -> None:
        """Pastes a long question and clicks Send."""
        self.window.entry.insert("1.0", "word " * n_words)
        self.click(self.window.button)

    def open(self, path: Path) -> None:
        desktop.filedialog.askopenfilename = lambda **_options: str(path)
        self.click(self.window.open_button)
        self.until_idle()


def ask_and_read(person: Person) -> None:
    """Once more where the model had nothing to say, which is rare."""
    for _ in range(5):
        mark = person.mark
        person.type(QUESTION)
        assert person.window.entry.get("1.0", "end-1c") == QUESTION
        person.type("\n")
        assert person.window.busy and person.window.button["text"] == "Stop"
        person.until_idle()
        question, _, answer = person.since(mark).strip().partition("\n")
        assert question == QUESTION
        assert "tokens read" in person.window.status["text"] and person.window.button["text"] == "Send"
        if answer:
            return
    raise AssertionError("no answers")


def fold_thinking(person: Person) -> None:
    window, text = person.window, person.window.transcript
    window.think.set("high")
    for _ in range(5):
        person.type(QUESTION + "\n")
        person.until_idle()
        if text.tag_ranges("reasoning"):
            break

    def visible() -> int:
        return len(text.tk.call(text, "get", "-displaychars", "fold.last", "end"))

    def toggle() -> None:
        text.see("fold.first")
        person.root.update()
        x, y, _, _ = text.bbox("fold.first")
        person.click(text, x + 20, y + 3)

    length = visible()
    toggle()
    assert visible() < length and "\u25b8 Thinking" in person.shown
    toggle()
    assert visible() == length and "\u25be Thinking" in person.shown
    window.think.set("off")


def stop_while_reading(person: Person) -> None:
    mark = person.mark
    person.ask_at_length(8000)
    person.until(lambda: person.window.progress.winfo_ismapped() == 1, "progress of the prompt")
    assert "Reading" in person.window.status["text"]
    person.click(person.window.button)
    person.until_idle()
    assert person.since(mark).endswith("(stopped)") and "0 written" in person.window.status["text"]


def stop_while_writing(person: Person) -> None:
    """The random model may end its answer before the click; then once more."""
    for _ in range(50):
        mark = person.mark
        person.type("Hi\n")
        person.until(lambda: len(person.since(mark)) > 9 or not person.window.busy, "an answer")
        person.click(person.window.button)
        person.until_idle()
        question, _, answer = person.since(mark).strip().partition("\n")
        assert question == "Hi"
        if answer.endswith("\n(stopped)"):
            return
    raise AssertionError(f"never stopped: {person.shown}")


def close_while_writing(person: Person) -> None:
    person.ask_at_length(2000)
    person.until(lambda: person.window.progress.winfo_ismapped() == 1, "progress of the prompt")
    person.root.tk.eval(person.root.protocol("WM_DELETE_WINDOW"))
    person.root.mainloop()
    assert not person.problems and threading.active_count() == 1
    try:
        person.root.winfo_exists()
    except tk.TclError:
        return
    raise AssertionError("the window is still there")


def main() -> None:
    model, broken, screen, copy = map(Path, sys.argv[1:])
    root = tk.Tk()
    person = Person(root, desktop.ChatWindow(root))
    window = person.window
    person.until_idle()
    assert window.model_name["text"] == "Demo model" and window.status["text"] == "Ready", person.shown

    print("ask", flush=True)
    ask_and_read(person)
    print("think", flush=True)
    fold_thinking(person)
    shutil.copy(screen, copy)
    print("open", flush=True)
    person.open(model)
    assert window.model_name["text"] == model.name and window.transcript.get("1.0", "end") == "\n"
    print("stop", flush=True)
    stop_while_writing(person)
    stop_while_reading(person)
    print("clear", flush=True)
    person.click(window.new_button)
    assert person.mark == 0
    stop_while_writing(person)
    print("error", flush=True)
    mark = person.mark
    person.open(broken)
    message = person.since(mark).strip()
    assert broken.name in message and "Traceback" not in message and "\n" not in message, message
    assert window.transcript.tag_ranges("error") and window.model_name["text"] == model.name
    stop_while_writing(person)  # the model before goes on
    print("close", flush=True)
    close_while_writing(person)


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        shutil.copy(sys.argv[3], sys.argv[4])
        os._exit(1)  # at once: the worker's thread still waits for orders
