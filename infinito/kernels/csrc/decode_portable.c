#include "vector_portable.h"

#define DECODE infinito_decode_portable

#include "step.h"
