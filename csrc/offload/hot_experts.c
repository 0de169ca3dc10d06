#include "offload/hot_experts.h"

#include "base/arith.h"
#include "base/memory.h"
#include "base/status.h"
#include "offload/expert_parts.h"
#include "offload/hot_choice.h"

#include <stdatomic.h>
#include <string.h>

enum { NONE = -1, COMING = -2 };
/* What a step sends at most, spread over its layers: some 2 ms of a bus of 32 GB/s, in pieces so short that what the
 * device needs meanwhile hardly waits behind one. An expert takes a few layers' calls even so. */
enum { STEP_BYTES = 64 << 20, LEAST_SLICES = 4, COPY_BYTES = 64 << 10 };
enum { LOOK_EVERY = 8 }; /* layers, for an expert to be replaced: that goes through all slots */

/* An expert on its way. */
typedef struct arrival {
    int32_t index, slot; /* NONE: nothing is on its way */
    uint64_t sent;       /* of its bytes, part after part */
} arrival;

/* Indices are layer * n_expert + expert. */
struct pf_hot_experts {
    pf_link *link;        /* NULL: without its memory */
    const pf_config *config;
    const pf_layer_weights *layers;
    bool *is_served;      /* [n_layer] */
    int32_t first_layer;  /* that is served: a step begins there */
    int32_t n_served, n_slot, n_taken; /* slots that ever had an owner */
    pf_expert_part parts[PF_EXPERT_PARTS]; /* the same of all layers that are served; at: in the device's memory */
    uint64_t expert_bytes, slice_bytes, table_at;
    uint8_t *device;      /* the slots, then, at table_at, slot_of once more */
    uint8_t *host[PF_LANES]; /* page-locked, [slice_bytes] each */
    int32_t lane;         /* that the next slice goes through */
    int32_t *slot_of;     /* [n_layer n_expert] NONE: not held */
    int32_t *left_at;     /* [n_layer n_expert] what the host computes: the expert itself, or NONE where it is held */
    int32_t *owners;      /* [n_layer n_expert, of which there are n_slot] NONE, COMING or an index */
    float *uses;          /* the choice's */
    pf_hot_choice choice;
    int32_t wanted;       /* the most used of the experts that were missing; NONE */
    uint32_t looks;       /* layers since a slot was looked for */
    arrival arrival;
    _Atomic uint64_t hits, misses, brought, replaced, bytes;
};

/* ---- Opening ------------------------------------------------------------------------------------------------ */

static bool is_away(const pf_layer_weights *layer) { return layer->on_device && !layer->experts_on_device; }

static bool same_type(const pf_weight *a, const pf_weight *b) {
    return a->type == b->type && a->scale_f32 == b->scale_f32 && a->rows == b->rows && a->cols == b->cols &&
           a->row_bytes == b->row_bytes;
}

/* Slots are alike: layers whose experts have other types than the first one's are left out. */
static void choose_layers(pf_hot_experts *h, int32_t n_layer) {
    for (int32_t l = 0; l < n_layer; ++l) {
        const pf_moe_weights *w = &h->layers[l].moe, *first = h->n_served > 0 ? &h->layers[h->first_layer].moe : w;
        h->is_served[l] = is_away(&h->layers[l]) && same_type(&w->gate, &first->gate) && same_type(&w->up, &first->up) &&
                          same_type(&w->down, &first->down);
        if (h->is_served[l] && h->n_served++ == 0) h->first_layer = l;
    }
}

