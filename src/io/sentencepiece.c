/* SentencePiece models: a reader of the few messages of protobuf that such a file has. Fields that decide
 * nothing are passed over; every length is checked against what is left before it is used, messages do not
 * nest beyond the two levels of the format, and memory is a fixed amount a piece. */
#include "io/sentencepiece.h"

#include "base/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- protobuf ---- */

typedef struct wire {
    const uint8_t *p, *end;
} wire;

typedef struct field {
    uint32_t number;
    int type;       /* 0 varint, 1 eight bytes, 2 bytes, 5 four bytes */
    uint64_t value; /* 0, 1, 5 */
    wire bytes;     /* 2 */
} field;

static bool read_varint(wire *w, uint64_t *out)
{
    *out = 0;
    for (int shift = 0; shift < 64 && w->p < w->end; shift += 7) {
        uint8_t byte = *w->p++;
        *out |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return true;
    }
    return false;
}

/* False: the message is damaged here. Call while w->p < w->end. */
static bool read_field(wire *w, field *f)
{
    uint64_t tag;
    if (!read_varint(w, &tag) || tag >> 3 == 0 || tag >> 32)
        return false;
    *f = (field){.number = (uint32_t)(tag >> 3), .type = (int)(tag & 7)};
    size_t left = (size_t)(w->end - w->p);
    switch (f->type) {
    case 0: return read_varint(w, &f->value);
    case 1: case 5: {
        size_t size = f->type == 1 ? 8 : 4;
        if (left < size)
            return false;
        for (size_t i = 0; i < size; i++)
            f->value |= (uint64_t)*w->p++ << 8 * i;
        return true;
    }
    case 2:
        if (!read_varint(w, &f->value) || f->value > (size_t)(w->end - w->p))
            return false;
        f->bytes = (wire){w->p, w->p + f->value};
        w->p += f->value;
        return true;
    default: return false; /* groups are not used */
    }
}

/* ---- the messages ---- */

static bool read_piece(wire w, tm_spm_piece *piece)
{
    *piece = (tm_spm_piece){.type = TM_SPM_NORMAL};
    for (field f; w.p < w.end;) {
        if (!read_field(&w, &f))
            return false;
        if (f.number == 1 && f.type == 2) {
            piece->text = (const char *)f.bytes.p;
            piece->size = f.value < UINT32_MAX ? (uint32_t)f.value : UINT32_MAX;
        } else if (f.number == 2 && f.type == 5) {
            uint32_t bits = (uint32_t)f.value;
            memcpy(&piece->score, &bits, sizeof bits);
        } else if (f.number == 3 && f.type == 0)
            piece->type = f.value < 100 ? (int)f.value : 100;
    }
    return true;
}

static int32_t as_int(uint64_t value)
{
    return (int32_t)(uint32_t)value;
}

static bool read_trainer(wire w, tm_spm *spm)
{
    for (field f; w.p < w.end;) {
        if (!read_field(&w, &f))
            return false;
        if (f.type != 0)
            continue;
        switch (f.number) {
        case 3: spm->model = as_int(f.value); break;
        case 24: spm->whitespace_suffix = f.value != 0; break;
        case 35: spm->byte_fallback = f.value != 0; break;
        case 40: spm->unk = as_int(f.value); break;
        case 41: spm->bos = as_int(f.value); break;
        case 42: spm->eos = as_int(f.value); break;
        case 43: spm->pad = as_int(f.value); break;
        default: break;
        }
    }
    return true;
}

static bool read_normalizer(wire w, tm_spm *spm)
{
    for (field f; w.p < w.end;) {
        if (!read_field(&w, &f))
            return false;
        if (f.number == 2 && f.type == 2) {
            spm->charsmap = (const char *)f.bytes.p;
            spm->charsmap_size = (size_t)(f.bytes.end - f.bytes.p);
        } else if (f.number == 3 && f.type == 0)
            spm->dummy_prefix = f.value != 0;
        else if (f.number == 4 && f.type == 0)
            spm->remove_extra_spaces = f.value != 0;
        else if (f.number == 5 && f.type == 0)
            spm->escape_spaces = f.value != 0;
    }
    return true;
}

tm_spm tm_spm_defaults(void)
{
    return (tm_spm){.model = TM_SPM_UNIGRAM, .bos = 1, .eos = 2, .pad = -1, .dummy_prefix = true, .remove_extra_spaces = true,
                    .escape_spaces = true};
}

/* ---- checking ---- */

