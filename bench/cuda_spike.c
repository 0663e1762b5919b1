/* Proves the device line on a GPU: LoRA training of a small model with a pack of replicas, through the same
 * trainer as on the CPU.
 *
 *   cuda_spike [--library FILE] [--model DIR] [--out DIR] [--replicas R] [--steps N] [--quick] [--timing] [--dora]
 *
 *   1. the first steps on CPU and GPU: losses, gradient norms, every gradient tensor of every replica
 *   2. the same steps again: the same bits
 *   3. a replica of the pack alone: the same bits
 *   4. a step recorded as a graph and replayed on the following steps: the bits of tm_trainer_step
 *   5. timings
 *   6. the same with examples of any length, in micro-batches padded to one shape (tm_batch.fixed)
 * Exit code 1 when a check fails. Data: random tokens, written to --out. */
#include "plan/plan.h"

#include "base/clock.h"
#include "base/philox.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define BOUND 2e-5 /* relative L2 of a gradient tensor */
enum { MAX_REPLICAS = 64, EXAMPLES = 256 };

static int failures;

static void must(tm_status st, const tm_error *err)
{
    if (st == TM_OK)
        return;
    fprintf(stderr, "cuda_spike: %s\n", err->message);
    exit(1);
}

static void check(bool ok, const char *what)
{
    printf("  %s: %s\n", ok ? "ok  " : "FAIL", what);
    failures += !ok;
}

/* --- Set-up --- */

typedef struct setup {
    const char *library, *model, *out;
    int32_t replicas;
    int64_t steps;
    bool quick, dora;
    tm_recipe *recipe;
    tm_safetensors *file;
    tm_dataset *data;
} setup;

/* Rows of random tokens, lengths between low and high. */
static void write_rows(const char *path, int low, int high, int64_t vocab)
{
    FILE *f = fopen(path, "w");
    if (!f) {
        perror(path);
        exit(1);
    }
    for (uint32_t i = 0; i < EXAMPLES; i++) {
        int n = low + (int)(tm_philox_at(7, i, 0, 0, 0).word[0] % (uint32_t)(high - low + 1));
        fprintf(f, "{\"input_ids\": [1");
        for (int k = 1; k < n; k++)
            fprintf(f, ", %u", tm_philox_at(8, i, (uint32_t)k, 0, 0).word[0] % (uint32_t)vocab);
        fprintf(f, "]}\n");
    }
    fclose(f);
}

static void open_setup(setup *s, const char *name, int low, int high, const char *dropout)
{
    tm_error err;
    char path[1024], model[1024], data[1100], drop[64];
    snprintf(path, sizeof path, "%s/%s.jsonl", s->out, name);
    must(tm_dir_create(s->out, &err), &err);
    write_rows(path, low, high, 512);
    snprintf(model, sizeof model, "model=%s", s->model);
    snprintf(data, sizeof data, "data=[{path: %s, format: tokens}]", path);
    snprintf(drop, sizeof drop, "lora.dropout=%s", dropout);
    char *const keys[] = {model, data, drop, "method=lora", "lora.r=8", "lora.alpha=16", "precision=f32", "train.recompute=none", "train.batch=4",
                          "train.lr=1e-3", "train.schedule=constant", "train.warmup_steps=0", "train.weight_decay=0.01", "train.seq=512",
                          s->dora ? "lora.use_dora=true" : "lora.use_dora=false"};
    must(tm_recipe_load(NULL, keys, sizeof keys / sizeof *keys, &s->recipe, &err), &err);
    must(tm_safetensors_open_model(s->model, &s->file, &err), &err);
    tm_pool *pool;
    must(tm_pool_create(1, &pool, &err), &err);
    tm_data_settings settings = {.vocab_size = 512, .seq = 512};
    must(tm_dataset_load(s->recipe->data, 1, &settings, pool, &s->data, &err), &err);
    tm_pool_destroy(pool);
}

static void close_setup(setup *s)
{
    tm_dataset_destroy(s->data);
    tm_safetensors_close(s->file);
    tm_recipe_destroy(s->recipe);
}

/* One trainer of `count` replicas from `first` on. */
typedef struct side {
    const setup *s;
    tm_device *device;
    tm_run run;
    tm_seeds seeds[MAX_REPLICAS];
    tm_order *order[MAX_REPLICAS];
    tm_run_folder folder[MAX_REPLICAS], *folders[MAX_REPLICAS];
    tm_trainer *t;
    tm_batch_item items[4 * MAX_REPLICAS]; /* of the step in the batch */
} side;

