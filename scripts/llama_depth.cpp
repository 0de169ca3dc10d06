// llama_depth MODEL.gguf THREADS DEPTH PROMPT GEN REPEAT: llama.cpp's speed at a depth that nobody filled.
//
// llama.cpp keeps DeepSeek-V4's compressed rows by position, zeros where nothing was evaluated. So evaluating at position
// DEPTH of an empty context reads and scores as many rows as in a full one. Prints a JSON object a repetition; the first
// one warms up and is not printed. Built and run by compare_at_depth.py.
#include "llama.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

namespace {

double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Numbers {
    int threads, depth, prompt, gen, repeat;
};

// n random tokens from `position` on; the logits of the last.
bool evaluate(llama_context *context, int n, int position, int n_vocab, std::mt19937 &random) {
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; ++i) {
        batch.token[i] = static_cast<llama_token>(random() % static_cast<unsigned>(n_vocab));
        batch.pos[i] = position + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i == n - 1;
    }
    const bool done = llama_decode(context, batch) == 0;
    llama_synchronize(context);
    llama_batch_free(batch);
    return done;
}

void print(const char *test, int n, double took) {
    std::printf("{\"test\": \"%s\", \"tokens\": %d, \"seconds\": %.6f}\n", test, n, took);
    std::fflush(stdout);
}

int measure(llama_context *context, const Numbers &numbers, int n_vocab) {
    std::mt19937 random(1);
    for (int turn = 0; turn <= numbers.repeat; ++turn) {
        llama_memory_clear(llama_get_memory(context), true);
        double start = seconds();
        if (!evaluate(context, numbers.prompt, numbers.depth, n_vocab, random)) return 1;
        const double prefill = seconds() - start;
        start = seconds();
        for (int i = 0; i < numbers.gen; ++i) {
            if (!evaluate(context, 1, numbers.depth + numbers.prompt + i, n_vocab, random)) return 1;
        }
        if (turn == 0) continue;
        print("prefill", numbers.prompt, prefill);
        if (numbers.gen > 0) print("decode", numbers.gen, seconds() - start);
    }
    return 0;
}

void log_errors(ggml_log_level level, const char *text, void *) {
    if (level >= GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
}

} // namespace

int main(int argc, char **argv) {
    if (argc != 7) {
        std::fputs("usage: llama_depth MODEL.gguf THREADS DEPTH PROMPT GEN REPEAT\n", stderr);
        return 2;
    }
    const Numbers numbers = {std::atoi(argv[2]), std::atoi(argv[3]), std::atoi(argv[4]), std::atoi(argv[5]),
                             std::atoi(argv[6])};
    llama_log_set(log_errors, nullptr);
    llama_backend_init();
    llama_model_params model_params = llama_model_default_params();
    model_params.use_extra_bufts = false; // no repacked copies, which would not fit beside a slice
    llama_model *model = llama_model_load_from_file(argv[1], model_params);
    if (model == nullptr) return 1;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(numbers.depth + numbers.prompt + numbers.gen + 256);
    params.n_batch = params.n_ubatch = static_cast<uint32_t>(numbers.prompt);
    params.n_threads = params.n_threads_batch = numbers.threads;
    llama_context *context = llama_init_from_model(model, params);
    if (context == nullptr) return 1;
    const int status = measure(context, numbers, llama_vocab_n_tokens(llama_model_get_vocab(model)));
    llama_free(context);
    llama_model_free(model);
    return status;
}
