/* Unit tests of the element types and of typed access to a GGUF directory, on files built in memory. Which bad files
 * are refused, and how, is in test_bad_gguf.py. */
#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#  define _GNU_SOURCE
#endif

#include "units.h"

#include "format/dtypes.h"
#include "format/gguf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if !defined(_WIN32)
#  include <sys/mman.h>
#  include <unistd.h>
#endif

/* ---- Builder ----------------------------------------------------------------------------------------------- */

typedef struct bytes {
    uint8_t data[1 << 16];
    size_t size;
} bytes;

static void put(bytes *b, const void *data, size_t size) {
    memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void put_int(bytes *b, uint64_t value, size_t size) {
    for (size_t i = 0; i < size; i++) b->data[b->size++] = (uint8_t)(value >> (8 * i));
}

static void put_string(bytes *b, const char *text) {
    put_int(b, strlen(text), 8);
    put(b, text, strlen(text));
}

static void put_key(bytes *b, const char *key, uint32_t type) {
    put_string(b, key);
    put_int(b, type, 4);
}

static void put_array(bytes *b, const char *key, uint32_t type, uint64_t count) {
    put_key(b, key, PF_GGUF_ARRAY);
    put_int(b, type, 4);
    put_int(b, count, 8);
}

static void put_f32(bytes *b, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    put_int(b, bits, 4);
}

static void put_f64(bytes *b, double value) {
    uint64_t bits;
    memcpy(&bits, &value, 8);
    put_int(b, bits, 8);
}

static void put_header(bytes *b, uint64_t n_tensors, uint64_t n_keys) {
    b->size = 0;
    put(b, "GGUF", 4);
    put_int(b, 3, 4);
    put_int(b, n_tensors, 8);
    put_int(b, n_keys, 8);
}

static void put_tensor(bytes *b, const char *name, uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset) {
    put_string(b, name);
    put_int(b, 2, 4);
    put_int(b, ne0, 8);
    put_int(b, ne1, 8);
    put_int(b, type, 4);
    put_int(b, offset, 8);
}

static void put_padding(bytes *b, size_t multiple) {
    while (b->size % multiple) put_int(b, 0, 1);
}

/* ---- Tests ------------------------------------------------------------------------------------------------- */

static void test_dtypes(void) {
    uint64_t out = 5;
    char name[PF_DTYPE_NAME_BYTES];
    CHECK(pf_dtype_lookup(145) == NULL && strcmp(pf_dtype_name(145, name), "ik_llama.cpp's IQ2_KS (145)") == 0);
    CHECK(pf_dtype_lookup(77) == NULL && strcmp(pf_dtype_name(77, name), "77 (unknown)") == 0);
    CHECK(strcmp(pf_dtype_name(39, name), "MXFP4") == 0 && strcmp(pf_dtype_name(12, name), "Q4_K") == 0);
    CHECK(strcmp(pf_dtype_name(31, name), "Q4_0_4_4") == 0 && pf_dtype_lookup(31) == NULL); /* removed */
    CHECK(pf_dtype_of_file(PF_FP8) == NULL && pf_dtype_lookup(PF_FP8) != NULL);
    CHECK(strcmp(pf_dtype_name(PF_FP8, name), "1000 (unknown)") == 0); /* never a file's */
    for (int32_t i = 0; i < PF_W_COUNT; i++) CHECK(pf_weight_kind(pf_dtype_at(i)->type) == i);
    CHECK(pf_weight_kind(PF_Q4_K) == -1 && pf_weight_kind(PF_I32) == -1);
    CHECK(pf_dtype_row_bytes(PF_MXFP4, 4096, &out) && out == 4096 / 32 * 17);
    CHECK(pf_dtype_row_bytes(PF_Q8_0, 64, &out) && out == 68);
    CHECK(pf_dtype_row_bytes(PF_BF16, 3, &out) && out == 6);
    CHECK(pf_dtype_row_bytes(PF_I64, 3, &out) && out == 24);
    CHECK(!pf_dtype_row_bytes(PF_Q8_0, 33, &out) && out == 24);
    CHECK(!pf_dtype_row_bytes(PF_F32, UINT64_MAX / 2, &out) && out == 24);
    CHECK(pf_dtype_row_bytes(PF_Q4_K, 512, &out) && out == 288);
    CHECK(!pf_dtype_row_bytes(PF_Q4_K, 128, &out) && !pf_dtype_row_bytes((pf_dtype)31, 32, &out) && out == 288);
}

static void test_scalars(void) {
    bytes *b = calloc(1, sizeof *b);
    put_header(b, 0, 16);
    put_key(b, "u8", PF_GGUF_U8), put_int(b, 200, 1);
    put_key(b, "i8", PF_GGUF_I8), put_int(b, (uint64_t)-5, 1);
    put_key(b, "u16", PF_GGUF_U16), put_int(b, 60000, 2);
    put_key(b, "i16", PF_GGUF_I16), put_int(b, 300, 2);
    put_key(b, "u32", PF_GGUF_U32), put_int(b, 4000000000u, 4);
    put_key(b, "i32", PF_GGUF_I32), put_int(b, 7, 4);
    put_key(b, "i32-", PF_GGUF_I32), put_int(b, (uint64_t)-7, 4);
    put_key(b, "u64", PF_GGUF_U64), put_int(b, 4294967295u, 8);
    put_key(b, "u64+", PF_GGUF_U64), put_int(b, UINT64_MAX, 8);
    put_key(b, "i64", PF_GGUF_I64), put_int(b, UINT64_C(1) << 32, 8);
    put_key(b, "f32", PF_GGUF_F32), put_f32(b, 1.5f);
    put_key(b, "f64", PF_GGUF_F64), put_f64(b, 0.25);
    put_key(b, "f64+", PF_GGUF_F64), put_f64(b, 1e300);
    put_key(b, "bool", PF_GGUF_BOOL), put_int(b, 1, 1);
    put_key(b, "text", PF_GGUF_STRING), put_string(b, "deepseek4");
    put_key(b, "none", PF_GGUF_STRING), put_string(b, "");

    pf_gguf *gguf = NULL;
    pf_error err = {0};
    CHECK(pf_gguf_parse(b->data, b->size, &gguf, &err) == PF_OK);
    uint32_t u = 1;
    float f = 1;
    bool flag = false;
    pf_gguf_string s = {0};
    CHECK(pf_gguf_get_u32(gguf, "u8", &u) && u == 200);
    CHECK(pf_gguf_get_u32(gguf, "u16", &u) && u == 60000);
    CHECK(pf_gguf_get_u32(gguf, "i16", &u) && u == 300);
    CHECK(pf_gguf_get_u32(gguf, "u32", &u) && u == 4000000000u);
    CHECK(pf_gguf_get_u32(gguf, "i32", &u) && u == 7);
    CHECK(pf_gguf_get_u32(gguf, "u64", &u) && u == UINT32_MAX);
    u = 9;
    const char *refused[] = {"i8", "i32-", "u64+", "i64", "f32", "bool", "text", "absent", "u3", "u322", ""};
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        CHECK(!pf_gguf_get_u32(gguf, refused[i], &u) && u == 9);
    }
    CHECK(pf_gguf_get_f32(gguf, "f32", &f) && f == 1.5f);
    CHECK(pf_gguf_get_f32(gguf, "f64", &f) && f == 0.25f);
    CHECK(!pf_gguf_get_f32(gguf, "f64+", &f) && !pf_gguf_get_f32(gguf, "u8", &f) && f == 0.25f);
    const struct { const char *key; double value; } numbers[] = {
        {"u8", 200}, {"i8", -5}, {"i32-", -7}, {"u64", 4294967295.0}, {"u64+", 18446744073709551616.0},
        {"i64", 4294967296.0}, {"f32", 1.5}, {"f64", 0.25}, {"f64+", 1e300},
    };
    double number = 9;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        CHECK(pf_gguf_get_number(gguf, numbers[i].key, &number) && number == numbers[i].value);
    }
    CHECK(!pf_gguf_get_number(gguf, "bool", &number) && !pf_gguf_get_number(gguf, "text", &number) && number == 1e300);
    CHECK(!pf_gguf_get_number(gguf, "absent", &number) && number == 1e300);
    CHECK(pf_gguf_get_bool(gguf, "bool", &flag) && flag && !pf_gguf_get_bool(gguf, "u8", &flag));
    CHECK(pf_gguf_get_string(gguf, "text", &s) && s.len == 9 && memcmp(s.data, "deepseek4", 9) == 0);
    CHECK(pf_gguf_get_string(gguf, "none", &s) && s.len == 0);
    CHECK(!pf_gguf_get_string(gguf, "u8", &s) && pf_gguf_has(gguf, "text") && !pf_gguf_has(gguf, "tex"));
    uint64_t n = 5;
    CHECK(!pf_gguf_array_len(gguf, "text", &n) && n == 5);
    CHECK(pf_gguf_n_tensors(gguf) == 0 && pf_gguf_tensor_at(gguf, 0) == NULL);
    CHECK(pf_gguf_find_tensor(gguf, "text") == NULL && pf_gguf_file_bytes(gguf) == b->size);
    pf_gguf_close(gguf);
    pf_gguf_close(NULL);
    free(b);
}

