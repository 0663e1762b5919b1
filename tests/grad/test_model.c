/* Derivatives of whole models: every trained tensor's gradient against differences of the loss, in
 * double, for every family and tuning method. DoRA's norm is a constant of the step, as in PEFT:
 * tm_model_begin_step computes it, and is not run again between two values of the loss. */
#include "../support/machine.h"

static uint64_t seed;

/* Sizes that no vector length divides; two layers; fewer key heads than heads. */
#define SIZES "\"vocab_size\": 61, \"hidden_size\": 23, \"intermediate_size\": 37, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, " \
              "\"num_key_value_heads\": 2, \"head_dim\": 6, \"max_position_embeddings\": 512"

static const struct family {
    const char *name, *config;
    const char *own[9];   /* names of what the methods below call as llama does; NULL: the same */
} families[] = {
    {"llama", "{\"model_type\": \"llama\", \"attention_bias\": true, \"mlp_bias\": true, \"rope_parameters\": {\"rope_type\": \"llama3\", \"rope_theta\": 1000.0, "
              "\"factor\": 4.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 16}, " SIZES "}", {0}},
    {"llama-tied", "{\"model_type\": \"llama\", \"tie_word_embeddings\": true, \"rope_scaling\": {\"type\": \"linear\", \"factor\": 2.0}, " SIZES "}", {0}},
    {"mistral", "{\"model_type\": \"mistral\", \"sliding_window\": 5, " SIZES "}", {0}},
    {"qwen2", "{\"model_type\": \"qwen2\", \"tie_word_embeddings\": true, \"use_sliding_window\": true, \"sliding_window\": 7, "
              "\"layer_types\": [\"full_attention\", \"sliding_attention\"], " SIZES "}", {0}},
    {"qwen3", "{\"model_type\": \"qwen3\", \"tie_word_embeddings\": true, " SIZES "}", {0}},
    {"qwen3-untied", "{\"model_type\": \"qwen3\", \"attention_bias\": true, " SIZES "}", {0}},
    {"gemma2", "{\"model_type\": \"gemma2\", \"sliding_window\": 5, \"query_pre_attn_scalar\": 9, \"attn_logit_softcapping\": 3.0, "
               "\"final_logit_softcapping\": 2.0, " SIZES "}", {0}},
    {"gemma3", "{\"model_type\": \"gemma3_text\", \"sliding_window\": 6, \"sliding_window_pattern\": 2, \"rope_scaling\": {\"rope_type\": \"linear\", "
               "\"factor\": 4.0}, \"tie_word_embeddings\": false, " SIZES "}", {0}},
    {"gpt2", "{\"model_type\": \"gpt2\", \"vocab_size\": 61, \"n_embd\": 24, \"n_inner\": 37, \"n_layer\": 2, \"n_head\": 4, \"n_positions\": 512, "
             "\"scale_attn_by_inverse_layer_idx\": true}",
     {"c_attn", "c_attn", "c_attn", "c_proj", "c_fc", "c_fc", "c_proj", "ln_f", "ln_1"}},
    {"gpt2-untied", "{\"model_type\": \"gpt2\", \"vocab_size\": 61, \"n_embd\": 24, \"n_layer\": 2, \"n_head\": 3, \"n_positions\": 400, \"activation_function\": "
                    "\"gelu\", \"tie_word_embeddings\": false}",
     {"c_attn", "c_attn", "c_attn", "c_proj", "c_fc", "c_fc", "c_proj", "ln_f", "ln_1"}},
    {"qwen", "{\"model_type\": \"qwen\", \"vocab_size\": 61, \"hidden_size\": 24, \"intermediate_size\": 74, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
             "\"kv_channels\": 6, \"seq_length\": 16}",
     {"c_attn", "c_attn", "c_attn", "c_proj", "w2", "w1", "c_proj", "ln_f", "ln_1"}},
    {"phi3", "{\"model_type\": \"phi3\", \"sliding_window\": 7, \"original_max_position_embeddings\": 6, \"partial_rotary_factor\": 0.7, \"rope_scaling\": {\"type\": "
             "\"longrope\", \"short_factor\": [1.0, 1.1], \"long_factor\": [1.5, 4.0]}, " SIZES "}",
     {"qkv_proj", "qkv_proj", "qkv_proj", "o_proj", "gate_up_proj", "gate_up_proj", "down_proj", "norm", "input_layernorm"}},
    {"llama-yarn", "{\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": 16}, " SIZES "}", {0}},
    {"llama-dynamic", "{\"model_type\": \"llama\", \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}, \"vocab_size\": 61, \"hidden_size\": 23, "
                      "\"intermediate_size\": 37, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"head_dim\": 6, "
                      "\"max_position_embeddings\": 7}", {0}},
};

