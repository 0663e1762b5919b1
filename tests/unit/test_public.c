/* The public functions as a program that knows temper.h alone would meet their failures: the same status with a tm_error and
 * without one, a message that names what was wrong, and nothing left to free. */
#include "../support/run.h"

static char *model, *damaged, *rows, *fresh; /* a folder of a model that is none; JSON and YAML that is neither; good rows; a name that is free */

static tm_recipe_source source_of(args *a)
{
    arg(a, "model=%s", model);
    arg(a, "data.0.path=%s", rows);
    arg(a, "data.0.format=tokens");
    arg(a, "out=%s", fresh);
    return (tm_recipe_source){.overrides = a->item, .override_count = a->count};
}

static tm_status train_no_model(char **text, args *a, tm_error *e)
{
    tm_recipe_source source = source_of(a);
    return tm_train(&source, &(tm_callbacks){0}, text, e);
}
static tm_status train_no_recipe(char **text, args *a, tm_error *e)
{
    (void)a;
    return tm_train(&(tm_recipe_source){.path = damaged}, &(tm_callbacks){0}, text, e);
}
static tm_status train_wrong_key(char **text, args *a, tm_error *e)
{
    arg(a, "train.lrr=1");
    return tm_train(&(tm_recipe_source){.overrides = a->item, .override_count = a->count}, &(tm_callbacks){0}, text, e);
}
static tm_status plan(char **text, args *a, tm_error *e) { return tm_plan(&(tm_plan_request){.source = source_of(a)}, text, e); }
static tm_status advise(char **text, args *a, tm_error *e) { return tm_advise_recipe(&(tm_advise_request){.source = source_of(a)}, text, e); }
static tm_status fisher(char **text, args *a, tm_error *e) { return tm_fisher(&(tm_fisher_request){.source = source_of(a), .out = fresh}, &(tm_callbacks){0}, text, e); }
static tm_status sweep(char **text, args *a, tm_error *e)
{
    tm_recipe_source source = source_of(a);
    arg(a, "train.lr=x,y");
    source.override_count = a->count;
    return tm_sweep_recipe(&(tm_sweep_request){.source = source, .out = fresh}, &(tm_callbacks){0}, text, e);
}
static tm_status sequence(char **text, args *a, tm_error *e)
{
    (void)a;
    return tm_sequence(&(tm_sequence_request){.path = damaged, .out = fresh}, &(tm_callbacks){0}, text, e);
}
static tm_status init(char **text, args *a, tm_error *e)
{
    (void)a;
    return tm_init(model, rows, text, e);
}
static tm_status compare(char **text, args *a, tm_error *e)
{
    (void)a;
    return tm_compare(&(tm_compare_request){.paths = (char *[]){damaged, model}, .path_count = 2}, text, e);
}
static tm_status inspect(char **text, args *a, tm_error *e)
{
    (void)a;
    return tm_inspect(&(tm_inspect_request){.path = model}, text, e);
}
static tm_status inspect_rows(char **text, args *a, tm_error *e)
{
    arg(a, "data.0.format=messages");
    arg(a, "data.0.template=chatml");
    return tm_inspect(&(tm_inspect_request){.path = damaged, .model = "models/stories260K", .overrides = a->item, .override_count = a->count}, text, e);
}
static tm_status verify(char **text, args *a, tm_error *e)
{
    (void)a;
    bool equal;
    return tm_verify(model, &(tm_callbacks){0}, &equal, text, e);
}
static tm_status generate(char **text, args *a, tm_error *e)
{
    (void)text, (void)a;
    return tm_generate(&(tm_generate_request){.model = model, .prompt = "", .max_tokens = 1, .top_p = 1}, e);
}
static tm_status chat(char **text, args *a, tm_error *e)
{
    (void)text, (void)a;
    tm_chat_session *session = NULL;
    return tm_chat_session_open(&(tm_chat_request){.model = model, .max_tokens = 1, .context = 8, .top_p = 1}, &session, e);
}
static tm_status eval(char **text, args *a, tm_error *e)
{
    (void)a;
    return tm_eval(&(tm_eval_request){.model = "models/stories260K", .data = damaged}, text, e);
}
static tm_status merge(char **text, args *a, tm_error *e)
{
    (void)a;
    return tm_merge(&(tm_merge_request){.model = "models/stories260K", .out = fresh, .sources = &(tm_merge_source){.path = model, .scale = 1}, .source_count = 1}, text, e);
}
static tm_status export(char **text, args *a, tm_error *e)
{
    (void)a;
    return tm_export(&(tm_export_request){.model = model, .gguf = fresh}, text, e);
}
static tm_status tokenize(char **text, args *a, tm_error *e)
{
    (void)text, (void)a;
    FILE *in = fopen(damaged, "r"), *out = fopen("/dev/null", "w");
    tm_status st = tm_tokenize(&(tm_tokenize_request){.tokenizer = "models/stories260K", .in = in, .name = damaged, .out = out}, e);
    fclose(in);
    fclose(out);
    return st;
}
static tm_status tokenizer_train(char **text, args *a, tm_error *e)
{
    (void)a;
    return tm_tokenizer_train(&(tm_tokenizer_train_request){.data = model, .out = fresh, .vocab = 300, .pattern = "gpt2"}, text, e);
}
static tm_status template(char **text, args *a, tm_error *e)
{
    (void)a;
    return tm_template(&(tm_template_request){.source = "chatml", .context = damaged}, text, e);
}

static void refused_alike(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        tm_status (*call)(char **text, args *a, tm_error *e);
    } calls[] = {
#define CALL(name) {#name, name}
        CALL(train_no_model), CALL(train_no_recipe), CALL(train_wrong_key), CALL(plan), CALL(advise), CALL(fisher),
        CALL(sweep), CALL(sequence), CALL(init), CALL(compare), CALL(inspect), CALL(inspect_rows), CALL(verify),
        CALL(generate), CALL(chat), CALL(eval), CALL(merge), CALL(export), CALL(tokenize), CALL(tokenizer_train),
        CALL(template),
#undef CALL
    };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        args a = {0}, b = {0};
        char *text = NULL;
        tm_error said = {0};
        tm_status with = calls[i].call(&text, &a, &said), without = calls[i].call(&text, &b, NULL);
        if (with == TM_OK || without != with || said.status != with)
            fail_msg("%s: status %d, without an error to fill %d, in it %d: %s", calls[i].name, (int)with, (int)without, (int)said.status, said.message);
        if (tm_status_exit_code(with) < 2 || !*tm_status_text(with))
            fail_msg("%s: %s: what users gave was wrong, not the work: %s", calls[i].name, tm_status_text(with), said.message);
        assert_null(text);
        assert_false(tm_path_exists(fresh));
        args_free(&a);
        args_free(&b);
    }
}

static int begin(void **state)
{
    static const char text[] = "{\"messages\": [{\n";
    if (memory_begin(state) != 0)
        return -1;
    model = strdup(scratch("model"));
    damaged = strdup(scratch("damaged.jsonl"));
    rows = strdup(scratch("rows.jsonl"));
    fresh = strdup(scratch("fresh"));
    OK(tm_dir_create(model, err));
    OK(tm_file_write(damaged, text, strlen(text), err));
    write_rows(rows, 4, 3, 5, 20, 0, 1);
    return 0;
}

static int end(void **state)
{
    free(model);
    free(damaged);
    free(rows);
    free(fresh);
    return scratch_end(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(refused_alike)};
    return cmocka_run_group_tests_name("public functions", tests, begin, end);
}
