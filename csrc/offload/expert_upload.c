#include "offload/expert_upload.h"

#include "base/clock.h"
#include "base/memory.h"
#include "base/status.h"
#include "offload/expert_parts.h"

#include <stdatomic.h>
#include <string.h>

enum { PARTS = PF_EXPERT_PARTS, SLICES = 16 };
/* A piece: long enough for the bus to reach its speed and for the device to be busy; and a quarter of a layer at most, so
 * that placing a layer's experts on the device always takes more than the slots. */
enum { PIECE_BYTES = 64 << 20, LEAST_PIECES = 4 };

struct pf_expert_upload {
    pf_link *link;             /* NULL: without its memory */
    int32_t n_expert, n_used;
    uint64_t slot_bytes;
    uint8_t *device[PF_SLOTS]; /* [slot_bytes] each */
    uint8_t *host[PF_SLOTS];   /* page-locked */
    int32_t slot;              /* taken last */
    bool *is_chosen;           /* [n_expert] by the chunk, of the layer at hand */
    pf_upload_choice choice;
    _Atomic uint64_t on_device, on_host, bytes;
};

/* ---- Where the parts of an expert lie ----------------------------------------------------------------------- */

typedef struct layout {
    pf_expert_part parts[PARTS];
    int32_t n; /* experts that there is room for */
} layout;

static uint64_t place_parts(layout *l, int32_t n) {
    l->n = n;
    return pf_expert_parts_place(l->parts, n);
}

static layout layout_of(const pf_layer_weights *layer) {
    layout l = {.n = 0};
    pf_expert_parts_of(&layer->moe, l.parts);
    return l;
}

static uint64_t expert_bytes(const layout *l) { return pf_expert_parts_bytes(l->parts); }

/* As many experts as a slot of that size holds, which is one at least, and no more than a piece has. */
static uint64_t fit(layout *l, int32_t n_expert, uint64_t bytes) {
    const int32_t most = n_expert / LEAST_PIECES > 1 ? n_expert / LEAST_PIECES : 1;
    const uint64_t about = bytes / expert_bytes(l);
    int32_t n = about < (uint64_t)most ? (int32_t)about : most;
    if (n < 1) n = 1;
    while (n > 1 && place_parts(l, n) > bytes) --n;
    return place_parts(l, n);
}

/* ---- Opening ------------------------------------------------------------------------------------------------ */

pf_expert_upload *pf_expert_upload_new(const pf_config *config, const pf_weights *weights, bool always) {
    pf_expert_upload *u = pf_calloc(1, sizeof *u);
    bool *is_chosen = pf_calloc((size_t)config->n_expert, sizeof *is_chosen);
    if (u == NULL || is_chosen == NULL) {
        pf_free(u);
        pf_free(is_chosen);
        return NULL;
    }
    u->n_expert = config->n_expert;
    u->n_used = config->n_expert_used;
    u->is_chosen = is_chosen;
    u->choice.always = always;
    for (int32_t l = 0; l < config->n_layer; ++l) {
        layout of_layer = layout_of(&weights->layers[l]);
        const uint64_t bytes = fit(&of_layer, config->n_expert, PIECE_BYTES);
        if (bytes > u->slot_bytes) u->slot_bytes = bytes;
    }
    return u;
}

uint64_t pf_expert_upload_bytes(const pf_expert_upload *u) { return PF_SLOTS * u->slot_bytes; }

static void give_back(pf_expert_upload *u) {
    for (int i = 0; i < PF_SLOTS; ++i) {
        pf_link_free(u->link, u->device[i]);
        pf_link_free_host(u->link, u->host[i]);
        u->device[i] = u->host[i] = NULL;
    }
    u->link = NULL;
}

bool pf_expert_upload_take(pf_expert_upload *u, pf_link *link) {
    u->link = link;
    for (int i = 0; i < PF_SLOTS; ++i) {
        u->device[i] = pf_link_alloc(link, (size_t)u->slot_bytes);
        u->host[i] = pf_link_alloc_host(link, (size_t)u->slot_bytes);
        if (u->device[i] != NULL && u->host[i] != NULL) continue;
        give_back(u);
        return false;
    }
    return true;
}

void pf_expert_upload_delete(pf_expert_upload *u) {
    if (u == NULL) return;
    if (u->link != NULL) give_back(u);
    pf_free(u->is_chosen);
    pf_free(u);
}

/* ---- Deciding ----------------------------------------------------------------------------------------------- */

bool pf_expert_upload_may(const pf_expert_upload *u, int64_t n) { return u != NULL && n >= PF_UPLOAD_LEAST; }

static uint64_t chosen_bytes(const pf_expert_upload *u, const layout *l) {
    uint64_t n = 0;
    for (int32_t e = 0; e < u->n_expert; ++e) n += u->is_chosen[e] ? 1 : 0;
    return n * expert_bytes(l);
}

bool pf_expert_upload_pays(pf_expert_upload *u, const pf_layer_weights *layer, const int32_t *chosen, int64_t n) {
    const layout l = layout_of(layer);
    memset(u->is_chosen, 0, (size_t)u->n_expert * sizeof *u->is_chosen);
    for (int64_t i = 0; i < n * u->n_used; ++i) {
        /* Others do not exist: the host refuses them. */
        if (chosen[i] < 0 || chosen[i] >= u->n_expert) return false;
        u->is_chosen[chosen[i]] = true;
    }
    return pf_upload_choose(&u->choice, n, chosen_bytes(u, &l)) == PF_UPLOAD_DEVICE;
}

