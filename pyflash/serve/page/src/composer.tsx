import { useSignal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { answerNow, send, stop } from "./answers";
import { readFiles } from "./files";
import { conversationOf, current, editing, effort, notice, ticks, type Work } from "./state";
import { path } from "./tree";
import type { Attachment, Effort } from "./types";

const EFFORTS: [Effort, string][] = [["off", "No thinking"], ["high", "Think"], ["max", "Think hard"]];
export const types = matchMedia("(pointer: fine)"); // on a keyboard: on a touch screen Enter is a new line

const Clip = () => <svg viewBox="0 0 24 24" width="20" height="20" fill="none" stroke="currentColor"
    stroke-width="2" aria-hidden="true">
  <path d="M20 11.5 12.2 19a5 5 0 0 1-7-7l8-8a3.4 3.4 0 0 1 4.8 4.8l-8 8a1.8 1.8 0 0 1-2.5-2.5l7-7" />
</svg>;

/** How fast pieces of the answer came in the last seconds; a piece is a token, as a rule. */
function Rate({ work }: { work: Work }) {
  ticks.value;
  const { pieces } = work, took = (pieces.at(-1) ?? 0) - (pieces[0] ?? 0);
  return pieces.length < 5 || took < 200 ? null
    : <span class="quiet rate">≈ {(1000 * (pieces.length - 1) / took).toFixed(1)} tokens/s</span>;
}

function editLast(): void {
  const conversation = conversationOf(current.value);
  const last = conversation && path(conversation).findLast((turn) => turn.role === "user");
  if (last) editing.value = last.id;
}

/** Takes files that are dropped anywhere. Returns whether some are held over the window. */
function useDrop(add: (files: Iterable<File>) => void): boolean {
  const over = useSignal(false);
  useLayoutEffect(() => {
    const holds = (event: DragEvent): boolean => event.dataTransfer?.types.includes("Files") ?? false;
    const onOver = (event: DragEvent): void => { if (holds(event)) { event.preventDefault(); over.value = true; } };
    const onLeave = (event: DragEvent): void => { if (!event.relatedTarget) over.value = false; };
    const onDrop = (event: DragEvent): void => {
      over.value = false;
      if (!holds(event)) return;
      event.preventDefault();
      add(event.dataTransfer!.files);
    };
    addEventListener("dragover", onOver);
    addEventListener("dragleave", onLeave);
    addEventListener("drop", onDrop);
    return () => {
      removeEventListener("dragover", onOver);
      removeEventListener("dragleave", onLeave);
      removeEventListener("drop", onDrop);
    };
  }, []);
  return over.value;
}

export function Composer({ work }: { work: Work | undefined }) {
  const text = useSignal("");
  const files = useSignal<Attachment[]>([]);
  const reading = useSignal(0);
  const field = useRef<HTMLTextAreaElement>(null);
  useLayoutEffect(() => { if (types.matches) field.current?.focus(); }, [current.value]);
  const add = async (list: Iterable<File>): Promise<void> => {
    reading.value++;
    const read = await readFiles(list);
    reading.value--;
    files.value = [...files.value, ...read.texts];
    notice.value = read.notice;
    if (types.matches) field.current?.focus();
  };
  const held = useDrop((list) => void add(list));
  const submit = (): void => {
    if (work || (!text.value.trim() && !files.value.length)) return;
    send(text.value, files.value);
    text.value = "";
    files.value = [];
    notice.value = "";
  };
  const onKey = (event: KeyboardEvent): void => {
    if (event.key === "ArrowUp" && !text.value && !work) {
      event.preventDefault();
      editLast();
    }
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
  const isEmpty = !text.value.trim() && !files.value.length;
  return <form class={`composer ${held ? "held" : ""}`} onSubmit={(event) => { event.preventDefault(); submit(); }}>
    {held && <p class="quiet">Drop texts and PDFs to attach them.</p>}
    {reading.value > 0 && <p class="quiet" role="status">Reading…</p>}
    {files.value.length > 0 && <ul class="files" aria-label="Attached files">{files.value.map((file, index) =>
      <li key={`${index} ${file.name}`}><span>{file.name}</span><button type="button" class="icon"
              aria-label={`Remove ${file.name}`}
        onClick={() => { files.value = files.value.filter((each) => each !== file); }}>✕</button></li>)}</ul>}
    <textarea id="question" ref={field} rows={1} value={text.value} placeholder="Ask something" aria-label="Your question"
              onInput={(event) => { text.value = event.currentTarget.value; }} onKeyDown={onKey} onPaste={onPaste} />
    <div class="row">
      <label class="icon button" title="Attach texts and PDFs"><Clip /><span class="aloud">Attach texts and PDFs</span>
        <input type="file" multiple class="aloud" onChange={(event) => {
          void add([...event.currentTarget.files ?? []]);
          event.currentTarget.value = "";
        }} />
      </label>
      <select aria-label="Thinking" value={effort.value}
                    onChange={(event) => { effort.value = event.currentTarget.value as Effort; }}>
        {EFFORTS.map(([value, label]) => <option key={value} value={value}>{label}</option>)}
      </select>
      <span class="space" />
      {work && <Rate work={work} />}
      {work?.phase === "thinking" && <button type="button" onClick={() => void answerNow(work)}>Answer now</button>}
      {work
        ? <button type="button" class="primary" title="Stop (Esc)" onClick={() => void stop(work)}>Stop</button>
        : <button type="submit" class="primary" disabled={isEmpty}>Send</button>}
    </div>
  </form>;
}
