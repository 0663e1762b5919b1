/* Plans for GPUs that are not here: names, layouts chosen for a memory size, advice that is true, work against a formula, and what
 * `temper plan --json` says. */
#include "../support/run.h"
#include "../support/work.h"

#include "model/flops.h"
#include "plan/cost.h"

static uint64_t seed;

#define SIZES "\"vocab_size\": 301, \"hidden_size\": 64, \"intermediate_size\": 160, \"num_hidden_layers\": 6, \"num_attention_heads\": 4, " \
              "\"num_key_value_heads\": 2, \"head_dim\": 16, \"max_position_embeddings\": 4096, \"torch_dtype\": \"bfloat16\""

static const struct {
    const char *name, *config;
} models[] = {
    {"tied", "{\"model_type\": \"qwen3\", \"tie_word_embeddings\": true, " SIZES "}"},
    {"untied", "{\"model_type\": \"llama\", \"attention_bias\": true, " SIZES "}"},
    {"window", "{\"model_type\": \"mistral\", \"sliding_window\": 100, " SIZES "}"},
};
enum { MODELS = sizeof models / sizeof *models };

/* --- Names --- */

static void gpus_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *wanted, *name;
    } cases[] = {{"4090", "RTX 4090"}, {"rtx 4090", "RTX 4090"}, {"RTX4090", "RTX 4090"}, {"NVIDIA GeForce RTX 4090", "RTX 4090"}, {"a100", "A100 80GB"}, {"A100-40GB", "A100 40GB"},
                 {"NVIDIA A100-SXM4-40GB", "A100 40GB"}, {"NVIDIA A100 80GB PCIe", "A100 80GB"}, {"NVIDIA H100 80GB HBM3", "H100 80GB"}, {"h200", "H200"}, {"NVIDIA H200", "H200"},
                 {"pro6000", "RTX PRO 6000"}, {"rtx pro 6000 96GB", "RTX PRO 6000"}, {"NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "RTX PRO 6000"}, {"Tesla T4", "T4"},
                 {"NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"}, {"6000 ada", "RTX 6000 Ada"}, {"l40s", "L40S"}, {"NVIDIA GeForce RTX 4090 Laptop GPU", NULL}, {"", NULL}, {"40", NULL},
                 {"rtx", NULL}, {"NVIDIA H100 NVL", NULL}, {"RTX 6000", NULL}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const tm_gpu *gpu = tm_gpu_find(cases[i].wanted);
        if ((gpu == NULL) != (cases[i].name == NULL) || (gpu && strcmp(gpu->name, cases[i].name) != 0))
            fail_msg("'%s' is %s, expected %s", cases[i].wanted, gpu ? gpu->name : "none", cases[i].name ? cases[i].name : "none");
    }
    size_t count;
    const tm_gpu *all = tm_gpus(&count), *found;
    for (size_t i = 0; i < count; i++) {
        assert_ptr_equal(tm_gpu_find(all[i].name), &all[i]);
        assert_true(i == 0 || all[i].memory > 0.99 * (double)all[i - 1].memory); /* in order, but for cards of one size */
        assert_true(all[i].flops > 1e13 && all[i].flops < 1e16 && all[i].bandwidth > 1e11 && all[i].bandwidth < 1e14);
    }
    FAILS(TM_USAGE, "RTX 4090, ", tm_gpu_named("4091", &found, err));
}

/* --- Layouts --- */

/* A GPU with so much memory. */
static tm_target gpu_of(int64_t memory)
{
    return (tm_target){.cuda = true, .traits = tm_cuda_traits(), .own = tm_cuda_own_bytes(), .memory = memory, .precision = TM_PRECISION_BF16, .reserve = 1 << 20};
}

static void open_plan(const char *model, const char *const *extra, size_t extras, tm_job *job)
{
    args a = {0};
    arg(&a, "model=%s", scratch(model));
    arg(&a, "device=cpu");
    arg(&a, "train.seq=512");
    arg(&a, "train.batch=64");
    for (size_t i = 0; i < extras; i++)
        arg(&a, "%s", extra[i]);
    open_job(&a, TM_JOB_PLAN, job);
    args_free(&a);
}

