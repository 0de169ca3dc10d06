import { useSignal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { say, textOf } from "./aloud";
import { answer, lengthen, send } from "./answers";
import { types } from "./composer";
import { MarkdownView } from "./growing";
import { busy, choose, editing, ticks, workOf, type Work } from "./state";
import { children } from "./tree";
import type { Conversation, Stats, Turn } from "./types";

const dateAndTime = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const justTime = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const When = ({ at }: { at: number }) => <time dateTime={new Date(at).toISOString()} title={dateAndTime.format(at)}>
  {(new Date(at).toDateString() === new Date().toDateString() ? justTime : dateAndTime).format(at)}</time>;

async function copy(text: string, button: HTMLButtonElement): Promise<void> {
  const label = button.textContent;
  const done = await (navigator.clipboard
    ? navigator.clipboard.writeText(text).then(() => true, () => copyOld(text)) : copyOld(text));
  button.textContent = done ? "Copied" : "Not allowed";
  say(button.textContent);
  setTimeout(() => { button.textContent = label; }, 1500);
}

/** Without navigator.clipboard, which is not there where a page comes over plain HTTP from another machine. */
function copyOld(text: string): boolean {
  const field = document.createElement("textarea"), focused = document.activeElement as HTMLElement | null;
  field.value = text;
  field.className = "aloud";
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}

function onCopy(event: MouseEvent): void {
  const button = event.target as HTMLElement;
  if (!button.classList.contains("copy")) return;
  void copy(button.closest(".code")?.querySelector("code")?.textContent ?? "", button as HTMLButtonElement);
}

/** A text that grows while an answer is made: rendered once a frame. aloud: it is read out as it comes. */
function Markdown({ text, growing, aloud }: { text: () => string; growing: boolean; aloud?: boolean }) {
  const element = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    element.current!.replaceChildren();
    const view = new MarkdownView(element.current!, growing && aloud ? (part) => say(textOf(part)) : undefined);
    if (!growing) {
      view.update(text(), true);
      return;
    }
    let frame = 0;
    const draw = (): void => { if (!view.update(text(), false)) frame = requestAnimationFrame(draw); };
    const off = ticks.subscribe(() => {
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(draw);
    });
    return () => {
      off();
      cancelAnimationFrame(frame);
      view.update(text(), true); // what was not complete is read out, too
    };
  }, [growing, growing ? "" : text()]);
  return <div class="markdown" ref={element} onClick={onCopy} />;
}

const seconds = (ms: number): string =>
  ms < 95 ? `${Math.ceil(ms)}\u00a0ms` : ms < 9950 ? `${(ms / 1000).toFixed(1)}\u00a0s` : `${Math.round(ms / 1000)}\u00a0s`;

function Thinking({ turn, work }: { turn: Turn; work: Work | undefined }) {
  const thinks = work?.phase === "thinking";
  const open = useSignal(false);
  if (thinks) ticks.value; // its time goes on
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
  if (work.phase === "lost") return <p class="waiting" role="status">The connection was lost; trying again…</p>;
  if (at?.queue) {
    return <p class="waiting" role="status">Waiting for {at.queue} other {at.queue === 1 ? "answer" : "answers"}…</p>;
  }
  if (!at?.total) return <p class="waiting" role="status">Waiting for the server…</p>;
  const words = `Reading ${at.done} of ${at.total} tokens${at.cached ? `, ${at.cached} known already` : ""}`;
  return <p class="waiting"><progress max={at.total} value={at.done} aria-label={words} /> {words}</p>;
}

const nTokens = (n: number): string => (n === 1 ? "1 token" : `${n} tokens`);

function factsOf(stats: Stats): string[] {
  const rate = stats.generateMs && stats.generated > 1
    ? `${(1000 * (stats.generated - 1) / stats.generateMs).toFixed(1)} tokens/s` : "";
  const read = `read ${nTokens(stats.prompt - stats.reused)} in ${seconds(stats.promptMs)}`;
  return [nTokens(stats.generated), rate, read, stats.reused ? `${stats.reused} reused` : ""].filter(Boolean);
}

