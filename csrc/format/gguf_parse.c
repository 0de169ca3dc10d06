/* One shard of a GGUF file: header, key/value pairs, tensor entries.
 *
 *   "GGUF" | version u32 | n_tensors u64 | n_keys u64 | keys | tensor entries | padding | tensor data
 *   key:    name (u64 length, bytes) | type u32 | value; an array is element type u32 | count u64 | elements
 *   tensor: name | n_dims u32 | ne u64[n_dims] | ggml type u32 | offset u64, counted from the tensor data
 *
 * All numbers are little-endian. Source: the specification in ggml's docs/gguf.md. */
#include "format/gguf_internal.h"

#include "base/arith.h"
#include "base/memory.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define PF_GGUF_HEADER_BYTES 24
#define PF_GGUF_MIN_KEY_BYTES 14    /* a one-letter name with a one-byte value */
#define PF_GGUF_MIN_TENSOR_BYTES 33 /* a one-letter name with one dimension */
#define PF_GGUF_MAX_KEY_LEN 65535   /* both limits are the specification's */
#define PF_GGUF_MAX_NAME_LEN 64
#define PF_GGUF_DEFAULT_ALIGNMENT 32
#define PF_GGUF_MIN_ALIGNMENT 8

typedef struct pf_reader {
    pf_gguf *gguf;
    pf_error *err;
    const char *label;
    const uint8_t *data;
    uint64_t size;
    uint64_t pos;
    bool first;
    uint64_t n_keys;
    uint64_t n_tensors;
    /* Keys of this shard alone; key.data == NULL: absent. */
    pf_gguf_value alignment, split_no, split_count, split_tensors;
} pf_reader;

/* ---- Messages ---------------------------------------------------------------------------------------------- */

typedef struct pf_shown {
    char text[88];
} pf_shown;

/* A name from the file as it can stand in a message: printable, and no longer than it needs to be recognised. */
static const char *pf_show(pf_gguf_string name, pf_shown *out) {
    uint64_t most = sizeof out->text - 4;
    uint64_t n = name.len < most ? name.len : most;
    for (uint64_t i = 0; i < n; i++) {
        char c = name.data[i];
        out->text[i] = c >= ' ' && c <= '~' ? c : '?';
    }
    memcpy(out->text + n, name.len > most ? "..." : "", name.len > most ? 4 : 1);
    return out->text;
}

static pf_status pf_reader_fail(const pf_reader *reader, pf_status code, const char *format, ...) PF_PRINTF(3, 4);

static pf_status pf_reader_fail(const pf_reader *reader, pf_status code, const char *format, ...) {
    char line[400];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return pf_fail(reader->err, code, "%s: %s", reader->label, line);
}

static uint64_t pf_remaining(const pf_reader *reader) { return reader->size - reader->pos; }

static pf_status pf_truncated(const pf_reader *reader, const char *where) {
    return pf_reader_fail(reader, PF_ERR_FORMAT,
                          "truncated: the file has %" PRIu64 " bytes and ends within %s: download it again",
                          reader->size, where);
}

/* ---- Pieces ------------------------------------------------------------------------------------------------ */

static bool pf_take(pf_reader *reader, uint32_t bytes, uint64_t *out) {
    if (pf_remaining(reader) < bytes) return false;
    *out = pf_load_le(reader->data + reader->pos, bytes);
    reader->pos += bytes;
    return true;
}

static bool pf_take_u32(pf_reader *reader, uint32_t *out) {
    uint64_t value;
    if (!pf_take(reader, 4, &value)) return false;
    *out = (uint32_t)value;
    return true;
}

