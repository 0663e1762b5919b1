/* Any text as an adapter_config.json: an error or a config that can be asked about any module. Without
 * limits on its regular expressions this would hang. */
#include "io/adapter.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"model.layers.0.self_attn.q_proj", "lm_head", "transformer.h.12.mlp.c_fc", ""};
    tm_adapter_config config;
    tm_error err = {0};
    if (tm_adapter_config_parse((const char *)data, size, "input", &config, &err) != TM_OK) {
        if (config.bias || err.status == TM_OK || !err.message[0])
            abort();
        return 0;
    }
    if (config.r < 1 || !config.bias || (!config.target_regex && !config.target_modules.count))
        abort();
    for (int i = 0; i < 4; i++) {
        bool found;
        double value;
        if (tm_adapter_targets(&config, names[i], &found, &err) != TM_OK && !err.message[0])
            abort();
        if (tm_adapter_pattern(config.rank_pattern, config.rank_patterns, names[i], 8, &value, &err) != TM_OK && !err.message[0])
            abort();
    }
    tm_adapter_config_deinit(&config);
    return 0;
}
