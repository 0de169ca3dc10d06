/* Opens GGUF files for test_bad_gguf.py:
 *   gguf_driver check FILE             the status and its message, or the directory, one line an entry
 *   gguf_driver prefixes FILE          the shortest prefix that is accepted, and how many are
 *   gguf_driver mutate FILE SEED N     N seeded mutations in memory; how many ended with which status
 *   gguf_driver shards FILE SHARD SEED N   the same on SHARD, written to disk, opening FILE */
#include "format/gguf_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- check ------------------------------------------------------------------------------------------------- */

static void print_tensors(const pf_gguf *gguf) {
    for (uint64_t i = 0; i < pf_gguf_n_tensors(gguf); i++) {
        const pf_gguf_tensor *t = pf_gguf_tensor_at(gguf, i);
        uint64_t hash = t->data ? pf_gguf_hash(t->data, t->bytes, 0) : 0;
        printf("tensor %.*s %" PRIu32, (int)t->name.len, t->name.data, t->type);
        printf(" %" PRIu64 ",%" PRIu64 ",%" PRIu64 ",%" PRIu64, t->ne[0], t->ne[1], t->ne[2], t->ne[3]);
        printf(" %" PRIu64 " %" PRIx64 "\n", t->bytes, hash);
    }
}

static int check(const char *path) {
    pf_gguf *gguf = NULL;
    pf_error err = {0};
    pf_status status = pf_gguf_open(path, &gguf, &err);
    printf("%d %s\n", status, err.message);
    if (status != PF_OK) return 0;
    printf("keys %" PRIu64 "\n", gguf->values.count);
    print_tensors(gguf);
    pf_gguf_close(gguf);
    return 0;
}

/* ---- mutations --------------------------------------------------------------------------------------------- */

typedef struct buffer {
    uint8_t *data;
    size_t size;
} buffer;

static buffer read_whole(const char *path) {
    buffer b = {NULL, 0};
    FILE *file = fopen(path, "rb");
    if (!file) exit(2);
    fseek(file, 0, SEEK_END);
    b.size = (size_t)ftell(file);
    b.data = malloc(b.size + 1);
    rewind(file);
    if (!b.data || fread(b.data, 1, b.size, file) != b.size) exit(2);
    fclose(file);
    return b;
}

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

static size_t below(uint64_t *state, size_t n) { return n ? (size_t)(next_random(state) % n) : 0; }

static void put_number(buffer *b, size_t at, uint64_t value, size_t width) {
    for (size_t i = 0; i < width && at + i < b->size; i++) b->data[at + i] = (uint8_t)(value >> (8 * i));
}

/* One change; the buffer has room for twice the size. */
static void mutate_once(buffer *b, uint64_t *state) {
    static const uint64_t special[] = {
        0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 255, 0x7FFF, 0xFFFF, 0x10000,
        0x7FFFFFFF, 0x80000000u, 0xFFFFFFFFu, UINT64_C(1) << 32, UINT64_C(1) << 61,
        INT64_MAX, UINT64_C(1) << 63, UINT64_MAX - 31, UINT64_MAX - 1, UINT64_MAX};
    size_t at = below(state, b->size), n = below(state, 24) + 1, to = below(state, b->size);
    if (b->size == 0) return;
    switch (below(state, 8)) {
    case 0: b->data[at] ^= (uint8_t)(1u << below(state, 8)); break;
    case 1: b->data[at] = (uint8_t)next_random(state); break;
    case 2: put_number(b, at, special[below(state, sizeof special / sizeof *special)], 8); break;
    case 3: put_number(b, at, special[below(state, sizeof special / sizeof *special)], 4); break;
    case 4: b->size = at; break;
    case 5: /* copy a piece over another place */
        if (at + n <= b->size && to + n <= b->size) memmove(b->data + to, b->data + at, n);
        break;
    case 6: /* remove a piece */
        if (at + n <= b->size) {
            memmove(b->data + at, b->data + at + n, b->size - at - n);
            b->size -= n;
        }
        break;
    default: /* insert a piece */
        if (at + n <= b->size) {
            memmove(b->data + at + n, b->data + at, b->size - at);
            b->size += n;
        }
        break;
    }
}

/* A mutated copy in a block of exactly its size, so that a read past the end is caught. */
static buffer mutate(const buffer *original, uint64_t *state) {
    buffer b = {malloc(2 * original->size + 256), original->size}, exact;
    if (!b.data) exit(2);
    memcpy(b.data, original->data, original->size);
    for (size_t k = below(state, 4) + 1; k > 0; k--) mutate_once(&b, state);
    exact.size = b.size;
    exact.data = malloc(b.size ? b.size : 1);
    if (!exact.data) exit(2);
    memcpy(exact.data, b.data, b.size);
    free(b.data);
    return exact;
}

static void print_counts(const uint64_t counts[16]) {
    for (int i = 0; i < 16; i++) printf("%" PRIu64 "%c", counts[i], i < 15 ? ' ' : '\n');
}

static int mutations(const char *path, uint64_t state, uint64_t n) {
    uint64_t counts[16] = {0};
    buffer original = read_whole(path);
    for (uint64_t i = 0; i < n; i++) {
        buffer b = mutate(&original, &state);
        pf_gguf *gguf = NULL;
        pf_status status = pf_gguf_parse(b.data, b.size, &gguf, NULL);
        pf_gguf_close(gguf);
        LLVMFuzzerTestOneInput(b.data, b.size);
        counts[status & 15]++;
        free(b.data);
    }
    print_counts(counts);
    free(original.data);
    return 0;
}

static int shard_mutations(const char *first, const char *path, uint64_t state, uint64_t n) {
    uint64_t counts[16] = {0};
    buffer original = read_whole(path);
    for (uint64_t i = 0; i < n; i++) {
        buffer b = mutate(&original, &state);
        FILE *file = fopen(path, "wb");
        if (!file || fwrite(b.data, 1, b.size, file) != b.size || fclose(file) != 0) return 2;
        pf_gguf *gguf = NULL;
        pf_status status = pf_gguf_open(first, &gguf, NULL);
        counts[status & 15]++;
        pf_gguf_close(gguf);
        free(b.data);
    }
    print_counts(counts);
    free(original.data);
    return 0;
}

static int prefixes(const char *path) {
    buffer original = read_whole(path);
    uint64_t accepted = 0, shortest = 0;
    for (size_t size = 0; size <= original.size; size++) {
        uint8_t *exact = malloc(size ? size : 1);
        pf_gguf *gguf = NULL;
        if (!exact) return 2;
        memcpy(exact, original.data, size);
        LLVMFuzzerTestOneInput(exact, size);
        if (pf_gguf_parse(exact, size, &gguf, NULL) == PF_OK) {
            if (accepted++ == 0) shortest = size;
        }
        pf_gguf_close(gguf);
        free(exact);
    }
    printf("%" PRIu64 " %" PRIu64 "\n", shortest, accepted);
    free(original.data);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "check") == 0) return check(argv[2]);
    if (argc == 3 && strcmp(argv[1], "prefixes") == 0) return prefixes(argv[2]);
    if (argc == 5 && strcmp(argv[1], "mutate") == 0) {
        return mutations(argv[2], strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10));
    }
    if (argc == 6 && strcmp(argv[1], "shards") == 0) {
        return shard_mutations(argv[2], argv[3], strtoull(argv[4], NULL, 10), strtoull(argv[5], NULL, 10));
    }
    fprintf(stderr, "usage: gguf_driver check FILE | prefixes FILE | mutate FILE SEED N | shards FIRST SHARD SEED N\n");
    return 2;
}
