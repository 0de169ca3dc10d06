#include "runtime/self_test.h"

#include "base/memory.h"
#include "base/status.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

enum { MEMORY_BYTES = 8 << 20, MOST_VALUES = 1 << 15, MOST_DEVICES = 32, ALIGNMENT = 256 };

/* Differences in units of the largest value. Sums of floats in another order, of a few hundred terms, stay far below the
 * first; the second lets an activation be rounded to the neighbouring code. */
static const double floats_differ = 1e-4, codes_differ = 2e-3;

/* Where an operation runs: the device, or the processor. Both make the same inputs of the same seed. */
typedef struct side {
    pf_exec ex;
    pf_link *link;   /* NULL: the processor */
    const pf_backend *tested; /* the device's table: types that it does not take are left out on both sides */
    uint8_t *memory; /* [MEMORY_BYTES] there */
    uint8_t *draft;  /* [MEMORY_BYTES] of the host: what goes there */
    size_t used;
    uint32_t seed;
    float *values;   /* [MOST_VALUES] results, of the host */
    int64_t n_value;
    pf_status status; /* the first failure */
} side;

/* ---- Inputs and results ------------------------------------------------------------------------------------- */

static uint32_t random_bits(side *s) {
    s->seed = s->seed * 1664525u + 1013904223u;
    return s->seed >> 8;
}

/* Room on the side, for which `draft` stands meanwhile. */
static void *room(side *s, size_t bytes, void **draft) {
    const size_t at = s->used;
    s->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (s->used > MEMORY_BYTES) { /* a mistake here: sizes are fixed */
        s->status = PF_ERR_INTERNAL;
        s->used = 0;
        *draft = s->draft;
        return s->memory;
    }
    *draft = s->draft + at;
    memset(*draft, 0, bytes);
    return s->memory + at;
}

static void send(side *s, void *to, const void *draft, size_t bytes) {
    if (s->link == NULL) memcpy(to, draft, bytes);
    else if (s->status == PF_OK) s->status = pf_link_upload(s->link, to, draft, bytes);
}

static void note(side *s, pf_status status) {
    if (s->status == PF_OK) s->status = status;
}

/* n zeros. */
static float *zeros(side *s, int64_t n) {
    void *draft, *there = room(s, (size_t)n * sizeof(float), &draft);
    send(s, there, draft, (size_t)n * sizeof(float));
    return there;
}

static float *floats(side *s, int64_t n, float spread) {
    void *draft, *there = room(s, (size_t)n * sizeof(float), &draft);
    float *x = draft;
    for (int64_t i = 0; i < n; ++i) x[i] = spread * ((float)random_bits(s) / 8388608.0f - 1.0f);
    send(s, there, draft, (size_t)n * sizeof(float));
    return there;
}

/* n numbers from 0 to below - 1. In groups of `apart` no two are the same. */
static int32_t *ids(side *s, int64_t n, int32_t below, int32_t apart) {
    void *draft, *there = room(s, (size_t)n * sizeof(int32_t), &draft);
    int32_t *x = draft;
    for (int64_t i = 0; i < n; ++i) {
        x[i] = i % apart == 0 ? (int32_t)(random_bits(s) % (uint32_t)below) : (x[i - 1] + 1) % below;
    }
    send(s, there, draft, (size_t)n * sizeof(int32_t));
    return there;
}

static void take(side *s, const float *x, int64_t n) {
    if (s->n_value + n > MOST_VALUES) note(s, PF_ERR_INTERNAL);
    if (s->status != PF_OK) return;
    float *to = s->values + s->n_value;
    s->n_value += n;
    if (s->link == NULL) memcpy(to, x, (size_t)n * sizeof *x);
    else s->status = pf_link_download(s->link, to, x, (size_t)n * sizeof *x);
}

/* As floats; each of them counts as much as the largest value does. */
static void take_ids(side *s, const int32_t *x, int64_t n) {
    const int64_t at = s->n_value;
    take(s, (const float *)(const void *)x, n);
    for (int64_t i = at; i < s->n_value; ++i) {
        int32_t id;
        memcpy(&id, &s->values[i], sizeof id);
        s->values[i] = 1e3f * (float)id;
    }
}

