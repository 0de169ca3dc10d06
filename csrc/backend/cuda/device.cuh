/* The thin layer between the kernels and what runs them: CUDA, or, with PF_CUDA_EMULATED, an emulation by the host's
 * compiler (tests/backend/cuda_emulation.h), in which blocks run one after the other and a block's threads as fibers.
 *
 * Rules that both rely on: blocks are one-dimensional and of whole warps; all threads of a warp take part in every
 * shuffle, and all threads of a block in every barrier; no thread leaves before its block's last barrier. */
#ifndef PF_BACKEND_CUDA_DEVICE_CUH
#define PF_BACKEND_CUDA_DEVICE_CUH

#include <stdint.h>

#if defined(PF_CUDA_EMULATED)
#  include "cuda_emulation.h"
#else
#  include <cuda_runtime.h>
/* kernel in parentheses; grid and block are dim3 or numbers; shared: bytes of PF_DYNAMIC. */
#  define PF_LAUNCH(kernel, grid, block, shared, stream, ...)          \
      do {                                                             \
          auto *kernel_ = kernel;                                      \
          kernel_<<<(grid), (block), (shared), (stream)>>>(__VA_ARGS__); \
      } while (0)
#  define PF_UNROLL _Pragma("unroll")
/* By n, which may depend on a template's arguments. */
#  define PF_UNROLL_BY(n) PF_PRAGMA(unroll(n))
#  define PF_PRAGMA(text) _Pragma(#text)
/* A block's shared variable; type: a plain struct. */
#  define PF_SHARED(type, name) __shared__ type name
/* The block's shared memory of the size that the launch gives, aligned to 16. */
#  define PF_DYNAMIC(name) extern __shared__ __align__(16) uint8_t name[]
/* Tells the emulation what is read of memory into which others are copying meanwhile. */
#  define PF_READS(memory, bytes) ((void)0)
#endif

#define PF_DEV static __device__ __forceinline__

enum { PF_WARP = 32 };
#define PF_ALL_LANES 0xffffffffu

PF_DEV int pf_lane() { return (int)(threadIdx.x & 31u); }
PF_DEV int pf_warp() { return (int)(threadIdx.x >> 5); }

template <typename T> PF_DEV T pf_shfl_xor(T v, int mask) { return __shfl_xor_sync(PF_ALL_LANES, v, mask); }

/* The sum over a warp, in all lanes; always in the same order. */
PF_DEV float pf_warp_sum(float v) {
    for (int mask = 16; mask > 0; mask /= 2) v += pf_shfl_xor(v, mask);
    return v;
}
PF_DEV float pf_warp_max(float v) {
    for (int mask = 16; mask > 0; mask /= 2) v = fmaxf(v, pf_shfl_xor(v, mask));
    return v;
}
PF_DEV uint32_t pf_warp_max_bits(uint32_t v) {
    for (int mask = 16; mask > 0; mask /= 2) {
        const uint32_t other = pf_shfl_xor(v, mask);
        v = other > v ? other : v;
    }
    return v;
}

/* The sum over a block, in all threads; `part` is shared. */
struct pf_parts {
    float of_warp[PF_WARP];
};
PF_DEV float pf_block_sum(float v, pf_parts &part) {
    v = pf_warp_sum(v);
    if (pf_lane() == 0) part.of_warp[pf_warp()] = v;
    __syncthreads();
    const float sum = pf_warp_sum(pf_lane() < (int)(blockDim.x / PF_WARP) ? part.of_warp[pf_lane()] : 0.0f);
    __syncthreads(); /* part may be used again */
    return sum;
}

/* sum = init + A B: A 16 rows and B 8 columns of 32 bytes, int8, lying over the warp's lanes as PTX's mma.m16n8k32 has
 * them. All lanes call it. */
PF_DEV void pf_mma_bytes(int (&sum)[4], const uint32_t (&a)[4], const uint2 &b, int init) {
#if defined(PF_CUDA_EMULATED)
    const uint32_t of_b[2] = {b.x, b.y};
    emulated::mma_m16n8k32(a, of_b, sum);
    for (int i = 0; i < 4; ++i) sum[i] += init;
#else
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %10, %10, %10};"
        : "=r"(sum[0]), "=r"(sum[1]), "=r"(sum[2]), "=r"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "r"(init));
#endif
}

/* The same, sum += A B. */
PF_DEV void pf_mma_bytes_add(int (&sum)[4], const uint32_t (&a)[4], const uint2 &b) {
#if defined(PF_CUDA_EMULATED)
    int product[4];
    pf_mma_bytes(product, a, b, 0);
    for (int i = 0; i < 4; ++i) sum[i] += product[i];
#else
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
#endif
}

/* sum += A B: A 16 rows and B 8 columns of 16 bfloat16, lying over the warp's lanes as PTX's mma.m16n8k16 has them. All
 * lanes call it. */
PF_DEV void pf_mma_bf16(float (&sum)[4], const uint32_t (&a)[4], const uint2 &b) {
#if defined(PF_CUDA_EMULATED)
    const uint32_t of_b[2] = {b.x, b.y};
    emulated::mma_m16n8k16_bf16(a, of_b, sum);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y));
#endif
}

/* Four 8 x 8 matrices of 16-bit values in shared memory; lane i names row i % 8 of matrix i / 8, aligned to 16. Lane
 * 4 g + q gets values 2 q and 2 q + 1 of row g of each or, ACROSS, of rows 2 q and 2 q + 1 value g. All call it. */
template <bool ACROSS> PF_DEV void pf_load_matrices(const void *row, uint32_t (&out)[4]) {
#if defined(PF_CUDA_EMULATED)
    emulated::ldmatrix_x4(row, ACROSS, out);
#else
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    if (ACROSS) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(at) : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(at) : "memory");
    }
#endif
}

/* 16 bytes from the device's memory to shared memory, both aligned to 16, some time before pf_await_copies of the same
 * thread returns. */
PF_DEV void pf_copy_later(void *to, const void *from) {
#if defined(PF_CUDA_EMULATED)
    emulated::copy_later(to, from, 16);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(to)), "l"(from)
                 : "memory");
#endif
}
PF_DEV void pf_await_copies() {
#if defined(PF_CUDA_EMULATED)
    emulated::await_copies();
#else
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

/* Index of the thread in the grid's first dimension, and how many there are. */
PF_DEV int64_t pf_thread() { return (int64_t)blockIdx.x * blockDim.x + threadIdx.x; }
PF_DEV int64_t pf_threads() { return (int64_t)gridDim.x * blockDim.x; }

/* A position that may count from one in device memory (pf_plugin.set_base). */
struct pf_position {
    const int64_t *base;
    int64_t offset;
};
PF_DEV int64_t pf_position_of(pf_position p) { return p.base ? *p.base + p.offset : p.offset; }

PF_DEV bool pf_aligned(const void *p, uint32_t to) { return ((uintptr_t)p & (to - 1u)) == 0; }

#endif