static pf_status pf_take_string(pf_reader *reader, const char *where, pf_gguf_string *out) {
    uint64_t len;
    if (!pf_take(reader, 8, &len)) return pf_truncated(reader, where);
    if (len > pf_remaining(reader)) {
        return pf_reader_fail(reader, PF_ERR_FORMAT,
                              "truncated or damaged: %s claims %" PRIu64 " bytes at byte %" PRIu64 " of %" PRIu64
                              ": download it again",
                              where, len, reader->pos, reader->size);
    }
    out->data = (const char *)(reader->data + reader->pos);
    out->len = len;
    reader->pos += len;
    return PF_OK;
}

/* Names are looked up as C strings and printed: no zero and no control characters. */
static pf_status pf_take_name(pf_reader *reader, const char *kind, uint64_t index, uint64_t most,
                              pf_gguf_string *out) {
    char where[64];
    pf_shown shown;
    snprintf(where, sizeof where, "the name of %s %" PRIu64, kind, index);
    pf_status status = pf_take_string(reader, where, out);
    if (status != PF_OK) return status;
    if (out->len == 0 || out->len > most) {
        return pf_reader_fail(reader, PF_ERR_FORMAT,
                              "damaged: %s has %" PRIu64 " bytes, 1 to %" PRIu64 " are allowed: convert it again",
                              where, out->len, most);
    }
    for (uint64_t i = 0; i < out->len; i++) {
        unsigned char c = (unsigned char)out->data[i];
        if (c < 0x20 || c == 0x7F) {
            return pf_reader_fail(reader, PF_ERR_FORMAT,
                                  "damaged: %s ('%s') holds a control character: download it again", where,
                                  pf_show(*out, &shown));
        }
    }
    return PF_OK;
}

/* ---- Header ------------------------------------------------------------------------------------------------ */

static pf_status pf_parse_version(pf_reader *reader, uint32_t version) {
    if (version == 2 || version == 3) return PF_OK;
    if ((version & 0xFFFF) == 0 && version != 0) {
        return pf_reader_fail(reader, PF_ERR_UNSUPPORTED,
                              "is a big-endian GGUF file: convert the model again as little-endian");
    }
    if (version < 2) {
        return pf_reader_fail(reader, PF_ERR_UNSUPPORTED,
                              "is GGUF version %" PRIu32 ", versions 2 and 3 are supported: convert the model again",
                              version);
    }
    return pf_reader_fail(reader, PF_ERR_UNSUPPORTED,
                          "is GGUF version %" PRIu32 ", versions 2 and 3 are supported: update pyflash", version);
}

