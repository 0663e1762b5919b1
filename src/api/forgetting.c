/* temper bench forgetting: what methods keep and learn on a small world that a small model knows by heart. */
#include "api/job.h"

#include "base/file.h"
#include "lab/forgetting.h"

/* The world that models/small was pretrained on. */
static tm_status write_world(const char *dir, tm_error *err)
{
    static const char *const names[3] = {"data/forgetting/shakespeare.txt.gz", "data/demo/pushkin-train.txt", "data/demo/pushkin-dev.txt"};
    char path[3][4096];
    for (int i = 0; i < 3; i++)
        if (!tm_shared_path(names[i], path[i], sizeof path[i]))
            return tm_fail(err, TM_IO, "%s was not found beside the program, where it is installed, or here: run it in temper's folder", names[i]);
    return tm_world_write(&(tm_world){.seed = 1, .people = 80, .new_people = 40, .english = path[0], .russian_train = path[1], .russian_test = path[2]}, dir, err);
}

tm_status tm_bench_forgetting(const tm_forgetting_request *request, char **text, tm_error *err)
{
    *text = NULL;
    TM_TRY(write_world(request->data, err));
    *text = tm_strdup("", err);
    return *text ? TM_OK : err->status;
}
