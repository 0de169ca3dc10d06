/* The fibers of cuda_emulation.h. A fiber starts on a context of its own (makecontext); after that the compiler's own
 * setjmp and longjmp change stacks, since swapcontext would make a system call every time, and the library's take
 * longer than most kernels compute between two shuffles. */
#include "cuda_emulation.h"

#include <memory>
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
        if (done == n) return;
        if (done != 0) fail("a thread left before the others' barrier");
        if (!ran) fail("no thread can go on");
        for (unsigned i = 0; i < n; ++i) fibers[i].now = READY;
    }
}

void launch(dim3 grid, dim3 threads, size_t shared, const std::function<void()> &fn) {
    static unsigned turn;
    if (threads.x % WARP != 0 || threads.x == 0 || threads.x > MOST_THREADS || threads.y != 1 || threads.z != 1) {
        fail("the block is not one-dimensional, of whole warps, and of at most 1024 threads");
    }
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) fail("the grid is impossible");
    if (shared > sizeof dynamic) fail("more shared memory than a device has");
    if (fibers.empty()) fibers.resize(MOST_THREADS);
    kernel = &fn;
    block_size = threads;
    grid_size = grid;
    dynamic_bytes = shared;
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                block = uint3{x, y, z};
                run_block(turn++ % 2 != 0);
            }
        }
    }
}

} // namespace emulated