static void open_side(side *e, const setup *s, tm_device *device, const char *name, int32_t first, int32_t count, int64_t max_tokens)
{
    tm_error err;
    *e = (side){.s = s, .device = device};
    for (int32_t r = 0; r < count; r++) {
        char dir[1024];
        tm_recipe seeded = *s->recipe;
        seeded.seed = 1000 + first + r;
        e->seeds[r] = tm_seeds_of(&seeded);
        tm_order_settings settings = {.seed = e->seeds[r].order, .shuffle = true, .batch = s->recipe->batch, .accumulate = 1, .steps = s->steps};
        must(tm_order_create(s->data, s->recipe->data, &settings, &e->order[r], &err), &err);
        snprintf(dir, sizeof dir, "%s/%s-%d", s->out, name, first + r);
        must(tm_run_folder_open(dir, &e->folder[r], &err), &err);
        e->folders[r] = &e->folder[r];
    }
    e->run = (tm_run){.recipe = s->recipe, .model_dir = s->model, .file = s->file, .dtype = TM_F32, .data = s->data, .replicas = count, .seeds = e->seeds,
                      .folder = e->folders, .order = e->order, .steps = s->steps, .max_tokens = max_tokens, .max_examples = 4 * count};
    tm_memory_plan plan;
    must(tm_plan_memory(&e->run, device->traits, 0, &plan, &err), &err);
    must(tm_trainer_create(&e->run, device, plan.part, &e->t, &err), &err);
    must(tm_trainer_start(e->t, &err), &err);
}

static void close_side(side *e)
{
    tm_trainer_destroy(e->t);
    for (int32_t r = 0; r < e->run.replicas; r++) {
        tm_order_destroy(e->order[r]);
        tm_run_folder_close(&e->folder[r]);
    }
}

static void step(side *e)
{
    tm_error err;
    must(tm_trainer_step(e->t, &err), &err);
}

/* --- Comparing --- */

static float *gradient(const side *e, int64_t k, int32_t replica)
{
    const tm_param *p = e->t->trained_param[k];
    tm_error err;
    float *out;
    must(TM_NEW(&out, tm_param_count(p), &err), &err);
    must(tm_param_read(&e->t->model, p, p->grad, replica, out, TM_F32, &err), &err);
    return out;
}

static uint64_t hash_bytes(uint64_t hash, const void *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    return hash;
}

/* Everything a step of one replica left: gradients, loss, norm, the trail of the new values. */
static uint64_t step_hash(const side *e, int32_t r)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (int64_t k = 0; k < e->t->trained_count; k++) {
        float *g = gradient(e, k, r);
        hash = hash_bytes(hash, g, (size_t)tm_param_count(e->t->trained_param[k]) * 4);
        free(g);
    }
    hash = hash_bytes(hash, &e->t->result[r].loss, 8);
    hash = hash_bytes(hash, &e->t->result[r].grad_norm, 8);
    return hash_bytes(hash, e->t->trail + r * e->t->trained_count, (size_t)e->t->trained_count * 8);
}

typedef struct difference {
    double gradient, loss, norm;
    int64_t tensors, equal, trails;
    const char *worst;
} difference;

static difference compare(const side *a, const side *b)
{
    difference d = {.worst = ""};
    for (int32_t r = 0; r < a->run.replicas; r++) {
        for (int64_t k = 0; k < a->t->trained_count; k++) {
            int64_t n = tm_param_count(a->t->trained_param[k]);
            float *x = gradient(a, k, r), *y = gradient(b, k, r);
            double apart = 0, size = 0;
            for (int64_t i = 0; i < n; i++) {
                apart += ((double)y[i] - x[i]) * ((double)y[i] - x[i]);
                size += (double)x[i] * x[i];
            }
            double relative = apart == 0 ? 0 : sqrt(apart / size);
            if (!(relative <= d.gradient)) {
                d.gradient = relative;
                d.worst = a->t->trained_param[k]->name;
            }
            d.tensors++;
            d.equal += memcmp(x, y, (size_t)n * 4) == 0;
            d.trails += a->t->trail[r * a->t->trained_count + k] == b->t->trail[r * a->t->trained_count + k];
            free(x);
            free(y);
        }
        d.loss = fmax(d.loss, fabs(a->t->result[r].loss - b->t->result[r].loss) / fabs(a->t->result[r].loss));
        d.norm = fmax(d.norm, fabs(a->t->result[r].grad_norm - b->t->result[r].grad_norm) / a->t->result[r].grad_norm);
    }
    return d;
}

