// What the page shows, and what changes it.
import { batch, signal } from "@preact/signals";
import * as api from "./api";
import * as store from "./store";
import { newestLeaf } from "./tree";
import type { Conversation, Effort, Info, Turn } from "./types";

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
  phase: "waiting" | "prompt" | "thinking" | "answer" | "lost";
  progress: api.Progress | null;
  pieces: number[]; // when those of the last seconds came
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
export const notice = signal(""); // what went otherwise than asked for
export const editing = signal<string | null>(null); // the question that is being changed
export const ticks = signal(0); // goes up as the text of an answer grows

export const conversationOf = (id: string | null): Conversation | undefined =>
  conversations.value.find((each) => each.id === id);
export const workOf = (turn: string): Work | undefined => works.value.find((each) => each.turn === turn);
export const busy = (conversation: string | null): Work | undefined =>
  works.value.find((each) => each.conversation === conversation);

export const touched = (): void => { conversations.value = [...conversations.value]; };
export const keep = (conversation: Conversation): void => { // one that has been deleted does not come back
  if (conversationOf(conversation.id) === conversation) void store.save(conversation).catch(() => undefined);
};

// -- the server --

let next = 0;

/** Asks the server what it is until it is ready. */
export async function connect(): Promise<void> {
  clearTimeout(next);
  try {
    const found = await api.info();
    batch(() => { server.value = found; trouble.value = ""; needsKey.value = false; });
    if (found.state === "loading") next = setTimeout(() => void connect(), 1000);
  } catch (error) {
    const status = error instanceof api.ServerError ? error.status : -1;
    needsKey.value = status === 401;
    trouble.value = status === 401 ? "" : "The server does not answer. Is `pyflash serve` still running?";
    if (status !== 401) next = setTimeout(() => void connect(), 3000);
  }
}

// -- conversations --

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

/** Adds imported conversations. Of one that is here already the later is kept. Returns how many came. */
export function addConversations(found: Conversation[]): number {
  const added = found.filter((each) => each.updated > (conversationOf(each.id)?.updated ?? -Infinity) && !busy(each.id));
  const ids = new Set(added.map((each) => each.id));
  conversations.value = [...added, ...conversations.value.filter((each) => !ids.has(each.id))]
    .sort((a, b) => b.updated - a.updated);
  added.forEach(keep);
  return added.length;
}

/** Shows a sibling of a turn, with what came after it. */
export function choose(conversation: Conversation, turn: Turn): void {
  conversation.leaf = newestLeaf(conversation, turn.id);
  touched();
  keep(conversation);
}

