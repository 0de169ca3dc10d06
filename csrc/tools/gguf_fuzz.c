/* libFuzzer target of the GGUF parser, and the exerciser of tests/format's mutations. From the repository root:
 *
 *   clang -g -O1 -std=c11 -fsanitize=fuzzer,address,undefined -DPF_STATIC -Icsrc -Icsrc/include \
 *     csrc/base/{status,memory,file}.c csrc/format/{dtypes,gguf*}.c -lm -o gguf_fuzz && ./gguf_fuzz SEEDS
 *
 * SEEDS is a folder with some small GGUF files. No part of the library. */
#include "format/gguf_internal.h"

#include "base/memory.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(condition)                    \
    do {                                      \
        if (!(condition)) abort();            \
    } while (0)

static volatile uint64_t sink; /* keeps the reads */

static void touch(const void *data, uint64_t size) {
    const uint8_t *bytes = data;
    if (size > 0) sink += (uint64_t)bytes[0] + bytes[size - 1];
}

static void read_value(const pf_gguf *gguf, const pf_gguf_value *value) {
    char *key = pf_calloc(1, (size_t)value->key.len + 1);
    if (!key) return;
    memcpy(key, value->key.data, (size_t)value->key.len);
    uint32_t u;
    int64_t i;
    float f;
    double d;
    bool b;
    pf_gguf_string s;
    uint64_t n = 0;
    REQUIRE(pf_gguf_has(gguf, key));
    if (pf_gguf_get_u32(gguf, key, &u)) sink += u;
    if (pf_gguf_get_f32(gguf, key, &f)) sink += f > 0;
    if (pf_gguf_get_number(gguf, key, &d)) sink += d > 0;
    if (pf_gguf_get_bool(gguf, key, &b)) sink += b;
    if (pf_gguf_get_string(gguf, key, &s)) touch(s.data, s.len);
    if (pf_gguf_array_len(gguf, key, &n)) {
        const uint64_t at[] = {0, n / 2, n - 1, n, UINT64_MAX};
        for (size_t k = 0; k < sizeof at / sizeof *at; k++) {
            bool is_int = pf_gguf_array_i64(gguf, key, at[k], &i), is_float = pf_gguf_array_f32(gguf, key, at[k], &f);
            REQUIRE(!(is_int && is_float) && (at[k] < n || (!is_int && !is_float)));
        }
        pf_gguf_string *strings = pf_calloc((size_t)n, sizeof *strings);
        if (strings && pf_gguf_array_strings(gguf, key, strings, n)) {
            for (uint64_t k = 0; k < n; k++) touch(strings[k].data, strings[k].len);
        }
        pf_free(strings);
    }
    pf_free(key);
}

static void read_tensor(const pf_gguf *gguf, uint64_t index, const uint8_t *data, size_t size) {
    const pf_gguf_tensor *tensor = pf_gguf_tensor_at(gguf, index);
    char name[128] = {0};
    REQUIRE(tensor && tensor->name.len < sizeof name);
    memcpy(name, tensor->name.data, (size_t)tensor->name.len);
    REQUIRE(pf_gguf_find_tensor(gguf, name) == tensor);
    for (uint32_t i = 0; i < PF_GGUF_MAX_DIMS; i++) REQUIRE(tensor->ne[i] >= 1);
    if (!tensor->data) return;
    REQUIRE(tensor->data >= data && tensor->bytes > 0 && tensor->bytes <= (uint64_t)(data + size - tensor->data));
    touch(tensor->data, tensor->bytes);
    for (uint64_t i = 0; i < index && i < 16; i++) {
        const pf_gguf_tensor *other = pf_gguf_tensor_at(gguf, i);
        if (!other->data) continue;
        REQUIRE(other->data + other->bytes <= tensor->data || tensor->data + tensor->bytes <= other->data);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    pf_gguf *gguf = NULL;
    pf_error err;
    pf_status status = pf_gguf_parse(data, size, &gguf, &err);
    if (status != PF_OK) {
        bool expected = status == PF_ERR_FORMAT || status == PF_ERR_UNSUPPORTED || status == PF_ERR_MEMORY;
        REQUIRE(expected && err.code == status && err.message[0] && !gguf);
        return 0;
    }
    for (uint64_t i = 0; i < gguf->values.count; i++) {
        read_value(gguf, (const pf_gguf_value *)(const void *)gguf->values.items + i);
    }
    for (uint64_t i = 0; i < pf_gguf_n_tensors(gguf); i++) read_tensor(gguf, i, data, size);
    REQUIRE(pf_gguf_tensor_at(gguf, pf_gguf_n_tensors(gguf)) == NULL && pf_gguf_file_bytes(gguf) == size);
    sink += pf_gguf_fingerprint(gguf);
    pf_gguf_close(gguf);
    return 0;
}
