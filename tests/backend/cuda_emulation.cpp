/* The fibers of cuda_emulation.h. A fiber starts on a context of its own (makecontext); after that the compiler's own
 * setjmp and longjmp change stacks, since swapcontext would make a system call every time, and the library's take
 * longer than most kernels compute between two shuffles. */
#include "cuda_emulation.h"

#include <map>
#include <memory>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

namespace emulated {

uint3 thread, block;
dim3 block_size, grid_size;

enum state { READY, AT_WARP, AT_BLOCK, DONE };
enum { WARP = 32, MOST_THREADS = 1024, STACK = 192 << 10, MOST_SHARED = 227 << 10 };

/* A function during which the stack changes: callers may rely on no register but those that every call preserves. */
#if defined(__clang__)
#  define FAR __attribute__((noinline))
#else
#  define FAR __attribute__((noipa))
#endif

struct place {
    void *words[5];
};

struct fiber {
    ucontext_t start;
    place at;
    std::unique_ptr<char[]> stack;
    bool started = false;
    state now = READY;
    unsigned parity = 0;
};

static std::vector<fiber> fibers;
static place scheduler;
static const std::function<void()> *kernel;
static unsigned running;
static uint64_t slots[2][MOST_THREADS];
struct fragment {
    uint32_t a[4], b[2];
};
static fragment fragments[2][MOST_THREADS];
alignas(256) static uint8_t variables[MOST_SHARED], dynamic[MOST_SHARED];
static size_t variable_bytes, dynamic_bytes;
static std::vector<size_t> variable_of; /* a thread's next variable: all threads declare them in the same order */
static std::vector<size_t> offsets;

void fail(const char *what) {
    std::fflush(stdout);
    std::fprintf(stderr, "CUDA emulation: block %u,%u,%u, thread %u: %s\n", block.x, block.y, block.z, thread.x, what);
    std::abort();
}

/* Never in the function that has called __builtin_setjmp. */
[[noreturn]] static FAR void go_to(place &where) { __builtin_longjmp(where.words, 1); }

static FAR void wait(state what) {
    fiber &f = fibers[running];
    f.now = what;
    if (__builtin_setjmp(f.at.words) == 0) go_to(scheduler);
}

static void body() {
    for (;;) {
        (*kernel)();
        wait(DONE);
    }
}

static FAR void resume(unsigned i) {
    fiber &f = fibers[i];
    running = i;
    thread = uint3{i, 0, 0};
    if (__builtin_setjmp(scheduler.words) != 0) return;
    if (f.started) go_to(f.at);
    f.started = true;
    f.stack.reset(new char[STACK]);
    getcontext(&f.start);
    f.start.uc_stack.ss_sp = f.stack.get();
    f.start.uc_stack.ss_size = STACK - i % 61 * 1088; /* else all stacks share the same few lines of the cache */
    f.start.uc_link = nullptr;
    makecontext(&f.start, body, 0);
    setcontext(&f.start);
}

void block_barrier() { wait(AT_BLOCK); }
void warp_barrier() { wait(AT_WARP); }

uint64_t exchange(uint64_t value, unsigned from) {
    /* Two sets of slots in turn, so that one wait is enough. */
    const unsigned self = running, set = fibers[self].parity ^= 1u;
    slots[set][self] = value;
    wait(AT_WARP);
    return slots[set][self / WARP * WARP + from];
}

/* What the warp's lanes gave. */
static const fragment *exchange_fragments(const uint32_t *a, const uint32_t *b) {
    const unsigned self = running, set = fibers[self].parity ^= 1u;
    fragment &own = fragments[set][self];
    std::memcpy(own.a, a, sizeof own.a);
    std::memcpy(own.b, b, sizeof own.b);
    wait(AT_WARP);
    return fragments[set] + self / WARP * WARP;
}

/* Byte k of row r of A is byte k % 4 of register 2 (k / 16) + r / 8 of lane 4 (r % 8) + k % 16 / 4; of column c of B that of
 * register k / 16 of lane 4 c + k % 16 / 4; sum i is that of row lane / 4 + 8 (i / 2) and column lane % 4 * 2 + i % 2. */
void mma_m16n8k32(const uint32_t *a, const uint32_t *b, int *sum) {
    const unsigned lane = running % WARP;
    const fragment *of = exchange_fragments(a, b);
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
        sum[i] = 0;
        for (unsigned k = 0; k < 32; ++k) {
            const uint32_t of_a = of[row % 8 * 4 + k % 16 / 4].a[k / 16 * 2 + row / 8];
            const uint32_t of_b = of[column * 4 + k % 16 / 4].b[k / 16];
            sum[i] += (int8_t)(of_a >> k % 4 * 8) * (int8_t)(of_b >> k % 4 * 8);
        }
    }
}

/* The same with 2 for 4 values a register: value k of row r of A is half k % 2 of register 2 (k / 8) + r / 8 of lane
 * 4 (r % 8) + k % 8 / 2. */