pf_hot_experts *pf_hot_experts_new(const pf_config *config, const pf_weights *weights) {
    const int32_t n = config->n_layer * config->n_expert;
    pf_hot_experts *h = pf_calloc(1, sizeof *h);
    if (h == NULL) return NULL;
    h->config = config;
    h->layers = weights->layers;
    h->is_served = pf_calloc((size_t)config->n_layer, sizeof *h->is_served);
    h->slot_of = pf_calloc((size_t)n, sizeof *h->slot_of);
    h->left_at = pf_calloc((size_t)n, sizeof *h->left_at);
    h->owners = pf_calloc((size_t)n, sizeof *h->owners);
    h->uses = pf_calloc((size_t)n, sizeof *h->uses);
    if (h->is_served == NULL || h->slot_of == NULL || h->left_at == NULL || h->owners == NULL || h->uses == NULL) {
        pf_hot_experts_delete(h);
        return NULL;
    }
    choose_layers(h, config->n_layer);
    for (int32_t i = 0; i < n; ++i) {
        h->slot_of[i] = h->owners[i] = NONE;
        h->left_at[i] = i % config->n_expert;
    }
    h->choice = pf_hot_choice_of(h->uses, n);
    h->wanted = NONE;
    h->arrival = (arrival){NONE, NONE, 0};
    return h;
}

static uint64_t table_bytes(const pf_hot_experts *h) {
    return (uint64_t)h->config->n_layer * (uint64_t)h->config->n_expert * sizeof *h->slot_of;
}

static uint64_t place_slots(pf_hot_experts *h, int32_t n_slot) {
    h->n_slot = n_slot;
    h->table_at = pf_expert_parts_place(h->parts, n_slot);
    return h->table_at + table_bytes(h);
}

bool pf_hot_experts_fit(pf_hot_experts *h, uint64_t bytes) {
    if (h->n_served == 0) return false;
    pf_expert_parts_of(&h->layers[h->first_layer].moe, h->parts);
    h->expert_bytes = pf_expert_parts_bytes(h->parts);
    const uint64_t most = (uint64_t)h->n_served * (uint64_t)h->config->n_expert, about = bytes / h->expert_bytes;
    int32_t n = about < most ? (int32_t)about : (int32_t)most;
    while (n > 0 && place_slots(h, n) > bytes) --n;
    if (n == 0) return false;
    const uint64_t share = STEP_BYTES / (uint64_t)h->n_served, slice = h->expert_bytes / LEAST_SLICES + 1;
    h->slice_bytes = share < slice ? share : slice;
    return true;
}

uint64_t pf_hot_experts_bytes(const pf_hot_experts *h) { return h->table_at + table_bytes(h); }

bool pf_hot_experts_take(pf_hot_experts *h, pf_link *link) {
    h->link = link;
    h->device = pf_link_alloc(link, (size_t)pf_hot_experts_bytes(h));
    bool taken = h->device != NULL;
    for (int i = 0; i < PF_LANES && taken; ++i) {
        h->host[i] = pf_link_alloc_host(link, (size_t)h->slice_bytes);
        taken = h->host[i] != NULL;
    }
    taken = taken && pf_link_upload(link, h->device + h->table_at, h->slot_of, (size_t)table_bytes(h)) == PF_OK;
    if (!taken) (void)pf_hot_experts_give_back(h);
    return taken;
}

bool pf_hot_experts_give_back(pf_hot_experts *h) {
    if (h == NULL || h->link == NULL) return false;
    pf_link_free(h->link, h->device); /* waits for what is on its way */
    for (int i = 0; i < PF_LANES; ++i) pf_link_free_host(h->link, h->host[i]);
    h->link = NULL;
    return true;
}

void pf_hot_experts_delete(pf_hot_experts *h) {
    if (h == NULL) return;
    (void)pf_hot_experts_give_back(h);
    pf_free(h->is_served);
    pf_free(h->slot_of);
    pf_free(h->left_at);
    pf_free(h->owners);
    pf_free(h->uses);
    pf_free(h);
}

/* ---- On the way --------------------------------------------------------------------------------------------- */

/* A slice [begin, end) of an expert's bytes, part after part. */
typedef struct slice {
    const pf_expert_part *parts; /* of its layer */
    uint64_t expert, begin, end;
    uint8_t *to;
} slice;

