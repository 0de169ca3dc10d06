/* One opened device and its memory, as libpyflash uses them beside the operations of the device's table.
 *
 * A device serves one step at a time: whoever uses it or its memory holds the link between pf_link_lock() and
 * pf_link_unlock(). After a failure the device counts as lost: what is in its memory can no longer be trusted, and
 * every later use fails with PF_ERR_DEVICE. In a forked child pf_link_check() fails too, and closing, freeing and locking
 * an inherited link do nothing. */
#ifndef PF_BACKEND_LINK_H
#define PF_BACKEND_LINK_H

#include "backend/plugin.h"

typedef struct pf_link pf_link;

/* kind as of pf_plugin_load(); index among the kind's devices. DEVICE when it cannot be used. */
pf_status pf_link_open(const char *kind, int32_t index, pf_link **out, pf_error *err);
void pf_link_close(pf_link *link); /* NULL is allowed */

void pf_link_lock(pf_link *link);
void pf_link_unlock(pf_link *link);

/* What pf_device_describe() tells, as of opening or of looking again. */
const pf_device_info *pf_link_info(const pf_link *link);
pf_status pf_link_look_again(pf_link *link, pf_error *err);
const pf_backend *pf_link_backend(const pf_link *link);

/* Memory of the device. NULL when there is not enough. */
void *pf_link_alloc(pf_link *link, size_t bytes);
void pf_link_free(pf_link *link, void *memory); /* NULL is allowed */
/* An arena of the device's memory. */
pf_arena *pf_link_arena(pf_link *link);

/* As the plugin's of the same names. PF_ERR_DEVICE, and the device is lost. */
pf_status pf_link_upload(pf_link *link, void *to, const void *from, size_t bytes);
pf_status pf_link_download(pf_link *link, void *to, const void *from, size_t bytes);
pf_status pf_link_copy(pf_link *link, void *to, const void *from, size_t bytes);

/* As the plugin's of the same names; none of them makes a device lost but replay. */
void pf_link_set_base(pf_link *link, const int64_t *position);
pf_status pf_link_begin_recording(pf_link *link);
pf_status pf_link_end_recording(pf_link *link, pf_recording **out);
pf_status pf_link_replay(pf_link *link, pf_recording *recording);
void pf_link_drop_recording(pf_link *link, pf_recording *recording); /* NULL is allowed */

/* Page-locked memory of the host, for pf_link_send() and pf_link_deliver(). NULL when there is not enough. */
void *pf_link_alloc_host(pf_link *link, size_t bytes);
void pf_link_free_host(pf_link *link, void *memory); /* NULL is allowed */
/* As the plugin's of the same names. PF_ERR_DEVICE, and the device is lost. */
pf_status pf_link_send(pf_link *link, int32_t slot, void *to, const void *from, size_t bytes);
pf_status pf_link_await_sent(pf_link *link, int32_t slot);
pf_status pf_link_begin_use(pf_link *link, int32_t slot);
pf_status pf_link_end_use(pf_link *link, int32_t slot);
pf_status pf_link_begin_delivery(pf_link *link);
pf_status pf_link_deliver(pf_link *link, int32_t lane, void *to, const void *from, size_t bytes);
pf_status pf_link_is_delivered(pf_link *link, int32_t lane, bool *done);

/* The end of a step that came to `status` so far: waits for the device, and says with what it came to in the end. A
 * line about the device in err where that is why. */
pf_status pf_link_finish(pf_link *link, pf_status status, pf_error *err);
/* DEVICE after a failure, and in a forked child. */
pf_status pf_link_check(const pf_link *link, pf_error *err);

#endif
