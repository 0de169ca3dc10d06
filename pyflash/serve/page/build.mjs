// Writes built/ from src/: the same bytes wherever it runs, so that CI can compare. `npm ci && npm run build`.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
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
const css = await build({
  entryPoints: ["src/style.css"], bundle: true, minify: true, write: false, charset: "utf8", metafile: true, outdir: "built",
});
const style = `style-${createHash("sha256").update(css.outputFiles[0].contents).digest("hex").slice(0, 8).toUpperCase()}.css`;
writeFileSync(`built/${style}`, css.outputFiles[0].contents);
const page = readFileSync("src/index.html", "utf8").replace("SCRIPT", script).replace("STYLE", style);
writeFileSync("built/index.html", page);

// Whose packages are in these files ask that their licences go with them.
const inputs = [...Object.keys(result.metafile.inputs), ...Object.keys(css.metafile.inputs)];
const packages = new Set(inputs.flatMap((path) => path.match(/.*node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[0] ?? []));
const licences = [...packages].sort().map((folder) => {
  const { name, version, license } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const own = readdirSync(folder).find((file) => /^licen[cs]e(\.(md|txt))?$/i.test(file));
  if (own === undefined) throw new Error(`${name} has no file of its licence`);
  const text = readFileSync(`${folder}/${own}`, "utf8").replaceAll("\r\n", "\n").trim();
  return `${"=".repeat(78)}\n${name} ${version}, ${license}\n${"=".repeat(78)}\n\n${text}\n`;
});
writeFileSync("built/LICENSES.txt", ["The files beside this one hold parts of these packages.\n", ...licences].join("\n"));
