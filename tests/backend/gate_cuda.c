/* The CUDA backend against the scalar one, by the same checks as every CPU set (gate_linear.c, gate_model.c):
 *
 *     gate_cuda LIBRARY [--quick]     on the device, with the plugin library at that path
 *     gate_cuda [--copies] [--quick]  in the emulation (PF_CUDA_EMULATED: the plugin is linked in)
 *
 * The emulation takes the checks' own buffers, with their protected pages. For a device, and with --copies, every buffer
 * of an operation is copied between guard bytes, to an address as odd as its own, and back. What depends on a position runs twice: with
 * positions in the arguments and, unless --quick, with positions in device memory. Exit status 1 on any failure, 77
 * without a usable device. */
#include "gate.h"

#include "backend/plugin.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#if !defined(PF_CUDA_EMULATED)
#  include <dlfcn.h>
#endif

enum { GUARD = 256, MOST_COPIES = 32, FILL = 0xa5 };

static const pf_plugin *plugin;
static pf_device *device;
static bool copies, base_in_memory;
static int64_t *device_base;

/* ---- Scratch: the runs' own arena in the emulation, else a stack in device memory ---- */

static struct {
    uint8_t *memory;
    size_t size, used;
} stack;

static void *scratch_alloc(pf_arena *arena, size_t bytes) {
    if (!copies) return pf_arena_alloc(arena, bytes);
    const size_t rounded = (bytes + 255) / 256 * 256;
    if (bytes == 0 || rounded > stack.size - stack.used) return NULL;
    stack.used += rounded;
    return stack.memory + stack.used - rounded;
}
static size_t scratch_mark(const pf_arena *arena) { return copies ? stack.used : pf_arena_mark(arena); }
static void scratch_reset(pf_arena *arena, size_t mark) {
    if (copies) stack.used = mark;
    else pf_arena_reset(arena, mark);
}

/* ---- One operation's buffers ---- */

typedef struct copy {
    void *host;
    uint8_t *memory, *data;
    size_t bytes;
    bool is_output;
} copy;

typedef struct call {
    pf_exec ex;
    copy copies[MOST_COPIES];
    int n;
} call;

static size_t copy_bytes(const copy *c) { return c->bytes + 2 * GUARD + 64; }

static void *share(call *c, const void *host, int64_t bytes, bool is_output) {
    if (!copies || host == NULL) return (void *)(uintptr_t)host;
    for (int i = 0; i < c->n; ++i) {
        if (c->copies[i].host == host) return c->copies[i].data; /* in place */
    }
    if (c->n == MOST_COPIES) exit(2);
    copy *one = &c->copies[c->n++];
    *one = (copy){.host = (void *)(uintptr_t)host, .bytes = (size_t)bytes, .is_output = is_output};
    one->memory = plugin->alloc(device, copy_bytes(one));
    uint8_t *filled = malloc(copy_bytes(one));
    if (one->memory == NULL || filled == NULL) exit(2);
    const size_t offset = GUARD + (uintptr_t)host % 64;
    memset(filled, FILL, copy_bytes(one));
    memcpy(filled + offset, host, one->bytes);
    CHECK(plugin->upload(device, one->memory, filled, copy_bytes(one)) == PF_OK, "upload");
    one->data = one->memory + offset;
    free(filled);
    return one->data;
}
static void *in(call *c, const void *host, int64_t bytes) { return share(c, host, bytes, false); }
static void *out(call *c, void *host, int64_t bytes) { return share(c, host, bytes, true); }
#define IN(pointer, count) in(&c, (pointer), (int64_t)sizeof *(pointer) * (count))
#define OUT(pointer, count) out(&c, (pointer), (int64_t)sizeof *(pointer) * (count))

static call begin(pf_exec *ex) {
    call c = {.ex = *ex};
    c.ex.backend = plugin->backend(device);
    plugin->set_base(device, NULL);
    return c;
}

/* What the operation gets as its position: itself, or nothing beside what is in memory. */
static int64_t place_of(int64_t position) {
    if (!base_in_memory) return position;
    CHECK(plugin->upload(device, device_base, &position, sizeof position) == PF_OK, "upload");
    plugin->set_base(device, device_base);
    return 0;
}

