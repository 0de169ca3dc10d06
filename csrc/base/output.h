/* Files that are written as a whole: they appear under their name when they are complete, and not before.
 *
 * What stands at the path decides:
 *  - nothing: the file is made, readable and writable by its owner alone (mode 0600; Windows: as the folder says);
 *  - a file: it is replaced. Permission bits stay, and owner and group where the system lets us; where the group cannot
 *    stay, its permissions go. On Windows attributes and access rules stay. Other names of it (hard links) keep the old
 *    content. One that is write-protected is refused;
 *  - a symbolic link: the file that it leads to is replaced, or made where there is none, and the link stays. Links in a
 *    circle are refused; on Windows, so is one that leads nowhere;
 *  - a folder, device, pipe or socket: refused, and never touched.
 * The bytes go to a file of a short name beside it, to the disk, and then in its place by one rename, which is brought to
 * the disk too. A failure leaves the old file and nothing beside it.
 *
 * Whoever writes holds the place's lock, a file beside it that is gone afterwards: other processes, and other locks of
 * this one, are kept out. On file systems without locks, writers notice one another only by what they have changed. */
#ifndef PF_BASE_OUTPUT_H
#define PF_BASE_OUTPUT_H

#include "base/status.h"

#include <stdbool.h>
#include <stdint.h>

/* Where a path leads, links followed. */
typedef struct pf_place pf_place;

/* FILE when that is a folder, device, pipe or socket, or its folder cannot be opened. */
pf_status pf_place_find(const char *path, pf_place **out, pf_error *err);
void pf_place_close(pf_place *place); /* NULL is allowed */
/* The same for all paths that lead to the same name in the same folder. */
const char *pf_place_key(const pf_place *place);

/* Tells versions of a file apart whose last 8 bytes are a checksum of the others. All zeros: there is none. */
typedef struct pf_stamp {
    uint64_t exists, size;
    uint8_t tail[8]; /* zeros where the file is shorter */
} pf_stamp;
pf_stamp pf_stamp_of(const uint8_t *data, uint64_t size); /* of a file with this content */
/* Of the file that is at the place now. */
pf_status pf_place_stamp(const pf_place *place, pf_stamp *out, pf_error *err);

/* The right to write at a place. FILE when it stays somebody else's for a second, when the file is write-protected, or
 * when nothing can be made in its folder. */
typedef struct pf_place_lock pf_place_lock;
pf_status pf_place_lock_take(const pf_place *place, pf_place_lock **out, pf_error *err);
bool pf_place_lock_is_own(const pf_place_lock *lock); /* false in a forked child: it is the parent's */
void pf_place_lock_drop(pf_place_lock *lock);         /* NULL is allowed; an inherited one stays the parent's */

/* A new file for a place whose lock the caller holds until the end; the place must live as long. expected: NULL, or what
 * must still be there, at the beginning and before the rename: FILE otherwise. Writes are buffered, so an error may come
 * with a later call. */
typedef struct pf_output pf_output;
pf_status pf_output_open(const pf_place *place, const pf_stamp *expected, pf_output **out, pf_error *err);
pf_status pf_output_write(pf_output *output, const void *data, uint64_t size, pf_error *err);
pf_status pf_output_commit(pf_output *output, pf_error *err); /* frees the output, also on failure */
void pf_output_abort(pf_output *output);                      /* frees the output; NULL is allowed */

#endif
