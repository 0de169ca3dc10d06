/* Versioned structs of the public header: they begin with struct_size and only ever grow at their end. */
#ifndef PF_BASE_PARAMS_H
#define PF_BASE_PARAMS_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

/* Takes over what the caller's struct holds into *known, which holds the defaults: an older caller's is shorter and
 * leaves the rest, a newer caller's is longer and its unknown end is passed over. given may be NULL. False when
 * struct_size was never set. */
static inline bool pf_params_take(void *known, uint32_t known_size, const void *given) {
    uint32_t size;
    if (given == NULL) return true;
    memcpy(&size, given, sizeof size);
    if (size < sizeof size) return false;
    memcpy(known, given, size < known_size ? size : known_size);
    memcpy(known, &known_size, sizeof known_size);
    return true;
}

/* The same outwards: writes as much of *full as the caller's struct has room for. False when given is NULL or its
 * struct_size was never set. */
static inline bool pf_params_give(void *given, const void *full, uint32_t full_size) {
    uint32_t size;
    if (given == NULL) return false;
    memcpy(&size, given, sizeof size);
    if (size < sizeof size) return false;
    memcpy((uint8_t *)given + sizeof size, (const uint8_t *)full + sizeof size,
           (size < full_size ? size : full_size) - sizeof size);
    return true;
}

#endif
