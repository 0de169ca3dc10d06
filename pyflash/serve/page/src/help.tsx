import { createRef } from "preact";

const dialog = createRef<HTMLDialogElement>();
export const openHelp = (): void => { if (!document.querySelector("dialog[open]")) dialog.current?.showModal(); };

const isApple = /Mac|iP(hone|ad)/.test(navigator.platform);
/** The key that goes with the others: of a keyboard event, and its name. */
export const hasControl = (event: KeyboardEvent): boolean => (isApple ? event.metaKey : event.ctrlKey);
const CONTROL = isApple ? "⌘" : "Ctrl";
export const keys = (...names: string[]): string => [CONTROL, ...names].join("+");

const GROUPS: [string, [string, string][]][] = [
  ["Write", [
    ["Enter", "send (on a touch screen: a new line)"],
    ["Shift+Enter", "a new line"],
    ["↑ in an empty field", "change the last question"],
    [keys("Enter"), "send a changed question"],
    ["Esc", "stop the answer, or leave a question as it was"],
  ]],
  ["Chats", [
    [keys("Shift", "O"), "new chat"],
    [keys("K"), "search the chats"],
    [keys("B"), "show or hide the list"],
    [keys("Shift", "⌫"), "delete this chat"],
  ]],
  ["Page", [
    [keys(","), "settings"],
    [keys("/"), "this help; ? does it, too, outside of a field"],
  ]],
];

export function HelpDialog() {
  return <dialog ref={dialog} aria-labelledby="help-title">
    <form method="dialog"><h1 id="help-title">Keyboard</h1><button class="icon" aria-label="Close">✕</button></form>
    {GROUPS.map(([title, rows]) => <section key={title}>
      <h2>{title}</h2>
      <dl class="keys">{rows.map(([name, what]) => [<dt key={name}><kbd>{name}</kbd></dt>, <dd key={what}>{what}</dd>])}</dl>
    </section>)}
  </dialog>;
}
