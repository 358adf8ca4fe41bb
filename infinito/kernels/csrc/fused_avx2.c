#include "vector_avx2.h"

#define FUSED(NAME) infinito_##NAME##_avx2

#include "fused_kernel.h"
