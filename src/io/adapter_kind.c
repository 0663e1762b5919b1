/* Kinds of adapter folders: see adapter_kind.h. */
#include "io/adapter_kind.h"

#include "base/file.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

const char *tm_adapter_kind_name(tm_adapter_kind kind)
{
    static const char *const names[] = {"LoRA", "trained prompt", "Houlsby adapter", "biases", "registers"};
    return names[kind];
}

const char *tm_adapter_kind_method(tm_adapter_kind kind)
{
    static const char *const methods[] = {"lora", "prompt", "adapter", "bitfit", "lora"};
    return methods[kind];
}

const char *tm_adapter_kind_file(tm_adapter_kind kind)
{
    return kind == TM_ADAPTER_HOULSBY ? "adapter.safetensors" : "adapter_model.safetensors";
}

static tm_status kind_of_config(const json_t *json, const char *path, tm_adapter_kind *out, tm_error *err)
{
    static const struct {
        const char *type;
        tm_adapter_kind kind;
    } types[] = {{"LORA", TM_ADAPTER_LORA}, {"PROMPT_TUNING", TM_ADAPTER_PROMPT}, {TM_BITFIT_TYPE, TM_ADAPTER_BITFIT}};
    const char *type = json_string_value(json_object_get(json, "peft_type"));
    for (size_t i = 0; type && i < sizeof types / sizeof types[0]; i++)
        if (strcmp(types[i].type, type) == 0) {
            *out = types[i].kind;
            return TM_OK;
        }
    if (type)
        return tm_fail(err, TM_UNSUPPORTED, "%s: \"peft_type\" is %.100s; LORA, PROMPT_TUNING and " TM_BITFIT_TYPE " are supported", path, type);
    *out = TM_ADAPTER_HOULSBY;
    return json_is_object(json_object_get(json, "config"))
               ? TM_OK
               : tm_fail(err, TM_INPUT, "%s: found neither \"peft_type\" (PEFT) nor \"config\" (AdapterHub)", path);
}

tm_status tm_adapter_kind_of(const char *dir, tm_adapter_kind *out, tm_error *err)
{
    char *config = tm_path_join(dir, "adapter_config.json", err), *registers = tm_path_join(dir, "registers.json", err);
    json_t *json = NULL;
    tm_status st = config && registers ? TM_OK : TM_NO_MEMORY;
    if (st == TM_OK && tm_path_exists(registers))
        *out = TM_ADAPTER_REGISTERS;
    else if (st == TM_OK)
        st = tm_json_read(config, &json, err);
    if (st == TM_OK && json)
        st = kind_of_config(json, config, out, err);
    json_decref(json);
    free(config);
    free(registers);
    return st;
}

tm_status tm_adapter_kind_base(const char *dir, char **out, tm_error *err)
{
    *out = NULL;
    json_t *json = NULL;
    tm_status st = tm_json_read_in(dir, "adapter_config.json", &json, err);
    const char *name = json_string_value(json_object_get(json, "base_model_name_or_path"));
    name = name ? name : json_string_value(json_object_get(json, "model_name"));
    if (st == TM_OK && name && !(*out = tm_strdup(name, err)))
        st = TM_NO_MEMORY;
    json_decref(json);
    return st;
}
