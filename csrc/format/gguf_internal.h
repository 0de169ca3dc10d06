/* What the files gguf*.c share: the directory's layout and the parser's entry. Nobody else includes this. */
#ifndef PF_FORMAT_GGUF_INTERNAL_H
#define PF_FORMAT_GGUF_INTERNAL_H

#include "format/gguf.h"

#include <stddef.h>
#include <string.h>

/* Items with unique names, in file order and hashed. Every item type begins with its pf_gguf_string name. */
typedef struct pf_gguf_table {
    unsigned char *items;
    size_t item_size;
    uint64_t count;
    uint64_t capacity;
    uint32_t *slots; /* item index + 1, 0: free; linear probing, at most half full */
    uint64_t n_slots; /* power of two */
    uint64_t seed;    /* differs between runs, so that no file can be made to collide */
} pf_gguf_table;

typedef struct pf_gguf_value {
    pf_gguf_string key;
    uint32_t type; /* pf_gguf_type */
    uint32_t elem; /* of an array; else the same as type */
    uint64_t count;
    const uint8_t *data; /* the first element as in the file: strings with their length before them */
} pf_gguf_value;

typedef struct pf_gguf_entry {
    pf_gguf_tensor tensor;
    uint64_t offset; /* from its shard's tensor data */
} pf_gguf_entry;

typedef struct pf_gguf_shard {
    pf_map map; /* zeroed when the bytes are the caller's */
    const uint8_t *data;
    uint64_t size;
    uint64_t directory_bytes; /* header, keys and tensor entries */
} pf_gguf_shard;

struct pf_gguf {
    pf_gguf_table values;  /* pf_gguf_value */
    pf_gguf_table tensors; /* pf_gguf_entry */
    pf_gguf_shard *shards;
    uint64_t n_shards;
    uint64_t file_bytes;
    uint64_t fingerprint;
    pf_gguf *overlay; /* whose bytes some tensors are; NULL: none's */
};

/* Keys that every shard has of its own; the table keeps those of the first. */
typedef struct pf_gguf_split {
    uint64_t no;        /* this shard, from 0 */
    uint64_t count;     /* 0: no such key */
    uint64_t n_tensors; /* of all shards; UINT64_MAX: no such key */
} pf_gguf_split;

/* Appends one shard's keys and tensors. label names the file in messages. */
pf_status pf_gguf_parse_shard(pf_gguf *gguf, pf_gguf_shard *shard, bool first, const char *label, pf_gguf_split *split,
                              pf_error *err);

/* Bytes of one element, 0 for strings, arrays and unknown types. */
uint32_t pf_gguf_width(uint32_t type);
/* The element at data as an integer; false for other types and above INT64_MAX. */
bool pf_gguf_read_int(uint32_t type, const uint8_t *data, int64_t *out);

uint64_t pf_gguf_hash(const void *data, uint64_t size, uint64_t seed);
const void *pf_gguf_table_find(const pf_gguf_table *table, pf_gguf_string name);
/* The new copy of item, or NULL when out of memory. The caller has checked that the name is new. */
void *pf_gguf_table_add(pf_gguf_table *table, const void *item);
void pf_gguf_table_free(pf_gguf_table *table);

static inline uint64_t pf_load_le(const uint8_t *data, uint32_t bytes) {
    uint64_t value = 0;
    for (uint32_t i = 0; i < bytes; i++) value |= (uint64_t)data[i] << (8 * i);
    return value;
}
static inline uint32_t pf_load_u32(const uint8_t *data) { return (uint32_t)pf_load_le(data, 4); }
static inline uint64_t pf_load_u64(const uint8_t *data) { return pf_load_le(data, 8); }

static inline bool pf_gguf_string_equal(pf_gguf_string a, pf_gguf_string b) {
    return a.len == b.len && memcmp(a.data, b.data, (size_t)a.len) == 0;
}

#endif
