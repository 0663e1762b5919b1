/* Filters on lists, for the table of filters. Private to the Jinja engine. */
#ifndef TM_TEXT_JINJA_FILTERS_H
#define TM_TEXT_JINJA_FILTERS_H

#include "text/jinja_parts.h"

#include <errno.h>

#define JJ_LIST_FILTERS(X)                                                                                          \
    X(batch) X(dictsort) X(first) X(groupby) X(items) X(join) X(last) X(length) X(list) X(map) X(max) X(min)        \
    X(reject) X(rejectattr) X(reverse) X(select) X(selectattr) X(slice) X(sort) X(sum) X(unique)
#define X(name) jj_value *jj_filter_##name(jj_run *r, jj_value *v, const jj_args *a);
JJ_LIST_FILTERS(X)
#undef X

#endif
