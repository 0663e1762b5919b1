/* Which method made an adapter folder: its adapter_config.json says so, in PEFT's, AdapterHub's or temper's words. */
#ifndef TM_IO_ADAPTER_KIND_H
#define TM_IO_ADAPTER_KIND_H

#include "base/status.h"

typedef enum tm_adapter_kind {
    TM_ADAPTER_LORA,      /* PEFT, peft_type LORA */
    TM_ADAPTER_PROMPT,    /* PEFT, peft_type PROMPT_TUNING */
    TM_ADAPTER_HOULSBY,   /* AdapterHub: "config" with a reduction_factor */
    TM_ADAPTER_BITFIT,    /* temper, peft_type TEMPER_BITFIT */
    TM_ADAPTER_REGISTERS, /* temper: registers.json beside PEFT adapters, no adapter_config.json */
} tm_adapter_kind;

/* What a peft_type is called that temper knows and PEFT does not. */
#define TM_BITFIT_TYPE "TEMPER_BITFIT"

/* A word for messages: "LoRA", "prompt", ... */
const char *tm_adapter_kind_name(tm_adapter_kind kind);

/* The recipe's method that makes such a folder; METHOD.init names one to continue from. */
const char *tm_adapter_kind_method(tm_adapter_kind kind);
/* The file of its tensors. */
const char *tm_adapter_kind_file(tm_adapter_kind kind);

/* Anything else is TM_UNSUPPORTED and named; a folder with none of the files TM_INPUT. */
tm_status tm_adapter_kind_of(const char *dir, tm_adapter_kind *out, tm_error *err) TM_MUST_CHECK;

/* The base model that adapter_config.json names, in whoever's words: free(); NULL: none. */
tm_status tm_adapter_kind_base(const char *dir, char **out, tm_error *err) TM_MUST_CHECK;

#endif
