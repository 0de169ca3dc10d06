// What is kept of conversations, and what the server says of itself.

export type Effort = "off" | "high" | "max";

export interface Stats {
  prompt: number; // tokens of the prompt
  reused: number; // of them evaluated before
  generated: number;
  promptMs: number;
  generateMs: number;
}

export interface Attachment { name: string; text: string }

export interface Turn {
  id: string;
  parent: string | null;
  role: "user" | "assistant";
  text: string;
  created: number; // milliseconds since 1970
  attachments?: Attachment[];
  reasoning?: string;
  reasoningMs?: number;
  reasoningSince?: number; // milliseconds since 1970
  stats?: Stats;
  finish?: string; // "stop", "length", "stopped" by the user, "broken" off
  error?: string;
  job?: string; // while the server works on it, and until its end has been seen
  before?: { text: number; reasoning: number }; // characters that the job goes on after
}

export interface Conversation {
  id: string;
  title: string;
  created: number;
  updated: number;
  turns: Record<string, Turn>;
  leaf: string | null; // the last turn of the branch that is shown
  renamed?: boolean;
}

export interface Info {
  name: string;
  context: number;
  release: string;
  demo: boolean;
  version: string;
  state: "loading" | "ready";
}
