// The texts of files that are attached.
import type { Attachment } from "./types";

const MOST_BYTES = 4 << 20; // of one file: four million characters are more than the largest context

/** The texts of files. notice: what is not taken, and why; "" if all are. */
export async function readFiles(files: Iterable<File>): Promise<{ texts: Attachment[]; notice: string }> {
  const texts: Attachment[] = [], refused: string[] = [];
  for (const file of files) {
    if (file.size > MOST_BYTES) {
      refused.push(`${file.name} has more than 4 MB: attach a part of it.`);
      continue;
    }
    const text = decoded(new Uint8Array(await file.arrayBuffer()));
    if (text === null) refused.push(refusal(file.name));
    else texts.push({ name: file.name, text });
  }
  return { texts, notice: refused.join(" ") };
}

const refusal = (name: string): string => /\.pdf$/i.test(name)
  ? `${name} is a PDF: copy its text and paste it, or attach it as a text file.`
  : `${name} is not a text file: the model reads texts only, in UTF-8 or UTF-16.`;

/** The text of bytes in UTF-8, or in UTF-16 with its mark at the beginning; null if they are none. */
function decoded(bytes: Uint8Array): string | null {
  const encoding = bytes[0] === 0xff && bytes[1] === 0xfe ? "utf-16le" : bytes[0] === 0xfe && bytes[1] === 0xff ? "utf-16be" : "utf-8";
  try {
    const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}
