/* pyflash_machine.h - what this machine can do. Part of pyflash.h. */
#ifndef PYFLASH_MACHINE_H
#define PYFLASH_MACHINE_H

#include "pyflash_base.h"
#include "pyflash_model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* CDEF BEGIN */

/* One line per kernel set: name, usable or why not. index from 0; NULL past the end. Static storage. */
PF_API const char *pf_cpu_isa_name(int32_t index);
/* NULL when usable on this machine, else the reason. */
PF_API const char *pf_cpu_isa_problem(int32_t index);

/* A device beside the processor. Grows at its end only. */
typedef struct pf_device_info {
    uint32_t struct_size;  /* set by the caller to sizeof(pf_device_info) before the call */
    int32_t major, minor;  /* CUDA: compute capability */
    int32_t n_sm;          /* CUDA: multiprocessors */
    uint64_t total_bytes;  /* of its memory */
    uint64_t free_bytes;
    char name[128];        /* zero-terminated */
    uint64_t weight_types; /* that it has kernels for: bit i is the type at place i of pf_type_get_info() */
} pf_device_info;

/* How many devices of a kind ("cuda") can be used: loads the plugin library of that kind, which lies beside this one.
 * DEVICE, with the reason, when there is none, or when it cannot be used here. */
PF_API pf_status pf_device_count(const char *kind, int32_t *n, pf_error *err);
PF_API pf_status pf_device_describe(const char *kind, int32_t index, pf_device_info *info, pf_error *err);
/* Runs every kind of operation on small inputs on a device and on the processor; takes a fraction of a second, and
 * nothing when the device has passed before in this process. DEVICE says what differs. Models that are put on a device
 * begin with it. */
PF_API pf_status pf_device_test(const char *kind, int32_t index, pf_error *err);

/* How fast the model's threads read memory: the best of three passes over `bytes` bytes of fresh memory, which should
 * be far more than the caches hold; ARGUMENT below 1 MiB. What a benchmark holds the speed of decoding against. */
PF_API pf_status pf_model_read_bandwidth(const pf_model *model, uint64_t bytes, double *bytes_per_second,
                                         pf_error *err);

/* CDEF END */

#ifdef __cplusplus
}
#endif

#endif /* PYFLASH_MACHINE_H */
