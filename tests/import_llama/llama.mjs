// Runs one request on llama.cpp: node llama.mjs REQUEST.json. Token ids go in and come out raw; nothing adds a BOS.
//
// REQUEST: package (folder that holds node_modules), model, reply (path to write); optional
//   float32     true: caches and attention in float32; else llama.cpp's defaults, which round to float16 there
//   batch       most tokens per decode call
//   prompts     arrays of ids: logits at each position go to `logits` (path, float32 [positions, vocab])
//   continue    ids to append greedily to each prompt, evaluated one at a time; their logits follow the prompt's
//   generate    arrays of ids, each answered greedily by at most max_tokens ids, the end token included; what a prompt
//               shares with the one before is kept where llama.cpp can
//   vocab_only  load no weights
//   texts       strings to tokenise, each without and with special tokens in the text
//   chats       variables for the file's chat template, for llama.cpp's own Jinja
//   answers     user messages, each answered by a chat session that uses the file's template
// REPLY: vocab, continuations, generated, tokens (plain, special), rendered, answers (text, stop, and ids: the whole
// session's).

import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const request = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const entry = path.join(request.package, "node_modules", "node-llama-cpp", "dist", "index.js");
const {getLlama, JinjaTemplateChatWrapper, LlamaChatSession} = await import(pathToFileURL(entry).href);

const llama = await getLlama({gpu: false, build: "never", skipDownload: true, progressLogs: false, maxThreads: 1});
const model = await llama.loadModel({modelPath: request.model, useMmap: true, vocabOnly: request.vocab_only ?? false});
const metadata = model.fileInfo.metadata;
const vocab = metadata[metadata.general.architecture].vocab_size;
const reply = {vocab};

function contextOptions(size) {
    const exact = {flashAttention: false, experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"};
    // One thread: those of llama.cpp spin while they wait, which is slow where other processes want the cores.
    return {contextSize: size, batchSize: request.batch, threads: 1, ...(request.float32 ? exact : {})};
}

function writeLogits(file, next) {
    const row = new Float32Array(vocab).fill(NaN);
    if (next.logits.size !== vocab)
        throw new Error(`llama.cpp returned ${next.logits.size} logits, the vocabulary has ${vocab}`);
    for (const [token, value] of next.logits)
        row[token] = value;
    fs.writeSync(file, row);
}

async function evaluate(sequence, ids, file) {
    const options = {generateNext: {logits: true, token: true}};
    const outputs = await sequence.controlledEvaluate(ids.map((id) => [id, options]));
    for (const output of outputs)
        writeLogits(file, output.next);
    return outputs.at(-1).next.token;
}

async function continueGreedily(prompt, file) {
    const steps = request.continue ?? 0;
    const context = await model.createContext(contextOptions(prompt.length + steps));
    const sequence = context.getSequence();
    const continuation = [];
    let next = await evaluate(sequence, prompt, file);
    while (continuation.length < steps) {
        continuation.push(next);
        next = await evaluate(sequence, [next], file);
    }
    await context.dispose();
    return continuation;
}

async function generateGreedily(prompts) {
    const longest = Math.max(...prompts.map((prompt) => prompt.length));
    const context = await model.createContext(contextOptions(longest + request.max_tokens));
    const sequence = context.getSequence();
    const answers = [];
    for (const [i, prompt] of prompts.entries()) {
        await sequence.adaptStateToTokens(prompt.slice(0, -1), false);
        const next = prompts[i + 1] ?? [];
        const differs = prompt.findIndex((id, at) => id !== next[at]);
        if (sequence.nextTokenIndex < differs) {
            await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(sequence.nextTokenIndex, differs));
            await sequence.takeCheckpoint();
        }
        const answer = [];
        const options = {temperature: 0, yieldEogToken: true};
        for await (const id of sequence.evaluate(prompt.slice(sequence.nextTokenIndex), options)) {
            answer.push(id);
            if (answer.length === request.max_tokens || model.isEogToken(id))
                break;
        }
        answers.push(answer);
    }
    await context.dispose();
    return answers;
}

if (request.prompts) {
    const file = fs.openSync(request.logits, "w");
    reply.continuations = [];
    for (const prompt of request.prompts)
        reply.continuations.push(await continueGreedily(prompt, file));
    fs.closeSync(file);
}
if (request.generate)
    reply.generated = await generateGreedily(request.generate);
if (request.texts) {
    reply.tokens = request.texts.map((text) => ({plain: model.tokenize(text), special: model.tokenize(text, true)}));
}
const template = metadata.tokenizer.chat_template;
if (request.chats)
    reply.rendered = request.chats.map((chat) => new llama._bindings.AddonJinjaRenderer(template).render(chat));
if (request.answers) {
    reply.answers = [];
    for (const message of request.answers) {
        const context = await model.createContext(contextOptions(512));
        const contextSequence = context.getSequence();
        const chatWrapper = new JinjaTemplateChatWrapper({template, reasoning: false});
        const session = new LlamaChatSession({contextSequence, chatWrapper, systemPrompt: ""});
        const options = {maxTokens: 24, temperature: 0};
        const {responseText, stopReason} = await session.promptWithMeta(message, options);
        reply.answers.push({text: responseText, stop: stopReason, ids: contextSequence.contextTokens});
        await context.dispose();
    }
}
fs.writeFileSync(request.reply, JSON.stringify(reply));
await llama.dispose();
