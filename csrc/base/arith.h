/* Checked arithmetic for sizes that come from a file or a caller. Each returns false on overflow and then leaves
 * *out alone. */
#ifndef PF_BASE_ARITH_H
#define PF_BASE_ARITH_H

#include <stdbool.h>
#include <stdint.h>

static inline bool pf_mul_u64(uint64_t a, uint64_t b, uint64_t *out) {
    if (a != 0 && b > UINT64_MAX / a) return false;
    *out = a * b;
    return true;
}

static inline bool pf_add_u64(uint64_t a, uint64_t b, uint64_t *out) {
    if (b > UINT64_MAX - a) return false;
    *out = a + b;
    return true;
}

/* Rounds up to a power-of-two multiple. */
static inline bool pf_align_u64(uint64_t a, uint64_t multiple, uint64_t *out) {
    uint64_t padded;
    if (!pf_add_u64(a, multiple - 1, &padded)) return false;
    *out = padded & ~(multiple - 1);
    return true;
}

static inline int64_t pf_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t pf_min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t pf_max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
static inline int32_t pf_min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
static inline int32_t pf_max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

#endif
