/* The rules: see advise_rules.h. Thresholds are choices, gathered here; where measurements exist the evidence says so. */
#include "api/advise_rules.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

static const double near_gap = 0.25, strong_gap = 1;      /* nats a token above what the base knows */
static const double near_loss = 1.5, strong_loss = 3;     /* nats a token, where there is nothing to compare with */
static const int64_t few_tokens = 300000;                 /* of documents: a book */
static const int64_t small_data = 1000000, medium_data = 20000000, large_data = 50000000;

const char *tm_evidence_text(tm_evidence evidence)
{
    static const char *const texts[] = {
#define EVIDENCE(name, text) text,
#include "api/evidence.def"
#undef EVIDENCE
    };
    return texts[evidence];
}

tm_shift tm_shift_of(const tm_situation *s)
{
    if (isnan(s->surprise))
        return TM_SHIFT_MILD;
    double near = isnan(s->known) ? near_loss : near_gap, strong = isnan(s->known) ? strong_loss : strong_gap;
    double distance = isnan(s->known) ? s->surprise : s->surprise - s->known;
    return distance < near ? TM_SHIFT_NEAR : distance < strong ? TM_SHIFT_MILD : TM_SHIFT_STRONG;
}

__attribute__((format(printf, 5, 6))) static void add(tm_counsel *c, const char *key, const char *value, tm_evidence evidence, const char *reason, ...)
{
    if (c->count == TM_ADVISED_MAX)
        return;
    tm_advised *a = &c->item[c->count++];
    va_list args;
    a->key = key;
    a->evidence = evidence;
    snprintf(a->value, sizeof a->value, "%s", value);
    va_start(args, reason);
    vsnprintf(a->reason, sizeof a->reason, reason, args);
    va_end(args);
}

static bool wants_full(const tm_situation *s, tm_shift shift) { return s->full_fits && shift == TM_SHIFT_STRONG && s->tokens >= large_data; }

static void advise_method(const tm_situation *s, tm_shift shift, tm_counsel *c)
{
    if (wants_full(s, shift)) {
        add(c, "method", "full", TM_EVIDENCE_METHOD, "much data that are far from the base, and training all weights fits");
        add(c, "train.lr", "2e-5", TM_EVIDENCE_RATE, "a usual rate for all weights");
        return;
    }
    add(c, "method", "lora", s->full_fits ? TM_EVIDENCE_METHOD : TM_EVIDENCE_MEMORY, s->full_fits ? "less memory, and it can be taken off again; in the benchmark below it learned as much as training all weights"
                                                                                                 : "training all weights does not fit this device");
    const char *rank = shift == TM_SHIFT_NEAR || s->tokens < small_data ? "8" : shift == TM_SHIFT_MILD ? "16" : "32";
    const char *alpha = rank[0] == '8' ? "16" : rank[0] == '1' ? "32" : "64";
    add(c, "lora.r", rank, TM_EVIDENCE_RANK, rank[0] == '8' ? "little to learn, or little data: a small rank is enough and forgets least" : rank[0] == '1' ? "a mild shift" : "far from the base, with data enough to fill a higher rank");
    add(c, "lora.alpha", alpha, TM_EVIDENCE_NONE, "twice the rank, so that the rate means the same at every rank");
    bool small = shift == TM_SHIFT_NEAR && !s->old_data;
    add(c, "train.lr", small ? "2e-5" : "2e-4", TM_EVIDENCE_RATE, small ? "close to what the base can, and no old data to rehearse: a tenth of the usual rate keeps most" : "the usual rate of LoRA");
}

static void advise_epochs(const tm_situation *s, tm_counsel *c)
{
    const char *epochs = s->tokens < small_data ? "3" : s->tokens < medium_data ? "2" : "1";
    add(c, "train.epochs", epochs, TM_EVIDENCE_NONE, "%lld tokens: %s", (long long)s->tokens, epochs[0] == '1' ? "more passes would mostly repeat" : "few enough to be read again");
}