/* Skips white space, and a byte order mark before it. */
static bool pf_looks_like_web_page(const pf_reader *reader) {
    static const char *const openings[] = {"<!doctype", "<html", "<head", "<?xml"};
    uint64_t at = reader->size >= 3 && memcmp(reader->data, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
    while (at < reader->size && strchr(" \t\r\n", reader->data[at]) != NULL && reader->data[at] != 0) at++;
    for (size_t i = 0; i < sizeof openings / sizeof openings[0]; i++) {
        uint64_t n = 0;
        while (openings[i][n] != '\0' && at + n < reader->size) {
            uint8_t c = reader->data[at + n];
            if (c >= 'A' && c <= 'Z') c = (uint8_t)(c + ('a' - 'A'));
            if (c != (uint8_t)openings[i][n]) break;
            n++;
        }
        if (openings[i][n] == '\0') return true;
    }
    return false;
}

/* What a file without GGUF's magic is, as far as its first bytes tell, and what to do then. */
static const char *pf_what_else(const pf_reader *reader) {
    static const struct {
        const char *bytes;
        size_t n;
        const char *what;
    } known[] = {
        {"PK\3\4", 4, " but a zip archive: unpack it, or convert a folder of safetensors files: pyflash convert"},
        {"\x1F\x8B", 2, " but a gzip archive: unpack it first"},
        {"\x28\xB5\x2F\xFD", 4, " but a zstd archive: unpack it first"},
        {"\xFD" "7zXZ", 5, " but an xz archive: unpack it first"},
        {"lmgg", 4, " but of a format before GGUF: get the model as GGUF"},
        {"fmgg", 4, " but of a format before GGUF: get the model as GGUF"},
        {"tjgg", 4, " but of a format before GGUF: get the model as GGUF"},
        {"PFSESSIO", 8, " but a saved session: open its model, and load it (pyflash run MODEL --session FILE)"},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (reader->size >= known[i].n && memcmp(reader->data, known[i].bytes, known[i].n) == 0) return known[i].what;
    }
    if (pf_looks_like_web_page(reader)) {
        return " but a web page: the download failed or led to a page, download the file itself";
    }
    if (reader->size > 9 && reader->data[8] == '{' && pf_load_u64(reader->data) <= reader->size - 8) {
        return " but a safetensors file: convert the folder that it is in: pyflash convert FOLDER OUT.gguf";
    }
    return ": give a .gguf file, or convert a checkpoint's folder: pyflash convert FOLDER OUT.gguf";
}

static pf_status pf_parse_header(pf_reader *reader) {
    static const char lfs[] = "version https://git-lfs";
    if (reader->size >= sizeof lfs - 1 && memcmp(reader->data, lfs, sizeof lfs - 1) == 0) {
        return pf_reader_fail(reader, PF_ERR_FORMAT, "is a Git LFS pointer, not the model: run git lfs pull");
    }
    if (reader->size == 0) return pf_reader_fail(reader, PF_ERR_FORMAT, "is empty: download it again");
    uint64_t n_magic = reader->size < 4 ? reader->size : 4;
    if (memcmp(reader->data, "GGUF", (size_t)n_magic) != 0) {
        return pf_reader_fail(reader, PF_ERR_FORMAT, "is not a GGUF file%s", pf_what_else(reader));
    }
    if (reader->size < PF_GGUF_HEADER_BYTES) return pf_truncated(reader, "its header");
    reader->pos = PF_GGUF_HEADER_BYTES;
    pf_status status = pf_parse_version(reader, pf_load_u32(reader->data + 4));
    if (status != PF_OK) return status;
    reader->n_tensors = pf_load_u64(reader->data + 8);
    reader->n_keys = pf_load_u64(reader->data + 16);

    uint64_t left = pf_remaining(reader);
    bool fits = reader->n_keys <= left / PF_GGUF_MIN_KEY_BYTES &&
                reader->n_tensors <= (left - reader->n_keys * PF_GGUF_MIN_KEY_BYTES) / PF_GGUF_MIN_TENSOR_BYTES;
    /* Hash slots are 32 bits; a real file has some dozens of keys and thousands of tensors. */
    uint64_t most = UINT64_C(1) << 28;
    if (!fits || reader->n_keys > most || reader->n_tensors > most) {
        return pf_reader_fail(reader, PF_ERR_FORMAT,
                              "truncated or damaged: the file has %" PRIu64 " bytes but claims %" PRIu64 " keys and %"
                              PRIu64 " tensors: download it again",
                              reader->size, reader->n_keys, reader->n_tensors);
    }
    return PF_OK;
}

/* ---- Keys -------------------------------------------------------------------------------------------------- */

static pf_status pf_value_too_long(const pf_reader *reader, const pf_gguf_value *value) {
    pf_shown shown;
    return pf_reader_fail(reader, PF_ERR_FORMAT,
                          "truncated or damaged: key '%s' needs more bytes than the %" PRIu64
                          " that are left: download it again",
                          pf_show(value->key, &shown), pf_remaining(reader));
}

/* value->count elements of type value->elem. */
static pf_status pf_parse_elements(pf_reader *reader, pf_gguf_value *value) {
    pf_shown shown;
    uint32_t width = pf_gguf_width(value->elem);
    value->data = reader->data + reader->pos;
    if (value->elem == PF_GGUF_STRING) {
        if (value->count > pf_remaining(reader) / 8) return pf_value_too_long(reader, value);
        for (uint64_t i = 0; i < value->count; i++) {
            if (pf_remaining(reader) < 8) return pf_value_too_long(reader, value);
            uint64_t len = pf_load_u64(reader->data + reader->pos);
            reader->pos += 8;
            if (len > pf_remaining(reader)) return pf_value_too_long(reader, value);
            reader->pos += len;
        }
        return PF_OK;
    }
    if (value->elem == PF_GGUF_ARRAY) {
        return pf_reader_fail(reader, PF_ERR_UNSUPPORTED,
                              "key '%s' is an array of arrays, which is not supported: convert the model again",
                              pf_show(value->key, &shown));
    }
    if (width == 0) {
        return pf_reader_fail(reader, PF_ERR_FORMAT,
                              "damaged: key '%s' has the unknown type %" PRIu32 ": download it again",
                              pf_show(value->key, &shown), value->elem);
    }
    if (value->count > pf_remaining(reader) / width) return pf_value_too_long(reader, value);
    for (uint64_t i = 0; value->elem == PF_GGUF_BOOL && i < value->count; i++) {
        if (value->data[i] > 1) {
            return pf_reader_fail(reader, PF_ERR_FORMAT,
                                  "damaged: key '%s' is a bool of value %u: download it again",
                                  pf_show(value->key, &shown), value->data[i]);
        }
    }
    reader->pos += value->count * width;
    return PF_OK;
}

/* Where this shard's own copy of the key goes, or NULL for every other key. */
static pf_gguf_value *pf_own_key(pf_reader *reader, pf_gguf_string key) {
    static const struct {
        const char *name;
        size_t offset;
    } own[] = {
        {"general.alignment", offsetof(pf_reader, alignment)},
        {"split.no", offsetof(pf_reader, split_no)},
        {"split.count", offsetof(pf_reader, split_count)},
        {"split.tensors.count", offsetof(pf_reader, split_tensors)},
    };
    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++) {
        pf_gguf_string name = {own[i].name, strlen(own[i].name)};
        if (pf_gguf_string_equal(name, key)) return (pf_gguf_value *)((unsigned char *)reader + own[i].offset);
    }
    return NULL;
}

