/* docs/what-fits.md: what of the usual models fits on the usual cards, and how long it takes, computed by the planner. Every figure
 * comes from tm_layout_choose, tm_advise and the rates that come with temper (data/calibration.json).
 *
 * usage: TEMPER_CALIBRATION=none build/cpu/tools/what_fits > docs/what-fits.md   (make what-fits) */
#include "api/job.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEQ = 2048, BATCH = 16 };

static const struct {
    const char *name, *dir;
} models[] = {
    {"Qwen1.5 1.8B", "qwen1.5-1.8b"}, {"Qwen1.5 4B", "qwen1.5-4b"}, {"Qwen2.5 7B", "qwen2.5-7b"}, {"Qwen2.5 14B", "qwen2.5-14b"},
    {"Sheared-LLaMA 1.3B", "sheared-llama-1.3b"}, {"Llama 3 8B", "llama-3-8b"}, {"Llama 2 13B", "llama-2-13b"}, {"Mistral 7B v0.3", "mistral-7b"},
};
enum { QWEN_7B = 2, QWEN_14B = 3, LLAMA_1B = 4, MODELS = sizeof models / sizeof *models };
static const struct {
    const char *name, *argument;
} methods[] = {{"LoRA r=16", "method=lora"}, {"full", "method=full"}};
enum { LORA, FULL, METHODS };
static const char *const cards[] = {"RTX 4090", "L40S", "RTX PRO 6000", "H200"};
enum { CARD_96 = 2, CARD_141 = 3, CARDS = sizeof cards / sizeof *cards };

typedef struct cell {
    tm_target target;
    tm_memory_plan plan;
    bool fits;
    int64_t again;
    char instead[160]; /* "": nothing would */
    double rate;       /* tokens a second; NaN */
} cell;

static cell table[MODELS][METHODS][CARDS];

static void must(tm_status st, const tm_error *err)
{
    if (st == TM_OK)
        return;
    fprintf(stderr, "what_fits: %s\n", err->message);
    exit(1);
}

static void open_model(int model, const char *extra, const char *more, tm_job *job)
{
    tm_error err;
    tm_recipe *recipe;
    char dir[256], seq[64], batch[64];
    snprintf(dir, sizeof dir, "model=tests/data/configs/%s", models[model].dir);
    snprintf(seq, sizeof seq, "train.seq=%d", SEQ);
    snprintf(batch, sizeof batch, "train.batch=%d", BATCH);
    char *arguments[] = {dir, seq, batch, (char *)(uintptr_t)"device=cpu", (char *)(uintptr_t)extra, (char *)(uintptr_t)more};
    must(tm_recipe_load(NULL, arguments, more ? 6 : 5, &recipe, &err), &err);
    must(tm_job_open(recipe, TM_JOB_PLAN, job, &err), &err);
}

static void plan_cell(tm_job *job, const char *card, cell *c)
{
    tm_error err;
    tm_advice advice[TM_ADVICE_MAX];
    int count;
    must(tm_target_gpu(tm_gpu_find(card), &c->target, &err), &err);
    must(tm_job_plan_for(job, &c->target, &err), &err);
    c->plan = job->plan;
    c->again = job->recipe->recompute == TM_RECOMPUTE_FULL ? c->plan.layers : job->recipe->recompute == TM_RECOMPUTE_PARTIAL ? job->recipe->recompute_layers : 0;
    c->fits = tm_job_fits(job, advice, &count, &err) == TM_OK;
    c->rate = c->fits && c->target.timed ? tm_tokens_per_second(&c->plan, &c->target.rates) : NAN;
    c->instead[0] = 0;
    tm_buf text = {0};
    if (!c->fits && count)
        tm_advice_put(&advice[0], &text);
    snprintf(c->instead, sizeof c->instead, "%s", tm_buf_str(&text));
    tm_buf_deinit(&text);
}

static double gib(const cell *c) { return (double)(c->plan.peak + c->target.reserve) / (1 << 30); }

static void print_hours(double hours)
{
    if (isnan(hours))
        printf("-");
    else if (hours < 1)
        printf("%.0f min", 60 * hours);
    else if (hours < 48)
        printf("%.1f h", hours);
    else
        printf("%.1f days", hours / 24);
}

/* --- The parts of the page --- */

static void print_memory(void)
{
    printf("\n## Memory\n\nGiB at the peak, the driver's share included. *k of n*: the activations of k of the n blocks are not kept and computed again in backward, as many as it "
           "takes to fit. Micro-batches are of as many tokens as the planner chose for the card (2,048 to 16,384). \"No\" is followed by the cheapest change with "
           "which it fits, where there is one.\n\n| model | method |");
    for (int c = 0; c < CARDS; c++)
        printf(" %s (%.1f GiB) |", cards[c], (double)table[0][0][c].target.memory / (1 << 30));
    printf("\n|---|---|");
    for (int c = 0; c < CARDS; c++)
        printf("---|");
    printf("\n");
    for (int m = 0; m < MODELS; m++)
        for (int k = 0; k < METHODS; k++) {
            printf("| %s | %s |", models[m].name, methods[k].name);
            for (int c = 0; c < CARDS; c++) {
                const cell *x = &table[m][k][c];
                if (x->fits && x->again)
                    printf(" %.1f, %lld of %lld |", gib(x), (long long)x->again, (long long)x->plan.layers);
                else if (x->fits)
                    printf(" %.1f |", gib(x));
                else
                    printf(" no%s%s (%.0f) |", x->instead[0] ? ": " : "", x->instead, gib(x));
            }
            printf("\n");
        }
}

