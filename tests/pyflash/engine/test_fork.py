"""Forked children: what they inherit works there or says in one line that it does not, and they always end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")

LIMIT = 200  # seconds for a whole scenario, which takes a second or two on an idle machine

# Scenarios run in a process of their own: `model`, with several threads, and `session`, with a few tokens, stand there.
PREAMBLE = """
import gc, multiprocessing, os, signal, sys, threading, time
import numpy as np
import pyflash

path = sys.argv[1]
model = pyflash.Model.open(path, threads=3, device="cpu")
session = model.session(context=4096, chunk=64)
TOKENS = [5, 6, 7, 8]
first = session.eval(TOKENS)
fresh = model.session(context=4096, chunk=64)
expected = fresh.eval([9, *TOKENS])
fresh.close()
session_next = model.session(context=4096, chunk=64)
session_next.eval(TOKENS)
after = session_next.eval([9])

def child(work):
    '''Its exit status, 99 when it was still there after 60 s.'''
    pid = os.fork()
    if pid == 0:
        work()
        sys.exit(0)  # a normal exit, with everything that Python does then
    return end(pid)

def end(pid):
    for _ in range(6000):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 99

def equal(logits, wanted):
    assert np.array_equal(logits, wanted)

def busy_thread():
    '''A thread that evaluates without end, on a session of its own.'''
    other = model.session(context=65536, chunk=512)
    stop = threading.Event()
    def work():
        while not stop.is_set():
            other.rollback(other.position)
            other.eval([1 + i % 900 for i in range(2048)])
    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.3)
    def finish():
        stop.set()
        thread.join()
    return other, finish

def unharmed():
    equal(session.eval([9]), after)
    with model.session(context=4096, chunk=64) as mine:
        equal(mine.eval([9, *TOKENS]), expected)
"""

SCENARIOS = {
    "exits normally": """
assert child(lambda: None) == 0
""",
    "ends after SIGTERM": """
pid = os.fork()
if pid == 0:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    session.eval([9])
    while True:
        time.sleep(0.05)
time.sleep(0.5)
os.kill(pid, signal.SIGTERM)
assert end(pid) == 7
""",
    "evaluates on what it inherited": """
assert child(lambda: equal(session.eval([9]), after)) == 0
""",
    "opens a new session": """
assert child(lambda: equal(model.session(context=4096, chunk=64).eval([9, *TOKENS]), expected)) == 0
""",
    "opens a new model": """
def work():
    with pyflash.Model.open(path, threads=3, device="cpu") as mine, mine.session(context=4096, chunk=64) as s:
        equal(s.eval([9, *TOKENS]), expected)
assert child(work) == 0
""",
    "evaluates from two threads": """
def work():
    results = []
    def one():
        with model.session(context=4096, chunk=64) as s:
            results.append(s.eval([9, *TOKENS]))
    threads = [threading.Thread(target=one) for _ in range(2)]
    [t.start() for t in threads], [t.join() for t in threads]
    [equal(r, expected) for r in results]
    assert len(results) == 2
assert child(work) == 0
""",
    "generates and chats": """
def work():
    assert len(list(session.generate([9], max_tokens=5))) >= 1
    assert list(session.chat([{"role": "user", "content": "hi"}], max_tokens=5))
assert child(work) == 0
""",
    "generates JSON": """
try:
    import llguidance
except ImportError:
    sys.exit(0)
schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
question = [{"role": "user", "content": "hi"}]
list(session.chat(question, max_tokens=5, response_format=schema))
assert child(lambda: list(session.chat(question, max_tokens=5, response_format=schema))) == 0
session.rollback(session.position)
session.eval(TOKENS)
""",
    "goes on with an answer that had begun": """
pieces = session_next.generate([9], max_tokens=6, temperature=0)
next(pieces)
assert child(lambda: list(pieces)) == 0
assert len(list(pieces)) == 5
""",
    "closes, and collects its garbage": """
def work():
    global session, model, session_next
    session.close()
    model.close()
    del session, model, session_next
    gc.collect()