static pf_status end(call *c, pf_status status) {
    pf_error err = {0};
    const pf_status later = plugin->synchronize(device, &err);
    for (int i = 0; i < c->n; ++i) {
        copy *one = &c->copies[i];
        uint8_t *now = malloc(copy_bytes(one));
        if (now == NULL) exit(2);
        CHECK(plugin->download(device, now, one->memory, copy_bytes(one)) == PF_OK, "download");
        const size_t offset = (size_t)(one->data - one->memory);
        bool clean = true;
        for (size_t k = 0; k < copy_bytes(one); ++k) {
            clean = clean && (k - offset < one->bytes || now[k] == FILL);
        }
        CHECK(clean, "wrote outside of a buffer on the device");
        if (one->is_output) memcpy(one->host, now + offset, one->bytes);
        else CHECK(memcmp(one->host, now + offset, one->bytes) == 0, "wrote to an input");
        plugin->free(device, one->memory);
        free(now);
    }
    return status != PF_OK ? status : later;
}

static pf_weight weight_of(call *c, const pf_weight *w) {
    pf_weight on = *w;
    on.data = in(c, w->data, w->count * w->rows * w->row_bytes);
    on.scale = in(c, w->scale, w->count * w->scale_rows * w->scale_cols * (w->scale_f32 ? 4 : 1));
    return on;
}

static pf_rows rows_of(call *c, const pf_rows *rows, bool is_output) {
    pf_rows on = *rows;
    on.data = share(c, rows->data, rows->capacity * rows->row_bytes, is_output);
    return on;
}

static pf_rope_table table_of(call *c, const pf_rope_table *table, int64_t n) {
    return (pf_rope_table){in(c, table->cos, n * table->half * 4), in(c, table->sin, n * table->half * 4), table->half};
}

/* ---- The table ---- */

static pf_status embed(pf_exec *ex, const pf_weight *w, const int32_t *tokens, int64_t n, int64_t n_stream, float *x) {
    call c = begin(ex);
    const pf_weight on = weight_of(&c, w);
    return end(&c, c.ex.backend->embed(&c.ex, &on, IN(tokens, n), n, n_stream, OUT(x, n * n_stream * w->cols)));
}

static pf_status linear(pf_exec *ex, const pf_weight *w, const float *x, int64_t ldx, int64_t n, float *y,
                        int64_t ldy) {
    call c = begin(ex);
    const pf_weight on = weight_of(&c, w);
    return end(&c, c.ex.backend->linear(&c.ex, &on, IN(x, (n - 1) * ldx + w->cols), ldx, n,
                                        OUT(y, (n - 1) * ldy + w->rows), ldy));
}

static pf_status rms_norm(pf_exec *ex, const float *x, int64_t n_row, int64_t n, const float *gain, float eps,
                          float *y) {
    call c = begin(ex);
    float *to = OUT(y, n_row * n);
    return end(&c, c.ex.backend->rms_norm(&c.ex, IN(x, n_row * n), n_row, n, IN(gain, n), eps, to));
}

static pf_status rope_tail(pf_exec *ex, float *x, int64_t n, int64_t n_head, int64_t d, const pf_rope_table *table,
                           bool inverse) {
    call c = begin(ex);
    const pf_rope_table on = table_of(&c, table, n);
    return end(&c, c.ex.backend->rope_tail(&c.ex, OUT(x, n * n_head * d), n, n_head, d, &on, inverse));
}

static pf_status store_rows(pf_exec *ex, const pf_rows *rows, int64_t first, int64_t n, const float *x) {
    call c = begin(ex);
    const pf_rows on = rows_of(&c, rows, true);
    return end(&c, c.ex.backend->store_rows(&c.ex, &on, place_of(first), n, IN(x, n * rows->width)));
}

static pf_status push_frontier(pf_exec *ex, const pf_frontier_args *args) {
    call c = begin(ex);
    pf_frontier_args on = *args;
    on.a = IN(args->a, args->n * args->channels);
    on.g = IN(args->g, args->n * args->channels);
    on.ape = IN(args->ape, args->ratio * args->channels);
    on.ring_a = OUT(args->ring_a, args->ring * args->channels);
    on.ring_g = OUT(args->ring_g, args->ring * args->channels);
    on.position = place_of(args->position);
    return end(&c, c.ex.backend->push_frontier(&c.ex, &on));
}

