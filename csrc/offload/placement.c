#include "offload/placement.h"

#include "base/arith.h"
#include "base/memory.h"
#include "base/status.h"

#include <stdio.h>
#include <string.h>

enum { ALIGNMENT = 256, STEP_BYTES = 64 << 20 };

typedef struct piece {
    const uint8_t *from;
    uint8_t *to;
    uint64_t bytes;
} piece;

/* Goes through what a placement moves: to count and measure, or, with `pieces`, to move. */
typedef struct mover {
    uint8_t *base;        /* of the device's memory */
    piece *pieces;        /* [n]; NULL while measuring */
    uint64_t n, used, bytes;
    uint64_t kinds;       /* bits PF_W_* of the matrices so far */
    uint64_t takes;       /* of those that the device takes; the first matrix of another type: */
    const char *stranger; /* NULL: none */
    pf_dtype type;
    int32_t layer, of;    /* where the mover is, -1: at none; and where it was then */
} mover;

static const void *move(mover *m, const void *from, uint64_t bytes) {
    if (from == NULL) return NULL;
    const uint64_t at = m->used;
    m->used += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT; /* sizes of a file's tensors: no overflow */
    m->bytes += bytes;
    ++m->n;
    if (m->pieces == NULL) return from;
    m->pieces[m->n - 1] = (piece){from, m->base + at, bytes};
    return m->base + at;
}

static void move_floats(mover *m, const float **at, int64_t n) { *at = move(m, *at, (uint64_t)n * sizeof(float)); }

static void move_weight(mover *m, const char *name, pf_weight *w) {
    const int64_t blocks = w->count * w->scale_rows * w->scale_cols;
    const uint64_t kind = UINT64_C(1) << pf_weight_kind(w->type);
    m->kinds |= kind;
    if ((kind & m->takes) == 0 && m->stranger == NULL) {
        m->stranger = name;
        m->type = w->type;
        m->of = m->layer;
    }
    w->data = move(m, w->data, (uint64_t)(w->count * w->rows * w->row_bytes));
    w->scale = move(m, w->scale, (uint64_t)blocks * (w->scale_f32 ? sizeof(float) : 1));
}

static void move_mix(mover *m, const pf_config *c, pf_mhc_site *site, int64_t n_out, int64_t n_scale) {
    move_floats(m, &site->fn, n_out * c->n_stream * c->n_embd);
    move_floats(m, &site->base, n_out);
    move_floats(m, &site->scale, n_scale);
}

static void move_compressor(mover *m, bool of_indexer, pf_compressor_weights *w, int32_t ratio, int64_t width) {
    move_weight(m, of_indexer ? "indexer_compressor_kv" : "attn_compressor_kv", &w->kv);
    move_weight(m, of_indexer ? "indexer_compressor_gate" : "attn_compressor_gate", &w->gate);
    move_floats(m, &w->ape, ratio * w->kv.rows);
    move_floats(m, &w->norm, width);
}

static void move_attention(mover *m, const pf_config *c, int32_t ratio, pf_attention_weights *w) {
    move_weight(m, "attn_q_a", &w->q_a);
    move_weight(m, "attn_q_b", &w->q_b);
    move_weight(m, "attn_kv", &w->kv);
    move_weight(m, "attn_output_a", &w->out_a);
    move_weight(m, "attn_output_b", &w->out_b);
    move_floats(m, &w->norm, c->n_embd);
    move_floats(m, &w->sinks, c->n_head);
    move_floats(m, &w->q_norm, c->q_rank);
    move_floats(m, &w->kv_norm, c->head_dim);
    if (ratio != 0) move_compressor(m, false, &w->compressor, ratio, c->head_dim);
    if (ratio != PF_RATIO_CSA) return;
    move_weight(m, "indexer.attn_q_b", &w->index_q);
    move_weight(m, "indexer.proj", &w->index_weights);
    move_compressor(m, true, &w->index_compressor, ratio, c->index_dim);
}

static void move_layer(mover *m, const pf_config *c, pf_weights *all, int32_t layer) {
    pf_layer_weights *w = &all->layers[layer];
    const int64_t mixes = (2 + (int64_t)c->n_stream) * c->n_stream;
    m->layer = layer;
    move_mix(m, c, &w->hc_attn, mixes, 3);
    move_mix(m, c, &w->hc_ffn, mixes, 3);
    move_attention(m, c, w->ratio, &w->attn);
    move_floats(m, &w->moe.norm, c->n_embd);
    move_floats(m, &w->moe.router_bias, c->n_expert);
    move_weight(m, "ffn_gate_inp", &w->moe.router);
    move_weight(m, "ffn_gate_shexp", &w->moe.shared_gate);
    move_weight(m, "ffn_up_shexp", &w->moe.shared_up);
    move_weight(m, "ffn_down_shexp", &w->moe.shared_down);
}

static void move_experts(mover *m, pf_weights *all, int32_t layer) {
    pf_moe_weights *w = &all->layers[layer].moe;
    m->layer = layer;
    move_weight(m, "ffn_gate_exps", &w->gate);
    move_weight(m, "ffn_up_exps", &w->up);
    move_weight(m, "ffn_down_exps", &w->down);
}

/* Experts last: what every token needs lies together. */
static void move_all(mover *m, const pf_config *c, pf_weights *w, const pf_placement *placement) {
    m->layer = -1;
    if (placement->head) {
        move_weight(m, "output", &w->head);
        move_floats(m, &w->norm, c->n_embd);
        move_mix(m, c, &w->head_mix, c->n_stream, 1);
    }
    for (int32_t l = placement->first_layer; l < c->n_layer; ++l) move_layer(m, c, w, l);
    for (int32_t l = placement->first_experts; l < c->n_layer; ++l) move_experts(m, w, l);
}