static tm_device *open_gpu(const setup *s)
{
    tm_error err;
    tm_device *d;
    must(tm_cuda_device_create(s->library, 0, &d, &err), &err);
    return d;
}

static tm_device *open_cpu(void)
{
    tm_error err;
    tm_device *d;
    must(tm_cpu_device_create(0, TM_ISA_AUTO, &d, &err), &err);
    return d;
}

/* --- 1, 2, 3: CPU, again, alone --- */

static void first_steps(setup *s, tm_device *gpu)
{
    enum { STEPS = 5, TOKENS = 512 }; /* several micro-batches a step, cut inside replicas */
    tm_device *cpu = open_cpu();
    side a, b, again, alone;
    int32_t R = s->replicas, lone = R / 2;
    uint64_t hash[STEPS][MAX_REPLICAS];
    open_setup(s, "varied", 9, 300, "0.1");
    printf("1. %d replicas, LoRA r = 8 with dropout 0.1 on all linears of %s, CPU (%s) and GPU (%s)\n", R, s->model, cpu->detail, gpu->detail);
    open_side(&a, s, cpu, "cpu", 0, R, TOKENS);
    open_side(&b, s, gpu, "gpu", 0, R, TOKENS);
    double worst = 0, loss = 0, norm = 0;
    int64_t tensors = 0, equal = 0, trails = 0;
    for (int i = 0; i < STEPS; i++) {
        step(&a);
        step(&b);
        difference d = compare(&a, &b);
        printf("  step %d: loss of replica 0 %.6f, apart at most: losses %.2g, norms %.2g, gradients %.2g (%s); bits equal: %lld of %lld gradients, %lld of %lld weights\n",
               i + 1, b.t->result[0].loss, d.loss, d.norm, d.gradient, d.worst, (long long)d.equal, (long long)d.tensors, (long long)d.trails, (long long)d.tensors);
        worst = fmax(worst, d.gradient);
        loss = fmax(loss, d.loss);
        norm = fmax(norm, d.norm);
        tensors += d.tensors;
        equal += d.equal;
        trails += d.trails;
        for (int32_t r = 0; r < R; r++)
            hash[i][r] = step_hash(&b, r);
    }
    check(worst <= BOUND && loss <= 1e-6 && norm <= 1e-5, "gradients within 2e-5, losses within 1e-6 of the CPU's");
    printf("  %lld of %lld gradient tensors and %lld weight tensors have the CPU's bits\n", (long long)equal, (long long)tensors, (long long)trails);
    printf("2. the same %d steps again on the GPU; 3. replica %d alone\n", STEPS, lone);
    open_side(&again, s, gpu, "again", 0, R, TOKENS);
    open_side(&alone, s, gpu, "alone", lone, 1, 300);
    bool same = true, same_alone = true;
    for (int i = 0; i < STEPS; i++) {
        step(&again);
        step(&alone);
        for (int32_t r = 0; r < R; r++)
            same &= step_hash(&again, r) == hash[i][r];
        same_alone &= step_hash(&alone, 0) == hash[i][lone];
    }
    check(same, "run again: the same bits");
    check(same_alone, "alone, in micro-batches of another size: the same bits as in the pack");
    close_side(&a);
    close_side(&b);
    close_side(&again);
    close_side(&alone);
    close_setup(s);
    tm_device_destroy(cpu);
}

/* --- 4: graphs --- */

