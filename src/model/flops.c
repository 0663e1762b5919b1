/* Operations that are of use: see flops.h. */
#include "model/flops.h"

static double group_flops(const tm_linear_group *group, bool input_gradient)
{
    double flops = 0;
    for (int32_t i = 0; i < group->count; i++) {
        const tm_linear *l = group->module[i];
        flops += 2.0 * (double)l->in * (double)l->out * (1 + input_gradient + l->weight->trained);
        flops += l->lora ? 6.0 * l->lora->r * (double)(l->in + l->out) : 0;
    }
    return flops;
}

tm_flops tm_flops_of(const tm_model *m)
{
    const tm_model_config *c = &m->config;
    tm_flops f = {.target = group_flops(&m->head_group, m->first_trained < c->layers)};
    for (int64_t i = 0; i < c->layers; i++) {
        const tm_block *b = &m->block[i];
        bool gradient = i >= m->first_trained;
        /* Below the lowest trained tensor nobody wants a gradient. */
        f.token += group_flops(&b->qkv, i > m->first_trained || (gradient && tm_norm_trained(&b->norm[TM_NORM_ATTN]))) + group_flops(&b->o, gradient) +
                   group_flops(&b->gate_up, gradient) + group_flops(&b->down, gradient);
    }
    return f;
}

double tm_flops_attention(const tm_model *m, int64_t length)
{
    const tm_model_config *c = &m->config;
    double flops = 0;
    for (int64_t i = 0; i < c->layers; i++) {
        double n = (double)length, seen = c->window[i] && c->window[i] < length ? (double)c->window[i] : n;
        flops += 4.0 * (double)(c->heads * c->head_size) * seen * (n - (seen - 1) / 2) * (i >= m->first_trained ? 3.5 : 1);
    }
    return flops;
}
