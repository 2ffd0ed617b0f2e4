/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Broken controllers, to see that a boot notices: the rig linked with these functions between itself and the
 * library (`ld --wrap`). PAPR_INTC_BREAK names what is broken; everything else is passed on as it is.
 * `build` makes the object, and `tests/qemu/run --broken` boots on it.
 */
#include <papr_intc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define H_EOI 0x64
#define H_IPI 0x6c

/* One in so many is hit. */
#define ONE_IN 400

#define ESB_SHIFT 17      /* from one source to the next: a page that triggers, a page that manages */
#define ESB_PAGE 0x10000
#define FIRST_DEVICE 0x1000 /* sources below are the vCPUs' IPIs */
#define SOURCES 0x2000

enum fault {
    LOST_MESSAGE,   /* a device's message gets lost */
    LEVEL_ONCE,     /* a level that stays up after EOI is not presented again */
    LOST_IPI,       /* an interrupt from one vCPU to another gets lost */
    LOST_EOI,       /* XICS: the end of an interrupt is not noticed */
    NO_Q,           /* XIVE: an event that comes while its source is pending is forgotten */
    LOST_ENTRY,     /* XIVE: an event queue entry is not written */
    FAULTS,
};

static const char *const names[FAULTS] = {
    [LOST_MESSAGE] = "lost-message", [LEVEL_ONCE] = "level-once", [LOST_IPI] = "lost-ipi",
    [LOST_EOI] = "lost-eoi",         [NO_Q] = "no-q",             [LOST_ENTRY] = "lost-entry",
};

static enum fault broken = FAULTS;
static atomic_uint count;
static atomic_bool pending[SOURCES];

__attribute__((constructor)) static void choose(void)
{
    const char *name = getenv("PAPR_INTC_BREAK");
    for (broken = 0; broken < FAULTS; broken++)
        if (name && strcmp(name, names[broken]) == 0)
            return;
    fprintf(stderr, "papr-intc-rig: refused: PAPR_INTC_BREAK=%s is no fault that is known\n",
            name ? name : "");
    _exit(77);
}

/* Is it this one's turn? */
static bool hit(enum fault fault)
{
    return broken == fault && atomic_fetch_add(&count, 1) % ONE_IN == ONE_IN - 1;
}

int __real_papr_intc_trigger(const papr_intc *intc, uint32_t lisn);
int __wrap_papr_intc_trigger(const papr_intc *intc, uint32_t lisn);
int __wrap_papr_intc_trigger(const papr_intc *intc, uint32_t lisn)
{
    if (hit(LOST_MESSAGE))
        return 0;
    if (broken == NO_Q && lisn < SOURCES && atomic_exchange(&pending[lisn], true))
        return 0;
    return __real_papr_intc_trigger(intc, lisn);
}

int __real_papr_intc_set_irq(const papr_intc *intc, uint32_t lisn, int level);
int __wrap_papr_intc_set_irq(const papr_intc *intc, uint32_t lisn, int level);
int __wrap_papr_intc_set_irq(const papr_intc *intc, uint32_t lisn, int level)
{
    int rc = __real_papr_intc_set_irq(intc, lisn, level);
    if (broken == LEVEL_ONCE && level && rc >= 0)
        rc = __real_papr_intc_set_irq(intc, lisn, 0);
    return rc;
}

int __real_papr_intc_hcall(const papr_intc_vcpu *vcpu, uint64_t opcode, uint64_t *args, int64_t *ret);
int __wrap_papr_intc_hcall(const papr_intc_vcpu *vcpu, uint64_t opcode, uint64_t *args, int64_t *ret);
int __wrap_papr_intc_hcall(const papr_intc_vcpu *vcpu, uint64_t opcode, uint64_t *args, int64_t *ret)
{
    if ((opcode == H_EOI && hit(LOST_EOI)) || (opcode == H_IPI && args[1] < 0xff && hit(LOST_IPI))) {
        *ret = 0;
        return 1;
    }
    return __real_papr_intc_hcall(vcpu, opcode, args, ret);
}

int __real_papr_intc_esb_load(const papr_intc_vcpu *vcpu, uint64_t offset, uint32_t size, uint64_t *value);
int __wrap_papr_intc_esb_load(const papr_intc_vcpu *vcpu, uint64_t offset, uint32_t size, uint64_t *value);
int __wrap_papr_intc_esb_load(const papr_intc_vcpu *vcpu, uint64_t offset, uint32_t size, uint64_t *value)
{
    uint64_t lisn = offset >> ESB_SHIFT;
    /* All loads but the one that only looks end an interrupt or mask it. */
    if (broken == NO_Q && lisn < SOURCES && (offset & ESB_PAGE) && (offset & 0xc00) != 0x800)
        atomic_store(&pending[lisn], false);
    return __real_papr_intc_esb_load(vcpu, offset, size, value);
}

int __real_papr_intc_esb_store(const papr_intc_vcpu *vcpu, uint64_t offset, uint32_t size, uint64_t value);
int __wrap_papr_intc_esb_store(const papr_intc_vcpu *vcpu, uint64_t offset, uint32_t size, uint64_t value);
int __wrap_papr_intc_esb_store(const papr_intc_vcpu *vcpu, uint64_t offset, uint32_t size, uint64_t value)
{
    bool triggers = !(offset & ESB_PAGE);
    if (triggers && offset >> ESB_SHIFT < FIRST_DEVICE && hit(LOST_IPI))
        return 0;
    return __real_papr_intc_esb_store(vcpu, offset, size, value);
}

static int (*write_u32)(void *opaque, uint64_t gpa, uint32_t value);

static int write_or_not(void *opaque, uint64_t gpa, uint32_t value)
{
    return hit(LOST_ENTRY) ? 0 : write_u32(opaque, gpa, value);
}

int __real_papr_intc_start(const papr_intc_options *options, const papr_intc_callbacks *callbacks,
                           papr_intc **out);
int __wrap_papr_intc_start(const papr_intc_options *options, const papr_intc_callbacks *callbacks,
                           papr_intc **out);
int __wrap_papr_intc_start(const papr_intc_options *options, const papr_intc_callbacks *callbacks,
                           papr_intc **out)
{
    papr_intc_callbacks ours = *callbacks;
    write_u32 = callbacks->write_u32;
    ours.write_u32 = write_or_not;
    return __real_papr_intc_start(options, &ours, out);
}
