#include "kv/cache.h"

#include "base/arith.h"

#include <string.h>

/* Hands out the parts of one region: first to measure (base NULL), then to place. */
typedef struct layout {
    uint8_t *base;
    uint64_t used;
    bool overflow;
} layout;

static void *place(layout *at, uint64_t count, uint64_t size) {
    uint64_t bytes = 0, end = 0, aligned = 0;
    if (!pf_mul_u64(count, size, &bytes) || !pf_add_u64(at->used, bytes, &end) ||
        !pf_align_u64(end, PF_ALIGN, &aligned) || aligned > SIZE_MAX / 2) {
        at->overflow = true;
        return NULL;
    }
    void *block = at->base != NULL ? at->base + at->used : NULL;
    at->used = aligned;
    return block;
}

static void place_rows(layout *at, pf_row_format format, int64_t width, int64_t rope, int64_t capacity, pf_rows *out) {
    out->format = format;
    out->width = (int32_t)width;
    out->rope = (int32_t)rope;
    out->row_bytes = pf_row_bytes(format, width, rope);
    out->capacity = capacity;
    out->data = place(at, (uint64_t)capacity, (uint64_t)out->row_bytes);
}

static void place_frontier(layout *at, int64_t ratio, bool overlap, int64_t width, pf_frontier *out) {
    const int64_t windows = overlap ? 2 : 1;
    out->channels = windows * width;
    out->need = windows * ratio;
    out->ring = out->need + PF_ROLLBACK + PF_COMPRESS_BLOCK;
    out->a = place(at, (uint64_t)(out->ring * out->channels), sizeof(float));
    out->g = place(at, (uint64_t)(out->ring * out->channels), sizeof(float));
    out->undo = place(at, (uint64_t)(2 * out->need * out->channels), sizeof(float));
}

static void place_layer(layout *at, const pf_config *c, const pf_cache *cache, pf_cache_formats formats, int32_t ratio,
                        pf_layer_cache *out) {
    out->ratio = ratio;
    place_rows(at, formats.kv, c->head_dim, c->rope_dim, c->window + PF_ROLLBACK + cache->n_chunk, &out->raw);
    if (ratio == 0) return;
    const bool overlap = ratio == PF_RATIO_CSA;
    const int64_t rows = pf_max_i64(1, cache->n_ctx / ratio);
    place_rows(at, formats.kv, c->head_dim, c->rope_dim, rows, &out->pool);
    place_frontier(at, ratio, overlap, c->head_dim, &out->frontier);
    if (!overlap) return;
    place_rows(at, formats.index, c->index_dim, c->rope_dim, rows, &out->index_pool);
    place_frontier(at, ratio, overlap, c->index_dim, &out->index_frontier);
}

/* With base NULL only measures: at->used becomes the size. */
static void place_all(layout *at, const pf_config *c, bool mtp, pf_cache_formats formats, pf_cache *cache) {
    cache->layers = place(at, (uint64_t)cache->n_layer, sizeof *cache->layers);
    for (int32_t l = 0; l < cache->n_layer; ++l) {
        pf_layer_cache measured = {0};
        pf_layer_cache *layer = at->base != NULL ? &cache->layers[l] : &measured;
        place_layer(at, c, cache, formats, l < c->n_layer ? c->ratio[l] : 0, layer);
    }
    if (mtp) {
        cache->stream_ring = PF_ROLLBACK + 1 + cache->n_chunk;
        cache->stream_floats = (int64_t)c->n_stream * c->n_embd;
        cache->streams = place(at, (uint64_t)cache->stream_ring, (uint64_t)cache->stream_floats * sizeof(float));
    }
}

pf_status pf_cache_open(const pf_config *config, bool mtp, pf_cache_formats formats, int64_t n_ctx, int32_t n_chunk,
                        int32_t n_checkpoint, pf_cache *out, pf_error *err) {
    pf_cache cache = {.n_layer = config->n_layer + (mtp ? 1 : 0), .window = config->window, .n_ctx = n_ctx,
                      .n_chunk = n_chunk};
    layout measure = {NULL, 0, false};
    place_all(&measure, config, mtp, formats, &cache);
    if (!measure.overflow) cache.region = pf_region_alloc((size_t)measure.used);
    if (cache.region == NULL) {
        return pf_fail(err, PF_ERR_MEMORY, "no memory for a cache of %lld tokens (%.1f GiB): ask for a smaller context",
                       (long long)n_ctx, (double)measure.used / 1073741824.0);
    }
    cache.region_bytes = measure.used;
    layout at = {cache.region, 0, false};
    place_all(&at, config, mtp, formats, &cache);
    const pf_status status = pf_checkpoints_open(&cache, n_checkpoint, &cache.checkpoints, err);
    if (status != PF_OK) {
        pf_region_free(cache.region, (size_t)cache.region_bytes);
        return status;
    }
    *out = cache;
    return PF_OK;
}

