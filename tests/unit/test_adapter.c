/* PEFT adapter configs: what is read, refused, written, and which modules they mean. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "base/json.h"
#include "folder.h"
#include "io/adapter.h"

static void parse(const char *text,
                  tm_adapter_config *c) { OK(tm_adapter_config_parse(text, strlen(text), "c.json", c, err)); }

static void refuses(tm_status code, const char *text, const char *why)
{
    tm_adapter_config c;
    FAILS(code, "c.json", tm_adapter_config_parse(text, strlen(text), "c.json", &c, err));
    FAILS(code, why, tm_adapter_config_parse(text, strlen(text), "c.json", &c, err));
    assert_null(c.bias); /* nothing is left to free */
}

static void reads_peft(void **state)
{
    (void)state;
    tm_adapter_config c;
    OK(tm_adapter_config_read("tests/data/golden/llama-dora/adapter_init", &c, err));
    assert_int_equal(c.r, 4);
    assert_true(c.alpha == 8 && c.dropout == 0);
    assert_true(c.use_dora && !c.use_rslora && c.inference_mode && !c.fan_in_fan_out);
    assert_int_equal(c.target_modules.count, 7);
    assert_string_equal(c.target_modules.item[0], "o_proj");
    assert_null(c.target_regex);
    assert_null(c.base_model);
    assert_string_equal(c.task_type, "CAUSAL_LM");
    assert_string_equal(c.bias, "none");
    assert_int_equal(c.modules_to_save.count + c.rank_patterns + c.alpha_patterns + c.layers_to_transform_count, 0);
    tm_adapter_config_deinit(&c);
    FAILS(TM_INPUT, "nowhere/adapter_config.json: cannot open", tm_adapter_config_read("nowhere", &c, err));
}

#define HEAD "{\"peft_type\":\"LORA\",\"target_modules\":[\"q\"]"

static void reads_more(void **state)
{
    (void)state;
    tm_adapter_config c;
    parse("{\"peft_type\":\"LORA\",\"target_modules\":\".*_proj\",\"r\":16,\"lora_alpha\":12.5,\"use_rslora\":true,\"bias\":\"all\","
          "\"modules_to_save\":[\"lm_head\"],\"rank_pattern\":{\"b\":2,\"a\":3},\"alpha_pattern\":{\"x\":0.5},"
          "\"exclude_modules\":\"lm_head\",\"loftq_config\":{},\"unsloth_fixed\":true,\"some_new_key\":[]}", &c);
    assert_string_equal(c.target_regex, ".*_proj");
    assert_string_equal(c.exclude_regex, "lm_head");
    assert_true(c.alpha == 12.5);
    assert_string_equal(c.rank_pattern[0].key, "b"); /* order kept */
    assert_true(c.rank_pattern[0].value == 2);
    assert_string_equal(c.rank_pattern[1].key, "a");
    assert_int_equal(c.alpha_patterns, 1);
    assert_string_equal(c.modules_to_save.item[0], "lm_head");
    tm_adapter_config_deinit(&c);
    parse(HEAD ",\"layers_to_transform\":3,\"layers_pattern\":\"h\"}", &c);
    assert_int_equal(c.layers_to_transform[0], 3);
    assert_string_equal(c.layers_pattern.item[0], "h");
    assert_int_equal(c.r, 8); /* PEFT's defaults */
    assert_true(c.alpha == 8);
    assert_string_equal(c.bias, "none");
    tm_adapter_config_deinit(&c);
    tm_adapter_config_deinit(&c);
    /* version 0.2 wrote these */
    parse(HEAD ",\"enable_lora\":null,\"merge_weights\":false,\"base_model_name_or_path\":\"x\"}", &c);
    tm_adapter_config_deinit(&c);
    parse(HEAD ",\"init_lora_weights\":\"gaussian\",\"layers_to_transform\":[0,2]}", &c);
    assert_int_equal(c.layers_to_transform_count, 2);
    tm_adapter_config_deinit(&c);
}