static pf_status compress(pf_exec *ex, const pf_compress_args *args) {
    call c = begin(ex);
    pf_compress_args on = *args;
    const int64_t ring = args->ring * args->width * (args->overlap ? 2 : 1);
    on.a = IN(args->a, ring);
    on.g = IN(args->g, ring);
    on.norm = IN(args->norm, args->width);
    on.rope = table_of(&c, &args->rope, args->n);
    on.out = OUT(args->out, args->n * args->width);
    on.first = place_of(args->first);
    return end(&c, c.ex.backend->compress(&c.ex, &on));
}

static pf_status hadamard(pf_exec *ex, float *x, int64_t n_row, int64_t n) {
    call c = begin(ex);
    return end(&c, c.ex.backend->hadamard(&c.ex, OUT(x, n_row * n), n_row, n));
}

static pf_status round_fp4(pf_exec *ex, float *x, int64_t n_row, int64_t n) {
    call c = begin(ex);
    return end(&c, c.ex.backend->round_fp4(&c.ex, OUT(x, n_row * n), n_row, n));
}

static pf_status index_scores(pf_exec *ex, const pf_index_args *args) {
    call c = begin(ex);
    pf_index_args on = *args;
    const pf_rows rows = rows_of(&c, args->rows, false);
    on.q = IN(args->q, args->n_token * args->n_head * args->rows->width);
    on.w = IN(args->w, args->n_token * args->n_head);
    on.rows = &rows;
    on.scores = OUT(args->scores, args->n_token * args->ld);
    on.position = place_of(args->position);
    return end(&c, c.ex.backend->index_scores(&c.ex, &on));
}

static pf_status topk(pf_exec *ex, const float *scores, int64_t ld, int64_t n, int64_t position, int32_t ratio,
                      int64_t k, int32_t *select, int32_t *select_n) {
    call c = begin(ex);
    const float *from = IN(scores, n * ld);
    int32_t *to = OUT(select, n * k);
    return end(&c, c.ex.backend->topk(&c.ex, from, ld, n, place_of(position), ratio, k, to, OUT(select_n, n)));
}

static pf_status sparse_attn(pf_exec *ex, const pf_attn_args *args) {
    call c = begin(ex);
    pf_attn_args on = *args;
    const int64_t floats = args->n_token * args->n_head * args->head_dim;
    const pf_rows raw = rows_of(&c, args->raw, false), pool = rows_of(&c, args->pool ? args->pool : args->raw, false);
    on.out = OUT(args->out, floats);
    on.q = args->q == args->out ? on.out : IN(args->q, floats);
    on.sinks = IN(args->sinks, args->n_head);
    on.raw = &raw;
    if (args->pool) on.pool = &pool;
    on.select = IN(args->select, args->n_token * args->select_ld);
    on.select_n = args->select ? IN(args->select_n, args->n_token) : NULL;
    on.position = place_of(args->position);
    return end(&c, c.ex.backend->sparse_attn(&c.ex, &on));
}

static pf_mhc_site site_of(call *c, const pf_mhc_shape *shape, const pf_mhc_site *site, int64_t rows, int64_t scales) {
    const int64_t width = shape->n_stream * shape->n_embd;
    return (pf_mhc_site){in(c, site->fn, rows * width * 4), in(c, site->base, rows * 4),
                         in(c, site->scale, scales * 4)};
}

static pf_status mhc_pre(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                         int64_t n, float *x, float *post, float *comb) {
    call c = begin(ex);
    const int64_t k = shape->n_stream;
    const pf_mhc_site on = site_of(&c, shape, site, (2 + k) * k, 3);
    const float *from = IN(streams, n * k * shape->n_embd);
    float *to = OUT(x, n * shape->n_embd), *to_post = OUT(post, n * k);
    return end(&c, c.ex.backend->mhc_pre(&c.ex, shape, &on, from, n, to, to_post, OUT(comb, n * k * k)));
}

