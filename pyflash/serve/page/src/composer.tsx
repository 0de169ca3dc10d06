import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { answerNow, current, effort, send, stop, type Work } from "./state";
import type { Attachment, Effort } from "./types";

const MOST_BYTES = 4 << 20; // of one attached file: four million characters are more than the largest context
const EFFORTS: [Effort, string][] = [["off", "No thinking"], ["high", "Think"], ["max", "Think hard"]];
const types = matchMedia("(pointer: fine)");

/** The texts of files; says which are none. */
async function readFiles(files: Iterable<File>): Promise<Attachment[]> {
  const found: Attachment[] = [];
  for (const file of files) {
    if (file.size > MOST_BYTES) {
      alert(`${file.name} has more than 4 MB: attach a part of it`);
      continue;
    }
    const bytes = new Uint8Array(await file.arrayBuffer());
    try {
      const text = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
      if (text.includes("\0")) throw new Error("binary");
      found.push({ name: file.name, text });
    } catch {
      alert(`${file.name} is no text in UTF-8: the model reads texts only`);
    }
  }
  return found;
}

const Clip = () => <svg viewBox="0 0 24 24" width="20" height="20" fill="none" stroke="currentColor" stroke-width="2" aria-hidden="true">
  <path d="M20 11.5 12.2 19a5 5 0 0 1-7-7l8-8a3.4 3.4 0 0 1 4.8 4.8l-8 8a1.8 1.8 0 0 1-2.5-2.5l7-7" />
</svg>;

export function Composer({ work }: { work: Work | undefined }) {
  const text = useSignal("");
  const files = useSignal<Attachment[]>([]);
  const dragged = useSignal(false);
  const field = useRef<HTMLTextAreaElement>(null);
  useEffect(() => { if (types.matches) field.current?.focus(); }, [current.value]);
  const add = async (list: Iterable<File>): Promise<void> => { files.value = [...files.value, ...await readFiles(list)]; };
  const submit = (): void => {
    if (work || (!text.value.trim() && !files.value.length)) return;
    send(text.value, files.value);
    text.value = "";
    files.value = [];
  };
  const onKey = (event: KeyboardEvent): void => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || !types.matches) return;
    event.preventDefault();
    submit();
  };
  const onPaste = (event: ClipboardEvent): void => {
    const list = event.clipboardData?.files;
    if (!list?.length) return;
    event.preventDefault();
    void add(list);
  };
  const onDrop = (event: DragEvent): void => {
    event.preventDefault();
    dragged.value = false;
    void add(event.dataTransfer?.files ?? []);
  };
  return <form class={`composer ${dragged.value ? "dragged" : ""}`} onSubmit={(event) => { event.preventDefault(); submit(); }}
               onDragOver={(event) => { event.preventDefault(); dragged.value = true; }} onDragLeave={() => { dragged.value = false; }}
               onDrop={onDrop}>
    {files.value.length > 0 && <ul class="files" aria-label="Attached files">{files.value.map((file, index) =>
      <li key={`${index} ${file.name}`}>{file.name} <button type="button" class="icon" aria-label={`Remove ${file.name}`}
        onClick={() => { files.value = files.value.filter((each) => each !== file); }}>✕</button></li>)}</ul>}
    <textarea id="question" ref={field} rows={1} value={text.value} placeholder="Ask something" aria-label="Your question"
              onInput={(event) => { text.value = event.currentTarget.value; }} onKeyDown={onKey} onPaste={onPaste} />
    <div class="row">
      <label class="icon button" title="Attach text files"><Clip /><span class="aloud">Attach text files</span>
        <input type="file" multiple class="aloud" onChange={(event) => {
          void add([...event.currentTarget.files ?? []]);
          event.currentTarget.value = "";
        }} />
      </label>
      <select aria-label="Thinking" value={effort.value} onChange={(event) => { effort.value = event.currentTarget.value as Effort; }}>
        {EFFORTS.map(([value, label]) => <option key={value} value={value}>{label}</option>)}
      </select>
      <span class="space" />
      {work?.phase === "thinking" && <button type="button" onClick={() => void answerNow(work)}>Answer now</button>}
      {work
        ? <button type="button" class="primary" title="Stop (Esc)" onClick={() => void stop(work)}>Stop</button>
        : <button type="submit" class="primary" disabled={!text.value.trim() && !files.value.length}>Send</button>}
    </div>
  </form>;
}
