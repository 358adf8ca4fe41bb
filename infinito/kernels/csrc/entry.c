/* The table of the compiled operations, and the functions that Python calls. */

#include <string.h>

#include "attention.h"
#include "decode.h"
#include "fused.h"

enum { ISA_PORTABLE = 0, ISA_AVX2 = 1, ISA_AVX512 = 2, ISAS };

typedef int (*Kernel)(void *arguments);

#if defined(__x86_64__)
#define DECLARE(NAME) int NAME##_portable(void *), NAME##_avx2(void *), NAME##_avx512(void *);
#define KERNELS(NAME) {NAME##_portable, NAME##_avx2, NAME##_avx512}
#else
#define DECLARE(NAME) int NAME##_portable(void *);
#define KERNELS(NAME) {NAME##_portable}
#endif

DECLARE(infinito_forward)
DECLARE(infinito_backward)
DECLARE(infinito_peak)
DECLARE(infinito_decode)
DECLARE(infinito_residual)
DECLARE(infinito_residual_backward)
DECLARE(infinito_activation)
DECLARE(infinito_activation_backward)
DECLARE(infinito_heads)
DECLARE(infinito_softmax_slope)
DECLARE(infinito_muon)

static const struct {
    const char *name;
    int size, version;                /* of the arguments */
    Kernel kernels[ISAS];
} operations[] = {
    {"attention forward", sizeof(Arguments), ATTENTION_VERSION, KERNELS(infinito_forward)},
    {"attention backward", sizeof(Arguments), ATTENTION_VERSION, KERNELS(infinito_backward)},
    {"attention peak", sizeof(Peak), ATTENTION_VERSION, KERNELS(infinito_peak)},
    {"decode step", sizeof(Decode), DECODE_VERSION, KERNELS(infinito_decode)},
    {"residual", sizeof(Residual), FUSED_VERSION, KERNELS(infinito_residual)},
    {"residual backward", sizeof(Residual), FUSED_VERSION, KERNELS(infinito_residual_backward)},
    {"activation", sizeof(Activation), FUSED_VERSION, KERNELS(infinito_activation)},
    {"activation backward", sizeof(Activation), FUSED_VERSION,
     KERNELS(infinito_activation_backward)},
    {"heads", sizeof(Heads), FUSED_VERSION, KERNELS(infinito_heads)},
    {"softmax slope", sizeof(SoftmaxSlope), FUSED_VERSION, KERNELS(infinito_softmax_slope)},
    {"muon", sizeof(Muon), FUSED_VERSION, KERNELS(infinito_muon)},
};

/* The best instruction set of this processor that there is code for. */
int infinito_best_isa(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
        return ISA_AVX512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return ISA_AVX2;
#endif
    return ISA_PORTABLE;
}

/* The number of an operation, or -1: there is none that takes these arguments. */
int infinito_find(const char *name, int size, int version) {
    for (int i = 0; i < (int)(sizeof operations / sizeof operations[0]); i++)
        if (!strcmp(operations[i].name, name) && operations[i].size == size &&
            operations[i].version == version)
            return i;
    return -1;
}

/* Runs an operation with an instruction set that this processor has; returns its status. */
int infinito_run(int number, int isa, void *arguments) {
    return operations[number].kernels[isa](arguments);
}
