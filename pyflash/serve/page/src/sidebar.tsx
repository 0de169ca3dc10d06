import { useSignal } from "@preact/signals";
import { createRef } from "preact";
import { removeConversation, stop } from "./answers";
import { types } from "./composer";
import { keys } from "./help";
import { addConversations, busy, conversations, current, notice, rename, show } from "./state";
import { checked } from "./tree";
import type { Conversation } from "./types";

export const searchField = createRef<HTMLInputElement>();

const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const time = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });
const whenOf = (at: number): string =>
  new Date(at).toDateString() === new Date().toDateString() ? time.format(at) : day.format(at);

export function download(name: string, value: unknown): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

export function exportAll(): void {
  download("pyflash-chats.json", { pyflash: 1, conversations: conversations.value });
}

/** Adds the chats of exported files; says how many came, and what was not one. */
export async function importFiles(files: Iterable<File>): Promise<void> {
  const told: string[] = [];
  for (const file of files) {
    let found: Conversation[] = [];
    try {
      const value = JSON.parse(await file.text());
      const list: unknown[] = Array.isArray(value?.conversations) ? value.conversations : [value];
      found = list.map(checked).filter((each) => each !== null);
    } catch { /* told below */ }
    const added = addConversations(found), known = found.length - added;
    const already = known ? `; ${chats(known)} of ${file.name} ${known === 1 ? "was" : "were"} here already` : "";
    told.push(!found.length ? `${file.name} holds no chats: choose a file that "Export" made.`
      : `${chats(added)} added${already}.`);
  }
  notice.value = told.join(" ");
}

const chats = (n: number): string => (n === 1 ? "1 chat" : `${n || "No"} chats`);

function matches(conversation: Conversation, words: string): boolean {
  const text = words.trim().toLowerCase();
  return !text || conversation.title.toLowerCase().includes(text)
    || Object.values(conversation.turns).some((turn) => turn.text.toLowerCase().includes(text));
}

function Item({ conversation }: { conversation: Conversation }) {
  const editing = useSignal(false), open = useSignal(false);
  const work = busy(conversation.id);
  const save = (event: Event): void => {
    rename(conversation, (event.currentTarget as HTMLInputElement).value);
    editing.value = false;
  };
  if (editing.value) {
    return <li><input class="rename" aria-label="New title" value={conversation.title} ref={(field) => field?.select()}
                      onBlur={save} onKeyDown={(event) => {
                        if (event.key === "Enter") save(event);
                        if (event.key === "Escape") { event.stopPropagation(); editing.value = false; }
                      }} /></li>;
  }
  const remove = (): void => { if (confirm(`Delete "${conversation.title}"?`)) void removeConversation(conversation.id); };
  return <li class={current.value === conversation.id ? "current" : ""}>
    <button type="button" class="title" aria-current={current.value === conversation.id ? "page" : undefined}
            onClick={() => show(conversation.id)}>
      <span>{conversation.title}</span>
      <time dateTime={new Date(conversation.updated).toISOString()}>{work ? "working…" : whenOf(conversation.updated)}</time>
    </button>
    <button type="button" class="icon more" aria-label={`More for ${conversation.title}`} aria-expanded={open.value}
            onClick={() => { open.value = !open.value; }}>⋯</button>
    <span class={`tools ${open.value ? "open" : ""}`}>
      {work && <button type="button" class="icon" aria-label={`Stop ${conversation.title}`} title="Stop"
              onClick={() => void stop(work)}>■</button>}
      <button type="button" class="icon" aria-label={`Rename ${conversation.title}`} title="Rename"
              onClick={() => { editing.value = true; }}>✎</button>
      <button type="button" class="icon" aria-label={`Export ${conversation.title}`} title="Export"
              onClick={() => download(`${conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}.json`,
                                      conversation)}>↓</button>
      <button type="button" class="icon" aria-label={`Delete ${conversation.title}`} title="Delete" onClick={remove}>✕</button>
    </span>
  </li>;
}

export function Sidebar() {
  const words = useSignal("");
  const found = conversations.value.filter((each) => matches(each, words.value));
  return <nav class="sidebar" aria-label="Chats">
    <button type="button" class="new" title={`New chat (${keys("Shift", "O")})`} onClick={() => show(null)}>New chat</button>
    <input type="search" ref={searchField} placeholder={types.matches ? `Search (${keys("K")})` : "Search"}
           aria-label="Search chats" value={words.value}
           onInput={(event) => { words.value = event.currentTarget.value; }} />
    <ul>{found.map((each) => <Item key={each.id} conversation={each} />)}</ul>
    {!found.length && <p class="quiet">{words.value ? "No chat has these words." : "Chats are kept in this browser only."}</p>}
    <footer>
      <button type="button" class="quiet" onClick={exportAll} disabled={!conversations.value.length}>Export all</button>
      <label class="quiet button">Import
        <input type="file" accept="application/json,.json" multiple class="aloud" onChange={(event) => {
          void importFiles([...event.currentTarget.files ?? []]);
          event.currentTarget.value = "";
        }} />
      </label>
    </footer>
  </nav>;
}
