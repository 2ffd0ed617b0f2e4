/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
 *
 * What the programs beside it share: a machine of two vCPUs with its RAM, what a guest does with it, and checks.
 * Each program runs the tests that it is given, or all, and prints "ok NAME" for each.
 */
#ifndef CHECK_H
#define CHECK_H

#define _GNU_SOURCE
#include <errno.h>
#include <papr_intc.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RAM = 16 << 20, QUEUE = 0x100000, QUEUE_ORDER = 12, LISN = 0x1300, PRIORITY = 5 };
enum {
    H_EOI = 0x64,
    H_CPPR = 0x68,
    H_XIRR = 0x74,
    H_XIRR_X = 0x2fc,
    H_INT_SET_SOURCE_CONFIG = 0x3ac,
    H_INT_SET_QUEUE_CONFIG = 0x3b8,
};

static const char *test_name;
static const char *daemon_path;

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "%s: %s:%d: %s (last error: %s)\n", test_name, __FILE__, __LINE__, #what,                  \
                    papr_intc_last_error());                                                                           \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* A call that succeeds. */
#define MUST(call) CHECK((call) >= 0)

/* A call that fails with this errno, and words that contain these. */
#define FAILS(call, errno_, words)                                                                                     \
    do {                                                                                                               \
        CHECK((call) == -(errno_));                                                                                    \
        CHECK(strstr(papr_intc_last_error(), words));                                                                  \
    } while (0)

struct bench {
    papr_intc *intc;
    papr_intc_vcpu *vcpu[2];
    unsigned char *ram;
    int ram_fd;
    unsigned taken; /* entries of vCPU 0's queue */
    atomic_uint kicks[2], writes, lost, back;
    /* Called out of callbacks, if set. */
    void (*at_kick)(struct bench *);
    void (*at_write)(struct bench *);
    void (*at_change)(struct bench *, const papr_intc_change *);
};

static void bench_kick(void *opaque, uint32_t server)
{
    struct bench *b = opaque;
    b->kicks[server & 1]++;
    if (b->at_kick)
        b->at_kick(b);
}

static int bench_write(void *opaque, uint64_t gpa, uint32_t value)
{
    struct bench *b = opaque;
    if (gpa > RAM - 4)
        return -1;
    b->writes++;
    if (b->at_write)
        b->at_write(b);
    uint32_t big = __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? value : __builtin_bswap32(value);
    __atomic_store_n((uint32_t *)(b->ram + gpa), big, __ATOMIC_RELAXED);
    return 0;
}

static void bench_changed(void *opaque, const papr_intc_change *change)
{
    struct bench *b = opaque;
    CHECK(change->size == sizeof(*change) && change->text);
    b->lost += change->what == PAPR_INTC_LOST;
    if (b->at_change)
        b->at_change(b, change);
    b->back += change->what == PAPR_INTC_BACK;
}

/* What a test may change before the start. */
struct plan {
    papr_intc_machine machine;
    papr_intc_region region;
    papr_intc_options options;
    papr_intc_callbacks callbacks;
};

static inline void plan(struct plan *p, struct bench *b, uint32_t ic_mode, uint32_t executor)
{
    static const char *const quiet[] = {"--log-level", "error", NULL};
    memset(p, 0, sizeof(*p));
    if (!b->ram) {
        b->ram_fd = memfd_create("guest-ram", MFD_CLOEXEC);
        CHECK(b->ram_fd >= 0 && ftruncate(b->ram_fd, RAM) == 0);
        b->ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED, b->ram_fd, 0);
        CHECK(b->ram != MAP_FAILED);
    }
    p->machine.size = sizeof(p->machine);
    p->machine.ic_mode = ic_mode;
    p->machine.servers = 2;
    p->region.size = RAM;
    p->region.fd = b->ram_fd;
    p->region.host = b->ram;
    p->options.size = sizeof(p->options);
    p->options.executor = executor;
    p->options.machine = &p->machine;
    p->options.regions = &p->region;
    p->options.region_count = 1;
    p->options.daemon = daemon_path;
    p->options.daemon_args = quiet;
    p->callbacks.size = sizeof(p->callbacks);
    p->callbacks.opaque = b;
    p->callbacks.kick = bench_kick;
    p->callbacks.write_u32 = bench_write;
    p->callbacks.changed = bench_changed;
}

static inline void start_planned(struct bench *b, const struct plan *p)
{
    MUST(papr_intc_start(&p->options, &p->callbacks, &b->intc));
    MUST(papr_intc_connect_vcpu(b->intc, 0, &b->vcpu[0]));
    MUST(papr_intc_connect_vcpu(b->intc, 1, &b->vcpu[1]));
}

static inline void start(struct bench *b, uint32_t ic_mode, uint32_t executor)
{
    struct plan p;
    plan(&p, b, ic_mode, executor);
    start_planned(b, &p);
}

