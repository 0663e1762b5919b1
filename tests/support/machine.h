/* A model with a tuning method and a batch on a device of the test's choice, without a trainer: to look
 * at logits and gradients. Sized on the counting device first, as a run is. */
#ifndef TM_TESTS_MACHINE_H
#define TM_TESTS_MACHINE_H

#include "run.h"

typedef struct machine {
    const tm_job *job; /* borrowed */
    tm_device *device;
    tm_memory memory;
    tm_model model;
    tm_tuning tuning;
    tm_batch batch;
    tm_step_params *step; /* device: one replica */
    tm_batch_item *items;
    int64_t item_count, max_tokens;
    float gates[4]; /* of registers; every item's */
    tm_tensor teacher; /* absent, or hidden states at every target of the step */
} machine;

static inline void machine_build(machine *m, const int64_t *limits, tm_model_settings settings)
{
    const tm_run *run = &m->job->run;
    settings.act = m->job->recipe->precision == TM_PRECISION_BF16 && m->device->real == TM_F32 ? TM_BF16 : m->device->real;
    OK(tm_memory_init(&m->memory, m->device, limits, err));
    OK(tm_model_create(&m->model, run->model_dir, run->file, run->dtype, m->device, &m->memory, 1, err));
    OK(tm_tuning_select(&m->tuning, m->job->recipe, m->job->run.method, &m->model, err));
    OK(tm_model_allocate(&m->model, &settings, err));
    OK(tm_batch_create(&m->batch, &m->memory, m->device, settings.max_tokens, m->item_count, 1, err));
    OK(tm_model_fit_batch(&m->model, &m->batch, err));
}

static inline void machine_unbuild(machine *m)
{
    tm_batch_destroy(&m->batch);
    tm_tuning_deinit(&m->tuning);
    tm_model_destroy(&m->model);
    tm_memory_deinit(&m->memory);
    tm_device_destroy(m->device);
}

/* The items of the run's first step, then the model with its weights and first values. settings: what
 * matters of recompute, logits; the rest is set here. max_tokens 0: the whole step is one micro-batch. */
static inline void machine_open(machine *m, const tm_job *job, tm_isa isa, int64_t max_tokens, tm_model_settings settings)
{
    *m = (machine){.job = job, .gates = {0.75f, -1.5f, 0, 2}};
    const int64_t *examples;
    int64_t targets = 0, tokens = 0;
    tm_order_step(job->order, 0, &examples, &m->item_count);
    m->items = calloc((size_t)m->item_count, sizeof *m->items);
    for (int64_t i = 0; i < m->item_count; i++) {
        const tm_example *e = tm_dataset_at(job->data, examples[i]);
        m->items[i] = (tm_batch_item){.ids = e->ids, .weight = e->weight, .n = e->n, .index = (uint32_t)i};
        m->items[i].gates = m->gates;
        targets += e->targets;
        tokens += e->n + (job->recipe->method == TM_METHOD_PROMPT ? job->recipe->prompt_tokens : 0);
    }
    for (int64_t i = 0; i < m->item_count; i++)
        m->items[i].scale = 1.0 / (double)targets;
    m->max_tokens = settings.max_tokens = max_tokens ? max_tokens : tokens;
    settings.train = true;
    int64_t limits[TM_MEM_KINDS];
    tm_device *device;
    if (isa == TM_ISA_AUTO) /* what the recipe names; auto is the CPU unless TEMPER_DEVICE says otherwise */
        OK(tm_device_open(job->recipe->device, 1, &device, NULL, err));
    else
        OK(tm_cpu_device_create(1, isa, &device, err));
    OK(tm_counting_device_create(device->traits, &m->device, err));
    machine_build(m, NULL, settings);
    tm_memory_peaks(&m->memory, limits);
    machine_unbuild(m);
    m->tuning = (tm_tuning){0};
    m->device = device;
    machine_build(m, limits, settings);
    OK(tm_model_load(&m->model, job->file, job->run.model_dir, err));
    if (m->tuning.method->start)
        OK(m->tuning.method->start(&m->tuning, 0, job->seeds.init, err));
    tm_step_params step = {.clip = 1, .dropout_key = tm_philox_key(job->seeds.dropout, TM_PURPOSE_DROPOUT, 0, 0)};
    OK(tm_device_alloc(device, sizeof step, (void **)&m->step, err));
    device->calls->upload(device, m->step, &step, sizeof step);
}