/* Of `bytes` from byte `at` of an expert on, as many as lie together: in which part, and where in it. */
static uint64_t together(const pf_expert_part *parts, uint64_t at, uint64_t bytes, int *part, uint64_t *offset) {
    for (*part = 0; at >= parts[*part].bytes; ++*part) at -= parts[*part].bytes;
    *offset = at;
    const uint64_t left = parts[*part].bytes - at;
    return left < bytes ? left : bytes;
}

/* Item: COPY_BYTES of the slice. */
static void fill_slice(void *arg, int64_t begin, int64_t end, int worker) {
    const slice *s = arg;
    (void)worker;
    uint64_t at = s->begin + (uint64_t)begin * COPY_BYTES, last = s->begin + (uint64_t)end * COPY_BYTES;
    if (last > s->end) last = s->end;
    while (at < last) {
        int part;
        uint64_t offset;
        const uint64_t bytes = together(s->parts, at, last - at, &part, &offset);
        const pf_expert_part *p = &s->parts[part];
        memcpy(s->to + (at - s->begin), p->from + s->expert * p->bytes + offset, (size_t)bytes);
        at += bytes;
    }
}

static pf_status send_slice(pf_hot_experts *h, const slice *s) {
    for (uint64_t at = s->begin, bytes; at < s->end; at += bytes) {
        int part;
        uint64_t offset;
        bytes = together(h->parts, at, s->end - at, &part, &offset);
        uint8_t *to = h->device + h->parts[part].at + (uint64_t)h->arrival.slot * h->parts[part].bytes + offset;
        PF_TRY(pf_link_deliver(h->link, h->lane, to, s->to + (at - s->begin), (size_t)bytes));
        (void)atomic_fetch_add(&h->bytes, bytes);
    }
    return PF_OK;
}

pf_status pf_hot_experts_advance(pf_hot_experts *h, pf_pool *pool) {
    arrival *a = &h->arrival;
    bool is_free = false;
    if (h->link == NULL || a->index == NONE || a->sent == h->expert_bytes) return PF_OK;
    PF_TRY(pf_link_is_delivered(h->link, h->lane, &is_free));
    if (!is_free) return PF_OK;
    pf_expert_part parts[PF_EXPERT_PARTS];
    pf_expert_parts_of(&h->layers[a->index / h->config->n_expert].moe, parts);
    const uint64_t end = a->sent + h->slice_bytes < h->expert_bytes ? a->sent + h->slice_bytes : h->expert_bytes;
    slice next = {parts, (uint64_t)(a->index % h->config->n_expert), a->sent, end, h->host[h->lane]};
    pf_pool_run(pool, pf_ceil_div((int64_t)(end - a->sent), COPY_BYTES), 1, fill_slice, &next);
    PF_TRY(send_slice(h, &next));
    a->sent = end;
    if (end < h->expert_bytes) h->lane = (h->lane + 1) % PF_LANES;
    return PF_OK;
}

/* Lets both sides know where an expert is from now on. */
static pf_status set_slot(pf_hot_experts *h, int32_t index, int32_t slot) {
    int32_t *there = (int32_t *)(void *)(h->device + h->table_at) + index;
    h->slot_of[index] = slot;
    h->left_at[index] = slot == NONE ? index % h->config->n_expert : NONE;
    return pf_link_upload(h->link, there, &h->slot_of[index], sizeof slot);
}

/* An expert of which everything has come is held. */
static pf_status finish_arrival(pf_hot_experts *h) {
    arrival *a = &h->arrival;
    bool is_there = false;
    if (a->index == NONE || a->sent < h->expert_bytes) return PF_OK;
    PF_TRY(pf_link_is_delivered(h->link, h->lane, &is_there));
    if (!is_there) return PF_OK;
    h->owners[a->slot] = a->index;
    (void)atomic_fetch_add(&h->brought, 1);
    const arrival done = *a;
    a->index = NONE;
    return set_slot(h, done.index, done.slot);
}