/* ---- Weights ------------------------------------------------------------------------------------------------ */

#define OF_TYPE(name, number, values, bytes, uses) PF_##name,
static const pf_dtype types[] = {PF_WEIGHT_TYPES(OF_TYPE)};
enum { TYPES = PF_W_COUNT };

/* A byte of a weight, so that numbers are of moderate size. */
static uint8_t moderate(pf_dtype type, int64_t at, uint8_t byte) {
    switch (type) {
    case PF_F32: return at % 4 == 3 ? (byte & 0x80) | 0x3e : byte;
    case PF_F16: return at % 2 == 1 ? (byte & 0x83) | 0x34 : byte;
    case PF_BF16: return at % 2 == 1 ? (byte & 0x80) | 0x3e : byte;
    case PF_Q8_0: return at % PF_Q8_0_BYTES == 1 ? (byte & 0x83) | 0x10 : byte;
    case PF_MXFP4: return at % PF_MXFP4_BYTES == 0 ? (uint8_t)(120 + byte % 8) : byte;
    default: return (byte & 0x7f) >= 0x78 ? byte & 0x87 : byte; /* no NaN, and not the largest */
    }
}

static pf_weight matrix(side *s, pf_dtype type, int64_t rows, int64_t cols, int64_t count) {
    uint64_t row_bytes = 0;
    if (!pf_dtype_row_bytes(type, (uint64_t)cols, &row_bytes)) note(s, PF_ERR_INTERNAL);
    pf_weight w = {.type = type, .cols = cols, .rows = rows, .count = count, .row_bytes = (int64_t)row_bytes};
    const int64_t bytes = count * rows * w.row_bytes;
    void *draft, *there = room(s, (size_t)bytes, &draft);
    for (int64_t i = 0; i < bytes; ++i) ((uint8_t *)draft)[i] = moderate(type, i, (uint8_t)random_bits(s));
    send(s, there, draft, (size_t)bytes);
    w.data = there;
    if (type != PF_FP8) return w;
    w.scale_cols = (cols + PF_FP8_BLOCK - 1) / PF_FP8_BLOCK;
    w.scale_rows = (rows + PF_FP8_BLOCK - 1) / PF_FP8_BLOCK;
    const int64_t n = count * w.scale_rows * w.scale_cols;
    there = room(s, (size_t)n, &draft);
    for (int64_t i = 0; i < n; ++i) ((uint8_t *)draft)[i] = (uint8_t)(118 + random_bits(s) % 8);
    send(s, there, draft, (size_t)n);
    w.scale = there;
    return w;
}

/* ---- Operations --------------------------------------------------------------------------------------------- */

static const pf_backend *table(const side *s) { return s->ex.backend; }

/* Every type, one token and some, integer and float activations. */
static void linear(side *s, int variant) {
    enum { ROWS = 40, COLS = 256, SOME = 11 };
    if (!pf_backend_takes(s->tested, types[variant % TYPES])) return;
    const pf_weight w = matrix(s, types[variant % TYPES], ROWS, COLS, 1);
    const int64_t n = variant / TYPES % 2 == 0 ? 1 : SOME;
    s->ex.exact = variant / TYPES / 2 == 1;
    float *x = floats(s, n * COLS, 2.0f), *y = zeros(s, n * ROWS);
    note(s, table(s)->linear(&s->ex, &w, x, COLS, n, y, ROWS));
    take(s, y, n * ROWS);
}

static void embed(side *s, int variant) {
    enum { VOCAB = 16, D = 256, N = 3 };
    if (!pf_backend_takes(s->tested, types[variant])) return;
    const pf_weight w = matrix(s, types[variant], VOCAB, D, 1);
    const int32_t *tokens = ids(s, N, VOCAB, 1);
    float *x = zeros(s, N * 2 * D);
    note(s, table(s)->embed(&s->ex, &w, tokens, N, 2, x));
    take(s, x, N * 2 * D);
}

