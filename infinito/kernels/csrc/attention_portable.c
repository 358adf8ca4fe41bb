#include "vector_portable.h"

#define FORWARD infinito_forward_portable
#define BACKWARD infinito_backward_portable
#define PEAK infinito_peak_portable

#include "attention_kernel.h"
