#include "offload/expert_stream.h"

#include "base/arith.h"
#include "base/fork.h"
#include "base/memory.h"
#include "base/pages.h"

#include <string.h>

enum { NONE = -1 };

/* Experts in memory, most recently used first. Indices are layer * n_expert + expert. */
typedef struct recency {
    int32_t first, last;
    int32_t *older, *newer; /* [n_layer n_expert] */
} recency;

struct pf_expert_stream {
    const pf_layer_weights **layers; /* [n_layer], those that draft last */
    int32_t n_layer, n_expert;
    uint64_t budget, resident;       /* bytes */
    bool *is_resident;               /* [n_layer n_expert] */
    recency order;
    pf_expert_counts counts;
    atomic_flag lock; /* held for bookkeeping only, never over system calls */
    pf_fork_watch fork;
};

static void lock(pf_expert_stream *s) {
    while (atomic_flag_test_and_set_explicit(&s->lock, memory_order_acquire)) {}
}

static void unlock(pf_expert_stream *s) { atomic_flag_clear_explicit(&s->lock, memory_order_release); }

/* Bookkeeping that a fork cut short is begun again: nothing counts as being in memory, and what is there is found. */
static void forget(void *object) {
    pf_expert_stream *s = object;
    memset(s->is_resident, 0, (size_t)s->n_layer * (size_t)s->n_expert * sizeof *s->is_resident);
    s->order.first = s->order.last = NONE;
    s->resident = 0;
    unlock(s);
}

/* ---- Where experts lie ------------------------------------------------------------------------------------- */

enum { PARTS = 3 };

static const pf_weight *part_of(const pf_layer_weights *layer, int part) {
    return part == 0 ? &layer->moe.gate : part == 1 ? &layer->moe.up : &layer->moe.down;
}

/* Experts on a device are none of this, nor those of other stages. */
static bool is_streamed(const pf_layer_weights *layer) {
    return !layer->experts_on_device && layer->moe.gate.data != NULL;
}

static uint64_t matrix_bytes(const pf_weight *w) { return (uint64_t)w->rows * (uint64_t)w->row_bytes; }

static uint64_t expert_bytes(const pf_layer_weights *layer) {
    uint64_t sum = 0;
    for (int part = 0; part < PARTS; ++part) sum += matrix_bytes(part_of(layer, part));
    return sum;
}

static const uint8_t *expert_part(const pf_layer_weights *layer, int part, int64_t expert, uint64_t *bytes) {
    const pf_weight *w = part_of(layer, part);
    *bytes = matrix_bytes(w);
    return w->data + (uint64_t)expert * *bytes;
}

uint64_t pf_expert_stream_total(const pf_config *config, const pf_weights *weights) {
    uint64_t sum = 0;
    for (int32_t l = 0; l < config->n_layer; ++l) {
        if (is_streamed(&weights->layers[l])) sum += expert_bytes(&weights->layers[l]);
    }
    for (int32_t i = 0; i < pf_weights_draft_shape(weights).n_layer; ++i) {
        sum += expert_bytes(pf_weights_draft_layer(weights, i));
    }
    return sum * (uint64_t)config->n_expert;
}

/* ---- Opening ----------------------------------------------------------------------------------------------- */

pf_status pf_expert_stream_new(const pf_config *config, const pf_weights *weights, uint64_t budget,
                               pf_expert_stream **out, pf_error *err) {
    const int32_t n_layer = config->n_layer + pf_weights_draft_shape(weights).n_layer;
    const size_t n = (size_t)n_layer * (size_t)config->n_expert;
    pf_expert_stream *s = pf_calloc(1, sizeof *s);
    if (s != NULL) {
        s->layers = pf_calloc((size_t)n_layer, sizeof *s->layers);
        s->is_resident = pf_calloc(n, sizeof *s->is_resident);
        s->order = (recency){NONE, NONE, pf_calloc(n, sizeof(int32_t)), pf_calloc(n, sizeof(int32_t))};
    }
    if (s == NULL || s->layers == NULL || s->is_resident == NULL || s->order.older == NULL || s->order.newer == NULL) {
        pf_expert_stream_delete(s);
        return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening the model");
    }
    s->n_layer = n_layer;
    s->n_expert = config->n_expert;
    s->budget = budget;
    atomic_flag_clear(&s->lock);
    for (int32_t l = 0; l < n_layer; ++l) {
        s->layers[l] = l < config->n_layer ? &weights->layers[l] : pf_weights_draft_layer(weights, l - config->n_layer);
        for (int part = 0; part < PARTS && is_streamed(s->layers[l]); ++part) {
            const pf_weight *w = part_of(s->layers[l], part);
            pf_pages_scatter(w->data, matrix_bytes(w) * (uint64_t)w->count);
        }
    }
    pf_fork_watch_begin(&s->fork, forget, s);
    *out = s;
    return PF_OK;
}

