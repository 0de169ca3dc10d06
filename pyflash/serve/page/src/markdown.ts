// Markdown to safe HTML.
import DOMPurify from "dompurify";
import hljs from "highlight.js/lib/core";
import { Marked, type Token, type TokenizerAndRendererExtension, type Tokens } from "marked";
import bash from "highlight.js/lib/languages/bash";
import c from "highlight.js/lib/languages/c";
import cpp from "highlight.js/lib/languages/cpp";
import css from "highlight.js/lib/languages/css";
import diff from "highlight.js/lib/languages/diff";
import go from "highlight.js/lib/languages/go";
import java from "highlight.js/lib/languages/java";
import javascript from "highlight.js/lib/languages/javascript";
import json from "highlight.js/lib/languages/json";
import python from "highlight.js/lib/languages/python";
import rust from "highlight.js/lib/languages/rust";
import sql from "highlight.js/lib/languages/sql";
import typescript from "highlight.js/lib/languages/typescript";
import xml from "highlight.js/lib/languages/xml";
import yaml from "highlight.js/lib/languages/yaml";

for (const [name, language] of Object.entries({ bash, c, cpp, css, diff, go, java, javascript, json, python, rust, sql,
                                                typescript, xml, yaml })) hljs.registerLanguage(name, language);

const escape = (text: string): string =>
  text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

/** Only what leads elsewhere is a link: nothing of the page's own is known to a model. */
const linkHtml = (href: string, html: string, title?: string | null): string => !/^(https?:|mailto:)/i.test(href) ? html
  : `<a href="${escape(href)}"${title ? ` title="${escape(title)}"` : ""} target="_blank"`
    + ` rel="noopener noreferrer nofollow">${html}</a>`;

const mathHtml = (tex: string, display: boolean): string =>
  `<span class="math${display ? " display" : ""}">${escape(tex)}</span>`;

interface MathToken extends Tokens.Generic { tex: string; display: boolean }
function math(name: string, level: "block" | "inline", pattern: RegExp, display: boolean): TokenizerAndRendererExtension {
  return {
    name, level,
    start: (text) => { // a block begins a line: paragraphs are cut where this says
      const at = text.search(level === "block" ? /(?<=\n)(\$\$|\\\[)/ : /\$|\\[([]/);
      return at < 0 ? undefined : at;
    },
    tokenizer: (text) => {
      const found = pattern.exec(text);
      return found ? { type: name, raw: found[0], tex: (found[1] ?? found[2] ?? "").trim(), display } as MathToken : undefined;
    },
    renderer: (token) => mathHtml((token as MathToken).tex, display),
  };
}

const marked = new Marked({
  gfm: true,
  extensions: [
    math("mathBlock", "block", /^(?:\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\])(?:\n|$)/, true),
    math("mathDisplay", "inline", /^(?:\$\$([^$]+?)\$\$|\\\[([\s\S]+?)\\\])/, true),
    math("mathInline", "inline", /^(?:\$(?!\s)((?:[^$\n\\]|\\.)+?)(?<!\s)\$(?!\d)|\\\((.+?)\\\))/, false),
  ],
  renderer: {
    code({ text, lang }) {
      const language = (lang ?? "").split(/\s/)[0]?.toLowerCase() ?? "";
      const body = hljs.getLanguage(language) ? hljs.highlight(text, { language, ignoreIllegals: true }).value : escape(text);
      return `<div class="code"><div class="code-head"><span>${escape(language || "text")}</span>`
        + `<button type="button" class="copy">Copy</button></div><pre tabindex="0"><code>${body}</code></pre></div>`;
    },
    link({ href, title, tokens }) {
      return linkHtml(href, this.parser.parseInline(tokens), title);
    },
    html({ text }) { // shown as it is written
      return escape(text);
    },
    checkbox({ checked }) { // as a sign: answers have no fields
      return checked ? "☑ " : "☐ ";
    },
    image({ href, text }) { // pictures from elsewhere are never loaded: they would tell somebody that they were seen
      return linkHtml(href, escape(text || href));
    },
    table(token) {
      const row = (cells: Tokens.TableCell[], tag: string): string =>
        `<tr>${cells.map((cell) => `<${tag}>${this.parser.parseInline(cell.tokens)}</${tag}>`).join("")}</tr>`;
      return `<div class="table"><table><thead>${row(token.header, "th")}</thead>`
        + `<tbody>${token.rows.map((cells) => row(cells, "td")).join("")}</tbody></table></div>`;
    },
  },
});

const ALLOWED = { RETURN_TRUSTED_TYPE: true as const, ADD_ATTR: ["target"],
                  FORBID_TAGS: ["style", "form", "input", "img", "svg"], FORBID_ATTR: ["style"] };

/** Safe HTML: where a browser has trusted types one of them, which innerHTML takes like a text. */
export const purified = (html: string): string => DOMPurify.sanitize(html, ALLOWED) as unknown as string;

/** The blocks of a text. One that nests too deeply for the stack is a plain text. */
export function blocks(text: string): Token[] {
  try {
    return marked.lexer(text);
  } catch {
    return [plain(text)];
  }
}

/** Shows a block in an element. */
export function renderInto(element: HTMLElement, token: Token): void {
  try {
    element.innerHTML = purified(marked.parser([token]));
  } catch {
    element.innerHTML = purified(marked.parser([plain(token.raw)]));
  }
}

const plain = (text: string): Token =>
  ({ type: "paragraph", raw: text, text, tokens: [{ type: "text", raw: text, text, escaped: false }] });

/** Turns the formulas of an element into MathML. */
export async function showMath(element: HTMLElement): Promise<void> {
  const found = [...element.querySelectorAll<HTMLElement>(".math:not([data-done])")];
  if (!found.length) return;
  const { texToMathML } = await import("./math");
  for (const each of found) {
    each.dataset.done = "";
    const html = texToMathML(each.textContent ?? "", each.classList.contains("display"));
    if (html) each.innerHTML = purified(html);
  }
}