static pf_status mhc_post(pf_exec *ex, const pf_mhc_shape *shape, const float *y, const float *post, const float *comb,
                          int64_t n, float *streams) {
    call c = begin(ex);
    const int64_t k = shape->n_stream;
    const float *from = IN(y, n * shape->n_embd), *with = IN(post, n * k), *mix = IN(comb, n * k * k);
    return end(&c, c.ex.backend->mhc_post(&c.ex, shape, from, with, mix, n, OUT(streams, n * k * shape->n_embd)));
}

static pf_status mhc_head(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                          int64_t n, float *x) {
    call c = begin(ex);
    const int64_t k = shape->n_stream;
    const pf_mhc_site on = site_of(&c, shape, site, k, 1);
    const float *from = IN(streams, n * k * shape->n_embd);
    return end(&c, c.ex.backend->mhc_head(&c.ex, shape, &on, from, n, OUT(x, n * shape->n_embd)));
}

static pf_status route(pf_exec *ex, const pf_route_args *args) {
    call c = begin(ex);
    pf_route_args on = *args;
    const int64_t all = args->n_token * args->n_expert, used = args->n_token * args->n_used;
    on.logits = IN(args->logits, all);
    on.bias = IN(args->bias, args->n_expert);
    on.table = IN(args->table, used);
    on.scores = OUT(args->scores, all);
    on.chosen = OUT(args->chosen, used);
    on.weight = OUT(args->weight, used);
    return end(&c, c.ex.backend->route(&c.ex, &on));
}

/* Of the experts that are there, which are `missing` fewer than all. */
static pf_weight held_of(call *c, const pf_weight *w, int64_t missing) {
    pf_weight there = *w;
    there.count -= missing;
    there = weight_of(c, &there);
    there.count = w->count;
    return there;
}

static pf_status experts(pf_exec *ex, const pf_experts_args *args) {
    call c = begin(ex);
    pf_experts_args on = *args;
    int64_t missing = args->held_first;
    for (int64_t e = 0; args->held_at && e < args->gate->count; ++e) missing += args->held_at[e] < 0 ? 1 : 0;
    const pf_weight gate = held_of(&c, args->gate, missing), up = held_of(&c, args->up, missing);
    const pf_weight down = held_of(&c, args->down, missing);
    const int64_t used = args->n_token * args->n_used;
    on.gate = &gate;
    on.up = &up;
    on.down = &down;
    on.x = IN(args->x, args->n_token * args->gate->cols);
    on.chosen = IN(args->chosen, used);
    on.weight = IN(args->weight, used);
    on.held_at = IN(args->held_at, args->gate->count);
    on.out = OUT(args->out, args->n_token * args->down->rows);
    return end(&c, c.ex.backend->experts(&c.ex, &on));
}

static pf_status add(pf_exec *ex, float *y, const float *x, int64_t n) {
    call c = begin(ex);
    float *to = OUT(y, n);
    return end(&c, c.ex.backend->add(&c.ex, to, IN(x, n), n));
}

static pf_status swiglu(pf_exec *ex, const float *gate, const float *up, int64_t n, float limit, float *h) {
    call c = begin(ex);
    float *to = OUT(h, n);
    return end(&c, c.ex.backend->swiglu(&c.ex, IN(gate, n), IN(up, n), n, limit, to));
}

static const pf_backend table = {
    .name = "cuda", .embed = embed, .linear = linear, .rms_norm = rms_norm, .rope_tail = rope_tail,
    .store_rows = store_rows, .push_frontier = push_frontier, .compress = compress, .hadamard = hadamard,
    .round_fp4 = round_fp4, .index_scores = index_scores, .topk = topk, .sparse_attn = sparse_attn, .mhc_pre = mhc_pre,
    .mhc_post = mhc_post, .mhc_head = mhc_head, .route = route, .experts = experts, .add = add, .swiglu = swiglu,
};

/* ---- What only this backend promises ------------------------------------------------------------------------ */

/* Integer products are the CPU's to the bit (backend/cpu/int_acts.h), whatever the shape does to the work's division
 * and whatever the scales; and a dry run takes the same scratch but writes nothing. */
