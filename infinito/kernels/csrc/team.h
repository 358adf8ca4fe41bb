/* Runs numbered tasks on the calling thread, with the help of others where they come in time.
 *
 * An OpenMP region ends when every thread has come to its end, even one that had nothing left to
 * do. A decode step takes less than a millisecond, and on a busy machine a thread that is not
 * running comes back after many: the helpers of this team are therefore never waited for unless
 * they hold a task. They spin for a moment after a step, so that the next one finds them awake,
 * and then sleep. */
#ifndef INFINITO_TEAM_H
#define INFINITO_TEAM_H

#include <stdint.h>

typedef void (*TaskFunction)(const void *context, int64_t task, float *scratch);

/* A task may wait for earlier ones: tasks are taken in the order of their numbers. Every thread
 * gets `scratch_floats` floats, aligned to 64 bytes and zero at first. Returns STATUS_OK or STATUS_NO_MEMORY. */
int run_team(TaskFunction function, const void *context, int64_t tasks, int threads,
             int64_t scratch_floats);

/* One turn of waiting; the processor is offered to others when that has taken long. */
void wait_a_moment(int turn);

#endif