/* Few tokens of experts that lie in another order, one of which is missing, and many tokens of all. */
static void experts(side *s, int variant) {
    enum { E = 8, A = 2, D = 128, F = 64, FEW = 3, MANY = 20 };
    static const pf_dtype of[] = {PF_MXFP4, PF_Q8_0, PF_FP8};
    if (!pf_backend_takes(s->tested, of[variant / 2])) return;
    const bool few = variant % 2 == 0;
    const int64_t n = few ? FEW : MANY;
    const pf_weight gate = matrix(s, of[variant / 2], F, D, E), up = matrix(s, of[variant / 2], F, D, E);
    const pf_weight down = matrix(s, of[variant / 2], D, F, E);
    void *draft, *held_at = room(s, E * sizeof(int32_t), &draft);
    for (int32_t e = 0; e < E; ++e) ((int32_t *)draft)[e] = e == 5 ? -1 : (e + 3) % E;
    send(s, held_at, draft, E * sizeof(int32_t));
    float *out = floats(s, n * D, 1.0f);
    const pf_experts_args args = {
        .gate = &gate, .up = &up, .down = &down, .x = floats(s, n * D, 2.0f), .chosen = ids(s, n * A, E, A),
        .weight = floats(s, n * A, 1.0f), .n_token = n, .n_used = A, .expert_end = E, .limit = 7.0f, .out = out,
        .held_at = few ? held_at : NULL,
    };
    note(s, table(s)->experts(&s->ex, &args));
    take(s, out, n * D);
}

static void route(side *s, int variant) {
    enum { E = 64, A = 6, N = 3 };
    const bool by_table = variant == 1;
    float *scores = zeros(s, N * E), *weight = zeros(s, N * A), *chosen = zeros(s, N * A);
    const pf_route_args args = {
        .logits = floats(s, N * E, 4.0f), .bias = by_table ? NULL : floats(s, E, 1.0f),
        .table = by_table ? ids(s, N * A, E, A) : NULL, .n_token = N, .n_expert = E, .n_used = A, .scale = 1.5f,
        .scores = scores, .chosen = (int32_t *)(void *)chosen, .weight = weight,
    };
    note(s, table(s)->route(&s->ex, &args));
    take(s, scores, N * E);
    take(s, weight, N * A);
    take_ids(s, args.chosen, N * A);
}

static void rms_norm(side *s, int variant) {
    enum { D = 320, N = 3 };
    float *x = floats(s, N * D, 5.0f), *gain = floats(s, D, 2.0f), *y = zeros(s, N * D);
    note(s, table(s)->rms_norm(&s->ex, x, N, D, variant == 0 ? gain : NULL, 1e-6f, y));
    take(s, y, N * D);
}

static void rope(side *s, int variant) {
    enum { H = 3, D = 128, HALF = 32, N = 2 };
    float *x = floats(s, N * H * D, 2.0f);
    const pf_rope_table angles = {floats(s, N * HALF, 1.0f), floats(s, N * HALF, 1.0f), HALF};
    note(s, table(s)->rope_tail(&s->ex, x, N, H, D, &angles, variant == 1));
    take(s, x, N * H * D);
}

static void hadamard(side *s, int variant) {
    enum { D = 128, N = 3 };
    float *x = floats(s, N * D, 2.0f);
    note(s, table(s)->hadamard(&s->ex, x, N, D));
    if (variant == 1) note(s, table(s)->round_fp4(&s->ex, x, N, D));
    take(s, x, N * D);
}

static void swiglu(side *s, int variant) {
    enum { N = 300 };
    float *gate = floats(s, N, 9.0f), *up = floats(s, N, 9.0f), *sum = floats(s, N, 3.0f);
    note(s, table(s)->swiglu(&s->ex, gate, up, N, 7.0f, gate));
    if (variant == 1) note(s, table(s)->add(&s->ex, sum, gate, N));
    take(s, variant == 1 ? sum : gate, N);
}

