"""A chat window: python desktop.py [MODEL.gguf]. This is the view; whatever takes time does a pyflash.Worker."""

from __future__ import annotations

import contextlib
import queue
import sys
import tkinter as tk
from dataclasses import replace
from pathlib import Path
from tkinter import filedialog, font, ttk
from typing import Any

import pyflash
from pyflash.engine.worker import Event, Failed, Finished, Opened, Progress, Text

CONTEXT = 16384  # tokens
POLL_MS = 30
EVENTS_PER_POLL = 500
PAPER, GREY, LINE, TINT = "#ffffff", "#f3f4f6", "#c9ced6", "#eaf2fd"
INK, DIM, ACCENT, RED = "#1f2328", "#727a84", "#1a66c2", "#b3261e"


class ChatWindow:
    def __init__(self, root: tk.Tk, model: Path | None = None) -> None:
        self.root = root
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.worker = pyflash.Worker(self.events.put, context=CONTEXT)
        self._n_thoughts = 0
        self._tags: tuple[str, ...] = ()  # of the text that came last in the answer
        self._build()
        root.protocol("WM_DELETE_WINDOW", self.close)
        if root.tk.call("tk", "windowingsystem") == "aqua":
            root.createcommand("tk::mac::Quit", self.close)
        root.bind("<Escape>", lambda _event: self.stop())
        self.open(model)
        self._poll()

    # -- the widgets --

    def _build(self) -> None:
        self.root.title("pyflash chat")
        self.root.geometry("760x560")
        self.root.minsize(480, 320)
        if self.root.tk.call("tk", "windowingsystem") == "x11":  # the others have a theme of their system
            style = ttk.Style()
            style.theme_use("clam")
            style.configure(".", background=GREY, bordercolor=LINE, lightcolor=GREY, darkcolor=GREY, troughcolor=GREY)
            style.configure("TButton", background=PAPER, lightcolor=PAPER, darkcolor=PAPER, padding=(12, 5))
            style.configure("TProgressbar", background=ACCENT, lightcolor=ACCENT, darkcolor=ACCENT)
            style.map("TButton", background=[("disabled", GREY), ("active", TINT)])
            style.map("TCombobox", fieldbackground=[("readonly", PAPER)], selectbackground=[("readonly", PAPER)],
                      selectforeground=[("readonly", INK)])  # fmt: skip
            self.root.configure(background=GREY)
        self._font = font.nametofont("TkTextFont").copy()
        self._font.configure(size=12)
        self._build_toolbar(ttk.Frame(self.root, padding=(12, 10)))
        self._build_status(ttk.Frame(self.root, padding=(12, 2, 12, 8)))
        self._build_entry(ttk.Frame(self.root, padding=(12, 10, 12, 4)))
        self._build_transcript(ttk.Frame(self.root, padding=(12, 0)))
        self.entry.focus_set()

    def _build_toolbar(self, bar: ttk.Frame) -> None:
        bar.pack(side="top", fill="x")
        bold = self._font.copy()
        bold.configure(weight="bold")
        self._bold = bold  # a font lives as long as its Python object
        self.model_name = ttk.Label(bar, font=bold)
        self.model_name.pack(side="left")
        self.new_button = ttk.Button(bar, text="New chat", command=self.new_chat)
        self.new_button.pack(side="right")
        self.open_button = ttk.Button(bar, text="Open model\u2026", command=self.choose_model)
        self.open_button.pack(side="right", padx=8)
        self.think = ttk.Combobox(bar, width=5, state="readonly")
        self.think.pack(side="right")
        ttk.Label(bar, text="Thinking").pack(side="right", padx=6)

    def _build_status(self, bar: ttk.Frame) -> None:
        bar.pack(side="bottom", fill="x")
        self.status = ttk.Label(bar)
        self.status.pack(side="left")
        self.progress = ttk.Progressbar(bar, length=180)  # shown by place(), which moves nothing else

    def _build_entry(self, bar: ttk.Frame) -> None:
        bar.pack(side="bottom", fill="x")
        self.button = ttk.Button(bar, width=8)  # Send, or Stop while an answer is written
        self.button.pack(side="right", anchor="s", padx=(10, 0))
        self.entry = self._text(bar, 8, height=3, undo=True)
        self.entry.pack(side="left", fill="x", expand=True)
        self.entry.bind("<Return>", self._on_return)
        self.entry.bind("<Shift-Return>", lambda _event: None)  # a new line

    def _build_transcript(self, frame: ttk.Frame) -> None:
        frame.pack(fill="both", expand=True)
        bar = ttk.Scrollbar(frame)
        bar.pack(side="right", fill="y")
        self.transcript = self._text(frame, 14, state="disabled", cursor="arrow", yscrollcommand=bar.set)
        self.transcript.pack(side="left", fill="both", expand=True)
        self.transcript.bind("<Button-1>", lambda _event: self.transcript.focus_set())  # else nothing can be copied
        bar.configure(command=self.transcript.yview)
        style = self.transcript.tag_configure
        style("gap", font=(self._font.actual("family"), 5))
        style("user", background=TINT, lmargincolor=TINT, rmargincolor=TINT, lmargin1=10, lmargin2=10, rmargin=10,
              spacing1=6, spacing3=6)  # fmt: skip
        style("fold", foreground=DIM, spacing1=8, spacing3=2)
        style("reasoning", foreground=DIM, lmargin1=18, lmargin2=18)
        style("content", spacing1=8)
        style("tool_call", foreground=ACCENT, spacing1=8)
        style("note", foreground=DIM)
        style("error", foreground=RED, spacing1=8)

    def _text(self, parent: ttk.Frame, pad: int, **options: Any) -> tk.Text:
        # Both colours are set, because a dark desktop would change only one of them.
        return tk.Text(parent, wrap="word", font=self._font, background=PAPER, foreground=INK, insertbackground=INK,
                       relief="flat", borderwidth=0, highlightthickness=1, highlightbackground=LINE,
                       highlightcolor=LINE, padx=pad, pady=pad, **options)  # fmt: skip

    # -- what a person does --

    def choose_model(self) -> None:
        types = [("GGUF models", "*.gguf"), ("All files", "*")]
        if chosen := filedialog.askopenfilename(parent=self.root, title="Open a model", filetypes=types):
            self.open(Path(chosen))

    def open(self, path: Path | None) -> None:
        self._set_busy(True)
        self.status["text"] = f"Opening {path.name if path else 'the demo model'}\u2026"
        self.worker.open(path or pyflash.demo.path)

    def new_chat(self) -> None:
        self.worker.new_chat()
        self._clear()

    def send(self) -> None:
        question = self.entry.get("1.0", "end").strip()
        if question and not self.busy:
            self.entry.delete("1.0", "end")
            self._tags = ()
            self._write("\n" if self.transcript.index("end-1c") != "1.0" else "", "gap")
            self._write(question + "\n", "user")
            self.transcript.see("end")
            self._set_busy(True)
            self.button.configure(text="Stop", command=self.stop, state="normal")
            self.worker.ask(question, think=self.think.get())

    def _on_return(self, _event: object) -> str:
        self.send()
        return "break"  # no new line

    def stop(self) -> None:
        if self.busy:
            self.worker.stop()

    def close(self) -> None:
        """The window goes at once, the program as soon as the worker has ended."""
        self.root.withdraw()
        self.worker.close()
        self._wait_for_worker()

    def _wait_for_worker(self) -> None:
        if self.worker.join(0):
            self.root.destroy()
        else:
            self.root.after(POLL_MS, self._wait_for_worker)

    # -- what the worker tells --

    def _poll(self) -> None:
        """Only here the window hears from the other thread."""
        at_end = self.transcript.yview()[1] > 0.999  # else the person has scrolled up to read
        for event in self._news():
            self._show(event)
        if at_end:
            self.transcript.see("end")
        self.root.after(POLL_MS, self._poll)

    def _news(self) -> list[Event]:
        """What has come. Neighbouring texts become one, because drawing is slow by the piece and not by the letter."""
        events: list[Event] = []
        with contextlib.suppress(queue.Empty):
            for _ in range(EVENTS_PER_POLL):
                event = self.events.get_nowait()
                last = events[-1] if events else None
                if isinstance(event, Text) and isinstance(last, Text) and event.piece.kind == last.piece.kind:
                    text = last.piece.text + event.piece.text
                    event = replace(events.pop(), piece=replace(event.piece, text=text))
                events.append(event)
        return events

    def _show(self, event: Event) -> None:
        match event:
            case Opened(path, model):
                bundled = Path(path) == pyflash.demo.file()
                self.model_name["text"] = "Demo model" if bundled else Path(path).name
                self.think["values"] = pyflash.chat.thinking_modes(model.release)
                self.think.set("off")
                self._clear()
                self._set_busy(False, "Ready")
            case Progress(what, done, total):
                self.status["text"] = f"{what.capitalize()}: {100 * done // max(total, 1)} %"
                self.progress.configure(value=done, maximum=total)
                self.progress.place(relx=1, rely=0.5, anchor="e")
            case Text(piece, speed):
                self.progress.place_forget()
                self.status["text"] = f"{speed:.1f} tokens/s"
                if piece.text:
                    self._write_answer(piece.kind, piece.text)
            case Finished(reply, stopped):
                self._finish(reply, stopped)
            case Failed(error):
                full = isinstance(error, pyflash.ContextFullError)
                message = "This does not fit the conversation any more: begin a new chat." if full else str(error)
                self._write(f"{message or type(error).__name__}\n", "error")
                self._set_busy(False, "Failed")

    def _finish(self, reply: pyflash.Reply | None, stopped: bool) -> None:
        self._write("\n")
        if stopped or (reply and reply.finish == "length"):
            self._write("(stopped)\n" if stopped else "(the longest answer allowed)\n", "note")
        if reply is None:
            self._set_busy(False)
            return
        n_read = reply.n_prompt - reply.n_reused
        self._set_busy(False, f"{n_read} tokens read, {n_read / max(reply.prompt_seconds, 1e-9):.1f}/s; "
                       f"{reply.n_generated} written, "
                       f"{reply.n_generated / max(reply.generate_seconds, 1e-9):.1f}/s")  # fmt: skip

    def _set_busy(self, busy: bool, status: str = "") -> None:
        self.busy = busy
        state = "disabled" if busy else "normal"
        self.button.configure(text="Send", command=self.send, state=state)
        self.open_button["state"] = self.new_button["state"] = state
        self.progress.place_forget()
        self.status["text"] = status

    def _write_answer(self, kind: str, text: str) -> None:
        if kind not in self._tags:
            if self._tags:
                self._write("\n")
            self._tags = (kind, self._new_fold()) if kind == "reasoning" else (kind,)
        self._write(text, *self._tags)

    def _new_fold(self) -> str:
        """Writes a line that hides and shows the text with the tag returned."""
        self._n_thoughts += 1
        thought, line = f"thought{self._n_thoughts}", f"line{self._n_thoughts}"

        def toggle(_event: object) -> None:
            hide = self.transcript.tag_cget(thought, "elide") != "1"
            self.transcript.tag_configure(thought, elide=hide)
            start = self.transcript.tag_ranges(line)[0]
            self.transcript["state"] = "normal"
            self.transcript.replace(start, f"{start}+1c", "\u25b8" if hide else "\u25be", ("fold", line))
            self.transcript["state"] = "disabled"

        self._write("\u25be Thinking\n", "fold", line)
        self.transcript.tag_bind(line, "<Button-1>", toggle)
        return thought

    def _write(self, text: str, *tags: str) -> None:
        self.transcript["state"] = "normal"
        self.transcript.insert("end", text, tags)
        self.transcript["state"] = "disabled"

    def _clear(self) -> None:
        self.transcript["state"] = "normal"
        self.transcript.delete("1.0", "end")
        self.transcript["state"] = "disabled"


def main() -> None:
    if sys.platform == "win32":  # else Windows enlarges the picture of a small window
        import ctypes

        ctypes.windll.shcore.SetProcessDpiAwareness(1)
    root = tk.Tk()
    window = ChatWindow(root, Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    try:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C in the terminal
            root.mainloop()
    finally:
        window.worker.close()


if __name__ == "__main__":
    main()
