#include "backend/link.h"

#include "base/fork.h"
#include "base/memory.h"
#include "base/mutex.h"
#include "base/status.h"

struct pf_link {
    const pf_plugin *plugin;
    pf_device *device;
    int32_t index;
    pf_device_info info;
    pf_mutex lock;
    bool lost;
    uint32_t generation; /* of forks: a child can neither use the device nor give anything back to it */
};

static bool is_inherited(const pf_link *link) { return link->generation != pf_fork_generation(); }

static pf_status open_device(pf_link *link, const char *kind, int32_t index, pf_error *err) {
    pf_error why = {0};
    const pf_status status = pf_plugin_load(kind, &link->plugin, &why);
    if (status != PF_OK || link->plugin->problem != NULL) {
        return pf_fail(err, PF_ERR_DEVICE, "device \"%s\" cannot be used, do without it: %s", kind,
                       status != PF_OK ? why.message : link->plugin->problem);
    }
    if (index < 0 || index >= link->plugin->n_device) {
        return pf_fail(err, PF_ERR_DEVICE, "device \"%s:%d\" is not there: there are %d, counted from 0", kind, index,
                       link->plugin->n_device);
    }
    PF_TRY(link->plugin->open(index, &link->device, err));
    link->index = index;
    return pf_link_look_again(link, err); /* after opening, which takes memory itself */
}

pf_status pf_link_look_again(pf_link *link, pf_error *err) {
    link->info.struct_size = sizeof link->info;
    return link->plugin->describe(link->index, &link->info, err);
}

pf_status pf_link_open(const char *kind, int32_t index, pf_link **out, pf_error *err) {
    pf_link *link = pf_calloc(1, sizeof *link);
    if (link == NULL || !pf_mutex_init(&link->lock)) {
        pf_free(link);
        return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening a device");
    }
    link->generation = pf_fork_generation();
    const pf_status status = open_device(link, kind, index, err);
    if (status != PF_OK) {
        pf_link_close(link);
        return status;
    }
    *out = link;
    return PF_OK;
}

void pf_link_close(pf_link *link) {
    if (link == NULL || is_inherited(link)) return;
    if (link->device != NULL) link->plugin->close(link->device);
    pf_mutex_destroy(&link->lock);
    pf_free(link);
}

/* In a child the lock may be held by a thread that is not there. */
void pf_link_lock(pf_link *link) {
    if (!is_inherited(link)) pf_mutex_lock(&link->lock);
}

void pf_link_unlock(pf_link *link) {
    if (!is_inherited(link)) pf_mutex_unlock(&link->lock);
}

const pf_device_info *pf_link_info(const pf_link *link) { return &link->info; }
const pf_backend *pf_link_backend(const pf_link *link) { return link->plugin->backend(link->device); }

void *pf_link_alloc(pf_link *link, size_t bytes) { return link->plugin->alloc(link->device, bytes); }

void pf_link_free(pf_link *link, void *memory) {
    if (memory != NULL && !is_inherited(link)) link->plugin->free(link->device, memory);
}

static void *alloc_block(void *link, size_t bytes) { return pf_link_alloc(link, bytes); }
static void free_block(void *link, void *block) { pf_link_free(link, block); }

pf_arena *pf_link_arena(pf_link *link) { return pf_arena_new_from(&(pf_block_source){alloc_block, free_block, link}); }

static pf_status note(pf_link *link, pf_status status) {
    if (status != PF_OK) link->lost = true;
    return status;
}

pf_status pf_link_upload(pf_link *link, void *to, const void *from, size_t bytes) {
    return bytes == 0 ? PF_OK : note(link, link->plugin->upload(link->device, to, from, bytes));
}

pf_status pf_link_download(pf_link *link, void *to, const void *from, size_t bytes) {
    return bytes == 0 ? PF_OK : note(link, link->plugin->download(link->device, to, from, bytes));
}

pf_status pf_link_copy(pf_link *link, void *to, const void *from, size_t bytes) {
    return bytes == 0 ? PF_OK : note(link, link->plugin->copy(link->device, to, from, bytes));
}

void pf_link_set_base(pf_link *link, const int64_t *position) { link->plugin->set_base(link->device, position); }

pf_status pf_link_begin_recording(pf_link *link) { return link->plugin->begin_recording(link->device); }

pf_status pf_link_end_recording(pf_link *link, pf_recording **out) {
    return link->plugin->end_recording(link->device, out);
}

pf_status pf_link_replay(pf_link *link, pf_recording *recording) {
    return note(link, link->plugin->replay(link->device, recording));
}

void pf_link_drop_recording(pf_link *link, pf_recording *recording) {
    if (recording != NULL && !is_inherited(link)) link->plugin->drop_recording(link->device, recording);
}

void *pf_link_alloc_host(pf_link *link, size_t bytes) { return link->plugin->alloc_host(link->device, bytes); }

void pf_link_free_host(pf_link *link, void *memory) {
    if (memory != NULL && !is_inherited(link)) link->plugin->free_host(link->device, memory);
}

pf_status pf_link_send(pf_link *link, int32_t slot, void *to, const void *from, size_t bytes) {
    return note(link, link->plugin->send(link->device, slot, to, from, bytes));
}

pf_status pf_link_await_sent(pf_link *link, int32_t slot) {
    return note(link, link->plugin->await_sent(link->device, slot));
}

pf_status pf_link_begin_use(pf_link *link, int32_t slot) {
    return note(link, link->plugin->begin_use(link->device, slot));
}

pf_status pf_link_end_use(pf_link *link, int32_t slot) {
    return note(link, link->plugin->end_use(link->device, slot));
}

pf_status pf_link_begin_delivery(pf_link *link) { return note(link, link->plugin->begin_delivery(link->device)); }

pf_status pf_link_deliver(pf_link *link, int32_t lane, void *to, const void *from, size_t bytes) {
    return note(link, link->plugin->deliver(link->device, lane, to, from, bytes));
}

pf_status pf_link_is_delivered(pf_link *link, int32_t lane, bool *done) {
    return note(link, link->plugin->is_delivered(link->device, lane, done));
}

pf_status pf_link_finish(pf_link *link, pf_status status, pf_error *err) {
    if (is_inherited(link)) return pf_link_check(link, err);
    const pf_status end = link->plugin->synchronize(link->device, err);
    if (end == PF_OK && status != PF_ERR_DEVICE) return status;
    link->lost = true;
    return end != PF_OK ? end : pf_fail(err, PF_ERR_DEVICE, "the device failed: open the model again, or without it");
}

pf_status pf_link_check(const pf_link *link, pf_error *err) {
    if (is_inherited(link)) {
        return pf_fail(err, PF_ERR_DEVICE, "the model's device cannot be used in a forked process: open the model after "
                                           "forking");
    }
    if (!link->lost) return PF_OK;
    return pf_fail(err, PF_ERR_DEVICE, "the device failed before: open the model again, or without it");
}