static pf_rows stored(side *s, pf_row_format format, int32_t width, int32_t rope_dims, int64_t first, int64_t n) {
    pf_rows rows = {.format = format, .width = width, .rope = rope_dims, .capacity = n + 3};
    void *draft;
    rows.row_bytes = pf_row_bytes(format, width, rope_dims);
    rows.data = room(s, (size_t)(rows.capacity * rows.row_bytes), &draft);
    send(s, rows.data, draft, (size_t)(rows.capacity * rows.row_bytes));
    note(s, table(s)->store_rows(&s->ex, &rows, first, n, floats(s, n * width, 3.0f)));
    return rows;
}

/* The window alone, with all compressed rows, and with some of them, in every format of the cache. */
static void attention(side *s, int variant) {
    enum { H = 8, D = 512, ROPE = 64, N = 2, WINDOW = 16, K = 6 };
    enum { POSITION = 90, RATIO = 4, POOL = (POSITION + N) / RATIO };
    static const pf_row_format formats[] = {PF_ROW_F32, PF_ROW_F16, PF_ROW_KV_FP8};
    const int form = variant % 3;
    const pf_row_format format = formats[variant / 3];
    const pf_rows raw = stored(s, format, D, ROPE, POSITION - WINDOW + 1, WINDOW + N - 1);
    const pf_rows pool = stored(s, format, D, ROPE, 0, POOL);
    void *draft, *select = room(s, N * (K + 1) * sizeof(int32_t), &draft);
    for (int32_t i = 0; i < N * K; ++i) ((int32_t *)draft)[i] = i % K * 3 + i / K;
    for (int32_t i = 0; i < N; ++i) ((int32_t *)draft)[N * K + i] = K;
    send(s, select, draft, N * (K + 1) * sizeof(int32_t));
    float *out = zeros(s, N * H * D);
    const pf_attn_args args = {
        .q = floats(s, N * H * D, 1.0f), .out = out, .n_token = N, .position = POSITION, .n_head = H, .head_dim = D,
        .window = WINDOW, .sinks = floats(s, H, 2.0f), .scale = 0.05f, .raw = &raw, .pool = form == 0 ? NULL : &pool,
        .ratio = form == 0 ? 0 : RATIO, .select = form == 2 ? select : NULL,
        .select_n = form == 2 ? (const int32_t *)select + N * K : NULL, .select_ld = K,
    };
    note(s, table(s)->sparse_attn(&s->ex, &args));
    take(s, out, N * H * D);
}

/* Few tokens, and as many as take another kernel. */
static void index_scores(side *s, int variant) {
    enum { H = 8, D = 128, POSITION = 90, RATIO = 4, MOST = 9, ROWS = (POSITION + MOST) / RATIO };
    static const pf_row_format formats[] = {PF_ROW_F32, PF_ROW_F16, PF_ROW_IDX_FP4, PF_ROW_IDX_FP4};
    const int64_t n = variant == 3 ? MOST : 2;
    const pf_rows rows = stored(s, formats[variant], D, 0, 0, ROWS);
    float *q = floats(s, n * H * D, 2.0f), *scores = zeros(s, n * ROWS);
    if (formats[variant] == PF_ROW_IDX_FP4) note(s, table(s)->round_fp4(&s->ex, q, n * H, D));
    const pf_index_args args = {.q = q, .w = floats(s, n * H, 1.0f), .scale = 0.3f, .n_token = n, .position = POSITION,
                                .n_head = H, .ratio = RATIO, .rows = &rows, .scores = scores, .ld = ROWS};
    note(s, table(s)->index_scores(&s->ex, &args));
    take(s, scores, n * ROWS);
}

static void topk(side *s, int variant) {
    enum { N = 3, POSITION = 801, RATIO = 4, LD = 208, K = 20 };
    float *scores = floats(s, N * LD, 1.0f), *select = zeros(s, N * K), *select_n = zeros(s, N);
    int32_t *at = (int32_t *)(void *)select, *n = (int32_t *)(void *)select_n;
    (void)variant;
    note(s, table(s)->topk(&s->ex, scores, LD, N, POSITION, RATIO, K, at, n));
    take_ids(s, at, N * K);
    take_ids(s, n, N);
}