static void test_arrays(void) {
    bytes *b = calloc(1, sizeof *b);
    put_header(b, 0, 6);
    put_array(b, "i32", PF_GGUF_I32, 3), put_int(b, 0, 4), put_int(b, 4, 4), put_int(b, (uint64_t)-128, 4);
    put_array(b, "u16", PF_GGUF_U16, 1), put_int(b, 65535, 2);
    put_array(b, "u64", PF_GGUF_U64, 2), put_int(b, INT64_MAX, 8), put_int(b, UINT64_MAX, 8);
    put_array(b, "f32", PF_GGUF_F32, 2), put_f32(b, 10), put_f32(b, -2.5f);
    put_array(b, "text", PF_GGUF_STRING, 3), put_string(b, "a"), put_string(b, ""), put_string(b, "\xC4\xA0the");
    put_array(b, "empty", PF_GGUF_STRING, 0);

    pf_gguf *gguf = NULL;
    CHECK(pf_gguf_parse(b->data, b->size, &gguf, NULL) == PF_OK);
    int64_t i = 1;
    float f = 1;
    uint64_t n = 9;
    CHECK(pf_gguf_array_len(gguf, "i32", &n) && n == 3);
    CHECK(pf_gguf_array_i64(gguf, "i32", 1, &i) && i == 4 && pf_gguf_array_i64(gguf, "i32", 2, &i) && i == -128);
    CHECK(!pf_gguf_array_i64(gguf, "i32", 3, &i) && !pf_gguf_array_i64(gguf, "i32", UINT64_MAX, &i) && i == -128);
    CHECK(pf_gguf_array_i64(gguf, "u16", 0, &i) && i == 65535);
    CHECK(pf_gguf_array_i64(gguf, "u64", 0, &i) && i == INT64_MAX && !pf_gguf_array_i64(gguf, "u64", 1, &i));
    CHECK(!pf_gguf_array_i64(gguf, "f32", 0, &i) && !pf_gguf_array_i64(gguf, "text", 0, &i));
    CHECK(pf_gguf_array_f32(gguf, "f32", 1, &f) && f == -2.5f && !pf_gguf_array_f32(gguf, "f32", 2, &f));
    CHECK(!pf_gguf_array_f32(gguf, "i32", 0, &f) && !pf_gguf_get_f32(gguf, "f32", &f));
    double number = 9;
    CHECK(!pf_gguf_get_number(gguf, "f32", &number) && number == 9);
    pf_gguf_string s[3] = {{0}};
    CHECK(!pf_gguf_array_strings(gguf, "text", s, 2) && !pf_gguf_array_strings(gguf, "i32", s, 3) && !s[0].data);
    CHECK(pf_gguf_array_strings(gguf, "text", s, 3) && s[0].len == 1 && s[1].len == 0 && s[2].len == 5);
    CHECK(memcmp(s[2].data, "\xC4\xA0the", 5) == 0);
    CHECK(pf_gguf_array_strings(gguf, "empty", NULL, 0) && pf_gguf_array_len(gguf, "empty", &n) && n == 0);
    pf_gguf_close(gguf);
    free(b);
}