function Siblings({ conversation, turn }: { conversation: Conversation; turn: Turn }) {
  const all = children(conversation, turn.parent);
  if (all.length < 2) return null;
  const at = all.findIndex((each) => each.id === turn.id);
  const go = (to: Turn | undefined): void => { if (to) choose(conversation, to); };
  return <span class="siblings">
    <button type="button" class="icon" aria-label="The one before" disabled={at === 0}
                onClick={() => go(all[at - 1])}>‹</button>
    {at + 1}/{all.length}
    <button type="button" class="icon" aria-label="The next one" disabled={at === all.length - 1}
                onClick={() => go(all[at + 1])}>›</button>
  </span>;
}

const toQuestion = (): void => { // where one goes on, when the button that was pressed is gone
  if (types.matches) document.getElementById("question")?.focus();
};

function Edit({ turn }: { turn: Turn }) {
  const field = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => {
    field.current!.focus();
    field.current!.setSelectionRange(turn.text.length, turn.text.length);
  }, []);
  const end = (): void => { editing.value = null; toQuestion(); };
  const save = (): void => {
    const text = field.current!.value;
    if (!text.trim() && !turn.attachments?.length) return;
    end();
    send(text, turn.attachments ?? [], turn.parent);
  };
  const onKey = (event: KeyboardEvent): void => {
    if (event.key === "Escape") { event.stopPropagation(); end(); }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
  };
  return <div class="edit">
    <textarea ref={field} rows={3} aria-label="Change your question" defaultValue={turn.text} onKeyDown={onKey} />
    <p class="row"><button type="button" class="primary" onClick={save}>Send</button>
      <button type="button" onClick={end}>Cancel</button><span class="quiet">The question before stays as a branch.</span></p>
  </div>;
}

function Question({ conversation, turn }: { conversation: Conversation; turn: Turn }) {
  if (editing.value === turn.id) return <article class="question" aria-label="Your question"><Edit turn={turn} /></article>;
  return <article class="question" aria-label="Your question">
    {turn.attachments?.length ? <ul class="files">{turn.attachments.map((file, index) =>
      <li key={index}><details><summary>{file.name}</summary><pre tabIndex={0}>{file.text}</pre></details></li>)}</ul> : null}
    {turn.text && <p class="plain">{turn.text}</p>}
    <p class="actions">
      <Siblings conversation={conversation} turn={turn} />
      <span class="quiet"><When at={turn.created} /></span>
      {!busy(conversation.id) && <button type="button" class="quiet" onClick={() => { editing.value = turn.id; }}>Edit</button>}
      <button type="button" class="quiet" onClick={(event) => void copy(turn.text, event.currentTarget)}>Copy</button>
    </p>
  </article>;
}

const ENDS: Record<string, string> = {
  length: "The answer reached its longest length.", context_full: "The context is full.",
  stopped: "Stopped.", broken: "Broken off.",
};

function Answer({ conversation, turn, last }: { conversation: Conversation; turn: Turn; last: boolean }) {
  const work = workOf(turn.id);
  const end = turn.finish ? ENDS[turn.finish] : undefined;
  const free = !work && !busy(conversation.id);
  return <article class="answer" aria-label="The model's answer" aria-busy={Boolean(work)}>
    <Thinking turn={turn} work={work} />
    {work && <Waiting work={work} />}
    <Markdown text={() => turn.text} growing={Boolean(work)} aloud />
    {!work && (turn.error || end) && <p class={turn.error ? "error" : "quiet"}
          role={turn.error ? "alert" : undefined}>{turn.error ?? end}</p>}
    {!work && <p class="actions">
      <Siblings conversation={conversation} turn={turn} />
      <button type="button" class="quiet" onClick={(event) => void copy(turn.text, event.currentTarget)}>Copy</button>
      {free && <button type="button" class="quiet" onClick={() => { answer(conversation, turn); toQuestion(); }}>Again</button>}
      {free && last && turn.finish !== "stop" && turn.text && <button type="button" class="quiet"
        onClick={() => { lengthen(conversation, turn); toQuestion(); }}>Continue</button>}
      <span class="quiet facts">{turn.stats && `${factsOf(turn.stats).join(" · ")} · `}<When at={turn.created} /></span>
    </p>}
  </article>;
}

export function Message(props: { conversation: Conversation; turn: Turn; last: boolean }) {
  return props.turn.role === "user" ? <Question {...props} /> : <Answer {...props} />;
}