static void refused(void **state)
{
    (void)state;
    static const char *const unsupported[] = {
        "\"use_qalora\":true", "\"lora_bias\":true", "\"layer_replication\":[[0,1]]", "\"trainable_token_indices\":[1]",
        "\"megatron_config\":{\"a\":1}", "\"alora_invocation_tokens\":[1]", "\"arrow_config\":{\"top_k\":1}", "\"use_bdlora\":{\"a\":1}",
        "\"kasa_config\":{\"a\":1}", "\"monteclora_config\":{\"a\":1}", "\"velora_config\":{\"a\":1}", "\"target_parameters\":[\"a\"]",
        "\"ensure_weight_tying\":true", "\"a_key_of_the_future\":\"on\"", "\"init_lora_weights\":\"pissa\"",
        "\"init_lora_weights\":\"loftq\"", "\"init_lora_weights\":7", "\"task_type\":\"SEQ_CLS\"",
    };
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) {
        char text[256], key[64];
        snprintf(text, sizeof text, HEAD ",%s}", unsupported[i]);
        snprintf(key, sizeof key, "%.*s", (int)strcspn(unsupported[i], ":"), unsupported[i]);
        refuses(TM_UNSUPPORTED, text, key); /* names the key */
    }
    refuses(TM_UNSUPPORTED, "{\"peft_type\":\"IA3\"}", "\"peft_type\" is IA3");
    refuses(TM_INPUT, "{}", "\"peft_type\" is missing");
    refuses(TM_INPUT, "[]", "not a JSON object");
    refuses(TM_INPUT, "{", "not valid JSON");
    refuses(TM_INPUT, "{\"peft_type\":\"LORA\"}", "\"target_modules\" is missing or empty");
    refuses(TM_INPUT, "{\"peft_type\":\"LORA\",\"target_modules\":\"\"}", "\"target_modules\" is missing or empty");
    refuses(TM_INPUT, "{\"peft_type\":\"LORA\",\"target_modules\":[\"\"]}", "entry 0");
    refuses(TM_INPUT, "{\"peft_type\":\"LORA\",\"target_modules\":7}", "\"target_modules\"");
    refuses(TM_INPUT, "{\"peft_type\":\"LORA\",\"target_modules\":\"x\",\"layers_to_transform\":[1]}",
            "\"layers_to_transform\"");
    static const char *const wrong[] = {
        "\"r\":0", "\"r\":\"8\"", "\"r\":1.5", "\"lora_alpha\":null,\"lora_dropout\":1", "\"lora_dropout\":-0.1", "\"bias\":\"some\"",
        "\"rank_pattern\":{\"a\":1.5}", "\"rank_pattern\":[1]", "\"rank_pattern\":{\"a\":0}", "\"alpha_pattern\":{\"a\":\"1\"}",
        "\"layers_to_transform\":[-1]", "\"layers_to_transform\":[1.0]", "\"layers_to_transform\":\"1\"", "\"modules_to_save\":\"lm_head\"",
        "\"layers_pattern\":\"h\"", "\"use_dora\":1", "\"fan_in_fan_out\":\"no\"", "\"exclude_modules\":[1]",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char text[256];
        snprintf(text, sizeof text, HEAD ",%s}", wrong[i]);
        refuses(TM_INPUT, text, "\"");
    }
}

static void writes(void **state)
{
    (void)state;
    tm_adapter_config c, back;
    parse("{\"peft_type\":\"LORA\",\"target_modules\":[\"v_proj\",\"q_proj\"],\"r\":4,\"lora_alpha\":8,\"lora_dropout\":0.05,"
          "\"inference_mode\":true,\"task_type\":\"CAUSAL_LM\"}", &c);
    OK(tm_adapter_config_write(scratch_dir, &c, err));
    tm_adapter_config_deinit(&c);
    char *text = slurp(scratch("adapter_config.json"), NULL);
    assert_string_equal(text,
                        "{\n  \"base_model_name_or_path\": null,\n  \"bias\": \"none\",\n  \"fan_in_fan_out\": false,\n"
                              "  \"inference_mode\": true,\n  \"lora_alpha\": 8,\n  \"lora_dropout\": 0.05,\n  \"peft_type\": \"LORA\",\n"
                              "  \"r\": 4,\n  \"target_modules\": [\n    \"q_proj\",\n    \"v_proj\"\n  ],\n"
                              "  \"task_type\": \"CAUSAL_LM\",\n  \"use_dora\": false,\n  \"use_rslora\": false\n}\n");
    free(text);
    /* everything set: read, written, read, written: the same bytes, keys sorted */
    parse("{\"peft_type\":\"LORA\",\"target_modules\":[\"b\",\"a\"],\"rank_pattern\":{\"z\":2,\"a\":3},\"alpha_pattern\":{\"x\":0.5},"
          "\"modules_to_save\":[\"lm_head\"],\"exclude_modules\":[\"y\"],\"layers_to_transform\":[3,1],\"layers_pattern\":[\"h\"],"
          "\"base_model_name_or_path\":\"a \\\"quoted\\\" \xd0\xb6\",\"use_dora\":true,\"use_rslora\":true,\"fan_in_fan_out\":true}", &c);
    OK(tm_adapter_config_write(scratch_dir, &c, err));
    text = slurp(scratch("adapter_config.json"), NULL);
    OK(tm_adapter_config_read(scratch_dir, &back, err));
    OK(tm_adapter_config_write(scratch_dir, &back, err));
    char *again = slurp(scratch("adapter_config.json"), NULL);
    assert_string_equal(text, again);
    assert_non_null(strstr(text, "\"rank_pattern\": {\n    \"z\": 2,\n    \"a\": 3\n  }"));
    json_t *root;
    const char *key, *before = "";
    const json_t *value;
    OK(tm_json_parse(text, strlen(text), "t", &root, err));
    json_object_foreach(root, key, value) {
        assert_true(strcmp(before, key) < 0);
        before = key;
    }
    json_decref(root);
    free(text);
    free(again);
    tm_adapter_config_deinit(&c);
    tm_adapter_config_deinit(&back);
    parse("{\"peft_type\":\"LORA\",\"target_modules\":\"all-linear\",\"exclude_modules\":\"a|b\"}", &c);
    OK(tm_adapter_config_write(scratch_dir, &c, err));
    OK(tm_adapter_config_read(scratch_dir, &back, err));
    assert_string_equal(back.target_regex, "all-linear");
    assert_string_equal(back.exclude_regex, "a|b");
    tm_adapter_config_deinit(&c);
    tm_adapter_config_deinit(&back);
}

