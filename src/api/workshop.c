/* What jobs have in common: see workshop.h. */
#include "api/workshop.h"

#include "api/job.h"

#include <stdlib.h>
#include <string.h>

typedef struct tm_tool {
    char *name; /* as a recipe has it; NULL: it names none */
    int64_t threads;
    char no_gpu[512];
    tm_device *device;
    bool lent;
} tm_tool;

void tm_workshop_open(tm_workshop *shop)
{
    *shop = (tm_workshop){0};
    pthread_mutex_init(&shop->mutex, NULL);
}

static void drop(tm_tool *tool)
{
    tm_device_destroy(tool->device);
    free(tool->name);
}

void tm_workshop_close(tm_workshop *shop)
{
    for (size_t i = 0; i < shop->tools; i++)
        drop(&shop->tool[i]);
    free(shop->tool);
    pthread_mutex_destroy(&shop->mutex);
}

static bool same_name(const char *a, const char *b) { return a && b ? strcmp(a, b) == 0 : a == b; }

/* Takes an idle one out of the list. */
static bool take(tm_workshop *shop, const char *name, int64_t threads, tm_tool *out)
{
    bool there = false;
    pthread_mutex_lock(&shop->mutex);
    for (size_t i = shop->tools; i-- > 0 && !there;)
        if (!shop->tool[i].lent && shop->tool[i].threads == threads && same_name(shop->tool[i].name, name)) {
            *out = shop->tool[i];
            shop->tool[i] = shop->tool[--shop->tools];
            there = true;
        }
    pthread_mutex_unlock(&shop->mutex);
    return there;
}

static tm_status put(tm_workshop *shop, const tm_tool *tool, tm_error *err)
{
    pthread_mutex_lock(&shop->mutex);
    tm_status st = TM_GROW(&shop->tool, &shop->capacity, shop->tools + 1, err);
    if (st == TM_OK)
        shop->tool[shop->tools++] = *tool;
    pthread_mutex_unlock(&shop->mutex);
    return st;
}

/* An idle device of the workshop, if there is one that still works, else a new one. */
static tm_status find(tm_workshop *shop, const char *name, int64_t threads, tm_tool *out, tm_error *err)
{
    tm_error ignored;
    while (take(shop, name, threads, out)) {
        if (tm_device_adopt(out->device, &ignored) == TM_OK)
            return TM_OK;
        drop(out);
    }
    *out = (tm_tool){.threads = threads};
    if (name && !(out->name = tm_strdup(name, err)))
        return TM_NO_MEMORY;
    tm_status st = tm_device_open(name, threads, &out->device, out->no_gpu, err);
    if (st != TM_OK)
        free(out->name);
    return st;
}

tm_status tm_workshop_device(tm_workshop *shop, const char *name, int64_t threads, tm_device **out, char *no_gpu, tm_error *err)
{
    tm_tool tool;
    if (!shop)
        return tm_device_open(name, threads, out, no_gpu, err);
    *out = NULL;
    TM_TRY(find(shop, name, threads, &tool, err));
    tool.lent = true;
    tm_status st = put(shop, &tool, err);
    if (st != TM_OK) {
        drop(&tool);
        return st;
    }
    *out = tool.device;
    if (no_gpu)
        memcpy(no_gpu, tool.no_gpu, sizeof tool.no_gpu);
    return TM_OK;
}

void tm_workshop_give_back(tm_workshop *shop, tm_device *device)
{
    if (!shop) {
        tm_device_destroy(device);
        return;
    }
    pthread_mutex_lock(&shop->mutex);
    for (size_t i = 0; i < shop->tools; i++)
        if (shop->tool[i].device == device)
            shop->tool[i].lent = false;
    pthread_mutex_unlock(&shop->mutex);
}