/* The step's examples into the batch, its parameters to the device: all that changes from step to step. */
static int64_t upload_step(side *e, int64_t number)
{
    tm_batch_item *items = e->items;
    int64_t n = 0, tokens = 0;
    tm_trainer *t = e->t;
    double power1 = 1, power2 = 1;
    for (int64_t i = 0; i <= number; i++) {
        power1 *= t->recipe->beta1;
        power2 *= t->recipe->beta2;
    }
    for (int32_t r = 0; r < e->run.replicas; r++) {
        const int64_t *examples;
        int64_t count, targets = 0, first = n;
        tm_order_step(e->order[r], number, &examples, &count);
        for (int64_t i = 0; i < count; i++) {
            const tm_example *x = tm_dataset_at(e->s->data, examples[i]);
            items[n++] = (tm_batch_item){.ids = x->ids, .weight = x->weight, .n = x->n, .replica = r, .index = (uint32_t)i};
            targets += x->targets;
            tokens += x->n;
        }
        for (int64_t i = first; i < n; i++)
            items[i].scale = 1.0 / (double)targets;
        t->params[r] = (tm_step_params){.lr = t->recipe->lr, .bias1 = 1 - power1, .bias2 = 1 - power2, .clip = 1,
                                        .dropout_key = tm_philox_key(e->seeds[r].dropout, TM_PURPOSE_DROPOUT, (uint32_t)number, 0)};
    }
    tm_batch_fill(&t->batch, items, n);
    e->device->calls->upload(e->device, t->device_params, t->params, (int64_t)sizeof *t->params * e->run.replicas);
    return tokens;
}

static void zero_gradients(side *e)
{
    for (int64_t k = 0; k < e->t->trained_count; k++) {
        const tm_param *p = e->t->trained_param[k];
        e->device->calls->zero(e->device, p->grad.data, tm_dtype_bytes(p->grad.dtype, p->grad.rows * p->grad.cols));
    }
}

static void micro_step(side *e)
{
    tm_trainer *t = e->t;
    zero_gradients(e);
    tm_model_begin_step(&t->model, t->device_params);
    tm_model_forward(&t->model, &t->batch);
    tm_model_loss(&t->model, &t->batch, tm_tensor_none(), tm_tensor_none(), true);
    tm_model_backward(&t->model, &t->batch);
}

static void optimise(side *e)
{
    tm_trainer *t = e->t;
    const tm_recipe *r = t->recipe;
    int64_t n = t->trained_count * e->run.replicas;
    TM_RUN(e->device, grad_norm, n, t->device_trained, e->run.replicas, r->max_grad_norm, t->device_params);
    TM_RUN(e->device, adamw, n, t->device_trained, r->beta1, r->beta2, r->eps, t->device_params);
}

static tm_graph *record(side *e, void (*work)(side *))
{
    tm_error err;
    tm_graph *g;
    must(e->device->calls->graph_begin(e->device, &err), &err);
    work(e);
    must(e->device->calls->graph_end(e->device, &g, &err), &err);
    return g;
}

static void sync_device(side *e)
{
    tm_error err;
    must(e->device->calls->sync(e->device, &err), &err);
}

/* Losses of the batch, summed as the trainer does. */
static void read_losses(side *e)
{
    tm_trainer *t = e->t;
    tm_batch *b = &t->batch;
    tm_batch_read_results(b);
    for (int32_t r = 0; r < e->run.replicas; r++)
        t->result[r].loss = 0;
    for (int64_t i = 0; i < b->targets; i++) {
        const tm_batch_item *item = &e->items[b->target_item[i]];
        t->result[item->replica].loss += item->scale * b->host_loss[i];
    }
    e->device->calls->download(e->device, t->params, t->device_params, (int64_t)sizeof *t->params * e->run.replicas);
    for (int32_t r = 0; r < e->run.replicas; r++)
        t->result[r].grad_norm = t->params[r].grad_norm;
}

typedef struct phase {
    const char *name;
    void (*run)(side *);
    tm_graph *graph;
} phase;

static void trail_phase(side *e) { TM_RUN(e->device, trail, e->t->trained_count * e->run.replicas, e->t->device_trained, e->t->device_trail); }
static void results_phase(side *e) { tm_batch_read_results(&e->t->batch); }
static void upload_phase(side *e) { upload_step(e, 3); }

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void time_phase(side *e, const phase *p, int64_t tokens, int repeats)
{
    enum { MOST = 200 };
    double queued[MOST], done[MOST];
    for (int i = 0; i < repeats; i++) {
        sync_device(e);
        double start = tm_clock_seconds();
        if (p->graph)
            e->device->calls->graph_run(e->device, p->graph);
        else
            p->run(e);
        queued[i] = tm_clock_seconds() - start;
        sync_device(e);
        done[i] = tm_clock_seconds() - start;
    }
    qsort(queued, (size_t)repeats, sizeof *queued, by_value);
    qsort(done, (size_t)repeats, sizeof *done, by_value);
    printf("  %-44s %9.3f ms (quartiles %.3f, %.3f), of it %.3f ms in the host's calls", p->name, done[repeats / 2] * 1e3, done[repeats / 4] * 1e3, done[repeats * 3 / 4] * 1e3,
           queued[repeats / 2] * 1e3);
    if (tokens)
        printf(", %.0f tokens/s", (double)tokens / done[repeats / 2]);
    printf("\n");
}