static int by_text(const void *a, const void *b)
{
    const tm_spm_piece *x = *(const tm_spm_piece *const *)a, *y = *(const tm_spm_piece *const *)b;
    uint32_t least = x->size < y->size ? x->size : y->size;
    int order = memcmp(x->text, y->text, least);
    return order ? order : (x->size > y->size) - (x->size < y->size);
}

static tm_status refuse_twins(const tm_spm *spm, const char *name, tm_error *err)
{
    const tm_spm_piece **sorted;
    tm_status st = TM_OK;
    TM_TRY(TM_NEW(&sorted, spm->count, err));
    for (size_t i = 0; i < spm->count; i++)
        sorted[i] = &spm->piece[i];
    qsort(sorted, spm->count, sizeof *sorted, by_text);
    for (size_t i = 1; st == TM_OK && i < spm->count; i++)
        if (by_text(&sorted[i - 1], &sorted[i]) == 0)
            st = tm_fail(err, TM_INPUT, "%s: two pieces are \"%.*s\" (ids %td and %td)", name, (int)(sorted[i]->size % 61),
                         sorted[i]->text, sorted[i - 1] - spm->piece, sorted[i] - spm->piece);
    free(sorted);
    return st;
}

tm_status tm_spm_settle(tm_spm *spm, const char *name, tm_error *err)
{
    static const char *const ends[] = {"unk_id", "bos_id", "eos_id", "pad_id"};
    int32_t *id[] = {&spm->unk, &spm->bos, &spm->eos, &spm->pad};
    if (!spm->count)
        return tm_fail(err, TM_INPUT, "%s: no pieces: not a SentencePiece model", name);
    for (size_t i = 0; i < spm->count; i++) {
        const tm_spm_piece *p = &spm->piece[i];
        if (!p->size || p->size > TM_SPM_PIECE_BYTES || tm_utf8_prefix(p->text, p->size) != p->size)
            return tm_fail(err, TM_INPUT, "%s: piece %zu is of %u bytes or no UTF-8, expected 1 to %d bytes of UTF-8", name, i, p->size,
                           TM_SPM_PIECE_BYTES);
        if (!isfinite(p->score))
            return tm_fail(err, TM_INPUT, "%s: the score of piece %zu is not finite", name, i);
        if (p->type < TM_SPM_NORMAL || p->type > TM_SPM_BYTE)
            return tm_fail(err, TM_INPUT, "%s: piece %zu is of type %d, expected 1 to 6", name, i, p->type);
    }
    for (int i = 0; i < 4; i++) {
        if (*id[i] < 0)
            *id[i] = -1;
        if (*id[i] >= 0 && (size_t)*id[i] >= spm->count) {
            if (i == 0)
                return tm_fail(err, TM_INPUT, "%s: \"%s\" is %d, expected less than %zu", name, ends[i], *id[i], spm->count);
            *id[i] = -1; /* what a file without them says by default */
        }
    }
    return refuse_twins(spm, name, err);
}

tm_status tm_spm_parse(const void *data, size_t size, const char *name, tm_spm *out, tm_error *err)
{
    wire w = {data, (const uint8_t *)data + size};
    bool fine = true;
    tm_status st = TM_OK;
    *out = tm_spm_defaults();
    for (field f; st == TM_OK && fine && w.p < w.end;) {
        fine = read_field(&w, &f);
        if (!fine || f.type != 2)
            continue;
        if (f.number == 1) {
            if (out->count == TM_SPM_PIECES)
                st = tm_fail(err, TM_INPUT, "%s: more than %d pieces", name, TM_SPM_PIECES);
            else
                st = TM_GROW(&out->piece, &out->capacity, out->count + 1, err);
            if (st == TM_OK)
                fine = read_piece(f.bytes, &out->piece[out->count++]);
        } else if (f.number == 2)
            fine = read_trainer(f.bytes, out);
        else if (f.number == 3)
            fine = read_normalizer(f.bytes, out);
    }
    if (st == TM_OK && !fine)
        st = tm_fail(err, TM_INPUT, "%s: not a SentencePiece model, or damaged at byte %td of %zu", name,
                     w.p - (const uint8_t *)data, size);
    if (st == TM_OK)
        st = tm_spm_settle(out, name, err);
    if (st != TM_OK)
        tm_spm_deinit(out);
    return st;
}

void tm_spm_deinit(tm_spm *spm)
{
    free(spm->piece);
    *spm = (tm_spm){0};
}
