/* Registers: a bank of LoRA adapters with a gate each; the bank as files and gates as text.
 * docs/formats/registers.md; what is computed: model/linear.h, tm_lora.gates. */
#ifndef TM_TUNE_REGISTERS_H
#define TM_TUNE_REGISTERS_H

#include "tune/tune.h"

bool tm_registers_there(const char *dir);
/* Names of a bank that begins anew: into t->registers. where: for messages. */
tm_status tm_registers_name(tm_tuning *t, const tm_names *names, const char *where, tm_error *err) TM_MUST_CHECK;
/* Names and config of the bank in t->from; its values, for one replica. */
tm_status tm_registers_open(tm_tuning *t, tm_error *err) TM_MUST_CHECK;
tm_status tm_registers_read(tm_tuning *t, int32_t replica, tm_error *err) TM_MUST_CHECK;
tm_status tm_registers_write(tm_tuning *t, int32_t replica, const char *dir, tm_error *err) TM_MUST_CHECK;

/* Gates [registers->count] by name; those that are not named stay as they are. From a recipe's map, and from
 * "NAME=NUMBER,NAME=NUMBER". An unknown name or what is no number: TM_RECIPE, TM_USAGE. */
tm_status tm_registers_gates(const tm_names *registers, const tm_string_map *map, const char *where, float *out, tm_error *err) TM_MUST_CHECK;
tm_status tm_registers_parse(const tm_names *registers, const char *text, const char *where, float *out, tm_error *err) TM_MUST_CHECK;

#endif
