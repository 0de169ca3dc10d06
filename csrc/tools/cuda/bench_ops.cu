/* Times the operations of decoding, and the large ones of a prompt, on a device, at V4-Flash's sizes, and holds the
 * bytes that each must read against what the device's own copies move, and the products of those that are for tensor
 * cores against what these do in a loop of nothing else:
 *
 *     bench_cuda [OP]      all, or those whose name begins with OP
 *
 * Of a product, Q8_0 and MXFP4 make two of bytes (in int8 one), FP8 and BF16 three of bfloat16 and attention three and
 * two: half or a third of the last column is then all that there is.
 *
 * Weights and cache rows are taken from different places of a large buffer every time, so that they come from memory
 * and not from the cache. Times are medians of several runs of many calls, between two events of the device. */
#include "tools/cuda/bench.cuh"

extern "C" const pf_plugin *pf_plugin_query(const pf_plugin_host *host);

namespace bench_cuda {

const pf_plugin *plugin;
pf_device *device;
pf_exec ex;
uint8_t *pool;
const char *wanted = "";
double copy_rate, byte_rate, bf16_rate;

void die(const char *what) {
    std::fprintf(stderr, "bench_cuda: %s\n", what);
    std::exit(1);
}

float *normal_floats(size_t n) {
    std::vector<float> values(n);
    for (float &v : values) v = (float)(std::rand() % 2001 - 1000) / 500.0f;
    return on_device(values);
}

} // namespace bench_cuda

using namespace bench_cuda;

namespace {

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

pf_weight weight(pf_dtype type, int64_t rows, int64_t cols) {
    pf_weight w = {};
    w.type = type;
    w.rows = rows;
    w.cols = cols;
    w.count = 1;
    w.row_bytes = type == PF_BF16 ? 2 * cols : cols;
    if (type == PF_Q8_0) w.row_bytes = cols / PF_Q8_0_VALUES * PF_Q8_0_BYTES;
    if (type == PF_MXFP4) w.row_bytes = cols / PF_MXFP4_VALUES * PF_MXFP4_BYTES;
    w.scale_cols = (cols + 127) / 128;
    w.scale_rows = (rows + 127) / 128;
    return w;
}

enum { LOOPS = 4096, CHAINS = 8, RATE_THREADS = 256 };

/* As many products as a warp can make, in CHAINS sums that do not wait for each other. */
template <bool BYTES> __global__ void __launch_bounds__(RATE_THREADS) rate_kernel(float *out) {
    const uint32_t a[4] = {threadIdx.x, 1, 2, 3};
    uint2 b;
    b.x = b.y = threadIdx.x;
    int sums[CHAINS][4] = {};
    float float_sums[CHAINS][4] = {};
    for (int i = 0; i < LOOPS; ++i) {
PF_UNROLL
        for (int c = 0; c < CHAINS; ++c) {
            if (BYTES) pf_mma_bytes_add(sums[c], a, b);
            else pf_mma_bf16(float_sums[c], a, b);
        }
    }
    float sum = 0.0f;
    for (int c = 0; c < CHAINS; ++c) {
        for (int e = 0; e < 4; ++e) sum += BYTES ? (float)sums[c][e] : float_sums[c][e];
    }
    out[pf_thread()] = sum;
}

template <bool BYTES> double product_rate() {
    const unsigned blocks = 4 * (unsigned)device->n_sm;
    float *out = reinterpret_cast<float *>(pool);
    const double s = seconds([&](int) { PF_LAUNCH(rate_kernel<BYTES>, blocks, RATE_THREADS, 0, device->stream, out); });
    return (BYTES ? 32.0 : 16.0) * 16 * 8 * CHAINS * LOOPS * (RATE_THREADS / PF_WARP) * blocks / s;
}

void measure_rates() {
    const double s = seconds([&](int) {
        cudaMemcpyAsync(pool, pool + POOL / 2, POOL / 2, cudaMemcpyDeviceToDevice, device->stream);
    });
    copy_rate = (double)POOL / s;
    byte_rate = product_rate<true>();
    bf16_rate = product_rate<false>();
    std::printf("copy bandwidth: %.0f GB/s (%.0f MiB within the device, read and written)\n", copy_rate / 1e9,
                (double)(POOL / 2) / 1048576.0);
    std::printf("tensor cores: %.0f TOP/s of bytes, %.0f TFLOP/s of bfloat16\n\n", 2.0 * byte_rate / 1e12,
                2.0 * bf16_rate / 1e12);
    std::printf("%-48s %10s %10s %11s %9s %11s\n", "operation", "us", "GB/s", "of copy", "TFLOP/s", "of tensor");
}

bool of_bytes(pf_dtype type) { return type == PF_Q8_0 || type == PF_MXFP4; }

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
            const double products = shape.n > 1 ? (double)(w.rows * w.cols * shape.n) : 0.0;
            bench(name, bytes, products, of_bytes(type.type) ? byte_rate : bf16_rate, [&](int turn) {
                w.data = place((size_t)bytes, turn);
                return ex.backend->linear(&ex, &w, x, w.cols, shape.n, y, w.rows);
            });
        }
    }
}

