/* The emulated GPU: threads of a kernel as fibers, and where they meet.
 *
 * A block of a grid runs on one thread of the system; as many blocks as the GPU has processors run side by side, in an
 * order that is drawn. Inside a block one fiber runs until it has to wait, then another one that is ready: which, is
 * drawn too, by a rule that changes from block to block (any of them; the one that became ready last, so that a warp
 * runs far ahead). So what leans on an order that no barrier gives comes out wrong in some runs. TEMPER_EMULATED_SEED
 * sets the draws.
 *
 * Shared memory is not-a-numbers when a block begins. Its addresses are those of a space of its own, which only this
 * file turns into pointers, after a look at the bounds. Global memory is ordinary memory: AddressSanitizer watches it.
 *
 * What cannot go on is said, with the places where threads wait; it never hangs. */
#include "engine.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <mutex>
#include <numeric>
#include <sched.h>
#include <sys/mman.h>
#include <thread>

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifdef SANITIZED
#include <sanitizer/common_interface_defs.h>
#endif

enum { HEAD = 8192 }; /* of a stack: the thread, and a page that nobody may touch */
static_assert(sizeof(emulated_thread) <= HEAD / 2, "a thread fits before its stack");

/* --- Switching --- */

#ifdef __x86_64__
/* Keeps on the stack what a call keeps; *from: the stack that is left. */
extern "C" void emulated_switch(void **from, void *to);
asm(".text\n.globl emulated_switch\n.hidden emulated_switch\n.type emulated_switch, @function\nemulated_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n.size emulated_switch, . - emulated_switch\n");

static void *fresh_stack(char *base, void (*begin)())
{
    void **at = (void **)(base + EMULATED_STACK) - 8; /* six registers, where to go, and no caller */
    memset((void *)at, 0, 8 * sizeof *at);
    at[6] = (void *)begin;
    return at;
}
#else
#include <ucontext.h>
static void emulated_switch(void **from, void *to)
{
    ucontext_t here;
    *from = &here;
    swapcontext(&here, (ucontext_t *)to);
}
static void *fresh_stack(char *base, void (*begin)())
{
    ucontext_t *at = (ucontext_t *)((uintptr_t)(base + EMULATED_STACK - sizeof *at) & ~(uintptr_t)63);
    getcontext(at);
    at->uc_stack.ss_sp = base + HEAD;
    at->uc_stack.ss_size = (size_t)((char *)at - base - HEAD);
    at->uc_link = nullptr;
    makecontext(at, begin, 0);
    return at;
}
#endif

/* From a fiber, or (NULL) where the block was begun, to another one, or there. ends: what is left never comes back. */
static void go(emulated_block *b, emulated_thread *from, emulated_thread *to, bool ends = false)
{
    void **leaving = from ? &from->stack : &b->outside;
#ifdef SANITIZED
    void **fake = from ? &from->fake : &b->outside_fake;
    __sanitizer_start_switch_fiber(ends ? nullptr : fake, to ? (char *)to + HEAD : b->outside_bottom, to ? EMULATED_STACK - HEAD : b->outside_size);
#endif
    (void)ends;
    emulated_switch(leaving, to ? to->stack : b->outside);
#ifdef SANITIZED
    __sanitizer_finish_switch_fiber(*fake, nullptr, nullptr);
#endif
}

/* --- What is wrong --- */

static uint64_t seed_of_runs()
{
    const char *given = getenv("TEMPER_EMULATED_SEED");
    return given ? strtoull(given, nullptr, 10) : 1;
}

void emulated_fail(const char *format, ...)
{
    emulated_thread *t = emulated_self();
    emulated_block *b = t->of;
    va_list list;
    va_start(list, format);
    fprintf(stderr, "emulated GPU: %s, block (%u, %u, %u) of (%u, %u, %u), thread %u of %u: ", b->op, t->block.x, t->block.y, t->block.z, t->grid.x, t->grid.y, t->grid.z, t->thread.x, b->count);
    vfprintf(stderr, format, list);
    va_end(list);
    fprintf(stderr, " (TEMPER_EMULATED_SEED=%llu)\n", (unsigned long long)seed_of_runs());
    std::map<std::pair<const char *, void *>, std::pair<int, unsigned>> places;
    for (unsigned i = b->count; i--;)
        if (!b->threads[i]->ended && b->threads[i]->waits) {
            auto &place = places[{b->threads[i]->waits, b->threads[i]->where}];
            place.first++;
            place.second = i;
        }
    for (auto &[place, threads] : places) {
        Dl_info info = {};
        dladdr(place.second, &info);
        fprintf(stderr, "  %d threads (%u ...) wait for %s: addr2line -Cfipe %s %#lx\n", threads.first, threads.second, place.first, info.dli_fname ? info.dli_fname : "?",
                (unsigned long)((char *)place.second - (char *)info.dli_fbase));
    }
    fflush(stderr);
    abort();
}

