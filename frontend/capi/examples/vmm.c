/* SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
 *
 * The smallest VMM: one vCPU whose guest chooses XIVE (or XICS), routes a source to itself and takes interrupts
 * from it, before and after its daemon is killed.
 *
 *     cc vmm.c $(pkg-config --cflags --libs papr-intc) -o vmm && ./vmm path/of/papr-intc [xics]
 */
#define _GNU_SOURCE /* memfd_create */
#include <inttypes.h>
#include <papr_intc.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { RAM = 16 << 20, QUEUE = 0x100000, QUEUE_ORDER = 12, LISN = 0x1300, PRIORITY = 5 };
enum { H_EOI = 0x64, H_CPPR = 0x68, H_XIRR = 0x74, H_INT_SET_SOURCE_CONFIG = 0x3ac, H_INT_SET_QUEUE_CONFIG = 0x3b8 };

static unsigned char *ram; /* the guest's, big-endian */
static unsigned taken;     /* entries of the event queue */
static sem_t back;         /* daemons that serve again */

/* Ends the program if a call failed. */
static int must(int result, const char *what)
{
    if (result < 0) {
        fprintf(stderr, "vmm: %s: %s (%s)\n", what, papr_intc_last_error(), strerror(-result));
        exit(1);
    }
    return result;
}

/* This VMM has one thread, which looks at the line by itself. */
static void kick(void *opaque, uint32_t server)
{
    (void)opaque, (void)server;
}

static void changed(void *opaque, const papr_intc_change *change)
{
    (void)opaque;
    if (change->what == PAPR_INTC_BACK)
        sem_post(&back);
}

/* A real VMM marks the page dirty as well. */
static int write_u32(void *opaque, uint64_t gpa, uint32_t value)
{
    (void)opaque;
    if (gpa > RAM - 4)
        return -1;
    uint32_t big = __builtin_bswap32(value);
    __atomic_store_n((uint32_t *)(ram + gpa), __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__ ? value : big, __ATOMIC_RELAXED);
    return 0;
}

static int64_t hcall(papr_intc_vcpu *vcpu, uint64_t opcode, uint64_t args[9])
{
    int64_t ret = 0;
    if (must(papr_intc_hcall(vcpu, opcode, args, &ret), "an hcall") == 0)
        must(-1, "an hcall that nobody knows");
    return ret;
}

/* What a guest does at boot: its choice, and the route from the source to the vCPU. */
static void boot(papr_intc_vcpu *vcpu, int xive)
{
    uint8_t ov5[26] = {24}; /* bytes - 1; byte 23 is the choice */
    ov5[23] = xive ? 0x40 : 0;
    papr_intc_cas_reply reply = {.size = sizeof(reply)};
    must(papr_intc_cas(vcpu, ov5, sizeof(ov5), &reply), "CAS");
    printf("CAS: %s, device tree of %zu bytes\n", reply.mode == PAPR_INTC_MODE_XIVE ? "XIVE" : "XICS", reply.fdt.size);
    papr_intc_buffer_free(&reply.fdt);
    if (xive) {
        uint64_t queue[9] = {1 /* notify always */, 0, PRIORITY, QUEUE, QUEUE_ORDER};
        uint64_t source[9] = {2 /* with a number for the queue */, LISN, 0, PRIORITY, LISN};
        uint64_t old;
        if (hcall(vcpu, H_INT_SET_QUEUE_CONFIG, queue) || hcall(vcpu, H_INT_SET_SOURCE_CONFIG, source))
            must(-1, "the route");
        must(papr_intc_tima_store(vcpu, 0x20011, 1, 0xff), "the priority");
        must(papr_intc_esb_load(vcpu, ((uint64_t)LISN << 17) + 0x10c00, 8, &old), "unmasking");
    } else {
        uint32_t route[3] = {LISN, 0, PRIORITY}, status[1] = {0};
        must(papr_intc_rtas(vcpu, PAPR_INTC_RTAS_SET_XIVE, route, 3, status, 1), "ibm,set-xive");
        uint64_t lowest[9] = {0xff};
        hcall(vcpu, H_CPPR, lowest);
    }
}

