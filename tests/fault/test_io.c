/* Files, safetensors, adapter configs and checkpoints while memory runs out and the disk fails: an error,
 * never a crash, a leak (the sanitizer looks) or a damaged old file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "../unit/folder.h"
#include "base/hash.h"
#include "base/json.h"
#include "fault.h"
#include "io/adapter.h"
#include "io/checkpoint.h"
#include "io/hf.h"

/* Content of a file that must be one of two texts, whole. */
static void is_either(const char *path, const char *old, size_t old_size, const char *now, size_t now_size)
{
    size_t size;
    char *bytes = slurp(path, &size);
    bool same = (size == old_size && memcmp(bytes, old, size) == 0) || (size == now_size &&
                                                                        memcmp(bytes, now, size) == 0);
    free(bytes);
    if (!same)
        fail_msg("%s is neither the old nor the new file", path);
}

/* No aside is left and the next sweep step starts from the old file. */
static void reset(const char *name, const char *old, size_t size)
{
    char aside[128];
    snprintf(aside, sizeof aside, ".%s.partial", name);
    assert_false(tm_path_exists(scratch(aside)));
    FILE *file = fopen(scratch(name), "w");
    assert_non_null(file);
    assert_int_equal(fwrite(old, 1, size, file), size);
    fclose(file);
}

/* ---- plain files ---- */

static tm_status write_file(tm_error *err) { return tm_file_write(scratch("plain"), "new content", 11, err); }

static void check_file(void)
{
    is_either(scratch("plain"), "old", 3, "new content", 11);
    reset("plain", "old", 3);
}

static tm_status read_file(tm_error *err)
{
    tm_buf buf = {0};
    tm_map map = {0};
    tm_status st = tm_file_read(scratch("plain"), 100, &buf, err);
    if (st == TM_OK)
        st = tm_map_open(scratch("plain"), &map, err);
    if (st == TM_OK)
        assert_true(buf.size == 3 && map.size == 3 && memcmp(map.data, "old", 3) == 0);
    tm_map_close(&map);
    tm_buf_deinit(&buf);
    return st;
}

static tm_status hash_file(tm_error *err)
{
    tm_sha256 hash;
    char *names[] = {"plain"};
    return tm_sha256_files(scratch_dir, names, 1, &hash, err);
}

static tm_status use_folders(tm_error *err)
{
    char **names;
    size_t count;
    tm_dir_lock lock = {-1};
    tm_status st;
    TM_GO(tm_dir_create(scratch("x/y/z"), err));
    TM_GO(tm_dir_lock_take(scratch("x"), &lock, err));
    TM_GO(tm_dir_list(scratch("x"), &names, &count, err));
    tm_names_free(names, count);
    TM_GO(tm_dir_remove(scratch("x"), err));
out:
    tm_dir_lock_drop(&lock);
    return st;
}

static void files(void **state)
{
    (void)state;
    OK(tm_file_write(scratch("plain"), "old", 3, err));
    fault_sweep("write", FAULT_ALLOCS | FAULT_CALLS, write_file, check_file);
    fault_sweep("read", FAULT_ALLOCS | FAULT_CALLS, read_file, NULL);
    fault_sweep("hash", FAULT_ALLOCS | FAULT_CALLS, hash_file, NULL);
    fault_sweep("folders", FAULT_ALLOCS, use_folders, NULL);
}

/* ---- safetensors ---- */

static float numbers[64];

static const tm_st_tensor *two_tensors(void)
{
    static tm_st_tensor t[2];
    t[0] = (tm_st_tensor){.name = "b.weight", .dtype = TM_F32, .ndim = 2, .shape = {8, 7}, .data = numbers};
    t[1] = (tm_st_tensor){.name = "a.bias", .dtype = TM_F32, .ndim = 1, .shape = {8}, .data = numbers + 56};
    return t;
}

static char *old_table, *new_table; /* bytes of the file before and after */
static size_t old_size, new_size;
static const char *const metadata[] = {"format", "pt", NULL};

static tm_status write_table(tm_error *err) { return tm_safetensors_write(scratch("table"), two_tensors(), 2, metadata,
                                                                          err); }

