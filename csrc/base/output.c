#include "base/output.h"

#include "base/memory.h"
#include "base/output_system.h"
#include "base/paths.h"

#include <stdio.h>
#include <string.h>

void pf_helper_name(const char *name, const char *ending, char out[PF_HELPER_BYTES]) {
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *name; name++) hash = (hash ^ (uint8_t)*name) * 0x100000001b3u;
    snprintf(out, PF_HELPER_BYTES, ".pyflash-%08lx%08lx.%s", (unsigned long)(hash >> 32),
             (unsigned long)(hash & 0xffffffffu), ending);
}

pf_status pf_refuse_kind(const char *path, bool is_folder, pf_error *err) {
    return pf_fail(err, PF_ERR_FILE, "cannot write '%s': it is %s", pf_shown_path(path),
                   is_folder ? "a folder: name a file" : "a device, pipe or socket, which is never replaced: name a file");
}

pf_status pf_refuse_protected(const char *path, pf_error *err) {
    return pf_fail(err, PF_ERR_FILE, "cannot write '%s': the file is write-protected: change its permissions or choose "
                                     "another name", pf_shown_path(path));
}

pf_status pf_refuse_locked(const char *path, pf_error *err) {
    return pf_fail(err, PF_ERR_FILE, "cannot write '%s': another process or session keeps it: end that one, or choose "
                                     "another name", pf_shown_path(path));
}

pf_stamp pf_stamp_of(const uint8_t *data, uint64_t size) {
    pf_stamp stamp = {.exists = 1, .size = size};
    if (size >= sizeof stamp.tail) memcpy(stamp.tail, data + (size - sizeof stamp.tail), sizeof stamp.tail);
    return stamp;
}

/* ---- Writing ----------------------------------------------------------------------------------------------- */

enum { BUFFER_BYTES = 1 << 16 }; /* small pieces are gathered to this size */

struct pf_output {
    const pf_place *place;
    pf_temp *temp;
    uint8_t *buffer;
    size_t buffered;
    bool failed; /* a write was lost: what follows cannot be committed */
    bool is_expecting;
    pf_stamp expected;
};

static void free_output(pf_output *output) {
    pf_free(output->buffer);
    pf_free(output);
}

static pf_status check_expected(const pf_output *output, pf_error *err) {
    pf_stamp now;
    if (!output->is_expecting) return PF_OK;
    PF_TRY(pf_place_stamp(output->place, &now, err));
    if (!now.exists || memcmp(&now, &output->expected, sizeof now) == 0) return PF_OK; /* nothing there: nothing lost */
    return pf_fail(err, PF_ERR_FILE,
                   "cannot write '%s': it is not what this session read or wrote there last, another one has changed it: "
                   "choose another name, or load it again",
                   pf_shown_path(pf_place_path(output->place)));
}

pf_status pf_output_open(const pf_place *place, const pf_stamp *expected, pf_output **out, pf_error *err) {
    pf_output *output = pf_calloc(1, sizeof *output);
    if (output) output->buffer = pf_alloc(BUFFER_BYTES);
    if (!output || !output->buffer) {
        pf_free(output);
        return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening '%s'", pf_shown_path(pf_place_path(place)));
    }
    output->place = place;
    output->is_expecting = expected != NULL;
    if (expected) output->expected = *expected;
    pf_status status = check_expected(output, err);
    if (status == PF_OK) status = pf_temp_open(place, &output->temp, err);
    if (status != PF_OK) {
        free_output(output);
        return status;
    }
    *out = output;
    return PF_OK;
}

static pf_status send_bytes(pf_output *output, const uint8_t *data, uint64_t size, pf_error *err) {
    if (pf_temp_write(output->temp, data, size)) return PF_OK;
    output->failed = true;
    return pf_file_error(err, "write", pf_place_path(output->place));
}

static pf_status empty_buffer(pf_output *output, pf_error *err) {
    const size_t n = output->buffered;
    output->buffered = 0;
    return n > 0 ? send_bytes(output, output->buffer, n, err) : PF_OK;
}

static pf_status check_whole(const pf_output *output, pf_error *err) {
    if (!output->failed) return PF_OK;
    return pf_fail(err, PF_ERR_FILE, "cannot write '%s': an earlier write failed",
                   pf_shown_path(pf_place_path(output->place)));
}

pf_status pf_output_write(pf_output *output, const void *data, uint64_t size, pf_error *err) {
    PF_TRY(check_whole(output, err));
    if (size > BUFFER_BYTES - output->buffered) PF_TRY(empty_buffer(output, err));
    if (size >= BUFFER_BYTES) return send_bytes(output, data, size, err);
    if (size > 0) memcpy(output->buffer + output->buffered, data, (size_t)size);
    output->buffered += (size_t)size;
    return PF_OK;
}

static pf_status finish(pf_output *output, pf_error *err) {
    PF_TRY(check_whole(output, err));
    PF_TRY(empty_buffer(output, err));
    PF_TRY(pf_temp_finish(output->temp, err));
    PF_TRY(check_expected(output, err));
    return pf_temp_rename(output->temp, err);
}

pf_status pf_output_commit(pf_output *output, pf_error *err) {
    const pf_status status = finish(output, err);
    if (status != PF_OK) pf_temp_remove(output->temp);
    free_output(output);
    return status;
}

void pf_output_abort(pf_output *output) {
    if (!output) return;
    pf_temp_remove(output->temp);
    free_output(output);
}