static pf_status pf_parse_key(pf_reader *reader, uint64_t index) {
    pf_gguf_value value = {.count = 1};
    pf_shown shown;
    pf_status status = pf_take_name(reader, "key", index, PF_GGUF_MAX_KEY_LEN, &value.key);
    if (status != PF_OK) return status;
    if (!pf_take_u32(reader, &value.type)) return pf_truncated(reader, "its keys");
    value.elem = value.type;
    if (value.type == PF_GGUF_ARRAY) {
        if (!pf_take_u32(reader, &value.elem) || !pf_take(reader, 8, &value.count)) {
            return pf_truncated(reader, "its keys");
        }
    }
    status = pf_parse_elements(reader, &value);
    if (status != PF_OK) return status;

    pf_gguf_value *own = pf_own_key(reader, value.key);
    bool shared = reader->first || !own;
    if ((own && own->key.data) || (shared && pf_gguf_table_find(&reader->gguf->values, value.key))) {
        return pf_reader_fail(reader, PF_ERR_FORMAT, "damaged: key '%s' is there twice: convert the model again",
                              pf_show(value.key, &shown));
    }
    if (own) *own = value;
    if (shared && !pf_gguf_table_add(&reader->gguf->values, &value)) {
        return pf_reader_fail(reader, PF_ERR_MEMORY, "out of memory while reading its keys");
    }
    return PF_OK;
}

/* A whole number among this shard's own keys; `otherwise` when the key is absent. */
static pf_status pf_own_number(const pf_reader *reader, const pf_gguf_value *value, uint64_t otherwise, uint64_t *out) {
    pf_shown shown;
    int64_t number;
    *out = otherwise;
    if (!value->key.data) return PF_OK;
    if (!pf_gguf_read_int(value->type, value->data, &number) || number < 0) {
        return pf_reader_fail(reader, PF_ERR_FORMAT,
                              "damaged: key '%s' must be a whole number: convert the model again",
                              pf_show(value->key, &shown));
    }
    *out = (uint64_t)number;
    return PF_OK;
}

