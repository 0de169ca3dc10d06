/* The keys of a model's configuration as the programs that write files differ in them: a number as any integer or float,
 * alone or once for each layer. Names are given without "deepseek4."; messages name the whole key. */
#ifndef PF_ARCH_KEYS_H
#define PF_ARCH_KEYS_H

#include "format/gguf.h"

#include <stdbool.h>
#include <stdint.h>

#define PF_ARCH "deepseek4"

typedef struct pf_keys {
    const pf_gguf *gguf;
    int32_t n_layer; /* a key with several entries has at least so many; 0: not known yet */
    pf_error *err;
} pf_keys;

bool pf_keys_has(const pf_keys *keys, const char *name);

/* One value for all layers, within [low, high]. FORMAT: missing, of the wrong kind or with too few entries; UNSUPPORTED:
 * out of the range, or another from layer to layer. */
pf_status pf_keys_int(const pf_keys *keys, const char *name, int32_t low, int32_t high, int32_t *out);
pf_status pf_keys_float(const pf_keys *keys, const char *name, double low, double high, float *out);
pf_status pf_keys_double(const pf_keys *keys, const char *name, double low, double high, double *out);
/* A bool, or 0 or 1. */
pf_status pf_keys_flag(const pf_keys *keys, const char *name, bool *out);

/* The value of each of the first n layers; further entries are passed over. Where there are fewer, but one for each of
 * keys->n_layer layers, the last stands for the rest. FORMAT as above. */
pf_status pf_keys_by_layer(const pf_keys *keys, const char *name, int32_t n, double *out);

#endif