/* A run of recorded steps beside tm_trainer_step, which cuts its steps into micro-batches of `micro` tokens. */
typedef struct recorded {
    side eager, replay;
    tm_graph *work, *update;
    double record_seconds;
} recorded;

static void run_recorded(setup *s, tm_device *gpu, recorded *g, bool fixed, int64_t micro, int64_t max_tokens, const char *name)
{
    int32_t R = s->replicas;
    int64_t steps = s->quick ? 6 : s->steps, tokens = 0;
    char eager[32], replay[32];
    snprintf(eager, sizeof eager, "eager-%s", name);
    snprintf(replay, sizeof replay, "replay-%s", name);
    open_side(&g->eager, s, gpu, eager, 0, R, micro);
    open_side(&g->replay, s, gpu, replay, 0, R, max_tokens);
    g->replay.t->batch.fixed = fixed;
    bool same = true;
    double loss = 0;
    for (int64_t i = 0; i < steps; i++) {
        step(&g->eager);
        tokens += upload_step(&g->replay, i);
        if (i == 0) { /* loads the kernels */
            micro_step(&g->replay);
            optimise(&g->replay);
        } else {
            if (i == 1) {
                double start = tm_clock_seconds();
                g->work = record(&g->replay, micro_step);
                g->record_seconds = tm_clock_seconds() - start;
                g->update = record(&g->replay, optimise);
            }
            gpu->calls->graph_run(gpu, g->work);
            gpu->calls->graph_run(gpu, g->update);
        }
        read_losses(&g->replay);
        trail_phase(&g->replay);
        for (int32_t r = 0; r < R; r++)
            same &= step_hash(&g->eager, r) == step_hash(&g->replay, r);
        loss += g->eager.t->result[0].loss;
    }
    printf("  %s: recorded at step 2 of %lld in %.2f ms, %lld and %lld nodes; %.0f tokens a step of at most %lld; mean loss of replica 0 %.6f\n", name, (long long)steps,
           g->record_seconds * 1e3, (long long)g->work->nodes, (long long)g->update->nodes, (double)tokens / (double)steps, (long long)max_tokens, loss / (double)steps);
    check(same, "every replayed step: gradients, losses, norms and weights have the bits of tm_trainer_step");
}

static void end_recorded(tm_device *gpu, recorded *g)
{
    gpu->calls->graph_destroy(gpu, g->work);
    gpu->calls->graph_destroy(gpu, g->update);
    close_side(&g->eager);
    close_side(&g->replay);
}

/* Other step parameters alone: the same batch, another dropout key. */
static void follow_parameters(tm_device *gpu, recorded *g)
{
    side *e = &g->replay;
    upload_step(e, 3);
    gpu->calls->graph_run(gpu, g->work);
    float *x = gradient(e, 0, 0), *y, *z;
    for (int32_t r = 0; r < e->run.replicas; r++)
        e->t->params[r].dropout_key ^= 1;
    gpu->calls->upload(gpu, e->t->device_params, e->t->params, (int64_t)sizeof *e->t->params * e->run.replicas);
    gpu->calls->graph_run(gpu, g->work);
    y = gradient(e, 0, 0);
    micro_step(e);
    z = gradient(e, 0, 0);
    size_t bytes = (size_t)tm_param_count(e->t->trained_param[0]) * 4;
    check(memcmp(x, y, bytes) != 0 && memcmp(y, z, bytes) == 0, "another dropout key in step_params: the replay follows it");
    free(x);
    free(y);
    free(z);
}

/* Five hundred ops of one element: what queueing costs. */
static void small_ops(side *e)
{
    tm_tensor one = tm_tensor_make(e->t->model.dx.data, TM_F32, 1, 1);
    for (int i = 0; i < 500; i++)
        TM_RUN(e->device, fill, one, i);
}

