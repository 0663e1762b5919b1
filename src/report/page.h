/* The frame of a page: head with style, and the foot with the hover script. */
#ifndef TM_REPORT_PAGE_H
#define TM_REPORT_PAGE_H

#include "base/buf.h"

void page_open(tm_buf *out, const char *title);
void page_close(tm_buf *out, const char *version);

#endif