static void compress(side *s, int variant) {
    const bool overlap = variant == 0;
    const int32_t ratio = overlap ? 4 : 128;
    const int64_t width = 64, channels = overlap ? 2 * width : width, n = 2 * ratio, ring = n + 3, half = 16;
    float *ring_a = zeros(s, ring * channels), *ring_g = zeros(s, ring * channels), *out = zeros(s, width);
    const pf_frontier_args push = {
        .a = floats(s, n * channels, 3.0f), .g = floats(s, n * channels, 3.0f), .ape = floats(s, ratio * channels, 1.0f),
        .n = n, .channels = channels, .ratio = ratio, .ring_a = ring_a, .ring_g = ring_g, .ring = ring,
    };
    const pf_compress_args args = {
        .a = ring_a, .g = ring_g, .ring = ring, .ratio = ratio, .overlap = overlap, .width = width, .first = 1, .n = 1,
        .norm = floats(s, width, 2.0f), .eps = 1e-6f, .rope = {floats(s, half, 1.0f), floats(s, half, 1.0f), half},
        .out = out,
    };
    note(s, table(s)->push_frontier(&s->ex, &push));
    note(s, table(s)->compress(&s->ex, &args));
    take(s, out, width);
}

static void hyper_connections(side *s, int variant) {
    enum { STREAMS = 4, D = 256, N = 2, FLAT = STREAMS * D, MIX = (2 + STREAMS) * STREAMS };
    const pf_mhc_shape shape = {STREAMS, 20, D, 1e-6f, 1e-6f};
    const pf_mhc_site site = {floats(s, MIX * FLAT, 0.05f), floats(s, MIX, 1.0f), floats(s, 3, 1.0f)};
    float *streams = floats(s, N * FLAT, 4.0f), *x = zeros(s, N * D), *post = zeros(s, N * STREAMS);
    float *comb = zeros(s, N * STREAMS * STREAMS);
    if (variant == 0) {
        note(s, table(s)->mhc_head(&s->ex, &shape, &site, streams, N, x));
        take(s, x, N * D);
        return;
    }
    note(s, table(s)->mhc_pre(&s->ex, &shape, &site, streams, N, x, post, comb));
    if (variant == 2) {
        note(s, table(s)->mhc_post(&s->ex, &shape, x, post, comb, N, streams));
        take(s, streams, N * FLAT);
        return;
    }
    take(s, x, N * D);
    take(s, post, N * STREAMS);
    take(s, comb, N * STREAMS * STREAMS);
}

static const struct operation {
    const char *name;
    void (*run)(side *s, int variant);
    int variants;
    const double *differ;
} operations[] = {
    {"linear", linear, 4 * TYPES, &floats_differ},
    {"embed", embed, TYPES, &floats_differ},
    {"experts", experts, 6, &codes_differ},
    {"route", route, 2, &floats_differ},
    {"rms_norm", rms_norm, 2, &floats_differ},
    {"rope", rope, 2, &floats_differ},
    {"hadamard and round_fp4", hadamard, 2, &floats_differ},
    {"swiglu and add", swiglu, 2, &floats_differ},
    {"attention", attention, 9, &floats_differ},
    {"index_scores", index_scores, 4, &floats_differ},
    {"topk", topk, 1, &floats_differ},
    {"compress", compress, 2, &floats_differ},
    {"hyper-connections", hyper_connections, 3, &floats_differ},
};

/* ---- Comparing ---------------------------------------------------------------------------------------------- */

/* The largest difference, in units of the largest value; infinite where there is no number. */
static double difference(const side *a, const side *b) {
    double largest = 1e-30, worst = 0.0;
    if (a->n_value != b->n_value) return INFINITY;
    for (int64_t i = 0; i < a->n_value; ++i) {
        const double size = fabs((double)a->values[i]);
        if (size > largest) largest = size;
    }
    for (int64_t i = 0; i < a->n_value; ++i) {
        const double d = fabs((double)a->values[i] - (double)b->values[i]) / largest;
        if (d != d) return INFINITY;
        if (d > worst) worst = d;
    }
    return worst;
}

