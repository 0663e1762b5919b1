/* The rules of temper advise on situations that are made up: what is said follows what was seen, and every setting is one that the
 * recipe's parser takes. What looks at real data: tests/cli/advise.sh. */
#include "../support/run.h"
#include "api/advise_rules.h"

static uint64_t seed;

/* Conversations of some size, mildly new, LoRA and full both fitting, nothing old at hand. */
static tm_situation usual(void)
{
    return (tm_situation){.examples = 5000, .tokens = 2000000, .targets = 900000, .surprise = 2.1, .known = 1.5, .surprising = 0.3, .tasks = 1, .probes = true, .lora_fits = true, .full_fits = true};
}

static const tm_advised *find(const tm_counsel *c, const char *key)
{
    for (int i = 0; i < c->count; i++)
        if (c->item[i].key && strcmp(c->item[i].key, key) == 0)
            return &c->item[i];
    return NULL;
}

static void is(const tm_counsel *c, const char *key, const char *value)
{
    const tm_advised *a = find(c, key);
    if (!a != !value || (a && strcmp(a->value, value) != 0))
        fail_msg("%s: found %s, expected %s", key, a ? a->value : "no advice", value ? value : "none");
}

static bool remarks(const tm_counsel *c, const char *word)
{
    for (int i = 0; i < c->count; i++)
        if (!c->item[i].key && strstr(c->item[i].reason, word))
            return true;
    return false;
}

static tm_counsel counsel(const tm_situation *s)
{
    tm_counsel c;
    tm_counsel_give(s, &c);
    return c;
}

static void distance(void **state)
{
    (void)state;
    tm_situation s = usual();
    assert_int_equal(tm_shift_of(&s), TM_SHIFT_MILD);
    s.surprise = 1.6; /* 0.1 above what is known */
    assert_int_equal(tm_shift_of(&s), TM_SHIFT_NEAR);
    s.surprise = 0.5; /* better known than the probes */
    assert_int_equal(tm_shift_of(&s), TM_SHIFT_NEAR);
    s.surprise = 2.6;
    assert_int_equal(tm_shift_of(&s), TM_SHIFT_STRONG);
    s.known = NAN; /* nothing to compare with */
    assert_int_equal(tm_shift_of(&s), TM_SHIFT_MILD);
    s.surprise = 3.5;
    assert_int_equal(tm_shift_of(&s), TM_SHIFT_STRONG);
    s.surprise = NAN;
    assert_int_equal(tm_shift_of(&s), TM_SHIFT_MILD);
}

static void old_data_decide_how_to_keep(void **state)
{
    (void)state;
    static const struct {
        double surprise;
        const char *fraction, *samples;
    } cases[] = {{1.6, "0.01", NULL}, {2.1, "0.05", NULL}, {4, "0.25", "512"}};
    for (int i = 0; i < 3; i++) {
        tm_situation s = usual();
        s.surprise = cases[i].surprise;
        s.old_data = true;
        tm_counsel c = counsel(&s);
        is(&c, "keep.replay.fraction", cases[i].fraction);
        is(&c, "keep.kl.beta", NULL);
        is(&c, "keep.stm.threshold", NULL);
        assert_int_equal(find(&c, "keep.replay.fraction")->evidence, TM_EVIDENCE_REPLAY);
        s.old_data = false;
        c = counsel(&s);
        is(&c, "keep.replay.fraction", NULL);
        is(&c, "keep.kl.beta", "0.1");
        is(&c, "keep.generate.samples", cases[i].samples);
        is(&c, "keep.stm.threshold", "2.5");
    }
}

/* Old data and room for importances: EWC, with less replay beside it; its strength is that of the method. */
static void old_data_and_room_for_importances(void **state)
{
    (void)state;
    static const struct {
        double surprise;
        const char *fraction;
    } cases[] = {{1.6, "0.01"}, {2.1, "0.05"}, {4, "0.05"}};
    for (int i = 0; i < 3; i++)
        for (int full = 0; full < 2; full++) {
            tm_situation s = usual();
            s.surprise = cases[i].surprise;
            s.tokens = full ? 80000000 : 2000000;
            s.old_data = true;
            s.lora_ewc_fits = true;
            bool all = full && i == 2; /* only then all weights are advised */
            s.full_ewc_fits = all;
            tm_counsel c = counsel(&s);
            is(&c, "method", all ? "full" : "lora");
            is(&c, "keep.ewc.lambda", all ? "0.3" : "0.03");
            is(&c, "keep.replay.fraction", cases[i].fraction);
            assert_int_equal(find(&c, "keep.ewc.lambda")->evidence, TM_EVIDENCE_EWC);
            assert_false(remarks(&c, "EWC would keep more"));
            s.lora_ewc_fits = s.full_ewc_fits = false;
            c = counsel(&s);
            is(&c, "keep.ewc.lambda", NULL);
            assert_true(remarks(&c, "EWC would keep more"));
            s.lora_ewc_fits = s.full_ewc_fits = true;
            s.old_data = false;
            c = counsel(&s);
            is(&c, "keep.ewc.lambda", NULL);
        }
}

