#include "kv/cache.h"

#include "base/arith.h"

#include <string.h>

pf_status pf_checkpoints_open(const pf_cache *cache, int32_t n, pf_checkpoints *out, pf_error *err) {
    pf_checkpoints list = {.capacity = n};
    /* As far on as there can be a context; early positions have less to copy. */
    const int64_t far = INT64_C(1) << 40;
    list.slot_bytes = pf_cache_ring_bytes(cache, far, far - PF_CHECKPOINT_SLACK) +
                      pf_cache_draft_bytes(cache, far, far - PF_CHECKPOINT_SLACK, 0);
    uint64_t bytes = 0;
    list.items = pf_calloc((size_t)n, sizeof *list.items);
    if (pf_mul_u64(list.slot_bytes, (uint64_t)n, &bytes) && bytes <= SIZE_MAX / 2) {
        list.region = pf_region_alloc((size_t)bytes);
    }
    if (list.items == NULL || list.region == NULL) {
        if (list.region != NULL) pf_region_free(list.region, (size_t)bytes);
        pf_free(list.items);
        return pf_fail(err, PF_ERR_MEMORY, "no memory for %d checkpoints of %.1f MiB: ask for fewer", n,
                       (double)list.slot_bytes / 1048576.0);
    }
    for (int32_t i = 0; i < n; ++i) list.items[i].data = list.region + (uint64_t)i * list.slot_bytes;
    *out = list;
    return PF_OK;
}

void pf_checkpoints_close(pf_checkpoints *list) {
    if (list->region != NULL) pf_region_free(list->region, (size_t)(list->slot_bytes * (uint64_t)list->capacity));
    pf_free(list->items);
    memset(list, 0, sizeof *list);
}

/* Copies pieces of the rings to or from a slot. */
typedef struct slot_cursor {
    const pf_cache *cache;
    uint8_t *at;
    bool restore;
} slot_cursor;

static bool copy_piece(void *user, void *piece, uint64_t size) {
    slot_cursor *cursor = user;
    if (cursor->restore) pf_cache_write(cursor->cache, piece, cursor->at, size);
    else pf_cache_read(cursor->cache, cursor->at, piece, size);
    cursor->at += size;
    return true;
}

static void walk_slot(const pf_cache *cache, const pf_checkpoint *c, slot_cursor *cursor) {
    (void)pf_cache_walk_rings(cache, c->position, c->floor, copy_piece, cursor);
    (void)pf_cache_walk_drafts(cache, c->position, c->floor, c->draft_begin, copy_piece, cursor);
}

/* The one to give up for a new one at position: whose loss leaves the smallest gap, measured by how far back it is. So
 * those that stay lie close together near the end, where most conversations are changed, and further apart before. */
static int32_t least_useful(const pf_checkpoints *list, int64_t position) {
    int32_t worst = 0;
    double worst_gap = 0.0;
    for (int32_t i = 0; i < list->n; ++i) {
        const int64_t before = i > 0 ? list->items[i - 1].position : 0;
        const int64_t after = i + 1 < list->n ? list->items[i + 1].position : position;
        const double gap = (double)(after - before) / (double)pf_max_i64(1, position - list->items[i].position);
        if (i > 0 && gap >= worst_gap) continue;
        worst = i;
        worst_gap = gap;
    }
    return worst;
}

pf_checkpoint *pf_checkpoints_add(pf_checkpoints *list, int64_t position, int64_t floor, int64_t draft_begin) {
    pf_checkpoint entry = {position, floor, draft_begin, NULL};
    if (list->n == list->capacity) {
        const int32_t given_up = least_useful(list, position);
        pf_checkpoint *place = &list->items[given_up];
        entry.data = place->data; /* the slot becomes the last one's */
        memmove(place, place + 1, (size_t)(list->n - 1 - given_up) * sizeof *place);
        --list->n;
    } else {
        entry.data = list->items[list->n].data;
    }
    list->items[list->n] = entry;
    return &list->items[list->n++];
}

void pf_cache_checkpoint(pf_cache *cache) {
    pf_checkpoints *list = &cache->checkpoints;
    const int64_t position = cache->position;
    const int64_t floor = pf_max_i64(pf_max_i64(0, position - PF_CHECKPOINT_SLACK), cache->floor);
    if (list->n > 0 && list->items[list->n - 1].position == position) {
        if (list->items[list->n - 1].floor <= floor) return; /* is of the same tokens, and leads back further */
        --list->n;
    }
    const pf_checkpoint *entry = pf_checkpoints_add(list, position, floor, cache->draft_begin);
    slot_cursor cursor = {cache, entry->data, false};
    walk_slot(cache, entry, &cursor);
}

void pf_checkpoints_drop_after(pf_checkpoints *list, int64_t position) {
    while (list->n > 0 && list->items[list->n - 1].position > position) --list->n;
}

const pf_checkpoint *pf_checkpoints_find(const pf_checkpoints *list, int64_t position) {
    for (int32_t i = 0; i < list->n; ++i) {
        const pf_checkpoint *c = &list->items[i];
        if (c->floor <= position && position <= c->position) return c;
    }
    return NULL;
}

void pf_cache_restore(pf_cache *cache, const pf_checkpoint *checkpoint) {
    slot_cursor cursor = {cache, checkpoint->data, true};
    walk_slot(cache, checkpoint, &cursor);
}
