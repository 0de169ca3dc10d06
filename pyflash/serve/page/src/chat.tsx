import { useSignal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { send } from "./answers";
import { Composer } from "./composer";
import { Message } from "./message";
import { busy, conversationOf, current, server } from "./state";
import { tokens } from "./tally";
import { path } from "./tree";
import type { Turn } from "./types";

const THINGS = [
  "Explain how a mixture-of-experts model works, in five sentences",
  "Write a Python function that merges overlapping intervals, with tests",
  "Plan a three-day walk along a coast: a table of stages, distances and what to pack",
  "Find the mistake: every prime is odd, because even numbers are divisible by 2",
];
const DEMO_THINGS = ["Hello, who are you?", "What is 12 + 30?", "What is the capital of France?", "What can you do?"];

function Welcome() {
  const found = server.value;
  const demo = found?.demo ?? false;
  if (!found) return <section class="welcome"><h1>pyflash</h1><p role="status">Looking for the server…</p></section>;
  return <section class="welcome">
    <h1>{demo ? "The demonstration model" : found.name}</h1>
    <p>{demo
      ? "A few million parameters in the shape of DeepSeek-V4-Flash, trained on made-up conversations: "
        + "it does small sums, knows a few facts and chats a little. For real answers, start the server with a real model's "
        + "file."
      : "DeepSeek-V4-Flash runs on this computer. What you write stays here: no other machine sees it."}</p>
    {found.context > 0 && <p class="quiet">{found.name} · {tokens(found.context)} tokens of context</p>}
    <ul>{(demo ? DEMO_THINGS : THINGS).map((text) =>
      <li key={text}><button type="button" onClick={() => send(text, [])}>{text}</button></li>)}</ul>
  </section>;
}

/** How much of the context the shown branch takes, as the last answer counted it. */
function ContextMeter({ turns }: { turns: Turn[] }) {
  const size = server.value?.context ?? 0;
  const stats = turns.findLast((turn) => turn.stats)?.stats;
  if (!stats || !size) return null;
  const used = stats.prompt + stats.generated;
  const words = `${tokens(used)} of ${tokens(size)} tokens of context`;
  return <span class="context" title={words}><meter min={0} max={size} high={0.8 * size} value={used} aria-label={words} />{" "}
    {tokens(used)} of {tokens(size)} tokens</span>;
}

/** Keeps the end of a growing chat in sight, unless somebody has scrolled away from it. */
function useFollowing(conversation: string | null, n: number) {
  const scroller = useRef<HTMLDivElement>(null), content = useRef<HTMLDivElement>(null);
  const follows = useSignal(true), before = useRef(0);
  const toEnd = (): void => {
    follows.value = true;
    scroller.current!.scrollTop = conversation ? scroller.current!.scrollHeight : 0;
  };
  useLayoutEffect(() => {
    toEnd();
    if (!content.current) return;
    const observer = new ResizeObserver(() => { if (follows.peek()) toEnd(); });
    observer.observe(content.current);
    return () => observer.disconnect();
  }, [conversation, n]);
  const onScroll = (): void => { // of somebody, or of toEnd() before the text grew again: that goes down
    const { scrollHeight, scrollTop, clientHeight } = scroller.current!;
    if (scrollHeight - scrollTop - clientHeight < 60) follows.value = true;
    else if (scrollTop < before.current) follows.value = false;
    before.current = scrollTop;
  };
  return { scroller, content, follows, toEnd, onScroll };
}

export function Chat() {
  const conversation = conversationOf(current.value);
  const turns = conversation ? path(conversation) : [];
  const { scroller, content, follows, toEnd, onScroll } = useFollowing(current.value, turns.length);
  const work = busy(current.value);
  return <>
    <div class="scroller" ref={scroller} onScroll={onScroll} tabIndex={-1}>
      {conversation && <h1 class="aloud">{conversation.title}</h1>}
      {conversation ? <div class="turns" ref={content} role="log" aria-label="Chat" aria-live="off">
        {turns.map((turn) => <Message key={turn.id} conversation={conversation} turn={turn} last={turn === turns.at(-1)} />)}
      </div> : <Welcome />}
    </div>
    <div class="foot">
      {!follows.value && <button type="button" class="to-end" aria-label="To the end" title="To the end"
            onClick={toEnd}>↓</button>}
      <Composer work={work} />
      <p class="under"><ContextMeter turns={turns} /><span>Answers can be wrong.</span></p>
    </div>
  </>;
}