/* --- Who runs --- */

/* Threads that look for what another block writes: they let others run, and give up after a while. */
static void look_again(emulated_block *b)
{
    static const int PATIENCE = 1 << 22;
    if (++b->looks > PATIENCE)
        emulated_fail("waits for another block, in vain");
    sched_yield();
    b->ready.swap(b->looking);
}

static emulated_thread *next(emulated_block *b)
{
    for (;;) {
        if (!b->fetches.empty() && (b->ready.empty() || b->draw(8) == 0)) {
            unsigned i = b->draw((unsigned)b->fetches.size());
            emulated_fetch f = b->fetches[i];
            b->fetches[i] = b->fetches.back();
            b->fetches.pop_back();
            emulated_fetch_now(b, f);
        } else if (!b->ready.empty()) {
            size_t n = b->ready.size(), i = b->order == 0 || b->draw(32) == 0 ? b->draw((unsigned)n) : n - 1;
            emulated_thread *t = b->ready[i];
            b->ready[i] = b->ready[n - 1];
            b->ready.pop_back();
            return t;
        } else if (!b->looking.empty())
            look_again(b);
        else
            emulated_fail("nobody can go on");
    }
}

void emulated_stop(const char *waits, void *where)
{
    emulated_thread *t = emulated_self(), *to;
    t->waits = waits;
    t->where = where;
    to = next(t->of);
    if (to != t)
        go(t->of, t, to);
    t->waits = nullptr;
}

/* --- Warps --- */

static void end_meeting(emulated_warp &w, void (*act)(emulated_warp &), emulated_thread *here)
{
    emulated_block *b = here->of;
    act(w);
    w.arrived = 0;
    bool up = b->draw(2);
    for (int i = 0; i < 32; i++) {
        int lane = up ? i : 31 - i;
        if (w.operand[lane] && w.lane[lane] != here)
            b->ready.push_back(w.lane[lane]);
        w.operand[lane] = nullptr;
    }
}

void emulated_meeting(unsigned mask, const char *kind, void *operand, void (*act)(emulated_warp &), void *where)
{
    emulated_thread *t = emulated_self();
    emulated_warp &w = *t->warp;
    for (int i = 0; mask != ~0u && i < 32; i++)
        if (w.lane[i] && !w.lane[i]->ended && !(mask >> i & 1))
            emulated_fail("%s without lane %d: only whole warps meet here", kind, i);
    if (w.arrived && w.kind != kind)
        emulated_fail("at %s, while lanes of its warp are at %s", kind, w.kind);
    w.kind = kind;
    w.operand[t->lane] = operand;
    if (++w.arrived == w.living)
        end_meeting(w, act, t);
    else
        emulated_stop(kind, where);
}

void emulated_meet(unsigned mask)
{
    char nothing;
    emulated_meeting(mask, "the warp", &nothing, [](emulated_warp &) {}, EMULATED_CALLER);
}

struct exchange {
    uint64_t x, result;
    int from;
};
uint64_t emulated_exchange(unsigned mask, uint64_t x, int from)
{
    exchange e = {x, x, from};
    emulated_meeting(mask, "a shuffle", &e, [](emulated_warp &w) {
        for (void *o : w.operand)
            if (exchange *to = (exchange *)o) {
                if (!w.operand[to->from])
                    emulated_fail("a shuffle from lane %d, which is not there", to->from);
                to->result = ((exchange *)w.operand[to->from])->x;
            }
    }, EMULATED_CALLER);
    return e.result;
}

unsigned emulated_ballot(unsigned mask, bool x)
{
    exchange e = {x, 0, 0};
    emulated_meeting(mask, "a ballot", &e, [](emulated_warp &w) {
        uint64_t all = 0;
        for (int i = 0; i < 32; i++)
            all |= w.operand[i] ? ((exchange *)w.operand[i])->x << i : 0;
        for (void *o : w.operand)
            if (o)
                ((exchange *)o)->result = all;
    }, EMULATED_CALLER);
    return (unsigned)e.result;
}

/* --- Barriers of a block --- */

int emulated_barrier(int number, int threads, bool wait, int value)
{
    emulated_thread *t = emulated_self();
    emulated_block *b = t->of;
    emulated_numbered &at = b->barriers[number & 15];
    threads = threads ? threads : (int)b->count;
    if (number < 0 || number > 15 || threads % 32 || threads > (int)(b->count + 31) / 32 * 32)
        if (threads != (int)b->count || number < 0 || number > 15)
            emulated_fail("no barrier %d of %d threads is possible", number, threads);
    if (at.arrived && at.threads != threads)
        emulated_fail("at barrier %d for %d threads, which others take for one of %d", number, threads, at.threads);
    at.threads = threads;
    at.sum += value;
    if (++at.arrived == threads) {
        at.last = at.sum;
        at.arrived = at.sum = 0;
        bool up = b->draw(2);
        for (size_t i = 0, n = at.waiting.size(); i < n; i++)
            b->ready.push_back(at.waiting[up ? i : n - 1 - i]);
        at.waiting.clear();
    } else if (wait) {
        at.waiting.push_back(t);
        emulated_stop(number ? "a numbered barrier" : "__syncthreads", EMULATED_CALLER);
    }
    return at.last;
}

