/* Typed access to the keys and tensors of an open GGUF file. */
#include "format/gguf_internal.h"

#include <float.h>
#include <math.h>

static pf_gguf_string pf_from_c(const char *text) {
    pf_gguf_string string = {text, strlen(text)};
    return string;
}

static const pf_gguf_value *pf_find_value(const pf_gguf *gguf, const char *key) {
    return pf_gguf_table_find(&gguf->values, pf_from_c(key));
}

/* A value that is no array and of this type. */
static const pf_gguf_value *pf_find_scalar(const pf_gguf *gguf, const char *key, uint32_t type) {
    const pf_gguf_value *value = pf_find_value(gguf, key);
    return value && value->type == type ? value : NULL;
}

static const pf_gguf_value *pf_find_array(const pf_gguf *gguf, const char *key) {
    return pf_find_scalar(gguf, key, PF_GGUF_ARRAY);
}

/* ---- Elements ---------------------------------------------------------------------------------------------- */

uint32_t pf_gguf_width(uint32_t type) {
    switch (type) {
    case PF_GGUF_U8:
    case PF_GGUF_I8:
    case PF_GGUF_BOOL: return 1;
    case PF_GGUF_U16:
    case PF_GGUF_I16: return 2;
    case PF_GGUF_U32:
    case PF_GGUF_I32:
    case PF_GGUF_F32: return 4;
    case PF_GGUF_U64:
    case PF_GGUF_I64:
    case PF_GGUF_F64: return 8;
    default: return 0;
    }
}

bool pf_gguf_read_int(uint32_t type, const uint8_t *data, int64_t *out) {
    uint64_t bits;
    switch (type) {
    case PF_GGUF_U8:
    case PF_GGUF_U16:
    case PF_GGUF_U32:
    case PF_GGUF_U64:
        bits = pf_load_le(data, pf_gguf_width(type));
        if (bits > INT64_MAX) return false;
        *out = (int64_t)bits;
        return true;
    case PF_GGUF_I8: *out = (int8_t)data[0]; return true;
    case PF_GGUF_I16: *out = (int16_t)pf_load_le(data, 2); return true;
    case PF_GGUF_I32: *out = (int32_t)pf_load_le(data, 4); return true;
    case PF_GGUF_I64: *out = (int64_t)pf_load_le(data, 8); return true;
    default: return false;
    }
}

/* f64 values that no float can hold are refused rather than turned into infinity. */
static bool pf_read_f32(uint32_t type, const uint8_t *data, float *out) {
    if (type == PF_GGUF_F32) {
        uint32_t bits = pf_load_u32(data);
        memcpy(out, &bits, sizeof *out);
        return true;
    }
    if (type != PF_GGUF_F64) return false;
    uint64_t bits = pf_load_u64(data);
    double value;
    memcpy(&value, &bits, sizeof value);
    if (fabs(value) > (double)FLT_MAX && fabs(value) <= DBL_MAX) return false;
    *out = (float)value;
    return true;
}

static pf_gguf_string pf_read_string(const uint8_t *data) {
    pf_gguf_string string = {(const char *)(data + 8), pf_load_u64(data)};
    return string;
}

/* ---- Keys -------------------------------------------------------------------------------------------------- */

bool pf_gguf_has(const pf_gguf *gguf, const char *key) { return pf_find_value(gguf, key) != NULL; }

bool pf_gguf_get_u32(const pf_gguf *gguf, const char *key, uint32_t *out) {
    const pf_gguf_value *value = pf_find_value(gguf, key);
    int64_t number;
    if (!value || !pf_gguf_read_int(value->type, value->data, &number)) return false;
    if (number < 0 || number > UINT32_MAX) return false;
    *out = (uint32_t)number;
    return true;
}

bool pf_gguf_get_f32(const pf_gguf *gguf, const char *key, float *out) {
    const pf_gguf_value *value = pf_find_value(gguf, key);
    return value && pf_read_f32(value->type, value->data, out);
}

bool pf_gguf_get_number(const pf_gguf *gguf, const char *key, double *out) {
    const pf_gguf_value *value = pf_find_value(gguf, key);
    if (!value) return false;
    if (value->type == PF_GGUF_F64) {
        const uint64_t bits = pf_load_u64(value->data);
        memcpy(out, &bits, sizeof *out);
        return true;
    }
    float single;
    int64_t whole;
    if (pf_read_f32(value->type, value->data, &single)) {
        *out = (double)single;
    } else if (value->type == PF_GGUF_U64) {
        *out = (double)pf_load_u64(value->data);
    } else if (pf_gguf_read_int(value->type, value->data, &whole)) {
        *out = (double)whole;
    } else {
        return false;
    }
    return true;
}

bool pf_gguf_get_bool(const pf_gguf *gguf, const char *key, bool *out) {
    const pf_gguf_value *value = pf_find_scalar(gguf, key, PF_GGUF_BOOL);
    if (!value) return false;
    *out = value->data[0] != 0;
    return true;
}

bool pf_gguf_get_string(const pf_gguf *gguf, const char *key, pf_gguf_string *out) {
    const pf_gguf_value *value = pf_find_scalar(gguf, key, PF_GGUF_STRING);
    if (!value) return false;
    *out = pf_read_string(value->data);
    return true;
}

/* ---- Arrays ------------------------------------------------------------------------------------------------ */

bool pf_gguf_array_len(const pf_gguf *gguf, const char *key, uint64_t *out) {
    const pf_gguf_value *array = pf_find_array(gguf, key);
    if (!array) return false;
    *out = array->count;
    return true;
}

bool pf_gguf_array_i64(const pf_gguf *gguf, const char *key, uint64_t index, int64_t *out) {
    const pf_gguf_value *array = pf_find_array(gguf, key);
    if (!array || index >= array->count) return false;
    return pf_gguf_read_int(array->elem, array->data + index * pf_gguf_width(array->elem), out);
}

bool pf_gguf_array_f32(const pf_gguf *gguf, const char *key, uint64_t index, float *out) {
    const pf_gguf_value *array = pf_find_array(gguf, key);
    if (!array || index >= array->count) return false;
    return pf_read_f32(array->elem, array->data + index * pf_gguf_width(array->elem), out);
}

bool pf_gguf_array_strings(const pf_gguf *gguf, const char *key, pf_gguf_string *out, uint64_t capacity) {
    const pf_gguf_value *array = pf_find_array(gguf, key);
    if (!array || array->elem != PF_GGUF_STRING || array->count > capacity) return false;
    const uint8_t *at = array->data;
    for (uint64_t i = 0; i < array->count; i++) {
        out[i] = pf_read_string(at);
        at += 8 + out[i].len;
    }
    return true;
}

/* ---- Tensors ----------------------------------------------------------------------------------------------- */

const pf_gguf_tensor *pf_gguf_tensor_at(const pf_gguf *gguf, uint64_t index) {
    if (index >= gguf->tensors.count) return NULL;
    return &((const pf_gguf_entry *)(const void *)gguf->tensors.items + index)->tensor;
}

const pf_gguf_tensor *pf_gguf_find_tensor(const pf_gguf *gguf, const char *name) {
    return pf_gguf_table_find(&gguf->tensors, pf_from_c(name));
}
