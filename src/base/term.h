/* The terminal: what it can show, and the progress of long work.
 *
 * On a terminal one line is redrawn in place (one write a frame, so it does not flicker; never wider
 * than the window; at most TM_FRAMES_A_SECOND times a second). Elsewhere a plain line appears now and
 * then, so that logs stay short. Drawing goes to a file descriptor that the caller names; a failed
 * write is no failure of the work and is ignored. */
#ifndef TM_BASE_TERM_H
#define TM_BASE_TERM_H

#include "base/buf.h"

typedef struct tm_term {
    int fd;
    bool live;    /* a terminal that can redraw a line (not TERM=dumb) */
    bool color;   /* live, and NO_COLOR is not set */
    bool unicode; /* the locale's character set is UTF-8 */
} tm_term;

/* Looks at the descriptor and the environment (TERM, NO_COLOR, LC_ALL, LC_CTYPE, LANG). */
tm_term tm_term_of(int fd);
/* Columns of the window now; 80 when unknown. */
int tm_term_width(const tm_term *term);

/* An old skill: how much worse than at the start, as a share of the first value (nats for KL). */
typedef struct tm_progress_probe {
    const char *name;
    double worse;  /* NaN: not measured yet; negative: better */
    double budget; /* NaN: none */
    bool nats;     /* worse and budget are absolute (KL) */
} tm_progress_probe;

typedef struct tm_progress_values {
    const char *phase;      /* "training", "evaluating", ... */
    int64_t step, steps;    /* steps 0: length unknown, no bar */
    double loss;            /* NaN: none, likewise below */
    double tokens_per_s;
    double per_minute;      /* of what steps are; 0: not said */
    double share;           /* of the machine's limit, 0 to 1 */
    double seconds_left;
    const tm_progress_probe *probes;
    int64_t probe_count;
} tm_progress_values;

enum { TM_FRAMES_A_SECOND = 12, TM_PLAIN_SECONDS = 10 };

typedef struct tm_progress {
    tm_term term;
    double last;  /* when the last line was written; seconds of the monotonic clock */
    int64_t step; /* of the newest line */
    bool drawn;   /* an unfinished line stands on the terminal */
    tm_buf line;
    tm_buf pending; /* the newest line, when it came too soon to be written */
} tm_progress;

/* Caller's storage; end writes the final line and frees. values may be NULL at the end: then the newest that
 * update was given counts. No plain line is written twice. */
void tm_progress_begin(tm_progress *progress, tm_term term);
void tm_progress_update(tm_progress *progress, const tm_progress_values *values);
void tm_progress_end(tm_progress *progress, const tm_progress_values *values);
/* A line of text that stays (a warning), above the progress line. */
void tm_progress_say(tm_progress *progress, const char *text);

/* The line itself, without line ends: at most `width` columns, or (width 0) the plain form. What does
 * not fit is left out, the least important first. */
void tm_progress_render(tm_buf *out, const tm_progress_values *values, int width, bool color, bool unicode);

#endif
