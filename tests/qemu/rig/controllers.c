/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The methods of QEMU's two interrupt controllers, as the machine calls them.
 *
 * QEMU's own methods run as well, so that numbers, bookkeeping and device tree stay QEMU's; only device interrupts go
 * to papr-intc alone (in shadow mode to both). A machine with both controllers calls most methods
 * of both, XICS first: what papr-intc has once is done for the first and undone for the last.
 *
 * Claims, vCPUs and the active controller are remembered until the machine is complete (machine.c).
 */
#include <stdlib.h>
#include <string.h>

#include "rig.h"
#include "shadow.h"

struct intc_methods xics_originals, xive_originals;

static const struct intc_methods *originals(enum kind kind)
{
    return kind == XICS ? &xics_originals : &xive_originals;
}

static const char *last_error(void)
{
    return papr_intc_last_error();
}

/* Is `kind` the one of the machine's controllers whose methods are called first? */
static bool is_first(enum kind kind)
{
    return kind == XICS || !(rig.kinds & XICS);
}

/* The active controller. */

static int activate(enum kind kind, void *intc, uint32_t servers, void **error)
{
    int rc = originals(kind)->activate(intc, servers, error);
    if (rc < 0)
        return rc;
    rig.active = kind;
    rig.servers = servers;
    shadow_note("activate %s %x", kind == XICS ? "xics" : "xive", servers);
    return rc;
}

static void deactivate(enum kind kind, void *intc)
{
    originals(kind)->deactivate(intc);
    shadow_note("deactivate %s", kind == XICS ? "xics" : "xive");
}

/* vCPUs. */

struct vcpu *vcpu_of(void *cpu)
{
    static __thread struct vcpu *mine; /* a thread asks for the same one nearly always */
    int server = qemu.spapr_get_vcpu_id(cpu);
    if (mine && mine->server == (uint32_t)server && rig.vcpus[server] == mine)
        return mine;
    if (server < 0 || server >= MAX_SERVERS)
        return NULL;
    return mine = rig.vcpus[server];
}

void vcpu_connect(struct vcpu *vcpu)
{
    papr_intc_vcpu *handle;
    if (papr_intc_connect_vcpu(rig.intc, vcpu->server, &handle) < 0)
        fail("vCPU %u: %s", vcpu->server, last_error());
    vcpu->handle = handle;
    line_sync(vcpu);
}

static int cpu_create(enum kind kind, void *intc, void *cpu, void **error)
{
    int rc = originals(kind)->cpu_create(intc, cpu, error);
    if (rc < 0)
        return rc;
    int server = qemu.spapr_get_vcpu_id(cpu);
    if (server < 0 || server >= MAX_SERVERS)
        fail("server number %d", server);
    struct vcpu *vcpu = rig.vcpus[server];
    if (!vcpu) {
        vcpu = calloc(1, sizeof *vcpu);
        if (!vcpu)
            fail("no memory");
        *vcpu = (struct vcpu){.cpu = cpu, .server = (uint32_t)server, .level = -1};
        vcpu->input = qemu.qdev_get_gpio_in(cpu, 0);
        line_watch(vcpu);
        rig.vcpus[server] = vcpu;
        if ((uint32_t)server > rig.last_server)
            rig.last_server = (uint32_t)server;
        if (rig.intc)
            vcpu_connect(vcpu);
    }
    rig.kinds |= kind;
    vcpu->held |= kind;
    return rc;
}

static void cpu_reset(enum kind kind, void *intc, void *cpu)
{
    originals(kind)->cpu_reset(intc, cpu);
    struct vcpu *vcpu = vcpu_of(cpu);
    if (!vcpu)
        return;
    shadow_note("cpu-reset %s %u", kind == XICS ? "xics" : "xive", vcpu->server);
    if (!vcpu->handle || !is_first(kind))
        return;
    if (papr_intc_vcpu_reset(vcpu->handle) < 0)
        fail("reset of vCPU %u: %s", vcpu->server, last_error());
    /* The reset of the CPU has cleared what its input was set to. */
    vcpu->level = -1;
    vcpu->theirs = 0;
    line_sync(vcpu);
}

static void cpu_destroy(enum kind kind, void *intc, void *cpu)
{
    struct vcpu *vcpu = vcpu_of(cpu);
    originals(kind)->cpu_destroy(intc, cpu);
    if (!vcpu)
        return;
    vcpu->held &= ~kind;
    if (vcpu->held)
        return;
    rig.vcpus[vcpu->server] = NULL;
    if (vcpu->handle && papr_intc_disconnect_vcpu(vcpu->handle) < 0)
        fail("unplugging vCPU %u: %s", vcpu->server, last_error());
    /* Not freed: another thread may look at its line at this moment. Unplugging is rare. */
}

/* Interrupt numbers. */

