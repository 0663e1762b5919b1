/* Registers: a gate of 0 is the base to the bit, a gate of 1 the adapter alone; a bank that learns with one
 * register on is a plain adapter in training; gates are linear in what they add; damaged folders are refused. */
#include "../support/run.h"

#include "api/inference.h"
#include "tune/registers.h"
#include "tune/router.h"

enum { TOKENS = 40, VOCAB = 61 };

static uint64_t seed;

static const char *const model = "{\"model_type\": \"llama\", \"vocab_size\": 61, \"hidden_size\": 24, \"intermediate_size\": 40, \"num_hidden_layers\": 2, "
                                 "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"max_position_embeddings\": 64}";

static void recipe(args *a, const char *out, const char *const *more)
{
    arg(a, "model=%s", scratch("model"));
    arg(a, "out=%s", scratch(out));
    arg(a, "data.0.path=%s", scratch("rows.jsonl"));
    arg(a, "data.0.format=tokens");
    arg(a, "threads=1");
    arg(a, "train.batch=3");
    arg(a, "train.steps=6");
    arg(a, "train.lr=0.02");
    arg(a, "train.warmup_steps=0");
    arg(a, "train.max_grad_norm=0"); /* the norm's sum runs over other blocks in a bank */
    arg(a, "train.seed=%llu", (unsigned long long)(seed >> 1));
    arg(a, "lora.r=3");
    arg(a, "lora.dropout=0.1");
    for (int i = 0; more[i]; i++)
        arg(a, "%s", more[i]);
}

static void train_with(const char *out, const char *const *more)
{
    args a = {0};
    recipe(&a, out, more);
    train(&a);
    args_free(&a);
}

/* Logits [TOKENS, VOCAB] of the model with an adapter (NULL: none) and gates. */
static void logits_of(const char *adapter, const char *gates, float *out)
{
    tm_inference inf;
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++)
        ids[i] = (i * 17 + 5) % VOCAB;
    tm_inference_settings settings = {.model = scratch("model"), .adapter = adapter, .registers = gates, .threads = 1, .max_tokens = TOKENS, .logits = true};
    OK(tm_inference_open(&settings, &inf, err));
    tm_batch_item item = {.ids = ids, .n = TOKENS, .gates = inf.gates};
    tm_batch_fill(&inf.batch, &item, 1);
    tm_model_forward(&inf.model, &inf.batch);
    tm_model_logits(&inf.model, &inf.batch);
    inf.device->calls->download(inf.device, out, inf.model.logits.data, sizeof(float) * TOKENS * VOCAB);
    OK(inf.device->calls->sync(inf.device, err));
    tm_inference_close(&inf);
}

static double apart(const float *a, const float *b)
{
    double most = 0;
    for (int i = 0; i < TOKENS * VOCAB; i++)
        most = fmax(most, fabs((double)a[i] - b[i]));
    return most;
}

static void gates_do_what_they_say(void **state)
{
    (void)state;
    static float base[TOKENS * VOCAB], off[TOKENS * VOCAB], one[TOKENS * VOCAB], alone[TOKENS * VOCAB], more[TOKENS * VOCAB];
    train_with("bank", (const char *const[]){"lora.registers=[calm, wild]", "data.0.registers={calm: 1, wild: -0.7}", NULL});
    logits_of(NULL, NULL, base);
    logits_of(scratch("bank"), NULL, off);
    assert_memory_equal(base, off, sizeof base);
    logits_of(scratch("bank"), "calm=0,wild=0", off);
    assert_memory_equal(base, off, sizeof base);
    logits_of(scratch("bank"), "wild=1", one);
    logits_of(scratch("bank/wild"), NULL, alone); /* as PEFT would load it */
    assert_memory_equal(one, alone, sizeof one);
    if (!(apart(base, one) > 1e-3))
        fail_msg("a register changes nothing; seed %llu", (unsigned long long)seed);
    logits_of(scratch("bank"), "wild=2", more);
    tm_adapter_config config; /* a gate of 2 is the adapter at twice its alpha: powers of two round nothing */
    OK(tm_adapter_config_read(scratch("bank/wild"), &config, err));
    config.alpha *= 2;
    OK(tm_adapter_config_write(scratch("bank/wild"), &config, err));
    logits_of(scratch("bank/wild"), NULL, alone);
    assert_memory_equal(more, alone, sizeof more);
    config.alpha /= 2;
    OK(tm_adapter_config_write(scratch("bank/wild"), &config, err));
    tm_adapter_config_deinit(&config);
    logits_of(scratch("bank"), "calm=1,wild=1", more);
    assert_true(apart(one, more) > 1e-3);
}

