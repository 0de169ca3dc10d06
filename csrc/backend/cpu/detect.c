/* Which kernel sets this machine runs, and the backend table of each. */
#if !defined(_DEFAULT_SOURCE)
#  define _DEFAULT_SOURCE /* syscall */
#endif

#include "backend/cpu/ops.h"

#include "base/fork.h"
#include "base/status.h"

#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#  define PF_X86 1
#  if defined(_MSC_VER)
#    include <intrin.h>
#  else
#    include <cpuid.h>
#  endif
#  if defined(__linux__)
#    include <sys/syscall.h>
#    include <unistd.h>
#  endif
#else
#  define PF_X86 0
#endif

#if defined(__aarch64__) || defined(_M_ARM64)
#  define PF_ARM64 1
#  if defined(_WIN32)
#    define WIN32_LEAN_AND_MEAN
#    include <windows.h>
#  elif defined(__APPLE__)
#    include <sys/types.h>
#    include <sys/sysctl.h>
#  elif defined(__linux__)
#    include <sys/auxv.h>
#  endif
#else
#  define PF_ARM64 0
#endif

/* Best first. */
enum {
#if PF_X86
    ISA_AMX,
    ISA_AVX512,
    ISA_AVXVNNI,
    ISA_AVX2,
#elif PF_ARM64
    ISA_I8MM,
    ISA_DOTPROD,
    ISA_NEON,
#endif
    ISA_SCALAR,
    ISA_COUNT
};

static const char *const isa_names[ISA_COUNT] = {
#if PF_X86
    [ISA_AMX] = "amx",
    [ISA_AVX512] = "avx512",
    [ISA_AVXVNNI] = "avxvnni",
    [ISA_AVX2] = "avx2",
#elif PF_ARM64
    [ISA_I8MM] = "i8mm",
    [ISA_DOTPROD] = "dotprod",
    [ISA_NEON] = "neon",
#endif
    [ISA_SCALAR] = "scalar",
};

/* ---- Detection --------------------------------------------------------------------------------------------- */

#if PF_X86

typedef struct cpuid_regs {
    uint32_t eax, ebx, ecx, edx;
} cpuid_regs;

static cpuid_regs cpuid(uint32_t leaf, uint32_t subleaf) {
    cpuid_regs r = {0, 0, 0, 0};
#  if defined(_MSC_VER)
    int v[4];
    __cpuid(v, 0);
    if ((uint32_t)v[0] < leaf) return r;
    __cpuidex(v, (int)leaf, (int)subleaf);
    r = (cpuid_regs){(uint32_t)v[0], (uint32_t)v[1], (uint32_t)v[2], (uint32_t)v[3]};
#  else
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx); /* leaves r alone past the last leaf */
#  endif
    return r;
}

/* Register states the operating system saves; 0 when it does not tell. */
static uint64_t xcr0(void) {
    if (!(cpuid(1, 0).ecx & 1u << 27)) return 0; /* OSXSAVE */
#  if defined(_MSC_VER)
    return _xgetbv(0);
#  else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
#  endif
}

static const char *avx2_problem(void) {
    const uint32_t fma = 1u << 12, avx = 1u << 28, f16c = 1u << 29, avx2 = 1u << 5;
    const uint32_t leaf1 = fma | avx | f16c;
    if ((cpuid(1, 0).ecx & leaf1) != leaf1 || !(cpuid(7, 0).ebx & avx2)) {
        return "this processor lacks AVX2, FMA or F16C";
    }
    if ((xcr0() & 0x6) != 0x6) return "the operating system does not save the AVX registers";
    return NULL;
}

static const char *avxvnni_problem(void) {
    const char *problem = avx2_problem();
    if (problem) return problem;
#  if defined(PF_SIMDE) /* emulated on AVX2 */
    return NULL;
#  elif defined(PF_HAS_AVX_VNNI)
    const uint32_t avx_vnni = 1u << 4;
    return cpuid(7, 0).eax >= 1 && (cpuid(7, 1).eax & avx_vnni) ? NULL : "this processor lacks AVX-VNNI";
#  else
    return "this build has no AVX-VNNI kernels: its compiler does not know AVX-VNNI";
#  endif
}