int claim_number(uint32_t lisn)
{
    uint32_t flags = 0;
    if (lisn < IRQ_BASE)
        return 0; /* the vCPUs' IPIs: papr-intc has them from the start */
    if (rig.lsi[lisn])
        flags |= PAPR_INTC_CLAIM_LSI;
    else if (lisn >= MSI_BASE)
        flags |= PAPR_INTC_CLAIM_MSI;
    return papr_intc_claim(rig.intc, lisn, 1, flags);
}

static int claim(enum kind kind, void *intc, int irq, bool lsi, void **error)
{
    int rc = originals(kind)->claim(intc, irq, lsi, error);
    shadow_note("claim %s %x %d -> %d", kind == XICS ? "xics" : "xive", irq, lsi, rc);
    rig.kinds |= kind;
    if (rc < 0 || irq < 0 || irq >= MAX_LISNS)
        return rc;
    unsigned before = rig.claimed[irq];
    rig.claimed[irq] |= kind;
    rig.lsi[irq] = lsi;
    if (before || !rig.intc || claim_number((uint32_t)irq) >= 0)
        return rc;
    say("claim of %x: %s", irq, last_error());
    rig.claimed[irq] = 0;
    originals(kind)->free(intc, irq);
    qemu.error_setg_internal(error, __FILE__, __LINE__, __func__, "papr-intc: %s", last_error());
    return -1;
}

static void free_number(enum kind kind, void *intc, int irq)
{
    originals(kind)->free(intc, irq);
    shadow_note("free %s %x", kind == XICS ? "xics" : "xive", irq);
    if (irq < 0 || irq >= MAX_LISNS || !(rig.claimed[irq] & kind))
        return;
    rig.claimed[irq] &= (uint8_t)~kind;
    if (rig.claimed[irq] == 0 && rig.intc && papr_intc_unclaim(rig.intc, (uint32_t)irq, 1) < 0)
        fail("release of %x: %s", irq, last_error());
}

/* Device interrupts: a level if the number is a level's, else a message, of which the falling half means nothing. */

static void set_irq(enum kind kind, void *intc, int irq, int level)
{
    if (irq < 0 || irq >= MAX_LISNS)
        return;
    bool lsi = rig.lsi[irq];
    if (rig.mode == SHADOW)
        shadow_irq_begins(kind, irq, level, lsi);
    if (rig.mode == SHADOW || !rig.intc)
        originals(kind)->set_irq(intc, irq, level);
    if (!rig.intc)
        return;
    int rc = 0;
    if (lsi)
        rc = papr_intc_set_irq(rig.intc, (uint32_t)irq, level != 0);
    else if (level)
        rc = papr_intc_trigger(rig.intc, (uint32_t)irq);
    if (rc < 0)
        say("interrupt %x is lost: %s", irq, last_error());
    if (lsi || level)
        rig.events++;
    if (rig.mode == SHADOW && (lsi || level))
        shadow_op_ends();
}

#define METHODS(kind, name)                                                                        \
    static int name##_activate(void *intc, uint32_t servers, void **error)                         \
    {                                                                                              \
        return activate(kind, intc, servers, error);                                               \
    }                                                                                              \
    static void name##_deactivate(void *intc)                                                      \
    {                                                                                              \
        deactivate(kind, intc);                                                                    \
    }                                                                                              \
    static int name##_cpu_create(void *intc, void *cpu, void **error)                              \
    {                                                                                              \
        return cpu_create(kind, intc, cpu, error);                                                 \
    }                                                                                              \
    static void name##_cpu_reset(void *intc, void *cpu)                                            \
    {                                                                                              \
        cpu_reset(kind, intc, cpu);                                                                \
    }                                                                                              \
    static void name##_cpu_destroy(void *intc, void *cpu)                                          \
    {                                                                                              \
        cpu_destroy(kind, intc, cpu);                                                              \
    }                                                                                              \
    static int name##_claim(void *intc, int irq, bool lsi, void **error)                           \
    {                                                                                              \
        return claim(kind, intc, irq, lsi, error);                                                 \
    }                                                                                              \
    static void name##_free(void *intc, int irq)                                                   \
    {                                                                                              \
        free_number(kind, intc, irq);                                                              \
    }                                                                                              \
    static void name##_set_irq(void *intc, int irq, int level)                                     \
    {                                                                                              \
        set_irq(kind, intc, irq, level);                                                           \
    }                                                                                              \
    const struct intc_methods name##_hooks = {                                                     \
        .activate = name##_activate,                                                               \
        .deactivate = name##_deactivate,                                                           \
        .cpu_create = name##_cpu_create,                                                           \
        .cpu_reset = name##_cpu_reset,                                                             \
        .cpu_destroy = name##_cpu_destroy,                                                         \
        .claim = name##_claim,                                                                     \
        .free = name##_free,                                                                       \
        .set_irq = name##_set_irq,                                                                 \
    }

METHODS(XICS, xics);
METHODS(XIVE, xive);
