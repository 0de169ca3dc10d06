/* cuda_emulation.cpp for kernels that were compiled with -fsanitize=thread: the calls which that puts before every
 * access to memory come here, instead of to that sanitizer. So this sees what an emulation in which one thread runs at
 * a time cannot show: threads of a block that touch the same byte of shared or device memory, one of them to write,
 * with no barrier between them (of the block or, for lanes of one warp, of the warp; a shuffle is none), and blocks of
 * a launch that do so at all, unless by atomics or after a __threadfence. It prints each pair of places once (addresses
 * for addr2line), and the program's exit status is 1. */
#define PF_EMULATED_WATCH
#include "cuda_emulation.cpp"

#include <cstdlib>
#include <dlfcn.h>
#include <set>

namespace emulated {

/* Who touched a byte last: in which turn, as which thread and after how many of its warp's barriers. */
struct mark {
    uint32_t turn;
    uint16_t thread, warp_turn; /* thread with flags: */
    uint32_t place;             /* in the program */
};
enum { THREAD = 0x3ff, LANES = 0x400, WARPS = 0x800, BLOCKS = 0x1000 /* several have */, ATOMIC = 0x2000 };
struct byte_marks {
    mark written, read;
};

static byte_marks *marks_of(size_t bytes) {
    void *marks = mmap(nullptr, bytes * sizeof(byte_marks), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (marks == MAP_FAILED) fail("no address space for what was touched");
    return static_cast<byte_marks *>(marks);
}

static uint32_t place_of(const void *address) {
    static const uintptr_t base = [] {
        Dl_info own;
        return dladdr(reinterpret_cast<const void *>(&marks_of), &own) ? (uintptr_t)own.dli_fbase : 0;
    }();
    return (uint32_t)((uintptr_t)address - base);
}

static void report(const char *what, uint32_t before, uint32_t now) {
    static std::set<std::pair<uint32_t, uint32_t>> told;
    if (told.empty()) std::atexit([] { std::fflush(nullptr), std::_Exit(1); });
    if (!told.insert({before, now}).second) return;
    std::fprintf(stderr, "CUDA emulation: block %u,%u,%u, thread %u: %s: 0x%x, then 0x%x\n", block.x, block.y, block.z,
                 thread.x, what, before, now);
}

/* Whether what was done then and what this thread does now may happen at once. */
static const char *conflict(const mark &then, bool is_shared) {
    if (then.turn <= launch_turn) return nullptr;
    if (then.turn <= first_turn) return is_shared || fenced[thread.x] ? nullptr : "two blocks touch a byte";
    if (!is_shared && (then.thread & BLOCKS) && !fenced[thread.x]) return "blocks touch a byte";
    if (then.turn != (uint32_t)block_turn) return nullptr;
    if ((then.thread & WARPS) || (then.thread & THREAD) / WARP != thread.x / WARP) return "two warps touch a byte";
    const bool same_lane = !(then.thread & LANES) && (then.thread & THREAD) == thread.x;
    if (same_lane || then.warp_turn != warp_turns[thread.x]) return nullptr;
    return "two lanes touch a byte";
}

static void note_read(mark &m, uint32_t place) {
    unsigned flags = 0;
    if (m.turn > launch_turn) {
        flags = m.thread & BLOCKS;
        if (m.turn <= first_turn) flags |= BLOCKS;
        else if (m.turn == (uint32_t)block_turn) {
            flags |= m.thread & WARPS;
            if ((m.thread & THREAD) / WARP != thread.x / WARP) flags |= WARPS;
            if (m.warp_turn == warp_turns[thread.x]) {
                flags |= m.thread & LANES;
                if ((m.thread & THREAD) != thread.x) flags |= LANES;
            }
        }
    }
    m = {(uint32_t)block_turn, (uint16_t)(thread.x | flags), warp_turns[thread.x], place};
}

static void touch(byte_marks &b, access how, bool is_shared, uint32_t place) {
    const char *what = nullptr;
    const bool of_atomics = how == IS_ATOMIC && (b.written.thread & ATOMIC);
    if (!of_atomics && (what = conflict(b.written, is_shared))) report(what, b.written.place, place);
    if (how == IS_READ) return note_read(b.read, place);
    if ((what = conflict(b.read, is_shared))) report(what, b.read.place, place);
    b.written = {(uint32_t)block_turn, (uint16_t)(thread.x | (how == IS_ATOMIC ? ATOMIC : 0)),
                 warp_turns[thread.x], place};
}

static void note(const void *memory, size_t bytes, access how, const void *from) {
    static byte_marks *const of_variables = marks_of(MOST_SHARED), *const of_dynamic = marks_of(MOST_SHARED);
    static byte_marks *const of_device = marks_of(device_bytes());
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory);
    const uintptr_t in_variables = at - reinterpret_cast<uintptr_t>(variables);
    const uintptr_t in_dynamic = at - reinterpret_cast<uintptr_t>(dynamic);
    const uintptr_t in_device = at - reinterpret_cast<uintptr_t>(device().base);
    byte_marks *marks = nullptr;
    if (!is_running) return;
    if (in_variables < MOST_SHARED) marks = of_variables + in_variables;
    else if (in_dynamic < MOST_SHARED) marks = of_dynamic + in_dynamic;
    else if (in_device < device_bytes()) marks = of_device + in_device;
    else return;
    for (size_t i = 0; i < bytes; ++i) touch(marks[i], how, in_device >= device_bytes(), place_of(from));
}

static void note_access(const void *memory, size_t bytes, access how) {
    note(memory, bytes, how, __builtin_return_address(0));
}

} // namespace emulated

