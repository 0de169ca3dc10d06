/* Opening and closing GGUF files, their shards, and the hashed tables of the directory. */
#include "format/gguf_internal.h"

#include "base/memory.h"

#include <inttypes.h>
#include <stdio.h>

#define PF_LABEL_BYTES 160

/* ---- Tables ------------------------------------------------------------------------------------------------ */

uint64_t pf_gguf_hash(const void *data, uint64_t size, uint64_t seed) {
    const uint64_t multiplier = UINT64_C(0x9E3779B97F4A7C15);
    const uint8_t *bytes = data;
    uint64_t hash = seed ^ (size * multiplier);
    for (; size >= 8; size -= 8, bytes += 8) {
        hash = (hash ^ pf_load_u64(bytes)) * multiplier;
        hash ^= hash >> 29;
    }
    hash = (hash ^ pf_load_le(bytes, (uint32_t)size)) * multiplier;
    hash ^= hash >> 32;
    hash *= multiplier;
    return hash ^ (hash >> 29);
}

static pf_gguf_string pf_table_name(const pf_gguf_table *table, uint64_t index) {
    pf_gguf_string name;
    memcpy(&name, table->items + index * table->item_size, sizeof name);
    return name;
}

const void *pf_gguf_table_find(const pf_gguf_table *table, pf_gguf_string name) {
    if (table->n_slots == 0) return NULL;
    uint64_t mask = table->n_slots - 1;
    uint64_t slot = pf_gguf_hash(name.data, name.len, table->seed) & mask;
    for (; table->slots[slot] != 0; slot = (slot + 1) & mask) {
        uint64_t index = table->slots[slot] - 1;
        if (pf_gguf_string_equal(pf_table_name(table, index), name)) return table->items + index * table->item_size;
    }
    return NULL;
}

static void pf_table_link(pf_gguf_table *table, uint64_t index) {
    pf_gguf_string name = pf_table_name(table, index);
    uint64_t mask = table->n_slots - 1;
    uint64_t slot = pf_gguf_hash(name.data, name.len, table->seed) & mask;
    while (table->slots[slot] != 0) slot = (slot + 1) & mask;
    table->slots[slot] = (uint32_t)(index + 1);
}

/* Grows with what has been read, not with what the file claims. */
static bool pf_table_grow(pf_gguf_table *table) {
    uint64_t capacity = table->capacity ? 2 * table->capacity : 64;
    unsigned char *items = pf_calloc((size_t)capacity, table->item_size);
    uint32_t *slots = pf_calloc((size_t)(2 * capacity), sizeof *slots);
    if (!items || !slots) {
        pf_free(items);
        pf_free(slots);
        return false;
    }
    if (table->count) memcpy(items, table->items, (size_t)table->count * table->item_size);
    pf_free(table->items);
    pf_free(table->slots);
    table->items = items;
    table->slots = slots;
    table->capacity = capacity;
    table->n_slots = 2 * capacity;
    for (uint64_t i = 0; i < table->count; i++) pf_table_link(table, i);
    return true;
}

void *pf_gguf_table_add(pf_gguf_table *table, const void *item) {
    if (table->count == table->capacity && !pf_table_grow(table)) return NULL;
    void *copy = table->items + table->count * table->item_size;
    memcpy(copy, item, table->item_size);
    pf_table_link(table, table->count++);
    return copy;
}

void pf_gguf_table_free(pf_gguf_table *table) {
    pf_free(table->items);
    pf_free(table->slots);
    memset(table, 0, sizeof *table);
}

/* ---- Shards ------------------------------------------------------------------------------------------------ */

/* The end of a path that would crowd the reason out of a message. */
static void pf_make_label(const char *path, char label[PF_LABEL_BYTES]) {
    size_t len = strlen(path), most = PF_LABEL_BYTES - 1;
    const char *tail = len > most ? path + (len - most) : path;
    while (len > most && ((unsigned char)*tail & 0xC0) == 0x80) tail++;
    memcpy(label, tail, strlen(tail) + 1);
}

/* Takes the shard over, also on failure: pf_gguf_close() unmaps it. */
static pf_status pf_add_shard(pf_gguf *gguf, pf_gguf_shard shard, const char *label, pf_gguf_split *split,
                              pf_error *err) {
    if ((gguf->n_shards & (gguf->n_shards - 1)) == 0) { /* full: capacities are powers of two */
        uint64_t capacity = gguf->n_shards ? 2 * gguf->n_shards : 1;
        pf_gguf_shard *shards = pf_calloc((size_t)capacity, sizeof *shards);
        if (!shards) {
            pf_map_close(&shard.map);
            return pf_fail(err, PF_ERR_MEMORY, "%s: out of memory", label);
        }
        if (gguf->n_shards) memcpy(shards, gguf->shards, (size_t)gguf->n_shards * sizeof *shards);
        pf_free(gguf->shards);
        gguf->shards = shards;
    }
    bool first = gguf->n_shards == 0;
    pf_gguf_shard *slot = &gguf->shards[gguf->n_shards++];
    *slot = shard;
    gguf->file_bytes += shard.size;
    pf_status status = pf_gguf_parse_shard(gguf, slot, first, label, split, err);
    if (status == PF_OK) {
        uint64_t hash = pf_gguf_hash(slot->data, slot->directory_bytes, gguf->fingerprint);
        gguf->fingerprint = pf_gguf_hash(&slot->size, 0, hash ^ slot->size);
    }
    return status;
}

