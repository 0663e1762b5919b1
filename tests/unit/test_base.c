/* Errors, buffers, number formats and the counter-based generator. */
#include "base/buf.h"
#include "base/dtype.h"
#include "base/philox.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

static void status_codes(void **state)
{
    (void)state;
    assert_int_equal(tm_status_exit_code(TM_OK), 0);
    assert_int_equal(tm_status_exit_code(TM_RECIPE), 2);
    assert_int_equal(tm_status_exit_code(TM_INPUT), 3);
    assert_int_equal(tm_status_exit_code(TM_NO_FIT), 4);
    assert_int_equal(tm_status_exit_code(TM_RETENTION), 5);
    tm_error err = {0};
    assert_int_equal(tm_fail(&err, TM_INPUT, "found %d", 7), TM_INPUT);
    assert_int_equal(tm_fail_prefix(&err, TM_INPUT, "a.json"), TM_INPUT);
    assert_int_equal(tm_fail_prefix(NULL, TM_INPUT, "a.json"), TM_INPUT);
    assert_string_equal(err.message, "a.json: found 7");
}

static void buffer_grows(void **state)
{
    (void)state;
    tm_buf buf = {0};
    for (int i = 0; i < 1000; i++)
        tm_buf_printf(&buf, "%d,", i);
    tm_error err;
    assert_int_equal(tm_buf_check(&buf, &err), TM_OK);
    assert_int_equal(buf.size, 3890);
    assert_memory_equal(buf.data + buf.size - 4, "999,", 5);
    assert_null(tm_buf_reserve(&buf, SIZE_MAX));
    assert_int_equal(tm_buf_check(&buf, &err), TM_NO_MEMORY);
    tm_buf_deinit(&buf);
}

/* Every f16 and bf16 pattern survives the way to float and back. */
static void half_round_trips(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = tm_f16_to_f32((uint16_t)h), b = tm_bf16_to_f32((uint16_t)h);
        if (!isnan(f))
            assert_int_equal(tm_f32_to_f16(f), h);
        if (!isnan(b))
            assert_int_equal(tm_f32_to_bf16(b), h);
        else
            assert_true(isnan(tm_bf16_to_f32(tm_f32_to_bf16(b))));
    }
}

/* Rounding of floats between two neighbours: to the nearer one, ties to the even pattern. */
static void half_rounds_to_even(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float lo = tm_f16_to_f32((uint16_t)h), hi = tm_f16_to_f32((uint16_t)(h + 1)), mid = (lo + hi) / 2;
        assert_int_equal(tm_f32_to_f16(nextafterf(mid, 0)), h);
        assert_int_equal(tm_f32_to_f16(nextafterf(mid, INFINITY)), h + 1);
        assert_int_equal(tm_f32_to_f16(mid), h & 1 ? h + 1 : h);
    }
}

/* The known-answer vectors published with Random123. */
static void philox_known_answers(void **state)
{
    (void)state;
    tm_philox p = tm_philox_at(0, 0, 0, 0, 0);
    assert_int_equal(p.word[0], 0x6627e8d5);
    assert_int_equal(p.word[1], 0xe169c58d);
    assert_int_equal(p.word[2], 0xbc57ac4c);
    assert_int_equal(p.word[3], 0x9b00dbd8);
    p = tm_philox_at(0xffffffffffffffffu, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff);
    assert_int_equal(p.word[0], 0x408f276d);
    assert_int_equal(p.word[1], 0x41c83b0e);
    assert_int_equal(p.word[2], 0xa20bc7c6);
    assert_int_equal(p.word[3], 0x6d5451fd);
    p = tm_philox_at(0x299f31d0a4093822u, 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344);
    assert_int_equal(p.word[0], 0xd16cfe09);
    assert_int_equal(p.word[1], 0x94fdcceb);
    assert_int_equal(p.word[2], 0x5001e420);
    assert_int_equal(p.word[3], 0x24126ea1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(status_codes), cmocka_unit_test(buffer_grows), cmocka_unit_test(half_round_trips),
        cmocka_unit_test(half_rounds_to_even), cmocka_unit_test(philox_known_answers),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
