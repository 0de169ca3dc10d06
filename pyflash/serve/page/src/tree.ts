// A conversation is a tree: an edited question and a regenerated answer are siblings of what they replace.
import type { Conversation, Turn } from "./types";

export const newId = (): string => crypto.randomUUID();

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
  const files = (turn.attachments ?? []).map((file) => `File ${file.name}:\n\`\`\`\n${file.text}\n\`\`\`\n\n`);
  return files.join("") + turn.text;
}

const isText = (value: unknown): value is string => typeof value === "string";

/** A conversation from an imported file, or null: everything that is kept is checked, since a stranger may have made it. */
export function checked(value: unknown): Conversation | null {
  if (typeof value !== "object" || value === null) return null;
  const { title, created, updated, turns, leaf } = value as Record<string, unknown>;
  if (!isText(title) || typeof created !== "number" || typeof turns !== "object" || turns === null) return null;
  const kept: Record<string, Turn> = {};
  for (const each of Object.values(turns as Record<string, unknown>)) {
    const turn = checkedTurn(each);
    if (turn) kept[turn.id] = turn;
  }
  for (const turn of Object.values(kept)) if (turn.parent !== null && !kept[turn.parent]) turn.parent = null;
  if (hasCycle(kept)) return null;
  const last = isText(leaf) && kept[leaf] ? leaf : (Object.keys(kept).at(-1) ?? null);
  return { id: newId(), title, created, updated: typeof updated === "number" ? updated : created, turns: kept, leaf: last };
}

function checkedTurn(value: unknown): Turn | null {
  if (typeof value !== "object" || value === null) return null;
  const { id, parent, role, text, created, reasoning, attachments, finish, reasoningMs } = value as Record<string, unknown>;
  if (!isText(id) || !isText(text) || (role !== "user" && role !== "assistant") || typeof created !== "number") return null;
  const turn: Turn = { id, parent: isText(parent) ? parent : null, role, text, created };
  if (isText(reasoning)) turn.reasoning = reasoning;
  if (isText(finish)) turn.finish = finish;
  if (typeof reasoningMs === "number") turn.reasoningMs = reasoningMs;
  if (Array.isArray(attachments)) {
    turn.attachments = attachments.filter((file) => isText(file?.name) && isText(file?.text))
      .map((file) => ({ name: file.name, text: file.text }));
  }
  return turn;
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
