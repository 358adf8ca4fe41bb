#include "vector_portable.h"

#define FUSED(NAME) infinito_##NAME##_portable

#include "fused_kernel.h"
