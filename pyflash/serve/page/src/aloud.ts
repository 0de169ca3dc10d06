// What a screen reader reads aloud: in batches, for a growing answer would interrupt itself at every word.
import { signal } from "@preact/signals";

const EVERY = 2000; // milliseconds between batches
export const announcement = signal("");
let waiting: string[] = [];

/** Reads a text aloud with those that come soon after. */
export function say(text: string): void {
  if (!text.trim()) return;
  if (!waiting.length) setTimeout(flush, EVERY);
  waiting.push(text.trim());
}

function flush(): void {
  const text = waiting.join("\n");
  waiting = [];
  announcement.value = text === announcement.value ? `${text} ` : text; // only what changes is read
}

/** The text of a part of an answer: code is counted and not read. */
export function textOf(element: HTMLElement): string {
  const code = element.querySelector<HTMLElement>(".code code");
  if (!code) return element.innerText;
  return `Code, ${(code.textContent ?? "").trimEnd().split("\n").length} lines.`;
}