static void check_table(void)
{
    is_either(scratch("table"), old_table, old_size, new_table, new_size);
    reset("table", old_table, old_size);
}

static tm_status open_table(tm_error *err)
{
    tm_safetensors *st;
    tm_status status = tm_safetensors_open("tests/data/golden/llama-dora/adapter_init/adapter_model.safetensors", &st,
                                           err);
    if (status == TM_OK)
        assert_non_null(tm_safetensors_find(st, "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"));
    else
        assert_null(st);
    tm_safetensors_close(st);
    return status;
}

static tm_status open_shards(tm_error *err)
{
    tm_safetensors *st;
    tm_status status = tm_safetensors_open_model(scratch("shards"), &st, err);
    if (status == TM_OK)
        assert_int_equal(tm_safetensors_count(st), 2);
    tm_safetensors_close(st);
    return status;
}

static tm_status write_shards(tm_error *err) { return tm_hf_write_model(scratch("shards"), two_tensors(), 2, 100,
                                                                        err); }

/* Whole after every failure, since each of its files is and they are written as they were. */
static void check_shards(void)
{
    tm_safetensors *st;
    OK(tm_safetensors_open_model(scratch("shards"), &st, err));
    assert_memory_equal(tm_safetensors_find(st, "a.bias")->data, numbers + 56, 32);
    tm_safetensors_close(st);
}

static tm_status copy_folder(tm_error *err) { return tm_hf_copy_files(scratch("shards"), scratch_dir, err); }

static void tables(void **state)
{
    (void)state;
    for (int i = 0; i < 64; i++)
        numbers[i] = (float)i;
    OK(write_table(err));
    new_table = slurp(scratch("table"), &new_size);
    OK(tm_safetensors_write(scratch("table"), two_tensors(), 1, NULL, err));
    old_table = slurp(scratch("table"), &old_size);
    fault_sweep("safetensors write", FAULT_ALLOCS | FAULT_CALLS, write_table, check_table);
    fault_sweep("safetensors open", FAULT_ALLOCS | FAULT_CALLS, open_table, NULL);
    OK(tm_dir_create(scratch("shards"), err));
    OK(write_shards(err));
    OK(tm_file_write(scratch("shards/config.json"), "{}", 2, err));
    fault_sweep("open model", FAULT_ALLOCS | FAULT_CALLS, open_shards, NULL);
    fault_sweep("write model", FAULT_ALLOCS | FAULT_CALLS, write_shards, check_shards);
    fault_sweep("copy files", FAULT_ALLOCS | FAULT_CALLS, copy_folder, NULL);
    free(old_table);
    free(new_table);
}

/* ---- adapter configs ---- */

static const char full_config[] =
    "{\"peft_type\":\"LORA\",\"target_modules\":[\"b\",\"a\"],\"rank_pattern\":{\"z\":2,\"a\":3},\"alpha_pattern\":{\"x\":0.5},"
    "\"modules_to_save\":[\"lm_head\"],\"exclude_modules\":[\"y\"],\"layers_to_transform\":[3,1],\"layers_pattern\":[\"h\"],"
    "\"base_model_name_or_path\":\"base\",\"use_dora\":true}";
static tm_adapter_config config;
static char *config_text;
static size_t config_size;

static tm_status read_config(tm_error *err)
{
    tm_adapter_config c;
    tm_status st = tm_adapter_config_read(scratch_dir, &c, err);
    if (st == TM_OK)
        assert_int_equal(c.rank_patterns, 2);
    tm_adapter_config_deinit(&c);
    return st;
}

static tm_status write_config(tm_error *err) { return tm_adapter_config_write(scratch_dir, &config, err); }

static void check_config(void)
{
    is_either(scratch("adapter_config.json"), full_config, strlen(full_config), config_text, config_size);
    reset("adapter_config.json", full_config, strlen(full_config));
}

static tm_status match_config(tm_error *err)
{
    bool found;
    double rank;
    TM_TRY(tm_adapter_targets(&config, "model.h.3.mlp.a", &found, err));
    assert_true(found);
    TM_TRY(tm_adapter_pattern(config.rank_pattern, config.rank_patterns, "model.h.3.mlp.a", 8, &rank, err));
    assert_true(rank == 3);
    return TM_OK;
}