/* The first register's part of A starts as a plain adapter's A; nobody else's gradient is there. */
static void one_register_is_a_plain_adapter(void **state)
{
    (void)state;
    train_with("plain", (const char *const[]){"lora.target_modules=[q_proj, k_proj, v_proj, o_proj]", NULL});
    train_with("first", (const char *const[]){"lora.registers=[one, two]", "data.0.registers={one: 1}", NULL});
    assert_true(files_agree(scratch("plain"), scratch("first/one"), "adapter_model.safetensors"));
}

/* Rows that say it themselves, in each of the ways, or leave it to the entry. */
static void rows_say_their_register(void **state)
{
    (void)state;
    static const char *const ways[] = {"\"one\"", "\"one=1,two=0\"", "{\"one\": 1}", "null", "[{\"from\": 0, \"to\": 1000, \"one\": 1}]"};
    size_t size;
    char *rows = slurp(scratch("rows.jsonl"), &size), *at = rows;
    tm_buf named = {0}, mixed = {0};
    for (int i = 0; *at; i++, at = strchr(at, '\n') + 1) {
        int n = (int)(strchr(at, '\n') - at);
        tm_buf_printf(&named, "{\"mood\": %s, %.*s\n", ways[i % 5], n - 1, at + 1);
        tm_buf_printf(&mixed, "{\"mood\": %s, %.*s\n", i % 2 ? "\"two=-1.5\"" : "\"one\"", n - 1, at + 1);
    }
    OK(tm_file_write(scratch("named.jsonl"), named.data, named.size, err));
    OK(tm_file_write(scratch("mixed.jsonl"), mixed.data, mixed.size, err));
    char named_path[300], mixed_path[300];
    snprintf(named_path, sizeof named_path, "data.0.path=%s", scratch("named.jsonl"));
    snprintf(mixed_path, sizeof mixed_path, "data.0.path=%s", scratch("mixed.jsonl"));
    train_with("by-row", (const char *const[]){"lora.registers=[one, two]", "data.0.registers={one: 1}", "data.0.register_field=mood", named_path, NULL});
    train_with("by-row-mixed", (const char *const[]){"lora.registers=[one, two]", "data.0.register_field=mood", mixed_path, NULL});
    assert_true(files_agree(scratch("first/one"), scratch("by-row/one"), "adapter_model.safetensors"));
    assert_false(files_agree(scratch("first/two"), scratch("by-row-mixed/two"), "adapter_model.safetensors"));
    free(rows);
    tm_buf_deinit(&named);
    tm_buf_deinit(&mixed);
}

static void logits_by_token(const float *gates, float *out)
{
    tm_inference inf;
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++)
        ids[i] = (i * 17 + 5) % VOCAB;
    tm_inference_settings settings = {.model = scratch("model"), .adapter = scratch("bank"), .threads = 1, .max_tokens = TOKENS, .logits = true};
    OK(tm_inference_open(&settings, &inf, err));
    tm_batch_item item = {.ids = ids, .n = TOKENS, .gates = gates, .gates_by_token = true};
    tm_batch_fill(&inf.batch, &item, 1);
    tm_model_forward(&inf.model, &inf.batch);
    tm_model_logits(&inf.model, &inf.batch);
    inf.device->calls->download(inf.device, out, inf.model.logits.data, sizeof(float) * TOKENS * VOCAB);
    OK(inf.device->calls->sync(inf.device, err));
    tm_inference_close(&inf);
}

/* A switch in mid-sequence leaves what stands before it as it was, and changes what comes behind. */
static void gates_switch_within_a_text(void **state)
{
    (void)state;
    enum { AT = 13 };
    static float gates[TOKENS * 2], base[TOKENS * VOCAB], all[TOKENS * VOCAB], part[TOKENS * VOCAB];
    logits_of(NULL, NULL, base);
    logits_of(scratch("bank"), "wild=1.5", all);
    for (int t = 0; t < TOKENS; t++)
        gates[2 * t + 1] = 1.5f;
    logits_by_token(gates, part);
    assert_memory_equal(all, part, sizeof all);
    for (int t = 0; t < AT; t++)
        gates[2 * t + 1] = 0;
    logits_by_token(gates, part);
    assert_memory_equal(base, part, sizeof(float) * AT * VOCAB);
    assert_memory_not_equal(base + AT * VOCAB, part + AT * VOCAB, sizeof(float) * VOCAB);
    assert_memory_not_equal(all + AT * VOCAB, part + AT * VOCAB, sizeof(float) * VOCAB); /* keys before it are others */
}

static void a_bank_goes_on(void **state)
{
    (void)state;
    static float before[TOKENS * VOCAB], after[TOKENS * VOCAB];
    char from[300];
    snprintf(from, sizeof from, "lora.init=%s", scratch("bank"));
    train_with("more", (const char *const[]){from, "train.lr=0", "data.0.registers={calm: 1}", NULL});
    logits_of(scratch("bank"), "calm=1.5,wild=-2", before);
    logits_of(scratch("more"), "calm=1.5,wild=-2", after);
    assert_memory_equal(before, after, sizeof before);
}

