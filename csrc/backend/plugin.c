/* Finding and loading device plugins. The only place looked in is the folder of libpyflash itself: never the working
 * directory, nor the system's search path. */
#if !defined(_GNU_SOURCE) && !defined(_WIN32)
#  define _GNU_SOURCE /* dladdr */
#endif

#include "backend/plugin.h"

#include "base/fork.h"
#include "base/memory.h"
#include "base/params.h"
#include "base/status.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#if defined(_WIN32)
#  define WIN32_LEAN_AND_MEAN
#  include <windows.h>
#  define SUFFIX ".dll"
#else
#  include <dlfcn.h>
#  include <unistd.h>
#  define SUFFIX ".so"
#endif

enum { PATH_BYTES = 4096 };

static const pf_plugin_host host = {
    .struct_size = sizeof(pf_plugin_host), .abi = PF_PLUGIN_ABI, .arena_alloc = pf_arena_alloc,
    .arena_mark = pf_arena_mark, .arena_reset = pf_arena_reset,
};

static _Atomic(const pf_plugin *) loaded; /* of the one kind there is */
static atomic_uint loaded_in;             /* the fork generation that did it */

static pf_status absent(const char *kind, pf_error *err) {
    return pf_fail(err, PF_ERR_DEVICE, "not built in: libpyflash_%s" SUFFIX " is not beside libpyflash", kind);
}

#if defined(_WIN32)

static pf_status find_query(const char *kind, pf_plugin_query_fn *out, pf_error *err) {
    wchar_t path[PATH_BYTES];
    HMODULE self;
    const DWORD how = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
    if (!GetModuleHandleExW(how, (LPCWSTR)(const void *)&host, &self)) return absent(kind, err);
    const DWORD length = GetModuleFileNameW(self, path, PATH_BYTES);
    wchar_t *name = length > 0 && length < PATH_BYTES - 64 ? wcsrchr(path, L'\\') : NULL;
    if (name == NULL) return absent(kind, err);
    swprintf(name + 1, 63, L"libpyflash_%hs" SUFFIX, kind);
    if (GetFileAttributesW(path) == INVALID_FILE_ATTRIBUTES) return absent(kind, err);
    const HMODULE library = LoadLibraryExW(path, NULL, LOAD_WITH_ALTERED_SEARCH_PATH);
    if (library == NULL) {
        return pf_fail(err, PF_ERR_DEVICE, "libpyflash_%s" SUFFIX " cannot be loaded: error %lu", kind,
                       (unsigned long)GetLastError());
    }
    const FARPROC query = GetProcAddress(library, "pf_plugin_query");
    memcpy(out, &query, sizeof *out);
    return PF_OK;
}

#else

static pf_status find_query(const char *kind, pf_plugin_query_fn *out, pf_error *err) {
    char path[PATH_BYTES];
    Dl_info self;
    if (dladdr((const void *)&host, &self) == 0 || self.dli_fname == NULL) return absent(kind, err);
    const char *name = strrchr(self.dli_fname, '/');
    const int folder = name != NULL ? (int)(name - self.dli_fname) : -1;
    if (folder < 0 || folder > PATH_BYTES - 64) return absent(kind, err);
    snprintf(path, sizeof path, "%.*s/libpyflash_%s" SUFFIX, folder, self.dli_fname, kind);
    if (access(path, F_OK) != 0) return absent(kind, err);
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return pf_fail(err, PF_ERR_DEVICE, "%s", dlerror());
    void *query = dlsym(library, "pf_plugin_query");
    memcpy(out, &query, sizeof *out);
    return PF_OK;
}

#endif

pf_status pf_plugin_load(const char *kind, const pf_plugin **out, pf_error *err) {
    pf_plugin_query_fn query = NULL;
    if (kind == NULL || strcmp(kind, "cuda") != 0) {
        return pf_fail(err, PF_ERR_ARGUMENT, "device \"%s\" is unknown: there is \"cuda\"", kind != NULL ? kind : "");
    }
    *out = atomic_load_explicit(&loaded, memory_order_acquire);
    if (*out != NULL && atomic_load(&loaded_in) != pf_fork_generation()) {
        return pf_fail(err, PF_ERR_DEVICE, "the device was in use when this process was forked, which no device survives: "
                                           "open the model after forking, or start the process anew (spawn)");
    }
    if (*out != NULL) return PF_OK;
    PF_TRY(find_query(kind, &query, err));
    const pf_plugin *plugin = query != NULL ? query(&host) : NULL;
    if (plugin == NULL || plugin->abi != PF_PLUGIN_ABI || plugin->struct_size < sizeof *plugin) {
        return pf_fail(err, PF_ERR_DEVICE, "libpyflash_%s" SUFFIX " is of another version: install both again", kind);
    }
    atomic_store(&loaded_in, pf_fork_generation());
    atomic_store_explicit(&loaded, plugin, memory_order_release);
    *out = plugin;
    return PF_OK;
}

static pf_status usable_plugin(const char *kind, const pf_plugin **out, pf_error *err) {
    PF_TRY(pf_plugin_load(kind, out, err));
    return (*out)->problem != NULL ? pf_fail(err, PF_ERR_DEVICE, "unusable: %s", (*out)->problem) : PF_OK;
}

pf_status pf_device_count(const char *kind, int32_t *n, pf_error *err) {
    const pf_plugin *plugin;
    if (n == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_device_count: a place for the number is needed");
    PF_TRY(usable_plugin(kind, &plugin, err));
    *n = plugin->n_device;
    return PF_OK;
}

pf_status pf_device_describe(const char *kind, int32_t index, pf_device_info *info, pf_error *err) {
    const pf_plugin *plugin;
    pf_device_info full = {.struct_size = sizeof full};
    PF_TRY(usable_plugin(kind, &plugin, err));
    if (index < 0 || index >= plugin->n_device) {
        return pf_fail(err, PF_ERR_ARGUMENT, "device %d: there are %d", index, plugin->n_device);
    }
    PF_TRY(plugin->describe(index, &full, err));
    if (!pf_params_give(info, &full, sizeof full)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_device_describe: set info->struct_size first");
    }
    return PF_OK;
}