static const char *avx512_problem(void) {
    const char *problem = avx2_problem();
    if (problem) return problem;
#  if !defined(PF_SIMDE) /* emulated on AVX2 */
    const uint32_t f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31, vnni = 1u << 11;
    const uint32_t ebx = f | dq | bw | vl;
    const cpuid_regs leaf7 = cpuid(7, 0);
    if ((leaf7.ebx & ebx) != ebx) return "this processor lacks AVX-512 F, BW, DQ or VL";
    if (!(leaf7.ecx & vnni)) return "this processor lacks AVX-512 VNNI";
    if ((xcr0() & 0xe6) != 0xe6) return "the operating system does not save the AVX-512 registers";
#  endif
    return NULL;
}

#  if !defined(PF_SIMDE) && !defined(PF_NO_VBMI) /* the latter by tests */
/* Permutations of bytes: not a set of their own, since they change no result. */
static bool has_avx512_vbmi(void) { return (cpuid(7, 0).ecx & 1u << 1) != 0; }
#  endif

static const char *amx_problem(void) {
    const char *problem = avx512_problem();
    if (problem) return problem;
#  if defined(PF_AMX)
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* ARCH_REQ_XCOMP_PERM, the number of the registers' state */
    const uint32_t tile = 1u << 24, int8 = 1u << 25;
    if ((cpuid(7, 0).edx & (tile | int8)) != (tile | int8)) return "this processor lacks AMX-INT8";
    if ((xcr0() & 0x60000) != 0x60000) return "the operating system does not save the AMX registers";
    /* A process has to ask before it uses them. */
    if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) != 0) return "the kernel gives no permission to use AMX";
    return NULL;
#  elif defined(__linux__)
    return "this build has no AMX kernels: its compiler does not know AMX";
#  else
    return "AMX is used on Linux only";
#  endif
}

#elif PF_ARM64

/* Whether the processor and the system have it: the number of Windows, which old headers lack; the name of macOS; the place
 * and the bit of Linux. */
static bool has_feature(unsigned long windows, const char *macos, unsigned long linux_word, int linux_bit) {
    (void)windows, (void)macos, (void)linux_word, (void)linux_bit;
#  if defined(_WIN32)
    return IsProcessorFeaturePresent(windows) != 0;
#  elif defined(__APPLE__)
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(macos, &value, &size, NULL, 0) == 0 && value != 0;
#  elif defined(__linux__)
    return (getauxval(linux_word) >> linux_bit & 1ul) != 0;
#  else
    return false;
#  endif
}

enum { WORD_1 = 16, WORD_2 = 26 }; /* AT_HWCAP, AT_HWCAP2 */

static const char *dotprod_problem(void) {
    const bool has = has_feature(43, "hw.optional.arm.FEAT_DotProd", WORD_1, 20);
    return has ? NULL : "this processor lacks the dot product instructions";
}

static const char *i8mm_problem(void) {
    const char *problem = dotprod_problem();
    if (problem) return problem;
#  if defined(PF_HAS_I8MM)
    return has_feature(66, "hw.optional.arm.FEAT_I8MM", WORD_2, 13) ? NULL : "this processor lacks I8MM";
#  else
    return "this build has no I8MM kernels: its compiler does not know I8MM";
#  endif
}

#endif

static const char *isa_problem(int isa) {
    switch (isa) {
#if PF_X86
    case ISA_AMX: return amx_problem();
    case ISA_AVX512: return avx512_problem();
    case ISA_AVXVNNI: return avxvnni_problem();
    case ISA_AVX2: return avx2_problem();
#elif PF_ARM64
    case ISA_I8MM: return i8mm_problem();
    case ISA_DOTPROD: return dotprod_problem();
#endif
    default: return NULL;
    }
}

const char *pf_cpu_isa_name(int32_t index) { return index >= 0 && index < ISA_COUNT ? isa_names[index] : NULL; }

const char *pf_cpu_isa_problem(int32_t index) {
    return index >= 0 && index < ISA_COUNT ? isa_problem(index) : "there is no such kernel set";
}

/* Runs of rows that are read side by side (kernels.h). Zen 5 and later AMD: products of one token read 1.1 to 1.6 times as
 * fast in two streams a thread as in eight. */
static int64_t best_streams(void) {
    enum { FEW = 2 };
#if PF_X86
    const cpuid_regs leaf0 = cpuid(0, 0);
    const uint32_t version = cpuid(1, 0).eax, family = (version >> 8 & 0xf) + (version >> 20 & 0xff);
    const bool is_amd = leaf0.ebx == 0x68747541 && leaf0.edx == 0x69746e65 && leaf0.ecx == 0x444d4163; /* AuthenticAMD */
    if (is_amd && family >= 0x1a) return FEW;
#endif
    return PF_STREAMS;
}

/* ---- Tables ------------------------------------------------------------------------------------------------ */

