// Conversations in IndexedDB: they stay in this browser, and go nowhere else.
import type { Conversation } from "./types";

const open: Promise<IDBDatabase> = new Promise((resolve, reject) => {
  const request = indexedDB.open("pyflash", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

/** Committed at once: a transaction that waits to commit itself is given up where the page goes before. */
async function run<T>(mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest<T>): Promise<T> {
  const database = await open;
  return new Promise((resolve, reject) => {
    const transaction = database.transaction("conversations", mode);
    const request = act(transaction.objectStore("conversations"));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
    transaction.commit();
  });
}

export const loadAll = (): Promise<Conversation[]> => run("readonly", (store) => store.getAll());
export const save = (conversation: Conversation): Promise<unknown> =>
  run("readwrite", (store) => store.put(structuredClone(conversation)));
export const remove = (id: string): Promise<unknown> => run("readwrite", (store) => store.delete(id));

/** A value of localStorage, or the one given where there is none or it does not fit. */
export function setting<T>(key: string, otherwise: T): T {
  try {
    const found = JSON.parse(localStorage.getItem(`pyflash.${key}`) ?? "null");
    if (found === null || typeof found !== typeof otherwise) return otherwise;
    return typeof otherwise === "object" ? { ...otherwise, ...found } : found;
  } catch {
    return otherwise;
  }
}
export function keepSetting(key: string, value: unknown): void {
  try {
    localStorage.setItem(`pyflash.${key}`, JSON.stringify(value));
  } catch { /* a browser that keeps nothing still chats */ }
}