static pf_status pf_map_shard(pf_gguf *gguf, const char *path, pf_gguf_split *split, pf_error *err) {
    char label[PF_LABEL_BYTES];
    pf_gguf_shard shard = {0};
    pf_status status = pf_map_open(path, &shard.map, err);
    if (status != PF_OK) return status;
    pf_make_label(path, label);
    shard.data = shard.map.data;
    shard.size = shard.map.size;
    return pf_add_shard(gguf, shard, label, split, err);
}

/* llama.cpp's naming: NAME-00001-of-00003.gguf. Writes the ending of shard `no` (from 0). */
#define PF_ENDING_BYTES 64
static size_t pf_shard_ending(uint64_t no, uint64_t count, char out[PF_ENDING_BYTES]) {
    return (size_t)snprintf(out, PF_ENDING_BYTES, "-%05" PRIu64 "-of-%05" PRIu64 ".gguf", no + 1, count);
}

static pf_status pf_check_shard(const pf_gguf_split *first, const pf_gguf_split *split, uint64_t no, const char *path,
                                pf_error *err) {
    char label[PF_LABEL_BYTES];
    pf_make_label(path, label);
    if (split->no == no && split->count == first->count) return PF_OK;
    return pf_fail(err, PF_ERR_FORMAT,
                   "%s: says it is shard %" PRIu64 " of %" PRIu64 ", expected %" PRIu64 " of %" PRIu64
                   ": the files are mixed up, download them again",
                   label, split->no + 1, split->count, no + 1, first->count);
}

/* The other shards, named like the first one at `path`. */
static pf_status pf_open_siblings(pf_gguf *gguf, const char *path, const pf_gguf_split *first, pf_error *err) {
    char label[PF_LABEL_BYTES], ending[PF_ENDING_BYTES];
    size_t len = strlen(path), n = pf_shard_ending(first->no, first->count, ending);
    pf_make_label(path, label);
    if (len < n || memcmp(path + len - n, ending, n) != 0) {
        return pf_fail(err, PF_ERR_FILE,
                       "%s: is shard %" PRIu64 " of %" PRIu64 ", so its name must end with '%s': give it its name back",
                       label, first->no + 1, first->count, ending);
    }
    if (first->no != 0) {
        pf_shard_ending(0, first->count, ending);
        return pf_fail(err, PF_ERR_FILE, "%s: is shard %" PRIu64 " of %" PRIu64 ": open the first, '...%s'", label,
                       first->no + 1, first->count, ending);
    }
    char *sibling = pf_alloc(len - n + PF_ENDING_BYTES);
    if (!sibling) return pf_fail(err, PF_ERR_MEMORY, "%s: out of memory", label);
    memcpy(sibling, path, len - n);
    pf_status status = PF_OK;
    for (uint64_t no = 1; no < first->count && status == PF_OK; no++) {
        pf_gguf_split split;
        pf_error reason = {0};
        pf_shard_ending(no, first->count, sibling + len - n);
        status = pf_map_shard(gguf, sibling, &split, &reason);
        if (status == PF_ERR_FILE) {
            pf_fail(err, status, "shard %" PRIu64 " of %" PRIu64 " is missing: %s", no + 1, first->count,
                    reason.message);
        } else if (status != PF_OK) {
            pf_fail(err, status, "%s", reason.message);
        } else {
            status = pf_check_shard(first, &split, no, sibling, err);
        }
    }
    pf_free(sibling);
    return status;
}

/* ---- Opening ----------------------------------------------------------------------------------------------- */

static pf_gguf *pf_gguf_new(void) {
    pf_gguf *gguf = pf_calloc(1, sizeof *gguf);
    if (!gguf) return NULL;
    uint64_t seed = (uint64_t)(uintptr_t)gguf * UINT64_C(0xD6E8FEB86659FD93);
    gguf->values.item_size = sizeof(pf_gguf_value);
    gguf->values.seed = seed;
    gguf->tensors.item_size = sizeof(pf_gguf_entry);
    gguf->tensors.seed = seed;
    return gguf;
}

