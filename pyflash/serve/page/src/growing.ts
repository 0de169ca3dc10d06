// A growing Markdown text in an element. The work grows in line with the text: what is complete is rendered once.
import type { Token, Tokens } from "marked";
import { blocks, renderInto, showMath } from "./markdown";

const REST = 4; // times what a rendering took, before the next: it never takes more than a fifth of the time
const FENCE = /^(`{3,}|~{3,})[^\n]*\n/;

/** A code block that has not been closed. Its text is appended as it is, and highlighted when it closes. */
class OpenFence {
  private readonly lines = document.createTextNode(""); // complete ones
  private readonly part = document.createTextNode(""); // of the last one
  private readonly closing: RegExp;

  /** at: where in the text the code begins. */
  constructor(sign: string, private at: number, code: Element) {
    this.closing = new RegExp(`^ {0,3}${sign[0]}{${sign.length},}[ \\t]*$`, "m");
    code.append(this.lines, this.part);
  }

  /** False if it has been closed. */
  grow(text: string): boolean {
    const end = text.lastIndexOf("\n") + 1;
    if (end > this.at) {
      const added = text.slice(this.at, end);
      if (this.closing.test(added)) return false;
      this.lines.appendData(added);
      this.at = end;
    }
    const part = text.slice(this.at);
    this.part.data = /^ {0,3}[`~]+[ \t]*$/.test(part) ? "" : part; // which may become the closing line
    return true;
  }
}

export class MarkdownView {
  lexed = 0; // characters that have been read, again and again
  private shown = 0; // characters of what is complete
  private growing: Element[] = []; // what may still change
  private list: HTMLElement | null = null; // to which items are added: the text from `shown` on begins with its last one
  private fence: OpenFence | null = null;
  private next = 0;

  /** told: is called with each part that is complete. clock: milliseconds. */
  constructor(private readonly element: HTMLElement, private readonly told: (part: HTMLElement) => void = () => undefined,
              private readonly clock: () => number = () => performance.now()) {}

  /** Shows a text that begins as in the call before. False if it is too soon: ask again. */
  update(text: string, complete: boolean): boolean {
    const began = this.clock();
    if (!complete && began < this.next) return false;
    if (text.includes("\r")) text = text.replace(/\r\n?/g, "\n"); // as the lexer does, whose lengths are counted
    if (text.length < this.shown) this.clear();
    if (complete || !this.fence?.grow(text)) this.render(text, complete);
    const end = this.clock();
    this.next = end + REST * (end - began);
    return true;
  }

  private render(text: string, complete: boolean): void {
    for (const each of this.growing) each.remove();
    this.growing = [];
    this.fence = null;
    if (this.list && !this.list.childElementCount) this.dropList();
    const tail = text.slice(this.shown);
    this.lexed += tail.length;
    const tokens = blocks(tail);
    if (!complete) while (tokens.length > 1 && tokens.at(-1)?.type === "space") tokens.pop();
    tokens.forEach((token, index) => {
      const grows = !complete && index === tokens.length - 1;
      if (token.type === "list") this.addList(token as Tokens.List, grows, text);
      else this.addBlock(token, grows, text);
    });
  }

  private addBlock(token: Token, grows: boolean, text: string): void {
    const block = document.createElement("div");
    block.className = "block";
    this.list = null;
    if (grows) this.fence = this.openFence(token, block, text);
    if (!this.fence) renderInto(block, token);
    if (block.childNodes.length) this.element.append(block);
    if (grows) {
      this.growing.push(block);
    } else {
      this.shown += token.raw.length;
      if (token.type !== "space") this.tell(block);
    }
  }

  private openFence(token: Token, block: HTMLElement, text: string): OpenFence | null {
    const head = token.type === "code" ? FENCE.exec(token.raw) : null;
    if (!head) return null;
    renderInto(block, { ...token, text: "" } as Token);
    const fence = new OpenFence(head[1]!, this.shown + head[0].length, block.querySelector("code")!);
    return fence.grow(text) ? fence : null;
  }

  /** Items that are complete are kept, and the next are added to their list. */
  private addList(list: Tokens.List, grows: boolean, text: string): void {
    const made = document.createElement("div");
    made.className = "block";
    renderInto(made, list);
    const items = [...made.querySelectorAll<HTMLElement>(":scope > * > li")];
    if (items.length !== list.items.length) { // it nests too deeply
      this.addBlock(list, grows, text);
      return;
    }
    if (this.list?.tagName === made.firstElementChild?.tagName) {
      this.list!.append(...items);
    } else {
      this.element.append(made);
      this.list = made.firstElementChild as HTMLElement | null;
    }
    const complete = grows ? items.slice(0, -1) : items;
    const raws = grows ? list.items.slice(0, -1).map((item) => item.raw) : [list.raw];
    this.shown += raws.reduce((sum, raw) => sum + raw.length, 0);
    complete.forEach((item) => this.tell(item));
    if (grows) this.growing.push(...items.slice(-1));
    else this.list = null;
  }

  private dropList(): void {
    this.list?.parentElement?.remove();
    this.list = null;
  }

  private tell(part: HTMLElement): void {
    void showMath(part);
    this.told(part);
  }

  private clear(): void {
    this.element.replaceChildren();
    this.shown = 0;
    this.growing = [];
    this.list = null;
    this.fence = null;
  }
}
