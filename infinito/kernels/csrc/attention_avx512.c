#include "vector_avx512.h"

#define FORWARD infinito_forward_avx512
#define BACKWARD infinito_backward_avx512
#define PEAK infinito_peak_avx512

#include "attention_kernel.h"
