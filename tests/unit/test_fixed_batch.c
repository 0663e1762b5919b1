/* Micro-batches of a fixed shape: padding rows, chunks, examples and targets changes no bit of a loss or
 * of a gradient. */
#include "../support/machine.h"

static uint64_t seed;

static const char config[] =
    "{\"model_type\": \"qwen3\", \"vocab_size\": 61, \"hidden_size\": 23, \"intermediate_size\": 37, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, "
    "\"num_key_value_heads\": 2, \"head_dim\": 6, \"max_position_embeddings\": 512, \"tie_word_embeddings\": true}";

/* Loss and hash of all gradients. */
static uint64_t run(const tm_job *job, bool fixed, int64_t max_tokens, int64_t recompute, double *loss)
{
    machine m;
    machine_open(&m, job, TM_ISA_AUTO, max_tokens, (tm_model_settings){.recompute_layers = recompute});
    m.batch.fixed = fixed;
    tm_model_begin_step(&m.model, m.step);
    *loss = machine_loss(&m, true);
    uint64_t hash = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < m.model.params.count; i++) {
        const tm_param *p = m.model.params.item[i];
        const unsigned char *bytes = p->trained ? p->grad.data : NULL;
        for (int64_t k = 0; bytes && k < tm_param_count(p) * 4; k++)
            hash = (hash ^ bytes[k]) * 0x100000001b3u;
    }
    machine_close(&m);
    return hash;
}

static void fixed_shape_changes_nothing(void **state)
{
    (void)state;
    static const char *const methods[] = {"lora.dropout=0.3", "lora.use_dora=true"};
    dice d = {.key = seed};
    write_model(scratch("model"), config, TM_F32, seed);
    for (int round = 0; round < 6; round++) {
        write_rows(scratch("rows.jsonl"), 6, 2, round % 2 ? 300 : 40, 61, 0.5, seed + (uint64_t)round);
        args a = {0};
        tm_job job;
        arg(&a, "model=%s", scratch("model"));
        arg(&a, "out=%s", scratch("out"));
        arg(&a, "data.0.path=%s", scratch("rows.jsonl"));
        arg(&a, "data.0.format=tokens");
        arg(&a, "train.batch=6");
        arg(&a, "lora.r=3");
        arg(&a, "%s", methods[round / 2 % 2]);
        open_job(&a, TM_JOB_PLAN, &job);
        double loss, padded_loss;
        int64_t recompute = dice_in(&d, 0, 4); /* blocks */
        uint64_t plain = run(&job, false, 0, recompute, &loss);
        for (int k = 0; k < 3; k++) {
            uint64_t padded = run(&job, true, 300 + dice_in(&d, 0, 1900), recompute, &padded_loss);
            if (padded != plain || padded_loss != loss)
                fail_msg("round %d, %d: padding changed the result; losses %.17g and %.17g; seed %llu", round, k, loss, padded_loss, (unsigned long long)seed);
        }
        tm_job_close(&job);
        args_free(&a);
    }
}

static int begin(void **state)
{
    seed = fresh_seed();
    return scratch_begin(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(fixed_shape_changes_nothing)};
    return cmocka_run_group_tests_name("batch", tests, begin, scratch_end);
}
