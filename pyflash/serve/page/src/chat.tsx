import { useEffect, useRef } from "preact/hooks";
import { Composer } from "./composer";
import { Message } from "./message";
import { busy, conversationOf, current, send, server, ticks } from "./state";
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
  return <section class="welcome">
    <h1>{demo ? "The demonstration model" : found?.name ?? "pyflash"}</h1>
    <p>{demo
      ? "A few million parameters, trained on made-up conversations, in the shape of DeepSeek-V4-Flash: it shows that everything works. It does small sums, knows a few facts and chats a little. Start the server with a real model's file for real answers."
      : "DeepSeek-V4-Flash runs on this computer. What you write stays here: no other machine sees it."}</p>
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
  return <span class="context" title={words}><meter min={0} max={size} high={0.8 * size} value={used} aria-label={words} /> {words}</span>;
}

export function Chat() {
  const conversation = conversationOf(current.value);
  const scroller = useRef<HTMLDivElement>(null);
  const follows = useRef(true);
  const turns = conversation ? path(conversation) : [];
  const work = busy(current.value);
  useEffect(() => { follows.current = true; }, [current.value, turns.length]);
  useEffect(() => ticks.subscribe(() => {
    const element = scroller.current;
    if (element && follows.current) requestAnimationFrame(() => { element.scrollTop = element.scrollHeight; });
  }), []);
  useEffect(() => {
    const element = scroller.current;
    if (element) element.scrollTop = conversation ? element.scrollHeight : 0;
  }, [current.value, turns.length]);
  const onScroll = (): void => {
    const element = scroller.current!;
    follows.current = element.scrollHeight - element.scrollTop - element.clientHeight < 60;
  };
  return <>
    <div class="scroller" ref={scroller} onScroll={onScroll} tabIndex={-1}>
      {conversation && <h1 class="aloud">{conversation.title}</h1>}
      {conversation ? <div class="turns" role="log" aria-label="Chat" aria-live="off">
        {turns.map((turn) => <Message key={turn.id} conversation={conversation} turn={turn} last={turn === turns.at(-1)} />)}
      </div> : <Welcome />}
    </div>
    <div class="foot">
      <Composer work={work} />
      <p class="under"><ContextMeter turns={turns} /><span class="quiet">Answers can be wrong.</span></p>
    </div>
  </>;
}
