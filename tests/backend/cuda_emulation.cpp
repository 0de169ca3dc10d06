/* The fibers of cuda_emulation.h, whose stacks are changed by a few instructions of each processor's: swapcontext would
 * make a system call every time, and after longjmp the processor, which pairs calls and returns, guesses wrong. A
 * lane that waits goes on with the next lane itself. */
#include "cuda_emulation.h"

#include <algorithm>
#include <map>
#include <memory>
#include <sys/mman.h>
#include <vector>

namespace emulated {

uint3 thread, block;
dim3 block_size, grid_size;

enum state { AT_WARP, AT_BLOCK, DONE };
enum { WARP = 32, MOST_THREADS = 1024, STACK = 192 << 10 };
/* Shared memory of a block, static and dynamic: what it may have unasked, and what all of sm_80 to sm_120 have. */
enum { PLAIN_SHARED = 48 << 10, MOST_SHARED = 99 << 10 };

/* Keeps what every call preserves on this stack and its address at `from`, and goes on on the stack that `to` tells. */
extern "C" void pf_emulated_change(void **from, void **to) __attribute__((visibility("hidden")));
#if defined(__x86_64__)
enum { RETURN = 6, FRAME = 8 }; /* words: where the address is that it returns to, and all */
asm(".text\n.globl pf_emulated_change\n.type pf_emulated_change, %function\npf_emulated_change:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp, (%rdi)\nmov (%rsi), %rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");
#else
enum { RETURN = 1, FRAME = 20 };
asm(".text\n.globl pf_emulated_change\n.type pf_emulated_change, %function\npf_emulated_change:\n"
    "stp x29, x30, [sp, #-160]!\nstp x19, x20, [sp, #16]\nstp x21, x22, [sp, #32]\nstp x23, x24, [sp, #48]\n"
    "stp x25, x26, [sp, #64]\nstp x27, x28, [sp, #80]\nstp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\n"
    "stp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x9, sp\nstr x9, [x0]\nldr x9, [x1]\nmov sp, x9\n"
    "ldp x19, x20, [sp, #16]\nldp x21, x22, [sp, #32]\nldp x23, x24, [sp, #48]\nldp x25, x26, [sp, #64]\n"
    "ldp x27, x28, [sp, #80]\nldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\n"
    "ldp d14, d15, [sp, #144]\nldp x29, x30, [sp], #160\nret\n");
#endif

/* By thread. The number of the one that runs is thread.x. */
static void *places[MOST_THREADS], *scheduler; /* on their stacks */
static std::unique_ptr<char[]> stacks[MOST_THREADS];
static uint8_t parity[MOST_THREADS];
static uint16_t warp_turns[MOST_THREADS]; /* warp barriers so far */
static bool fenced[MOST_THREADS];         /* there was a fence in this block */
static unsigned n_started;
static const std::function<void()> *kernel;

/* The warp that runs takes turns: in each of them all its lanes run, one after the other, from the first lane to the
 * last or back, until they wait. */
static unsigned last_lane, n_at_warp, n_done;
static int to_next; /* lane: 1 or -1 */
static uint64_t block_turn, first_turn, launch_turn; /* barriers so far; before the block, and the launch */
static bool is_running;

static uint64_t slots[2][MOST_THREADS];
alignas(256) static uint8_t variables[MOST_SHARED], dynamic[MOST_SHARED];
static size_t variable_bytes, dynamic_bytes;
static std::map<const void *, size_t> allowed; /* dynamic bytes, of kernels */
static size_t asked_bytes, most_shared;        /* of the kernel that runs: these, or what it uses; with static ones */
static std::vector<size_t> variable_of; /* a thread's next variable: all threads declare them in the same order */
static std::vector<size_t> offsets;

#if !defined(PF_EMULATED_WATCH)
static void note_access(const void *, size_t, access) {}
#else
static void note_access(const void *memory, size_t bytes, access how); /* cuda_watch.cpp */
#endif
void note_atomic(const void *memory, size_t bytes) { note_access(memory, bytes, IS_ATOMIC); }
void fence() { fenced[thread.x] = true; }

void fail(const char *what) {
    std::fflush(stdout);
    std::fprintf(stderr, "CUDA emulation: block %u,%u,%u, thread %u: %s\n", block.x, block.y, block.z, thread.x, what);
    std::abort();
}

/* The warp's next lane, or its first one for the next turn, or, when no lane can go on, the scheduler. */
static void **next_place() {
    if (thread.x != last_lane) return &places[thread.x += (unsigned)to_next];
    if (n_at_warp == 0) return &scheduler;
    if (n_at_warp != WARP) fail("the lanes of a warp parted before a shuffle");
    n_at_warp = 0;
    return &places[thread.x -= (unsigned)(to_next * (WARP - 1))];
}

static inline void wait(state what) {
    void **own = &places[thread.x];
    n_at_warp += what == AT_WARP;
    n_done += what == DONE;
    pf_emulated_change(own, next_place());
}

static void body() {
    for (;;) {
        (*kernel)();
        wait(DONE);
    }
}

/* A new fiber, before its first kernel. */
static void start(unsigned i) {
    stacks[i].reset(new char[STACK]);
    uintptr_t end = reinterpret_cast<uintptr_t>(stacks[i].get()) + STACK;
    end -= i % 61 * 1088; /* else all stacks share the same few lines of the cache */
    void **top = reinterpret_cast<void **>(end / 16 * 16) - FRAME;
    for (unsigned k = 0; k < FRAME; ++k) top[k] = nullptr;
    top[RETURN] = reinterpret_cast<void *>(body);
    places[i] = top;
}

void block_barrier() { wait(AT_BLOCK); }
void warp_barrier() {
    ++warp_turns[thread.x];
    wait(AT_WARP);
}

uint64_t exchange(uint64_t value, unsigned from) {
    /* Two sets of slots in turn, so that one wait is enough. */
    slots[parity[thread.x] ^= 1u][thread.x] = value;
    wait(AT_WARP);
    return slots[parity[thread.x]][thread.x / WARP * WARP + from];
}

/* ---- Tensor cores: the lane that comes last multiplies for the whole warp ---- */

template <typename T> struct fragment { /* of one lane */
    uint32_t a[4], b[2];
    T sum[4];
};

/* Matrices lie over the lanes as PTX has them, with SIZE values in a register. Those of register i of A are of row
 * lane / 4 + 8 (i % 2), from column SIZE (lane % 4 + 4 (i / 2)) on; those of B of column lane / 4, from row
 * SIZE (lane % 4 + 4 i) on; sum i is that of row lane / 4 + 8 (i / 2) and column lane % 4 * 2 + i % 2. */
template <typename T, unsigned SIZE, typename F> static void multiply(fragment<T> *of, F value) {
    T a[16][8 * SIZE], b[8 * SIZE][8], sum[16][8];
    for (unsigned lane = 0; lane < WARP; ++lane) {
        const unsigned group = lane / 4, quarter = lane % 4;
        for (unsigned k = 0; k < SIZE; ++k) {
            for (unsigned i = 0; i < 4; ++i) {
                a[group + i % 2 * 8][SIZE * (quarter + i / 2 * 4) + k] = value(of[lane].a[i], k);
            }
            for (unsigned i = 0; i < 2; ++i) b[SIZE * (quarter + 4 * i) + k][group] = value(of[lane].b[i], k);
        }
        for (unsigned i = 0; i < 4; ++i) sum[group + i / 2 * 8][quarter * 2 + i % 2] = of[lane].sum[i];
    }
    for (unsigned row = 0; row < 16; ++row) {
        for (unsigned k = 0; k < 8 * SIZE; ++k) {
            for (unsigned column = 0; column < 8; ++column) sum[row][column] += a[row][k] * b[k][column];
        }
    }
    for (unsigned lane = 0; lane < WARP; ++lane) {
        for (unsigned i = 0; i < 4; ++i) of[lane].sum[i] = sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
}

template <typename T, unsigned SIZE, typename F>
static void multiply_together(const uint32_t *a, const uint32_t *b, T *sum, F value) {
    static fragment<T> fragments[2][WARP];
    const unsigned lane = thread.x % WARP, set = parity[thread.x] ^= 1u;
    fragment<T> &own = fragments[set][lane];
    std::memcpy(own.a, a, sizeof own.a);
    std::memcpy(own.b, b, sizeof own.b);
    std::memcpy(own.sum, sum, sizeof own.sum);
    if (n_at_warp == WARP - 1) multiply<T, SIZE>(fragments[set], value);
    wait(AT_WARP);
    std::memcpy(sum, own.sum, sizeof own.sum);
}

void mma_m16n8k32(const uint32_t *a, const uint32_t *b, int *sum) {
    std::memset(sum, 0, 4 * sizeof *sum);
    multiply_together<int, 4>(a, b, sum, [](uint32_t bits, unsigned k) { return (int)(int8_t)(bits >> 8 * k); });
}

void mma_m16n8k16_bf16(const uint32_t *a, const uint32_t *b, float *sum) {
    multiply_together<float, 2>(a, b, sum, [](uint32_t bits, unsigned k) {
        return __uint_as_float(k ? bits & 0xffff0000u : bits << 16);
    });
}

void ldmatrix_x4(const void *row, bool across, uint32_t *out) {
    const unsigned self = thread.x, lane = self % WARP, set = parity[self] ^= 1u;
    if ((uintptr_t)row % 16 != 0) fail("a matrix's row is not aligned to 16");
    slots[set][self] = (uint64_t)(uintptr_t)row;
    note_access(row, 16, IS_READ);
    wait(AT_WARP);
    const uint64_t *rows = slots[set] + self / WARP * WARP;
    for (unsigned m = 0; m < 4; ++m) {
        for (unsigned half = 0; half < 2; ++half) {
            const unsigned i = lane % 4 * 2 + half, of = across ? i : lane / 4, value = across ? lane / 4 : i;
            std::memcpy((char *)(out + m) + 2 * half, (const char *)(uintptr_t)rows[8 * m + of] + 2 * value, 2);
        }
    }
}

struct late_copy {
    void *to;
    const void *from;
    size_t bytes;
};
static std::vector<late_copy> late[MOST_THREADS];

void copy_later(void *to, const void *from, size_t bytes) {
    if ((uintptr_t)to % bytes != 0 || (uintptr_t)from % bytes != 0) fail("a copy to shared memory is not aligned");
    note_access(from, bytes, IS_READ);
    note_access(to, bytes, IS_WRITTEN);
    late[thread.x].push_back({to, from, bytes});
}
void await_copies() {
    for (const late_copy &copy : late[thread.x]) {
        note_access(copy.to, copy.bytes, IS_WRITTEN);
        std::memcpy(copy.to, copy.from, copy.bytes);
    }
    late[thread.x].clear();
}

void *shared_variable(size_t bytes) {
    const size_t index = variable_of[thread.x]++;
    if (index == offsets.size()) {
        offsets.push_back(variable_bytes);
        variable_bytes += (bytes + 15) / 16 * 16;
        if (variable_bytes > PLAIN_SHARED) fail("more than 48 KiB of static shared memory");
        if (variable_bytes + asked_bytes > most_shared) fail("more shared memory than the kernel may have");
    }
    return variables + offsets[index];
}
void *dynamic_shared() { return dynamic; }

void allow_shared(const void *address, size_t bytes) { allowed[address] = bytes; }

/* Runs a warp until all of its lanes wait for the block or are done. */
static void run_warp(unsigned warp, bool reversed) {
    to_next = reversed ? -1 : 1;
    thread.x = warp * WARP + (reversed ? WARP - 1 : 0);
    last_lane = warp * WARP + (reversed ? 0 : WARP - 1);
    pf_emulated_change(&scheduler, &places[thread.x]);
}

static void run_block(bool reversed) {
    const unsigned n = block_size.x, warps = n / WARP;
    first_turn = block_turn;
    std::fill_n(fenced, n, false);
    std::memset(dynamic, 0xff, dynamic_bytes);
    std::memset(variables, 0xff, variable_bytes);
    variable_of.assign(n, 0);
    offsets.clear();
    variable_bytes = 0;
    for (n_done = 0; n_done == 0;) {
        ++block_turn;
        for (unsigned w = 0; w < warps; ++w) run_warp(reversed ? warps - 1 - w : w, reversed);
    }
    if (n_done != n) fail("a thread left before the others' barrier");
    for (unsigned i = 0; i < n; ++i) {
        if (!late[i].empty()) fail("nobody waited for a copy to shared memory");
    }
}

/* ---- Memory ---- */

enum { ALIGNMENT = 256 };

/* PF_EMULATED_STRICT. Where the processor has no protection keys that takes a system call a kernel, whose time grows with the
 * memory in use: there memory is closed after one kernel in LEFT_OPEN only, and after every graph in as many. */
static const bool strict = std::getenv("PF_EMULATED_STRICT") != nullptr;

/* One range of addresses; when strict, closed to everybody but kernels and copies. */
struct device_memory {
    uint8_t *base;
    size_t bytes, used = 0;
    int key = -1; /* protection key; -1: none */
    std::map<size_t, size_t> blocks; /* offset to size, both multiples of ALIGNMENT */

    device_memory() {
        const char *mb = std::getenv("PF_EMULATED_MB");
        bytes = (mb ? std::strtoul(mb, nullptr, 10) : 1024) << 20;
        const int all = PROT_READ | PROT_WRITE, access = strict ? PROT_NONE : all;
        void *region = mmap(nullptr, bytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (region == MAP_FAILED) fail("no address space for the device's memory");
        base = static_cast<uint8_t *>(region);
#if defined(PKEY_DISABLE_ACCESS)
        if (strict) key = pkey_alloc(0, PKEY_DISABLE_ACCESS); /* other threads have no access from the start */
        if (key >= 0 && pkey_mprotect(base, bytes, all, key) != 0) fail("the device's memory cannot be protected");
#endif
    }
};

static device_memory &device() {
    static device_memory memory;
    return memory;
}

/* While one lives, the memory can be touched. */
struct opened {
    opened() {
        if (strict && depth++ == 0) change(PROT_READ | PROT_WRITE);
    }
    ~opened() {
        if (strict && --depth == 0) change(PROT_NONE);
    }

  private:
    enum { LEFT_OPEN = 16 };
    static thread_local int depth;

    static void change(int access) {
        static bool is_open = false;
        static unsigned turn = 0;
#if defined(PKEY_DISABLE_ACCESS)
        if (device().key >= 0) {
            pkey_set(device().key, access == PROT_NONE ? PKEY_DISABLE_ACCESS : 0);
            return;
        }
#endif
        if (access == PROT_NONE && ++turn % LEFT_OPEN != 0) return;
        if (is_open == (access != PROT_NONE)) return;
        is_open = !is_open;
        mprotect(device().base, device().bytes, access);
    }
};
thread_local int opened::depth = 0;

void *device_alloc(size_t bytes) {
    device_memory &d = device();
    const size_t size = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t at = 0;
    for (const auto &block : d.blocks) { /* the first gap that is large enough */
        if (block.first - at >= size) break;
        at = block.first + block.second;
    }
    if (at > d.bytes || d.bytes - at < size) return nullptr;
    d.blocks[at] = size;
    d.used += size;
    const opened memory;
    std::memset(d.base + at, 0xff, size);
    return d.base + at;
}

void device_free(void *memory) {
    device_memory &d = device();
    if (!memory) return;
    const auto found = d.blocks.find(static_cast<size_t>(static_cast<uint8_t *>(memory) - d.base));
    if (found == d.blocks.end()) fail("memory was freed that was never given");
    forget_block(memory);
    d.used -= found->second;
    d.blocks.erase(found);
}

void device_copy(void *to, const void *from, size_t bytes) {
    const opened memory;
    std::memcpy(to, from, bytes);
}

void device_fill(void *to, int value, size_t bytes) {
    const opened memory;
    std::memset(to, value, bytes);
}

const void *device_block(const void *address) {
    device_memory &d = device();
    const uint64_t at = reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(d.base);
    auto found = d.blocks.upper_bound(at);
    if (at >= d.bytes || found == d.blocks.begin()) return nullptr;
    --found;
    return at < found->first + found->second ? d.base + found->first : nullptr;
}

size_t device_bytes() { return device().bytes; }
size_t device_free_bytes() { return device().bytes - device().used; }

/* An address that is in use: no size, count or pair of floats looks like one. What lies in the gap after a struct's int,
 * bool or small float may make it look like one, so that some addresses are let through. */
static bool is_address(uint64_t word) {
    const uint32_t low = static_cast<uint32_t>(word);
    unsigned char resident;
    if (word < UINT64_C(0x500000000000) || word >= UINT64_C(0x800000000000)) return false;
    if (low < 65536 || (low >= 0x35000000u && low < 0x41000000u)) return false; /* a float from 5e-7 to 8 */
    return mincore(reinterpret_cast<void *>(word & ~UINT64_C(0xfff)), 1, &resident) == 0;
}

void check_words(const void *argument, size_t bytes) {
    if (!strict) return;
    const uint64_t base = reinterpret_cast<uintptr_t>(device().base);
    for (size_t at = 0; at + sizeof(uint64_t) <= bytes; at += sizeof(uint64_t)) {
        uint64_t word;
        std::memcpy(&word, static_cast<const uint8_t *>(argument) + at, sizeof word);
        if (!is_address(word) || word - base < device().bytes) continue;
        char what[120];
        std::snprintf(what, sizeof what, "the kernel after this one is given an address of the host's memory, at byte %zu of %zu",
                      at, bytes);
        fail(what);
    }
}

/* How many graphs were made and run, for tests to read; `alive` counts executable ones, `single` kernels outside of any.
 * The hook is called before everything that is queued, captured or not. */
struct graph_counts {
    uint64_t made, launched, alive, single;
};
extern "C" {
__attribute__((visibility("default"))) graph_counts pf_emulated_graphs;
__attribute__((visibility("default"))) void (*pf_emulated_hook)();
}
static bool in_graph;

void launch(const void *address, dim3 grid, dim3 threads, size_t shared, const std::function<void()> &fn) {
    static unsigned turn;
    const auto asked = allowed.find(address);
    if (threads.x % WARP != 0 || threads.x == 0 || threads.x > MOST_THREADS || threads.y != 1 || threads.z != 1) {
        fail("the block is not one-dimensional, of whole warps, and of at most 1024 threads");
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) fail("the grid is impossible");
    most_shared = asked != allowed.end() ? MOST_SHARED : PLAIN_SHARED;
    asked_bytes = asked != allowed.end() ? asked->second : shared;
    if (shared > asked_bytes) fail("more dynamic shared memory than was asked for");
    if (asked_bytes > most_shared) fail("more shared memory than the kernel may have");
    for (; n_started < threads.x; ++n_started) start(n_started);
    if (!in_graph) ++pf_emulated_graphs.single;
    kernel = &fn;
    block_size = threads;
    grid_size = grid;
    dynamic_bytes = shared;
    launch_turn = block_turn;
    const opened memory;
    is_running = true;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                block = uint3{x, y, z};
                run_block(turn++ % 2 != 0);
            }
        }
    }
    is_running = false;
}