void pf_cache_close(pf_cache *cache) {
    pf_checkpoints_close(&cache->checkpoints);
    if (cache->region != NULL) pf_region_free(cache->region, (size_t)cache->region_bytes);
    memset(cache, 0, sizeof *cache);
}

static void poison(void *data, uint64_t bytes) {
    if (data != NULL) memset(data, 0xff, (size_t)bytes); /* NaN in every row format's floats and scales */
}

static void poison_frontier(const pf_frontier *f) {
    poison(f->a, (uint64_t)(f->ring * f->channels) * sizeof(float));
    poison(f->g, (uint64_t)(f->ring * f->channels) * sizeof(float));
}

void pf_cache_poison(pf_cache *cache) {
    for (int32_t l = 0; l < cache->n_layer; ++l) {
        const pf_layer_cache *layer = &cache->layers[l];
        poison(layer->raw.data, (uint64_t)(layer->raw.capacity * layer->raw.row_bytes));
        poison(layer->pool.data, (uint64_t)(layer->pool.capacity * layer->pool.row_bytes));
        poison(layer->index_pool.data, (uint64_t)(layer->index_pool.capacity * layer->index_pool.row_bytes));
        poison_frontier(&layer->frontier);
        poison_frontier(&layer->index_frontier);
    }
    poison(cache->streams, (uint64_t)(cache->stream_ring * cache->stream_floats) * sizeof(float));
}

/* The open windows' contributions to the undo copy, or back. */
static void copy_open_window(const pf_cache *cache, const pf_frontier *f, bool restore) {
    const size_t bytes = (size_t)f->channels * sizeof(float);
    float *undo = f->undo;
    for (int64_t p = pf_max_i64(0, cache->position - f->need); p < cache->position; ++p, undo += 2 * f->channels) {
        float *a = pf_frontier_a(f, p), *g = pf_frontier_g(f, p);
        memcpy(restore ? a : undo, restore ? undo : a, bytes);
        memcpy(restore ? g : undo + f->channels, restore ? undo + f->channels : g, bytes);
    }
}

/* Only a step longer than the frontier's slack overwrites what the current position needs: the other rings have room
 * for a whole chunk beyond the rollback span. */
static void copy_open_windows(const pf_cache *cache, int64_t n, bool restore) {
    if (n <= PF_COMPRESS_BLOCK) return;
    for (int32_t l = 0; l < cache->n_layer; ++l) {
        if (cache->layers[l].frontier.ring > 0) copy_open_window(cache, &cache->layers[l].frontier, restore);
        if (cache->layers[l].index_frontier.ring > 0) {
            copy_open_window(cache, &cache->layers[l].index_frontier, restore);
        }
    }
}

void pf_cache_begin_write(pf_cache *cache, int64_t n) { copy_open_windows(cache, n, false); }

void pf_cache_commit_write(pf_cache *cache, int64_t n) {
    cache->position += n;
    cache->floor = pf_max_i64(cache->floor, cache->position - PF_ROLLBACK);
}

void pf_cache_abort_write(pf_cache *cache, int64_t n) {
    copy_open_windows(cache, n, true);
    /* A longer step has overwritten the frontiers of earlier positions. A shorter one stays within their slack: the
     * floor is never more than PF_ROLLBACK back, and everything from there on is still in its ring. */
    if (n > PF_COMPRESS_BLOCK) cache->floor = cache->position;
}

int64_t pf_cache_rollback_limit(const pf_cache *cache) { return cache->position - cache->floor; }

int64_t pf_cache_nearest(const pf_cache *cache, int64_t target) {
    if (target >= cache->floor) return target;
    int64_t best = 0;
    for (int32_t i = 0; i < cache->checkpoints.n; ++i) {
        const pf_checkpoint *c = &cache->checkpoints.items[i];
        if (c->floor <= target) best = pf_max_i64(best, pf_min_i64(c->position, target));
    }
    return best;
}

bool pf_cache_rollback(pf_cache *cache, int64_t n) {
    const int64_t target = cache->position - n;
    if (pf_cache_nearest(cache, target) != target) return false;
    if (target == 0) { /* nothing older is needed, so the rings start afresh */
        cache->floor = 0;
    } else if (target < cache->floor) {
        const pf_checkpoint *checkpoint = pf_checkpoints_find(&cache->checkpoints, target);
        pf_cache_restore(cache, checkpoint);
        cache->floor = checkpoint->floor;
    }
    cache->position = target;
    pf_checkpoints_drop_after(&cache->checkpoints, target);
    return true;
}

float *pf_frontier_a(const pf_frontier *frontier, int64_t position) {
    return frontier->a + position % frontier->ring * frontier->channels;
}

float *pf_frontier_g(const pf_frontier *frontier, int64_t position) {
    return frontier->g + position % frontier->ring * frontier->channels;
}
