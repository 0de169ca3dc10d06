// A conversation is a tree: an edited question and a regenerated answer are siblings of what they replace.
import type { Conversation, Stats, Turn } from "./types";

/** A random UUID. crypto.randomUUID() is not there where a page comes over plain HTTP from another machine. */
export function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/** The turns from the first one to the one that is shown last. */
export function path(conversation: Conversation): Turn[] {
  const found: Turn[] = [];
  let id = conversation.leaf;
  while (id !== null) {
    const turn: Turn | undefined = conversation.turns[id];
    if (!turn) break;
    found.push(turn);
    id = turn.parent;
  }
  return found.reverse();
}

export function children(conversation: Conversation, parent: string | null): Turn[] {
  return Object.values(conversation.turns).filter((turn) => turn.parent === parent).sort((a, b) => a.created - b.created);
}

/** The branch that goes on from a turn the way it was last looked at: by its newest turns. */
export function newestLeaf(conversation: Conversation, id: string): string {
  for (let next = children(conversation, id).at(-1); next; next = children(conversation, id).at(-1)) id = next.id;
  return id;
}

export function addTurn(conversation: Conversation, turn: Turn): void {
  const created = Math.max(turn.created, ...children(conversation, turn.parent).map((each) => each.created + 1));
  conversation.turns[turn.id] = { ...turn, created };
  conversation.leaf = turn.id;
  conversation.updated = turn.created;
}

/** A title from the first words. */
export function titleOf(text: string): string {
  const line = text.trim().split("\n")[0] ?? "";
  return line.length > 60 ? `${line.slice(0, 57).trimEnd()}…` : line || "New chat";
}

/** What the model is given for a turn of the user. */
export function sentText(turn: Turn): string {
  return (turn.attachments ?? []).map(({ name, text }) => {
    const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map(([run]) => run.length));
    const fence = "`".repeat(longest + 1); // that nothing in the file ends
    return `File ${name}:\n${fence}\n${text}\n${fence}\n\n`;
  }).join("") + turn.text;
}

const ID = /^[0-9a-f-]{36}$/;
const isText = (value: unknown): value is string => typeof value === "string";

/** A conversation from an imported file, or null: everything that is kept is checked, since a stranger may have made it. */
export function checked(value: unknown): Conversation | null {
  if (typeof value !== "object" || value === null) return null;
  const { id, title, created, updated, turns, leaf, renamed } = value as Record<string, unknown>;
  if (!isText(title) || typeof created !== "number" || typeof turns !== "object" || turns === null) return null;
  const kept: Record<string, Turn> = {};
  for (const each of Object.values(turns as Record<string, unknown>)) {
    const turn = checkedTurn(each);
    if (turn) kept[turn.id] = turn;
  }
  for (const turn of Object.values(kept)) if (turn.parent !== null && !kept[turn.parent]) turn.parent = null;
  if (hasCycle(kept)) return null;
  const last = isText(leaf) && kept[leaf] ? leaf : (Object.keys(kept).at(-1) ?? null);
  return { id: isText(id) && ID.test(id) ? id : newId(), title, created,
           updated: typeof updated === "number" ? updated : created,
           turns: kept, leaf: last, ...(renamed === true ? { renamed } : {}) };
}

function checkedTurn(value: unknown): Turn | null {
  if (typeof value !== "object" || value === null) return null;
  const { id, parent, role, text, created, reasoning, attachments,
    finish, reasoningMs, stats } = value as Record<string, unknown>;
  if (!isText(id) || !isText(text) || (role !== "user" && role !== "assistant") || typeof created !== "number") return null;
  const turn: Turn = { id, parent: isText(parent) ? parent : null, role, text, created };
  if (isText(reasoning)) turn.reasoning = reasoning;
  if (isText(finish)) turn.finish = finish;
  if (typeof reasoningMs === "number") turn.reasoningMs = reasoningMs;
  const counted = checkedStats(stats);
  if (counted) turn.stats = counted;
  if (Array.isArray(attachments)) {
    turn.attachments = attachments.filter((file) => isText(file?.name) && isText(file?.text))
      .map((file) => ({ name: file.name, text: file.text }));
  }
  return turn;
}

function checkedStats(value: unknown): Stats | null {
  if (typeof value !== "object" || value === null) return null;
  const { prompt, reused, generated, promptMs, generateMs } = value as Record<keyof Stats, unknown>;
  const all = [prompt, reused, generated, promptMs, generateMs];
  if (!all.every((each) => typeof each === "number" && Number.isFinite(each))) return null;
  return { prompt, reused, generated, promptMs, generateMs } as Stats;
}

function hasCycle(turns: Record<string, Turn>): boolean {
  for (const turn of Object.values(turns)) {
    const seen = new Set<string>();
    for (let id: string | null = turn.id; id !== null; id = turns[id]?.parent ?? null) {
      if (seen.has(id)) return true;
      seen.add(id);
    }
  }
  return false;
}
