/* Time and what the system says about memory: see clock.h. */
#include "base/clock.h"

#include "base/env.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

double tm_clock_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The number behind `key` in a file of the system; -1 when there is none. */
static int64_t read_number(const char *path, const char *key)
{
    FILE *f = fopen(path, "re");
    if (!f)
        return -1;
    char line[256];
    long long value = -1;
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, key, strlen(key)) == 0 && sscanf(line + strlen(key), "%lld", &value) == 1)
            break;
    }
    fclose(f);
    return value;
}

int64_t tm_memory_available(void)
{
    const char *forced = tm_env("TEMPER_MEMORY_LIMIT");
    if (forced && *forced)
        return strtoll(forced, NULL, 10);
    int64_t system = read_number("/proc/meminfo", "MemAvailable:");
    if (system >= 0)
        system *= 1024;
    int64_t limit = read_number("/sys/fs/cgroup/memory.max", ""), used = read_number("/sys/fs/cgroup/memory.current", "");
    if (limit >= 0 && used >= 0 && (system < 0 || limit - used < system))
        return limit > used ? limit - used : 0;
    return system;
}