/* ---- What the compiler calls ---- */

#define CALLED(name, bytes, how)                                                                 \
    extern "C" void name(void *at);                                                              \
    extern "C" void name(void *at) { emulated::note(at, bytes, emulated::how, __builtin_return_address(0)); }
#define BOTH(prefix, bytes)                          \
    CALLED(__tsan_##prefix##read##bytes, bytes, IS_READ) \
    CALLED(__tsan_##prefix##write##bytes, bytes, IS_WRITTEN)
BOTH(, 1) BOTH(, 2) BOTH(, 4) BOTH(, 8) BOTH(, 16)
BOTH(unaligned_, 2) BOTH(unaligned_, 4) BOTH(unaligned_, 8) BOTH(unaligned_, 16)

extern "C" {
void __tsan_init(), __tsan_func_entry(void *), __tsan_func_exit(), __tsan_vptr_update(void **, void *);
void __tsan_read_range(void *at, unsigned long bytes), __tsan_write_range(void *at, unsigned long bytes);
int __tsan_atomic32_load(const volatile int *at, int order);
void *__tsan_memcpy(void *to, const void *from, unsigned long n), *__tsan_memset(void *to, int value, unsigned long n);
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void **, void *) {}
void __tsan_read_range(void *at, unsigned long bytes) {
    emulated::note(at, bytes, emulated::IS_READ, __builtin_return_address(0));
}
void __tsan_write_range(void *at, unsigned long bytes) {
    emulated::note(at, bytes, emulated::IS_WRITTEN, __builtin_return_address(0));
}
int __tsan_atomic32_load(const volatile int *at, int) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
void *__tsan_memcpy(void *to, const void *from, unsigned long n) {
    emulated::note(from, n, emulated::IS_READ, __builtin_return_address(0));
    emulated::note(to, n, emulated::IS_WRITTEN, __builtin_return_address(0));
    return std::memcpy(to, from, n);
}
void *__tsan_memset(void *to, int value, unsigned long n) {
    emulated::note(to, n, emulated::IS_WRITTEN, __builtin_return_address(0));
    return std::memset(to, value, n);
}
}