/* The line is up: what a guest does then. The source that it finds. */
static uint32_t interrupt(papr_intc_vcpu *vcpu, int xive)
{
    uint64_t value = 0, args[9] = {0};
    if (!xive) {
        hcall(vcpu, H_XIRR, args);
        uint32_t lisn = args[0] & 0xffffff;
        hcall(vcpu, H_EOI, args);
        return lisn;
    }
    must(papr_intc_tima_load(vcpu, 0x20810, 2, &value), "the acknowledge");
    const unsigned char *e = ram + QUEUE + 4 * (taken++ % (1 << (QUEUE_ORDER - 2)));
    uint32_t lisn = (uint32_t)(e[0] & 0x7f) << 24 | (uint32_t)e[1] << 16 | (uint32_t)e[2] << 8 | e[3];
    must(papr_intc_esb_load(vcpu, ((uint64_t)lisn << 17) + 0x10c00, 8, &value), "the end of the interrupt");
    must(papr_intc_tima_store(vcpu, 0x20011, 1, 0xff), "the priority");
    return lisn;
}

/* Sends count interrupts and takes each. How many came. */
static int exchange(papr_intc *intc, papr_intc_vcpu *vcpu, int xive, int count)
{
    int came = 0;
    for (int i = 0; i < count; i++) {
        must(papr_intc_trigger(intc, LISN), "a trigger");
        if (must(papr_intc_pending(vcpu), "the line") && interrupt(vcpu, xive) == LISN)
            came++;
    }
    return came;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: vmm PATH-OF-PAPR-INTC [xics]\n");
        return 1;
    }
    int xive = argc < 3 || strcmp(argv[2], "xics") != 0;
    int fd = memfd_create("guest-ram", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, RAM) < 0 ||
        (ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) {
        perror("vmm: guest RAM");
        return 1;
    }
    papr_intc_region region = {.gpa = 0, .size = RAM, .fd = fd, .host = ram};
    papr_intc_machine machine = {.size = sizeof(machine), .ic_mode = PAPR_INTC_IC_DUAL, .servers = 1};
    papr_intc_options options = {
        .size = sizeof(options), .machine = &machine, .regions = &region, .region_count = 1, .daemon = argv[1]};
    papr_intc_callbacks callbacks = {
        .size = sizeof(callbacks), .kick = kick, .write_u32 = write_u32, .changed = changed};
    papr_intc *intc;
    papr_intc_vcpu *vcpu;
    sem_init(&back, 0, 0);
    must(papr_intc_log(STDERR_FILENO, "error"), "logging");
    must(papr_intc_start(&options, &callbacks, &intc), "starting");
    must(papr_intc_connect_vcpu(intc, 0, &vcpu), "connecting the vCPU");
    must(papr_intc_claim(intc, LISN, 1, PAPR_INTC_CLAIM_MSI), "claiming the source");
    boot(vcpu, xive);
    printf("%d of 1000 interrupts\n", exchange(intc, vcpu, xive, 1000));

    kill(must(papr_intc_daemon_pid(intc), "the daemon's pid"), SIGKILL);
    printf("%d of 1000 interrupts after kill -9\n", exchange(intc, vcpu, xive, 1000));
    /* This one needs a daemon, and waits for the next. */
    must(papr_intc_claim(intc, LISN + 1, 1, PAPR_INTC_CLAIM_MSI), "claiming another source");
    sem_wait(&back);
    printf("%d of 1000 interrupts after %" PRIu64 " restart\n", exchange(intc, vcpu, xive, 1000), papr_intc_restarts(intc));
    must(papr_intc_disconnect_vcpu(vcpu), "disconnecting the vCPU");
    papr_intc_free(intc);
    return 0;
}