/* The peak with a layout that is given. */
static int64_t peak_with(const char *model, const char *method, int64_t tokens, int64_t again, const tm_target *target)
{
    char micro[64], blocks[64];
    const char *extra[] = {method, micro, again ? "train.recompute=partial" : "train.recompute=none", blocks, "train.offload=none"};
    tm_job job;
    snprintf(micro, sizeof micro, "train.micro_tokens=%lld", (long long)tokens);
    snprintf(blocks, sizeof blocks, "train.recompute_layers=%lld", (long long)again);
    open_plan(model, extra, 5, &job);
    OK(tm_job_plan_for(&job, target, err));
    int64_t peak = job.plan.peak;
    tm_job_close(&job);
    return peak;
}

/* What is chosen is what fit.h says, found here by trying everything. */
static void layout_by_the_rule(void **state)
{
    (void)state;
    static const int64_t sizes[] = {16384, 8192, 4096, 2048, 1024, 512};
    dice d = {.key = seed};
    int partial = 0, whole = 0, small = 0;
    for (int i = 0; i < 24; i++) {
        const char *model = models[dice_in(&d, 0, MODELS - 1)].name, *method = dice_in(&d, 0, 1) ? "method=full" : "method=lora";
        int64_t most = peak_with(model, method, 4096, 0, &(tm_target){.memory = -1, .cuda = true, .traits = tm_cuda_traits(), .own = tm_cuda_own_bytes(), .precision = TM_PRECISION_BF16});
        tm_target target = gpu_of((int64_t)(tm_cuda_own_bytes() + (1 << 20) + dice_unit(&d) * 1.2 * (double)(most - tm_cuda_own_bytes())));
        int64_t tokens = 0, again = 0, layers = 6;
        for (size_t k = 0; k < 4 && !tokens; k++) /* without recomputation, not below 2,048 */
            if (tm_target_fits(&target, peak_with(model, method, sizes[k], 0, &target)))
                tokens = sizes[k];
        for (size_t k = 3; k < 6 && !tokens; k++)
            for (int64_t n = 2; n <= layers && !tokens; n++)
                if (tm_target_fits(&target, peak_with(model, method, sizes[k], n, &target))) {
                    tokens = sizes[k];
                    again = n;
                }
        tm_job job;
        open_plan(model, (const char *[]){method, "train.offload=none"}, 2, &job);
        OK(tm_job_plan_for(&job, &target, err));
        int64_t got = job.recipe->recompute == TM_RECOMPUTE_FULL ? layers : job.recipe->recompute_layers;
        bool fits = tm_target_fits(&target, job.plan.peak);
        if (fits != (tokens > 0) || (fits && (job.run.max_tokens != tokens || got != again)))
            fail_msg("%s, %s, %lld bytes: %lld tokens, %lld blocks again, fits %d; expected %lld and %lld; seed %llu", model, method, (long long)target.memory,
                     (long long)job.run.max_tokens, (long long)got, fits, (long long)tokens, (long long)again, (unsigned long long)seed);
        partial += again > 0 && again < layers;
        whole += tokens > 2048;
        small += tokens && tokens < 2048;
        assert_int_equal(job.recipe->precision, TM_PRECISION_BF16);
        tm_job_close(&job);
    }
    if (!getenv("TEST_SEED"))
        assert_true(partial + whole + small > 0);
}

/* Activations go to host memory where nothing else does, and a byte more is enough to keep them. */
static void host_memory_comes_last(void **state)
{
    (void)state;
    tm_target any = gpu_of(-1), tight = gpu_of(peak_with("tied", "method=lora", 512, 6, &any) + any.reserve), tighter = tight;
    tm_job job;
    tighter.memory--;
    open_plan("tied", (const char *[]){"method=lora"}, 1, &job);
    OK(tm_job_plan_for(&job, &tight, err));
    assert_true(job.recipe->offload != TM_OFFLOAD_ACTIVATIONS && tm_target_fits(&tight, job.plan.peak) && job.plan.host == 0);
    OK(tm_job_plan_for(&job, &tighter, err));
    assert_true(job.recipe->offload == TM_OFFLOAD_ACTIVATIONS && tm_target_fits(&tighter, job.plan.peak) && job.plan.host > 0);
    tm_job_close(&job);
}