static void run(side *s, const struct operation *o, int variant) {
    s->used = 0;
    s->n_value = 0;
    s->seed = (uint32_t)variant * 977u + 1u;
    s->ex.exact = false;
    o->run(s, variant);
    pf_arena_reset(s->ex.arena, 0);
}

static pf_status compare_one(side *host, side *device, const struct operation *o, int variant, pf_error *err) {
    pf_error why = {0};
    run(host, o, variant);
    run(device, o, variant);
    pf_status status = pf_link_finish(device->link, device->status, &why);
    if (status == PF_OK) status = host->status;
    if (status != PF_OK) {
        return pf_fail(err, status, "self-test: %s %d cannot be run: %s", o->name, variant,
                       why.message[0] != '\0' ? why.message : status == PF_ERR_MEMORY ? "out of memory" : "it failed");
    }
    const double d = difference(host, device);
    if (d <= *o->differ) return PF_OK;
    return pf_fail(err, PF_ERR_DEVICE,
                   "self-test: %s %d differs from the processor's by %.2g of the largest value, at most %.2g is right",
                   o->name, variant, d, *o->differ);
}

static pf_status compare(side *host, side *device, pf_error *err) {
    for (size_t i = 0; i < sizeof operations / sizeof *operations; ++i) {
        for (int variant = 0; variant < operations[i].variants; ++variant) {
            PF_TRY(compare_one(host, device, &operations[i], variant, err));
        }
    }
    return PF_OK;
}

static pf_status open_sides(side *host, side *device, pf_link *link, pf_error *err) {
    PF_TRY(pf_cpu_backend("scalar", &host->ex.backend, err));
    host->tested = device->tested = device->ex.backend = pf_link_backend(link);
    host->ex.pool = pf_pool_new(1);
    host->ex.arena = pf_arena_new();
    device->ex.arena = pf_link_arena(link);
    host->memory = pf_calloc(1, MEMORY_BYTES);
    device->memory = pf_link_alloc(link, MEMORY_BYTES);
    side *both[] = {host, device};
    bool open = host->ex.pool != NULL && host->memory != NULL && device->memory != NULL;
    for (int i = 0; i < 2; ++i) {
        both[i]->draft = pf_calloc(1, MEMORY_BYTES);
        both[i]->values = pf_calloc(MOST_VALUES, sizeof(float));
        open = open && both[i]->draft != NULL && both[i]->values != NULL && both[i]->ex.arena != NULL;
    }
    return open ? PF_OK : pf_fail(err, PF_ERR_MEMORY, "self-test: no memory for it");
}

static void close_sides(side *host, side *device) {
    side *both[] = {host, device};
    for (int i = 0; i < 2; ++i) {
        pf_free(both[i]->draft);
        pf_free(both[i]->values);
        pf_arena_delete(both[i]->ex.arena);
    }
    pf_pool_delete(host->ex.pool);
    pf_free(host->memory);
    pf_link_free(device->link, device->memory);
}

pf_status pf_self_test(pf_link *link, int32_t index, pf_error *err) {
    static atomic_uint passed; /* a bit each */
    const unsigned bit = index < MOST_DEVICES ? 1u << index : 0u;
    if ((atomic_load(&passed) & bit) != 0) return PF_OK;
    side host = {.link = NULL}, device = {.link = link};
    pf_status status = open_sides(&host, &device, link, err);
    if (status == PF_OK) status = compare(&host, &device, err);
    close_sides(&host, &device);
    if (status == PF_OK) (void)atomic_fetch_or(&passed, bit);
    return status;
}

pf_status pf_device_test(const char *kind, int32_t index, pf_error *err) {
    pf_link *link;
    PF_TRY(pf_link_open(kind, index, &link, err));
    pf_link_lock(link);
    const pf_status status = pf_self_test(link, index, err);
    pf_link_unlock(link);
    pf_link_close(link);
    return status;
}