void emulated_barrier_moved(emulated_block *b)
{
    for (size_t i = 0; i < b->waiters.size();)
        if (emulated_barrier_passed(b->waiters[i].bar, b->waiters[i].parity)) {
            b->ready.push_back(b->waiters[i].thread);
            b->waiters[i] = b->waiters.back();
            b->waiters.pop_back();
        } else
            i++;
}

int emulated_look(const int *at)
{
    emulated_block *b = emulated_self()->of;
    b->looking.push_back(emulated_self());
    emulated_stop("another block", EMULATED_CALLER);
    return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}

/* --- Shared memory --- */

enum : uint32_t { SHARED_FROM = 0x400, FIXED_FROM = 0x100000 };

void *emulated_shared_memory(size_t alignment)
{
    emulated_block *b = emulated_self()->of;
    if (alignment > 1024)
        emulated_fail("shared memory is aligned to 1024 bytes at most");
    return b->shared;
}

uint32_t emulated_shared_address(const void *p)
{
    emulated_block *b = emulated_self()->of;
    size_t at = (size_t)((const char *)p - b->shared), fixed = (size_t)((const char *)p - b->fixed);
    if (at <= b->shared_bytes)
        return SHARED_FROM + (uint32_t)at;
    if (fixed < b->fixed_bytes)
        return FIXED_FROM + (uint32_t)fixed;
    emulated_fail("%p is no address of shared memory (%zu bytes from its beginning, it has %zu)", p, at, b->shared_bytes);
}

char *emulated_shared_at(uint32_t address, size_t bytes)
{
    emulated_block *b = emulated_self()->of;
    bool fixed = address >= FIXED_FROM;
    size_t at = address - (fixed ? FIXED_FROM : SHARED_FROM), size = fixed ? b->fixed_bytes : b->shared_bytes;
    if (at > size || bytes > size - at)
        emulated_fail("%zu bytes at %zu of shared memory, which has %zu", bytes, at, size);
    return (fixed ? b->fixed : b->shared) + at;
}

/* Where this thread of the system has this library's thread-local variables: those of __shared__ memory, and nothing else. */
static thread_local char here_they_are;
static void find_fixed(emulated_block *b)
{
    here_they_are = 0; /* from now on they exist */
    dl_iterate_phdr(
        [](dl_phdr_info *info, size_t, void *found) {
            emulated_block *to = (emulated_block *)found;
            for (int i = 0; i < info->dlpi_phnum; i++)
                if (info->dlpi_phdr[i].p_type == PT_TLS && info->dlpi_tls_data && &here_they_are >= (char *)info->dlpi_tls_data &&
                    &here_they_are < (char *)info->dlpi_tls_data + info->dlpi_phdr[i].p_memsz) {
                    to->fixed = (char *)info->dlpi_tls_data;
                    to->fixed_bytes = info->dlpi_phdr[i].p_memsz;
                }
            return 0;
        },
        b);
}

static std::mutex lock;
static std::map<void *, int> &allowed()
{
    static std::map<void *, int> all;
    return all;
}
bool emulated_allow_shared(void *kernel, int bytes)
{
    std::lock_guard<std::mutex> held(lock);
    if (bytes < 0 || bytes > EMULATED_SHARED_MOST)
        return false;
    allowed()[kernel] = bytes;
    return true;
}
int emulated_shared_allowed(void *kernel)
{
    std::lock_guard<std::mutex> held(lock);
    auto found = allowed().find(kernel);
    return found == allowed().end() || found->second < EMULATED_SHARED_USUAL ? EMULATED_SHARED_USUAL : found->second;
}

/* --- Blocks --- */

static void end_thread(emulated_thread *t)
{
    emulated_block *b = t->of;
    emulated_warp &w = *t->warp;
    for (const emulated_store &s : t->stores)
        if (!s.read)
            emulated_fail("ends while a tensor copy still reads its shared memory");
    emulated_store_wait(0, true);
    t->ended = true;
    if (--w.living && w.arrived == w.living)
        emulated_fail("ends, while the lanes of its warp are at %s", w.kind);
    if (!w.living && !w.products.empty())
        emulated_fail("ends with products that nobody waited for");
    if (--b->left)
        go(b, t, next(b), true);
    if (!b->fetches.empty())
        emulated_fail("ends with tensor copies on their way");
    go(b, t, nullptr, true);
}