static void cpu_keeps_its_micro_batches(void **state)
{
    (void)state;
    tm_job job;
    open_plan("tied", NULL, 0, &job);
    assert_int_equal(job.run.max_tokens, 2048);
    assert_int_equal(job.recipe->precision, TM_PRECISION_F32);
    assert_int_equal(job.recipe->recompute, TM_RECOMPUTE_NONE);
    tm_job_close(&job);
}

/* A plan for a GPU is what a trainer takes that is built for one, and its parts by block add up. */
static void planned_is_built(void **state)
{
    (void)state;
    static const char *const recipes[][2] = {{"method=full", "train.recompute=none"}, {"method=lora", "train.recompute=full"}, {"method=freeze", "freeze.layers=4"},
                                             {"method=adapter", "train.recompute=partial"}, {"method=bitfit", "train.optimizer=sgd"}};
    for (size_t i = 0; i < sizeof recipes / sizeof *recipes; i++)
        for (int m = 0; m < MODELS; m++) {
            tm_job job;
            tm_device *device;
            tm_trainer *trainer;
            tm_layer_plan *layer;
            int64_t layers, part[TM_MEM_KINDS], sum[TM_MEM_KINDS] = {0}, peak = 0;
            tm_target target = gpu_of(-1);
            if (m == 2 && i == 4)
                continue; /* biases are not a mistral's */
            open_plan(models[m].name, recipes[i], 2, &job);
            OK(tm_job_plan_for(&job, &target, err));
            OK(tm_counting_device_create(tm_cuda_traits(), &device, err));
            OK(tm_trainer_create(&job.run, device, NULL, &trainer, err));
            tm_memory_peaks(&trainer->memory, part);
            part[TM_MEM_DEVICE] = tm_cuda_own_bytes();
            OK(tm_plan_layers(&job.run, target.traits, target.own, &layer, &layers, err));
            assert_int_equal(layers, 6);
            for (int k = 0; k < TM_MEM_KINDS; k++) {
                for (int64_t l = 0; l <= layers; l++) {
                    assert_true(layer[l].part[k] >= 0);
                    sum[k] += layer[l].part[k];
                }
                if (part[k] != job.plan.part[k] || sum[k] != part[k])
                    fail_msg("%s, %s: %s: built %lld, planned %lld, by layer %lld", models[m].name, recipes[i][0], tm_memory_label((tm_memory_kind)k), (long long)part[k],
                             (long long)job.plan.part[k], (long long)sum[k]);
                peak += part[k];
            }
            assert_int_equal(peak, job.plan.peak);
            tm_target f16 = target;
            f16.precision = TM_PRECISION_F16;
            OK(tm_job_plan_for(&job, &f16, err));
            assert_true(job.recipe->precision == TM_PRECISION_F16); /* a type of the same size; weights are bf16 and are turned where they are used */
            for (int k = 0; k < TM_MEM_KINDS; k++)
                assert_true(k == TM_MEM_WORKSPACE || job.plan.part[k] == part[k]);
            if (strcmp(recipes[i][0], "method=full") == 0)
                assert_true(layer[3].part[TM_MEM_GRADIENTS] > 0 && layer[3].part[TM_MEM_ACTIVATIONS] > 0 &&
                            layer[3].part[TM_MEM_OPTIMIZER] == 2 * layer[3].part[TM_MEM_GRADIENTS] && layer[3].part[TM_MEM_WEIGHTS] == layer[3].part[TM_MEM_GRADIENTS]);
            if (strcmp(recipes[i][0], "method=freeze") == 0) /* what no gradient reaches keeps nothing */
                assert_true(layer[3].part[TM_MEM_GRADIENTS] == 0 && layer[3].part[TM_MEM_ACTIVATIONS] == 0 && layer[5].part[TM_MEM_ACTIVATIONS] > 0);
            if (strcmp(recipes[i][0], "method=lora") == 0)
                assert_true(layer[0].part[TM_MEM_OPTIMIZER] > 0);
            free(layer);
            tm_trainer_destroy(trainer);
            tm_device_destroy(device);
            tm_job_close(&job);
        }
}

/* --- Advice --- */