static void check_integers(const pf_backend *scalar, bool int8) {
    static const pf_dtype types[] = {PF_Q8_0, PF_MXFP4};
    static const int64_t shapes[][3] = {{5, 32, 1},     {67, 1056, 1},  {67, 1056, 6}, {9, 480, 3},
                                        {1600, 512, 1}, {1600, 512, 2}, {13, 544, 5}};
    pf_exec ex = {.backend = &table, .arena = pf_arena_new(), .int8 = int8};
    pf_exec reference = {.backend = scalar, .arena = ex.arena, .int8 = int8};
    if (ex.arena == NULL) exit(2);
    for (size_t i = 0; i < 4 * sizeof shapes / sizeof *shapes; ++i) {
        const int64_t rows = shapes[i / 4][0], cols = shapes[i / 4][1], n = shapes[i / 4][2];
        const bool extreme = i / 2 % 2 != 0;
        test_weight w = gate_weight(types[i % 2], rows, cols, 1, false, extreme, i % 3 == 0 ? ODD : AT_END);
        output x = gate_output(n * cols), y = gate_output(n * rows), want = gate_output(n * rows);
        gate_context("%s products of type %d, [%lld, %lld], %lld tokens%s", int8 ? "8-bit" : "16-bit",
                     (int)types[i % 2], (long long)rows, (long long)cols, (long long)n, extreme ? ", any scale" : "");
        gate_floats(x.y, n * cols, 10.0f);
        ex.dry = true;
        CHECK(linear(&ex, &w.w, x.y, cols, n, y.y, rows) == PF_OK, "a dry run failed");
        CHECK(gate_poisoned(y.y, n * rows * 4), "a dry run wrote");
        ex.dry = false;
        CHECK(linear(&ex, &w.w, x.y, cols, n, y.y, rows) == PF_OK, "failed");
        CHECK(scalar->linear(&reference, &w.w, x.y, cols, n, want.y, rows) == PF_OK, "scalar failed");
        CHECK(gate_same(y.y, want.y, n * rows) && gate_output_intact(&y), "not scalar's floats");
        output *outputs[] = {&x, &y, &want};
        for (size_t k = 0; k < 3; ++k) gate_output_free(outputs[k]);
        gate_weight_free(&w);
    }
    pf_arena_delete(ex.arena);
}

/* Results are no numbers where scalar's are none, wherever in a row of float activations or of weights the NaN or the
 * infinity is; the same ones with FP8, of which no weight is infinite. */
static void check_no_numbers(const pf_backend *scalar) {
    enum { ROWS = 131, COLS = 416, MOST = 40 };
    static const float numbers[] = {NAN, INFINITY, -INFINITY};
    pf_exec ex = {.backend = &table, .arena = pf_arena_new()}, reference = {.backend = scalar, .arena = ex.arena};
    if (ex.arena == NULL) exit(2);
    for (int turn = 0; turn < 16; ++turn) {
        const pf_dtype type = turn % 2 ? PF_FP8 : PF_BF16;
        const int64_t n = turn / 2 % 2 ? MOST : 3;
        test_weight w = gate_weight(type, ROWS, COLS, 1, turn / 4 % 2, false, turn % 3 ? AT_END : ODD);
        output x = gate_output(n * COLS), y = gate_output(n * ROWS), want = gate_output(n * ROWS);
        gate_context("no numbers, type %d, %lld tokens, turn %d", (int)type, (long long)n, turn);
        gate_floats(x.y, n * COLS, 1.0f);
        for (int64_t t = 0; t < n; t += 3) x.y[t * COLS + gate_below(COLS)] = numbers[gate_below(3)];
        for (int64_t r = turn % 5; r < ROWS; r += 5) {
            const int64_t c = (r / 5 + 16 * turn) % COLS;
            if (type == PF_FP8) w.data.data[r * COLS + c] = r % 2 ? 0x7f : 0xff;
            else memcpy(w.data.data + (r * COLS + c) * 2, (const uint16_t[]){r % 2 ? 0x7fc1 : 0xff80}, 2);
        }
        CHECK(linear(&ex, &w.w, x.y, COLS, n, y.y, ROWS) == PF_OK, "failed");
        CHECK(scalar->linear(&reference, &w.w, x.y, COLS, n, want.y, ROWS) == PF_OK, "scalar failed");
        bool same = true;
        for (int64_t i = 0; i < n * ROWS; ++i) {
            same = same && isfinite(y.y[i]) == isfinite(want.y[i]);
            if (type == PF_FP8 && !isfinite(want.y[i])) same = same && gate_same(&y.y[i], &want.y[i], 1);
        }
        CHECK(same, "not scalar's NaNs and infinities");
        output *outputs[] = {&x, &y, &want};
        for (size_t k = 0; k < 3; ++k) gate_output_free(outputs[k]);
        gate_weight_free(&w);
    }
    pf_arena_delete(ex.arena);
}

