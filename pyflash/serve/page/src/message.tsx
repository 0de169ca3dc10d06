import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { MarkdownView } from "./markdown";
import { answer, busy, choose, lengthen, send, ticks, workOf, type Work } from "./state";
import { children } from "./tree";
import type { Conversation, Stats, Turn } from "./types";

const clock = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });

async function copy(text: string, button: HTMLButtonElement): Promise<void> {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}

function onCopy(event: MouseEvent): void {
  const button = event.target as HTMLElement;
  if (!button.classList.contains("copy")) return;
  void copy(button.closest(".code")?.querySelector("code")?.textContent ?? "", button as HTMLButtonElement);
}

/** A text that grows while an answer is made: rendered once a frame. */
function Markdown({ text, growing }: { text: () => string; growing: boolean }) {
  const element = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const view = new MarkdownView(element.current!);
    element.current!.replaceChildren();
    if (!growing) {
      view.update(text(), true);
      return;
    }
    let frame = 0;
    const off = ticks.subscribe(() => {
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(() => view.update(text(), false));
    });
    return () => {
      off();
      cancelAnimationFrame(frame);
    };
  }, [growing, growing ? "" : text()]);
  return <div class="markdown" ref={element} onClick={onCopy} />;
}

const seconds = (ms: number): string => (ms < 9950 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`);

function Thinking({ turn, work }: { turn: Turn; work: Work | undefined }) {
  const thinks = work?.phase === "thinking";
  const open = useSignal(false);
  ticks.value; // its time goes on
  if (!turn.reasoning) return null;
  const took = turn.reasoningMs ? ` for ${seconds(turn.reasoningMs)}` : "";
  return <details class="thinking" open={open.value} onToggle={(event) => { open.value = event.currentTarget.open; }}>
    <summary>{thinks ? `Thinking${took}…` : `Thought${took}`}</summary>
    {open.value && <Markdown text={() => turn.reasoning ?? ""} growing={thinks ?? false} />}
  </details>;
}

function Waiting({ work }: { work: Work }) {
  const at = work.progress;
  if (work.phase === "thinking" || work.phase === "answer") return null;
  if (at?.queue) return <p class="waiting" role="status">Waiting for {at.queue} other {at.queue === 1 ? "answer" : "answers"}…</p>;
  if (!at?.total) return <p class="waiting" role="status">Waiting for the server…</p>;
  const words = `Reading ${at.done} of ${at.total} tokens${at.cached ? `, ${at.cached} known already` : ""}`;
  return <p class="waiting"><progress max={at.total} value={at.done} aria-label={words} /> {words}</p>;
}

function StatsLine({ stats }: { stats: Stats }) {
  const rate = stats.generateMs ? `${(1000 * stats.generated / stats.generateMs).toFixed(1)} tokens/s` : "";
  const read = `read ${stats.prompt - stats.reused} tokens in ${seconds(stats.promptMs)}`;
  return <span class="quiet">{[`${stats.generated} tokens`, rate, read, stats.reused ? `${stats.reused} reused` : ""]
    .filter(Boolean).join(" · ")}</span>;
}

function Siblings({ conversation, turn }: { conversation: Conversation; turn: Turn }) {
  const all = children(conversation, turn.parent);
  if (all.length < 2) return null;
  const at = all.findIndex((each) => each.id === turn.id);
  const go = (to: Turn | undefined): void => { if (to) choose(conversation, to); };
  return <span class="siblings">
    <button type="button" class="icon" aria-label="The one before" disabled={at === 0} onClick={() => go(all[at - 1])}>‹</button>
    {at + 1}/{all.length}
    <button type="button" class="icon" aria-label="The next one" disabled={at === all.length - 1} onClick={() => go(all[at + 1])}>›</button>
  </span>;
}

function Question({ conversation, turn }: { conversation: Conversation; turn: Turn }) {
  const editing = useSignal(false);
  const field = useRef<HTMLTextAreaElement>(null);
  const save = (): void => {
    const text = field.current?.value ?? "";
    editing.value = false;
    if (text.trim()) send(text, turn.attachments ?? [], turn.parent);
  };
  return <article class="question" aria-label="Your question">
    {turn.attachments?.length ? <ul class="files">{turn.attachments.map((file, index) =>
      <li key={index}><details><summary>{file.name}</summary><pre tabIndex={0}>{file.text}</pre></details></li>)}</ul> : null}
    {editing.value
      ? <div class="edit"><textarea ref={field} rows={4} aria-label="Change your question" defaultValue={turn.text} />
          <button type="button" class="primary" onClick={save}>Send</button>{" "}
          <button type="button" onClick={() => { editing.value = false; }}>Cancel</button></div>
      : <p class="plain">{turn.text}</p>}
    <p class="actions">
      <Siblings conversation={conversation} turn={turn} />
      {!editing.value && !busy(conversation.id) && <button type="button" class="quiet" onClick={() => { editing.value = true; }}>Edit</button>}
      <button type="button" class="quiet" onClick={(event) => void copy(turn.text, event.currentTarget)}>Copy</button>
      <time class="quiet" title={clock.format(turn.created)}>{clock.format(turn.created)}</time>
    </p>
  </article>;
}

const ENDS: Record<string, string> = {
  length: "The answer reached its longest length.", context_full: "The context is full.", stopped: "Stopped.", broken: "Broken off.",
};

function Answer({ conversation, turn, last }: { conversation: Conversation; turn: Turn; last: boolean }) {
  const work = workOf(turn.id);
  const end = turn.finish ? ENDS[turn.finish] : undefined;
  const free = !work && !busy(conversation.id);
  return <article class="answer" aria-label="The model's answer" aria-busy={Boolean(work)}>
    <Thinking turn={turn} work={work} />
    {work && <Waiting work={work} />}
    <Markdown text={() => turn.text} growing={Boolean(work)} />
    {!work && (turn.error || end) && <p class={turn.error ? "error" : "quiet"} role={turn.error ? "alert" : undefined}>{turn.error ?? end}</p>}
    {!work && <p class="actions">
      <Siblings conversation={conversation} turn={turn} />
      <button type="button" class="quiet" onClick={(event) => void copy(turn.text, event.currentTarget)}>Copy</button>
      {free && <button type="button" class="quiet" onClick={() => answer(conversation, turn)}>Again</button>}
      {free && last && turn.finish !== "stop" && turn.text && <button type="button" class="quiet" onClick={() => lengthen(conversation, turn)}>Continue</button>}
      {turn.stats && <StatsLine stats={turn.stats} />}
      <time class="quiet" title={clock.format(turn.created)}>{clock.format(turn.created)}</time>
    </p>}
  </article>;
}

export function Message(props: { conversation: Conversation; turn: Turn; last: boolean }) {
  return props.turn.role === "user" ? <Question {...props} /> : <Answer {...props} />;
}
