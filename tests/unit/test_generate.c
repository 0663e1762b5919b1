/* Many texts at a time: each has the tokens and the logits, to the bit, that it has alone, whatever is beside it, in which
 * slot of the cache it lies and in what pieces its prompt is read. Random models of families that differ in what
 * attention sees, random prompts, lengths and ends. */
#include "../support/texts.h"

static void alone_and_among_others(void **state)
{
    (void)state;
    for (int f = 0; f < FAMILIES; f++)
        for (int k = 0; k < 4; k += SPARSE) {
            const char *method = k & 1 ? "prompt" : "none";
            tm_dtype act = k & 2 ? TM_BF16 : TM_F32;
            machine m;
            telling alone, among;
            dice d = {.key = seed + (uint64_t)(4 * f + k)};
            invent(&alone, &d);
            among = alone;
            machine_open(&m, scratch(families[f][0]), method, act, (layout){PREFIX + PROMPT, 1, 1, NULL});
            OK(tell(&m, &alone, err));
            machine_close(&m);
            shuffle(&among, &d);
            machine_open(&m, scratch(families[f][0]), method, act, (layout){dice_in(&d, PREFIX, 2 * PROMPT), dice_in(&d, 2, TEXTS), (int)dice_in(&d, 1, 2), NULL});
            OK(tell(&m, &among, err));
            same_stories(&alone, &among, families[f][0]);
            machine_close(&m);
        }
}

/* --- What goes wrong --- */

static void refusals(void **state)
{
    (void)state;
    machine m;
    telling alone, again;
    tm_error problem = {0};
    dice d = {.key = seed};
    do
        invent(&alone, &d);
    while (alone.count < 3);
    machine_open(&m, scratch("llama"), "none", TM_F32, (layout){9, 4, 1, NULL});
    again = alone;
    again.refuse_at = 2;
    assert_int_equal(tell(&m, &again, &problem), TM_FAILED);
    assert_string_equal(problem.message, "no more");
    assert_false(m.batch.cached || m.batch.single);
    /* What was left in the cache is nobody's. */
    again = alone;
    OK(tell(&m, &again, err));
    OK(tell(&m, &alone, err));
    same_stories(&alone, &again, "after a failure");
    machine_close(&m);
}

static tm_status next_long(void *context, tm_text *out, bool *there, tm_error *problem)
{
    static const int32_t many[PREFIX + PROMPT + NEW];
    (void)problem;
    *there = true;
    *out = (tm_text){.prompt = {.ids = many, .n = *(int32_t *)context}, .max_tokens = 1};
    return TM_OK;
}

static void prompts_that_do_not_fit(void **state)
{
    (void)state;
    machine m;
    tm_error problem = {0};
    machine_open(&m, scratch("llama"), "none", TM_F32, (layout){9, 4, 1, NULL});
    for (int32_t n = 0; n <= PREFIX + PROMPT + NEW - 3; n += PREFIX + PROMPT + NEW - 3) {
        assert_int_equal(tm_decode(&m.model, &m.batch, &(tm_texts){.next = next_long, .choose = choose, .context = &n}, &problem), TM_FAILED);
        assert_non_null(strstr(problem.message, "expected 1 to 24"));
    }
    machine_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(alone_and_among_others), cmocka_unit_test(refusals), cmocka_unit_test(prompts_that_do_not_fit)};
    return cmocka_run_group_tests_name("generate", tests, texts_begin, scratch_end);
}