static bool targets(const char *rest, const char *name)
{
    char text[512];
    bool found = false;
    tm_adapter_config c;
    snprintf(text, sizeof text, "{\"peft_type\":\"LORA\",%s}", rest);
    parse(text, &c);
    OK(tm_adapter_targets(&c, name, &found, err));
    tm_adapter_config_deinit(&c);
    return found;
}

/* Answers of PEFT 0.21's check_target_module_exists. */
static void matching(void **state)
{
    (void)state;
    static const char q0[] = "model.layers.0.self_attn.q_proj", q12[] = "model.layers.12.self_attn.q_proj";
    assert_true(targets("\"target_modules\":[\"k_proj\",\"q_proj\"]", q0));
    assert_true(targets("\"target_modules\":[\"self_attn.q_proj\"]", q0));
    assert_true(targets("\"target_modules\":[\"model.layers.0.self_attn.q_proj\"]", q0));
    assert_false(targets("\"target_modules\":[\"_proj\"]", q0));
    assert_false(targets("\"target_modules\":[\"q_proj.\"]", q0));
    assert_false(targets("\"target_modules\":[\"model\"]", q0));
    assert_true(targets("\"target_modules\":[\"lm_head\"]", "lm_head"));
    assert_true(targets("\"target_modules\":\".*q_proj\"", q0));
    assert_false(targets("\"target_modules\":\"q_proj\"", q0));
    assert_false(targets("\"target_modules\":\".*q_pro\"", q0));
    assert_true(targets("\"target_modules\":\"model|model.*\"", q0)); /* fullmatch tries the second */
    assert_true(targets("\"target_modules\":\".*\\\\.(?P<n>\\\\d+)\\\\..*(q|k)_proj\"", q12));
    assert_false(targets("\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[1,2]", q0));
    assert_true(targets("\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[1,12]", q12));
    assert_true(targets("\"target_modules\":[\"q_proj\"],\"layers_to_transform\":12", q12));
    assert_true(targets("\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[]", q12));
    assert_false(targets("\"target_modules\":[\"lm_head\"],\"layers_to_transform\":[0]", "model.lm_head"));
    assert_true(targets("\"target_modules\":[\"lm_head\"],\"layers_to_transform\":[1]", "lm_head")); /* a whole name */
    assert_true(targets("\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[0],\"layers_pattern\":\"layers\"",
                        q0));
    assert_false(targets("\"target_modules\":[\"q_proj\"],\"layers_to_transform\":[0],\"layers_pattern\":[\"h\",\"blocks\"]", q0));
    assert_true(targets("\"target_modules\":[\"c_attn\"],\"layers_to_transform\":[3],\"layers_pattern\":[\"x\",\"h\"]",
                        "h.3.attn.c_attn"));
    /* without a pattern a name is wanted before the layers' own: PEFT's expression needs two dots */
    assert_false(targets("\"target_modules\":[\"c_attn\"],\"layers_to_transform\":[3]", "h.3.attn.c_attn"));
    /* the first number, not that of an expert */
    assert_true(targets("\"target_modules\":[\"w1\"],\"layers_to_transform\":[1]", "model.layers.1.experts.0.w1"));
    assert_false(targets("\"target_modules\":[\"w1\"],\"layers_to_transform\":[0]", "model.layers.1.experts.0.w1"));
    assert_false(targets("\"target_modules\":[\"q_proj\"],\"exclude_modules\":[\"0.self_attn.q_proj\"]", q0));
    assert_true(targets("\"target_modules\":[\"q_proj\"],\"exclude_modules\":\"layers.0\"", q0));
    assert_false(targets("\"target_modules\":[\"q_proj\"],\"exclude_modules\":\".*layers\\\\.0\\\\..*\"", q0));
    assert_false(targets("\"target_modules\":\".*\",\"modules_to_save\":[\"self_attn\"]", q0));
    assert_false(targets("\"target_modules\":\".*\",\"modules_to_save\":[\"lm_head\"]", "lm_head"));
    assert_true(targets("\"target_modules\":\".*\",\"modules_to_save\":[\"attn\"]", q0));
}

