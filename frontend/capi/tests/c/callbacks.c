/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
 *
 * What callbacks may do: call back, on whatever thread they are called, while others call too.
 */
#include "check.h"

static struct bench bench;
static pthread_mutex_t big_lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local int inside;
static atomic_uint calls;

/* Functions that need no daemon, and that a lock held around the callback would stop. */
static void call_everything_local(struct bench *b)
{
    uint64_t value;
    if (inside || !b->vcpu[0])
        return;
    inside = 1;
    papr_intc_pending(b->vcpu[0]);
    papr_intc_daemon_pid(b->intc);
    papr_intc_restarts(b->intc);
    papr_intc_executor(b->intc);
    papr_intc_adopted(b->intc);
    papr_intc_trigger(b->intc, LISN + 1);
    papr_intc_set_irq(b->intc, LISN + 2, 1);
    papr_intc_set_irq(b->intc, LISN + 2, 0);
    papr_intc_esb_load(b->vcpu[1], ((uint64_t)LISN << 17) + 0x10800, 8, &value);
    papr_intc_tima_load(b->vcpu[1], 0x20010, 8, &value);
    inside = 0;
    calls++;
}

/* Done; refused on the thread that brings daemons back; or over. Never something else, never for ever. */
static int ends(int result)
{
    CHECK(result == 0 || result == -EDEADLK || result == -ESHUTDOWN);
    return result;
}

/* And those that configure. */
static void call_everything(struct bench *b)
{
    papr_intc_buffer buffer;
    uint32_t first;
    if (inside || !b->vcpu[1])
        return;
    call_everything_local(b);
    inside = 1;
    if (!ends(papr_intc_claim_any(b->intc, 1, 1, 0x1800, 0x1900, PAPR_INTC_CLAIM_MSI, &first)))
        ends(papr_intc_unclaim(b->intc, first, 1));
    if (!ends(papr_intc_query(b->intc, PAPR_INTC_QUERY_STATUS, 0, &buffer)))
        papr_intc_buffer_free(&buffer);
    if (!ends(papr_intc_quiesce(b->intc, 5000)))
        ends(papr_intc_resume(b->intc, 0));
    ends(papr_intc_dirty_log_start(b->intc));
    ends(papr_intc_dirty_log_stop(b->intc));
    ends(papr_intc_sync(b->intc, PAPR_INTC_ALL_SOURCES));
    inside = 0;
    calls++;
}

static void at_change(struct bench *b, const papr_intc_change *change)
{
    (void)change;
    papr_intc_upgraded upgraded = {.size = sizeof(upgraded)};
    if (!b->vcpu[1])
        return;
    call_everything(b);
    FAILS(papr_intc_upgrade(b->intc, daemon_path, NULL, &upgraded), EDEADLK, "brings daemons back");
}

static void prepare(struct bench *b, uint32_t executor)
{
    start(b, PAPR_INTC_IC_DUAL, executor);
    choose_xive(b);
    route(b, LISN, PAPR_INTC_CLAIM_MSI);
    MUST(papr_intc_claim(b->intc, LISN + 1, 1, PAPR_INTC_CLAIM_MSI));
    MUST(papr_intc_claim(b->intc, LISN + 2, 1, PAPR_INTC_CLAIM_LSI));
}

/* Changes the executor; not while another thread, in a callback, has the machine quiesced. */
static void turn(struct bench *b, int (*how)(const papr_intc *))
{
    int result;
    while ((result = how(b->intc)) == -EINVAL)
        CHECK(strstr(papr_intc_last_error(), "only the last resume"));
    MUST(result);
}

static void callbacks_call_back(uint32_t executor)
{
    prepare(&bench, executor);
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    MUST(papr_intc_add_irqfd(bench.intc, LISN, fd));
    bench.at_kick = call_everything;
    bench.at_change = at_change;
    unsigned before = calls;
    for (int i = 0; i < 20; i++) {
        CHECK(eventfd_write(fd, 1) == 0); /* on the io thread */
        CHECK(take(&bench) == LISN);
        MUST(papr_intc_trigger(bench.intc, LISN)); /* on this one */
        CHECK(take(&bench) == LISN);
        if (i % 5 == 4) { /* on the watch thread */
            unsigned back = bench.back;
            kill_daemon(&bench);
            await(&bench.back, back + 1);
        }
    }
    turn(&bench, papr_intc_demote);
    turn(&bench, papr_intc_promote);
    CHECK(calls >= before + 20);
    close(fd);
    stop(&bench);
}

static void callbacks_call_back_in_mapped_mode(void)
{
    callbacks_call_back(PAPR_INTC_MAPPED);
}

static void callbacks_call_back_in_remote_mode(void)
{
    callbacks_call_back(PAPR_INTC_REMOTE);
}

static void is_refused_inside_write(struct bench *b)
{
    FAILS(papr_intc_trigger(b->intc, LISN), EDEADLK, "write_u32");
    FAILS(papr_intc_set_irq(b->intc, LISN, 1), EDEADLK, "write_u32");
    FAILS(papr_intc_claim(b->intc, LISN, 1, 0), EDEADLK, "write_u32");
    CHECK(papr_intc_daemon_pid(b->intc) > 0);
}

static void write_u32_cannot_call_back_and_the_thread_goes_on(void)
{
    prepare(&bench, PAPR_INTC_MAPPED);
    bench.at_write = is_refused_inside_write;
    unsigned before = bench.writes;
    MUST(papr_intc_trigger(bench.intc, LISN));
    CHECK(bench.writes == before + 1);
    CHECK(take(&bench) == LISN);
    stop(&bench);
}

