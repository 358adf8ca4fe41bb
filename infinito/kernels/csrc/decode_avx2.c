#include "vector_avx2.h"

#define DECODE infinito_decode_avx2

#include "step.h"