static size_t put_many_tensors(bytes *b, int count) {
    put_header(b, (uint64_t)count, 0);
    for (int i = 0; i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "blk.%d.weight", i);
        put_tensor(b, name, 2, 1, PF_F32, (uint64_t)i * 32);
    }
    put_padding(b, 32);
    size_t start = b->size;
    for (int i = 0; i < count; i++) {
        put_f32(b, (float)i);
        put_padding(b, 32);
    }
    return start;
}

static void test_tensors(void) {
    bytes *b = calloc(1, sizeof *b);
    size_t start = put_many_tensors(b, 500);
    pf_gguf *gguf = NULL;
    CHECK(pf_gguf_parse(b->data, b->size, &gguf, NULL) == PF_OK && pf_gguf_n_tensors(gguf) == 500);
    for (int i = 0; i < 500; i++) {
        char name[32];
        snprintf(name, sizeof name, "blk.%d.weight", i);
        const pf_gguf_tensor *t = pf_gguf_find_tensor(gguf, name);
        CHECK(t && t == pf_gguf_tensor_at(gguf, (uint64_t)i) && t->bytes == 8 && t->type == PF_F32);
        CHECK(t->n_dims == 2 && t->ne[0] == 2 && t->ne[1] == 1 && t->ne[2] == 1 && t->ne[3] == 1);
        CHECK(t->data == b->data + start + 32 * i);
    }
    CHECK(!pf_gguf_find_tensor(gguf, "blk.500.weight") && !pf_gguf_find_tensor(gguf, ""));
    CHECK(pf_gguf_tensor_at(gguf, 500) == NULL);
    uint64_t print = pf_gguf_fingerprint(gguf);
    pf_gguf_close(gguf);

    /* The payload is no part of the fingerprint, every byte of the directory is. */
    b->data[start] ^= 1;
    CHECK(pf_gguf_parse(b->data, b->size, &gguf, NULL) == PF_OK && pf_gguf_fingerprint(gguf) == print);
    pf_gguf_close(gguf);
    b->data[24 + 8] ^= 1; /* "clk.0.weight" */
    CHECK(pf_gguf_parse(b->data, b->size, &gguf, NULL) == PF_OK && pf_gguf_fingerprint(gguf) != print);
    pf_gguf_close(gguf);
    free(b);
}

