/* The environment: see env.h. */
#include "base/env.h"

#include <stdlib.h>

const char *tm_env(const char *name) { return getenv(name); }
