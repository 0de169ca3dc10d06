// Answers: asking for them, listening to them, stopping them.
import * as api from "./api";
import { say } from "./aloud";
import { busy, connect, conversationOf, conversations, current, effort, keep, options, server, show,
         ticks, touched, trouble, works, type Work } from "./state";
import * as store from "./store";
import { count } from "./tally";
import { addTurn, newId, path, sentText, titleOf } from "./tree";
import type { Attachment, Conversation, Turn } from "./types";

const JOB_LIFE = 300_000; // milliseconds that the server keeps an answer to which nobody listens
const SAVE_EVERY = 2000;
const RATE_OVER = 5000;
const STOP_MOST = 2000;
const GONE = "the connection broke off, and the server no longer has this answer: ask again";

/** Reads what is kept, and listens again to what the server still works on. Somebody may have asked something already. */
export async function begin(): Promise<void> {
  let kept: Conversation[] = [];
  try {
    kept = (await store.loadAll()).filter((each) => !conversationOf(each.id));
  } catch {
    trouble.value = "This browser keeps no data for the page: chats are gone when it is closed.";
  }
  conversations.value = [...conversations.value, ...kept].sort((a, b) => b.updated - a.updated);
  current.value = conversationOf(location.hash.slice(1))?.id ?? null;
  for (const conversation of kept) {
    for (const turn of Object.values(conversation.turns)) {
      if (turn.job && turn.finish === "stopped") void api.tell(turn.job, "stop"); // which may not have come there
      if (turn.job) void listen(conversation, turn, null);
    }
  }
}

/** Sends a text of the user. parent: the turn that it answers; undefined: the last one that is shown. */
export function send(text: string, attachments: Attachment[], parent?: string | null): void {
  let conversation = conversationOf(current.value);
  if (!conversation) {
    conversation = { id: newId(), title: titleOf(text || attachments[0]?.name || ""), created: Date.now(), updated: Date.now(),
                     turns: {}, leaf: null };
    conversations.value = [conversation, ...conversations.value];
    show(conversation.id);
  }
  const above = parent === undefined ? conversation.leaf : parent;
  addTurn(conversation, { id: newId(), parent: above, role: "user", text, created: Date.now(),
                          ...(attachments.length ? { attachments } : {}) });
  conversations.value = [conversation, ...conversations.value.filter((each) => each !== conversation)];
  answer(conversation);
}

/** A new answer to the question of an answer, or to the last question. */
export function answer(conversation: Conversation, instead?: Turn): void {
  const parent = instead ? instead.parent : conversation.leaf;
  const turn: Turn = { id: newId(), parent, role: "assistant", text: "", created: Date.now() };
  addTurn(conversation, turn);
  run(conversation, conversation.turns[turn.id]!, false);
}

/** Goes on with an answer where it ends. */
export function lengthen(conversation: Conversation, turn: Turn): void {
  delete turn.finish;
  delete turn.error;
  if (turn.reasoning) turn.reasoningSince = Date.now() - (turn.reasoningMs ?? 0);
  run(conversation, turn, true);
}

function run(conversation: Conversation, turn: Turn, lengthens: boolean): void {
  turn.job = newId();
  turn.before = { text: turn.text.length, reasoning: turn.reasoning?.length ?? 0 };
  touched();
  keep(conversation);
  void listen(conversation, turn, requestOf(conversation, turn, lengthens));
}

function requestOf(conversation: Conversation, turn: Turn, lengthens: boolean): object {
  const { system, temperature, topP, minP, maxTokens, seed, thinkingBudget } = options.value;
  const messages: object[] = system.trim() ? [{ role: "system", content: system }] : [];
  const before = path({ ...conversation, leaf: turn.parent });
  for (const each of before) messages.push({ role: each.role, content: sentText(each) });
  if (lengthens) {
    messages.push({ role: "assistant", content: turn.text, prefix: true,
                    ...(turn.reasoning ? { reasoning_content: turn.reasoning } : {}) });
  }
  const thinks = lengthens && turn.text ? Boolean(turn.reasoning) : effort.value !== "off";
  const chosen = { temperature, top_p: topP, min_p: minP, max_tokens: maxTokens, seed,
                     reasoning_budget: thinks ? thinkingBudget : null };
  return {
    model: server.value?.name ?? "", messages, thinking: { type: thinks ? "enabled" : "disabled" },
    ...(thinks ? { reasoning_effort: effort.value === "max" ? "max" : "high" } : {}), prompt_cache_key: conversation.id,
    ...Object.fromEntries(Object.entries(chosen).filter(([, value]) => value !== null)),
  };
}

/** Waits until the server has its model, and takes the key. */
function ready(signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    let off: (() => void) | undefined;
    const end = (act: () => void): void => { act(); queueMicrotask(() => off?.()); };
    signal.addEventListener("abort", () => end(() => reject(signal.reason)));
    off = server.subscribe((found) => { if (found?.state === "ready") end(resolve); });
  });
}

const pause = (milliseconds: number, signal: AbortSignal): Promise<void> => new Promise((resolve, reject) => {
  setTimeout(resolve, milliseconds);
  signal.addEventListener("abort", () => reject(signal.reason));
});