static pf_status pf_check_total(const pf_gguf *gguf, const pf_gguf_split *split, const char *label, pf_error *err) {
    if (split->n_tensors == UINT64_MAX || split->n_tensors == gguf->tensors.count) return PF_OK;
    return pf_fail(err, PF_ERR_FORMAT,
                   "%s: split.tensors.count is %" PRIu64 " but the shards hold %" PRIu64
                   " tensors: the files are mixed up, download them again",
                   label, split->n_tensors, gguf->tensors.count);
}

pf_status pf_gguf_open(const char *path, pf_gguf **out, pf_error *err) {
    char label[PF_LABEL_BYTES];
    pf_make_label(path, label);
    pf_gguf *gguf = pf_gguf_new();
    if (!gguf) return pf_fail(err, PF_ERR_MEMORY, "%s: out of memory", label);
    pf_gguf_split split;
    pf_status status = pf_map_shard(gguf, path, &split, err);
    if (status == PF_OK && split.count > 1) status = pf_open_siblings(gguf, path, &split, err);
    if (status == PF_OK) status = pf_check_total(gguf, &split, label, err);
    if (status != PF_OK) {
        pf_gguf_close(gguf);
        return status;
    }
    *out = gguf;
    return PF_OK;
}

pf_status pf_gguf_parse(const uint8_t *data, uint64_t size, pf_gguf **out, pf_error *err) {
    pf_gguf *gguf = pf_gguf_new();
    if (!gguf) return pf_fail(err, PF_ERR_MEMORY, "out of memory");
    pf_gguf_split split;
    pf_gguf_shard shard = {.data = data, .size = size};
    pf_status status = pf_add_shard(gguf, shard, "GGUF data", &split, err);
    if (status != PF_OK) {
        pf_gguf_close(gguf);
        return status;
    }
    *out = gguf;
    return PF_OK;
}

static pf_status pf_refuse_overlay(const pf_gguf *gguf, const char *path, pf_error *err) {
    char label[PF_LABEL_BYTES];
    pf_make_label(path, label);
    const pf_gguf_entry *entries = (const pf_gguf_entry *)(const void *)gguf->overlay->tensors.items;
    for (uint64_t i = 0; i < gguf->overlay->tensors.count; i++) {
        const pf_gguf_tensor *over = &entries[i].tensor;
        const pf_gguf_entry *entry = pf_gguf_table_find(&gguf->tensors, over->name);
        if (entry != NULL && entry->tensor.data == over->data) continue;
        const int len = over->name.len < 64 ? (int)over->name.len : 64;
        return pf_fail(err, PF_ERR_FORMAT, "%s: the model has no tensor %.*s of that shape: it is made for another one", label,
                       len, over->name.data);
    }
    return PF_OK;
}

pf_status pf_gguf_overlay(pf_gguf *gguf, const char *path, pf_error *err) {
    PF_TRY(pf_gguf_open(path, &gguf->overlay, err));
    pf_gguf_entry *entries = (pf_gguf_entry *)(void *)gguf->tensors.items;
    uint64_t n_found = 0;
    for (uint64_t i = 0; i < gguf->tensors.count; i++) {
        pf_gguf_tensor *own = &entries[i].tensor;
        const pf_gguf_entry *over = pf_gguf_table_find(&gguf->overlay->tensors, own->name);
        if (over == NULL || memcmp(over->tensor.ne, own->ne, sizeof own->ne) != 0) continue;
        *own = over->tensor;
        ++n_found;
    }
    if (n_found < gguf->overlay->tensors.count) return pf_refuse_overlay(gguf, path, err);
    gguf->fingerprint = pf_gguf_hash(&gguf->overlay->fingerprint, sizeof gguf->overlay->fingerprint, gguf->fingerprint);
    return PF_OK;
}

void pf_gguf_leave_out(pf_gguf *gguf, pf_gguf_need_fn is_needed, void *user) {
    pf_gguf_entry *entries = (pf_gguf_entry *)(void *)gguf->tensors.items;
    for (uint64_t i = 0; i < gguf->tensors.count; i++) {
        pf_gguf_tensor *tensor = &entries[i].tensor;
        if (is_needed(user, tensor->name)) continue;
        tensor->data = NULL;
        tensor->bytes = 0;
    }
}

void pf_gguf_close(pf_gguf *gguf) {
    if (!gguf) return;
    pf_gguf_close(gguf->overlay);
    for (uint64_t i = 0; i < gguf->n_shards; i++) pf_map_close(&gguf->shards[i].map);
    pf_free(gguf->shards);
    pf_gguf_table_free(&gguf->values);
    pf_gguf_table_free(&gguf->tensors);
    pf_free(gguf);
}

uint64_t pf_gguf_file_bytes(const pf_gguf *gguf) { return gguf->file_bytes; }
uint64_t pf_gguf_n_tensors(const pf_gguf *gguf) { return gguf->tensors.count; }
uint64_t pf_gguf_fingerprint(const pf_gguf *gguf) { return gguf->fingerprint; }