static pf_status pf_read_own_keys(const pf_reader *reader, uint64_t *alignment, pf_gguf_split *split) {
    pf_status status = pf_own_number(reader, &reader->alignment, PF_GGUF_DEFAULT_ALIGNMENT, alignment);
    if (status == PF_OK) status = pf_own_number(reader, &reader->split_no, 0, &split->no);
    if (status == PF_OK) status = pf_own_number(reader, &reader->split_count, 0, &split->count);
    if (status == PF_OK) status = pf_own_number(reader, &reader->split_tensors, UINT64_MAX, &split->n_tensors);
    if (status != PF_OK) return status;
    uint64_t a = *alignment;
    if (a < PF_GGUF_MIN_ALIGNMENT || (a & (a - 1)) != 0 || a > UINT32_MAX) {
        return pf_reader_fail(reader, PF_ERR_FORMAT,
                              "damaged: general.alignment is %" PRIu64
                              ", it must be a power of two from 8: convert the model again",
                              a);
    }
    if (split->no >= (split->count > 1 ? split->count : 1)) {
        return pf_reader_fail(reader, PF_ERR_FORMAT,
                              "damaged: split.no is %" PRIu64 " of split.count %" PRIu64 ": download it again",
                              split->no, split->count);
    }
    return PF_OK;
}

/* ---- Tensors ----------------------------------------------------------------------------------------------- */

typedef struct pf_span {
    uint64_t offset; /* from the tensor data */
    const pf_gguf_tensor *tensor;
} pf_span;

static int pf_span_order(const void *a, const void *b) {
    uint64_t x = ((const pf_span *)a)->offset, y = ((const pf_span *)b)->offset;
    return (x > y) - (x < y);
}

/* Bytes of a tensor's rows. Types that are not in the table keep bytes == 0: their extent is unknown. */
static pf_status pf_measure_tensor(const pf_reader *reader, pf_gguf_tensor *tensor) {
    pf_shown shown;
    uint64_t budget = INT64_MAX; /* divided, so that nothing is multiplied before it is known to fit */
    uint64_t rows = 1;
    for (uint32_t i = 0; i < tensor->n_dims; i++) {
        uint64_t n = tensor->ne[i];
        if (n == 0 || n > budget) {
            return pf_reader_fail(reader, PF_ERR_FORMAT,
                                  "damaged: tensor '%s' has dimension %" PRIu32 " of %" PRIu64
                                  " elements%s: download it again",
                                  pf_show(tensor->name, &shown), i, n, n ? ", too many in all" : "");
        }
        budget /= n;
        if (i > 0) rows *= n;
    }
    const pf_dtype_info *info = pf_dtype_of_file(tensor->type);
    if (!info) return PF_OK;
    if (tensor->ne[0] % info->block_size != 0) {
        return pf_reader_fail(reader, PF_ERR_FORMAT,
                              "damaged: tensor '%s' is %s with rows of %" PRIu64 " elements, no multiple of %" PRIu32
                              ": convert the model again",
                              pf_show(tensor->name, &shown), info->name, tensor->ne[0], info->block_size);
    }
    uint64_t row_bytes;
    if (!pf_dtype_row_bytes(info->type, tensor->ne[0], &row_bytes) || !pf_mul_u64(row_bytes, rows, &tensor->bytes)) {
        return pf_reader_fail(reader, PF_ERR_FORMAT, "damaged: tensor '%s' is too large to exist: download it again",
                              pf_show(tensor->name, &shown));
    }
    return PF_OK;
}