/** Listens to an answer until its end, also where the connection is lost in between. request: null after a reload. */
async function listen(conversation: Conversation, turn: Turn, request: object | null): Promise<void> {
  const work: Work = { job: turn.job!, conversation: conversation.id, turn: turn.id, controller: new AbortController(),
                       phase: "waiting", progress: null, pieces: [] };
  works.value = [...works.value, work];
  try {
    await hear(conversation, turn, work, request);
  } catch (error) {
    note(turn, error);
  }
  works.value = works.value.filter((each) => each.job !== work.job);
  const where = conversation.id === current.value ? "" : ` in ${conversation.title}`;
  say(turn.error ? `The answer${where} broke off: ${turn.error}` : `The answer${where} is complete.`);
  touched();
  ticks.value++;
  keep(conversation);
}

/** Asks for the answer, and again for what is left of it, until it is whole. */
async function hear(conversation: Conversation, turn: Turn, work: Work, request: object | null): Promise<void> {
  const { signal } = work.controller;
  let isNew = request !== null, lostSince = 0, wait = 500;
  for (;;) {
    try {
      await ready(signal);
      const listener = listenerOf(conversation, turn, work, !isNew);
      if (isNew) return await api.start(work.job, request!, listener, signal);
      if (await api.resume(work.job, listener, signal)) return;
      const isUnheard = !turn.text.slice(turn.before?.text) && !turn.reasoning?.slice(turn.before?.reasoning);
      if (!isUnheard || Date.now() - turn.created > JOB_LIFE) throw new api.ServerError(GONE, 404);
      request ??= requestOf(conversation, turn, Boolean(turn.text)); // it never came there
      isNew = true;
    } catch (error) {
      if (!(error instanceof api.ConnectionError) || signal.aborted) throw error;
      lostSince ||= Date.now();
      if (Date.now() - lostSince > JOB_LIFE) throw error;
      isNew = false;
      change(work, { phase: "lost", progress: null });
      void connect();
      await pause(wait, signal);
      wait = Math.min(2 * wait, 10_000);
    }
  }
}

/** As a new object: components that are given the same one are not drawn again. */
function change(work: Work, changed: Partial<Work>): void {
  works.value = works.value.map((each) => (each.job === work.job ? { ...each, ...changed } : each));
}

/** Writes what comes into the turn, after what it had before its job. */
function listenerOf(conversation: Conversation, turn: Turn, work: Work, isRepeated: boolean): api.Listener {
  const before = turn.before ?? { text: 0, reasoning: 0 };
  let text = turn.text.slice(0, before.text), reasoning = (turn.reasoning ?? "").slice(0, before.reasoning), saved = Date.now();
  let phase: Work["phase"] = "waiting";
  const enter = (entered: Work["phase"]): void => {
    if (phase === entered) return;
    phase = entered;
    change(work, { phase });
  };
  const grow = (): void => {
    const now = performance.now(), { pieces } = work;
    pieces.splice(0, Math.max(0, pieces.findIndex((at) => now - at < RATE_OVER)));
    pieces.push(now);
    if (Date.now() - saved > SAVE_EVERY) { saved = Date.now(); keep(conversation); }
    ticks.value++;
  };
  return {
    progress: (progress) => { // in a silence of the answer, too
      if (phase === "thinking" || phase === "answer") return;
      phase = "prompt";
      change(work, { phase, progress });
    },
    reasoning: (piece) => {
      turn.reasoningSince ??= Date.now();
      enter("thinking");
      turn.reasoning = reasoning += piece;
      turn.reasoningMs = Date.now() - turn.reasoningSince!;
      grow();
    },
    content: (piece) => {
      enter("answer");
      turn.text = text += piece;
      grow();
    },
    end: (finish, stats, reasoningTokens) => {
      turn.finish = turn.finish === "stopped" ? "stopped" : finish;
      if (stats) { turn.stats = stats; count(stats); }
      if (stats && reasoningTokens && isRepeated && !before.reasoning) {
        turn.reasoningMs = stats.generateMs * reasoningTokens / stats.generated;
      }
      delete turn.job;
      delete turn.before;
    },
  };
}

/** What is left of an answer that did not come to its end. Where only the connection went, its job may still run. */
function note(turn: Turn, error: unknown): void {
  const isStopped = turn.finish === "stopped";
  if (!isStopped) {
    turn.finish = "broken";
    turn.error = error instanceof api.ServerError ? error.message : "the server cannot be reached: start it, and ask again";
  }
  delete turn.job;
  delete turn.before;
}

export async function stop(work: Work): Promise<void> {
  const conversation = conversationOf(work.conversation), turn = conversation?.turns[work.turn];
  if (conversation && turn) {
    turn.finish = "stopped";
    keep(conversation);
  }
  setTimeout(() => work.controller.abort(), STOP_MOST);
  if (!await api.tell(work.job, "stop")) work.controller.abort(); // else the server sends the answer's end, with its counts
}

export const answerNow = (work: Work): Promise<boolean> => api.tell(work.job, "answer");

export async function removeConversation(id: string): Promise<void> {
  const work = busy(id);
  conversations.value = conversations.value.filter((each) => each.id !== id);
  if (current.value === id) show(null);
  await Promise.allSettled([store.remove(id), work && stop(work)]);
}