static const struct method {
    const char *name, *arg[4];
} methods[] = {
    {"full", {"method=full"}},
    {"freeze", {"method=freeze", "freeze.layers=1"}},
    {"freeze-but-embeddings", {"method=freeze", "freeze.layers=1", "freeze.embeddings=false"}},
    {"bitfit", {"method=bitfit"}},
    {"lora", {"lora.r=3", "lora.dropout=0"}},
    {"lora-dropout", {"lora.r=5", "lora.dropout=0.3", "lora.bias=all"}},
    {"rslora-some", {"lora.use_rslora=true", "lora.target_modules=[q_proj, v_proj, down_proj]", "lora.dropout=0.2", "lora.bias=lora_only"}},
    {"ranks", {"lora.r=2", "lora.rank_pattern={q_proj: 7, up_proj: 1}", "lora.dropout=0"}},
    {"dora", {"lora.r=3", "lora.use_dora=true", "lora.dropout=0"}},
    {"dora-some", {"lora.use_dora=true", "lora.target_modules=[k_proj, up_proj]", "lora.dropout=0", "lora.bias=all"}},
    {"dora-dropout", {"lora.r=3", "lora.use_dora=true", "lora.dropout=0.3"}},
    {"dora-dropout-some", {"lora.use_dora=true", "lora.target_modules=[q_proj, gate_proj, o_proj]", "lora.dropout=0.3", "lora.bias=all"}},
    {"head", {"lora.target_modules=[lm_head, o_proj]", "lora.r=4", "lora.dropout=0.3"}},
    {"head-alone", {"lora.target_modules=[lm_head]", "lora.r=4", "lora.dropout=0"}},
    {"head-dora", {"lora.target_modules=[lm_head, k_proj]", "lora.r=4", "lora.dropout=0.2", "lora.use_dora=true"}},
    {"saved-head", {"lora.modules_to_save=[lm_head]", "lora.r=2", "lora.dropout=0.1"}},
    {"saved-norms", {"lora.modules_to_save=[norm, input_layernorm]", "lora.r=2", "lora.target_modules=[v_proj]"}},
    {"saved-embedding", {"lora.modules_to_save=[embed_tokens]", "lora.r=2", "lora.target_modules=[up_proj]"}},
    {"saved-both", {"lora.modules_to_save=[embed_tokens, lm_head]", "lora.r=2", "lora.target_modules=[up_proj]"}},
    {"embedding", {"lora.target_modules=[embed_tokens, v_proj]", "lora.r=3", "lora.use_rslora=true", "lora.dropout=0.2"}},
    {"houlsby", {"method=adapter", "adapter.size=5"}},
    {"houlsby-gelu", {"method=adapter", "adapter.size=7", "adapter.activation=gelu"}},
    {"registers", {"lora.registers=[a, b, c, d]", "lora.r=2", "lora.dropout=0.2"}},
    {"registers-all", {"lora.registers=[a, b, c, d]", "lora.r=1", "lora.use_rslora=true", "lora.target_modules=all-linear"}},
    {"prompt", {"method=prompt", "prompt.tokens=3"}},
    {"embedding-alone", {"lora.target_modules=[embed_tokens]", "lora.rank_pattern={embed_tokens: 5}"}},
};

enum { FAMILIES = sizeof families / sizeof *families, METHODS = sizeof methods / sizeof *methods };