static void begin_thread()
{
    emulated_thread *t = emulated_self();
#ifdef SANITIZED
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
    if (t->of->left == t->of->count && !t->of->outside_bottom)
        t->of->outside_bottom = bottom, t->of->outside_size = size;
#endif
    t->of->run(t->of->argument);
    end_thread(t);
}

static emulated_thread *new_thread(emulated_block *b)
{
    char *all = (char *)mmap(nullptr, 2 * EMULATED_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED)
        perror("emulated GPU: no memory for a thread"), abort();
    char *base = (char *)(((uintptr_t)all + EMULATED_STACK - 1) & ~(EMULATED_STACK - 1));
    if (base > all)
        munmap(all, (size_t)(base - all));
    munmap(base + EMULATED_STACK, (size_t)(all + EMULATED_STACK - base));
    mprotect(base + HEAD / 2, HEAD / 2, PROT_NONE);
    emulated_thread *t = new (base) emulated_thread();
    t->of = b;
    return t;
}

static void run_block(emulated_block *b, dim3 grid, dim3 threads, uint64_t place, uint64_t dice)
{
    uint3 at = {(unsigned)(place % grid.x), (unsigned)(place / grid.x % grid.y), (unsigned)(place / grid.x / grid.y)};
    b->dice = dice;
    b->order = (int)b->draw(2);
    b->left = b->count = threads.x;
    b->looks = 0;
    b->outside_bottom = nullptr;
    b->warps.assign((b->count + 31) / 32, {});
    for (emulated_numbered &n : b->barriers)
        n = {};
    while (b->threads.size() < b->count)
        b->threads.push_back(new_thread(b));
    bool up = b->draw(2);
    for (unsigned i = 0; i < b->count; i++) {
        emulated_thread *t = b->threads[i];
        emulated_warp &w = b->warps[i / 32];
        *(emulated_place *)t = {{i, 0, 0}, at, threads, grid};
        t->stack = fresh_stack((char *)t, begin_thread);
        t->fake = nullptr;
        t->warp = &w;
        t->lane = (int)(i % 32);
        t->ended = false;
        t->waits = nullptr;
        t->copies.clear();
        t->stores.clear();
        t->copy_group = t->store_group = 0;
        w.lane[i % 32] = t;
        w.living++;
        b->ready.push_back(b->threads[up ? i : b->count - 1 - i]);
    }
    if (b->shared_bytes)
        memset(b->shared, 0xff, b->shared_bytes);
    memset(b->fixed, 0xff, b->fixed_bytes);
    emulated_thread *first = b->ready.back();
    b->ready.pop_back();
    go(b, nullptr, first);
}

/* Blocks that ran before, with their stacks. */
struct emulated_pool : std::vector<emulated_block *> {
    ~emulated_pool()
    {
        for (emulated_block *b : *this) {
            for (emulated_thread *t : b->threads) {
                t->~emulated_thread();
                munmap((void *)t, EMULATED_STACK);
            }
            delete b;
        }
    }
};
static emulated_pool &idle()
{
    static emulated_pool all;
    return all;
}

void emulated_run(const char *op, dim3 grid, dim3 threads, size_t shared, void (*thread)(void *), void *argument)
{
    static std::atomic<uint64_t> launches(0);
    uint64_t blocks = (uint64_t)grid.x * grid.y * grid.z, key = seed_of_runs() * 0x9E3779B97F4A7C15ull + ++launches * 0xD1B54A32D192ED03ull;
    uint64_t from = key / 7 % blocks, step = 1 + key % blocks; /* the order of blocks: every so many of them */
    while (std::gcd(step, blocks) != 1)
        step++;
    std::atomic<uint64_t> begun(0);
    auto work = [&] {
        emulated_block *b = nullptr;
        {
            std::lock_guard<std::mutex> held(lock);
            if (!idle().empty()) {
                b = idle().back();
                idle().pop_back();
            }
        }
        if (!b)
            b = new emulated_block();
        b->op = op;
        b->run = thread;
        b->argument = argument;
        b->shared_bytes = shared;
        b->shared = (char *)(shared ? aligned_alloc(1024, (shared + 1023) / 1024 * 1024) : nullptr);
        find_fixed(b);
        for (uint64_t i; (i = begun++) < blocks;) {
            uint64_t place = (from + i * step) % blocks;
            run_block(b, grid, threads, place, (key ^ (place + 1) * 0xA0761D6478BD642Full) | 1);
        }
        free(b->shared);
        std::lock_guard<std::mutex> held(lock);
        idle().push_back(b);
    };
    std::vector<std::thread> others;
    for (uint64_t i = 1; i < blocks && i < EMULATED_PROCESSORS; i++)
        others.emplace_back(work);
    work();
    for (std::thread &t : others)
        t.join();
}
