#include "vector_avx2.h"

#define FORWARD infinito_forward_avx2
#define BACKWARD infinito_backward_avx2
#define PEAK infinito_peak_avx2

#include "attention_kernel.h"