static void patterns(void **state)
{
    (void)state;
    char k1[] = "layers\\.\\d\\.self_attn\\.q_proj", k2[] = "q_proj", k3[] = "^model.layers.0.mlp.up_proj", k4[] = "a|b.c";
    tm_pattern list[] = {{k1, 1}, {k2, 2}, {k3, 3}, {k4, 4}};
    static const struct { const char *name; double value; } cases[] = {
        {"model.layers.0.self_attn.q_proj", 1}, {"model.layers.10.self_attn.q_proj", 2}, {"q_proj", 2}, {"my_q_proj", 9},
        {"model.layers.0.mlp.up_proj", 3}, {"model.layers.0.mlp.up_proj.x", 9}, {"x.model.layers.0.mlp.up_proj", 9},
        {"x.b.c", 4}, {"x.a", 4}, {"x.a.c", 9}, {"layers.3.self_attn.q_proj", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double value;
        OK(tm_adapter_pattern(list, 4, cases[i].name, 9, &value, err));
        if (value != cases[i].value)
            fail_msg("%s: %g, expected %g", cases[i].name, value, cases[i].value);
    }
    double value;
    OK(tm_adapter_pattern(NULL, 0, "x", 9, &value, err));
    assert_true(value == 9);
}

static void bad_expressions(void **state)
{
    (void)state;
    bool found;
    double value;
    char unclosed[] = "q_proj(x", heavy[] = "(a|aa)+[bd]", recursion[] = "(?R)?x", two[] = "ab[c";
    tm_adapter_config c = {.target_regex = unclosed};
    FAILS(TM_INPUT, "\"q_proj(x\" is not a valid regular expression: missing closing parenthesis at character 8",
          tm_adapter_targets(&c, "x", &found, err));
    c.target_regex = heavy;
    FAILS(TM_INPUT, "cannot be matched",
          tm_adapter_targets(&c, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac", &found, err));
    c.target_regex = recursion;
    tm_error problem;
    tm_status st = tm_adapter_targets(&c, "xxxx", &found, &problem);
    assert_true(st == TM_OK || st == TM_INPUT);
    tm_pattern p = {two, 1};
    FAILS(TM_INPUT, "missing terminating ] for character class at character",
          tm_adapter_pattern(&p, 1, "x", 0, &value, err));
}

/* What the fuzzer found worth keeping: an error that says something, or a config that can be asked. */
static void kept_inputs(void **state)
{
    (void)state;
    static const char dir[] = "tests/fuzz/corpus/adapter_config";
    char **names;
    size_t count;
    OK(tm_dir_list(dir, &names, &count, err));
    assert_true(count > 4);
    for (size_t i = 0; i < count; i++) {
        size_t size;
        char *path = tm_path_join(dir, names[i], NULL), *text = slurp(path, &size);
        tm_adapter_config c;
        tm_error err = {0};
        bool found;
        if (tm_adapter_config_parse(text, size, names[i], &c, &err) != TM_OK ||
            tm_adapter_targets(&c, "model.layers.3.mlp.up_proj", &found, &err) != TM_OK)
            assert_true(err.status != TM_OK && err.message[0]);
        tm_adapter_config_deinit(&c);
        free(text);
        free(path);
    }
    tm_names_free(names, count);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_peft), cmocka_unit_test(reads_more), cmocka_unit_test(refused), cmocka_unit_test(writes),
        cmocka_unit_test(matching), cmocka_unit_test(patterns), cmocka_unit_test(bad_expressions), cmocka_unit_test(kept_inputs),
    };
    return cmocka_run_group_tests_name("adapter", tests, scratch_begin, scratch_end);
}
