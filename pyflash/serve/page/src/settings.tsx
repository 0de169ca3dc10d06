import { createRef } from "preact";
import { options, type Options } from "./state";
import { PRICES, cost, dollars, prices, restart, setPrices, tally, tokens } from "./tally";

const dialog = createRef<HTMLDialogElement>();
export function openSettings(section?: string): void {
  if (!document.querySelector("dialog[open]")) dialog.current?.showModal();
  if (section) document.getElementById(section)?.scrollIntoView();
}

const FIELDS: { key: keyof Omit<Options, "system">; label: string; step: string; min: number; max?: number }[] = [
  { key: "temperature", label: "Temperature", step: "0.05", min: 0, max: 5 },
  { key: "topP", label: "Top-p", step: "0.01", min: 0, max: 1 },
  { key: "minP", label: "Min-p", step: "0.01", min: 0, max: 1 },
  { key: "maxTokens", label: "Most tokens of an answer", step: "1", min: 1 },
  { key: "thinkingBudget", label: "Most tokens of thinking", step: "1", min: 1 },
  { key: "seed", label: "Seed", step: "1", min: 0 },
];

function change(key: keyof Options, value: string): void {
  const number = Number(value);
  options.value = { ...options.value, [key]: key === "system" ? value : value === "" || Number.isNaN(number) ? null : number };
}

function PriceTable() {
  const now = tally.value, at = prices.value;
  const rows = [["fresh", "In", now.fresh], ["reused", "Reused", now.reused], ["out", "Out", now.out]] as const;
  return <section id="prices">
    <h2>What it would have cost</h2>
    <table>
      <thead><tr><th>Tokens</th><th>counted</th><th>US $ a million</th></tr></thead>
      <tbody>{rows.map(([key, label, counted]) => <tr key={key}>
        <th scope="row">{label}</th><td>{tokens(counted)}</td>
        <td><input type="number" min={0} step="0.0001" value={at[key]} aria-label={`Price of a million tokens: ${label}`}
                   onChange={(event) => setPrices({ ...at, [key]: Number(event.currentTarget.value),
                     date: "your own" })} /></td>
      </tr>)}</tbody>
    </table>
    <p>With these prices ({at.date}) DeepSeek's API would have charged <b>{dollars(cost(now, at))}</b> since{" "}
      {new Date(now.since).toLocaleDateString()}. Here it was the price of your electricity.</p>
    <p><button type="button" onClick={restart}>Count from zero</button>{" "}
      <button type="button" onClick={() => setPrices(PRICES)}>Prices {PRICES.date}</button></p>
  </section>;
}

export function SettingsDialog() {
  const now = options.value;
  return <dialog ref={dialog} aria-labelledby="settings-title">
    <form method="dialog"><h1 id="settings-title">Settings</h1><button class="icon" aria-label="Close">✕</button></form>
    <label for="system">System prompt</label>
    <textarea id="system" rows={4} value={now.system} placeholder="What the model should know of its task"
              onInput={(event) => change("system", event.currentTarget.value)} />
    <section class="fields">
      {FIELDS.map(({ key, label, step, min, max }) => <label key={key}>{label}
        <input type="number" step={step} min={min} max={max} value={now[key] ?? ""} placeholder="the model's own"
               onInput={(event) => change(key, event.currentTarget.value)} /></label>)}
    </section>
    <PriceTable />
  </dialog>;
}