/* Measuring writes every pointer back as it was. takes: bits PF_W_*. */
static mover moved_by(const pf_config *config, const pf_weights *weights, const pf_placement *placement, uint64_t takes) {
    mover m = {.takes = takes};
    pf_weights same = *weights; /* shares the layers */
    move_all(&m, config, &same, placement);
    return m;
}

uint64_t pf_placement_bytes(const pf_config *config, const pf_weights *weights, const pf_placement *placement) {
    return moved_by(config, weights, placement, PF_ALL_WEIGHT_KINDS).used;
}

pf_status pf_placement_check(const pf_config *config, const pf_weights *weights, const pf_placement *placement,
                             const pf_backend *backend, pf_error *err) {
    const mover m = moved_by(config, weights, placement, backend->weight_kinds);
    if (m.stranger == NULL) return PF_OK;
    char block[24] = "";
    if (m.of >= 0) (void)snprintf(block, sizeof block, "blk.%d.", m.of);
    return pf_fail(err, PF_ERR_UNSUPPORTED,
                   "%s has no kernels for weights of type %s, which %s%s.weight has: put fewer layers or experts there, or "
                   "leave the numbers out", backend->name, pf_dtype_lookup((uint32_t)m.type)->name, block, m.stranger);
}

/* Whether the device takes a part: the head, a layer, or, with experts, its routed ones. */
static bool takes_head(const pf_config *c, pf_weights *w, uint64_t takes) {
    return moved_by(c, w, &(pf_placement){c->n_layer, c->n_layer, true}, takes).stranger == NULL;
}
static bool takes_layer(const pf_config *c, pf_weights *w, int32_t layer, bool experts, uint64_t takes) {
    mover m = {.takes = takes};
    if (experts) move_experts(&m, w, layer);
    else move_layer(&m, c, w, layer);
    return m.stranger == NULL;
}

pf_placement pf_placement_most(const pf_config *config, const pf_weights *weights, const pf_backend *backend,
                               uint64_t *lacking) {
    const uint64_t takes = backend->weight_kinds;
    pf_weights same = *weights;
    pf_placement most = {0, 0, takes_head(config, &same, takes)};
    for (int32_t l = 0; l < config->n_layer; ++l) {
        if (!takes_layer(config, &same, l, false, takes)) most.first_layer = l + 1;
        if (!takes_layer(config, &same, l, true, takes)) most.first_experts = l + 1;
    }
    *lacking = moved_by(config, weights, &(pf_placement){0, 0, true}, takes).kinds & ~takes;
    return most;
}

void pf_placement_mark(const pf_config *config, pf_weights *weights, const pf_placement *placement) {
    weights->head_on_device = placement->head;
    for (int32_t l = 0; l < config->n_layer; ++l) {
        weights->layers[l].on_device = l >= placement->first_layer;
        weights->layers[l].experts_on_device = l >= placement->first_experts;
    }
}

/* ---- Sending ----------------------------------------------------------------------------------------------- */

struct pf_transfer {
    pf_link *link;
    uint8_t *memory;
    piece *pieces; /* [n] */
    uint64_t n, next, sent; /* pieces sent, and bytes of the one after them */
    uint64_t bytes;
};

pf_status pf_transfer_new(pf_link *link, const pf_config *config, pf_weights *weights, const pf_placement *placement,
                          pf_transfer **out, pf_error *err) {
    mover m = moved_by(config, weights, placement, PF_ALL_WEIGHT_KINDS);
    pf_transfer *transfer = pf_calloc(1, sizeof *transfer);
    piece *pieces = pf_calloc((size_t)m.n + 1, sizeof *pieces);
    uint8_t *memory = transfer != NULL && pieces != NULL && m.used > 0 ? pf_link_alloc(link, (size_t)m.used) : NULL;
    if (transfer == NULL || pieces == NULL || (memory == NULL && m.used > 0)) {
        pf_free(transfer);
        pf_free(pieces);
        return pf_fail(err, PF_ERR_MEMORY,
                       "no memory on the device for %.1f GiB of weights: put fewer layers or experts there",
                       (double)m.used / 1073741824.0);
    }
    *transfer = (pf_transfer){.link = link, .memory = memory, .pieces = pieces, .n = m.n, .bytes = m.bytes};
    m = (mover){.base = memory, .pieces = pieces, .takes = PF_ALL_WEIGHT_KINDS};
    move_all(&m, config, weights, placement);
    pf_placement_mark(config, weights, placement);
    *out = transfer;
    return PF_OK;
}

void pf_transfer_delete(pf_transfer *transfer) {
    if (transfer == NULL) return;
    pf_link_free(transfer->link, transfer->memory);
    pf_free(transfer->pieces);
    pf_free(transfer);
}

pf_status pf_transfer_step(pf_transfer *t, uint64_t *n_done) {
    uint64_t budget = STEP_BYTES;
    *n_done = 0;
    while (budget > 0 && t->next < t->n) {
        const piece *p = &t->pieces[t->next];
        const uint64_t left = p->bytes - t->sent, bytes = left < budget ? left : budget;
        PF_TRY(pf_link_upload(t->link, p->to + t->sent, p->from + t->sent, (size_t)bytes));
        *n_done += bytes;
        budget -= bytes;
        t->sent += bytes;
        if (t->sent < p->bytes) continue;
        t->sent = 0;
        ++t->next;
    }
    return PF_OK;
}

uint64_t pf_transfer_total(const pf_transfer *transfer) { return transfer->bytes; }
bool pf_transfer_done(const pf_transfer *transfer) { return transfer->next == transfer->n; }