static inline void stop(struct bench *b)
{
    MUST(papr_intc_shutdown(b->intc)); /* no callback is called by the front-end's threads any more */
    for (int i = 0; i < 2; i++)
        FAILS(papr_intc_disconnect_vcpu(b->vcpu[i]), ESHUTDOWN, "shut down");
    papr_intc_free(b->intc);
    munmap(b->ram, RAM);
    close(b->ram_fd);
    memset(b, 0, sizeof(*b));
}

static inline int64_t hcall(struct bench *b, uint64_t opcode, uint64_t a, uint64_t b2, uint64_t c, uint64_t d, uint64_t e)
{
    uint64_t args[9] = {a, b2, c, d, e};
    int64_t ret = -99;
    CHECK(papr_intc_hcall(b->vcpu[0], opcode, args, &ret) == 1);
    return ret;
}

/* The guest chooses XIVE and opens vCPU 0 with a queue. */
static inline void choose_xive(struct bench *b)
{
    uint8_t ov5[26] = {24};
    ov5[23] = 0x40;
    papr_intc_cas_reply reply = {.size = sizeof(reply)};
    MUST(papr_intc_cas(b->vcpu[0], ov5, sizeof(ov5), &reply));
    CHECK(reply.ret == 0 && reply.mode == PAPR_INTC_MODE_XIVE && reply.byte_23 == 0x40);
    CHECK(reply.fdt.size > 40 && !memcmp(reply.fdt.data, "\xd0\x0d\xfe\xed", 4));
    papr_intc_buffer_free(&reply.fdt);
    CHECK(!reply.fdt.data);
    CHECK(hcall(b, H_INT_SET_QUEUE_CONFIG, 1, 0, PRIORITY, QUEUE, QUEUE_ORDER) == 0);
    MUST(papr_intc_tima_store(b->vcpu[0], 0x20011, 1, 0xff));
}

/* A load in the management page of a source of XIVE: 0 ends an interrupt, 0xc00 unmasks. */
static inline void manage(struct bench *b, uint32_t lisn, uint64_t offset)
{
    uint64_t old;
    MUST(papr_intc_esb_load(b->vcpu[0], ((uint64_t)lisn << 17) + 0x10000 + offset, 8, &old));
}

/* A source of XIVE that goes to vCPU 0. */
static inline void route(struct bench *b, uint32_t lisn, uint32_t flags)
{
    MUST(papr_intc_claim(b->intc, lisn, 1, flags));
    CHECK(hcall(b, H_INT_SET_SOURCE_CONFIG, 2, lisn, 0, PRIORITY, lisn) == 0);
    manage(b, lisn, 0xc00);
}

/* Waits until the line of vCPU 0 has this level. */
static inline void await_line(struct bench *b, int level)
{
    while (papr_intc_pending(b->vcpu[0]) != level)
        sched_yield();
}

/* vCPU 0 takes one interrupt of XIVE: the source. */
static inline uint32_t take(struct bench *b)
{
    uint64_t ack;
    await_line(b, 1);
    MUST(papr_intc_tima_load(b->vcpu[0], 0x20810, 2, &ack));
    const unsigned char *e = b->ram + QUEUE + 4 * (b->taken++ % (1 << (QUEUE_ORDER - 2)));
    uint32_t lisn = (uint32_t)(e[0] & 0x7f) << 24 | (uint32_t)e[1] << 16 | (uint32_t)e[2] << 8 | e[3];
    manage(b, lisn, 0);
    MUST(papr_intc_tima_store(b->vcpu[0], 0x20011, 1, 0xff));
    return lisn;
}

static inline void await(atomic_uint *count, unsigned least)
{
    while (*count < least)
        sched_yield();
}

static inline void kill_daemon(struct bench *b)
{
    unsigned lost = b->lost;
    int pid = papr_intc_daemon_pid(b->intc);
    CHECK(pid > 0 && kill(pid, SIGKILL) == 0);
    await(&b->lost, lost + 1);
}

struct test {
    const char *name;
    void (*run)(void);
};

/* main: PROGRAM DAEMON [TEST]. */
static inline int run_tests(int argc, char **argv, const struct test *tests, size_t count)
{
    CHECK(argc >= 2);
    daemon_path = argv[1];
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < count; i++) {
        if (argc > 2 && strcmp(argv[2], tests[i].name))
            continue;
        test_name = tests[i].name;
        alarm(60); /* a test that hangs ends here, by SIGALRM */
        tests[i].run();
        printf("ok %s\n", test_name);
    }
    return 0;
}

#define TEST(f) {#f, f}
#define MAIN(...)                                                                                                      \
    int main(int argc, char **argv)                                                                                    \
    {                                                                                                                  \
        static const struct test tests[] = {__VA_ARGS__};                                                              \
        test_name = "main";                                                                                            \
        return run_tests(argc, argv, tests, sizeof(tests) / sizeof(tests[0]));                                         \
    }

#endif
