/* The exported functions: they choose the instruction set at run time. */

#include "arguments.h"
#include "decode.h"
#include "isa.h"

typedef int (*Kernel)(const Decode *);

int infinito_decode_portable(const Decode *);

#if defined(__x86_64__)
int infinito_decode_avx2(const Decode *);
int infinito_decode_avx512(const Decode *);

static const Kernel kernels[] = {infinito_decode_portable, infinito_decode_avx2,
                                 infinito_decode_avx512};
#else
static const Kernel kernels[] = {infinito_decode_portable};
#endif

int infinito_decode_best_isa(void) { return best_isa(); }

int infinito_decode_version(void) { return DECODE_VERSION; }

int infinito_decode_size(void) { return (int)sizeof(Decode); }

int infinito_decode_step(const Decode *arguments) {
    int best = best_isa();
    int isa = arguments->isa == ISA_AUTO ? best : arguments->isa;
    if (isa < 0 || isa > best) return STATUS_UNSUPPORTED_ISA;
    return kernels[isa](arguments);
}