static void adapters(void **state)
{
    (void)state;
    OK(tm_adapter_config_parse(full_config, strlen(full_config), "c", &config, err));
    OK(write_config(err));
    config_text = slurp(scratch("adapter_config.json"), &config_size);
    reset("adapter_config.json", full_config, strlen(full_config));
    fault_sweep("config read", FAULT_ALLOCS | FAULT_CALLS, read_config, NULL);
    fault_sweep("config write", FAULT_ALLOCS | FAULT_CALLS, write_config, check_config);
    fault_sweep("config match", FAULT_ALLOCS, match_config, NULL);
    tm_adapter_config_deinit(&config);
    free(config_text);
}

/* ---- checkpoints ---- */

static tm_status make_checkpoint(int64_t step, tm_error *err)
{
    char *folder = NULL, *path = NULL;
    tm_status st;
    TM_GO(tm_checkpoint_begin(scratch("run"), step, &folder, err));
    path = tm_path_join(folder, "weights.safetensors", err);
    if (!path)
        TM_GO(TM_NO_MEMORY);
    TM_GO(tm_safetensors_write(path, two_tensors(), 2, NULL, err));
    st = tm_checkpoint_commit(scratch("run"), step, err);
out:
    free(folder);
    free(path);
    return st;
}

/* The newest whole one, found without failures. */
static int64_t newest(void)
{
    int64_t step;
    char *folder;
    OK(tm_checkpoint_latest(scratch("run"), -1, &step, &folder, NULL, err));
    if (folder) {
        char path[512];
        tm_safetensors *st;
        snprintf(path, sizeof path, "%s/weights.safetensors", folder);
        OK(tm_safetensors_open(path, &st, err));
        tm_safetensors_close(st);
    }
    free(folder);
    return step;
}

static tm_status checkpoint_five(tm_error *err) { return make_checkpoint(5, err); }

/* The one before is there, or the new one; the new one is taken away for the next try. */
static void check_five(void)
{
    int64_t step = newest();
    assert_true(step == 4 || step == 5);
    OK(tm_dir_remove(scratch("run/checkpoint-5"), err));
    assert_int_equal(newest(), 4);
}

static tm_status checkpoint_four(tm_error *err) { return make_checkpoint(4, err); }

static void check_four(void) { assert_int_equal(newest(), 4); }

static tm_status find_latest(tm_error *err)
{
    int64_t step;
    char *folder;
    tm_status st = tm_checkpoint_latest(scratch("run"), -1, &step, &folder, NULL, err);
    if (st == TM_OK)
        assert_int_equal(step, 4);
    else
        assert_null(folder);
    free(folder);
    return st;
}

static tm_status prune(tm_error *err) { return tm_checkpoint_prune(scratch("run"), 1, 2, err); }

static void check_prune(void)
{
    assert_int_equal(newest(), 4);
    assert_true(tm_path_exists(scratch("run/checkpoint-2")));
    OK(make_checkpoint(3, err));
}

static void checkpoints(void **state)
{
    (void)state;
    OK(tm_dir_create(scratch("run"), err));
    OK(make_checkpoint(2, err));
    OK(make_checkpoint(4, err));
    fault_sweep("checkpoint", FAULT_ALLOCS | FAULT_CALLS, checkpoint_five, check_five);
    fault_sweep("checkpoint in place of one", FAULT_ALLOCS | FAULT_CALLS, checkpoint_four, check_four);
    fault_sweep("latest", FAULT_ALLOCS | FAULT_CALLS, find_latest, NULL);
    OK(make_checkpoint(3, err));
    fault_sweep("prune", FAULT_ALLOCS | FAULT_CALLS, prune, check_prune);
}

int main(void)
{
    fault_begin();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files), cmocka_unit_test(tables), cmocka_unit_test(adapters), cmocka_unit_test(checkpoints),
    };
    return cmocka_run_group_tests_name("io faults", tests, scratch_begin, scratch_end);
}
