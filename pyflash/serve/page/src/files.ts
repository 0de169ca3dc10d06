// The texts of files that are attached.
import * as api from "./api";
import type { Attachment } from "./types";

const MOST_TEXT = 4 << 20; // bytes: four million characters are more than the largest context
const MOST_PDF = 20 << 20; // which the server takes

/** The texts of files. notice: what is not taken, and why; "" if all are. */
export async function readFiles(files: Iterable<File>): Promise<{ texts: Attachment[]; notice: string }> {
  const texts: Attachment[] = [], refused: string[] = [];
  for (const file of files) {
    try {
      texts.push({ name: file.name, text: await textOf(file) });
    } catch (error) {
      refused.push(`${file.name}: ${error instanceof Error ? error.message : error}.`);
    }
  }
  return { texts, notice: refused.join(" ") };
}

async function textOf(file: File): Promise<string> {
  const isPdf = await file.slice(0, 5).text() === "%PDF-";
  if (file.size > (isPdf ? MOST_PDF : MOST_TEXT)) throw new Error(`more than ${isPdf ? 20 : 4} MB: attach a part of it`);
  return isPdf ? api.pdfText(await base64Of(file)) : decoded(new Uint8Array(await file.arrayBuffer()));
}

/** The text of bytes in UTF-8, or in UTF-16 with its mark at the beginning. */
function decoded(bytes: Uint8Array): string {
  const encoding = bytes[0] === 0xff && bytes[1] === 0xfe ? "utf-16le"
    : bytes[0] === 0xfe && bytes[1] === 0xff ? "utf-16be" : "utf-8";
  try {
    const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
    if (!text.includes("\0")) return text;
  } catch { /* told below */ }
  throw new Error("neither a text in UTF-8 or UTF-16 nor a PDF, and the model reads texts only");
}

function base64Of(file: File): Promise<string> {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve((reader.result as string).replace(/^[^,]*,/, ""));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
