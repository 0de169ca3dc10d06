// Renders chats with the Jinja engines of other programs: node render.mjs REQUEST.json
//
// REQUEST: package (folder that holds node_modules), templates (by name), chats ({template, variables}), reply (path).
// REPLY: huggingface (@huggingface/jinja) and llama (llama.cpp's own), the texts in the order of the chats, or
// {error: message} where an engine refuses.

import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const request = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const modules = path.join(request.package, "node_modules");
const load = (...parts) => import(pathToFileURL(path.join(modules, ...parts)).href);
const {Template} = await load("@huggingface", "jinja", "dist", "index.js");
const {getLlama} = await load("node-llama-cpp", "dist", "index.js");
const llama = await getLlama({gpu: false, build: "never", skipDownload: true, progressLogs: false, maxThreads: 1});

function renderAll(make) {
    const renderers = {};
    for (const [name, text] of Object.entries(request.templates))
        renderers[name] = make(text);
    return request.chats.map(({template, variables}) => {
        try {
            return renderers[template].render(variables);
        } catch (error) {
            return {error: String(error)};
        }
    });
}

const reply = {
    huggingface: renderAll((text) => new Template(text)),
    llama: renderAll((text) => new llama._bindings.AddonJinjaRenderer(text)),
};
fs.writeFileSync(request.reply, JSON.stringify(reply));
await llama.dispose();