static pf_cpu_kernels kernel_tables[ISA_COUNT];
static pf_backend backends[ISA_COUNT];

static void fill_tables(void) {
    pf_cpu_kernels scalar;
    pf_kernels_scalar_init(&scalar);
    for (int isa = 0; isa < ISA_COUNT; ++isa) {
        /* Even the init function of a kernel set may be compiled to its instructions. */
        if (isa_problem(isa) != NULL) continue;
        pf_cpu_kernels *k = &kernel_tables[isa];
        *k = scalar;
#if PF_X86
        if (isa != ISA_SCALAR) pf_kernels_extend(k, pf_kernels_avx2_init, &scalar);
#  if defined(PF_HAS_AVX_VNNI)
        if (isa == ISA_AVXVNNI) pf_kernels_extend(k, pf_kernels_avxvnni_init, &scalar);
#  endif
        if (isa == ISA_AMX || isa == ISA_AVX512) pf_kernels_extend(k, pf_kernels_avx512_init, &scalar);
#  if !defined(PF_SIMDE) && !defined(PF_NO_VBMI)
        if ((isa == ISA_AMX || isa == ISA_AVX512) && has_avx512_vbmi()) {
            pf_kernels_extend(k, pf_kernels_avx512_vbmi_init, &scalar);
        }
#  endif
#  if defined(PF_AMX)
        if (isa == ISA_AMX) pf_kernels_extend(k, pf_kernels_amx_init, &scalar);
#  endif
#elif PF_ARM64
        if (isa != ISA_SCALAR) pf_kernels_extend(k, pf_kernels_neon_init, &scalar);
        if (isa == ISA_DOTPROD || isa == ISA_I8MM) pf_kernels_extend(k, pf_kernels_dotprod_init, &scalar);
#  if defined(PF_HAS_I8MM)
        if (isa == ISA_I8MM) pf_kernels_extend(k, pf_kernels_i8mm_init, &scalar);
#  endif
#endif
        k->name = isa_names[isa];
        k->streams = best_streams();
        backends[isa] = (pf_backend){
            .name = isa_names[isa],
            .weight_kinds = PF_ALL_WEIGHT_KINDS,
            .embed = pf_cpu_embed,
            .linear = pf_cpu_linear,
            .rms_norm = pf_cpu_rms_norm,
            .rope_tail = pf_cpu_rope_tail,
            .store_rows = pf_cpu_store_rows,
            .push_frontier = pf_cpu_push_frontier,
            .compress = pf_cpu_compress,
            .hadamard = pf_cpu_hadamard,
            .round_fp4 = pf_cpu_round_fp4,
            .index_scores = pf_cpu_index_scores,
            .topk = pf_cpu_topk,
            .sparse_attn = pf_cpu_sparse_attn,
            .mhc_pre = pf_cpu_mhc_pre,
            .mhc_post = pf_cpu_mhc_post,
            .mhc_head = pf_cpu_mhc_head,
            .route = pf_cpu_route,
            .experts = pf_cpu_experts,
            .add = pf_cpu_add,
            .swiglu = pf_cpu_swiglu,
            .kernels = k,
        };
    }
}

/* The tables are filled by the first caller; anyone who comes meanwhile waits the microsecond it takes. A child that
 * was forked within that begins again. */
static void ensure_tables(void) {
    enum { EMPTY, READY, FILLING };
    static atomic_uint state = EMPTY; /* FILLING and the generation that does it */
    const unsigned filling = FILLING + pf_fork_generation();
    unsigned found = atomic_load_explicit(&state, memory_order_acquire);
    while (found != READY) {
        if (found != filling && atomic_compare_exchange_strong(&state, &found, filling)) {
            fill_tables();
            atomic_store_explicit(&state, READY, memory_order_release);
            return;
        }
        found = atomic_load_explicit(&state, memory_order_acquire);
    }
}

pf_status pf_cpu_backend(const char *isa, const pf_backend **out, pf_error *err) {
    for (int i = 0; i < ISA_COUNT; ++i) {
        const char *problem = isa_problem(i);
        if (isa ? strcmp(isa, isa_names[i]) != 0 : problem != NULL) continue;
        if (problem) return pf_fail(err, PF_ERR_UNSUPPORTED, "CPU kernels \"%s\" cannot run here: %s", isa, problem);
        ensure_tables();
        *out = &backends[i];
        return PF_OK;
    }
    return pf_fail(err, PF_ERR_ARGUMENT, "unknown CPU kernel set \"%s\": use one that `pyflash doctor` lists", isa);
}
