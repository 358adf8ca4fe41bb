/* Runs numbered tasks on a team of threads. The team is the one that torch already has: Python
 * hands over the address of GOMP_parallel as torch's own library resolves it, so that a process
 * never holds two OpenMP pools. Without it the team is made of plain POSIX threads. */
#ifndef INFINITO_PARALLEL_H
#define INFINITO_PARALLEL_H

#include <stdint.h>

typedef void (*TaskFunction)(const void *context, int64_t task, float *scratch);

/* Every thread gets `scratch_floats` floats, aligned to 64 bytes. Tasks are taken in order of
 * their number, so the longest should come first. Returns STATUS_OK or STATUS_NO_MEMORY. */
int run_tasks(TaskFunction function, const void *context, int64_t tasks, int threads,
              int64_t scratch_floats);

#endif
