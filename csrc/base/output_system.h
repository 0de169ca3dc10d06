/* What output.c needs of the system: output_posix.c, output_windows.c. */
#ifndef PF_BASE_OUTPUT_SYSTEM_H
#define PF_BASE_OUTPUT_SYSTEM_H

#include "base/output.h"

enum {
    PF_HELPER_BYTES = 40,      /* of a helper file's name */
    PF_LOCK_TRIES = 50,        /* that many times, */
    PF_LOCK_PAUSE_MS = 20,     /* so far apart, a lock is asked for */
};
#define PF_WRITE_MAX ((uint64_t)1 << 30) /* one system call; some systems refuse 2 GiB and more */

/* Names of files beside `name`, of any length: ".pyflash-", a hash of it, and the ending. */
void pf_helper_name(const char *name, const char *ending, char out[PF_HELPER_BYTES]);

pf_status pf_refuse_kind(const char *path, bool is_folder, pf_error *err);
pf_status pf_refuse_protected(const char *path, pf_error *err);
pf_status pf_refuse_locked(const char *path, pf_error *err);

const char *pf_place_path(const pf_place *place); /* as it was given, for messages */

/* The file beside, of which there is one at a time. */
typedef struct pf_temp pf_temp;
pf_status pf_temp_open(const pf_place *place, pf_temp **out, pf_error *err);
bool pf_temp_write(pf_temp *temp, const uint8_t *data, uint64_t size); /* false: the system's error says why */
/* Takes over the old file's permissions and brings everything to the disk. */
pf_status pf_temp_finish(pf_temp *temp, pf_error *err);
/* In the place of the old file, after pf_temp_finish(). Frees temp on success. */
pf_status pf_temp_rename(pf_temp *temp, pf_error *err);
void pf_temp_remove(pf_temp *temp); /* frees it */

#endif
