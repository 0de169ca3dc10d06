/* GGUF: bytes to a validated directory of key/value pairs and tensors. Nothing is copied; everything points into the
 * mapped files. Knows the container, not the model: types outside types.h are kept with data == NULL, and those that
 * nobody computes with are refused by whoever asks for that tensor.
 *
 * What a file cannot do: count limits come from the file's size before anything is allocated, every offset is checked
 * as n <= remaining, strings are not assumed to end with zero, tensors may neither overlap nor leave their file, and
 * keys and tensor names are unique over all shards. */
#ifndef PF_FORMAT_GGUF_H
#define PF_FORMAT_GGUF_H

#include "base/file.h"
#include "base/status.h"
#include "format/dtypes.h"

#include <stdbool.h>
#include <stdint.h>

#define PF_GGUF_MAX_DIMS 4

typedef enum pf_gguf_type {
    PF_GGUF_U8 = 0, PF_GGUF_I8 = 1, PF_GGUF_U16 = 2, PF_GGUF_I16 = 3, PF_GGUF_U32 = 4, PF_GGUF_I32 = 5,
    PF_GGUF_F32 = 6, PF_GGUF_BOOL = 7, PF_GGUF_STRING = 8, PF_GGUF_ARRAY = 9, PF_GGUF_U64 = 10,
    PF_GGUF_I64 = 11, PF_GGUF_F64 = 12,
} pf_gguf_type;

typedef struct pf_gguf_string {
    const char *data; /* not zero-terminated */
    uint64_t len;
} pf_gguf_string;

typedef struct pf_gguf_tensor {
    pf_gguf_string name;
    uint32_t type;                    /* ggml type id as in the file */
    uint32_t n_dims;
    uint64_t ne[PF_GGUF_MAX_DIMS];    /* ne[0] is contiguous; unused entries are 1 */
    const uint8_t *data;              /* NULL when the type is not in types.h, or the tensor was left out */
    uint64_t bytes;
} pf_gguf_tensor;

typedef struct pf_gguf pf_gguf;

/* Opens path and, when it is the first of several shards ("NAME-00001-of-00003.gguf" with split.count), the others. */
pf_status pf_gguf_open(const char *path, pf_gguf **out, pf_error *err);
/* The same on one shard already in memory; the bytes must outlive the directory. For tests and fuzzing. */
pf_status pf_gguf_parse(const uint8_t *data, uint64_t size, pf_gguf **out, pf_error *err);
/* From now on the tensors that the file at path holds are those, also of another type, in the place of the ones with their
 * names. FORMAT, and the directory is no longer to be used, where one has no such place: no tensor of its name and shape. */
pf_status pf_gguf_overlay(pf_gguf *gguf, const char *path, pf_error *err);
/* From now on the tensors that the caller does not need have neither data nor bytes: nothing reads or counts them. */
typedef bool (*pf_gguf_need_fn)(void *user, pf_gguf_string name);
void pf_gguf_leave_out(pf_gguf *gguf, pf_gguf_need_fn is_needed, void *user);
void pf_gguf_close(pf_gguf *gguf); /* NULL is allowed */

uint64_t pf_gguf_file_bytes(const pf_gguf *gguf); /* all shards */
uint64_t pf_gguf_n_tensors(const pf_gguf *gguf);
const pf_gguf_tensor *pf_gguf_tensor_at(const pf_gguf *gguf, uint64_t index);
const pf_gguf_tensor *pf_gguf_find_tensor(const pf_gguf *gguf, const char *name); /* NULL: absent; hashed */
/* A number that differs when the directory (keys, tensor names, types, shapes, offsets) differs: a session file's check
 * that it belongs to this model. */
uint64_t pf_gguf_fingerprint(const pf_gguf *gguf);

/* Typed access. Each returns false when the key is absent or of another kind; integers of any width and sign convert
 * when the value fits, float also from f64. number takes every integer and float, rounded where a double
 * cannot hold it. */
bool pf_gguf_has(const pf_gguf *gguf, const char *key);
bool pf_gguf_get_u32(const pf_gguf *gguf, const char *key, uint32_t *out);
bool pf_gguf_get_f32(const pf_gguf *gguf, const char *key, float *out);
bool pf_gguf_get_number(const pf_gguf *gguf, const char *key, double *out);
bool pf_gguf_get_bool(const pf_gguf *gguf, const char *key, bool *out);
bool pf_gguf_get_string(const pf_gguf *gguf, const char *key, pf_gguf_string *out);

/* Arrays of numbers and strings, element by element; elements have been bounds-checked when the file was opened. */
bool pf_gguf_array_len(const pf_gguf *gguf, const char *key, uint64_t *out); /* false: not an array */
bool pf_gguf_array_i64(const pf_gguf *gguf, const char *key, uint64_t index, int64_t *out);
bool pf_gguf_array_f32(const pf_gguf *gguf, const char *key, uint64_t index, float *out);
/* All strings of an array into out[len]; one pass, because strings have no fixed width. */
bool pf_gguf_array_strings(const pf_gguf *gguf, const char *key, pf_gguf_string *out, uint64_t capacity);

#endif
