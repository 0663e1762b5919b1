/* The fast kernels of sm_80 and sm_90a against the plain ones and sums in double, on the processor (tests/emulated): the
 * programs of tests/cuda with small sizes, others every time, threads in an order that is drawn. */
#include "../support/run.h"

static void run_program(const char *name, int architecture)
{
    char command[512], line[512];
    uint64_t seed = fresh_seed() % 1000000000;
    snprintf(command, sizeof command, "%s/%s", EMULATED_PROGRAMS, name);
    if (access(command, X_OK) != 0) {
        print_message("skipped: no C++ compiler here, so no %s\n", command);
        skip();
    }
    snprintf(command, sizeof command, "TEST_SEED=%llu TEMPER_EMULATED_SM=%d %s/%s 2>&1", (unsigned long long)seed, architecture, EMULATED_PROGRAMS, name);
    FILE *f = popen(command, "r");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        print_message("%s", line);
    if (pclose(f) != 0)
        fail_msg("failed: %s", command);
}

#define PROGRAM(name, architecture)                  \
    static void name##_##architecture(void **state)  \
    {                                                \
        (void)state;                                 \
        run_program("test_" #name, architecture);    \
    }
PROGRAM(attention, 80)
PROGRAM(attention, 90)
PROGRAM(half, 80) /* what differs between the architectures is in the products and in attention */
PROGRAM(lora, 80)
PROGRAM(lora, 90)
PROGRAM(multiply, 80)
PROGRAM(multiply, 90)

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(attention_80), cmocka_unit_test(attention_90), cmocka_unit_test(half_80), cmocka_unit_test(lora_80),
                                       cmocka_unit_test(lora_90), cmocka_unit_test(multiply_80), cmocka_unit_test(multiply_90)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