/* Derivative of the loss along a direction of one tensor, by differences of fourth order. */
static double slope(machine *m, double *value, const double *direction, int64_t n)
{
    static const double step[] = {-2, -1, 1, 2}, weight[] = {1, -8, 8, -1};
    const double h = 3e-4;
    double *kept = malloc((size_t)n * 8), sum = 0;
    memcpy(kept, value, (size_t)n * 8);
    for (int k = 0; k < 4; k++) {
        for (int64_t i = 0; i < n; i++)
            value[i] = kept[i] + h * step[k] * direction[i];
        sum += weight[k] * machine_loss(m, false);
    }
    memcpy(value, kept, (size_t)n * 8);
    free(kept);
    return sum / (12 * h);
}

/* A direction at random, sometimes a coordinate too; the gradient's size is the measure of the error. */
static double check_tensor(machine *m, const tm_param *p, dice *d)
{
    int coordinates = dice_in(d, 0, 2) == 0;
    int64_t n = tm_param_count(p);
    double *value = p->value.data, *direction = calloc((size_t)n, 8), *grad = malloc((size_t)n * 8), norm = 0, worst = 0;
    memcpy(grad, p->grad.data, (size_t)n * 8);
    for (int64_t i = 0; i < n; i++)
        norm += grad[i] * grad[i];
    norm = sqrt(norm);
    if (!(norm > 1e-9))
        fail_msg("%s: the gradient is %g; seed %llu", p->name, norm, (unsigned long long)seed);
    for (int k = 0; k <= coordinates; k++) {
        int64_t at = dice_in(d, 0, n - 1);
        double expect = 0;
        for (int64_t i = 0; i < n; i++) {
            direction[i] = k == 0 ? (dice_spread(d) > 0 ? 1 : -1) / sqrt((double)n) : i == at;
            expect += direction[i] * grad[i];
        }
        /* A direction has all of the tensor's errors in it, a coordinate its own. */
        double scale = fmax(fabs(expect), norm / sqrt((double)n)), error = fabs(slope(m, value, direction, n) - expect) / scale;
        worst = error > worst || isnan(error) ? error : worst;
    }
    free(direction);
    free(grad);
    return worst;
}

static void move_trained(machine *m, dice *d)
{
    for (int64_t i = 0; i < m->model.params.count; i++) {
        const tm_param *p = m->model.params.item[i];
        double *value = p->value.data;
        for (int64_t k = 0; p->trained && k < tm_param_count(p); k++)
            value[k] += 0.1 * dice_spread(d);
    }
}