static pf_status pf_parse_tensor(pf_reader *reader, uint64_t index) {
    pf_gguf_entry entry = {.tensor = {.ne = {1, 1, 1, 1}}};
    pf_gguf_tensor *tensor = &entry.tensor;
    pf_shown shown;
    pf_status status = pf_take_name(reader, "tensor", index, PF_GGUF_MAX_NAME_LEN, &tensor->name);
    if (status != PF_OK) return status;
    if (!pf_take_u32(reader, &tensor->n_dims)) return pf_truncated(reader, "its tensor list");
    if (tensor->n_dims < 1 || tensor->n_dims > PF_GGUF_MAX_DIMS) {
        return pf_reader_fail(reader, PF_ERR_FORMAT,
                              "damaged: tensor '%s' has %" PRIu32 " dimensions, 1 to 4 are allowed: download it again",
                              pf_show(tensor->name, &shown), tensor->n_dims);
    }
    for (uint32_t i = 0; i < tensor->n_dims; i++) {
        if (!pf_take(reader, 8, &tensor->ne[i])) return pf_truncated(reader, "its tensor list");
    }
    if (!pf_take_u32(reader, &tensor->type) || !pf_take(reader, 8, &entry.offset)) {
        return pf_truncated(reader, "its tensor list");
    }
    status = pf_measure_tensor(reader, tensor);
    if (status != PF_OK) return status;
    if (pf_gguf_table_find(&reader->gguf->tensors, tensor->name)) {
        return pf_reader_fail(reader, PF_ERR_FORMAT, "damaged: tensor '%s' is there twice: convert the model again",
                              pf_show(tensor->name, &shown));
    }
    if (!pf_gguf_table_add(&reader->gguf->tensors, &entry)) {
        return pf_reader_fail(reader, PF_ERR_MEMORY, "out of memory while reading its tensor list");
    }
    return PF_OK;
}

/* Bytes of the whole file, by the entries from `first` on: at least, where a type is unknown. */
static uint64_t pf_whole_size(const pf_reader *reader, uint64_t data_start, uint64_t first) {
    const pf_gguf_table *table = &reader->gguf->tensors;
    uint64_t whole = 0;
    for (uint64_t i = first; i < table->count; i++) {
        const pf_gguf_entry *entry = (const pf_gguf_entry *)(const void *)table->items + i;
        uint64_t end;
        if (pf_add_u64(data_start, entry->offset, &end) && pf_add_u64(end, entry->tensor.bytes, &end) && end > whole) {
            whole = end;
        }
    }
    return whole;
}

/* Checks that the tensor lies within the file and points it at its bytes. `first`: the index of this shard's first
 * entry. */
static pf_status pf_place_tensor(const pf_reader *reader, uint64_t alignment, uint64_t data_start, uint64_t first,
                                 pf_gguf_entry *entry) {
    pf_gguf_tensor *tensor = &entry->tensor;
    pf_shown shown;
    if (entry->offset % alignment != 0) {
        return pf_reader_fail(reader, PF_ERR_FORMAT,
                              "damaged: tensor '%s' is at offset %" PRIu64 ", no multiple of the alignment %" PRIu64
                              ": convert the model again",
                              pf_show(tensor->name, &shown), entry->offset, alignment);
    }
    bool known = tensor->bytes > 0;
    uint64_t begin, needed;
    if (!pf_add_u64(data_start, entry->offset, &begin) || !pf_add_u64(begin, known ? tensor->bytes : 1, &needed)) {
        return pf_reader_fail(reader, PF_ERR_FORMAT,
                              "damaged: tensor '%s' has the impossible offset %" PRIu64 ": download it again",
                              pf_show(tensor->name, &shown), entry->offset);
    }
    if (needed > reader->size) {
        uint64_t whole = pf_whole_size(reader, data_start, first);
        return pf_reader_fail(reader, PF_ERR_FORMAT,
                              "truncated: it has %" PRIu64 " of %s%" PRIu64
                              " bytes, tensor '%s' needs more: download it again",
                              reader->size, known ? "" : "at least ", whole > needed ? whole : needed,
                              pf_show(tensor->name, &shown));
    }
    if (known) tensor->data = reader->data + begin;
    return PF_OK;
}