/* A type this project does not know is listed without data; its neighbours are fine. */
static void test_unknown_types(void) {
    bytes *b = calloc(1, sizeof *b);
    put_header(b, 3, 0);
    put_tensor(b, "other", 256, 2, 139, 0);
    put_tensor(b, "f16", 8, 2, PF_F16, 288);
    put_tensor(b, "mark", 8, 2, PF_FP8, 320); /* this project's mark for FP8 is no type of a file */
    put_padding(b, 32);
    for (int i = 0; i < 336; i++) put_int(b, (uint64_t)i, 1);
    pf_gguf *gguf = NULL;
    CHECK(pf_gguf_parse(b->data, b->size, &gguf, NULL) == PF_OK);
    const pf_gguf_tensor *t = pf_gguf_find_tensor(gguf, "other");
    CHECK(t && t->data == NULL && t->type == 139 && t->ne[0] == 256);
    t = pf_gguf_find_tensor(gguf, "f16");
    CHECK(t && t->data && t->data[1] == (uint8_t)289 && t->bytes == 32);
    t = pf_gguf_find_tensor(gguf, "mark");
    CHECK(t && t->data == NULL);
    pf_gguf_close(gguf);
    free(b);
}

/* The tensor data lies in pages that may not be read: opening must not touch them. */
static void test_lazy(void) {
#if !defined(_WIN32)
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n_pages = 8;
    bytes *b = calloc(1, sizeof *b);
    put_header(b, 2, 1);
    put_key(b, "general.alignment", PF_GGUF_U32), put_int(b, page, 4);
    put_tensor(b, "a", page / 4, 3, PF_F32, 0);
    put_tensor(b, "b", page / 4, 4, PF_F32, 3 * page);
    uint8_t *memory = mmap(NULL, n_pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(memory, b->data, b->size);
    CHECK(b->size < page && mprotect(memory + page, (n_pages - 1) * page, PROT_NONE) == 0);
    pf_gguf *gguf = NULL;
    CHECK(pf_gguf_parse(memory, n_pages * page, &gguf, NULL) == PF_OK);
    CHECK(pf_gguf_find_tensor(gguf, "b")->data == memory + 4 * page);
    pf_gguf_close(gguf);
    munmap(memory, n_pages * page);
    free(b);
#endif
}

/* On failure nothing has changed. */
static void test_failure(const char *folder) {
    char path[4096];
    pf_error err = {0};
    pf_gguf *gguf = (pf_gguf *)&err;
    CHECK(pf_gguf_parse((const uint8_t *)"GGUF", 4, &gguf, &err) == PF_ERR_FORMAT && gguf == (pf_gguf *)&err);
    CHECK(pf_gguf_parse((const uint8_t *)"GGUF", 4, &gguf, NULL) == PF_ERR_FORMAT);
    CHECK(pf_gguf_parse(NULL, 0, &gguf, &err) == PF_ERR_FORMAT && strstr(err.message, "empty"));
    snprintf(path, sizeof path, "%s/absent.gguf", folder);
    CHECK(pf_gguf_open(path, &gguf, &err) == PF_ERR_FILE && strstr(err.message, path) && gguf == (pf_gguf *)&err);
}

void test_gguf(const char *folder) {
    test_dtypes();
    test_scalars();
    test_arrays();
    test_tensors();
    test_unknown_types();
    test_lazy();
    test_failure(folder);
}
