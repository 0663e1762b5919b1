/* Loads libtemper-cuda.so when a run asks for a GPU: see device/cuda/plugin.h. */
#include "device/cuda/plugin.h"

#include "base/buf.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

#define LIBRARY "libtemper-cuda.so"

/* Where it may be, beside the folder of the program. */
static const char *const places[] = {"/" LIBRARY, "/../lib/" LIBRARY, "/../cuda/" LIBRARY, "/../../cuda/" LIBRARY};

/* The folder of the running program; "" when the system does not say. */
static void program_folder(char *out, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", out, size - 1);
    out[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(out, '/');
    if (slash)
        *slash = '\0';
}

static void *open_library(const char *library, tm_error *err)
{
    char folder[3072], path[4096];
    void *handle = NULL;
    if (library) {
        handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    } else {
        program_folder(folder, sizeof folder);
        for (size_t i = 0; i < sizeof places / sizeof *places && !handle; i++) {
            snprintf(path, sizeof path, "%s%s", folder, places[i]);
            if (access(path, R_OK) == 0) {
                handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
                if (!handle)
                    break; /* it is there and broken: say why */
            }
        }
        if (!handle && access(path, R_OK) != 0)
            handle = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    }
    if (!handle) {
        const char *why = dlerror();
        tm_fail(err, TM_UNSUPPORTED, "device: cuda needs " LIBRARY " (make cuda), which cannot be loaded: %s", why ? why : "not found");
    }
    return handle;
}

bool tm_cuda_driver(void)
{
    void *handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (handle)
        dlclose(handle);
    return handle != NULL;
}

tm_status tm_cuda_device_create(const char *library, int index, tm_device **out, tm_error *err)
{
    *out = NULL;
    void *handle = open_library(library, err);
    if (!handle)
        return TM_UNSUPPORTED;
    const tm_cuda_plugin *plugin = dlsym(handle, TM_CUDA_PLUGIN_SYMBOL);
    if (!plugin || plugin->abi != TM_CUDA_ABI) {
        dlclose(handle);
        return tm_fail(err, TM_UNSUPPORTED, "device: cuda: %s is of another version of temper; expected the one built with this program", library ? library : LIBRARY);
    }
    tm_status st = plugin->create(index, out, err);
    if (st != TM_OK)
        dlclose(handle);
    return st;
}