static void method_by_memory_data_and_distance(void **state)
{
    (void)state;
    tm_situation s = usual();
    tm_counsel c = counsel(&s);
    is(&c, "method", "lora");
    is(&c, "lora.r", "16");
    is(&c, "train.lr", "2e-4");
    is(&c, "train.epochs", "2");
    s.surprise = 1.6; /* near, nothing old to rehearse: a tenth of the rate */
    c = counsel(&s);
    is(&c, "lora.r", "8");
    is(&c, "train.lr", "2e-5");
    s.surprise = 4;
    s.tokens = 80000000;
    c = counsel(&s);
    is(&c, "method", "full");
    is(&c, "lora.r", NULL);
    is(&c, "train.epochs", "1");
    s.full_fits = false;
    c = counsel(&s);
    is(&c, "method", "lora");
    is(&c, "lora.r", "32");
    assert_int_equal(find(&c, "method")->evidence, TM_EVIDENCE_MEMORY);
    s.lora_fits = false;
    c = counsel(&s);
    assert_true(remarks(&c, "smaller base"));
}

static void facts_sequences_and_probes(void **state)
{
    (void)state;
    tm_situation s = usual();
    tm_counsel c = counsel(&s);
    assert_false(c.retrieve || remarks(&c, "retrieval") || remarks(&c, "temper sequence") || remarks(&c, "no probe"));
    s.documents = true;
    c = counsel(&s);
    assert_false(c.retrieve); /* a library is no few documents */
    s.tokens = 40000;
    c = counsel(&s);
    assert_true(c.retrieve && remarks(&c, "retrieval"));
    is(&c, "keep.stm.threshold", NULL); /* it would block the facts */
    s.tasks = 4;
    s.probes = false;
    c = counsel(&s);
    assert_true(remarks(&c, "4 tasks one after another") && remarks(&c, "no probe"));
}

/* Any situation: keys and values that the parser takes, reasons, evidence, no key twice, groups together. */
static void every_setting_is_a_setting(void **state)
{
    (void)state;
    dice d = {.key = seed};
    for (int i = 0; i < 300; i++) {
        tm_situation s = {.examples = 1, .tokens = (int64_t)exp(20 * dice_unit(&d)), .surprise = dice_unit(&d) < 0.1 ? NAN : 6 * dice_unit(&d), .known = dice_unit(&d) < 0.5 ? NAN : 3 * dice_unit(&d),
                          .surprising = dice_unit(&d) < 0.1 ? NAN : dice_unit(&d), .documents = dice_in(&d, 0, 1), .old_data = dice_in(&d, 0, 1), .probes = dice_in(&d, 0, 1),
                          .tasks = dice_in(&d, 1, 3), .lora_fits = dice_in(&d, 0, 1), .full_fits = dice_in(&d, 0, 1), .lora_ewc_fits = dice_in(&d, 0, 1),
                          .full_ewc_fits = dice_in(&d, 0, 1)};
        tm_counsel c = counsel(&s);
        char line[TM_ADVISED_MAX][128];
        char *list[TM_ADVISED_MAX];
        size_t n = 0;
        for (int k = 0; k < c.count; k++) {
            assert_true(c.item[k].reason[0] && strlen(c.item[k].reason) < sizeof c.item[k].reason - 1);
            assert_non_null(tm_evidence_text(c.item[k].evidence));
            if (!c.item[k].key)
                continue;
            assert_ptr_equal(find(&c, c.item[k].key), &c.item[k]);
            snprintf(line[n], sizeof line[n], "%s=%s", c.item[k].key, c.item[k].value);
            list[n] = line[n];
            n++;
        }
        tm_recipe *recipe;
        tm_error problem;
        if (tm_recipe_load(NULL, list, n, &recipe, &problem) != TM_OK)
            fail_msg("%s (seed %llu)", problem.message, (unsigned long long)seed);
        tm_recipe_destroy(recipe);
    }
}

int main(void)
{
    seed = fresh_seed();
    const struct CMUnitTest tests[] = {cmocka_unit_test(distance), cmocka_unit_test(old_data_decide_how_to_keep), cmocka_unit_test(old_data_and_room_for_importances),
                                       cmocka_unit_test(method_by_memory_data_and_distance),
                                       cmocka_unit_test(facts_sequences_and_probes), cmocka_unit_test(every_setting_is_a_setting)};
    return cmocka_run_group_tests_name("advise", tests, memory_begin, scratch_end);
}
