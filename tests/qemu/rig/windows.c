/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The ESB and TIMA windows: regions of our own over QEMU's, at the addresses that QEMU's regions report.
 *
 * They are always there, also while XICS is active: papr-intc knows what an access means then. Accesses come on
 * vCPU threads with the big lock held. In shadow mode each goes to QEMU's region first.
 */
#include <stdlib.h>

#include "rig.h"
#include "shadow.h"

#define REGION_BYTES 8192 /* more than any QEMU's MemoryRegion */
#define ABOVE 1000
#define ALL_ONES(size) (UINT64_MAX >> (64 - 8 * (size)))

/* An access as memory_region_dispatch_* describes it: the size's logarithm and "big-endian" (MemOp). */
#define BIG_ENDIAN_ACCESS(size) (__builtin_ctz(size) | 0x10)

/* QEMU's table of functions of a region (MemoryRegionOps). */
struct region_ops {
    uint64_t (*read)(void *opaque, uint64_t offset, unsigned size);
    void (*write)(void *opaque, uint64_t offset, uint64_t value, unsigned size);
    void *with_attributes[2];
    int endianness; /* 1: big */
    struct {
        unsigned min, max;
        bool unaligned;
        void *accepts;
    } valid;
    struct {
        unsigned min, max;
        bool unaligned;
    } implemented;
};

struct window {
    const char *name;
    int (*load)(const papr_intc_vcpu *, uint64_t, uint32_t, uint64_t *);
    int (*store)(const papr_intc_vcpu *, uint64_t, uint32_t, uint64_t);
    void *theirs; /* shadow mode: QEMU's region */
};

static struct window esb = {"esb", papr_intc_esb_load, papr_intc_esb_store, NULL};
static struct window tima = {"tima", papr_intc_tima_load, papr_intc_tima_store, NULL};

/* The vCPU that makes the access; NULL for a monitor, or a device. */
static struct vcpu *accessor(const struct window *window)
{
    void *cpu = symbols_current_cpu();
    struct vcpu *vcpu = cpu ? vcpu_of(cpu) : NULL;
    if (vcpu && vcpu->handle)
        return vcpu;
    static bool said;
    if (!said)
        say("an access to the %s window that is no vCPU's", window->name);
    said = true;
    return NULL;
}

static uint64_t their_load(const struct window *window, uint64_t offset, unsigned size)
{
    uint64_t value = 0;
    if (rig.active == XIVE)
        qemu.memory_region_dispatch_read(window->theirs, offset, &value, BIG_ENDIAN_ACCESS(size),
                                         ATTRS_UNSPECIFIED);
    return value;
}

static void their_store(const struct window *window, uint64_t offset, unsigned size, uint64_t value)
{
    if (rig.active == XIVE)
        qemu.memory_region_dispatch_write(window->theirs, offset, value, BIG_ENDIAN_ACCESS(size),
                                          ATTRS_UNSPECIFIED);
}

static uint64_t load(void *opaque, uint64_t offset, unsigned size)
{
    const struct window *window = opaque;
    uint64_t value = ALL_ONES(size), theirs = 0;
    if (shadow_inside)
        return their_load(window, offset, size);
    struct vcpu *vcpu = accessor(window);
    if (!vcpu)
        return value;
    rig.loads++;
    if (rig.mode == SHADOW) {
        shadow_load_begins(vcpu->server, window->name, offset, size);
        theirs = their_load(window, offset, size);
    }
    if (rig.mode == REMOTE)
        lock_drop();
    int rc = window->load(vcpu->handle, offset, size, &value);
    if (rig.mode == REMOTE)
        lock_take();
    if (rc < 0)
        say("load at %s %lx of vCPU %u: %s", window->name, offset, vcpu->server,
            papr_intc_last_error());
    if (rig.mode == SHADOW) {
        shadow_load_ends(theirs, value);
        shadow_op_ends();
        return theirs;
    }
    line_sync(vcpu);
    return value;
}

static void store(void *opaque, uint64_t offset, uint64_t value, unsigned size)
{
    const struct window *window = opaque;
    if (shadow_inside) {
        their_store(window, offset, size, value);
        return;
    }
    struct vcpu *vcpu = accessor(window);
    if (!vcpu)
        return;
    rig.stores++;
    if (rig.mode == SHADOW) {
        shadow_store_begins(vcpu->server, window->name, offset, size, value);
        their_store(window, offset, size, value);
    }
    if (rig.mode == REMOTE)
        lock_drop();
    int rc = window->store(vcpu->handle, offset, size, value);
    if (rig.mode == REMOTE)
        lock_take();
    if (rc < 0)
        say("store at %s %lx of vCPU %u: %s", window->name, offset, vcpu->server,
            papr_intc_last_error());
    if (rig.mode == SHADOW)
        shadow_op_ends();
    else
        line_sync(vcpu);
}

static const struct region_ops ops = {
    .read = load,
    .write = store,
    .endianness = 1,
    .valid = {.min = 1, .max = 8},
    .implemented = {.min = 1, .max = 8},
};

static void *part(void *of, const char *name)
{
    void *object = of ? qemu.object_resolve_path_component(of, name) : NULL;
    if (!object)
        refuse("QEMU's XIVE has no part %s", name);
    return object;
}

static void overlay(struct window *window, void *region, uint64_t *base, uint64_t *size)
{
    void *ours = calloc(1, REGION_BYTES);
    if (!ours)
        fail("no memory");
    *base = qemu.object_property_get_uint(region, "addr", NULL);
    *size = qemu.object_property_get_uint(region, "size", NULL);
    qemu.memory_region_init_io(ours, NULL, &ops, window, "papr-intc", *size);
    qemu.memory_region_add_subregion_overlap(qemu.get_system_memory(), *base, ours, ABOVE);
}

void windows_install(void)
{
    if (!(rig.kinds & XIVE))
        return;
    void *xive = qemu.object_resolve_path_type("", "spapr-xive", NULL);
    void *source = part(xive, "source");
    overlay(&esb, part(source, "xive.esb[0]"), &rig.esb_base, &rig.esb_size);
    overlay(&tima, part(xive, "xive.tima[0]"), &rig.tima_base, &rig.tima_size);
    esb.theirs = part(source, "xive.esb-emulated[0]");
    tima.theirs = part(xive, "xive.tima[0]");
}
