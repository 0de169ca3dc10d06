// What the page shows, and what changes it.
import { batch, signal } from "@preact/signals";
import * as api from "./api";
import * as store from "./store";
import { count } from "./tally";
import { addTurn, newestLeaf, newId, path, sentText, titleOf } from "./tree";
import type { Attachment, Conversation, Effort, Info, Turn } from "./types";

export interface Options {
  system: string;
  temperature: number | null;
  topP: number | null;
  minP: number | null;
  maxTokens: number | null;
  seed: number | null;
  thinkingBudget: number | null;
}
const OPTIONS: Options = { system: "", temperature: null, topP: null, minP: null, maxTokens: null, seed: null,
                           thinkingBudget: null };

/** An answer that is being made. */
export interface Work {
  job: string;
  conversation: string;
  turn: string;
  controller: AbortController;
  phase: "waiting" | "prompt" | "thinking" | "answer";
  progress: api.Progress | null;
  thinkingSince: number;
}

export const conversations = signal<Conversation[]>([]);
export const current = signal<string | null>(null);
export const works = signal<Work[]>([]);
export const server = signal<Info | null>(null);
export const trouble = signal<string>(""); // of the server as a whole
export const needsKey = signal(false);
export const effort = signal<Effort>(store.setting<Effort>("effort", "off"));
export const options = signal<Options>(store.setting("options", OPTIONS));
export const theme = signal<"auto" | "light" | "dark">(store.setting<"auto" | "light" | "dark">("theme", "auto"));
export const sidebar = signal(matchMedia("(min-width: 760px)").matches);
export const announcement = signal(""); // read aloud
export const ticks = signal(0); // goes up as the text of an answer grows

export const conversationOf = (id: string | null): Conversation | undefined =>
  conversations.value.find((each) => each.id === id);
export const workOf = (turn: string): Work | undefined => works.value.find((each) => each.turn === turn);
export const busy = (conversation: string | null): Work | undefined =>
  works.value.find((each) => each.conversation === conversation);

const touched = (): void => { conversations.value = [...conversations.value]; };
const keep = (conversation: Conversation): void => { void store.save(conversation); };

// -- the server --

/** Asks the server what it is until it is ready. */
export async function connect(): Promise<void> {
  try {
    const found = await api.info();
    batch(() => { server.value = found; trouble.value = ""; needsKey.value = false; });
    if (found.state === "loading") setTimeout(() => void connect(), 1000);
  } catch (error) {
    const status = error instanceof api.ServerError ? error.status : -1;
    needsKey.value = status === 401;
    trouble.value = status === 401 ? "" : "The server does not answer. Is `pyflash serve` still running?";
    if (status !== 401) setTimeout(() => void connect(), 3000);
  }
}

// -- conversations --

export async function begin(): Promise<void> {
  try {
    conversations.value = (await store.loadAll()).sort((a, b) => b.updated - a.updated);
  } catch {
    trouble.value = "This browser keeps no data for the page: chats are gone when it is closed.";
  }
  const wanted = location.hash.slice(1);
  current.value = conversationOf(wanted)?.id ?? null;
  for (const conversation of conversations.value) {
    for (const turn of Object.values(conversation.turns)) if (turn.job) void goOn(conversation, turn);
  }
}

export function show(id: string | null): void {
  current.value = id;
  history.replaceState(null, "", id ? `#${id}` : location.pathname);
  if (!matchMedia("(min-width: 760px)").matches) sidebar.value = false;
}

export function rename(conversation: Conversation, title: string): void {
  conversation.title = title.trim() || conversation.title;
  conversation.renamed = true;
  touched();
  keep(conversation);
}

export async function removeConversation(id: string): Promise<void> {
  const work = busy(id);
  if (work) await stop(work);
  conversations.value = conversations.value.filter((each) => each.id !== id);
  if (current.value === id) show(null);
  await store.remove(id);
}

export function addConversations(found: Conversation[]): void {
  conversations.value = [...found, ...conversations.value].sort((a, b) => b.updated - a.updated);
  found.forEach(keep);
}

/** Shows a sibling of a turn, with what came after it. */
export function choose(conversation: Conversation, turn: Turn): void {
  conversation.leaf = newestLeaf(conversation, turn.id);
  touched();
  keep(conversation);
}

// -- answers --

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
  const turn: Turn = { id: newId(), parent, role: "assistant", text: "", created: Date.now(), job: newId() };
  addTurn(conversation, turn);
  run(conversation, conversation.turns[turn.id]!, false);
}