/* EWC keeps more than replay where as much is learned; a little replay beside it keeps more still. */
static void advise_old_data(const tm_situation *s, tm_shift shift, tm_counsel *c)
{
    static const char *const alone[] = {[TM_SHIFT_NEAR] = "0.01", [TM_SHIFT_MILD] = "0.05", [TM_SHIFT_STRONG] = "0.25"};
    static const char *const beside[] = {[TM_SHIFT_NEAR] = "0.01", [TM_SHIFT_MILD] = "0.05", [TM_SHIFT_STRONG] = "0.05"};
    bool full = wants_full(s, shift), ewc = full ? s->full_ewc_fits : s->lora_ewc_fits;
    if (!ewc) {
        add(c, "keep.replay.fraction", alone[shift], TM_EVIDENCE_REPLAY, "old data are there: this share of the tokens, by how far the new ones are from the base");
        add(c, NULL, "", TM_EVIDENCE_EWC, "EWC would keep more of the old at as much learned, but importances, or their measurement, do not fit this device: keep.ewc on fewer target_modules, or a larger one");
        return;
    }
    add(c, "keep.replay.fraction", beside[shift], shift == TM_SHIFT_STRONG ? TM_EVIDENCE_EWC : TM_EVIDENCE_REPLAY, "old data are there: this share of the tokens, beside the pull of keep.ewc");
    add(c, "keep.ewc.lambda", full ? "0.3" : "0.03", TM_EVIDENCE_EWC, "old data are there: every weight is pulled to its start by how much they need it, which kept the most where as much was learned; weaker where the new does not come, "
        "stronger where the old still goes. Importances are measured on them before the training (temper plan has what that takes)");
}

static void advise_keeping(const tm_situation *s, tm_shift shift, tm_counsel *c)
{
    if (s->old_data)
        advise_old_data(s, shift, c);
    else {
        if (shift == TM_SHIFT_STRONG) {
            add(c, "keep.generate.samples", "512", TM_EVIDENCE_NONE, "no old data: the base writes some, since the new ones are far from it");
            add(c, "keep.generate.fraction", "0.05", TM_EVIDENCE_NONE, "as much as replay of real data would take of a mild shift");
        }
        add(c, "keep.kl.beta", "0.1", TM_EVIDENCE_REHEARSAL, "no old data: the answers themselves are held near those of the base");
    }
    bool skill = !s->documents && s->surprising > 0.05 && s->surprising < 0.4;
    if (skill && !s->old_data)
        add(c, "keep.stm.threshold", "2.5", TM_EVIDENCE_STM, "%.0f %% of the targets surprise the base and do most of the damage; leave this out where they are the facts to be learned", 100 * s->surprising);
    if (!s->probes)
        add(c, NULL, "", TM_EVIDENCE_NONE, "no probe watches what must not be lost: add keep.monitor.probes with a budget (docs/howto-keep.md); text that the base wrote will do");
    if (s->tasks > 1)
        add(c, NULL, "", TM_EVIDENCE_SEQUENCE, "%lld tasks one after another: use temper sequence with replay of the earlier ones, or an adapter a task", (long long)s->tasks);
}

void tm_counsel_give(const tm_situation *s, tm_counsel *out)
{
    tm_shift shift = tm_shift_of(s);
    *out = (tm_counsel){0};
    out->retrieve = s->documents && s->tokens < few_tokens;
    if (out->retrieve)
        add(out, NULL, "", TM_EVIDENCE_FACTS, "%lld tokens of documents: if what matters are the facts in them, put them into a search index and give the model what it finds (retrieval); "
            "fine-tuning teaches style and form from so little, facts badly", (long long)s->tokens);
    if (!s->lora_fits)
        add(out, NULL, "", TM_EVIDENCE_MEMORY, "not even LoRA fits this device: a smaller base, or another card (temper plan shows which)");
    advise_method(s, shift, out);
    advise_epochs(s, out);
    advise_keeping(s, shift, out);
}
