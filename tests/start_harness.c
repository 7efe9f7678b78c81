// Prints the milliseconds from just before exec of PROGRAM to its first byte on stdout: the least
// of RUNS, and their median; and the most memory that a run had in use, in MiB.
//
//     start_harness RUNS PROGRAM ARGUMENT...
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now_ms(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

// One run; negative if the program failed.
static double first_byte(char **command) {
    int ends[2], status;
    char byte;
    if (pipe(ends) != 0)
        return -1;
    double start = now_ms();
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(ends[0]);
        close(ends[1]);
        execv(command[0], command);
        _exit(127);
    }
    close(ends[1]);
    ssize_t got = read(ends[0], &byte, 1);
    double taken = now_ms() - start;
    while (got > 0 && read(ends[0], &byte, 1) > 0)
        continue;
    close(ends[0]);
    waitpid(child, &status, 0);
    return got == 1 && status == 0 ? taken : -1;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    enum { MOST = 100 };
    double taken[MOST];
    int runs = argc > 2 ? atoi(argv[1]) : 0;
    if (runs < 1 || runs > MOST)
        return 2;
    for (int i = 0; i < runs; i++) {
        taken[i] = first_byte(argv + 2);
        if (taken[i] < 0)
            return 1;
    }
    qsort(taken, (size_t)runs, sizeof *taken, compare);
    struct rusage usage;
    getrusage(RUSAGE_CHILDREN, &usage); // the largest of all children, in KiB
    printf("least=%.1f median=%.1f peak=%.1f\n", taken[0], taken[runs / 2],
           (double)usage.ru_maxrss / 1024);
    return 0;
}