/* Whatever is advised fits when it is asked for, with the bytes that were said. */
static void advice_is_true(void **state)
{
    (void)state;
    dice d = {.key = seed + 1};
    int advised = 0, combined = 0, both = 0, nothing = 0;
    for (int i = 0; i < 40; i++) {
        const char *model = models[dice_in(&d, 0, MODELS - 1)].name;
        const char *extra[] = {dice_in(&d, 0, 1) ? "method=full" : "method=lora", dice_in(&d, 0, 2) ? "train.micro_tokens=4096" : "train.micro_tokens=auto",
                               dice_in(&d, 0, 2) ? "train.recompute=none" : "train.recompute=auto", dice_in(&d, 0, 3) ? "precision=auto" : "precision=f32"};
        tm_job job;
        tm_advice advice[TM_ADVICE_MAX];
        int count;
        tm_target target = gpu_of(-1);
        open_plan(model, extra, 4, &job);
        OK(tm_job_plan_for(&job, &target, err));
        target.memory = (int64_t)(tm_cuda_own_bytes() + (1 << 20) + dice_unit(&d) * (double)(job.plan.peak - tm_cuda_own_bytes()));
        OK(tm_job_plan_for(&job, &target, err));
        tm_recipe before = *job.recipe;
        tm_run run = job.run;
        tm_error problem;
        tm_status st = tm_job_fits(&job, advice, &count, &problem);
        assert_memory_equal(&before, job.recipe, sizeof before); /* nothing was changed for the asking */
        assert_memory_equal(&run, &job.run, sizeof run);
        if (st == TM_OK) {
            tm_job_close(&job);
            continue;
        }
        assert_int_equal(st, TM_NO_FIT);
        nothing += count == 0;
        for (int k = 0; k < count; k++) {
            char setting[TM_ADVICE_KEYS][96];
            const char *with[8];
            memcpy(with, extra, sizeof extra);
            tm_job other;
            for (int n = 0; n < advice[k].count; n++) {
                snprintf(setting[n], sizeof setting[n], "%s=%s", advice[k].set[n].key, advice[k].set[n].value);
                with[4 + n] = setting[n];
            }
            open_plan(model, with, 4 + (size_t)advice[k].count, &other);
            OK(tm_job_plan_for(&other, &target, err));
            if (!tm_target_fits(&target, other.plan.peak) || other.plan.peak != advice[k].plan.peak)
                fail_msg("%s, %s, %s, %s in %lld bytes: %s ... takes %lld, said %lld; seed %llu", model, extra[0], extra[1], extra[2], (long long)target.memory, setting[0],
                         (long long)other.plan.peak, (long long)advice[k].plan.peak, (unsigned long long)seed);
            tm_job_close(&other);
            advised++;
            combined += advice[k].count > 1;
            both += advice[k].count == 2 && strcmp(advice[k].set[0].key, "train.micro_tokens") == 0;
        }
        tm_job_close(&job);
    }
    print_message("%d pieces of advice, %d of several keys (%d smaller micro-batches with recomputation), %d times none\n", advised, combined, both, nothing);
    assert_true(advised > 5);
}

/* Where nothing else helps, shorter examples do, and take what was said. */
static void shorter_examples(void **state)
{
    (void)state;
    static const char *const half[] = {"method=lora", "train.seq=256", "train.recompute=full"}, *const whole[] = {"method=lora", "train.seq=512"};
    tm_job job;
    tm_advice advice[TM_ADVICE_MAX];
    int count;
    tm_error problem;
    tm_target target = gpu_of(1);
    open_plan("tied", half, 3, &job);
    OK(tm_job_plan_for(&job, &target, err)); /* the least */
    assert_int_equal(job.run.max_tokens, 256);
    target.memory = job.plan.peak + target.reserve;
    tm_job_close(&job);
    open_plan("tied", whole, 2, &job);
    OK(tm_job_plan_for(&job, &target, err));
    assert_int_equal(tm_job_fits(&job, advice, &count, &problem), TM_NO_FIT);
    assert_int_equal(count, 1);
    assert_string_equal(advice[0].set[0].key, "train.seq");
    assert_string_equal(advice[0].set[0].value, "256");
    assert_int_equal(advice[0].plan.peak + target.reserve, target.memory);
    tm_job_close(&job);
}