void pf_expert_upload_note_host(pf_expert_upload *u, int64_t n, double begun) {
    pf_upload_note_host(&u->choice, n, pf_clock_seconds() - begun);
    (void)atomic_fetch_add(&u->on_host, 1);
}

pf_upload_counts pf_expert_upload_counts(const pf_expert_upload *u) {
    pf_expert_upload *counted = (pf_expert_upload *)(uintptr_t)u; /* C11 loads no const atomics */
    return (pf_upload_counts){atomic_load(&counted->on_device), atomic_load(&counted->on_host),
                              atomic_load(&counted->bytes)};
}

/* ---- Sending ------------------------------------------------------------------------------------------------ */

typedef struct filling {
    const pf_expert_upload *upload;
    const layout *l;
    uint8_t *slot;
    int32_t begin;
} filling;

/* Item: an expert of the piece, a part of it, a slice of that. */
static void fill_slices(void *arg, int64_t begin, int64_t end, int worker) {
    const filling *f = arg;
    (void)worker;
    for (int64_t item = begin; item < end; ++item) {
        const uint64_t slice = (uint64_t)(item % SLICES), i = (uint64_t)(item / SLICES / PARTS);
        const pf_expert_part *p = &f->l->parts[item / SLICES % PARTS];
        const uint64_t from = p->bytes * slice / SLICES, to = p->bytes * (slice + 1) / SLICES;
        const uint64_t expert = (uint64_t)f->begin + i;
        if (!f->upload->is_chosen[expert] || to == from) continue;
        memcpy(f->slot + p->at + i * p->bytes + from, p->from + expert * p->bytes + from, (size_t)(to - from));
    }
}

/* Queues the copies of a filled slot: chosen experts that follow each other in one. The others' places stay as they are;
 * nobody reads them. */
static pf_status send_slot(pf_expert_upload *u, const layout *l, int32_t begin, int32_t end) {
    const uint8_t *host = u->host[u->slot];
    uint8_t *device = u->device[u->slot];
    for (int32_t first = begin, last; first < end; first = last) {
        last = first + 1;
        if (!u->is_chosen[first]) continue;
        while (last < end && u->is_chosen[last]) ++last;
        for (const pf_expert_part *p = l->parts; p < l->parts + PARTS; ++p) {
            const uint64_t at = p->at + (uint64_t)(first - begin) * p->bytes;
            const uint64_t bytes = (uint64_t)(last - first) * p->bytes;
            if (bytes == 0) continue;
            PF_TRY(pf_link_send(u->link, u->slot, device + at, host + at, (size_t)bytes));
            (void)atomic_fetch_add(&u->bytes, bytes);
        }
    }
    return PF_OK;
}

/* Experts [begin, end), which fit into a slot. */
static pf_status run_piece(pf_expert_upload *u, pf_exec *ex, pf_pool *pool, const pf_moe_weights *w, const layout *l,
                           int32_t begin, int32_t end, const pf_experts_args *args) {
    u->slot = (u->slot + 1) % PF_SLOTS;
    PF_TRY(pf_link_await_sent(u->link, u->slot));
    filling f = {u, l, u->host[u->slot], begin};
    pf_pool_run(pool, (int64_t)(end - begin) * PARTS * SLICES, 1, fill_slices, &f);
    PF_TRY(send_slot(u, l, begin, end));
    PF_TRY(pf_link_begin_use(u->link, u->slot));
    pf_weight there[3];
    pf_expert_parts_there(w, l->parts, u->device[u->slot], there);
    pf_experts_args piece = *args;
    piece.gate = &there[0];
    piece.up = &there[1];
    piece.down = &there[2];
    piece.held_first = begin;
    piece.expert_begin = begin;
    piece.expert_end = end;
    PF_TRY(ex->backend->experts(ex, &piece));
    return pf_link_end_use(u->link, u->slot);
}

pf_status pf_expert_upload_run(pf_expert_upload *u, pf_exec *ex, pf_pool *pool, const pf_layer_weights *layer,
                               const pf_experts_args *args, double begun) {
    layout l = layout_of(layer);
    (void)fit(&l, u->n_expert, u->slot_bytes);
    for (int32_t begin = 0, end; begin < u->n_expert; begin = end) {
        end = begin + 1;
        if (!u->is_chosen[begin]) continue;
        for (int32_t e = end; e < u->n_expert && e < begin + l.n; ++e) {
            if (u->is_chosen[e]) end = e + 1;
        }
        if (pf_cancelled(ex)) return PF_ERR_CANCELLED;
        PF_TRY(run_piece(u, ex, pool, &layer->moe, &l, begin, end, args));
    }
    /* The time of the last piece counts too; the device still computes with it, and so loses nothing. */
    PF_TRY(pf_link_await_sent(u->link, u->slot));
    pf_upload_note_device(&u->choice, chosen_bytes(u, &l), pf_clock_seconds() - begun);
    (void)atomic_fetch_add(&u->on_device, 1);
    return PF_OK;
}
