import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { announcement } from "./aloud";
import { removeConversation, stop } from "./answers";
import { Chat } from "./chat";
import { HelpDialog, hasControl, keys, openHelp } from "./help";
import { SettingsDialog, openSettings } from "./settings";
import { Sidebar, searchField } from "./sidebar";
import * as api from "./api";
import { busy, connect, conversationOf, current, needsKey, notice, server, show, sidebar, theme, trouble } from "./state";
import { cost, dollars, prices, tally, tokens } from "./tally";

function search(): void {
  sidebar.value = true;
  if (searchField.current) searchField.current.focus();
  else setTimeout(() => searchField.current?.focus());
}
const WITH_CONTROL: Record<string, () => void> = {
  "k": search, "b": () => { sidebar.value = !sidebar.value; }, ",": () => openSettings(), "/": openHelp,
};
const WITH_SHIFT: Record<string, () => void> = { "o": () => show(null), "backspace": removeCurrent,
  "/": openHelp, "?": openHelp };

function onKey(event: KeyboardEvent): void {
  const key = event.key.toLowerCase();
  const isField = /^(INPUT|TEXTAREA|SELECT)$/.test((event.target as HTMLElement).tagName);
  if (key === "escape" && !document.querySelector("dialog[open]")) stopCurrent();
  const act = hasControl(event) ? (event.shiftKey ? WITH_SHIFT : WITH_CONTROL)[key]
    : key === "?" && !isField ? openHelp : undefined;
  if (!act) return;
  event.preventDefault();
  act();
}

function removeCurrent(): void {
  if (current.value && confirm("Delete this chat?")) void removeConversation(current.value);
}
function stopCurrent(): void {
  const work = busy(current.value);
  if (work) void stop(work);
}

function TallyLine() {
  const now = tally.value;
  if (!now.fresh && !now.reused && !now.out) return null;
  const words = `${tokens(now.fresh)} tokens in, ${tokens(now.reused)} reused, ${tokens(now.out)} out; `
    + `DeepSeek's API would have charged ${dollars(cost(now, prices.value))}`;
  return <button type="button" class="tally quiet" title={words} onClick={() => openSettings("prices")}>
    {tokens(now.fresh)} in · {tokens(now.reused)} reused · {tokens(now.out)} out · {dollars(cost(now, prices.value))}
  </button>;
}

function KeyDialog() {
  const field = useRef<HTMLInputElement>(null);
  useLayoutEffect(() => field.current?.focus(), []);
  const [isWrong, setWrong] = useState(false);
  const enter = async (event: Event): Promise<void> => {
    event.preventDefault();
    api.setKey(field.current!.value);
    await connect();
    setWrong(true); // else this is gone
  };
  return <form class="key" onSubmit={(event) => void enter(event)}>
    <label for="key">This server asks for an API key.</label>
    <input id="key" ref={field} type="password" autocomplete="off" />
    {isWrong && <p class="error" role="alert">The server does not know this key.</p>}
    <button type="submit" class="primary">Go on</button>
    <p>It stays in this tab. The person who started the server has it in the file that <code>--api-key-file</code> names.</p>
  </form>;
}

const THEMES = { auto: "Automatic", light: "Light", dark: "Dark" } as const;
function nextTheme(): void {
  const names = Object.keys(THEMES) as (keyof typeof THEMES)[];
  theme.value = names[(names.indexOf(theme.value) + 1) % names.length]!;
}

export function App() {
  useLayoutEffect(() => {
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
  const found = server.value, title = conversationOf(current.value)?.title;
  useLayoutEffect(() => { document.title = title ? `${title} · pyflash` : "pyflash"; }, [title]);
  return <div class={`app ${sidebar.value ? "with-sidebar" : ""}`}>
    <a class="skip" href="#question">Skip to the question</a>
    {sidebar.value && <Sidebar />}
    {sidebar.value && <button type="button" class="shade" aria-label="Close the list of chats"
        onClick={() => { sidebar.value = false; }} />}
    <main>
      <header>
        <button type="button" class="icon" aria-label="Chats" aria-expanded={sidebar.value} title={`Chats (${keys("B")})`}
                onClick={() => { sidebar.value = !sidebar.value; }}>☰</button>
        <span class="name" title={found ? `pyflash ${found.version}` : ""}>{found?.name ?? "pyflash"}</span>
        <TallyLine />
        <button type="button" class="icon" aria-label={`Colours: ${THEMES[theme.value]}`}
                title={`Colours: ${THEMES[theme.value]}`}
                onClick={nextTheme}>{theme.value === "dark" ? "☾" : theme.value === "light" ? "☀" : "◐"}</button>
        <button type="button" class="icon" aria-label="Keyboard" title={`Keyboard (${keys("/")})`} onClick={openHelp}>?</button>
        <button type="button" class="icon" aria-label="Settings" title={`Settings (${keys(",")})`}
                onClick={() => openSettings()}>⚙</button>
      </header>
      {trouble.value && <p class="trouble" role="alert">{trouble.value}</p>}
      {found?.state === "loading" && <p class="trouble" role="status">The model is being loaded; questions wait for it.</p>}
      {notice.value && <p class="trouble" role="alert"><span>{notice.value}</span>
        <button type="button" class="icon" aria-label="Close this notice" onClick={() => { notice.value = ""; }}>✕</button></p>}
      {needsKey.value ? <KeyDialog /> : <Chat />}
    </main>
    <SettingsDialog />
    <HelpDialog />
    <p class="aloud" aria-live="polite">{announcement.value}</p>
  </div>;
}