/* --- Work --- */

static double sum_products(const tm_work *w, tm_product kind)
{
    double sum = 0;
    for (int o = 0; o < TM_OUTS; o++)
        for (int i = 0; i < TM_INNERS; i++)
            sum += w->product[kind][o][i];
    return sum;
}

/* Every operation of the traced micro-batch against the formula, which knows nothing of how a step is queued. */
static void work_is_the_formula(void **state)
{
    (void)state;
    static const char *const methods[] = {"method=full", "method=lora", "method=freeze", "lora.dropout=0"};
    for (int m = 0; m < MODELS; m++)
        for (int k = 0; k < 4; k++) {
            const char *plain[] = {methods[k], "freeze.layers=3", "train.recompute=none"}, *again[] = {methods[k], "freeze.layers=3", "train.recompute=full"};
            tm_job job, twice;
            tm_device *device;
            tm_trainer *trainer;
            open_plan(models[m].name, plain, 3, &job);
            open_plan(models[m].name, again, 3, &twice);
            OK(tm_counting_device_create(tm_cpu_traits(), &device, err));
            OK(tm_trainer_create(&job.run, device, NULL, &trainer, err));
            assert_true(job.plan.micro_tokens == 2048);
            tm_flops flops = tm_flops_of(&trainer->model);
            double formula = (flops.token + flops.target) * 2048 + 4 * tm_flops_attention(&trainer->model, 512), traced = work_flops(&job.plan.micro);
            int64_t layers = trainer->model.config.layers, lora = k % 2;
            for (int64_t l = 0; k == 3 && l < layers; l++) /* without dropout the gradients of down's factors are an op of their own, which makes dy B again */
                formula += 2.0 * 2048 * 16 * (double)trainer->model.block[l].down.out;
            for (int drops = 0; drops < 2; drops++)
                assert_true((job.plan.micro.lowrank[drops][1][0] > 0) == (k == (drops ? 1 : 3)));
            assert_true(job.plan.micro.lowrank_ops[0] == lora * layers * 4); /* qkv, o, gate and up, down */
            assert_true(job.plan.micro.lowrank_ops[1] == lora * layers * (k == 3 ? 5 : 4));
            /* The formula has half the square for the causal half, and takes every row as a target: all but one of 512 are. */
            if (fabs(traced / formula - 1) > 0.004)
                fail_msg("%s, %s: %.6g operations traced, %.6g by the formula", models[m].name, methods[k], traced, formula);
            const tm_work *a = &job.plan.micro, *b = &twice.plan.micro;
            double extra = sum_products(b, TM_PRODUCT_FORWARD) - sum_products(a, TM_PRODUCT_FORWARD), blocks = 0;
            for (int64_t l = k == 2 ? 3 : 0; l < 5; l++) { /* the last one finds what it left */
                const tm_block *block = &trainer->model.block[l];
                blocks += 2.0 * 2048 * (double)(block->qkv.in * block->qkv.out + block->o.in * block->o.out + block->gate_up.in * block->gate_up.out + block->down.in * block->down.out);
            }
            assert_true(fabs(extra / blocks - 1) < 1e-9); /* forward of the blocks that have a backward, once more, and nothing else */
            assert_true(memcmp(a->product[TM_PRODUCT_INPUT], b->product[TM_PRODUCT_INPUT], 2 * sizeof a->product[0]) == 0);
            assert_true((sum_products(a, TM_PRODUCT_WEIGHT) > 0) == (k % 2 == 0));
            assert_true(job.plan.step.bytes >= 40.0 * (double)job.plan.trained); /* ten passes over f32: clear, norm, AdamW's seven, trail */
            tm_trainer_destroy(trainer);
            tm_device_destroy(device);
            tm_job_close(&job);
            tm_job_close(&twice);
        }
}

/* --- The command's JSON --- */