/* Two kinds of directions, whatever their length: the router tells them apart, and from its file too. */
static void router_tells_directions_apart(void **state)
{
    (void)state;
    enum { N = 60, C = 12, K = 2 };
    static float h[N * C], gates[N * K], got[K], again[K];
    dice d = {.key = seed ^ 5};
    for (int i = 0; i < N; i++) {
        double length = 0.1 + 10 * dice_unit(&d);
        for (int c = 0; c < C; c++)
            h[i * C + c] = (float)(length * (((i % 2) == (c % 2) ? 1 : -1) + 0.3 * dice_spread(&d)));
        gates[i * K] = i % 2 ? 1.5f : 0;
        gates[i * K + 1] = i % 2 ? 0 : -1;
    }
    tm_router router, read;
    OK(tm_router_fit(h, gates, N, C, K, 1e-3, &router, err));
    OK(tm_router_write(&router, scratch_dir, err));
    OK(tm_router_read(scratch_dir, C, K, &read, err));
    for (int i = 0; i < N; i++) {
        tm_router_gates(&router, h + i * C, got);
        tm_router_gates(&read, h + i * C, again);
        assert_memory_equal(got, again, sizeof got);
        if (fabsf(got[0] - gates[i * K]) > 0.2f || fabsf(got[1] - gates[i * K + 1]) > 0.2f)
            fail_msg("example %d: %g and %g, expected %g and %g; seed %llu", i, (double)got[0], (double)got[1], (double)gates[i * K], (double)gates[i * K + 1], (unsigned long long)seed);
    }
    tm_router_deinit(&router);
    tm_router_deinit(&read);
    tm_error problem;
    assert_int_equal(tm_router_read(scratch_dir, C + 1, K, &read, &problem), TM_INPUT);
    memset(h, 0, sizeof h);
    assert_int_equal(tm_router_fit(h, gates, N, C, K, 1e-3, &router, &problem), TM_INPUT);
}

static void must_refuse(const char *out, const char *const *more, const char *text)
{
    args a = {0};
    tm_error problem = {0};
    recipe(&a, out, more);
    tm_status st = try_train(&a, &problem);
    if (st == TM_OK || !strstr(problem.message, text))
        fail_msg("status %d, \"%s\", expected \"%s\"", (int)st, problem.message, text);
    args_free(&a);
}

static void nonsense_is_refused(void **state)
{
    (void)state;
    tm_inference inf;
    tm_error problem;
    must_refuse("bad", (const char *const[]){"lora.registers=[a, a]", NULL}, "twice");
    must_refuse("bad", (const char *const[]){"lora.registers=[../a]", NULL}, "letters");
    must_refuse("bad", (const char *const[]){"lora.registers=[a]", "data.0.registers={b: 1}", NULL}, "no register 'b'");
    must_refuse("bad", (const char *const[]){"lora.registers=[a]", "data.0.registers={a: x}", NULL}, "registers");
    must_refuse("bad", (const char *const[]){"lora.registers=[a]", "lora.use_dora=true", NULL}, "plain LoRA");
    must_refuse("bad", (const char *const[]){"lora.registers=[a]", "lora.target_modules=[lm_head]", NULL}, "inside the blocks");
    must_refuse("bad", (const char *const[]){"data.0.registers={a: 1}", NULL}, "names none");
    tm_inference_settings s = {.model = scratch("model"), .adapter = scratch("bank"), .registers = "calm", .threads = 1, .max_tokens = 4};
    assert_int_equal(tm_inference_open(&s, &inf, &problem), TM_USAGE);
    s.registers = "calm=1,loud=2";
    assert_int_equal(tm_inference_open(&s, &inf, &problem), TM_RECIPE);
    assert_non_null(strstr(problem.message, "loud"));
    OK(tm_file_write(scratch("bank/registers.json"), "{\"registers\": [\"calm\", \"gone\"]}", 32, err));
    s.registers = NULL;
    assert_int_not_equal(tm_inference_open(&s, &inf, &problem), TM_OK);
    OK(tm_file_write(scratch("bank/registers.json"), "{\"registers\": 7}", 16, err));
    assert_int_equal(tm_inference_open(&s, &inf, &problem), TM_INPUT);
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state))
        return -1;
    write_model(scratch("model"), model, TM_F32, seed);
    write_rows(scratch("rows.jsonl"), 9, 5, 40, VOCAB, 0.5, seed + 1);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(gates_do_what_they_say), cmocka_unit_test(one_register_is_a_plain_adapter), cmocka_unit_test(rows_say_their_register), cmocka_unit_test(gates_switch_within_a_text),
                                       cmocka_unit_test(a_bank_goes_on), cmocka_unit_test(router_tells_directions_apart), cmocka_unit_test(nonsense_is_refused)};
    return cmocka_run_group_tests_name("registers", tests, begin, scratch_end);
}