/** Goes on with an answer where it ends. */
export function lengthen(conversation: Conversation, turn: Turn): void {
  turn.job = newId();
  delete turn.finish;
  delete turn.error;
  run(conversation, turn, true);
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
  const chosen = { temperature, top_p: topP, min_p: minP, max_tokens: maxTokens, seed, reasoning_budget: thinks ? thinkingBudget : null };
  return {
    model: server.value?.name ?? "", messages, thinking: { type: thinks ? "enabled" : "disabled" },
    ...(thinks ? { reasoning_effort: effort.value === "max" ? "max" : "high" } : {}), prompt_cache_key: conversation.id,
    ...Object.fromEntries(Object.entries(chosen).filter(([, value]) => value !== null)),
  };
}

function run(conversation: Conversation, turn: Turn, lengthens: boolean): void {
  const begun = { text: turn.text, reasoning: turn.reasoning ?? "" };
  touched();
  keep(conversation);
  void listen(conversation, turn, begun, async (listener, signal) => {
    await ready();
    await api.start(turn.job!, requestOf(conversation, turn, lengthens), listener, signal);
  });
}

/** Waits until the model has been loaded. */
function ready(): Promise<void> {
  return new Promise((resolve) => {
    let off: (() => void) | undefined;
    off = server.subscribe((found) => {
      if (found?.state !== "ready") return;
      resolve();
      queueMicrotask(() => off?.());
    });
  });
}

/** After a reload: listens again to what the server still works on. */
async function goOn(conversation: Conversation, turn: Turn): Promise<void> {
  const begun = { text: "", reasoning: "" };
  await listen(conversation, turn, begun, (listener, signal) => api.resume(turn.job!, listener, signal));
}

type Source = (listener: api.Listener, signal: AbortSignal) => Promise<void>;

async function listen(conversation: Conversation, turn: Turn, begun: { text: string; reasoning: string },
                      source: Source): Promise<void> {
  const work: Work = { job: turn.job!, conversation: conversation.id, turn: turn.id, controller: new AbortController(),
                       phase: "waiting", progress: null, thinkingSince: 0 };
  const change = (changed: Partial<Work>): void => {
    Object.assign(work, changed);
    works.value = [...works.value];
  };
  const grow = (): void => { ticks.value++; };
  works.value = [...works.value, work];
  let { text, reasoning } = begun;
  let saved = Date.now();
  const listener: api.Listener = {
    progress: (progress) => change({ phase: "prompt", progress }),
    reasoning: (piece) => {
      if (work.phase !== "thinking") change({ phase: "thinking", thinkingSince: Date.now() });
      turn.reasoning = reasoning += piece;
      turn.reasoningMs = Date.now() - work.thinkingSince;
      grow();
    },
    content: (piece) => {
      if (work.phase !== "answer") change({ phase: "answer" });
      turn.text = text += piece;
      if (Date.now() - saved > 2000) { saved = Date.now(); keep(conversation); }
      grow();
    },
    end: (finish, stats) => {
      turn.finish = turn.finish === "stopped" ? "stopped" : finish;
      if (stats) { turn.stats = stats; count(stats); }
      delete turn.job;
    },
  };
  try {
    await source(listener, work.controller.signal);
  } catch (error) {
    note(turn, error);
  }
  works.value = works.value.filter((each) => each !== work);
  announcement.value = turn.error ? `The answer broke off: ${turn.error}` : "The answer is complete.";
  touched();
  ticks.value++;
  keep(conversation);
}

/** What is left of an answer that did not come to its end. Where only the connection went, its job may still run. */
function note(turn: Turn, error: unknown): void {
  const isServer = error instanceof api.ServerError;
  if (turn.finish === "stopped" || (isServer && error.message === api.MISSING)) {
    turn.finish ??= "broken";
  } else {
    turn.finish = "broken";
    turn.error = isServer ? error.message : "the connection to the server was lost: reload the page to go on";
  }
  if (isServer || turn.finish === "stopped") delete turn.job;
}

export async function stop(work: Work): Promise<void> {
  const turn = conversationOf(work.conversation)?.turns[work.turn];
  if (turn) turn.finish = "stopped";
  await api.tell(work.job, "stop").catch(() => undefined);
  setTimeout(() => work.controller.abort(), 1500); // the end that the server sends is waited for that long
}

export const answerNow = (work: Work): Promise<void> => api.tell(work.job, "answer").catch(() => undefined);
