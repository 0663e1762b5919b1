/* Pieces seen before and their ids, for the models: of one thread, a fixed number of places in pairs,
 * the newer of a pair first. Only short pieces are kept, and only those that give few ids. */
#ifndef TM_TEXT_TOKENIZER_CACHE_H
#define TM_TEXT_TOKENIZER_CACHE_H

#include "text/tokenizer_parts.h"

#include <string.h>

enum { TM_CACHE_KEY = 46, TM_CACHE_IDS = 18, TM_CACHE_SLOTS = 1 << 15 };

typedef struct tm_cache_entry {
    uint64_t hash;
    uint8_t size, count; /* size 0: empty */
    char key[TM_CACHE_KEY];
    int32_t id[TM_CACHE_IDS];
} tm_cache_entry; /* [TM_CACHE_SLOTS], zeroed */

/* Appends the ids of a piece seen before, *found; else *place is where tm_cache_put may keep them (NULL:
 * nowhere) once they are known. */
static inline tm_status tm_cache_get(tm_cache_entry *cache, const char *piece, size_t size, tm_ids *ids,
                                     tm_cache_entry **place, uint64_t *hash, bool *found, tm_error *err)
{
    *place = NULL;
    *found = false;
    if (size > TM_CACHE_KEY)
        return TM_OK;
    *hash = tm_hash_bytes(piece, size);
    tm_cache_entry *e = &cache[*hash & (TM_CACHE_SLOTS - 2)];
    for (tm_cache_entry *hit = e; hit < e + 2; hit++) {
        if (hit->hash != *hash || hit->size != size || memcmp(hit->key, piece, size))
            continue;
        TM_TRY(tm_ids_room(ids, TM_CACHE_IDS, err));
        memcpy(ids->id + ids->count, hit->id, hit->count * sizeof *hit->id);
        ids->count += hit->count;
        *found = true;
        return TM_OK;
    }
    *place = e;
    return TM_OK;
}

static inline void tm_cache_put(tm_cache_entry *place, uint64_t hash, const char *piece, size_t size, const int32_t *id,
                                size_t count)
{
    if (!place || count > TM_CACHE_IDS)
        return;
    place[1] = place[0];
    place->hash = hash;
    place->size = (uint8_t)size;
    place->count = (uint8_t)count;
    memcpy(place->key, piece, size);
    memcpy(place->id, id, count * sizeof *id);
}

#endif