/* Groups of 32 whose largest value is where a scale changes, or next to it, with ties of every format below it; and some
 * that are no numbers. */
static void awkward_floats(float *to, int64_t n) {
    static const float tops[] = {448.0f, 6.0f, 448.00003f, 6.0000005f, 447.99997f, 5.9999995f, 1.0f, 0.0f};
    static const float ties[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f, 1.0625f, 1.1875f, 17.0f, 432.0f};
    for (int64_t i = 0; i < n; ++i) {
        const int64_t group = i / 32;
        const int exponent = (int)(group * 37 % 220) - 130; /* down to where only the least scale is left */
        const float top = tops[group % 8];
        float v = ldexpf(ties[gate_below(11)], exponent + (int)gate_below(9) - 8);
        if (gate_below(3) == 0) v = nextafterf(v, gate_below(2) ? 1e30f : 0.0f);
        if (gate_below(4) == 0) v = gate_normal() * ldexpf(top, exponent - 4);
        if (fabsf(v) > ldexpf(top, exponent) || i % 32 == 5) v = ldexpf(top, exponent);
        to[i] = gate_below(2) ? v : -v;
        if (i % 1997 == 0) to[i] = gate_below(2) ? NAN : -INFINITY;
    }
}

/* Cache rows are scalar's bytes, the indexer's rounding and embedded weights scalar's floats, whatever the input. */
static void check_formats(const pf_backend *scalar) {
    enum { WIDTH = 192, ROPE = 32, N = 400 };
    pf_exec ex = {.backend = &table, .arena = pf_arena_new()}, reference = {.backend = scalar, .arena = ex.arena};
    output x = gate_output(N * WIDTH), y = gate_output(N * WIDTH), want = gate_output(N * WIDTH);
    if (ex.arena == NULL) exit(2);
    awkward_floats(x.y, N * WIDTH);
    for (int format = PF_ROW_F32; format <= PF_ROW_IDX_FP4; ++format) {
        gate_context("store_rows, format %d, awkward values", format);
        pf_rows rows = {.format = (pf_row_format)format, .width = WIDTH, .rope = ROPE, .capacity = N};
        rows.row_bytes = pf_row_bytes(rows.format, WIDTH, ROPE);
        buffer own = gate_buffer(N * rows.row_bytes, ODD), other = gate_buffer(N * rows.row_bytes, AT_END);
        rows.data = own.data;
        CHECK(store_rows(&ex, &rows, 7, N, x.y) == PF_OK, "failed");
        rows.data = other.data;
        CHECK(scalar->store_rows(&reference, &rows, 7, N, x.y) == PF_OK, "scalar failed");
        CHECK(memcmp(own.data, other.data, (size_t)own.bytes) == 0, "not scalar's bytes");
        gate_free(&own);
        gate_free(&other);
    }
    gate_context("round_fp4, awkward values");
    memcpy(y.y, x.y, N * WIDTH * sizeof *x.y);
    memcpy(want.y, x.y, N * WIDTH * sizeof *x.y);
    CHECK(round_fp4(&ex, y.y, N, WIDTH) == PF_OK, "failed");
    CHECK(scalar->round_fp4(&reference, want.y, N, WIDTH) == PF_OK, "scalar failed");
    CHECK(gate_same(y.y, want.y, N * WIDTH), "not scalar's floats");
    for (int kind = 0; kind < 2 * PF_W_COUNT; ++kind) {
        int32_t tokens[N];
        if (!gate_fits(gate_types[kind / 2], WIDTH) || !pf_backend_takes(&table, gate_types[kind / 2])) continue;
        gate_context("embed type %d, any bytes", (int)gate_types[kind / 2]);
        test_weight w = gate_weight(gate_types[kind / 2], 300, WIDTH, 1, kind % 2, true, kind % 2 ? ODD : AT_END);
        for (int i = 0; i < N; ++i) tokens[i] = (int32_t)gate_below(300);
        CHECK(embed(&ex, &w.w, tokens, N, 1, y.y) == PF_OK, "failed");
        CHECK(scalar->embed(&reference, &w.w, tokens, N, 1, want.y) == PF_OK, "scalar failed");
        CHECK(gate_same(y.y, want.y, N * WIDTH), "not scalar's floats");
        gate_weight_free(&w);
    }
    output *outputs[] = {&x, &y, &want};
    for (size_t k = 0; k < 3; ++k) {
        CHECK(gate_output_intact(outputs[k]), "wrote outside");
        gate_output_free(outputs[k]);
    }
    pf_arena_delete(ex.arena);
}

