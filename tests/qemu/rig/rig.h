/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the files of the rig share: what is known of the machine, and what each file offers.
 *
 * The rig takes the interrupt controllers out of a stock QEMU and serves the guest by papr-intc:
 *
 *   load.c         gets in, checks, installs the hooks
 *   classes.c      finds the methods of QEMU's classes that are replaced
 *   machine.c      the machine: its controller is started, reset, ended
 *   controllers.c  device interrupts, claims, vCPUs that come and go, the active controller
 *   hypercalls.c   hypercalls; rtas.c and cas.c two of them
 *   windows.c      loads and stores in the ESB and TIMA windows
 *   line.c         the external-interrupt inputs of the vCPUs
 *   registers.c    the registers of a vCPU; memory.c the guest's RAM
 *   control.c      a socket for whoever runs the test
 *   shadow.c       shadow mode: QEMU serves, papr-intc follows, both are compared; record.c writes it down
 *
 * Everything runs under QEMU's big lock, except where line.c says otherwise.
 */
#ifndef RIG_H
#define RIG_H

#include <papr_intc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "symbols.h"

enum mode { MAPPED, REMOTE, SHADOW };

/* QEMU's two controllers; also bits of a set. */
enum kind { XICS = 1, XIVE = 2 };

#define MAX_SERVERS 4096
#define MAX_LISNS 8192
#define IRQ_BASE 0x1000 /* XICS has no numbers below; XIVE has the vCPUs' IPIs there */
#define MSI_BASE 0x1300

struct vcpu {
    void *cpu;                /* QEMU's object */
    void *input;              /* its external-interrupt input */
    papr_intc_vcpu *handle;   /* NULL before the controller has started */
    uint32_t server;
    unsigned held;            /* set of `kind`: who of QEMU's controllers knows it */
    int level;                /* what `input` was last set to; -1: not known */
    int theirs;               /* shadow mode: the level that QEMU's controller has set */
};

struct rig {
    enum mode mode;
    papr_intc *intc;          /* NULL until the machine is complete */
    unsigned kinds;           /* set of `kind`: the machine's controllers */
    uint32_t servers;         /* server numbers are below */
    enum kind active;
    uint8_t claimed[MAX_LISNS]; /* set of `kind` */
    bool lsi[MAX_LISNS];
    struct vcpu *vcpus[MAX_SERVERS];
    uint32_t last_server;     /* the highest of a vCPU there was */
    uint64_t esb_base, esb_size, tima_base, tima_size;
    _Atomic uint64_t hcalls, loads, stores, events, queue_writes, differences;
};

extern struct rig rig;

/* load.c: one line on stderr, beginning with the name of the rig. `refuse` then ends QEMU: this
 * is not the QEMU the rig knows, or not a machine it can serve. `fail` ends it because what was promised
 * cannot be kept. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void refuse(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* classes.c */
void classes_install(void);
bool in_text(uintptr_t address);

/* The signatures of the methods, and the hooks with QEMU's originals (controllers.c, hypercalls.c). */
struct intc_methods {
    int (*activate)(void *intc, uint32_t servers, void **error);
    void (*deactivate)(void *intc);
    int (*cpu_create)(void *intc, void *cpu, void **error);
    void (*cpu_reset)(void *intc, void *cpu);
    void (*cpu_destroy)(void *intc, void *cpu);
    int (*claim)(void *intc, int irq, bool lsi, void **error);
    void (*free)(void *intc, int irq);
    void (*set_irq)(void *intc, int irq, int level);
};
extern const struct intc_methods xics_hooks, xive_hooks;
extern struct intc_methods xics_originals, xive_originals;

void hypercall_hook(void *vhyp, void *cpu);
extern void (*hypercall_original)(void *vhyp, void *cpu);

/* controllers.c */
struct vcpu *vcpu_of(void *cpu);
void vcpu_connect(struct vcpu *vcpu);
int claim_number(uint32_t lisn);

/* machine.c: before there is any device, so that its reset is the first; and when all is there. */
void machine_begins(void);
void machine_complete(void);
const char *log_level(void);

/* registers.c: r0 to r31 of a vCPU; may be written. And whether it runs in problem state. */
uint64_t *registers_of(void *cpu);
bool registers_problem_state(void *cpu);

/* rtas.c: does the call if it is about interrupts; `gpr` as at H_RTAS. */
void rtas_install(void);
bool rtas_serve(struct vcpu *vcpu, uint64_t *gpr, void *vhyp);

/* cas.c: passes H_CAS to QEMU, then tells papr-intc what was negotiated. */
void cas_pass(struct vcpu *vcpu, uint64_t *gpr, void *vhyp);

/* windows.c */
void windows_install(void);

/* line.c */
void line_install(void);
void line_kick(void *opaque, uint32_t server);
void line_sync(struct vcpu *vcpu);
void line_sync_all(void);
void line_watch(struct vcpu *vcpu);

/* The big lock is given up around a wait for the daemon (line.c). */
void lock_drop(void);
void lock_take(void);

/* memory.c */
int memory_region(papr_intc_region *region);
bool memory_store_u32(uint64_t gpa, uint32_t value);
uint32_t memory_load_u32(uint64_t gpa);
bool memory_load(uint64_t gpa, void *into, uint64_t length);

/* control.c */
void control_install(void);

#endif
