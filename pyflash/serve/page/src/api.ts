// The server: Chat Completions with the page's additions (jobs that outlive a reload).
import type { Info, Stats } from "./types";


export interface Progress { total: number; cached: number; done: number; queue: number | null }

/** What a streamed answer tells, in its order. */
export interface Listener {
  progress(progress: Progress): void;
  reasoning(text: string): void;
  content(text: string): void;
  end(finish: string, stats: Stats | null, reasoningTokens: number): void;
}

/** What the server says. status: 0 in the midst of an answer. */
export class ServerError extends Error {
  constructor(message: string, readonly status: number) { super(message); }
}
/** The connection was lost before the end: the server may still work. */
export class ConnectionError extends Error {}

let key = sessionStorage.getItem("pyflash.key") ?? "";
export function setKey(value: string): void {
  key = value;
  sessionStorage.setItem("pyflash.key", value);
}

const headers = (): Record<string, string> => (key ? { Authorization: `Bearer ${key}` } : {});

async function failure(response: Response): Promise<ServerError> {
  let message = `the server answered ${response.status}`;
  try {
    const body = await response.json();
    message = body?.error?.message ?? message;
  } catch { /* no JSON */ }
  return new ServerError(message, response.status);
}

export async function info(): Promise<Info> {
  const response = await fetch("page/info", { headers: headers() });
  if (!response.ok) throw await failure(response);
  return response.json();
}

/** Starts a job and listens to it until its end. */
export async function start(job: string, body: object, listener: Listener, signal: AbortSignal): Promise<void> {
  const response = await fetch("v1/chat/completions", {
    method: "POST", signal, headers: { ...headers(), "Content-Type": "application/json", "X-Pyflash-Job": job },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true }, return_progress: true }),
  }).catch(lost);
  await listen(response, listener);
}

/** Listens to a job from its beginning. False where the server does not have it (any more). */
export async function resume(job: string, listener: Listener, signal: AbortSignal): Promise<boolean> {
  const response = await fetch(`page/jobs/${encodeURIComponent(job)}`, { signal, headers: headers() }).catch(lost);
  if (response.status === 404) return false;
  await listen(response, listener);
  return true;
}

/** "stop" ends it; "answer" ends its thinking. False where the server does not know it. */
export async function tell(job: string, what: "stop" | "answer"): Promise<boolean> {
  const response = await fetch(`page/jobs/${encodeURIComponent(job)}/${what}`, {
    method: "POST", headers: { ...headers(), "Content-Type": "application/json" }, body: "{}",
  }).catch(() => null);
  return response?.ok ?? false;
}

/** The text of a PDF, which the server reads. */
export async function pdfText(base64: string): Promise<string> {
  const response = await fetch("page/pdf", {
    method: "POST", headers: { ...headers(), "Content-Type": "application/json" }, body: JSON.stringify({ data: base64 }),
  }).catch(lost);
  if (!response.ok) throw await failure(response);
  return (await response.json()).text;
}

function lost(error: unknown): never {
  throw new ConnectionError(String(error));
}

async function listen(response: Response, listener: Listener): Promise<void> {
  if (!response.ok || !response.body) throw await failure(response);
  let finish = "", stats: Stats | null = null, reasoningTokens = 0;
  for await (const data of events(response.body)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(String(chunk.error.message ?? "the answer broke off"), 0);
    if (chunk.timings) {
      const t = chunk.timings;
      stats = { prompt: t.cache_n + t.prompt_n, reused: t.cache_n, generated: t.predicted_n, promptMs: t.prompt_ms,
                generateMs: t.predicted_ms };
    }
    reasoningTokens = chunk.usage?.completion_tokens_details?.reasoning_tokens ?? reasoningTokens;
    const at = chunk.prompt_progress;
    if (at) listener.progress({ total: at.total, cached: at.cache, done: at.processed, queue: at.queue_position ?? null });
    const choice = chunk.choices?.[0];
    if (choice?.delta?.reasoning_content) listener.reasoning(choice.delta.reasoning_content);
    if (choice?.delta?.content) listener.content(choice.delta.content);
    if (choice?.finish_reason) finish = choice.finish_reason;
  }
  if (!finish) throw new ConnectionError("the connection ended before the answer did");
  listener.end(finish, stats, reasoningTokens);
}

/** The data of server-sent events. */
async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.getReader(), decoder = new TextDecoder();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read().catch(lost);
    buffer += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const parts = buffer.split(/\r?\n\r?\n/);
    buffer = parts.pop() ?? "";
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
      if (data.length) yield data.join("\n");
    }
    if (done) return;
  }
}
