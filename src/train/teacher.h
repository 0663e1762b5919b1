/* The base as a teacher: what a loss asks of it at targets of the training, and where its hidden states come from.
 *
 * 1. Where everything trained is added to the base (LoRA, bottlenecks, a prompt, added biases), the base is the model with
 *    that switched off: one more forward of those examples of a micro-batch that ask for it, no second copy.
 * 2. Where the base itself changes, its hidden states at every target that asks are remembered before the training, in the
 *    arena TM_MEM_KEEP; and its head, where that is trained.
 * 3. The teacher is in the model's mode, but has no dropout: that belongs to what is added. */
#ifndef TM_TRAIN_TEACHER_H
#define TM_TRAIN_TEACHER_H

#include "model/model.h"
#include "text/dataset.h"

struct tm_trainer;

/* Weights of a target's terms: its cross-entropy; KL(base || model), or the mean square between their logits. */
typedef struct tm_teaching {
    double loss, kl, square; /* one of the last two is 0 */
} tm_teaching;

enum { TM_FROM_TASK, TM_FROM_REHEARSAL, TM_ORIGINS };

typedef struct tm_teacher {
    tm_teaching of[TM_ORIGINS]; /* by where the example comes from */
    bool used;
    tm_tensor hidden;     /* [n, C] the base's hidden states: of a micro-batch, or all that are remembered */
    int64_t *first;       /* [examples] row of hidden of the example's first target, -1: none; NULL: nothing is remembered */
    tm_batch_item *items; /* [max_examples] those of a micro-batch that ask */
    tm_tensor head;       /* copy of the base's head, where that is trained and someone asks the base */
} tm_teacher;

/* Nothing is asked: plain training. */
#define TM_TEACHER_NONE ((tm_teacher){.of = {{.loss = 1}, {.loss = 1}}})

/* Room for what an evaluation of KL to the base needs. */
void tm_teacher_take_probes(struct tm_trainer *t);
/* Says what the loss asks, while the trainer is built; takes the memory for it. */
tm_status tm_teacher_use(struct tm_trainer *t, const tm_teaching of[TM_ORIGINS], tm_error *err) TM_MUST_CHECK;
void tm_teacher_drop(tm_teacher *teacher);

/* Weights of the base loaded and unchanged, targets settled: remembers what will be asked of the base. */
void tm_teacher_remember(struct tm_trainer *t);
/* The item's weights, of an example of the run's data (NULL: of a task) with this number; share: what a target counts. */
void tm_teacher_give(const struct tm_trainer *t, const tm_example *example, int64_t number, double share, tm_batch_item *item);
/* Before a micro-batch is laid out: queues the base's forward for the items that ask; sets their teacher_row. */
void tm_teacher_ask(struct tm_trainer *t, tm_batch_item *items, int64_t count);

#endif
