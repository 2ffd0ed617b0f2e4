/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * H_CAS: the guest says what it can do, QEMU chooses and makes the device tree, and papr-intc is told the same
 * option vector 5. Both must come to the same controller.
 *
 * The guest's table (r4): pairs of mask and PVR, 8 bytes each, the last with a PVR outside of its mask; the number of
 * vectors less 1; the vectors, each its length less 1, then its bytes.
 *
 * The big lock is kept: no interrupt may find one half of the machine in the old mode and one in the new.
 */
#include "rig.h"
#include "shadow.h"

#define REAL_ADDRESS UINT64_C(0x0fffffffffffffff)
#define MAX_PAIRS 512
#define VECTOR 5
#define H_SUCCESS 0

/* Copies vector 5 with its length byte; how many bytes, 0 if there is none. */
static size_t find_vector(uint64_t at, uint8_t into[257])
{
    uint32_t mask, pvr;
    unsigned pairs = 0;
    uint8_t count, length;
    do {
        mask = memory_load_u32(at);
        pvr = memory_load_u32(at + 4);
        at += 8;
    } while ((pvr & ~mask) == 0 && ++pairs < MAX_PAIRS);
    if (!memory_load(at, &count, 1) || count + 1 < VECTOR)
        return 0;
    at++;
    for (int vector = 1; vector < VECTOR; vector++) {
        if (!memory_load(at, &length, 1))
            return 0;
        at += (uint64_t)length + 2;
    }
    if (!memory_load(at, &length, 1))
        return 0;
    size_t size = (size_t)length + 2;
    return memory_load(at, into, size) ? size : 0;
}

void cas_pass(struct vcpu *vcpu, uint64_t *gpr, void *vhyp)
{
    uint8_t vector[257];
    size_t size = find_vector(gpr[4] & REAL_ADDRESS, vector);
    hypercall_original(vhyp, vcpu->cpu);
    if (gpr[3] != H_SUCCESS)
        return;
    if (size == 0)
        fail("CAS went well without an option vector 5");
    papr_intc_cas_reply reply = {.size = sizeof reply};
    if (papr_intc_cas(vcpu->handle, vector, size, &reply) < 0)
        fail("CAS: %s", papr_intc_last_error());
    papr_intc_buffer_free(&reply.fdt);
    enum kind chosen = reply.mode == PAPR_INTC_MODE_XIVE ? XIVE : XICS;
    if (reply.ret != H_SUCCESS || chosen != rig.active)
        fail("CAS: QEMU chose %s, papr-intc %s (%d)", rig.active == XIVE ? "XIVE" : "XICS",
             chosen == XIVE ? "XIVE" : "XICS", (int)reply.ret);
    line_sync_all();
}
