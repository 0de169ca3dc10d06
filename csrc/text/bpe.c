#include "text/bpe.h"

#include "base/arith.h"
#include "base/memory.h"

#include <inttypes.h>
#include <string.h>

#define EMPTY UINT64_MAX
#define NO_RANK UINT32_MAX
#define SHORT_PIECE 48 /* up to here, searching all pairs for the lowest rank beats keeping a heap */

static inline uint64_t pair_key(int32_t left, int32_t right) { return (uint64_t)left << 21 | (uint64_t)right; }

static inline uint64_t first_slot(const pf_bpe *bpe, uint64_t key) {
    return (key * UINT64_C(0x9E3779B97F4A7C15)) >> bpe->shift;
}

pf_status pf_bpe_init(pf_bpe *bpe, uint64_t n_merges, pf_error *err) {
    uint32_t bits = 4;
    while ((UINT64_C(1) << bits) < 2 * n_merges) bits++;
    size_t n_slots = (size_t)1 << bits;
    bpe->shift = 64 - bits;
    bpe->slots = pf_alloc(n_slots * sizeof *bpe->slots);
    bpe->merged = pf_calloc((size_t)n_merges + 1, sizeof *bpe->merged);
    if (!bpe->slots || !bpe->merged) return pf_fail(err, PF_ERR_MEMORY, "out of memory for the tokenizer's merges");
    memset(bpe->slots, 0xFF, n_slots * sizeof *bpe->slots);
    return PF_OK;
}

void pf_bpe_free(pf_bpe *bpe) {
    pf_free(bpe->slots);
    pf_free(bpe->merged);
}

int32_t pf_bpe_add(pf_bpe *bpe, int32_t left, int32_t right, int32_t rank, int32_t merged) {
    uint64_t key = pair_key(left, right);
    uint64_t mask = (UINT64_C(1) << (64 - bpe->shift)) - 1;
    uint64_t at = first_slot(bpe, key);
    while (bpe->slots[at] != EMPTY) {
        if (bpe->slots[at] >> 22 == key) return (int32_t)(bpe->slots[at] & PF_BPE_MAX_MERGES);
        at = (at + 1) & mask;
    }
    bpe->slots[at] = key << 22 | (uint64_t)rank;
    bpe->merged[rank] = merged;
    return -1;
}

/* Rank of the merge of a pair, or NO_RANK. */
static inline uint32_t pair_rank(const pf_bpe *bpe, int32_t left, int32_t right) {
    uint64_t key = pair_key(left, right);
    uint64_t mask = (UINT64_C(1) << (64 - bpe->shift)) - 1;
    for (uint64_t at = first_slot(bpe, key);; at = (at + 1) & mask) {
        uint64_t slot = bpe->slots[at];
        if (slot == EMPTY) return NO_RANK;
        if (slot >> 22 == key) return (uint32_t)(slot & PF_BPE_MAX_MERGES);
    }
}

/* tokens has room for n; returns how many it got. */
static size_t encode_short(const pf_bpe *bpe, const uint8_t *bytes, size_t n, int32_t *tokens) {
    uint32_t rank[SHORT_PIECE]; /* rank[i]: of tokens i and i + 1 */
    for (size_t i = 0; i < n; i++) tokens[i] = bpe->byte_token[bytes[i]];
    for (size_t i = 0; i + 1 < n; i++) rank[i] = pair_rank(bpe, tokens[i], tokens[i + 1]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            if (rank[i] < rank[best]) best = i;
        }
        if (rank[best] == NO_RANK) break;
        tokens[best] = bpe->merged[rank[best]];
        n--;
        memmove(tokens + best + 1, tokens + best + 2, (n - best - 1) * sizeof *tokens);
        memmove(rank + best, rank + best + 1, (n - best - 1) * sizeof *rank);
        if (best + 1 < n) rank[best] = pair_rank(bpe, tokens[best], tokens[best + 1]);
        if (best > 0) rank[best - 1] = pair_rank(bpe, tokens[best - 1], tokens[best]);
    }
    return n;
}

/* A binary min-heap of rank << 32 | position. */
static void heap_push(uint64_t *heap, size_t *size, uint64_t item) {
    size_t i = (*size)++;
    while (i > 0 && heap[(i - 1) / 2] > item) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = item;
}