/* Begins to bring the wanted expert, if nothing else is on its way and it is worth a slot. */
static pf_status begin_arrival(pf_hot_experts *h) {
    const int32_t index = h->wanted;
    int32_t slot = h->n_taken;
    if (h->arrival.index != NONE || index == NONE || (slot == h->n_slot && ++h->looks < LOOK_EVERY)) return PF_OK;
    h->wanted = NONE;
    h->looks = 0;
    if (slot < h->n_slot) {
        ++h->n_taken;
    } else {
        slot = pf_hot_least_used(&h->choice, h->owners, h->n_slot);
        if (slot < 0 || !pf_hot_replaces(&h->choice, index, h->owners[slot])) return PF_OK;
        PF_TRY(set_slot(h, h->owners[slot], NONE));
        (void)atomic_fetch_add(&h->replaced, 1);
    }
    h->owners[slot] = COMING;
    h->arrival = (arrival){index, slot, 0};
    return pf_link_begin_delivery(h->link); /* what is queued may still use the one that goes */
}

/* ---- Using -------------------------------------------------------------------------------------------------- */

bool pf_hot_experts_may(const pf_hot_experts *h, int32_t layer, int64_t n) {
    return h != NULL && h->n_slot > 0 && h->is_served[layer] && n <= PF_HOT_MOST;
}

pf_status pf_hot_experts_note(pf_hot_experts *h, int32_t layer, const int32_t *chosen, int64_t n) {
    const int32_t n_expert = h->config->n_expert;
    if (h->link == NULL || !h->is_served[layer]) return PF_OK;
    if (layer == h->first_layer) pf_hot_fade(&h->choice, n);
    for (int64_t i = 0; i < n * h->config->n_expert_used; ++i) {
        if (chosen[i] < 0 || chosen[i] >= n_expert) return PF_OK; /* does not exist: the host refuses it */
        const int32_t index = layer * n_expert + chosen[i];
        pf_hot_use(&h->choice, index);
        if (h->slot_of[index] != NONE || index == h->arrival.index) continue;
        if (h->wanted == NONE || h->uses[index] > h->uses[h->wanted]) h->wanted = index;
    }
    PF_TRY(finish_arrival(h));
    return begin_arrival(h);
}

void pf_hot_experts_part(pf_hot_experts *h, int32_t layer, const int32_t *chosen, int64_t n, pf_weight w[3],
                         pf_experts_args *device, pf_experts_args *host, bool *on_device, bool *on_host) {
    const int32_t n_expert = h->config->n_expert;
    const int64_t n_pair = n * h->config->n_expert_used, first = (int64_t)layer * n_expert;
    int64_t hits = 0;
    *on_device = false;
    *on_host = true;
    if (h->link == NULL) return;
    for (int64_t i = 0; i < n_pair; ++i) {
        if (chosen[i] < 0 || chosen[i] >= n_expert) return; /* does not exist: the host refuses it */
        hits += h->slot_of[first + chosen[i]] != NONE ? 1 : 0;
    }
    *on_device = hits > 0;
    *on_host = hits < n_pair;
    (void)atomic_fetch_add(&h->hits, (uint64_t)hits);
    (void)atomic_fetch_add(&h->misses, (uint64_t)(n_pair - hits));
    pf_expert_parts_there(&h->layers[layer].moe, h->parts, h->device, w);
    device->gate = &w[0];
    device->up = &w[1];
    device->down = &w[2];
    device->held_at = (const int32_t *)(const void *)(h->device + h->table_at) + first;
    host->held_at = h->left_at + first;
}

pf_hot_counts pf_hot_experts_counts(const pf_hot_experts *h) {
    pf_hot_experts *counted = (pf_hot_experts *)(uintptr_t)h; /* C11 loads no const atomics */
    return (pf_hot_counts){.hits = atomic_load(&counted->hits), .misses = atomic_load(&counted->misses),
                           .brought = atomic_load(&counted->brought), .replaced = atomic_load(&counted->replaced),
                           .bytes = atomic_load(&counted->bytes), .slots = (uint64_t)h->n_slot};
}