/* ---- Main -------------------------------------------------------------------------------------------------- */

static pf_plugin_query_fn find_query(const char *path) {
#if defined(PF_CUDA_EMULATED)
    extern const pf_plugin *pf_plugin_query(const pf_plugin_host *host);
    (void)path;
    return pf_plugin_query;
#else
    void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    pf_plugin_query_fn query = NULL;
    if (library == NULL) {
        printf("cannot load the plugin: %s\n", path ? dlerror() : "name it");
        return NULL;
    }
    *(void **)(void *)&query = dlsym(library, "pf_plugin_query");
    return query;
#endif
}

static bool open_device(const char *path) {
    static const pf_plugin_host host = {sizeof host, PF_PLUGIN_ABI, scratch_alloc, scratch_mark, scratch_reset};
    const pf_plugin_query_fn query = find_query(path);
    pf_device_info info = {.struct_size = sizeof info};
    pf_error err = {0};
    plugin = query ? query(&host) : NULL;
    if (plugin == NULL) return false;
    if (plugin->problem != NULL) {
        printf("cuda: cannot run: %s\n", plugin->problem);
        return false;
    }
    if (plugin->describe(0, &info, &err) != PF_OK || plugin->open(0, &device, &err) != PF_OK) {
        printf("cuda: cannot run: %s\n", err.message);
        return false;
    }
    device_base = plugin->alloc(device, sizeof *device_base);
    if (copies) stack.memory = plugin->alloc(device, stack.size = (size_t)256 << 20);
    printf("device: %s\n", info.name);
    return device_base != NULL && (!copies || stack.memory != NULL);
}

int main(int argc, char **argv) {
    const pf_backend *scalar;
    const char *path = NULL;
    bool quick = false;
    pf_error err;
    setvbuf(stdout, NULL, _IOLBF, 0);
#if !defined(PF_CUDA_EMULATED)
    copies = true;
#endif
    for (int i = 1; i < argc; ++i) {
        if (strcmp(argv[i], "--quick") == 0) quick = true;
        else if (strcmp(argv[i], "--copies") == 0) copies = true;
        else path = argv[i];
    }
    if (pf_cpu_backend("scalar", &scalar, &err) != PF_OK) return 2;
    if (!open_device(path)) return 77;
    gate_model_ops(&table, scalar);
    gate_linear_ops(&table, scalar);
    check_formats(scalar);
    check_no_numbers(scalar);
    check_integers(scalar, false);
    check_integers(scalar, true);
    printf("cuda: positions in arguments: %ld checks, %ld failures\n", gate_checks, gate_failures);
    if (!quick) {
        base_in_memory = true;
        gate_model_ops(&table, scalar);
    }
    printf("cuda: %ld checks, %ld failures\n", gate_checks, gate_failures);
    plugin->close(device);
    return gate_failures ? 1 : 0;
}
