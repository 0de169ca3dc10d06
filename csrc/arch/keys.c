#include "arch/keys.h"

#include <math.h>
#include <stdio.h>

enum { KEY_SIZE = 96 };

static const char *full_key(const char *name, char out[KEY_SIZE]) {
    (void)snprintf(out, KEY_SIZE, PF_ARCH ".%s", name);
    return out;
}

bool pf_keys_has(const pf_keys *keys, const char *name) {
    char key[KEY_SIZE];
    return pf_gguf_has(keys->gguf, full_key(name, key));
}

static pf_status bad_key(const pf_keys *keys, const char *key, const char *wants) {
    if (!pf_gguf_has(keys->gguf, key)) {
        return pf_fail(keys->err, PF_ERR_FORMAT, "the file lacks the key %s: take another file, or convert the "
                       "checkpoint again", key);
    }
    return pf_fail(keys->err, PF_ERR_FORMAT, "the key %s is not %s: take another file, or convert the checkpoint again",
                   key, wants);
}

/* An entry of an array, or the number that stands alone. */
static bool entry(const pf_gguf *gguf, const char *key, bool is_array, uint64_t index, double *out) {
    int64_t whole;
    float number;
    if (!is_array) return pf_gguf_get_number(gguf, key, out);
    if (pf_gguf_array_i64(gguf, key, index, &whole)) *out = (double)whole;
    else if (pf_gguf_array_f32(gguf, key, index, &number)) *out = (double)number;
    else return false;
    return true;
}

pf_status pf_keys_by_layer(const pf_keys *keys, const char *name, int32_t n, double *out) {
    char key[KEY_SIZE];
    uint64_t len = 1;
    const bool is_array = pf_gguf_array_len(keys->gguf, full_key(name, key), &len);
    if (len != 1 && len < (uint64_t)keys->n_layer) {
        return pf_fail(keys->err, PF_ERR_FORMAT, "the key %s has %llu entries for %d layers: take another file, or convert "
                       "the checkpoint again", key, (unsigned long long)len, keys->n_layer);
    }
    for (int32_t l = 0; l < n; ++l) {
        const uint64_t at = (uint64_t)l < len ? (uint64_t)l : len - 1;
        if (!entry(keys->gguf, key, is_array, at, &out[l])) return bad_key(keys, key, "a number, or one for each layer");
    }
    return PF_OK;
}

/* The one value of all layers. */
static pf_status read_number(const pf_keys *keys, const char *name, const char *wants, double *out) {
    char key[KEY_SIZE];
    uint64_t len = 1;
    const bool is_array = pf_gguf_array_len(keys->gguf, full_key(name, key), &len);
    double first, other;
    if (len == 0 || !entry(keys->gguf, key, is_array, 0, &first)) return bad_key(keys, key, wants);
    if (len > 1 && (keys->n_layer == 0 || len < (uint64_t)keys->n_layer)) {
        return pf_fail(keys->err, PF_ERR_FORMAT, "the key %s has %llu entries, not one, nor one for each layer: take "
                       "another file, or convert the checkpoint again", key, (unsigned long long)len);
    }
    for (int32_t l = 1; l < keys->n_layer && len > 1; ++l) {
        if (!entry(keys->gguf, key, is_array, (uint64_t)l, &other)) return bad_key(keys, key, wants);
        if (other == first) continue;
        return pf_fail(keys->err, PF_ERR_UNSUPPORTED, "%s is %g in layer 0 and %g in layer %d: only models whose layers "
                       "are alike in it are supported", key, first, other, l);
    }
    *out = first;
    return PF_OK;
}

pf_status pf_keys_int(const pf_keys *keys, const char *name, int32_t low, int32_t high, int32_t *out) {
    char key[KEY_SIZE];
    double value;
    PF_TRY(read_number(keys, name, "an integer", &value));
    full_key(name, key);
    if (value != floor(value)) return bad_key(keys, key, "an integer");
    if (value < (double)low || value > (double)high) {
        return pf_fail(keys->err, PF_ERR_UNSUPPORTED, "%s = %.0f is outside the supported range %d..%d", key, value, low,
                       high);
    }
    *out = (int32_t)value;
    return PF_OK;
}

pf_status pf_keys_double(const pf_keys *keys, const char *name, double low, double high, double *out) {
    char key[KEY_SIZE];
    double value;
    PF_TRY(read_number(keys, name, "a number", &value));
    if (!(value >= low && value <= high)) {
        return pf_fail(keys->err, PF_ERR_UNSUPPORTED, "%s = %g is outside the supported range %g..%g",
                       full_key(name, key), value, low, high);
    }
    *out = value;
    return PF_OK;
}

pf_status pf_keys_float(const pf_keys *keys, const char *name, double low, double high, float *out) {
    double value;
    PF_TRY(pf_keys_double(keys, name, low, high, &value));
    *out = (float)value;
    return PF_OK;
}

pf_status pf_keys_flag(const pf_keys *keys, const char *name, bool *out) {
    char key[KEY_SIZE];
    double value;
    if (pf_gguf_get_bool(keys->gguf, full_key(name, key), out)) return PF_OK;
    PF_TRY(read_number(keys, name, "a bool", &value));
    if (value != 0.0 && value != 1.0) return bad_key(keys, key, "a bool");
    *out = value == 1.0;
    return PF_OK;
}
