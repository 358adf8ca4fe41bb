/* The fused operations: included once per instruction set, after its vector header, with
 * FUSED(name) making the names of the functions to define. */

#include "numbers.h"
#include "residual.h"
#include "activation.h"
#include "heads.h"
#include "softmax_slope.h"
#include "muon.h"
