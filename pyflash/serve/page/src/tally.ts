// Tokens in, reused and out, and what DeepSeek's API would have charged for them.
import { signal } from "@preact/signals";
import { keepSetting, setting } from "./store";
import type { Stats } from "./types";

/** US dollars a million tokens. */
export interface Prices { fresh: number; reused: number; out: number; date: string }
export const PRICES: Prices = { fresh: 0.14, reused: 0.0028, out: 0.28, date: "until August 2026" };

export interface Tally { fresh: number; reused: number; out: number; since: number }
const empty = (): Tally => ({ fresh: 0, reused: 0, out: 0, since: Date.now() });

export const prices = signal<Prices>(setting("prices", PRICES));
export const tally = signal<Tally>(setting("tally", empty()));

export function count(stats: Stats): void {
  const now = tally.value;
  tally.value = { ...now, fresh: now.fresh + stats.prompt - stats.reused, reused: now.reused + stats.reused,
                  out: now.out + stats.generated };
  keepSetting("tally", tally.value);
}
export function restart(): void {
  tally.value = empty();
  keepSetting("tally", tally.value);
}
export function setPrices(changed: Prices): void {
  prices.value = changed;
  keepSetting("prices", changed);
}
export function cost(of: Tally, at: Prices): number {
  return (of.fresh * at.fresh + of.reused * at.reused + of.out * at.out) / 1e6;
}
export const dollars = (value: number): string => (value < 0.01 ? `$${value.toFixed(5)}` : `$${value.toFixed(2)}`);
export const tokens = (value: number): string =>
  value < 1e4 ? String(value) : value < 1e6 ? `${(value / 1e3).toFixed(1)}k` : `${(value / 1e6).toFixed(2)}M`;
