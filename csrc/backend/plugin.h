/* Device backends as plugin libraries: what libpyflash and libpyflash_<kind> tell each other.
 *
 * A plugin lies beside libpyflash, exports the one function pf_plugin_query, and links nothing of libpyflash. It loads
 * on machines without its device or driver, and then says why it is unusable.
 *
 * An operation of a device's table (backend.h) takes its data where the device reads it: every pointer to weights,
 * activations, cache rows, ids and parameters is one that pf_plugin.alloc gave, and so is all memory of pf_exec.arena.
 * Only the argument structs themselves are in host memory, and are read before the operation returns. Operations are
 * queued in order; what one of them found wrong (PF_ERR_INTERNAL, PF_ERR_DEVICE) may be told by a later call, by
 * synchronize at the latest. */
#ifndef PF_BACKEND_PLUGIN_H
#define PF_BACKEND_PLUGIN_H

#include "backend/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PF_PLUGIN_ABI 6

enum { PF_SLOTS = 2 }; /* pf_plugin.send */
enum { PF_LANES = 2 }; /* pf_plugin.deliver */

/* What a plugin calls of libpyflash. */
typedef struct pf_plugin_host {
    uint32_t struct_size;
    int32_t abi; /* PF_PLUGIN_ABI */
    void *(*arena_alloc)(pf_arena *arena, size_t bytes);
    size_t (*arena_mark)(const pf_arena *arena);
    void (*arena_reset)(pf_arena *arena, size_t mark);
} pf_plugin_host;

typedef struct pf_device pf_device; /* one opened device; one thread at a time */
typedef struct pf_recording pf_recording; /* operations of a device that can be repeated as a whole */

typedef struct pf_plugin {
    uint32_t struct_size;
    int32_t abi;         /* PF_PLUGIN_ABI */
    const char *kind;    /* "cuda" */
    const char *problem; /* why nothing can be used here, one line; NULL when at least one device can */
    int32_t n_device;

    pf_status (*describe)(int32_t index, pf_device_info *info, pf_error *err);
    pf_status (*open)(int32_t index, pf_device **out, pf_error *err);
    void (*close)(pf_device *device);
    const pf_backend *(*backend)(pf_device *device); /* lives as long as the device */

    /* Memory of the device, aligned to 256 bytes; NULL when there is not enough. */
    void *(*alloc)(pf_device *device, size_t bytes);
    void (*free)(pf_device *device, void *memory);
    /* In order with the operations. upload returns when `from` has been read, download when `to` has been written. */
    pf_status (*upload)(pf_device *device, void *to, const void *from, size_t bytes);
    pf_status (*download)(pf_device *device, void *to, const void *from, size_t bytes);
    /* Within the device's memory; the two do not overlap. Need not have happened when it returns. */
    pf_status (*copy)(pf_device *device, void *to, const void *from, size_t bytes);
    /* Waits for all operations; the first thing that went wrong since the last call. */
    pf_status (*synchronize)(pf_device *device, pf_error *err);

    /* While set, operations add *position, an int64 in device memory, to the `position` or `first` that their arguments
     * give, so that a recorded sequence of operations can be replayed for the next token. (For pools it must point to
     * the number of rows: another one than for positions.) NULL: nothing is added. */
    void (*set_base)(pf_device *device, const int64_t *position);

    /* Between the two, operations and copies are not run but recorded, with the arguments and the base that they have
     * then. Nothing else may be called meanwhile but set_base and alloc. UNSUPPORTED says that there is no recording
     * and that the device is as before: after begin_recording() operations run as always, and after end_recording()
     * they have to be issued again. end_recording() belongs to every begin_recording() that was OK, whatever operations
     * said; with out NULL it keeps nothing. */
    pf_status (*begin_recording)(pf_device *device);
    pf_status (*end_recording)(pf_device *device, pf_recording **out);
    /* Queues the recorded operations. Everything that they were given must still be where it was. */
    pf_status (*replay)(pf_device *device, pf_recording *recording);
    /* While none of its operations is queued or running. */
    void (*drop_recording)(pf_device *device, pf_recording *recording);

    /* Sending memory while operations compute with what was sent before, through PF_SLOTS slots: each names some memory
     * of the device and some page-locked memory of the host, which the caller has. A turn of a slot: await_sent, fill
     * the host's memory, send once or more, begin_use, operations, end_use. */

    /* Page-locked memory of the host; NULL when there is not enough. */
    void *(*alloc_host)(pf_device *device, size_t bytes);
    void (*free_host)(pf_device *device, void *memory);
    /* Copies, beside the operations: but after those before the slot's last end_use, in order with other sends. `from` is
     * of alloc_host, and is read by the time that await_sent returns. */
    pf_status (*send)(pf_device *device, int32_t slot, void *to, const void *from, size_t bytes);
    /* Waits for the sends before the slot's last begin_use. */
    pf_status (*await_sent)(pf_device *device, int32_t slot);
    /* Later operations come after the slot's sends so far. */
    pf_status (*begin_use)(pf_device *device, int32_t slot);
    /* Later sends to the slot come after the operations so far. */
    pf_status (*end_use)(pf_device *device, int32_t slot);

    /* Sending memory in the background, for which nothing ever waits, through PF_LANES lanes, each some page-locked
     * memory of the host. Operations may use what came when is_delivered has said so, without further ado. synchronize
     * does not wait for deliveries. */

    /* Later deliveries come after the operations so far. */
    pf_status (*begin_delivery)(pf_device *device);
    /* Copies, in order with other deliveries. `from` is of alloc_host, and is read when is_delivered says so. */
    pf_status (*deliver)(pf_device *device, int32_t lane, void *to, const void *from, size_t bytes);
    /* Whether the lane's deliveries so far have been made. */
    pf_status (*is_delivered)(pf_device *device, int32_t lane, bool *done);
} pf_plugin;

/* The plugin's table, static storage; NULL when host is not of a version that it knows. */
typedef const pf_plugin *(*pf_plugin_query_fn)(const pf_plugin_host *host);

#ifdef __cplusplus
}
#endif

/* ---- libpyflash's side (plugin.c) ---- */

/* Loads libpyflash_<kind> from the folder of libpyflash, once a process. DEVICE says why it cannot be. */
pf_status pf_plugin_load(const char *kind, const pf_plugin **out, pf_error *err);

#endif
