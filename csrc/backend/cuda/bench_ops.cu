/* Times the operations of decoding, and the large ones of a prompt, on a device, at V4-Flash's sizes, and holds the bytes
 * that each must read against what the device's own copies move:
 *
 *     bench_cuda [OP]      all, or those whose name begins with OP
 *
 * Weights and cache rows are taken from different places of a large buffer every time, so that they come from memory
 * and not from the cache. Times are medians of several runs of many calls, between two events of the device. */
#include "backend/cuda/ops.cuh"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" const pf_plugin *pf_plugin_query(const pf_plugin_host *host);

namespace {

enum {
    D = 4096, HEADS = 64, HEAD_DIM = 512, ROPE_DIM = 64, INDEX_DIM = 128, TOPK = 512, WINDOW = 128, STREAMS = 4,
    Q_RANK = 1024, N_EXPERT = 256, HELD_EXPERTS = 64, USED = 6, FF = 2048, VOCAB = 129280, CACHE_ROWS = 65536,
    PROMPT = 512, RUNS = 7
};
const size_t POOL = (size_t)1 << 30, SCRATCH = (size_t)512 << 20;

const pf_plugin *plugin;
pf_device *device;
pf_exec ex;
uint8_t *pool; /* random bytes */
double copy_rate;
const char *wanted = "";

struct {
    uint8_t *memory;
    size_t used;
} stack;

void *scratch_alloc(pf_arena *, size_t bytes) {
    const size_t rounded = (bytes + 255) / 256 * 256;
    if (bytes == 0 || rounded > SCRATCH - stack.used) return nullptr;
    stack.used += rounded;
    return stack.memory + stack.used - rounded;
}
size_t scratch_mark(const pf_arena *) { return stack.used; }
void scratch_reset(pf_arena *, size_t mark) { stack.used = mark; }

[[noreturn]] void die(const char *what) {
    std::fprintf(stderr, "bench_cuda: %s\n", what);
    std::exit(1);
}

void need(pf_status status, const char *what) {
    if (status != PF_OK) die(what);
}

template <typename T> T *on_device(const std::vector<T> &from) {
    T *to = static_cast<T *>(plugin->alloc(device, from.size() * sizeof(T)));
    if (!to) die("out of memory on the device");
    need(plugin->upload(device, to, from.data(), from.size() * sizeof(T)), "upload");
    return to;
}

float *normal_floats(size_t n) {
    std::vector<float> values(n);
    for (float &v : values) v = (float)(std::rand() % 2001 - 1000) / 500.0f;
    return on_device(values);
}

/* Seconds a call. fn gets the number of the call. */
template <typename F> double seconds(F fn) {
    cudaEvent_t begin, end;
    std::vector<double> times;
    cudaEventCreate(&begin);
    cudaEventCreate(&end);
    int calls = 4, turn = 0;
    while (times.size() < RUNS) {
        cudaEventRecord(begin, device->stream);
        for (int i = 0; i < calls; ++i) fn(turn++);
        cudaEventRecord(end, device->stream);
        if (cudaEventSynchronize(end) != cudaSuccess) die(cudaGetErrorString(cudaGetLastError()));
        float milliseconds = 0.0f;
        cudaEventElapsedTime(&milliseconds, begin, end);
        if (milliseconds < 20.0f && calls < 4096) calls *= 2;
        else times.push_back(milliseconds / 1e3 / calls);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::sort(times.begin(), times.end());
    return times[RUNS / 2];
}

/* bytes: what a call must read and write; products: its multiply-adds, 0 where they do not matter. */
template <typename F> void bench(const char *name, double bytes, double products, F fn) {
    if (std::strncmp(name, wanted, std::strlen(wanted)) != 0) return;
    const double s = seconds([&](int turn) { need(fn(turn), name); });
    std::printf("%-44s %10.1f %10.0f %9.1f %%", name, s * 1e6, bytes / s / 1e9, 100.0 * bytes / s / copy_rate);
    if (products > 0.0) std::printf(" %9.2f", 2.0 * products / s / 1e12);
    std::printf("\n");
    std::fflush(stdout);
}

/* The turn's place of n bytes in the pool, on a 256-byte boundary. */
uint8_t *place(size_t n, int turn) {
    const size_t step = (n + 255) / 256 * 256, places = std::max<size_t>(1, POOL / step);
    return pool + (size_t)turn % places * step;
}

pf_weight weight(pf_dtype type, int64_t rows, int64_t cols) {
    pf_weight w = {};
    w.type = type;
    w.rows = rows;
    w.cols = cols;
    w.count = 1;
    w.row_bytes = type == PF_BF16 ? 2 * cols : cols;
    if (type == PF_Q8_0) w.row_bytes = cols / 32 * 34;
    if (type == PF_MXFP4) w.row_bytes = cols / 32 * 17;
    w.scale_cols = (cols + 127) / 128;
    w.scale_rows = (rows + 127) / 128;
    return w;
}

void measure_copy() {
    const double s = seconds([&](int) {
        cudaMemcpyAsync(pool, pool + POOL / 2, POOL / 2, cudaMemcpyDeviceToDevice, device->stream);
    });
    copy_rate = (double)POOL / s;
    std::printf("copy bandwidth: %.0f GB/s (%.0f MiB within the device, read and written)\n\n", copy_rate / 1e9,
                (double)(POOL / 2) / 1048576.0);
    std::printf("%-44s %10s %10s %11s %9s\n", "operation", "us", "GB/s", "of copy", "TFLOP/s");
}

void linears(const float *x, float *y) {
    static const struct { const char *name; pf_dtype type; } types[] = {
        {"FP8", PF_FP8}, {"Q8_0", PF_Q8_0}, {"BF16", PF_BF16}, {"MXFP4", PF_MXFP4}};
    static const struct { const char *name; int64_t rows, cols, n; } shapes[] = {
        {"q_a", Q_RANK, D, 1}, {"q_b", HEADS * HEAD_DIM, Q_RANK, 1}, {"out_b", D, 8 * Q_RANK, 1},
        {"shared", FF, D, 1}, {"head", VOCAB, D, 1}, {"q_b, 512 tokens", HEADS * HEAD_DIM, Q_RANK, PROMPT}};
    for (const auto &shape : shapes) {
        for (const auto &type : types) {
            char name[96];
            pf_weight w = weight(type.type, shape.rows, shape.cols);
            const double bytes = (double)(w.rows * w.row_bytes);
            std::snprintf(name, sizeof name, "linear %s %s [%lld, %lld]", type.name, shape.name, (long long)w.rows,
                          (long long)w.cols);
            if (bytes > (double)POOL) continue;
            w.scale = pool;
            bench(name, bytes, shape.n > 1 ? (double)(w.rows * w.cols * shape.n) : 0.0, [&](int turn) {
                w.data = place((size_t)bytes, turn);
                return ex.backend->linear(&ex, &w, x, w.cols, shape.n, y, w.rows);
            });
        }
    }
}

void experts(const float *x, float *y) {
    pf_weight gate = weight(PF_MXFP4, FF, D), up = gate, down = weight(PF_MXFP4, D, FF);
    const int64_t matrix = up.rows * up.row_bytes;
    gate.count = up.count = down.count = HELD_EXPERTS;
    gate.data = pool;
    up.data = pool + HELD_EXPERTS * matrix;
    down.data = pool + 2 * HELD_EXPERTS * matrix;
    const float *weights = normal_floats(PROMPT * USED);
    std::vector<int32_t> ids(PROMPT * USED);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = (int32_t)((i % USED * 11 + i / USED * 5) % HELD_EXPERTS);
    const int32_t *chosen = on_device(ids);
    pf_experts_args args = {&gate, &up, &down, x, chosen, weights, 1, USED, 0, HELD_EXPERTS, 10.0f, y};
    for (int bits = 16; bits > 0; bits -= 8) {
        const char *one = bits == 8 ? "experts MXFP4, 6 of them, 1 token, int8" : "experts MXFP4, 6 of them, 1 token";
        const char *many = bits == 8 ? "experts MXFP4, 64 of them, 512 tokens, int8" : "experts MXFP4, 64 of them, 512 tokens";
        ex.int8 = bits == 8;
        args.n_token = 1;
        bench(one, (double)(3 * USED * matrix), 0.0, [&](int turn) {
            args.chosen = chosen + turn % 64 * USED;
            return ex.backend->experts(&ex, &args);
        });
        args.n_token = PROMPT;
        args.chosen = chosen;
        bench(many, (double)(3 * HELD_EXPERTS * matrix), 3.0 * PROMPT * USED * D * FF,
              [&](int) { return ex.backend->experts(&ex, &args); });
    }
    ex.int8 = false;
}

void attention(float *q, float *out) {
    std::vector<int32_t> rows(TOPK), count(1, TOPK);
    for (int i = 0; i < TOPK; ++i) rows[(size_t)i] = i * (CACHE_ROWS / TOPK) + std::rand() % (CACHE_ROWS / TOPK);
    pf_rows raw = {pool, PF_ROW_KV_FP8, HEAD_DIM, ROPE_DIM, 583, WINDOW + 512}, cached = raw;
    const int64_t bytes = (int64_t)CACHE_ROWS * 583;
    cached.capacity = CACHE_ROWS;
    pf_attn_args args = {};
    args.q = q;
    args.out = out;
    args.n_token = 1;
    args.position = 4 * CACHE_ROWS - 1;
    args.n_head = HEADS;
    args.head_dim = HEAD_DIM;
    args.window = WINDOW;
    args.sinks = normal_floats(HEADS);
    args.scale = 0.044f;
    args.raw = &raw;
    args.pool = &cached;
    args.ratio = 4;
    args.select = on_device(rows);
    args.select_n = on_device(count);
    args.select_ld = TOPK;
    bench("sparse_attn, 128 + 512 rows of 583 bytes", 640.0 * 583.0, 640.0 * 2.0 * HEADS * HEAD_DIM, [&](int turn) {
        cached.data = place((size_t)bytes, turn);
        return ex.backend->sparse_attn(&ex, &args);
    });
}

void indexer(const float *q, const float *w) {
    pf_rows rows = {pool, PF_ROW_IDX_FP4, INDEX_DIM, 0, 68, CACHE_ROWS};
    float *scores = normal_floats(CACHE_ROWS);
    int32_t *select = static_cast<int32_t *>(plugin->alloc(device, (TOPK + 1) * sizeof(int32_t)));
    pf_index_args args = {q, w, 0.01f, 1, 4 * CACHE_ROWS - 1, HEADS, 4, &rows, scores, CACHE_ROWS};
    bench("topk, 512 of 65536 scores", 4.0 * CACHE_ROWS, 0.0, [&](int) {
        return ex.backend->topk(&ex, scores, CACHE_ROWS, 1, args.position, 4, TOPK, select, select + TOPK);
    });
    const double products = 1.0 * CACHE_ROWS * HEADS * INDEX_DIM;
    bench("index_scores, 65536 rows of 68 bytes", 68.0 * CACHE_ROWS, products, [&](int turn) {
        rows.data = place(68 * (size_t)CACHE_ROWS, turn);
        return ex.backend->index_scores(&ex, &args);
    });
}

void mixing(float *x, float *y, float *streams) {
    const pf_mhc_shape shape = {STREAMS, 20, D, 1e-6f, 1e-6f};
    const int64_t rows = (2 + STREAMS) * STREAMS, bytes = rows * STREAMS * D * 4;
    float *small = normal_floats(4096);
    pf_mhc_site site = {nullptr, small, small + 512};
    bench("mhc_pre with Sinkhorn", (double)bytes, 0.0, [&](int turn) {
        site.fn = reinterpret_cast<float *>(place((size_t)bytes, turn));
        return ex.backend->mhc_pre(&ex, &shape, &site, streams, 1, x, small + 1024, small + 1100);
    });
    bench("mhc_post", (2.0 * STREAMS + 1.0) * D * 4.0, 0.0, [&](int) {
        return ex.backend->mhc_post(&ex, &shape, y, small + 1024, small + 1100, 1, streams);
    });
    bench("rms_norm of 4096", 2.0 * 4.0 * D, 0.0, [&](int) {
        return ex.backend->rms_norm(&ex, x, 1, D, small, 1e-6f, y);
    });
    int32_t *chosen = static_cast<int32_t *>(plugin->alloc(device, 64));
    const pf_route_args route = {small, small + 256, nullptr, 1, N_EXPERT, USED, 1.5f, small + 2048, chosen,
                                 small + 3000};
    bench("route, 6 of 256", 8.0 * N_EXPERT, 0.0, [&](int) { return ex.backend->route(&ex, &route); });
}

} // namespace

int main(int argc, char **argv) {
    static const pf_plugin_host host = {sizeof host, PF_PLUGIN_ABI, scratch_alloc, scratch_mark, scratch_reset};
    pf_error err = {};
    if (argc > 1) wanted = argv[1];
    plugin = pf_plugin_query(&host);
    if (plugin->problem) die(plugin->problem);
    if (plugin->open(0, &device, &err) != PF_OK) die(err.message);
    ex.backend = plugin->backend(device);
    pool = static_cast<uint8_t *>(plugin->alloc(device, POOL));
    stack.memory = static_cast<uint8_t *>(plugin->alloc(device, SCRATCH));
    if (!pool || !stack.memory) die("the device has too little free memory: 3 GiB are needed");
    std::vector<uint8_t> bytes((size_t)64 << 20);
    for (uint8_t &b : bytes) b = (uint8_t)(std::rand() >> 8);
    for (size_t at = 0; at < POOL; at += bytes.size()) {
        need(plugin->upload(device, pool + at, bytes.data(), bytes.size()), "upload");
    }
    float *x = normal_floats((size_t)PROMPT * 8 * Q_RANK), *y = normal_floats((size_t)PROMPT * HEADS * HEAD_DIM);
    measure_copy();
    linears(x, y);
    experts(x, y);
    attention(x, y);
    indexer(x, y);
    mixing(x, y, y + D);
    need(plugin->synchronize(device, &err), err.message);
    plugin->close(device);
    return 0;
}