/* No two tensors share a byte. One of unknown extent counts as one byte. llama-modchip's own type has NVFP4's number with
 * blocks of another size, which the room up to the next tensor tells: writers leave none between. */
static pf_status pf_check_overlap(const pf_reader *reader, uint64_t alignment, pf_span *spans, uint64_t n) {
    bool sorted = true;
    for (uint64_t i = 1; i < n && sorted; i++) sorted = spans[i - 1].offset <= spans[i].offset;
    if (!sorted) qsort(spans, (size_t)n, sizeof *spans, pf_span_order);
    for (uint64_t i = 1; i < n; i++) {
        const pf_gguf_tensor *before = spans[i - 1].tensor;
        uint64_t gap = spans[i].offset - spans[i - 1].offset, padded;
        if (before->type == PF_NVFP4 && (!pf_align_u64(before->bytes, alignment, &padded) || gap != padded)) {
            pf_shown shown;
            return pf_reader_fail(reader, PF_ERR_UNSUPPORTED,
                                  "tensor '%s' has the number of NVFP4 (40) and another size: llama-modchip's own type, "
                                  "which only that reads; take a file in llama.cpp's types",
                                  pf_show(before->name, &shown));
        }
        if (gap < (before->bytes ? before->bytes : 1)) {
            pf_shown shown[2];
            return pf_reader_fail(reader, PF_ERR_FORMAT,
                                  "damaged: tensors '%s' and '%s' overlap: convert the model again",
                                  pf_show(before->name, &shown[0]),
                                  pf_show(spans[i].tensor->name, &shown[1]));
        }
    }
    return PF_OK;
}

static pf_status pf_parse_tensors(pf_reader *reader, uint64_t alignment, pf_gguf_shard *shard) {
    uint64_t n = reader->n_tensors, before = reader->gguf->tensors.count, data_start = 0;
    for (uint64_t i = 0; i < n; i++) {
        pf_status status = pf_parse_tensor(reader, i);
        if (status != PF_OK) return status;
    }
    shard->directory_bytes = reader->pos;
    if (!pf_align_u64(reader->pos, alignment, &data_start)) {
        return pf_truncated(reader, "the padding before its tensors");
    }
    pf_span *spans = pf_calloc((size_t)n, sizeof *spans);
    if (!spans) return pf_reader_fail(reader, PF_ERR_MEMORY, "out of memory while reading its tensor list");
    pf_status status = PF_OK;
    for (uint64_t i = 0; i < n && status == PF_OK; i++) {
        pf_gguf_entry *entry = (pf_gguf_entry *)(void *)reader->gguf->tensors.items + before + i;
        status = pf_place_tensor(reader, alignment, data_start, before, entry);
        spans[i] = (pf_span){entry->offset, &entry->tensor};
    }
    if (status == PF_OK) status = pf_check_overlap(reader, alignment, spans, n);
    pf_free(spans);
    return status;
}

pf_status pf_gguf_parse_shard(pf_gguf *gguf, pf_gguf_shard *shard, bool first, const char *label, pf_gguf_split *split,
                              pf_error *err) {
    pf_reader reader = {
        .gguf = gguf, .err = err, .label = label, .data = shard->data, .size = shard->size, .first = first};
    uint64_t alignment = 0;
    pf_status status = pf_parse_header(&reader);
    for (uint64_t i = 0; status == PF_OK && i < reader.n_keys; i++) status = pf_parse_key(&reader, i);
    if (status == PF_OK) status = pf_read_own_keys(&reader, &alignment, split);
    if (status == PF_OK) status = pf_parse_tensors(&reader, alignment, shard);
    return status;
}
