// Writes built/ from src/: the same bytes wherever it runs, so that CI can compare. `npm ci && npm run build`.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename } from "node:path";

rmSync("built", { recursive: true, force: true });
mkdirSync("built");
const result = await build({
  entryPoints: ["src/main.tsx"], bundle: true, splitting: true, format: "esm", target: "es2022", minify: true,
  legalComments: "none", outdir: "built", entryNames: "[name]-[hash]", chunkNames: "[name]-[hash]", metafile: true,
  jsx: "automatic", jsxImportSource: "preact", charset: "utf8", define: { "process.env.NODE_ENV": '"production"' },
});
const entry = Object.entries(result.metafile.outputs).find(([, made]) => made.entryPoint === "src/main.tsx");
const script = basename(entry[0]);
const css = await build({ entryPoints: ["src/style.css"], bundle: true, minify: true, write: false, charset: "utf8" });
const style = `style-${createHash("sha256").update(css.outputFiles[0].contents).digest("hex").slice(0, 8).toUpperCase()}.css`;
writeFileSync(`built/${style}`, css.outputFiles[0].contents);
const page = readFileSync("src/index.html", "utf8").replace("SCRIPT", script).replace("STYLE", style);
writeFileSync("built/index.html", page);