static void print_time(void)
{
    static const double amounts[] = {1e7, 1e8, 1e9, 1e10};
    printf("\n## Time\n\nTokens trained on a second, and how long so many tokens take, where it fits.\n\n"
           "| model | method | card | tokens/s | 10M | 100M | 1B | 10B |\n|---|---|---|---|---|---|---|---|\n");
    for (int m = 0; m < MODELS; m++)
        for (int k = 0; k < METHODS; k++)
            for (int c = 0; c < CARDS; c++) {
                const cell *x = &table[m][k][c];
                if (!x->fits)
                    continue;
                printf("| %s | %s | %s%s | ", models[m].name, methods[k].name, cards[c], x->target.from[0] ? " *" : "");
                if (isnan(x->rate))
                    printf("- |");
                else
                    printf("%.0f |", x->rate);
                for (int i = 0; i < 4; i++) {
                    printf(" ");
                    print_hours(amounts[i] / x->rate / 3600);
                    printf(" |");
                }
                printf("\n");
            }
    printf("\n\\* extrapolated: rates measured on %s, scaled by the data sheets of both cards (`src/plan/gpus.def`). Nobody "
           "measured these cards: no two generations reach the same share of their data sheet.\n", table[0][0][0].target.from[0] ? table[0][0][0].target.from : "another card");
}

/* Peak of a model with LoRA on a card, as the least and as the most comfortable layout. */
static double lora_gib(int model, const char *layout, const char *card)
{
    tm_job job;
    cell c;
    open_model(model, methods[LORA].argument, layout, &job);
    plan_cell(&job, card, &c);
    tm_job_close(&job);
    return gib(&c);
}

static const char *against(double value, double low, double high) { return value < low ? "too high" : value > high ? "too low" : "right"; }

static void print_folklore(void)
{
    double least = lora_gib(QWEN_7B, "train.recompute=full", "RTX 4090"), roomy = gib(&table[QWEN_7B][LORA][CARD_141]);
    const cell *lora = &table[QWEN_14B][LORA][CARD_96], *full = &table[QWEN_14B][FULL][CARD_96], *small = &table[LLAMA_1B][LORA][CARD_96], *whole = &table[LLAMA_1B][FULL][CARD_96];
    printf("\n## What is said, and what is\n\n| said | computed | verdict |\n|---|---|---|\n");
    printf("| Qwen 7B with LoRA takes 25 to 40 GB | %.1f GB with every block computed again and 2,048 tokens at once, %.1f GB without any and 8,192 tokens at once | ",
           least * 1.073741824, roomy * 1.073741824);
    printf(least * 1.073741824 < 25 ? "too high at the low end: it fits on a card of 24 GB; the upper end is a choice, not a need |\n" : "right |\n");
    printf("| 14B on 96 GB is borderline | LoRA: %.1f GiB of %.1f, %s; all weights: %.0f GiB | LoRA: %s; full: %s |\n", gib(lora), (double)lora->target.memory / (1 << 30),
           lora->again ? "with recomputation" : "nothing computed twice", gib(full),
           !lora->fits ? "does not fit" : gib(lora) < 0.8 * (double)lora->target.memory / (1 << 30) ? "fits with room to spare" : "borderline, as said",
           full->fits ? "fits" : "not borderline but out of reach");
    static const struct {
        const char *said;
        double tokens, low, high; /* hours */
    } times[] = {{"10M tokens in less than 30 minutes", 1e7, 0, 0.5}, {"100M tokens in 1 to 2 hours", 1e8, 1, 2}, {"1B tokens in 12 to 24 hours", 1e9, 12, 24}, {"10B tokens in 3 to 7 days", 1e10, 72, 168}};
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        double a = times[i].tokens / small->rate / 3600, b = times[i].tokens / whole->rate / 3600;
        printf("| 1.3B on a 96 GB card: %s | %sLoRA ", times[i].said, small->target.from[0] ? "* " : "");
        print_hours(a);
        printf(", full ");
        print_hours(b);
        if (isnan(a) || isnan(b))
            printf(" | not estimated: no GPU was calibrated |\n");
        else
            printf(" | LoRA: %s; full: %s |\n", against(a, times[i].low, times[i].high), against(b, times[i].low, times[i].high));
    }
    printf("\nThe four times contradict each other, whatever the card: ten times the tokens of \"12 to 24 hours\" are 5 to 10 days, and a tenth of them 1.2 to 2.4 hours. "
           "A run's time is its tokens over its rate; nothing gets cheaper by the dozen.\n");
}

int main(void)
{
    for (int m = 0; m < MODELS; m++)
        for (int k = 0; k < METHODS; k++) {
            tm_job job;
            open_model(m, methods[k].argument, NULL, &job);
            for (int c = 0; c < CARDS; c++)
                plan_cell(&job, cards[c], &table[m][k][c]);
            tm_job_close(&job);
        }
    printf("# What fits on which card\n\nMade by `make what-fits`, which plans every run of the tables as `temper plan` does: the run is built without memory and counted to the byte, so "
           "the figures are temper's and not a rule of thumb. For a recipe of your own:\n\n```sh\ntemper plan recipe.yaml                      # this machine, and a row for every card\n"
           "temper plan recipe.yaml --gpu 4090           # by kind and by layer\ntemper plan --model DIR train.seq=%d train.batch=%d --gpu h200 --tokens 100000000\n```\n\n"
           "Here: examples of %d tokens, %d a step, bf16, AdamW with f32 weights and state for what is trained, LoRA with r = 16 on all linear layers. Memory is what the driver hands to "
           "programs on that card, not what the box says; the driver's own share (context, code) is %s.\n", SEQ, BATCH, SEQ, BATCH,
           table[0][0][CARD_141].target.reserve_measured ? "measured on the H200 and estimated elsewhere" : "estimated at 0.6 GB");
    print_memory();
    print_time();
    print_folklore();
    return 0;
}
