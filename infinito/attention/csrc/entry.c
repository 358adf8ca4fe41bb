/* The exported functions: they choose the instruction set at run time. */

#include <stddef.h>

#include "arguments.h"
#include "isa.h"

typedef int (*Kernel)(const Arguments *);
typedef int64_t (*Peak)(int, int64_t);

int infinito_forward_portable(const Arguments *);
int infinito_backward_portable(const Arguments *);
int64_t infinito_peak_portable(int, int64_t);

#if defined(__x86_64__)
int infinito_forward_avx2(const Arguments *);
int infinito_backward_avx2(const Arguments *);
int64_t infinito_peak_avx2(int, int64_t);
int infinito_forward_avx512(const Arguments *);
int infinito_backward_avx512(const Arguments *);
int64_t infinito_peak_avx512(int, int64_t);

static const Kernel forwards[] = {infinito_forward_portable, infinito_forward_avx2,
                                  infinito_forward_avx512};
static const Kernel backwards[] = {infinito_backward_portable, infinito_backward_avx2,
                                   infinito_backward_avx512};
static const Peak peaks[] = {infinito_peak_portable, infinito_peak_avx2, infinito_peak_avx512};
#else
static const Kernel forwards[] = {infinito_forward_portable};
static const Kernel backwards[] = {infinito_backward_portable};
static const Peak peaks[] = {infinito_peak_portable};
#endif

int infinito_attention_best_isa(void) { return best_isa(); }

static int run(const Arguments *arguments, const Kernel *kernels) {
    int best = best_isa();
    int isa = arguments->isa == ISA_AUTO ? best : arguments->isa;
    if (isa < 0 || isa > best) return STATUS_UNSUPPORTED_ISA;
    return kernels[isa](arguments);
}

int infinito_attention_version(void) { return ARGUMENTS_VERSION; }

int infinito_attention_size(void) { return (int)sizeof(Arguments); }

int infinito_attention_forward(const Arguments *arguments) { return run(arguments, forwards); }

int infinito_attention_backward(const Arguments *arguments) { return run(arguments, backwards); }

/* Runs the register-resident score (or gradient) loop on the calling thread; returns the number
 * of elements, for the caller to time. */
int64_t infinito_attention_peak(int gradient, int64_t rounds) {
    return peaks[best_isa()](gradient, rounds);
}
