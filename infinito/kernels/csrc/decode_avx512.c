#include "vector_avx512.h"

#define DECODE infinito_decode_avx512

#include "step.h"