/* The argument with the family's names of modules. */
static void in_own_names(const struct family *f, const char *given, char *out, size_t size)
{
    static const char *const common[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm", "input_layernorm", "embed_tokens"};
    size_t n = 0;
    for (const char *at = given; *at && n + 20 < size;) {
        size_t word = strspn(at, "abcdefghijklmnopqrstuvwxyz_");
        const char *put = NULL;
        for (int i = 0; i < 10 && f->own[0]; i++)
            if (strlen(common[i]) == word && strncmp(at, common[i], word) == 0)
                put = i == 9 ? (f->own[0][0] == 'c' ? "wte" : common[i]) : f->own[i];
        if (put) /* a fused module may be named twice */
            n += (size_t)snprintf(out + n, size - n, "%s", put);
        else
            for (size_t i = 0; i < (word ? word : 1); i++)
                out[n++] = at[i];
        at += word ? word : 1;
    }
    out[n] = 0;
}

static void make_recipe(args *a, const struct family *f, const struct method *method, const char *rows)
{
    arg(a, "model=%s", scratch(f->name));
    arg(a, "out=%s", scratch("out"));
    arg(a, "data.0.path=%s", scratch(rows));
    arg(a, "data.0.format=tokens");
    arg(a, "train.batch=3");
    arg(a, "lora.alpha=5"); /* a large scale would make differences coarse */
    arg(a, "train.seed=%llu", (unsigned long long)(seed >> 1));
    for (int i = 0; i < 4 && method->arg[i]; i++) {
        char text[200];
        in_own_names(f, method->arg[i], text, sizeof text);
        arg(a, "%s", text);
    }
}

/* most: how many of the trained tensors are looked at, chosen at random. */
static void check(const struct family *f, const struct method *method, const char *rows, int64_t most, bool teacher, dice *d)
{
    args a = {0};
    tm_job job;
    machine m;
    make_recipe(&a, f, method, rows);
    open_job(&a, TM_JOB_PLAN, &job);
    bool cut = dice_in(d, 0, 1);
    int recompute = (int)dice_in(d, 0, 3);
    machine_open(&m, &job, TM_ISA_F64, cut ? job.recipe->micro_tokens / 2 + 20 : 0, (tm_model_settings){.recompute_layers = recompute, .teacher = teacher});
    if (teacher)
        machine_teach(&m);
    move_trained(&m, d);
    tm_model_begin_step(&m.model, m.step);
    double loss = machine_loss(&m, true), worst = 0;
    const char *where = "";
    int64_t left = 0;
    assert_true(isfinite(loss));
    for (int64_t i = 0; i < m.model.params.count; i++)
        left += m.model.params.item[i]->trained;
    for (int64_t i = 0; i < m.model.params.count; i++) {
        const tm_param *p = m.model.params.item[i];
        if (!p->trained || dice_in(d, 1, left--) > most)
            continue;
        most--;
        double error = check_tensor(&m, p, d);
        if (error > worst || isnan(error)) {
            worst = error;
            where = p->name;
        }
    }
    if (!(worst <= 1e-6))
        fail_msg("%s, %s: the gradient of %s is off by %.3g; recompute %d, cut %d, seed %llu", f->name, method->name, where, worst, recompute, cut, (unsigned long long)seed);
    print_message("  %-13s %-22s %.1e %s\n", f->name, method->name, worst, where);
    machine_close(&m);
    tm_job_close(&job);
    args_free(&a);
}

static void gradients_of_family(void **state)
{
    const struct family *f = *state;
    dice d = {.key = seed + (uint64_t)(f - families)};
    for (const struct method *method = methods; method < methods + METHODS; method++)
        check(f, method, "rows.jsonl", 1000, false, &d);
}

/* Rows beyond a chunk of 256 tokens, and more targets than a slice of the head has. */
static void gradients_over_chunks(void **state)
{
    (void)state;
    dice d = {.key = seed ^ 99};
    check(&families[4], &methods[0], "long.jsonl", 5, false, &d);
    check(&families[0], &methods[14], "long.jsonl", 5, false, &d);
}

/* KL to the base as a part of the loss; head and embedding as they were, since the teacher's logits are
 * made with the base's head. */
static void gradients_with_a_teacher(void **state)
{
    (void)state;
    dice d = {.key = seed ^ 98};
    for (int k = 0; k < METHODS; k++)
        if (strcmp(methods[k].name, "lora-dropout") == 0 || strcmp(methods[k].name, "dora-dropout") == 0 || strcmp(methods[k].name, "head") == 0)
            for (int i = 0; i < FAMILIES; i++)
                check(&families[i], &methods[k], "rows.jsonl", 6, true, &d);
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state))
        return -1;
    for (int i = 0; i < FAMILIES; i++)
        write_model(scratch(families[i].name), families[i].config, TM_F32, seed + 7 * (uint64_t)i);
    write_rows(scratch("rows.jsonl"), 3, 4, 9, 61, 0.5, seed + 100);
    write_rows(scratch("long.jsonl"), 2, 258, 290, 61, 0.5, seed + 101);
    return 0;
}

int main(void)
{
    struct CMUnitTest tests[FAMILIES + 2] = {[FAMILIES] = cmocka_unit_test(gradients_over_chunks), [FAMILIES + 1] = cmocka_unit_test(gradients_with_a_teacher)};
    for (int i = 0; i < FAMILIES; i++)
        tests[i] = (struct CMUnitTest){.name = families[i].name, .test_func = gradients_of_family, .initial_state = (void *)(uintptr_t)&families[i]};
    return cmocka_run_group_tests_name("model", tests, begin, scratch_end);
}
