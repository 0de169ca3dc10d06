/* ik_llama.cpp's own tensor types, by the numbers of its files as of August 2026: for messages that name them. Their
 * blocks are not known here. What other programs have under numbers of ggml's has no row: it cannot be told by number.
 *
 * X(name, number, values, bytes, uses), as format/types.h. C and C++. */
#ifndef PF_FORMAT_FOREIGN_TYPES_H
#define PF_FORMAT_FOREIGN_TYPES_H

#define PF_FOREIGN_TYPES(X)                     \
    X(Q8_0_X4, 97, 0, 0, PF_TYPE_FOREIGN)       \
    X(Q8_1_X4, 98, 0, 0, PF_TYPE_FOREIGN)       \
    X(Q8_2_X4, 99, 0, 0, PF_TYPE_FOREIGN)       \
    X(Q6_0, 133, 0, 0, PF_TYPE_FOREIGN)         \
    X(IQ1_BN, 134, 0, 0, PF_TYPE_FOREIGN)       \
    X(IQ2_BN, 135, 0, 0, PF_TYPE_FOREIGN)       \
    X(Q8_K64, 136, 0, 0, PF_TYPE_FOREIGN)       \
    X(IQ2_K, 137, 0, 0, PF_TYPE_FOREIGN)        \
    X(IQ3_K, 138, 0, 0, PF_TYPE_FOREIGN)        \
    X(IQ4_K, 139, 0, 0, PF_TYPE_FOREIGN)        \
    X(IQ5_K, 140, 0, 0, PF_TYPE_FOREIGN)        \
    X(IQ6_K, 141, 0, 0, PF_TYPE_FOREIGN)        \
    X(IQ2_TN, 142, 0, 0, PF_TYPE_FOREIGN)       \
    X(IQ1_TN, 143, 0, 0, PF_TYPE_FOREIGN)       \
    X(IQ4_KS, 144, 0, 0, PF_TYPE_FOREIGN)       \
    X(IQ2_KS, 145, 0, 0, PF_TYPE_FOREIGN)       \
    X(IQ4_KSS, 146, 0, 0, PF_TYPE_FOREIGN)      \
    X(Q8_K16, 147, 0, 0, PF_TYPE_FOREIGN)       \
    X(Q8_K32, 148, 0, 0, PF_TYPE_FOREIGN)       \
    X(Q8_KR8, 149, 0, 0, PF_TYPE_FOREIGN)       \
    X(Q8_K128, 150, 0, 0, PF_TYPE_FOREIGN)      \
    X(Q8_KV, 151, 0, 0, PF_TYPE_FOREIGN)        \
    X(IQ5_KS, 152, 0, 0, PF_TYPE_FOREIGN)       \
    X(IQ2_KT, 153, 0, 0, PF_TYPE_FOREIGN)       \
    X(IQ3_KT, 154, 0, 0, PF_TYPE_FOREIGN)       \
    X(IQ4_KT, 155, 0, 0, PF_TYPE_FOREIGN)       \
    X(IQ3_KS, 156, 0, 0, PF_TYPE_FOREIGN)       \
    X(IQ2_KL, 157, 0, 0, PF_TYPE_FOREIGN)       \
    X(IQ1_KT, 158, 0, 0, PF_TYPE_FOREIGN)       \
    X(Q4_0_R8, 202, 0, 0, PF_TYPE_FOREIGN)      \
    X(Q5_0_R4, 206, 0, 0, PF_TYPE_FOREIGN)      \
    X(Q8_0_R8, 208, 0, 0, PF_TYPE_FOREIGN)      \
    X(Q2_K_R4, 210, 0, 0, PF_TYPE_FOREIGN)      \
    X(Q3_K_R4, 211, 0, 0, PF_TYPE_FOREIGN)      \
    X(Q4_K_R4, 212, 0, 0, PF_TYPE_FOREIGN)      \
    X(Q5_K_R4, 213, 0, 0, PF_TYPE_FOREIGN)      \
    X(Q6_K_R4, 214, 0, 0, PF_TYPE_FOREIGN)      \
    X(IQ2_XXS_R4, 216, 0, 0, PF_TYPE_FOREIGN)   \
    X(IQ2_XS_R4, 217, 0, 0, PF_TYPE_FOREIGN)    \
    X(IQ3_XXS_R4, 218, 0, 0, PF_TYPE_FOREIGN)   \
    X(IQ1_S_R4, 219, 0, 0, PF_TYPE_FOREIGN)     \
    X(IQ4_NL_R4, 220, 0, 0, PF_TYPE_FOREIGN)    \
    X(IQ3_S_R4, 221, 0, 0, PF_TYPE_FOREIGN)     \
    X(IQ2_S_R4, 222, 0, 0, PF_TYPE_FOREIGN)     \
    X(IQ4_XS_R8, 223, 0, 0, PF_TYPE_FOREIGN)    \
    X(IQ1_M_R4, 229, 0, 0, PF_TYPE_FOREIGN)     \
    X(BF16_R16, 230, 0, 0, PF_TYPE_FOREIGN)     \
    X(Q6_0_R4, 233, 0, 0, PF_TYPE_FOREIGN)      \
    X(IQ2_BN_R4, 335, 0, 0, PF_TYPE_FOREIGN)    \
    X(IQ2_K_R4, 337, 0, 0, PF_TYPE_FOREIGN)     \
    X(IQ3_K_R4, 338, 0, 0, PF_TYPE_FOREIGN)     \
    X(IQ4_K_R4, 339, 0, 0, PF_TYPE_FOREIGN)     \
    X(IQ5_K_R4, 340, 0, 0, PF_TYPE_FOREIGN)     \
    X(IQ4_KS_R4, 344, 0, 0, PF_TYPE_FOREIGN)    \
    X(IQ5_KS_R4, 352, 0, 0, PF_TYPE_FOREIGN)    \
    X(MXFP4_R8, 353, 0, 0, PF_TYPE_FOREIGN)     \
    X(Q8_K_R16, 397, 0, 0, PF_TYPE_FOREIGN)     \
    X(Q8_KV_R8, 398, 0, 0, PF_TYPE_FOREIGN)     \
    X(Q8_K_R8, 399, 0, 0, PF_TYPE_FOREIGN)

#endif