static inline void machine_close(machine *m)
{
    free(m->items);
    if (m->teacher.data)
        tm_device_release(m->device, m->teacher.data, tm_dtype_bytes(m->teacher.dtype, m->teacher.rows * m->teacher.cols));
    tm_device_release(m->device, m->step, sizeof *m->step);
    machine_unbuild(m);
}

/* The model without its adapter becomes the teacher: KL joins the loss, with another weight an item.
 * Needs settings.teacher; release the memory with machine_close. */
static inline void machine_teach(machine *m)
{
    int64_t targets = 0, bytes;
    for (int64_t i = 0; i < m->item_count; i++)
        for (int32_t t = 1; t < m->items[i].n; t++)
            targets += !m->items[i].weight || m->items[i].weight[t] != 0;
    void *memory;
    bytes = tm_dtype_bytes(m->device->real, targets * m->model.config.width);
    OK(tm_device_alloc(m->device, bytes, &memory, err));
    m->teacher = tm_tensor_make(memory, m->device->real, targets, m->model.config.width);
    m->model.linear.base_only = true;
    targets = 0;
    for (int64_t i = 0; i < m->item_count; i++) {
        tm_batch_fill(&m->batch, &m->items[i], 1);
        tm_model_forward(&m->model, &m->batch);
        tm_model_gather_hidden(&m->model, &m->batch, tm_tensor_rows(m->teacher, targets, m->batch.targets));
        targets += m->batch.targets;
        m->items[i].kl = m->items[i].scale * (double)i / 2;
        m->items[i].teacher_row = targets - m->batch.targets;
    }
    m->model.linear.base_only = false;
}

/* Loss of the step, gradients if asked for; after tm_model_begin_step. */
static inline double machine_loss(machine *m, bool grad)
{
    double loss = 0;
    for (int64_t i = 0; grad && i < m->model.params.count; i++) {
        const tm_param *p = m->model.params.item[i];
        const tm_tensor both[] = {p->grad, p->grad2};
        for (int k = 0; k < 2; k++)
            if (both[k].data)
                m->device->calls->zero(m->device, both[k].data, tm_dtype_bytes(both[k].dtype, both[k].rows * both[k].cols));
    }
    for (int64_t done = 0, n; done < m->item_count; done += n) {
        int64_t tokens = 0;
        for (n = 0; done + n < m->item_count && tokens + tm_batch_item_rows(&m->batch, &m->items[done + n]) <= m->max_tokens; n++)
            tokens += tm_batch_item_rows(&m->batch, &m->items[done + n]);
        assert_true(n > 0);
        tm_batch_fill(&m->batch, m->items + done, n);
        tm_model_forward(&m->model, &m->batch);
        tm_model_loss(&m->model, &m->batch, m->teacher, tm_tensor_none(), grad);
        if (grad)
            tm_model_backward(&m->model, &m->batch);
        tm_batch_read_results(&m->batch);
        for (int64_t i = 0; i < m->batch.targets; i++) {
            const tm_batch_item *item = &m->items[done + m->batch.target_item[i]];
            loss += (item->weight ? item->weight[m->batch.target_token[i]] : 1) * item->scale * m->batch.host_loss[i];
            loss += m->teacher.data ? item->kl * m->batch.host_kl[i] : 0;
        }
    }
    if (grad)
        tm_model_finish_gradients(&m->model);
    return loss;
}

#endif
