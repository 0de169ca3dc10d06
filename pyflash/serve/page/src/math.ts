// TeX as MathML, which browsers draw with their own fonts. Loaded when there is some.
import katex from "katex";

export function texToMathML(tex: string, display: boolean): string | null {
  try {
    return katex.renderToString(tex, { output: "mathml", displayMode: display,
      throwOnError: true, maxSize: 50, maxExpand: 200 });
  } catch {
    return null; // it stays as it was written
  }
}