static json_t *plan_json(const char *gpu, const char *extra, tm_status expected)
{
    char model[700], *text = NULL;
    snprintf(model, sizeof model, "model=%s", scratch("untied"));
    char *with[] = {model, (char *)(uintptr_t)"train.seq=512", (char *)(uintptr_t)"device=cpu", (char *)(uintptr_t)extra};
    tm_plan_request request = {.source = {.overrides = with, .override_count = extra ? 4 : 3}, .gpu = gpu, .tokens = 1000000, .json = true};
    tm_error problem = {0};
    assert_int_equal(tm_plan(&request, &text, &problem), expected);
    json_t *json;
    OK(tm_json_parse(text, strlen(text), "plan", &json, err));
    free(text);
    return json;
}

static void check_fields(const json_t *o, bool timed)
{
    static const char *const integers[] = {"peak_bytes", "reserve_bytes", "available_bytes", "recompute_layers", "micro_tokens", "host_bytes"};
    static const char *const texts[] = {"device", "reserve", "precision", "recompute"};
    static const char *const numbers[] = {"tokens_per_s", "tokens", "hours"};
    for (size_t i = 0; i < 6; i++)
        assert_true(json_is_integer(json_object_get(o, integers[i])));
    for (size_t i = 0; i < 4; i++)
        assert_true(json_is_string(json_object_get(o, texts[i])));
    for (size_t i = 0; i < 3; i++)
        assert_true(!timed || json_is_number(json_object_get(o, numbers[i])));
    assert_true(json_is_boolean(json_object_get(o, "fits")) && json_is_array(json_object_get(o, "instead")));
    const json_t *parts = json_object_get(o, "parts"), *part;
    const char *name;
    int64_t sum = 0;
    json_object_foreach((json_t *)(uintptr_t)parts, name, part)
        sum += json_integer_value(part);
    assert_int_equal(json_object_size(parts), TM_MEM_KINDS);
    assert_int_equal(sum, json_integer_value(json_object_get(o, "peak_bytes")));
}

static tm_calibration rates_of(double flops)
{
    tm_calibration c = {.peak_flops = flops, .reserve = 123456789};
    double rate[TM_WORK_TERMS];
    for (int i = 0; i < TM_WORK_TERMS; i++)
        rate[i] = flops;
    memcpy(&c.rate, rate, sizeof rate);
    c.rate.bytes = 1e12;
    c.rate.calls = 1e6;
    return c;
}

static void json_says_it_all(void **state)
{
    (void)state;
    size_t count;
    const tm_gpu *all = tm_gpus(&count);
    tm_calibration h200 = rates_of(5e14);
    tm_device device = {.name = "cuda", .detail = "NVIDIA H200"};
    OK(tm_calibration_write(scratch("calibration.json"), &device, &h200, err));
    setenv("TEMPER_CALIBRATION", scratch("calibration.json"), 1);
    json_t *here = plan_json(NULL, NULL, TM_OK), *there = plan_json("h200", NULL, TM_OK), *other = plan_json("4090", NULL, TM_OK);
    check_fields(here, false);
    check_fields(there, true);
    check_fields(other, true);
    assert_int_equal(json_array_size(json_object_get(here, "gpus")), count);
    for (size_t i = 0; i < count; i++) {
        const json_t *row = json_array_get(json_object_get(here, "gpus"), i);
        check_fields(row, true);
        assert_string_equal(json_string_value(json_object_get(row, "device")), all[i].name);
        assert_string_equal(json_string_value(json_object_get(row, "precision")), all[i].bf16 ? "bf16" : "f16");
    }
    assert_int_equal(json_array_size(json_object_get(there, "layers")), 6);
    /* Its own rates and reserve; another card's are scaled by the data sheets, and said to be. */
    assert_true(json_is_null(json_object_get(there, "extrapolated_from")));
    assert_string_equal(json_string_value(json_object_get(there, "reserve")), "measured");
    assert_int_equal(json_integer_value(json_object_get(there, "reserve_bytes")), 123456789);
    assert_string_equal(json_string_value(json_object_get(other, "extrapolated_from")), "NVIDIA H200");
    assert_string_equal(json_string_value(json_object_get(other, "reserve")), "estimated");
    double fast = json_number_value(json_object_get(there, "tokens_per_s")), slow = json_number_value(json_object_get(other, "tokens_per_s"));
    const tm_gpu *big = tm_gpu_find("h200"), *small = tm_gpu_find("4090");
    assert_true(slow < fast && slow > fast * small->flops / big->flops * 0.99 && slow > 0);
    assert_true(fabs(json_number_value(json_object_get(there, "hours")) - 1e6 / fast / 3600) < 1e-9);
    json_decref(here);
    json_decref(there);
    json_decref(other);
    setenv("TEMPER_CALIBRATION", scratch("none.json"), 1);
    setenv("TEMPER_MEMORY_LIMIT", "3000000", 1);
    json_t *tight = plan_json(NULL, "method=full", TM_NO_FIT);
    unsetenv("TEMPER_MEMORY_LIMIT");
    check_fields(tight, false);
    assert_true(json_is_false(json_object_get(tight, "fits")));
    const json_t *instead = json_object_get(tight, "instead");
    for (size_t i = 0; i < json_array_size(instead); i++)
        assert_true(json_object_size(json_object_get(json_array_get(instead, i), "set")) > 0 && json_is_integer(json_object_get(json_array_get(instead, i), "peak_bytes")));
    json_decref(tight);
}

