#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attention.h"

#define LINE 16                       /* floats of a cache line */
#define MOST_HELPERS 255
#define PATIENCE 2048                 /* turns before waiting gives the processor away */
#define WAKEFUL_TURNS 4096            /* before a helper sleeps: about a millisecond */

typedef struct {
    TaskFunction function;
    const void *context;
    int64_t tasks, scratch_floats;
    int helpers;                      /* that may take part: the first of the pool */
    float *scratch;
    atomic_llong next_task;
    atomic_int next_thread;
} Job;

static struct {
    pthread_mutex_t calling;          /* held by the caller whose job it is */
    pthread_mutex_t sleeping;
    pthread_cond_t wake;
    pid_t process;                    /* that the helpers belong to */
    int helpers;                      /* started */
    _Atomic(Job *) job;               /* or null between jobs */
    atomic_llong jobs;                /* published so far */
    atomic_int sleepers, inside;      /* inside: helpers that may be looking at the job */
} pool = {.calling = PTHREAD_MUTEX_INITIALIZER, .sleeping = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER};

void wait_a_moment(int turn) {
    if (turn >= PATIENCE) sched_yield();
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#endif
}

/* A helper may come back to a job that it has left; it then finds no task, and needs no scratch. */
static void work(Job *job) {
    float *scratch = job->scratch + atomic_fetch_add(&job->next_thread, 1) * job->scratch_floats;
    for (;;) {
        int64_t task = atomic_fetch_add(&job->next_task, 1);
        if (task >= job->tasks) return;
        job->function(job->context, task, scratch);
    }
}

static void wait_for_job(int64_t seen) {
    for (int turn = 0; turn < WAKEFUL_TURNS; turn++) {
        if (atomic_load(&pool.jobs) != seen) return;
        wait_a_moment(turn);
    }
    pthread_mutex_lock(&pool.sleeping);
    atomic_fetch_add(&pool.sleepers, 1);
    while (atomic_load(&pool.jobs) == seen) pthread_cond_wait(&pool.wake, &pool.sleeping);
    atomic_fetch_sub(&pool.sleepers, 1);
    pthread_mutex_unlock(&pool.sleeping);
}

static void *help(void *argument) {
    const int number = (int)(intptr_t)argument;
    for (;;) {
        int64_t seen = atomic_load(&pool.jobs);
        /* In this order: the caller takes the job away and then looks whether anyone is inside,
         * so a helper that still finds it is waited for. */
        atomic_fetch_add(&pool.inside, 1);
        Job *job = atomic_load(&pool.job);
        if (job && number < job->helpers) work(job);
        atomic_fetch_sub(&pool.inside, 1);
        wait_for_job(seen);
    }
    return NULL;
}

/* After a fork only the forking thread exists: the child starts over. */
static void forget_parents_helpers(void) {
    if (pool.process == getpid()) return;
    pool.process = getpid();
    pool.helpers = 0;
    atomic_store(&pool.job, NULL);
    atomic_store(&pool.inside, 0);
    atomic_store(&pool.sleepers, 0);
    pthread_mutex_init(&pool.sleeping, NULL);
    pthread_cond_init(&pool.wake, NULL);
}

/* A thread that cannot be started is no error: the others take its tasks. */
static void start_helpers(int wanted) {
    forget_parents_helpers();
    while (pool.helpers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, (void *)(intptr_t)pool.helpers)) return;
        pthread_detach(thread);
        pool.helpers++;
    }
}

static void run_with_helpers(Job *job) {
    start_helpers(job->helpers);
    atomic_store(&pool.job, job);
    atomic_fetch_add(&pool.jobs, 1);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.sleeping);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleeping);
    }
    work(job);
    atomic_store(&pool.job, NULL);
    for (int turn = 0; atomic_load(&pool.inside); turn++) wait_a_moment(turn);
}

int run_team(TaskFunction function, const void *context, int64_t tasks, int threads,
             int64_t scratch_floats) {
    Job job = {.function = function, .context = context, .tasks = tasks};
    job.helpers = threads > MOST_HELPERS ? MOST_HELPERS : threads - 1;
    job.scratch_floats = (scratch_floats + LINE - 1) / LINE * LINE;
    void *scratch = NULL;
    size_t bytes = (job.helpers + 1) * job.scratch_floats * sizeof(float);
    if (posix_memalign(&scratch, LINE * sizeof(float), bytes)) return STATUS_NO_MEMORY;
    memset(scratch, 0, bytes);
    job.scratch = scratch;
    /* Another thread's step may have the helpers already; this one then goes alone. */
    if (job.helpers > 0 && pthread_mutex_trylock(&pool.calling) == 0) {
        run_with_helpers(&job);
        pthread_mutex_unlock(&pool.calling);
    } else {
        work(&job);
    }
    free(scratch);
    return STATUS_OK;
}