/* As many experts as fit into the pool, of 256. */
void experts(const float *x, float *y) {
    static const struct { const char *name; pf_dtype type; bool int8; int held; } types[] = {
        {"MXFP4", PF_MXFP4, false, 64}, {"MXFP4 int8", PF_MXFP4, true, 64}, {"FP8", PF_FP8, false, 32},
        {"BF16", PF_BF16, false, 16}};
    const float *weights = normal_floats(PROMPT * USED);
    for (const auto &type : types) {
        char one[96], many[96];
        pf_weight gate = weight(type.type, FF, D), up = gate, down = weight(type.type, D, FF);
        const int64_t matrix = up.rows * up.row_bytes;
        gate.count = up.count = down.count = type.held;
        gate.data = pool;
        up.data = pool + type.held * matrix;
        down.data = pool + 2 * type.held * matrix;
        gate.scale = up.scale = down.scale = pool;
        std::vector<int32_t> ids(PROMPT * USED);
        for (size_t i = 0; i < ids.size(); ++i) ids[i] = (int32_t)((i % USED * 11 + i / USED * 5) % (size_t)type.held);
        const int32_t *chosen = on_device(ids);
        pf_experts_args args = {&gate, &up, &down, x, chosen, weights, 1, USED, 0, type.held, 10.0f, y,
                                0, nullptr};
        std::snprintf(one, sizeof one, "experts %s, 6 of them, 1 token", type.name);
        std::snprintf(many, sizeof many, "experts %s, %d of them, 512 tokens", type.name, type.held);
        ex.int8 = type.int8;
        bench(one, (double)(3 * USED * matrix), 0.0, 0.0, [&](int turn) {
            args.chosen = chosen + turn % 64 * USED;
            return ex.backend->experts(&ex, &args);
        });
        args.n_token = PROMPT;
        args.chosen = chosen;
        bench(many, (double)(3 * type.held * matrix), 3.0 * PROMPT * USED * D * FF,
              of_bytes(type.type) ? byte_rate : bf16_rate, [&](int) { return ex.backend->experts(&ex, &args); });
    }
    ex.int8 = false;
}

void mixing(float *x, float *y, float *streams) {
    const pf_mhc_shape shape = {STREAMS, 20, D, 1e-6f, 1e-6f};
    const int64_t rows = (2 + STREAMS) * STREAMS, bytes = rows * STREAMS * D * 4;
    float *small = normal_floats(4096);
    pf_mhc_site site = {nullptr, small, small + 512};
    bench("mhc_pre with Sinkhorn", (double)bytes, 0.0, 0.0, [&](int turn) {
        site.fn = reinterpret_cast<float *>(place((size_t)bytes, turn));
        return ex.backend->mhc_pre(&ex, &shape, &site, streams, 1, x, small + 1024, small + 1100);
    });
    bench("mhc_post", (2.0 * STREAMS + 1.0) * D * 4.0, 0.0, 0.0, [&](int) {
        return ex.backend->mhc_post(&ex, &shape, y, small + 1024, small + 1100, 1, streams);
    });
    bench("rms_norm of 4096", 2.0 * 4.0 * D, 0.0, 0.0, [&](int) {
        return ex.backend->rms_norm(&ex, x, 1, D, small, 1e-6f, y);
    });
    int32_t *chosen = on_device<int32_t>(16);
    const pf_route_args route = {small, small + 256, nullptr, 1, N_EXPERT, USED, 1.5f, small + 2048, chosen,
                                 small + 3000};
    bench("route, 6 of 256", 8.0 * N_EXPERT, 0.0, 0.0, [&](int) { return ex.backend->route(&ex, &route); });
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
    float *x = normal_floats((size_t)PROMPT * HEADS * HEAD_DIM), *y = normal_floats((size_t)PROMPT * HEADS * HEAD_DIM);
    measure_rates();
    linears(x, y);
    experts(x, y);
    attention(x, y);
    mixing(x, y, y + D);
    sending();
    indexer();
    need(plugin->synchronize(device, &err), err.message);
    plugin->close(device);
    return 0;
}