static int begin(void **state)
{
    seed = fresh_seed();
    if (memory_begin(state))
        return -1;
    setenv("TEMPER_CALIBRATION", scratch("none.json"), 1); /* what was measured here is no part of a test */
    for (int i = 0; i < MODELS; i++) {
        char path[700];
        OK(tm_dir_create(scratch(models[i].name), err));
        snprintf(path, sizeof path, "%s/config.json", scratch(models[i].name));
        OK(tm_file_write(path, models[i].config, strlen(models[i].config), err));
    }
    return 0;
}

/* What a step has of use is what its own examples take: rows as long as they are, and the output matrix at their targets alone. */
static void a_step_is_its_examples(void **state)
{
    (void)state;
    static const char *const methods[] = {"method=full", "method=lora", "method=freeze"};
    write_rows(scratch("few.jsonl"), 7, 20, 200, 301, 0.8, seed + 40);
    for (int m = 0; m < MODELS; m++)
        for (int k = 0; k < 3; k++) {
            args a = {0};
            tm_job job;
            tm_device *device;
            tm_trainer *trainer;
            tm_work work = {0};
            const int64_t *examples;
            int64_t n, length[7];
            arg(&a, "model=%s", scratch(models[m].name));
            arg(&a, "device=cpu");
            arg(&a, "data.0.path=%s", scratch("few.jsonl"));
            arg(&a, "data.0.format=tokens");
            arg(&a, "train.batch=7");
            arg(&a, "train.epochs=1");
            arg(&a, "train.recompute=none");
            arg(&a, "freeze.layers=3");
            arg(&a, "%s", methods[k]);
            open_job(&a, TM_JOB_PLAN, &job);
            OK(tm_costing_device_create(tm_cpu_traits(), &work, &device, err));
            OK(tm_trainer_create(&job.run, device, NULL, &trainer, err));
            tm_order_step(job.order, 0, &examples, &n);
            assert_int_equal(n, 7);
            for (int i = 0; i < 7; i++)
                length[i] = tm_dataset_at(job.data, examples[i])->n;
            tm_costing_device_lengths(device, length, 7);
            work = (tm_work){0};
            OK(tm_trainer_step(trainer, err));
            double traced = work_flops(&work);
            if (fabs(traced / trainer->step_flops - 1) > 0.015)
                fail_msg("%s, %s: %.6g operations traced, %.6g counted; seed %llu", models[m].name, methods[k], traced, trainer->step_flops, (unsigned long long)seed);
            tm_trainer_destroy(trainer);
            tm_device_destroy(device);
            tm_job_close(&job);
            args_free(&a);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(gpus_by_name), cmocka_unit_test(layout_by_the_rule), cmocka_unit_test(host_memory_comes_last), cmocka_unit_test(cpu_keeps_its_micro_batches),
                                       cmocka_unit_test(planned_is_built), cmocka_unit_test(advice_is_true), cmocka_unit_test(shorter_examples), cmocka_unit_test(work_is_the_formula), cmocka_unit_test(a_step_is_its_examples), cmocka_unit_test(json_says_it_all)};
    return cmocka_run_group_tests_name("fit", tests, begin, scratch_end);
}