void mma_m16n8k16_bf16(const uint32_t *a, const uint32_t *b, float *sum) {
    const unsigned lane = running % WARP;
    const fragment *of = exchange_fragments(a, b);
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane / 4 + 8 * (i / 2), column = lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; k += 2) {
            const uint32_t of_a = of[row % 8 * 4 + k % 8 / 2].a[k / 8 * 2 + row / 8];
            const uint32_t of_b = of[column * 4 + k % 8 / 2].b[k / 8];
            sum[i] += __uint_as_float(of_a << 16) * __uint_as_float(of_b << 16);
            sum[i] += __uint_as_float(of_a & 0xffff0000u) * __uint_as_float(of_b & 0xffff0000u);
        }
    }
}

void ldmatrix_x4(const void *row, bool across, uint32_t *out) {
    const unsigned self = running, lane = self % WARP, set = fibers[self].parity ^= 1u;
    if ((uintptr_t)row % 16 != 0) fail("a matrix's row is not aligned to 16");
    slots[set][self] = (uint64_t)(uintptr_t)row;
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
    late[running].push_back({to, from, bytes});
}
void await_copies() {
    for (const late_copy &copy : late[running]) std::memcpy(copy.to, copy.from, copy.bytes);
    late[running].clear();
}

void *shared_variable(size_t bytes) {
    const size_t index = variable_of[running]++;
    if (index == offsets.size()) {
        offsets.push_back(variable_bytes);
        variable_bytes += (bytes + 15) / 16 * 16;
        if (variable_bytes > (48 << 10)) fail("more than 48 KiB of static shared memory");
    }
    return variables + offsets[index];
}
void *dynamic_shared() { return dynamic; }

/* Runs a warp until all of its lanes wait for the block or are done; false when none could run. */
static bool run_warp(unsigned warp, bool reversed) {
    bool ran = false;
    for (;;) {
        unsigned waiting = 0;
        for (unsigned l = 0; l < WARP; ++l) {
            const unsigned i = warp * WARP + (reversed ? WARP - 1 - l : l);
            if (fibers[i].now != READY) continue;
            ran = true;
            resume(i);
        }
        for (unsigned l = 0; l < WARP; ++l) waiting += fibers[warp * WARP + l].now == AT_WARP;
        if (waiting == 0) return ran;
        if (waiting != WARP) fail("the lanes of a warp parted before a shuffle");
        for (unsigned l = 0; l < WARP; ++l) fibers[warp * WARP + l].now = READY;
    }
}

static void run_block(bool reversed) {
    const unsigned n = block_size.x, warps = n / WARP;
    for (unsigned i = 0; i < n; ++i) fibers[i].now = READY;
    std::memset(dynamic, 0xff, dynamic_bytes);
    std::memset(variables, 0xff, variable_bytes);
    variable_of.assign(n, 0);
    offsets.clear();
    variable_bytes = 0;
    for (;;) {
        bool ran = false;
        for (unsigned w = 0; w < warps; ++w) ran = run_warp(reversed ? warps - 1 - w : w, reversed) || ran;
        unsigned done = 0;
        for (unsigned i = 0; i < n; ++i) done += fibers[i].now == DONE;
        if (done == n) {
            for (unsigned i = 0; i < n; ++i) {
                if (!late[i].empty()) fail("nobody waited for a copy to shared memory");
            }
            return;
        }
        if (done != 0) fail("a thread left before the others' barrier");
        if (!ran) fail("no thread can go on");
        for (unsigned i = 0; i < n; ++i) fibers[i].now = READY;
    }
}

/* ---- Memory ---- */

enum { ALIGNMENT = 256 };

/* PF_EMULATED_STRICT: costs a system call a kernel, whose time grows with the memory in use, where the processor has no
 * protection keys. */
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
    opened() { change(PROT_READ | PROT_WRITE); }
    ~opened() { change(PROT_NONE); }

  private:
    static void change(int access) {
        if (!strict) return;
#if defined(PKEY_DISABLE_ACCESS)
        if (device().key >= 0) {
            pkey_set(device().key, access == PROT_NONE ? PKEY_DISABLE_ACCESS : 0);
            return;
        }
#endif
        mprotect(device().base, device().bytes, access);
    }
};

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

void launch(dim3 grid, dim3 threads, size_t shared, const std::function<void()> &fn) {
    static unsigned turn;
    if (threads.x % WARP != 0 || threads.x == 0 || threads.x > MOST_THREADS || threads.y != 1 || threads.z != 1) {
        fail("the block is not one-dimensional, of whole warps, and of at most 1024 threads");
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) fail("the grid is impossible");
    if (shared > sizeof dynamic) fail("more shared memory than a device has");
    if (fibers.empty()) fibers.resize(MOST_THREADS);
    if (!in_graph) ++pf_emulated_graphs.single;
    kernel = &fn;
    block_size = threads;
    grid_size = grid;
    dynamic_bytes = shared;
    const opened memory;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                block = uint3{x, y, z};
                run_block(turn++ % 2 != 0);
            }
        }
    }
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
    for (const auto &work : g->work) work();
    in_graph = false;
    return cudaSuccess;
}

void destroy_graph(graph *g, bool is_executable) {
    if (is_executable) --pf_emulated_graphs.alive;
    delete g;
}

} // namespace emulated