static void time_phases(setup *s, tm_device *gpu, recorded *g, int64_t tokens)
{
    tm_graph *small = record(&g->replay, small_ops);
    phase phases[] = {{"forward, loss, backward, op by op", micro_step, NULL}, {"forward, loss, backward, graph", NULL, g->work}, {"norm, AdamW, op by op", optimise, NULL},
                      {"norm, AdamW, graph", NULL, g->update}, {"trail (waits)", trail_phase, NULL}, {"losses to the host (waits)", results_phase, NULL},
                      {"batch and parameters to the device", upload_phase, NULL}, {"500 ops of one element, op by op", small_ops, NULL},
                      {"500 ops of one element, graph", NULL, small}, {"tm_trainer_step", step, NULL}};
    for (size_t i = 0; i < sizeof phases / sizeof *phases; i++) {
        bool whole = phases[i].run == step;
        side *e = whole ? &g->eager : &g->replay;
        if (whole)
            e->t->step = 0;
        time_phase(e, &phases[i], i < 2 || whole ? tokens : 0, s->quick ? 1 : whole && s->steps < 50 ? (int)s->steps : 50);
    }
    printf("  memory: %lld bytes in use on the device by both trainers\n", (long long)gpu->used_bytes);
    gpu->calls->graph_destroy(gpu, small);
}

static void graphs(setup *s, tm_device *gpu)
{
    enum { LENGTH = 64, LONGEST = 120 };
    int32_t R = s->replicas;
    int64_t tokens = 4 * LENGTH * R;
    recorded g = {0};
    printf("4. recorded steps\n");
    open_setup(s, "equal", LENGTH, LENGTH, "0.1");
    run_recorded(s, gpu, &g, false, tokens, tokens, "examples of 64 tokens");
    follow_parameters(gpu, &g);
    printf("5. timings, medians\n");
    time_phases(s, gpu, &g, tokens);
    end_recorded(gpu, &g);
    tm_device *cpu = open_cpu();
    side host;
    open_side(&host, s, cpu, "host", 0, R, tokens);
    time_phase(&host, &(phase){"tm_trainer_step on the CPU", step, NULL}, tokens, s->quick ? 1 : 10);
    close_side(&host);
    tm_device_destroy(cpu);
    close_setup(s);

    printf("6. recorded steps of examples of any length, padded to one shape\n");
    open_setup(s, "any", 9, LONGEST, "0.1");
    run_recorded(s, gpu, &g, true, 200, 4 * LONGEST * R, "examples of 9 to 120 tokens");
    end_recorded(gpu, &g);
    close_setup(s);
}

int main(int argc, char **argv)
{
    setup s = {.model = "models/stories260K", .out = "/tmp/cuda_spike", .replicas = 8, .steps = 60};
    bool timing = false;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--quick") == 0)
            s.quick = true;
        else if (strcmp(argv[i], "--timing") == 0)
            timing = true;
        else if (strcmp(argv[i], "--dora") == 0)
            s.dora = true;
        else if (!value)
            break;
        else if (strcmp(argv[i], "--library") == 0)
            s.library = argv[++i];
        else if (strcmp(argv[i], "--model") == 0)
            s.model = argv[++i];
        else if (strcmp(argv[i], "--out") == 0)
            s.out = argv[++i];
        else if (strcmp(argv[i], "--replicas") == 0)
            s.replicas = atoi(argv[++i]);
        else if (strcmp(argv[i], "--steps") == 0)
            s.steps = atoll(argv[++i]);
    }
    if (s.replicas < 1 || s.replicas > MAX_REPLICAS || s.steps < 6) {
        fprintf(stderr, "cuda_spike: --replicas from 1 to %d, --steps from 6\n", MAX_REPLICAS);
        return 2;
    }
    double start = tm_clock_seconds();
    tm_device *gpu = open_gpu(&s);
    printf("%s (%s) opened in %.2f s\n", gpu->name, gpu->detail, tm_clock_seconds() - start);
    if (!timing)
        first_steps(&s, gpu);
    graphs(&s, gpu);
    tm_device_destroy(gpu);
    printf("%s in %.1f s\n", failures ? "FAILED" : "all checks passed", tm_clock_seconds() - start);
    return failures != 0;
}
