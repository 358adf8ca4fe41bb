#include "vector_avx512.h"

#define FUSED(NAME) infinito_##NAME##_avx512

#include "fused_kernel.h"
