/* The operations of bench_cuda (bench_ops.cu) that depend on the length of the context: attention, the indexer and the
 * selection; and sending. The indexer gets as many tokens of a prompt as from the model: 64 MiB of scores. */
#include "tools/cuda/bench.cuh"

namespace bench_cuda {

namespace {

enum { ROW_BYTES = 583, INDEX_BYTES = 68, PIECE_FLOATS = 16 << 20 };
const int64_t depths[] = {65536, 262144}; /* rows of ratio 4: 262,144 and 1,048,576 tokens */

/* One attention: the window, and `chosen` of n_row rows for each token, or all of them, NULL. */
void attend(const char *name, pf_attn_args args, int64_t n_row, int64_t chosen, int32_t ratio) {
    pf_rows raw = {pool, PF_ROW_KV_FP8, HEAD_DIM, ROPE_DIM, ROW_BYTES, WINDOW + PROMPT}, cached = raw;
    const int64_t n = args.n_token, bytes = n_row * ROW_BYTES, each = args.select ? chosen : n_row;
    const int64_t read = std::min(n * each, n_row) + WINDOW + n - 1;
    cached.capacity = n_row;
    args.position = ratio * n_row - n;
    args.raw = &raw;
    args.pool = &cached;
    args.ratio = ratio;
    bench(name, (double)(read * ROW_BYTES + 8 * n * HEADS * HEAD_DIM),
          (double)n * (double)(WINDOW + each) * 2.0 * HEADS * HEAD_DIM, bf16_rate, [&](int turn) {
              cached.data = place((size_t)bytes, turn);
              return ex.backend->sparse_attn(&ex, &args);
          });
}

/* FP4 rows of values that are as large as each other, as the indexer's are, in all of the pool: [n] */
int64_t fill_with_rows(const float *values) {
    enum { AT_ONCE = 4096 };
    const int64_t n = (int64_t)POOL / INDEX_BYTES / AT_ONCE * AT_ONCE;
    const pf_rows rows = {pool, PF_ROW_IDX_FP4, INDEX_DIM, 0, INDEX_BYTES, n};
    for (int64_t i = 0; i < n; i += AT_ONCE) need(ex.backend->store_rows(&ex, &rows, i, AT_ONCE, values), "store_rows");
    return n;
}

} // namespace

void attention(float *q, float *out) {
    enum { HCA = 8192 }; /* rows of ratio 128: 1,048,576 tokens */
    std::vector<int32_t> count(PROMPT, TOPK);
    pf_attn_args args = {};
    args.q = q;
    args.out = out;
    args.n_head = HEADS;
    args.head_dim = HEAD_DIM;
    args.window = WINDOW;
    args.sinks = normal_floats(HEADS);
    args.scale = 0.044f;
    args.select_n = on_device(count);
    args.select_ld = TOPK;
    for (const int64_t depth : depths) {
        std::vector<int32_t> rows(PROMPT * TOPK);
        const int64_t apart = (depth - PROMPT) / TOPK; /* so that all tokens see all */
        for (size_t i = 0; i < rows.size(); ++i) rows[i] = (int32_t)((int64_t)i % TOPK * apart + std::rand() % apart);
        args.select = on_device(rows);
        for (const int64_t n : {1, (int)PROMPT}) {
            char name[96];
            args.n_token = n;
            std::snprintf(name, sizeof name, "sparse_attn, 128 + 512 of %d rows, %d tokens", (int)depth, (int)n);
            attend(name, args, depth, TOPK, 4);
        }
    }
    args.select = nullptr;
    args.n_token = 1;
    attend("sparse_attn, 128 + all of 8192 rows, 1 token", args, HCA, HCA, 128);
    args.n_token = 64;
    attend("sparse_attn, 128 + all of 8192 rows, 64 tokens", args, HCA, HCA, 128);
}

void indexer() {
    const int64_t most = PIECE_FLOATS / depths[0];
    float *scores = normal_floats(PIECE_FLOATS), *q = normal_floats((size_t)(most * HEADS * INDEX_DIM));
    const float *w = normal_floats((size_t)(most * HEADS));
    const int64_t held = fill_with_rows(scores);
    int32_t *select = on_device<int32_t>((size_t)most * TOPK), *select_n = on_device<int32_t>((size_t)most);
    need(ex.backend->round_fp4(&ex, q, most * HEADS, INDEX_DIM), "round_fp4");
    for (const int64_t depth : depths) {
        for (const int64_t n : {(int64_t)1, PIECE_FLOATS / depth}) {
            char name[96];
            pf_rows rows = {pool, PF_ROW_IDX_FP4, INDEX_DIM, 0, INDEX_BYTES, depth};
            const pf_index_args args = {q, w, 0.01f, n, 4 * depth - n, HEADS, 4, &rows, scores, depth};
            const double each = (double)(n * depth);
            std::snprintf(name, sizeof name, "topk, 512 of %d scores, %d tokens", (int)depth, (int)n);
            bench(name, 4.0 * each, 0.0, 0.0, [&](int) {
                return ex.backend->topk(&ex, scores, depth, n, args.position, 4, TOPK, select, select_n);
            });
            std::snprintf(name, sizeof name, "index_scores, %d rows, %d tokens", (int)depth, (int)n);
            bench(name, (double)(INDEX_BYTES * depth + 4 * n * HEADS * INDEX_DIM) + 4.0 * each,
                  each * HEADS * INDEX_DIM, byte_rate, [&](int turn) {
                      rows.data = pool + turn % (held / depth) * depth * INDEX_BYTES;
                      return ex.backend->index_scores(&ex, &args);
                  });
        }
    }
}

void sending() {
    const size_t bytes = (size_t)64 << 20;
    void *host = plugin->alloc_host(device, bytes);
    if (!host) die("no page-locked memory");
    std::memset(host, 1, bytes);
    bench("send, 64 MiB of page-locked memory", (double)bytes, 0.0, 0.0, [&](int turn) {
        const int32_t slot = turn % PF_SLOTS;
        pf_status status = plugin->send(device, slot, place(bytes, turn), host, bytes);
        if (status == PF_OK) status = plugin->begin_use(device, slot);
        return status == PF_OK ? plugin->end_use(device, slot) : status;
    });
    plugin->free_host(device, host);
}

} // namespace bench_cuda