static void remove_own_irqfd(struct bench *b)
{
    if (inside || !papr_intc_pending(b->vcpu[0])) /* some other kick */
        return;
    inside = 1;
    calls += papr_intc_remove_irqfd(b->intc, LISN, 0) == 0;
    inside = 0;
}

static void an_irqfd_can_be_removed_by_the_kick_that_it_caused(void)
{
    prepare(&bench, PAPR_INTC_MAPPED);
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    MUST(papr_intc_add_irqfd(bench.intc, LISN, fd));
    unsigned before = calls;
    bench.at_kick = remove_own_irqfd;
    CHECK(eventfd_write(fd, 1) == 0);
    await(&calls, before + 1);
    CHECK(take(&bench) == LISN);
    FAILS(papr_intc_remove_irqfd(bench.intc, LISN, 0), EINVAL, "no irqfd");
    close(fd);
    stop(&bench);
}

/* A VMM with one big lock: its main loop reads the kicks' eventfd, every call is made under the lock. */
static atomic_int line, over;
static int kick_fd;

static void set_line(void *opaque, int level)
{
    struct bench *b = opaque;
    line = level;
    papr_intc_pending(b->vcpu[0]);
    papr_intc_sync_line(b->vcpu[0], set_line, b); /* nested: the outer one goes on */
}

static void *main_loop(void *opaque)
{
    struct bench *b = opaque;
    struct pollfd poll_fd = {.fd = kick_fd, .events = POLLIN};
    eventfd_t count;
    while (!over) {
        CHECK(poll(&poll_fd, 1, 10) >= 0);
        if (eventfd_read(kick_fd, &count))
            continue;
        pthread_mutex_lock(&big_lock);
        MUST(papr_intc_sync_line(b->vcpu[0], set_line, b));
        pthread_mutex_unlock(&big_lock);
    }
    return NULL;
}

static void *devices(void *opaque)
{
    struct bench *b = opaque;
    for (int i = 0; i < 500; i++) {
        pthread_mutex_lock(&big_lock);
        MUST(papr_intc_trigger(b->intc, LISN));
        pthread_mutex_unlock(&big_lock);
        while (b->writes <= (unsigned)i)
            sched_yield();
        while (b->taken <= (unsigned)i && !over)
            sched_yield();
    }
    return NULL;
}

static void a_vmm_with_one_big_lock_has_kicks_in_its_main_loop(void)
{
    struct plan p;
    pthread_t loop, device;
    plan(&p, &bench, PAPR_INTC_IC_DUAL, PAPR_INTC_MAPPED);
    p.callbacks.kick = NULL;
    start_planned(&bench, &p);
    choose_xive(&bench);
    route(&bench, LISN, PAPR_INTC_CLAIM_MSI);
    kick_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    over = 0;
    MUST(papr_intc_vcpu_kick_fd(bench.vcpu[0], kick_fd));
    CHECK(!pthread_create(&loop, NULL, main_loop, &bench) && !pthread_create(&device, NULL, devices, &bench));
    for (int i = 0; i < 500; i++) { /* the vCPU waits for its line only, not for papr_intc_pending */
        while (!line)
            sched_yield();
        pthread_mutex_lock(&big_lock);
        CHECK(take(&bench) == LISN);
        MUST(papr_intc_sync_line(bench.vcpu[0], set_line, &bench));
        pthread_mutex_unlock(&big_lock);
    }
    CHECK(!pthread_join(device, NULL));
    over = 1;
    CHECK(!pthread_join(loop, NULL));
    CHECK(line == 0 && papr_intc_pending(bench.vcpu[0]) == 0);
    MUST(papr_intc_vcpu_kick_fd(bench.vcpu[0], -1));
    close(kick_fd);
    stop(&bench);
}

static atomic_int threads, began;
static _Thread_local int own;

static void on_thread(void *opaque, int begins)
{
    (void)opaque;
    CHECK(begins ? !own : own);
    own = begins;
    threads += begins ? 1 : -1;
    began += begins;
}

static void change_on_own(struct bench *b, const papr_intc_change *change)
{
    (void)b, (void)change;
    CHECK(own);
}

static void the_front_ends_threads_are_announced_before_they_call_and_when_they_end(void)
{
    struct plan p;
    plan(&p, &bench, PAPR_INTC_IC_DUAL, PAPR_INTC_MAPPED);
    p.callbacks.thread = on_thread;
    start_planned(&bench, &p);
    bench.at_change = change_on_own;
    kill_daemon(&bench);
    await(&bench.back, 1);
    CHECK(threads == 2 && began == 2);
    stop(&bench);
    CHECK(threads == 0);
}

static uint64_t time_base(void *opaque, uint32_t server)
{
    (void)opaque;
    return 0x123456789abc0000 + server;
}

static void the_time_base_is_the_vmms(void)
{
    struct plan p;
    uint64_t args[9] = {0};
    int64_t ret;
    plan(&p, &bench, PAPR_INTC_IC_XICS, PAPR_INTC_MAPPED);
    p.callbacks.time_base = time_base;
    start_planned(&bench, &p);
    CHECK(papr_intc_hcall(bench.vcpu[1], H_XIRR_X, args, &ret) == 1 && ret == 0);
    CHECK(args[1] == 0x123456789abc0001);
    stop(&bench);
}

MAIN(TEST(callbacks_call_back_in_mapped_mode), TEST(callbacks_call_back_in_remote_mode),
     TEST(write_u32_cannot_call_back_and_the_thread_goes_on), TEST(an_irqfd_can_be_removed_by_the_kick_that_it_caused),
     TEST(a_vmm_with_one_big_lock_has_kicks_in_its_main_loop),
     TEST(the_front_ends_threads_are_announced_before_they_call_and_when_they_end), TEST(the_time_base_is_the_vmms))
