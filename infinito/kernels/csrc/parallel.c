#include "parallel.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "attention.h"

#define CACHE_LINE 64
#define MAX_POSIX_THREADS 256

typedef void (*GompParallel)(void (*)(void *), void *, unsigned, unsigned);

static GompParallel gomp_parallel = NULL;

void infinito_set_gomp(void *address) { gomp_parallel = (GompParallel)address; }

typedef struct {
    TaskFunction function;
    const void *context;
    int64_t tasks, scratch_floats;
    char *scratch;
    atomic_llong next_task;
    atomic_int next_thread;
} Team;

static void work(void *argument) {
    Team *team = argument;
    int thread = atomic_fetch_add(&team->next_thread, 1);
    float *scratch = (float *)(team->scratch + thread * team->scratch_floats * sizeof(float));
    for (;;) {
        int64_t task = atomic_fetch_add(&team->next_task, 1);
        if (task >= team->tasks) return;
        team->function(team->context, task, scratch);
    }
}

static void *posix_work(void *argument) {
    work(argument);
    return NULL;
}

/* A thread that cannot be started is no error: the others take its tasks. */
static void run_posix(Team *team, int threads) {
    pthread_t helpers[MAX_POSIX_THREADS];
    int started = 0;
    while (started < threads - 1 &&
           pthread_create(&helpers[started], NULL, posix_work, team) == 0)
        started++;
    work(team);
    for (int i = 0; i < started; i++) pthread_join(helpers[i], NULL);
}

int run_tasks(TaskFunction function, const void *context, int64_t tasks, int threads,
              int64_t scratch_floats) {
    if (threads > tasks) threads = (int)tasks;
    if (threads > MAX_POSIX_THREADS) threads = MAX_POSIX_THREADS;
    if (threads < 1) threads = 1;
    const int64_t line = CACHE_LINE / sizeof(float);
    Team team = {.function = function, .context = context, .tasks = tasks};
    team.scratch_floats = (scratch_floats + line - 1) / line * line;
    void *scratch = NULL;
    if (posix_memalign(&scratch, CACHE_LINE, threads * team.scratch_floats * sizeof(float) + 1))
        return STATUS_NO_MEMORY;
    team.scratch = scratch;
    if (threads == 1) work(&team);
    else if (gomp_parallel) gomp_parallel(work, &team, (unsigned)threads, 0);
    else run_posix(&team, threads);
    free(scratch);
    return STATUS_OK;
}