/* ---- Graphs ---- */

struct graph {
    std::vector<std::function<void()>> work;
};

static bool capturing, spoiled;
static int last_error;
static graph *captured;

static bool refuses(const char *step) {
    const char *refused = std::getenv("PF_EMULATED_NO_GRAPHS");
    return refused && std::strcmp(refused, step) == 0;
}

static bool is_lost() { return std::getenv("PF_EMULATED_LOST") != nullptr; }

int take_error() {
    const int error = is_lost() ? cudaErrorLaunchFailure : last_error;
    last_error = cudaSuccess;
    return error;
}

bool is_capturing() { return capturing; }

int forbidden() {
    spoiled = true;
    return last_error = cudaErrorStreamCaptureUnsupported;
}

int enqueue(std::function<void()> work) {
    if (pf_emulated_hook) pf_emulated_hook();
    if (!capturing) {
        work();
        return cudaSuccess;
    }
    if (spoiled) return last_error = cudaErrorStreamCaptureInvalidated;
    if (refuses("launch")) return forbidden();
    captured->work.push_back(std::move(work));
    return cudaSuccess;
}

int begin_capture() {
    if (capturing) fail("a capture within a capture");
    if (is_lost() || refuses("begin")) return last_error = cudaErrorLaunchFailure;
    capturing = true;
    spoiled = false;
    captured = new graph;
    return cudaSuccess;
}

int end_capture(graph **out) {
    if (!capturing) fail("the end of a capture that has not begun");
    capturing = false;
    if (!spoiled) return *out = captured, cudaSuccess;
    delete captured;
    *out = nullptr;
    return last_error = cudaErrorStreamCaptureInvalidated;
}

int instantiate(graph **out, const graph *from) {
    if (is_lost() || refuses("instantiate")) return last_error = cudaErrorMemoryAllocation;
    *out = new graph(*from);
    ++pf_emulated_graphs.made;
    ++pf_emulated_graphs.alive;
    return cudaSuccess;
}

int launch_graph(const graph *g) {
    if (capturing) fail("a graph within a graph");
    if (pf_emulated_hook) pf_emulated_hook();
    if (is_lost()) return cudaErrorLaunchFailure;
    ++pf_emulated_graphs.launched;
    in_graph = true;
    const opened memory;
    for (const auto &work : g->work) work();
    in_graph = false;
    return cudaSuccess;
}

void destroy_graph(graph *g, bool is_executable) {
    if (is_executable) --pf_emulated_graphs.alive;
    delete g;
}

} // namespace emulated