assert child(work) == 0
""",
    "saves and loads": """
def work():
    session.save(path + ".child-session")
    with model.session(context=4096) as s:
        s.load(path + ".child-session")
        equal(s.eval([9]), after)
    os.remove(path + ".child-session")
assert child(work) == 0
""",
    "cancels": """
def work():
    session.cancel()
    try:
        session.eval([9])
    except pyflash.CancelledError:
        sys.exit(0)
    sys.exit(1)
assert child(work) == 0
""",
    "has children of its own": """
assert child(lambda: sys.exit(child(lambda: equal(session.eval([9]), after)))) == 0
""",
    "is forked while another thread evaluates": """
other, finish = busy_thread()
def work():
    unharmed()
    try:
        other.eval([1])
    except pyflash.Error as error:
        assert "open a new session" in str(error), error
    other.close()
for _ in range(10):
    assert child(work) == 0
    assert child(lambda: None) == 0
finish()
""",
    "is forked by another thread while the main thread evaluates": """
results = []
def forker():
    time.sleep(0.3)
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            try:
                with model.session(context=4096, chunk=64) as s:
                    equal(s.eval([9, *TOKENS]), expected)
                try:
                    big.eval([1])
                except pyflash.Error as error:
                    assert "open a new session" in str(error), error
                big.close()
            except BaseException as error:
                print(error, file=sys.stderr)
                os._exit(1)
            os._exit(0)  # as multiprocessing does; sys.exit would end this thread only
        results.append(end(pid))
thread = threading.Thread(target=forker)
big = model.session(context=65536, chunk=512)
thread.start()
while thread.is_alive():
    big.rollback(big.position)
    big.eval([1 + i % 900 for i in range(1024)])
thread.join()
assert results == [0] * 5, results
""",
    "is forked while models open and close": """
stop = threading.Event()
def work():
    while not stop.is_set():
        pyflash.Model.open(path, threads=3, device="cpu").close()
thread = threading.Thread(target=work)
thread.start()
for _ in range(20):
    assert child(lambda: equal(model.session(context=4096, chunk=64).eval([9, *TOKENS]), expected)) == 0
stop.set()
thread.join()
""",
    "is forked in a progress callback": """
def progress(done, total):
    if done < total:
        pids.append(os.fork())
pids = []
long = model.session(context=4096, chunk=64)
logits = long.eval([1 + i % 900 for i in range(128)], progress=progress)
if pids == [0]:
    sys.exit(0)
assert end(pids[0]) == 0
long.rollback(128)
equal(long.eval([1 + i % 900 for i in range(128)]), logits)
""",
    "is a worker of multiprocessing": """
def work(token):
    with model.session(context=4096, chunk=64) as s:
        return s.eval([token, *TOKENS]).tobytes()
with multiprocessing.get_context("fork").Pool(2) as pool:
    results = pool.map_async(work, [9] * 4).get(60)
assert all(r == expected.tobytes() for r in results)
process = multiprocessing.get_context("fork").Process(target=unharmed)
process.start()
process.join(60)
assert process.exitcode == 0
""",
    "reads experts within a budget": """
budgeted = pyflash.Model.open(path, threads=3, device="cpu", expert_budget=1 << 16)
s = budgeted.session(context=4096, chunk=64)
wanted = s.eval(TOKENS)
def work():
    s.rollback(len(TOKENS))
    equal(s.eval(TOKENS), wanted)
assert child(work) == 0
""",
}


def run_python(code: str, model: Path, limit: float = LIMIT) -> subprocess.CompletedProcess[str]:
    """Runs code in a process group of its own, all of which ends with the time limit."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(model)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        out, error = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, error = process.communicate()
        pytest.fail(f"still running after {limit} s: {out}{error}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS)
def test_a_child(tiny_model: Path, scenario: str) -> None:
    done = run_python(PREAMBLE + scenario + "\nunharmed()\nprint('unharmed')\n", tiny_model)
    assert done.returncode == 0 and done.stdout == "unharmed\n", done.stderr
    assert "Error" not in done.stderr, done.stderr