void pf_expert_stream_delete(pf_expert_stream *s) {
    if (s == NULL) return;
    pf_fork_watch_end(&s->fork);
    pf_free(s->layers);
    pf_free(s->is_resident);
    pf_free(s->order.older);
    pf_free(s->order.newer);
    pf_free(s);
}

/* ---- Recency ----------------------------------------------------------------------------------------------- */

static void unlink_expert(recency *order, int32_t index) {
    const int32_t older = order->older[index], newer = order->newer[index];
    *(newer == NONE ? &order->first : &order->older[newer]) = older;
    *(older == NONE ? &order->last : &order->newer[older]) = newer;
}

static void link_first(recency *order, int32_t index) {
    order->older[index] = order->first;
    order->newer[index] = NONE;
    *(order->first == NONE ? &order->last : &order->newer[order->first]) = index;
    order->first = index;
}

/* ---- Reading and dropping ---------------------------------------------------------------------------------- */

typedef struct advice {
    const pf_expert_stream *stream;
    const int32_t *indices;
    void (*give)(const void *data, uint64_t bytes);
} advice;

static void advise_parts(void *arg, int64_t begin, int64_t end, int worker) {
    const advice *a = arg;
    (void)worker;
    for (int64_t i = begin; i < end; ++i) {
        const int32_t index = a->indices[i / PARTS];
        uint64_t bytes;
        const uint8_t *data = expert_part(a->stream->layers[index / a->stream->n_expert], (int)(i % PARTS),
                                          index % a->stream->n_expert, &bytes);
        a->give(data, bytes);
    }
}

/* Notes the use of an expert. True when it has to be read. */
static bool note_use(pf_expert_stream *s, int32_t index) {
    const bool missing = !s->is_resident[index];
    ++s->counts.wanted;
    if (missing) {
        const uint64_t bytes = expert_bytes(s->layers[index / s->n_expert]);
        s->is_resident[index] = true;
        s->resident += bytes;
        s->counts.bytes_read += bytes;
        ++s->counts.read;
    } else {
        unlink_expert(&s->order, index);
    }
    link_first(&s->order, index);
    return missing;
}

/* The expert to drop while the budget is exceeded, of those beyond the n most recently used; NONE when it is not. */
static int32_t take_oldest(pf_expert_stream *s, const int32_t *kept, int64_t n) {
    const int32_t index = s->order.last;
    if (s->resident <= s->budget || index == NONE) return NONE;
    for (int64_t i = 0; i < n; ++i) {
        if (kept[i] == index) return NONE;
    }
    unlink_expert(&s->order, index);
    s->is_resident[index] = false;
    s->resident -= expert_bytes(s->layers[index / s->n_expert]);
    return index;
}

enum { GROUP = 64 };

/* At most GROUP experts. Dropping comes first, so that the budget is not exceeded meanwhile. */
static void want_group(pf_expert_stream *s, pf_pool *pool, int32_t layer, const int32_t *experts, int64_t n) {
    int32_t wanted[GROUP], missing[GROUP], dropped[GROUP];
    int64_t n_missing = 0, n_dropped = 0;
    lock(s);
    for (int64_t i = 0; i < n; ++i) {
        wanted[i] = layer * s->n_expert + experts[i];
        if (note_use(s, wanted[i])) missing[n_missing++] = wanted[i];
    }
    while (n_dropped < GROUP && (dropped[n_dropped] = take_oldest(s, wanted, n)) != NONE) ++n_dropped;
    unlock(s);
    advice drop = {s, dropped, pf_pages_drop}, read = {s, missing, pf_pages_announce};
    if (n_dropped > 0) pf_pool_run(pool, n_dropped * PARTS, 1, advise_parts, &drop);
    if (n_missing > 0) pf_pool_run(pool, n_missing * PARTS, 1, advise_parts, &read);
}

void pf_expert_stream_want(pf_expert_stream *stream, pf_pool *pool, int32_t layer, const int32_t *experts, int64_t n) {
    for (int64_t i = 0; i < n; i += GROUP) {
        want_group(stream, pool, layer, experts + i, pf_min_i64(GROUP, n - i));
    }
}

int64_t pf_expert_stream_batch(const pf_expert_stream *stream, int32_t layer) {
    const uint64_t fit = stream->budget / (2 * expert_bytes(stream->layers[layer]));
    return fit < 1 ? 1 : fit < (uint64_t)stream->n_expert ? (int64_t)fit : stream->n_expert;
}

pf_expert_counts pf_expert_stream_counts(pf_expert_stream *stream) {
    lock(stream);
    const pf_expert_counts counts = stream->counts;
    unlock(stream);
    return counts;
}
