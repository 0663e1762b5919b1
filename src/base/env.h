/* The environment: read here and nowhere else. */
#ifndef TM_BASE_ENV_H
#define TM_BASE_ENV_H

const char *tm_env(const char *name); /* NULL: not set */

#endif