static uint64_t heap_pop(uint64_t *heap, size_t *size) {
    uint64_t top = heap[0];
    uint64_t item = heap[--*size];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < *size; i = child) {
        if (child + 1 < *size && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= item) break;
        heap[i] = heap[child];
    }
    heap[i] = item;
    return top;
}

/* A doubly linked list over the positions of the bytes; a token stands at the position of its first byte. */
typedef struct links {
    int32_t *tokens;
    int32_t *prev;  /* -1: none */
    int32_t *next;  /* n: none */
    uint32_t *rank; /* of the token here and the next one; NO_RANK also where no token stands */
    uint64_t *heap; /* room for 2 n: every merge takes one entry out and puts at most two in */
    size_t heap_size;
} links;

static void rank_pair(const pf_bpe *bpe, links *list, int32_t left, int32_t right) {
    list->rank[left] = pair_rank(bpe, list->tokens[left], list->tokens[right]);
    if (list->rank[left] != NO_RANK) {
        heap_push(list->heap, &list->heap_size, (uint64_t)list->rank[left] << 32 | (uint32_t)left);
    }
}

static size_t encode_long(const pf_bpe *bpe, const uint8_t *bytes, int32_t n, links *list) {
    for (int32_t i = 0; i < n; i++) {
        list->tokens[i] = bpe->byte_token[bytes[i]];
        list->prev[i] = i - 1;
        list->next[i] = i + 1;
        list->rank[i] = NO_RANK;
    }
    for (int32_t i = 0; i + 1 < n; i++) rank_pair(bpe, list, i, i + 1);
    while (list->heap_size > 0) {
        uint64_t item = heap_pop(list->heap, &list->heap_size);
        int32_t at = (int32_t)(item & UINT32_MAX);
        if (list->rank[at] != item >> 32) continue; /* the pair has changed since */
        int32_t gone = list->next[at];
        int32_t after = list->next[gone];
        list->tokens[at] = bpe->merged[list->rank[at]];
        list->rank[gone] = NO_RANK;
        list->rank[at] = NO_RANK;
        list->next[at] = after;
        if (after < n) {
            list->prev[after] = at;
            rank_pair(bpe, list, at, after);
        }
        if (list->prev[at] >= 0) rank_pair(bpe, list, list->prev[at], at);
    }
    size_t count = 0;
    for (int32_t i = 0; i < n; i = list->next[i]) list->tokens[count++] = list->tokens[i];
    return count;
}

static pf_status reserve(pf_bpe_scratch *scratch, size_t n, pf_error *err) {
    if (n <= scratch->capacity) return PF_OK;
    /* A long piece needs 16 bytes of heap and four 32-bit links for each of its bytes. */
    size_t capacity = scratch->capacity < SIZE_MAX / 128 ? 2 * scratch->capacity : n;
    if (capacity < n) capacity = n;
    if (capacity < 1024) capacity = 1024;
    uint64_t bytes;
    void *block = pf_mul_u64(capacity, 32, &bytes) && bytes <= SIZE_MAX ? pf_alloc((size_t)bytes) : NULL;
    if (!block) {
        return pf_fail(err, PF_ERR_MEMORY, "out of memory for tokenizing a piece of %" PRIu64 " bytes",
                       (uint64_t)n);
    }
    pf_free(scratch->block);
    scratch->block = block;
    scratch->capacity = capacity;
    return PF_OK;
}

pf_status pf_bpe_encode(const pf_bpe *bpe, const uint8_t *bytes, size_t n, pf_bpe_scratch *scratch, int64_t *n_tokens,
                        pf_error *err) {
    pf_status status = reserve(scratch, n, err);
    if (status != PF_OK) return status;
    uint64_t *heap = scratch->block;
    int32_t *words = (int32_t *)(heap + 2 * scratch->capacity);
    scratch->tokens = words;
    if (n <= SHORT_PIECE) {
        *n_tokens = (int64_t)encode_short(bpe, bytes, n, scratch->tokens);
    } else {
        size_t room = scratch->capacity;
        links list = {words, words + room, words + 2 * room, (uint32_t *)(words + 3 * room), heap, 0};
        *n_tokens = (int64_t)encode_long(bpe, bytes, (int32_t)n, &list);
    }
    return PF_OK;
}

void pf_bpe_scratch_free(pf_bpe_scratch *scratch) { pf_free(scratch->block); }
